"""Inversion with the total variation of the map."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from physics.dipole_inversion.common import Problem, check_iterations, check_number, gradient_energy, prepare
from physics.dipole_inversion.iteration import Iteration, Report

__all__ = ["tv_admm"]

_GRADIENT_PENALTY = 20.0  # of the ADMM, times the regularisation [1/ppm]
_FIELD_PENALTY = 0.1  # of the ADMM, relative to a data weight of 1
_LARGEST_WEIGHT = 4.0  # of the data: a bright voxel must not decide for its neighbours


def tv_admm(
    field: Tensor,
    voxel_size: Sequence[float] | Tensor,
    b0_direction: Sequence[float] | Tensor = (0.0, 0.0, 1.0),
    mask: Tensor | None = None,
    magnitude: Tensor | None = None,
    *,
    regularisation: float = 3e-4,
    iterations: int = 30,
    tolerance: float = 1e-3,
    report: Report | None = None,
    kernel: str = "exact",
    padding: float = 1.25,
) -> Tensor:
    """Total variation: minimises ``|W (D chi - field)|^2 / 2 + regularisation TV(chi)`` by ADMM.

    TV is the sum over the voxels of the length of the gradient. W is 0 outside the mask, where the field is not known,
    and 1 inside, or the magnitude relative to its mean (at most 2), since the noise of the field goes with its inverse.
    The field of the map and its gradient are split from it: each step is one filter in k-space and two pointwise ones.

    Args:
        field: local field ``[..., X, Y, Z]`` [ppm], float32 or float64.
        voxel_size: (dx, dy, dz) [mm].
        b0_direction: unit vector along the axes of the array.
        mask: bool ``[..., X, Y, Z]``; None for the whole volume.
        magnitude: weights ``[..., X, Y, Z]``, any unit; None for equal ones.
        regularisation: weight of TV [ppm mm].
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
    solver = _Solver(problem, regularisation)
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
    """State of the ADMM: gradient and field split from the map, with their scaled multipliers."""

    def __init__(self, problem: Problem, regularisation: float) -> None:
        self.problem = problem
        shape = (*problem.field.shape[:-3], *problem.grid)
        penalty = _GRADIENT_PENALTY * regularisation
        self.threshold = regularisation / penalty
        weight = problem.mask.to(problem.field) if problem.magnitude is None else problem.magnitude
        weight = weight.square().clamp(max=_LARGEST_WEIGHT)
        self.data = problem.field * (weight / (weight + _FIELD_PENALTY))
        self.keep = _FIELD_PENALTY / (weight + _FIELD_PENALTY)
        energy = gradient_energy(problem.grid, problem.voxel_size, problem.kernel)
        below = penalty * energy + _FIELD_PENALTY * problem.kernel.square()
        below[0, 0, 0] = math.inf
        self.from_gradient = penalty / below
        self.from_field = _FIELD_PENALTY * problem.kernel / below
        # What the next filter is fed with: split variable minus multiplier.
        self.gradient = problem.field.new_zeros(3, *shape)
        self.multiplier = problem.field.new_zeros(3, *shape)
        self.target = problem.field.new_zeros(shape)
        problem.crop(self.target).copy_(problem.field)
        self.field_multiplier = problem.field.new_zeros(shape)

    def step(self) -> Tensor:
        """One step; returns the map on the padded grid."""
        problem = self.problem
        spectrum = problem.transform(_adjoint_gradient(self.gradient, problem.voxel_size)) * self.from_gradient
        spectrum += problem.transform(self.target) * self.from_field
        chi = problem.padded(spectrum)
        self._shrink(chi)
        moved = problem.padded(spectrum * problem.kernel).add_(self.field_multiplier)
        # Outside of the volume nothing is known: there the split field is the field of the map itself.
        inner = problem.crop(moved)
        split = torch.addcmul(self.data, inner, self.keep)
        self.target = moved.clone()
        problem.crop(self.target).copy_(split)
        self.field_multiplier = moved.sub_(self.target)
        self.target = self.target - self.field_multiplier
        return chi

    def _shrink(self, chi: Tensor) -> None:
        """Shorten the gradient of the map, and keep what was cut off as its multiplier."""
        for axis, size in enumerate(self.problem.voxel_size):
            difference = torch.sub(chi.roll(-1, axis - 3), chi).div_(size)
            self.multiplier[axis] += difference
        length = self.multiplier.square().sum(0).sqrt_().clamp_(min=1e-30)
        cut = (self.threshold / length).clamp_(max=1.0)  # share of the vector that stays in the multiplier
        torch.mul(self.multiplier, 1.0 - 2.0 * cut, out=self.gradient)
        self.multiplier *= cut


def _adjoint_gradient(vectors: Tensor, voxel_size: Sequence[float]) -> Tensor:
    """Adjoint of the periodic forward difference: ``[3, ..., X, Y, Z]`` to ``[..., X, Y, Z]``."""
    total = torch.zeros_like(vectors[0])
    for axis, size in enumerate(voxel_size):
        total.add_(vectors[axis].roll(1, axis - 3).sub_(vectors[axis]), alpha=1.0 / size)
    return total
