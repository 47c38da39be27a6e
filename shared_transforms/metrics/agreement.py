"""How far an estimate agrees with the truth, value by value: correlations, concordance, normalised error.

Each takes an estimate and the truth of one shape and a mask of that shape (None counts all), and gives one number in
double precision. What lies outside of the mask is never looked at; NaN inside gives NaN.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

__all__ = ["concordance", "normalised_rmse", "pearson", "spearman"]

NORMS = ("norm", "range", "mean")


def pearson(estimate: Tensor, truth: Tensor, mask: Tensor | None = None) -> float:
    """Pearson's correlation coefficient.

    Args:
        estimate: any shape.
        truth: same shape.
        mask: same shape, nonzero where counted.

    Returns:
        Dimensionless, in [-1, 1]; NaN where one of the two does not vary.

    Raises:
        ValueError: when shapes do not fit or fewer than two values are left.
    """
    from scipy.stats import pearsonr

    x, y = _pair(estimate, truth, mask)
    return float(pearsonr(x, y).statistic) if _vary(x, y) else math.nan


def spearman(estimate: Tensor, truth: Tensor, mask: Tensor | None = None) -> float:
    """Spearman's correlation coefficient: Pearson's of the ranks; equal values share their mean rank.

    Args:
        estimate: any shape.
        truth: same shape.
        mask: same shape, nonzero where counted.

    Returns:
        Dimensionless, in [-1, 1]; NaN where one of the two does not vary.

    Raises:
        ValueError: when shapes do not fit or fewer than two values are left.
    """
    from scipy.stats import spearmanr

    x, y = _pair(estimate, truth, mask)
    return float(spearmanr(x, y).statistic) if _vary(x, y) else math.nan


def concordance(estimate: Tensor, truth: Tensor, mask: Tensor | None = None) -> float:
    """Concordance correlation coefficient: agreement with the line of identity, not with any line.

    Args:
        estimate: any shape.
        truth: same shape, same unit.
        mask: same shape, nonzero where counted.

    Returns:
        Dimensionless, in [-1, 1]; variances have n in the denominator. NaN where neither varies and the means are
        equal.

    Raises:
        ValueError: when shapes do not fit or fewer than two values are left.

    Source: Lin, Biometrics 45 (1989) 255.
    """
    x, y = _pair(estimate, truth, mask)
    spread = float(x.var() + y.var() + (x.mean() - y.mean()) ** 2)
    covariance = float(((x - x.mean()) * (y - y.mean())).mean())
    return 2.0 * covariance / spread if spread != 0 else math.nan


def normalised_rmse(estimate: Tensor, truth: Tensor, mask: Tensor | None = None, by: str = "norm") -> float:
    """Root mean square error relative to the size of the truth; an offset counts.

    Papers differ in what they divide by, so it is named here. :func:`~shared_transforms.metrics.image.nrmse` is another
    quantity: it takes the means away first.

    Args:
        estimate: any shape.
        truth: same shape, same unit.
        mask: same shape, nonzero where counted.
        by: ``"norm"``: root mean square of the truth, so that the answer 0 has 1; ``"range"``: its largest minus its
            smallest value; ``"mean"``: its mean.

    Returns:
        Dimensionless; infinite where the truth has no size.

    Raises:
        ValueError: when shapes do not fit, fewer than two values are left, or for an unknown ``by``.
    """
    if by not in NORMS:
        raise ValueError(f"by must be one of {', '.join(NORMS)}, got {by!r}")
    x, y = _pair(estimate, truth, mask)
    error = float(np.sqrt(np.mean((x - y) ** 2)))
    size = {"norm": lambda: np.sqrt(np.mean(y**2)), "range": lambda: np.ptp(y), "mean": lambda: y.mean()}[by]()
    return error / float(size) if size != 0 else math.inf


def _pair(estimate: Tensor, truth: Tensor, mask: Tensor | None) -> tuple[np.ndarray, np.ndarray]:
    if estimate.shape != truth.shape or (mask is not None and mask.shape != truth.shape):
        found = ", ".join(str(tuple(x.shape)) for x in (estimate, truth, mask) if x is not None)
        raise ValueError(f"estimate, truth and mask must have one shape, got {found}")
    inside = torch.ones_like(truth, dtype=torch.bool) if mask is None else mask != 0
    x, y = (values[inside].detach().double().cpu().numpy() for values in (estimate, truth))
    if len(x) < 2:
        raise ValueError(f"two values or more are needed, got {len(x)}")
    return x, y


def _vary(*values: np.ndarray) -> bool:
    return all(bool(np.isfinite(x).all()) and np.ptp(x) > 0 for x in values)
