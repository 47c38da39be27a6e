"""First-order features: statistics of the values of a lesion's voxels."""

from __future__ import annotations

import torch
from torch import Tensor

from qsmrim_net.radiomics.levels import GreyLevels, entropy_terms, group_sums, starts
from qsmrim_net.radiomics.names import FIRST_ORDER_NAMES

__all__ = ["first_order_features"]


def first_order_features(values: Tensor, lesion: Tensor, levels: GreyLevels, voxel_volume: float) -> Tensor:
    """The 18 first-order features of each lesion in each image.

    Args:
        values: of the voxels ``[J, N]``, sorted by lesion, float64.
        lesion: of each voxel ``[N]``, ascending, no lesion without voxels.
        levels: their grey levels.
        voxel_volume: [mm^3].

    Returns:
        ``[J, M, 18]``, in the order of :data:`~qsmrim_net.radiomics.names.FIRST_ORDER_NAMES`.
    """
    images, lesions = len(values), int(lesion[-1]) + 1
    groups = images * lesions
    count = torch.bincount(lesion, minlength=lesions)
    group = torch.arange(images)[:, None] * lesions + lesion
    ordered = _sorted(values, lesion)
    quantile = {share: _quantile(ordered, count, share) for share in (0.0, 0.1, 0.25, 0.75, 0.9, 1.0)}
    number = count.repeat(images)

    def mean(weights: Tensor) -> Tensor:
        return group_sums(group, weights, groups) / number

    average = mean(values)
    centred = values - average[group]
    variance = mean(centred.square())
    spread = torch.where(variance == 0, 1.0, variance)
    energy = group_sums(group, values.square(), groups)
    share = levels.count / number[levels.group]
    features = {
        "10Percentile": quantile[0.1],
        "90Percentile": quantile[0.9],
        "Energy": energy,
        "Entropy": group_sums(levels.group, entropy_terms(share), groups),
        "InterquartileRange": quantile[0.75] - quantile[0.25],
        "Kurtosis": mean(centred**4) / spread**2,
        "Maximum": quantile[1.0],
        "MeanAbsoluteDeviation": mean(centred.abs()),
        "Mean": average,
        "Median": _median(ordered, count),
        "Minimum": quantile[0.0],
        "Range": quantile[1.0] - quantile[0.0],
        "RobustMeanAbsoluteDeviation": _robust_deviation(values, group, quantile[0.1], quantile[0.9]),
        "RootMeanSquared": (energy / number).sqrt(),
        "Skewness": mean(centred**3) / spread**1.5,
        "TotalEnergy": energy * voxel_volume,
        "Uniformity": group_sums(levels.group, share.square(), groups),
        "Variance": variance,
    }
    return torch.stack([features[name] for name in FIRST_ORDER_NAMES], 1).reshape(images, lesions, -1)


def _sorted(values: Tensor, lesion: Tensor) -> Tensor:
    """Values ``[J, N]`` in ascending order within each lesion."""
    ordered, by_value = values.sort(1)
    by_lesion = lesion[by_value].sort(dim=1, stable=True).indices
    return ordered.gather(1, by_lesion)


def _quantile(ordered: Tensor, count: Tensor, share: float) -> Tensor:
    """Quantile of each group, linear between values; rounded as numpy rounds, since values are compared with it."""
    at = (count - 1).double() * share
    below = at.floor().long()
    weight = at - below
    first = starts(count)
    low, high = ordered[:, first + below], ordered[:, first + torch.minimum(below + 1, count - 1)]
    gap = high - low
    return torch.where(weight < 0.5, low + gap * weight, high - gap * (1 - weight)).flatten()


def _median(ordered: Tensor, count: Tensor) -> Tensor:
    first = starts(count)
    return ((ordered[:, first + (count - 1) // 2] + ordered[:, first + count // 2]) / 2).flatten()


def _robust_deviation(values: Tensor, group: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Mean absolute deviation of the values between the 10th and the 90th percentile."""
    kept = (values >= low[group]) & (values <= high[group])
    values, group = values[kept], group[kept]
    number = torch.bincount(group, minlength=len(low))
    average = group_sums(group, values, len(low)) / number
    return group_sums(group, (values - average[group]).abs(), len(low)) / number
