"""What the methods of background field removal share: checks and conjugate gradients."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from physics.dipole_inversion.iteration import Iteration, Report

__all__ = ["VOLUME", "check_volumes", "conjugate_gradients", "crop", "somewhere"]

VOLUME = (-3, -2, -1)


def check_volumes(field: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Field with zeros outside the mask, and the mask in the field's shape.

    Raises:
        ValueError: for a field that is not a floating-point volume or not finite in the mask, a mask that is not
            boolean, does not fit or is empty.
    """
    if field.ndim < 3 or not field.is_floating_point():
        raise ValueError(f"field must be real [..., X, Y, Z], got shape {tuple(field.shape)}, {field.dtype}")
    if mask.dtype != torch.bool:
        raise ValueError(f"mask must be boolean, got {mask.dtype}")
    if mask.ndim < 3 or mask.ndim > field.ndim or mask.shape[-3:] != field.shape[-3:]:
        raise ValueError(f"mask must have the shape of the field {tuple(field.shape)}, got {tuple(mask.shape)}")
    if any(m not in (1, f) for m, f in zip(mask.shape[::-1], field.shape[::-1], strict=False)):
        raise ValueError(f"mask must broadcast to the field {tuple(field.shape)}, got {tuple(mask.shape)}")
    if not somewhere(mask):
        raise ValueError("mask must not be empty, got a volume without a voxel in it")
    mask = mask.expand(field.shape)
    field = torch.where(mask, field, 0.0)
    if not bool(torch.isfinite(field).all()):
        raise ValueError(f"field must be finite inside the mask, got {int((~torch.isfinite(field)).sum())} bad voxels")
    return field, mask


def crop(volume: Tensor, shape: Sequence[int]) -> Tensor:
    """First voxels of a larger volume, the last three axes of ``shape``."""
    x, y, z = shape[-3:]
    return volume[..., :x, :y, :z]


def somewhere(mask: Tensor) -> bool:
    """Whether each volume of the batch has a voxel in its mask."""
    return bool(mask.any(-1).any(-1).any(-1).all())


def _dot(left: Tensor, right: Tensor) -> Tensor:
    """Scalar product over the voxels, ``[..., 1, 1, 1]``."""
    return (left * right).sum(VOLUME, keepdim=True)


def conjugate_gradients(
    apply: Callable[[Tensor], Tensor],
    right: Tensor,
    *,
    precondition: Callable[[Tensor], Tensor] | None = None,
    iterations: int,
    tolerance: float,
    method: str,
    report: Report | None,
) -> Tensor:
    """Solve ``apply(x) = right`` for each volume of the batch; ``apply`` is symmetric and positive (semi-)definite.

    Starts at zero; stops when every volume's residual is below ``tolerance`` times its right-hand side, which is the
    ``change`` that ``report`` is told.
    """
    if iterations < 1 or not (math.isfinite(tolerance) and tolerance >= 0):
        raise ValueError(f"iterations must be positive and tolerance not negative, got {iterations} and {tolerance}")
    tiny = torch.finfo(right.dtype).tiny
    solution, residual = torch.zeros_like(right), right
    wanted = _dot(right, right).clamp(min=tiny)
    direction = torch.zeros_like(right)
    previous = torch.ones_like(wanted)
    for number in range(1, iterations + 1):
        better = residual if precondition is None else precondition(residual)
        energy = _dot(residual, better)
        direction = better + energy / previous.clamp(min=tiny) * direction
        image = apply(direction)
        step = energy / _dot(direction, image).clamp(min=tiny)
        solution = solution + step * direction
        residual = residual - step * image
        previous = energy
        change = float((_dot(residual, residual) / wanted).max().sqrt())
        if report is not None:
            report(Iteration(method=method, number=number, limit=iterations, change=change))
        if change <= tolerance:
            break
    return solution
