"""Read one View Line image: even and odd lines of a plane that contains the main field.

Source: paper of the bundle deepspio (IEEE TPAMI 2020, doi 10.1109/TPAMI.2020.3012103), section 3.1: lines are excited
across z, the direction of the main field, which is the readout axis as well; x is phase encoding.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform

from shared_transforms.errors import QMRIError
from shared_transforms.io.find_echoes import sidecar_or_none
from shared_transforms.io.find_view_lines import LINES, find_view_lines, lines_of, view_line_stem
from shared_transforms.io.geometry import check_same_grid
from shared_transforms.io.gradient_echo import read_files
from shared_transforms.io.load import as_meta_tensor
from shared_transforms.io.nifti import NiftiInfo, nifti_name, read_header
from shared_transforms.io.perfusion import checked_time
from shared_transforms.io.plane import PlaneOrientation, find_plane, slice_axes
from shared_transforms.io.sidecar import not_magnitude

__all__ = ["LoadViewLined", "PlaneOrientation", "find_view_lines", "load_view_line"]

ECHO_TIMES = (0.0005, 0.2)  # s
_ECHO_TIME_TOLERANCE = 0.05
_PIXEL_TOLERANCE = 0.01
# Correlation of the two channels. Lines that alternate have a negative one, at any concentration and noise (simulated:
# -0.9 to -0.08); two noisy images of the same lines one of 0.89 and above, even at 5 dB.
_MOST_OVERLAP = 0.5
_CLIPPED_SHARE, _CLIPPED_FEWEST = 0.001, 8  # of the pixels with signal; pixels


class LoadViewLined(MapTransform):
    """Read a checked View Line image into an inference item.

    ``item[keys]`` may be a 4-D file, a list of it, a list of two files (even, odd lines), or a folder that holds one
    image. The item gains ``plane``, ``orientation``, ``acquisition``, ``stem``, ``sources``, ``notes`` and ``details``
    as ``load_view_line`` returns them, and ``item[keys]`` becomes a MetaTensor [2, H, W, D]: the signal as it was
    stored.

    Args:
        keys: the one key of the image.
        pixel_size_mm: pixel size of the protocol that the network was trained for [mm]; None accepts any.
        field_of_view_mm: its field of view [mm]; another one is noted.
        echo_time_s: its echo time [s]; None accepts any.
        multiple: both sides of the plane must be a multiple of this many pixels.
        tolerance: largest angle between the readout axis and the main field [degrees].
        allow_missing_keys: see MapTransform.

    Raises:
        QMRIError: any doubt about the data; see ``load_view_line``.
    """

    def __init__(
        self,
        keys: KeysCollection = "image",
        pixel_size_mm: float | None = None,
        field_of_view_mm: float | None = None,
        echo_time_s: float | None = None,
        multiple: int = 16,
        tolerance: float = 2.0,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        if len(self.keys) != 1:
            raise ValueError(f"LoadViewLined reads one image into an item: one key is needed, got {self.keys}")
        self.options: dict[str, Any] = {
            "pixel_size_mm": pixel_size_mm, "field_of_view_mm": field_of_view_mm, "echo_time_s": echo_time_s,
            "multiple": multiple, "tolerance": tolerance,
        }  # fmt: skip

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item with the image read; see the class."""
        item = dict(data)
        for key in self.key_iterator(item):
            given = item[key]
            paths = [given] if isinstance(given, str | Path) else list(given)
            if len(paths) == 1 and Path(paths[0]).is_dir():
                found = _only_image(Path(paths[0]))
                paths, item["stem"] = found["image"], item.get("stem", found["stem"])
                item["notes"] = [*found["notes"], *item.get("notes", [])]
            loaded = load_view_line(paths, **self.options)
            image = loaded.pop("image")
            loaded["stem"] = item.get("stem", loaded["stem"])
            loaded["notes"] = [*item.get("notes", []), *loaded["notes"]]
            item.update(loaded)
            item[key] = image
        return item


