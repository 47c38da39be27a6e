"""What a config of MONAI could run: expressions, targets, imports, macros. Nothing is evaluated.

An expression is passed over only if it is made of references, literals, arithmetic, a few of Python's own functions and
the few names below; a target, or an argument that MONAI takes for one, only if it is a class of the installed MONAI's
building blocks, or of torch.nn and the like. A name that leads through another module (``torch.nn.os.system``) is not,
nor is one that an expression or a reference would give, nor a class that is handed on (``_mode_``) to be called with
arguments from elsewhere.
"""

from __future__ import annotations

import ast
import builtins
import configparser
import importlib.util
import json
import logging
import logging.handlers
import re
from collections.abc import Collection, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from untrusted.findings import Finding

REFERENCE = re.compile(r"@\w*(?:(?:#|::)\w*)*")
MASK = "reference_"
NODES = (
    *(ast.Expression, ast.Constant, ast.Name, ast.Load, ast.Store, ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare),
    *(ast.IfExp, ast.Tuple, ast.List, ast.Dict, ast.Subscript, ast.Slice, ast.Starred, ast.Call, ast.keyword),
    *(ast.Attribute, ast.Lambda, ast.arguments, ast.arg, ast.ListComp, ast.GeneratorExp, ast.comprehension),
    *(ast.Add, ast.Sub, ast.Mult, ast.Div, ast.FloorDiv, ast.Mod, ast.USub, ast.UAdd, ast.Not, ast.And, ast.Or),
    *(ast.Eq, ast.NotEq, ast.Lt, ast.LtE, ast.Gt, ast.GtE, ast.Is, ast.IsNot, ast.In, ast.NotIn),
)
FUNCTIONS = {
    "abs",
    "bool",
    "dict",
    "float",
    "int",
    "len",
    "list",
    "max",
    "min",
    "range",
    "round",
    "str",
    "sum",
    "tuple",
}
METHODS = {"run", "to", "get", "parameters", "state_dict", "eval", "lower", "upper", "mean"}
NAMES = {
    *("torch.device", "torch.tensor", "torch.cuda.is_available", "torch.cuda.device_count"),
    *("torch.channels_last", "torch.channels_last_3d", "torch.float16", "torch.bfloat16", "torch.float32"),
    *("torch.float64", "torch.int64", "torch.bool", "monai.utils.set_determinism", "monai.handlers.from_engine"),
}
PATH_ENTRY = "sys.path.insert(0, @bundle_root)"  # as MONAI does itself; the bundle's modules are listed
IMPORTS = {"ignite", "ignite.distributed", "math", "monai", "numpy", "sys", "torch", "torch.nn"}
TORCH_CLASS = re.compile(
    r"torch\.(nn(\.parallel)?|optim(\.lr_scheduler)?)\.[A-Z][A-Za-z0-9_]*|torch\.utils\.data\.(DataLoader|Subset)"
)
MONAI_PACKAGES = (
    "data",
    "engines",
    "handlers",
    "inferers",
    "losses",
    "metrics",
    "networks",
    "optimizers",
    "transforms",
)
# Building blocks that reach further: pickles, servers, code from GitHub.
MONAI_EXCEPT = {
    *("GDSDataset", "LMDBDataset", "MLFlowHandler", "NumpyReader", "PersistentDataset", "CacheNTransDataset"),
    *("ClearMLHandler", "ClearMLImageHandler", "ClearMLStatsHandler"),
    *("PerceptualLoss", "MedicalNetPerceptualSimilarity", "RadImageNetPerceptualSimilarity"),
    "TorchvisionModelPerceptualSimilarity",
}
# Arguments of LoadImage, SaveImage and PatchInferer: MONAI looks their text up as the name of anything and calls that.
LOOKED_UP = {"reader", "writer", "merger_cls"}
ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s'\"]+")


def config_findings(file: str, content: bytes, own: Collection[str]) -> list[Finding]:
    """What could run in one config.

    Args:
        file: its path below the bundle's root; the suffix says what it is.
        content: JSON, YAML, or a logging file.
        own: the bundle's own top-level modules.
    """
    try:
        text = content.decode("utf-8")
        if not file.lower().endswith((".json", ".yaml", ".yml")):
            return list(_logging(file, text))
        config = json.loads(text) if file.lower().endswith(".json") else _yaml(text)
        return [finding for id, value in _strings(config) for finding in _value(file, id, value, own)]
    except Exception as error:  # each parser has its own, and what one of them cannot read is not harmless
        return [Finding("not looked into", f"{type(error).__name__}: {error}".splitlines()[0], file)]


def _yaml(text: str) -> Any:
    import yaml  # only where a bundle has any; MONAI needs it, too

    return yaml.safe_load(text)


def _strings(config: Any) -> Iterator[tuple[str, str]]:
    """Every (id, text) of a config, without recursion; an object that YAML names twice comes once."""
    todo: list[tuple[str, Any]] = [("", config)]
    seen: set[int] = set()
    while todo:
        id, value = todo.pop()
        if isinstance(value, str):
            yield id, value
        elif isinstance(value, dict | list) and builtins.id(value) not in seen:
            seen.add(builtins.id(value))
            items = value.items() if isinstance(value, dict) else enumerate(value)
            todo += reversed([(f"{id}#{key}" if id else str(key), child) for key, child in items])


