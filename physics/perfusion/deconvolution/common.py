"""What all deconvolutions share: checks, rows of voxels, the number of rows that a cache holds."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["arterial_spectrum", "by_chunks", "check_aif", "check_fraction", "check_series", "rows_inside"]

_ROWS = {"cpu": 2048}  # curves and residues of so many voxels stay in the cache of a core
_ROWS_ELSEWHERE = 1 << 17


def check_aif(aif: Tensor, dt: float) -> None:
    """Raises ValueError unless ``aif`` is a finite, floating ``[..., time]``, not zero, and dt positive."""
    if not (math.isfinite(dt) and dt > 0):
        raise ValueError(f"dt must be finite and positive [s], got {dt}")
    if not aif.is_floating_point() or aif.ndim < 1 or aif.shape[-1] < 2:
        raise ValueError(f"aif must be floating [..., time] of 2 frames or more, got {aif.dtype} {tuple(aif.shape)}")
    if not bool(torch.isfinite(aif).all()):
        raise ValueError("aif must be finite, got NaN or infinity")
    if not bool((aif != 0).any(-1).all()):
        raise ValueError("aif must not be zero at all times")


def check_series(concentration: Tensor, aif: Tensor, dt: float, mask: Tensor | None) -> None:
    """Raises ValueError unless concentration ``[..., time]``, aif ``[time]`` and mask ``[...]`` fit each other."""
    check_aif(aif, dt)
    if not concentration.is_floating_point():
        raise ValueError(f"concentration must be floating, got {concentration.dtype}")
    if aif.ndim != 1 or concentration.ndim < 1 or concentration.shape[-1] != aif.shape[0]:
        raise ValueError(
            f"aif must be [time] of the frames of concentration {tuple(concentration.shape)}, got {tuple(aif.shape)}"
        )
    if mask is not None and (mask.dtype != torch.bool or mask.shape != concentration.shape[:-1]):
        raise ValueError(f"mask must be bool {tuple(concentration.shape[:-1])}, got {mask.dtype} {tuple(mask.shape)}")


def check_fraction(value: float, name: str) -> float:
    """The value as a float. Raises ValueError unless 0 <= value < 1."""
    if not 0 <= value < 1:
        raise ValueError(f"{name} must be at least 0 and less than 1, got {value}")
    return float(value)


def arterial_spectrum(aif: Tensor, dt: float) -> Tensor:
    """Eigenvalues ``[..., N + 1]`` of the block-circulant matrix of ``aif`` ``[..., N]``, those of frequency 0 to N.

    The matrix is ``dt a[(i - j) mod 2N]``, a padded with N zeros, and real: the other eigenvalues are the conjugates.
    It is normal, so that the moduli are its singular values. float64, as is all that is made once for an input.
    """
    return torch.fft.rfft(aif.double(), 2 * aif.shape[-1]) * dt


def rows_inside(concentration: Tensor, mask: Tensor | None) -> Tensor:
    """Curves ``[voxel, time]`` inside the mask. Raises ValueError where they are not finite."""
    rows = (concentration if mask is None else concentration[mask]).reshape(-1, concentration.shape[-1])
    # The sum is finite only if every value is, and takes no second array.
    if not bool(torch.isfinite(rows.detach().sum())) and not bool(torch.isfinite(rows.detach()).all()):
        raise ValueError("concentration must be finite inside the mask, got NaN or infinity")
    return rows


def by_chunks(rows: Tensor, length: int, solve: Callable[[Tensor], Tensor]) -> Tensor:
    """``solve`` of the rows ``[voxel, time]``, a chunk at a time, into ``[voxel, length]``."""
    size = _ROWS.get(rows.device.type, _ROWS_ELSEWHERE)
    if rows.requires_grad:
        return torch.cat([solve(part) for part in rows.split(size)]) if len(rows) else rows.new_zeros(0, length)
    found = rows.new_empty(len(rows), length)
    for part, into in zip(rows.split(size), found.split(size), strict=True):
        into.copy_(solve(part))
    return found
