"""Find magnitude and phase of multi-echo gradient echoes in a folder, and the mask that belongs to them."""

from __future__ import annotations

import logging
import re
from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from shared_transforms.errors import QMRIError
from shared_transforms.io.find import images_below
from shared_transforms.io.nifti import is_nifti, nifti_name, read_header
from shared_transforms.io.sidecar import bids_suffix, is_derived_map, is_gradient_echo, not_magnitude, read_sidecar

logger = logging.getLogger(__name__)

Part = Literal["magnitude", "phase", "real or imaginary"]

_SUFFIXES = ("MEGRE", "T2starw", "GRE")
_PHASE_NAME = re.compile(r"(?i)(?<![a-z])(part-phase|phase|pha|ph)(?![a-z])")
_PART_IN_NAME = re.compile(r"(?i)(?<![a-z])(part-(mag|phase)|magnitude|mag|phase|pha|ph)(?![a-z])")
_ECHO_IN_NAME = re.compile(r"(?i)(?<![a-z])(?:echo|e|te)[-_ ]?(\d+)(?:[.p]\d+)?(?:ms)?(?![0-9a-z])")
_MASK_NAME = re.compile(r"(?i)(?<![a-z])mask(?![a-z])")
_OTHER_MAP = re.compile(r"(?i)(?<![a-z])(local_?field|field_?map|chi_?map|qsm|swi|r2star|t2star|b0)(?![a-z])")
_SAME_ACQUISITION = ("StudyInstanceUID", "PatientID", "DeviceSerialNumber", "MagneticFieldStrength", "FlipAngle")


@dataclass(frozen=True)
class Echo:
    """One file of a series.

    Attributes:
        path: the NIfTI file.
        sidecar: what its sidecar says; empty where there is none.
        part: what it shows.
    """

    path: Path
    sidecar: dict[str, Any]
    part: Part

    @property
    def number(self) -> int | None:
        """Number of the echo in its name."""
        match = _ECHO_IN_NAME.search(nifti_name(self.path))
        return int(match[1]) if match else None

    @property
    def series(self) -> int | None:
        """Number of the series, where the sidecar says it."""
        value = self.sidecar.get("SeriesNumber")
        return value if isinstance(value, int) else None


def find_gradient_echoes(dataset_dir: str | Path) -> list[dict[str, Any]]:
    """List the multi-echo gradient echoes of a folder and the folders below it.

    Files belong together if they lie in one folder and have one name but for the number of the echo, the part (``mag``,
    ``phase``, ``ph``) and the series number: ``sub-01_echo-1_part-mag_MEGRE`` (BIDS), ``gre_5_e1`` and ``gre_6_e1_ph``
    (dcm2niix), ``Mag`` and ``Phase`` (4-D); or if they are the only ones of their folder. A name that says neither is
    taken for magnitude. A 4-D file with twice as many volumes as its sidecar has echo times is a series by itself.

    Args:
        dataset_dir: the folder; or one file of a series.

    Returns:
        One dictionary for each series, ordered by stem: ``image`` (paths of the magnitudes), ``phase`` (paths of the
        phases; none for a file that holds both), both in the order of the echoes, ``stem`` (unique name for the
        outputs), ``notes`` (remarks), and ``mask`` (path) where one lies beside them or in a derivative. Each is an
        input of ``LoadGradientEchoesd``.

    Raises:
        QMRIError: no such folder, no such series (the message says what there is), an unreadable sidecar, or several
            masks for one series.
    """
    root = Path(dataset_dir)
    if root.is_file():
        return _of_file(root)
    if not root.is_dir():
        raise QMRIError(
            file=root, field="dataset_dir", found="no such folder", remedy="check the path (dataset_dir)",
            expected="a folder with magnitude and phase images of a multi-echo gradient echo",
        )  # fmt: skip
    images = images_below(root)
    found, others = _sort_out(images)
    if not found:
        raise _nothing_found(root, images, others)
    for reason, count in others.items():
        logger.info("%d images in %s are not part of such a series: %s.", count, root, reason)
    stems = _stems([magnitude for magnitude, _, _ in found], root)
    series = []
    for (magnitude, phase, skipped), stem in zip(found, stems, strict=True):
        names = ", ".join(e.path.name for e in skipped)
        item: dict[str, Any] = {
            "image": [str(e.path) for e in magnitude], "stem": stem,
            "notes": [f"real and imaginary images skipped: {names}"] if skipped else [],
        }  # fmt: skip
        if phase:
            item["phase"] = [str(e.path) for e in phase]
        mask = find_mask(magnitude[0].path, root, echo_stem(magnitude[0].path), alone=len(found) == 1)
        series.append(item | ({"mask": str(mask)} if mask else {}))
    return sorted(series, key=lambda s: str(s["stem"]))


