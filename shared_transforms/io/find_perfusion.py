"""Find the DSC series in a folder, the mask of the brain and the curves that belong to them."""

from __future__ import annotations

import logging
import re
from collections import Counter, defaultdict
from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared_transforms.errors import QMRIError
from shared_transforms.io.find import images_below, safe_name, unique_stems
from shared_transforms.io.find_echoes import begins_with, echo_stem, find_mask, sidecar_or_none
from shared_transforms.io.nifti import is_nifti, nifti_name, read_header
from shared_transforms.io.sidecar import bids_suffix, is_derived_map, not_magnitude

logger = logging.getLogger(__name__)

FEWEST_FRAMES = 20

_WORD = r"(?i)(?<![a-z])({})(?![a-z])"
_OWN_NAME = re.compile(_WORD.format("dsc|pwi|perf|perfusion"))
_OTHER_NAME = re.compile(
    _WORD.format("p?c?asl|m0scan|m0|bold|sbref|fmri|rest|dwi|dti|diff|diffusion|dce|mese|megre|irt1|fieldmap|phasediff")
)
_NEVER_NAME = re.compile(_WORD.format("p?c?asl|m0scan|dce|dwi|sbref|mask"))
_OTHER_MASK = re.compile(
    _WORD.format("aif|vof|artery|arterial|vein|venous|sinus|lesion|core|infarct|tumou?r|hypoperfused|csf|gm|wm|tissue")
)
_CURVE_NAMES = {"aif": "aif|artery|arterial", "vof": "vof|vein|venous|sinus"}
_BIDS_SUFFIXES = ("dsc", "perf", "pwi", "bold", "epi")  # there is none for DSC yet


@dataclass(frozen=True)
class _Candidate:
    path: Path
    sidecar: dict[str, Any]
    frames: int


def find_perfusion_series(dataset_dir: str | Path) -> list[dict[str, Any]]:
    """List the DSC series of a folder and the folders below it.

    A series is one 4-D file of 20 frames or more that is no other contrast by name or sidecar: arterial spin labelling,
    functional, diffusion and T1-weighted dynamic series are left out, and so are phase images and computed maps.

    Args:
        dataset_dir: the folder; or one 4-D file, which is then taken whatever its name is.

    Returns:
        One dictionary for each series, ordered by stem: ``image`` (path), ``stem`` (unique name for the outputs),
        ``notes`` (remarks); ``mask`` (path of the mask of the brain) where one lies beside it or in a derivative; and
        ``aif_mask_file``, ``vof_mask_file``, ``aif_csv_file``, ``vof_csv_file`` where they lie beside it
        (``NAME_aif.csv``, ``NAME_label-VOF_mask.nii.gz``). Each is an input of ``LoadPerfusionSeriesd``.

    Raises:
        QMRIError: no such folder, no such series (the message says what there is), a file that cannot be read, several
            echoes of one series, several masks or curves for one series.
    """
    root = Path(dataset_dir)
    if not root.exists():
        raise QMRIError(
            file=root, field="dataset_dir", found="no such folder", expected="a folder with a DSC series (4-D NIfTI)",
            remedy="check the path (dataset_dir)",
        )  # fmt: skip
    images = images_below(root)
    candidates, others, faults = _sort_out(images, named=root.is_file())
    chosen = [c for c in candidates if c.frames >= FEWEST_FRAMES] or candidates  # the reader refuses short ones
    others += [f"a 4-D file of {c.frames} frames" for c in candidates if c not in chosen]
    if not chosen:
        raise faults[0] if faults else _nothing_found(root, images, Counter(others))
    for fault in faults:
        logger.warning("%s is left out: %s, %s.", fault.file, fault.field, fault.found)
    for reason, count in Counter(others).items():
        logger.info("%d images in %s are no DSC series: %s.", count, root, reason)
    _refuse_echoes(chosen)
    found = []
    folder = root if root.is_dir() else root.parent
    paths = [c.path for c in chosen]
    alone = len(chosen) == 1 and (root.is_dir() or _no_other_series(chosen[0]))
    stems = unique_stems([perfusion_stem(p) for p in paths], paths, folder)
    for candidate, stem in zip(chosen, stems, strict=True):
        item: dict[str, Any] = {"image": str(candidate.path), "stem": stem, "notes": []}
        mask = find_mask(candidate.path, folder, perfusion_stem(candidate.path), alone, _OTHER_MASK)
        if mask and is_derived_map(sidecar_or_none(mask)):
            logger.info("%s is the result of an earlier run, and is made again.", mask)
        elif mask:
            item["mask"] = str(mask)
        found.append(item | _curves(candidate.path, folder, alone))
    return sorted(found, key=lambda s: str(s["stem"]))


def perfusion_stem(path: Path) -> str:
    """Name of a series for its outputs: the file name without the BIDS suffix."""
    name = nifti_name(path)
    suffix = bids_suffix(name)
    return (
        safe_name(name.removesuffix(f"_{suffix}") if suffix else name)
        or safe_name(path.resolve().parent.name)
        or "series"
    )


