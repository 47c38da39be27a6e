"""Detection of rare cases, calibration, subject bootstrap: against scikit-learn, closed forms, limits, invariants."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import pytest
import sklearn.metrics as sk
import torch
from ignite.engine import Engine
from sklearn.calibration import calibration_curve

from shared_transforms.metrics import (
    AveragePrecision,
    PartialROC,
    StepCurve,
    average_precision,
    bootstrap,
    bootstrap_subjects,
    detection_counts,
    expected_calibration_error,
    f1_threshold,
    fold_average,
    high_sensitivity_threshold,
    mean_curve,
    partial_roc_auc,
    pr_curve,
    pr_points,
    reliability,
    roc_points,
    roc_step_curve,
)

from .two_processes import in_two_processes

SCORED = (partial_roc_auc, average_precision, f1_threshold, high_sensitivity_threshold, roc_points, pr_points)
AREAS = (partial_roc_auc, average_precision)


def cases(seed: int = 0, n: int = 400, digits: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Labels and scores with many ties."""
    generator = np.random.default_rng(seed)
    true = generator.random(n) < 0.1
    return true, np.round(generator.normal(size=n) + 1.5 * true, digits)


def steps_by_hand(true: np.ndarray, score: np.ndarray, limit: float) -> float:
    """Area below scikit-learn's knots, one step after the other."""
    knots = list(zip(*sk.roc_curve(true, score, drop_intermediate=False)[:2], strict=True))
    area = 0.0
    for (left, height), (right, _) in zip(knots, [*knots[1:], (1.0, 1.0)], strict=True):
        area += height * max(0.0, min(right, limit) - left)
    return area / limit


# --- areas ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("digits", [0, 1, 8])
@pytest.mark.parametrize("seed", range(4))
def test_areas_are_scikit_learns(seed: int, digits: int) -> None:
    true, score = cases(seed, digits=digits)
    assert average_precision(true, score) == pytest.approx(sk.average_precision_score(true, score), rel=1e-12)
    for limit in (0.1, 0.37, 1.0):
        assert partial_roc_auc(true, score, limit) == pytest.approx(steps_by_hand(true, score, limit), rel=1e-12)


def test_knots_are_scikit_learns() -> None:
    true, score = cases()
    for ours, theirs in zip(roc_points(true, score), sk.roc_curve(true, score, drop_intermediate=False), strict=True):
        assert np.allclose(ours, theirs, rtol=1e-14)
    recall, precision, thresholds = pr_points(true, score)
    their_precision, their_recall, their_thresholds = sk.precision_recall_curve(true, score)
    assert np.allclose(recall, their_recall[-2::-1]) and np.allclose(precision, their_precision[-2::-1])
    assert np.array_equal(thresholds, their_thresholds[::-1])


def test_curves_of_a_few_cases_by_hand() -> None:
    # From the top: rim, other, (rim and other at once), rim, and others to the end.
    true = [1, 0, 1, 0, 1, 0, 0]
    score = [9, 8, 7, 7, 6, 5, 4]
    roc = roc_step_curve(true, score)
    assert np.allclose(roc.edges, [0, 0.25, 0.5, 0.75, 1.0]) and np.allclose(roc.values, [1 / 3, 1 / 3, 1, 1])
    assert partial_roc_auc(true, score, 0.5) == pytest.approx(1 / 3)
    assert partial_roc_auc(true, score, 1.0) == pytest.approx(2 / 3)
    precision = pr_curve(true, score)
    assert np.allclose(precision.edges, [0, 1 / 3, 2 / 3, 1]) and np.allclose(precision.values, [1, 0.5, 0.6])
    assert average_precision(true, score) == pytest.approx((1 + 0.5 + 0.6) / 3)


def test_limits_of_the_areas() -> None:
    true, _ = cases()
    perfect, constant = true.astype(float), np.full(len(true), 0.3)
    for limit in (0.01, 0.1, 1.0):
        assert partial_roc_auc(true, perfect, limit) == 1
        assert partial_roc_auc(true, constant, limit) == partial_roc_auc(true, -perfect, limit) == 0
    assert average_precision(true, perfect) == 1
    assert average_precision(true, constant) == pytest.approx(true.mean())
    # Unlike the standardised partial area, a score that says nothing has half of the limit.
    noise = np.random.default_rng(0).random(400_000)
    assert partial_roc_auc(np.arange(400_000) % 10 == 0, noise) == pytest.approx(0.05, abs=0.004)


