"""Morphology enabled dipole inversion: edges of the magnitude tell where the map may change."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from physics.dipole_inversion.boxes import add_adjoint_difference, difference, inner, invert_each, pairs_inside
from physics.dipole_inversion.common import Problem, check_iterations, check_number, prepare
from physics.dipole_inversion.iteration import Iteration, Report

__all__ = ["medi"]

_SMOOTHING = 3e-4  # [ppm/mm], rounds the corner of the L1 norm; below the noise of any gradient
_INNER_TOLERANCE = 0.1
_INNER_LIMIT = 20


class _Morphology:
    """L1 norm of the differences that are no edges, as a quadratic form that is reweighted at each outer step.

    Args:
        problem: box with its mask and magnitude.
        regularisation: weight of the norm [ppm mm].
        edge_fraction: part of the differences inside the mask that are taken for edges and not penalised.
    """

    def __init__(self, problem: Problem, regularisation: float, edge_fraction: float) -> None:
        self.sizes = problem.voxel_size
        self.regularisation = regularisation
        penalised = [pairs_inside(problem.mask, axis) for axis in range(3)]
        if problem.magnitude is not None and edge_fraction > 0:
            steps = [difference(problem.magnitude, axis).abs_().div_(d) for axis, d in enumerate(self.sizes)]
            values = torch.cat([step[inside] for step, inside in zip(steps, penalised, strict=True)])
            rank = math.ceil((1 - edge_fraction) * values.numel())
            level = float(values.kthvalue(rank).values) if rank > 0 else -math.inf
            penalised = [inside & (step <= level) for step, inside in zip(steps, penalised, strict=True)]
        self.penalised = [inside.to(problem.field.dtype) for inside in penalised]
        self.weights = self.penalised

    def reweight(self, chi: Tensor) -> None:
        """Weights under which the quadratic form has the gradient of the norm at ``chi``."""
        weights = []
        for axis, (d, kept) in enumerate(zip(self.sizes, self.penalised, strict=True)):
            modulus = difference(chi, axis).div_(d).square_().add_(_SMOOTHING**2).sqrt_().mul_(d**2)
            weights.append(modulus.reciprocal_().mul_(self.regularisation).mul_(kept))
        self.weights = weights

    def add_to(self, out: Tensor, chi: Tensor) -> None:
        """Adds the quadratic form's matrix times ``chi`` to ``out``."""
        for axis, weight in enumerate(self.weights):
            add_adjoint_difference(difference(chi, axis).mul_(weight), axis, out)

    def diagonal(self, like: Tensor) -> Tensor:
        """Diagonal of the matrix ``[X, Y, Z]``."""
        total = torch.zeros_like(like)
        for axis, weight in enumerate(self.weights):
            n = like.shape[axis]
            total.narrow(axis, 0, n - 1).add_(weight)
            total.narrow(axis, 1, n - 1).add_(weight)
        return total


