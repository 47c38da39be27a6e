"""Experiment 1: held-out images like those of the training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from shared_transforms.experiments import Row, target

from ..simulator import PAPER_FIGURES
from . import charts
from .bench import Bench
from .compare import errors, estimates, table
from .methods import CLASSICAL, COMPARED, LABELS
from .scenes import held_out
from .scores import mean_row

PAPER = {"paper": 0.17, "paper_sd": 0.10}
LIMITS = {"as the paper's, trained on a GPU": 0.17, "trained on a CPU": 0.35}
# Figures of the sets; those with the paper's are in heads and without noise.
FIGURES: dict[str, dict[str, float]] = {"paper": PAPER_FIGURES, "metaballs": {"metaball": 1.0}, "tori": {"torus": 1.0}}
SETS = (*FIGURES, "training")
HEADS = "mni152"
BANDS = (0.22, 1.0, 3.5, 7.0, 10.5, 14.0, 17.5)  # [ug/mm^3]
SHOWN = 3  # images in the figures


@torch.no_grad()
def simulated(
    bench: Bench, images: int = 256, slow_images: int = 64, others: int = 64, methods: Sequence[str] = COMPARED
) -> list[Path]:
    """NMAE of every method on images of the test split: all, by concentration, and by kind of figure.

    Args:
        bench: methods and output folder.
        images: with the paper's figures.
        slow_images: the first of these, for methods that take seconds for an image.
        others: images of each of the other sets; slow methods see an eighth of them.
        methods: names as in :data:`.methods.LABELS`.
    """
    images, slow_images, others = bench.pick((images, slow_images, others), (4, 2, 2))
    ready = bench.methods(methods)
    rows: list[Row] = []
    files: list[Path] = []
    for name in tqdm(SETS, "simulated"):
        count, slow = (images, slow_images) if name == "paper" else (others, max(1, others // 8))
        changes = {} if name == "training" else paper_like(bench, FIGURES[name])
        scenes = held_out(bench, count, **changes)
        maps = estimates(bench, ready, scenes, slow)
        found = errors(maps, scenes)
        own = table(bench, found, {"set": name, "band": "all"})
        if name == "paper":
            own = [row | PAPER if row["method"] == "deepspio" else row for row in own]
            own += banded(bench, found, scenes.concentration.cpu())
            figure = charts.maps_figure(scenes, maps, range(min(SHOWN, slow)))
            files.append(bench.save_figure("simulated", figure))
            files.append(bench.save_figure("simulated_bands", charts.bands_figure(own)))
        rows += own
    notes = [
        f"{images} images of the test split with metaballs and tori, concentrations {BANDS[0]:g} to {BANDS[-1]:g} "
        f"ug/mm^3, without noise (set paper); {others} each with metaballs alone, with tori alone, and with figures "
        "and noise of the training of the weights (set training). NMAE over the whole image, 1 for the zero map: mean "
        "over images, SD, 95 % bootstrap interval. Methods that take seconds for an image have seen only the first "
        "ones; *_shared: over those that all have seen. Paper: over heads of the IXI data set.",
    ]
    return [*bench.write("simulated", [*rows, *bench.absent(methods)], notes, targets_of(rows)), *files]


def paper_like(bench: Bench, figures: Mapping[str, float] = PAPER_FIGURES, anatomy: str = HEADS) -> dict[str, Any]:
    """What is changed of the training's simulator for images as the paper has them: in one anatomy, without noise."""
    return {"figures": figures, "noise_share": 0.0, "anatomy": bench.anatomy_of(anatomy)}


def banded(bench: Bench, found: Mapping[str, Tensor], concentration: Tensor) -> list[Row]:
    """Rows of the bands of concentration in which there are images."""
    rows: list[Row] = []
    for low, high in zip(BANDS[:-1], BANDS[1:], strict=True):
        inside = (concentration >= low) & ((concentration < high) | (high == BANDS[-1]))
        for name, values in found.items():
            seen = values[inside[: len(values)]]
            if len(seen):
                place = {"set": "paper", "band": f"{low:g}-{high:g}", "middle": (low + high) / 2, "method": name}
                rows.append({**place, **mean_row(seen, bench.seed), "nmae_median": float(seen.median())})
    return rows


def targets_of(rows: Sequence[Row]) -> list[Row]:
    """DeepSPIO against the limits, and against the other methods on the images that all have seen."""
    own = {row["method"]: row for row in rows if row["band"] == "all" and row["set"] == "paper"}
    if "deepspio" not in own:
        return []
    ours = own["deepspio"]
    found = [target(f"NMAE of DeepSPIO: {name}", ours["nmae"], limit) for name, limit in LIMITS.items()]
    for name in ("zero", *CLASSICAL):
        if name in own:
            text = f"NMAE of DeepSPIO against another method: {LABELS[name]}"
            found.append(target(text, ours["nmae_shared"], own[name]["nmae_shared"]))
    return found