def _sort_out(images: list[Path], named: bool) -> tuple[list[_Candidate], list[str], list[QMRIError]]:
    """4-D files that may be DSC series; what the others are; files that cannot be read."""
    candidates, others, faults = [], [], []
    for path in images:
        sidecar = sidecar_or_none(path)
        reason = None if named else _other_contrast(path, sidecar)
        if reason:
            others.append(reason)
            continue
        try:
            frames = read_header(path).n_volumes
        except QMRIError as error:
            if named or _OWN_NAME.search(nifti_name(path)):
                raise
            faults.append(error)
            continue
        if frames > 1 or named:
            candidates.append(_Candidate(path, sidecar, frames))
        else:
            others.append("a 3-D file")
    return candidates, others, faults


def _other_contrast(path: Path, sidecar: dict[str, Any]) -> str | None:
    name = nifti_name(path)
    suffix = bids_suffix(name)
    told = " ".join(str(sidecar.get(field, "")) for field in ("SeriesDescription", "ProtocolName"))
    never = _NEVER_NAME.search(name) or _NEVER_NAME.search(told)
    own = _OWN_NAME.search(name) or _OWN_NAME.search(told)
    other = _OTHER_NAME.search(name) or _OTHER_NAME.search(told)
    if "ArterialSpinLabelingType" in sidecar or "LabelingDuration" in sidecar:
        return "arterial spin labelling"
    if path.with_name(f"{name}.bval").exists():
        return "diffusion"
    if suffix is not None and suffix.lower() not in _BIDS_SUFFIXES:
        return f"BIDS suffix {suffix}"
    if never or (other and not own):
        return f"{(never or other)[0]} in the name"  # type: ignore[index]
    if is_derived_map(sidecar):
        return "a computed map"
    return not_magnitude(sidecar, name)


def _refuse_echoes(series: list[_Candidate]) -> None:
    """Two echoes of one acquisition are not two series, and which one is meant is not guessed."""
    groups: dict[Hashable, list[_Candidate]] = defaultdict(list)
    for c in series:
        groups[str(c.path.parent), echo_stem(c.path), repr(c.sidecar.get("SeriesNumber"))].append(c)
    for group in groups.values():
        times = {repr(c.sidecar.get("EchoTime")) for c in group}
        if len(group) > 1 and len(times) > 1:
            raise QMRIError(
                file=group[0].path.parent, field="EchoTime", expected="a series with one echo time",
                found=f"{len(group)} echoes of one series: {', '.join(c.path.name for c in group[:6])}",
                remedy="choose one echo, for tissue that of 25 to 50 ms: dataset_dir=FILE",
            )  # fmt: skip


def _no_other_series(named: _Candidate) -> bool:
    """Whether a run on the folder of a named file finds no other series, to which a nameless mask may belong."""
    for path in images_below(named.path.parent):
        if path == named.path:
            continue
        try:
            others, _, _ = _sort_out([path], named=False)
        except QMRIError:  # by its name a series; what is wrong with it does not concern this one
            return False
        if any(other.frames >= min(FEWEST_FRAMES, named.frames) for other in others):
            return False
    return True


def _curves(image: Path, root: Path, alone: bool) -> dict[str, str]:
    """Marked voxels and curves of artery and vein beside the series; not those that an earlier run has written."""
    beside = sorted(image.parent.iterdir())
    found: dict[str, str] = {}
    for name, words in _CURVE_NAMES.items():
        pattern = re.compile(_WORD.format(words))
        for kind in ("mask", "csv"):
            fits = [p for p in beside if p.is_file() and pattern.search(p.name) and _is_kind(p, kind)]
            named = begins_with(fits, nifti_name(image)) or begins_with(fits, perfusion_stem(image))
            fits = named or (fits if alone else [])
            if len(fits) > 1:
                raise QMRIError(
                    file=root, field=f"{name}_{kind}_file", expected="one for each series",
                    found=", ".join(p.name for p in fits[:6]), remedy=f"name the one to use: {name}_{kind}_file=PATH",
                )  # fmt: skip
            found |= {f"{name}_{kind}_file": str(p) for p in fits}
    return found


def _is_kind(path: Path, kind: str) -> bool:
    return path.suffix.lower() == ".csv" if kind == "csv" else is_nifti(path) and "mask" in path.name.lower()


def _nothing_found(root: Path, images: list[Path], others: Counter[str]) -> QMRIError:
    listed = "; ".join(f"{n} x {reason}" for reason, n in others.most_common())
    return QMRIError(
        file=root, field="dataset_dir", found=f"{len(images)} NIfTI file(s): {listed}" if images else "no NIfTI file",
        expected=f"a DSC series: one 4-D NIfTI file of {FEWEST_FRAMES} frames or more, with a JSON sidecar",
        remedy="convert DICOM with dcm2niix -z y -o OUTPUT INPUT; if the name of the series misleads, give the file: "
        "dataset_dir=FILE",
    )  # fmt: skip
