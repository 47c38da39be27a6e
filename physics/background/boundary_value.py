"""Laplacian boundary value method."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from physics.background.common import VOLUME, check_volumes, conjugate_gradients, crop, somewhere
from physics.dipole import check_geometry
from physics.dipole_inversion.iteration import Report

__all__ = ["lbv"]

DAMPING = 6.0 / 7.0  # of the Jacobi smoother, the best one for seven points
SMOOTHING = 2  # steps of it before and after each coarser grid


def lbv(
    field: Tensor,
    mask: Tensor,
    voxel_size: Sequence[float] = (1.0, 1.0, 1.0),
    *,
    peel: int = 0,
    iterations: int = 100,
    tolerance: float = 1e-4,
    report: Report | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Local field by solving the Laplace equation for the background.

    .. math:: b_{local} = b - b_{bg}, \qquad \nabla^2 b_{bg} = 0 \;\text{ inside}, \quad
        b_{bg} = b \;\text{ on the border}

    The local field is taken to be zero on the border of the mask; the background, harmonic inside, then follows from
    the field on the border alone (Zhou et al., NMR Biomed. 2014;27:312). Seven-point Laplacian, conjugate gradients
    with a multigrid cycle as preconditioner. Noise of the border enters the result: peel off layers where it is bad.

    Args:
        field: total field ``[..., X, Y, Z]`` [ppm].
        mask: boolean ``[..., X, Y, Z]``.
        voxel_size: (dx, dy, dz) [mm].
        peel: layers of voxels taken off the mask before.
        iterations: at most.
        tolerance: of the residual of the Laplace equation, relative to its first value.
        report: called after each iteration; its ``change`` is that residual.

    Returns:
        Local field ``[..., X, Y, Z]`` [ppm], and the mask of validity: the mask without peel and border.

    Raises:
        ValueError: for bad volumes or options, if nothing of the mask is left.
    """
    field, mask = check_volumes(field, mask)
    sizes, _ = check_geometry(voxel_size)
    if peel < 0:
        raise ValueError(f"peel must not be negative, got {peel}")
    for _ in range(peel):
        mask = _without_border(mask)
    interior = _without_border(mask)
    if not somewhere(interior):
        raise ValueError(f"mask must have voxels left after peel = {peel} and its border, got one that is too thin")
    x, y, z = _bounding_box(mask)
    box = interior[..., x, y, z]
    inner = box.reshape(-1, 1, *box.shape[-3:]).to(field.dtype)
    values = torch.where(mask, field, 0.0)[..., x, y, z].reshape(inner.shape)
    levels = _levels(inner, sizes)
    known = values * (1.0 - inner)
    background = known + conjugate_gradients(
        lambda candidate: _laplacian(candidate, levels[0]),
        -_laplacian(known, levels[0]),
        precondition=lambda residual: _cycle(residual, levels),
        iterations=iterations,
        tolerance=tolerance,
        method="lbv",
        report=report,
    )
    local = torch.zeros_like(field)
    local[..., x, y, z] = ((values - background) * inner).reshape(box.shape)
    return local, interior


def _without_border(mask: Tensor) -> Tensor:
    """Voxels whose six neighbours are in the mask too; beyond the grid is outside."""
    inner = mask.clone()
    for axis in VOLUME:
        edge = torch.zeros_like(mask.narrow(axis, 0, 1))
        length = mask.shape[axis]
        inner &= torch.cat([edge, mask.narrow(axis, 0, length - 1)], axis)
        inner &= torch.cat([mask.narrow(axis, 1, length - 1), edge], axis)
    return inner


def _bounding_box(mask: Tensor) -> list[slice]:
    anywhere = mask.reshape(-1, *mask.shape[-3:]).any(0)
    lines = [anywhere.any(2).any(1), anywhere.any(2).any(0), anywhere.any(1).any(0)]
    found = [line.nonzero() for line in lines]
    return [slice(int(where.min()), int(where.max()) + 1) for where in found]


@dataclass(frozen=True)
class _Level:
    """One grid: voxels to solve for ``[B, 1, X, Y, Z]`` (1 or 0), 1/d^2 by axis, how the next grid is coarser."""

    inner: Tensor
    stiffness: tuple[float, ...]
    factors: tuple[int, ...]


def _levels(inner: Tensor, sizes: Sequence[float]) -> list[_Level]:
    """Grids from fine to coarse. Only the axes with nearly the smallest voxels are coarsened, until they are cubic."""
    levels = []
    spacing = list(sizes)
    while True:
        fine = [spacing[a] < 1.5 * min(spacing) and inner.shape[2 + a] >= 4 for a in range(3)]
        factors = tuple(2 if f else 1 for f in fine)
        levels.append(_Level(inner, tuple(1.0 / d**2 for d in spacing), factors))
        if max(factors) == 1:
            return levels
        padded = _to_multiple(inner, factors)
        # A coarse voxel is solved for where all of its children are; the rest is left to the smoother.
        coarse = -functional.max_pool3d(-padded, factors, factors)
        if not bool(coarse.any()):
            return levels
        inner, spacing = coarse, [d * f for d, f in zip(spacing, factors, strict=True)]


def _to_multiple(volume: Tensor, factors: Sequence[int]) -> Tensor:
    extra = [-n % f for n, f in zip(volume.shape[-3:], factors, strict=True)]
    return functional.pad(volume, (0, extra[2], 0, extra[1], 0, extra[0]))


def _laplacian(volume: Tensor, level: _Level) -> Tensor:
    """Minus the seven-point Laplacian at the voxels to solve for, zero elsewhere."""
    result = 2.0 * sum(level.stiffness) * volume
    for axis, stiffness in zip(VOLUME, level.stiffness, strict=True):
        length = volume.shape[axis]
        result.narrow(axis, 1, length - 1).sub_(volume.narrow(axis, 0, length - 1), alpha=stiffness)
        result.narrow(axis, 0, length - 1).sub_(volume.narrow(axis, 1, length - 1), alpha=stiffness)
    return result.mul_(level.inner)


def _interpolation(factors: Sequence[int], like: Tensor) -> Tensor:
    """Trilinear weights between cell centres: 1, 3, 3, 1 over 4 along an axis that is coarsened."""
    lines = [like.new_tensor([0.25, 0.75, 0.75, 0.25] if f == 2 else [1.0]) for f in factors]
    return torch.einsum("x,y,z->xyz", *lines)[None, None]


def _cycle(right: Tensor, levels: Sequence[_Level]) -> Tensor:
    """One symmetric V-cycle for ``_laplacian(x) = right``, starting at zero."""
    level = levels[0]
    scale = DAMPING / (2.0 * sum(level.stiffness))
    solution = scale * right * level.inner
    for _ in range(SMOOTHING - 1 if len(levels) > 1 else 8):
        solution = solution + scale * (right * level.inner - _laplacian(solution, level))
    if len(levels) == 1:
        return solution
    weights = _interpolation(level.factors, right)
    padding = [1 if f == 2 else 0 for f in level.factors]
    residual = _to_multiple((right - _laplacian(solution, level)) * level.inner, level.factors)
    coarse = functional.conv3d(residual, weights, stride=level.factors, padding=padding) / math.prod(level.factors)
    correction = _cycle(coarse * levels[1].inner, levels[1:])
    fine = functional.conv_transpose3d(correction, weights, stride=level.factors, padding=padding)
    solution = solution + crop(fine, right.shape) * level.inner
    for _ in range(SMOOTHING):
        solution = solution + scale * (right * level.inner - _laplacian(solution, level))
    return solution
