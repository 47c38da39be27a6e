"""Volumes in the order of axes that the network was trained with, and back as the file has them."""

from __future__ import annotations

from dataclasses import dataclass

import nibabel as nib
import numpy as np
import numpy.typing as npt
from torch import Tensor

__all__ = ["RasOrder"]


@dataclass(frozen=True)
class RasOrder:
    """Axes of a file in the order that lies nearest to right, anterior, superior: permuted and flipped, no more.

    Attributes:
        axes: axis of the file that becomes X, Y and Z.
        flips: whether X, Y and Z run against that axis.
    """

    axes: tuple[int, int, int]
    flips: tuple[bool, bool, bool]

    @classmethod
    def of(cls, affine: npt.ArrayLike) -> RasOrder:
        """The order of a file with this affine ``[4, 4]``, voxel indices to millimetres (RAS)."""
        target = nib.orientations.io_orientation(np.asarray(affine, dtype=np.float64))  # row: axis of the file
        rows = [int(np.flatnonzero(target[:, 0] == axis)[0]) for axis in range(3)]
        x, y, z = rows
        a, b, c = (bool(target[row, 1] < 0) for row in rows)
        return cls((x, y, z), (a, b, c))

    def to_ras(self, volume: Tensor) -> Tensor:
        """``[..., H, W, D]`` of the file as ``[..., X, Y, Z]``."""
        lead = volume.ndim - 3
        turned = volume.permute(*range(lead), *(lead + axis for axis in self.axes))
        return turned.flip([lead + i for i, flip in enumerate(self.flips) if flip]).contiguous()

    def to_file(self, volume: Tensor) -> Tensor:
        """``[..., X, Y, Z]`` in the order of the file, ``[..., H, W, D]``."""
        lead = volume.ndim - 3
        turned = volume.flip([lead + i for i, flip in enumerate(self.flips) if flip])
        return turned.permute(*range(lead), *(lead + self.axes.index(axis) for axis in range(3))).contiguous()

    def file_indices(self, places: npt.NDArray[np.float64], shape: tuple[int, ...]) -> npt.NDArray[np.float64]:
        """Voxel indices ``[L, 3]`` along X, Y, Z as indices along the axes of a file of this shape (H, W, D)."""
        found = np.empty_like(places)
        for place, (axis, flip) in enumerate(zip(self.axes, self.flips, strict=True)):
            found[:, axis] = shape[axis] - 1 - places[:, place] if flip else places[:, place]
        return found
