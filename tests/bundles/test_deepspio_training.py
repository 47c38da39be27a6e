"""Training of DeepSPIO."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from .trainings import Training, assert_equal_states, differing, metrics_of, state

DEEPSPIO = Training(
    "deepspio",
    {
        "batches_per_epoch": 2,
        "batch_size": 2,
        "size": 96,
        "crop": 64,
        "width": 2,
        "validation_batches": 1,
        "val_interval": 1,
        "warmup_steps": 1,
    },
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two epochs at one go."""
    folder = tmp_path_factory.mktemp("whole")
    DEEPSPIO.train(folder, 2)
    return folder


def test_killed_while_saving_and_resumed_equals_uninterrupted(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    DEEPSPIO.killed_and_resumed(tmp_path, monkeypatch)
    assert_equal_states(state(whole, 2), state(tmp_path, 2))


def test_speed_of_simulation_and_of_training_are_tracked_apart(whole: Path) -> None:
    found = metrics_of(whole).metrics
    assert {"val_NMAE", "val_concentration_MAE_ug_per_mm3", "train_loss"} <= set(found)
    assert found["train_simulated_per_second"] > 0
    assert found["train_trained_per_second"] > 0
    seconds = 4 * sum(1 / found[f"train_{name}_per_second"] for name in ("simulated", "trained"))
    assert seconds <= found["epoch_seconds"] * 1.001


@pytest.mark.parametrize("overlay", ["smoke.json", "full_size.json"])
def test_overlays_on_the_training(overlay: str, tmp_path: Path) -> None:
    content = json.loads((DEEPSPIO.root / "configs" / overlay).read_text())
    run = Training("deepspio", {}).workflow(tmp_path, ("train.json", overlay))
    assert run.parser.get_parsed_content("train")["trainer"].state.max_epochs == content["epochs"]
    simulator = run.parser.get_parsed_content("train")["simulator"]
    assert (simulator.size, simulator.crop) == (content["size"], content["crop"])


def test_training_goes_on_from_weights_with_the_papers_loss(whole: Path, tmp_path: Path) -> None:
    weights = str(whole / "checkpoints" / "model.pt")
    run = DEEPSPIO.train(tmp_path, 1, ("train.json", "finetune.json"), weights=weights)
    loss = run.parser.get_parsed_content("loss")
    assert (loss.absolute, loss.compressed, loss.image) == (1.0, 0.0, 1.0)
    assert differing(state(whole, 2)["network"], state(tmp_path, 1)["network"])


def test_weights_of_another_network_are_refused(whole: Path, tmp_path: Path) -> None:
    assert "shape" in DEEPSPIO.refusal_of(whole / "checkpoints" / "model.pt", tmp_path, width=4).found


def test_evaluation_of_weights_on_whole_test_images(whole: Path, tmp_path: Path) -> None:
    weights = str(whole / "checkpoints" / "model.pt")
    run = DEEPSPIO.workflow(tmp_path, ("train.json", "evaluate.json"), weights=weights, crop=None)
    run.run()
    assert run.parser.get_parsed_content("validate")["evaluator"].state.metrics["NMAE"] > 0
    assert run.parser.get_parsed_content("validate")["dataset"].split == "test"
