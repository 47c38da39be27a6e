"""Inversion with the total variation of the map."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from physics.dipole_inversion.common import Problem, check_iterations, check_number, gradient_energy, prepare
from physics.dipole_inversion.iteration import Iteration, Report

__all__ = ["tv_admm"]

_GRADIENT_PENALTY = 0.03  # of the ADMM [mm^2]
_FIELD_PENALTY = 0.2  # of the ADMM, relative to a data weight of 1
_SUPPORT_PENALTY = 0.005  # of the ADMM, likewise
_RELAXATION = 1.7  # of the ADMM, between 1 and 2
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
    iterations: int = 15,
    tolerance: float = 1e-3,
    report: Report | None = None,
    kernel: str = "exact",
    padding: float = 1.25,
) -> Tensor:
    r"""Total variation, by ADMM.

    .. math:: \min_\chi \tfrac{1}{2} \lVert W (d * \chi - b) \rVert^2
        + \lambda \sum_x \sum_a \frac{|\chi(x + d_a) - \chi(x)|}{d_a}

    with field b and susceptibility in ppm, a the three axes, :math:`d_a` the voxel size [mm]. W is 0 outside the mask,
    where the field is unknown, and 1 inside, or the magnitude relative to its mean (at most 2), since the noise of the
    field goes with its inverse. Sources are sought inside the mask only, and differences across its border are not
    penalised. The field of the map, its gradient and its support are split from it: each step is one filter in k-space
    and pointwise operations. It starts from the L2 gradient inversion. Volumes of a batch are inverted one after the
    other, each as if alone.

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
        report: called after each step of each volume.
        kernel: ``"exact"`` or ``"kspace"``.
        padding: grid of the inversion over that of the field, at least 1.

    Returns:
        Susceptibility ``[..., X, Y, Z]`` [ppm], mean 0 over the mask, 0 outside.

    Raises:
        ValueError: if regularisation is not positive, and as all inversions for bad input (see ``prepare``).

    Source: Bilgic et al., Magn Reson Med 72:1444 (2014), ADMM; Milovic et al., Magn Reson Med 80:814 (2018), the
    splitting of the weighted field; Boyd et al., Found Trends Mach Learn 3:1 (2011), section 3.4.3, over-relaxation.
    """
    check_number(regularisation, "regularisation")
    check_iterations(iterations, tolerance)
    if not 0 <= edge_fraction < 1:
        raise ValueError(f"edge_fraction must be at least 0 and less than 1, got {edge_fraction}")
    problem = prepare(field, voxel_size, b0_direction, mask, magnitude, kernel=kernel, padding=padding)
    weight = problem.mask.to(field.dtype) if problem.magnitude is None else problem.magnitude
    shape = field.shape[-3:]
    parts = (problem.field, problem.mask.expand(field.shape), weight.expand(field.shape))
    chi = [
        _Solver(problem, regularisation, edge_fraction, *volume).solve(iterations, tolerance, report)
        for volume in zip(*(part.reshape(-1, *shape) for part in parts), strict=True)
    ]
    return problem.finish(torch.stack(chi).reshape(field.shape))


class _Solver:
    """ADMM for one volume, with gradient, field and support split from the map.

    A split variable z stands for some ``A chi``. In scaled form v = relaxed ``A chi`` + multiplier, z = prox(v) and the
    next multiplier is v - z. Only v is kept: z follows from it, and the filter is fed with ``2 z - v``.
    """

    def __init__(
        self,
        problem: Problem,
        regularisation: float,
        edge_fraction: float,
        field: Tensor,
        mask: Tensor,
        magnitude: Tensor,
    ) -> None:
        self.problem, self.mask = problem, mask
        kernel = problem.kernel
        energy = gradient_energy(problem.grid, problem.voxel_size, kernel).mul_(_GRADIENT_PENALTY)
        start = energy + kernel.square()
        start[0, 0, 0] = math.inf  # no constant
        self.spectrum = problem.transform(field).mul_(kernel).div_(start)
        self.below = energy.add_(kernel.square(), alpha=_FIELD_PENALTY).add_(_SUPPORT_PENALTY)
        self.keep = _FIELD_PENALTY / (magnitude.square().clamp_(max=_LARGEST_WEIGHT) + _FIELD_PENALTY)
        self.data = (1 - self.keep) * field
        self.work, self.value, self.target = (field.new_zeros(problem.grid) for _ in range(3))
        self.inside = torch.zeros(problem.grid, dtype=torch.bool, device=field.device)
        problem.crop(self.inside).copy_(mask)
        # Only differences between two voxels of the mask are penalised. They are not divided by the voxel size d: their
        # bound takes it once, and the weight of the adjoint twice.
        bound = regularisation / _GRADIENT_PENALTY
        penalised = torch.stack([self.inside & self.inside.roll(-1, axis) for axis in range(3)])
        if edge_fraction > 0:
            penalised &= ~self._edges(magnitude, penalised, edge_fraction)
        self.bounds = [
            pairs.to(field.dtype).mul_(bound * d) for pairs, d in zip(penalised, problem.voxel_size, strict=True)
        ]
        self.gradient = [torch.zeros_like(self.work) for _ in range(3)]
        self.support = torch.zeros_like(self.work)
        self.field = problem.padded(self.spectrum * kernel)

    def _edges(self, magnitude: Tensor, pairs: Tensor, fraction: float) -> Tensor:
        """Where the magnitude changes more than in the rest of the pairs ``[3, X, Y, Z]``."""
        shown = torch.zeros_like(self.work)
        self.problem.crop(shown).copy_(magnitude)
        changes = torch.stack(
            [(shown.roll(-1, axis) - shown).abs_() / d for axis, d in enumerate(self.problem.voxel_size)]
        )
        values = changes[pairs]
        return changes > values.kthvalue(max(1, round((1 - fraction) * len(values)))).values

    def solve(self, iterations: int, tolerance: float, report: Report | None) -> Tensor:
        """Map ``[X, Y, Z]``."""
        chi = self.problem.padded(self.spectrum)
        for number in range(1, iterations + 1):
            before = self.problem.crop(chi) * self.mask
            # at first there are no multipliers that could be relaxed
            self._step(chi, _RELAXATION if number > 1 else 1.0, fit=number > 1)
            chi = self.problem.padded(self.spectrum)
            if report is not None or tolerance > 0:
                inside = self.problem.crop(chi) * self.mask
                change = float(before.sub_(inside).norm() / inside.norm().clamp(min=1e-30))
                if report is not None:
                    report(Iteration("tv_admm", number, iterations, change))
                if change < tolerance:
                    break
        return self.problem.crop(chi)

    def _step(self, chi: Tensor, factor: float, fit: bool) -> None:
        self.target.zero_()
        for axis, d in enumerate(self.problem.voxel_size):
            self._shrink(chi, axis, factor, _GRADIENT_PENALTY / d**2)
        self._confine(chi, factor)
        if fit:
            operated = self.problem.padded(self.spectrum * self.problem.kernel)
            self.field.add_(operated.sub_(self._fitted()), alpha=factor)
        fed = self._fitted().mul_(2).sub_(self.field)
        self.spectrum = self.problem.transform(fed).mul_(self.problem.kernel).mul_(_FIELD_PENALTY)
        self.spectrum.add_(self.problem.transform(self.target)).div_(self.below)

    def _shrink(self, chi: Tensor, axis: int, factor: float, weight: float) -> None:
        """Shortens the differences along one axis."""
        argument, bound = self.gradient[axis], self.bounds[axis]
        _difference(chi, axis, out=self.work)
        torch.sub(argument, _clamped(argument, bound, out=self.value), out=self.value)
        argument.add_(self.work.sub_(self.value), alpha=factor)
        torch.sub(argument, _clamped(argument, bound, out=self.value), alpha=2, out=self.value)
        _add_adjoint_difference(self.value, axis, weight, out=self.target)

    def _confine(self, chi: Tensor, factor: float) -> None:
        """No sources outside of the mask."""
        torch.mul(self.support, self.inside, out=self.value)
        self.support.add_(torch.sub(chi, self.value, out=self.work), alpha=factor)
        torch.mul(self.support, self.inside, out=self.value)
        self.target.add_(self.value.mul_(2).sub_(self.support), alpha=_SUPPORT_PENALTY)

    def _fitted(self) -> Tensor:
        """The field between that of the map and the data, by their weight; where there are none, that of the map."""
        self.value.copy_(self.field)
        self.problem.crop(self.value).mul_(self.keep).add_(self.data)
        return self.value


def _clamped(values: Tensor, bound: Tensor, out: Tensor) -> Tensor:
    torch.minimum(values, bound, out=out)
    return torch.maximum(out, bound.neg(), out=out)


def _difference(volume: Tensor, axis: int, out: Tensor) -> None:
    """Periodic forward difference of ``[PX, PY, PZ]`` along one axis."""
    n = volume.shape[axis]
    torch.sub(volume.narrow(axis, 1, n - 1), volume.narrow(axis, 0, n - 1), out=out.narrow(axis, 0, n - 1))
    torch.sub(volume.select(axis, 0), volume.select(axis, n - 1), out=out.select(axis, n - 1))


def _add_adjoint_difference(values: Tensor, axis: int, weight: float, out: Tensor) -> None:
    """Adds ``weight`` times the adjoint of :func:`_difference`."""
    n = values.shape[axis]
    out.sub_(values, alpha=weight)
    out.narrow(axis, 1, n - 1).add_(values.narrow(axis, 0, n - 1), alpha=weight)
    out.select(axis, 0).add_(values.select(axis, n - 1), alpha=weight)
