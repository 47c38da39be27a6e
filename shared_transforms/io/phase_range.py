"""What the numbers of a phase image mean: radians, or a scanner's units, or nothing that can be known."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from physics.phase import rescale_phase
from shared_transforms.errors import QMRIError

_COVERED = 0.9  # of a known range: noise alone fills it in any volume with air around the head
_LEAST_COVERED = 0.05  # of a declared one; less is another unit
_SLACK = 1e-3  # of the range: what rounding to float32 and to scale factors leaves
_REMEDY = (
    "say which values mean -pi and pi: phase_range=[-4096, 4095], [-3142, 3142], [-1, 1] or what the scanner's "
    "manual says; phase that is unwrapped already is no input: give the local field"
)


@dataclass(frozen=True)
class PhaseRange:
    """A linear scale of phase.

    Attributes:
        low: value of -pi.
        period: difference of two values that are 2 pi apart.
        label: the scale in words.
    """

    low: float
    period: float
    label: str

    def to_radians(self, values: npt.NDArray[np.float32], sign: int = 1) -> None:
        """Turn the volumes of ``[N, X, Y, Z]`` into radians from -pi to pi, in place."""
        for volume in values:
            radians = rescale_phase(torch.from_numpy(volume), (self.low, self.low + self.period))
            volume[:] = (sign * radians).numpy()


def find_phase_range(
    low: float, high: float, integers: bool, file: Path, declared: Sequence[float] | None = None, unit: Any = None
) -> PhaseRange:
    """Scale of the phase images of one series.

    Known without a word of the user: radians from -pi to pi or from 0 to 2 pi, and integers from -4096 to 4095 or from
    0 to 4095, each only if the values fill nine tenths of the range. A narrower range is no proof of anything.

    Args:
        low: smallest value of all echoes.
        high: largest value.
        integers: whether all values are whole numbers.
        file: for the message.
        declared: values of -pi and pi, from the user.
        unit: sidecar field Units of the phase images; "rad" declares radians.

    Raises:
        QMRIError: values beyond the declared range, a declared range that is none, or values that fit no known one.
    """
    if declared is not None:
        scale = _declared(declared, integers)
        _check_inside(low, high, scale, file, "phase_range")
        return scale
    if isinstance(unit, str) and unit.lower() in ("rad", "radian", "radians"):
        scale = _RADIANS if low < -_SLACK * math.pi else _POSITIVE_RADIANS
        _check_inside(low, high, scale, file, "Units")
        return scale
    for scale in (_RADIANS, _POSITIVE_RADIANS, _SIGNED, _UNSIGNED):
        if (integers or scale in (_RADIANS, _POSITIVE_RADIANS)) and _fills(low, high, scale):
            return scale
    raise QMRIError(
        file=file, field="voxel values", found=f"phase from {low:.6g} to {high:.6g}, a range of unknown meaning",
        expected="-pi to pi or 0 to 2 pi (radians), -4096 to 4095, or 0 to 4095, filled by the data", remedy=_REMEDY,
    )  # fmt: skip


_RADIANS = PhaseRange(-math.pi, 2 * math.pi, "radians, -pi to pi")
_POSITIVE_RADIANS = PhaseRange(0.0, 2 * math.pi, "radians, 0 to 2 pi")
_SIGNED = PhaseRange(-4096.0, 8192.0, "-4096 to 4095")
_UNSIGNED = PhaseRange(0.0, 4096.0, "0 to 4095")


def _declared(declared: Sequence[float], integers: bool) -> PhaseRange:
    values = list(declared) if isinstance(declared, list | tuple) else []
    numbers = all(isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v) for v in values)
    if len(values) != 2 or not numbers or not values[0] < values[1]:
        raise QMRIError(
            field="phase_range", found=repr(declared), expected="two numbers, the values of -pi and of pi: [low, high]",
            remedy="correct phase_range, or set it to null",
        )  # fmt: skip
    low, high = float(values[0]), float(values[1])
    # Of n whole numbers around the circle, the last lies one step before the first.
    step = 1.0 if integers and high - low > 100 else 0.0
    return PhaseRange(low, high - low + step, f"{low:g} to {high:g}, as declared")


def _check_inside(low: float, high: float, scale: PhaseRange, file: Path, field: str) -> None:
    slack = _SLACK * scale.period
    top = scale.low + scale.period
    if low < scale.low - slack or high > top + slack:
        raise QMRIError(
            file=file, field=field, found=f"phase from {low:.6g} to {high:.6g}", remedy=_REMEDY,
            expected=f"values inside the range that was declared: {scale.low:.6g} to {top:.6g}",
        )  # fmt: skip
    turns = (high - low) / scale.period
    if turns < _LEAST_COVERED:
        raise QMRIError(
            file=file, field=field, found=f"phase from {low:.6g} to {high:.6g}, {turns:.2g} turns",
            expected=f"values that fill the range that was declared: {scale.low:.6g} to {top:.6g}", remedy=_REMEDY,
        )  # fmt: skip


def _fills(low: float, high: float, scale: PhaseRange) -> bool:
    slack = _SLACK * scale.period
    inside = low >= scale.low - slack and high <= scale.low + scale.period + slack
    return inside and high - low >= _COVERED * scale.period
