"""From a lesion mask to single lesions: connected components, confluent lesions split, and what is odd about each.

Components and splits run on numpy (scikit-image, scipy); the split loops over the few components that are large enough
to be confluent, each within its bounding box.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage
from skimage.measure import label
from skimage.morphology import local_maxima, reconstruction
from skimage.segmentation import watershed
from torch import Tensor

from qsmrim_net.patches import PATCH_SIZE, lesion_geometry, patch_corners
from shared_transforms.errors import QMRIError
from shared_transforms.io.lesion_maps import check_lesion_mask

__all__ = ["FLAGS", "Lesions", "find_lesions"]

FLAGS = {
    "too_small": "fewer voxels than radiomic features need",
    "oversize": "larger than the patch that the network sees: cut off",
    "split": "one of the parts of a confluent lesion",
    "in_parts": "a label whose voxels are not connected",
    "outside_brain": "half of the voxels or more lie outside of the brain",
}
FEWEST_VOXELS = 3
MOST_LESIONS = 2000  # a mask with more is a thresholded image
_EVERY_NEIGHBOUR = np.ones((3, 3, 3), dtype=bool)  # 26 neighbours
_Volume = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Lesions:
    """The lesions of one subject.

    Attributes:
        labels: [X, Y, Z] int32, 0 for the background and 1..L.
        flags: for each lesion names of :data:`FLAGS`.
        ids: for each lesion its number: that of the mask where it tells the lesions apart, else 1..L.
        notes: remarks a user must see.
    """

    labels: Tensor
    flags: list[tuple[str, ...]]
    ids: list[int]
    notes: list[str] = field(default_factory=list)


def find_lesions(
    mask: Tensor,
    voxel_size: Sequence[float] | Tensor,
    *,
    brain: Tensor | None = None,
    split: bool = True,
    neck: float = 0.6,
    radius_mm: float = 2.0,
    fewest_voxels: int = FEWEST_VOXELS,
    patch_size: Sequence[int] = PATCH_SIZE,
) -> Lesions:
    """The lesions of a mask, in a fixed order.

    A mask of one value is taken apart into components of voxels that share a face, an edge or a corner, and these are
    split where they are confluent: at a neck whose distance to the background is less than ``neck`` times that of the
    smaller of the two bodies (watershed of the distance in mm). They are ordered by their first voxel (X, then Y, then
    Z). A mask of several values is taken as it is, one value for each lesion, ordered by value; where most values are
    in several parts they name classes, not lesions, and the mask is taken for one of one value.

    Args:
        mask: [X, Y, Z], 0 for the background, whole numbers above it.
        voxel_size: along X, Y, Z [mm].
        brain: boolean [X, Y, Z], for the flag ``outside_brain``; None leaves it out.
        split: whether confluent lesions are split.
        neck: between 0 (nothing is split) and 1 (every indentation splits).
        radius_mm: a body has a sphere of this radius in it [mm]; smaller bumps are no lesions of their own.
        fewest_voxels: a lesion with fewer is ``too_small``.
        patch_size: a lesion that does not fit is ``oversize``.

    Raises:
        QMRIError: an empty mask, values that are no whole numbers or negative, more marked voxels than lesions have, or
            more than 2000 lesions.
        ValueError: a mask that is no volume, or options out of range.
    """
    if mask.ndim != 3 or (brain is not None and brain.shape != mask.shape):
        shapes = f"{tuple(mask.shape)}" + ("" if brain is None else f" and {tuple(brain.shape)}")
        raise ValueError(f"mask and brain: volumes [X, Y, Z] of one shape are needed, got {shapes}")
    size_mm = tuple(float(s) for s in voxel_size)
    if len(size_mm) != 3 or not min(size_mm) > 0:
        raise ValueError(f"voxel_size: three lengths above 0 mm are needed, got {size_mm}")
    if not 0 <= neck < 1 or not radius_mm >= 0:
        raise ValueError(f"neck within [0, 1) and radius_mm of 0 or more are needed, got {neck} and {radius_mm}")
    given = mask.detach().cpu().numpy()
    check_lesion_mask(given, size_mm)
    values, ids, in_parts, notes = _instances(given.astype(np.int32))
    confluent = np.zeros(0, dtype=np.int32)
    if not ids:
        values = np.asarray(label(values > 0, connectivity=3), dtype=np.int32)
        _refuse_noise(int(values.max()))
        values, confluent = _ordered(*(_split(values, size_mm, neck, radius_mm) if split and neck else (values, [])))
        ids = list(range(1, int(values.max()) + 1))
    labels = torch.from_numpy(values).to(mask.device)
    marks = {"split": np.isin(np.arange(1, len(ids) + 1), confluent), "in_parts": np.isin(ids, in_parts)}
    marks |= _size_marks(labels, fewest_voxels, patch_size)
    if brain is not None:
        row = labels[labels > 0].long() - 1
        inside = torch.bincount(row[brain[labels > 0].bool()], minlength=len(ids))
        marks["outside_brain"] = (2 * inside <= torch.bincount(row, minlength=len(ids))).cpu().numpy()
    flags = [tuple(name for name in FLAGS if name in marks and marks[name][k]) for k in range(len(ids))]
    return Lesions(labels, flags, ids, notes)


def _instances(values: _Volume) -> tuple[_Volume, list[int], list[int], list[str]]:
    """Labels 1..L and the ids of a mask that tells the lesions apart, ids in several parts, remarks; no ids if none."""
    found = np.unique(values)
    found = found[found > 0]
    if len(found) < 2:
        return values, [], [], []
    _refuse_noise(len(found))
    parts, count = label(values, connectivity=3, return_num=True)  # neighbours of one value
    place = np.unique(parts.ravel(), return_index=True)[1][1:]  # the first voxel of each part
    own = np.searchsorted(found, values.ravel()[place])
    pieces = np.bincount(own, minlength=len(found))
    if np.count_nonzero(pieces > 1) * 2 > len(found):
        note = (
            f"the lesion mask has {len(found)} values, most of them in several parts ({count} together): taken for "
            "classes, and the connected parts for lesions"
        )
        return values, [], [], [note]
    labels = np.where(values > 0, np.searchsorted(found, values) + 1, 0).astype(np.int32)
    return labels, [int(v) for v in found], [int(v) for v in found[pieces > 1]], []


def _split(components: _Volume, size_mm: Sequence[float], neck: float, radius_mm: float) -> tuple[_Volume, list[int]]:
    """The components with confluent ones split, and the labels of the parts.

    Seeds are the maxima of the distance to the background that rise above every neck to a higher one by a factor
    1 / ``neck``: the regional maxima that remain when the logarithm of the distance, lowered by log(1 / neck), is
    reconstructed under itself.
    """
    labels, parts, last = components.copy(), [], int(components.max())
    # Two bodies with an inscribed sphere each: smaller components cannot be split.
    fewest = 2 * 4 / 3 * np.pi * radius_mm**3 / np.prod(size_mm)
    voxels = np.bincount(components.ravel())
    for own, box in enumerate(ndimage.find_objects(components), start=1):
        if voxels[own] < fewest:
            continue
        inside = np.pad(components[box] == own, 1)  # the border of the volume is an edge of the lesion as well
        distance = ndimage.distance_transform_edt(inside, sampling=size_mm)
        height = np.log(np.where(inside, distance, min(size_mm) / 2))
        peaks = local_maxima(reconstruction(height + np.log(neck), height, footprint=_EVERY_NEIGHBOUR), connectivity=3)
        seeds, count = label(peaks & inside, connectivity=3, return_num=True)
        tops = ndimage.maximum(distance, seeds, np.arange(1, count + 1)) if count else np.zeros(0)
        seeds[~np.isin(seeds, np.flatnonzero(tops >= radius_mm) + 1)] = 0
        if np.count_nonzero(tops >= radius_mm) < 2:
            continue
        bodies = watershed(-distance, seeds, mask=inside, connectivity=_EVERY_NEIGHBOUR)[1:-1, 1:-1, 1:-1]
        here = np.unique(bodies[bodies > 0])
        labels[box][bodies > 0] = last + bodies[bodies > 0]
        parts += [last + int(b) for b in here]
        last += int(bodies.max())
    return labels, parts


def _ordered(labels: _Volume, parts: Sequence[int]) -> tuple[_Volume, npt.NDArray[np.int32]]:
    """Labels 1..L by first voxel, and the new numbers of ``parts``."""
    found, place = np.unique(labels.ravel(), return_index=True)
    found, place = found[found > 0], place[found > 0]
    number = np.zeros(int(labels.max()) + 1, dtype=np.int32)
    number[found[np.argsort(place)]] = np.arange(1, len(found) + 1)
    return number[labels], number[np.asarray(parts, dtype=np.int64)]


def _size_marks(labels: Tensor, fewest: int, size: Sequence[int]) -> dict[str, npt.NDArray[np.bool_]]:
    geometry = lesion_geometry(labels)
    first = patch_corners(geometry["centroid"], size)
    last = first + torch.tensor(size, device=labels.device)
    beyond = ((geometry["lower"] < first) | (geometry["upper"] > last)).any(1)
    return {"too_small": (geometry["voxels"] < fewest).cpu().numpy(), "oversize": beyond.cpu().numpy()}


def _refuse_noise(count: int) -> None:
    if count > MOST_LESIONS:
        raise QMRIError(
            field="lesion mask", found=f"{count} separate lesions", expected=f"at most {MOST_LESIONS}",
            remedy="give a mask of lesions; a thresholded image is none (leave out its smallest parts)",
        )  # fmt: skip
