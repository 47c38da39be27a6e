"""Training of ST-Net through the configs, as `python -m monai.bundle run` does it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from bundle_files import REPOSITORY
from monai.bundle import ConfigWorkflow
from torch import Tensor

from shared_transforms.errors import QMRIError

ROOT = REPOSITORY / "bundles" / "stnet_perfusion"
TINY: dict[str, Any] = {
    "batches_per_epoch": 2,
    "volumes_per_epoch": 1,
    "batch_size": 2,
    "size": [40, 48, 3],
    "voxel_size_mm": [5.0, 5.0, 6.0],
    "patch_size": [12, 12, 1],
    "channels": [2, 2, 2, 4],
    "validation_volumes": 1,
    "validation_batches": 1,
    "val_interval": 1,
    "warmup_steps": 1,
}


def workflow(output: Path, files: tuple[str, ...] = ("train.json",), **overrides: Any) -> ConfigWorkflow:
    run = ConfigWorkflow(
        config_file=[str(ROOT / "configs" / name) for name in files],
        workflow_type="train",
        logging_file=False,
        bundle_root=str(ROOT),
        output_dir=str(output),
        **(TINY | overrides),
    )
    run.initialize()
    return run


def train(output: Path, epochs: int, **overrides: Any) -> ConfigWorkflow:
    run = workflow(output, epochs=epochs, **overrides)
    run.run()
    run.finalize()
    return run


def state(output: Path, epoch: int) -> dict[str, Any]:
    found = torch.load(output / f"checkpoints/checkpoint_epoch={epoch}.pt", weights_only=True)
    assert isinstance(found, dict)
    return found


def differing(first: dict[str, Tensor], second: dict[str, Tensor]) -> list[str]:
    assert first.keys() == second.keys()
    return [name for name, value in first.items() if not torch.equal(value, second[name])]


class Killed(Exception):
    """Stands for a kill."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two epochs at one go."""
    folder = tmp_path_factory.mktemp("whole")
    train(folder, 2)
    return folder


SCHEDULE = {"lr_scheduler#t_total": 2 * TINY["batches_per_epoch"]}  # that of two epochs, also where one is run


def test_killed_while_saving_and_resumed_equals_uninterrupted(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(tmp_path, 1, **SCHEDULE)
    with monkeypatch.context() as patched:
        rename = os.replace

        def killed(source: Any, target: Any) -> None:
            if "checkpoint_epoch=2" in str(target):
                raise Killed
            rename(source, target)

        patched.setattr(os, "replace", killed)
        with pytest.raises(Exception) as caught:
            train(tmp_path, 2, resume=True, **SCHEDULE)
        assert "Killed" in repr(caught.getrepr(style="native"))
    assert not (tmp_path / "checkpoints/checkpoint_epoch=2.pt").exists()
    train(tmp_path, 2, resume=True, **SCHEDULE)
    once, parts = state(whole, 2), state(tmp_path, 2)
    assert differing(once["network"], parts["network"]) == []
    for key, moments in once["optimizer"]["state"].items():
        assert differing(moments, parts["optimizer"]["state"][key]) == []


def test_what_it_learns_is_tracked(whole: Path) -> None:
    from mlflow import MlflowClient

    record = MlflowClient(f"sqlite:///{whole}/mlruns.db")
    found = record.get_run((whole / "mlflow_run_id.txt").read_text().strip())
    watched = {"Tmax_MAE_s", "CBV_MAE_ml_per_100g", "CBF_MAE_ml_per_100g_min", "Dice_Tmax_over_6_s"}
    assert {f"val_{name}" for name in watched} | {"train_loss"} <= set(found.data.metrics)
    assert found.data.params["seed"] == "0"
    weights = torch.load(whole / "checkpoints" / "model.pt", weights_only=True)
    assert all(isinstance(value, torch.Tensor) for value in weights.values())


def test_the_papers_patches_train(tmp_path: Path) -> None:
    """Padded with zeros, and with voxels left out between them."""
    network = train(tmp_path, 1, padding="zero", stride=2).parser.get_parsed_content("network")
    assert network.crop == 3


def test_two_processes_with_the_same_data_are_one(tmp_path: Path) -> None:
    """Gradients are averaged over processes: of two that see the same patches, each makes the steps of one alone."""
    train(tmp_path / "one", 1)
    files = [str(ROOT / "configs" / name) for name in ("train.json", "multi_gpu_train.json")]
    options = {"config_file": json.dumps(files), "bundle_root": ROOT, "output_dir": tmp_path / "two", "epochs": 1}
    options |= {"train#dataset#rank": 0} | TINY
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += ["-m", "monai.bundle", "run"]
    command += [text for key, value in options.items() for text in (f"--{key}", str(value))]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(command, cwd="/", env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert differing(state(tmp_path / "one", 1)["network"], state(tmp_path / "two", 1)["network"]) == []


def test_a_quick_run_by_the_overlay(tmp_path: Path) -> None:
    content = json.loads((ROOT / "configs" / "smoke.json").read_text())
    run = workflow(tmp_path, ("train.json", "smoke.json"))
    trainer = run.parser.get_parsed_content("train")["trainer"]
    assert trainer.state.max_epochs == content["epochs"]


def test_weights_of_another_network_are_refused(whole: Path, tmp_path: Path) -> None:
    weights = str(whole / "checkpoints" / "model.pt")
    with pytest.raises(RuntimeError) as caught:
        run = workflow(tmp_path, ("train.json", "evaluate.json"), weights=weights, channels=[2, 2, 2, 8])
        run.run()
    cause: BaseException | None = caught.value
    while cause is not None and not isinstance(cause, QMRIError):
        cause = cause.__cause__
    assert isinstance(cause, QMRIError)
    assert "shape" in cause.found


def test_evaluation_of_weights_on_test_data(whole: Path, tmp_path: Path) -> None:
    weights = str(whole / "checkpoints" / "model.pt")
    run = workflow(tmp_path, ("train.json", "evaluate.json"), weights=weights)
    run.run()
    metrics = run.parser.get_parsed_content("validate")["evaluator"].state.metrics
    assert 0 < metrics["Tmax_MAE_s"] < 20
    assert run.parser.get_parsed_content("validate")["dataset"].split == "test"