@pytest.mark.parametrize("area", AREAS)
def test_areas_know_the_order_alone(area) -> None:
    true, score = cases()
    value, mixed = area(true, score), np.random.default_rng(1).permutation(len(true))
    for other in (np.exp(score), 3 * score - 70, np.arctan(score), torch.from_numpy(score).float()):
        assert area(true, other) == value
    assert area(true[mixed], score[mixed]) == value
    assert area(torch.from_numpy(true), score) == area(true.astype(int), score.astype(np.float32)) == value


# --- folds ------------------------------------------------------------------------------------------------------------


def test_mean_of_two_steps_lies_on_the_union_of_their_knots() -> None:
    first = StepCurve(np.array([0.0, 0.5, 1.0]), np.array([0.2, 0.8]))
    second = StepCurve(np.array([0.0, 0.25, 1.0]), np.array([0.0, 1.0]))
    mean = mean_curve([first, second])
    assert np.allclose(mean.edges, [0, 0.25, 0.5, 1]) and np.allclose(mean.values, [0.1, 0.6, 0.9])
    assert mean.area(0.5) == pytest.approx((0.1 * 0.25 + 0.6 * 0.25) / 0.5)
    assert mean_curve([first]).area() == first.area() == pytest.approx(0.5)


@pytest.mark.parametrize(("kind", "area"), [("roc", partial_roc_auc), ("pr", average_precision)])
def test_area_of_the_mean_curve_is_the_mean_of_the_areas(kind: str, area) -> None:
    true, score = cases(n=900)
    fold = np.random.default_rng(2).integers(0, 5, len(true))
    found = fold_average(true, score, fold, kind=kind)
    each = [area(true[fold == f], score[fold == f]) for f in range(5)]
    assert list(found.areas.values()) == pytest.approx(each) and not found.skipped
    assert found.area == pytest.approx(np.mean(each), rel=1e-12)
    # Scores of different folds are never compared.
    assert fold_average(true, score + 100 * fold, fold, kind=kind).area == pytest.approx(found.area, rel=1e-12)


def test_folds_without_a_rim_are_skipped_and_named() -> None:
    true, score = cases(n=900)
    fold = np.where(true, np.arange(len(true)) % 2, np.arange(len(true)) % 3)
    found = fold_average(true, score, fold)
    assert found.skipped == (2,) and set(found.areas) == {0, 1}
    assert found.area == pytest.approx(np.mean([partial_roc_auc(true[fold == f], score[fold == f]) for f in (0, 1)]))
    with pytest.raises(ValueError, match="no fold"):
        fold_average(np.zeros(4), np.arange(4), [0, 0, 1, 1])


# --- thresholds -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_f1_threshold_is_the_best_of_all(seed: int) -> None:
    true, score = cases(seed)
    every = {t: sk.f1_score(true, score >= t) for t in np.unique(score)}
    best = max(every.values())
    assert f1_threshold(true, score) == max(t for t, value in every.items() if value == pytest.approx(best, rel=1e-12))


def test_of_equal_f1_scores_the_highest_threshold_is_taken() -> None:
    true, score = [1, 0, 0, 1], [5, 4, 3, 1]
    assert sk.f1_score(true, np.array(score) >= 5) == sk.f1_score(true, np.array(score) >= 1) == pytest.approx(2 / 3)
    assert f1_threshold(true, score) == 5


@pytest.mark.parametrize("seed", range(5))
def test_high_sensitivity_is_the_largest_below(seed: int) -> None:
    true, score = cases(seed)
    reached = {t: sk.recall_score(true, score >= t) for t in np.unique(score)}
    best = max(value for value in reached.values() if value < 0.9)
    expected = max(t for t, value in reached.items() if value == best)
    assert high_sensitivity_threshold(true, score, below=0.9) == expected


@pytest.mark.parametrize(("rims", "found"), [(20, 18), (177, 168), (100, 94), (3, 2)])
def test_sensitivity_stays_strictly_below(rims: int, found: int) -> None:
    """19 of 20 are .95 and not below it; the paper found 168 of 177 rims."""
    true, score = np.ones(rims), np.arange(rims)
    true, score = np.append(true, 0), np.append(score, -1)
    counts = detection_counts(true, score >= high_sensitivity_threshold(true, score))
    assert counts.true_positive == found and counts.false_positive == 0