def load_view_line(
    files: str | Path | Sequence[str | Path],
    *,
    echo_time_s: float | None = None,
    pixel_size_mm: float | None = None,
    field_of_view_mm: float | None = None,
    multiple: int = 16,
    tolerance: float = 2.0,
) -> dict[str, Any]:
    """Read one View Line image.

    Args:
        files: a 4-D NIfTI file of one slice with two volumes, even and odd lines; or two files of one slice, even and
            odd, in this order where their names do not say it. Sidecars may be missing.
        echo_time_s: see ``LoadViewLined``, as for the following.
        pixel_size_mm: likewise.
        field_of_view_mm: likewise.
        multiple: likewise.
        tolerance: likewise.

    Returns:
        image: MetaTensor [2, H, W, D] float32, signal as stored, of arbitrary unit; even lines first. plane: [2, X, Z]
        float32, the same with z along the main field and growing with the index, and x growing towards the side of the
        scanner's axis (right, anterior, superior) that it lies nearest to. orientation: ``PlaneOrientation`` between
        the two. acquisition: {"pixel_size": [2] mm (x, z), and, where it is known, "echo_time": [] s} float64. stem:
        name for the outputs. sources: the files. notes: remarks a user must see. details: how the data were read,
        {what: value}.

    Raises:
        QMRIError: missing or damaged file, header or sidecar; other than two channels; several slices; complex, colour,
            phase or real images; negative, NaN or infinite pixels, a channel of one value or with the lines of the
            other; even and odd lines on different grids; no main field in the plane along one of its axes; sides that
            are no multiple of ``multiple``; no pixel size, pixels that are not square or not those of the protocol; an
            echo time that is not the protocol's, or in milliseconds.
    """
    infos = _ordered_headers([files] if isinstance(files, str | Path) else files)
    first, paths = infos[0], [info.path for info in infos]
    sidecars = [sidecar_or_none(path) for path in paths]
    _check_content(infos, sidecars)
    notes = [note for info in infos for note in info.notes]
    orientation, origin, remarks = find_plane(first, sidecars[0], tolerance)
    for info, sidecar in zip(infos[1:], sidecars[1:], strict=True):
        check_same_grid(first, info, "give the even and the odd lines of one image")
        if find_plane(info, sidecar, tolerance)[0] != orientation:
            raise QMRIError(
                file=info.path, field="B0_dir", found="another direction of the main field",
                expected=f"that of {first.path.name}", remedy="correct B0_dir in the sidecars, or leave it out",
            )  # fmt: skip
    pixel_size = _pixel_size(first, orientation, sidecars, pixel_size_mm)
    _check_sides(first, orientation, multiple)
    echo_time, echo_origin = _echo_time(infos, sidecars, echo_time_s)
    values = np.empty((len(LINES), *first.shape), dtype=np.float32)
    read_files(infos, values)
    notes += [*remarks, *_check_values(values, paths)]
    plane = orientation.to_plane(torch.from_numpy(values)).contiguous()
    extent = [n * p for n, p in zip(plane.shape[1:], pixel_size, strict=True)]
    notes += _field_of_view(extent, field_of_view_mm)
    known = {} if echo_time is None else {"echo_time": torch.tensor(echo_time, dtype=torch.float64)}
    return {
        "image": as_meta_tensor(values, first, first.path),
        "plane": plane,
        "orientation": orientation,
        "acquisition": {"pixel_size": torch.tensor(pixel_size, dtype=torch.float64), **known},
        "stem": view_line_stem(first.path),
        "sources": [str(path) for path in paths],
        "notes": list(dict.fromkeys(notes)),
        "details": {
            "Plane": f"{plane.shape[1]} x {plane.shape[2]} pixels, {extent[0]:.4g} x {extent[1]:.4g} mm (x, z)",
            "Readout (z) along": f"axis {orientation.z_axis + 1} of the file" + (", turned" * orientation.flip_z),
            "B0 direction from": origin,
            **({} if echo_time is None else {"Echo time": f"{1e3 * echo_time:g} ms, from {echo_origin}"}),
        },
    }


def _only_image(folder: Path) -> dict[str, Any]:
    found = find_view_lines(folder)
    if len(found) != 1:
        raise QMRIError(
            file=folder, field="image", found=f"{len(found)} images: {', '.join(s['stem'] for s in found[:8])}",
            expected="a folder with one image",
            remedy="list the images with find_view_lines, and give one item to each",
        )  # fmt: skip
    return found[0]


