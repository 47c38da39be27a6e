"""Find the series in a folder: what dcm2niix wrote, a BIDS dataset, or 4-D files with a list in the sidecar."""

from __future__ import annotations

import json
import logging
import re
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared_transforms.errors import QMRIError
from shared_transforms.io.nifti import is_nifti, nifti_name, read_header
from shared_transforms.io.sidecar import (
    KindRule,
    bids_suffix,
    is_derived_map,
    is_gradient_echo,
    not_magnitude,
    read_sidecar,
    rule_of,
)

logger = logging.getLogger(__name__)

# Equal in all images of one acquisition. TR, series number, description, SAR and coil loads are not: they follow the
# inversion time on real scanners (at one site of the NIST phantom TR grows from 1.00 to 2.46 s with TI).
_SAME_ACQUISITION = (
    "StudyInstanceUID", "PatientID", "PatientName", "DeviceSerialNumber", "MagneticFieldStrength", "ScanningSequence",
    "SequenceName", "PulseSequenceDetails", "MRAcquisitionType", "FlipAngle",
)  # fmt: skip
_TIME_IN_NAME = re.compile(r"(?i)(?<![a-z])(ti|te|inv|echo)[-_= ]?\d+([.p]\d+)?(ms|s)?(?![0-9a-z])")
_LAST_NUMBER = re.compile(r"[-_ ]?\d+[a-z]?$")
_ECHO_NUMBER = re.compile(r"_e\d+(?=[a-z]?$|_)")
_OTHER_CONTRAST = "another contrast"


@dataclass(frozen=True)
class _Candidate:
    path: Path
    sidecar: dict[str, Any]
    n_volumes: int

    @property
    def number(self) -> Any:
        return self.sidecar.get("SeriesNumber")


def find_series(dataset_dir: str | Path, kind: str) -> list[dict[str, Any]]:
    """List the series of one kind in a folder and the folders below it.

    Images belong together if they lie in one folder, have the same name but for numbers that count images or series
    (``_e2``, ``_inv-2``, ``TI50``, the series number), and agree in sequence and in the other time (echo time for
    inversion recovery; inversion and repetition time for multi-echo). A series number that holds several images is a
    series of its own; repeated scans of equal times are told apart by their series numbers. Computed maps, other
    contrasts, gradient echoes and lone images are left out; so are phase, real and imaginary images, with a note.

    Args:
        dataset_dir: the folder; or one 4-D file.
        kind: "inversion_recovery" or "multi_echo".

    Returns:
        One dictionary for each series, ordered by stem: ``image`` (paths in order of time), ``stem`` (unique name for
        the outputs), ``notes`` (remarks). Each is an input of ``LoadSeriesd``.

    Raises:
        QMRIError: no such folder, no series of this kind (the message says what there is), an unreadable sidecar, or
            an image of a series without its sidecar or time.
    """
    rule = rule_of(kind)
    root = Path(dataset_dir)
    if not root.exists():
        raise QMRIError(
            file=root, field="dataset_dir", found="no such folder", expected=f"a folder with {rule.label} images",
            remedy="check the path (dataset_dir)",
        )  # fmt: skip
    images = images_below(root)
    candidates, skipped, faults, others = _sort_out(images, rule)
    groups = _grouped(candidates, rule)
    _raise_gaps(groups, faults, others, rule)
    series = [g for g in groups if g[0].n_volumes > 1 or len(g) >= rule.minimum]
    for group in groups:
        if group not in series:
            others += [(c, f"{len(group)} image(s) with {rule.field}, {rule.minimum} needed") for c in group]
    if not series:
        raise _nothing_found(root, images, rule, skipped, faults, others)
    if others:
        logger.info("%d images in %s are not part of such a series.", len(others), root)
    for candidate, reason in others:
        logger.debug("not part of a series: %s (%s)", candidate.path, reason)
    stems = _unique_stems(series, root, rule)
    found = [
        {"image": [str(c.path) for c in group], "stem": stem, "notes": _notes(group, skipped)}
        for group, stem in zip(series, stems, strict=True)
    ]
    return sorted(found, key=lambda s: str(s["stem"]))


def series_stem(files: list[Path], sidecars: list[dict[str, Any]], rule: KindRule) -> str:
    """Name of a series for its outputs: the file name without what counts images, and without the BIDS suffix."""
    numbers = {repr(s.get("SeriesNumber")) for s in sidecars}
    name = _masked(nifti_name(files[0]), sidecars[0], rule, len(files) > 1, len(numbers) > 1)
    safe = re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-_.")
    return safe or re.sub(r"[^A-Za-z0-9_.-]+", "-", files[0].resolve().parent.name).strip("-_.") or "series"


def images_below(root: Path, derivatives: bool = False) -> list[Path]:
    """NIfTI files of a folder and those below it, without hidden files; or the one file.

    Args:
        root: folder or file.
        derivatives: whether to look into derivative datasets below it.
    """
    if root.is_file():
        return [root]
    visible = (p for p in root.rglob("*") if not any(part.startswith(".") for part in p.relative_to(root).parts))
    derived = {p.parent for p in root.rglob("dataset_description.json") if p.parent != root and _is_derivative(p)}
    derived = set() if derivatives else derived
    return sorted(p for p in visible if is_nifti(p) and p.is_file() and not derived.intersection(p.parents))


