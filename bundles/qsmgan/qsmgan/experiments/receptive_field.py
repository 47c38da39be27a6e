"""How much of the field around a patch the generator should see: 48, 64 or 96 voxels for an output of 48."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor
from tqdm import tqdm

from shared_transforms.experiments import Row, charts
from shared_transforms.inferers import AutocastInferer
from shared_transforms.simulation import PatchPoolDataset

from ..loss import SusceptibilityLoss
from ..network import Generator
from ..simulator import SusceptibilitySimulator
from .bench import Bench

OUTPUT = 48
PAPER = {48: 0.00784, 64: 0.00734, 96: 0.00744}  # L1 of the authors, one slice
WARM_UP = 0.1  # of the steps


def receptive_field(
    bench: Bench,
    inputs: Sequence[int] = (48, 64, 96),
    steps: int = 100,
    learning_rate: float = 2e-3,
    width: int = 8,
    batch_size: int = 2,
    volumes: int = 6,
    volume_size: Sequence[int] = (128, 128, 128),
    noise_ppm: tuple[float, float] = (0.0007, 0.007),
    test_batches: int = 12,
) -> list[Path]:
    """Train one generator for each input size on the field alone, with equal steps on the same patches.

    Args:
        bench: seed and output folder.
        inputs: sides of the input [voxels]; the output is the middle 48.
        steps: optimiser steps of each.
        learning_rate: at its peak; cosine to 1 %.
        width: of the generator.
        batch_size: patches in a step.
        volumes: simulated volumes of which the patches are taken.
        volume_size: their size [voxels].
        noise_ppm: range of the noise of their fields [ppm].
        test_batches: batches of the test split.
    """
    inputs, output = bench.pick((list(inputs), OUTPUT), ([16, 24], 16))
    steps, test_batches, volumes = bench.pick((steps, test_batches, volumes), (2, 1, 1))
    widest = max(inputs)
    simulator = SusceptibilitySimulator(
        device=bench.device, size=bench.pick(list(volume_size), [32, 32, 32]), noise_ppm=noise_ppm,
        channels=("field",), anatomy=bench.anatomy,
    )  # fmt: skip
    settings: dict[str, Any] = {
        "batch_size": batch_size, "patch_size": widest, "crop": (widest - output) // 2, "seed": bench.seed,
    }  # fmt: skip
    train = PatchPoolDataset(simulator, volumes, steps, split="train", **settings)
    networks, optimizers = {}, {}
    for side in inputs:
        torch.manual_seed(bench.seed)
        networks[side] = Generator(("field",), width, normalisation="batch", crop=(side - output) // 2)
        networks[side].to(bench.device).to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        optimizers[side] = torch.optim.AdamW(networks[side].parameters(), lr=learning_rate, betas=(0.9, 0.99))
    losses: dict[int, list[float]] = {side: [] for side in inputs}
    seconds = dict.fromkeys(inputs, 0.0)
    loss_of, inferer = SusceptibilityLoss(0.0, 1.0, 0.5, 0.0, compress=True).to(bench.device), AutocastInferer()
    for step in tqdm(range(steps), desc="receptive field"):
        batch = train[step]
        for side in inputs:
            begin = time.process_time()
            for group in optimizers[side].param_groups:
                group["lr"] = learning_rate * _schedule(step, steps)
            loss = loss_of(inferer(_middle(batch["image"], side), networks[side]), batch["label"])
            optimizers[side].zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(networks[side].parameters(), 1.0)
            optimizers[side].step()
            losses[side].append(float(loss.detach()))
            seconds[side] += time.process_time() - begin
    test = PatchPoolDataset(
        simulator, bench.pick(2, 1), test_batches, split="test", background_share=0.0, **settings
    )  # a patch beside the head has nothing to compare
    errors = _errors([test[number] for number in range(test_batches)], networks)
    rows: list[Row] = [
        {
            "input": side, "output": output, "steps": steps, **errors[side],
            "final_loss": sum(losses[side][-max(1, steps // 10) :]) / max(1, steps // 10),
            "cpu_seconds_per_step": seconds[side] / steps, "paper_l1": PAPER.get(side),
        }
        for side in inputs
    ]  # fmt: skip
    rows.append({"input": None, "output": output, **errors[0], "method": "zero"})
    notes = [
        f"SHORT trainings of {steps} steps each, width {width}, batch {batch_size}, one seed, the same patches for "
        "all; batch normalisation, field as the only input and the loss of tanh(10 chi) as in the paper. l1_tanh: mean "
        "absolute error of tanh(10 chi) inside the mask of held-out patches; l1_ppm: of chi [ppm]; nrmse [%]; zero: "
        "the answer without data. paper_l1: the authors', of one slice after a full training, on other data: its "
        "order can be compared, its value cannot.",
    ]
    files = bench.write("receptive_field", rows, notes)
    return [*files, bench.save_figure("receptive_field", _figure(losses, rows))]


def _schedule(step: int, steps: int) -> float:
    """Linear warm-up, then a cosine to 1 %."""
    rise = min(1.0, (step + 1) / max(1.0, WARM_UP * steps))
    return rise * (0.01 + 0.99 * 0.5 * (1.0 + math.cos(math.pi * step / steps)))


def _middle(image: Tensor, side: int) -> Tensor:
    """The middle cube of patches ``[batch, C, X, Y, Z]``."""
    cut = (image.shape[-1] - side) // 2
    return image[..., cut : cut + side, cut : cut + side, cut : cut + side]


@torch.no_grad()
def _errors(batches: Sequence[Mapping[str, Any]], networks: Mapping[int, Generator]) -> dict[int, Row]:
    """Errors of each network inside the masks of the batches, those of the zero map under 0."""
    rows: dict[int, Row] = {}
    for side in (0, *networks):
        found: list[Tensor] = []
        true: list[Tensor] = []
        for batch in batches:
            truth, inside = batch["label"]["parameters"], batch["label"]["mask"]
            made = networks[side].eval()(_middle(batch["image"], side)) if side else torch.zeros_like(truth)
            found.append(made[inside].double())
            true.append(truth[inside].double())
        chi, truth = torch.cat(found), torch.cat(true)
        rows[side] = {
            "l1_tanh": float((torch.tanh(10 * chi) - torch.tanh(10 * truth)).abs().mean()),
            "l1_ppm": float((chi - truth).abs().mean()),
            "nrmse": 100 * float((chi - truth).norm() / truth.norm()),
        }
    return rows


def _figure(losses: Mapping[int, Sequence[float]], rows: Sequence[Row]) -> Figure:
    figure = charts.new_figure(8.0, 3.2)
    left, right = figure.subplots(1, 2)
    colours = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")
    for (side, values), colour in zip(losses.items(), colours, strict=False):
        width = max(1, len(values) // 20)
        smooth = [sum(values[i : i + width]) / width for i in range(0, len(values) - width + 1, width)]
        charts.line(left, [width * i for i in range(len(smooth))], smooth, colour, f"{side} voxels", "-")
    charts.tidy(left)
    left.set_xlabel("step", fontsize=charts.FONT)
    left.set_ylabel("loss", fontsize=charts.FONT)
    left.legend(fontsize=charts.FONT, frameon=False)
    own = [row for row in rows if row["input"]]
    charts.line(right, [r["input"] for r in own], [1e3 * r["l1_tanh"] for r in own], colours[0], "here", "o-")
    paper = [None if r["paper_l1"] is None else 1e3 * r["paper_l1"] for r in own]
    charts.line(right, [r["input"] for r in own], paper, "#222222", "paper, other data", "s--")
    right.set_ylim(bottom=0)
    charts.tidy(right)
    right.set_xlabel("side of the input [voxels]", fontsize=charts.FONT)
    right.set_ylabel("L1 of tanh(10 chi) [0.001]", fontsize=charts.FONT)
    right.legend(fontsize=charts.FONT, frameon=False)
    return figure
