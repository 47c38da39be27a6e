"""Features of the grey-level co-occurrence matrix (GLCM).

Haralick, Shanmugam, Dinstein, IEEE Trans. Syst. Man Cybern. 3 (1973) 610; definitions of pyradiomics. The matrix of a
lesion, an image and a direction is symmetric, so the pairs of neighbours are counted once, as (lower, higher) level,
and only the pairs of levels that occur are kept: lists of entries in place of matrices that are mostly zeros.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from qsmrim_net.radiomics.levels import DIRECTIONS, GreyLevels, Lines, entropy_terms, group_sums, starts
from qsmrim_net.radiomics.names import GLCM_NAMES

__all__ = ["glcm_features"]

_ANGLES = len(DIRECTIONS)
_INDEPENDENT = 1e-12  # [bit]: mutual information below is rounding


@dataclass
class _Entries:
    """Pairs of levels that occur. A cell is one direction of one group, numbered group * 13 + direction.

    Attributes:
        cell: of each entry ``[E]``, ascending.
        low: tone of the lower level ``[E]``.
        high: tone of the higher level ``[E]``.
        share: of the pairs of its cell ``[E]``; both orders together.
        cells: their number.
    """

    cell: Tensor
    low: Tensor
    high: Tensor
    share: Tensor
    cells: int

    def means(self, weights: Tensor) -> Tensor:
        """Means over the pairs of each cell."""
        return group_sums(self.cell, self.share * weights, self.cells)


def glcm_features(levels: GreyLevels, lines: Lines, lesion: Tensor) -> Tensor:
    """The 23 GLCM features of each lesion in each image: means over the directions in which voxels touch.

    Args:
        levels: grey levels of the voxels.
        lines: of the voxels.
        lesion: of each voxel ``[N]``.

    Returns:
        ``[J, M, 23]``, in the order of :data:`~qsmrim_net.radiomics.names.GLCM_NAMES`; NaN where no two voxels of a
        lesion touch each other.
    """
    images, lesions = len(levels.tone), lines.extended.shape[1]
    entries, touching = _count(levels, lines, lesion)
    marginal, slot = _marginal(entries, levels)
    features = _moments(entries, levels) | _information(entries, levels, marginal)
    features["MCC"] = _maximal_correlation(entries, levels, marginal[slot])
    values = torch.stack([features[name] for name in GLCM_NAMES], 1).reshape(images, lesions, _ANGLES, -1)
    touching = touching.reshape(images, lesions, _ANGLES, 1)
    return torch.where(touching, values, 0.0).sum(2) / touching.sum(2)


def _count(levels: GreyLevels, lines: Lines, lesion: Tensor) -> tuple[_Entries, Tensor]:
    """Counts the pairs; also tells which cells have any."""
    angle, at = lines.joined.nonzero(as_tuple=True)
    pair = lines.order[angle, at - 1], lines.order[angle, at]
    one, other = levels.tone[:, pair[0]], levels.tone[:, pair[1]]
    group = torch.arange(len(one))[:, None] * lines.extended.shape[1] + lesion[pair[0]]

    # Every group has a block of 13 x tones x tones slots.
    sizes, first = _ANGLES * levels.tones**2, starts(levels.tones)
    begin = starts(sizes)
    width = levels.tones[group]
    slot = (angle * width + torch.minimum(one, other)) * width + torch.maximum(one, other)
    slot += (begin - first * levels.tones - first)[group]
    count = torch.bincount(slot.flatten(), minlength=int(sizes.sum()))

    found = count.nonzero()[:, 0]
    group = torch.repeat_interleave(torch.arange(len(sizes)), sizes)[found]
    width, rest = levels.tones[group], found - begin[group]
    row = rest // width
    angle = row // width
    cell = group * _ANGLES + angle
    cells = len(sizes) * _ANGLES
    number = count[found].double()
    total = group_sums(cell, number, cells)
    low, high = first[group] + row - angle * width, first[group] + rest - row * width
    return _Entries(cell, low, high, number / total[cell], cells), total > 0


def _moments(entries: _Entries, levels: GreyLevels) -> dict[str, Tensor]:
    """Features that are means over the pairs of a function of their two levels."""
    low, high = levels.level[entries.low].double(), levels.level[entries.high].double()
    highest = levels.highest[entries.cell // _ANGLES]
    difference = high - low
    squared = difference.square()
    average = entries.means((low + high) / 2)
    difference_average = entries.means(difference)
    below, above = low - average[entries.cell], high - average[entries.cell]
    total = below + above
    variance = entries.means((below.square() + above.square()) / 2)
    covariance = entries.means(below * above)
    flat = variance == 0
    return {
        "Autocorrelation": entries.means(low * high),
        "ClusterProminence": entries.means(total.square().square()),
        "ClusterShade": entries.means(total.square() * total),
        "ClusterTendency": entries.means(total.square()),
        "Contrast": entries.means(squared),
        "Correlation": torch.where(flat, 1.0, covariance / torch.where(flat, 1.0, variance)),
        "DifferenceAverage": difference_average,
        "DifferenceVariance": entries.means((difference - difference_average[entries.cell]).square()),
        "Id": entries.means(1 / (1 + difference)),
        "Idm": entries.means(1 / (1 + squared)),
        "Idmn": entries.means(1 / (1 + squared / highest**2)),
        "Idn": entries.means(1 / (1 + difference / highest)),
        "InverseVariance": entries.means(torch.where(difference == 0, 0.0, 1 / squared)),
        "JointAverage": average,
        "SumSquares": variance,
    }


def _marginal(entries: _Entries, levels: GreyLevels) -> tuple[Tensor, Tensor]:
    """Probability of each tone in each cell, and where those of an entry's two tones stand in it ``[2, E]``."""
    group = entries.cell // _ANGLES
    begin = (_ANGLES - 1) * starts(levels.tones)[group] + entries.cell % _ANGLES * levels.tones[group]
    slot = torch.stack([begin + entries.low, begin + entries.high])
    return group_sums(slot, entries.share.expand(2, -1) / 2, _ANGLES * len(levels.level)), slot