def _sort_out(images: Sequence[Path]) -> tuple[list[tuple[list[Echo], list[Echo], list[Echo]]], Counter[str]]:
    """Magnitudes, phases and skipped parts of each series; how many images are something else, and what."""
    groups: dict[tuple[Hashable, ...], list[Echo]] = defaultdict(list)
    others: Counter[str] = Counter()
    for path in images:
        sidecar = sidecar_or_none(path)
        reason = _other_contrast(path, sidecar)
        if reason:
            others[reason] += 1
        else:
            groups[_key(path, sidecar)].append(Echo(path, sidecar, part_of(path, sidecar)))
    _refuse_gaps(groups)
    found: list[tuple[list[Echo], list[Echo], list[Echo]]] = []
    for group in _merged(groups):
        for magnitude, phase in _pairs(group):
            joined = [e for e in magnitude if not phase and is_joined(e.path, e.sidecar)]
            found += [([echo], [], []) for echo in joined]
            magnitude = [e for e in magnitude if e not in joined]
            if magnitude and phase:
                found.append((magnitude, phase, [e for e in group if e.part == "real or imaginary"]))
            elif magnitude or phase:
                others["magnitude without phase" if magnitude else "phase without magnitude"] += len(magnitude + phase)
    return found, others


def is_joined(path: Path, sidecar: Mapping[str, Any], times: Sequence[float] | None = None) -> bool:
    """Whether a 4-D file has two volumes for each echo time: all magnitudes, then all phases.

    Args:
        path: the file.
        sidecar: its sidecar.
        times: echo times in place of the sidecar's.
    """
    times = sidecar.get("EchoTime") if times is None else times
    if not isinstance(times, Sequence) or isinstance(times, str) or len(times) < 2:
        return False
    try:
        return read_header(path).n_volumes == 2 * len(times)
    except QMRIError:
        return False  # the reader will say what is wrong with it


def _of_file(path: Path) -> list[dict[str, Any]]:
    """The series of one file: both parts in it, or the other part beside it."""
    if is_joined(path, sidecar_or_none(path)):
        stem = echo_stem(path) or "series"
        mask = find_joined_mask(path)
        return [{"image": [str(path)], "stem": stem, "notes": [], **({"mask": str(mask)} if mask else {})}]
    try:
        series = find_gradient_echoes(path.parent)
    except QMRIError as error:
        if error.field != "dataset_dir":
            raise
        series = []
    found = [s for s in series if path.resolve() in {Path(p).resolve() for p in [*s["image"], *s.get("phase", [])]}]
    if not found:
        raise QMRIError(
            file=path, field="EchoTime", found="no phase beside it, and not two volumes for each echo time",
            expected="a 4-D file of all magnitudes, then all phases, and the echo times in seconds; or a magnitude and "
            "its phase beside it", remedy="list EchoTime in the sidecar, or give echo_times_s=[0.005, 0.01, ...]",
        )  # fmt: skip
    return found


def _refuse_gaps(groups: Mapping[tuple[Hashable, ...], list[Echo]]) -> None:
    """An image that belongs to a series by its name, but has no sidecar, must not be left out in silence."""
    names = {key[:2] for key, group in groups.items() if any(e.sidecar for e in group)}
    for key, group in groups.items():
        for echo in group:
            if not echo.sidecar and key[:2] in names:
                read_sidecar(echo.path)  # says what is missing


def _merged(groups: Mapping[tuple[Hashable, ...], list[Echo]]) -> list[list[Echo]]:
    """The groups; the only magnitudes and the only phases of a folder are one series, whatever their names are."""
    folders: dict[Hashable, list[list[Echo]]] = defaultdict(list)
    for (folder, *_), group in groups.items():
        folders[folder].append(group)
    merged = []
    for parts in folders.values():
        sides = [[g for g in parts if {e.part for e in g} == {part}] for part in ("magnitude", "phase")]
        if len(parts) == 2 and len(sides[0]) == len(sides[1]) == 1 and len(parts[0]) == len(parts[1]):
            parts = [[*sides[0][0], *sides[1][0]]]
        merged += parts
    return merged