class _Objective:
    """The cost of one volume: gradient and Gauss-Newton matrix."""

    def __init__(
        self, problem: Problem, csf: Tensor | None, morphology: _Morphology, csf_weight: float, phase_per_ppm: float
    ) -> None:
        self.problem, self.morphology, self.phase_per_ppm = problem, morphology, phase_per_ppm
        self.inside = problem.mask.to(problem.field.dtype)
        self.precision = self.inside if problem.magnitude is None else problem.magnitude.square()
        self.csf = None if csf is None else (csf & problem.mask).to(problem.field.dtype)
        self.csf_weight = csf_weight
        # mean square of the spectrum, by Parseval: that over the half spectrum would depend on the order of the axes
        self.energy = float(problem.padded(problem.kernel.to(problem.kernel.dtype.to_complex())).square().sum())

    def _add_csf(self, out: Tensor, chi: Tensor) -> None:
        if self.csf is not None:
            mean = inner(self.csf, chi) / float(self.csf.sum())
            out.addcmul_(self.csf, chi - mean, value=self.csf_weight)

    def gradient(self, chi: Tensor) -> Tensor:
        """Gradient of the cost ``[X, Y, Z]``, 0 outside the mask."""
        residual = self.problem.convolve(chi).sub_(self.problem.field)
        if self.phase_per_ppm > 0:
            residual = residual.mul_(self.phase_per_ppm).sin_().div_(self.phase_per_ppm)
        gradient = self.problem.convolve(residual.mul_(self.precision)).contiguous()
        self.morphology.add_to(gradient, chi)
        self._add_csf(gradient, chi)
        return gradient.mul_(self.inside)

    def matrix(self, step: Tensor) -> Tensor:
        """Gauss-Newton matrix times ``step``, which is 0 outside the mask."""
        product = self.problem.convolve(self.problem.convolve(step).mul_(self.precision)).contiguous()
        self.morphology.add_to(product, step)
        self._add_csf(product, step)
        return product.mul_(self.inside)

    def preconditioner(self) -> Tensor:
        """Inverse of the diagonal, that of the data term weighted 3 times: found to take the fewest iterations."""
        diagonal = self.morphology.diagonal(self.inside).add_(self.precision, alpha=3 * self.energy)
        if self.csf is not None:
            diagonal.add_(self.csf, alpha=self.csf_weight)
        return torch.where(diagonal > 0, self.inside / diagonal, 0)


def _newton_step(objective: _Objective, chi: Tensor) -> Tensor:
    """Solves the Gauss-Newton system by preconditioned conjugate gradients, not further than is of use."""
    residual = objective.gradient(chi).neg_()
    inverse = objective.preconditioner()
    step = torch.zeros_like(chi)
    target = _INNER_TOLERANCE * float(residual.norm())
    direction = scaled = inverse * residual
    energy = inner(residual, scaled)
    for _ in range(_INNER_LIMIT):
        if float(residual.norm()) <= target or energy <= 0:
            break
        product = objective.matrix(direction)
        length = energy / inner(direction, product)
        step.add_(direction, alpha=length)
        residual.sub_(product, alpha=length)
        scaled = inverse * residual
        previous, energy = energy, inner(residual, scaled)
        direction = scaled.add_(direction, alpha=energy / previous)
    return step