def _ordered_headers(files: Sequence[str | Path]) -> list[NiftiInfo]:
    """Headers of the one file of two volumes, or of even and odd lines in this order."""
    paths = [Path(p) for p in files]
    if not 1 <= len(paths) <= len(LINES):
        raise QMRIError(
            field="image", found=f"{len(paths)} files", expected="one 4-D file, or one of the even and one of the odd "
            "lines", remedy="give the files of one image",
        )  # fmt: skip
    infos = [read_header(path) for path in paths]
    channels = len(LINES) // len(paths)
    for info in infos:
        if not slice_axes(info):
            raise QMRIError(
                file=info.path, field="dim", found=f"several slices: shape {info.shape}", remedy="take the one slice "
                "that was imaged; where even and odd lines lie along a third axis, move them to the fourth",
                expected="one slice: an axis of length 1",
            )  # fmt: skip
        if info.n_volumes != channels:
            raise QMRIError(
                file=info.path, field="dim", expected="two channels: even lines, then odd lines" if channels > 1 else
                "one volume in each of two files", found=f"{info.n_volumes} channel" + "s" * (info.n_volumes > 1),
                remedy="join the even and the odd lines to one 4-D file (fslmerge -t OUTPUT EVEN ODD), or name them "
                "NAME_lines-even.nii.gz and NAME_lines-odd.nii.gz; leave out repetitions and echoes",
            )  # fmt: skip
    held = [lines_of(path) for path in paths]
    if len(paths) > 1 and held[0] is not None and held[0] == held[1]:
        raise QMRIError(
            file=paths[1], field="image", found=f"{held[0]} lines twice", expected="even and odd lines",
            remedy=f"give the {LINES[held[0] == LINES[0]]} lines of this image",
        )  # fmt: skip
    swapped = len(paths) > 1 and (held[0] == LINES[1] or held[1] == LINES[0])
    return infos[::-1] if swapped else infos


def _check_content(infos: Sequence[NiftiInfo], sidecars: Sequence[dict[str, Any]]) -> None:
    for info, sidecar in zip(infos, sidecars, strict=True):
        reason = not_magnitude(sidecar, nifti_name(info.path))
        if reason:
            raise QMRIError(
                file=info.path, field="ImageType", found=reason, expected="magnitude images",
                remedy="take the magnitude images of the series",
            )  # fmt: skip


def _pixel_size(
    info: NiftiInfo, orientation: PlaneOrientation, sidecars: Sequence[dict[str, Any]], protocol: float | None
) -> tuple[float, float]:
    """Pixel size along x and z [mm].

    Raises:
        QMRIError: not stated, not square, or not that of the protocol.
    """
    dx, dz = info.voxel_size[orientation.x_axis], info.voxel_size[orientation.z_axis]

    def fail(found: str, expected: str, remedy: str) -> None:
        raise QMRIError(file=info.path, field="pixdim", found=found, expected=expected, remedy=remedy)

    if protocol is not None and not (math.isfinite(protocol) and protocol > 0):
        raise QMRIError(
            field="pixel_size_mm", found=protocol, expected="a length above 0 mm", remedy="correct the config"
        )
    if dx == dz == 1.0 and info.length_unit is None and not any(sidecars):
        fail(
            "no pixel size: 1 without a unit, which software writes where it does not know",
            "the pixel size in mm" if protocol is None else f"the pixel size, {protocol:.5g} mm",
            "write the pixel size and its unit (mm) into the header: pixdim, xyzt_units and the affine",
        )
    unit = f", in a header that counts in {info.length_unit}s" * (info.length_unit not in (None, "millimetre"))
    if abs(dx - dz) > _PIXEL_TOLERANCE * min(dx, dz):
        fail(f"pixels of {dx:.5g} x {dz:.5g} mm (x, z){unit}", "square pixels", "resample the image to square pixels")
    if protocol is not None and max(abs(dx - protocol), abs(dz - protocol)) > _PIXEL_TOLERANCE * protocol:
        fail(
            f"pixels of {dx:.5g} x {dz:.5g} mm (x, z){unit}",
            f"{protocol:.5g} mm, as the network was trained",
            f"resample the image to {protocol:.5g} mm, or train the network with this pixel size"
            + (": correct the header first, if the unit is wrong" if unit else ""),
        )
    return dx, dz


