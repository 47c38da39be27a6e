"""Platt scaling against scikit-learn and known lines; nothing of a fold decides on its own answers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from qsmrim_net.calibration import Calibration, cross_fitted, fit_calibration, fit_platt
from scipy.special import expit
from sklearn.linear_model import LogisticRegression

from shared_transforms.metrics import (
    average_precision,
    detection_counts,
    expected_calibration_error,
    f1_threshold,
    high_sensitivity_threshold,
    partial_roc_auc,
)


def scored(n: int = 4000, seeds: int = 3, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Logits [n, seeds] that are too sure of themselves, labels, folds."""
    generator = np.random.default_rng(seed)
    true = generator.normal(size=n) * 2 - 4.5
    label = generator.random(n) < expit(true)
    logits = 2.5 * (true[:, None] + 0.5 * generator.normal(size=(n, seeds))) + 3
    return logits, label.astype(int), generator.integers(0, 5, n)


# --- Platt scaling ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_platt_is_scikit_learns_regression_on_platts_targets(seed: int) -> None:
    logits, label, _ = scored(800, seed=seed)
    z, rims = logits[:, 0], label.sum()
    target = np.where(label == 1, (rims + 1) / (rims + 2), 1 / (800 - rims + 2))
    # A target between 0 and 1 is a case of each kind, weighted.
    model = LogisticRegression(C=math.inf, tol=1e-10, max_iter=2000)
    model.fit(np.append(z, z)[:, None], np.repeat([1, 0], 800), sample_weight=np.append(target, 1 - target))
    assert fit_platt(z, label) == pytest.approx((model.coef_[0, 0], model.intercept_[0]), rel=1e-4)


def test_platt_undoes_a_known_line() -> None:
    generator = np.random.default_rng(0)
    true = generator.normal(size=200_000) * 2 - 2
    label = generator.random(200_000) < expit(true)
    slope, intercept = fit_platt(3 * true + 1.5, label)
    assert slope == pytest.approx(1 / 3, rel=0.02) and intercept == pytest.approx(-0.5, abs=0.03)


def test_platt_follows_shifts_and_units_of_the_logits() -> None:
    logits, label, _ = scored()
    slope, intercept = fit_platt(logits[:, 0], label)
    for factor, shift in ((1e-4, 0.0), (1e4, 7.0), (1.0, -1e3)):
        a, b = fit_platt(factor * logits[:, 0] + shift, torch.from_numpy(label))
        assert a * factor == pytest.approx(slope, rel=1e-5)
        assert b + a * shift == pytest.approx(intercept, rel=1e-4)


def test_scores_that_separate_stay_finite() -> None:
    label = np.arange(100) % 10 == 0
    slope, intercept = fit_platt(np.where(label, 5.0, -5.0), label)
    assert expit(5 * slope + intercept) == pytest.approx(11 / 12) and expit(-5 * slope + intercept) == pytest.approx(
        1 / 92
    )


@pytest.mark.parametrize("logits", [lambda z: -z, lambda z: 0 * z])
def test_scores_that_say_nothing_get_the_prevalence(logits) -> None:
    z, label, _ = scored()
    slope, intercept = fit_platt(logits(z[:, 0]), label)
    assert slope == 0 and expit(intercept) == pytest.approx(label.mean(), rel=0.02)


def test_platt_refuses_what_it_cannot_use() -> None:
    with pytest.raises(ValueError, match="finite, 1 of 3"):
        fit_platt([1.0, math.nan, 2.0], [0, 1, 1])
    with pytest.raises(ValueError, match="finite"):
        fit_platt([1.0, math.inf], [0, 1])
    with pytest.raises(ValueError, match="0 rims of 2"):
        fit_platt([1.0, 2.0], [0, 0])
    with pytest.raises(ValueError, match="2 rims of 2"):
        fit_platt([1.0, 2.0], [1, 1])
    with pytest.raises(ValueError, match=r"\[N\]"):
        fit_platt([1.0, 2.0], [1])


# --- calibration of several trainings ---------------------------------------------------------------------------------


def test_thresholds_are_those_of_the_calibrated_probabilities() -> None:
    logits, label, _ = scored()
    fitted = fit_calibration(logits, label)
    probabilities = fitted.probabilities(logits)
    assert [tuple(line) for line in fitted.calibration] == [fit_platt(z, label) for z in logits.T]
    mean = probabilities.mean(1)
    assert fitted.thresholds.tolist() == [f1_threshold(label, mean), high_sensitivity_threshold(label, mean)]
    assert fitted.seed_thresholds.tolist() == [f1_threshold(label, p) for p in probabilities.T]
    # A monotone line keeps the choice of each training.
    best = [f1_threshold(label, z) for z in logits.T]
    assert np.array_equal(probabilities >= fitted.seed_thresholds, logits >= best)