def safe_name(name: str) -> str:
    """A name without characters that file names are better without."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-_.")


def unique_stems(stems: Sequence[str], paths: Sequence[Path], root: Path) -> list[str]:
    """Names for the outputs, made unique by the folders below the root and then by counting.

    Args:
        stems: a name for each series.
        paths: a file of each series.
        root: the folder they were found in.
    """
    unique = list(stems)
    for level in ("folder", "count"):
        counts, seen = Counter(unique), Counter[str]()
        for i, stem in enumerate(unique):
            if counts[stem] > 1:
                seen[stem] += 1
                folders = paths[i].parent.relative_to(root).parts if level == "folder" else ()
                last = [str(seen[stem])] if level == "count" else []
                unique[i] = "_".join([*map(safe_name, folders), stem, *last])
    return unique


def _is_derivative(description: Path) -> bool:
    try:
        content = json.loads(description.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and content.get("DatasetType") == "derivative"


def _sort_out(
    images: list[Path], rule: KindRule
) -> tuple[list[_Candidate], list[_Candidate], list[tuple[Path, QMRIError]], list[tuple[_Candidate, str]]]:
    """Images of this kind; skipped parts of complex images; images with an unreadable sidecar; all others."""
    candidates, skipped, faults, others = [], [], [], []
    for path in images:
        try:
            sidecar = read_sidecar(path)
        except QMRIError as error:
            faults.append((path, error))
            continue
        reason = _other_contrast(sidecar, nifti_name(path), rule)
        if reason:
            others.append((_Candidate(path, sidecar, 1), reason))
        elif not_magnitude(sidecar, nifti_name(path)):
            skipped.append(_Candidate(path, sidecar, 1))
        elif _is_time_series(path, sidecar[rule.field]):
            others.append((_Candidate(path, sidecar, 2), f"a 4-D file with one {rule.field}"))
        else:
            several = isinstance(sidecar[rule.field], list) and len(sidecar[rule.field]) > 1
            candidates.append(_Candidate(path, sidecar, len(sidecar[rule.field]) if several else 1))
    return candidates, skipped, faults, others


def _other_contrast(sidecar: dict[str, Any], name: str, rule: KindRule) -> str | None:
    suffix = bids_suffix(name)
    if is_derived_map(sidecar):
        return "a computed map"
    if suffix is not None and suffix != rule.suffix:
        return f"BIDS suffix {suffix}, not {rule.suffix}"
    if rule.field not in sidecar:
        return f"no {rule.field}"
    if rule.suffix == "MESE" and is_gradient_echo(sidecar):
        return "gradient echo"
    return None


def _is_time_series(path: Path, time: Any) -> bool:
    """A 4-D file whose sidecar has one time for all volumes: repetitions (BOLD, diffusion), not a series of times."""
    if isinstance(time, list):
        return False
    try:
        return read_header(path).n_volumes > 1
    except QMRIError:
        return False  # the reader will say what is wrong with it


def _masked(name: str, sidecar: dict[str, Any], rule: KindRule, several: bool, several_numbers: bool) -> str:
    """The name without what differs within a series."""
    if bids_suffix(name) == rule.suffix:
        return re.sub(rf"_{rule.entity}-[A-Za-z0-9]+(?=_)", "", name).removesuffix(f"_{rule.suffix}")
    if not several:
        return name
    number = sidecar.get("SeriesNumber")
    name = _ECHO_NUMBER.sub("", name)
    if isinstance(number, int) and several_numbers:
        name = re.sub(rf"(?<![0-9A-Za-z])0*{number}[a-z]?(?![0-9A-Za-z])", "", name)
    time = sidecar.get(rule.field)
    if isinstance(time, int | float):  # IR_0500_4, IR_500ms_4
        name = re.sub(rf"(?<![0-9.])0*{round(time * 1000)}(ms)?(?![0-9.A-Za-z])", "", name)
    name = _TIME_IN_NAME.sub("", name)
    if number is None:
        name = _LAST_NUMBER.sub("", name)
    return re.sub(r"[-_ ]{2,}", "_", name).strip("-_ ")


def _key(candidate: _Candidate, rule: KindRule) -> tuple[Hashable, ...]:
    """What two images of one series share."""
    if candidate.n_volumes > 1:
        return (str(candidate.path),)
    masked = _masked(nifti_name(candidate.path), candidate.sidecar, rule, True, True)
    return str(candidate.path.parent), masked, *_sequence(candidate.sidecar, rule)


def _sequence(sidecar: dict[str, Any], rule: KindRule) -> tuple[str, ...]:
    times = [sidecar.get(f) for f in rule.equal]
    rounded = [round(t, 4) if isinstance(t, float) else t for t in times]
    return tuple(json.dumps(v) for v in [*rounded, *(sidecar.get(f) for f in _SAME_ACQUISITION)])


def _grouped(candidates: Iterable[_Candidate], rule: KindRule) -> list[list[_Candidate]]:
    together: dict[tuple[Hashable, ...], list[_Candidate]] = defaultdict(list)
    for c in candidates:
        together[_key(c, rule)].append(c)
    groups = [part for group in together.values() for part in _split(group, rule)]
    return [sorted(g, key=lambda c: (_order(c, rule), str(c.path))) for g in groups]


def _split(group: list[_Candidate], rule: KindRule) -> list[list[_Candidate]]:
    """Series numbers that hold several images are series; repeats of the same times are separate scans."""
    counts = Counter(repr(c.number) for c in group if c.number is not None)
    if len(counts) > 1 and max(counts.values()) >= rule.minimum:
        parts: dict[str, list[_Candidate]] = defaultdict(list)
        for c in group:
            parts[repr(c.number) if counts[repr(c.number)] >= rule.minimum else "lone"].append(c)
        return [part for number in parts.values() for part in ([number] if len(parts) == 1 else _split(number, rule))]
    scans: list[list[_Candidate]] = [[]]
    for c in sorted(group, key=lambda c: (c.number if isinstance(c.number, int) else 0, str(c.path))):
        if any(_order(c, rule) == _order(other, rule) for other in scans[-1]):
            scans.append([])
        scans[-1].append(c)
    times = [sorted(_order(c, rule) for c in scan) for scan in scans]
    repeated = all(t == times[0] for t in times) and all(isinstance(c.number, int) for c in group)
    return scans if repeated else [group]


def _order(candidate: _Candidate, rule: KindRule) -> float:
    time = candidate.sidecar[rule.field]
    time = time[0] if isinstance(time, list) and time else time
    return float(time) if isinstance(time, int | float) else 0.0  # the reader refuses anything else


def _raise_gaps(
    groups: list[list[_Candidate]],
    faults: list[tuple[Path, QMRIError]],
    others: list[tuple[_Candidate, str]],
    rule: KindRule,
) -> None:
    """An image that belongs to a series by its name, but has no sidecar or no time, must not be left out in silence."""
    names = {_key(g[0], rule)[:2] for g in groups if g[0].n_volumes == 1}
    for path, error in faults:
        if "not readable" in error.found or _key(_Candidate(path, {}, 1), rule)[:2] in names:
            raise error
    keys = {_key(g[0], rule) for g in groups if g[0].n_volumes == 1}
    for candidate, reason in others:
        if reason == f"no {rule.field}" and _key(candidate, rule) in keys:
            raise QMRIError(
                file=candidate.path, field=rule.field, found="no such field in the sidecar",
                expected=f"{rule.field} in seconds, as in the other images of this series",
                remedy=f"add {rule.field} to the sidecar, or move the image out of the folder",
            )  # fmt: skip


def _nothing_found(
    root: Path,
    images: list[Path],
    rule: KindRule,
    skipped: list[_Candidate],
    faults: list[tuple[Path, QMRIError]],
    others: list[tuple[_Candidate, str]],
) -> QMRIError:
    if faults and len(faults) == len(images):
        return faults[0][1]
    reasons = Counter(reason for _, reason in others)
    reasons["phase, real or imaginary"] += len(skipped)
    reasons["no JSON sidecar"] += len(faults)
    listed = "; ".join(f"{n} x {reason}" for reason, n in reasons.most_common() if n)
    found = f"{len(images)} NIfTI file(s): {listed}" if images else f"no NIfTI file among {_count(root)} file(s)"
    return QMRIError(
        file=root, field="dataset_dir", found=found,
        expected=f"{rule.label} images: at least {rule.minimum}, with {rule.field} [s] in JSON sidecars",
        remedy="convert DICOM with dcm2niix -z y -o OUTPUT INPUT, and point dataset_dir to OUTPUT",
    )  # fmt: skip


def _count(root: Path) -> int:
    return sum(1 for p in root.rglob("*") if p.is_file())


def _notes(group: list[_Candidate], skipped: list[_Candidate]) -> list[str]:
    folder = group[0].path.parent
    names = [c.path.name for c in skipped if c.path.parent == folder]
    return [f"phase, real or imaginary images skipped: {', '.join(names)}"] if names else []


def _unique_stems(series: list[list[_Candidate]], root: Path, rule: KindRule) -> list[str]:
    """Stems made unique by the folders below the root, then by series number, then by counting."""
    stems = [series_stem([c.path for c in g], [c.sidecar for c in g], rule) for g in series]
    for level in ("folder", "number", "count"):
        counts = Counter(stems)
        if max(counts.values()) == 1:
            break
        seen: Counter[str] = Counter()
        for i, stem in enumerate(stems):
            if counts[stem] == 1:
                continue
            seen[stem] += 1
            parts = series[i][0].path.parent.relative_to(root).parts if level == "folder" else ()
            number = series[i][0].number if level == "number" else None
            prefix = [re.sub(r"[^A-Za-z0-9.-]+", "-", p) for p in parts]
            last = [str(number)] if number is not None else [str(seen[stem])] if level == "count" else []
            stems[i] = "_".join([*prefix, stem, *last])
    return stems
