"""iLSQR: least squares inversion, from which streaks are estimated and subtracted."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from physics.dipole_inversion.boxes import add_adjoint_difference, difference, invert_each, pairs_inside
from physics.dipole_inversion.common import Problem, check_iterations, prepare
from physics.dipole_inversion.iteration import Iteration, Report

__all__ = ["ilsqr"]

_LAPLACIAN_PERCENTILES = (60.0, 99.9)
_GRADIENT_PERCENTILES = (50.0, 70.0)
_KERNEL_PERCENTILES = (1.0, 30.0)
_KERNEL_POWER = 0.001
_SPHERE_RADIUS = 3.0  # [mm]
_TKD_THRESHOLD = 1 / 8

Operator = Callable[[Tensor], Tensor]


def _percentiles(values: Tensor, percentages: tuple[float, float]) -> tuple[Tensor, Tensor]:
    flat = values.flatten()  # torch.quantile refuses more than 16 million
    low, high = (flat.kthvalue(max(1, math.ceil(p / 100 * flat.numel()))).values for p in percentages)
    return low, high


def _falling(values: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """1 below ``low``, 0 above ``high``, linear between."""
    return ((high - values) / (high - low).clamp(min=torch.finfo(values.dtype).tiny)).clamp(0, 1)


def lsqr(
    forward: Operator, adjoint: Operator, data: Tensor, iterations: int, after: Callable[[int, float], bool]
) -> Tensor:
    """Least squares solution of ``forward(x) = data`` by Golub-Kahan bidiagonalisation.

    Args:
        forward: linear operator.
        adjoint: its adjoint.
        data: right-hand side, of the shape that ``forward`` returns.
        iterations: at most.
        after: called with the number of each iteration and the norm of its update over that of x; stops if true.

    Returns:
        x of the shape that ``adjoint`` returns; of least norm if the solution is not unique.

    Source: Paige and Saunders, ACM Trans Math Softw 8:43 (1982), section 4.1.
    """
    beta = data.norm()
    left = data / beta.clamp(min=torch.finfo(data.dtype).tiny)
    right = adjoint(left)
    alpha = right.norm()
    solution = torch.zeros_like(right)
    smallest = torch.finfo(data.dtype).eps * float(alpha)
    if float(alpha * beta) == 0:
        return solution
    right = right / alpha
    direction = right.clone()
    phi_bar, rho_bar = beta, alpha
    for number in range(1, iterations + 1):
        left = forward(right).sub_(left * alpha)
        beta = left.norm()
        exhausted = float(beta) <= smallest
        if not exhausted:
            left /= beta
            right = adjoint(left).sub_(right * beta)
            alpha = right.norm()
            exhausted = float(alpha) <= smallest
        rho = torch.hypot(rho_bar, beta)
        cosine, sine = rho_bar / rho, beta / rho
        solution.add_(direction, alpha=float(cosine * phi_bar / rho))
        change = abs(float(cosine * phi_bar / rho)) * float(direction.norm() / solution.norm())
        if after(number, change) or exhausted:
            break
        right /= alpha
        direction = right - direction * (sine * alpha / rho)
        rho_bar, phi_bar = -cosine * alpha, sine * phi_bar
    return solution


def _laplacian_weights(problem: Problem) -> Tensor:
    """Weights of the data ``[X, Y, Z]``: less where the Laplacian of the field is large, 0 outside (equation 7)."""
    laplacian = torch.zeros_like(problem.field)
    for axis, d in enumerate(problem.voxel_size):
        steps = difference(problem.field, axis).mul_(pairs_inside(problem.mask, axis)).div_(-(d**2))
        add_adjoint_difference(steps, axis, laplacian)
    low, high = _percentiles(laplacian[problem.mask], _LAPLACIAN_PERCENTILES)
    return _falling(laplacian, low, high).mul_(problem.mask)


def _least_squares(problem: Problem, iterations: int, after: Callable[[int, float], bool]) -> Tensor:
    """The map before the streaks are removed ``[X, Y, Z]``: the normal equations by LSQR (equation 6).

    LSQR squares the condition once more. That is meant: the solution stops before noise enters near the cone.
    """
    weights = _laplacian_weights(problem)

    def back(field: Tensor) -> Tensor:
        return problem.padded(problem.transform(field * weights).mul_(problem.kernel))

    def normal(chi: Tensor) -> Tensor:
        return back(problem.crop(problem.padded(problem.transform(chi).mul_(problem.kernel))))

    return problem.crop(lsqr(normal, normal, back(problem.field), iterations, after)) * problem.mask


def _sphere(problem: Problem) -> Tensor:
    """Spectrum of the mean over a sphere, on the padded grid."""
    squared = torch.zeros((), dtype=problem.field.dtype, device=problem.field.device)
    for axis, (n, d) in enumerate(zip(problem.grid, problem.voxel_size, strict=True)):
        index = torch.arange(n, device=problem.field.device)
        view = [1, 1, 1]
        view[axis] = -1
        squared = squared + (torch.minimum(index, n - index) * d).to(problem.field).square().reshape(view)
    inside = (squared <= _SPHERE_RADIUS**2).to(problem.field.dtype)
    return problem.transform(inside / inside.sum()).real


def _fast_qsm(problem: Problem) -> Tensor:
    """A coarse map with weak streaks ``[X, Y, Z]``, to know the edges from (equations 8 to 14)."""
    kernel = problem.kernel
    power = kernel.abs() ** _KERNEL_POWER
    mirrored = power[..., 1 : (problem.grid[2] + 1) // 2]  # the half of the spectrum that is not stored
    low, high = _percentiles(torch.cat([power, mirrored], dim=-1), _KERNEL_PERCENTILES)
    certain = 1 - _falling(power, low, high)
    passed = certain + (1 - certain) * _sphere(problem)
    spectrum = problem.transform(problem.field)
    chi = problem.crop(problem.padded(spectrum * kernel.sign() * passed)) * problem.mask
    chi = (problem.crop(problem.padded(problem.transform(chi) * passed)) * problem.mask)[problem.mask]
    divided = spectrum * kernel.sign() / kernel.abs().clamp(min=_TKD_THRESHOLD)
    truncated = problem.crop(problem.padded(divided))[problem.mask]
    centred = chi - chi.mean()
    slope = (centred * truncated).sum() / centred.square().sum().clamp(min=torch.finfo(chi.dtype).tiny)
    result = torch.zeros_like(problem.field)
    result[problem.mask] = slope * centred
    return result


def _streaks(
    problem: Problem,
    chi: Tensor,
    coarse: Tensor,
    threshold: float,
    iterations: int,
    after: Callable[[int, float], bool],
) -> Tensor:
    """What of ``chi`` lies near the cone and has gradients where the coarse map has none (equations 2 to 4, 15)."""
    near = (problem.kernel.abs() < threshold).to(chi.dtype)
    weights = []
    for axis, d in enumerate(problem.voxel_size):
        inside = pairs_inside(problem.mask, axis)
        if not bool(inside.any()):  # one voxel thick
            weights.append(inside.to(chi.dtype))
            continue
        modulus = difference(coarse, axis).abs_()
        low, high = _percentiles(modulus[inside], _GRADIENT_PERCENTILES)
        weights.append(_falling(modulus, low, high).mul_(inside).div_(d))
    sizes = [weight.numel() for weight in weights]

    def gradient(volume: Tensor) -> Tensor:
        return torch.cat([(difference(volume, axis) * weight).flatten() for axis, weight in enumerate(weights)])

    def forward(streaks: Tensor) -> Tensor:
        return gradient(problem.crop(problem.padded(problem.transform(streaks).mul_(near))))

    def adjoint(steps: Tensor) -> Tensor:
        total = torch.zeros_like(chi)
        for axis, (part, weight) in enumerate(zip(steps.split(sizes), weights, strict=True)):
            add_adjoint_difference(part.reshape(weight.shape) * weight, axis, total)
        return problem.padded(problem.transform(total).mul_(near))

    return problem.crop(lsqr(forward, adjoint, gradient(chi), iterations, after)) * problem.mask


def ilsqr(
    field: Tensor,
    voxel_size: Sequence[float] | Tensor,
    b0_direction: Sequence[float] | Tensor = (0.0, 0.0, 1.0),
    mask: Tensor | None = None,
    magnitude: Tensor | None = None,
    *,
    threshold: float = 0.25,
    iterations: int = 30,
    tolerance: float = 0.02,
    kernel: str = "exact",
    padding: float = 1.25,
    report: Report | None = None,
) -> Tensor:
    r"""iLSQR: a least squares inversion minus an estimate of its streaks.

    .. math:: \chi = \chi_0 - \chi_s, \qquad \chi_0 = \arg\min_\chi \sum_x W (d * \chi - b)^2, \qquad
        \chi_s = \arg\min_{\chi} \sum_a \left\lVert w_a \partial_a
        \left(\chi_0 - \mathcal{F}^{-1} \{[|D| < \tau] \mathcal{F} \chi\}\right) \right\rVert^2

    Three steps: least squares with weights that are small where the Laplacian of the field is large; a coarse map
    (FastQSM) whose gradients tell where edges are; and the streaks, the part in the ill-conditioned cone of k-space
    that explains the gradients where there are no edges. Both least squares problems are solved by LSQR.

    Args:
        field: local field ``[..., X, Y, Z]`` [ppm], float32 or float64.
        voxel_size: (dx, dy, dz) [mm].
        b0_direction: unit vector along the axes of the array.
        mask: bool ``[..., X, Y, Z]``; None for the whole volume.
        magnitude: not used.
        threshold: modulus of the kernel below which k-space may hold streaks, between 0 and 2/3; .1 in the paper, .25
            in the STI Suite, which leaves less noise.
        iterations: of each of the two solutions, at most.
        tolerance: either stops when the relative change of an iteration falls below it; 0 never stops.
        kernel: ``"exact"`` or ``"kspace"``.
        padding: grid of the inversion over the bounding box of the mask, at least 1.
        report: called after each iteration of each volume; the streaks count from ``iterations`` + 1.

    Returns:
        Susceptibility ``[..., X, Y, Z]`` [ppm], mean 0 over the mask, 0 outside.

    Raises:
        ValueError: if an option is out of range, and as all inversions for bad input (see ``prepare``).

    Source: W. Li et al., NeuroImage 108:111 (2015).
    """
    if not 0 < threshold < 2 / 3:
        raise ValueError(f"threshold must lie between 0 and 2/3, got {threshold}")
    check_iterations(iterations, tolerance)
    problem = prepare(field, voxel_size, b0_direction, mask, magnitude, kernel=kernel, padding=1.0)

    def after(done: int) -> Callable[[int, float], bool]:
        def called(number: int, change: float) -> bool:
            if report is not None:
                report(Iteration("ilsqr", done + number, 2 * iterations, change))
            return change < tolerance

        return called

    def solve(part: Problem) -> Tensor:
        chi = _least_squares(part, iterations, after(0))
        return chi - _streaks(part, chi, _fast_qsm(part), threshold, iterations, after(iterations))

    with torch.no_grad():
        return problem.finish(invert_each(problem, solve, kernel=kernel, padding=padding))
