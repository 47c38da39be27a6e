"""Training of QSMRim-Net and its comparators."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from bundle_files import REPOSITORY
from ignite.engine import Engine, Events
from qsmrim_net.ensemble import RimEnsemble
from qsmrim_net.network import QSMRimNet

from shared_transforms.checkpoint import load_checkpoint

from .lesion_tables import SIZE, lesion_table
from .trainings import Training, assert_equal_states, differing, metrics_of, state

TABLE = lesion_table()
WIDTH = 2


@pytest.fixture(scope="module")
def qsmrim(tmp_path_factory: pytest.TempPathFactory) -> Training:
    """On a table in a file instead of simulated subjects."""
    folder = tmp_path_factory.mktemp("cohort")
    TABLE.save(folder / "table.pt")
    tiny = {
        "cohort_dir": str(folder / "table.pt"),
        "tracking_uri": f"sqlite:///{folder}/mlruns.db",  # one for all: to make it takes longer than to train
        "folds": 2,
        "size": list(SIZE),
        "width": WIDTH,
        "batch_size": 8,
        "val_interval": 1,
    }
    return Training("qsmrim_net", tiny, {"lr_scheduler#milestones": [1, 1, 2]})


@pytest.fixture(scope="module")
def whole(qsmrim: Training, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two epochs at one go."""
    folder = tmp_path_factory.mktemp("whole")
    qsmrim.train(folder, 2, tracking_uri=None)
    return folder


def rows_of(trainer: Engine) -> list[int]:
    """Gets the number of logits of every step of a training."""
    rows: list[int] = []
    trainer.add_event_handler(
        Events.ITERATION_COMPLETED, lambda engine: rows.append(engine.state.output["pred"].shape[0])
    )
    return rows


