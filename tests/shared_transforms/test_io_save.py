"""Maps as a BIDS derivative: complete, never over another series, read back exactly."""

import json

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor

from shared_transforms.errors import QMRIError
from shared_transforms.io import LoadSeriesd, ParameterMap, SaveMapsd, find_series

SHA = "ab" * 32


def saver(folder, **changes):
    options = {"software_name": "test", "software_version": "1.2", "weights_sha256": SHA, "estimation_method": "RIM"}
    return SaveMapsd(output_dir=folder, **{**options, **changes})


def make_item(shape=(5, 4, 3), affine=None, stem="sub-01", sources=("a.nii.gz",), **maps):
    image = MetaTensor(torch.ones(3, *shape), affine=torch.eye(4, dtype=torch.float64) if affine is None else affine)
    t1 = ParameterMap(torch.rand(shape), "s", "T1", (0.0, 3.0))
    mask = ParameterMap(torch.rand(shape) > 0.5, "1", "voxels estimated", (0, 1), "mask")
    maps = maps or {"T1map": t1, "mask": mask}
    return {"image": image, "stem": stem, "sources": list(sources), "notes": ["a note"], "maps": maps}


def test_files_sidecar_and_description(tmp_path):
    item = saver(tmp_path / "out")(make_item(sources=[str(tmp_path / "in" / "a.nii.gz")]))
    folder = tmp_path / "out" / "sub-01"
    names = ["sub-01_T1map.json", "sub-01_T1map.nii.gz", "sub-01_mask.json", "sub-01_mask.nii.gz"]
    assert sorted(p.name for p in folder.iterdir()) == names  # no temporary file stays
    assert sorted(item["files"]) == [str(folder / n) for n in names]
    sidecar = json.loads((folder / "sub-01_T1map.json").read_text())
    assert sidecar == {
        "Units": "s",
        "Description": "T1",
        "Sources": ["../../in/a.nii.gz"],
        "EstimationMethod": "RIM",
        "GeneratedBy": [{"Name": "test", "Version": "1.2", "WeightsSHA256": SHA}],
        "Notes": ["a note"],
    }
    description = json.loads((tmp_path / "out" / "dataset_description.json").read_text())
    assert description["DatasetType"] == "derivative" and description["GeneratedBy"] == sidecar["GeneratedBy"]
    t1, mask = nib.load(folder / "sub-01_T1map.nii.gz"), nib.load(folder / "sub-01_mask.nii.gz")
    assert t1.get_data_dtype() == np.float32 and mask.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(np.asarray(t1.dataobj), item["maps"]["T1map"].data.numpy())
    np.testing.assert_array_equal(np.asarray(mask.dataobj), item["maps"]["mask"].data.numpy())
    assert t1.header["cal_max"] == 3 and t1.header.get_xyzt_units()[0] == "mm"


