"""Field of saturated iron particles in the imaging plane.

Concentrations are in ug/mm^3 of iron (kg/m^3), fields in uT, lengths in mm. The plane has the axes ``[..., X, Z]`` with
B0 along z; y is across it, and the plane is y = 0. Saturated particles make a field that does not depend on B0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from physics.dipole import check_geometry, check_kernel_kind, dipole_kernel, fast_shape

__all__ = ["MILLIMOLAR", "central_plane_field", "field_per_concentration", "fold_planes", "folded_plane_field"]

MILLIMOLAR = 1e3 / 55.845  # mM of iron in 1 ug/mm^3: over the molar mass [g/mol]
_DEPTH_STEP = 8  # planes
_VACUUM_PERMEABILITY = 1.25663706212  # [uT m / A]


def field_per_concentration(mass_magnetisation: float = 93.0) -> float:
    r"""Field scale of the particles, :math:`\mu_0 M_s` [uT per ug/mm^3], 116.9 for ferucarbotran.

    Args:
        mass_magnetisation: saturation magnetisation of the particles over the mass of their iron [A m^2/kg].

    Raises:
        ValueError: unless it is positive and finite.
    """
    if not (math.isfinite(mass_magnetisation) and mass_magnetisation > 0):
        raise ValueError(f"mass_magnetisation must be positive and finite [A m^2/kg], got {mass_magnetisation}")
    return _VACUUM_PERMEABILITY * mass_magnetisation


def fold_planes(concentration: Tensor) -> Tensor:
    r"""Add up the planes at y and -y of a volume: the field at y = 0 cannot tell them apart.

    .. math:: \tilde c_0 = c(y = 0), \qquad \tilde c_h = c(y = h) + c(y = -h)

    Args:
        concentration: ``[..., X, Y, Z]``; the plane y = 0 is number ``Y // 2``.

    Returns:
        Planes ``[..., Y // 2 + 1, X, Z]`` at the distances 0, 1, ... from the plane y = 0.

    Raises:
        ValueError: for fewer than 3 axes.
    """
    if concentration.ndim < 3:
        raise ValueError(f"concentration must be [..., X, Y, Z], got shape {tuple(concentration.shape)}")
    middle = concentration.shape[-2] // 2
    planes = concentration.movedim(-2, -3)
    below = planes[..., : middle + 1, :, :].flip(-3)
    above = planes[..., middle + 1 :, :, :]
    folded = below.clone()
    folded[..., 1 : above.shape[-3] + 1, :, :] += above
    return folded


@lru_cache(maxsize=8)
def _plane_kernel(
    shape: tuple[int, int, int],
    sizes: tuple[float, float, float],
    kind: str,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    """Kernel ``[Y // 2 + 1, X, Z // 2 + 1]``: spectrum along x and z of the field of a plane at each distance y."""
    with torch.inference_mode(False), torch.no_grad():
        spectrum = dipole_kernel(shape, sizes, kind=kind, dtype=torch.float64)
        # Real and even along y, as B0 has no component there.
        along = torch.fft.ifft(spectrum, dim=1).real[:, : shape[1] // 2 + 1]
        return along.movedim(1, 0).to(dtype).contiguous().to(device)


def folded_plane_field(
    folded: Tensor,
    voxel_size: Sequence[float],
    mass_magnetisation: float = 93.0,
    kind: str = "exact",
    padding: float = 2.0,
    depth: int | None = None,
) -> Tensor:
    r"""Field in the plane y = 0 by two-dimensional transforms of the planes that hold particles.

    .. math:: B(x, z) = \mu_0 M_s \, \mathcal{F}_{xz}^{-1} \left\{ \sum_{h=0}^{H} D_h(k_x, k_z) \,
        \mathcal{F}_{xz} \tilde c_h \right\}, \qquad D_h = \mathcal{F}_y^{-1} \{D\}(y = h)

    with D of :func:`physics.dipole.dipole_kernel` and the planes of :func:`fold_planes`. The three-dimensional
    convolution, evaluated in one plane: along y it is a sum with the kernel of each distance, without a transform and
    without padding. Differentiable.

    Args:
        folded: concentrations ``[..., H + 1, X, Z]`` [ug/mm^3] at the distances 0 ... H from the plane, those of both
            sides added up, as :func:`fold_planes` gives them; float32 or float64.
        voxel_size: (dx, dy, dz) [mm].
        mass_magnetisation: [A m^2/kg].
        kind: ``"exact"`` or ``"kspace"``, see :func:`physics.dipole.dipole_kernel`.
        padding: the grid of the convolution over that of the plane, at least 1 (periodic). With the exact kernel the
            field is that in free space for all distances up to ``padding - 1/2`` times the side.
        depth: voxels along y of the volume that was folded, for the periodic ``"kspace"``; None for 2 H + 1.

    Returns:
        Field ``[..., X, Z]`` [uT], Lorentz-corrected, positive where it adds to B0.

    Raises:
        ValueError: for fewer than 3 axes, another dtype, a bad geometry, kind or padding.

    Source: Marques and Bowtell, Concepts Magn Reson B 25:65 (2005); equation 1 of the paper.
    """
    if folded.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"folded must be float32 or float64, got {folded.dtype}")
    if folded.ndim < 3:
        raise ValueError(f"folded must be [..., H + 1, X, Z], got shape {tuple(folded.shape)}")
    sizes, _ = check_geometry(voxel_size)
    check_kernel_kind(kind)
    planes, x, z = folded.shape[-3:]
    grid = fast_shape((x, depth or 2 * planes - 1, z), padding)
    if kind == "exact":
        # Offsets up to H need a period of 2 H voxels; in steps, so that batches of any depth share a few kernels.
        grid = (grid[0], 2 * _DEPTH_STEP * math.ceil(planes / _DEPTH_STEP), grid[2])
    kernel = _plane_kernel(grid, sizes, kind, folded.dtype, folded.device)[:planes]
    spectrum = torch.fft.rfft2(folded, s=(grid[0], grid[2]))
    # Without a gradient the product needs no memory of its own, whose first touch costs more than the product.
    spectrum = spectrum * kernel if spectrum.requires_grad else spectrum.mul_(kernel)
    field = torch.fft.irfft2(spectrum.sum(-3), s=(grid[0], grid[2]))
    return field_per_concentration(mass_magnetisation) * field[..., :x, :z]


def central_plane_field(
    concentration: Tensor,
    voxel_size: Sequence[float],
    mass_magnetisation: float = 93.0,
    kind: str = "exact",
    padding: float = 2.0,
) -> Tensor:
    r"""Field in the central plane of a volume; equal to that plane of the three-dimensional convolution.

    .. math:: B(x, z) = \mu_0 M_s \, (d * c)(x, 0, z)

    with the dipole field d of :func:`physics.dipole.dipole_kernel`.

    Args:
        concentration: ``[..., X, Y, Z]`` [ug/mm^3], float32 or float64; the plane y = 0 is number ``Y // 2``.
        voxel_size: (dx, dy, dz) [mm].
        mass_magnetisation: [A m^2/kg].
        kind: ``"exact"`` or ``"kspace"``, see :func:`physics.dipole.dipole_kernel`.
        padding: the grid of the convolution over that of the volume, at least 1.

    Returns:
        Field ``[..., X, Z]`` [uT].

    Raises:
        ValueError: as :func:`folded_plane_field`.

    Source: equation 1 of the paper.
    """
    return folded_plane_field(
        fold_planes(concentration), voxel_size, mass_magnetisation, kind, padding, depth=concentration.shape[-2]
    )
