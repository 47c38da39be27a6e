"""Perfusion inference as its config runs it: right maps for right input, and nothing at all for bad input."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from stnet_perfusion.network import STNet
from stnet_perfusion.simulator import PerfusionSimulator

from shared_transforms.errors import QMRIError
from shared_transforms.weights import sha256_file

ROOT = Path(__file__).resolve().parents[2] / "bundles" / "stnet_perfusion"
SHAPE, VOXEL = (64, 74, 14), (3.0, 3.0, 7.0)  # coarser voxels hold no artery alone
VOXEL_ML = math.prod(VOXEL) / 1000
REPORT = "postprocessing#transforms#5#_disabled_"


@pytest.fixture(scope="module")
def patient() -> dict[str, Any]:
    """A whole head with a large stroke, SNR 60, as arrays ``[X, Y, Z]`` and ``[X, Y, Z, T]``."""
    simulator = PerfusionSimulator(size=SHAPE, voxel_size=VOXEL, snr=(60.0, 60.0), lesion_share=1.0)
    generator = torch.Generator().manual_seed(0)
    drawn = [simulator.draw(generator, 1, "test") for _ in range(12)]
    largest = max(drawn, key=lambda draw: float(draw.anatomy.lesions.volume_ml[0]))
    series = simulator.series(largest)
    arrays = {name: value[0].numpy() for name, value in series.items() if isinstance(value, torch.Tensor)}
    return {name: value for name, value in series.items() if name not in arrays} | arrays


def affine() -> np.ndarray:
    """First axis to the patient's left."""
    matrix = np.diag([-VOXEL[0], VOXEL[1], VOXEL[2], 1.0])
    matrix[:3, 3] = [94.5, -109.5, -45.5]
    return matrix


def write(
    folder: Path, patient: dict[str, Any], change: Callable[[np.ndarray], np.ndarray] | None = None, **fields: Any
) -> Path:
    """Series, sidecar and mask; a field that is None is left out."""
    folder.mkdir(parents=True)
    signal = 1000 * patient["signal"]
    signal = signal if change is None else change(signal.copy())
    nib.save(nib.Nifti1Image(signal.astype(np.float32), affine()), folder / "sub-01_dsc.nii.gz")
    sidecar = {"RepetitionTime": patient["repetition_time"], "EchoTime": patient["echo_time"], **fields}
    (folder / "sub-01_dsc.json").write_text(json.dumps({k: v for k, v in sidecar.items() if v is not None}))
    save_mask(folder / "sub-01_mask.nii.gz", patient["mask"])
    return folder


def save_mask(path: Path, mask: np.ndarray) -> Path:
    nib.save(nib.Nifti1Image(mask.astype(np.uint8), affine()), path)
    return path


def infer(data: Path, output: Path, overlay: str | None = "csvd", report: bool = False, **overrides: Any) -> None:
    """Run inference.json with an overlay, as ``monai.bundle run`` does; the report takes longest and is left out."""
    overrides[REPORT] = not report
    parser = ConfigParser()
    names = ["inference"] if overlay is None else ["inference", overlay]
    parser.read_config([str(ROOT / f"configs/{name}.json") for name in names])
    parser.read_meta({"version": "1.2.3"})
    parser.update(
        {"bundle_root": str(ROOT), "dataset_dir": str(data), "output_dir": str(output), "device": "cpu"} | overrides
    )
    parser.get_parsed_content("run")


def read(path: Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj)


def refused(folder: Path, **overrides: Any) -> QMRIError:
    """The error of an inference that writes nothing; MONAI wraps it."""
    with pytest.raises((QMRIError, RuntimeError)) as caught:
        infer(folder / "in", folder / "out", **overrides)
    error: BaseException | None = caught.value
    while error is not None and not isinstance(error, QMRIError):
        error = error.__cause__
    assert isinstance(error, QMRIError) and error.remedy, caught.value
    assert not (folder / "out").exists()
    return error


