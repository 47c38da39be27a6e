"""Features of the grey-level run-length matrix (GLRLM).

Galloway, Comput. Graph. Image Process. 4 (1975) 172; definitions of pyradiomics. A run is a row of neighbours with one
level along one of the 13 directions. Runs are found in the lists of voxels that stand line after line: one begins where
a voxel is no neighbour of the one before it, or has another level.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from qsmrim_net.radiomics.levels import DIRECTIONS, GreyLevels, Lines, entropy_terms, group_sums
from qsmrim_net.radiomics.names import GLRLM_NAMES

__all__ = ["glrlm_features"]

_ANGLES = len(DIRECTIONS)


@dataclass
class _Entries:
    """Kinds of runs that occur. A cell is one direction of one group, numbered group * 13 + direction.

    Attributes:
        cell: of each kind ``[E]``.
        tone: of each kind ``[E]``.
        length: of each kind [voxels] ``[E]``.
        number: of runs of the kind ``[E]``, float64.
        longest: run of any kind.
        cells: their number.
    """

    cell: Tensor
    tone: Tensor
    length: Tensor
    number: Tensor
    longest: int
    cells: int


def glrlm_features(levels: GreyLevels, lines: Lines, lesion: Tensor) -> Tensor:
    """The 16 GLRLM features of each lesion in each image: means over the directions with more than one voxel on a line.

    Args:
        levels: grey levels of the voxels.
        lines: of the voxels.
        lesion: of each voxel ``[N]``.

    Returns:
        ``[J, M, 16]``, in the order of :data:`~qsmrim_net.radiomics.names.GLRLM_NAMES`; NaN where there is no such
        direction.
    """
    images, lesions = len(levels.tone), lines.extended.shape[1]
    entries = _count(levels, lines, lesion)
    features = _emphases(entries, levels) | _distributions(entries, levels)
    values = torch.stack([features[name] for name in GLRLM_NAMES], 1).reshape(images, lesions, _ANGLES, -1)
    extended = lines.extended.T[None, :, :, None]
    return torch.where(extended, values, 0.0).sum(2) / extended.sum(2)


def _count(levels: GreyLevels, lines: Lines, lesion: Tensor) -> _Entries:
    """Finds the runs and counts those of one direction, level and length."""
    tone = levels.tone[:, lines.order]
    begins = torch.ones_like(tone, dtype=torch.bool)
    begins[..., 1:] = (tone[..., 1:] != tone[..., :-1]) | ~lines.joined[:, 1:]
    at = begins.flatten().nonzero()[:, 0]
    length = torch.diff(at, append=torch.tensor([tone.numel()]))
    angle = at // tone.shape[2] % _ANGLES
    tone = tone.flatten()[at]

    # Every tone has a block of 13 x longest slots.
    longest = int(length.max())
    slot = (tone * _ANGLES + angle) * longest + length - 1
    number = torch.bincount(slot, minlength=len(levels.level) * _ANGLES * longest)
    found = number.nonzero()[:, 0]
    row = found // longest
    tone = row // _ANGLES
    return _Entries(
        cell=levels.group[tone] * _ANGLES + row - tone * _ANGLES,
        tone=tone,
        length=found - row * longest + 1,
        number=number[found].double(),
        longest=longest,
        cells=len(levels.tones) * _ANGLES,
    )


def _emphases(entries: _Entries, levels: GreyLevels) -> dict[str, Tensor]:
    """Features that are means over the runs of a function of level and length."""
    runs = group_sums(entries.cell, entries.number, entries.cells)

    def mean(weights: Tensor) -> Tensor:
        return group_sums(entries.cell, entries.number * weights, entries.cells) / runs

    level, length = levels.level[entries.tone].double(), entries.length.double()
    high, long = level.square(), length.square()
    low, short = 1 / high, 1 / long
    return {
        "GrayLevelVariance": mean((level - mean(level)[entries.cell]).square()),
        "HighGrayLevelRunEmphasis": mean(high),
        "LongRunEmphasis": mean(long),
        "LongRunHighGrayLevelEmphasis": mean(long * high),
        "LongRunLowGrayLevelEmphasis": mean(long * low),
        "LowGrayLevelRunEmphasis": mean(low),
        "RunPercentage": 1 / mean(length),
        "RunVariance": mean((length - mean(length)[entries.cell]).square()),
        "ShortRunEmphasis": mean(short),
        "ShortRunHighGrayLevelEmphasis": mean(short * high),
        "ShortRunLowGrayLevelEmphasis": mean(short * low),
    }


def _distributions(entries: _Entries, levels: GreyLevels) -> dict[str, Tensor]:
    """Features of how runs are distributed over levels and over lengths."""
    runs = group_sums(entries.cell, entries.number, entries.cells)
    angle = entries.cell % _ANGLES
    tones = len(levels.level)
    of_level = group_sums(entries.tone * _ANGLES + angle, entries.number, tones * _ANGLES)
    cell = (levels.group[:, None] * _ANGLES + torch.arange(_ANGLES)).flatten()
    of_length = group_sums(
        entries.cell * entries.longest + entries.length - 1, entries.number, entries.cells * entries.longest
    )
    level_squares = group_sums(cell, of_level.square(), entries.cells)
    length_squares = of_length.reshape(entries.cells, -1).square().sum(1)
    return {
        "GrayLevelNonUniformity": level_squares / runs,
        "GrayLevelNonUniformityNormalized": level_squares / runs**2,
        "RunEntropy": group_sums(entries.cell, entropy_terms(entries.number / runs[entries.cell]), entries.cells),
        "RunLengthNonUniformity": length_squares / runs,
        "RunLengthNonUniformityNormalized": length_squares / runs**2,
    }
