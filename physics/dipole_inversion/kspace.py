"""Inversions in closed form: one filter in k-space."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from physics.dipole_inversion.common import Problem, check_number, gradient_energy, prepare

__all__ = ["l2_gradient", "tikhonov", "tkd"]


def _filtered(problem: Problem, inverse: Tensor) -> Tensor:
    inverse[0, 0, 0] = 0  # a constant: the mean is subtracted in any case
    spectrum = problem.transform(problem.field)
    spectrum *= inverse
    return problem.finish(problem.crop(problem.padded(spectrum)))


def _truncated_slope(threshold: float) -> float:
    """Mean of min(1, |D| / threshold) over all directions of k: what truncation leaves of the susceptibility.

    It is the integral over u = cos(k, B0) from 0 to 1, with D = 1/3 - u^2. A mean over the grid would count the corners
    of k-space, where an object has little and the kernel along the diagonals of a cube is zero, and correct too much.
    """

    def integral(u: float) -> float:
        return (u - u**3) / 3

    lower, zero, upper = (math.sqrt(min(1.0, max(0.0, 1 / 3 + shift))) for shift in (-threshold, 0.0, threshold))
    return 1 - (upper - lower) + (2 * integral(zero) - integral(lower) - integral(upper)) / threshold


def tkd(
    field: Tensor,
    voxel_size: Sequence[float] | Tensor,
    b0_direction: Sequence[float] | Tensor = (0.0, 0.0, 1.0),
    mask: Tensor | None = None,
    magnitude: Tensor | None = None,
    *,
    threshold: float = 0.2,
    slope_correction: bool = True,
    kernel: str = "exact",
    padding: float = 1.25,
) -> Tensor:
    r"""Thresholded k-space division: divides by the dipole kernel, where its modulus is small by the threshold.

    .. math:: \chi(k) = \frac{1}{c} \, \frac{\operatorname{sgn} D(k)}{\max(|D(k)|, \tau)} \, b(k), \qquad
        c = \int_0^1 \min\left(1, \frac{|1/3 - u^2|}{\tau}\right) du

    with c = 1 where the slope is not corrected. The truncation makes all values too small (by .9129, .8683, .8224,
    .7742 at thresholds of .1, .15, .2, .25). The correction divides by this mean over the directions in k-space. A mask
    takes more: the field beyond it is lost.

    Args:
        field: local field ``[..., X, Y, Z]`` [ppm], float32 or float64.
        voxel_size: (dx, dy, dz) [mm].
        b0_direction: unit vector along the axes of the array.
        mask: bool ``[..., X, Y, Z]``; None for the whole volume.
        magnitude: not used.
        threshold: smallest modulus of the kernel, between 0 and 2/3.
        slope_correction: whether to undo the mean loss of susceptibility.
        kernel: ``"exact"`` or ``"kspace"``.
        padding: grid of the inversion over that of the field, at least 1.

    Returns:
        Susceptibility ``[..., X, Y, Z]`` [ppm], mean 0 over the mask, 0 outside.

    Raises:
        ValueError: for a threshold out of range, and as all inversions for bad input (see ``prepare``).

    Source: Shmueli et al., Magn Reson Med 62:1510 (2009); Wharton et al., Magn Reson Med 63:1292 (2010); correction:
    Schweser et al., Magn Reson Med 69:1582 (2013).
    """
    if not 0 < threshold < 2 / 3:
        raise ValueError(f"threshold must lie between 0 and 2/3, got {threshold}")
    problem = prepare(field, voxel_size, b0_direction, mask, magnitude, kernel=kernel, padding=padding)
    inverse = problem.kernel.abs().clamp_(min=threshold)
    if slope_correction:
        inverse.mul_(_truncated_slope(threshold))
    inverse.reciprocal_().copysign_(problem.kernel)
    return _filtered(problem, inverse)


def tikhonov(
    field: Tensor,
    voxel_size: Sequence[float] | Tensor,
    b0_direction: Sequence[float] | Tensor = (0.0, 0.0, 1.0),
    mask: Tensor | None = None,
    magnitude: Tensor | None = None,
    *,
    regularisation: float = 0.01,
    kernel: str = "exact",
    padding: float = 1.25,
) -> Tensor:
    r"""Tikhonov inversion.

    .. math:: \min_\chi \lVert d * \chi - b \rVert^2 + \lambda \lVert \chi \rVert^2
        \quad\Longrightarrow\quad \chi(k) = \frac{D(k)}{D(k)^2 + \lambda} \, b(k)

    with field b and susceptibility in ppm.

    Args:
        field: local field ``[..., X, Y, Z]`` [ppm], float32 or float64.
        voxel_size: (dx, dy, dz) [mm].
        b0_direction: unit vector along the axes of the array.
        mask: bool ``[..., X, Y, Z]``; None for the whole volume.
        magnitude: not used.
        regularisation: weight, without unit. Best is .01 at a noise of .002 ppm, .02 at .003, .05 at .005.
        kernel: ``"exact"`` or ``"kspace"``.
        padding: grid of the inversion over that of the field, at least 1.

    Returns:
        Susceptibility ``[..., X, Y, Z]`` [ppm], mean 0 over the mask, 0 outside.

    Raises:
        ValueError: if regularisation is not positive, and as all inversions for bad input (see ``prepare``).

    Source: Kressler et al., IEEE Trans Med Imaging 29:273 (2010), the l2 norm of the map.
    """
    check_number(regularisation, "regularisation")
    problem = prepare(field, voxel_size, b0_direction, mask, magnitude, kernel=kernel, padding=padding)
    return _filtered(problem, problem.kernel / problem.kernel.square().add_(regularisation))


def l2_gradient(
    field: Tensor,
    voxel_size: Sequence[float] | Tensor,
    b0_direction: Sequence[float] | Tensor = (0.0, 0.0, 1.0),
    mask: Tensor | None = None,
    magnitude: Tensor | None = None,
    *,
    regularisation: float = 0.03,
    kernel: str = "exact",
    padding: float = 1.25,
) -> Tensor:
    r"""Inversion with the l2 norm of the gradient.

    .. math:: \min_\chi \lVert d * \chi - b \rVert^2 + \lambda \lVert \nabla \chi \rVert^2
        \quad\Longrightarrow\quad \chi(k) = \frac{D(k)}{D(k)^2 + \lambda E(k)^2} \, b(k), \qquad
        E(k)^2 = \sum_a \left(\frac{2}{d_a} \sin \frac{\pi k_a}{n_a}\right)^2

    with field b and susceptibility in ppm, voxel size :math:`d_a` [mm] and :math:`k_a` = 0 ... :math:`n_a - 1`.

    Args:
        field: local field ``[..., X, Y, Z]`` [ppm], float32 or float64.
        voxel_size: (dx, dy, dz) [mm].
        b0_direction: unit vector along the axes of the array.
        mask: bool ``[..., X, Y, Z]``; None for the whole volume.
        magnitude: not used.
        regularisation: weight [mm^2]. .03 to .06 is best at a noise of .002 to .005 ppm.
        kernel: ``"exact"`` or ``"kspace"``.
        padding: grid of the inversion over that of the field, at least 1.

    Returns:
        Susceptibility ``[..., X, Y, Z]`` [ppm], mean 0 over the mask, 0 outside.

    Raises:
        ValueError: if regularisation is not positive, and as all inversions for bad input (see ``prepare``).

    Source: Bilgic et al., J Magn Reson Imaging 40:181 (2014), closed form of the l2 problem.
    """
    check_number(regularisation, "regularisation")
    problem = prepare(field, voxel_size, b0_direction, mask, magnitude, kernel=kernel, padding=padding)
    below = gradient_energy(problem.grid, problem.voxel_size, problem.kernel).mul_(regularisation)
    below += problem.kernel.square()
    below[0, 0, 0] = math.inf
    return _filtered(problem, torch.div(problem.kernel, below, out=below))
