"""COSMOS: susceptibility from several orientations of the object to B0."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from physics.dipole.kernel import Triple, check_geometry, dipole_kernel
from physics.dipole_inversion.boxes import inner
from physics.dipole_inversion.common import Problem, check_number, prepare, remove_mean
from physics.dipole_inversion.iteration import Iteration, Report

__all__ = ["cosmos"]

_SMALLEST_ANGLE = math.radians(1.0)


def _checked_directions(
    fields: Tensor, voxel_size: Sequence[float] | Tensor, b0_directions: Sequence[Sequence[float]] | Tensor
) -> list[Triple]:
    if fields.ndim < 4:
        raise ValueError(f"fields must have the axes [..., D, X, Y, Z], got shape {tuple(fields.shape)}")
    directions = [check_geometry(voxel_size, direction)[1] for direction in b0_directions]
    if len(directions) != fields.shape[-4]:
        raise ValueError(
            f"b0_directions must be one for each of the {fields.shape[-4]} fields, got {len(directions)} directions"
        )
    if len(directions) < 2:
        raise ValueError(f"b0_directions must be at least 2, got {len(directions)}")
    first = directions[0]
    cosines = [abs(sum(a * b for a, b in zip(first, other, strict=True))) for other in directions[1:]]
    if min(cosines) > math.cos(_SMALLEST_ANGLE):
        raise ValueError(f"b0_directions must differ by more than 1 degree, got {len(directions)} that are parallel")
    return directions


class _Orientations:
    """Fields of one volume under all orientations ``[D, X, Y, Z]``, weighted by the magnitude or the mask.

    Args:
        problem: with all fields of the batch; its kernel is not used.
        kernels: one for each orientation ``[PX, PY, PZ // 2 + 1]``.
        threshold: root mean square of the kernels below which a frequency counts as not observed.
    """

    def __init__(self, problem: Problem, kernels: list[Tensor], threshold: float) -> None:
        self.problem, self.kernels = problem, kernels
        energy = torch.stack(kernels).square().sum(0)
        observed = energy > len(kernels) * threshold**2
        observed[0, 0, 0] = False  # a constant: the mean is subtracted in any case
        self.inverse = torch.where(observed, 1 / energy, 0)

    def closed_form(self, fields: Tensor) -> Tensor:
        """Least squares for each frequency ``[X, Y, Z]``, of minimum norm where nothing is observed."""
        return self.problem.crop(self.problem.padded(self._back(fields).mul_(self.inverse)))

    def _back(self, fields: Tensor) -> Tensor:
        total = torch.zeros_like(self.kernels[0], dtype=self.kernels[0].dtype.to_complex())
        for field, kernel in zip(fields, self.kernels, strict=True):
            total += self.problem.transform(field).mul_(kernel)
        return total

    def adjoint(self, fields: Tensor) -> Tensor:
        """Fields ``[D, X, Y, Z]`` to susceptibility ``[X, Y, Z]``."""
        return self.problem.crop(self.problem.padded(self._back(fields)))

    def forward(self, chi: Tensor) -> Tensor:
        """Susceptibility ``[X, Y, Z]`` to fields ``[D, X, Y, Z]``."""
        spectrum = self.problem.transform(chi)
        return torch.stack([self.problem.crop(self.problem.padded(spectrum * kernel)) for kernel in self.kernels])

    def precondition(self, residual: Tensor) -> Tensor:
        """The closed form for all that is known everywhere, an approximate inverse of the normal equations."""
        spectrum = self.problem.transform(residual).mul_(self.inverse)
        return self.problem.crop(self.problem.padded(spectrum))


def _refine(
    system: _Orientations,
    chi: Tensor,
    fields: Tensor,
    precision: Tensor,
    inside: Tensor,
    limit: int,
    tolerance: float,
    report: Report | None,
) -> Tensor:
    """Weighted least squares inside the mask by preconditioned conjugate gradients, from ``chi``."""
    chi = chi * inside
    residual = system.adjoint((fields - system.forward(chi)) * precision) * inside
    scaled = system.precondition(residual) * inside
    direction, energy = scaled, inner(residual, scaled)
    for number in range(1, limit + 1):
        if energy <= 0:
            break
        product = system.adjoint(system.forward(direction) * precision) * inside
        length = energy / inner(direction, product)
        chi.add_(direction, alpha=length)
        residual.sub_(product, alpha=length)
        change = abs(length) * float(direction.norm() / chi.norm().clamp(min=torch.finfo(chi.dtype).tiny))
        if report is not None:
            report(Iteration("cosmos", number, limit, change))
        if change < tolerance:
            break
        scaled = system.precondition(residual) * inside
        previous, energy = energy, inner(residual, scaled)
        direction = scaled.add_(direction, alpha=energy / previous)
    return chi


def cosmos(
    fields: Tensor,
    voxel_size: Sequence[float] | Tensor,
    b0_directions: Sequence[Sequence[float]] | Tensor,
    mask: Tensor | None = None,
    magnitude: Tensor | None = None,
    *,
    iterations: int = 5,
    tolerance: float = 0.01,
    threshold: float = 0.1,
    kernel: str = "exact",
    padding: float = 1.25,
    report: Report | None = None,
) -> Tensor:
    r"""COSMOS: least squares over several orientations, which together leave no cone in k-space.

    .. math:: \chi(k) = \frac{\sum_j D_j(k) \, b_j(k)}{\sum_j D_j(k)^2} \;\;(\text{closed form}), \qquad
        \min_\chi \sum_j \lVert w (d_j * \chi - b_j) \rVert^2 \;\;(\text{inside the mask})

    over the orientations j. With ``iterations=0`` it is the closed form for each frequency. It takes the field as
    known everywhere and periodic: noise-free it is exact for fields made on its own grid, that is with ``padding=1`` in
    :func:`physics.dipole.field_from_susceptibility` and here. Known inside a mask only, the field is fitted inside it
    by sources inside it, with conjugate gradients from the closed form.

    Args:
        fields: local fields in the frame of the object ``[..., D, X, Y, Z]`` [ppm], float32 or float64.
        voxel_size: (dx, dy, dz) [mm].
        b0_directions: ``[D, 3]``, for each field the unit vector of B0 along the axes of the array.
        mask: bool ``[..., X, Y, Z]``; None for the whole volume.
        magnitude: ``[..., X, Y, Z]``, any unit: weights of the iterations, the inverse of the phase noise.
        iterations: conjugate gradient steps at most, 0 for the closed form.
        tolerance: stops when the relative change of a step falls below it; 0 never stops.
        threshold: root mean square of the kernels below which a frequency counts as not observed and is set to 0. The
            exact kernel vanishes in the corners of k-space, where there is little but noise; 1e-3 for data without.
        kernel: ``"exact"`` or ``"kspace"``.
        padding: grid of the inversion over that of the field, at least 1.
        report: called after each iteration of each volume.

    Returns:
        Susceptibility ``[..., X, Y, Z]`` [ppm], mean 0 over the mask, 0 outside.

    Raises:
        ValueError: for fewer than 2 directions, or all parallel within 1 degree, or another number of directions than
            fields, if an option is out of range, and as all inversions for bad input (see ``prepare``).

    Source: T. Liu et al., Magn Reson Med 61:196 (2009).
    """
    directions = _checked_directions(fields, voxel_size, b0_directions)
    check_number(threshold, "threshold")
    check_number(tolerance, "tolerance", positive=False)
    if iterations < 0:
        raise ValueError(f"iterations must not be negative, got {iterations}")

    def beside(values: Tensor | None) -> Tensor | None:
        return None if values is None else values.unsqueeze(-4)

    problem = prepare(
        fields, voxel_size, directions[0], beside(mask), beside(magnitude), kernel=kernel, padding=padding
    )
    kernels = [
        dipole_kernel(problem.grid, problem.voxel_size, b0, kernel, dtype=fields.dtype, device=fields.device)
        for b0 in directions
    ]
    shape = (*fields.shape[:-4], *fields.shape[-3:])
    inside = problem.mask.to(fields.dtype)
    precision = inside if problem.magnitude is None else problem.magnitude.square()
    with torch.no_grad():
        system = _Orientations(problem, kernels, threshold)
        volumes = []
        rows = [values.expand(*shape[:-3], 1, *shape[-3:]).reshape(-1, *shape[-3:]) for values in (precision, inside)]
        for volume, weight, support in zip(problem.field.reshape(-1, *fields.shape[-4:]), *rows, strict=True):
            chi = system.closed_form(volume)
            if iterations > 0:
                chi = _refine(system, chi, volume, weight, support, iterations, tolerance, report)
            volumes.append(chi)
        chi = torch.stack(volumes).reshape(shape)
        return remove_mean(chi, problem.mask if mask is None else mask)
