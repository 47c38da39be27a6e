"""A bundle on disk: reading its configs, naming its faults."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
VENDORED = ("physics", "shared_transforms")
MAX_FILE_BYTES = 25 * 1024 * 1024


@dataclass(frozen=True)
class Fault:
    """One thing wrong with a bundle.

    Attributes:
        file: path below the bundle's root.
        id: config id, key or entry concerned.
        problem: what is wrong, with what was found.
        cure: what to do.
    """

    file: str
    id: str
    problem: str
    cure: str

    def __str__(self) -> str:
        return f"{self.file}: {self.id}: {self.problem}\n    cure: {self.cure}"


class BundleError(Exception):
    """The bundle cannot be opened or packed at all; carries the faults that say why."""

    def __init__(self, *faults: Fault) -> None:
        super().__init__("\n".join(str(fault) for fault in faults))
        self.faults = list(faults)


@dataclass
class Bundle:
    """A bundle that has been read.

    Attributes:
        root: the bundle's folder; its name is the bundle's name.
        configs: each ``configs/*.json`` by file name, nested ids (``a#b``) of complete configs as written.
        faults: what was wrong already in reading.
    """

    root: Path
    configs: dict[str, dict[str, Any]] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Name of the bundle."""
        return self.root.name

    @property
    def package(self) -> str:
        """Name of the package with its code: the bundle's own, with the version behind it where it is packed."""
        packed = packed_name(self.name, str(self.metadata.get("version")))
        return packed if (self.root / packed).is_dir() else self.name

    @property
    def metadata(self) -> dict[str, Any]:
        """Content of ``metadata.json``; empty where there is none."""
        return self.configs.get("metadata.json", {})

    @property
    def is_packed(self) -> bool:
        """Whether the bundle carries its own copy of the shared packages."""
        return all((self.root / self.package / shared).is_dir() for shared in VENDORED)

    @property
    def runnable(self) -> dict[str, dict[str, Any]]:
        """The configs that MONAI runs: all but ``metadata.json``."""
        return {name: config for name, config in self.configs.items() if name != "metadata.json"}


def bundle_names(repository: Path = REPOSITORY) -> list[str]:
    """Names of the bundles of a repository: folders with a metadata.json."""
    return sorted(path.parents[1].name for path in repository.glob("bundles/*/configs/metadata.json"))


def packed_name(name: str, version: str) -> str:
    """Name of the package in a packed bundle, which no other version has: Python keeps one package of a name."""
    return f"{name}_v{version.replace('.', '_')}"


def read_bundle(root: Path) -> Bundle:
    """Read all configs of the bundle in folder ``root``; what cannot be read becomes a fault."""
    bundle = Bundle(root.resolve())
    for path in sorted((root / "configs").glob("*.json")):
        file = f"configs/{path.name}"
        duplicates: list[str] = []
        try:
            content = json.loads(path.read_text("utf-8"), object_pairs_hook=partial(_unique, duplicates))
        except (ValueError, RecursionError) as error:  # JSONDecodeError, UnicodeDecodeError, too many brackets
            bundle.faults.append(Fault(file, "-", f"is not JSON: {error}", "write valid JSON"))
            continue
        if not isinstance(content, dict):
            bundle.faults.append(Fault(file, "-", f"holds a {type(content).__name__}", "write one JSON object"))
            continue
        bundle.faults += [Fault(file, key, "stands twice; MONAI takes the last", "remove one") for key in duplicates]
        bundle.configs[path.name] = content
    return bundle


def _unique(duplicates: list[str], pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        keys = [key for key, _ in pairs]
        duplicates += sorted({key for key in keys if keys.count(key) > 1})
    return result


def walk(value: Any, id: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every (id, value) below ``value``, containers included; ids are joined by ``#``."""
    if id:
        yield id, value
    items: Any = ()
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    for key, child in items:
        yield from walk(child, f"{id}#{key}" if id else str(key))


def lookup(config: dict[str, Any], id: str) -> Any:
    """Value at ``id`` of a config as MONAI nests it.

    Raises:
        KeyError: if there is none.
    """
    id = id.replace("::", "#")
    for key in config:  # a key may be a nested id itself: "train#trainer"
        plain = key.lstrip("+").replace("::", "#")
        if "#" in plain and (plain == id or id.startswith(plain + "#")):
            rest = id[len(plain) + 1 :]
            return lookup_parts(config[key], rest.split("#") if rest else [])
    return lookup_parts(config, id.split("#"))


def lookup_parts(value: Any, parts: list[str]) -> Any:
    """Value at the path ``parts`` of nested dicts and lists.

    Raises:
        KeyError: if there is none.
    """
    for part in parts:
        if isinstance(value, dict) and part in value:
            value = value[part]
        elif isinstance(value, list) and part.isdigit() and int(part) < len(value):
            value = value[int(part)]
        else:
            raise KeyError(part)
    return value
