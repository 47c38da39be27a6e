"""How well a score finds few positives (lesions with a rim) among many negatives: curves, areas, thresholds, counts.

Everything takes the truth (0 or 1, nonzero is positive) and the score of each case, arrays [N], in any monotone scale
(logit or probability). A case counts as found where ``score >= threshold``; equal scores fall together. NaN scores
raise: a case without a score is a fault of the caller, and a silent drop would flatter the method.

Curves are steps, nothing is interpolated linearly:

* ROC: the true positive rate at a false positive rate f is the one at the last knot not beyond f.
* Precision-recall: the precision at a recall r is the one at the first knot that reaches r, so that the area is the
  average precision.

The mean of the curves of several folds is the mean of the step functions, on the union of their knots.
Source: Zhang et al., NeuroImage: Clinical 34 (2022) 102979, section 2.5 (piecewise constant interpolation).
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = [
    "DetectionCounts",
    "FoldAverage",
    "StepCurve",
    "average_precision",
    "detection_counts",
    "f1_threshold",
    "fold_average",
    "high_sensitivity_threshold",
    "mean_curve",
    "partial_roc_auc",
    "pr_curve",
    "pr_points",
    "roc_points",
    "roc_step_curve",
]

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class StepCurve:
    """A piecewise constant function on [0, 1], as ``matplotlib.pyplot.stairs(values, edges)`` draws it.

    Attributes:
        edges: [K + 1], increasing, from 0 to 1.
        values: [K], the value between two edges.
    """

    edges: Floats
    values: Floats

    def area(self, limit: float = 1.0) -> float:
        """Integral from 0 to ``limit`` over ``limit``, hence in the unit of the values; ``limit`` in (0, 1]."""
        if not 0 < limit <= 1:
            raise ValueError(f"limit must be in (0, 1], got {limit}")
        return float(np.diff(self.edges.clip(max=limit)) @ self.values / limit)


@dataclass(frozen=True)
class FoldAverage:
    """A curve averaged over folds.

    Attributes:
        curve: the mean of the curves of the folds.
        area: under it, normalised as :meth:`StepCurve.area` does.
        areas: the same of each fold that counts.
        skipped: folds that have no positive or no negative case, hence no curve; they do not count.
    """

    curve: StepCurve
    area: float
    areas: dict[Hashable, float]
    skipped: tuple[Hashable, ...]


@dataclass(frozen=True)
class DetectionCounts:
    """Counts at a threshold, and the rates made of them; a rate of nothing is NaN."""

    true_positive: int
    false_positive: int
    false_negative: int
    true_negative: int

    @property
    def found(self) -> int:
        """Cases called positive: what a reader has to review."""
        return self.true_positive + self.false_positive

    @property
    def accuracy(self) -> float:
        """Share of all cases with the right answer."""
        right = self.true_positive + self.true_negative
        return _ratio(right, right + self.false_positive + self.false_negative)

    @property
    def sensitivity(self) -> float:
        """Share of the positive cases that are found (recall)."""
        return _ratio(self.true_positive, self.true_positive + self.false_negative)

    @property
    def specificity(self) -> float:
        """Share of the negative cases that are not found."""
        return _ratio(self.true_negative, self.true_negative + self.false_positive)

    @property
    def ppv(self) -> float:
        """Share of the found cases that are positive (precision)."""
        return _ratio(self.true_positive, self.found)

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and sensitivity."""
        return _ratio(2 * self.true_positive, self.found + self.true_positive + self.false_negative)


def roc_points(y_true: ArrayLike, y_score: ArrayLike) -> tuple[Floats, Floats, Floats]:
    """All knots of the receiver operating characteristic, one for each different score.

    Args:
        y_true: [N], nonzero where positive.
        y_score: [N], higher where thought positive.

    Returns:
        False positive rates [K + 1], true positive rates [K + 1] and thresholds [K + 1] from the highest; the first
        knot is (0, 0) with an infinite threshold. Rates of no cases are NaN.

    Raises:
        ValueError: when shapes do not fit, nothing is given, or a score is NaN.
    """
    true, found, thresholds, positives, n = _cumulative(y_true, y_score)
    with np.errstate(invalid="ignore"):
        rates = (found - true) / np.float64(n - positives), true / np.float64(positives)
    return rates[0], rates[1], thresholds


