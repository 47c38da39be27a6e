"""A bundle on disk or in a zip: opening it safely, reading its configs, naming its faults."""

from __future__ import annotations

import json
import stat
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
VENDORED = ("physics", "shared_transforms")
MAX_FILE_BYTES = 25 * 1024 * 1024
MAX_ZIP_BYTES = 1024**3
MAX_ZIP_ENTRIES = 10_000


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
        except ValueError as error:  # JSONDecodeError and UnicodeDecodeError
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


@contextmanager
def open_bundle(path: Path) -> Iterator[Path]:
    """Give the root folder of the bundle at ``path``, a folder or a zip, which is unpacked into a temporary folder.

    Raises:
        BundleError: if there is nothing, or the zip is unsafe or holds more than one folder.
    """
    if path.is_dir():
        yield path.resolve()
    elif zipfile.is_zipfile(path):
        with tempfile.TemporaryDirectory(prefix="bundle-") as folder, zipfile.ZipFile(path) as archive:
            root = Path(folder) / _checked_top(archive, path.name)
            archive.extractall(folder)
            yield root
    else:
        raise BundleError(Fault(str(path), "-", "is neither a folder nor a zip", "give a bundle's folder or its zip"))


def _checked_top(archive: zipfile.ZipFile, file: str) -> str:
    """Name of the one folder in the archive, after every entry was found safe to write."""
    faults = [
        Fault(file, repr(entry.filename), problem, "do not use this zip; pack the bundle again with pack_bundle.py")
        for entry in archive.infolist()
        if (problem := _unsafe(entry))
    ]
    names = archive.namelist()
    pack_again = "pack the bundle again with pack_bundle.py"
    if len(set(names)) < len(names):
        faults.append(Fault(file, "-", "has two entries of one name", pack_again))
    if len(names) > MAX_ZIP_ENTRIES or sum(entry.file_size for entry in archive.infolist()) > MAX_ZIP_BYTES:
        faults.append(Fault(file, "-", "unpacks to more than a bundle can hold", "do not use this zip"))
    tops = sorted({PurePosixPath(name).parts[0] for name in names if PurePosixPath(name).parts})
    if not faults and (len(tops) != 1 or f"{tops[0]}/configs/metadata.json" not in names):
        faults.append(Fault(file, "-", f"holds {tops}, not one folder of a bundle", pack_again))
    if faults:
        raise BundleError(*faults)
    return tops[0]


def _unsafe(entry: zipfile.ZipInfo) -> str | None:
    name = entry.filename
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if name.startswith("/") or "\\" in name or ":" in name.split("/")[0]:
        return "is an absolute path"
    if ".." in name.split("/"):
        return "leads out of the folder"
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "is a link or a device"
    if entry.flag_bits & 1:
        return "is encrypted"
    return None