@pytest.mark.parametrize(("seeds", "needed"), [(1, 1), (2, 2), (3, 2), (5, 3)])
def test_the_majority_decides(seeds: int, needed: int) -> None:
    fitted = Calibration(np.tile([1.0, 0.0], (seeds, 1)), np.array([0.5, 0.1]), np.full(seeds, 0.5))
    votes = np.tril(np.ones((seeds + 1, seeds)), -1)  # k of them see a rim in row k
    assert fitted.vote(0.5 * votes).tolist() == [k >= needed for k in range(seeds + 1)]


def test_buffers_are_what_the_ensemble_stores() -> None:
    logits, label, _ = scored(500)
    buffers = fit_calibration(logits, label).buffers()
    assert {name: tuple(value.shape) for name, value in buffers.items()} == {
        "calibration": (3, 2),
        "thresholds": (2,),
        "seed_thresholds": (3,),
    }
    assert all(value.dtype == torch.float32 for value in buffers.values())
    with pytest.raises(ValueError, match=r"\[N, 3\]"):
        fit_calibration(logits, label).probabilities(logits[:, :2])


# --- cross-fitting ----------------------------------------------------------------------------------------------------


def test_cross_fitted_probabilities_mean_what_they_say() -> None:
    logits, label, fold = scored(8000)
    found = cross_fitted(logits, label, fold)
    assert expected_calibration_error(label, expit(logits.mean(1))) > 0.04
    assert expected_calibration_error(label, found.mean) < 0.015
    assert np.array_equal(found.mean, found.probabilities.mean(1)) and not found.skipped
    for name in range(5):
        inside = fold == name
        for k in range(3):  # within a fold the order stays, and with it every area
            for area in (partial_roc_auc, average_precision):
                ours, plain = (
                    area(label[inside], found.probabilities[inside, k]),
                    area(label[inside], logits[inside, k]),
                )
                assert ours == pytest.approx(plain, rel=1e-12)


def test_a_fold_does_not_decide_on_its_own_answers() -> None:
    """Other labels in a fold change all folds but this one."""
    logits, label, fold = scored()
    other = np.where(fold == 2, 1 - label, label)
    first, second = cross_fitted(logits, label, fold), cross_fitted(logits, other, fold)
    inside = fold == 2
    for name in ("probabilities", "mean", "found", "review"):
        ours, theirs = getattr(first, name), getattr(second, name)
        assert np.array_equal(ours[inside], theirs[inside]), name
    assert not np.array_equal(first.probabilities[~inside], second.probabilities[~inside])
    expected = fit_calibration(logits[~inside], label[~inside])
    assert np.array_equal(first.calibrations[2].calibration, expected.calibration)
    assert np.array_equal(first.found[inside], expected.vote(expected.probabilities(logits[inside])))
    assert np.array_equal(first.review[inside], first.mean[inside] >= expected.thresholds[1])


def test_own_thresholds_are_optimistic() -> None:
    logits, label, fold = scored(1500, seeds=1, seed=2)
    honest, own = (cross_fitted(logits, label, fold, thresholds=source) for source in ("others", "own"))
    assert np.array_equal(honest.probabilities, own.probabilities)
    for name in range(5):
        inside = fold == name
        ours, theirs = (detection_counts(label[inside], one.found[inside]).f1 for one in (own, honest))
        assert ours >= theirs
        assert np.array_equal(own.found[inside], logits[inside, 0] >= f1_threshold(label[inside], logits[inside, 0]))
    assert detection_counts(label, own.found).f1 > detection_counts(label, honest.found).f1


def test_a_fold_without_rims_has_no_threshold_of_its_own() -> None:
    logits, label, fold = scored()
    label = np.where(fold == 4, 0, label)
    own = cross_fitted(logits, label, fold, thresholds="own")
    assert own.skipped == (4,) and not own.found[fold == 4].any() and not own.review[fold == 4].any()
    assert not cross_fitted(logits, label, fold).skipped


def test_high_sensitivity_is_about_what_was_asked_for() -> None:
    logits, label, fold = scored(8000)
    counts = detection_counts(label, cross_fitted(logits, label, fold).review)
    assert counts.sensitivity == pytest.approx(0.945, abs=0.03)


def test_cross_fitting_refuses_what_it_cannot_use() -> None:
    logits, label, fold = scored(100)
    with pytest.raises(ValueError, match="two folds"):
        cross_fitted(logits, label, 0 * fold)
    with pytest.raises(ValueError, match="thresholds"):
        cross_fitted(logits, label, fold, thresholds="all")
    with pytest.raises(ValueError, match=r"\[N\]"):
        cross_fitted(logits, label[1:], fold)
    with pytest.raises(ValueError, match=r"\[N, K\]"):
        cross_fitted(logits[:, 0], label, fold)
    with pytest.raises(ValueError, match="0 rims"):
        cross_fitted(logits, (fold == 1).astype(int), fold)
