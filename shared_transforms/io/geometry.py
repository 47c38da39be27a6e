"""Where a volume lies: grids that must agree, the direction of the main field, masks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from shared_transforms.errors import QMRIError
from shared_transforms.io.nifti import NiftiInfo, read_data, read_header, read_volume

GEOMETRY_TOLERANCE = 0.01  # of a voxel: what DICOM's decimal strings lose
_UNIT_TOLERANCE = 1e-3
_B0_FIELD = "B0_dir"  # as the QSM tools write it into sidecars


def check_same_grid(first: NiftiInfo, other: NiftiInfo, remedy: str = "give images of one series only") -> None:
    """Two files lie on one grid: equal shape, and corners that agree to a hundredth of a voxel.

    Args:
        first: what is expected.
        other: the file to check.
        remedy: begin of what the user can do.

    Raises:
        QMRIError: shape, voxel size or affine differ.
    """

    def fail(field: str, found: object, expected: object) -> None:
        raise QMRIError(
            file=other.path, field=field, found=found, expected=f"{expected}, as in {first.path.name}",
            remedy=f"{remedy}, or resample them to one grid first",
        )  # fmt: skip

    if other.shape != first.shape:
        fail("dim", f"shape {other.shape}", f"shape {first.shape}")
    if not np.allclose(other.voxel_size, first.voxel_size, rtol=1e-3):
        fail("pixdim", f"voxel size {_rounded(other.voxel_size)} mm", f"{_rounded(first.voxel_size)} mm")
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in first.shape], [1])).reshape(4, -1)
    shift = float(np.linalg.norm(((other.affine - first.affine) @ corners)[:3], axis=0).max())
    if shift > GEOMETRY_TOLERANCE * min(first.voxel_size):
        fail("affine", f"an affine that moves a corner by {shift:.4g} mm", "the same affine")


def find_b0_direction(
    info: NiftiInfo, sidecar: dict[str, Any], given: Sequence[float] | None = None
) -> tuple[tuple[float, float, float], str, list[str]]:
    """Direction of the main field in voxel axes, where it comes from, and remarks.

    B0 lies along the z axis of the scanner, which is that of the affine as long as the image was not moved since.
    Taken from ``given``, else from the sidecar field ``B0_dir``, else from the affine.

    Args:
        info: header of the image.
        sidecar: its sidecar.
        given: a unit vector in voxel axes.

    Raises:
        QMRIError: not three finite numbers of unit length, or an affine whose axes are not at right angles.
    """
    axes = info.affine[:3, :3] / np.asarray(info.voxel_size)
    if not np.allclose(axes.T @ axes, np.eye(3), atol=2e-3):
        raise QMRIError(
            file=info.path, field="affine", found=f"axes that are not at right angles {axes.round(4).tolist()}",
            expected="a grid without shear: the dipole is computed on right-angled voxels",
            remedy="resample the images to a right-angled grid (gantry tilt leaves such an affine)",
        )  # fmt: skip
    if given is not None:
        return checked_direction(given, "b0_direction"), "the user", []
    if _B0_FIELD in sidecar:
        direction = checked_direction(sidecar[_B0_FIELD], _B0_FIELD, info.path)
        return direction, f"the sidecar ({_B0_FIELD})", []
    notes = []
    if any("no orientation stored" in note for note in info.notes):
        notes.append(f"{info.path.name}: B0 is taken to lie along the third axis, as no orientation is stored")
    x, y, z = (float(v) for v in axes[2] / np.linalg.norm(axes[2]))
    return (x, y, z), "the affine", notes


def checked_direction(value: Any, field: str, file: Path | None = None) -> tuple[float, float, float]:
    """A unit vector.

    Raises:
        QMRIError: not three finite numbers, or a length other than 1.
    """
    numbers = _numbers(value)
    length = float(np.linalg.norm(numbers)) if len(numbers) == 3 else float("nan")
    if not abs(length - 1.0) <= _UNIT_TOLERANCE:
        found = f"{value!r}" + ("" if np.isnan(length) else f" of length {length:.5g}")
        raise QMRIError(
            file=file, field=field, found=found,
            expected="three numbers of unit length, B0 in voxel axes, as [0, 0, 1]",
            remedy="divide the vector by its length, or leave it out: it is then taken from the affine",
        )  # fmt: skip
    x, y, z = (n / length for n in numbers)
    return x, y, z


def read_mask(path: Path, image: NiftiInfo, field: str = "mask") -> tuple[npt.NDArray[np.bool_], list[str]]:
    """A mask on the grid of an image: nonzero voxels.

    Args:
        path: a 3-D NIfTI file.
        image: the image that it belongs to.
        field: what the mask is called in the messages.

    Returns:
        Boolean ``[X, Y, Z]``, and remarks.

    Raises:
        QMRIError: no such file, another shape or affine, several volumes, NaN, or no voxel inside.
    """
    info = read_header(path)
    if info.n_volumes > 1:
        raise QMRIError(
            file=path, field=field, found=f"{info.n_volumes} volumes", expected="one 3-D mask",
            remedy="give a single mask for all echoes",
        )  # fmt: skip
    check_same_grid(image, info, f"give a {field} of this image")
    values = np.empty(info.shape, dtype=np.float32)
    stored = read_data(info)
    if not np.any(stored):
        raise QMRIError(
            file=path, field=field, found="an empty mask: every voxel is 0", expected="voxels other than 0 inside",
            remedy=f"make the {field} again, or leave it out",
        )  # fmt: skip
    read_volume(info, stored, 0, values)
    several = len(np.unique(values)) > 2
    return values != 0, [f"{path.name} holds more than two values: every voxel other than 0 counts"] if several else []


def _numbers(value: Any) -> list[float]:
    values = list(value) if isinstance(value, list | tuple | np.ndarray) else []
    usable = all(isinstance(v, int | float) and not isinstance(v, bool) and np.isfinite(v) for v in values)
    return [float(v) for v in values] if usable else []


def _rounded(values: Sequence[float]) -> tuple[float, ...]:
    return tuple(round(v, 4) for v in values)
