"""What a Python file uses that is of concern, by its syntax tree. The file is neither compiled nor imported.

Names are followed through ``import ... as`` and constant ``getattr`` within one file, no further: code that hides what
it does is not found. The list says where to begin to read.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Collection, Iterator

from untrusted.configs import ADDRESS
from untrusted.findings import Finding

CONCERNS = {
    "runs text as code": (
        r"builtins|__builtins__|exec|eval|compile|__import__|importlib(?!\.(metadata|resources)\b)|imp|runpy|code|codeop|pydoc"
        r"|types\.(FunctionType|CodeType)|operator\.(attrgetter|methodcaller)|timeit|pdb|bdb|trace"
        r"|torch\.(hub|package|utils\.cpp_extension|ops\.load_library|classes\.load_library|jit\.load)"
    ),
    "evaluates configs": r"monai\.bundle|monai\.utils\.(optional_import|instantiate|load_submodules)",
    "starts programs": (
        r"subprocess|multiprocessing|concurrent\.futures\.ProcessPoolExecutor|pty|asyncio\.create_subprocess_\w+"
        r"|os\.(system|popen|exec\w+|spawn\w+|posix_spawn\w*|fork\w*|startfile|kill\w*)|monai\.utils\.run_cmd"
    ),
    "native code": r"ctypes|cffi|_ctypes|mmap|sys\._getframe|gc\.get_\w+",
    "network": (
        r"socket|ssl|urllib|http|requests|httpx|aiohttp|ftplib|smtplib|telnetlib|xmlrpc|socketserver|webbrowser|paramiko"
        r"|boto3|mlflow|wandb|huggingface_hub|gdown|monai\.apps|grpc|torch\.distributed\.(rpc|init_process_group)"
    ),
    "unpickles": (
        r"_?pickle\.(?!PickleError|UnpicklingError|dumps?|HIGHEST_PROTOCOL)\w+|dill|cloudpickle|joblib|shelve|marshal"
        r"|pandas\.read_pickle|yaml\.(load|load_all|full_load\w*|unsafe_load\w*)|jsonpickle|torch\.load|numpy\.load"
    ),
    "writes or deletes files": (
        r"shutil\.(rmtree|move|copy\w*|chown|make_archive|unpack_archive)|tempfile"
        r"|os\.(remove|unlink|rename|renames|replace|rmdir|removedirs|makedirs|mkdir|symlink|link|chmod|chown|truncate|open)"
        r"|torch\.save|numpy\.(save\w*|lib\.format\.open_memmap)|zipfile\.ZipFile|tarfile"
    ),
    "changes the process": (
        r"os\.(environ|putenv|chdir|_exit|setuid|setgid|umask)|sys\.(path|modules|meta_path|path_hooks|settrace|setprofile)"
        r"|atexit|signal|site|threading\.settrace"
    ),
}
BUILTINS = {"exec", "eval", "compile", "__import__", "__builtins__"}
# Reached through another module, too (torch.os.system), or handed on under another name.
REACHED = {"builtins", "ctypes", "importlib", "os", "pickle", "shutil", "socket", "subprocess", "sys"}
PATTERNS = {group: re.compile(rf"(?:{pattern})(?:\.|$)") for group, pattern in CONCERNS.items()}
SAFE_WITH = {"torch.load": ("weights_only", True), "numpy.load": ("allow_pickle", False)}
WRITING_METHODS = {
    "write_text",
    "write_bytes",
    "unlink",
    "rmdir",
    "symlink_to",
    "hardlink_to",
    "chmod",
    "touch",
    "tofile",
}
HIDDEN = {
    *("__globals__", "__builtins__", "__subclasses__", "__code__", "__reduce__", "__reduce_ex__", "__setstate__"),
    *("__loader__", "__bases__", "__mro__", "__getattribute__", "f_globals", "f_locals", "f_builtins", "gi_frame"),
}


def code_findings(file: str, content: bytes, own: Collection[str]) -> list[Finding]:
    """What one Python file uses that is of concern, with lines.

    Args:
        file: its path below the bundle's root.
        content: the source.
        own: the bundle's own top-level modules, which are of no concern by themselves.
    """
    try:
        tree = ast.parse(content)
        found = set(_Uses(file, own).of(tree))
        # An import says no more than its uses.
        used = {finding.text for finding in found}
        found -= {finding for finding in found if any(_uses(name, finding.text) for name in used)}
        return sorted(found, key=lambda finding: (finding.group, finding.text, int(finding.place)))
    except Exception as error:  # whatever Python's parser raises: a file that it cannot read is not harmless
        return [Finding("not looked into", f"{type(error).__name__}: {error}".splitlines()[0], file)]


def _uses(name: str, statement: str) -> bool:
    return statement.startswith("import ") and f"{name}.".startswith(statement.removeprefix("import ") + ".")


class _Uses:
    """Names of one file, and what they were imported as."""

    def __init__(self, file: str, own: Collection[str]) -> None:
        self.file, self.own = file, own
        self.meaning: dict[str, str] = {}

    def of(self, tree: ast.AST) -> Iterator[Finding]:
        """All findings of the file."""
        nodes = list(ast.walk(tree))
        for node in nodes:
            if isinstance(node, ast.Import | ast.ImportFrom):
                yield from self._imports(node)
        documentation = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
        called = {id(node.func): node for node in nodes if isinstance(node, ast.Call)}
        parts = {id(node.value) for node in nodes if isinstance(node, ast.Attribute)}
        for node in nodes:
            if isinstance(node, ast.Attribute | ast.Name) and id(node) not in parts:
                yield from self._name(node, called.get(id(node)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documentation:
                yield from (self._found("addresses", match[0], node) for match in ADDRESS.finditer(node.value))
            if isinstance(node, ast.Attribute) and node.attr in HIDDEN:
                yield self._found("names that cannot be followed", node.attr, node)
            if isinstance(node, ast.Call):
                yield from self._call(node)

    def _found(self, group: str, text: str, node: ast.AST) -> Finding:
        return Finding(group, text, self.file, str(getattr(node, "lineno", 0)))

    def _imports(self, node: ast.Import | ast.ImportFrom) -> Iterator[Finding]:
        base = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
        if isinstance(node, ast.ImportFrom) and (node.level or base.split(".")[0] in self.own):
            return
        for alias in node.names:
            name = base + alias.name
            if alias.name == "*":
                yield self._found("names that cannot be followed", f"from {base[:-1]} import *", node)
            bound = alias.asname or (alias.name if base else alias.name.split(".")[0])
            self.meaning[bound] = name if base or alias.asname else bound
            for group in _groups(name):
                if name not in SAFE_WITH:
                    yield self._found(group, f"import {name}", node)

    def _name(self, node: ast.Attribute | ast.Name, call: ast.Call | None) -> Iterator[Finding]:
        name = self._full(node)
        if name is None or (_root(node) not in self.meaning and name not in BUILTINS):
            return
        if name.rpartition(".")[2] in REACHED:
            yield self._found("names that cannot be followed", f"{name} handed on", node)
        for group in _groups(name):
            word, value = SAFE_WITH.get(name, ("", None))
            given = [argument.value for argument in (call.keywords if call else []) if argument.arg == word]
            if not (len(given) == 1 and isinstance(given[0], ast.Constant) and given[0].value is value):
                yield self._found(group, name, node)

    def _full(self, node: ast.expr) -> str | None:
        """Dotted name of a chain of attributes, as imported; None for anything else."""
        parts: list[str] = []
        while isinstance(node, ast.Attribute):
            parts.append(node.attr)
            node = node.value
        if not isinstance(node, ast.Name):
            return None
        return ".".join([self.meaning.get(node.id, node.id), *reversed(parts)])

    def _call(self, node: ast.Call) -> Iterator[Finding]:
        name = self._full(node.func)
        if name in ("getattr", "setattr", "delattr") and len(node.args) > 1:
            attribute = node.args[1]
            if not (isinstance(attribute, ast.Constant) and isinstance(attribute.value, str)):
                yield self._found("names that cannot be followed", f"{name} of a computed name", node)
            elif base := self._full(node.args[0]):
                full = f"{base}.{attribute.value}"
                yield from (self._found(group, full, node) for group in _groups(full))
        elif name in ("globals", "locals", "breakpoint", "input"):
            yield self._found("names that cannot be followed", name, node)
        method = node.func.attr if isinstance(node.func, ast.Attribute) else ""
        if method in WRITING_METHODS:
            yield self._found("writes or deletes files", f".{method}", node)
        elif name in ("open", "io.open", "gzip.open") or (method == "open" and name not in ("os.open", "tarfile.open")):
            arguments = node.args[1:] if not method or name in ("io.open", "gzip.open") else node.args
            modes = [argument.value for argument in node.keywords if argument.arg == "mode"] or arguments[:1]
            if any(not _reads(mode) for mode in modes):
                yield self._found("writes or deletes files", "open to write", node)


def _reads(mode: ast.expr) -> bool:
    return isinstance(mode, ast.Constant) and isinstance(mode.value, str) and not set(mode.value) & set("wax+")


def _groups(name: str) -> list[str]:
    parts = name.split(".")
    names = [name, *(".".join(parts[n:]) for n in range(1, len(parts)) if parts[n] in REACHED)]
    return [group for group, pattern in PATTERNS.items() if any(map(pattern.match, names))]


def _root(node: ast.expr) -> str:
    """First name of a chain of attributes."""
    while isinstance(node, ast.Attribute):
        node = node.value
    return node.id if isinstance(node, ast.Name) else ""