def find_mask(
    image: Path, root: Path, stem: str, alone: bool = True, not_named: re.Pattern[str] | None = None
) -> Path | None:
    """The mask that belongs to an image, by its name.

    Beside the image: ``<name>..._mask`` with the whole name of the image, else ``<stem>..._mask``, else any file named
    mask where there is but one series. Below ``derivatives`` of the root: a name that begins likewise.

    Args:
        image: a file of the series.
        root: the dataset.
        stem: what the names of the series have in common.
        alone: whether the dataset holds one series only.
        not_named: names of masks of other things than the head.

    Returns:
        The file, or None.

    Raises:
        QMRIError: several masks fit.
    """

    def wanted(path: Path) -> bool:
        return _is_mask(path) and not (not_named and not_named.search(nifti_name(path)))

    beside = [p for p in sorted(image.parent.iterdir()) if wanted(p)]
    derived = [p for p in sorted((root / "derivatives").rglob("*")) if wanted(p)]
    named = begins_with([*beside, *derived], nifti_name(image)) or begins_with([*beside, *derived], stem)
    chosen = named or ([*beside, *derived] if alone else [])
    if len(chosen) > 1:
        raise QMRIError(
            file=root, field="mask", found=f"{len(chosen)} masks: {', '.join(p.name for p in chosen[:6])}",
            expected="one mask for each series", remedy="name the mask to use: mask_file=PATH",
        )  # fmt: skip
    return chosen[0] if chosen else None


def begins_with(paths: Sequence[Path], name: str) -> list[Path]:
    """The files whose names begin with a name that is not empty and ends there: ``pat1`` begins no ``pat10_mask``."""
    return [path for path in paths if name and re.match(re.escape(name) + "(?![A-Za-z0-9])", path.name)]


def find_joined_mask(path: Path, times: Sequence[float] | None = None) -> Path | None:
    """The mask of a file that holds both parts, as a run on its folder finds it.

    Args:
        path: the file.
        times: echo times in place of the sidecars', by which other files of the folder are such ones, too.

    Returns:
        The file, or None.

    Raises:
        QMRIError: several masks fit.
    """
    images = [p for p in images_below(path.parent) if p != path]
    try:
        found, _ = _sort_out(images)
        joined = (p for p in images if not _other_contrast(p, s := sidecar_or_none(p)) and is_joined(p, s, times))
        alone = not found and not any(joined)
    except QMRIError as error:  # which may be of another series
        logger.info("%s: only a mask with its name is taken, for there is a doubt about %s.", path, error.file)
        alone = False
    return find_mask(path, path.parent, echo_stem(path), alone)


def part_of(path: Path, sidecar: dict[str, Any]) -> Part:
    """What an image shows, by its sidecar, or else by its name."""
    tokens = sidecar.get("ImageType")
    words = {str(t).upper() for t in tokens} if isinstance(tokens, list) else set()
    component = str(sidecar.get("ComplexImageComponent", "")).upper()
    if words & {"P", "PHASE"} or component == "PHASE":
        return "phase"
    if words & {"R", "I", "REAL", "IMAGINARY"} or component in ("REAL", "IMAGINARY"):
        return "real or imaginary"
    name = nifti_name(path)
    if _PHASE_NAME.search(name):
        return "phase"
    return "real or imaginary" if not_magnitude(sidecar, name) else "magnitude"


def sidecar_or_none(path: Path) -> dict[str, Any]:
    """The sidecar, or an empty one: echo times and field strength may come from the config.

    Raises:
        QMRIError: a sidecar that cannot be read.
    """
    try:
        return read_sidecar(path)
    except QMRIError as error:
        if "no file" in error.found:
            return {}
        raise


def echo_stem(path: Path) -> str:
    """The name of a file without the echo, the part and the BIDS suffix."""
    name = nifti_name(path)
    suffix = bids_suffix(name)
    bare = _ECHO_IN_NAME.sub("", _PART_IN_NAME.sub("", name.removesuffix(f"_{suffix}") if suffix else name))
    bare = re.sub(r"_part-[A-Za-z]+|_echo-\d+", "", bare)
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", re.sub(r"[-_ ]{2,}", "_", bare)).strip("-_. ")


