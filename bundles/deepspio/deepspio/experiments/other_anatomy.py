"""Experiment 2: the particles of experiment 1 in an organ that the training has not seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from shared_transforms.experiments import Row, target

from . import charts
from .bench import Bench
from .compare import errors, estimates, table
from .methods import COMPARED
from .scenes import held_out
from .scores import mean_row
from .simulated import HEADS, SHOWN, paper_like

OTHER = "breast"
SURROUNDED = 0.95  # share of the pixels near particles that must give signal
LIMIT = 1.10  # NMAE in the other anatomy over that in heads
PAPER_EXAMPLE = 0.16  # NMAE of the one image of breasts that the paper shows


@torch.no_grad()
def other_anatomy(
    bench: Bench, images: int = 128, slow_images: int = 24, methods: Sequence[str] = COMPARED
) -> list[Path]:
    """NMAE of every method with the same particles in heads and in generated breast tissue.

    Args:
        bench: methods and output folder.
        images: of each anatomy.
        slow_images: the first of these, for methods that take seconds for an image.
        methods: names as in :data:`.methods.LABELS`.
    """
    images, slow_images = bench.pick((images, slow_images), (3, 2))
    ready = bench.methods(methods)
    found: dict[str, dict[str, Tensor]] = {}
    within: dict[str, Tensor] = {}
    for name in tqdm((HEADS, OTHER), "other anatomy"):
        scenes = held_out(bench, images, **paper_like(bench, anatomy=name))
        maps = estimates(bench, ready, scenes, slow_images)
        found[name] = errors(maps, scenes)
        within[name] = scenes.surrounded
    in_tissue = torch.stack(list(within.values())).amin(0) >= SURROUNDED
    rows = _compared(bench, found, "anywhere") + _compared(bench, _chosen(found, in_tissue), "in tissue")
    targets = [
        target(f"NMAE of DeepSPIO over that in heads: particles {row['particles']}", row["over_heads"], LIMIT)
        for row in rows if (row["anatomy"], row["method"]) == (OTHER, "deepspio")
    ]  # fmt: skip
    notes = [
        f"{images} pairs of images of the test split: the same metaballs and tori at the same concentrations, without "
        "noise, in heads and in generated breasts. NMAE over the whole image: mean, SD, 95 % bootstrap interval. "
        f"Particles in tissue: the {int(in_tissue.sum())} pairs in which {100 * SURROUNDED:g} % of the pixels near the "
        "particles give signal in both anatomies. The breast fills less of the image than the head, and particles in "
        "the air beside it show nothing. difference: mean over the pairs of NMAE in the breast less that in the head. "
        "over_heads: ratio of the means. Methods that take seconds for an image have seen only the first pairs. Paper: "
        "one example, of a measured image of breasts.",
    ]
    files = bench.write("other_anatomy", [*rows, *bench.absent(methods)], notes, targets)
    figure = charts.maps_figure(scenes, maps, range(min(SHOWN, slow_images)))
    return [*files, bench.save_figure("other_anatomy", figure)]


def _chosen(found: Mapping[str, Mapping[str, Tensor]], which: Tensor) -> dict[str, dict[str, Tensor]]:
    """The errors of some of the pairs ``[n]``; methods may have seen only the first ones."""
    return {
        anatomy: {method: values[which[: len(values)]] for method, values in own.items()}
        for anatomy, own in found.items()
    }


def _compared(bench: Bench, found: Mapping[str, Mapping[str, Tensor]], particles: str) -> list[Row]:
    """A row for each anatomy and method that has seen any of the pairs."""
    rows: list[Row] = []
    for anatomy, own in found.items():
        seen = {method: values for method, values in own.items() if len(values)}
        rows += table(bench, seen, {"particles": particles, "anatomy": anatomy})
    return [row | _against_heads(bench, row, found) for row in rows]


def _against_heads(bench: Bench, row: Row, found: Mapping[str, Mapping[str, Tensor]]) -> Row:
    if row["anatomy"] == HEADS:
        return {}
    here, there = (found[name][row["method"]] for name in (OTHER, HEADS))
    pairs = {key: value for key, value in mean_row(here - there, bench.seed, "difference").items() if key != "images"}
    ratio = float(here.mean() / there.mean())
    return {**pairs, "over_heads": ratio, "paper": PAPER_EXAMPLE if row["method"] == "deepspio" else None}
