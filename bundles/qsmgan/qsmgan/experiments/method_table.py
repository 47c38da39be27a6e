"""All methods on held-out simulated heads, at several noise levels."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from shared_transforms.experiments import Row, target

from . import charts
from .bench import Bench
from .case import Case, Triple
from .heads import NUCLEI, draw_head
from .methods import LABELS, Method
from .scores import SCORES, line_through, region_rows, scores

# Turns of the head that a person can hold in a coil: upright, to each side, back; B0 in the axes of the head.
ORIENTATIONS: tuple[Triple, ...] = (
    (0.0, 0.0, 1.0), (0.3420, 0.0, 0.9397), (-0.2588, 0.2588, 0.9306), (0.0, -0.3420, 0.9397)
)  # fmt: skip
BEATEN = ("tkd", "tikhonov", "l2_gradient", "ilsqr", "medi")  # by the U-Net, says the target
WORSE_PERCENT = 2.0  # that the second stage may be in NRMSE
COSTS = ("cpu_seconds", "wall_seconds", "memory_mib")


@torch.no_grad()
def method_table(
    bench: Bench,
    n_heads: int = 3,
    noise_ppm: Sequence[float] = (0.001, 0.003, 0.006),
    middle_noise: float = 0.003,
    other_heads: int = 1,
    slow_heads: int = 1,
    methods: Sequence[str] = tuple(LABELS),
) -> list[Path]:
    """Scores and costs of every method on every head, with ranges over the heads.

    Args:
        bench: methods and output folder.
        n_heads: number of heads of the test split.
        noise_ppm: standard deviations of the field where the magnitude has its mean [ppm].
        middle_noise: the level at which all heads are measured, the first with SSIM and a figure.
        other_heads: number of heads at the other levels.
        slow_heads: number of heads for iLSQR and MEDI, at the middle level alone.
        methods: names as in :data:`.methods.LABELS`.
    """
    n_heads = bench.pick(n_heads, 1)
    levels = bench.pick(sorted(noise_ppm, key=lambda level: level != middle_noise), [middle_noise])
    rows: list[Row] = []
    nuclei: list[Row] = []
    files: list[Path] = []
    measurements = [
        (number, level)
        for number in range(n_heads) for level in (levels if number < other_heads else levels[:1])
    ]  # fmt: skip
    head = None
    for number, level in tqdm(measurements, desc="method table"):
        if level == levels[0] or head is None:
            head = draw_head(bench, number)
        case = head.measure(level, bench.seed + number, orientations=ORIENTATIONS if "cosmos" in methods else ())
        first = number == 0 and level == middle_noise
        columns = [name for name in SCORES if first or name != "ssim"]
        maps = {}
        for method, estimate, costs in estimates(
            bench, case, methods, slow=number < slow_heads and level == middle_noise
        ):
            maps[method.name] = estimate
            common = {"method": method.name, "noise_ppm": level, "head": str(number)}
            rows.append({**common, **scores(estimate, case.truth, case.mask, columns), **costs})
            nuclei += [{**common, **row} for row in _nuclei(estimate, case)]
        if first:
            files.append(bench.save_figure("method_table", charts.maps_figure(case.truth, maps, case.mask)))
        # Written after each head: a run that is cut off leaves what it has.
        files[1:] = bench.write(
            "method_table", [*summaries(rows), *rows, *bench.absent(methods)],
            _notes(n_heads, tuple(head.chi.shape)), _targets(rows, levels),
        )  # fmt: skip
    return [*files, *bench.write("nuclei", [*_lines(nuclei), *nuclei], _nuclei_notes())]


def estimates(
    bench: Bench, case: Case, names: Sequence[str], slow: bool = True
) -> Iterator[tuple[Method, Tensor, Row]]:
    """Every method with its map of a case and what that cost; a multiple of a map costs what the map does."""
    done: dict[str, tuple[Tensor, Row]] = {}
    for method in bench.methods(case.noise, names, slow):
        if method.multiple_of in done:
            estimate, costs = done[method.multiple_of]
            estimate = method.factor * estimate
        else:
            estimate, costs = bench.estimate(method, case)
        done[method.name] = estimate, costs
        yield method, estimate, costs


def _nuclei(estimate: Tensor, case: Case) -> list[Row]:
    return region_rows(
        estimate, case.truth, case.mask, {name: case.regions[name] for name in NUCLEI if name in case.regions}
    )


def summaries(rows: Sequence[Row], by: Sequence[str] = ("method", "noise_ppm")) -> list[Row]:
    """Mean of each column over the heads, with the lowest and highest value of each score."""
    groups: dict[tuple, list[Row]] = {}
    for own in rows:
        groups.setdefault(tuple(own[key] for key in by), []).append(own)
    found = []
    for place, members in groups.items():
        row: Row = {**dict(zip(by, place, strict=True)), "head": "mean", "heads": len(members)}
        for column in (*SCORES, *COSTS):
            values = [member[column] for member in members if member.get(column) is not None]
            if values:
                row[column] = sum(values) / len(values)
            if values and column in SCORES:
                row |= {f"{column}_low": min(values), f"{column}_high": max(values)}
        found.append(row)
    return found


def compared(rows: Iterable[Row], column: str, noise: float, first: str, second: str) -> tuple[float, float] | None:
    """Means of a score of two methods over the heads that both have seen; None if there are none."""
    table = {(row["method"], row["head"]): row[column] for row in rows if row["noise_ppm"] == noise}
    heads = [head for method, head in table if method == first and (second, head) in table]
    if not heads:
        return None
    one, other = (sum(table[name, head] for head in heads) / len(heads) for name in (first, second))
    return one, other


def _targets(rows: Sequence[Row], levels: Sequence[float]) -> list[Row]:
    found = []
    for level in sorted(levels):
        place = f"noise {level:g} ppm"
        for rival in (*BEATEN, "tv", "tv_scaled"):
            if (pair := compared(rows, "nrmse", level, "unet", rival)) is not None:
                found.append(target(f"U-Net NRMSE over that of {LABELS[rival]}: {place}", pair[0] / pair[1], 1.0))
        if (pair := compared(rows, "nrmse", level, "qsmgan", "unet")) is not None:
            found.append(
                target(f"QSMGAN NRMSE over that of the U-Net: {place}", pair[0] / pair[1], 1 + WORSE_PERCENT / 100)
            )
            # One of the two must be better: the better of both ratios counts.
            hfen, xsim = (compared(rows, column, level, "qsmgan", "unet") or pair for column in ("hfen", "xsim"))
            sharper = min(hfen[0] / hfen[1], xsim[1] / xsim[0])
            found.append(target(f"QSMGAN HFEN over, or XSIM under, that of the U-Net: {place}", sharper, 1.0))
    return found


def _lines(rows: Sequence[Row]) -> list[Row]:
    groups: dict[tuple, list[Row]] = {}
    for row in rows:
        groups.setdefault((row["method"], row["noise_ppm"]), []).append(row)
    return [
        {"method": method, "noise_ppm": noise, "head": "all", **line_through(members)}
        for (method, noise), members in groups.items() if len(members) > 1
    ]  # fmt: skip


def _notes(n_heads: int, shape: tuple[int, ...]) -> list[str]:
    return [
        f"{n_heads} heads of the test split, {' x '.join(map(str, shape))} voxels of 1 mm after the cut to the brain, "
        "B0 along z; field of the sources inside the mask, so no background is left; noise as 1 / magnitude, noise_ppm "
        "where the magnitude has its mean. Rows with head = mean are over the heads, _low and _high the range of "
        "these: with so few an interval would mean nothing. The outer noise levels see the first heads alone, iLSQR "
        "and MEDI the first at the middle level; ratios in the targets are over the heads that both methods saw.",
        "Options of the classical methods from results/tuning.json, found on other heads. TV x factor: TV times the "
        "factor that is best on the validation heads. COSMOS sees four orientations of the same head, each with noise "
        "of its own: a reference, not a competitor. zero map: the answer without data.",
        "nrmse, detrended_nrmse, hfen [%]; psnr [dB]; cpu_seconds: processor time of the process, all threads, kernels "
        "made once included; memory_mib: additional peak of the process.",
    ]


def _nuclei_notes() -> list[str]:
    return [
        "Mean susceptibility [ppm] of deep nuclei against the truth, both relative to the mean over the mask; rows "
        "with head = all: slope, mean bias and RMSE [ppm] over all nuclei of all heads.",
    ]
