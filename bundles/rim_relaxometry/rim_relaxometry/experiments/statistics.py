"""Summaries and tests of the experiments."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import OptimizeWarning, curve_fit
from scipy.stats import ttest_ind, ttest_rel
from torch import Tensor

from shared_transforms.metrics import Estimate, bootstrap, rmse, robust_sd

Array = npt.NDArray[np.float64]
BOOTSTRAP_VOXELS = 1000  # of each subject
BOX = (0.05, 0.25, 0.5, 0.75, 0.95)  # quantiles of the boxes


def quantiles(values: Tensor, levels: Sequence[float] = BOX) -> list[float]:
    """Quantiles of the finite values of a tensor; NaN where there is none."""
    finite = values[torch.isfinite(values)].double().cpu().numpy()
    return [float(q) for q in np.quantile(finite, levels)] if len(finite) else [float("nan")] * len(levels)


def welch(first: Array | Sequence[float], second: Array | Sequence[float]) -> tuple[float, float]:
    """t and two-sided p of Welch's test for independent samples of unequal variance."""
    result = ttest_ind(np.asarray(first, float), np.asarray(second, float), equal_var=False)
    return float(result.statistic), float(result.pvalue)


def spread_test(first: Array | Sequence[float], second: Array | Sequence[float]) -> tuple[float, float]:
    """Welch's test of the absolute deviations from the medians (Brown and Forsythe): do the spreads differ?"""
    a, b = np.asarray(first, float), np.asarray(second, float)
    return welch(np.abs(a - np.median(a)), np.abs(b - np.median(b)))


def paired(first: Array | Sequence[float], second: Array | Sequence[float]) -> tuple[float, float]:
    """t and two-sided p of the paired test, over the pairs in which both are finite."""
    a, b = np.asarray(first, float), np.asarray(second, float)
    both = np.isfinite(a) & np.isfinite(b)
    result = ttest_rel(a[both], b[both])
    return float(result.statistic), float(result.pvalue)


def sigmoid(x: Array, height: float, slope: float, centre: float, base: float) -> Array:
    """``height / (1 + exp(-slope (x - centre))) + base`` (Sabidussi et al. 2021, section 5.3)."""
    return height / (1.0 + np.exp(-np.clip(slope * (x - centre), -50.0, 50.0))) + base


def sigmoid_slope(x: Array, y: Array) -> float:
    """Slope of the sigmoid that fits a profile best in the mean squared sense; NaN where the fit fails.

    Args:
        x: places along the line ``[n]``.
        y: values there ``[n]``.

    Returns:
        The slope [1 / unit of x], taken positive: its sign and that of the height cannot be told apart.
    """
    low, high = float(np.median(y[:3])), float(np.median(y[-3:]))
    crossing = float(x[np.abs(y - 0.5 * (low + high)).argmin()])
    start = (high - low, 4.0 / max(float(np.ptp(x)) / 4.0, 1e-6), crossing, low)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", OptimizeWarning)
        try:
            values, _ = curve_fit(sigmoid, x, y, p0=start, maxfev=4000)
        except RuntimeError:
            return float("nan")
    return abs(float(values[1]))


def median_bias(estimates: Tensor, truth: Tensor, mask: Tensor, seed: int = 0) -> Estimate:
    """Median relative error [%] over all masked voxels, with a bootstrap interval over the units.

    Args:
        estimates: ``[S, *shape]``, S subjects.
        truth: that shape.
        mask: that shape, bool.
        seed: of the bootstrap.

    Returns:
        The median over the pooled voxels; its interval draws whole subjects again.
    """
    parts = []
    for one, true, inside in zip(estimates, truth, mask, strict=True):
        if bool(inside.any()):
            parts.append((100.0 * (one[inside].double() / true[inside].double() - 1.0)).cpu().numpy())
    value = float(np.median(np.concatenate(parts)))
    parts = [part[:: max(1, len(part) // BOOTSTRAP_VOXELS)] for part in parts]  # enough for the interval

    def statistic(rows: Array) -> float:
        return float(np.median(np.concatenate([parts[int(i)] for i in rows])))

    return dataclasses.replace(bootstrap(len(parts), statistic, resamples=500, seed=seed), value=value)


def accuracy(estimates: Tensor, truth: Tensor, mask: Tensor, seed: int = 0) -> dict[str, float]:
    """Columns of relative error [%] over subjects: RMSE and median bias with intervals, robust SD, voxels."""
    error = 100.0 * (estimates.double() / truth.double() - 1.0)[mask]
    if error.numel() == 0:
        return {"voxels": 0}
    root, bias = rmse(estimates, truth, mask, relative=True, seed=seed), median_bias(estimates, truth, mask, seed)
    return {
        "voxels": error.numel(),
        "rmse": root.value,
        "rmse_low": root.low,
        "rmse_high": root.high,
        "robust_sd": float(robust_sd(error)),
        "median_bias": bias.value,
        "median_bias_low": bias.low,
        "median_bias_high": bias.high,
    }
