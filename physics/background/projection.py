"""Projection onto dipole fields."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from physics.background.common import VOLUME, check_volumes, conjugate_gradients, crop
from physics.dipole import check_geometry, dipole_kernel, fast_shape
from physics.dipole_inversion.iteration import Report

__all__ = ["pdf"]


def pdf(
    field: Tensor,
    mask: Tensor,
    voxel_size: Sequence[float] = (1.0, 1.0, 1.0),
    b0_direction: Sequence[float] = (0.0, 0.0, 1.0),
    *,
    weight: Tensor | None = None,
    iterations: int = 30,
    tolerance: float = 1e-3,
    padding: float = 1.25,
    kernel: str = "exact",
    report: Report | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Local field as what sources outside of the mask cannot explain.

    .. math:: b_{local} = b - d * \chi_{out} - g, \qquad (\chi_{out}, g) = \arg\min \sum_{x \in mask} w^2
        \left(b - d * \chi_{out} - g\right)^2

    with :math:`\chi_{out}` zero inside the mask, and g an offset with linear gradients. The susceptibility outside of
    the mask whose field fits the measured one best inside it, weighted least squares by conjugate gradients; its field
    is subtracted (Liu et al., NMR Biomed. 2011;24:1129, equation 4). An offset and linear gradients (shim, far sources)
    are fitted beside it: sources on the grid reach them only after hundreds of iterations. Dipoles just inside and just
    outside of the border look alike, so fields of sources near the border lose strength.

    Args:
        field: total field ``[..., X, Y, Z]`` [ppm].
        mask: boolean ``[..., X, Y, Z]``.
        voxel_size: (dx, dy, dz) [mm].
        b0_direction: unit vector in voxel axes.
        weight: ``[..., X, Y, Z]``, not negative, such as the inverse of the field's standard error; any unit. None
            weighs all voxels of the mask alike.
        iterations: at most.
        tolerance: of the residual of the normal equations, relative to its first value.
        padding: size of the grid of sources by that of the field.
        kernel: ``"exact"`` or ``"kspace"``, see :func:`physics.dipole.dipole_kernel`.
        report: called after each iteration; its ``change`` is that residual.

    Returns:
        Local field ``[..., X, Y, Z]`` [ppm], and the mask of validity, which is the mask.

    Raises:
        ValueError: for bad volumes, weights, geometry or options.
    """
    field, mask = check_volumes(field, mask)
    sizes, direction = check_geometry(voxel_size, b0_direction)
    squared = mask.to(field.dtype)
    if weight is not None:
        if weight.shape[-3:] != field.shape[-3:] or weight.ndim > field.ndim:
            raise ValueError(f"weight must have the shape of the field {tuple(field.shape)}, got {tuple(weight.shape)}")
        inside = torch.where(mask, weight.to(field.dtype), 0.0)
        if not bool(torch.isfinite(inside).all()) or bool((inside < 0).any()) or not bool((inside > 0).any()):
            raise ValueError("weight must be finite, not negative and not all zero inside the mask, got other values")
        squared = inside.square()
        squared = squared / squared.mean(VOLUME, keepdim=True) * mask.to(field.dtype).mean(VOLUME, keepdim=True)
    grid = fast_shape(field.shape[-3:], padding)
    spectrum = dipole_kernel(grid, sizes, direction, kind=kernel, dtype=field.dtype, device=field.device)
    outside = torch.ones((*field.shape[:-3], *grid), dtype=torch.bool, device=field.device)
    crop(outside, field.shape).copy_(~mask)

    def field_of(sources: Tensor) -> Tensor:
        return crop(torch.fft.irfftn(torch.fft.rfftn(sources, dim=VOLUME) * spectrum, grid, VOLUME), field.shape)

    def sources_of(inside: Tensor) -> Tensor:
        # The kernel is real and even, so the operator is its own adjoint.
        return outside * torch.fft.irfftn(torch.fft.rfftn(inside, grid, VOLUME) * spectrum, grid, VOLUME)

    shim = _linear_fit(squared)

    def without_shim(volume: Tensor) -> Tensor:
        return volume - shim(volume)

    sources = conjugate_gradients(
        lambda candidate: sources_of(squared * without_shim(field_of(candidate))),
        sources_of(squared * without_shim(field)),
        iterations=iterations,
        tolerance=tolerance,
        method="pdf",
        report=report,
    )
    return torch.where(mask, without_shim(field - field_of(sources)), 0.0), mask


def _linear_fit(squared: Tensor) -> Callable[[Tensor], Tensor]:
    """Operator: the offset and linear gradients ``[..., X, Y, Z]`` that fit a volume best, by weights ``squared``."""
    axes = [torch.linspace(-1, 1, n, dtype=squared.dtype, device=squared.device) for n in squared.shape[-3:]]
    terms = torch.stack([torch.ones_like(squared[(0,) * (squared.ndim - 3)]), *torch.meshgrid(*axes, indexing="ij")])
    weighted = squared.unsqueeze(-4) * terms  # [..., 4, X, Y, Z]
    gram = torch.einsum("...iv,jv->...ij", weighted.flatten(-3).double(), terms.flatten(-3).double())
    # The pseudo-inverse: a mask of one slice has no gradient across it.
    inverse = torch.linalg.pinv(gram, hermitian=True)

    def fit(volume: Tensor) -> Tensor:
        moments = (weighted.flatten(-3) @ volume.flatten(-3).unsqueeze(-1)).double()
        amplitudes = (inverse @ moments).to(volume.dtype)
        return (amplitudes.mT @ terms.flatten(-3)).reshape(volume.shape)

    return fit
