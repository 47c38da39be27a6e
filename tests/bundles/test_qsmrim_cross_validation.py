"""Cross-validation of qsmrim_net: every run once, resumed where it was cut off, and all scores side by side."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bundle_files import REPOSITORY
from filelock import FileLock
from monai.bundle import ConfigParser
from qsmrim_net.cohort.table import LesionTable
from qsmrim_net.cross_validation import CrossValidation, Run, cohort_key, cross_validate, score_table
from qsmrim_net.experiments.methods import LABELS, METHODS, methods_of
from qsmrim_net.fold_scores import FoldScores, score_file
from qsmrim_net.predictions import Predictions, collect
from qsmrim_net.untrained import untrained_logits

from shared_transforms.errors import QMRIError

from .qsmrim_cohort import SIZE, small_cohort

ROOT = REPOSITORY / "bundles" / "qsmrim_net"
FEW = ("qsmrim_net", "aprl_forest", "size")
TINY = {"epochs": 2, "width": 2, "size": list(SIZE), "folds": 2, "batch_size": 32, "val_interval": 2}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cohort") / "cohort.pt"
    small_cohort().save(path)
    return path


def run(output: Path, cohort: Path, methods: Any = FEW, seeds: Any = (0,), only_folds: Any = None, **more: Any) -> Any:
    training = {**TINY, "cohort_dir": str(cohort), **more}
    return cross_validate(ROOT, output, methods, seeds, only_folds, training)


@pytest.fixture(scope="module")
def whole(cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All of a few methods, and a further seed of one fold."""
    folder = tmp_path_factory.mktemp("whole")
    assert len(run(folder, cohort)) == 6
    run(folder, cohort, "qsmrim_net", "1", 0)
    return folder


def test_scores_are_those_of_the_held_out_lesions(whole: Path, cohort: Path) -> None:
    table = LesionTable.load(cohort)
    for method in FEW:
        found = [FoldScores.load(score_file(whole, method, fold, 0)) for fold in range(2)]
        subjects = [set(scores.lesions["subject"].tolist()) for scores in found]
        assert not subjects[0] & subjects[1] and subjects[0] | subjects[1] == set(range(12))
        assert {scores.cohort for scores in found} == {cohort_key(table)}
        assert all(scores.seconds > 0 and scores.provenance["versions"]["torch"] for scores in found)
    assert found[0].recipe["epochs"] == 2 and found[0].recipe["width"] == 2
    voxels = found[0].lesions["voxels"]
    assert torch.equal(found[0].logit.argsort(), voxels.argsort())  # size alone


def test_a_finished_run_leaves_its_scores_alone(whole: Path, cohort: Path) -> None:
    assert not list(whole.rglob("checkpoint*")) and not list(whole.rglob("model.pt"))
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*.pt")}
    run(whole, cohort)
    assert {path: path.stat().st_mtime_ns for path in whole.rglob("*.pt")} == before


