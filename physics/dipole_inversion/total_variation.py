"""Inversion with the total variation of the map."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from physics.dipole_inversion.common import Problem, check_iterations, check_number, gradient_energy, prepare
from physics.dipole_inversion.iteration import Iteration, Report

__all__ = ["tv_admm"]

_GRADIENT_PENALTY = 60.0  # of the ADMM, times the regularisation [1/ppm]
_FIELD_PENALTY = 0.03  # of the ADMM, relative to a data weight of 1
_SUPPORT_PENALTY = 5e-4  # of the ADMM, likewise
_LARGEST_WEIGHT = 4.0  # of the data: a bright voxel must not decide for its neighbours


def tv_admm(
    field: Tensor,
    voxel_size: Sequence[float] | Tensor,
    b0_direction: Sequence[float] | Tensor = (0.0, 0.0, 1.0),
    mask: Tensor | None = None,
    magnitude: Tensor | None = None,
    *,
    regularisation: float = 3e-4,
    edge_fraction: float = 0.0,
    iterations: int = 30,
    tolerance: float = 1e-3,
    report: Report | None = None,
    kernel: str = "exact",
    padding: float = 1.25,
) -> Tensor:
    """Total variation: minimises ``|W (D chi - field)|^2 / 2 + regularisation TV(chi)`` by ADMM.

    TV is the sum over the voxels of the length of the gradient. W is 0 outside the mask, where the field is not known,
    and 1 inside, or the magnitude relative to its mean (at most 2), since the noise of the field goes with its inverse.
    Sources are sought inside the mask only, and differences across its border are not penalised. The field of the map,
    its gradient and its support are split from it: each step is one filter in k-space and pointwise operations.

    Args:
        field: local field ``[..., X, Y, Z]`` [ppm], float32 or float64.
        voxel_size: (dx, dy, dz) [mm].
        b0_direction: unit vector along the axes of the array.
        mask: bool ``[..., X, Y, Z]``; None for the whole volume.
        magnitude: weights ``[..., X, Y, Z]``, any unit; None for equal ones.
        regularisation: weight of TV [ppm mm].
        edge_fraction: part of the differences inside the mask that are not penalised, those where the magnitude changes
            most, 0 to below 1; of no effect without magnitude.
        iterations: largest number of steps.
        tolerance: stops when a step changes the map by less than this share of its norm.
        report: called after each step.
        kernel: ``"exact"`` or ``"kspace"``.
        padding: grid of the inversion over that of the field, at least 1.

    Returns:
        Susceptibility ``[..., X, Y, Z]`` [ppm], mean 0 over the mask, 0 outside.

    Raises:
        ValueError: if regularisation is not positive, and as all inversions for bad input (see ``prepare``).

    Source: Bilgic et al., Magn Reson Med 72:1444 (2014), ADMM; Milovic et al., Magn Reson Med 80:814 (2018), the
    splitting of the weighted field.
    """
    check_number(regularisation, "regularisation")
    check_iterations(iterations, tolerance)
    problem = prepare(field, voxel_size, b0_direction, mask, magnitude, kernel=kernel, padding=padding)
    if not 0 <= edge_fraction < 1:
        raise ValueError(f"edge_fraction must be at least 0 and less than 1, got {edge_fraction}")
    solver = _Solver(problem, regularisation, edge_fraction)
    chi, before = problem.field, None
    for number in range(1, iterations + 1):
        chi = solver.step()
        inside = problem.crop(chi) * problem.mask
        change = math.inf if before is None else float((inside - before).norm() / inside.norm().clamp(min=1e-30))
        before = inside
        if report is not None:
            report(Iteration("tv_admm", number, iterations, change))
        if change < tolerance:
            break
    return problem.finish(problem.crop(chi))


class _Solver:
    """State of the ADMM: gradient, field and support split from the map, with their scaled multipliers.

    What the next filter is fed with, each split variable minus its multiplier, is all that is kept beside the
    multipliers.
    """

    def __init__(self, problem: Problem, regularisation: float, edge_fraction: float) -> None:
        self.problem = problem
        shape = (*problem.field.shape[:-3], *problem.grid)
        penalty = _GRADIENT_PENALTY * regularisation
        weight = problem.mask.to(problem.field) if problem.magnitude is None else problem.magnitude
        weight = weight.square().clamp(max=_LARGEST_WEIGHT)
        self.data = problem.field * (weight / (weight + _FIELD_PENALTY))
        self.keep = _FIELD_PENALTY / (weight + _FIELD_PENALTY)
        energy = gradient_energy(problem.grid, problem.voxel_size, problem.kernel)
        below = penalty * energy + _FIELD_PENALTY * problem.kernel.square() + _SUPPORT_PENALTY
        self.from_map = 1.0 / below
        self.from_field = _FIELD_PENALTY * problem.kernel / below
        self.penalty = penalty
        self.inside = torch.zeros(shape, dtype=torch.bool, device=problem.field.device)
        problem.crop(self.inside).copy_(problem.mask)
        # Only differences between two voxels of the mask are penalised.
        pairs = torch.stack([self.inside & self.inside.roll(-1, axis - 3) for axis in range(3)])
        if problem.magnitude is not None and edge_fraction > 0:
            pairs &= ~self._edges(problem.magnitude, pairs, edge_fraction)
        self.threshold = pairs.to(problem.field) * (regularisation / penalty)
        self.gradient = problem.field.new_zeros(3, *shape)
        self.gradient_multiplier = problem.field.new_zeros(3, *shape)
        self.support = problem.field.new_zeros(shape)
        self.support_multiplier = problem.field.new_zeros(shape)
        self.target = problem.field.new_zeros(shape)
        problem.crop(self.target).copy_(problem.field)
        self.field_multiplier = problem.field.new_zeros(shape)

    def _edges(self, magnitude: Tensor, pairs: Tensor, fraction: float) -> Tensor:
        """Where the magnitude changes more than in the rest of the pairs of the same volume ``[3, ..., X, Y, Z]``."""
        shown = torch.zeros_like(self.inside, dtype=magnitude.dtype)
        self.problem.crop(shown).copy_(magnitude)
        steps = [(shown.roll(-1, axis - 3) - shown).abs_() / size for axis, size in enumerate(self.problem.voxel_size)]
        changes, inside = (  # [volumes, 3, X, Y, Z]
            values.reshape(3, -1, *self.problem.grid).transpose(0, 1) for values in (torch.stack(steps), pairs)
        )
        levels = []
        for change, counted in zip(changes, inside, strict=True):
            values = change[counted]
            levels.append(values.kthvalue(max(1, round((1 - fraction) * len(values)))).values)
        edges = changes > torch.stack(levels)[:, None, None, None, None]
        return edges.transpose(0, 1).reshape(pairs.shape)

    def step(self) -> Tensor:
        """One step; returns the map on the padded grid."""
        problem = self.problem
        wanted = _adjoint_gradient(self.gradient, problem.voxel_size).mul_(self.penalty)
        spectrum = problem.transform(wanted.add_(self.support, alpha=_SUPPORT_PENALTY)) * self.from_map
        spectrum += problem.transform(self.target) * self.from_field
        chi = problem.padded(spectrum)
        self._shrink(chi)
        self._confine(chi)
        self._fit(problem.padded(spectrum * problem.kernel))
        return chi

    def _shrink(self, chi: Tensor) -> None:
        """Shorten the gradient of the map; its multiplier keeps what was cut off."""
        for axis, size in enumerate(self.problem.voxel_size):
            self.gradient_multiplier[axis] += torch.sub(chi.roll(-1, axis - 3), chi).div_(size)
        cut = torch.minimum(torch.maximum(self.gradient_multiplier, -self.threshold), self.threshold)
        torch.sub(self.gradient_multiplier, cut, alpha=2.0, out=self.gradient)
        self.gradient_multiplier = cut

    def _confine(self, chi: Tensor) -> None:
        """No sources outside of the mask."""
        moved = self.support_multiplier.add_(chi)
        self.support = torch.where(self.inside, moved, 0.0)
        self.support_multiplier = torch.where(self.inside, 0.0, moved)
        self.support = self.support - self.support_multiplier

    def _fit(self, field: Tensor) -> None:
        """Bring the field nearer to the data, by their weight; outside of the volume there are none."""
        moved = field.add_(self.field_multiplier)
        self.target = moved.clone()
        inner = self.problem.crop(self.target)
        inner.copy_(torch.addcmul(self.data, inner, self.keep))
        self.field_multiplier = moved.sub_(self.target)
        self.target = self.target - self.field_multiplier


def _adjoint_gradient(vectors: Tensor, voxel_size: Sequence[float]) -> Tensor:
    """Adjoint of the periodic forward difference: ``[3, ..., X, Y, Z]`` to ``[..., X, Y, Z]``."""
    total = torch.zeros_like(vectors[0])
    for axis, size in enumerate(voxel_size):
        total.add_(vectors[axis].roll(1, axis - 3).sub_(vectors[axis]), alpha=1.0 / size)
    return total
