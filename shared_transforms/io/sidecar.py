"""What the JSON sidecar of an image says: times, contrast, kind of image.

Field names are those of dcm2niix and BIDS (https://bids-specification.readthedocs.io, quantitative MRI), times in
seconds.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from shared_transforms.errors import QMRIError
from shared_transforms.io.nifti import nifti_name


@dataclass(frozen=True)
class KindRule:
    """What distinguishes one kind of series from another.

    Attributes:
        field: sidecar field that differs from image to image [s].
        suffix: BIDS suffix of such images.
        entity: BIDS entity that counts them.
        minimum: fewest images that determine the parameters.
        largest: a time above this many seconds is taken for milliseconds: no scanner waits that long.
        shortest: the shortest time of a series lies below this many seconds, or it is taken for milliseconds.
        equal: sidecar fields that are equal within a series.
        label: the kind in words.
    """

    field: str
    suffix: str
    entity: str
    minimum: int
    largest: float
    shortest: float
    equal: tuple[str, ...]
    label: str


RULES: dict[str, KindRule] = {
    "inversion_recovery": KindRule(
        "InversionTime", "IRT1", "inv", 3, 30.0, 10.0, ("EchoTime",), "inversion recovery"
    ),
    "multi_echo": KindRule(
        "EchoTime", "MESE", "echo", 2, 5.0, 1.0, ("InversionTime", "RepetitionTime"), "multi-echo spin echo"
    ),
}  # fmt: skip
# Not a kind of series: magnitude and phase belong together, and have a reader of their own.
GRADIENT_ECHO = KindRule("EchoTime", "MEGRE", "echo", 2, 0.5, 0.1, (), "multi-echo gradient echo")
_LONGEST_REPETITION = 60.0  # s
_REPETITION_FIELDS = ("RepetitionTime", "RepetitionTimePreparation")
_NOT_MAGNITUDE = {"PHASE", "REAL", "IMAGINARY", "P", "R", "I"}
_NOT_MAGNITUDE_PART = re.compile(r"_part-(phase|real|imag)(?=_|$)|_(ph|real|imaginary)[a-z]?$")
_BIDS_NAME = re.compile(r"^sub-[A-Za-z0-9]+(_[a-z]+-[A-Za-z0-9]+)*_(?P<suffix>[A-Za-z0-9]+)$")


def rule_of(kind: str) -> KindRule:
    """The rule of a kind.

    Raises:
        QMRIError: no such kind.
    """
    if kind not in RULES:
        raise QMRIError(field="kind", found=repr(kind), expected=f"one of {sorted(RULES)}", remedy="correct the config")
    return RULES[kind]


def bids_suffix(name: str) -> str | None:
    """Suffix of a BIDS file name (without extension): "IRT1" of sub-01_inv-1_IRT1; None for any other name."""
    match = _BIDS_NAME.match(name)
    return match["suffix"] if match else None


def read_sidecar(image: Path) -> dict[str, Any]:
    """The sidecar of an image, with what it inherits from folders above where the name is a BIDS one.

    Args:
        image: the NIfTI file.

    Raises:
        QMRIError: no sidecar, or one that is not a JSON object.
    """
    own = image.with_name(nifti_name(image) + ".json")
    content: dict[str, Any] = {}
    for file in sidecar_files(image):
        content.update(_load(file))
    if not content and not own.is_file():
        raise QMRIError(
            file=image, field="JSON sidecar", found=f"no file {own.name} beside it",
            expected="a JSON sidecar with the acquisition times, as dcm2niix and BIDS write it",
            remedy="convert with dcm2niix -b y, or write the sidecar by hand, times in seconds",
        )  # fmt: skip
    return content


def sidecar_files(image: Path) -> list[Path]:
    """The JSON files that speak of an image, in the order in which later ones overrule earlier ones."""
    own = image.with_name(nifti_name(image) + ".json")
    return [file for file in (*_inherited(image), own) if file.is_file()]


def read_times(sidecar: dict[str, Any], rule: KindRule, image: Path, n_volumes: int) -> list[float]:
    """Inversion or echo times of the volumes of one file [s].

    Raises:
        QMRIError: the field is missing, is no number, or has another length than the file has volumes.
    """
    if rule.field not in sidecar:
        raise QMRIError(
            file=image, field=rule.field, found="no such field in the sidecar",
            expected=f"the {rule.label} time of every volume in seconds", remedy=f"add {rule.field} to the sidecar",
        )  # fmt: skip
    times = _numbers(sidecar[rule.field], rule.field, image)
    if len(times) != n_volumes:
        raise QMRIError(
            file=image, field=rule.field, found=f"{len(times)} times for {n_volumes} volumes",
            expected="as many times as volumes: one number for a 3-D file, a list for a 4-D file",
            remedy=f"correct the list {rule.field} in the sidecar, or the file",
        )  # fmt: skip
    return times


def read_repetition_times(sidecar: dict[str, Any], image: Path, n_volumes: int) -> list[float] | None:
    """Repetition times of the volumes of one file [s]; None where the sidecar has none.

    Raises:
        QMRIError: no number, a wrong count, not positive, or so large that it must be milliseconds.
    """
    field = next((f for f in _REPETITION_FIELDS if f in sidecar), None)
    if field is None:
        return None
    values = _numbers(sidecar[field], field, image)
    if len(values) not in (1, n_volumes):
        raise QMRIError(
            file=image, field=field, found=f"{len(values)} times for {n_volumes} volumes",
            expected="one repetition time, or one for each volume", remedy=f"correct {field} in the sidecar",
        )  # fmt: skip
    if min(values) <= 0 or max(values) > _LONGEST_REPETITION:
        raise QMRIError(
            file=image, field=field, found=f"{_listed(values)}" + (" (milliseconds?)" if min(values) > 0 else ""),
            expected=f"seconds, above 0 and at most {_LONGEST_REPETITION:g}", remedy="write the time in seconds",
        )  # fmt: skip
    return values * n_volumes if len(values) == 1 else values


def check_times(times: list[float], rule: KindRule, file: Path) -> None:
    """Check the times of a whole series, in increasing order.

    Raises:
        QMRIError: too few, not positive, equal ones, or milliseconds.
    """

    def fail(found: str, expected: str, remedy: str) -> None:
        raise QMRIError(file=file, field=rule.field, found=found, expected=expected, remedy=remedy)

    if len(times) < rule.minimum:
        fail(
            f"{len(times)} volume(s), times {_listed(times)} s", f"at least {rule.minimum} volumes of {rule.label}",
            "give the whole series, and skip fewer images",
        )  # fmt: skip
    if times[0] <= 0:
        fail(f"{_listed(times)} s", "times above 0 s", f"correct {rule.field} in the sidecar")
    if times[-1] > rule.largest or times[0] > rule.shortest:
        fail(
            f"{_listed(times)}, which look like milliseconds",
            f"seconds: none above {rule.largest:g}, the shortest at most {rule.shortest:g}",
            "divide the times by 1000: dcm2niix and BIDS use seconds",
        )  # fmt: skip
    same = [a for a, b in pairwise(times) if b - a < 1e-6]
    if same:
        fail(
            f"{_listed(same)} s more than once in {_listed(times)}", "a different time for each volume",
            "keep repeated scans in folders of their own, or average them first",
        )  # fmt: skip


def not_magnitude(sidecar: dict[str, Any], name: str) -> str | None:
    """Why an image is no magnitude image (phase, real or imaginary part); None where nothing says so."""
    image_type = sidecar.get("ImageType")
    tokens = image_type if isinstance(image_type, list) else []
    bad = [str(t) for t in tokens if str(t).upper() in _NOT_MAGNITUDE]
    if bad:
        return f"ImageType {bad[0]}"
    part = str(sidecar.get("ComplexImageComponent", "MAGNITUDE")).upper()
    if part in _NOT_MAGNITUDE:
        return f"ComplexImageComponent {part}"
    match = _NOT_MAGNITUDE_PART.search(name)
    return f"{match[0]} in the name" if match else None


def is_derived_map(sidecar: dict[str, Any]) -> bool:
    """Whether the image is a computed map, ours (EstimationMethod) or the scanner's (ImageType "T2 MAP")."""
    image_type = sidecar.get("ImageType")
    tokens = image_type if isinstance(image_type, list) else []
    return "EstimationMethod" in sidecar or any(str(t).upper().rstrip("_").endswith("MAP") for t in tokens)


