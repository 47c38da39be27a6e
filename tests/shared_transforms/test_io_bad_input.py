"""One row for each kind of bad input: a QMRIError in five parts, and nothing is written."""

import gzip
import json
import struct
import tracemalloc

import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from monai.transforms import Compose

from shared_transforms.errors import QMRIError
from shared_transforms.io import LoadSeriesd, ParameterMap, SaveMapsd, find_series, load_series
from shared_transforms.io.nifti import read_data, read_header

IR, ME = "inversion_recovery", "multi_echo"
INT16, FLOAT = "<h", "<f"


def patch(path, *changes):
    """Overwrite header bytes: (offset, struct format, value)."""
    packed = path.name.endswith(".gz")
    raw = bytearray(gzip.decompress(path.read_bytes()) if packed else path.read_bytes())
    for offset, kind, value in changes:
        struct.pack_into(kind, raw, offset, value)
    path.write_bytes(gzip.compress(bytes(raw)) if packed else bytes(raw))


def header(*changes):
    """A fault in the header of the second file."""
    return lambda s, paths: patch(paths[1], *changes)


def sidecar(**fields):
    """Another sidecar for the second file; None removes a field."""

    def apply(s, paths):
        file = paths[1].with_name(paths[1].name.replace(".nii.gz", ".json"))
        content = {**json.loads(file.read_text()), **fields}
        file.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))

    return apply


def sidecar_text(text):
    return lambda s, paths: paths[1].with_name(paths[1].name.replace(".nii.gz", ".json")).write_text(text)


def all_times(field, *values):
    def apply(s, paths):
        for path, value in zip(paths, values, strict=True):
            file = path.with_name(path.name.replace(".nii.gz", ".json"))
            file.write_text(json.dumps({**json.loads(file.read_text()), field: value}))

    return apply


def voxels(change, affine=None):
    """Other voxels for the second file; its sidecar stays."""
    return lambda s, paths: s.image(paths[1].name, change(s.values(1, np.float32)), None, affine)


def one_voxel(value):
    def change(data):
        data[1, 2, 0] = value
        return data

    return change


def content(change):
    return lambda s, paths: paths[1].write_bytes(change(paths[1].read_bytes()))


def unpacked(change):
    return content(lambda raw: gzip.compress(change(gzip.decompress(raw))))


def affine_with(row, column, value):
    matrix = np.diag([-1.5, 1.25, 4.0, 1.0])
    matrix[row, column] = value
    return matrix


def flip(raw):
    middle = len(raw) // 2
    return raw[:middle] + bytes([raw[middle] ^ 0xFF]) + raw[middle + 1 :]


