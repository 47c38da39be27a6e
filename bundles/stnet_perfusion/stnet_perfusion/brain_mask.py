"""A mask of the brain from a DSC series alone: where there is signal, and blood that the bolus comes with."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage
from skimage.filters import threshold_otsu
from torch import Tensor

from physics.perfusion import Frames, baseline_signal, find_frames

from .hemispheres import find_mid_plane

__all__ = ["bolus_depth", "brain_mask", "head_mask", "mean_curve"]

Array = npt.NDArray[Any]

_HEAD = 0.4  # of the median signal of what is bright: the bone is below
_BLOOD = 0.25  # of the median depth of the bolus; tissue with a late and shallow bolus is above, fluid is not
_BLUR_MM = 3.0
_BRIDGE_MM = 4.0  # half the width of what joins brain and muscle
_DENT_MM = 10.0  # half the width of dents that are filled: tissue without flow at the surface
_SYMMETRIC = 0.6  # correlation with the mirror image, from which on wider dents are filled as well
_FLOOR = 0.02  # of the baseline


def head_mask(signal: Tensor) -> Tensor:
    """Voxels with signal.

    Args:
        signal: ``[T, X, Y, Z]``.

    Returns:
        Boolean ``[X, Y, Z]``; empty where the signal is the same everywhere.
    """
    mean = signal[1:].mean(0).clamp_min(0.0).numpy()
    bright = mean[mean > threshold_otsu(mean)] if mean.max() > mean.min() else mean[:0]
    return torch.from_numpy(mean > _HEAD * np.median(bright)) if bright.size else torch.zeros(mean.shape).bool()


def mean_curve(signal: Tensor, mask: Tensor) -> Tensor:
    """Mean signal ``[T]`` over a mask ``[X, Y, Z]``, in float64; ``signal`` is ``[T, X, Y, Z]``."""
    return torch.stack([frame[mask].double().mean() for frame in signal])


def bolus_depth(signal: Tensor, frames: Frames) -> Tensor:
    """Mean of ln(baseline / signal) from the arrival to the end: what passes late counts like what passes early.

    Args:
        signal: ``[T, ...]``.
        frames: where baseline and arrival are.

    Returns:
        ``[...]``, 0 where the baseline is not positive.
    """
    baseline = baseline_signal(signal[: frames.baseline_end].movedim(0, -1), frames)
    usable = torch.where(baseline > 0, baseline, 1.0)
    depth = torch.zeros_like(baseline)
    for frame in signal[frames.arrival :]:
        depth -= (frame / usable).clamp_min(_FLOOR).log()
    return torch.where(baseline > 0, depth / (len(signal) - frames.arrival), 0.0)


def brain_mask(signal: Tensor, dt: float, affine: Array) -> Tensor:
    """Mask the brain.

    Voxels with signal whose surroundings darken with the bolus; bridges to muscle and scalp are cut, the largest part
    is kept, dents and holes (ventricles, tissue without flow) are filled: small dents always, wide ones where the other
    side of the head has brain.

    Args:
        signal: ``[T, X, Y, Z]``, on the CPU.
        dt: time between two frames [s].
        affine: ``[4, 4]``, voxel indices to millimetres (RAS).

    Returns:
        Boolean ``[X, Y, Z]``.

    Raises:
        ValueError: no bolus in the voxels with signal, or no voxel left.
    """
    head = head_mask(signal)
    curve = mean_curve(signal, head) if bool(head.any()) else signal.new_zeros(len(signal))
    if not float(curve.min()) > 0:
        raise ValueError("signal must be positive where it is bright")
    frames = find_frames(curve, dt)
    if not frames.bolus:
        raise ValueError("signal must fall with a bolus and recover")
    inside, size = head.numpy(), np.linalg.norm(affine[:3, :3], axis=0)
    depth = _blurred(bolus_depth(signal, frames).numpy(), inside, _BLUR_MM / size)
    supplied = inside & (depth > _BLOOD * np.median(depth[inside & (depth > 0)]))
    brain = _largest(_eroded(supplied, _BRIDGE_MM, size))
    if not brain.any():
        raise ValueError("signal must fall with the bolus in a region of the size of a brain")
    brain = _dilated(brain, _BRIDGE_MM, size) & supplied
    brain |= _eroded(_dilated(brain, _DENT_MM, size), _DENT_MM, size) & inside
    before = baseline_signal(signal[: frames.baseline_end].movedim(0, -1), frames).numpy()
    brain |= _missing(brain, inside, before, affine, size)
    return torch.from_numpy(_filled(brain, int(size.argmax())))


def _missing(brain: Array, inside: Array, before: Array, affine: Array, size: Array) -> Array:
    """Voxels with signal that are no brain though their mirror images are; not what is as thin as a rim."""
    plane = find_mid_plane(before, brain, affine)
    if plane.symmetry < _SYMMETRIC:
        return np.zeros_like(brain)
    transform = plane.mirror(affine)
    mirrored = ndimage.affine_transform(brain.astype(np.float32), transform[:3, :3], transform[:3, 3], order=1) > 0.5
    dent = mirrored & inside & ~brain
    core = _eroded(dent | brain, _BRIDGE_MM, size) & dent
    return _dilated(core, _BRIDGE_MM, size) & dent if core.any() else core


def _blurred(values: Array, inside: Array, sigma: Array) -> Array:
    """Gaussian mean over the voxels inside."""
    weight = ndimage.gaussian_filter(inside.astype(np.float32), sigma)
    total = ndimage.gaussian_filter(np.where(inside, values, 0.0).astype(np.float32), sigma)
    return np.asarray(total / np.maximum(weight, 1e-6))


def _dilated(mask: Array, radius: float, size: Array) -> Array:
    return np.asarray(ndimage.distance_transform_edt(~mask, sampling=size) <= radius)


def _eroded(mask: Array, radius: float, size: Array) -> Array:
    if mask.all():
        return mask  # the transform knows no background then; the edge of the volume is none
    return np.asarray(ndimage.distance_transform_edt(mask, sampling=size) > radius)


def _largest(mask: Array) -> Array:
    labels, count = ndimage.label(mask)
    sizes = np.bincount(labels.ravel(), minlength=count + 1)
    sizes[0] = 0
    return np.asarray(labels == sizes.argmax()) & mask


def _filled(mask: Array, slices: int) -> Array:
    """Holes filled, in the volume and in each slice (ventricles may open at the end of a slab)."""
    mask = ndimage.binary_fill_holes(mask)
    planes = [ndimage.binary_fill_holes(plane) for plane in np.moveaxis(mask, slices, 0)]
    return np.ascontiguousarray(np.moveaxis(np.stack(planes), 0, slices))
