"""One choice of the training changed at a time, each network trained briefly, with the parts of train.json."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser
from tqdm import tqdm

from shared_transforms.experiments import Row
from shared_transforms.simulation import Simulator

from ..network import OUTPUTS, STNet
from .bench import Bench
from .cohort import Subject, cohort, simulator_of
from .methods import network_method
from .scores import HYPOPERFUSED, pooled_dice

# What each variant changes of train.json; "untrained" is the default before training.
VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "untrained": {},
    "no physical loss": {"physics_weight": 0.0},
    "physical loss x 4": {"physics_weight": 0.2},
    "one output: CBV": {"outputs": ["CBV"]},
    "one output: CBF": {"outputs": ["CBF"], "physics_weight": 0.0},
    "one output: Tmax": {"outputs": ["Tmax"], "physics_weight": 0.0},
    "stride 2": {"stride": 2},
    "stride 4": {"stride": 4},
    "normal : lesion 1 : 1": {"lesion_ratio": 1.0},
    "normal : lesion 4 : 1": {"lesion_ratio": 4.0},
}
FIRST = 5000  # number of the first subject: of no other experiment
COLUMNS = ("cbv_mae", "cbf_mae", "tmax_mae", "dice", "lesion_tmax_mae")


def studies(
    bench: Bench,
    steps: int = 300,
    volumes: int = 8,
    subjects: int = 3,
    variants: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[Path]:
    """Train every variant for the same number of steps on the same examinations and compare the errors.

    Variants already in the table of the same recipe are kept: an interrupted run goes on.

    Args:
        bench: output folder, seed, and ``train_config``.
        steps: optimiser steps of each variant.
        volumes: examinations that the patches are cut from.
        subjects: of the test split, all with a stroke.
        variants: name to values of train.json; by default :data:`VARIANTS`.
    """
    steps, volumes, subjects = bench.pick((steps, volumes, subjects), (2, 1, 1))
    chosen = dict(variants or VARIANTS)
    recipe = f"{steps} steps, {volumes} examinations, seed {bench.seed}"
    rows = [row for row in _earlier(bench) if row["recipe"] == recipe and row["variant"] in chosen]
    done = {row["variant"] for row in rows}
    judged = list(cohort(bench, "test", subjects, subjects, FIRST))
    memory = Memory(simulator_of(bench, 0.7))
    notes = [
        f"SHORT trainings of {steps} steps each, patches of the same {volumes} examinations, one seed: no statement "
        "about long ones. Everything but what the name says is that of train.json, except the warm-up (a tenth of the "
        f"steps). Errors over the tissue of {subjects} subjects of the test split with a stroke, not calibrated: cbv "
        "[ml/100 g], cbf [ml/100 g/min], tmax [s]; dice of Tmax > 6 s; lesion_tmax_mae [s] where the truth exceeds "
        "6 s. *_over_default: ratio to the default. seconds_per_step: of training.",
    ]
    files: list[Path] = []
    for name, changes in tqdm(chosen.items(), "studies"):
        if name not in done:
            trained = 0 if name == "untrained" else steps
            network, seconds = train(bench, memory, changes, trained, max(1, steps), volumes)
            row = {"variant": name, "recipe": recipe, "seconds_per_step": seconds or None}
            rows.append({**row, **_errors(bench, network, judged)})
            files = bench.write("studies", _against_default(rows), notes)
    return files or bench.write("studies", _against_default(rows), notes)


@dataclass
class Memory:
    """A simulator that remembers its examinations: equal draws of the variants are simulated once.

    Attributes:
        simulator: what simulates.
        made: seed of the noise of a draw to what was simulated.
    """

    simulator: Simulator
    made: dict[int, dict[str, Any]] = field(default_factory=dict)

    def draw(self, generator: torch.Generator, n: int, split: str) -> Any:
        """As the simulator does."""
        return self.simulator.draw(generator, n, split)

    def simulate(self, drawn: Any) -> dict[str, Any]:
        """As the simulator does, or what it did."""
        key = int(drawn.acquisition.seed[0])
        if key not in self.made:
            self.made[key] = self.simulator.simulate(drawn)
        return self.made[key]


def train(
    bench: Bench, memory: Memory, changes: Mapping[str, Any], steps: int, schedule: int, volumes: int
) -> tuple[STNet, float]:
    """Train with the network, loss, optimiser, schedule and patches of the training's config.

    Args:
        bench: for seed, device and config.
        memory: the simulator.
        changes: values of the config.
        steps: optimiser steps.
        schedule: steps that the learning rate's schedule is made for.
        volumes: examinations in the pool.

    Returns:
        The network and the seconds for each step.
    """
    parser = ConfigParser()
    parser.read_config(str(bench.train_config))
    own = {
        "device": bench.device, "seed": bench.seed, "epochs": 1, "batches_per_epoch": schedule,
        "volumes_per_epoch": volumes, "warmup_steps": max(1, schedule // 10), "anatomy": bench.anatomy,
    }  # fmt: skip
    for name, value in {**own, **changes}.items():
        parser[name] = value
    torch.manual_seed(bench.seed)
    dataset = parser.get_parsed_content("train#dataset")
    dataset.simulator = memory
    network = parser.get_parsed_content("network").train()
    optimizer, scheduler, loss_of, inferer, clip = (
        parser.get_parsed_content(name)
        for name in ("optimizer", "lr_scheduler", "loss", "train#inferer", "gradient_clip")
    )
    for index in range(volumes if steps else 0):
        dataset.volume(index)  # before the clock starts
    begin = time.perf_counter()
    for step in range(steps):
        batch = dataset[step]
        optimizer.zero_grad(set_to_none=True)
        loss_of(inferer(batch["image"], network), batch["label"]).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), clip)
        optimizer.step()
        scheduler.step()
    return network.eval(), (time.perf_counter() - begin) / max(1, steps)


@torch.no_grad()
def _errors(bench: Bench, network: STNet, judged: Sequence[Subject]) -> Row:
    method = network_method("study", network, bench.inferer)
    found = torch.cat([method.estimate(subject) for subject in judged], 1)
    truth = torch.cat([subject.truth for subject in judged], 1)
    lesion = torch.cat([subject.lesion for subject in judged])
    row: Row = {"weights": sum(p.numel() for p in network.parameters())}
    for k, name in enumerate(network.outputs):
        error = (found[k] - truth[OUTPUTS.index(name)]).abs().double()
        row[f"{name.lower()}_mae"] = float(error.mean())
        if name == "Tmax":
            row["lesion_tmax_mae"] = float(error[lesion].mean())
            row["dice"] = pooled_dice(found[k] > HYPOPERFUSED, lesion)
    return row


def _earlier(bench: Bench) -> list[Row]:
    file = Path(bench.output_dir) / "results" / f"{bench.file_name('studies')}.json"
    return json.loads(file.read_text("utf-8"))["rows"] if file.is_file() else []


def _against_default(rows: Sequence[Row]) -> list[Row]:
    """Rows with the ratios of their errors to those of the default."""
    default = next((row for row in rows if row["variant"] == "default"), {})
    return [
        {
            **row,
            **{
                f"{name}_over_default": row[name] / default[name]
                for name in COLUMNS if name.endswith("mae") and row.get(name) and default.get(name)
            },
        }
        for row in rows
    ]  # fmt: skip
