"""Grey levels of voxels, and the lines of voxels along the 13 directions of space.

All lesions of a subject and all images (the image itself and its wavelet bands) are treated at once. A group is one
lesion in one image; groups are numbered image * M + lesion.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from qsmrim_net.radiomics.names import BIN_WIDTH

__all__ = [
    "DIRECTIONS",
    "GreyLevels",
    "Lines",
    "entropy_terms",
    "grey_levels",
    "group_sums",
    "lines_of_voxels",
    "starts",
]

# One of each pair of opposite neighbours; the first step that is not zero is positive.
DIRECTIONS = tuple((x, y, z) for x in (0, 1) for y in (-1, 0, 1) for z in (-1, 0, 1) if (x, y, z) > (0, 0, 0))


@dataclass
class GreyLevels:
    """Grey levels of voxels. A tone is a level that occurs in a group; all tones of all groups have running numbers.

    Attributes:
        tone: number of the tone of each voxel ``[J, N]``.
        level: of each tone, 1 in the lowest bin of its group ``[T]``.
        count: voxels with each tone ``[T]``, float64.
        group: of each tone ``[T]``.
        tones: how many each group has ``[J * M]``.
        highest: level of each group ``[J * M]``.
    """

    tone: Tensor
    level: Tensor
    count: Tensor
    group: Tensor
    tones: Tensor
    highest: Tensor


@dataclass
class Lines:
    """Voxels along the 13 directions, see :data:`DIRECTIONS`.

    Attributes:
        order: voxels of one line after those of another, one step after another ``[13, N]``.
        joined: whether a voxel of ``order`` is the next neighbour of the one before it, in the same lesion ``[13, N]``.
        extended: whether any line holds two voxels of a lesion ``[13, M]``.
    """

    order: Tensor
    joined: Tensor
    extended: Tensor


def starts(sizes: Tensor) -> Tensor:
    """Where blocks of these sizes begin if they stand one after another."""
    return sizes.cumsum(0) - sizes


def group_sums(group: Tensor, weights: Tensor, groups: int) -> Tensor:
    """Sums of the weights of each group: both ``[E]`` to ``[groups]``."""
    return torch.bincount(group.reshape(-1), weights.reshape(-1), minlength=groups)


def entropy_terms(share: Tensor) -> Tensor:
    """-p log2 p of shares p > 0."""
    return -share * share.log2()


def grey_levels(values: Tensor, lesion: Tensor, lesions: int) -> GreyLevels:
    """Sorts voxels into bins of 25 ppb, with edges at the multiples of 25 ppb, each lesion and image for itself.

    Args:
        values: ``[J, N]`` [ppb], float64.
        lesion: of each voxel ``[N]``.
        lesions: their number M.
    """
    groups = len(values) * lesions
    group = torch.arange(len(values))[:, None] * lesions + lesion
    # Exact for float64: remainder is, and the difference is a multiple of the width.
    edge = values - values.remainder(BIN_WIDTH)
    bins = edge.div(BIN_WIDTH).round().long()
    lowest = torch.zeros(groups, dtype=torch.long)
    lowest = lowest.scatter_reduce(0, group.flatten(), bins.flatten(), "amin", include_self=False)
    level = bins - lowest[group]
    highest = torch.zeros(groups, dtype=torch.long).scatter_reduce(0, group.flatten(), level.flatten(), "amax") + 1

    begin = starts(highest)
    slot = begin[group] + level
    histogram = torch.bincount(slot.flatten(), minlength=int(highest.sum()))
    found = histogram.nonzero()[:, 0]
    number = torch.zeros_like(histogram)
    number[found] = torch.arange(len(found))
    owner = torch.repeat_interleave(torch.arange(groups), highest)[found]
    return GreyLevels(
        tone=number[slot],
        level=found - begin[owner] + 1,
        count=histogram[found].double(),
        group=owner,
        tones=torch.bincount(owner, minlength=groups),
        highest=highest,
    )


def lines_of_voxels(position: Tensor, lesion: Tensor, lesions: int) -> Lines:
    """Finds the lines.

    Args:
        position: voxel indices ``[N, 3]``.
        lesion: of each voxel ``[N]``.
        lesions: their number M.
    """
    direction = torch.tensor(DIRECTIONS)
    # Along its leading axis a direction takes steps of one; a line is known by where it meets plane 0 of that axis.
    leading = (direction != 0).long().argmax(1)
    step = position.T[leading]
    foot = position.T[None] - direction[:, :, None] * step[:, None]
    foot = foot - foot.amin(2, keepdim=True)
    sides = foot.amax(2) + 1
    line = (foot[:, 0] * sides[:, 1:2] + foot[:, 1]) * sides[:, 2:3] + foot[:, 2]
    line = line + lesion * sides.prod(1, keepdim=True)
    length = int(step.max()) + 2
    key, order = (line * length + step).sort(1)
    joined = torch.zeros_like(order, dtype=torch.bool)
    joined[:, 1:] = key.diff(dim=1) == 1
    same_line = (key // length).diff(dim=1) == 0
    extended = torch.zeros(len(direction), lesions, dtype=torch.bool)
    angle, at = same_line.nonzero(as_tuple=True)
    extended[angle, lesion[order[angle, at]]] = True
    return Lines(order, joined, extended)