def test_limits_of_the_thresholds() -> None:
    true = np.array([1, 0, 1, 0])
    assert f1_threshold(true, true) == 1 and f1_threshold(true, np.zeros(4)) == 0
    assert high_sensitivity_threshold(true, np.zeros(4)) == math.inf  # all at once are too many
    assert high_sensitivity_threshold(true, true, below=1.0) == math.inf
    assert high_sensitivity_threshold(true, [4, 3, 2, 1], below=1.0) == 4


def test_counts_are_those_of_the_paper() -> None:
    """Table 2, APRL (RF): its rates follow from its counts."""
    counts = detection_counts(*np.repeat([[1, 0, 1, 0], [1, 1, 0, 0]], [105, 86, 72, 3900], axis=1))
    assert (counts.true_positive, counts.false_positive) == (105, 86)
    assert (counts.false_negative, counts.true_negative) == (72, 3900)
    rates = (counts.accuracy, counts.f1, counts.sensitivity, counts.specificity, counts.ppv)
    assert rates == pytest.approx((0.962, 0.571, 0.593, 0.978, 0.550), abs=5e-4)
    assert counts.found == 191
    nothing = detection_counts([0, 0], [False, False])
    assert math.isnan(nothing.sensitivity) and math.isnan(nothing.ppv) and nothing.specificity == 1


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", SCORED)
def test_missing_scores_are_refused(metric) -> None:
    with pytest.raises(ValueError, match="NaN, 1 of 3"):
        metric([0, 1, 1], [0.1, math.nan, 0.2])
    with pytest.raises(ValueError, match="NaN"):
        metric([0, 0], [0.1, math.nan])
    with pytest.raises(ValueError, match=r"\[N\]"):
        metric([0, 1, 1], [0.1, 0.2])
    with pytest.raises(ValueError, match=r"\[N\]"):
        metric([], [])


def test_what_has_no_value_is_nan() -> None:
    assert all(math.isnan(metric([0, 0], [1.0, 2.0])) for metric in SCORED[:4])
    assert math.isnan(partial_roc_auc([1, 1], [1.0, 2.0])) and average_precision([1, 1], [1.0, 2.0]) == 1
    for curve in (roc_step_curve, pr_curve):
        with pytest.raises(ValueError, match="positive"):
            curve([0, 0], [1.0, 2.0])


def test_options_out_of_range_are_refused() -> None:
    true, score = cases()
    with pytest.raises(ValueError, match="limit"):
        partial_roc_auc(true, score, 0.0)
    with pytest.raises(ValueError, match="below"):
        high_sensitivity_threshold(true, score, 1.5)
    with pytest.raises(ValueError, match="kind"):
        fold_average(true, score, np.zeros(len(true)), kind="det")
    with pytest.raises(ValueError, match="fold"):
        fold_average(true, score, [0, 1])
    with pytest.raises(ValueError, match="no curve"):
        mean_curve([])
    with pytest.raises(ValueError, match="one shape"):
        detection_counts([1], [1, 0])


# --- calibration ------------------------------------------------------------------------------------------------------


def test_reliability_is_scikit_learns() -> None:
    generator = np.random.default_rng(0)
    probability = generator.random(3000) ** 3
    true = generator.random(3000) < probability**2
    found = reliability(true, probability, bins=12)
    observed, predicted = calibration_curve(true, probability, n_bins=12)
    assert np.allclose(found.observed[found.counts > 0], observed)
    assert np.allclose(found.predicted[found.counts > 0], predicted)
    assert found.counts.sum() == 3000


def test_calibration_error_of_known_probabilities() -> None:
    true = np.arange(1000) % 4 == 0
    assert expected_calibration_error(true, np.full(1000, 0.25)) == pytest.approx(0, abs=1e-12)
    assert expected_calibration_error(true, np.full(1000, 0.95)) == pytest.approx(0.7)
    assert expected_calibration_error(true, true.astype(float)) == 0
    assert expected_calibration_error(true, 1.0 - true) == 1
    # Two bins: half of the cases are off by .1, the other half by .3.
    probability = np.where(np.arange(1000) < 500, 0.35, 0.55)
    assert expected_calibration_error(true, probability) == pytest.approx(0.2)


def test_honest_probabilities_have_little_error() -> None:
    generator = np.random.default_rng(1)
    probability = generator.random(200_000)
    assert expected_calibration_error(generator.random(200_000) < probability, probability) < 0.01


