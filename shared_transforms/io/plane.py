"""Where the imaging plane of a volume of one slice lies: its axes, and the way there and back."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from shared_transforms.errors import QMRIError
from shared_transforms.io.geometry import find_b0_direction
from shared_transforms.io.nifti import NiftiInfo


@dataclass(frozen=True)
class PlaneOrientation:
    """How the imaging plane ``[X, Z]`` lies in a volume of one slice ``[H, W, D]``.

    Attributes:
        x_axis: axis of the volume (0, 1 or 2) along which x runs, phase encoding.
        z_axis: axis of the volume along which z runs, readout and main field.
        flip_x: whether x falls as the index of its axis grows.
        flip_z: likewise of z.
    """

    x_axis: int
    z_axis: int
    flip_x: bool = False
    flip_z: bool = False

    def __post_init__(self) -> None:
        if self.x_axis == self.z_axis or not {self.x_axis, self.z_axis} <= {0, 1, 2}:
            raise ValueError(f"x_axis and z_axis are two different axes of 0, 1, 2, got {self.x_axis}, {self.z_axis}")

    @property
    def slice_axis(self) -> int:
        """Axis of the volume across the plane."""
        return 3 - self.x_axis - self.z_axis

    @property
    def _flipped(self) -> list[int]:
        return [axis for axis, flip in ((-2, self.flip_x), (-1, self.flip_z)) if flip]

    def to_plane(self, volume: Tensor) -> Tensor:
        """The plane ``[..., X, Z]`` of a volume ``[..., H, W, D]`` whose slice axis has length 1."""
        if volume.shape[self.slice_axis - 3] != 1:
            raise ValueError(f"axis {self.slice_axis} of (H, W, D) must have length 1, got {tuple(volume.shape)}")
        plane = volume.squeeze(self.slice_axis - 3)
        plane = plane.mT if self.x_axis > self.z_axis else plane
        return plane.flip(self._flipped)

    def to_file(self, plane: Tensor) -> Tensor:
        """The volume ``[..., H, W, D]`` of a plane ``[..., X, Z]``: the inverse of ``to_plane``."""
        plane = plane.flip(self._flipped)
        return (plane.mT if self.x_axis > self.z_axis else plane).unsqueeze(self.slice_axis - 3)


def slice_axes(info: NiftiInfo) -> list[int]:
    """The axes of length 1 of a volume (H, W, D)."""
    return [axis for axis, n in enumerate(info.shape) if n == 1]


def find_plane(info: NiftiInfo, sidecar: dict[str, Any], tolerance: float) -> tuple[PlaneOrientation, str, list[str]]:
    """Where x and z run, where the direction of the main field comes from, and remarks.

    z runs along the main field; x grows towards the side of the scanner's axis (right, anterior, superior) that it lies
    nearest to, so that one image gives one plane in whatever order it was stored.

    Args:
        info: header of a volume of one slice.
        sidecar: its sidecar, which may have B0_dir.
        tolerance: largest angle between the readout axis and the main field [degrees].

    Raises:
        QMRIError: no axis of the plane lies along the main field.
    """
    direction, origin, notes = find_b0_direction(info, sidecar)
    angles = [math.degrees(math.acos(min(abs(c), 1.0))) for c in direction]
    z_axis = int(np.argmin(angles))
    across = slice_axes(info)[-1]
    if z_axis == across or angles[z_axis] > tolerance:
        unknown = " (no orientation is stored)" * any("no orientation stored" in note for note in info.notes)
        found = (
            f"a slice across the main field: its normal lies {angles[across]:.1f} degrees off B0"
            if z_axis == across else f"a plane whose nearest axis lies {angles[z_axis]:.1f} degrees off B0"
        )  # fmt: skip
        raise QMRIError(
            file=info.path, field="affine", found=found + unknown,
            expected=f"a plane with its readout axis along B0, the scanner's z, to within {tolerance:g} degrees",
            remedy="image a plane along the main field; where the header is wrong or has no orientation, correct it or "
            "add B0_dir to the sidecar ([0, 1, 0]: B0 along the second axis of the file)",
        )  # fmt: skip
    x_axis = 3 - across - z_axis
    in_world = info.affine[:3, x_axis]
    return (
        PlaneOrientation(
            x_axis, z_axis,
            flip_x=bool(in_world[np.argmax(np.abs(in_world))] < 0), flip_z=direction[z_axis] < 0,
        ),
        origin,
        notes,
    )  # fmt: skip
