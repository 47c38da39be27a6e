"""Volumes of slow and of failing perfusion."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

__all__ = [
    "CORE_FLOW",
    "TMAX_THRESHOLDS",
    "Lesion",
    "core_by_flow",
    "find_fluid",
    "find_lesion",
    "find_vessels",
    "flattened",
    "gaussian_mean",
    "large_parts",
    "normal_flow",
]

Array = npt.NDArray[Any]

TMAX_THRESHOLDS = (4.0, 6.0, 8.0, 10.0)  # s
NORMAL_TMAX = 6.0  # s, up to which tissue counts as normal
FLUID_BRIGHTNESS, FLUID_VOLUME = 1.1, 0.5  # relative to the median of the brain
VESSEL_VOLUME = 2.5  # CBV relative to that median: grey matter has less than twice
_SHADING_MM, _NEAR_MM = 50.0, 6.0  # widths of the means that show the coils' shading and a voxel's surroundings
CORE_FLOW = 0.3  # of the flow of normal tissue, below which tissue is taken for lost


@dataclass(frozen=True)
class Lesion:
    """Tissue with delayed perfusion.

    Attributes:
        above: threshold of Tmax [s] to boolean ``[X, Y, Z]``; each lies within that of the threshold before.
        removed_ml: threshold to the volume that was left out as parts that are too small [ml].
    """

    above: dict[float, Array]
    removed_ml: dict[float, float]


def gaussian_mean(values: Array, mask: Array, voxel_mm: Array, fwhm_mm: float) -> tuple[Array, Array]:
    """Gaussian mean over a mask, whose outside has no weight, and the share of the mask in it, both ``[X, Y, Z]``."""
    sigma = fwhm_mm / math.sqrt(8.0 * math.log(2.0)) / voxel_mm
    total = ndimage.gaussian_filter(np.where(mask, values, 0.0).astype(np.float32), sigma)
    weight = ndimage.gaussian_filter(mask.astype(np.float32), sigma)
    return total / np.maximum(weight, 1e-3), weight


def flattened(image: Array, mask: Array, voxel_mm: Array) -> Array:
    """An image over the shading of the coils, a Gaussian mean of 50 mm: 1 in the median of the mask, 0 outside."""
    if not mask.any():
        return np.zeros(image.shape, np.float32)
    # What is bright, as fluid is, must not make its own shading.
    shading, _ = gaussian_mean(np.minimum(image, 1.3 * np.median(image[mask])), mask, voxel_mm, _SHADING_MM)
    flat = np.where(mask, image / np.maximum(shading, 1e-6), 0.0)
    return np.asarray(flat / max(float(np.median(flat[mask])), 1e-6))


def find_fluid(flat: Array, cbv: Array, mask: Array, voxel_mm: Array) -> Array:
    """Cerebrospinal fluid: bright before the bolus, and hardly any blood around. Its Tmax is noise.

    Bright is more than 1.1 times the median; hardly any blood is a CBV, as a mean of 6 mm, below half of the median.
    An infarct core is not bright on these images.

    Args:
        flat: signal before the bolus, see :func:`flattened`, ``[X, Y, Z]``.
        cbv: ``[X, Y, Z]``, any unit.
        mask: boolean ``[X, Y, Z]``: the brain.
        voxel_mm: side lengths of a voxel ``[3]`` [mm].

    Returns:
        Boolean ``[X, Y, Z]``.
    """
    if not mask.any():
        return mask.copy()
    near, _ = gaussian_mean(cbv, mask, voxel_mm, _NEAR_MM)
    return np.asarray(mask & (flat > FLUID_BRIGHTNESS) & (near < FLUID_VOLUME * np.median(near[mask])))


def find_vessels(cbv: Array, tissue: Array) -> Array:
    """Large vessels, boolean ``[X, Y, Z]``: CBV above 2.5 times its median over the tissue. Veins are always late."""
    return np.asarray(tissue & (cbv > VESSEL_VOLUME * np.median(cbv[tissue]))) if tissue.any() else tissue.copy()


def large_parts(mask: Array, voxel_ml: float, smallest_ml: float) -> Array:
    """What is left of a mask without its connected parts (faces, edges or corners) below a volume.

    Args:
        mask: boolean ``[X, Y, Z]``.
        voxel_ml: volume of a voxel [ml].
        smallest_ml: parts of less are removed [ml].

    Returns:
        Boolean ``[X, Y, Z]``.
    """
    labels, _ = ndimage.label(mask, np.ones((3, 3, 3)))
    large = np.bincount(labels.ravel()) * voxel_ml >= smallest_ml * (1.0 - 1e-6)
    large[0] = False
    return np.asarray(large[labels])


def find_lesion(tmax: Array, mask: Array, voxel_ml: float, smallest_ml: float, main: float = 6.0) -> Lesion:
    """Tissue above each threshold of Tmax, without small isolated parts.

    Up to the main threshold, connected parts below the smallest volume are noise and are removed. Beyond it, everything
    counts that lies in what is left at the main threshold, so that V(> 10 s) / V(> 6 s) is a share of one lesion.

    Args:
        tmax: ``[X, Y, Z]`` [s].
        mask: boolean ``[X, Y, Z]``: tissue.
        voxel_ml: volume of a voxel [ml].
        smallest_ml: of a connected part [ml].
        main: threshold of the lesion [s].
    """
    above: dict[float, Array] = {}
    removed: dict[float, float] = {}
    for threshold in TMAX_THRESHOLDS:
        raw = mask & (tmax > threshold)
        above[threshold] = large_parts(raw, voxel_ml, smallest_ml) if threshold <= main else raw & above[main]
        removed[threshold] = float((raw & ~above[threshold]).sum()) * voxel_ml
    return Lesion(above, removed)


def normal_flow(cbf: Array, tmax: Array, mask: Array, side: Array, lesion: Array) -> tuple[float, bool]:
    """Flow of normal tissue: median CBF where Tmax is at most 6 s, on the side opposite to the lesion.

    Args:
        cbf: ``[X, Y, Z]`` [ml/100 g/min].
        tmax: ``[X, Y, Z]`` [s].
        mask: boolean ``[X, Y, Z]``: tissue.
        side: ``[X, Y, Z]``, positive on the patient's right.
        lesion: boolean ``[X, Y, Z]``.

    Returns:
        The flow [ml/100 g/min], NaN where there is no such tissue; whether it is of the opposite side alone. Without a
        lesion, or where the opposite side has less than a tenth of the normal tissue, both sides are taken.
    """
    normal = mask & (tmax <= NORMAL_TMAX)
    on_right = float(side[lesion].mean()) > 0.0 if lesion.any() else None
    opposite = normal if on_right is None else normal & ((side < 0.0) if on_right else (side > 0.0))
    one_sided = on_right is not None and opposite.sum() >= 0.1 * normal.sum() > 0
    values = cbf[opposite if one_sided else normal]
    return (float(np.median(values)) if len(values) else float("nan")), bool(one_sided)


def core_by_flow(cbf: Array, reference: float, within: Array, voxel_ml: float, smallest_ml: float) -> Array:
    """Tissue of a lesion with less than 30 % of the normal flow, without small isolated parts.

    Args:
        cbf: ``[X, Y, Z]`` [ml/100 g/min].
        reference: normal flow [ml/100 g/min].
        within: boolean ``[X, Y, Z]``: the lesion.
        voxel_ml: volume of a voxel [ml].
        smallest_ml: of a connected part [ml].
    """
    return large_parts(within & (cbf < CORE_FLOW * reference), voxel_ml, smallest_ml)