@pytest.mark.parametrize("wrong", [math.nan, -0.1, 1.1])
def test_what_is_no_probability_is_refused(wrong: float) -> None:
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        expected_calibration_error([0, 1], [0.5, wrong])
    with pytest.raises(ValueError, match="bins"):
        expected_calibration_error([0, 1], [0.5, 0.5], bins=0)


# --- bootstrap --------------------------------------------------------------------------------------------------------


def test_subjects_of_one_row_are_plain_units() -> None:
    values = np.random.default_rng(0).normal(size=60)
    ours = bootstrap_subjects(np.arange(60), lambda rows: float(values[rows].mean()), draws=200, seed=3)
    assert ours == bootstrap(60, lambda rows: float(values[rows].mean()), resamples=200, seed=3)


def test_more_rows_of_the_same_subjects_say_no_more() -> None:
    """Ten copies of each row leave the interval; bootstrapping rows would make it shrink threefold."""
    values = np.random.default_rng(0).normal(size=80)
    subject, copies = np.arange(80), np.repeat(np.arange(80), 10)
    mixed = np.random.default_rng(1).permutation(800)
    once = bootstrap_subjects(subject, lambda rows: float(values[rows].mean()), seed=1)
    often = bootstrap_subjects(copies[mixed], lambda rows: float(values[copies[mixed]][rows].mean()), seed=1)
    assert (often.low, often.high) == pytest.approx((once.low, once.high)) and often.n == 80
    width = 2 * 1.96 * values.std() / math.sqrt(80)
    assert once.high - once.low == pytest.approx(width, rel=0.15)


def test_all_rows_of_a_drawn_subject_come() -> None:
    subject = np.array([7, 3, 7, 9, 3, 7])
    seen: list[np.ndarray] = []

    def statistic(rows: np.ndarray) -> float:
        seen.append(rows)
        return 0.0

    bootstrap_subjects(subject, statistic, draws=50)
    assert sorted(seen[0]) == [0, 1, 2, 3, 4, 5]
    for rows in seen[1:]:
        counts = np.bincount(rows, minlength=6)
        assert counts[0] == counts[2] == counts[5] and counts[1] == counts[4]
        assert counts[0] + counts[1] + counts[3] == 3
    with pytest.raises(ValueError, match="subject"):
        bootstrap_subjects([], len)


# --- metrics of engines -----------------------------------------------------------------------------------------------


def batches() -> list[dict[str, torch.Tensor]]:
    true, score = cases(n=150)
    ends = [(0, 60), (60, 64), (64, 150)]  # the middle one may have no positive case
    return [{"pred": torch.tensor(score[a:b]).float(), "label": torch.tensor(true[a:b]).long()} for a, b in ends]


@pytest.mark.parametrize(("metric", "function"), [(AveragePrecision, average_precision), (PartialROC, partial_roc_auc)])
def test_engine_metrics_take_all_batches_together(metric: type, function) -> None:
    engine = Engine(lambda engine, batch: batch)
    metric().attach(engine, "area")
    whole = [torch.cat([batch[name] for batch in batches()]) for name in ("label", "pred")]
    for _ in range(2):  # the second run starts anew
        assert engine.run(batches()).metrics["area"] == function(*whole)


def test_engine_metrics_of_little() -> None:
    wide = PartialROC(max_fpr=1.0)
    wide.update((torch.tensor([3.0, 2.0, 1.0]), torch.tensor([1, 0, 1])))
    assert wide.compute() == pytest.approx(0.5)
    metric = AveragePrecision()
    assert math.isnan(metric.compute())
    metric.update((torch.zeros(2), torch.zeros(2)))
    assert math.isnan(metric.compute())
    with pytest.raises(ValueError, match=r"\[N\]"):
        metric.update((torch.zeros(5), torch.zeros(3)))
    metric.update((torch.tensor([math.nan]), torch.ones(1)))
    with pytest.raises(ValueError, match="NaN"):
        metric.compute()


@pytest.mark.skipif(sys.platform == "win32", reason="needs fork")
def test_processes_with_unequal_shares_agree_with_one(tmp_path: Path) -> None:
    found = in_two_processes(tmp_path, [batches()[2:], batches()[:2]], "AveragePrecision")
    whole = [torch.cat([batch[name] for batch in batches()]) for name in ("label", "pred")]
    assert found == pytest.approx([average_precision(*whole)] * 2, rel=1e-12)
