"""Experiment 3: a bottle of particles beside a sphere of air."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from shared_transforms.experiments import Row

from . import charts
from .bench import Bench
from .compare import errors, estimates
from .methods import COMPARED
from .scenes import B0_TESLA, AirSphere, Bottles, phantoms

CONCENTRATIONS = (0.22, 6.7, 13.0, 20.0)
PAPER = dict(zip(CONCENTRATIONS, (1.96, 0.24, 0.30, 0.21), strict=True))
# 7.5e-8 in cgs units as the paper states, and ten times that: what air in tissue has.
SUSCEPTIBILITIES = (4 * math.pi * 7.5e-2, 4 * math.pi * 7.5e-1)
CENTRE = (-2.0, -1.0)  # of the bottle (x, z) [mm]


@torch.no_grad()
def air_sphere(bench: Bench, methods: Sequence[str] = COMPARED) -> list[Path]:
    """NMAE of every method with and without the sphere.

    Args:
        bench: methods and output folder.
        methods: names as in :data:`.methods.LABELS`.
    """
    ready = bench.methods(methods)
    bottles = Bottles(CONCENTRATIONS, [CENTRE] * len(CONCENTRATIONS))
    rows: list[Row] = []
    for chi in tqdm((0.0, *SUSCEPTIBILITIES), "air sphere"):
        scenes = phantoms(bench, bottles, sphere=AirSphere(chi) if chi else None)
        maps = estimates(bench, ready, scenes)
        for name, values in errors(maps, scenes).items():
            for concentration, value in zip(CONCENTRATIONS, values.tolist(), strict=True):
                is_paper = name == "deepspio" and chi == SUSCEPTIBILITIES[0]
                rows.append({
                    "concentration": concentration, "sphere_ppm": chi or None, "method": name, "images": 1,
                    "nmae": value, "paper": PAPER[concentration] if is_paper else None,
                })  # fmt: skip
        if chi == SUSCEPTIBILITIES[0]:
            figure = charts.maps_figure(scenes, maps, range(len(scenes)))
    without = {(row["concentration"], row["method"]): row["nmae"] for row in rows if row["sphere_ppm"] is None}
    for row in rows:
        row["over_without"] = row["nmae"] / without[row["concentration"], row["method"]]
    sphere = AirSphere(0.0)
    notes = [
        f"A bottle of {2 * bottles.radius:g} mm diameter and {bottles.length:g} mm length in agar, without noise; the "
        f"sphere, {2 * sphere.radius:g} mm wide, has no signal, and its middle is "
        f"{math.dist(sphere.centre, CENTRE):.1f} mm from that of the bottle. sphere_ppm: its susceptibility over that "
        f"of agar at {B0_TESLA:g} T; empty: no sphere. 0.942 ppm are the paper's 7.5e-8 cgs; 9.42 ppm, ten times that, "
        "is what air in tissue has. One image for each row. over_without: NMAE over that without sphere. The paper "
        "does not state sizes.",
    ]
    files = bench.write("air_sphere", [*rows, *bench.absent(methods)], notes)
    return [*files, bench.save_figure("air_sphere", figure)]