def _value(file: str, id: str, value: str, own: Collection[str]) -> Iterator[Finding]:
    part = next((part for part in reversed(re.split("#|::", id)) if not part.isdigit()), "").lstrip("+")
    if part == "_target_" or part in LOOKED_UP:  # before all else: an expression or a reference may give any name
        if value.split(".")[0] in own:
            yield Finding("own targets", value, file, id)
        elif not known_target(value):
            yield Finding("targets", value, file, id)
    elif part == "_mode_" and value != "default":
        yield Finding("targets", f"_mode_ {value}", file, id)
    elif value.startswith("$"):
        yield from _expression(file, id, value, own)
    elif value.startswith("%") and len(value) > 1:
        yield Finding("macros", value, file, id)
    if not file.endswith("metadata.json") or value.startswith("$"):  # those of metadata are for people
        yield from (Finding("addresses", match[0], file, id) for match in ADDRESS.finditer(value))


def _expression(file: str, id: str, value: str, own: Collection[str]) -> Iterator[Finding]:
    text = value[1:]
    try:
        body = ast.parse(text).body if "import" in text else []
    except SyntaxError:
        body = []
    if len(body) == 1 and isinstance(body[0], ast.Import | ast.ImportFrom):
        for name in _imported(body[0]):
            if name.split(".")[0] in own:
                yield Finding("own targets", value, file, id)
            elif name not in IMPORTS and not known_target(name):
                yield Finding("imports", value, file, id)
    elif not harmless(text):
        yield Finding("expressions", value, file, id)


def _imported(node: ast.Import | ast.ImportFrom) -> list[str]:
    base = f"{'.' * node.level}{node.module or ''}." if isinstance(node, ast.ImportFrom) else ""
    return [base + alias.name for alias in node.names]


def harmless(expression: str) -> bool:
    """Whether an expression, without its ``$``, is made of references, literals, arithmetic and known names alone."""
    if expression.strip() == PATH_ENTRY:
        return True
    masked = REFERENCE.sub(MASK, expression)
    if "::" in masked or "#" in masked:  # MONAI writes the one as the other: a comment
        return False
    try:
        tree = ast.parse(masked.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    nodes = list(ast.walk(tree))
    bound = {node.arg for node in nodes if isinstance(node, ast.arg)}
    bound |= {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    if bound & (FUNCTIONS | {"torch", "monai"}):
        return False
    inside: set[ast.AST] = set()  # parts of a known dotted name
    for node in nodes:  # from the outside inwards
        if not isinstance(node, NODES) or (isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow)):
            return False
        if isinstance(node, ast.Constant) and MASK in str(node.value):
            return False  # MONAI replaces a reference inside a text, too
        if node in inside:
            continue
        if isinstance(node, ast.Attribute) and ast.unparse(node) in NAMES:
            inside.update(ast.walk(node))
        elif not _known_part(node, bound):
            return False
    return True


def _known_part(node: ast.AST, bound: set[str]) -> bool:
    if isinstance(node, ast.Attribute):
        return node.attr in METHODS
    if isinstance(node, ast.Name):
        return node.id in bound | FUNCTIONS | {MASK}
    if isinstance(node, ast.Call) and not isinstance(node.func, ast.Attribute):
        return isinstance(node.func, ast.Name) and node.func.id in FUNCTIONS  # never a reference, or what a call gave
    return True


def known_target(name: str) -> bool:
    """Whether a ``_target_`` is a class of MONAI's building blocks or of torch.nn, torch.optim and data loaders."""
    if TORCH_CLASS.fullmatch(name):
        return True
    module, _, last = name.rpartition(".")
    found = monai_classes().get(last, set()) if last not in MONAI_EXCEPT else set()
    return any(not module or at == module or at.startswith(module + ".") for at in found)


@cache
def monai_classes() -> dict[str, set[str]]:
    """Classes of the installed MONAI's building blocks and their modules, by their sources; empty without MONAI."""
    spec = importlib.util.find_spec("monai")
    found: dict[str, set[str]] = {}
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for package in MONAI_PACKAGES:
            for path in Path(folder, package).rglob("*.py"):
                module = ".".join(("monai", *path.relative_to(folder).with_suffix("").parts)).removesuffix(".__init__")
                for name in re.findall(r"^class ([A-Z]\w*)", path.read_text("utf-8"), re.MULTILINE):
                    found.setdefault(name, set()).add(module)
    return found


def _logging(file: str, text: str) -> Iterator[Finding]:
    """``class``, ``args`` and ``kwargs`` that Python's logging evaluates, but plain handlers with plain arguments.

    A FileHandler is none: it writes, or empties, any file that it names.
    """
    parser = configparser.ConfigParser()
    parser.read_string(text)
    for section in parser.sections():
        for field in ("class", "args", "kwargs"):
            value = parser.get(section, field, raw=section.startswith("formatter"), fallback="").strip()
            known = _logging_class(value) if field == "class" else _logging_arguments(value)
            if value and not known:
                yield Finding("logging", f"{field}={value}", file, section)


def _logging_class(value: str) -> bool:
    module, _, name = value.removeprefix("logging.").rpartition(".")
    found = getattr({"": logging, "handlers": logging.handlers}.get(module), name, None)
    return found in (logging.StreamHandler, logging.NullHandler, logging.Formatter)


def _logging_arguments(value: str) -> bool:
    try:
        ast.literal_eval(re.sub(r"\bsys\.std(out|err)\b", "0", value))
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return False
    return True