def _check_sides(info: NiftiInfo, orientation: PlaneOrientation, multiple: int) -> None:
    sides = [info.shape[axis] for axis in (orientation.x_axis, orientation.z_axis)]
    if not any(n % multiple for n in sides):
        return
    works = [" or ".join(str(s) for s in sorted({n // multiple * multiple, -(-n // multiple) * multiple} - {0}))
             for n in sides]  # fmt: skip
    raise QMRIError(
        file=info.path, field="dim", found=f"{sides[0]} x {sides[1]} pixels (x, z)",
        expected=f"sides that are multiples of {multiple}: {works[0]} along x, {works[1]} along z",
        remedy="crop the image, or pad it with zeros: do not resample it, the pixel size must stay",
    )  # fmt: skip


def _echo_time(
    infos: Sequence[NiftiInfo], sidecars: Sequence[dict[str, Any]], protocol: float | None
) -> tuple[float | None, str]:
    """Echo time [s] and where it comes from.

    Raises:
        QMRIError: in milliseconds, no number, several, or not that of the protocol.
    """
    expected, origin = None, "the config"
    if protocol is not None:
        expected = checked_time({}, "EchoTime", "echo_time_s", protocol, ECHO_TIMES, infos[0])
    named = "the protocol that the network was trained for"
    for info, sidecar in zip(infos, sidecars, strict=True):
        if "EchoTime" not in sidecar:
            continue
        time = checked_time(sidecar, "EchoTime", "echo_time_s", None, ECHO_TIMES, info)
        if expected is not None and abs(time - expected) > _ECHO_TIME_TOLERANCE * expected:
            raise QMRIError(
                file=info.path, field="EchoTime", found=f"{1e3 * time:g} ms in the sidecar",
                expected=f"{1e3 * expected:g} ms, as in {named}, to within {_ECHO_TIME_TOLERANCE:.0%}",
                remedy="train the network with this echo time (echo_time_s); or correct the sidecar, in seconds",
            )  # fmt: skip
        if origin == "the config":
            expected, origin, named = time, "the sidecar", infos[0].path.name
    return expected, origin


def _check_values(values: npt.NDArray[np.float32], paths: Sequence[Path]) -> list[str]:
    """Check the channels ``[2, H, W, D]``, and remark on what looks clipped."""
    notes = []
    for lines, channel, path in zip(LINES, values, [*paths, *paths][: len(LINES)], strict=True):
        negative = int(np.count_nonzero(channel < 0))
        if negative:
            raise QMRIError(
                file=path, field="voxel values", found=f"{negative} negative pixels among the {lines} lines",
                expected="a magnitude, 0 or more",
                remedy="take the magnitude image, or set to 0 the few pixels that interpolation made negative",
            )  # fmt: skip
        if channel.min() == channel.max():
            raise QMRIError(
                file=path, field="voxel values", found=f"{channel.max():g} in every pixel of the {lines} lines",
                expected="an image with lines", remedy="reconstruct the image again",
            )  # fmt: skip
        highest = int(np.count_nonzero(channel == channel.max()))
        if highest > max(_CLIPPED_FEWEST, _CLIPPED_SHARE * np.count_nonzero(channel)):
            notes.append(
                f"{highest} pixels of the {lines} lines have the largest value, {channel.max():g}: the image may be "
                "clipped, and bright lines too dark"
            )
    _check_overlap(values, paths[-1])
    return notes


def _check_overlap(values: npt.NDArray[np.float32], path: Path) -> None:
    even, odd = values.reshape(len(LINES), -1).astype(np.float64)
    if np.array_equal(even, odd):
        raise QMRIError(
            file=path, field="voxel values", found="odd lines that are a copy of the even lines",
            expected="lines that alternate", remedy="give the even lines first and the odd lines second",
        )  # fmt: skip
    overlap = float(np.corrcoef(even, odd)[0, 1])
    if overlap > _MOST_OVERLAP:
        raise QMRIError(
            file=path, field="voxel values",
            found=f"even and odd lines in the same places (correlation {overlap:.2f})",
            expected="lines that alternate: dark in one channel where they are bright in the other",
            remedy="give the even and the odd lines of one View Line image; two echoes or repetitions are none",
        )  # fmt: skip


def _field_of_view(extent: Sequence[float], protocol: float | None) -> list[str]:
    if protocol is None:
        return []
    notes = []
    for name, length in zip("xz", extent, strict=True):
        if abs(length - protocol) > _PIXEL_TOLERANCE * protocol:
            size = "smaller" if length < protocol else "larger"
            notes.append(
                f"along {name} the image is {length:.4g} mm, {size} than the field of view that the network was "
                f"trained for, {protocol:g} mm: check the result with care"
            )
    return notes
