"""Curves, answers and counts of a method at some of its seeds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from shared_transforms.experiments import Row, interval
from shared_transforms.metrics import Estimate
from shared_transforms.metrics.detection import (
    DetectionCounts,
    FoldAverage,
    detection_counts,
    f1_threshold,
    fold_average,
    high_sensitivity_threshold,
)
from shared_transforms.metrics.statistics import bootstrap_subjects

from ..calibration import BELOW, CrossFitted, cross_fitted
from ..predictions import Predictions
from .methods import METHODS

__all__ = ["RATES", "Scored", "comparisons", "equal_seeds", "scored", "share_of", "subject_counts"]

RATES = ("accuracy", "f1", "sensitivity", "specificity", "ppv")
_AREAS = {"proc_auc": "roc", "pr_auc": "pr"}

Flags = NDArray[np.bool_]
Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Scored:
    """N lesions, scored by K trainings of a method when they were held out.

    Attributes:
        method: name.
        seeds: of the K trainings.
        subject, fold, label: of each lesion ``[N]``.
        logits: ``[N, K]``.
    """

    method: str
    seeds: tuple[int, ...]
    subject: Integers
    fold: Integers
    label: Integers
    logits: Floats

    @property
    def key(self) -> Row:
        """Columns that name it in a table."""
        return {"method": self.method, "seeds": " ".join(map(str, self.seeds))}

    @cached_property
    def mean(self) -> Floats:
        """Mean probability over the seeds, as the networks give it ``[N]``: what curves are made of."""
        return np.asarray(expit(self.logits).mean(1))

    @cached_property
    def found(self) -> Flags:
        """The paper's answers ``[N]``: threshold of the best F1 of each fold and seed, on the fold itself; majority."""
        return self.majority(f1_threshold)

    @cached_property
    def review(self) -> Flags:
        """Mean probability at the largest sensitivity below .95 of each fold, on the fold itself ``[N]``."""
        return self._own(self.mean, lambda label, score: high_sensitivity_threshold(label, score, BELOW))

    @cached_property
    def fitted(self) -> CrossFitted:
        """Probabilities and answers of what was fitted without the fold."""
        return cross_fitted(self.logits, self.label, self.fold)

    def majority(self, threshold: Callable[[Integers, Floats], float]) -> Flags:
        """More than half of the seeds find a rim, each at thresholds chosen on the fold itself ``[N]``."""
        votes = sum(self._own(column, threshold).astype(int) for column in self.logits.T)
        return np.asarray(2 * votes > len(self.seeds))

    def _own(self, score: Floats, threshold: Callable[[Integers, Floats], float]) -> Flags:
        answer = np.zeros(len(score), bool)
        for fold in np.unique(self.fold):
            inside = self.fold == fold
            # A fold without rims has no threshold: NaN finds nothing.
            answer[inside] = score[inside] >= threshold(self.label[inside], score[inside])
        return answer

    def average(self, kind: str, rows: Integers | None = None) -> FoldAverage:
        """Mean curve of the folds, ``"roc"`` (area up to a false positive rate of .1) or ``"pr"``."""
        chosen = slice(None) if rows is None else rows
        return fold_average(self.label[chosen], self.mean[chosen], self.fold[chosen], kind=kind)

    def area(self, name: str, rows: Integers | None = None) -> float:
        """``proc_auc`` or ``pr_auc``."""
        return self.average(_AREAS[name], rows).area

    def counts(self, found: Flags | None = None) -> DetectionCounts:
        """Counts over all folds together; by default of the paper's answers."""
        return detection_counts(self.label, self.found if found is None else found)

    def rate(self, name: str, rows: Integers | None = None, found: Flags | None = None) -> float:
        """One of :data:`RATES`."""
        chosen = slice(None) if rows is None else rows
        answers = self.found if found is None else found
        return float(getattr(detection_counts(self.label[chosen], answers[chosen]), name))

    def bootstrap(self, statistic: Callable[[Integers], float], draws: int, seed: int) -> Estimate:
        """A statistic of rows, with its interval over subjects."""
        return bootstrap_subjects(self.subject, statistic, draws=draws, seed=seed)

    def rates_row(self, draws: int, seed: int, found: Flags | None = None) -> Row:
        """Columns of all rates with their intervals, and of the counts."""
        row: Row = {}
        for name in RATES:
            row |= interval(name, self.bootstrap(partial(self.rate, name, found=found), draws, seed))
        count = self.counts(found)
        return row | {"tp": count.true_positive, "fp": count.false_positive, "fn": count.false_negative,
                      "tn": count.true_negative}  # fmt: skip

    def areas_row(self, draws: int, seed: int) -> Row:
        """Columns of both areas with their intervals over subjects, and their spread over folds."""
        row: Row = {}
        for name, kind in _AREAS.items():
            row |= interval(name, self.bootstrap(partial(self.area, name), draws, seed))
            folds = list(self.average(kind).areas.values())
            row[f"{name}_fold_sd"] = float(np.std(folds, ddof=1)) if len(folds) > 1 else None
        return row


def scored(predictions: Predictions, method: str, seeds: Sequence[int] | None = None) -> Scored:
    """A method at seeds, by default at all that have scores of every lesion.

    Raises:
        KeyError: for a seed, or a method, without scores.
    """
    chosen = predictions.seeds(method) if seeds is None else tuple(seeds)
    if not chosen:
        raise KeyError(method)
    logits = predictions.scores(method, chosen).T
    return Scored(method, chosen, predictions.subject, predictions.fold, predictions.label, logits)


def comparisons(predictions: Predictions, methods: Sequence[str], reference: str = "qsmrim_net") -> list[Scored]:
    """Every method at all its seeds; then the reference at fewer, where another method has only these."""
    found = [scored(predictions, name) for name in methods if predictions.seeds(name)]
    have = predictions.seeds(reference)
    fewer = {one.seeds for one in found if METHODS[one.method].seeded and set(one.seeds) < set(have)}
    return found + [scored(predictions, reference, seeds) for seeds in sorted(fewer)]


def equal_seeds(predictions: Predictions, first: str, second: str) -> tuple[Scored, Scored]:
    """Two methods at the seeds that both have; one that no seed changes at its only one.

    Raises:
        KeyError: when they have none in common.
    """
    seeds = [set(predictions.seeds(name)) for name in (first, second)]
    common = sorted(seeds[0] & seeds[1]) if METHODS[first].seeded and METHODS[second].seeded else None
    if common == []:
        raise KeyError(f"{first}, {second}")
    pair = [scored(predictions, name, common if METHODS[name].seeded else None) for name in (first, second)]
    return pair[0], pair[1]


def subject_counts(one: Scored, found: Flags) -> tuple[Integers, Integers]:
    """Rims that were found and rims that are there, of each subject in rising order ``[S]``."""
    _, row = np.unique(one.subject, return_inverse=True)
    return np.bincount(row, found).astype(np.int64), np.bincount(row, one.label).astype(np.int64)


def share_of(values: Flags, among: Flags, rows: Integers) -> float:
    """Share of true values among chosen lesions, of the rows; NaN where none is chosen."""
    chosen = values[rows][among[rows]]
    return float(chosen.mean()) if len(chosen) else float("nan")
