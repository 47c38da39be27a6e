"""NIfTI read with every check that nibabel and MONAI leave out.

Source: NIfTI-1 and NIfTI-2 definitions (nifti1.h, nifti2.h, NIH/NIMH). A header is read as it lies on disk, because
nibabel mends zero voxel sizes, bad scale factors and bad offsets on loading without a word.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar

import nibabel as nib
import numpy as np
import numpy.typing as npt

from shared_transforms.errors import QMRIError

_NIFTI1_BYTES, _NIFTI2_BYTES = 348, 540
_COMPLEX_CODES = {32: "complex64", 1792: "complex128", 2048: "complex256"}
_COLOUR_CODES = {128: "RGB24", 2304: "RGBA32"}
_REAL_CODES = {2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8"}
_SPATIAL_UNITS = {1: "metre", 2: "millimetre", 3: "micrometre"}
_SECONDS = {8: 1.0, 16: 1e-3, 24: 1e-6}
_COPY_AGAIN = "copy or convert the file again (dcm2niix -z y)"
_MOST_DEFLATED = 1032  # bytes that one byte of a gzip file can stand for
_PIECE = 1 << 20
_T = TypeVar("_T")


@dataclass(frozen=True)
class NiftiInfo:
    """A checked NIfTI header.

    Attributes:
        path: the file.
        shape: voxels (H, W, D); D is 1 for a single slice.
        n_volumes: length of the fourth axis, 1 for a 3-D file.
        dtype: type of the stored values, in the byte order of the file.
        offset: first byte of the data.
        slope: stored value times slope plus ``intercept`` is the image value.
        intercept: see ``slope``.
        affine: [4, 4] float64, voxel indices to millimetres (RAS).
        notes: remarks a user should see.
        time_step: step along the fourth axis [s], where the header states it and its unit; else None.
        length_unit: unit of the affine as the header states it; None where it does not.
    """

    path: Path
    shape: tuple[int, int, int]
    n_volumes: int
    dtype: np.dtype[Any]
    offset: int
    slope: float
    intercept: float
    affine: npt.NDArray[np.float64]
    notes: tuple[str, ...] = ()
    time_step: float | None = None
    length_unit: str | None = None

    @property
    def voxel_size(self) -> tuple[float, float, float]:
        """Edge lengths of a voxel along (H, W, D) [mm], from the affine."""
        x, y, z = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(x), float(y), float(z)


def is_nifti(path: Path) -> bool:
    """Whether the name is that of a single-file NIfTI image."""
    return path.name.lower().endswith((".nii", ".nii.gz"))


def nifti_name(path: Path) -> str:
    """File name without .nii or .nii.gz."""
    return path.name[: -len(".nii.gz")] if path.name.lower().endswith(".gz") else path.name[: -len(".nii")]


def read_header(path: Path) -> NiftiInfo:
    """Read and check the header alone.

    Args:
        path: a .nii or .nii.gz file.

    Raises:
        QMRIError: no such file, not a NIfTI file, or a header that no image can have.
    """
    if not path.is_file():
        raise QMRIError(file=path, field="path", found="no such file", expected="a NIfTI file", remedy="check the path")
    if not is_nifti(path):
        raise QMRIError(
            file=path, field="path", found=f"a file named {path.name}", expected="a name ending in .nii or .nii.gz",
            remedy="convert DICOM and other formats to NIfTI with dcm2niix -z y -o OUTPUT INPUT",
        )  # fmt: skip
    header, order = _parse_header(path, _guarded(path, lambda: _head(path)))
    shape, n_volumes = _checked_dim(path, header)
    dtype = _checked_dtype(path, header).newbyteorder(order)
    slope, intercept = _checked_scale(path, header)
    _check_pixdim(path, header)
    affine, notes = _checked_affine(path, header)
    offset = float(header["vox_offset"])
    if not np.isfinite(offset) or offset < int(header["sizeof_hdr"]):
        _fail(path, "vox_offset", offset, f"a byte position from {int(header['sizeof_hdr'])} on")
    return NiftiInfo(
        path, shape, n_volumes, dtype, int(offset), slope, intercept, affine, notes,
        time_step=_time_step(header), length_unit=_length_unit(header),
    )  # fmt: skip


def read_data(info: NiftiInfo) -> npt.NDArray[Any]:
    """Stored values [H, W, D, N], unscaled; a compressed file is unpacked once and its checksum tested.

    No more is held in memory than the header says, and no more is believed of it than the file can hold.

    Raises:
        QMRIError: the file is truncated, damaged or shorter than its header says.
    """
    count = math.prod(info.shape) * info.n_volumes
    needed = info.offset + count * info.dtype.itemsize
    if info.path.name.lower().endswith(".gz"):
        _check_length(info, _MOST_DEFLATED * info.path.stat().st_size, needed, "at most ")
        content = _guarded(info.path, lambda: _unpacked(info.path, needed))
        _check_length(info, len(content), needed)
        flat: npt.NDArray[Any] = np.frombuffer(content, info.dtype, count, info.offset)
    else:
        _check_length(info, info.path.stat().st_size, needed)
        flat = np.memmap(info.path, info.dtype, "r", info.offset, (count,))
    return flat.reshape((*info.shape, info.n_volumes), order="F")


def read_volume(info: NiftiInfo, stored: npt.NDArray[Any], index: int, out: npt.NDArray[np.float32]) -> None:
    """Scale one stored volume into ``out`` [H, W, D] and check its values.

    Args:
        info: the header.
        stored: what ``read_data`` returned, [H, W, D, N].
        index: which volume, from 0.
        out: [H, W, D] float32, overwritten.

    Raises:
        QMRIError: NaN or infinite voxels, or nothing but zeros.
    """
    where = f"volume {index + 1} of {info.n_volumes}"
    with np.errstate(all="ignore"):
        # One slice at a time in float64, rounded once: product and intercept may cancel (nibabel stores int32 around
        # -2^31), and a float64 copy of the whole volume would not fit beside the data.
        for z in range(info.shape[2]):
            out[..., z] = stored[..., z, index].astype(np.float64) * info.slope + info.intercept
    finite = np.isfinite(out)
    if not finite.all():
        first = tuple(int(i) for i in np.argwhere(~finite)[0])
        _fail(
            info.path, "voxel values",
            f"{int(finite.size - finite.sum())} NaN or infinite voxels in {where}, the first at {first}",
            "finite numbers", "find the step that made them; set voxels without signal to zero",
        )  # fmt: skip
    if not out.any():
        _fail(info.path, "voxel values", f"{where} is zero everywhere", "an image with signal", _COPY_AGAIN)


def _unpacked(path: Path, needed: int) -> bytes:
    """First ``needed`` bytes of a gzip file, or all; what follows is read for its checksum alone."""
    with gzip.open(path) as file:
        content = file.read(needed)
        while file.read(_PIECE):
            pass
    return content


def _fail(path: Path, field: str, found: object, expected: object, remedy: str = _COPY_AGAIN) -> NoReturn:
    raise QMRIError(file=path, field=field, found=found, expected=expected, remedy=remedy)


def _guarded(path: Path, read: Callable[[], _T]) -> _T:
    """Turn the many exceptions of a damaged file into one."""
    try:
        return read()
    except EOFError as error:
        found = "a truncated file: the compressed stream ends early"
        raise QMRIError(
            file=path, field="file content", found=found, expected="a complete gzip file", remedy=_COPY_AGAIN
        ) from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise QMRIError(
            file=path, field="file content", found=f"damaged or not gzip: {error}", expected="a complete gzip file",
            remedy=_COPY_AGAIN,
        ) from error  # fmt: skip
    except OSError as error:
        raise QMRIError(
            file=path, field="file content", found=f"cannot be read: {error.strerror or error}",
            expected="a readable file", remedy="check the permissions and the disk",
        ) from error  # fmt: skip


def _head(path: Path) -> bytes:
    if path.name.lower().endswith(".gz"):
        with gzip.open(path) as stream:
            return stream.read(_NIFTI2_BYTES)
    with path.open("rb") as stream:
        return stream.read(_NIFTI2_BYTES)


def _parse_header(path: Path, block: bytes) -> tuple[Any, Literal["<", ">"]]:
    """The raw header (a nibabel header made without its repairs) and the byte order, "<" or ">"."""
    if len(block) < _NIFTI1_BYTES:
        _fail(path, "file content", f"{len(block)} bytes", f"at least {_NIFTI1_BYTES} bytes of header")
    orders: tuple[Literal["<", ">"], ...] = ("<", ">")
    for order in orders:
        size = struct.unpack(order + "i", block[:4])[0]
        if size == _NIFTI1_BYTES:
            header: Any = nib.Nifti1Header(block[:_NIFTI1_BYTES], endianness=order, check=False)
            break
        if size == _NIFTI2_BYTES and len(block) == _NIFTI2_BYTES:
            header = nib.Nifti2Header(block, endianness=order, check=False)
            break
    else:
        expected = f"{_NIFTI1_BYTES} (NIfTI-1) or {_NIFTI2_BYTES} (NIfTI-2)"
        _fail(path, "sizeof_hdr", struct.unpack("<i", block[:4])[0], expected)
    magic = bytes(header["magic"].tobytes())[:3]
    if magic not in (b"n+1", b"n+2"):
        _fail(path, "magic", magic, "n+1 or n+2 (header and data in one file)")
    return header, order


def _checked_dim(path: Path, header: Any) -> tuple[tuple[int, int, int], int]:
    dim = [int(d) for d in header["dim"]]
    rank = dim[0]
    if not 1 <= rank <= 7 or any(d < 1 for d in dim[1 : rank + 1]):
        _fail(path, "dim", dim, "the number of axes, 1 to 7, then a positive length for each")
    lengths = dim[1 : rank + 1]
    if any(d != 1 for d in lengths[4:]):
        _fail(path, "dim", f"{rank} axes of lengths {lengths}", "3 or 4 axes: H, W, D and the images of the series")
    h, w, d, n = [*lengths, 1, 1, 1][:4]
    return (h, w, d), n


def _checked_dtype(path: Path, header: Any) -> np.dtype[Any]:
    code, bits = int(header["datatype"]), int(header["bitpix"])
    if code in _COMPLEX_CODES:
        _fail(
            path, "datatype", f"complex data ({_COMPLEX_CODES[code]})", "magnitude images (real numbers)",
            "export the magnitude, or save its absolute value: abs(image)",
        )  # fmt: skip
    if code in _COLOUR_CODES:
        _fail(
            path, "datatype", f"colour data ({_COLOUR_CODES[code]})", "magnitude images (one number a voxel)",
            "take the original images, not a colour-coded or secondary capture",
        )  # fmt: skip
    if code not in _REAL_CODES:
        _fail(path, "datatype", f"type code {code}", f"one of {sorted(_REAL_CODES)} (integers, float32, float64)")
    dtype = np.dtype(_REAL_CODES[code])
    if bits != 8 * dtype.itemsize:
        _fail(path, "bitpix", f"{bits} bits a voxel", f"{8 * dtype.itemsize} bits for type code {code}")
    return dtype


def _checked_scale(path: Path, header: Any) -> tuple[float, float]:
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    remedy = "write the file again with scl_slope 1 and scl_inter 0, or with the right scale"
    if not np.isfinite(slope):
        _fail(path, "scl_slope", slope, "a finite scale factor", remedy)
    if not np.isfinite(intercept):
        _fail(path, "scl_inter", intercept, "a finite offset", remedy)
    if slope == 0:  # the standard: 0 means "not scaled"; an offset beside it cannot have been meant that way
        if intercept != 0:
            _fail(path, "scl_slope", f"0 beside scl_inter {intercept:g}", "a scale factor other than 0", remedy)
        return 1.0, 0.0
    return slope, intercept


def _check_pixdim(path: Path, header: Any) -> None:
    sizes = [float(p) for p in header["pixdim"][1 : min(int(header["dim"][0]), 3) + 1]]
    if not all(np.isfinite(p) and p > 0 for p in sizes):
        _fail(
            path, "pixdim", f"voxel sizes {sizes} mm", "finite voxel sizes above 0 mm",
            "set pixdim, or convert the DICOM files again: the header was damaged by a later step",
        )  # fmt: skip
    step = float(header["pixdim"][4])
    if int(header["dim"][0]) >= 4 and not (np.isfinite(step) and step >= 0):  # 0: not stated, common and harmless
        _fail(path, "pixdim", f"a step of {step} along the fourth axis", "a finite step, 0 or more")


def _time_step(header: Any) -> float | None:
    """Step along the fourth axis [s]. Without a unit it means nothing: software writes 1 where it does not know."""
    step, unit = float(header["pixdim"][4]), _SECONDS.get(int(header["xyzt_units"]) & 0x38)
    return step * unit if unit is not None and int(header["dim"][0]) >= 4 and step > 0 else None


def _length_unit(header: Any) -> str | None:
    return _SPATIAL_UNITS.get(int(header["xyzt_units"]) & 7)


def _checked_affine(path: Path, header: Any) -> tuple[npt.NDArray[np.float64], tuple[str, ...]]:
    notes = []
    source = "sform" if int(header["sform_code"]) > 0 else "qform" if int(header["qform_code"]) > 0 else "pixdim"
    if source == "pixdim":
        notes.append(f"{path.name}: no orientation stored (sform_code and qform_code are 0), voxel sizes are kept")
    if source == "qform" and not all(np.isfinite(float(header[k])) for k in _QFORM_FIELDS):
        _fail(path, "qform", [float(header[k]) for k in _QFORM_FIELDS], "a finite affine matrix")
    try:
        with np.errstate(invalid="ignore"):  # a signalling NaN: it is refused below
            affine = np.asarray(header.get_best_affine(), dtype=np.float64)
    except ValueError as error:  # nibabel: not a unit quaternion
        raise QMRIError(file=path, field=source, found=error, expected="a rotation", remedy=_COPY_AGAIN) from error
    if not np.isfinite(affine).all():
        _fail(path, source, f"NaN or infinity in the affine {affine[:3].tolist()}", "a finite affine matrix")
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    if (lengths == 0).any() or abs(np.linalg.det(affine[:3, :3] / lengths)) < 1e-6:
        _fail(path, source, f"a singular affine {affine[:3].tolist()}", "an affine matrix that can be inverted")
    rank = min(int(header["dim"][0]), 3)
    if not np.allclose(lengths[:rank], header["pixdim"][1 : rank + 1], rtol=0.01):
        sizes = ", ".join(f"{p:g}" for p in header["pixdim"][1 : rank + 1])
        used = ", ".join(f"{p:g}" for p in lengths[:rank])
        notes.append(f"{path.name}: pixdim says {sizes} mm, the {source} {used} mm; the {source} is used")
    unit = _length_unit(header)
    if unit not in (None, "millimetre"):
        notes.append(f"{path.name}: xyzt_units says {unit}; the affine is kept as it is and written as millimetre")
    return affine, tuple(notes)


_QFORM_FIELDS = ("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z")


def _check_length(info: NiftiInfo, found: int, needed: int, bound: str = "") -> None:
    if found < needed:
        axes = " x ".join(str(n) for n in (*info.shape, info.n_volumes))
        expected = f"{needed} bytes for {axes} values of {info.dtype.name}"
        _fail(info.path, "file content", f"{bound}{found} bytes", expected)
