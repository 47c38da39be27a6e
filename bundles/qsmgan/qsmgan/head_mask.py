"""A mask where none is given: signal whose phase is coherent; and the noise of two echoes."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

COHERENT = 0.8  # of at most 1; pure noise has about 0.2
PLAIN = 0.95  # coherence of tissue beyond doubt
WEAKEST = 0.2  # of the median magnitude of that tissue
ABOVE_NOISE = 5.0  # standard deviations
OPENED_MM = 2.0  # bridges thinner than twice that are cut
CLOSED_MM = 4.0  # vessels and sulci narrower than twice that are filled
NORMAL_QUARTILE = 0.6745  # of the standard normal distribution


def noise_by_differences(magnitude: Tensor, phase: Tensor) -> Tensor:
    """Noise of real and imaginary part of the first echo, from third differences, one along each axis.

    They leave nothing of what is smooth; the median leaves out edges, and voxels without any signal are left out, which
    a scanner has set to zero. An image that was interpolated has less noise there than in truth.

    Args:
        magnitude: ``[N, X, Y, Z]``.
        phase: ``[N, X, Y, Z]`` [rad].

    Returns:
        One value, in the unit of the magnitude.
    """
    real, there = magnitude[0] * phase[0].cos(), magnitude[0] > 0
    differences, count = real, 0
    for axis in range(3):
        length = differences.shape[axis] - 1
        if length < 1:
            continue
        differences, count = differences.diff(dim=axis), count + 1
        there = there.narrow(axis, 0, length) & there.narrow(axis, 1, length)
    values = differences[there].abs()
    # Each difference doubles the variance.
    return values.median() / (NORMAL_QUARTILE * 2.0 ** (count / 2)) if values.numel() else real.new_zeros(())


def head_mask(magnitude: Tensor, phase: Tensor, sigma: float, voxel_size: Sequence[float]) -> Tensor:
    """Largest connected part with signal and coherent phase, its gaps and holes filled.

    The phase is coherent where its change from the first to the second echo is alike in a voxel and its neighbours,
    which holds for tissue whatever its brightness, and not for air. Thin bridges are cut before the largest part is
    chosen.

    Args:
        magnitude: ``[N, X, Y, Z]``.
        phase: ``[N, X, Y, Z]`` [rad].
        sigma: noise of the real and of the imaginary part.
        voxel_size: (dx, dy, dz) [mm].

    Returns:
        Boolean ``[X, Y, Z]``; empty where nothing rises above the noise.
    """
    size = np.sqrt(np.square(magnitude.cpu().double().numpy()).sum(0))
    product = (magnitude[0] * magnitude[1]).cpu().double().numpy()
    turn = (phase[1] - phase[0]).cpu().double().numpy()
    real, imaginary, weight = (
        ndimage.uniform_filter(v, 3) for v in (product * np.cos(turn), product * np.sin(turn), product)
    )
    coherence = np.hypot(real, imaginary) / np.maximum(weight, np.finfo(float).tiny)
    noise = ABOVE_NOISE * sigma * len(magnitude) ** 0.5
    plain = (coherence > PLAIN) & (size > noise)
    if not plain.any():
        return torch.zeros(size.shape, dtype=torch.bool, device=magnitude.device)
    inside = (coherence > COHERENT) & (size > max(noise, WEAKEST * float(np.median(size[plain]))))
    opened = ndimage.binary_opening(inside, _ball(OPENED_MM, voxel_size))
    labels, count = ndimage.label(opened if opened.any() else inside)
    largest = labels == 1 + np.argmax(np.bincount(labels.ravel(), minlength=count + 1)[1:])
    # Opening rounds corners off: what belongs to the part comes back.
    ball = _ball(OPENED_MM, voxel_size)
    largest = ndimage.binary_dilation(largest, ball) & inside
    return torch.from_numpy(_closed(largest, voxel_size)).to(magnitude.device)


def _closed(mask: np.ndarray, voxel_size: Sequence[float]) -> np.ndarray:
    """Gaps closed and holes filled."""
    ball = _ball(CLOSED_MM, voxel_size)
    margin = [(n // 2, n // 2) for n in ball.shape]
    # At the edge of the volume the mask goes on, or closing would eat it.
    padded = np.pad(mask, margin, mode="edge")
    closed = ndimage.binary_closing(padded, ball)
    inner = tuple(slice(before, size - after) for (before, after), size in zip(margin, padded.shape, strict=True))
    return ndimage.binary_fill_holes(closed[inner] | mask)


def _ball(radius: float, voxel_size: Sequence[float]) -> np.ndarray:
    """Voxels whose centres lie within a radius [mm], at least the six neighbours."""
    reach = [max(1, int(radius / size)) for size in voxel_size]
    ball = np.zeros([2 * n + 1 for n in reach], dtype=bool)
    for place in itertools.product(*(range(-n, n + 1) for n in reach)):
        distance = sum((p * size) ** 2 for p, size in zip(place, voxel_size, strict=True)) ** 0.5
        near = distance <= radius or sum(abs(p) for p in place) <= 1
        ball[tuple(p + n for p, n in zip(place, reach, strict=True))] = near
    return ball
