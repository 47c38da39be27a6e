"""Good series are read exactly; the values, order and geometry are those on disk."""

import json

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor

from shared_transforms.errors import QMRIError
from shared_transforms.io import LoadSeriesd, load_series

IR, ME = "inversion_recovery", "multi_echo"


def test_files_in_any_order_come_out_by_time(series):
    paths = series.inversion_recovery(times=(1.0, 0.05, 2.5, 0.4))
    item = LoadSeriesd(kind=IR)({"image": [str(p) for p in reversed(paths)]})
    image = item["image"]
    assert isinstance(image, MetaTensor) and image.dtype == torch.float32 and image.shape == (4, 5, 4, 3)
    torch.testing.assert_close(item["acquisition"]["times"], torch.tensor([0.05, 0.4, 1.0, 2.5]))
    torch.testing.assert_close(item["acquisition"]["repetition_time"], torch.full((4,), 5.0))
    for n, volume in enumerate((1, 3, 0, 2)):
        np.testing.assert_array_equal(image[n].numpy(), series.values(volume))
    np.testing.assert_allclose(image.affine, series.affine)
    assert item["sources"] == [str(paths[i]) for i in (1, 3, 0, 2)]
    assert item["stem"] == "ir" and item["notes"] == []


@pytest.mark.parametrize("name", ["series.nii.gz", "series.nii"])
def test_one_4d_file_with_a_list(series, name):
    path = series.four_d((2.0, 0.1, 0.5), name=name, RepetitionTime=[9.0, 7.0, 8.0])
    item = load_series([path], IR)
    torch.testing.assert_close(item["acquisition"]["times"], torch.tensor([0.1, 0.5, 2.0]))
    torch.testing.assert_close(item["acquisition"]["repetition_time"], torch.tensor([7.0, 8.0, 9.0]))
    np.testing.assert_array_equal(item["image"][2].numpy(), series.values(0))
    assert item["stem"] == "series" and item["sources"] == [str(path)]


def test_a_path_a_list_and_a_folder_give_the_same_item(series):
    path = series.four_d((0.01, 0.02, 0.03), field="EchoTime")
    load = LoadSeriesd(kind=ME)
    items = [load({"image": given}) for given in (str(path), [path], path.parent)]
    assert all(torch.equal(i["image"], items[0]["image"]) and i["stem"] == "series" for i in items)
    assert "repetition_time" not in items[0]["acquisition"]


def test_skip_first_leaves_out_the_shortest_times_and_says_so(series):
    paths = series.multi_echo(times=(0.03, 0.01, 0.02))
    item = load_series(paths, ME, skip_first=1)
    torch.testing.assert_close(item["acquisition"]["times"], torch.tensor([0.02, 0.03]))
    assert item["notes"] == ["left out (skip_first): EchoTime 0.01 s"]
    with pytest.raises(QMRIError, match="at least 2 volumes"):
        load_series(paths, ME, skip_first=2)


def test_a_single_slice_and_a_trailing_axis_of_length_one(series):
    for i, shape in enumerate([(5, 4), (5, 4, 1, 1), (5, 4, 1)]):
        series.image(f"ir_{i}.nii.gz", np.ones(shape, np.float32), {"InversionTime": 0.1 * (i + 1)})
    assert load_series(sorted(series.folder.glob("*.nii.gz")), IR)["image"].shape == (3, 5, 4, 1)


def test_signed_inversion_recovery_is_folded_and_said_so(series):
    for i, t in enumerate((0.05, 0.4, 1.0)):
        series.image(f"ir_{i}.nii.gz", series.values() * (-1 if i < 1 else 1), {"InversionTime": t})
    item = load_series(sorted(series.folder.glob("*.nii.gz")), IR)
    np.testing.assert_array_equal(item["image"][0].numpy(), series.values())
    assert any("signed inversion recovery (33% of the voxels" in n and "folded" in n for n in item["notes"])


def test_a_few_negative_voxels_are_folded_and_said_so(series):
    series.shape = (10, 10, 5)
    paths = series.multi_echo()
    data = series.values()
    data[0, 0, 0] = -3
    series.image(paths[0].name, data, {"EchoTime": 0.01})
    item = load_series(paths, ME)
    assert item["image"][0, 0, 0, 0] == 3 and "1 voxels" in item["notes"][0]


def test_without_repetition_time_there_is_a_note(series):
    item = load_series(series.inversion_recovery(tr=None), IR)
    assert "repetition_time" not in item["acquisition"] and "no RepetitionTime" in item["notes"][0]


