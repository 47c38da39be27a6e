"""Rename packages that become part of another, in Python sources and JSON configs, by syntax and not by text."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from bundle_files import VENDORED
from bundle_rules import mask_references

JSON_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
# Functions that take a package's bare name; elsewhere a string "physics" is a word.
LOADERS = {"import_module", "find_spec", "files", "as_file", "PackageLoader", "getLogger", "get_logger", "__import__"}
Edit = tuple[int, int, str]


class Vendor:
    """Rewrites sources of a package that got a new name, and of packages that have become sub-packages of it.

    Args:
        name: what the package was called.
        package: its folder under the new name, with copies of the shared packages in it.
    """

    def __init__(self, name: str, package: Path) -> None:
        self.names = {name: package.name} | {shared: f"{package.name}.{shared}" for shared in VENDORED}
        self.folders = {name: package} | {shared: package / shared for shared in VENDORED}
        self.dotted = re.compile(rf"({'|'.join(self.names)})(\.[A-Za-z_]\w*)+")

    def python(self, source: str) -> str:
        """Replace imports and dotted names in string literals of Python code.

        Raises:
            ValueError: if a use was found that cannot be replaced.
        """
        source = _apply(source, self._edits(source, documented=True))
        self._verify(source)
        return source

    def json(self, text: str) -> str:
        """Replace targets, import statements and expressions in the strings of a JSON text; its layout stays.

        Raises:
            ValueError: if a use was found that cannot be replaced.
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
            return self._replaced(value) if self._is_renamed(value) else value
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
                    if alias.name.partition(".")[0] in self.names:
                        yield *_span(alias, starts), self._alias(alias)
            elif isinstance(node, ast.ImportFrom):
                module = node.module or ""
                root = module.partition(".")[0]
                if node.level == 0 and root in self.names:
                    begin, end = _span(node, starts)
                    head = re.match(rb"from(?:\s|\\)+", data[begin:end])
                    assert head is not None  # the grammar says so
                    yield begin + head.end(), begin + head.end() + len(root), self.names[root]
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                if documented and node in documentation:
                    continue
                is_cut = node in in_fstrings and self.dotted.fullmatch(node.value + "x") is not None
                if not (is_cut or self._is_renamed(node.value) or (node in bare and node.value in self.names)):
                    continue
                begin, end = _span(node, starts)
                literal = "" if node in in_fstrings else data[begin:end].decode()
                quoted = re.fullmatch(r"([rRuU]?(?:'''|\"\"\"|'|\")).*", literal, re.DOTALL)
                if quoted is None or node.value not in literal:
                    raise ValueError(f"line {node.lineno}: the name {node.value!r} is not one plain string literal")
                at, root = begin + len(quoted[1].encode()), node.value.partition(".")[0]
                yield at, at + len(root), self.names[root]

    def _alias(self, alias: ast.alias) -> str:
        renamed = self._replaced(alias.name)
        if alias.asname:
            return f"{renamed} as {alias.asname}"
        root, _, rest = alias.name.partition(".")
        bound = f"{self.names[root]} as {root}"  # "import physics.noise" binds physics
        return f"{renamed} as _{alias.name.replace('.', '_')}, {bound}" if rest else bound

    def _replaced(self, name: str) -> str:
        root, dot, rest = name.partition(".")
        return self.names[root] + dot + rest

    def _is_renamed(self, text: str) -> bool:
        """Whether the whole text is a dotted name of something in a package that got a new name."""
        if not self.dotted.fullmatch(text):
            return False
        root, first, *_ = text.split(".")
        folder = self.folders[root]
        if (folder / f"{first}.py").is_file() or (folder / first).is_dir():
            return True
        return re.search(rf"\b{first}\b", (folder / "__init__.py").read_text("utf-8")) is not None

    def _verify(self, source: str) -> None:
        for node in ast.walk(ast.parse(source)):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module or ""]
            for name in names:
                if name.partition(".")[0] in self.names:
                    raise ValueError(f"the import of {name} could not be replaced")


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
