"""Where particles may be: the tissue whose lines lack signal, and bodies that fit into it.

Plane axes ``[X, Z]``, lengths in mm.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage
from torch import Tensor

from physics.viewline import ViewLineSequence

from .line_tracking import LineTracks, along_z, field_samples

__all__ = ["calmed", "compacted", "dark_bodies", "moved", "resized", "separate_bodies"]

Mask = npt.NDArray[np.bool_]

_TOUCHING = np.ones((3, 3))  # bodies that touch at a corner are one


def dark_bodies(
    tracks: LineTracks,
    reference: Tensor,
    sequence: ViewLineSequence,
    pixel_size: Sequence[float],
    smallest_mm2: float = 0.3,
) -> Tensor:
    """Parts of the tissue whose lines lack the signal they should have, without a line elsewhere that explains it.

    Each line says, at each column, how much signal is missing at the place in the tissue that it was excited at; a lost
    line is put where its neighbours' displacement puts it. Between the lines, the missing share is interpolated. What
    is dark for another reason, tissue without particles that is sheared beyond recognition, is in it as well.

    Args:
        tracks: of one image, ``[1, L, X]``.
        reference: signal without iron ``[X, Z]``.
        sequence: of the image.
        pixel_size: (dx, dz) [mm].
        smallest_mm2: bodies of less area are left out [mm^2].

    Returns:
        Boolean ``[X, Z]``.
    """
    dx, dz = (float(step) for step in pixel_size)
    place, order = field_samples(tracks, sequence).z[0].T.sort(dim=-1)  # [X, L]
    signal = tracks.signal[0].T.gather(-1, order)
    usual = along_z(reference, place, dz) * sequence.line_width
    missing = torch.where(usual > 0, 1.0 - signal / usual.clamp_min(1e-12), 0.0).clamp(0.0, 1.0)
    count = reference.shape[-1]
    pixels = (torch.arange(count, dtype=place.dtype, device=place.device) - (count - 1) / 2) * dz
    upper = torch.searchsorted(place.contiguous(), pixels.expand(len(place), -1).contiguous())
    upper = upper.clamp(1, place.shape[-1] - 1)
    low, high = place.gather(-1, upper - 1), place.gather(-1, upper)
    part = ((pixels - low) / (high - low).clamp_min(1e-6)).clamp(0.0, 1.0)
    between = missing.gather(-1, upper - 1) * (1 - part) + missing.gather(-1, upper) * part
    labels, _ = ndimage.label(((between > 0.5) & (reference > 0)).cpu().numpy(), _TOUCHING)
    keep = np.bincount(labels.ravel()) * dx * dz >= smallest_mm2
    keep[0] = False
    return torch.from_numpy(keep[labels]).to(reference.device)


def calmed(reference: Tensor, bodies: Tensor, pixel_size: Sequence[float], reach_mm: float = 8.0) -> Tensor:
    """The signal without iron, smoothed near bodies, where bent lines pile it up or thin it out.

    Within ``reach_mm`` of a body it is the mean of what lies around (a Gaussian of 2 mm), without the body's rim and
    without what differs from the median there by more than 30 %; farther away it stays as it is.

    Args:
        reference: ``[X, Z]``, 0 outside of the object.
        bodies: boolean ``[X, Z]``.
        pixel_size: (dx, dz) [mm].
        reach_mm: [mm].
    """
    sampling = [float(step) for step in pixel_size]
    if not bool(bodies.any()):
        return reference
    distance = ndimage.distance_transform_edt(~bodies.cpu().numpy(), sampling)
    values = reference.double().cpu().numpy()
    there = values > 0
    around = there & (distance > 1.0) & (distance < 1.5 * reach_mm)
    if not around.any():
        return reference
    usual = np.median(values[around])
    known = (there & (distance > 1.0) & (np.abs(values - usual) < 0.3 * usual)).astype(np.float64)
    sigma = [2.0 / step for step in sampling]
    sums = [ndimage.gaussian_filter(part, sigma, mode="constant") for part in (known * values, known)]
    mean = np.where(sums[1] > 1e-3, sums[0] / np.maximum(sums[1], 1e-3), usual)
    smooth = np.where(there & (distance < reach_mm), mean, values)
    return torch.from_numpy(smooth).to(reference)


def separate_bodies(support: Tensor) -> Tensor:
    """Connected parts of a support ``[X, Z]``: boolean ``[K, X, Z]``."""
    labels, count = ndimage.label(support.cpu().numpy(), _TOUCHING)
    return torch.from_numpy(labels == np.arange(1, count + 1)[:, None, None]).to(support.device)


def compacted(bodies: Tensor, share: float, pixel_size: Sequence[float]) -> Tensor:
    """Bodies without their parts that are thinner than a share of their thickest one.

    A morphological opening of each with a disc, whose radius is that share of the largest disc that fits into it. The
    dark above and below a body along B0, where lines are torn away, is thinner than the body.

    Args:
        bodies: boolean ``[K, X, Z]``.
        share: in [0, 1); 0 leaves them as they are.
        pixel_size: (dx, dz) [mm].
    """
    if share == 0:
        return bodies
    sampling = [float(step) for step in pixel_size]

    def opened(body: Mask) -> Mask:
        depth = ndimage.distance_transform_edt(body, sampling)
        radius = share * depth.max()
        return np.asarray(body & (ndimage.distance_transform_edt(depth < radius, sampling) < radius))

    return _each(bodies, opened)


def resized(bodies: Tensor, change_mm: float, pixel_size: Sequence[float]) -> Tensor:
    """Bodies ``[..., X, Z]`` grown (positive) or shrunk by a distance [mm]."""
    sampling = [float(step) for step in pixel_size]
    half = 0.5 * min(sampling)  # the next voxel on the other side begins half a voxel before its centre

    def changed(body: Mask) -> Mask:
        inside = ndimage.distance_transform_edt(body, sampling) - half
        outside = half - ndimage.distance_transform_edt(~body, sampling)
        return np.asarray(np.where(body, inside, outside) + change_mm > 0)

    return bodies if change_mm == 0 else _each(bodies, changed)


def moved(bodies: Tensor, shift_mm: Tensor, pixel_size: Sequence[float]) -> Tensor:
    """Bodies ``[K, X, Z]``, each moved by its own (x, z) ``[K, 2]`` [mm]."""
    size = torch.tensor([float(step) for step in pixel_size], dtype=shift_mm.dtype)
    pixels = (shift_mm / size).tolist()
    parts = [
        ndimage.shift(b.cpu().numpy().astype(np.float32), by, order=1) > 0.5
        for b, by in zip(bodies, pixels, strict=True)
    ]
    return torch.from_numpy(np.stack(parts)).to(bodies.device) if parts else bodies


def _each(bodies: Tensor, change: Callable[[Mask], Mask]) -> Tensor:
    """Change each mask that is neither empty nor full."""
    flat = bodies.reshape(-1, *bodies.shape[-2:]).cpu().numpy()
    parts = [change(body) if body.any() and not body.all() else body for body in flat]
    return torch.from_numpy(np.stack(parts)).reshape(bodies.shape).to(bodies.device) if parts else bodies