NAN, INF = float("nan"), float("inf")
RGB = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])
# name: (fault, field, part of what was found)
FILES = {
    "truncated gz": (content(lambda raw: raw[: len(raw) // 2]), "file content", "truncated"),
    "gz without its end": (content(lambda raw: raw[:-5]), "file content", "truncated"),
    "damaged gz": (content(flip), "file content", ""),
    "not gz": (content(gzip.decompress), "file content", "not gzip"),
    "empty file": (content(lambda raw: b""), "file content", "bytes"),
    "short data": (unpacked(lambda raw: raw[:-20]), "file content", "452 bytes"),
    "header only": (unpacked(lambda raw: raw[:100]), "file content", "100 bytes"),
    "no such file": (lambda s, paths: paths[1].unlink(), "path", "no such file"),
    "sizeof_hdr": (header((0, "<i", 0)), "sizeof_hdr", "0"),
    "magic": (header((344, "<4s", b"ni1\0")), "magic", "ni1"),
    "nine axes": (header((40, INT16, 9)), "dim", "[9, 5"),
    "no axes": (header((40, INT16, 0)), "dim", "[0, 5"),
    "negative length": (header((42, INT16, -5)), "dim", "-5"),
    "32000 cubed": (header((42, INT16, 32000), (44, INT16, 32000), (46, INT16, 32000)), "dim", "(32000, 32000, 32000)"),
    "five axes": (header((40, INT16, 5), (48, INT16, 1), (50, INT16, 2)), "dim", "5 axes"),
    "vox_offset": (header((108, FLOAT, NAN)), "vox_offset", "nan"),
    "bitpix": (header((72, INT16, 8)), "bitpix", "8 bits"),
    "unknown type": (header((70, INT16, 1)), "datatype", "type code 1"),
    "zero pixdim": (header((80, FLOAT, 0.0)), "pixdim", "0.0"),
    "negative pixdim": (header((84, FLOAT, -1.25)), "pixdim", "-1.25"),
    "NaN pixdim": (header((88, FLOAT, NAN)), "pixdim", "nan"),
    "infinite pixdim": (header((80, FLOAT, INF)), "pixdim", "inf"),
    "infinite slope": (header((112, FLOAT, INF)), "scl_slope", "inf"),
    "NaN slope": (header((112, FLOAT, NAN)), "scl_slope", "nan"),
    "zero slope with offset": (header((112, FLOAT, 0.0), (116, FLOAT, 7.0)), "scl_slope", "0 beside scl_inter 7"),
    "NaN intercept": (header((116, FLOAT, NAN)), "scl_inter", "nan"),
    "NaN sform": (header((280, FLOAT, NAN)), "sform", "nan"),
    "singular sform": (header((280, FLOAT, 0.0)), "sform", "singular"),
    "coplanar sform": (header((280, FLOAT, 0.0), (284, FLOAT, 1.0)), "sform", "singular"),
    "NaN qform": (header((254, INT16, 0), (252, INT16, 1), (256, FLOAT, NAN)), "qform", "nan"),
    "no unit quaternion": (header((254, INT16, 0), (252, INT16, 1), (256, FLOAT, 3.0)), "qform", ""),
}
VOXELS = {
    "NaN voxel": (
        voxels(one_voxel(NAN)),
        "voxel values",
        "in volume 1 of 1, the first at (1, 2, 0)",
    ),
    "infinite voxel": (voxels(one_voxel(INF)), "voxel values", "1 NaN or infinite"),
    "beyond float32": (voxels(lambda d: d.astype(np.float64) * 1e300), "voxel values", "NaN or infinite"),
    "all zero": (voxels(np.zeros_like), "voxel values", "zero everywhere"),
    "complex": (voxels(lambda d: d.astype(np.complex64)), "datatype", "complex64"),
    "colour": (voxels(lambda d: np.zeros(d.shape, RGB)), "datatype", "RGB24"),
    "another shape": (voxels(lambda d: d[:-1]), "dim", "shape (4, 4, 3)"),
    "4-D among 3-D": (voxels(lambda d: np.stack([d, d], -1)), "dim", "2 volumes in one of 4 files"),
    "another voxel size": (voxels(lambda d: d, np.diag([-1.6, 1.25, 4.0, 1])), "pixdim", "1.6"),
    "another position": (voxels(lambda d: d, affine_with(0, 3, 9.0)), "affine", "moves a corner"),
}
SIDECARS = {
    "missing sidecar": (
        lambda s, paths: paths[1].with_name("ir_2.json").unlink(), "JSON sidecar", "no file ir_2.json",
    ),
    "unparsable sidecar": (sidecar_text('{"InversionTime": 0.4,'), "JSON sidecar", "not readable as JSON"),
    "sidecar of another encoding": (
        lambda s, paths: paths[1].with_name("ir_2.json").write_bytes(b"\xff\xfe{"), "JSON sidecar", "not readable",
    ),
    "sidecar is a list": (sidecar_text("[0.4]"), "JSON sidecar", "a JSON list"),
    "missing field": (sidecar(InversionTime=None), "InversionTime", "no such field"),
    "text for a number": (sidecar(InversionTime="400 ms"), "InversionTime", "'400 ms'"),
    "boolean for a number": (sidecar(InversionTime=True), "InversionTime", "True"),
    "NaN time": (sidecar(InversionTime=NAN), "InversionTime", "nan"),
    "two times for a volume": (sidecar(InversionTime=[0.1, 0.2]), "InversionTime", "2 times for 1 volumes"),
    "duplicate times": (sidecar(InversionTime=1.0), "InversionTime", "more than once"),
    "zero time": (sidecar(InversionTime=0), "InversionTime", "0, 0.05"),
    "negative time": (sidecar(InversionTime=-0.4), "InversionTime", "-0.4"),
    "milliseconds": (all_times("InversionTime", 50, 400, 1000, 2500), "InversionTime", "milliseconds"),
    "TR in milliseconds": (sidecar(RepetitionTime=5000), "RepetitionTime", "milliseconds"),
    "TR not above TI": (all_times("RepetitionTime", 2, 2, 2, 2), "RepetitionTime", "2 s"),
    "TR missing in one": (sidecar(RepetitionTime=None), "RepetitionTime", "no such field"),
    "TR of wrong length": (sidecar(RepetitionTime=[5.0, 5.0]), "RepetitionTime", "2 times for 1 volumes"),
    "zero TR": (sidecar(RepetitionTime=0), "RepetitionTime", "0"),
    "phase": (sidecar(ImageType=["ORIGINAL", "PRIMARY", "P", "PHASE"]), "ImageType", "ImageType P"),
    "real part": (sidecar(ImageType=["ORIGINAL", "REAL"]), "ImageType", "REAL"),
    "imaginary part": (sidecar(ImageType=["ORIGINAL", "IMAGINARY"]), "ImageType", "IMAGINARY"),
    "BIDS phase": (sidecar(ComplexImageComponent="PHASE"), "ImageType", "PHASE"),
}  # fmt: skip
ROWS = FILES | VOXELS | SIDECARS


def assert_five_parts(error, field, found):
    assert error.field == field
    assert found in error.found
    assert all(f"{part}:" in str(error) for part in ("file", "field", "found", "expected", "remedy"))
    assert error.file and error.expected and error.remedy


@pytest.mark.parametrize("name", ROWS)
def test_a_fault_in_one_file_stops_the_series(series, tmp_path, name):
    fault, field, found = ROWS[name]
    paths = series.inversion_recovery()
    fault(series, paths)
    output = tmp_path / "output"
    save = SaveMapsd(output_dir=output, software_name="test", software_version="1")

    def infer(item):
        image = item["image"]
        return {**item, "maps": {"T1map": ParameterMap(image.as_tensor()[0], "s", "test", (0, 1))}}

    with pytest.raises(RuntimeError) as caught:  # MONAI's Compose wraps; the cause is ours
        Compose([LoadSeriesd(kind=IR), infer, save])({"image": paths})
    error = caught.value.__cause__
    assert isinstance(error, QMRIError)
    assert_five_parts(error, field, found)
    if name not in {"zero time", "negative time", "duplicate times", "milliseconds", "TR not above TI"}:
        assert "ir_2" in error.file  # these concern the whole series; any other fault lies in the second file
    assert not output.exists()


FOUR_D = {
    "a time too few": ([0.1, 0.2], "2 times for 3 volumes"),
    "a time too many": ([0.1, 0.2, 0.3, 0.4], "4 times for 3 volumes"),
    "one time for all": (0.1, "1 times for 3 volumes"),
    "an empty list": ([], "0 times for 3 volumes"),
}


@pytest.mark.parametrize("name", FOUR_D)
def test_times_that_do_not_match_the_volumes_of_a_4d_file(series, name):
    times, found = FOUR_D[name]
    path = series.four_d((0.1, 0.2, 0.3))
    (series.folder / "series.json").write_text(json.dumps({"InversionTime": times}))
    with pytest.raises(QMRIError) as caught:
        load_series([path], IR)
    assert_five_parts(caught.value, "InversionTime", found)


def test_a_bad_volume_of_a_4d_file_is_named(series):
    data = np.stack([series.values(0), np.zeros(series.shape, np.int16), series.values(2)], -1)
    path = series.image("series.nii", data, {"InversionTime": [0.1, 0.2, 0.3]})
    with pytest.raises(QMRIError, match="volume 2 of 3 is zero everywhere"):
        load_series([path], IR)


def test_no_more_is_unpacked_than_the_header_says(tmp_path):
    path = tmp_path / "bomb.nii.gz"
    nib.Nifti1Image(np.ones((4, 4, 4), np.float32), np.eye(4)).to_filename(path)
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()) + bytes(64 << 20), 1))
    tracemalloc.start()
    try:
        assert (read_data(read_header(path)) == 1).all()
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", ["huge.nii", "huge.nii.gz"])
def test_a_header_that_no_file_can_fill_is_refused(tmp_path, name):
    """NIfTI-2 has lengths of 64 bits, whose product has more."""
    raw = bytearray(nib.Nifti2Image(np.ones((4, 4, 4), np.float32), np.eye(4)).to_bytes())
    raw[24:48] = struct.pack("<3q", *[1 << 40] * 3)
    (tmp_path / name).write_bytes(gzip.compress(raw) if name.endswith(".gz") else raw)
    with pytest.raises(QMRIError, match=f"{(4 << 120) + 544} bytes"):
        read_data(read_header(tmp_path / name))


