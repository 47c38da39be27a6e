"""What all dipole inversions share: checks of the input, the padded grid, mask and reference of the result."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from physics.dipole.kernel import Triple, check_geometry, dipole_kernel, fast_shape

__all__ = ["Problem", "check_iterations", "check_number", "gradient_energy", "prepare", "remove_mean"]


def check_number(value: float, name: str, *, positive: bool = True) -> float:
    """The value as a float. Raises ValueError unless it is finite and positive (or not negative)."""
    if not (math.isfinite(value) and (value > 0 or (value == 0 and not positive))):
        raise ValueError(f"{name} must be finite and {'positive' if positive else 'not negative'}, got {value}")
    return float(value)


def check_iterations(iterations: int, tolerance: float) -> None:
    """Raises ValueError unless there is at least one iteration and the tolerance is not negative."""
    if iterations < 1:
        raise ValueError(f"iterations must be at least 1, got {iterations}")
    check_number(tolerance, "tolerance", positive=False)


def _check_beside(volume: Tensor, name: str, field: Tensor) -> None:
    """Same size as the field; leading axes may be missing or of length 1."""
    leading = volume.shape[:-3]
    if (
        volume.ndim > field.ndim
        or volume.shape[-3:] != field.shape[-3:]
        or any(n not in (1, m) for n, m in zip(reversed(leading), reversed(field.shape[:-3]), strict=False))
    ):
        raise ValueError(f"{name} must have the shape of the field {tuple(field.shape)}, got {tuple(volume.shape)}")
    if volume.device != field.device:
        raise ValueError(f"{name} must be on the device of the field {field.device}, got {volume.device}")


def _check_mask(mask: Tensor, field: Tensor) -> None:
    if mask.dtype != torch.bool:
        raise ValueError(f"mask must be bool, got {mask.dtype}")
    _check_beside(mask, "mask", field)
    if not bool(mask.flatten(-3).any(-1).all()):
        raise ValueError("mask must not be empty, got a volume without a voxel in it")


def remove_mean(chi: Tensor, mask: Tensor) -> Tensor:
    """Susceptibility with the mean over the mask subtracted from each volume, 0 outside the mask."""
    inside = chi * mask
    mean = inside.sum((-3, -2, -1), keepdim=True) / mask.sum((-3, -2, -1), keepdim=True)
    return inside.sub_(mean).mul_(mask)


@dataclass(frozen=True)
class Problem:
    """A dipole inversion after the checks.

    Attributes:
        field: ``[..., X, Y, Z]`` [ppm], 0 outside the mask.
        mask: bool ``[..., X, Y, Z]``, leading axes broadcastable.
        magnitude: ``[..., X, Y, Z]`` with mean 1 over the mask and 0 outside, leading axes broadcastable; or None.
        kernel: dipole kernel of the padded grid ``[PX, PY, PZ // 2 + 1]``.
        grid: (PX, PY, PZ). The volume lies in its first corner.
        voxel_size: [mm].
        b0_direction: of unit length.
    """

    field: Tensor
    mask: Tensor
    magnitude: Tensor | None
    kernel: Tensor
    grid: tuple[int, int, int]
    voxel_size: Triple
    b0_direction: Triple

    def transform(self, volume: Tensor) -> Tensor:
        """Half spectrum ``[..., PX, PY, PZ // 2 + 1]`` of a volume ``[..., X, Y, Z]`` (padded) or of a padded one."""
        return torch.fft.rfftn(volume, s=self.grid, dim=(-3, -2, -1))

    def padded(self, spectrum: Tensor) -> Tensor:
        """Volume ``[..., PX, PY, PZ]`` of a half spectrum."""
        return torch.fft.irfftn(spectrum, s=self.grid, dim=(-3, -2, -1))

    def crop(self, padded: Tensor) -> Tensor:
        """Volume ``[..., X, Y, Z]`` out of a padded one, as a view."""
        x, y, z = self.field.shape[-3:]
        return padded[..., :x, :y, :z]

    def convolve(self, volume: Tensor) -> Tensor:
        """Field ``[..., X, Y, Z]`` [ppm] of a susceptibility ``[..., X, Y, Z]`` [ppm]; its own adjoint."""
        return self.crop(self.padded(self.transform(volume) * self.kernel))

    def finish(self, chi: Tensor) -> Tensor:
        """Result ``[..., X, Y, Z]``: mean 0 over the mask, 0 outside."""
        return remove_mean(chi, self.mask)


def prepare(
    field: Tensor,
    voxel_size: Sequence[float] | Tensor,
    b0_direction: Sequence[float] | Tensor,
    mask: Tensor | None,
    magnitude: Tensor | None,
    *,
    kernel: str,
    padding: float,
) -> Problem:
    """Checks the arguments that all inversions share, and brings them into one form.

    Args:
        field: local field ``[..., X, Y, Z]`` [ppm], float32 or float64. Outside the mask it may be anything.
        voxel_size: (dx, dy, dz) [mm].
        b0_direction: unit vector along the axes of the array.
        mask: bool ``[..., X, Y, Z]``, leading axes broadcastable; None for the whole volume.
        magnitude: ``[..., X, Y, Z]``, leading axes broadcastable, not negative; any unit.
        kernel: ``"exact"`` or ``"kspace"``.
        padding: grid of the inversion over that of the field, at least 1.

    Raises:
        ValueError: for fewer than 3 axes, another dtype, a field or magnitude not finite inside the mask, a negative or
            zero magnitude, a mask that is empty, not bool or of other shape, a bad geometry, kernel or padding.
    """
    if field.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"field must be float32 or float64, got {field.dtype}")
    sizes, b0 = check_geometry(voxel_size, b0_direction)
    grid = fast_shape(field.shape, padding)
    if mask is None:
        mask = torch.ones(field.shape[-3:], dtype=torch.bool, device=field.device)
    _check_mask(mask, field)
    field = torch.where(mask, field, 0)
    if not bool(torch.isfinite(field).all()):
        raise ValueError("field must be finite inside the mask, got NaN or infinity")
    if magnitude is not None:
        _check_beside(magnitude, "magnitude", field)
        magnitude = torch.where(mask, magnitude.to(field.dtype), 0)
        mean = magnitude.sum((-3, -2, -1), keepdim=True) / mask.sum((-3, -2, -1), keepdim=True)
        if not bool(torch.isfinite(magnitude).all()) or bool((magnitude < 0).any()) or bool((mean <= 0).any()):
            raise ValueError("magnitude must be finite and not negative inside the mask, and not 0 everywhere")
        magnitude = magnitude / mean
    spectrum = dipole_kernel(grid, sizes, b0, kernel, dtype=field.dtype, device=field.device)
    return Problem(field, mask, magnitude, spectrum, grid, sizes, b0)


def gradient_energy(grid: Sequence[int], voxel_size: Triple, like: Tensor) -> Tensor:
    """``|E|^2`` of the periodic forward difference [1/mm^2], half spectrum ``[PX, PY, PZ // 2 + 1]``."""
    total = torch.zeros((), dtype=like.dtype, device=like.device)
    for axis, (n, d) in enumerate(zip(grid, voxel_size, strict=True)):
        index = torch.arange(n // 2 + 1 if axis == 2 else n, dtype=torch.float64)
        energy = (2 / d * torch.sin(math.pi * index / n)).square()
        view = [1, 1, 1]
        view[axis] = -1
        total = total + energy.reshape(view).to(like)
    return total
