"""Find susceptibility map, FLAIR and lesion mask of each subject in a folder."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared_transforms.errors import QMRIError
from shared_transforms.io.find import images_below, safe_name, unique_stems
from shared_transforms.io.find_echoes import sidecar_or_none
from shared_transforms.io.nifti import nifti_name, read_header
from shared_transforms.io.sidecar import is_derived_map, not_magnitude

logger = logging.getLogger(__name__)

NEEDED = {"qsm": "susceptibility map (QSM)", "flair": "FLAIR image", "mask": "lesion mask"}
OPTIONAL = {"brain": "brain mask", "magnitude": "magnitude image"}
JOINED_VOLUMES = (3, 4)  # QSM, FLAIR, lesion mask and, where there is one, magnitude

_WORD = r"(?i)(?<![a-z])(?:{})(?![a-z])"
_LESION = re.compile(_WORD.format("(?:label-|ms[-_]?)?lesions?|wml|whitematterlesions?"))
_MASK = re.compile(_WORD.format("mask|brain_?mask|d?seg|aseg|probseg|roi"))
_SEGMENTATION = re.compile(_WORD.format("dseg"))
_BRAIN = re.compile(_WORD.format("(?:desc-)?brain(?:[-_]?mask)?"))
_NEVER = re.compile(_WORD.format("residual|error|std|prob|probseg|probability|localfield|fieldmap|phase"))
_CONTRASTS = {
    "qsm": re.compile(_WORD.format("chi_?map|qsm|susceptibility")),
    "flair": re.compile(_WORD.format("(?:t2[-_]?)?flair")),
    "magnitude": re.compile(_WORD.format("part-mag|magnitude|mag")),
}
_SUBJECT = re.compile(r"(?<![A-Za-z0-9])(sub-[A-Za-z0-9]+)")
_SESSION = re.compile(r"(?<![A-Za-z0-9])(ses-[A-Za-z0-9]+)")
_EXAMPLES = {
    "qsm": "NAME_Chimap.nii.gz", "flair": "NAME_FLAIR.nii.gz", "mask": "NAME_label-lesion_mask.nii.gz",
}  # fmt: skip


@dataclass(frozen=True)
class _File:
    path: Path
    kind: str
    subject: str | None  # sub-01 or sub-01_ses-2, where name or folders say it
    name: str  # the rest of the name without what says the kind

    @property
    def folder(self) -> Path:
        return self.path.parent


def find_lesion_maps(
    dataset_dir: str | Path,
    *,
    qsm_file: str | Path | None = None,
    flair_file: str | Path | None = None,
    mask_file: str | Path | None = None,
    brain_file: str | Path | None = None,
    magnitude_file: str | Path | None = None,
) -> list[dict[str, Any]]:
    """List the subjects of a folder and the folders below it that have QSM, FLAIR and a lesion mask.

    Names say what a file is: ``*_Chimap`` or ``*_QSM``; ``*_FLAIR``; ``*_label-lesion_mask``, ``*_lesions`` or, where
    there is no such, ``*_dseg``; and, where they are there, ``*_desc-brain_mask``, ``*_magnitude`` or ``*_part-mag``.
    Files belong together by their BIDS entities sub and ses, or else by the begin of their names, or by their folder.
    Derivatives are looked through as well. Without any QSM, 4-D files of three or four volumes (QSM, FLAIR, lesion
    mask, magnitude) are taken. Computed maps other than QSM, as an earlier run of the bundle leaves them, are not.

    Args:
        dataset_dir: the folder; or one 4-D file, or one QSM beside which the others lie.
        qsm_file: the QSM in place of those that are found; likewise the following.
        flair_file: see ``qsm_file``.
        mask_file: see ``qsm_file``.
        brain_file: see ``qsm_file``.
        magnitude_file: see ``qsm_file``.

    Returns:
        One dictionary for each subject, ordered by stem: ``image`` (paths of QSM, FLAIR and lesion mask, or of the one
        4-D file), ``stem`` (unique name for the outputs), ``notes`` (remarks), and ``brain`` and ``magnitude`` (paths)
        where they were found. Each is an input of ``LoadLesionMapsd``. A subject that lacks a file is left out with a
        warning, unless no subject is complete.

    Raises:
        QMRIError: no such folder, no subject with the three files (the message says what is missing), several files
            that may be meant, or one file given for several subjects.
    """
    root = Path(dataset_dir)
    given = {"qsm": qsm_file, "flair": flair_file, "mask": mask_file, "brain": brain_file, "magnitude": magnitude_file}
    named = {kind: _existing(Path(path), f"{kind}_file") for kind, path in given.items() if path is not None}
    _existing(root, "dataset_dir")
    folder = root if root.is_dir() else root.parent
    if root.is_file() and "qsm" not in named:
        if _joined(root):
            return [_item([root], _stem(_described(root, "qsm", folder)), {})]
        named["qsm"] = root
    files = _sort_out(images_below(folder, derivatives=True), folder)
    maps = [_described(named["qsm"], "qsm", folder)] if "qsm" in named else [f for f in files if f.kind == "qsm"]
    if not maps:
        return _joined_files(folder)
    if len(maps) > 1 and named:
        raise QMRIError(
            file=next(iter(named.values())), field=f"{next(iter(named))}_file", found=f"one file for {len(maps)} "
            f"susceptibility maps: {_listed([m.path for m in maps])}", expected="files of one subject",
            remedy="point dataset_dir to the folder of one subject, or name its map: qsm_file=PATH",
        )  # fmt: skip
    _refuse_twins(maps, folder)
    stems = unique_stems([_stem(m) for m in maps], [m.path for m in maps], folder)
    items, faults = [], []
    for chi, stem in zip(maps, stems, strict=True):
        own = {kind: named.get(kind) or _belonging(chi, files, maps, kind, folder) for kind in (*NEEDED, *OPTIONAL)}
        own["qsm"] = chi.path
        missing = [kind for kind in NEEDED if own[kind] is None]
        if missing:
            faults.append(_missing(chi, missing, [f.path for f in files]))
        else:
            extras = {kind: path for kind, path in own.items() if kind in OPTIONAL and path is not None}
            items.append(_item([own[kind] for kind in NEEDED], stem, extras))
    if not items:
        raise faults[0]
    for fault in faults:
        logger.warning("%s is left out: %s, %s.", fault.file, fault.field, fault.found)
    return sorted(items, key=lambda i: str(i["stem"]))


def lesion_stem(path: Path) -> str:
    """Name of a subject for its outputs, from that of its QSM or 4-D file."""
    return _stem(_described(path, "qsm", path.parent))


def _existing(path: Path, field: str) -> Path:
    if not path.exists():
        raise QMRIError(
            file=path, field=field, found="no such file or folder", remedy=f"check the path ({field})",
            expected="a folder with QSM, FLAIR and lesion mask (NIfTI)" if field == "dataset_dir" else "a NIfTI file",
        )  # fmt: skip
    return path


def _item(paths: Sequence[Path | None], stem: str, extras: Mapping[str, Path]) -> dict[str, Any]:
    return {
        "image": [str(p) for p in paths], "stem": stem, "notes": [], **{k: str(p) for k, p in extras.items()}
    }  # fmt: skip


def _sort_out(images: Sequence[Path], folder: Path) -> list[_File]:
    """The files with a kind. A plain segmentation counts as a lesion mask only where no file says that it is one."""
    kinds = {path: _kind(path) for path in images}
    if "mask" not in kinds.values():
        plain = [p for p in images if kinds[p] is None and _SEGMENTATION.search(nifti_name(p))]
        kinds |= {p: "mask" for p in plain if not is_derived_map(sidecar_or_none(p))}
    return [_described(path, kind, folder) for path, kind in kinds.items() if kind is not None]


def _kind(path: Path) -> str | None:
    """What a file is by its name: a mask of lesions or of the brain, else the contrast that stands last in it."""
    name = nifti_name(path)
    if _NEVER.search(name):
        return None
    if _LESION.search(name):
        return None if is_derived_map(sidecar_or_none(path)) else "mask"
    if _MASK.search(name):
        return "brain" if _BRAIN.search(name) else None
    places = {kind: max((m.end() for m in word.finditer(name)), default=0) for kind, word in _CONTRASTS.items()}
    kind = max(places, key=lambda k: places[k])
    if not places[kind]:
        return None
    if kind == "qsm":
        return kind
    sidecar = sidecar_or_none(path)
    return None if not_magnitude(sidecar, name) or is_derived_map(sidecar) else kind


def _described(path: Path, kind: str, root: Path) -> _File:
    below = path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name
    sessions, subjects = _SESSION.findall(below), _SUBJECT.findall(below)
    subject = "_".join([*subjects[-1:], *sessions[-1:]]) if subjects else None
    rest = nifti_name(path)
    for word in (_LESION, _BRAIN, _MASK, *_CONTRASTS.values()):
        rest = word.sub("", rest)
    rest = re.sub(r"(?i)(?<![a-z])(?:space|label|desc|part|echo)-[a-z0-9]*", "", rest)
    return _File(path, kind, subject, re.sub(r"([-_ .])[-_ .]+", r"\1", rest).strip("-_ ."))


def _stem(file: _File) -> str:
    named = file.subject if file.subject and file.subject in nifti_name(file.path) else None
    return safe_name(file.name) or named or file.subject or safe_name(file.path.resolve().parent.name) or "subject"


def _belonging(chi: _File, files: Sequence[_File], maps: Sequence[_File], kind: str, root: Path) -> Path | None:
    """The file of a kind that belongs to a map: the nearest way in which any does.

    Raises:
        QMRIError: several do.
    """
    others = [f for f in files if f.kind == kind and f.path != chi.path]
    free = [f for f in others if f.subject is None or chi.subject is None or f.subject == chi.subject]
    lone = sum(m.folder == chi.folder for m in maps) == 1
    ways = (
        [f for f in others if chi.subject is not None and f.subject == chi.subject],
        [f for f in free if f.folder == chi.folder and f.name == chi.name],
        [f for f in free if f.folder == chi.folder and lone],
        [f for f in free if len(maps) == 1],
    )
    chosen = next((way for way in ways if way), [])
    if kind in OPTIONAL and len(chosen) > 1:  # echoes of one series: any will do to register with
        chosen = chosen[:1] if kind == "magnitude" else []
    if len(chosen) > 1:
        label = NEEDED[kind]
        raise QMRIError(
            file=root, field=kind, found=f"{len(chosen)} files: {_listed([f.path for f in chosen])}",
            expected=f"one {label} for {chi.path.name}", remedy=f"name the one to use: {kind}_file=PATH",
        )  # fmt: skip
    return chosen[0].path if chosen else None


def _refuse_twins(maps: Sequence[_File], root: Path) -> None:
    """Two susceptibility maps of one subject: which one is meant is not guessed."""
    for chi in maps:
        twins = [m.path for m in maps if (m.subject, m.name) == (chi.subject, chi.name) and m.folder == chi.folder]
        twins += [m.path for m in maps if m.subject == chi.subject is not None and m.path not in twins]
        if len(twins) > 1:
            raise QMRIError(
                file=root, field="qsm", found=f"{len(twins)} files: {_listed(twins)}",
                expected=f"one susceptibility map for {chi.subject or _stem(chi)}",
                remedy="name the one to use (qsm_file=PATH), or move the others out of the folder",
            )  # fmt: skip


def _joined(path: Path) -> bool:
    return read_header(path).n_volumes > 1


def _joined_files(root: Path) -> list[dict[str, Any]]:
    """4-D files of three or four volumes, in a folder without any QSM."""
    images = images_below(root, derivatives=True)
    found = []
    for path in images:
        try:
            fits = read_header(path).n_volumes in JOINED_VOLUMES and not _NEVER.search(nifti_name(path))
        except QMRIError as error:
            logger.warning("%s is left out: %s, %s.", error.file, error.field, error.found)
            continue
        if fits and not not_magnitude(sidecar_or_none(path), nifti_name(path)):
            found.append(path)
    if not found:
        raise _nothing_found(root, images)
    stems = unique_stems([_stem(_described(p, "qsm", root)) for p in found], found, root)
    return sorted((_item([p], s, {}) for p, s in zip(found, stems, strict=True)), key=lambda i: str(i["stem"]))


def _missing(chi: _File, missing: Sequence[str], files: Sequence[Path]) -> QMRIError:
    others = [p for p in files if p != chi.path]
    return QMRIError(
        file=chi.path, field=", ".join(missing), found=f"no {' and no '.join(NEEDED[kind] for kind in missing)} that "
        f"belongs to it ({_listed(others) if others else 'no other file'})",
        expected="QSM, FLAIR and lesion mask of each subject: " + ", ".join(_EXAMPLES.values()),
        remedy="name the files so, with one sub-LABEL; or name them: "
        + " ".join(f"{kind}_file=PATH" for kind in missing),
    )  # fmt: skip


def _nothing_found(root: Path, images: Sequence[Path]) -> QMRIError:
    return QMRIError(
        file=root, field="dataset_dir", found=f"{len(images)} NIfTI file(s): {_listed(images)}" if images else "no "
        "NIfTI file", expected="QSM, FLAIR and lesion mask: " + ", ".join(_EXAMPLES.values()) + "; or one 4-D file of "
        "the three", remedy="rename the files, or name them: qsm_file=PATH flair_file=PATH mask_file=PATH",
    )  # fmt: skip


def _listed(paths: Sequence[Path]) -> str:
    return ", ".join(p.name for p in paths[:6]) + (", ..." if len(paths) > 6 else "")
