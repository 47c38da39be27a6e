"""Whether probabilities mean what they say: of the cases given 30 %, three in ten are positive."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["BINS", "Reliability", "expected_calibration_error", "reliability"]

BINS = 10


@dataclass(frozen=True)
class Reliability:
    """Cases in bins of equal width of their probability, from 0 to 1.

    Attributes:
        edges: of the bins [B + 1].
        counts: cases in each bin [B].
        predicted: mean probability in each bin [B], NaN in an empty one.
        observed: share of positive cases in each bin [B], NaN in an empty one.
    """

    edges: NDArray[np.float64]
    counts: NDArray[np.int64]
    predicted: NDArray[np.float64]
    observed: NDArray[np.float64]


def reliability(y_true: ArrayLike, probability: ArrayLike, bins: int = BINS) -> Reliability:
    """Predicted and observed frequencies, the reliability diagram.

    Args:
        y_true: [N], nonzero where positive.
        probability: [N], of being positive.
        bins: number B of bins of equal width; a value on an edge belongs to the bin above, 1 to the last one.

    Returns:
        Counts and frequencies of the bins.

    Raises:
        ValueError: when shapes do not fit, nothing is given, a probability is NaN or outside of [0, 1], or bins < 1.
    """
    true, value = np.asarray(y_true) != 0, np.asarray(probability, dtype=np.float64)
    if true.shape != value.shape or true.ndim != 1 or not len(true):
        raise ValueError(f"y_true and probability must be [N], N >= 1, got {true.shape} and {value.shape}")
    if wrong := int((~((value >= 0) & (value <= 1))).sum()):
        raise ValueError(f"probabilities must be in [0, 1], {wrong} of {len(value)} are not")
    if bins < 1:
        raise ValueError(f"bins must be 1 or more, got {bins}")
    edges = np.linspace(0.0, 1.0, bins + 1)
    index = np.digitize(value, edges[1:-1])
    counts = np.bincount(index, minlength=bins)
    with np.errstate(invalid="ignore"):
        predicted, observed = (np.bincount(index, weights, bins) / counts for weights in (value, true.astype(float)))
    return Reliability(edges, counts, predicted, observed)


def expected_calibration_error(y_true: ArrayLike, probability: ArrayLike, bins: int = BINS) -> float:
    """Mean over the cases of the distance between predicted and observed frequency of their bin.

    Args:
        y_true: [N], nonzero where positive.
        probability: [N], of being positive.
        bins: number of bins of equal width, 10 unless told; empty ones do not count.

    Returns:
        In [0, 1]; 0 is best. Where positives are rare most cases lie in the first bin: the prevalence, said of each
        case, has 0 as well, so it is no measure of how well cases are told apart.

    Raises:
        ValueError: as :func:`reliability`.

    Source: Guo et al., On Calibration of Modern Neural Networks, ICML (2017), eq. 3 (of the probability of one class).
    """
    found = reliability(y_true, probability, bins)
    some = found.counts > 0
    return float(np.average(np.abs(found.predicted - found.observed)[some], weights=found.counts[some]))
