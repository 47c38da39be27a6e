"""From logits of several trainings to probabilities and answers: Platt scaling, thresholds, both cross-fitted.

A threshold that is chosen on the lesions it is judged on flatters the method, and so does a calibration. So for each
fold both come from the other folds, whose lesions were scored by networks that had not seen them either.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize
from scipy.special import expit, logit
from torch import Tensor

from shared_transforms.metrics.detection import f1_threshold, high_sensitivity_threshold

__all__ = ["BELOW", "Calibration", "CrossFitted", "cross_fitted", "fit_calibration", "fit_platt"]

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

BELOW = 0.95  # sensitivity that the review threshold stays below
SOURCES = ("others", "own")


@dataclass(frozen=True)
class Calibration:
    """What makes probabilities and answers of the logits of K trainings (seeds).

    Attributes:
        calibration: slope and intercept of each ``[K, 2]``: p = sigmoid(slope * logit + intercept).
        thresholds: of the mean probability ``[2]``: of the largest F1, and of the high sensitivity.
        seed_thresholds: of the largest F1 of each ``[K]``, for its vote.
    """

    calibration: Floats
    thresholds: Floats
    seed_thresholds: Floats

    def probabilities(self, logits: ArrayLike) -> Floats:
        """Calibrated probabilities ``[N, K]`` of logits ``[N, K]``."""
        return _probabilities(_logits(logits), self.calibration)

    def vote(self, probabilities: Floats) -> Flags:
        """Whether the majority of the K finds a rim ``[N]``; ``probabilities`` are ``[N, K]``."""
        votes = (probabilities >= self.seed_thresholds).sum(1)
        return np.asarray(votes > probabilities.shape[1] // 2)

    def buffers(self) -> dict[str, Tensor]:
        """The three as single precision tensors, by the names of the ensemble's buffers."""
        names = ("calibration", "thresholds", "seed_thresholds")
        return {name: torch.tensor(getattr(self, name), dtype=torch.float32) for name in names}


@dataclass(frozen=True)
class CrossFitted:
    """Answers to all lesions, each by what was fitted without its fold.

    Attributes:
        probabilities: of each training ``[N, K]``, calibrated on the other folds.
        mean: probability ``[N]``.
        found: majority of the votes ``[N]``.
        review: mean probability at or above the threshold of high sensitivity ``[N]``.
        calibrations: of each fold.
        skipped: folds without a rim whose own thresholds were asked for: they have none, nothing is found in them.
    """

    probabilities: Floats
    mean: Floats
    found: Flags
    review: Flags
    calibrations: dict[int, Calibration]
    skipped: tuple[int, ...]


def fit_platt(logits: ArrayLike, labels: ArrayLike) -> tuple[float, float]:
    """Slope and intercept that make logits those of a probability, with Platt's targets, which keep both finite.

    The slope is not negative, so that the order of the lesions stays: logits that are lower for rims get the slope 0
    and all the same probability, about the prevalence; so do logits that are all equal.

    Args:
        logits: ``[N]``, finite.
        labels: ``[N]``, nonzero for a rim.

    Returns:
        (slope, intercept): p = sigmoid(slope * logit + intercept).

    Raises:
        ValueError: when shapes do not fit, a logit is not finite, or there is no rim or nothing else.

    Source: Platt, Probabilistic Outputs for Support Vector Machines, Advances in Large Margin Classifiers (1999).
    """
    rim = np.asarray(labels) != 0
    values = _logits(np.asarray(logits)[..., None])[:, 0]
    if rim.shape != values.shape:
        raise ValueError(f"logits and labels must be [N], got {values.shape} and {rim.shape}")
    rims = int(rim.sum())
    if not 0 < rims < len(rim):
        raise ValueError(f"rims and other lesions are needed, got {rims} rims of {len(rim)} lesions")
    target = np.where(rim, (rims + 1) / (rims + 2), 1 / (len(rim) - rims + 2))
    flat = float(logit(target.mean()))
    middle, spread = values.mean(), values.std()
    scaled = (values - middle) / spread if spread > 0 else np.zeros_like(values)
    # On the bound the slope is 0: at the best constant, more slope has to cost.
    if not scaled @ target > 1e-9 * len(target):
        return 0.0, flat

    def loss(line: Floats) -> tuple[float, Floats]:
        z = line[0] * scaled + line[1]
        error = (expit(z) - target) / len(z)
        return float((np.logaddexp(0.0, z) - target * z).mean()), np.array([error @ scaled, error.sum()])

    slope, intercept = minimize(loss, [1.0, flat], jac=True, method="BFGS", options={"gtol": 1e-9}).x
    return float(slope / spread), float(intercept - slope * middle / spread)