def test_a_killed_run_goes_on_where_it_was(
    whole: Path, cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in whole.glob("ml*"):  # a record of its own would take seconds to set up
        if path.is_file():
            shutil.copy(path, tmp_path)
    rename = os.replace

    def killed(source: Any, target: Any) -> None:
        if "checkpoint_epoch=2" in str(target):
            raise KeyboardInterrupt
        rename(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, cohort, "qsmrim_net", only_folds=0)
    path = score_file(tmp_path, "qsmrim_net", 0, 0)
    assert not path.exists()
    epochs = []

    def seen(source: Any, target: Any) -> None:
        epochs.extend([target] if "checkpoint_epoch" in str(target) else [])
        rename(source, target)

    monkeypatch.setattr(os, "replace", seen)
    run(tmp_path, cohort, "qsmrim_net", only_folds=0)
    assert [Path(target).name for target in epochs] == ["checkpoint_epoch=2.pt"]
    assert torch.equal(FoldScores.load(path).logit, FoldScores.load(score_file(whole, "qsmrim_net", 0, 0)).logit)


def test_a_run_that_another_process_does_is_left_to_it(tmp_path: Path, cohort: Path) -> None:
    path = score_file(tmp_path, "size", 0, 0)
    path.parent.mkdir()
    with FileLock(f"{path.with_suffix('')}.lock"):
        assert run(tmp_path, cohort, "size") == [score_file(tmp_path, "size", 1, 0)]
    assert len(run(tmp_path, cohort, "size")) == 2


def test_one_failure_does_not_stop_the_others(tmp_path: Path, cohort: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str, *others: Any) -> torch.Tensor:
        if name == "rim_contrast":
            raise RuntimeError("broken")
        return untrained_logits(name, *others)

    monkeypatch.setattr("qsmrim_net.cross_validation.untrained_logits", broken)
    with pytest.raises(QMRIError, match="rim contrast, fold 0") as caught:
        run(tmp_path, cohort, "rim_contrast,size")
    assert "2 of 4" in str(caught.value) and len(list(tmp_path.glob("size/*.pt"))) == 2


def test_scores_of_another_recipe_are_not_taken_for_these(whole: Path, cohort: Path) -> None:
    with pytest.raises(QMRIError, match="failed"):
        run(whole, cohort, "size", epochs=3)
    scores = FoldScores.load(score_file(whole, "size", 0, 0))
    with pytest.raises(QMRIError, match="epochs"):
        scores.refuse_other_recipe({"epochs": 3}, whole)
    scores.refuse_other_recipe({"epochs": 2, "seed": 5, "unheard_of": 1, "batch_size": None}, whole)


def test_a_misspelt_value_is_an_error(tmp_path: Path, cohort: Path) -> None:
    with pytest.raises(QMRIError, match="no such value"):
        CrossValidation(ROOT, tmp_path, {"epoch": 1}).workflow(Run(METHODS["size"], 0, 0), tmp_path)
    with pytest.raises(QMRIError, match="folds from 0 to 1"):
        run(tmp_path, cohort, "size", only_folds=2)
    with pytest.raises(QMRIError, match="rimnett"):
        methods_of("rimnett,size")


def test_trainings_are_children_of_one_record(whole: Path) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{whole}/mlruns.db")
    parent = (whole / "mlflow_parent_run_id.txt").read_text().strip()
    [experiment] = [found for found in client.search_experiments() if found.name == "qsmrim_net"]
    runs = client.search_runs([experiment.experiment_id])
    assert next(found for found in runs if found.info.run_id == parent).info.status == "FINISHED"
    children = [found for found in runs if found.data.tags.get("mlflow.parentRunId") == parent]
    assert {found.info.run_name for found in children} == {
        "QSMRim-Net, fold 0, seed 0", "QSMRim-Net, fold 1, seed 0", "QSMRim-Net, fold 0, seed 1",
    }  # fmt: skip
    assert len(runs) == 4 and all(found.data.metrics["train_loss"] > 0 for found in children)


def test_all_lesions_side_by_side(whole: Path, cohort: Path, tmp_path: Path) -> None:
    table = LesionTable.load(cohort)
    files = collect(whole, tmp_path)
    assert [path.name for path in files] == ["predictions.csv", "cross_validation.csv", "cross_validation.json"]
    found = Predictions.load(files[0])
    assert len(found) == len(table) == 120
    assert np.array_equal(found.subject, table.subject) and np.array_equal(found.lesion, table.lesion)
    assert np.array_equal(found.label, table.label) and np.array_equal(found.raters, table.raters)
    assert np.array_equal(found.kind == "rim", table.label == 1) and set(found.amplitude_ppb) == {0.0, 30.0}
    assert found.seeds("qsmrim_net") == (0,) and found.unfinished() == ["qsmrim_net, seed 1"]
    unseen = np.isnan(found.logits["qsmrim_net", 1])
    assert np.array_equal(unseen, found.fold == 1)
    assert found.scores("size", [0])[0] == pytest.approx(np.log(found.voxels))
    scores = FoldScores.load(score_file(whole, "qsmrim_net", 1, 0))
    assert found.logits["qsmrim_net", 0][found.fold == 1] == pytest.approx(scores.logit.numpy(), rel=1e-6)
    rows = json.loads(files[2].read_text())["rows"]
    assert len(rows) == 7 and sum(row["rims"] for row in rows if row["method"] == "size") == int(table.label.sum())


def test_scores_of_two_cohorts_do_not_mix(whole: Path, tmp_path: Path) -> None:
    for fold, name in enumerate(("a", "b")):
        scores = FoldScores.load(score_file(whole, "size", fold, 0))
        scores.cohort = name
        scores.save(score_file(tmp_path, "size", fold, 0))
    with pytest.raises(QMRIError, match="cohort b"):
        collect(tmp_path, tmp_path)
    with pytest.raises(QMRIError, match="no scores"):
        collect(tmp_path / "none", tmp_path)
    with pytest.raises(QMRIError, match="no such file"):
        Predictions.load(tmp_path / "none.csv")


def test_scores_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(QMRIError, match="1 scores of 2"):
        FoldScores("size", 0, 0, {}, torch.tensor([0.0, torch.nan]), "", 0.0)


def test_lesions_without_features_are_scored(cohort: Path) -> None:
    table = LesionTable.load(cohort)
    table.features[::7] = torch.nan
    training, held_out = table.select(table.subject < 8), table.select(table.subject >= 8)
    logit = untrained_logits("aprl_forest", training, held_out, 0)
    assert bool(logit.isfinite().all()) and float(logit[held_out.label == 1].mean()) > float(logit.mean())
    missing = held_out.features[:, 0].isnan()
    assert len(logit[missing].unique()) == 1
    with pytest.raises(ValueError, match="guess"):
        untrained_logits("guess", training, held_out, 0)


def test_scoring_does_not_depend_on_the_chunks(cohort: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from qsmrim_net.network import QSMRimNet

    table = LesionTable.load(cohort)
    network = QSMRimNet(width=1).train()
    whole = score_table(network, table)
    monkeypatch.setattr("qsmrim_net.cross_validation._CHUNK", 7)
    assert whole.shape == (120,) and torch.allclose(score_table(network, table), whole, atol=1e-5)


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.overlays is not None])
def test_overlays_make_the_networks(name: str) -> None:
    parser = ConfigParser()
    parser.read_config([str(ROOT / "configs" / file) for file in ("train.json", *(METHODS[name].overlays or ()))])
    parser.read_meta({})
    parser["width"] = 2
    network = parser.get_parsed_content("network_def").eval()
    image, features = torch.randn(3, 2, *SIZE), torch.randn(3, 527)
    with torch.no_grad():
        sees_image = not torch.allclose(network(image, features), network(image + torch.randn_like(image), features))
        sees_features = not torch.allclose(network(image, features), network(image, torch.randn_like(features)))
    assert sees_image == (name != "aprl_network")
    assert sees_features == (name in ("qsmrim_net", "no_oversampling", "aprl_network"))


def test_every_method_has_a_name_and_the_config_its_values() -> None:
    assert list(METHODS) == list(LABELS)
    config = json.loads((ROOT / "configs" / "cross_validation.json").read_text())
    train = json.loads((ROOT / "configs" / "train.json").read_text())
    assert config["initialize"][0] == "$sys.path.insert(0, @bundle_root)" and config["_overlay_of_"] == []
    assert set(config["training"]) <= set(train)
    assert all(config["training"][name] == f"@{name}" and config[name] is None for name in config["training"])
