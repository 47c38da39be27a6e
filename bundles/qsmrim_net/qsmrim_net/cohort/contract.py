"""What a simulated cohort has to keep, so that a good score on it means something.

Counts as the paper's, rims that are visible but not by their size, nor by first-order features alone, and raters who
disagree as the paper's did.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from shared_transforms.metrics.detection import fold_average

from ..untrained import untrained_logits
from .population import LESIONS, RIM_COUNTS
from .raters import cohen_kappa
from .table import LesionTable

__all__ = ["contract"]

Row = dict[str, Any]

_SIZE = 0.35  # partial ROC that no function of the size may reach
_FOREST = (0.50, 0.65)
_AMPLITUDE = 0.95
_KAPPA = (0.54, 0.64)  # .59 +- .05


def contract(table: LesionTable, folds: ArrayLike, seed: int = 0) -> list[Row]:
    """Measure a cohort against what it has to keep.

    Args:
        table: all lesions.
        folds: fold ``[S]`` of each of ``table.subjects()``.
        seed: of the random forest.

    Returns:
        One row a requirement: ``target`` in words, ``low`` and ``high`` (None where open; equal for counts),
        ``measured``, and ``met``. The counts are required of cohorts of the paper's number of subjects. Where a cohort
        does not know a truth, ``measured`` and ``met`` are None.

        Partial ROC areas are means over the folds. The size is asked twice: larger lesions alone, either way round,
        and the share of rims among lesions of that volume in the other folds, which any preference for a size shows.

    Raises:
        ValueError: when folds do not fit the subjects, or no fold has rims.
    """
    fold = _fold_of_lesions(table, folds)
    rim = table.label.numpy()

    def area(score: ArrayLike) -> float:
        return fold_average(rim, score, fold).area

    size = untrained_logits("size", table, table, seed).numpy()
    rows = _counts(table)
    rows.append(_row("partial ROC of the size alone", max(area(size), area(-size)), high=_SIZE))
    rows.append(
        _row("partial ROC of the size, as the other folds have it", area(_size_density(size, rim, fold)), high=_SIZE)
    )
    rows.append(_row("partial ROC of a first-order random forest", area(_forest(table, fold, seed)), *_FOREST))
    known = bool(table.amplitude.isfinite().any())
    amplitude = area(table.amplitude.nan_to_num(0.0).numpy()) if known else None
    rows.append(_row("partial ROC of the true amplitude of the rim", amplitude, low=_AMPLITUDE))
    rows.append(_row("kappa of the two raters", cohen_kappa(table.raters), *_KAPPA))
    return rows


def _counts(table: LesionTable) -> list[Row]:
    rims = table.rims_per_subject()
    whole = len(rims) == len(RIM_COUNTS)
    measured = {"lesions": len(table), "rims": int(rims.sum()), "subjects without a rim": int((rims == 0).sum())}
    wanted = {"lesions": LESIONS, "rims": sum(RIM_COUNTS), "subjects without a rim": RIM_COUNTS.count(0)}
    rows = [_row("subjects", len(rims), len(RIM_COUNTS), len(RIM_COUNTS))]
    rows += [_row(name, count, *(2 * (wanted[name],) if whole else ())) for name, count in measured.items()]
    apart = int((rims.sort().values - torch.tensor(RIM_COUNTS)).abs().sum()) if whole else None
    rows.append(_row("rims a subject, distance of the sorted counts from the paper's", apart, high=0))
    return rows


def _forest(table: LesionTable, fold: NDArray[np.int64], seed: int) -> NDArray[np.float64]:
    scores = np.empty(len(table))
    for name in np.unique(fold):
        inside = torch.from_numpy(fold == name)
        scores[inside.numpy()] = untrained_logits("aprl_forest", table.select(~inside), table.select(inside), seed)
    return scores


def _size_density(size: NDArray[Any], rim: NDArray[Any], fold: NDArray[np.int64]) -> NDArray[np.float64]:
    """Density of rims over that of the others at the logarithmic size of each lesion, from the other folds."""
    from scipy.stats import gaussian_kde

    scores = np.zeros(len(size))
    if not np.ptp(size[rim == 1]):
        return scores  # sizes without spread have no density, and tell little
    for name in np.unique(fold):
        inside = fold == name
        rims, others = (gaussian_kde(size[~inside & (rim == kind)])(size[inside]) for kind in (1, 0))
        scores[inside] = rims / (others + np.finfo(float).tiny)
    return scores


def _fold_of_lesions(table: LesionTable, folds: ArrayLike) -> NDArray[np.int64]:
    given = np.asarray(folds)
    subjects, row = table.subject.unique(sorted=True, return_inverse=True)
    if given.shape != tuple(subjects.shape):
        raise ValueError(f"folds must be [{len(subjects)}], one of each subject, got {given.shape}")
    return np.asarray(given[row.numpy()], dtype=np.int64)


def _row(target: str, measured: float | None, low: float | None = None, high: float | None = None) -> Row:
    above = -math.inf if low is None else low
    below = math.inf if high is None else high
    met = None if measured is None or (low is None and high is None) else bool(above <= measured <= below)
    return {"target": target, "low": low, "high": high, "measured": measured, "met": met}
