"""Options of the classical methods that give the least error on validation heads, so that each is at its best."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from shared_transforms.experiments import Row

from .bench import TUNING, Bench
from .heads import draw_head
from .methods import SLOW
from .scores import best_factor, scores

# Seed of the noise on validation heads, so that it is not that of the test.
NOISE_SEED = 1000


@torch.no_grad()
def tuning(
    bench: Bench,
    grid: Mapping[str, Mapping[str, Sequence[float]]],
    noise_ppm: Sequence[float] = (0.001, 0.003, 0.006),
    slow_noise_ppm: Sequence[float] = (0.003,),
    n_heads: int = 1,
    scale: float = 0.7,
) -> list[Path]:
    """Search the option of each method that makes the NRMSE least, at each noise level.

    Args:
        bench: methods and output folder.
        grid: method to its option and the values that are tried; methods that are not in it keep their earlier rows.
        noise_ppm: standard deviations of the field [ppm].
        slow_noise_ppm: those for iLSQR and MEDI.
        n_heads: number of heads of the validation split.
        scale: size of the heads relative to others: a search at full size takes hours.
    """
    heads = [draw_head(bench, number, "val", scale=scale) for number in range(bench.pick(n_heads, 1))]
    cases = [
        (name, noise)
        for name in grid for noise in bench.pick(list(slow_noise_ppm if name in SLOW else noise_ppm), [0.003])
    ]  # fmt: skip
    rows: list[Row] = [row for row in bench.tuning_rows() if row["method"] not in grid]
    for name, noise in tqdm(cases, desc="tuning"):
        [(option, values)] = grid[name].items()
        found: list[Row] = []
        for value in bench.pick(list(values), list(values)[:2]):
            method = bench.classical(name, noise, {option: value})
            errors, factors, scaled = [], [], []
            for head in heads:
                case = head.measure(noise, bench.seed + NOISE_SEED)
                estimate = bench.estimate(method, case)[0]
                factor = best_factor(estimate, case.truth, case.mask)
                errors.append(scores(estimate, case.truth, case.mask, ["nrmse"])["nrmse"])
                scaled.append(scores(factor * estimate, case.truth, case.mask, ["nrmse"])["nrmse"])
                factors.append(factor)
            found.append({
                "method": name, "noise_ppm": noise, "option": option, "value": value, "nrmse": _mean(errors),
                "factor": _mean(factors), "nrmse_with_factor": _mean(scaled), "heads": len(errors),
            })  # fmt: skip
        best = min(found, key=lambda row: row["nrmse"])
        rows += [{**row, "best": row is best, "at_edge": row is best and row in (found[0], found[-1])} for row in found]
    notes = [
        "Heads of the validation split, with noise of their own. best: the value that the other experiments take, at "
        "the closest noise level; at_edge: it is the first or last of the values tried. factor: what the map must be "
        "multiplied with for the least error, known only where there is a truth.",
        f"Heads of {scale:g} times the size of the others: at full size a search takes hours.",
    ]
    return bench.write(TUNING, rows, notes)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
