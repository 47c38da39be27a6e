"""The grid a network for dipole fields was trained on: isotropic voxels, B0 along the third axis."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from scipy.ndimage import affine_transform
from torch import Tensor
from torch.nn import functional

from physics.dipole import check_geometry
from shared_transforms.errors import QMRIError

__all__ = ["Frame"]

GROWTH = 5  # [voxels]: a cubic spline has forgotten an edge that far away to less than 0.2 %
MARGIN = 2  # [voxels] around the mask
SAME_SIZE = 0.01  # relative difference of voxel sides that is none


class Frame:
    """The way of volumes to the training frame and back.

    The side of the isotropic voxels is the shortest of the given ones, but inside of ``sides``: the dipole field of an
    object does not depend on its scale, so a network for 1 mm may be given somewhat smaller voxels rather than an
    interpolated field. Where that leaves the voxels as they are and B0 is along an axis, volumes are permuted and
    flipped, which is exact. Otherwise each way is one interpolation by cubic splines, of values that are continued
    beyond the mask, so that its surface is no edge. Voxels of half the side or less are averaged on the way there.
    B0 and -B0 are the same to a dipole field.

    Args:
        mask: ``[X, Y, Z]``, nonzero where the volumes have values; the frame has room for all of them.
        voxel_size: [mm], of the three axes.
        b0_direction: unit vector along the axes of the array.
        sides: smallest and largest side of a voxel of the frame [mm].
        tilt: angle between B0 and an axis up to which nothing is rotated [degrees].

    Attributes:
        shape: of volumes in the frame.
        voxel_size: of the frame [mm]; of the three axes, equal up to 1 %.
        b0_direction: in the frame; (0, 0, 1) up to ``tilt`` and the sign.
        exact: whether nothing is interpolated.

    Raises:
        QMRIError: if the mask is empty or no volume.
        ValueError: if the geometry or the options are no such.
    """

    def __init__(
        self,
        mask: Tensor,
        voxel_size: Sequence[float],
        b0_direction: Sequence[float],
        sides: tuple[float, float] = (1.0, 1.0),
        tilt: float = 1.0,
    ) -> None:
        if not 0 < sides[0] <= sides[1] or not 0 <= tilt <= 45:
            raise ValueError(f"sides must be 0 < smallest <= largest and tilt in [0, 45], got {sides} and {tilt}")
        if mask.ndim != 3 or not (mask != 0).any():
            raise QMRIError(
                field="mask",
                found=f"shape {tuple(mask.shape)}, {int((mask != 0).sum())} voxels",
                expected="a volume [X, Y, Z] with at least one voxel",
                remedy="give the mask of the head",
            )
        size, direction = check_geometry(voxel_size, b0_direction)
        self._native_size, self._native_shape = np.array(size), tuple(mask.shape)
        side = min(max(min(size), sides[0]), sides[1])
        axis = int(np.argmax(np.abs(direction)))
        aligned = math.degrees(math.acos(min(abs(direction[axis]), 1.0))) <= tilt
        self._rotation = _to_third_axis(np.eye(3)[axis] if aligned else np.array(direction))
        self.exact = aligned and all(abs(length - side) <= SAME_SIZE * side for length in size)
        self.b0_direction = _triple(self._rotation @ np.array(direction))
        if self.exact:
            self._order = [int(np.argmax(np.abs(row))) for row in self._rotation]
            self._flips = [dim for dim, row in enumerate(self._rotation) if row.sum() < 0]
            self.shape = tuple(self._native_shape[dim] for dim in self._order)
            self.voxel_size = _triple(self._native_size[self._order])
            return
        self.voxel_size = (side, side, side)
        voxels = (mask != 0).nonzero().double().cpu().numpy()
        corners = np.stack([voxels.min(0), voxels.max(0)]) if aligned else voxels
        positions = (corners * self._native_size) @ self._rotation.T
        low, high = positions.min(0), positions.max(0)
        steps = np.ceil((high - low) / side)
        self._origin = (low + high - steps * side) / 2 - MARGIN * side
        self.shape = tuple(int(step) + 1 + 2 * MARGIN for step in steps)

    def to_frame(self, volumes: Tensor, mask: Tensor) -> Tensor:
        """Bring volumes to the frame.

        Args:
            volumes: ``[..., X, Y, Z]`` in any unit, scalars (a field in ppm stays what it is).
            mask: ``[X, Y, Z]``, nonzero where they have values.

        Returns:
            ``[..., *shape]``, where nothing is exact continued a few voxels beyond the mask.
        """
        self._check(volumes, self._native_shape)
        if self.exact:
            moved = volumes.permute(*range(volumes.ndim - 3), *(volumes.ndim - 3 + dim for dim in self._order))
            return moved.flip([dim - 3 for dim in self._flips])
        matrix, offset = self._frame_to_native()
        finer = max(1, round(self.voxel_size[0] / float(self._native_size.min())))
        return _resampled(_continued(volumes, mask), matrix, offset, self.shape, finer)

    def mask_to_frame(self, mask: Tensor) -> Tensor:
        """Bring a mask ``[X, Y, Z]`` to the frame: boolean ``[*shape]``, where more than half of it is."""
        if self.exact:
            return self.to_frame(mask != 0, mask)
        return _resampled((mask != 0).float(), *self._frame_to_native(), self.shape, order=1) > 0.5

    def from_frame(self, volumes: Tensor, mask: Tensor) -> Tensor:
        """Bring volumes back.

        Args:
            volumes: ``[..., *shape]`` in any unit.
            mask: ``[*shape]``, nonzero where they have values.

        Returns:
            ``[..., X, Y, Z]``, where nothing is exact continued a few voxels beyond the mask.
        """
        self._check(volumes, self.shape)
        if self.exact:
            moved = volumes.flip([dim - 3 for dim in self._flips])
            back = np.argsort(self._order).tolist()
            return moved.permute(*range(volumes.ndim - 3), *(volumes.ndim - 3 + dim for dim in back))
        # index in the frame = (rotation @ (native index * size) - origin) / side
        matrix = self._rotation * self._native_size / self.voxel_size[0]
        offset = -self._origin / self.voxel_size[0]
        return _resampled(_continued(volumes, mask), matrix, offset, self._native_shape)

    def _frame_to_native(self) -> tuple[np.ndarray, np.ndarray]:
        """Matrix and offset that make an index of the given volume of an index of the frame."""
        inverse = self._rotation.T / self._native_size[:, None]
        return inverse * self.voxel_size[0], inverse @ self._origin

    def _check(self, volumes: Tensor, shape: tuple[int, ...]) -> None:
        if tuple(volumes.shape[-3:]) != shape:
            raise ValueError(f"volumes must be [..., {', '.join(map(str, shape))}], got {tuple(volumes.shape)}")


def _triple(values: np.ndarray) -> tuple[float, float, float]:
    return float(values[0]), float(values[1]), float(values[2])


def _to_third_axis(direction: np.ndarray) -> np.ndarray:
    """The smallest rotation that brings a direction, or its opposite, to the third axis."""
    direction = direction * np.sign(direction[np.argmax(np.abs(direction))])
    x, y, z = direction / np.linalg.norm(direction)
    rotation = np.array(
        [[1 - x * x / (1 + z), -x * y / (1 + z), -x], [-x * y / (1 + z), 1 - y * y / (1 + z), -y], [x, y, z]]
    )
    return np.where(np.abs(rotation) < 1e-12, 0.0, rotation)


def _continued(volumes: Tensor, mask: Tensor) -> Tensor:
    """Values beyond the mask: layer by layer the mean of the neighbours that have one."""
    inside = (mask != 0).to(volumes.dtype)[None, None]
    values = torch.where(inside > 0, volumes.reshape(-1, 1, *volumes.shape[-3:]), 0.0)  # NaN outside is no value
    for _ in range(GROWTH):
        near, sums = (functional.avg_pool3d(x, 3, stride=1, padding=1) for x in (inside, values))
        values = torch.where(inside > 0, values, sums / near.clamp(min=1e-6))
        inside = (near > 1e-6).to(volumes.dtype)
    return values.reshape(volumes.shape)


def _resampled(
    volumes: Tensor, matrix: np.ndarray, offset: np.ndarray, shape: Sequence[int], finer: int = 1, order: int = 3
) -> Tensor:
    """Values at matrix @ index + offset, or their means over ``finer`` points along each axis of a voxel."""
    first = offset + matrix @ np.full(3, 0.5 / finer - 0.5)
    grid = tuple(n * finer for n in shape)
    parts = []
    for volume in volumes.reshape(-1, *volumes.shape[-3:]).cpu().numpy():
        values = affine_transform(volume, matrix / finer, first, grid, order=order)
        parts.append(functional.avg_pool3d(torch.from_numpy(values)[None], finer)[0])
    return torch.stack(parts).to(volumes).reshape(*volumes.shape[:-3], *shape)
