"""Both stages of training qsmgan through the configs, as `python -m monai.bundle run` does it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from bundle_files import REPOSITORY
from monai.bundle import ConfigWorkflow
from torch import Tensor

from shared_transforms.errors import QMRIError

ROOT = REPOSITORY / "bundles" / "qsmgan"
TINY = {
    "batches_per_epoch": 2,
    "volumes_per_epoch": 1,
    "batch_size": 1,
    "volume_size": [40, 40, 40],
    "patch_size": 32,
    "width": 2,
    "validation_volumes": 1,
    "validation_batches": 1,
    "val_interval": 1,
    "anatomy#resolution_mm": 2.0,
}


def workflow(files: list[str], **overrides: Any) -> ConfigWorkflow:
    run = ConfigWorkflow(
        config_file=[str(ROOT / "configs" / name) for name in files],
        workflow_type="train",
        logging_file=False,
        bundle_root=str(ROOT),
        **(TINY | overrides),
    )
    run.initialize()
    return run


def train(output: Path, epochs: int, files: tuple[str, ...] = ("train.json",), **overrides: Any) -> ConfigWorkflow:
    run = workflow(list(files), output_dir=str(output), epochs=epochs, **overrides)
    run.run()
    run.finalize()
    return run


def states(output: Path, epoch: int) -> dict[str, dict[str, Tensor]]:
    state = torch.load(output / f"checkpoints/checkpoint_epoch={epoch}.pt", weights_only=True)
    return {name: state[name] for name in ("network", "critic") if name in state}


@pytest.fixture(scope="module")
def first_stage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("first")
    train(folder, 1, warmup_steps=1)
    return folder / "checkpoints" / "model.pt"


def test_supervised_interrupted_and_resumed_equals_uninterrupted(tmp_path: Path) -> None:
    train(tmp_path / "whole", 2, warmup_steps=1)
    train(tmp_path / "parts", 1, warmup_steps=1, **{"lr_scheduler#t_total": 4})
    train(tmp_path / "parts", 2, warmup_steps=1, resume=True, **{"lr_scheduler#t_total": 4})
    whole, parts = states(tmp_path / "whole", 2), states(tmp_path / "parts", 2)
    assert all(torch.equal(value, parts["network"][key]) for key, value in whole["network"].items())


def test_adversarial_stage_goes_on_from_the_first_and_resumes(first_stage: Path, tmp_path: Path) -> None:
    own: dict[str, Any] = {"start_weights": str(first_stage), "critic_steps": 2, "critic_width": 2}
    train(tmp_path / "whole", 2, ("train_gan.json",), **own)
    train(tmp_path / "parts", 1, ("train_gan.json",), **own)
    train(tmp_path / "parts", 2, ("train_gan.json",), resume=True, **own)
    whole, parts = states(tmp_path / "whole", 2), states(tmp_path / "parts", 2)
    assert set(whole) == {"network", "critic"}
    for name, tensors in whole.items():
        assert all(torch.equal(value, parts[name][key]) for key, value in tensors.items()), name
    before = torch.load(first_stage, weights_only=True)
    assert not torch.equal(before["head.2.weight"], whole["network"]["head.2.weight"])


def test_mlflow_holds_what_a_gan_is_watched_by(first_stage: Path, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    own: dict[str, Any] = {"start_weights": str(first_stage), "critic_steps": 1, "critic_width": 2}
    train(tmp_path, 1, ("train_gan.json",), **own)
    record = MlflowClient(f"sqlite:///{tmp_path}/mlruns.db")
    metrics = record.get_run((tmp_path / "mlflow_run_id.txt").read_text().strip()).data.metrics
    watched = {"critic_distance", "critic_loss", "gradient_penalty", "gradient_norm", "supervised_loss"}
    assert {f"train_{name}" for name in (*watched, "adversarial_loss", "loss")} <= set(metrics)
    assert {"val_NRMSE_percent", "val_HFEN_percent", "val_XSIM"} <= set(metrics)


def test_the_papers_variant_trains(tmp_path: Path) -> None:
    run = train(tmp_path, 1, ("train.json", "paper.json"), warmup_steps=1)
    network = run.parser.get_parsed_content("network")
    assert network.channels == ("field",)
    assert any(isinstance(m, torch.nn.BatchNorm3d) for m in network.modules())


@pytest.mark.parametrize("files", [["train.json"], ["train_gan.json"]])
def test_monai_finds_its_properties(files: list[str], first_stage: Path, tmp_path: Path) -> None:
    own = {"start_weights": str(first_stage)} if files == ["train_gan.json"] else {}
    run = workflow(files, output_dir=str(tmp_path), **own)
    assert run.check_properties() == []


def test_weights_of_another_network_are_refused(first_stage: Path, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError) as caught:
        train(tmp_path, 1, ("train_gan.json",), start_weights=str(first_stage), width=4)
    cause: BaseException | None = caught.value
    while cause is not None and not isinstance(cause, QMRIError):
        cause = cause.__cause__
    assert isinstance(cause, QMRIError)
    assert "shape" in cause.found
