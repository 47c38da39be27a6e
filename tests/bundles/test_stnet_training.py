"""Training of ST-Net."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from .trainings import Training, assert_equal_states, metrics_of, state

STNET = Training(
    "stnet_perfusion",
    {
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
    },
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two epochs at one go."""
    folder = tmp_path_factory.mktemp("whole")
    STNET.train(folder, 2)
    return folder


def test_killed_while_saving_and_resumed_equals_uninterrupted(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    STNET.killed_and_resumed(tmp_path, monkeypatch)
    assert_equal_states(state(whole, 2), state(tmp_path, 2))


def test_what_it_learns_is_tracked(whole: Path) -> None:
    found = metrics_of(whole)
    watched = {"Tmax_MAE_s", "CBV_MAE_ml_per_100g", "CBF_MAE_ml_per_100g_min", "Dice_Tmax_over_6_s"}
    assert {f"val_{name}" for name in watched} | {"train_loss"} <= set(found.metrics)
    assert found.params["seed"] == "0"
    weights = torch.load(whole / "checkpoints" / "model.pt", weights_only=True)
    assert all(isinstance(value, torch.Tensor) for value in weights.values())


def test_the_papers_patches_train(tmp_path: Path) -> None:
    """Padded with zeros, and with voxels left out between them."""
    network = STNET.train(tmp_path, 1, padding="zero", stride=2).parser.get_parsed_content("network")
    assert network.crop == 3


def test_a_quick_run_by_the_overlay(tmp_path: Path) -> None:
    content = json.loads((STNET.root / "configs" / "smoke.json").read_text())
    run = STNET.workflow(tmp_path, ("train.json", "smoke.json"))
    trainer = run.parser.get_parsed_content("train")["trainer"]
    assert trainer.state.max_epochs == content["epochs"]


def test_weights_of_another_network_are_refused(whole: Path, tmp_path: Path) -> None:
    refusal = STNET.refusal_of(whole / "checkpoints" / "model.pt", tmp_path, channels=[2, 2, 2, 8])
    assert "shape" in refusal.found


def test_evaluation_of_weights_on_test_data(whole: Path, tmp_path: Path) -> None:
    weights = str(whole / "checkpoints" / "model.pt")
    run = STNET.workflow(tmp_path, ("train.json", "evaluate.json"), weights=weights)
    run.run()
    metrics = run.parser.get_parsed_content("validate")["evaluator"].state.metrics
    assert 0 < metrics["Tmax_MAE_s"] < 20
    assert run.parser.get_parsed_content("validate")["dataset"].split == "test"
