"""The maps of a unit as BIDS derivatives: sub-01/[ses-2/]anat/..., put in place at once."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from shared_transforms.atomic import atomic_write, sync_folder
from shared_transforms.errors import QMRIError

HIDDEN = ".batch"  # below the output: locks, failures, unfinished units
BIDS_VERSION = "1.10.0"
_DATATYPES = ("anat", "dwi", "fmap", "func", "perf", "swi")
# Much of what a bundle writes has no name in BIDS: all is ignored but what has one.
_IGNORED = (f"{HIDDEN}/", "*.nii.gz", "*.json", "*.tsv", "*.csv", "*.png", "*.html", "!dataset_description.json")
_IN_BIDS = ("T1map", "T2map", "Chimap", "mask", "dseg", "probseg")


def datatype_of(image: str | Path, subject: str) -> str:
    """The folder of a subject that an image lies in, such as "anat"; "anat" where it lies in no such folder."""
    parts = Path(image).parent.parts
    below = parts[len(parts) - parts[::-1].index(subject) :] if subject in parts else ()
    return next((part for part in below if part in _DATATYPES), "anat")


def arrange(written: Path, arranged: Path, folders: Mapping[str, str], uri_of: Callable[[Path], str]) -> list[Path]:
    """Bring what inference wrote (``STEM/STEM_name``) into the order of BIDS (``DATATYPE/STEM_name``).

    Args:
        written: output folder of the inference, one folder in it for each series.
        arranged: the new folder.
        folders: {stem: datatype}.
        uri_of: BIDS URI of a source, which replaces its path in the sidecars.

    Returns:
        The files, relative to ``arranged``.
    """
    files = []
    for stem, datatype in folders.items():
        for file in sorted(p for p in (written / stem).rglob("*") if p.is_file()):
            name = "_".join(file.relative_to(written / stem).parts)
            target = arranged / datatype / (name if name.startswith(stem) else f"{stem}_{name}")
            target.parent.mkdir(parents=True, exist_ok=True)
            if file.suffix == ".json" and (content := _with_uris(file, uri_of)) is not None:
                _write(target, content)
            elif file.suffix == ".html":  # it names its files as they lay when it was written
                text = file.read_text(encoding="utf-8").replace(f"{stem}/{file.name}", target.name)
                _write(target, text.replace(f"{stem}/{stem}", stem).encode())
            else:
                os.rename(file, target)
            files.append(target.relative_to(arranged))
    return files


def place(arranged: Path, folder: Path, record: str, begun: Path, outdated: Sequence[str] = ()) -> None:
    """Move the files of a unit to where they belong, its record last of all.

    Where there is no such folder yet, one rename does it. Otherwise the old record goes first, so that a unit is never
    taken for done whose files are of two runs; files of others in the folder stay. What a killed process leaves half
    done, the next call clears up: the files of both runs are listed before anything changes.

    Args:
        arranged: the unit's files and its record.
        folder: their place, on the same file system.
        record: name of the record.
        begun: where the list of the files is kept meanwhile.
        outdated: files of an earlier run, relative to ``folder``.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    if not folder.exists():
        os.rename(arranged, folder)
        sync_folder(folder.parent)
    else:
        files = [p.relative_to(arranged) for p in arranged.rglob("*") if p.is_file() and p.name != record]
        old = {Path(name) for name in (*outdated, *_begun_files(begun))}
        _write(begun, json.dumps(sorted(name.as_posix() for name in old.union(files))).encode())
        (folder / record).unlink(missing_ok=True)
        for name in old.difference(files):
            (folder / name).unlink(missing_ok=True)
        for name in [*files, Path(record)]:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            os.replace(arranged / name, folder / name)
        sync_folder(folder)
    begun.unlink(missing_ok=True)


def derivative_names(output: Path, derivatives: Sequence[Path]) -> tuple[str, ...]:
    """Names for BIDS URIs, "derivative0" and so on, that the links of earlier runs do not give to another data set.

    A data set keeps the name that it has. The name of one that is no longer there is free: it may have been moved.

    Args:
        output: the derivative.
        derivatives: the data sets.
    """
    taken = {name: target for name, target in links_of(output).items() if target is None or target.exists()}
    names: list[str] = []
    for dataset in derivatives:
        known = (name for name, target in taken.items() if name.startswith("derivative") and target == dataset)
        free = (name for i in itertools.count() if (name := f"derivative{i}") not in taken)
        names.append(next(known, None) or next(free))
        taken[names[-1]] = dataset
    return tuple(names)


def links_of(output: Path) -> dict[str, Path | None]:
    """{name in BIDS URIs: data set} as the description of a derivative has it; None where it is not a path."""
    links = _read_object(output / "dataset_description.json").get("DatasetLinks")
    return {
        name: None if ":" in str(target) else Path(os.path.normpath(output / str(target)))  # doi:..., https://...
        for name, target in (links.items() if isinstance(links, dict) else ())
    }


def describe(output: Path, software: Mapping[str, Any], links: Mapping[str, Path]) -> None:
    """Write ``dataset_description.json`` and ``.bidsignore`` of the derivative; entries of others are kept.

    Args:
        output: the derivative.
        software: its entry in GeneratedBy.
        links: {name in BIDS URIs: data set}.

    Raises:
        QMRIError: the folder holds a data set that is no derivative.
    """
    path = output / "dataset_description.json"
    content: dict[str, Any] = {"Name": f"Maps by {software['Name']}", "BIDSVersion": BIDS_VERSION}
    content |= {"DatasetType": "derivative", "GeneratedBy": []}
    if path.exists() or any(output.glob("sub-*")):
        existing = _read_object(path)
        if existing.get("DatasetType") != "derivative":
            raise QMRIError(
                file=path, field="output_dir", found="a data set that is no derivative (DatasetType)",
                expected="an empty folder, or one with maps", remedy="choose another output_dir",
            )  # fmt: skip
        content |= existing
    others = [p for p in content["GeneratedBy"] if p.get("Name") != software["Name"]]
    content["GeneratedBy"] = [*others, dict(software)]
    # Sidecars of earlier runs name the other links, and a URL that somebody gave to ours says more than a path.
    kept = {name for name, target in links_of(output).items() if target is None or name not in links}
    here = {name: Path(os.path.relpath(link, output)).as_posix() for name, link in links.items() if name not in kept}
    content["DatasetLinks"] = {name: content["DatasetLinks"][name] for name in sorted(kept)} | here
    _write(path, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())
    ignore = output / ".bidsignore"
    lines = ignore.read_text(encoding="utf-8").splitlines() if ignore.exists() else []
    lines += [line for line in (*_IGNORED, *(f"!*_{suffix}.*" for suffix in _IN_BIDS)) if line not in lines]
    _write(ignore, ("\n".join(lines) + "\n").encode())


def _with_uris(file: Path, uri_of: Callable[[Path], str]) -> bytes | None:
    """The sidecar with BIDS URIs for its sources; None where it names none."""
    content = _read_object(file)
    if not isinstance(content.get("Sources"), list):
        return None
    here = file.parent.resolve()
    content["Sources"] = [uri_of(Path(os.path.normpath(here / source))) for source in content["Sources"]]
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()


def _begun_files(begun: Path) -> list[str]:
    try:
        return list(json.loads(begun.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return []


def _read_object(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _write(path: Path, content: bytes) -> None:
    with atomic_write(path) as file:
        file.write(content)
