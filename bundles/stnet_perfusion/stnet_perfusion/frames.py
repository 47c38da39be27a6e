"""The standard form of a series: whatever scanner, dose and repetition time, the network sees the same frames."""

from __future__ import annotations

import torch
from torch import Tensor

from physics.perfusion import haematocrit_factor

from .network import FRAMES

__all__ = ["FRAME_TIME", "LEAD", "arterial_arrival", "frame_times", "measured_volume", "resampling", "standardise"]

FRAME_TIME = 1.5  # s
LEAD = 9.0  # s, of the frames before the contrast agent arrives in the arteries
_ARRIVED = 0.1  # of the arterial peak


def arterial_arrival(aif: Tensor, frame_time: float) -> Tensor:
    """When an arterial curve leaves its baseline: where it last crosses a tenth of its peak on the way up to it.

    Args:
        aif: arterial curves ``[B, T]``.
        frame_time: time between two frames [s].

    Returns:
        Times ``[B]`` [s] from the first frame, linear between frames.
    """
    peak, at = aif.max(-1)
    level = (_ARRIVED * peak)[:, None]
    index = torch.arange(aif.shape[-1], device=aif.device)
    below = (aif < level) & (index < at[:, None])
    last = torch.where(below, index, -1).amax(-1)  # -1: the first frame is above the level already
    left = aif.gather(-1, last.clamp_min(0)[:, None])[:, 0]
    right = aif.gather(-1, last.clamp_min(0)[:, None] + 1)[:, 0]
    fraction = ((level[:, 0] - left) / (right - left).clamp_min(1e-12)).clamp(0.0, 1.0)
    return torch.where(last < 0, torch.zeros_like(peak), (last + fraction) * frame_time)


def frame_times(arrival: Tensor, frames: int = FRAMES, spacing: float = FRAME_TIME) -> Tensor:
    """Times ``[B, N]`` [s] of the standard frames: the first is :data:`LEAD` before the arrival ``[B]``."""
    return arrival[:, None] - LEAD + spacing * torch.arange(frames, device=arrival.device, dtype=arrival.dtype)


def resampling(times: Tensor, n: int, frame_time: float, spacing: float = FRAME_TIME) -> Tensor:
    """Weights ``[B, N, T]`` from T frames to standard ones.

    Linear between frames that are further apart than the standard ones, else a triangular mean, as wide as the standard
    spacing: nothing that was measured is thrown away. Nothing (0) before the first frame; after the last, the last one.

    Args:
        times: of the standard frames ``[B, N]`` from the first frame of the series [s].
        n: T, frames of the series.
        frame_time: between them [s].
        spacing: between the standard frames [s].
    """
    own = torch.arange(n, device=times.device, dtype=times.dtype) * frame_time
    distance = (times.clamp_max(own[-1])[:, :, None] - own).abs()
    weights = (1.0 - distance / max(frame_time, spacing)).clamp_min(0.0)
    weights = weights / weights.sum(-1, keepdim=True).clamp_min(1e-12)
    return weights * (times >= 0.0)[:, :, None]


def standardise(
    image: Tensor,
    aif: Tensor,
    vof: Tensor,
    frame_time: float,
    frames: int = FRAMES,
    spacing: float = FRAME_TIME,
    factor: float | None = None,
) -> Tensor:
    """Bring series to the form that the network was trained on.

    Tissue curves are divided by the area of the venous curve and multiplied with ``100 factor``: their integral is
    the CBV in ml/100 g. The arterial curve is scaled to unit area, which corrects its partial volume (k_AV). Echo
    time, dose and relaxivity drop out.

    Args:
        image: ``[B, 1 + T, *shape]``: baseline relative to the brain's median, then T tissue concentrations [mM].
        aif: arterial concentration ``[B, T]`` [mM].
        vof: venous concentration ``[B, T]`` [mM].
        frame_time: of the series [s].
        frames: N.
        spacing: of the N frames [s].
        factor: haematocrit factor over density [ml/g]; default the standard one, :func:`haematocrit_factor`.

    Returns:
        ``[B, 2 N + 1, *shape]``: tissue [ml/100 g/s], baseline, arterial [1/s].

    Raises:
        ValueError: where a curve has another length than the series, or no positive area.
    """
    n, shape = image.shape[1] - 1, image.shape[2:]
    if aif.shape[-1] != n or vof.shape[-1] != n:
        raise ValueError(f"aif and vof must have the {n} frames of the series, got {aif.shape[-1]}, {vof.shape[-1]}")
    factor = haematocrit_factor() if factor is None else factor
    times = frame_times(arterial_arrival(aif, frame_time), frames, spacing)
    weights = resampling(times, n, frame_time, spacing).to(image.dtype)
    # Areas over the same frames, or a long tail would count in one of them alone.
    arterial, venous = torch.bmm(weights, torch.stack([aif, vof], -1).to(image.dtype)).unbind(-1)
    arterial_area, venous_area = (curve.sum(-1) * spacing for curve in (arterial, venous))
    if not bool(((arterial_area > 0) & (venous_area > 0)).all()):
        raise ValueError("aif and vof must have a positive area")
    tissue = torch.bmm(weights, image[:, 1:].flatten(2)) * (100.0 * factor / venous_area)[:, None, None]
    arterial = (arterial / arterial_area[:, None])[..., None]
    voxels = tissue.shape[2]
    beside = [image[:, :1].flatten(2), arterial.expand(-1, -1, voxels)]
    return torch.cat([tissue, *beside], 1).unflatten(2, shape)


def measured_volume(image: Tensor, frames: int = FRAMES, spacing: float = FRAME_TIME) -> Tensor:
    """CBV ``[B, 1, *shape]`` [ml/100 g] by integration of the curves in standard images ``[B, 2 N + 1, *shape]``."""
    return image[:, :frames].sum(1, keepdim=True) * spacing
