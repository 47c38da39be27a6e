"""Prefix the names of vendored packages in Python sources and JSON configs, by syntax and not by text."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from bundle_files import VENDORED
from bundle_rules import mask_references

ROOTS = "|".join(VENDORED)
DOTTED = re.compile(rf"({ROOTS})(\.[A-Za-z_]\w*)+")
JSON_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
# Functions that take a package's bare name; elsewhere a string "physics" is a word.
LOADERS = {"import_module", "find_spec", "files", "as_file", "PackageLoader", "getLogger", "get_logger", "__import__"}
Edit = tuple[int, int, str]


class Vendor:
    """Rewrites sources that use packages which have become sub-packages of ``name``.

    Args:
        name: the package they were copied into.
        package: its folder, with the copies in it.
    """

    def __init__(self, name: str, package: Path) -> None:
        self.name = name
        self.package = package

    def python(self, source: str) -> str:
        """Prefix imports and dotted names in string literals of Python code.

        Raises:
            ValueError: if a use was found that cannot be prefixed.
        """
        source = _apply(source, self._edits(source, documented=True))
        self._verify(source)
        return source

    def json(self, text: str) -> str:
        """Prefix targets, import statements and expressions in the strings of a JSON text; its layout stays.

        Raises:
            ValueError: if a use was found that cannot be prefixed.
        """

        def replace(match: re.Match[str]) -> str:
            try:
                value = json.loads(match[0])
            except ValueError:
                return match[0]  # not JSON: the check says so
            new = self._value(value)
            return match[0] if new == value else json.dumps(new, ensure_ascii=False)

        return JSON_STRING.sub(replace, text)

    def _value(self, value: str) -> str:
        if not value.startswith("$"):
            return f"{self.name}.{value}" if self._is_vendored(value) else value
        code = value[1:].lstrip()
        try:
            # A masked reference is as long as the reference, so an edit of the one fits the other.
            edits = list(self._edits(mask_references(code), documented=False))
        except SyntaxError:
            return value  # the check says so
        return "$" + _apply(code, edits)

    def _edits(self, source: str, documented: bool) -> Iterator[Edit]:
        """Yield the edits; ``documented`` leaves alone the strings that are statements, docstrings as a rule."""
        tree = ast.parse(source)
        data, starts = source.encode(), _line_starts(source)
        documentation, in_fstrings, bare = _special_strings(tree)
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    if alias.name.partition(".")[0] in VENDORED:
                        yield *_span(alias, starts), self._alias(alias)
            elif isinstance(node, ast.ImportFrom):
                module = node.module or ""
                if node.level == 0 and module.partition(".")[0] in VENDORED:
                    begin, end = _span(node, starts)
                    head = re.match(rb"from(?:\s|\\)+", data[begin:end])
                    assert head is not None  # the grammar says so
                    yield begin + head.end(), begin + head.end(), f"{self.name}."
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                if documented and node in documentation:
                    continue
                if not (self._is_vendored(node.value) or (node in bare and node.value in VENDORED)):
                    continue
                begin, end = _span(node, starts)
                literal = "" if node in in_fstrings else data[begin:end].decode()
                quoted = re.fullmatch(r"([rRuU]?(?:'''|\"\"\"|'|\")).*", literal, re.DOTALL)
                if quoted is None or node.value not in literal:
                    raise ValueError(f"line {node.lineno}: the name {node.value!r} is not one plain string literal")
                at = begin + len(quoted[1].encode())
                yield at, at, f"{self.name}."

    def _alias(self, alias: ast.alias) -> str:
        prefixed = f"{self.name}.{alias.name}"
        if alias.asname:
            return f"{prefixed} as {alias.asname}"
        root, _, rest = alias.name.partition(".")
        bound = f"{self.name}.{root} as {root}"  # "import physics.noise" binds physics
        return f"{prefixed} as _{alias.name.replace('.', '_')}, {bound}" if rest else bound

    def _is_vendored(self, text: str) -> bool:
        """Whether the whole text is a dotted name of something in a vendored package."""
        if not DOTTED.fullmatch(text):
            return False
        root, first, *_ = text.split(".")
        folder = self.package / root
        if (folder / f"{first}.py").is_file() or (folder / first).is_dir():
            return True
        return re.search(rf"\b{first}\b", (folder / "__init__.py").read_text("utf-8")) is not None

    def _verify(self, source: str) -> None:
        for node in ast.walk(ast.parse(source)):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module or ""]
            for name in names:
                if name.partition(".")[0] in VENDORED:
                    raise ValueError(f"the import of {name} could not be prefixed")


def _special_strings(tree: ast.AST) -> tuple[set[ast.AST], set[ast.AST], set[ast.AST]]:
    """Strings that are statements, parts of f-strings, and first arguments of functions that load a package."""
    documentation: set[ast.AST] = set()
    in_fstrings: set[ast.AST] = set()
    bare: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            documentation.add(node.value)
        elif isinstance(node, ast.JoinedStr):
            in_fstrings.update(node.values)
        elif isinstance(node, ast.Call) and node.args:
            function = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if function in LOADERS:
                bare.add(node.args[0])
    return documentation, in_fstrings, bare


def _line_starts(source: str) -> list[int]:
    """Offset of each line, in UTF-8 bytes, as ast counts columns."""
    starts = [0]
    for line in source.encode().splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    return starts


def _span(node: ast.alias | ast.stmt | ast.expr, starts: list[int]) -> tuple[int, int]:
    assert node.end_lineno is not None and node.end_col_offset is not None
    return starts[node.lineno - 1] + node.col_offset, starts[node.end_lineno - 1] + node.end_col_offset


def _apply(source: str, edits: Iterable[Edit]) -> str:
    data = source.encode()
    for begin, end, text in sorted(edits, reverse=True):
        data = data[:begin] + text.encode() + data[end:]
    return data.decode()