def fit_calibration(logits: ArrayLike, labels: ArrayLike, below: float = BELOW) -> Calibration:
    """Calibration and thresholds of K trainings on lesions that none of them has seen.

    Args:
        logits: ``[N, K]``, finite.
        labels: ``[N]``, nonzero for a rim.
        below: sensitivity that the review threshold stays below.

    Returns:
        Platt's lines, and the thresholds on the probabilities they give.

    Raises:
        ValueError: as :func:`fit_platt`.
    """
    values, rim = _logits(logits), np.asarray(labels)
    lines = np.array([fit_platt(column, rim) for column in values.T])
    return Calibration(lines, *_thresholds(_probabilities(values, lines), rim, below))


def cross_fitted(
    logits: ArrayLike, labels: ArrayLike, fold: ArrayLike, thresholds: str = "others", below: float = BELOW
) -> CrossFitted:
    """Probabilities and answers of every lesion of a cross-validation.

    Args:
        logits: of each lesion when it was held out ``[N, K]``, by K trainings, finite.
        labels: ``[N]``, nonzero for a rim.
        fold: in which the lesion was held out ``[N]``.
        thresholds: "others" chooses those of a fold on the other folds; "own" on the fold itself, as the paper did,
            which is optimistic. The calibration is of the other folds in both.
        below: sensitivity that the review threshold stays below.

    Returns:
        Probabilities, answers, what they were made with, and the folds without thresholds.

    Raises:
        ValueError: when shapes do not fit, a logit is not finite, there are fewer than two folds, thresholds is
            another, or the folds besides one have no rim.
    """
    if thresholds not in SOURCES:
        raise ValueError(f"thresholds must be one of {SOURCES}, got {thresholds!r}")
    values, rim, folds = _logits(logits), np.asarray(labels), np.asarray(fold)
    if not (len(values),) == rim.shape == folds.shape:
        raise ValueError(f"labels and fold must be [N], N = {len(values)}, got {rim.shape} and {folds.shape}")
    probabilities = np.empty_like(values)
    found, review = np.zeros((2, len(values)), bool)
    calibrations, skipped = {}, []
    for name, inside in _each(folds):
        fitted = fit_calibration(values[~inside], rim[~inside], below)
        probabilities[inside] = here = fitted.probabilities(values[inside])
        if thresholds == "own":
            fitted = Calibration(fitted.calibration, *_thresholds(here, rim[inside], below))
            if not rim[inside].any():
                skipped.append(name)
        # A threshold that is NaN, of a fold without rims, finds nothing.
        found[inside], review[inside] = fitted.vote(here), here.mean(1) >= fitted.thresholds[1]
        calibrations[name] = fitted
    return CrossFitted(probabilities, probabilities.mean(1), found, review, calibrations, tuple(skipped))


def _each(folds: NDArray[np.generic]) -> Iterator[tuple[int, Flags]]:
    names = np.unique(folds)
    if len(names) < 2:
        raise ValueError(f"two folds are the least to fit one without the other, got {len(names)}")
    for name in names:
        yield int(name), np.asarray(folds == name)


def _thresholds(probabilities: Floats, rim: NDArray[np.generic], below: float) -> tuple[Floats, Floats]:
    mean = probabilities.mean(1)
    both = np.array([f1_threshold(rim, mean), high_sensitivity_threshold(rim, mean, below)])
    return both, np.array([f1_threshold(rim, column) for column in probabilities.T])


def _probabilities(logits: Floats, lines: Floats) -> Floats:
    if logits.shape[1] != len(lines):
        raise ValueError(f"logits must be [N, {len(lines)}], one of each training, got {logits.shape}")
    return np.asarray(expit(lines[:, 0] * logits + lines[:, 1]))


def _logits(logits: ArrayLike) -> Floats:
    values = np.asarray(logits, dtype=np.float64)
    if values.ndim != 2 or not values.size:
        raise ValueError(f"logits must be [N, K], N and K >= 1, got {values.shape}")
    if wrong := int((~np.isfinite(values)).sum()):
        raise ValueError(f"logits must be finite, {wrong} of {values.size} are not")
    return values
