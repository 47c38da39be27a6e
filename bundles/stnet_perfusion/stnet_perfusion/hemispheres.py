"""The plane between the hemispheres, and a map relative to the other side.

The plane is flat and is found in the image before the bolus: it assumes a head that is its own mirror image. It does
not follow a midline that is shifted by swelling, and a ratio to the other side means little where both sides are ill.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage, optimize

from .lesions import gaussian_mean

__all__ = ["MidPlane", "find_mid_plane", "mirror_mean", "relative_to_mirror"]

Array = npt.NDArray[Any]

_BLUR_MM = 4.0  # of the image whose symmetry is sought
_POINTS = 15_000  # where it is compared
_LARGEST_SHIFT_MM, _LARGEST_TURN = 15.0, 20.0  # from the middle of the mask; degrees
_THIN_MM = 40.0  # a slab thinner than this does not tell how the head is tilted to a shoulder
_CLIPPED = 95.0  # percentile: vessels must not rule the mean of the other side
_LEAST_WEIGHT = 0.2  # share of brain in the neighbourhood of the mirrored voxel


@dataclass(frozen=True)
class MidPlane:
    """Points x (RAS) [mm] with ``normal . x = offset``.

    Attributes:
        normal: unit vector, to the patient's right.
        offset: [mm].
        symmetry: correlation of the image with its mirror image, 1 for perfect symmetry.
    """

    normal: tuple[float, float, float]
    offset: float
    symmetry: float

    def side(self, shape: tuple[int, ...], affine: Array) -> Array:
        """Distance of every voxel from the plane ``[X, Y, Z]`` [mm], positive on the patient's right."""
        normal = np.asarray(self.normal)
        steps = normal @ affine[:3, :3]
        axes = np.meshgrid(*(np.arange(n) for n in shape), indexing="ij", sparse=True)
        distance = normal @ affine[:3, 3] - self.offset + sum(s * a for s, a in zip(steps, axes, strict=True))
        return np.asarray(np.broadcast_to(distance, shape))

    def mirror(self, affine: Array) -> Array:
        """Voxel indices to the indices of their mirror images ``[4, 4]``."""
        normal = np.asarray(self.normal)
        world = np.eye(4)
        world[:3, :3] -= 2.0 * np.outer(normal, normal)
        world[:3, 3] = 2.0 * self.offset * normal
        return np.asarray(np.linalg.inv(affine) @ world @ affine)


def find_mid_plane(image: Array, mask: Array, affine: Array) -> MidPlane:
    """Find the plane about which an image of the head is most symmetric.

    Args:
        image: ``[X, Y, Z]``, such as the signal before the bolus.
        mask: boolean, same shape: the brain.
        affine: ``[4, 4]``, voxel indices to millimetres (RAS).

    Returns:
        The plane; through the middle of the mask and along the axes of the patient where symmetry says nothing.
    """
    size = np.linalg.norm(affine[:3, :3], axis=0)
    blurred = ndimage.gaussian_filter(np.where(mask, image, 0.0).astype(np.float32), _BLUR_MM / size)
    inside = np.argwhere(mask)
    inside = inside[:: max(1, len(inside) // _POINTS)]
    values = blurred[tuple(inside.T)]
    homogeneous = np.c_[inside, np.ones(len(inside))].T
    world = affine[:3] @ homogeneous
    centre = world.mean(1)
    tilted = np.ptp(world[2]) >= _THIN_MM

    def plane(parameters: Array) -> tuple[Array, float]:
        shift, (yaw, roll) = parameters[0], np.radians((*parameters[1:], 0.0)[:2])
        normal = np.array([math.cos(yaw) * math.cos(roll), math.sin(yaw) * math.cos(roll), math.sin(roll)])
        return normal, float(normal @ centre + shift)

    def asymmetry(parameters: Array) -> float:
        normal, offset = plane(parameters)
        other = MidPlane(tuple(normal), offset, 0.0).mirror(affine)[:3] @ homogeneous
        mirrored = ndimage.map_coordinates(blurred, other, order=1, mode="nearest")
        spread = float(values.std() * mirrored.std())
        return 1.0 - float(np.mean((values - values.mean()) * (mirrored - mirrored.mean()))) / max(spread, 1e-12)

    bounds = [(-_LARGEST_SHIFT_MM, _LARGEST_SHIFT_MM)] + [(-_LARGEST_TURN, _LARGEST_TURN)] * (2 if tilted else 1)
    start = np.zeros(len(bounds))
    found = optimize.minimize(asymmetry, start, method="Powell", bounds=bounds, options={"xtol": 1e-3, "ftol": 1e-6})
    best = found.x if found.fun < asymmetry(start) else start
    normal, offset = plane(best)
    x, y, z = (float(component) for component in normal)
    return MidPlane((x, y, z), offset, 1.0 - asymmetry(best))


def mirror_mean(values: Array, mask: Array, plane: MidPlane, affine: Array, fwhm_mm: float) -> Array:
    """Mean of the other side around the mirror image of each voxel.

    Args:
        values: a map ``[X, Y, Z]``; its highest 5 % (vessels) count as the 95th percentile.
        mask: boolean, what belongs to the mean.
        plane: between the sides.
        affine: ``[4, 4]``, voxel indices to millimetres (RAS).
        fwhm_mm: width of the Gaussian mean; voxels outside the mask have no weight in it.

    Returns:
        ``[X, Y, Z]``; NaN where less than a fifth of the neighbourhood is in the mask.
    """
    top = np.percentile(values[mask], _CLIPPED) if mask.any() else 0.0
    mean, weight = gaussian_mean(np.minimum(values, top), mask, np.linalg.norm(affine[:3, :3], axis=0), fwhm_mm)
    transform = plane.mirror(affine)
    mean, weight = (
        ndimage.affine_transform(part, transform[:3, :3], transform[:3, 3], order=1, mode="nearest")
        for part in (mean, weight)
    )
    return np.where(weight > _LEAST_WEIGHT, mean, np.nan)


def relative_to_mirror(values: Array, mask: Array, plane: MidPlane, affine: Array, fwhm_mm: float) -> Array:
    """A map over the mean of the other side, see :func:`mirror_mean`; 0 outside the mask and where there is no mean."""
    other = mirror_mean(values, mask, plane, affine, fwhm_mm)
    known = mask & np.isfinite(other) & (other > 0.0)
    return np.where(known, values / np.where(known, other, 1.0), 0.0)