def pr_points(y_true: ArrayLike, y_score: ArrayLike) -> tuple[Floats, Floats, Floats]:
    """All knots of the precision-recall curve, one for each different score.

    Args:
        y_true: [N], nonzero where positive.
        y_score: [N], higher where thought positive.

    Returns:
        Recalls [K], precisions [K] and thresholds [K], from the highest threshold. Recalls of no cases are NaN.

    Raises:
        ValueError: when shapes do not fit, nothing is given, or a score is NaN.
    """
    true, found, thresholds, positives, _ = _cumulative(y_true, y_score)
    with np.errstate(invalid="ignore"):
        return true[1:] / np.float64(positives), true[1:] / found[1:], thresholds[1:]


def roc_step_curve(y_true: ArrayLike, y_score: ArrayLike) -> StepCurve:
    """True positive rate over false positive rate, the one at the last knot not beyond it; errors as ``roc_points``.

    Needs positive and negative cases, else ValueError.
    """
    false_rate, true_rate, _ = roc_points(y_true, y_score)
    _both(false_rate[-1] + true_rate[-1])
    last = np.append(false_rate[1:] > false_rate[:-1], True)  # knots above each other: the highest counts
    return StepCurve(false_rate[last], true_rate[last][:-1])


def pr_curve(y_true: ArrayLike, y_score: ArrayLike) -> StepCurve:
    """Precision over recall, the one at the first knot that reaches it; errors as ``pr_points``.

    Needs positive cases, else ValueError.
    """
    recall, precision, _ = pr_points(y_true, y_score)
    _both(recall[-1])
    recall = np.append(0.0, recall)
    first = recall[1:] > recall[:-1]  # knots at one recall: the first has the fewest false positives
    return StepCurve(np.append(0.0, recall[1:][first]), precision[first])


def partial_roc_auc(y_true: ArrayLike, y_score: ArrayLike, max_fpr: float = 0.1) -> float:
    """Area under the ROC step curve up to a false positive rate, divided by that rate.

    It is no standardised partial area (``max_fpr`` of scikit-learn): a perfect score has 1, and one that says nothing
    has about ``max_fpr / 2``, a constant one 0.

    Args:
        y_true: [N], nonzero where positive.
        y_score: [N], higher where thought positive.
        max_fpr: in (0, 1].

    Returns:
        In [0, 1]; NaN where there is no positive or no negative case.

    Raises:
        ValueError: when shapes do not fit, nothing is given, a score is NaN, or max_fpr is out of range.
    """
    return roc_step_curve(y_true, y_score).area(max_fpr) if _has_both(y_true) else _checked_nan(y_true, y_score)


def average_precision(y_true: ArrayLike, y_score: ArrayLike) -> float:
    """Sum of precision times the increase of recall over the knots: area under the step curve of precision.

    Args:
        y_true: [N], nonzero where positive.
        y_score: [N], higher where thought positive.

    Returns:
        In (0, 1]; a constant score has the prevalence. NaN where there is no positive case.

    Raises:
        ValueError: when shapes do not fit, nothing is given, or a score is NaN.
    """
    return pr_curve(y_true, y_score).area() if np.asarray(y_true).any() else _checked_nan(y_true, y_score)


def mean_curve(curves: Sequence[StepCurve]) -> StepCurve:
    """Mean of step functions, on the union of their knots; ValueError without any."""
    if not curves:
        raise ValueError("the mean of no curve is not defined, give 1 or more")
    edges = np.unique(np.concatenate([curve.edges for curve in curves]))
    left = edges[:-1]
    values = [curve.values[np.searchsorted(curve.edges, left, side="right") - 1] for curve in curves]
    return StepCurve(edges, np.mean(values, 0))


def fold_average(
    y_true: ArrayLike, y_score: ArrayLike, fold: ArrayLike, *, kind: str = "roc", max_fpr: float = 0.1
) -> FoldAverage:
    """Curve of each fold, and their mean.

    The scores of different folds come from different models and are never compared with each other.

    Args:
        y_true: [N], nonzero where positive.
        y_score: [N], higher where thought positive.
        fold: [N], the fold in which the case was held out.
        kind: "roc" for true over false positive rate, its area up to ``max_fpr`` and divided by it; "pr" for
            precision over recall, its area is the mean of the average precisions.
        max_fpr: in (0, 1].

    Returns:
        The mean curve, its area, the areas of the folds, and the folds that were skipped.

    Raises:
        ValueError: when shapes do not fit, a score is NaN, kind is another, or no fold has both kinds of cases.
    """
    if kind not in ("roc", "pr"):
        raise ValueError(f"kind must be 'roc' or 'pr', got {kind!r}")
    true, score = _checked(y_true, y_score)
    folds = np.asarray(fold)
    if folds.shape != true.shape:
        raise ValueError(f"fold must have the shape of the scores {true.shape}, got {folds.shape}")
    make, limit = (roc_step_curve, max_fpr) if kind == "roc" else (pr_curve, 1.0)
    names = np.unique(folds)
    curves = {f.item(): make(true[folds == f], score[folds == f]) for f in names if _has_both(true[folds == f])}
    if not curves:
        raise ValueError("no fold has positive and negative cases: nothing to average")
    mean = mean_curve(list(curves.values()))
    areas: dict[Hashable, float] = {f: curve.area(limit) for f, curve in curves.items()}
    return FoldAverage(mean, mean.area(limit), areas, tuple(f.item() for f in names if f.item() not in curves))


