"""The rule that required_packages_version names every package which inference imports."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

from bundle_files import REPOSITORY, VENDORED, Bundle, Fault, walk

OTHERWISE_NAMED = {"monai", "torch", "numpy"}  # these have versions of their own in metadata.json
# The extra "train" of the repository; inference runs without them.
TRAINING_ONLY = {"imblearn", "mlflow", "nilearn", "sklearn"}


def required_packages(bundle: Bundle) -> Iterator[Fault]:
    """Every package that modules of inference.json import, at whatever depth, is in required_packages_version."""
    named = {_plain(name) for name in bundle.metadata.get("required_packages_version", {})}
    distributions = packages_distributions()
    for module, importer in sorted(third_party(bundle).items()):
        candidates = {_plain(name) for name in distributions.get(module, [module])}
        if module in OTHERWISE_NAMED | TRAINING_ONLY or candidates & named:
            continue
        cure = f'add "{min(candidates)}" with the version of constraints.txt'
        problem = f"lacks {min(candidates)}, which {importer} imports"
        yield Fault("configs/metadata.json", "required_packages_version", problem, cure)


def third_party(bundle: Bundle) -> dict[str, str]:
    """Top-level modules that are neither Python's nor the bundle's, and a file that imports each."""
    found: dict[str, str] = {}
    seen: set[Path] = set()
    todo = [path for name in _entry_points(bundle) for path in _files(bundle, name)]
    while todo:
        path = todo.pop()
        if path in seen:
            continue
        seen.add(path)
        for name in imported(path, _package_of(bundle, path)):
            top = name.partition(".")[0]
            if top in (bundle.package, *VENDORED):
                todo += _files(bundle, name)
            elif top not in sys.stdlib_module_names:
                found.setdefault(top, path.name)
    return found


def imported(path: Path, package: str) -> Iterator[str]:
    """Full names of what a file imports, wherever in it; of ``from a import b`` both a and a.b.

    Args:
        path: the file.
        package: dotted name of the package it lies in.
    """
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")
            base = ".".join(parents[: len(parents) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (base, node.module or "") if part)
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def _entry_points(bundle: Bundle) -> Iterator[str]:
    """Names of the bundle's and the shared packages in inference.json: targets, imports, expressions."""
    roots = "|".join(re.escape(name) for name in (bundle.package, *VENDORED))
    for _, value in walk(bundle.configs.get("inference.json", {})):
        if isinstance(value, str):
            yield from (match[0] for match in re.finditer(rf"\b(?:{roots})(?:\.\w+)+", value))


def _files(bundle: Bundle, name: str) -> list[Path]:
    """The module of a dotted name and the packages it lies in, as files; attributes at its end are cut off."""
    top, *parts = name.split(".")
    folder = (bundle.root if top == bundle.package or bundle.is_packed else REPOSITORY) / top
    found = [folder / "__init__.py"]
    for part in parts:
        found.append(folder / f"{part}.py")
        folder /= part
        found.append(folder / "__init__.py")
    return [path for path in found if path.is_file()]


def _package_of(bundle: Bundle, path: Path) -> str:
    root = bundle.root if path.is_relative_to(bundle.root) else REPOSITORY
    return ".".join(path.relative_to(root).parent.parts)


def _plain(name: str) -> str:
    return name.lower().replace("_", "-")