def medi(
    field: Tensor,
    voxel_size: Sequence[float] | Tensor,
    b0_direction: Sequence[float] | Tensor = (0.0, 0.0, 1.0),
    mask: Tensor | None = None,
    magnitude: Tensor | None = None,
    *,
    regularisation: float | None = None,
    edge_fraction: float = 0.3,
    csf_mask: Tensor | None = None,
    csf_weight: float = 0.1,
    phase_per_ppm: float = 16.0,
    iterations: int = 10,
    tolerance: float = 0.02,
    kernel: str = "exact",
    padding: float = 1.25,
    report: Report | None = None,
) -> Tensor:
    r"""Morphology enabled dipole inversion (MEDI), with ``csf_mask`` MEDI+0.

    .. math:: \min_\chi \frac{1}{2 s^2} \left\lVert w \left(e^{i s \, d * \chi} - e^{i s b}\right) \right\rVert^2
        + \lambda \lVert M \nabla \chi \rVert_1
        + \frac{\lambda_{CSF}}{2} \sum_{x \in CSF} (\chi(x) - \bar\chi_{CSF})^2

    by Gauss-Newton steps with conjugate gradients; field b and susceptibility in ppm. w is the magnitude with mean 1,
    the inverse of the phase noise; M is 0 at the edges of the magnitude; without magnitude both are 1. Sources are
    sought inside the mask only, and differences across its border are not penalised. The last term is that of MEDI+0,
    which makes the mean of the CSF the zero.

    Args:
        field: local field ``[..., X, Y, Z]`` [ppm], float32 or float64.
        voxel_size: (dx, dy, dz) [mm].
        b0_direction: unit vector along the axes of the array.
        mask: bool ``[..., X, Y, Z]``; None for the whole volume.
        magnitude: ``[..., X, Y, Z]``, any unit.
        regularisation: weight of the gradient [ppm mm]; None for 8e-4, or 5e-4 without magnitude, which were best for a
            brain with noise from .002 to .005 ppm.
        edge_fraction: part of the gradients inside the mask that count as edges, 0 to 1.
        csf_mask: bool ``[..., X, Y, Z]``, the CSF of the ventricles; None for MEDI without reference.
        csf_weight: weight of its variance, relative to the data.
        phase_per_ppm: s [rad/ppm], 2 pi times Larmor frequency [MHz] times echo time [s]; 16 is 3 T and 20 ms. It sets
            from which misfit on data count less. 0 for the linear data term.
        iterations: Gauss-Newton steps at most.
        tolerance: stops when the relative change of a step falls below it; 0 never stops.
        kernel: ``"exact"`` or ``"kspace"``.
        padding: grid of the convolution over the bounding box of the mask, at least 1.
        report: called after each step of each volume.

    Returns:
        Susceptibility ``[..., X, Y, Z]`` [ppm], 0 outside the mask; its mean is 0 over the mask, or with ``csf_mask``
        over the CSF.

    Raises:
        ValueError: if an option is out of range, if csf_mask is not bool, of another shape or empty inside the mask,
            and as all inversions for bad input (see ``prepare``).

    Source: J. Liu et al., NeuroImage 59:2560 (2012), edges; T. Liu et al., Magn Reson Med 69:467 (2013), data term;
    Z. Liu et al., Magn Reson Med 79:2795 (2018), CSF.
    """
    if regularisation is None:
        regularisation = 5e-4 if magnitude is None else 8e-4
    weight = check_number(regularisation, "regularisation", positive=False)
    check_number(csf_weight, "csf_weight", positive=False)
    check_number(phase_per_ppm, "phase_per_ppm", positive=False)
    check_iterations(iterations, tolerance)
    if not 0 <= edge_fraction <= 1:
        raise ValueError(f"edge_fraction must lie between 0 and 1, got {edge_fraction}")
    problem = prepare(field, voxel_size, b0_direction, mask, magnitude, kernel=kernel, padding=1.0)
    csf = None if csf_mask is None else _checked_csf(csf_mask, problem)

    def solve(part: Problem, part_csf: Tensor | None) -> Tensor:
        morphology = _Morphology(part, weight, edge_fraction)
        objective = _Objective(part, part_csf, morphology, csf_weight, phase_per_ppm)
        chi = torch.zeros_like(part.field)
        for number in range(1, iterations + 1):
            morphology.reweight(chi)
            step = _newton_step(objective, chi)
            chi += step
            change = float(step.norm() / chi.norm().clamp(min=torch.finfo(chi.dtype).tiny))
            if report is not None:
                report(Iteration("medi", number, iterations, change))
            if change < tolerance:
                break
        return chi

    with torch.no_grad():
        chi = invert_each(problem, solve, csf, kernel=kernel, padding=padding)
    return problem.finish(chi) if csf is None else _referenced(chi, problem.mask, csf)


def _checked_csf(csf: Tensor, problem: Problem) -> Tensor:
    if csf.dtype != torch.bool:
        raise ValueError(f"csf_mask must be bool, got {csf.dtype}")
    try:
        inside = csf.expand(problem.field.shape) & problem.mask
    except RuntimeError:
        raise ValueError(
            f"csf_mask must have the shape of the field {tuple(problem.field.shape)}, got {tuple(csf.shape)}"
        ) from None
    if not bool(inside.flatten(-3).any(-1).all()):
        raise ValueError("csf_mask must have voxels inside the mask, got none")
    return inside


def _referenced(chi: Tensor, mask: Tensor, csf: Tensor) -> Tensor:
    mean = (chi * csf).sum((-3, -2, -1), keepdim=True) / csf.sum((-3, -2, -1), keepdim=True)
    return (chi - mean) * mask
