"""Speed of the bundles: one module for each, and here what they share.

A module has ``groups``, a function from :class:`Settings` to the stages by name, ``THREADS`` and ``SEED``.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Settings:
    """How to measure.

    Attributes:
        repeats: runs of each stage after the first.
        scale: factor on sizes, for a quick look; 1 for results.
    """

    repeats: int = 5
    scale: float = 1.0

    def scaled(self, size: float, at_least: int, step: int = 1) -> int:
        """A size times the scale, a multiple of ``step``."""
        return max(at_least, step * round(size * self.scale / step))


@dataclass(frozen=True)
class Row:
    """One measured stage.

    Attributes:
        stage: what was measured.
        value: median.
        unit: of ``value``, ``low`` and ``high``.
        low, high: smallest and largest value of the repeats.
        repeats: how many.
        target: what the project aims at, in words; empty without a target.
        reached: whether it was reached; None without a target.
    """

    stage: str
    value: float
    unit: str
    low: float
    high: float
    repeats: int
    target: str = ""
    reached: bool | None = None


Stages = Mapping[str, Callable[[], Iterator[Row]]]


def timed(work: Callable[[], Any], repeats: int) -> list[float]:
    """Seconds of each repeat, after one run to warm up."""
    work()
    seconds = []
    for _ in range(repeats):
        begin = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - begin)
    return seconds


def row(stage: str, values: Sequence[float], unit: str, target: float | None = None, above: bool = False) -> Row:
    """A stage from the values of its repeats.

    Args:
        stage: what was measured.
        values: one for each repeat.
        unit: of the values.
        target: largest value aimed at, or smallest if ``above``.
        above: whether more is better.
    """
    value = statistics.median(values)
    span = (min(values), max(values), len(values))
    if target is None:
        return Row(stage, value, unit, *span)
    text = f"{'>=' if above else '<='} {target:g}{'' if unit == 'times' else f' {unit}'}"
    return Row(stage, value, unit, *span, text, value >= target if above else value <= target)


def rate(stage: str, seconds: Sequence[float], work: float, unit: str, target: float | None = None) -> Row:
    """A stage as work per second.

    Args:
        stage: what was measured.
        seconds: times of the repeats.
        work: what was done in one repeat.
        unit: such as "voxels/s".
        target: smallest rate aimed at.
    """
    return row(stage, [work / s for s in seconds], unit, target, above=True)
