"""Requests as MONAI Label makes them, item by item."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import SaveImaged

from shared_transforms.errors import QMRIError
from shared_transforms.inferers import SlicewiseInferer
from shared_transforms.io import (
    LoadGradientEchoesd,
    LoadPerfusionSeriesd,
    LoadSeriesd,
    ParameterMap,
    SaveMapsd,
    SaveSummaryd,
    find_gradient_echoes,
    find_perfusion_series,
    prepare_series,
)
from shared_transforms.report import SaveReportd
from shared_transforms.serving import AnswerMapd, CarryArgumentsd, ReadRequestd

TIMES = [0.1, 0.5, 1.0, 2.0]


def write(path: Path, data: np.ndarray, sidecar: dict[str, object] | None = None) -> Path:
    nib.save(nib.Nifti1Image(np.moveaxis(data.astype(np.float32), 0, -1), np.diag([2.0, 2.0, 3.0, 1.0])), path)
    if sidecar is not None:
        path.with_name(path.name.replace(".nii.gz", ".json")).write_text(json.dumps(sidecar))
    return path


@pytest.fixture
def series(tmp_path: Path) -> Path:
    return write(tmp_path / "series.nii.gz", np.random.default_rng(0).uniform(1, 2, (4, 5, 6, 2)))


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ("0.03", 0.03), (" 3 ", 3.0), ("[0.5]", [0.5]), ("0.1 0.2", [0.1, 0.2]), ("(0.1, 2e-1)", [0.1, 0.2]),
        ("ppb", "ppb"), (1.5, 1.5), ([1.0, 2.0], [1.0, 2.0]),
    ],
)  # fmt: skip
def test_values_of_text_fields_become_numbers(given: object, read: object, series: Path) -> None:
    item = ReadRequestd(options=["value"])({"image": str(series), "value": given})
    assert item == {"image": str(series), "value": read}


def test_a_request_brings_nothing_but_what_is_asked_for(series: Path) -> None:
    """No file of the server, no option that is not offered, no stem by which it would pass for a finder's item."""
    wanted = {"image": str(series), "map": ["T1map"], "value": "1", "image_path": str(series), "device": "cpu"}
    others = {"stem": "a", "mask": "/etc/passwd", "phase": "/etc/passwd", "aif_csv_file": "/etc/passwd"}
    others |= {"field_sign": -1, "pred": 1, "sources": [], "notes": ["done"], "series_times_s": "1 2"}
    found = {"stem": "of the finder"}
    item = ReadRequestd(find=lambda path: [found], options=["value"])(wanted | others)
    assert item == wanted | found | {"value": 1.0}


@pytest.mark.parametrize("empty", ["", "  ", None])
def test_an_empty_value_is_left_to_the_sidecar(empty: str | None, series: Path) -> None:
    assert ReadRequestd(options=["value"])({"image": str(series), "value": empty}) == {"image": str(series)}


def test_an_item_of_a_finder_is_left_as_it_is() -> None:
    item = {"image": "/nowhere.nii.gz", "stem": "a", "value": "1"}
    assert ReadRequestd(find=lambda path: [{}], options=["value"])(item) == item


@pytest.mark.parametrize("path", ["", "nowhere.nii.gz", "."])
def test_a_path_without_a_file_is_refused(path: str) -> None:
    with pytest.raises(QMRIError, match="no file"):
        ReadRequestd()({"image": path})


def test_times_of_a_request_stand_in_for_a_sidecar(series: Path) -> None:
    request = {"image": str(series), "series_times_s": "2 1 0.5 0.1", "series_repetition_time_s": "5"}
    options = ["series_times_s", "series_repetition_time_s"]
    item = LoadSeriesd()(ReadRequestd(options=options)(request))
    stored = np.moveaxis(np.asarray(nib.load(series).dataobj), -1, 0)
    assert item["acquisition"]["times"].tolist() == pytest.approx(TIMES)
    assert item["acquisition"]["repetition_time"].tolist() == [5.0] * 4
    assert np.array_equal(item["image"].numpy(), stored[::-1])


@pytest.mark.parametrize("times", ["1 2", "1 2 3 4 5", "0.5", "100 200 300 400", "one two three four", [1, None, 2, 3]])
def test_times_that_do_not_fit_are_refused(times: object, series: Path) -> None:
    with pytest.raises(QMRIError):
        LoadSeriesd()(ReadRequestd(options=["series_times_s"])({"image": str(series), "series_times_s": times}))


