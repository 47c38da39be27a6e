"""Experiment 4: the paper's phantoms, simulated: bottles of known concentrations in agar."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from shared_transforms.experiments import Row, target

from ..baselines import CentreLine
from ..simulator import CONCENTRATION
from . import charts
from .bench import Bench
from .compare import errors, estimates
from .methods import COMPARED
from .scenes import QUICK_SCALE, Bottles, Scenes, bottle_planes
from .scenes import phantoms as simulated_phantoms
from .scores import centre_mean, mean_row

# Table 1 of the paper: batch to true and estimated concentration [ug/mm^3].
PAPER = {
    1: {27.90: 27.35, 13.95: 13.17, 9.30: 10.92, 6.98: 7.88, 3.49: 3.53},
    2: {13.95: 11.78, 6.98: 6.42, 3.49: 3.10, 1.75: 1.41},
}
DECIBELS = 25.0
CENTRE_SHARE = 0.5  # of the bottle's radius: the centre region
WANDER = 3.0  # largest distance of a bottle from the middle of the agar along x and z [mm]
LIMIT = 10.4  # per cent
BOUNDED = "centre_line"  # for which there is a bound, too
MEANS = ("nmae", "paper_percent_error")


@torch.no_grad()
def phantoms(bench: Bench, decibels: float = DECIBELS, methods: Sequence[str] = COMPARED) -> list[Path]:
    """Mean concentration in the middle of SIMULATED phantoms at the nine concentrations of the paper's table 1.

    Args:
        bench: methods and output folder.
        decibels: signal-to-noise ratio.
        methods: names as in :data:`.methods.LABELS`.
    """
    ready = bench.methods(methods)
    rows: list[Row] = []
    files: list[Path] = []
    for batch in tqdm(PAPER, "phantoms"):
        bottles = draw_bottles(bench, batch)
        scenes = simulated_phantoms(bench, bottles, [decibels] * len(bottles.concentrations), bench.seed + batch)
        maps = estimates(bench, ready, scenes)
        rows += measured(bench, batch, bottles, scenes, maps)
        rows += bound(bench, batch, bottles, scenes) if BOUNDED in maps else []
        if batch == 1:
            figure = charts.maps_figure(scenes, maps, range(len(scenes)), title="simulated")
            files.append(bench.save_figure("phantoms", figure))
    names = dict.fromkeys(row["method"] for row in rows)
    means = [row for name in names for row in summary(rows, name, bench.seed)]
    targets = [
        target("mean absolute error of DeepSPIO in the trained range [%]", row["percent_error"], LIMIT)
        for row in means if row["method"] == "deepspio" and row["batch"] == "trained range"
    ]  # fmt: skip
    notes = [
        "SIMULATED phantoms, no measurements: a bottle of "
        f"{2 * bottles.radius:g} mm diameter and {bottles.length:g} mm length, axis along y, in a disc of agar, at "
        f"{decibels:g} dB. The two batches have other places of the bottle, up to {WANDER:g} mm from the middle, and "
        f"other noise. estimated: mean over the inner {100 * CENTRE_SHARE:g} % of the bottle's radius. Rows of means: "
        "percent_error is the mean of the absolute errors, with SD and 95 % bootstrap interval over the phantoms, in "
        f"the trained range (up to {CONCENTRATION[1]:g} ug/mm^3) and of all nine. centre_line_known: a bound, the "
        "centre lines told shape and place of the bottle; the other classical methods take bodies as round, which a "
        "bottle across the plane is not, and believe no more than 27.9 ug/mm^3, the strongest phantom. Paper: measured "
        "phantoms.",
    ]
    return [*bench.write("phantoms", [*rows, *means, *bench.absent(methods)], notes, targets), *files]


def draw_bottles(bench: Bench, batch: int) -> Bottles:
    """The bottles of a batch, not quite in the middle of their agar."""
    concentrations = list(PAPER[batch])
    generator = np.random.default_rng((bench.seed, batch))
    places = generator.uniform(-WANDER, WANDER, (len(concentrations), 2))
    return Bottles(concentrations, [(float(x), float(z)) for x, z in places])


def measured(bench: Bench, batch: int, bottles: Bottles, scenes: Scenes, maps: Mapping[str, Tensor]) -> list[Row]:
    """A row for each method and phantom of a batch."""
    scale = bench.pick(1.0, QUICK_SCALE)
    places = [(x * scale, z * scale) for x, z in bottles.centres]
    radius = CENTRE_SHARE * bottles.radius * scale
    nmae = errors(maps, scenes)
    rows: list[Row] = []
    for name, values in maps.items():
        found = centre_mean(values, places, radius, bench.pixel_size[0])
        rows += _rows(batch, name, bottles, found, nmae[name])
    return rows


def bound(bench: Bench, batch: int, bottles: Bottles, scenes: Scenes) -> list[Row]:
    """The same of the centre lines when they are told shape and place of the bottle: what the lines alone can say."""
    told = CentreLine(bench.sequence, bench.pixel_size, bench.mass_magnetisation)
    found = told.known_geometry(scenes.image, bottle_planes(bench, bottles)).cpu()
    return _rows(batch, f"{BOUNDED}_known", bottles, found, (found / scenes.concentration.cpu() - 1).abs())


def _rows(batch: int, name: str, bottles: Bottles, found: Tensor, nmae: Tensor) -> list[Row]:
    rows = []
    for true, estimated, error in zip(bottles.concentrations, found.tolist(), nmae.tolist(), strict=True):
        paper = PAPER[batch][true]
        rows.append({
            "method": name, "batch": batch, "concentration": true, "estimated": estimated, "error": estimated - true,
            "percent_error": 100 * abs(estimated / true - 1), "nmae": error, "paper": paper,
            "paper_percent_error": 100 * abs(paper / true - 1),
        })  # fmt: skip
    return rows


def summary(rows: Sequence[Row], method: str, seed: int = 0) -> list[Row]:
    """Mean absolute errors of a method in the trained range and over all phantoms, with a bootstrap interval."""
    own = [row for row in rows if row["method"] == method]
    trained = [row for row in own if row["concentration"] <= CONCENTRATION[1]]
    return [
        {
            "method": method, "batch": name,
            **mean_row(torch.tensor([row["percent_error"] for row in part]), seed, "percent_error"),
            **{key: float(np.mean([row[key] for row in part])) for key in MEANS},
        }
        for name, part in (("trained range", trained), ("all", own))
    ]  # fmt: skip
