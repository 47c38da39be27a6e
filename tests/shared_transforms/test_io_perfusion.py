"""DSC series as the converters write them: found, told from other 4-D series, and refused where there is doubt."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

from shared_transforms.errors import QMRIError
from shared_transforms.io import (
    LoadPerfusionSeriesd,
    find_perfusion_series,
    find_series,
    load_perfusion_series,
    prepare_perfusion,
)

SHAPE, FRAMES = (5, 6, 4), 24
AFFINE = np.diag([-1.5, 2.0, 5.0, 1.0])
SIDECAR = {"RepetitionTime": 1.5, "EchoTime": 0.03}


def signal(frames: int = FRAMES) -> np.ndarray:
    """[X, Y, Z, T], a different value everywhere."""
    return (100 + np.arange(frames * np.prod(SHAPE))).reshape(*SHAPE, frames).astype(np.float32)


def write(
    path: Path,
    data: np.ndarray | None = None,
    step: float | None = None,
    unit: str = "sec",
    affine: np.ndarray = AFFINE,
    **fields: Any,
) -> Path:
    """One NIfTI file and its sidecar; a field of None is left out, ``sidecar=None`` leaves out all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(signal() if data is None else data, affine)
    if step is not None:
        image.header.set_xyzt_units("mm", unit)
        image.header["pixdim"][4] = step
    nib.save(image, path)
    if fields.get("sidecar", True) is not None:
        sidecar = {k: v for k, v in (SIDECAR | fields).items() if v is not None}
        Path(str(path).removesuffix(".gz").replace(".nii", ".json")).write_text(json.dumps(sidecar))
    return path


def load(path: Path, **options: Any) -> dict[str, Any]:
    return dict(LoadPerfusionSeriesd(**options)({"image": str(path)}))


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("sub-01/perf/sub-01_dsc.nii.gz", "sub-01"),
        ("sub-01/ses-2/perf/sub-01_ses-2_perf.nii", "sub-01_ses-2"),
        ("ep2d_perf_p2_7.nii.gz", "ep2d_perf_p2_7"),
        ("scan 12.nii.gz", "scan-12"),
    ],
)
def test_what_converters_write_is_found_and_read(tmp_path: Path, name: str, stem: str) -> None:
    path = write(tmp_path / name)
    (found,) = find_perfusion_series(tmp_path)
    assert found == {"image": str(path), "stem": stem, "notes": []}
    item = LoadPerfusionSeriesd()(found)
    assert item["image"].shape == (FRAMES, *SHAPE) and item["image"].dtype == torch.float32
    assert torch.equal(item["image"].as_tensor(), torch.from_numpy(np.moveaxis(signal(), -1, 0)))
    np.testing.assert_allclose(item["image"].affine, AFFINE)
    acquisition = item["acquisition"]
    assert (float(acquisition["repetition_time"]), float(acquisition["echo_time"])) == (1.5, 0.03)
    assert acquisition["voxel_size"].tolist() == [1.5, 2.0, 5.0]
    assert item["mask"] is None and item["stem"] == stem and item["sources"] == [str(path)] and item["notes"] == []
    for given in (path, tmp_path):  # the file, or the folder
        assert torch.equal(load(given)["image"], item["image"]) and load(given)["stem"] == stem


def test_other_series_are_left_out(tmp_path: Path) -> None:
    write(tmp_path / "perf_3.nii.gz")
    write(tmp_path / "ep2d_bold_4.nii.gz")
    write(tmp_path / "pcasl_perf_5.nii.gz")
    write(tmp_path / "perf_6.nii.gz", LabelingDuration=1.8)
    write(tmp_path / "series_7.nii.gz", SeriesDescription="DCE dynamic")
    write(tmp_path / "series_8.nii.gz")
    (tmp_path / "series_8.bval").write_text("0 1000")
    write(tmp_path / "t1_9.nii.gz", signal()[..., 0])
    write(tmp_path / "gre_10.nii.gz", signal(3), EchoTime=[0.01, 0.02, 0.03])
    write(tmp_path / "perf_11_ph.nii.gz")
    write(tmp_path / "sub-1_task-rest_bold.nii.gz")
    write(tmp_path / "sub-1_asl.nii.gz")
    (found,) = find_perfusion_series(tmp_path)
    assert found["stem"] == "perf_3"
    # A named file is taken whatever its name is.
    assert find_perfusion_series(tmp_path / "ep2d_bold_4.nii.gz")[0]["stem"] == "ep2d_bold_4"
    with pytest.raises(QMRIError, match="no InversionTime|InversionTime"):
        find_series(tmp_path, "inversion_recovery")