def test_uncompressed_short_data(series):
    path = series.four_d((0.1, 0.2, 0.3), name="series.nii")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(QMRIError) as caught:
        load_series([path], IR)
    assert_five_parts(caught.value, "file content", "711 bytes")


@pytest.mark.parametrize(
    ("times", "found"),
    [((10, 20, 30), "milliseconds"), ((2.0, 4.0), "milliseconds"), ((0.01,), "1 volume"), ((0.01, 0.01), "more than")],
)
def test_echo_times_that_cannot_be(series, times, found):
    with pytest.raises(QMRIError) as caught:
        load_series(series.multi_echo(times=times), ME)
    assert_five_parts(caught.value, "EchoTime", found)


def test_negative_echoes_are_no_magnitude(series):
    for i in range(2):
        series.image(f"me_{i}.nii.gz", -series.values(i), {"EchoTime": 0.01 * (i + 1)})
    with pytest.raises(QMRIError) as caught:
        load_series(sorted(series.folder.glob("*.nii.gz")), ME)
    assert_five_parts(caught.value, "voxel values", "100% of the voxels are negative")


def test_two_inversion_times_are_too_few(series):
    with pytest.raises(QMRIError) as caught:
        load_series(series.inversion_recovery(times=(0.1, 0.5)), IR)
    assert_five_parts(caught.value, "InversionTime", "2 volume(s)")