@given(
    translation=st.tuples(*[st.floats(-200, 200)] * 3),
    angles=st.tuples(*[st.floats(-3, 3)] * 2),
    sizes=st.tuples(*[st.floats(0.3, 40)] * 3),
    shear=st.sampled_from([0.0, 0.3]),
    values=st.lists(st.floats(-1e6, 1e6, width=32), min_size=24, max_size=24),
)
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_round_trip_of_values_and_affine(tmp_path, translation, angles, sizes, shear, values):
    """What is saved, read again by nibabel, is what was given: oblique, sheared and mirrored affines too."""
    (c, s), (d, e) = ((np.cos(a), np.sin(a)) for a in angles)
    turn = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ np.array([[1, 0, 0], [0, d, -e], [0, e, d]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.array([[-1, shear, 0], [0, 1, 0], [0, 0, 1]]) @ np.diag(sizes)
    affine[:3, 3] = translation
    data = torch.tensor(values, dtype=torch.float32).reshape(2, 3, 4)
    item = make_item((2, 3, 4), torch.from_numpy(affine), x=ParameterMap(data, "s", "x", (0, 1)))
    saver(tmp_path)(item)
    image = nib.load(tmp_path / "sub-01" / "sub-01_x.nii.gz")
    np.testing.assert_array_equal(np.asarray(image.dataobj), data.numpy())
    np.testing.assert_allclose(image.affine, affine, atol=1e-4)
    np.testing.assert_allclose(image.header.get_zooms(), np.linalg.norm(affine[:3, :3], axis=0), rtol=1e-5)
    if image.header["qform_code"] > 0:  # a second geometry in the file must not contradict the first
        np.testing.assert_allclose(image.get_qform(), affine, atol=1e-3)


def test_a_series_read_and_saved_keeps_its_geometry_and_is_not_found_again(series):
    series.inversion_recovery()
    item = LoadSeriesd()({"image": series.folder})
    item["maps"] = {"T1map": ParameterMap(item["image"].as_tensor()[0], "s", "T1", (0, 1))}
    item = saver(series.folder / "derivatives")(item)
    image = nib.load(next(f for f in item["files"] if f.endswith(".nii.gz")))
    np.testing.assert_allclose(image.affine, series.affine)
    np.testing.assert_allclose(image.header.get_zooms(), (1.5, 1.25, 4.0))
    sidecar = json.loads((series.folder / "derivatives" / "ir" / "ir_T1map.json").read_text())
    assert sidecar["Sources"][0] == "../../ir_1.nii.gz"
    assert len(find_series(series.folder, "inversion_recovery")) == 1


def snapshot(folder):
    return {p: p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_the_same_series_is_replaced_byte_for_byte(tmp_path):
    item = make_item()
    saver(tmp_path)(item)
    before = snapshot(tmp_path)
    saver(tmp_path)(item)
    assert snapshot(tmp_path) == before
    item["maps"]["T1map"].data.add_(1)
    saver(tmp_path)(item)
    assert snapshot(tmp_path).keys() == before.keys() and snapshot(tmp_path) != before


@pytest.mark.parametrize("another_process", [False, True])
def test_another_series_of_the_same_stem_is_refused(tmp_path, another_process):
    save = saver(tmp_path)
    save(make_item(sources=["a.nii.gz"]))
    before = snapshot(tmp_path)
    save = saver(tmp_path) if another_process else save
    with pytest.raises(QMRIError) as caught:
        save(make_item(sources=["b.nii.gz"]))
    assert caught.value.field == "stem" and "a.nii.gz" in caught.value.found and "b.nii.gz" in caught.value.expected
    assert snapshot(tmp_path) == before


def test_a_file_of_unknown_origin_is_not_overwritten(tmp_path):
    (tmp_path / "sub-01").mkdir()
    (tmp_path / "sub-01" / "sub-01_T1map.nii.gz").write_bytes(b"precious")
    with pytest.raises(QMRIError, match="unknown source"):
        saver(tmp_path)(make_item())
    assert list(snapshot(tmp_path).values()) == [b"precious"]


def test_programs_are_collected_in_the_description(tmp_path):
    saver(tmp_path)(make_item(stem="a"))
    saver(tmp_path, software_name="other")(make_item(stem="b"))
    saver(tmp_path)(make_item(stem="c"))
    description = json.loads((tmp_path / "dataset_description.json").read_text())
    assert [g["Name"] for g in description["GeneratedBy"]] == ["test", "other"]


def test_maps_are_not_written_into_a_raw_dataset(tmp_path):
    raw = '{"Name": "x", "BIDSVersion": "1.9.0", "DatasetType": "raw"}'
    (tmp_path / "dataset_description.json").write_text(raw)
    with pytest.raises(QMRIError, match="not a derivative"):
        saver(tmp_path)(make_item())
    assert list(snapshot(tmp_path).values()) == [raw.encode()]


def test_a_map_of_another_shape_is_refused_and_nothing_written(tmp_path):
    bad = ParameterMap(torch.ones(5, 4), "s", "x", (0, 1))
    good = ParameterMap(torch.ones(5, 4, 3), "s", "x", (0, 1))
    with pytest.raises(QMRIError, match=r"shape \(5, 4\)"):
        saver(tmp_path / "out")(make_item(good=good, bad=bad))
    assert not (tmp_path / "out").exists()


def test_a_failure_while_writing_takes_everything_back(tmp_path, monkeypatch):
    import shared_transforms.io.save as module

    real, calls = module.atomic_write, []

    def failing(path):
        calls.append(path)
        if len(calls) == 3:
            raise OSError("disk full")
        return real(path)

    monkeypatch.setattr(module, "atomic_write", failing)
    with pytest.raises(OSError, match="disk full"):
        saver(tmp_path / "out")(make_item())
    assert len(calls) == 3 and not (tmp_path / "out").exists()


@pytest.mark.parametrize("stem", ["", "../x", "a/b", ".hidden"])
def test_a_stem_is_a_plain_name(tmp_path, stem):
    with pytest.raises(QMRIError, match="plain file name"):
        saver(tmp_path / "out")(make_item(stem=stem))
    assert not (tmp_path / "out").exists()
