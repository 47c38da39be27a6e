"""Deconvolution by a singular value decomposition of the frames that were measured: sSVD and Tikhonov."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from physics.perfusion.deconvolution.common import by_chunks, check_fraction

__all__ = ["SELECTIONS", "lcurve_curvature", "measured_matrix", "ssvd", "tikhonov"]

SELECTIONS = ("lcurve", "gcv")
_WEAKEST, _STEPS = 1e-3, 61  # of the weights tried, up to the largest singular value; 12 % from one to the next


def measured_matrix(aif: Tensor, dt: float) -> Tensor:
    """Rows of the block-circulant matrix that were measured: float64 ``[N, 2N]``, ``dt a[(i - j) mod 2N]``.

    Its first N columns are the lower triangular Toeplitz matrix of sSVD, the others hold residues at negative times.
    What the tissue does after the last frame stays open, where the whole matrix would have it at zero.
    """
    n = len(aif)
    column = torch.cat([aif.double() * dt, aif.new_zeros(n, dtype=torch.float64)])
    frame = torch.arange(2 * n, device=aif.device)
    return column[(frame[:n, None] - frame) % (2 * n)]


def ssvd(rows: Tensor, aif: Tensor, dt: float, *, threshold: float = 0.2) -> Tensor:
    """Residues ``[voxel, time]`` of curves ``[voxel, time]`` by the truncated inverse of the Toeplitz matrix."""
    check_fraction(threshold, "threshold")
    n = len(aif)
    left, size, right = torch.linalg.svd(measured_matrix(aif, dt)[:, :n])
    kept = (size >= threshold * size[0]) & (size > 0)
    inverse = torch.where(kept, 1 / torch.where(kept, size, torch.ones_like(size)), 0)
    return rows @ ((left * inverse) @ right).to(rows)


def tikhonov(
    rows: Tensor, aif: Tensor, dt: float, *, selection: str = "lcurve", regularisation: float | None = None
) -> Tensor:
    """Residues ``[voxel, 2 time]`` that minimise ``|A r - c|^2 + w^2 |r|^2`` for curves ``[voxel, time]``.

    A is :func:`measured_matrix`. Each voxel has its own w, one of 61 between .001 and 1 of the largest singular value:
    that of the sharpest corner of the L-curve, or of the least generalised cross-validation.
    """
    if selection not in SELECTIONS:
        raise ValueError(f"selection must be one of {', '.join(SELECTIONS)}, got {selection!r}")
    left, size, right = torch.linalg.svd(measured_matrix(aif, dt), full_matrices=False)
    if regularisation is None:
        weights = torch.logspace(math.log10(_WEAKEST), 0, _STEPS, dtype=size.dtype, device=size.device) * size[0]
    elif math.isfinite(regularisation) and regularisation > 0:
        weights = regularisation * size[:1]
    else:
        raise ValueError(f"regularisation must be finite and positive, got {regularisation}")
    inverse = size / (size.square() + weights[:, None].square())
    if regularisation is not None:
        return rows @ ((left * inverse) @ right).to(rows)
    choose = _Choice(size, weights, selection, rows)
    inverse, left, right = inverse.to(rows), left.to(rows), right.to(rows)

    def solve(part: Tensor) -> Tensor:
        seen = part @ left
        return (seen * inverse[choose(seen.detach().square())]) @ right

    return by_chunks(rows, right.shape[-1], solve)


class _Choice:
    """Index of the weight of each voxel, from its squared coefficients ``[voxel, N]`` on the left singular vectors.

    Norms of the residual and of the solution, and the derivative of the latter, are sums of these coefficients with
    factors that depend on the weight alone: three products of matrices for all voxels and weights. The residue and the
    coefficients are in units in which the largest singular value is 1.
    """

    def __init__(self, size: Tensor, weights: Tensor, selection: str, like: Tensor) -> None:
        size, weights = size / size[0], weights / size[0]
        below = size.square() + weights[:, None].square()
        stopped = weights[:, None].square() / below
        solution = (size / below).square()
        self.selection = selection
        self.weights = weights.to(like)
        self.residual = stopped.square().mT.to(like)
        self.solution = solution.mT.to(like)
        self.slope = (-4 / weights[:, None] * stopped * solution).mT.to(like)
        self.freedom = stopped.sum(-1).square().to(like)

    def __call__(self, power: Tensor) -> Tensor:
        """Index ``[voxel]``."""
        power = power / power.sum(-1, keepdim=True).clamp_min(torch.finfo(power.dtype).tiny)
        residual = power @ self.residual
        if self.selection == "gcv":
            return (residual / self.freedom).argmin(-1)
        return lcurve_curvature(self.weights, residual, power @ self.solution, power @ self.slope).argmax(-1)


def lcurve_curvature(weights: Tensor, residual: Tensor, solution: Tensor, slope: Tensor) -> Tensor:
    """Curvature of the L-curve, the logarithms of the norms against each other; positive where it turns left.

    Args:
        weights: w ``[W]``.
        residual: squared norm of the residual ``[..., W]``; its derivative is -w^2 times that of ``solution``.
        solution: squared norm of the solution ``[..., W]``.
        slope: its derivative with respect to w ``[..., W]``.

    Source: Hansen, The L-curve and its use (2001), equation 18, with the other sign.
    """
    square = weights.square()
    turn = square * slope * residual + 2 * weights * solution * residual + square.square() * solution * slope
    speed = (square * solution).square() + residual.square()
    return -2 * solution * residual / slope * turn / speed.pow(1.5)
