"""Arterial and venous curve of an inference item: found, by mask, by table; what is written; what is refused."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from stnet_perfusion.input_functions import NO_VEIN, InputFunctionsd, SaveInputFunctionsd

from physics.perfusion import (
    ArterialInput,
    Frames,
    arterial_scale,
    relaxation_rate_change,
    signal_from_concentration,
    tissue_concentration,
)
from shared_transforms.errors import QMRIError

SHAPE, DT, ECHO_TIME, DUMMY = (14, 12, 4), 1.5, 0.03, 1
ARTERY, SINUS = (slice(3, 7), 5, 2), (slice(9, 11), slice(9, 12), slice(0, 4))
TIMES = torch.arange(50) * DT


def blood() -> tuple[ArterialInput, ArterialInput]:
    arterial = ArterialInput(*torch.tensor([12.0, 3.0, 1.5, 11.0]), 0.15, 11.0, 1.5, 0.05, 150.0)
    return arterial, arterial.delayed(4.0, 2.0)


def examination(folder: Path, sinus: bool = True, peak: float = 1.0) -> dict[str, Any]:
    """An item after the concentrations, and the file that it was read from."""
    generator = torch.Generator().manual_seed(0)
    arterial, venous = blood()
    flow = 40.0 + 20.0 * torch.rand(SHAPE, generator=generator)
    tissue = tissue_concentration(
        arterial, TIMES, flow, torch.tensor(4.0), 0.5 * torch.rand(SHAPE, generator=generator)
    )
    signal = signal_from_concentration(tissue, torch.ones(SHAPE), ECHO_TIME, 50.0)
    vessels = ((ARTERY, arterial), (SINUS, venous)) if sinus else ((ARTERY, arterial),)
    for place, curve in vessels:
        signal[place] = signal_from_concentration(peak * curve.concentration(TIMES), torch.tensor(1.0), ECHO_TIME, 7.0)
    noise = torch.randn((2, *signal.shape), generator=generator) / 60
    signal = ((signal + noise[0]).square() + noise[1].square()).sqrt()
    rate = relaxation_rate_change(signal, signal[..., :6].mean(-1), ECHO_TIME)
    path = folder / "sub-1_dsc.nii.gz"
    nib.Nifti1Image(np.ones(SHAPE, np.float32), np.eye(4)).to_filename(path)
    mask = torch.ones((1, *SHAPE), dtype=torch.bool)
    mask[:, 0] = False
    image = torch.cat([torch.ones((1, *SHAPE)), rate.movedim(-1, 0) / 50.0 * mask])
    times = {"repetition_time": torch.tensor(DT, dtype=torch.float64), "echo_time": torch.tensor(ECHO_TIME)}
    return {
        "image": MetaTensor(image), "mask": mask, "acquisition": times, "stem": "sub-1_dsc", "sources": [str(path)],
        "frames": Frames(DUMMY, 7, 8, 12, True, 0.6, 0.9), "notes": ["a note"], "details": {},
    }  # fmt: skip


def mask_file(folder: Path, name: str, *places: Any) -> str:
    values = np.zeros(SHAPE, np.uint8)
    for place in places:
        values[place] = 1
    nib.Nifti1Image(values, np.eye(4)).to_filename(folder / name)
    return str(folder / name)


def table(folder: Path, header: str, values: Any, start: float = 0.0, dt: float = DT, mark: str = ",") -> str:
    rows = [f"{start + i * dt:.4f}{mark}{v}" for i, v in enumerate(values)]
    path = folder / "curve.csv"
    path.write_text("\n".join([*([header] if header else []), *rows]) + "\n")
    return str(path)


def voxels_in(found: dict[str, Any], place: Any) -> bool:
    inside = torch.zeros(SHAPE, dtype=torch.bool)
    inside[place] = True
    return bool(inside[tuple(found["voxels"].T)].all())


# --- found in the images --------------------------------------------------------------------------------------------


def test_found_curves_are_those_of_the_blood(tmp_path: Path) -> None:
    item = InputFunctionsd()(examination(tmp_path))
    for name, truth, place in zip(("aif", "vof"), blood(), (ARTERY, SINUS), strict=True):
        curve, facts = item[name], item["input_functions"][name]
        assert type(curve) is torch.Tensor and curve.shape == TIMES.shape
        assert voxels_in(facts, place)
        assert facts["source"] == "automatic" and 0.6 < facts["score"] <= 1.0
        expected = truth.concentration(TIMES)  # mM in blood
        torch.testing.assert_close(curve, expected, atol=0.1 * float(expected.max()), rtol=0)
    assert float(arterial_scale(item["aif"], item["vof"], DT)) == pytest.approx(1.0, abs=0.03)
    assert item["notes"] == ["a note"]
    assert "4 voxels" in item["details"]["Arterial input"]


def test_ratio_of_relaxivities_scales_the_curves(tmp_path: Path) -> None:
    item = examination(tmp_path)
    first, second = (InputFunctionsd(blood_relaxivity=value)(item)["aif"] for value in (7.0, 50.0))
    torch.testing.assert_close(first * 7.0, second * 50.0)


def test_partial_volume_is_corrected_unless_told_otherwise(tmp_path: Path) -> None:
    item = examination(tmp_path)
    arterial, _ = blood()
    inside, outside = torch.exp(-ECHO_TIME * 7.0 * arterial.concentration(TIMES)), 0.6
    tissue = torch.exp(-ECHO_TIME * 50.0 * item["image"].as_tensor()[1:, 9, 3, 1])
    mixture = -torch.log(outside * inside + (1 - outside) * tissue) / ECHO_TIME / 50.0
    item["image"][(slice(1, None), *ARTERY)] = mixture[:, None].expand(-1, 4)
    raw = InputFunctionsd(correct_partial_volume=False)(item)
    corrected = InputFunctionsd()(item)
    truth = arterial.concentration(TIMES)
    errors = [float((found["aif"] - truth).norm() / truth.norm()) for found in (raw, corrected)]
    assert errors[1] < 0.15 < errors[0]
    assert corrected["input_functions"]["aif"]["blood_fraction"] == pytest.approx(0.6, abs=0.08)
    assert corrected["input_functions"]["k_av_measured"] < 0.75
    assert "blood_fraction" not in raw["input_functions"]["aif"]


def test_without_a_vein_the_artery_stands_in(tmp_path: Path) -> None:
    item = InputFunctionsd()(examination(tmp_path, sinus=False))
    assert torch.equal(item["aif"], item["vof"])
    assert NO_VEIN in item["notes"]
    assert item["input_functions"]["vof"]["source"] == "arterial input"
    assert item["input_functions"]["vof"]["voxels"] is None
    assert item["input_functions"]["k_av_measured"] == 1.0


def test_clipped_artery_is_told(tmp_path: Path) -> None:
    item = InputFunctionsd()(examination(tmp_path, peak=3.0))
    assert item["input_functions"]["aif"]["clipped"]
    assert any(note.startswith("clipped AIF") for note in item["notes"])


def test_no_artery_is_an_error(tmp_path: Path) -> None:
    item = examination(tmp_path)
    noise = torch.randn(item["image"].shape[1:], generator=torch.Generator().manual_seed(1))
    item["image"][1:] = 0.4 * item["image"][1:, 9, 3, 1][:, None, None, None] * (1 + 0 * noise)
    item["image"][1:] += 3.0 * torch.randn(item["image"][1:].shape, generator=torch.Generator().manual_seed(2))
    with pytest.raises(QMRIError, match="aif_mask_file"):
        InputFunctionsd()(item)


# --- masks ----------------------------------------------------------------------------------------------------------


def test_mask_takes_precedence(tmp_path: Path) -> None:
    item = examination(tmp_path)
    aif, vof = mask_file(tmp_path, "a.nii.gz", (slice(4, 6), 5, 2)), mask_file(tmp_path, "v.nii.gz", (10, 10, 1))
    item["aif_mask_file"] = "elsewhere.nii.gz"  # found beside the series: the argument comes first
    found = InputFunctionsd(aif_mask_file=aif, vof_mask_file=vof)(item)
    assert found["input_functions"]["aif"]["voxels"].tolist() == [[4, 5, 2], [5, 5, 2]]
    assert found["input_functions"]["vof"]["voxels"].tolist() == [[10, 10, 1]]
    assert found["input_functions"]["aif"]["source"] == "mask file a.nii.gz"
    assert found["input_functions"]["aif"]["score"] is None
    assert found["sources"][1:] == [aif, vof]


def test_mask_found_beside_the_series_is_used(tmp_path: Path) -> None:
    item = examination(tmp_path) | {"aif_mask_file": mask_file(tmp_path, "a.nii.gz", (4, 5, 2))}
    assert InputFunctionsd()(item)["input_functions"]["aif"]["voxels"].tolist() == [[4, 5, 2]]


def test_mask_that_leaves_the_brain(tmp_path: Path) -> None:
    item = examination(tmp_path)
    partly = mask_file(tmp_path, "a.nii.gz", (4, 5, 2), (0, 5, 2))
    found = InputFunctionsd(aif_mask_file=partly)(item)
    assert any("1 voxels outside of the brain" in note for note in found["notes"])
    with pytest.raises(QMRIError, match="outside of the mask of the brain"):
        InputFunctionsd(aif_mask_file=mask_file(tmp_path, "b.nii.gz", (0, 5, 2)))(item)


def test_mask_on_another_grid(tmp_path: Path) -> None:
    nib.Nifti1Image(np.ones((3, 3, 3), np.uint8), np.eye(4)).to_filename(tmp_path / "a.nii.gz")
    with pytest.raises(QMRIError, match="aif_mask_file"):
        InputFunctionsd(aif_mask_file=tmp_path / "a.nii.gz")(examination(tmp_path))


def test_mask_and_table_of_one_curve(tmp_path: Path) -> None:
    with pytest.raises(QMRIError, match="one source of the arterial input"):
        InputFunctionsd(aif_mask_file="a.nii.gz", aif_csv_file="a.csv")(examination(tmp_path))


# --- tables ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "mark", "factor"),
    [
        ("time,concentration", ",", 1.0),
        ("Time [s];AIF (mM)", ";", 1.0),
        ("t\tdelta_r2star", "\t", 7.0),
        ("time_s,Delta R2* [1/s]", ",", 7.0),
    ],
)
def test_table_is_taken_as_it_is(tmp_path: Path, header: str, mark: str, factor: float) -> None:
    curve = blood()[0].concentration(TIMES).double()
    path = table(tmp_path, header, (factor * curve).tolist(), mark=mark)
    found = InputFunctionsd(aif_csv_file=path)(examination(tmp_path))
    torch.testing.assert_close(found["aif"], curve.float(), atol=1e-5, rtol=1e-5)
    assert found["input_functions"]["aif"] | {"source": ""} == {
        "source": "", "voxels": None, "score": None, "scores": None, "parts": {}, "clipped": False
    }  # fmt: skip
    assert found["input_functions"]["aif"]["source"] == "csv curve.csv"
    assert found["input_functions"]["vof"]["source"] == "automatic"


def test_table_may_have_the_dummy_frames(tmp_path: Path) -> None:
    curve = blood()[0].concentration(TIMES).tolist()
    path = table(tmp_path, "time,aif", [99.0, *curve])
    found = InputFunctionsd(aif_csv_file=path)(examination(tmp_path))
    torch.testing.assert_close(found["aif"], torch.tensor(curve))


GOOD = blood()[0].concentration(TIMES).tolist()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"header": ""}, "no header"),
        ({"header": "frame,concentration"}, "time"),
        ({"header": "time,concentration", "values": GOOD[:-5]}, "45 frames"),
        ({"header": "time,concentration", "dt": 2.0}, "resample"),
        ({"header": "time,concentration", "dt": 1500.0}, "milliseconds"),
        ({"header": "time,concentration", "start": 30.0}, "from 0"),
        ({"header": "time,concentration", "values": [*GOOD[:-1], float("nan")]}, "line 51"),
        ({"header": "time,concentration", "values": [*GOOD[:-1], "x"]}, "'x'"),
        ({"header": "time,concentration", "values": [*GOOD[:-1], "1,2"]}, "3 columns"),
        ({"header": "time,concentration", "values": [0.0] * 50}, "a bolus"),
    ],
)  # fmt: skip
def test_bad_tables(tmp_path: Path, arguments: dict[str, Any], text: str) -> None:
    path = table(tmp_path, **({"values": GOOD} | arguments))
    with pytest.raises(QMRIError, match=text) as error:
        InputFunctionsd(aif_csv_file=path)(examination(tmp_path))
    assert error.value.file == path
    assert error.value.remedy


def test_missing_and_empty_tables(tmp_path: Path) -> None:
    with pytest.raises(QMRIError, match="no such file"):
        InputFunctionsd(vof_csv_file=tmp_path / "none.csv")(examination(tmp_path))
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(QMRIError, match="empty file"):
        InputFunctionsd(vof_csv_file=tmp_path / "empty.csv")(examination(tmp_path))


def test_several_curves_need_a_name(tmp_path: Path) -> None:
    path = table(tmp_path, "time,left,right", [f"{v},{v}" for v in GOOD])
    with pytest.raises(QMRIError, match="one named vof"):
        InputFunctionsd(vof_csv_file=path)(examination(tmp_path))


def test_larger_artery_than_vein_is_told(tmp_path: Path) -> None:
    path = table(tmp_path, "time,aif", [2.0 * v for v in GOOD])
    found = InputFunctionsd(aif_csv_file=path)(examination(tmp_path))
    assert any("larger area than the venous" in note for note in found["notes"])


@pytest.mark.parametrize("name", ["tissue_relaxivity", "blood_relaxivity"])
def test_relaxivities_are_positive(name: str) -> None:
    with pytest.raises(QMRIError, match=name):
        InputFunctionsd(**{name: 0.0})


# --- written --------------------------------------------------------------------------------------------------------


def test_what_is_written_can_be_read_back(tmp_path: Path) -> None:
    item = InputFunctionsd()(examination(tmp_path)) | {"files": ["map.nii.gz"]}
    saved = SaveInputFunctionsd(output_dir=tmp_path / "out")(item)
    base = tmp_path / "out" / "sub-1_dsc" / "sub-1_dsc_desc-aif_timeseries"
    assert saved["files"] == ["map.nii.gz", f"{base}.csv", f"{base}.json"]
    rows = list(csv.reader(Path(f"{base}.csv").read_text().splitlines()))
    assert rows[0] == ["time", "aif", "vof"] and len(rows) == 51
    assert float(rows[1][0]) == DUMMY * DT
    again = InputFunctionsd(aif_csv_file=f"{base}.csv", vof_csv_file=f"{base}.csv")(examination(tmp_path))
    for name in ("aif", "vof"):
        torch.testing.assert_close(again[name], item[name], atol=1e-5, rtol=1e-5)


def test_sidecar_says_why(tmp_path: Path) -> None:
    item = InputFunctionsd()(examination(tmp_path))
    saved = SaveInputFunctionsd(output_dir=tmp_path / "out")(item)
    sidecar = json.loads(Path(saved["files"][1]).read_text())
    assert sidecar["aif"]["Units"] == "mM" and sidecar["time"]["Units"] == "s"
    assert sidecar["aif"]["Voxels"] == item["input_functions"]["aif"]["voxels"].tolist()
    assert len(sidecar["aif"]["Scores"]) == len(sidecar["aif"]["Voxels"])
    assert set(sidecar["aif"]["ScoreParts"]) == {"early", "high", "narrow", "smooth", "returning", "unclipped"}
    assert sidecar["k_AV"] == pytest.approx(1.0, abs=0.05)
    assert sidecar["SamplingFrequency"] == pytest.approx(1 / DT)
    assert sidecar["StartTime"] == DUMMY * DT


def test_item_without_curves_may_pass(tmp_path: Path) -> None:
    save = SaveInputFunctionsd(output_dir=tmp_path, allow_missing_keys=True)
    assert save({"stem": "x"}) == {"stem": "x"}
