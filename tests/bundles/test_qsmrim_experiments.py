"""The experiments of qsmrim_net: closed forms of their parts, quick runs of each, and the shipped file."""

from __future__ import annotations

import csv
import json
from functools import partial
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bundle_files import REPOSITORY
from numpy.testing import assert_array_equal
from qsmrim_net.calibration import cross_fitted
from qsmrim_net.ensemble import RimEnsemble
from qsmrim_net.experiments import EXPERIMENTS, paper
from qsmrim_net.experiments.bench import Bench, load_network
from qsmrim_net.experiments.contract import limits
from qsmrim_net.experiments.curves import value_at
from qsmrim_net.experiments.kinds import lesion_groups
from qsmrim_net.experiments.methods import ABLATION, COMPARED, LABELS, METHODS
from qsmrim_net.experiments.new_cohort import new_cohort
from qsmrim_net.experiments.raters import answers
from qsmrim_net.experiments.review import ways
from qsmrim_net.experiments.scores import Scored, comparisons, equal_seeds, scored, share_of, subject_counts
from qsmrim_net.experiments.subjects import correlation
from qsmrim_net.experiments.timing import timed, write_subject
from qsmrim_net.network import QSMRimNet
from qsmrim_net.predictions import Predictions
from qsmrim_net.shipping import ensemble_calibration, ship
from scipy.special import expit

from shared_transforms.errors import QMRIError
from shared_transforms.metrics.detection import StepCurve

from .qsmrim_cohort import small_cohort

ROOT = REPOSITORY / "bundles" / "qsmrim_net"
OF_SCORES = {
    "lesion_table": "lesion_table", "ablation": "lesion_table", "curves": "curves", "subjects": "subjects",
    "bootstrap": "bootstrap", "review": "review", "raters": "raters", "thresholds": "thresholds",
    "calibration": "calibration", "kinds": "kinds",
}  # fmt: skip
WIDTH = 1


def predictions(signal: float = 3.0) -> Predictions:
    """Twenty subjects of eight lesions, two folds; image_only has one seed, rimnet lacks a fold of its second."""
    random = np.random.default_rng(0)
    subject, lesion = np.repeat(np.arange(20), 8), np.tile(np.arange(1, 9), 20)
    label = (lesion <= subject % 5).astype(np.int64)
    logits = {}
    for name, method in METHODS.items():
        for seed in (0, 1, 2) if method.seeded and not name.startswith("image_only") else (0,):
            logits[name, seed] = -3 + signal * label + random.normal(size=160)
    logits["rimnet", 1][subject < 10] = np.nan
    raters = np.stack([label, np.where(lesion == 4, 1 - label, label)], 1)
    kind = np.where(label == 1, "rim", np.where(lesion % 2, "vein", "isointense"))
    return Predictions(
        subject, lesion, (subject >= 10).astype(np.int64), label, raters, kind, lesion, lesion / 100,
        np.where(label == 1, 10.0 * lesion, 0.0), np.zeros(160, np.int64), logits, {"commit": "abc"},
    )  # fmt: skip


@pytest.fixture(scope="module")
def scores() -> Predictions:
    return predictions()