def test_a_folder_of_two_series_needs_a_choice(series):
    series.four_d((0.1, 0.2, 0.3), name="a.nii.gz")
    series.four_d((0.1, 0.2, 0.3), name="b.nii.gz")
    with pytest.raises(QMRIError, match="2 series: a, b"):
        LoadSeriesd(kind=IR)({"image": series.folder})


@pytest.mark.parametrize("faulty", ["missing sidecar", "missing field", "unparsable sidecar"])
def test_a_gap_in_a_series_is_not_left_out_in_silence(series, faulty):
    """Without its sidecar an image of the series would vanish from a search of the folder."""
    fault, field, found = ROWS[faulty]
    paths = series.inversion_recovery()
    fault(series, paths)
    with pytest.raises(QMRIError) as caught:
        find_series(series.folder, IR)
    assert_five_parts(caught.value, field, found)
    assert "ir_2" in caught.value.file


def test_wrong_arguments(series, tmp_path):
    with pytest.raises(QMRIError, match="kind"):
        LoadSeriesd(kind="look_locker")
    with pytest.raises(ValueError, match="one key"):
        LoadSeriesd(keys=["image", "label"])
    with pytest.raises(QMRIError, match="empty list"):
        load_series([], IR)
    with pytest.raises(QMRIError, match="skip_first"):
        load_series(series.inversion_recovery(), IR, skip_first=-1)
    with pytest.raises(QMRIError, match=r"\.nii"):
        dicom = tmp_path / "dicom"
        dicom.write_bytes(b"DICM")
        load_series([dicom], IR)


@given(
    changes=st.lists(st.tuples(st.integers(0, 351), st.integers(0, 255)), min_size=1, max_size=4),
    compressed=st.booleans(),
)
@example(changes=[(327, 127)], compressed=False)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_damaged_header_is_refused_or_harmless(series, changes, compressed):
    """No other exception, no warning, and never an image that is not finite."""
    path = series.four_d((0.1, 0.2, 0.3), name="series.nii.gz" if compressed else "series.nii")
    raw = bytearray(gzip.decompress(path.read_bytes()) if compressed else path.read_bytes())
    for place, value in changes:
        raw[place] = value
    path.write_bytes(gzip.compress(bytes(raw)) if compressed else bytes(raw))
    try:
        image = load_series([path], IR)["image"]
    except QMRIError as error:
        assert error.field and error.file and error.remedy
    else:
        assert bool(image.isfinite().all()) and bool((image >= 0).all()) and bool(image.affine.isfinite().all())


@given(place=st.integers(0, 10_000), value=st.integers(0, 255))
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_damaged_gzip_is_refused_or_harmless(series, place, value):
    """The checksum is tested, so voxels are those that were written, or there are none."""
    path = series.four_d((0.1, 0.2, 0.3))
    raw = bytearray(path.read_bytes())
    raw[place % len(raw)] = value
    path.write_bytes(bytes(raw))
    try:
        image = load_series([path], IR)["image"]
    except QMRIError as error:  # in the header already, or at the checksum
        assert error.field and error.file and error.remedy
    else:
        np.testing.assert_array_equal(image[1].numpy(), series.values(1))