def test_killed_while_saving_and_resumed_equals_uninterrupted(
    qsmrim: Training, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also its random draws: dropout, oversampling, augmentation."""
    qsmrim.killed_and_resumed(tmp_path, monkeypatch)
    assert_equal_states(state(whole, 2), state(tmp_path, 2))


def test_what_it_learns_is_tracked(whole: Path) -> None:
    found = metrics_of(whole)
    assert {"val_average_precision", "val_pROC_AUC", "train_loss", "best_average_precision"} <= set(found.metrics)
    assert found.metrics["best_average_precision"] >= found.metrics["val_average_precision"]
    assert found.metrics["learning_rate"] == pytest.approx(5e-7)  # after three milestones
    assert found.params["recipe.fold"] == "0"


def test_the_radiomics_are_normalised_by_the_training_lesions(qsmrim: Training, whole: Path, tmp_path: Path) -> None:
    """Those that have features, of all folds but the held-out one."""
    run = qsmrim.workflow(tmp_path)
    held_out, network = (run.parser.get_parsed_content(name) for name in ("held_out", "network"))
    rest = TABLE.select(~torch.isin(TABLE.subject, held_out.subject) & (TABLE.status == 0))
    assert 0 < len(held_out) < len(TABLE)
    assert torch.allclose(network.radiomics.feature_mean.double(), rest.features.mean(0), atol=1e-6)
    assert torch.allclose(network.radiomics.feature_scale.double(), rest.features.std(0), rtol=1e-5)
    assert torch.equal(state(whole, 2)["network"]["radiomics.feature_mean"], network.radiomics.feature_mean)


def test_all_lesions_train_and_others_are_held_out(qsmrim: Training, tmp_path: Path) -> None:
    run = qsmrim.workflow(
        tmp_path, ("train.json", "no_oversampling.json"), epochs=2, fold=-1,
        new_cohort="$lambda: @cohort.select(torch.arange(9))",
    )  # fmt: skip
    rows = rows_of(run.parser.get_parsed_content("train#trainer"))
    run.run()
    assert rows == 12 * [8]
    assert len(run.parser.get_parsed_content("validate#dataset").table) == 9


@pytest.mark.parametrize(
    ("overlays", "kind"),
    [
        (("image_only.json",), "QSMRimNet"),
        (("image_only.json", "branches.json"), "QSMRimNet"),
        (("no_oversampling.json",), "QSMRimNet"),
        (("rimnet.json",), "RimNet"),
        (("aprl_network.json",), "APRLNetwork"),
    ],
)
def test_variants_and_comparators_train(qsmrim: Training, overlays: tuple[str, ...], kind: str, tmp_path: Path) -> None:
    run = qsmrim.workflow(tmp_path, ("train.json", *overlays), epochs=1)
    network, trainer = (run.parser.get_parsed_content(name) for name in ("network", "train#trainer"))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    rows = []
    trainer.add_event_handler(
        Events.ITERATION_COMPLETED, lambda engine: rows.append(engine.state.output["pred"].shape[0])
    )
    run.run()
    assert type(network).__name__ == kind and sum(rows) == 24
    assert differing(before, network.state_dict())


def test_oversampling_adds_rows_to_the_loss(qsmrim: Training, tmp_path: Path) -> None:
    run = qsmrim.workflow(tmp_path, epochs=1)
    rows = []
    trainer, training = (run.parser.get_parsed_content(name) for name in ("train#trainer", "training"))
    trainer.add_event_handler(
        Events.ITERATION_COMPLETED, lambda engine: rows.append(engine.state.output["pred"].shape[0])
    )
    run.run()
    assert sum(rows) == len(training) + 2 * int(training.label.sum())


@pytest.mark.parametrize("overlay", ["smoke.json", "paper.json"])
def test_overlays_on_the_training(overlay: str, tmp_path: Path) -> None:
    content = json.loads((REPOSITORY / "bundles/qsmrim_net/configs" / overlay).read_text())
    run = Training("qsmrim_net", {}).workflow(tmp_path, ("train.json", overlay), cohort="$None", initialize=[])
    given = {name: value for name, value in content.items() if not name.startswith("_")}
    assert {name: run.parser.get_parsed_content(name) for name in given} == given
    network = run.parser.get_parsed_content("network_def")
    assert network.image[0].conv1.out_channels == given["width"]


def test_the_rate_falls_at_half_and_near_the_end(tmp_path: Path) -> None:
    """Section 2.3: at 50, 70 and 90 per cent of 40 epochs."""
    schedule = {"epochs": 40, "learning_rate": 1e-4}
    run = Training("qsmrim_net", {}).workflow(tmp_path, width=WIDTH, cohort="$None", initialize=[], **schedule)
    scheduler, optimizer = (run.parser.get_parsed_content(name) for name in ("lr_scheduler", "optimizer"))
    rates = []
    for _ in range(40):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates == pytest.approx([1e-4] * 20 + [1e-5] * 8 + [1e-6] * 8 + [1e-7] * 4)


def test_training_goes_on_from_weights(qsmrim: Training, whole: Path, tmp_path: Path) -> None:
    """With the normalisation that they were trained with, not that of the new lesions."""
    weights = str(whole / "checkpoints" / "model.pt")
    qsmrim.train(tmp_path, 1, ("train.json", "finetune.json"), weights=weights, fold=1)
    first, second = state(whole, 2)["network"], state(tmp_path, 1)["network"]
    changed = differing(first, second)
    assert changed and not any("feature" in name for name in changed)


def test_weights_of_another_network_are_refused(qsmrim: Training, whole: Path, tmp_path: Path) -> None:
    assert "missing" in qsmrim.refusal_of(whole / "checkpoints" / "model.pt", tmp_path).found


def test_evaluation_of_an_ensemble(qsmrim: Training, whole: Path, tmp_path: Path) -> None:
    """By the mean of its probabilities, on all lesions of the given cohort."""
    last = load_checkpoint(whole / "checkpoints" / "checkpoint_epoch=2.pt")["network"]
    ensemble = RimEnsemble.from_members(QSMRimNet(WIDTH), [last] * 3)
    weights = tmp_path / "ensemble.pt"
    torch.save(ensemble.state_dict(), weights)
    run = qsmrim.workflow(tmp_path, ("train.json", "evaluate.json"), weights=str(weights))
    run.run()
    metrics = run.parser.get_parsed_content("validate#evaluator").state.metrics
    assert 0 < metrics["average_precision"] <= 1 and 0 <= metrics["pROC_AUC"] <= 1
    assert len(run.parser.get_parsed_content("validate#dataset").table) == len(TABLE)
