"""Slices of a volume, turned as a radiologist expects them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import torch

__all__ = ["Slice", "as_array", "central_slices", "planes", "radiological"]

Array = npt.NDArray[Any]

# For each axis of a volume in RAS order that is cut: the view, and what stands left, right, above and below.
# The other two axes run along the columns and the rows, in this order, both against their direction.
_VIEWS = (("sagittal", "APSI"), ("coronal", "RLSI"), ("axial", "RLAP"))
_MIN_VOXELS, _MIN_EXTENT = 12, 0.4  # an axis shorter than this share of the longest is no plane worth showing


@dataclass(frozen=True)
class Slice:
    """One slice, ready to show.

    Attributes:
        image: [rows, columns].
        aspect: height of a voxel over its width.
        name: such as "axial 12".
        edges: letters for left, right, top and bottom; empty where the orientation is not known.
    """

    image: Array
    aspect: float
    name: str
    edges: str = ""


def as_array(values: Any) -> Array:
    """A numpy array of a tensor (any device, MetaTensor too) or an array; bool stays, the rest becomes float64."""
    array = values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)
    return array if array.dtype == bool else array.astype(np.float64)


def radiological(volume: Array, affine: Any) -> tuple[Array, tuple[float, float, float]]:
    """Turn a volume to the closest right-anterior-superior order of axes.

    Args:
        volume: [H, W, D].
        affine: [4, 4], voxel indices to millimetres (RAS).

    Returns:
        The volume [X, Y, Z], indices growing to the right, front and top of the patient, and its voxel size [mm].
    """
    affine = as_array(affine)
    orientation = nib.orientations.io_orientation(affine)
    size = np.linalg.norm(affine[:3, :3], axis=0)
    turned = nib.orientations.apply_orientation(volume, orientation)
    x, y, z = (float(size[list(orientation[:, 0]).index(axis)]) for axis in range(3))
    return turned, (x, y, z)


def central_slices(
    volume: Any, affine: Any = None, mask: Any = None, n: int = 3, margin: float | None = 0.1
) -> list[Slice]:
    """Choose the slices that show a volume: three planes of a block, some slices of a stack, or the only one.

    Args:
        volume: [H, W] or [H, W, D].
        affine: [4, 4], voxel indices to millimetres (RAS); None shows [H, W] as rows and columns.
        mask: same shape, nonzero in the object, whose centre is shown; None takes the centre of the volume.
        n: largest number of slices of a stack.
        margin: what is left around the mask, as a share of its size; None shows the whole slice.

    Returns:
        At most max(n, 3) slices, central ones first for a block, in order for a stack.

    Raises:
        ValueError: for another number of axes.
    """
    array = as_array(volume)
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim != 3:
        raise ValueError(f"a volume has axes [H, W] or [H, W, D], got shape {array.shape}")
    inside = np.ones(array.shape, bool) if mask is None else as_array(mask).reshape(array.shape) != 0
    if affine is None:
        rows, columns, _ = _box(inside, margin)
        return [
            Slice(array[rows, columns, k], 1.0, f"slice {k + 1} of {array.shape[2]}" if array.shape[2] > 1 else "")
            for k in _positions(inside, 2, n)
        ]
    array, size = radiological(array, affine)
    inside, _ = radiological(inside, affine)
    extent = np.array(array.shape) * size
    if min(array.shape) >= _MIN_VOXELS and extent.min() >= _MIN_EXTENT * extent.max():
        cuts = [(axis, _positions(inside, axis, 1)[0]) for axis in (2, 1, 0)]
    else:
        # The slice axis of a stack has the fewest, or of equals the thickest, voxels.
        thin = min(range(3), key=lambda axis: (array.shape[axis], -size[axis]))
        cuts = [(thin, k) for k in _positions(inside, thin, n)]
    box = _box(inside, margin)
    return [_cut(array, size, axis, k, box) for axis, k in cuts]


def planes(
    volume: Any,
    affine: Any = None,
    mask: Any = None,
    centre: tuple[int, int, int] | None = None,
    margin: float | None = 0.05,
) -> list[Slice]:
    """The sagittal, the coronal and the axial plane through one voxel.

    Args:
        volume: [H, W, D].
        affine: [4, 4], voxel indices to millimetres (RAS); None takes cubic voxels and axes that grow to the right,
            front and top.
        mask: same shape, nonzero in the object, whose middle is shown.
        centre: the voxel [H, W, D] instead of the middle.
        margin: what is left around the mask, as a share of its size; None shows the whole planes.
    """
    array = as_array(volume)
    inside = np.ones(array.shape, bool) if mask is None else as_array(mask).reshape(array.shape) != 0
    affine = np.eye(4) if affine is None else as_array(affine)
    mark = np.zeros(array.shape, bool)
    if centre is not None:
        mark[centre] = True
    array, size = radiological(array, affine)
    inside, mark = (radiological(part, affine)[0] for part in (inside, mark))
    at = [_positions(inside if centre is None else mark, axis, 1)[0] for axis in range(3)]
    box = _box(inside, margin)
    return [_cut(array, size, axis, at[axis], box) for axis in range(3)]


def _cut(array: Array, size: tuple[float, float, float], axis: int, k: int, box: list[slice]) -> Slice:
    view, edges = _VIEWS[axis]
    columns, rows = (other for other in range(3) if other != axis)
    name = f"{view} {k + 1} of {array.shape[axis]}" if array.shape[axis] > 1 else view
    image = array.take(k, axis)[box[columns], box[rows]]
    return Slice(np.flip(image).T, size[rows] / size[columns], name, edges)


def _box(inside: Array, margin: float | None) -> list[slice]:
    """For each axis, the part where the mask is, and some more."""
    if margin is None or not inside.any():
        return [slice(None)] * 3
    box = []
    for axis in range(3):
        occupied = np.flatnonzero(inside.any(axis=tuple(other for other in range(3) if other != axis)))
        extra = int(np.ceil(margin * len(occupied)))
        box.append(slice(max(0, int(occupied[0]) - extra), int(occupied[-1]) + extra + 1))
    return box


def _positions(inside: Array, axis: int, n: int) -> list[int]:
    """At most n indices along an axis, spread evenly over the part where the mask is."""
    occupied = np.flatnonzero(inside.any(axis=tuple(other for other in range(3) if other != axis)))
    if not len(occupied):
        occupied = np.arange(inside.shape[axis])
    if len(occupied) <= n:
        return [int(k) for k in occupied]
    first, last = occupied[0], occupied[-1]
    return [int(round(first + (last - first) * (i + 1) / (n + 1))) for i in range(n)]
