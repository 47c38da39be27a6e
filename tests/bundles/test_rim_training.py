"""Training, evaluation and bad input through the configs, as `python -m monai.bundle run` does it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigWorkflow

from shared_transforms.errors import QMRIError

TINY = {"batches_per_epoch": 2, "batch_size": 2, "patch_size_px": [24, 24], "validation_batches": 1, "warmup_steps": 1}


def workflow(root: Path, files: list[str], kind: str = "train", **overrides: Any) -> ConfigWorkflow:
    return ConfigWorkflow(
        config_file=[str(root / "configs" / name) for name in files],
        workflow_type=kind,
        logging_file=False,
        bundle_root=str(root),
        **overrides,
    )


def train(
    root: Path, output: Path, epochs: int, files: tuple[str, ...] = ("train.json",), **overrides: Any
) -> ConfigWorkflow:
    own = {"output_dir": str(output), "epochs": epochs, "val_interval": 1}
    run = workflow(root, list(files), **(TINY | own | overrides))
    run.initialize()
    run.run()
    run.finalize()
    return run


def test_interrupted_and_resumed_equals_uninterrupted(rim_root: Path, tmp_path: Path) -> None:
    # The schedule is that of four epochs in both.
    train(rim_root, tmp_path / "whole", 4)
    steps = {"lr_scheduler#t_total": 8}
    train(rim_root, tmp_path / "parts", 2, **steps)
    train(rim_root, tmp_path / "parts", 4, resume=True, **steps)
    name = "checkpoints/checkpoint_epoch=4.pt"
    whole, parts = (torch.load(tmp_path / run / name, weights_only=True) for run in ("whole", "parts"))
    assert whole["network"].keys() == parts["network"].keys()
    assert all(torch.equal(value, parts["network"][key]) for key, value in whole["network"].items())
    for key, state in whole["optimizer"]["state"].items():
        assert torch.equal(state["exp_avg_sq"], parts["optimizer"]["state"][key]["exp_avg_sq"])


def test_the_best_weights_have_the_lowest_error(rim_root: Path, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    run = train(rim_root, tmp_path, 3, learning_rate=0.05)
    engine = run.parser.get_parsed_content("validate")["evaluator"]
    record = MlflowClient(f"sqlite:///{tmp_path}/mlruns.db")
    run_id = (tmp_path / "mlflow_run_id.txt").read_text().strip()
    history = record.get_metric_history(run_id, "val_relaxation_time_RMSE_percent")
    assert len(history) == 3
    assert engine.state.best_metric == pytest.approx(min(item.value for item in history))
    assert record.get_run(run_id).data.params["seed"] == "0"
    assert {file.path for file in record.list_artifacts(run_id)} >= {"executed_config.json"}
    weights = torch.load(tmp_path / "checkpoints" / "model.pt", weights_only=True)
    assert all(isinstance(value, torch.Tensor) for value in weights.values())
    assert list((tmp_path / "figures").glob("*.png"))


@pytest.mark.parametrize(
    ("files", "kind"),
    [
        (["train.json"], "train"),
        (["train.json", "t2.json"], "train"),
        (["inference.json"], "infer"),
        (["inference.json", "t2.json"], "infer"),
    ],
)
def test_monai_finds_its_properties(rim_root: Path, tmp_path: Path, files: list[str], kind: str) -> None:
    (tmp_path / "data").mkdir()
    write_series(tmp_path / "data", "EchoTime" if "t2.json" in files else "InversionTime")
    run = workflow(rim_root, files, kind, dataset_dir=str(tmp_path / "data"), output_dir=str(tmp_path / "out"))
    run.initialize()
    assert run.check_properties() == []


def test_evaluation_of_the_shipped_weights(rim_root: Path, tmp_path: Path) -> None:
    run = workflow(rim_root, ["train.json", "evaluate.json"], output_dir=str(tmp_path), validation_batches=2)
    run.initialize()
    run.run()
    metrics = run.parser.get_parsed_content("validate")["evaluator"].state.metrics
    assert metrics["relaxation_time_RMSE_percent"] < 25.0
    assert abs(metrics["relaxation_time_bias_percent"]) < 5.0


def write_series(folder: Path, field: str, times: tuple[float, ...] = (0.05, 0.2, 0.6, 1.5)) -> None:
    signal = np.abs(1.0 - 1.9 * np.exp(-np.asarray(times) / 0.9)) * 1000.0
    data = np.broadcast_to(signal, (12, 12, 1, len(times))).astype(np.float32)
    name = "sub-01_IRT1" if field == "InversionTime" else "sub-01_MESE"
    nib.save(nib.Nifti1Image(data, np.diag([2.0, 2.0, 4.0, 1.0])), folder / f"{name}.nii.gz")
    (folder / f"{name}.json").write_text(json.dumps({field: list(times), "RepetitionTime": 8.0}))


def infer(root: Path, data: Path, output: Path, files: tuple[str, ...] = ("inference.json",), **overrides: Any) -> None:
    run = workflow(root, list(files), "infer", dataset_dir=str(data), output_dir=str(output), **overrides)
    run.initialize()
    run.run()


@pytest.mark.parametrize(
    ("files", "weights", "expected"),
    [
        (("inference.json",), "model_t2.pt", "found:    shape"),
        (("inference.json", "t2.json"), "model.pt", "found:    shape"),
        (("inference.json",), "absent.pt", "no such file"),
        (("inference.json",), "truncated", "truncated or damaged"),
    ],
)
def test_wrong_weights_are_refused(
    rim_root: Path, tmp_path: Path, files: tuple[str, ...], weights: str, expected: str
) -> None:
    (tmp_path / "data").mkdir()
    write_series(tmp_path / "data", "EchoTime" if "t2.json" in files else "InversionTime")
    path = rim_root / "models" / weights
    if weights == "truncated":
        path = tmp_path / "model.pt"
        path.write_bytes((rim_root / "models" / "model.pt").read_bytes()[:5000])
    with pytest.raises(RuntimeError) as caught:
        infer(rim_root, tmp_path / "data", tmp_path / "out", files, weights=str(path))
    cause: BaseException | None = caught.value
    while cause is not None and not isinstance(cause, QMRIError):
        cause = cause.__cause__
    assert isinstance(cause, QMRIError)
    assert path.name in str(cause)
    assert expected in str(cause)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("b_mode", ["voxelwise", "shared", "smooth"])
def test_classical_estimation_by_overlay(rim_root: Path, tmp_path: Path, b_mode: str) -> None:
    (tmp_path / "data").mkdir()
    write_series(tmp_path / "data", "InversionTime", (0.05, 0.2, 0.4, 0.8, 1.5, 3.0))
    overlay = ("inference.json", "mle.json")
    infer(rim_root, tmp_path / "data", tmp_path / "out", overlay, **{"network_def#b_mode": b_mode})
    [path] = (tmp_path / "out").rglob("*_T1map.nii.gz")
    values = np.asarray(nib.load(path).dataobj)
    assert np.median(values) > 0.5
    sidecar = json.loads(path.with_name(path.name.replace(".nii.gz", ".json")).read_text())
    assert sidecar["EstimationMethod"] == "Maximum likelihood"
    assert "WeightsSHA256" not in sidecar["GeneratedBy"][0]


def test_misspelt_override_stops_the_run_with_a_plain_message(rim_root: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", str(rim_root / "configs/inference.json")]
    options = {"bundle_root": rim_root, "dataset_dir": tmp_path, "output_dir": tmp_path / "out", "noise_modl": "rician"}
    command += [text for key, value in options.items() for text in (f"--{key}", str(value))]
    done = subprocess.run(command, cwd="/", capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "QMRIError" in done.stderr
    assert "noise_model" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()