def test_gradient_echoes_are_read_with_a_warning(series):
    assert "T2*" in load_series(series.multi_echo(ScanningSequence="GR"), ME)["notes"][0]
    note = load_series(series.inversion_recovery(ScanningSequence="GR\\IR"), IR)["notes"][0]
    assert "T1 may come out too short" in note


def test_header_oddities_are_kept_as_notes(series):
    paths = series.inversion_recovery(name="ir_{i}.nii")
    raw = bytearray(paths[0].read_bytes())
    raw[80:84] = np.float32(9).tobytes()  # pixdim[1], against 1.5 mm in the sform
    raw[123] = 1  # metre
    paths[0].write_bytes(raw)
    notes = " ".join(load_series(paths, IR)["notes"])
    assert "pixdim says 9, 1.25, 4 mm, the sform 1.5, 1.25, 4 mm" in notes and "metre" in notes
    item = load_series(paths, IR)
    np.testing.assert_allclose(item["image"].affine, series.affine)


def test_no_orientation_is_a_note(series):
    for i, t in enumerate((0.1, 0.2, 0.3)):
        image = nib.Nifti1Image(series.values(), None)
        image.header.set_zooms((2, 3, 4))
        series.folder.mkdir(exist_ok=True)
        nib.save(image, series.folder / f"ir_{i}.nii")
        (series.folder / f"ir_{i}.json").write_text(json.dumps({"InversionTime": t}))
    item = load_series(sorted(series.folder.glob("*.nii")), IR)
    assert "no orientation" in item["notes"][0]
    np.testing.assert_allclose(np.abs(np.diag(item["image"].affine)), [2, 3, 4, 1])


def test_big_endian_and_nifti2_are_read(series):
    series.folder.mkdir()
    for i, t in enumerate((0.1, 0.2, 0.3)):
        header = nib.Nifti1Header(endianness=">") if i == 0 else None
        kind = nib.Nifti2Image if i == 1 else nib.Nifti1Image
        nib.save(kind(series.values(i), series.affine, header), series.folder / f"ir_{i}.nii.gz")
        (series.folder / f"ir_{i}.json").write_text(json.dumps({"InversionTime": t}))
    image = load_series(sorted(series.folder.glob("*.nii.gz")), IR)["image"]
    for i in range(3):
        np.testing.assert_array_equal(image[i].numpy(), series.values(i))


@given(
    dtype=st.sampled_from(["u1", "i2", "u2", "i4", "f4", "f8"]),
    slope=st.floats(1e-4, 1e3),
    intercept=st.floats(0, 100),
    translation=st.tuples(*[st.floats(-200, 200)] * 3),
    angle=st.floats(-3, 3),
    sizes=st.tuples(*[st.floats(0.3, 40)] * 3),
    compressed=st.booleans(),
)
# nibabel stores int32 around -2^31 with an intercept that cancels it: rounding before adding loses digits
@example(dtype="i4", slope=1e-3, intercept=0, translation=(0, 0, 0), angle=0, sizes=(1, 1, 1), compressed=False)
@example(dtype="i4", slope=1e-4, intercept=100, translation=(0, 0, 0), angle=0, sizes=(1, 1, 1), compressed=True)
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_values_and_affine_are_those_nibabel_reads(
    tmp_path, dtype, slope, intercept, translation, angle, sizes, compressed
):
    """nibabel is the independent reader: any type, scale and oblique affine."""
    affine = np.eye(4)
    c, s = np.cos(angle), np.sin(angle)
    affine[:3, :3] = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ np.diag(sizes)
    affine[:3, 3] = translation
    path = tmp_path / ("x.nii.gz" if compressed else "x.nii")
    stored = np.arange(1, 2 * 3 * 4 * 3 + 1).reshape(2, 3, 4, 3).astype(dtype)
    header = nib.Nifti1Header()
    header.set_data_dtype(dtype)  # nibabel then chooses scl_slope and scl_inter for the stored type
    nib.save(nib.Nifti1Image(stored * slope + intercept, affine, header), path)
    (tmp_path / "x.json").write_text(json.dumps({"InversionTime": [0.1, 0.2, 0.3]}))
    reference = nib.load(path)
    loaded = load_series([path], IR)["image"]
    np.testing.assert_allclose(loaded.numpy(), np.moveaxis(reference.get_fdata(), -1, 0), rtol=1e-6)
    np.testing.assert_allclose(loaded.affine, reference.affine, atol=1e-6)