def _entropy(probability: Tensor, sizes: Tensor) -> Tensor:
    """Entropies [bit] of distributions of these sizes that stand one after another."""
    found = probability.nonzero()[:, 0]
    owner = torch.repeat_interleave(torch.arange(len(sizes)), sizes)[found]
    return group_sums(owner, entropy_terms(probability[found]), len(sizes))


def _information(entries: _Entries, levels: GreyLevels, marginal: Tensor) -> dict[str, Tensor]:
    """Features of the probabilities themselves: entropies, energy, the largest."""
    # Two levels that differ have two elements of the matrix, each with half of the share.
    element = torch.where(entries.low == entries.high, entries.share, entries.share / 2)
    joint = entries.means(-element.log2())
    single = _entropy(marginal, levels.tones.repeat_interleave(_ANGLES))
    information = 2 * single - joint
    information = torch.where(information < _INDEPENDENT, 0.0, information)

    low, high = levels.level[entries.low], levels.level[entries.high]
    sizes = 2 * levels.highest.repeat_interleave(_ANGLES)
    begin, total = starts(sizes)[entries.cell], int(sizes.sum())
    largest = torch.zeros(entries.cells, dtype=torch.float64)
    return {
        "DifferenceEntropy": _entropy(group_sums(begin + high - low, entries.share, total), sizes),
        "Imc1": -information / torch.where(single == 0, 1.0, single),
        "Imc2": (-torch.expm1(-2 * information)).sqrt(),
        "JointEnergy": entries.means(element),
        "JointEntropy": joint,
        "MaximumProbability": largest.scatter_reduce(0, entries.cell, element, "amax"),
        "SumEntropy": _entropy(group_sums(begin + high + low - 2, entries.share, total), sizes),
    }


def _maximal_correlation(entries: _Entries, levels: GreyLevels, marginal: Tensor) -> Tensor:
    """Maximal correlation coefficient of each cell: 1 where a group has one level only.

    It is the second largest singular value of p(i, j) / sqrt(p(i) p(j)), whose largest is 1.

    Args:
        entries: pairs of levels.
        levels: grey levels.
        marginal: probabilities of the two levels of each entry ``[2, E]``.
    """
    value = torch.where(entries.low == entries.high, entries.share, entries.share / 2) / marginal.prod(0).sqrt()
    first = starts(levels.tones)[entries.cell // _ANGLES]
    low, high = entries.low - first, entries.high - first
    tones = levels.tones.repeat_interleave(_ANGLES)
    result = torch.ones(entries.cells, dtype=torch.float64)
    for number in levels.tones.unique().tolist():
        if number == 1:
            continue
        cells = (tones == number).nonzero()[:, 0]
        place = torch.zeros(entries.cells, dtype=torch.long)
        place[cells] = torch.arange(len(cells))
        chosen = (tones[entries.cell] == number).nonzero()[:, 0]
        matrix = torch.zeros(len(cells), number, number, dtype=torch.float64)
        # The lower triangle is enough.
        matrix[place[entries.cell[chosen]], high[chosen], low[chosen]] = value[chosen]
        eigenvalues = torch.linalg.eigvalsh(matrix)
        result[cells] = torch.maximum(eigenvalues[:, -2], -eigenvalues[:, 0])
    return result
