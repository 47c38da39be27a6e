"""Volumes of a batch one by one, each on the bounding box of its mask: what the iterative inversions work on."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from physics.dipole.kernel import dipole_kernel, fast_shape
from physics.dipole_inversion.common import Problem

__all__ = ["add_adjoint_difference", "difference", "inner", "invert_each", "pairs_inside"]


def _bounding_box(mask: Tensor) -> tuple[slice, slice, slice]:
    ranges = []
    for axis in range(3):
        others = [other for other in range(3) if other != axis]
        present = mask.any(dim=others[1]).any(dim=others[0]).nonzero()
        ranges.append(slice(int(present[0]), int(present[-1]) + 1))
    return ranges[0], ranges[1], ranges[2]


def invert_each(
    problem: Problem, solve: Callable[..., Tensor], *beside: Tensor | None, kernel: str, padding: float
) -> Tensor:
    """Solves volume by volume, so that each has the result and the number of iterations that it has alone.

    Sources and data lie inside the mask, so nothing is lost and time is gained on its bounding box.

    Args:
        problem: the batch; its own kernel and grid are not used.
        solve: takes the :class:`Problem` of one box ``[X', Y', Z']`` and what is beside it, returns ``[X', Y', Z']``.
        beside: volumes that are handed over with the same cut, broadcastable to the field.
        kernel: ``"exact"`` or ``"kspace"``.
        padding: grid of the convolution over the box.

    Returns:
        Volumes ``[..., X, Y, Z]``, 0 outside the boxes.
    """
    shape = problem.field.shape

    def volumes(values: Tensor) -> Tensor:
        return values.expand(shape).reshape(-1, *shape[-3:])

    fields, masks = volumes(problem.field), volumes(problem.mask)
    others = [None if values is None else volumes(values) for values in (problem.magnitude, *beside)]
    result = torch.zeros_like(fields)
    for index in range(fields.shape[0]):
        box = (index, *_bounding_box(masks[index]))
        magnitude, *rest = [None if values is None else values[box].contiguous() for values in others]
        field = fields[box].contiguous()
        grid = fast_shape(field.shape, padding)
        spectrum = dipole_kernel(
            grid, problem.voxel_size, problem.b0_direction, kernel, dtype=field.dtype, device=field.device
        )
        part = Problem(field, masks[box], magnitude, spectrum, grid, problem.voxel_size, problem.b0_direction)
        result[box] = solve(part, *rest)
    return result.reshape(shape)


def inner(first: Tensor, second: Tensor) -> float:
    """Inner product of two volumes."""
    return float(torch.dot(first.flatten(), second.flatten()))


def difference(volume: Tensor, axis: int) -> Tensor:
    """Differences of neighbours along one axis of ``[X, Y, Z]``, one fewer than voxels."""
    n = volume.shape[axis]
    return volume.narrow(axis, 1, n - 1) - volume.narrow(axis, 0, n - 1)


def add_adjoint_difference(values: Tensor, axis: int, out: Tensor) -> None:
    """Adds the adjoint of :func:`difference` to ``out`` ``[X, Y, Z]``."""
    n = out.shape[axis]
    out.narrow(axis, 1, n - 1).add_(values)
    out.narrow(axis, 0, n - 1).sub_(values)


def pairs_inside(mask: Tensor, axis: int) -> Tensor:
    """Which differences along one axis have both voxels inside the mask."""
    n = mask.shape[axis]
    return mask.narrow(axis, 1, n - 1) & mask.narrow(axis, 0, n - 1)
