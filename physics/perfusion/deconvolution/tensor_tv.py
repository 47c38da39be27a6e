"""Tensor total variation: one penalty on the differences of the residue in space and in time.

Source: Fang et al., IEEE Trans Med Imaging 34(7):1533 (2015), the functional. The minimisation is the primal-dual
algorithm of Chambolle and Pock, J Math Imaging Vis 40:120 (2011).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from physics.dipole_inversion.common import check_iterations, check_number
from physics.dipole_inversion.iteration import Iteration, Report
from physics.perfusion.deconvolution.circulant import csvd
from physics.perfusion.deconvolution.dense import measured_matrix

__all__ = ["noise_level", "ttv"]

_STEP = 0.3  # of the residue, for a matrix whose largest singular value is 1
_FLOOR = 1e-3  # least noise, relative to the largest concentration: curves without noise have a scale too
_MAD_TO_SIGMA = 0.67449


def noise_level(rows: Tensor) -> float:
    """Standard deviation of the noise of curves ``[voxel, time]``, in their unit.

    From third differences, which leave little of a bolus: their median modulus over time, so that the frames of the
    bolus do not count, then the median over the voxels.
    """
    third = rows.diff(n=3, dim=-1).abs_().median(-1).values.median()
    return float(third) / (_MAD_TO_SIGMA * math.sqrt(20))


def ttv(
    rows: Tensor,
    aif: Tensor,
    dt: float,
    mask: Tensor,
    *,
    regularisation: float = 0.15,
    temporal: float = 0.3,
    voxel_size: Sequence[float] | Tensor | None = None,
    iterations: int = 60,
    report: Report | None = None,
) -> Tensor:
    """Residues ``[voxel, 2 time]`` of the curves ``[voxel, time]`` of the voxels of a mask ``[space...]``.

    Minimises ``|A r - c|^2 / (2 s^2) + regularisation / s' sum sqrt(sum_d (g_d D_d r)^2)``, s the noise of c
    (:func:`noise_level`), s' the same in the unit of r, A the rows of the block-circulant matrix that were measured,
    D_d the differences between neighbouring voxels of the mask and frames (the period is closed). It starts from
    cSVD(.1) and ends after a fixed number of steps, before it has converged: what the data do not determine stays near
    that start. (At first the steps become larger, so that their size is no reason to stop.)
    """
    for value, name in ((regularisation, "regularisation"), (temporal, "temporal")):
        check_number(value, name)
    check_iterations(iterations, 0.0)
    weights = [*_spatial_weights(mask.ndim, voxel_size), temporal]
    if rows.shape[-1] < 4:
        raise ValueError(f"concentration must have 4 frames or more for ttv, got {rows.shape[-1]}")
    with torch.no_grad():
        start = csvd(rows, aif, dt)
        peak = float(rows.abs().max()) if len(rows) else 0.0
        if peak == 0:
            return start
        noise = max(noise_level(rows), _FLOOR * peak)
        matrix = measured_matrix(aif, dt)
        size = float(torch.linalg.matrix_norm(matrix, 2))
        solver = _PrimalDual(rows / noise, matrix / size, mask, weights, regularisation)
        return solver.solve(start * (size / noise), iterations, report).mul_(noise / size)


def _spatial_weights(axes: int, voxel_size: Sequence[float] | Tensor | None) -> list[float]:
    """Weight of the differences along each axis: those of the shortest axis have 1."""
    if not 1 <= axes <= 3:
        raise ValueError(f"concentration must be [space..., time] with 1 to 3 axes of space for ttv, got {axes}")
    sizes = [1.0] * axes if voxel_size is None else [float(d) for d in voxel_size]
    if len(sizes) != axes or not all(math.isfinite(d) and d > 0 for d in sizes):
        raise ValueError(f"voxel_size must be {axes} positive numbers [mm], got {sizes}")
    return [min(sizes) / d for d in sizes]


def _neighbours(mask: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Rows of the next and of the previous voxel along each axis, of the voxels of the mask ``[voxel]``.

    A voxel without a next one has itself, so that the difference is 0; one without a previous one the row after all.
    """
    count = int(mask.sum())
    own = torch.arange(count, device=mask.device)
    place = own.new_full(mask.shape, -1)
    place[mask] = own
    following, previous = [], []
    for axis in range(mask.ndim):
        after, before = place.roll(-1, axis), place.roll(1, axis)
        after.select(axis, -1).fill_(-1)
        before.select(axis, 0).fill_(-1)
        after, before = after[mask], before[mask]
        following.append(torch.where(after < 0, own, after))
        previous.append(torch.where(before < 0, count, before))
    return following, previous


class _PrimalDual:
    """Residues ``[voxel, 2 time]`` and dual fields, one for each axis of space and one for time.

    The proximal map of the data term is one dense operator, so that the steps do not depend on how badly A is
    conditioned, only on the norm of the differences.
    """

    def __init__(self, rows: Tensor, matrix: Tensor, mask: Tensor, weights: list[float], bound: float) -> None:
        normal = matrix.mT @ matrix
        self.matrix = torch.linalg.inv(torch.eye(len(normal)).to(normal) + _STEP * normal).to(rows)
        self.data = _STEP * (rows @ matrix.to(rows)) @ self.matrix
        self.following, self.previous = _neighbours(mask)
        self.weights, self.bound = weights, bound
        self.dual_step = 1 / (_STEP * 4 * sum(weight**2 for weight in weights))
        # One more row, always 0: that of voxels which are not there.
        self.fields = [rows.new_zeros(len(rows) + 1, len(normal)) for _ in weights]

    def solve(self, residue: Tensor, iterations: int, report: Report | None) -> Tensor:
        """Residues after the last iteration."""
        for number in range(1, iterations + 1):
            updated = torch.addmm(self.data, self._divergence().mul_(_STEP).add_(residue), self.matrix)
            ahead = torch.sub(updated, residue, out=residue)
            if report is not None:
                report(Iteration("ttv", number, iterations, float(ahead.norm() / updated.norm().clamp_min(1e-30))))
            self._ascend(ahead.add_(updated))
            residue = updated
        return residue

    def _divergence(self) -> Tensor:
        """Negative adjoint of the differences, of the dual fields."""
        field = self.fields[-1][:-1]
        total = (field - field.roll(1, -1)).mul_(self.weights[-1])
        for weight, field, previous in zip(self.weights, self.fields, self.previous, strict=False):
            total.add_(field[:-1], alpha=weight).sub_(field[previous], alpha=weight)
        return total

    def _ascend(self, residue: Tensor) -> None:
        """Dual step: fields follow the differences, and none is longer than its bound."""
        length = torch.zeros_like(residue)
        for axis, (weight, field) in enumerate(zip(self.weights, self.fields, strict=True)):
            here = residue.roll(-1, -1) if axis == len(self.following) else residue[self.following[axis]]
            field[:-1].add_(here.sub_(residue), alpha=weight * self.dual_step)
            length.addcmul_(field[:-1], field[:-1])
        scale = length.sqrt_().div_(self.bound).clamp_min_(1).reciprocal_()
        for field in self.fields:
            field[:-1].mul_(scale)
