"""Undecimated coiflet-1 transform, one level, of single voxels of a volume.

Daubechies, Orthonormal bases of compactly supported wavelets II, SIAM J. Math. Anal. 24 (1993): coiflet of six taps.
Only the voxels of lesions are needed, a thousandth of the volume. Each is computed from the 6 x 6 x 6 voxels around it,
with the sums in the order in which PyWavelets takes them: grey levels have sharp edges, so the last digit matters.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qsmrim_net.radiomics.names import BANDS

__all__ = ["HIGH_PASS", "LOW_PASS", "voxel_bands"]

# Decomposition filters; the high-pass one is the low-pass one reversed with alternating signs.
LOW_PASS = (
    -0.015655728135791993,
    -0.07273261951252645,
    0.3848648468648578,
    0.8525720202116004,
    0.3378976624574818,
    -0.07273261951252645,
)
HIGH_PASS = tuple(tap if i % 2 else -tap for i, tap in enumerate(reversed(LOW_PASS)))
_TAPS = len(LOW_PASS)
# Tap i of a filter falls on the voxel 3 - i further on.
_OFFSETS = tuple(_TAPS // 2 - i for i in range(_TAPS))
_CHUNK = 4096  # voxels at once: 216 neighbours each


def voxel_bands(volume: Tensor, position: Tensor) -> Tensor:
    """Coefficients of the eight bands at given voxels.

    Beyond its borders the volume is continued as pyradiomics does it: a copy of the first slice makes an odd side
    even, then the volume repeats itself. Voxels at least three away from the border do not feel it.

    Args:
        volume: ``[X, Y, Z]``.
        position: voxel indices ``[N, 3]``.

    Returns:
        ``[8, N]``, float64, in the order of :data:`~qsmrim_net.radiomics.names.BANDS`.
    """
    flat = volume.reshape(-1)
    strides = (volume.shape[1] * volume.shape[2], volume.shape[2], 1)
    indices = [_continued(position[:, axis], volume.shape[axis]) * strides[axis] for axis in range(3)]
    chunks = [_bands(flat, *parts) for parts in zip(*(index.split(_CHUNK, 1) for index in indices), strict=True)]
    return torch.cat(chunks, 1) if chunks else torch.empty(len(BANDS), 0, dtype=torch.float64)


def _continued(index: Tensor, side: int) -> Tensor:
    """Indices along an axis under each of the taps ``[6, N]``."""
    index = (index + torch.tensor(_OFFSETS)[:, None]) % (side + side % 2)
    return torch.where(index == side, 0, index)


def _bands(flat: Tensor, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    """``[8, N]`` from where the neighbours stand in the flat volume, ``[6, N]`` along each axis."""
    bands = {"": flat[x[:, None, None] + y[None, :, None] + z[None, None]].double()}
    # One axis after the other, the first letter along X.
    for _ in range(3):
        bands = {
            name + letter: _filter(values, taps)
            for name, values in bands.items()
            for letter, taps in (("L", LOW_PASS), ("H", HIGH_PASS))
        }
    return torch.stack([bands[name] for name in BANDS])


def _filter(values: Tensor, taps: tuple[float, ...]) -> Tensor:
    """Weighted sum over the first axis, term after term."""
    total = values[0] * taps[0]
    for value, tap in zip(values[1:], taps[1:], strict=True):
        total += value * tap
    return total
