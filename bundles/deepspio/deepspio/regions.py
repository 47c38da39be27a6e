"""Connected regions of particles in a plane: concentrations, area and iron of each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from physics.viewline import MILLIMOLAR

__all__ = ["Region", "centre_of", "find_regions"]

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

CENTRE = 0.5  # of the inner radius: voxels at least that far from the edge are the centre region
_EIGHT = np.ones((3, 3))  # neighbours by an edge or a corner are connected


@dataclass(frozen=True)
class Region:
    """A connected region of voxels with particles, or all of them together.

    Attributes:
        mean: concentration [ug/mm^3].
        centre_mean: mean of the centre region [ug/mm^3], see :func:`centre_of`.
        peak: largest concentration [ug/mm^3].
        area: [mm^2].
        iron: over the thickness across the plane, the sum of c dx dz [ug/mm].
        centre: of the iron, from the middle of the image along (x, z) [mm].
    """

    mean: float
    centre_mean: float
    peak: float
    area: float
    iron: float
    centre: tuple[float, float]

    @property
    def mean_millimolar(self) -> float:
        """Mean concentration of iron [mM]."""
        return self.mean * MILLIMOLAR

    @property
    def centre_mean_millimolar(self) -> float:
        """Mean concentration of iron in the centre region [mM]."""
        return self.centre_mean * MILLIMOLAR


def centre_of(labels: npt.NDArray[np.integer] | Mask, pixel_size: Sequence[float]) -> Mask:
    """The centre of each region: voxels at least half of the region's inner radius away from its edge.

    The inner radius is that of the largest disc within the region. The edge of an estimate is blurred: its mean over
    the whole region is too low, that over the centre is not.

    Args:
        labels: number of the region of each voxel ``[X, Z]``, 0 for none; or one region as a mask.
        pixel_size: (dx, dz) [mm].

    Returns:
        Boolean ``[X, Z]``.

    Source: table 1 of the paper compares the "mean of the center region".
    """
    labels = np.asarray(labels).astype(np.int64)
    count = int(labels.max(initial=0))
    inside = np.pad(labels > 0, 1)
    distance = ndimage.distance_transform_edt(inside, sampling=tuple(float(side) for side in pixel_size))[1:-1, 1:-1]
    radius = np.concatenate([[0.0], np.atleast_1d(ndimage.maximum(distance, labels, np.arange(1, count + 1)))])
    return np.asarray((labels > 0) & (distance >= CENTRE * radius[labels]))


def find_regions(
    concentration: Array, mask: Mask, pixel_size: Sequence[float], smallest_mm2: float = 0.0
) -> tuple[npt.NDArray[np.int64], list[Region], Region | None]:
    """Measure the connected regions of a mask, by falling iron.

    Args:
        concentration: ``[X, Z]`` [ug/mm^3].
        mask: voxels that hold particles ``[X, Z]``.
        pixel_size: (dx, dz) [mm].
        smallest_mm2: smaller regions are no regions of their own [mm^2]; they count in the whole.

    Returns:
        Number of the region of each voxel ``[X, Z]`` (1 for the first, 0 for none), the regions, and all voxels of the
        mask together, or None where there are none.
    """
    dx, dz = (float(side) for side in pixel_size)
    found, count = ndimage.label(mask, _EIGHT)
    numbers = np.arange(1, count + 1)
    area = np.atleast_1d(ndimage.sum(mask, found, numbers)) * dx * dz
    iron = np.atleast_1d(ndimage.sum(concentration, found, numbers)) * dx * dz
    order = np.flatnonzero(area >= smallest_mm2 - 1e-9)
    order = order[np.argsort(-iron[order], kind="stable")]
    renumbered = np.zeros(count + 1, np.int64)
    renumbered[1 + order] = np.arange(1, len(order) + 1)
    labels = renumbered[found]
    regions = _measured(concentration, labels, len(order), dx, dz)
    # The centre of the whole is the centres of its parts.
    whole = _measured(concentration, mask.astype(np.int64), 1, dx, dz, centre_of(found, (dx, dz))) if count else [None]
    return labels, [region for region in regions if region is not None], whole[0]


def _measured(
    concentration: Array, labels: npt.NDArray[np.int64], count: int, dx: float, dz: float, centre: Mask | None = None
) -> list[Region | None]:
    if not count:
        return []
    numbers = np.arange(1, count + 1)
    voxels = ndimage.sum(labels > 0, labels, numbers)
    sums = ndimage.sum(concentration, labels, numbers)
    inner = labels * (centre_of(labels, (dx, dz)) if centre is None else centre)
    inner_means = ndimage.mean(concentration, inner, numbers)
    peaks = ndimage.maximum(concentration, labels, numbers)
    places = [np.arange(n) * step - 0.5 * (n - 1) * step for n, step in zip(labels.shape, (dx, dz), strict=True)]
    x = ndimage.sum(concentration * places[0][:, None], labels, numbers) / sums
    z = ndimage.sum(concentration * places[1][None, :], labels, numbers) / sums
    return [
        Region(
            mean=float(sums[i] / voxels[i]),
            centre_mean=float(inner_means[i]),
            peak=float(peaks[i]),
            area=float(voxels[i]) * dx * dz,
            iron=float(sums[i]) * dx * dz,
            centre=(float(x[i]), float(z[i])),
        )
        for i in range(count)
        if math.isfinite(float(sums[i]))
    ]