def test_magnitudes_and_phases_of_one_file(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    data = np.concatenate([rng.uniform(1, 2, (3, 6, 5, 4)), rng.uniform(-np.pi, np.pi, (3, 6, 5, 4))])
    times = [0.015, 0.005, 0.010]
    joined = write(tmp_path / "gre.nii.gz", data, {"EchoTime": times, "MagneticFieldStrength": 3})
    write(tmp_path / "gre_mask.nii.gz", np.ones((1, 6, 5, 4)))
    [found] = find_gradient_echoes(joined)
    assert find_gradient_echoes(tmp_path) == [found]
    assert found["image"] == [str(joined)]
    assert found["mask"].endswith("gre_mask.nii.gz")
    item = LoadGradientEchoesd()(found)
    order = [1, 2, 0]
    assert item["acquisition"]["echo_times"].tolist() == [times[i] for i in order]
    wanted = np.concatenate([data[:3][order], data[3:][order]])
    assert np.allclose(item["image"].numpy(), wanted, atol=1e-5)
    assert bool(item["mask"].all())


def test_one_file_needs_two_volumes_for_each_echo(tmp_path: Path) -> None:
    path = write(tmp_path / "gre.nii.gz", np.random.default_rng(0).uniform(1, 2, (5, 4, 4, 4)))
    with pytest.raises(QMRIError, match="echo times") as error:
        LoadGradientEchoesd(echo_times_s=[0.005, 0.01])({"image": str(path)})
    assert "echo_times_s=" in error.value.remedy


def test_masks_of_others_are_not_taken(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).uniform(1, 2, (20, 4, 4, 2))
    timing = {"RepetitionTime": 1.5, "EchoTime": 0.03}
    first, second = (write(tmp_path / f"sub-0{i}_dsc.nii.gz", frames, timing) for i in (1, 2))
    write(tmp_path / "sub-01_mask.nii.gz", np.ones((1, 4, 4, 2)))
    assert "mask" in find_perfusion_series(first)[0]
    assert "mask" not in find_perfusion_series(second)[0]
    item = LoadPerfusionSeriesd()(ReadRequestd(find=find_perfusion_series)({"image": str(second)}))
    assert item["mask"] is None
    item = LoadPerfusionSeriesd(repetition_time_s=1.0)({"image": str(second), "repetition_time_s": 2.0})
    assert float(item["acquisition"]["repetition_time"]) == 2.0


def test_the_image_carries_what_the_network_needs() -> None:
    image = MetaTensor(torch.ones(4, 3, 3, 2))
    item = {"image": image, "acquisition": {"times": torch.tensor(TIMES)}}
    carried = CarryArgumentsd(prepare=prepare_series)(item)["image"]

    def network(part: torch.Tensor, times: torch.Tensor | None = None) -> torch.Tensor:
        return part[:, :1] * (0.0 if times is None else times.sum())

    infer = SlicewiseInferer(progress=False)
    assert float(infer(carried[None], network).mean()) == pytest.approx(sum(TIMES))
    assert float(infer(carried[None], network, times=torch.ones(2)).mean()) == 2.0
    assert float(infer(image.as_tensor()[None], network).mean()) == 0.0


MAPS = {
    "T1map": ParameterMap(torch.full((2, 3, 1), 1.25), "s", "a time", (0.0, 2.0)),
    "dseg": ParameterMap(torch.tensor([[[0], [2], [2]], [[7], [0], [0]]]), "1", "classes", (0.0, 7.0), "labels"),
    "many": ParameterMap(torch.full((2, 3, 1), 300), "1", "numbers", (0.0, 300.0), "labels"),
    "mask": ParameterMap(torch.tensor([[[0.0], [0.5], [2]], [[0], [0], [0]]]), "1", "inside", (0.0, 1.0), "mask"),
}


@pytest.mark.parametrize(
    ("wanted", "name", "dtype", "segments"),
    [
        ("T1map", "T1map", torch.float32, {}), (["T1map", "dseg"], "T1map", torch.float32, {}),
        ("dseg", "dseg", torch.uint8, {"dseg 2": 2, "dseg 7": 7}),
        ("many", "many", torch.int32, {"many 300": 300}), ("mask", "mask", torch.uint8, {"mask": 1}),
    ],
)  # fmt: skip
def test_the_map_that_was_asked_for(wanted: object, name: str, dtype: torch.dtype, segments: dict[str, int]) -> None:
    affine = torch.diag(torch.tensor([2.0, 2.0, 3.0, 1.0], dtype=torch.float64))
    image = MetaTensor(torch.ones(4, 2, 3, 1), affine=affine)
    item = {"maps": MAPS, "map": wanted, "image": image, "sources": ["a"], "notes": ["note"]}
    found = AnswerMapd()(item)
    expected = MAPS[name].data != 0 if name == "mask" else MAPS[name].data
    assert found["pred"].dtype == dtype
    assert torch.equal(found["pred"].as_tensor()[0], expected.to(dtype))
    assert torch.equal(found["pred"].affine, affine)
    assert found["result"]["segments"] == segments
    assert found["result"]["unit"] == MAPS[name].unit
    json.dumps(found["result"])


@pytest.mark.parametrize("wanted", ["T2map", "", [], [[]], {"a": 1}, None, 3])
def test_a_map_that_is_not_there(wanted: object) -> None:
    with pytest.raises(QMRIError, match="one of T1map, dseg, many, mask"):
        AnswerMapd()({"maps": MAPS, "map": wanted, "image": MetaTensor(torch.ones(4, 2, 3, 1)), "sources": ["a"]})


def test_no_request_no_answer() -> None:
    item = {"maps": MAPS, "pred": 1}
    assert AnswerMapd()(item) == item


@pytest.mark.parametrize("writer", [SaveMapsd, SaveSummaryd, SaveReportd])
def test_what_writes_files_is_a_save_imaged(writer: type) -> None:
    """By this MONAI Label knows it, and leaves it out."""
    assert issubclass(writer, SaveImaged)
