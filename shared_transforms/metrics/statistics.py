"""Errors of parameter maps over repeated experiments and over subjects."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

__all__ = [
    "Estimate",
    "bootstrap",
    "bootstrap_subjects",
    "coefficient_of_variation",
    "normalised_mae",
    "relative_bias",
    "rmse",
    "robust_sd",
]


@dataclass(frozen=True)
class Estimate:
    """A number with its confidence interval.

    Attributes:
        value: the statistic of the whole sample.
        low: lower end of the interval.
        high: upper end of the interval.
        n: number of independent units (subjects, or voxels) the interval is over.
        level: confidence level.
    """

    value: float
    low: float
    high: float
    n: int
    level: float = 0.95


def relative_bias(estimates: Tensor, truth: Tensor) -> Tensor:
    """Mean relative deviation of repeated estimates.

    Args:
        estimates: [C, *shape], C repetitions, unit of the parameter.
        truth: [*shape], nonzero, same unit.

    Returns:
        [*shape], per cent.

    Raises:
        ValueError: when the shapes do not fit.

    Source: Sabidussi et al., Med. Image Anal. 74 (2021) 102220, eq. 7.
    """
    if estimates.shape[1:] != truth.shape:
        raise ValueError(f"estimates {tuple(estimates.shape)} must be [C, *shape] with truth {tuple(truth.shape)}")
    deviation = estimates.double() - truth.double()
    return 100 * (deviation / truth.double()).mean(0)


def coefficient_of_variation(estimates: Tensor) -> Tensor:
    """Standard deviation (C - 1 in the denominator) of repeated estimates over their mean.

    Args:
        estimates: [C, *shape], C >= 2 repetitions.

    Returns:
        [*shape], per cent.

    Raises:
        ValueError: with fewer than two repetitions.

    Source: Sabidussi et al., Med. Image Anal. 74 (2021) 102220, eq. 8.
    """
    if estimates.shape[0] < 2:
        raise ValueError(f"the variation of {estimates.shape[0]} repetition is not defined, give 2 or more")
    estimates = estimates.double()
    return 100 * estimates.std(0) / estimates.mean(0)


def normalised_mae(prediction: Tensor, truth: Tensor) -> Tensor:
    """Sum of the absolute errors of each image over the sum of its absolute true values.

    Args:
        prediction: [n, *shape], n images.
        truth: [n, *shape], same unit.

    Returns:
        [n], dimensionless, in double precision; the answer 0 everywhere has exactly 1. NaN in a prediction gives NaN.

    Raises:
        ValueError: when the shapes do not fit or the truth of an image is 0 everywhere.

    Source: Della Maggiora et al., DeepSPIO, IEEE Trans. Pattern Anal. Mach. Intell. (2020), section 5 (NMAE).
    """
    if prediction.shape != truth.shape or truth.ndim < 2:
        raise ValueError(f"prediction and truth must be [n, *shape], got {(*prediction.shape,)} and {(*truth.shape,)}")
    prediction, truth = (x.double().flatten(1) for x in (prediction, truth))
    size = truth.abs().sum(1)
    if empty := (size == 0).nonzero().flatten().tolist():
        raise ValueError(f"the truth must not be 0 everywhere, as it is in image {empty[0]}: nothing to compare with")
    return (prediction - truth).abs().sum(1) / size


def robust_sd(values: Tensor, dim: int | None = None) -> Tensor:
    """Standard deviation that outliers do not move: 1.4826 times the median absolute deviation from the median.

    Args:
        values: any shape.
        dim: axis to reduce; None reduces all.

    Returns:
        ``values`` without ``dim``, same unit. It equals the standard deviation for a normal distribution.
    """
    if dim is None:
        values, dim = values.flatten(), 0
    median = _median(values.double(), dim)
    return 1.4826 * _median((values.double() - median.unsqueeze(dim)).abs(), dim)


def rmse(
    estimates: Tensor,
    truth: Tensor,
    mask: Tensor | None = None,
    *,
    relative: bool = False,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Estimate:
    """Root mean square error over all units and voxels, with a bootstrap interval over the units.

    The voxels of one subject are not independent, so whole units are drawn again. For a plain sample of independent
    voxels give them as the first axis.

    Args:
        estimates: [S, *shape], S units: subjects, repetitions, or independent voxels.
        truth: broadcastable to ``estimates``, same unit.
        mask: broadcastable to ``estimates``, nonzero where counted.
        relative: divide each deviation by the truth.
        level: confidence level of the percentile interval.
        resamples: number of bootstrap samples.
        seed: seed of the bootstrap.

    Returns:
        The error in the unit of the parameter, or in per cent when relative.

    Raises:
        ValueError: when nothing is left to count.
    """
    deviation = estimates.double() - truth.double()
    if relative:
        deviation = 100 * deviation / truth.double()
    inside = torch.ones_like(deviation, dtype=torch.bool) if mask is None else (mask != 0).expand_as(deviation)
    squares = torch.where(inside, deviation, 0.0).square().flatten(1).sum(1).cpu().numpy()
    counts = inside.flatten(1).sum(1).cpu().numpy()
    squares, counts = squares[counts > 0], counts[counts > 0]  # a unit without voxels is no unit
    if not len(counts):
        raise ValueError("the mask leaves no voxel")

    def statistic(rows: np.ndarray) -> float:
        return math.sqrt(squares[rows].sum() / counts[rows].sum())

    return bootstrap(len(counts), statistic, level=level, resamples=resamples, seed=seed)


def bootstrap(
    n: int, statistic: Callable[[np.ndarray], float], *, level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> Estimate:
    """Percentile bootstrap of any statistic of n independent units.

    Args:
        n: number of units.
        statistic: function of the indices of the chosen units [n], with repetition.
        level: confidence level.
        resamples: number of samples drawn with replacement.
        seed: seed of the drawing: equal seeds give equal intervals.

    Returns:
        The statistic of all units, with the interval; with one unit the interval is infinite.

    Source: Efron, Tibshirani, An Introduction to the Bootstrap (1993), chapter 13.
    """
    value = float(statistic(np.arange(n)))
    if n < 2:
        return Estimate(value, -math.inf, math.inf, n, level)
    generator = np.random.default_rng(seed)
    samples = [statistic(generator.integers(0, n, n)) for _ in range(resamples)]
    low, high = np.quantile(samples, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(value, float(low), float(high), n, level)


def bootstrap_subjects(
    subject: ArrayLike,
    statistic: Callable[[np.ndarray], float],
    *,
    draws: int = 500,
    seed: int = 0,
    level: float = 0.95,
) -> Estimate:
    """Percentile bootstrap over subjects: a drawn subject brings all its rows, as often as it is drawn.

    The lesions of one subject are not independent, nor are two methods on the same lesions: for a comparison let the
    statistic be the difference of the two; they differ where the interval excludes 0.

    Args:
        subject: of each row [M], any values.
        statistic: function of the chosen rows, indices with repetition; NaN in one draw makes the interval NaN.
        draws: number of bootstrap samples.
        seed: equal seeds draw equal subjects, whatever the statistic.
        level: confidence level.

    Returns:
        The statistic of all rows, with its interval; ``n`` is the number of subjects.

    Raises:
        ValueError: when subject is no [M] with M >= 1.

    Source: Zhang et al., NeuroImage: Clinical 34 (2022) 102979, section 2.5 (500 times on subject).
    """
    names = np.asarray(subject)
    if names.ndim != 1 or not len(names):
        raise ValueError(f"subject must be [M], M >= 1, got {names.shape}")
    _, counts = np.unique(names, return_counts=True)
    rows = np.split(np.argsort(names, kind="stable"), counts.cumsum()[:-1])

    def of_subjects(chosen: np.ndarray) -> float:
        return statistic(np.concatenate([rows[one] for one in chosen]))

    return bootstrap(len(rows), of_subjects, level=level, resamples=draws, seed=seed)


def _median(values: Tensor, dim: int) -> Tensor:
    # torch.median takes the lower of the two middle values, and torch.quantile ends at 2**24 of them.
    ordered, n = values.sort(dim).values, values.shape[dim]
    median = (ordered.select(dim, (n - 1) // 2) + ordered.select(dim, n // 2)) / 2
    return torch.where(ordered.select(dim, n - 1).isnan(), torch.nan, median)  # NaN is sorted to the end
