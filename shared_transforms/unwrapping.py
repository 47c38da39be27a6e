"""Phase unwrapping in space, by scikit-image, and in time, from echo to echo."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from scipy import ndimage
from skimage.restoration import unwrap_phase
from torch import Tensor

from physics.phase import check_echo_times, wrap
from shared_transforms.errors import QMRIError

__all__ = ["unwrap_in_space", "unwrap_in_time"]


def unwrap_in_space(phase: Tensor, mask: Tensor, period: float = 2.0 * math.pi) -> Tensor:
    """Unwrap a volume within a mask, most reliable neighbours first.

    Path following by reliability in three dimensions (Abdul-Rahman et al., Appl. Opt. 2007;46:6623), as scikit-image
    has it. It adds multiples of the period alone. The multiple common to all is not in the data: the median of the
    largest connected part is put within half a period of zero, that of each other part next to the largest one's.

    Args:
        phase: ``[X, Y, Z]``, wrapped: radians, or another unit with its period.
        mask: boolean ``[X, Y, Z]``.
        period: the jump to remove, in the unit of ``phase``.

    Returns:
        ``[X, Y, Z]``, of the dtype and on the device of ``phase``; zero outside the mask.

    Raises:
        QMRIError: if shapes differ, the mask is empty, the phase is not finite in it or the period is not positive.
    """
    if phase.ndim != 3 or mask.shape != phase.shape or mask.dtype != torch.bool:
        raise QMRIError(
            field="mask",
            found=f"phase {tuple(phase.shape)}, mask {tuple(mask.shape)} of {mask.dtype}",
            expected="both [X, Y, Z], the mask boolean",
            remedy="bring the mask to the grid of the phase",
        )
    if not (math.isfinite(period) and period > 0):
        raise QMRIError(field="period", found=period, expected="a positive number", remedy="give 2 pi for radians")
    if not bool(mask.any()):
        raise QMRIError(field="mask", found="no voxel", expected="at least one voxel", remedy="give another mask")
    if not bool(torch.isfinite(phase[mask]).all()):
        bad = int((~torch.isfinite(phase[mask])).sum())
        raise QMRIError(
            field="phase",
            found=f"{bad} voxels in the mask that are not finite",
            expected="finite values",
            remedy="take these voxels out of the mask",
        )
    inside = mask.detach().cpu().numpy()
    # Wrapped, in radians and double precision, as the library wants it; a NaN, even a masked one, makes it hang.
    radians = wrap(torch.where(mask, phase, 0.0).detach().double().cpu() * (2.0 * math.pi / period)).numpy()
    unwrapped = _unwrap(radians, inside)
    labels, count = ndimage.label(inside, ndimage.generate_binary_structure(3, 1))
    sizes = np.bincount(labels.ravel())[1:]
    order = np.argsort(-sizes)
    medians = ndimage.median(unwrapped, labels, np.arange(1, count + 1))
    turns = np.zeros(count + 1)
    turns[1 + order[0]] = -np.round(medians[order[0]] / (2.0 * math.pi))
    reference = medians[order[0]] + 2.0 * math.pi * turns[1 + order[0]]
    for part in order[1:]:
        turns[1 + part] = np.round((reference - medians[part]) / (2.0 * math.pi))
    total = np.round((unwrapped - radians) / (2.0 * math.pi)) + turns[labels]
    added = torch.from_numpy(total).to(device=phase.device)
    wrapped = phase - period * torch.round(phase.double() / period)
    return torch.where(mask, wrapped + period * added, 0.0).to(phase.dtype)


def _unwrap(radians: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """scikit-image's unwrapping; a volume of one slice is an image to it, one line is a line."""
    thick = [axis for axis in range(3) if radians.shape[axis] > 1]
    squeezed, hidden = radians.squeeze(), ~inside.squeeze()
    if not thick:
        return radians
    if len(thick) == 1:  # it knows no mask for lines; across a gap the line goes on
        line = np.zeros_like(squeezed)
        line[~hidden] = np.unwrap(squeezed[~hidden])
        return line.reshape(radians.shape)
    # rng breaks ties between equally reliable neighbours.
    masked = unwrap_phase(np.ma.array(squeezed, mask=hidden), rng=0)
    return np.ma.filled(masked, 0.0).reshape(radians.shape)


def unwrap_in_time(phase: Tensor, echo_times: Sequence[float] | Tensor, first: Tensor) -> Tensor:
    """Unwrap the echoes of each voxel, the first two by a given difference, the rest by extrapolation.

    The second echo follows from the first by ``first``, which was unwrapped in space. Every later echo is put within
    half a turn of the straight line through those before it (least squares), so the field may have any strength.

    Args:
        phase: ``[N, *voxels]`` [rad], wrapped.
        echo_times: N times [s].
        first: unwrapped difference of the second and the first echo ``[*voxels]`` [rad].

    Returns:
        ``[N, *voxels]`` [rad]. The first echo is as it was; each later one differs from ``phase`` by whole turns.

    Raises:
        QMRIError: if shapes do not match.
    """
    times = check_echo_times(echo_times)
    if phase.shape[0] != len(times) or first.shape != phase.shape[1:]:
        raise QMRIError(
            field="phase",
            found=f"phase {tuple(phase.shape)}, difference {tuple(first.shape)}, {len(times)} echo times",
            expected="phase [N, *voxels], difference [*voxels], N echo times",
            remedy="give one time for each echo",
        )
    stamps = phase.new_tensor(times).reshape(-1, *[1] * first.ndim)
    echoes = [phase[0]]
    for index in range(1, len(times)):
        if index == 1:
            expected = phase[0] + first
        else:
            known, at = torch.stack(echoes), stamps[:index]
            centre, level = at.mean(0), known.mean(0)
            slope = ((at - centre) * known).sum(0) / (at - centre).square().sum(0)
            expected = level + slope * (stamps[index] - centre)
        echoes.append(expected + wrap(phase[index] - expected))
    return torch.stack(echoes)