def _is_mask(path: Path) -> bool:
    return path.is_file() and is_nifti(path) and _MASK_NAME.search(nifti_name(path)) is not None


def _other_contrast(path: Path, sidecar: dict[str, Any]) -> str | None:
    name = nifti_name(path)
    suffix = bids_suffix(name)
    if _MASK_NAME.search(name):
        return "a mask"
    if suffix is not None and suffix not in _SUFFIXES:
        return f"BIDS suffix {suffix}, not MEGRE"
    # Philips marks its phase images "PHASE MAP".
    if (is_derived_map(sidecar) and part_of(path, sidecar) != "phase") or _OTHER_MAP.search(name):
        return "a computed map"
    if "ScanningSequence" in sidecar and not is_gradient_echo(sidecar):
        return "not a gradient echo"
    return None


def _key(path: Path, sidecar: dict[str, Any]) -> tuple[Hashable, ...]:
    number = sidecar.get("SeriesNumber")
    name = echo_stem(path)
    if isinstance(number, int):  # magnitude and phase are two series of the scanner
        name = re.sub(rf"(?<![0-9A-Za-z])0*{number}[a-z]?(?![0-9A-Za-z])", "", name)
    name = re.sub(r"[-_ .]+", "_", name).strip("_")
    return str(path.parent), name, *(repr(sidecar.get(f)) for f in _SAME_ACQUISITION)


def _pairs(group: list[Echo]) -> list[tuple[list[Echo], list[Echo]]]:
    """Magnitudes with their phases; repeated scans are told apart by the order of their series numbers."""
    scans: list[list[list[Echo]]] = []
    for part in ("magnitude", "phase"):
        echoes = [e for e in group if e.part == part]
        numbers = sorted({e.series for e in echoes if e.series is not None})
        repeated = len(numbers) > 1 and all(e.series is not None for e in echoes)
        split = [[e for e in echoes if e.series == n] for n in numbers] if repeated else [echoes]
        # A scanner that counts every echo as a series has no repetitions.
        scans.append(split if all(len(s) > 1 for s in split) or len(echoes) == len(split) == 1 else [echoes])
    if len(scans[0]) != len(scans[1]):
        scans = [[[e for scan in part for e in scan]] for part in scans]
    return [(_ordered(m), _ordered(p)) for m, p in zip(*scans, strict=True)]


def _ordered(echoes: Sequence[Echo]) -> list[Echo]:
    def order(echo: Echo) -> tuple[float, float, str]:
        time = echo.sidecar.get("EchoTime")
        return float(time) if isinstance(time, int | float) else 0.0, float(echo.number or 0), str(echo.path)

    return sorted(echoes, key=order)


def _stems(series: list[list[Echo]], root: Path) -> list[str]:
    """Names for the outputs, made unique by folders and then by counting."""
    stems = [echo_stem(s[0].path) or _safe(s[0].path.resolve().parent.name) or "series" for s in series]
    for level in ("folder", "count"):
        counts, seen = Counter(stems), Counter[str]()
        for i, stem in enumerate(stems):
            if counts[stem] > 1:
                seen[stem] += 1
                folders = series[i][0].path.parent.relative_to(root).parts if level == "folder" else ()
                stems[i] = "_".join([*map(_safe, folders), stem, *([str(seen[stem])] if level == "count" else [])])
    return stems


def _safe(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9.-]+", "-", name).strip("-.")


def _nothing_found(root: Path, images: list[Path], others: Counter[str]) -> QMRIError:
    listed = "; ".join(f"{n} x {reason}" for reason, n in others.most_common())
    found = f"{len(images)} NIfTI file(s): {listed}" if images else "no NIfTI file"
    return QMRIError(
        file=root, field="dataset_dir", found=found,
        expected="magnitude and phase of a multi-echo gradient echo: NAME_e1.nii.gz and NAME_e1_ph.nii.gz, "
        "..._part-mag_MEGRE and ..._part-phase_MEGRE, or 4-D files such as Mag.nii and Phase.nii",
        remedy="convert DICOM with dcm2niix -z y -o OUTPUT INPUT, phase images included; for a field map set "
        "input_kind to local_field",
    )  # fmt: skip
