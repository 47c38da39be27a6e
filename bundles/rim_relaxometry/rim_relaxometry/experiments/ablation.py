"""One design choice changed at a time, each network trained briefly and alike."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from shared_transforms.experiments import Row
from shared_transforms.simulation import SimulationDataset

from ..loss import StepwiseLoss
from ..network import RecurrentInferenceMachine
from ..protocols import PROTOCOLS
from ..simulator import RelaxometrySimulator
from .bench import Bench
from .held_out import TISSUES, noisy
from .methods import network_method
from .scenes import Scene, acquisition_of, brains
from .statistics import accuracy

# What each variant changes of the default; "untrained" is the default before training.
VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "untrained": {},
    "start: flat (paper)": {"start": "flat"},
    "gradient: raw (paper)": {"gradient": "raw"},
    "domain: linear (paper)": {"domain": "linear"},
    "steps: 6 (paper)": {"steps": 6},
    "features: 36 (paper)": {"features": 36},
    "gru_kernel: 3": {"gru_kernel": 3},
    "activation: relu (package)": {"activation": "relu"},
    "all as in the paper": {
        "start": "flat", "gradient": "raw", "domain": "linear", "steps": 6, "features": 36,
    },
}  # fmt: skip
WARM_UP = 20  # steps


def ablation(
    bench: Bench,
    steps: int = 300,
    learning_rate: float = 2e-3,
    batch_size: int = 4,
    patch: int = 64,
    n_brains: int = 3,
    snr: float = 10.0,
    variants: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[Path]:
    """Train every variant for the same number of steps on the same batches and compare the errors of T1.

    Variants already in the table of the same recipe are kept: an interrupted run goes on.

    Args:
        bench: estimators and output folder.
        steps: optimiser steps of each variant.
        learning_rate: at its peak; cosine to 1 %.
        batch_size: patches in a step.
        patch: their height and width [pixels].
        n_brains: number of heads of the test split.
        snr: signal-to-noise ratio of the comparison, Gaussian noise, N31.
        variants: name to arguments of the network; by default :data:`VARIANTS`.
    """
    steps, n_brains = bench.pick((steps, n_brains), (3, 1))
    chosen = dict(variants or VARIANTS)
    recipe = f"{steps} steps, lr {learning_rate:g}, batch {batch_size} x {patch} x {patch}, seed {bench.seed}"
    rows = [
        row for row in _earlier(bench) if row["recipe"] == recipe and row["snr"] == snr and row["variant"] in chosen
    ]
    done = {row["variant"] for row in rows}
    scene = brains(
        "T1", n_brains, bench.seed + 5, table_means=True, texture=1.0, anatomy=bench.anatomy, device=bench.device,
        size=bench.size,
    )  # fmt: skip
    simulator = RelaxometrySimulator(device=bench.device, size=(patch, patch), anatomy=bench.anatomy)
    notes = [
        f"SHORT trainings of {steps} steps each, same batches and same seed, so no statement about long ones; one "
        "seed. Relative errors of T1 [%] on held-out heads at the means of table 1 with texture, Gaussian noise, "
        "N31. seconds_per_step: of training, simulation included.",
    ]
    files: list[Path] = []
    for name, changes in tqdm(chosen.items(), desc="ablation"):
        if name in done:
            continue
        torch.manual_seed(bench.seed)
        network = RecurrentInferenceMachine("T1", PROTOCOLS["T1"]["N31"], **changes).to(bench.device)
        trained = 0 if name == "untrained" else steps
        dataset = SimulationDataset(simulator, max(trained, 1), batch_size, bench.seed)
        loss, seconds = train(network, dataset, trained, learning_rate)
        common = {
            "variant": name,
            "recipe": recipe,
            "snr": snr,
            "weights": sum(p.numel() for p in network.parameters()),
        }
        rows += [
            {**common, "final_loss": loss, "seconds_per_step": seconds, **row}
            for row in _rows(bench, network, scene, snr)
        ]
        files = bench.write("ablation", _against_default(rows), notes)
    return files or bench.write("ablation", _against_default(rows), notes)


def _earlier(bench: Bench) -> list[Row]:
    file = Path(bench.output_dir) / "results" / f"{bench.file_name('ablation')}.json"
    return json.loads(file.read_text(encoding="utf-8"))["rows"] if file.is_file() else []


def train(
    network: RecurrentInferenceMachine, dataset: SimulationDataset, steps: int, peak: float
) -> tuple[float, float]:
    """Train with Adam, warm-up and cosine, gradients clipped at norm 1, as train.json does.

    Returns:
        Mean loss of the last tenth of the steps and seconds for each step; NaN without steps.
    """
    if steps == 0:
        return math.nan, math.nan
    optimizer = torch.optim.Adam(network.parameters(), lr=peak)

    def factor(step: int) -> float:
        rise = min(1.0, (step + 1) / WARM_UP)
        return rise * (0.01 + 0.99 * 0.5 * (1.0 + math.cos(math.pi * min(1.0, step / steps))))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    loss_of = StepwiseLoss(network.names)
    network.train()
    losses, begin = [], time.perf_counter()
    for step in range(steps):
        batch = dataset[step]
        loss = loss_of(network(batch["image"], **batch["acquisition"]), batch["label"])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
    last = losses[-max(1, steps // 10) :]
    return sum(last) / len(last), (time.perf_counter() - begin) / steps


def _rows(bench: Bench, network: RecurrentInferenceMachine, scene: Scene, snr: float) -> list[Row]:
    acquisition: dict[str, Any] = acquisition_of("T1", "N31", bench.device)
    image = noisy(bench, scene, acquisition, snr, "gaussian")
    method = network_method("rim", network.eval())
    estimate = method.estimate(image, {**acquisition, "noise": "gaussian"}, scene.inside)[:, 2]
    rows = []
    for tissue in TISSUES:
        mask = scene.tissue(tissue) & scene.inside
        found = accuracy(estimate, scene.parameters[:, 2], mask, bench.seed)
        rows += [{"tissue": tissue, **found}] if found["voxels"] else []
    return rows


def _against_default(rows: list[Row]) -> list[Row]:
    """Rows with the ratio of their RMSE to that of the default."""
    default = {row["tissue"]: row["rmse"] for row in rows if row["variant"] == "default"}
    return [{**row, "rmse_over_default": row["rmse"] / default.get(row["tissue"], math.nan)} for row in rows]
