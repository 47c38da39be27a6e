"""Simulated training data as a dataset of batches: drawn from a seed, simulated on the training device."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from ignite.engine import Engine, Events
from torch.utils.data import Dataset

from shared_transforms.anatomy import split_generator

__all__ = ["EpochSetter", "SimulationDataset", "Simulator", "prepare_simulated_batch"]


class Simulator(Protocol):
    """What a bundle's simulator offers: drawing apart from applying."""

    device: torch.device

    def draw(self, generator: torch.Generator, n: int, split: str) -> Any:
        """Parameters of ``n`` samples; everything random happens here."""

    def simulate(self, drawn: Any) -> dict[str, Any]:
        """The batch that belongs to the parameters; deterministic."""


class SimulationDataset(Dataset):
    """Batches of a simulator; item ``i`` of an epoch depends on (seed, epoch, i, rank, split) alone.

    Use it with ``DataLoader(dataset, batch_size=None, num_workers=0)``: a sample is a whole batch, made on the
    simulator's device.

    Args:
        simulator: object with ``draw`` and ``simulate``.
        batches: number of batches in an epoch.
        batch_size: samples in a batch.
        seed: seed of the run.
        split: ``"train"``, ``"val"`` or ``"test"``; their random streams are disjoint.
        rank: process of a distributed run; each gets samples of its own.
    """

    def __init__(
        self,
        simulator: Simulator,
        batches: int,
        batch_size: int,
        seed: int = 0,
        split: str = "train",
        rank: int = 0,
    ) -> None:
        if batches < 1 or batch_size < 1:
            raise ValueError(f"batches and batch_size must be at least 1, got {batches} and {batch_size}")
        self.simulator, self.batches, self.batch_size = simulator, batches, batch_size
        self.seed, self.split, self.rank, self.epoch = seed, split, rank, 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch [0, 1, ...] whose samples are given; validation keeps epoch 0."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.batches

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < self.batches:
            raise IndexError(index)
        generator = split_generator(self.seed, self.epoch, index, self.rank, self.split)
        with torch.no_grad():
            return self.simulator.simulate(self.simulator.draw(generator, self.batch_size, self.split))


class EpochSetter:
    """Handler that tells the training dataset its epoch, so that each epoch has samples of its own."""

    def __init__(self, dataset: SimulationDataset) -> None:
        self.dataset = dataset

    def attach(self, engine: Engine) -> None:
        """Register with the trainer."""
        engine.add_event_handler(Events.EPOCH_STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Epochs of Ignite count from 1, those of the dataset from 0."""
        self.dataset.set_epoch(engine.state.epoch - 1)


def prepare_simulated_batch(
    batch: dict[str, Any], device: torch.device | str | None = None, non_blocking: bool = False, **_: Any
) -> tuple[torch.Tensor, dict[str, torch.Tensor], tuple, dict[str, Any]]:
    """``prepare_batch`` of MONAI's engines: image, label, and the acquisition as keyword arguments of the network."""

    def move(value: Any) -> Any:
        return value.to(device, non_blocking=non_blocking) if isinstance(value, torch.Tensor) else value

    label = {name: move(value) for name, value in batch["label"].items()}
    return move(batch["image"]), label, (), {name: move(value) for name, value in batch["acquisition"].items()}