def f1_threshold(y_true: ArrayLike, y_score: ArrayLike) -> float:
    """Threshold of the largest F1 score; of equally good ones the highest.

    Chosen on the cases it is judged on, it flatters: see ``cross_fitted`` of the bundle that needs it.

    Args:
        y_true: [N], nonzero where positive.
        y_score: [N], higher where thought positive.

    Returns:
        One of the scores: cases with ``score >= threshold`` are found. NaN where there is no positive case.

    Raises:
        ValueError: when shapes do not fit, nothing is given, or a score is NaN.
    """
    true, found, thresholds, positives, _ = _cumulative(y_true, y_score)
    # Quotients of the same value are the same floating-point number, and argmax takes the first, the highest.
    return float(thresholds[1:][(2 * true / (found + positives))[1:].argmax()]) if positives else math.nan


def high_sensitivity_threshold(y_true: ArrayLike, y_score: ArrayLike, below: float = 0.95) -> float:
    """Threshold of the largest sensitivity strictly below a limit; of several with that sensitivity the highest.

    Args:
        y_true: [N], nonzero where positive.
        y_score: [N], higher where thought positive.
        below: the limit, in (0, 1].

    Returns:
        One of the scores: cases with ``score >= threshold`` are found. Infinite where already the highest score finds
        too many, NaN where there is no positive case.

    Raises:
        ValueError: when shapes do not fit, nothing is given, a score is NaN, or below is out of range.
    """
    if not 0 < below <= 1:
        raise ValueError(f"below must be in (0, 1], got {below}")
    _, sensitivity, thresholds = roc_points(y_true, y_score)
    if math.isnan(sensitivity[-1]):
        return math.nan
    return float(thresholds[np.where(sensitivity < below, sensitivity, -1.0).argmax()])


def detection_counts(y_true: ArrayLike, found: ArrayLike) -> DetectionCounts:
    """Counts of true and false answers.

    Args:
        y_true: [N], nonzero where positive.
        found: [N], nonzero where called positive.

    Returns:
        The counts, with accuracy, F1, sensitivity, specificity and positive predictive value.

    Raises:
        ValueError: when shapes do not fit.
    """
    true, called = np.asarray(y_true) != 0, np.asarray(found) != 0
    if true.shape != called.shape:
        raise ValueError(f"y_true and found must have one shape, got {true.shape} and {called.shape}")
    return DetectionCounts(
        int((true & called).sum()),
        int((~true & called).sum()),
        int((true & ~called).sum()),
        int((~true & ~called).sum()),
    )


def _cumulative(y_true: ArrayLike, y_score: ArrayLike) -> tuple[Floats, Floats, Floats, int, int]:
    """True positives and all found cases at each different score from the highest, after a first knot of none."""
    true, score = _checked(y_true, y_score)
    order = np.argsort(-score, kind="stable")
    true, score = true[order], score[order]
    last = np.append(score[1:] != score[:-1], True)  # equal scores are one step
    hits, found = np.cumsum(true)[last], np.flatnonzero(last) + 1
    return (
        np.append(0.0, hits),
        np.append(0.0, found),
        np.append(np.inf, score[last]),
        int(true.sum()),
        len(true),
    )


def _checked(y_true: ArrayLike, y_score: ArrayLike) -> tuple[NDArray[np.bool_], Floats]:
    true, score = np.asarray(y_true) != 0, np.asarray(y_score, dtype=np.float64)
    if true.shape != score.shape or true.ndim != 1 or not len(true):
        raise ValueError(f"y_true and y_score must be [N], N >= 1, got {true.shape} and {score.shape}")
    if missing := int(np.isnan(score).sum()):
        raise ValueError(f"scores must not be NaN, {missing} of {len(score)} are: every case needs a score")
    return true, score


def _checked_nan(y_true: ArrayLike, y_score: ArrayLike) -> float:
    _checked(y_true, y_score)
    return math.nan


def _has_both(y_true: ArrayLike) -> bool:
    true = np.asarray(y_true) != 0
    return bool(true.any() and not true.all())


def _both(rate: float) -> None:
    if math.isnan(rate):
        raise ValueError("the curve needs positive and negative cases")


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else math.nan
