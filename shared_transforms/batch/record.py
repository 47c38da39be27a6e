"""What was done of a unit, from which files, by what: enough to tell whether it has to be done again."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from shared_transforms.io.nifti import is_nifti
from shared_transforms.io.sidecar import sidecar_files
from shared_transforms.weights import sha256_file

RECORD_SUFFIX = "_batch.json"


@dataclass(frozen=True)
class Maker:
    """What makes the maps; a unit made by another one is made again.

    Attributes:
        name: of the bundle.
        version: of the bundle.
        weights_sha256: of the network's weights; None for an estimator without any.
        config_sha256: of the merged config, without what has no influence on the maps.
    """

    name: str
    version: str
    weights_sha256: str | None
    config_sha256: str


@dataclass(frozen=True)
class Record:
    """A unit that is done.

    Attributes:
        made_by: what made the maps.
        inputs: {BIDS URI: {"size", "mtime_ns", "sha256"}} of each file read, sidecars included.
        outputs: {path below the folder of the unit: size [bytes]}.
        seconds: how long it took.
        peak_memory_mb: of the process, so far.
        date: when, UTC.
        series: how many series there were.
    """

    made_by: Maker
    inputs: dict[str, dict[str, Any]]
    outputs: dict[str, int]
    seconds: float
    peak_memory_mb: float
    date: str
    series: int

    def as_json(self) -> bytes:
        """The content of its file."""
        return (json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n").encode()

    def holds(self, folder: Path, made_by: Maker, files: Mapping[str, Path]) -> bool:
        """Whether maker and input are the same still, and every output is there.

        A file counts as the same by size and time of change, or else by size and sha256: a copy is no change.

        Args:
            folder: of the unit's outputs.
            made_by: what would make the maps now.
            files: {BIDS URI: path} of the files that would be read now.
        """
        if self.made_by != made_by or self.inputs.keys() != files.keys():
            return False
        if any(_size(folder / name) != size for name, size in self.outputs.items()):
            return False
        return all(_same(path, self.inputs[name]) for name, path in files.items())


def read_record(path: Path) -> Record | None:
    """The record in a file; None where there is none, or one of another kind."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return Record(**{**content, "made_by": Maker(**content["made_by"])})
    except (OSError, ValueError, TypeError, KeyError):
        return None


def fingerprint(path: Path) -> dict[str, Any]:
    """Size, time of change and sha256 of a file."""
    status = path.stat()
    return {"size": status.st_size, "mtime_ns": status.st_mtime_ns, "sha256": sha256_file(path)}


def files_of(items: Iterable[Any]) -> list[Path]:
    """The files that inference items name, with the sidecars of their images.

    Args:
        items: what a finder returned: dictionaries with paths, or lists of them, among their values.
    """
    # Not Path.is_file: it raises for a text, such as a note, that is longer than a name can be.
    named = dict.fromkeys(Path(text) for text in texts_of(list(items)) if os.sep in text and os.path.isfile(text))
    sidecars = [sidecar for path in named if is_nifti(path) for sidecar in sidecar_files(path)]
    return list(dict.fromkeys([*named, *sidecars]))


def texts_of(value: Any) -> Iterator[str]:
    """The texts and paths among a value, the values of a dictionary or the members of a list, at any depth."""
    if isinstance(value, str | Path):
        yield str(value)
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from texts_of(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from texts_of(part)


def _same(path: Path, known: Mapping[str, Any]) -> bool:
    try:
        status = path.stat()
    except OSError:
        return False
    if status.st_size != known["size"]:
        return False
    return status.st_mtime_ns == known["mtime_ns"] or sha256_file(path) == known["sha256"]


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None
