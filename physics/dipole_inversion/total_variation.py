"""Inversion regularised by the total variation of the map."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from physics.dipole_inversion.common import Problem, check_iterations, check_number, gradient_energy, prepare
from physics.dipole_inversion.iteration import Iteration, Report

__all__ = ["tv_admm"]


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


def _solve(
    problem: Problem,
    field: Tensor,
    regularisation: float,
    rho: float,
    limit: int,
    tolerance: float,
    report: Report | None,
) -> Tensor:
    """One volume ``[X, Y, Z]``.

    With the scaled dual u and v = gradient + u, the split gradient is z = v - clamp(v) and the next dual is clamp(v).
    So z itself need not be kept: what the next step wants is z - u = v - 2 clamp(v).
    """
    kernel = problem.kernel
    below = gradient_energy(problem.grid, problem.voxel_size, kernel).mul_(rho)
    below += kernel.square()
    below[0, 0, 0] = math.inf  # no constant
    data = problem.transform(field).mul_(kernel)
    duals = [torch.zeros(problem.grid, dtype=field.dtype, device=field.device) for _ in range(3)]
    work = torch.empty_like(duals[0])
    chi = problem.padded(data / below)
    for number in range(1, limit + 1):
        target = torch.zeros_like(work)
        for axis, (dual, d) in enumerate(zip(duals, problem.voxel_size, strict=True)):
            # differences are not divided by d: the bound takes it, and the weight of the adjoint takes it twice
            bound = regularisation / rho * d
            _difference(chi, axis, out=work)
            work += dual
            torch.clamp(work, -bound, bound, out=dual)
            work.sub_(dual, alpha=2)
            _add_adjoint_difference(work, axis, rho / d**2, out=target)
        spectrum = problem.transform(target).add_(data).div_(below)
        previous, chi = chi, problem.padded(spectrum)
        if report is not None or tolerance > 0:
            change = float(previous.sub_(chi).norm() / chi.norm().clamp(min=torch.finfo(chi.dtype).tiny))
            if report is not None:
                report(Iteration("tv_admm", number, limit, change))
            if change < tolerance:
                break
    return problem.crop(chi)


def tv_admm(
    field: Tensor,
    voxel_size: Sequence[float] | Tensor,
    b0_direction: Sequence[float] | Tensor = (0.0, 0.0, 1.0),
    mask: Tensor | None = None,
    magnitude: Tensor | None = None,
    *,
    regularisation: float = 3e-4,
    iterations: int = 15,
    tolerance: float = 0.0,
    rho: float = 0.03,
    kernel: str = "exact",
    padding: float = 1.25,
    report: Report | None = None,
) -> Tensor:
    """Total variation: minimises ``|D chi - field|^2 / 2 + regularisation |grad chi|_1`` by ADMM.

    The gradient is anisotropic (sum over the axes). It starts from the L2 gradient inversion with ``rho`` as weight.
    Volumes of a batch are inverted one after the other, so each has the result that it has alone.

    Args:
        field: local field ``[..., X, Y, Z]`` [ppm], float32 or float64.
        voxel_size: (dx, dy, dz) [mm].
        b0_direction: unit vector along the axes of the array.
        mask: bool ``[..., X, Y, Z]``; None for the whole volume.
        magnitude: not used.
        regularisation: weight of the total variation [ppm mm].
        iterations: at most.
        tolerance: stops when the relative change of an iteration falls below it; 0 never stops.
        rho: penalty of the split [mm^2]; changes the speed of convergence, not the minimum.
        kernel: ``"exact"`` or ``"kspace"``.
        padding: grid of the inversion over that of the field, at least 1.
        report: called after each iteration of each volume.

    Returns:
        Susceptibility ``[..., X, Y, Z]`` [ppm], mean 0 over the mask, 0 outside.

    Raises:
        ValueError: if an option is out of range, and as all inversions for bad input (see ``prepare``).

    Source: Bilgic et al., Magn Reson Med 72:1444 (2014), fast L1 inversion with the closed-form k-space step.
    """
    check_number(regularisation, "regularisation", positive=False)
    check_number(rho, "rho")
    check_iterations(iterations, tolerance)
    problem = prepare(field, voxel_size, b0_direction, mask, magnitude, kernel=kernel, padding=padding)
    with torch.no_grad():
        volumes = [
            _solve(problem, volume, regularisation, rho, iterations, tolerance, report)
            for volume in problem.field.reshape(-1, *field.shape[-3:])
        ]
    return problem.finish(torch.stack(volumes).reshape(field.shape))