def is_gradient_echo(sidecar: dict[str, Any]) -> bool:
    """Whether the sidecar says that the images are read by gradient echoes."""
    sequence = str(sidecar.get("ScanningSequence", "")).upper().replace("_", "\\").split("\\")
    return "GR" in sequence and "SE" not in sequence


def _numbers(value: Any, field: str, image: Path) -> list[float]:
    values = value if isinstance(value, list) else [value]
    for v in values:
        if isinstance(v, bool) or not isinstance(v, int | float) or not math.isfinite(v):
            raise QMRIError(
                file=image, field=field, found=repr(value), expected="a finite number, or a list of them, in seconds",
                remedy=f"correct {field} in the sidecar",
            )  # fmt: skip
    return [float(v) for v in values]


def _load(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8-sig"))
    except (json.JSONDecodeError, UnicodeDecodeError, OSError) as error:
        raise QMRIError(
            file=file, field="JSON sidecar", found=f"not readable as JSON: {error}", expected="a JSON object",
            remedy="mend the file (a comma or a brace is the usual fault) or convert again",
        ) from error  # fmt: skip
    if not isinstance(content, dict):
        raise QMRIError(
            file=file, field="JSON sidecar", found=f"a JSON {type(content).__name__}", expected="a JSON object",
            remedy="write the fields between braces",
        )  # fmt: skip
    return content


def _inherited(image: Path) -> list[Path]:
    """BIDS inheritance: JSON files above that have the suffix and no entity that the image lacks, topmost first."""
    name = nifti_name(image)
    suffix = bids_suffix(name)
    if suffix is None:
        return []
    folders = [image.parent]
    while folders[-1].name.startswith(("anat", "func", "perf", "ses-", "sub-")) and folders[-1].parent != folders[-1]:
        folders.append(folders[-1].parent)
    entities = set(name.split("_"))
    found = []
    for folder in reversed(folders):
        for file in sorted(folder.glob(f"*{suffix}.json"), key=lambda f: (f.name.count("_"), f.name)):
            own = folder == image.parent and file.stem == name
            if not own and set(file.stem.split("_")) <= entities:
                found.append(file)
    return found


def _listed(values: list[float]) -> str:
    shown = ", ".join(f"{v:g}" for v in values[:8])
    return shown + (", ..." if len(values) > 8 else "")
