"""What the passage of a bolus looks like in a curve: when it comes, how high, how wide, how large, how clean."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor

__all__ = ["CurveShape", "bolus_window", "curve_shape", "smooth_in_time"]

_EARLIEST = 1.5  # s before the bolus in the mean of a brain: first passes in arteries begin
_MARGIN = 3.0  # s before it: the noise is measured before that
_LATEST = 20.0  # s after the centre of the brain's bolus: the latest first pass (collaterals of an occlusion)
_RISE, _FALL = 0.5, 0.7  # of the peak: where a first pass begins and ends
_POOLED = 4  # frames by which the noise of a voxel is drawn to that of all voxels


@dataclass(frozen=True)
class CurveShape:
    """Shape of N curves; times [s] from the first frame, every field ``[N]``.

    Attributes:
        peak: height, of the curve smoothed over three frames, in the unit of the curve.
        noise: standard deviation before the bolus, likewise.
        rise: when half of the peak is reached, linear between frames.
        centre: middle between ``rise`` and the fall below 70 % of the peak: below that the second pass joins the first
            where partial volume has flattened the peak.
        width: from ``rise`` to that fall; infinite where the curve does not fall so far.
        area: sum of the curve times the frame time in the window of the first passes. The tail is left out: the error
            of the baseline adds to it, frame by frame.
        roughness: root mean square of differences of successive frames beside the bolus, over the peak.
        tail: median of the last frames, over the peak.
        trough: highest raw value.
    """

    peak: Tensor
    noise: Tensor
    rise: Tensor
    centre: Tensor
    width: Tensor
    area: Tensor
    roughness: Tensor
    tail: Tensor
    trough: Tensor

    def select(self, index: Tensor) -> CurveShape:
        """Some of the curves, by indices or a boolean mask."""
        return CurveShape(*(getattr(self, field.name)[index] for field in fields(self)))


def smooth_in_time(curves: Tensor) -> Tensor:
    """Mean over three frames with weights 1, 2, 1 along the last axis; the ends are repeated."""
    before = torch.cat([curves[..., :1], curves[..., :-1]], -1)
    after = torch.cat([curves[..., 1:], curves[..., -1:]], -1)
    return 0.25 * before + 0.5 * curves + 0.25 * after


def bolus_window(mean: Tensor, dt: float) -> tuple[int, int, int]:
    """Frames between which first passes lie.

    Args:
        mean: mean or median curve of the brain ``[T]``.
        dt: time between frames [s].

    Returns:
        Number of baseline frames, begin of the window, and its end (not in it).

    Raises:
        ValueError: if the curve has no bolus with two frames before it.
    """
    smooth = smooth_in_time(mean)
    level = smooth[: max(2, len(mean) // 20)].median()
    top = int((smooth - level).argmax())
    height = float(smooth[top] - level)
    below = (smooth[:top] - level < 0.1 * height).nonzero()
    if not height > 0 or not len(below):
        raise ValueError(f"the mean curve must have a baseline and a bolus, got its highest value at frame {top}")
    onset = int(below[-1]) + 1
    baseline, begin = (max(2, onset - math.ceil(margin / dt)) for margin in (_MARGIN, _EARLIEST))
    return baseline, begin, min(len(mean), top + 1 + math.ceil(_LATEST / dt))


def curve_shape(curves: Tensor, dt: float, baseline: int, begin: int, end: int) -> CurveShape:
    """Shape of the first pass of each curve.

    Args:
        curves: ``[N, T]``, any unit.
        dt: time between frames [s].
        baseline: number of frames before the bolus, at least 2.
        begin: frame from which on the peak lies, see :func:`bolus_window`.
        end: frame before which the peak lies, see :func:`bolus_window`.
    """
    n = curves.shape[-1]
    frame = torch.arange(n, device=curves.device)
    smooth = smooth_in_time(curves)
    peak, offset = smooth[:, begin:end].max(-1)
    top = offset + begin
    up, down = _RISE * peak, _FALL * peak
    before = torch.where((smooth < up[:, None]) & (frame < top[:, None]), frame, -1).amax(-1)
    after = torch.where((smooth < down[:, None]) & (frame > top[:, None]), frame, n).amin(-1)
    rise = _crossing(smooth, before, up)
    fall = _crossing(smooth, after - 1, down)
    fall = torch.where(after < n, fall, torch.inf)
    steps = curves.diff(dim=-1)
    beside = (frame[:-1] < (2 * before - after)[:, None]) | (frame[:-1] > (2 * after - before)[:, None])
    rough = ((steps.square() * beside).sum(-1) / beside.sum(-1).clamp_min(1)).sqrt()
    positive = peak.clamp_min(torch.finfo(curves.dtype).tiny)
    return CurveShape(
        peak=peak,
        noise=_noise(steps[:, : baseline - 1]),
        rise=rise * dt,
        centre=0.5 * (rise + fall) * dt,
        width=(fall - rise) * dt,
        area=curves[:, begin:end].sum(-1) * dt,
        roughness=rough / positive,
        tail=curves[:, -max(3, n // 12) :].median(-1).values / positive,
        trough=curves[:, begin:end].amax(-1),
    )


def _crossing(smooth: Tensor, left: Tensor, level: Tensor) -> Tensor:
    """Where the curves cross a level between frame ``left`` ``[N]`` and the next, in frames."""
    left = left.clamp(0, smooth.shape[-1] - 2)
    first = smooth.gather(-1, left[:, None])[:, 0]
    second = smooth.gather(-1, left[:, None] + 1)[:, 0]
    change = second - first
    fraction = (level - first) / torch.where(change == 0, torch.ones_like(change), change)
    return left + fraction.clamp(0.0, 1.0)


def _noise(steps: Tensor) -> Tensor:
    """Standard deviation of the baselines, from the median difference of frames; few frames are pooled.

    Drift does not count in differences, and the first contrast agent of an artery not in the median.
    """
    own = (1.4826 * steps.abs().median(-1).values).square() / 2
    n = steps.shape[-1]
    return ((n * own + _POOLED * own.median()) / (n + _POOLED)).sqrt()