def test_series_to_maps_summary_and_report(
    tmp_path: Path, patient: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "in", patient)
    infer(tmp_path / "in", tmp_path / "out", report=True)
    folder = tmp_path / "out" / "sub-01"
    maps = {name: read(folder / f"sub-01_{name}.nii.gz") for name in ("cbv", "cbf", "mtt", "tmax", "residual", "mask")}
    tissue = patient["tissue"]
    assert (maps["mask"].astype(bool) <= patient["mask"]).all() and not maps["cbv"][~patient["mask"]].any()
    assert np.corrcoef(maps["cbv"][tissue], patient["cbv"][tissue])[0, 1] > 0.9
    assert np.corrcoef(maps["cbf"][tissue], patient["cbf"][tissue])[0, 1] > 0.8
    assert np.abs(maps["tmax"] - patient["tmax"])[tissue].mean() < 0.4
    assert np.median(maps["mtt"][tissue]) == pytest.approx(np.median(patient["mtt"][tissue]), rel=0.7)
    assert np.median(maps["residual"][tissue]) < 0.5
    np.testing.assert_allclose(nib.load(folder / "sub-01_tmax.nii.gz").affine, affine())
    sidecar = json.loads((folder / "sub-01_cbf.json").read_text())
    assert sidecar["Units"] == "ml/100 g/min" and "cSVD" in sidecar["EstimationMethod"]
    summary = json.loads((folder / "sub-01_summary.json").read_text())
    true_ml = patient["lesion"].sum() * VOXEL_ML
    assert summary["hypoperfusion"]["volume_ml"]["tmax_above_6_s"] == pytest.approx(true_ml, rel=0.15)
    right = patient["lesion"][: SHAPE[0] // 2].sum() / patient["lesion"].sum()  # the first axis runs to the left
    side = "right" if right > 0.7 else "left" if right < 0.3 else "both"
    assert summary["hypoperfusion"]["side"] == side
    assert summary["quality"]["frames"] == patient["signal"].shape[-1] - 1  # less the dummy frame
    assert summary["quality"]["snr"] == pytest.approx(60, rel=0.25)
    aif = summary["input_functions"]["aif"]["curve_mM"]
    assert np.corrcoef(aif, patient["aif_true"][-len(aif) :])[0, 1] > 0.98
    assert summary["input_functions"]["aif"]["voxels"] and summary["input_functions"]["aif"]["source"] == "automatic"
    late = read(folder / "sub-01_label-hypoperfused_mask.nii.gz")
    assert late.sum() * VOXEL_ML == pytest.approx(summary["hypoperfusion"]["volume_ml"]["tmax_above_6_s"])
    page = (folder / "report.html").read_text()
    assert "Late perfusion and core" in page and "Arterial input and venous output" in page and "cSVD" in page
    written = [line.strip() for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
    assert {str(path) for path in folder.iterdir()} == set(written)


def test_network_with_any_weights(tmp_path: Path, patient: dict[str, Any]) -> None:
    torch.manual_seed(0)
    parser = ConfigParser()
    parser.read_config(str(ROOT / "configs/inference.json"))
    network = STNet(**{name: parser[name] for name in ("frames", "channels", "padding", "dropout", "outputs")})
    torch.save(network.state_dict(), tmp_path / "model.pt")
    write(tmp_path / "in", patient)
    infer(tmp_path / "in", tmp_path / "out", None, weights=str(tmp_path / "model.pt"))
    sidecar = json.loads((tmp_path / "out/sub-01/sub-01_tmax.json").read_text())
    assert sidecar["GeneratedBy"][0]["WeightsSHA256"] == sha256_file(tmp_path / "model.pt")
    assert np.isfinite(read(tmp_path / "out/sub-01/sub-01_tmax.nii.gz")).all()


@pytest.mark.parametrize("overlay", ["osvd", "ssvd", "tikhonov", "ttv"])
def test_overlays_run(tmp_path: Path, patient: dict[str, Any], overlay: str) -> None:
    part = {name: value[:, :, 6:9] for name, value in patient.items() if getattr(value, "ndim", 0) > 2}
    write(tmp_path / "in", patient | part)
    infer(tmp_path / "in", tmp_path / "out", overlay)
    cbv = read(tmp_path / "out/sub-01/sub-01_cbv.nii.gz")
    assert np.corrcoef(cbv[part["tissue"]], part["cbv"][part["tissue"]])[0, 1] > 0.9


def test_factor_of_the_paper_scales_the_maps(tmp_path: Path, patient: dict[str, Any]) -> None:
    part = {name: value[:, :, 6:9] for name, value in patient.items() if getattr(value, "ndim", 0) > 2}
    write(tmp_path / "in", patient | part)
    infer(tmp_path / "in", tmp_path / "a")
    infer(tmp_path / "in", tmp_path / "b", paper_haematocrit_factor=True)
    for name, ratio in (("cbv", 1.3112 / 0.7051), ("cbf", 1.3112 / 0.7051), ("tmax", 1.0)):
        first, second = (read(tmp_path / f"{folder}/sub-01/sub-01_{name}.nii.gz") for folder in "ab")
        np.testing.assert_allclose(second, ratio * first, rtol=2e-4, atol=1e-5)


def short(signal: np.ndarray) -> np.ndarray:
    return signal[..., :19]


def no_bolus(signal: np.ndarray) -> np.ndarray:
    noise = np.random.default_rng(0).normal(0, 0.02, signal.shape)
    return np.abs(signal[..., 1:6].mean(-1, keepdims=True) * (1 + noise))


def negative(signal: np.ndarray) -> np.ndarray:
    return signal - 1.2 * np.median(signal[signal > 100])


def zeros(signal: np.ndarray) -> np.ndarray:
    return 0 * signal


def with_nan(signal: np.ndarray) -> np.ndarray:
    signal[20, 20, 3, 5] = np.nan
    return signal


# The list of bad input: (change of the signal, fields of the sidecar, overrides, part of the message).
BAD: dict[str, tuple[Callable[[np.ndarray], np.ndarray] | None, dict[str, Any], dict[str, Any], str]] = {
    "fewer than 20 frames": (short, {}, {}, "19"),
    "no bolus": (no_bolus, {}, {}, "bolus"),
    "negative signal": (negative, {}, {}, "negative"),
    "no signal": (zeros, {}, {}, "zero"),
    "NaN": (with_nan, {}, {}, "NaN"),
    "no repetition time": (None, {"RepetitionTime": None}, {}, "RepetitionTime"),
    "no echo time": (None, {"EchoTime": None}, {}, "EchoTime"),
    "repetition time in ms": (None, {"RepetitionTime": 1500.0}, {}, "RepetitionTime"),
    "echo time in ms": (None, {"EchoTime": 30.0}, {}, "EchoTime"),
    "no mask there": (None, {}, {"mask_file": "nowhere.nii.gz"}, "nowhere"),
    "no core there": (None, {}, {"core_mask_file": "nowhere.nii.gz"}, "nowhere"),
    "no artery there": (None, {}, {"aif_mask_file": "nowhere.nii.gz"}, "nowhere"),
    "negative volume": (None, {}, {"smallest_part_ml": -1.0}, "smallest_part_ml"),
    "negative relaxivity": (None, {}, {"tissue_relaxivity": -1.0}, "tissue_relaxivity"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_writes_nothing(tmp_path: Path, patient: dict[str, Any], name: str) -> None:
    change, fields, overrides, text = BAD[name]
    write(tmp_path / "in", patient, change, **fields)
    assert text in str(refused(tmp_path, **overrides))


def test_curve_of_another_length_writes_nothing(tmp_path: Path, patient: dict[str, Any]) -> None:
    write(tmp_path / "in", patient)
    np.savetxt(tmp_path / "aif.csv", np.abs(patient["aif"][:-5]))
    error = refused(tmp_path, aif_csv_file=str(tmp_path / "aif.csv"))
    assert error.file is not None and error.file.endswith("aif.csv")


@pytest.mark.parametrize("kind", ["empty", "outside of the head", "other grid"])
def test_mask_without_brain_writes_nothing(tmp_path: Path, patient: dict[str, Any], kind: str) -> None:
    write(tmp_path / "in", patient)
    mask = np.zeros(patient["mask"].shape, bool)
    if kind == "outside of the head":
        mask[:3, :3] = True
    save_mask(tmp_path / "mask.nii.gz", mask[1:] if kind == "other grid" else mask)
    assert "mask" in str(refused(tmp_path, mask_file=str(tmp_path / "mask.nii.gz")))