@pytest.fixture(scope="module")
def bench(scores: Predictions, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    folder = tmp_path_factory.mktemp("experiments")
    scores.save(folder / "predictions.csv")
    return Bench(folder / "predictions.csv", folder, quick="true", draws=500)


def one_fold(label: list[int], logits: list[list[float]], subject: list[int] | None = None) -> Scored:
    rows = len(label)
    owner = np.arange(rows) if subject is None else np.array(subject)
    return Scored(
        "qsmrim_net",
        tuple(range(len(logits))),
        owner,
        np.zeros(rows, int),
        np.array(label),
        np.array(logits, dtype=float).T,
    )


def results(bench: Bench, name: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    content = json.loads((Path(bench.output_dir) / "results" / f"{name}.json").read_text())
    assert "quick" in content["provenance"]["experiment"]
    return content["rows"], content["provenance"]


def test_two_of_three_seeds_decide() -> None:
    # By thresholds of the best F1 (1, 1 and 2) the seeds find the first two, the first two, and the first.
    one = one_fold([1, 1, 0, 0], [[2, 1, 0, -1], [1, 2, -1, 0], [2, -2, -1, 1]])
    assert one.found.tolist() == [True, True, False, False]
    counts = one.counts()
    assert (counts.true_positive, counts.false_positive, counts.f1) == (2, 0, 1.0)
    assert one_fold([1, 0], [[3, 1], [1, 3]]).found.tolist() == [True, False]  # of two seeds: both


def test_own_thresholds_do_not_depend_on_the_calibration(scores: Predictions) -> None:
    one = scored(scores, "qsmrim_net")
    calibrated = cross_fitted(one.logits, one.label, one.fold, thresholds="own")
    assert_array_equal(one.found, calibrated.found)


def test_curves_are_made_of_the_mean_probability(scores: Predictions) -> None:
    one = scored(scores, "qsmrim_net")
    assert one.mean == pytest.approx(np.mean([expit(scores.logits["qsmrim_net", k]) for k in range(3)], 0))
    assert one.area("proc_auc", np.arange(160)) == one.area("proc_auc")
    perfect = one_fold([1, 1, 0, 0], [[4, 3, 2, 1]])
    assert perfect.area("proc_auc") == perfect.area("pr_auc") == 1.0
    assert one_fold([0, 0, 1, 1], [[4, 3, 2, 1]]).area("proc_auc") == 0.0
    assert scored(predictions(signal=0.0), "qsmrim_net").area("proc_auc") < 0.3 < one.area("proc_auc")


def test_a_fold_without_rims_has_no_answers() -> None:
    one = Scored("size", (0,), np.arange(4), np.array([0, 0, 1, 1]), np.array([1, 0, 0, 0]), np.ones((4, 1)))
    assert one.found.tolist() == [True, True, False, False] and not one.review[2:].any()
    assert one.average("roc").skipped == (1,)


def test_values_of_step_curves_at_their_knots() -> None:
    curve = StepCurve(np.array([0.0, 0.5, 1.0]), np.array([0.2, 0.7]))
    assert [value_at(curve, x, False) for x in (0.0, 0.4, 0.5, 1.0)] == [0.2, 0.2, 0.7, 0.7]
    assert [value_at(curve, x, True) for x in (0.0, 0.4, 0.5, 1.0)] == [0.2, 0.2, 0.2, 0.7]


def test_methods_are_compared_at_equal_seeds(scores: Predictions) -> None:
    assert scores.seeds("rimnet") == (0, 2) and scores.unfinished() == ["rimnet, seed 1"]
    assert [one.seeds for one in equal_seeds(scores, "qsmrim_net", "rimnet")] == [(0, 2), (0, 2)]
    assert [one.seeds for one in equal_seeds(scores, "qsmrim_net", "size")] == [(0, 1, 2), (0,)]
    rows = [(one.method, one.seeds) for one in comparisons(scores, ("size", "image_only", "rimnet", "qsmrim_net"))]
    assert rows == [
        ("size", (0,)), ("image_only", (0,)), ("rimnet", (0, 2)), ("qsmrim_net", (0, 1, 2)), ("qsmrim_net", (0,)),
        ("qsmrim_net", (0, 2)),
    ]  # fmt: skip
    scores_of_one = predictions()
    scores_of_one.logits = {("image_only", 5): scores.logits["image_only", 0], **scores_of_one.logits}
    del scores_of_one.logits["image_only", 0]
    with pytest.raises(KeyError):
        equal_seeds(scores_of_one, "qsmrim_net", "image_only")


def test_counts_of_subjects() -> None:
    one = one_fold([1, 1, 0, 1], [[1, 1, 1, 1]], [7, 3, 3, 7])
    found, true = subject_counts(one, np.array([True, True, True, False]))
    assert found.tolist() == [2, 1] and true.tolist() == [1, 2]
    both = correlation(np.array([0, 1, 2, 3, 4.0]), np.array([0, 2, 4, 6, 8.0]))
    assert both["pearson"] == pytest.approx(1.0)
    assert np.isnan(correlation(np.ones(5), np.arange(5))["pearson"])
    # The paper's own interval: r = .89 of 172 subjects.
    x, noise = np.random.default_rng(0).normal(size=(2, 172))
    noise -= x * (x @ noise) / (x @ x)
    x, noise = (v - v.mean() for v in (x, noise))
    noise -= x * (x @ noise) / (x @ x)
    y = 0.89 * x / x.std() + np.sqrt(1 - 0.89**2) * noise / noise.std()
    row = correlation(x, y)
    assert [round(row[name], 2) for name in ("pearson", "pearson_low", "pearson_high")] == [0.89, 0.85, 0.92]


def test_numbers_of_the_paper_agree_with_each_other() -> None:
    for counts in paper.COUNTS.values():
        assert counts[0] + counts[2] == 177 and counts[1] + counts[3] == 3986
    ours = paper.counts_of("qsmrim_net")
    assert ours is not None and paper.counts_of("size") is None
    assert (round(ours.sensitivity, 3), round(ours.f1, 3)) == (0.678, 0.704)  # printed as .680 and .703
    assert (paper.REVIEW["qsmrim_net"] + 168, 168 / 177 < 0.95 < 169 / 177) == (706, True)


def test_review_counts_what_reaches_the_threshold() -> None:
    label = [1] * 20 + [0] * 20
    one = one_fold(label, [[*range(40, 20, -1), *range(30, 10, -1)]])
    for name in ("own fold", "all folds"):
        found = ways_of(one)[name]
        # 18 of 20 rims, .90, is the largest sensitivity below .95: the scores from 23 on.
        assert found[:20].sum() == 18 and found[20:].sum() == 8


def ways_of(one: Scored) -> dict[str, Any]:
    """Without the way that needs other folds."""
    halves = Scored(one.method, one.seeds, one.subject, np.arange(len(one.label)) % 2, one.label, one.logits)
    return {**ways(halves), "own fold": one.review}


def test_shares_and_answers() -> None:
    one = one_fold([1, 1, 0, 0], [[3, 0, 2, 1]])
    split = answers(one)
    assert {name: int(chosen.sum()) for name, chosen in split.items()} == {
        "false positive": int((one.found & (one.label == 0)).sum()), "false negative": int((~one.found[:2]).sum()),
        "true positive": int(one.found[:2].sum()), "true negative": int((~one.found[2:]).sum()),
    }  # fmt: skip
    assert sum(chosen.astype(int) for chosen in split.values()).tolist() == [1, 1, 1, 1]
    values, among = np.array([True, False, True]), np.array([True, True, False])
    assert share_of(values, among, np.array([0, 1, 2])) == 0.5 and share_of(values, among, np.array([0, 0])) == 1.0
    assert np.isnan(share_of(values, among, np.array([2])))


def test_rims_by_strength(bench: Bench) -> None:
    groups = lesion_groups(bench)
    assert set(groups) == {"rim", "isointense", "vein", "rim, faint", "rim, middle", "rim, strong"}
    thirds = [groups[f"rim, {name}"] for name in ("faint", "middle", "strong")]
    assert_array_equal(sum(third.astype(int) for third in thirds), groups["rim"])
    strongest = [bench.scores.amplitude_ppb[third].max() for third in thirds]
    assert strongest == sorted(strongest) and strongest[0] < strongest[2]


@pytest.mark.parametrize("name", OF_SCORES)
def test_experiment_runs(name: str, bench: Bench) -> None:
    function = getattr(import_module(f"qsmrim_net.experiments.{OF_SCORES[name]}"), name)
    files = function(bench)
    assert all(path.is_file() for path in files)
    rows, provenance = results(bench, name)
    assert all(row["method"] in LABELS for row in rows)
    assert any("left out: rimnet, seed 1" in note for note in provenance["notes"])
    lines = (Path(bench.output_dir) / "results" / f"{name}.csv").read_text().splitlines()
    assert len(list(csv.DictReader(line for line in lines if not line.startswith("#")))) == len(rows)


def test_tables_hold_what_the_issue_asks(bench: Bench) -> None:
    from qsmrim_net.experiments.lesion_table import ablation, lesion_table
    from qsmrim_net.experiments.subjects import subjects

    for function in (lesion_table, ablation, subjects):
        function(bench)
    rows, provenance = results(bench, "lesion_table")
    assert [t["limit"] for t in provenance["targets"]] == [0.76, 0.7, 0.15, 0.0]
    ours = next(row for row in rows if row["method"] == "qsmrim_net")
    assert ours["seeds"] == "0 1 2" and ours["tp"] + ours["fn"] == ours["rims"] == int(bench.scores.label.sum())
    assert ours["paper_tp"] == 120 and ours["paper_pr_auc"] == 0.704
    assert ours["pr_auc_low"] <= ours["pr_auc"] <= ours["pr_auc_high"]
    rows, provenance = results(bench, "ablation")
    assert [(row["method"], row["seeds"]) for row in rows] == [
        *((name, "0") for name in ABLATION), ("no_oversampling", "0 1 2"), ("qsmrim_net", "0 1 2"),
    ]  # fmt: skip
    assert len(provenance["targets"]) == 3 and all(t["limit"] == 0 for t in provenance["targets"])
    rows, provenance = results(bench, "subjects")
    assert [t["limit"] for t in provenance["targets"]] == [0.89, 1.0]
    assert {row["thresholds"] for row in rows} == {"own fold", "other folds"} and rows[0]["true"] == 40


def test_methods_without_scores_are_named(tmp_path: Path) -> None:
    from qsmrim_net.experiments.lesion_table import ablation, lesion_table

    few = predictions()
    few.logits = {key: value for key, value in few.logits.items() if key[0] == "size"}
    few.save(tmp_path / "predictions.csv")
    bench = Bench(tmp_path / "predictions.csv", tmp_path, quick=True)
    lesion_table(bench)
    rows, provenance = results(bench, "lesion_table")
    assert [row["method"] for row in rows if row.get("note")] == [name for name in COMPARED if name != "size"]
    assert provenance["targets"] == []
    ablation(bench)
    assert all(row["note"] for row in results(bench, "ablation")[0])
    assert "cross_validation" in str(Bench(tmp_path / "none.csv", tmp_path).left_out("lesion_table"))
    assert "weights" in str(bench.left_out("timing")) and bench.left_out("contract") is None


def test_limits_in_words() -> None:
    rows = [{"low": 0.5, "high": 0.65}, {"low": None, "high": 0.35}, {"low": 0.95, "high": None}, {"low": 3, "high": 3}]
    assert [limits(row) for row in rows] == ["0.5 to 0.65", "at most 0.35", "at least 0.95", "3"]


@pytest.fixture(scope="module")
def shipped(scores: Predictions, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of three trainings with all lesions, and of what is made of them."""
    folder = tmp_path_factory.mktemp("ship")
    for seed in range(3):
        torch.manual_seed(seed)
        run = folder / f"seed-{seed}"
        (run / "checkpoints").mkdir(parents=True)
        torch.save({"network": QSMRimNet(WIDTH).state_dict()}, run / "checkpoints" / "checkpoint_epoch=2.pt")
        (run / "executed_config.json").write_text(json.dumps({"fold": -1, "seed": seed}))
    scores.save(folder / "predictions.csv")
    runs = [folder / f"seed-{seed}" for seed in range(3)]
    made = partial(ship, QSMRimNet(WIDTH), predictions=folder / "predictions.csv", model=folder / "model.pt")
    assert len(made(runs, calibration=folder / "calibration.pt")) == 2
    with pytest.raises(QMRIError, match="seed"):
        made(runs[::-1], calibration=folder / "other.pt")
    with pytest.raises(QMRIError, match="2 trainings and 3 seeds"):
        made(runs[:2], calibration=folder / "other.pt")
    assert not (folder / "other.pt").exists()
    return folder


def ensemble(folder: Path) -> RimEnsemble:
    network = load_network(RimEnsemble([QSMRimNet(WIDTH) for _ in range(3)]), folder / "model.pt")
    assert isinstance(network, RimEnsemble)
    return network


def test_shipped_ensemble_is_the_trainings_with_the_calibration(shipped: Path, scores: Predictions) -> None:
    network = ensemble(shipped)
    buffers = torch.load(shipped / "calibration.pt", weights_only=True)
    assert set(buffers) == {"calibration", "thresholds", "seed_thresholds"}
    assert all(torch.equal(value, network.get_buffer(name)) for name, value in buffers.items())
    image, features = torch.randn(5, 2, 24, 24, 8), torch.randn(5, 527)
    for k, (slope, intercept) in enumerate(network.calibration):
        torch.manual_seed(k)
        alone = QSMRimNet(WIDTH).eval()(image, features)
        assert torch.allclose(network(image, features)[:, k], torch.sigmoid(slope * alone + intercept), atol=1e-6)
    # Calibrated on all held-out scores: the mean probability is the prevalence, up to Platt's shrunken targets.
    fitted = ensemble_calibration(scores)
    each = fitted.probabilities(scores.scores("qsmrim_net", (0, 1, 2)).T)
    assert each.mean() == pytest.approx(scores.label.mean(), abs=0.02)
    assert load_network(RimEnsemble([QSMRimNet(WIDTH)]), shipped / "none.pt") is None


def test_a_run_without_checkpoint_is_named(shipped: Path, tmp_path: Path) -> None:
    runs = [tmp_path, shipped / "seed-1", shipped / "seed-2"]
    with pytest.raises(QMRIError, match="no checkpoint"):
        ship(QSMRimNet(WIDTH), runs, shipped / "predictions.csv", tmp_path / "a.pt", tmp_path / "b.pt")


def test_shipped_ensemble_on_new_subjects(shipped: Path, tmp_path: Path) -> None:
    asked = []

    def cohort(cohort_dir: Any = None, **more: Any) -> Any:
        asked.append(more)
        return small_cohort(seed=more.get("seed", 0))

    bench = Bench(shipped / "predictions.csv", tmp_path, quick=True, network=ensemble(shipped), cohort=cohort,
                  weights=shipped / "model.pt")  # fmt: skip
    assert bench.left_out("new_cohort") is None
    new_cohort(bench)
    rows, provenance = results(bench, "new_cohort")
    assert asked == [{"seed": 1, "subjects": 6, "split": "test"}, {}]
    assert [row["method"] for row in rows] == ["qsmrim_net", "size", "rim_contrast", "aprl_forest"]
    assert {"proc_auc", "pr_auc", "f1", "review_share", "ece", "pearson", "mse"} <= set(rows[0])
    assert rows[3]["pr_auc"] > 0.7 > 0.4 > rows[1]["pr_auc"]  # features tell rims of this table apart, size does not
    assert provenance["weights"]["file"] == "model.pt"


def test_stages_are_timed() -> None:
    class LesionsInd:
        def __call__(self, data: int) -> int:
            return data + 1

    seconds: dict[str, float] = {"lesions": 1.0}
    assert timed(LesionsInd(), seconds)(1) == 2 and seconds["lesions"] > 1.0


def test_subject_is_written_as_it_is(tmp_path: Path) -> None:
    import nibabel as nib
    from qsmrim_net.cohort.subject import Subject

    qsm, labels = torch.randn(4, 5, 6), torch.zeros(4, 5, 6, dtype=torch.int32)
    labels[1:3, 2, 2] = 1
    subject = Subject(
        qsm, qsm.abs(), qsm, labels, qsm > 0, qsm, (0.75, 0.75, 3.0), lesions=[0], raters=torch.zeros(1, 2),  # type: ignore[arg-type]
    )  # fmt: skip
    assert write_subject(subject, tmp_path / "sub-01") == 1
    found = nib.load(tmp_path / "sub-01" / "sub-01_Chimap.nii.gz")
    assert np.allclose(found.get_fdata(), qsm) and found.header.get_zooms() == (0.75, 0.75, 3.0)
    mask = nib.load(tmp_path / "sub-01" / "sub-01_label-lesion_mask.nii.gz")
    assert_array_equal(mask.get_fdata(), labels)
    assert json.loads((tmp_path / "sub-01" / "sub-01_Chimap.json").read_text()) == {"Units": "ppb"}


def test_configs_name_what_there_is() -> None:
    train, experiments, shipping = (
        json.loads((ROOT / "configs" / f"{name}.json").read_text()) for name in ("train", "experiments", "ship")
    )
    assert tuple(experiments["experiments"]) == EXPERIMENTS
    for name, node in experiments["experiments"].items():
        module, _, function = node["_target_"].rpartition(".")
        parameters = signature(getattr(import_module(module), function)).parameters
        assert {k for k in node if not k.startswith("_")} <= set(parameters), name
    assert set(experiments["bench"]) - {"_target_"} <= set(signature(Bench).parameters)
    for config in (experiments, shipping):
        assert config["initialize"][0] == "$sys.path.insert(0, @bundle_root)" and config["_overlay_of_"] == []
    assert shipping["network_def"] == train["network_def"]
    assert experiments["network_def"]["members"] == 3 * [train["network_def"]]
    shared = {"width", "stem", "radiomics", "combine", "image_fusion", "oversampling"}
    assert all(shipping[name] == experiments[name] == train[name] for name in shared)
    shared = {"cohort_dir", "cohort_seed", "subjects", "folds", "fold_seed", "size"}
    assert all(experiments[name] == train[name] for name in shared)
