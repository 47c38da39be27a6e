"""Does a U-Net learn the task? Two networks, each by two recipes, trained briefly on the same batches."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from monai.bundle import ConfigParser
from torch import Tensor, nn
from torch.utils.data import Dataset
from tqdm import tqdm

from shared_transforms.experiments import Row, charts
from shared_transforms.metrics import normalised_mae

from ..network import DeepSPIO
from .bench import Bench
from .scores import mean_row

# What each variant changes of train.json. The recipe of the paper: a linear output, and absolute relative deviations
# of the wavelet coefficients or, for a network that knows none, of the image.
VARIANTS: dict[str, dict[str, Any]] = {
    "DeepSPIO": {},
    "U-Net": {"network": "UNetComparator"},
    "DeepSPIO, paper's recipe": {"compress": False, "loss_compressed": 0.0, "loss_absolute": 1.0},
    "U-Net, paper's recipe": {
        "network": "UNetComparator", "compress": False, "loss_compressed": 0.0, "loss_image": 1.0,
    },
}  # fmt: skip
STYLES = {
    "DeepSPIO": ("#D55E00", "o-"), "U-Net": ("#009E73", "o-"), "DeepSPIO, paper's recipe": ("#E69F00", "s--"),
    "U-Net, paper's recipe": ("#56B4E9", "s--"),
}  # fmt: skip
LEARNT = 0.95  # NMAE of a network that has learnt something: the zero map has 1


@dataclass
class Run:
    """One variant under training.

    Attributes:
        network: what is trained.
        optimizer: its optimiser.
        scheduler: of the learning rate.
        loss: of the network's output and the label.
        seconds: spent on its steps.
        curve: step to NMAE of the validation images ``[n]``.
        losses: of the steps.
    """

    network: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: Any
    loss: nn.Module
    seconds: float = 0.0
    curve: dict[int, Tensor] = field(default_factory=dict)
    losses: list[float] = field(default_factory=list)


def convergence(
    bench: Bench,
    train_config: str | Path,
    steps: int = 1000,
    every: int = 50,
    width: int = 8,
    crop: int = 96,
    batch_size: int = 8,
    validation_batches: int = 4,
    variants: Sequence[str] = tuple(VARIANTS),
) -> list[Path]:
    """Train every variant on the same simulated batches and follow the NMAE of the same validation images.

    Args:
        bench: seed, device and output folder.
        train_config: file of the training whose simulator, data sets, loss, optimiser, schedule and inferer are taken.
        steps: optimiser steps of each variant.
        every: steps between validations.
        width: of the networks.
        crop: pixels of a side of the windows.
        batch_size: images in a step.
        validation_batches: of so many images each, without noise.
        variants: some of :data:`VARIANTS`.
    """
    steps, every, validation_batches = bench.pick((steps, every, validation_batches), (4, 2, 1))
    settings = {
        "device": bench.device, "seed": bench.seed, "epochs": 1, "batches_per_epoch": steps, "crop": crop,
        "batch_size": batch_size, "validation_batches": validation_batches, "warmup_steps": max(1, steps // 10),
        "width": width, **({"anatomy": bench.anatomy} if bench.anatomy else {}),
        **bench.pick({}, {"size": 64, "crop": 32, "batch_size": 2, "width": 2}),
    }  # fmt: skip
    runs = {name: start(train_config, settings, VARIANTS[name]) for name in variants}
    parts = parser_of(train_config, settings)
    train, validation, inferer, clip = (
        parts.get_parsed_content(name)
        for name in ("train#dataset", "validate#dataset", "train#inferer", "gradient_clip")
    )
    held_out = [validation[number] for number in range(validation_batches)]
    for step in tqdm(range(steps + 1), "convergence"):
        if step % every == 0 or step == steps:
            for run in runs.values():
                run.curve[step] = errors_of(run.network, inferer, held_out)
        if step < steps:
            train_step(runs.values(), train, step, inferer, clip)
    rows = [_row(name, run, bench.seed) for name, run in runs.items()]
    _say(rows)
    notes = [
        f"SHORT trainings of {steps} steps of {batch_size} windows of {crop} pixels, width {width}, one seed, equal "
        "batches and learning rates for all; everything but network, output and loss is that of train.json, but the "
        "warm-up (a tenth of the steps). DeepSPIO, U-Net: output and loss of this bundle. Paper's recipe: linear "
        "output and absolute relative deviations, for DeepSPIO of the wavelet coefficients, for the U-Net of the image "
        "(NMAE).",
        f"nmae: of {len(held_out) * batch_size} validation windows without noise after the last step, with its 95 % "
        "interval over the windows; nmae_best: the least of all validations; nmae_half: after half of the steps. The "
        f"zero map has 1. first_below: first validated step with a mean below {LEARNT:g}. A U-Net that learns here is "
        "no proof that the authors' did, nor one that does not that it cannot: theirs is not public.",
    ]
    files = bench.write("convergence", rows, notes)
    curves = [
        {"variant": name, "step": step, "nmae": float(errors.mean())}
        for name, run in runs.items() for step, errors in run.curve.items()
    ]  # fmt: skip
    files += bench.write("convergence_curves", curves, notes[:1])
    return [*files, bench.save_figure("convergence", curves_figure(runs))]


def train_step(runs: Any, data: Dataset, step: int, inferer: Any, clip: float) -> None:
    """One step of every run on the same batch."""
    batch = data[step]
    for run in runs:
        begin = time.perf_counter()
        run.network.train()
        run.optimizer.zero_grad(set_to_none=True)
        loss = run.loss(inferer(batch["image"], run.network), batch["label"])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(run.network.parameters(), clip)
        run.optimizer.step()
        run.scheduler.step()
        run.losses.append(float(loss.detach()))
        run.seconds += time.perf_counter() - begin


@torch.no_grad()
def errors_of(network: nn.Module, inferer: Any, batches: Sequence[Mapping[str, Any]]) -> Tensor:
    """NMAE of each image of the batches ``[n]``."""
    network.eval()
    return torch.cat([normalised_mae(inferer(b["image"], network), b["label"]["parameters"]).cpu() for b in batches])


def parser_of(train_config: str | Path, settings: Mapping[str, Any]) -> ConfigParser:
    """The training's config with other values.

    Raises:
        ValueError: for a value that it does not have.
    """
    parser = ConfigParser()
    parser.read_config(str(train_config))
    for name, value in settings.items():
        if name not in parser:
            raise ValueError(f"train_config must have the value {name!r}, got a file without it")
        parser[name] = value
    return parser


def start(train_config: str | Path, settings: Mapping[str, Any], changes: Mapping[str, Any]) -> Run:
    """Network, optimiser, schedule and loss of a variant, from equal seeds."""
    values = dict(changes)
    network, compress = values.pop("network", "DeepSPIO"), values.pop("compress", True)
    parser = parser_of(train_config, {**settings, **values})
    definition = {"_target_": f"{DeepSPIO.__module__}.{network}", "width": "@width", "compress": compress}
    parser["network_def"] = definition
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings["seed"])
        found = parser.get_parsed_content("network")
    return Run(found, *(parser.get_parsed_content(name) for name in ("optimizer", "lr_scheduler", "loss")))


def _row(name: str, run: Run, seed: int) -> Row:
    means = {step: float(errors.mean()) for step, errors in run.curve.items()}
    last = max(means)
    return {
        "variant": name, "weights": sum(p.numel() for p in run.network.parameters()),
        "steps": last, **mean_row(run.curve[last], seed), "nmae_best": min(means.values()),
        "nmae_half": means[min(means, key=lambda step: abs(step - last / 2))],
        "first_below": next((step for step, value in means.items() if value < LEARNT), None),
        "seconds_per_step": run.seconds / max(1, len(run.losses)),
    }  # fmt: skip


def _say(rows: Sequence[Row]) -> None:
    """What was found, whatever it is."""
    for row in rows:
        learnt = f"below {LEARNT:g} from step {row['first_below']}" if row["first_below"] else f"never below {LEARNT:g}"
        print(f"  {row['variant']}: NMAE {row['nmae']:.3f} after {row['steps']} steps, {learnt}", flush=True)


def curves_figure(runs: Mapping[str, Run]) -> Figure:
    """NMAE of the validation images over the steps."""
    figure = charts.new_figure(6.0, 3.6)
    axis = figure.subplots()
    axis.axhline(1.0, color="#999999", lw=0.8, ls="--")
    for name, run in runs.items():
        colour, style = STYLES[name]
        charts.line(axis, list(run.curve), [float(e.mean()) for e in run.curve.values()], colour, name, style)
    charts.tidy(axis)
    axis.set_ylim(bottom=0.0, top=2.0)
    axis.set_xlabel("step", fontsize=charts.FONT)
    axis.set_ylabel("NMAE of validation images", fontsize=charts.FONT)
    axis.annotate("zero map", (0.99, 1.01), xycoords=("axes fraction", "data"), ha="right", fontsize=charts.FONT - 2)
    figure.legend(loc="outside lower center", ncols=2, fontsize=charts.FONT, frameon=False)
    return figure
