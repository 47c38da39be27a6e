"""V-SHARP: subtract spherical means, deconvolve."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from physics.background.common import VOLUME, check_volumes, crop, somewhere
from physics.dipole import check_geometry
from physics.dipole.kernel import fast_length

__all__ = ["smv_kernel", "vsharp"]


def smv_kernel(
    radius: float,
    voxel_size: Sequence[float],
    *,
    dtype: torch.dtype = torch.float64,
    device: torch.device | None = None,
) -> Tensor:
    r"""Weights that give the mean of a harmonic field over a sphere, hence its value at the centre.

    .. math:: \rho(x) = c_0 + \sum_a c_a x_a^2 \;\text{ for } |x| \le R, \qquad
        \sum_x \rho = 1, \quad \sum_x \rho \, x_a^2 = R^2 / 5

    The voxels whose centres lie in the sphere weigh almost equally. Equal weights would have different second moments
    along x, y and z where voxels are not cubic, and a harmonic field such as x^2 - z^2 would not cancel; so the
    weights have the second moments of the sphere. Source: the mean-value theorem, as Schweser et al., NeuroImage
    2011;54:2789 use it.

    Args:
        radius: of the sphere [mm], at least the largest voxel size.
        voxel_size: (dx, dy, dz) [mm].
        dtype: of the result.
        device: of the result.

    Returns:
        ``[KX, KY, KZ]``, odd sizes, the centre in the middle; zero outside the sphere.

    Raises:
        ValueError: if the sphere holds no neighbour along an axis.
    """
    sizes, _ = check_geometry(voxel_size)
    if not (math.isfinite(radius) and radius >= max(sizes)):
        raise ValueError(f"radius must be at least the largest voxel size {max(sizes)} mm, got {radius}")
    reach = [int(radius / size + 1e-6) for size in sizes]
    axes = [size * torch.arange(-n, n + 1, dtype=torch.float64) for n, size in zip(reach, sizes, strict=True)]
    squares = [axis.square() / radius**2 for axis in axes]
    x2, y2, z2 = torch.meshgrid(*squares, indexing="ij")
    inside = x2 + y2 + z2 <= 1 + 1e-6
    terms = torch.stack([torch.ones_like(x2), x2, y2, z2])[:, inside]
    moments = torch.tensor([1.0, 0.2, 0.2, 0.2], dtype=torch.float64)
    kernel = torch.zeros_like(x2)
    kernel[inside] = torch.linalg.solve(terms @ terms.T, moments) @ terms
    return kernel.to(dtype=dtype, device=device)


def _on_grid(kernel: Tensor, grid: tuple[int, int, int]) -> Tensor:
    """Real half spectrum ``[GX, GY, GZ // 2 + 1]`` of a centred, even kernel on a periodic grid."""
    padded = torch.zeros(grid, dtype=kernel.dtype, device=kernel.device)
    padded[tuple(slice(n) for n in kernel.shape)] = kernel
    padded = padded.roll([-(n // 2) for n in kernel.shape], VOLUME)
    return torch.fft.rfftn(padded).real


def _radii(largest: float, smallest: float | None, step: float) -> list[float]:
    """Radii [mm] from the largest to the smallest."""
    if smallest is None:
        smallest, largest = step, max(largest, step)
    if not step <= smallest <= largest < math.inf:
        raise ValueError(
            f"smallest_radius must lie between the largest voxel size {step} mm and largest_radius {largest} mm, "
            f"got {smallest}"
        )
    count = math.ceil((largest - smallest) / step - 1e-6)
    return [largest - index * step for index in range(count)] + [smallest]


def vsharp(
    field: Tensor,
    mask: Tensor,
    voxel_size: Sequence[float] = (1.0, 1.0, 1.0),
    *,
    largest_radius: float = 8.0,
    smallest_radius: float | None = None,
    threshold: float = 0.05,
) -> tuple[Tensor, Tensor]:
    r"""Local field by sophisticated harmonic artefact reduction with variable kernels.

    .. math:: b_{local} = \mathcal{F}^{-1} \left\{ \frac{[\,|1 - \hat\rho_R| > \tau\,]}{1 - \hat\rho_R} \;
        \mathcal{F} \{ b - \rho_{r(x)} * b \} \right\}

    with :math:`\rho_r` of :func:`smv_kernel`, r(x) the radius of the largest sphere that fits around a voxel and R the
    largest of all. The background is harmonic inside the mask, so subtracting the mean over a sphere removes it. Each
    voxel takes the largest sphere that fits around it; what this does to the local field is undone by deconvolution
    with the largest kernel in use, truncated (Schweser et al., NeuroImage 2011;54:2789; Wu et al., Magn. Reson. Med.
    2012;67:137).

    Args:
        field: total field ``[..., X, Y, Z]`` [ppm].
        mask: boolean ``[..., X, Y, Z]``.
        voxel_size: (dx, dy, dz) [mm].
        largest_radius: of the spheres [mm]; they shrink in steps of the largest voxel size. Larger ones lose more of
            the local field near the border, where smaller ones took their place; smaller ones lose its slow part.
        smallest_radius: [mm]; None takes the largest voxel size.
        threshold: the deconvolution leaves out where the kernel's spectrum is smaller than this.

    Returns:
        Local field ``[..., X, Y, Z]`` [ppm], and the mask of validity, eroded by the smallest sphere.

    Raises:
        ValueError: for bad volumes, if the radii do not fit the voxels or each other, if no sphere fits in the mask.
    """
    field, mask = check_volumes(field, mask)
    sizes, _ = check_geometry(voxel_size)
    if not 0 < threshold < 1:
        raise ValueError(f"threshold must lie between 0 and 1, got {threshold}")
    radii = _radii(float(largest_radius), smallest_radius, max(sizes))
    # The spheres must not reach around the periodic grid.
    reach = [int(radii[0] / size + 1e-6) for size in sizes]
    x, y, z = (fast_length(max(n, k + 1) + k) for n, k in zip(field.shape[-3:], reach, strict=True))
    grid = (x, y, z)
    spectrum, cover = torch.fft.rfftn(field, grid, VOLUME), torch.fft.rfftn(mask.to(field.dtype), grid, VOLUME)
    high, valid = torch.zeros_like(field), torch.zeros_like(mask)
    first: Tensor | None = None
    for radius in radii:
        kernel = smv_kernel(radius, sizes, device=field.device)
        ball = _on_grid((kernel != 0).to(field.dtype), grid)
        counts = crop(torch.fft.irfftn(cover * ball, grid, VOLUME), field.shape)
        fits = (counts > float(ball[0, 0, 0]) - 0.5) & mask
        fresh = fits & ~valid
        if not bool(fresh.any()):
            continue
        response = (1.0 - _on_grid(kernel, grid)).to(field.dtype)
        first = response if first is None else first
        high = torch.where(fresh, crop(torch.fft.irfftn(spectrum * response, grid, VOLUME), field.shape), high)
        valid = valid | fits
    if first is None or not somewhere(valid):
        raise ValueError(f"mask must hold a sphere of {radii[-1]} mm (smallest_radius), got one that is too thin")
    keep = first.abs() > threshold
    inverse = torch.where(keep, 1.0 / torch.where(keep, first, 1.0), 0.0)
    local = crop(torch.fft.irfftn(torch.fft.rfftn(high, grid, VOLUME) * inverse, grid, VOLUME), field.shape)
    return torch.where(valid, local, 0.0), valid
