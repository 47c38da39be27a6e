"""Speed of the bundles: one module for each, and here what they share.

A module has ``groups``, a function from :class:`Settings` to the stages by name, ``THREADS`` and ``SEED``. The group
``import`` is the same for all.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bundle_files import REPOSITORY

BASE = "torch, monai"  # what every bundle imports in any case
IMPORT_SECONDS = 1.0


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


def network_module(bundle: Path) -> str:
    """Name of the module with the network of inference.json."""
    definition = json.loads((bundle / "configs/inference.json").read_text("utf-8"))["network_def"]
    return str(definition["_target_"].rpartition(".")[0])


def imports(bundle: Path, settings: Settings) -> Iterator[Row]:
    """Importing the module of a bundle's network, in fresh processes that alternate with torch and MONAI alone."""
    module = network_module(bundle)
    seconds: dict[str, list[float]] = {"": [], f", {module}": []}
    for repeat in range(settings.repeats + 1):
        for more, values in seconds.items():
            code = f"import time; t = time.process_time(); import {BASE}{more}; print(time.process_time() - t)"
            path = os.pathsep.join((str(REPOSITORY), str(bundle)))
            done = subprocess.run(
                [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path}, capture_output=True, check=True
            )
            if repeat:  # the first writes byte code and fills the caches of the disk
                values.append(float(done.stdout.split()[-1]))
    alone, whole = seconds.values()
    yield row(f"import: {BASE}", alone, "CPU s")
    yield row(f"import: {BASE}, {module}", whole, "CPU s")
    beyond = [one - other for one, other in zip(whole, alone, strict=True)]
    yield row(f"import: {module} beyond {BASE}", beyond, "CPU s", IMPORT_SECONDS)
