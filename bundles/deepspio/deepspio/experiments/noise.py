"""How noise changes the error: a bottle in agar at many concentrations and signal-to-noise ratios."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from shared_transforms.experiments import Row

from . import charts
from .bench import Bench
from .compare import estimates
from .methods import COMPARED, Method
from .scenes import Bottles, phantoms
from .scores import nmae

CONCENTRATIONS = (0.22, 1.0, 1.75, 3.49, 6.98, 10.5, 13.95, 17.5, 20.5, 27.9)
DECIBELS = (5.0, 11.0, 19.0, math.inf)
DETAIL = 20.5  # concentration of the second study [ug/mm^3]
DETAIL_DECIBELS = (5.0, 8.0, 11.0, 15.0, 19.0, 25.0, 30.0)


@torch.no_grad()
def noise(
    bench: Bench,
    repeats: int = 10,
    slow_repeats: int = 1,
    detail_repeats: int = 100,
    methods: Sequence[str] = COMPARED,
) -> list[Path]:
    """Mean and SD of the NMAE over instances of noise, by concentration, and by noise level at one concentration.

    Args:
        bench: methods and output folder.
        repeats: instances of noise at each concentration and noise level.
        slow_repeats: the first of these, for methods that take seconds for an image.
        detail_repeats: instances at each noise level of the second study, which slow methods do not take part in.
        methods: names as in :data:`.methods.LABELS`.
    """
    repeats, slow_repeats, detail_repeats = bench.pick((repeats, slow_repeats, detail_repeats), (2, 1, 3))
    concentrations = bench.pick(CONCENTRATIONS, (0.22, 13.95))
    ready = bench.methods(methods)
    quick = [method for method in ready if not method.slow]
    grid = [(c, d, repeats, ready) for c in concentrations for d in DECIBELS]
    detail = [(DETAIL, d, detail_repeats, quick) for d in bench.pick(DETAIL_DECIBELS, (5.0, 19.0))]
    rows: list[Row] = []
    for study, places in (("concentrations", grid), ("levels", detail)):
        for concentration, decibels, count, own in tqdm(places, f"noise, {study}"):
            # Without noise all instances are one.
            found = _errors(bench, concentration, decibels, count if math.isfinite(decibels) else 1, slow_repeats, own)
            rows += [
                {
                    "study": study, "concentration": concentration,
                    "decibels": decibels if math.isfinite(decibels) else "none", "method": name,
                    "images": len(values), "nmae": float(values.mean()),
                    "nmae_sd": float(values.std()) if len(values) > 1 else None, "paper": None,
                }
                for name, values in found.items()
            ]  # fmt: skip
    notes = [
        f"A bottle in agar. Study concentrations: {repeats} instances of noise each ({slow_repeats} for methods that "
        f"take seconds for an image); study levels: {detail_repeats} instances at {DETAIL:g} ug/mm^3. decibels: mean "
        "power of the whole image over that of the complex noise; none: without noise, one image. NMAE over the whole "
        "image, mean and SD over the instances. Above 17.5 ug/mm^3 concentrations are outside of the training. The "
        "paper gives curves (its figures 9 and 10), no numbers.",
    ]
    files = bench.write("noise", [*rows, *bench.absent(methods)], notes)
    return [
        *files,
        bench.save_figure("noise", charts.noise_figure([row for row in rows if row["study"] == "concentrations"])),
        bench.save_figure("noise_levels", charts.levels_figure([row for row in rows if row["study"] == "levels"])),
    ]


def _errors(
    bench: Bench, concentration: float, decibels: float, count: int, slow: int, methods: Sequence[Method]
) -> dict[str, Tensor]:
    """NMAE of the instances by method; equal numbers of an instance give equal noise at every level."""
    bottles = Bottles([concentration] * count, [(0.0, 0.0)] * count)
    level = [decibels] * count if math.isfinite(decibels) else None
    scenes = phantoms(bench, bottles, level, bench.seed)
    maps = estimates(bench, methods, scenes, slow)
    return {name: nmae(values, scenes.truth[: len(values)]) for name, values in maps.items()}