def test_several_series_have_stems_of_their_own(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        write(tmp_path / folder / "perf.nii.gz")
    assert [s["stem"] for s in find_perfusion_series(tmp_path)] == ["a_perf", "b_perf"]
    with pytest.raises(QMRIError, match="2 series: a_perf, b_perf"):
        load(tmp_path)


def test_times_of_the_sidecar_above_and_of_the_config(tmp_path: Path) -> None:
    path = write(tmp_path / "sub-01/perf/sub-01_dsc.nii.gz", sidecar=None)
    (tmp_path / "sub-01/sub-01_dsc.json").write_text(json.dumps(SIDECAR))
    assert float(load(path)["acquisition"]["repetition_time"]) == 1.5
    bare = write(tmp_path / "bare.nii.gz", sidecar=None)
    acquisition = load(bare, repetition_time_s=2, echo_time_s=0.05)["acquisition"]
    assert (float(acquisition["repetition_time"]), float(acquisition["echo_time"])) == (2.0, 0.05)
    wrong = write(tmp_path / "wrong.nii.gz", RepetitionTime=1500, EchoTime=30)
    assert float(load(wrong, repetition_time_s=2, echo_time_s=0.05)["acquisition"]["echo_time"]) == 0.05


def test_times_in_lists(tmp_path: Path) -> None:
    path = write(tmp_path / "a.nii", RepetitionTime=[1.5] * FRAMES, EchoTime=[0.03])
    assert float(load(path)["acquisition"]["repetition_time"]) == 1.5
    path = write(tmp_path / "b.nii", RepetitionTime=None, VolumeTiming=[1.25 * i for i in range(FRAMES)])
    assert float(load(path)["acquisition"]["repetition_time"]) == 1.25


@pytest.mark.parametrize(
    ("step", "unit", "time", "noted"),
    [(1.5, "sec", 1.5, False), (1540, "msec", 1.5, False), (3.0, "sec", 1.5, True), (1500, "msec", 1.4, True)],
)
def test_header_that_contradicts_the_sidecar(tmp_path: Path, step: float, unit: str, time: float, noted: bool) -> None:
    item = load(write(tmp_path / "perf.nii.gz", step=step, unit=unit, RepetitionTime=time))
    assert float(item["acquisition"]["repetition_time"]) == time
    assert any("pixdim[4]" in note for note in item["notes"]) == noted


def test_header_without_unit_contradicts_nothing(tmp_path: Path) -> None:
    item = load(write(tmp_path / "perf.nii.gz", step=1.0, unit="unknown"))
    assert item["notes"] == []


def test_coarse_frames_are_noted(tmp_path: Path) -> None:
    (note,) = load(write(tmp_path / "perf.nii.gz", RepetitionTime=3.0))["notes"]
    assert "coarse" in note


def test_masks_and_curves_that_lie_beside_the_series(tmp_path: Path) -> None:
    path = write(tmp_path / "sub-01/perf/sub-01_dsc.nii.gz")
    inside = np.zeros(SHAPE, np.uint8)
    inside[1:3, 2:5, 1] = 1
    mask = write(tmp_path / "sub-01/perf/sub-01_desc-brain_mask.nii.gz", inside, sidecar=None)
    vessel = write(tmp_path / "sub-01/perf/sub-01_label-AIF_mask.nii.gz", inside, sidecar=None)
    curve = tmp_path / "sub-01/perf/sub-01_vof.csv"
    curve.write_text("0\n")
    earlier = tmp_path / "derivatives/earlier/sub-01/sub-01_aif.csv"
    earlier.parent.mkdir(parents=True)
    earlier.write_text("0\n")
    (found,) = find_perfusion_series(tmp_path)
    assert found["mask"] == str(mask) and found["aif_mask_file"] == str(vessel) and found["vof_csv_file"] == str(curve)
    assert "vof_mask_file" not in found and "aif_csv_file" not in found
    item = LoadPerfusionSeriesd()(found)
    assert item["mask"].shape == (1, *SHAPE) and np.array_equal(item["mask"][0].numpy(), inside > 0)
    assert item["sources"] == [str(path), str(mask)] and item["aif_mask_file"] == str(vessel)
    assert load(tmp_path)["mask"].equal(item["mask"])  # a folder brings them too
    other = write(tmp_path / "other/mask_of_mine.nii.gz", np.ones(SHAPE, np.uint8), sidecar=None)
    assert bool(LoadPerfusionSeriesd(mask_file=other)(found)["mask"].all())
    write(tmp_path / "sub-01/perf/sub-01_head_mask.nii.gz", inside, sidecar=None)
    with pytest.raises(QMRIError, match="mask_file"):
        find_perfusion_series(tmp_path)


def test_what_belongs_to_pat10_is_not_of_pat1(tmp_path: Path) -> None:
    first, tenth = write(tmp_path / "pat1.nii.gz"), write(tmp_path / "pat10.nii.gz")
    mask = write(tmp_path / "pat10_mask.nii.gz", np.ones(SHAPE, np.uint8), sidecar=None)
    curve = tmp_path / "pat10_aif.csv"
    curve.write_text("0\n")
    one, other = find_perfusion_series(tmp_path)
    assert one == {"image": str(first), "stem": "pat1", "notes": []}
    assert (other["mask"], other["aif_csv_file"]) == (str(mask), str(curve))
    assert [find_perfusion_series(path) for path in (first, tenth)] == [[one], [other]]


@pytest.mark.parametrize("other", ["sub-01_dwi.nii.gz", "short.nii.gz", "damaged.nii.gz", "sub-01/sub-01_T1w.nii.gz"])
def test_a_file_is_given_the_nameless_mask_that_its_folder_gives(tmp_path: Path, other: str) -> None:
    path = write(tmp_path / "sub-01_dsc.nii.gz")
    frames = {"short.nii.gz": 3, "sub-01/sub-01_T1w.nii.gz": 1}.get(other, FRAMES)
    damaged = write(tmp_path / other, signal(frames))
    if other == "damaged.nii.gz":
        damaged.write_bytes(b"none")
    write(tmp_path / "brain_mask.nii.gz", np.ones(SHAPE, np.uint8), sidecar=None)
    (tmp_path / "artery.csv").write_text("0\n")
    (found,) = find_perfusion_series(tmp_path)
    assert {"mask", "aif_csv_file"} < found.keys()
    assert find_perfusion_series(path) == [found]


@pytest.mark.parametrize("second", ["b_dsc.nii.gz", "below/b_dsc.nii.gz", "damaged_dsc.nii.gz"])
def test_a_nameless_mask_beside_two_series_is_of_neither(tmp_path: Path, second: str) -> None:
    path = write(tmp_path / "a_dsc.nii.gz")
    other = write(tmp_path / second)
    if second.startswith("damaged"):
        other.write_bytes(b"none")
    write(tmp_path / "brain_mask.nii.gz", np.ones(SHAPE, np.uint8), sidecar=None)
    assert "mask" not in find_perfusion_series(path)[0]


def test_mask_of_an_earlier_run_is_not_taken(tmp_path: Path) -> None:
    write(tmp_path / "perf.nii.gz")
    made = tmp_path / "derivatives/stnet_perfusion/perf/perf_mask.nii.gz"
    write(made, np.ones(SHAPE, np.uint8), EstimationMethod="oSVD")
    assert "mask" not in find_perfusion_series(tmp_path)[0]
    write(made, np.ones(SHAPE, np.uint8), sidecar=None)
    made.with_name("perf_mask.json").unlink()
    assert find_perfusion_series(tmp_path)[0]["mask"] == str(made)


def one_voxel(value: float) -> np.ndarray:
    data = signal()
    data[1, 2, 3, 7] = value
    return data


def empty_frame() -> np.ndarray:
    data = signal()
    data[..., 5] = 0
    return data


# What is wrong with the file: (changes, field, part of what was found).
BAD_SERIES: dict[str, tuple[dict[str, Any], str, str]] = {
    "19 frames": ({"data": signal(19)}, "dim", "19 frames"),
    "no TR": ({"RepetitionTime": None}, "RepetitionTime", "no such field"),
    "no TR, but a header": ({"RepetitionTime": None, "step": 1.6}, "RepetitionTime", "header says 1.6 s"),
    "no TE": ({"EchoTime": None}, "EchoTime", "no such field"),
    "TR in ms": ({"RepetitionTime": 1500}, "RepetitionTime", "milliseconds"),
    "TE in ms": ({"EchoTime": 30}, "EchoTime", "milliseconds"),
    "TR of 0": ({"RepetitionTime": 0}, "RepetitionTime", "0"),
    "TR of a minute": ({"RepetitionTime": 60}, "RepetitionTime", "60"),
    "TR divided twice": ({"RepetitionTime": 0.0015}, "RepetitionTime", "0.0015"),
    "TE negative": ({"EchoTime": -0.03}, "EchoTime", "-0.03"),
    "TE divided twice": ({"EchoTime": 3e-5}, "EchoTime", "3e-05"),
    "TE above TR": ({"EchoTime": 0.15, "RepetitionTime": 0.12}, "EchoTime", "0.15 s"),
    "TE a word": ({"EchoTime": "30 ms"}, "EchoTime", "30 ms"),
    "TE true": ({"EchoTime": True}, "EchoTime", "True"),
    "TE an empty list": ({"EchoTime": []}, "EchoTime", "[]"),
    "several TE": ({"EchoTime": [0.015, 0.03]}, "EchoTime", "several: 0.015, 0.03"),
    "several TR": ({"RepetitionTime": [1.5, 2.0]}, "RepetitionTime", "several"),
    "unequal frames": (
        {"RepetitionTime": None, "VolumeTiming": [float(i * i) for i in range(FRAMES)]}, "VolumeTiming", "steps",
    ),
    "times of other frames": ({"RepetitionTime": None, "VolumeTiming": [0.0, 1.5]}, "VolumeTiming", "2 times for 24"),
    "NaN": ({"data": one_voxel(np.nan)}, "voxel values", "1 NaN"),
    "infinite": ({"data": one_voxel(-np.inf)}, "voxel values", "1 NaN or infinite"),
    "a frame of zeros": ({"data": empty_frame()}, "voxel values", "volume 6 of 24 is zero"),
    "complex": ({"data": signal().astype(np.complex64)}, "datatype", "complex"),
    "5-D": ({"data": np.stack([signal()] * 2, -1)}, "dim", "5 axes"),
    "phase": ({"ImageType": ["ORIGINAL", "PRIMARY", "P"]}, "ImageType", "P"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_SERIES)
def test_bad_series(tmp_path: Path, name: str) -> None:
    changes, field, found = BAD_SERIES[name]
    path = write(tmp_path / "perf.nii.gz", **changes)
    with pytest.raises(QMRIError) as error:
        load(path)
    assert error.value.field == field and found in error.value.found
    assert error.value.remedy and error.value.expected and error.value.file == str(path)
    with pytest.raises(QMRIError):  # in a folder nothing is left out in silence either
        for item in find_perfusion_series(tmp_path):
            LoadPerfusionSeriesd()(item)


def test_a_file_of_three_dimensions(tmp_path: Path) -> None:
    path = write(tmp_path / "perf.nii.gz", signal()[..., 0])
    with pytest.raises(QMRIError, match="a 3-D file"):
        load(path)
    with pytest.raises(QMRIError, match="1 x a 3-D file"):
        find_perfusion_series(tmp_path)


def test_two_echoes_of_one_series(tmp_path: Path) -> None:
    for echo, time in ((1, 0.012), (2, 0.03)):
        write(tmp_path / f"perf_5_e{echo}.nii.gz", EchoTime=time, SeriesNumber=5)
    with pytest.raises(QMRIError, match="2 echoes of one series") as error:
        find_perfusion_series(tmp_path)
    assert error.value.field == "EchoTime"
    assert float(load(tmp_path / "perf_5_e2.nii.gz")["acquisition"]["echo_time"]) == 0.03


BAD_OPTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "TR in ms": ({"repetition_time_s": 1500}, "repetition_time_s"),
    "TE in ms": ({"echo_time_s": 30.0}, "echo_time_s"),
    "TE of NaN": ({"echo_time_s": float("nan")}, "echo_time_s"),
    "no such mask": ({"mask_file": "nowhere.nii.gz"}, "path"),
}


@pytest.mark.parametrize("name", BAD_OPTIONS)
def test_bad_options(tmp_path: Path, name: str) -> None:
    options, field = BAD_OPTIONS[name]
    with pytest.raises(QMRIError) as error:
        load(write(tmp_path / "perf.nii.gz"), **options)
    assert error.value.field == field


def test_bad_masks(tmp_path: Path) -> None:
    path = write(tmp_path / "perf.nii.gz")
    faults = {
        "dim": (np.ones((5, 6, 3), np.uint8), AFFINE),
        "affine": (np.ones(SHAPE, np.uint8), AFFINE + np.eye(4, k=3)),
        "mask": (np.zeros(SHAPE, np.uint8), AFFINE),
        "voxel values": (np.full(SHAPE, np.nan, np.float32), AFFINE),
    }
    for field, (data, affine) in faults.items():
        mask = write(tmp_path / "m/mask.nii.gz", data, affine=affine, sidecar=None)
        with pytest.raises(QMRIError) as error:
            load(path, mask_file=mask)
        assert error.value.field == field, field


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(QMRIError, match="no such folder"):
        find_perfusion_series(tmp_path / "nowhere")
    with pytest.raises(QMRIError, match="no NIfTI file"):
        find_perfusion_series(tmp_path)
    with pytest.raises(QMRIError, match="no such file"):
        load_perfusion_series(tmp_path / "perf.nii.gz")
    with pytest.raises(QMRIError, match="2 files"):
        LoadPerfusionSeriesd()({"image": ["a.nii", "b.nii"]})
    with pytest.raises(ValueError, match="one key"):
        LoadPerfusionSeriesd(keys=("a", "b"))
    (tmp_path / "perf.nii.gz").write_bytes(b"no image")
    with pytest.raises(QMRIError, match=r"perf\.nii\.gz"):
        find_perfusion_series(tmp_path)


def test_prepared_for_an_engine(tmp_path: Path) -> None:
    item = load(write(tmp_path / "perf.nii.gz"))
    item |= {"mask": torch.ones(1, *SHAPE).bool(), "aif": torch.arange(23.0), "vof": torch.ones(23)}
    image, label, args, keywords = prepare_perfusion(item, "cpu", False)
    assert image.shape == (1, FRAMES, *SHAPE) and label is None and args == ()
    assert keywords["mask"].shape == (1, 1, *SHAPE) and keywords["aif"].shape == keywords["vof"].shape == (1, 23)
    assert keywords["frame_time"] == 1.5 and keywords["voxel_size"] == (1.5, 2.0, 5.0)
