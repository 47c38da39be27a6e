"""Volumes and labels on voxels of another size: the network sees patches in voxels, so rims must have their thickness.

One small matrix for each axis: the mean over the new voxel where voxels grow, linear interpolation where they shrink.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["to_voxels"]

_LEAST_SHARE = 0.5  # of a new voxel: below, it is outside of the brain, or outside of the lesions
_SAME = 1e-6


def to_voxels(
    volumes: Tensor, labels: Tensor, voxel_size: Sequence[float] | Tensor, wanted: Sequence[float] | Tensor
) -> tuple[Tensor, Tensor]:
    """Volumes and labels on a grid of other voxels over the same box, about the same centre.

    A voxel of exactly 0 has no value: it does not count in the mean of others, and a new voxel is 0 where less than
    half of it has values. A new voxel is part of a lesion where lesions fill half of it or more, and of the one with
    the largest share; a lesion that would have no voxel gets the one that it has most of, of those without a lesion.

    Args:
        volumes: [C, X, Y, Z] float.
        labels: [X, Y, Z] integers, 0 for the background and 1..L.
        voxel_size: of the given grid, along X, Y, Z [mm].
        wanted: of the new grid.

    Returns:
        [C, X', Y', Z'] and [X', Y', Z'], of the same types; X' is the whole number nearest to X times the ratio of the
        sizes, and at least 1.

    Raises:
        ValueError: shapes that do not fit, or sizes that are no three lengths above 0.
    """
    if volumes.ndim != 4 or volumes.shape[1:] != labels.shape:
        shapes = f"{tuple(volumes.shape)} and {tuple(labels.shape)}"
        raise ValueError(f"volumes [C, X, Y, Z] and labels [X, Y, Z] on one grid are needed, got {shapes}")
    sizes = [[float(s) for s in size] for size in (voxel_size, wanted)]
    if any(len(size) != 3 or not min(size) > 0 for size in sizes):
        raise ValueError(f"voxel_size and wanted: three lengths above 0 mm are needed, got {sizes[0]} and {sizes[1]}")
    matrices = [_matrix(n, old, new).to(volumes.device) for n, old, new in zip(labels.shape, *sizes, strict=True)]
    known = (volumes != 0).to(volumes.dtype)
    share = _apply(known, matrices)
    values = _apply(volumes, matrices) / share.clamp(min=_SAME)
    return torch.where(share >= _LEAST_SHARE, values, 0.0), _labels(labels, matrices)


def _matrix(n: int, old: float, new: float) -> Tensor:
    """[n', n] float32, rows of sum 1."""
    count = max(1, math.floor(n * old / new + 0.5))
    here = (torch.arange(n, dtype=torch.float64) - (n - 1) / 2) * old  # centres [mm]
    there = (torch.arange(count, dtype=torch.float64) - (count - 1) / 2) * new
    if new > old:
        lower = torch.maximum(here - old / 2, there[:, None] - new / 2)
        upper = torch.minimum(here + old / 2, there[:, None] + new / 2)
        weight = (upper - lower).clamp(min=0)
        weight = torch.where(weight < _SAME * old, 0.0, weight)
    else:  # beyond the outermost centres the outermost voxel goes on
        weight = (1 - (here - there[:, None].clamp(here[0], here[-1])).abs() / old).clamp(min=0)
    return (weight / weight.sum(1, keepdim=True)).float()


def _apply(volumes: Tensor, matrices: Sequence[Tensor]) -> Tensor:
    x, y, z = (m.to(volumes.dtype) for m in matrices)
    narrowed = torch.einsum("cxyz,kz->cxyk", volumes, z)
    return torch.einsum("cxyk,ix,jy->cijk", narrowed, x, y)


def _labels(labels: Tensor, matrices: Sequence[Tensor]) -> Tensor:
    """Each marked voxel gives its weight to the few new voxels that it meets; sums are over pairs (voxel, lesion)."""
    shape = [len(m) for m in matrices]
    position, lesion = labels.nonzero(), labels[labels != 0].long()  # [K, 3], [K]
    flat = torch.zeros(len(lesion), 1, dtype=torch.long, device=labels.device)
    weight = torch.ones(len(lesion), 1, device=labels.device)
    for axis, matrix in enumerate(matrices):
        most = int((matrix > 0).sum(0).max())
        values, rows = matrix.T.topk(most, dim=1)  # [n, most]
        own = position[:, axis]
        flat = (flat[:, :, None] * shape[axis] + rows[own][:, None]).flatten(1)
        weight = (weight[:, :, None] * values[own][:, None]).flatten(1)
    largest = int(lesion.max()) + 1 if len(lesion) else 1
    met = weight > 0
    pairs, place = (flat * largest + lesion[:, None])[met].unique(return_inverse=True)
    share = torch.zeros(len(pairs), dtype=torch.float64, device=labels.device)
    share.index_add_(0, place, weight[met].double())
    voxel, number = pairs // largest, pairs % largest
    nothing = torch.zeros(math.prod(shape), dtype=torch.float64, device=labels.device)
    total = nothing.index_add(0, voxel, share)
    best = nothing.scatter_reduce(0, voxel, share, "amax")
    wins = (total[voxel] >= _LEAST_SHARE - _SAME) & (share == best[voxel])
    result = torch.full((math.prod(shape),), largest, device=labels.device)
    result.scatter_reduce_(0, voxel[wins], number[wins], "amin")  # of equal shares the first lesion
    result = torch.where(result == largest, 0, result).to(labels.dtype)
    _rescue(result, voxel, number, share)
    return result.reshape(shape)


def _rescue(result: Tensor, voxel: Tensor, number: Tensor, share: Tensor) -> None:
    """Lesions without a voxel get the free one that they have most of; a loop over these few."""
    for lost in sorted(set(number.unique().tolist()) - set(result.unique().tolist())):
        free = (number == lost) & (result[voxel] == 0)
        if free.any():
            result[voxel[free][share[free].argmax()]] = lost
