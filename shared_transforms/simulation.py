"""Simulated training data as a dataset of batches: drawn from a seed, simulated on the training device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from ignite.engine import Engine, Events
from torch.utils.data import Dataset

from shared_transforms.anatomy import split_generator

__all__ = ["EpochSetter", "PatchPoolDataset", "SimulationDataset", "Simulator", "prepare_simulated_batch"]


class Simulator(Protocol):
    """What a bundle's simulator offers: drawing apart from applying."""

    device: torch.device

    def draw(self, generator: torch.Generator, n: int, split: str) -> Any:
        """Parameters of ``n`` samples; everything random happens here."""

    def simulate(self, drawn: Any) -> dict[str, Any]:
        """The batch that belongs to the parameters; deterministic."""


class SimulationDataset(Dataset):
    """Batches of a simulator; item ``i`` of an epoch depends on (seed, epoch, i, split) alone.

    Use it with ``DataLoader(dataset, batch_size=None, num_workers=0)``: a sample is a whole batch, made on the
    simulator's device. Each process of a distributed run has its part of it, samples ``rank``, ``rank + world_size``,
    ...: together they have what one process has, however many they are.

    Args:
        simulator: object with ``draw`` and ``simulate``.
        batches: number of batches in an epoch.
        batch_size: samples in a batch, of all processes together.
        seed: seed of the run.
        split: ``"train"``, ``"val"`` or ``"test"``; their random streams are disjoint.
        rank: process of a distributed run.
        world_size: number of processes.

    Raises:
        ValueError: where a number is out of its range; a batch of fewer samples than processes.
    """

    def __init__(
        self,
        simulator: Simulator,
        batches: int,
        batch_size: int,
        seed: int = 0,
        split: str = "train",
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if batches < 1 or batch_size < 1:
            raise ValueError(f"batches and batch_size must be at least 1, got {batches} and {batch_size}")
        self.simulator, self.batches, self.batch_size = simulator, batches, batch_size
        self.seed, self.split, self.epoch = seed, split, 0
        self.own = _own_part(batch_size, rank, world_size)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch [0, 1, ...] whose samples are given; validation keeps epoch 0."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.batches

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < self.batches:
            raise IndexError(index)
        generator = split_generator(self.seed, self.epoch, index, split=self.split)
        with torch.no_grad():
            batch = self.simulator.simulate(self.simulator.draw(generator, self.batch_size, self.split))
        label = {name: values[self.own] for name, values in batch["label"].items()}
        return batch | {"image": batch["image"][self.own], "label": label}


class PatchPoolDataset(Dataset):
    """Batches of patches cut from a pool of whole simulated volumes; use it as :class:`SimulationDataset`.

    What reaches over a whole volume, as a dipole's field does, is simulated once for many patches. The volumes of a
    pool are simulated one after the other when a batch first needs them and kept until the pool changes. An item
    depends on (seed, epoch, i, split) alone, and not on which items were asked for before; of its patches each process
    of a distributed run cuts its own, ``rank``, ``rank + world_size``, ...

    Args:
        simulator: object with ``draw`` and ``simulate``; its samples are volumes ``[n, C, X, Y, Z]`` with the labels
            ``parameters`` and ``mask`` ``[n, 1, X, Y, Z]``.
        volumes: number of volumes in a pool.
        batches: number of batches in an epoch.
        batch_size: patches in a batch, of all processes together.
        patch_size: sides of the patches of the input [voxels]; one number for cubes.
        crop: voxels by which the patches of the label are smaller on both sides; one number, or one for each axis.
        seed: seed of the run.
        split: ``"train"``, ``"val"`` or ``"test"``; their random streams are disjoint.
        rank: process of a distributed run.
        world_size: number of processes.
        pool_epochs: epochs that a pool serves.
        background_share: share of patches whose middle lies anywhere in the volume, not in the mask.
        flip: flip patches along every axis and exchange x with y at random: with B0 along z and cubic voxels, or for
            square pixels without B0, the same physics.
        labels: which labels are cut out.
        focus: label ``[n, 1, X, Y, Z]`` of rare voxels in whose midst a share of the patches lies, where the volume has
            any.
        focus_share: that share.

    Raises:
        ValueError: where a number or a share is out of its range, a batch has fewer patches than processes, or patches
            to be turned are not square.
    """

    def __init__(
        self,
        simulator: Simulator,
        volumes: int,
        batches: int,
        batch_size: int,
        patch_size: int | Sequence[int] = 64,
        crop: int | Sequence[int] = 8,
        seed: int = 0,
        split: str = "train",
        rank: int = 0,
        world_size: int = 1,
        pool_epochs: int = 1,
        background_share: float = 0.1,
        flip: bool = True,
        labels: Sequence[str] = ("parameters", "mask"),
        focus: str | None = None,
        focus_share: float = 0.0,
    ) -> None:
        from monai.utils import ensure_tuple_rep  # here: MONAI takes seconds to import

        if min(volumes, batches, batch_size, pool_epochs) < 1:
            raise ValueError(
                "volumes, batches, batch_size and pool_epochs must be at least 1, got "
                f"{volumes}, {batches}, {batch_size} and {pool_epochs}"
            )
        self.patch_size, self.crop = ensure_tuple_rep(patch_size, 3), ensure_tuple_rep(crop, 3)
        if any(c < 0 or p <= 2 * c for p, c in zip(self.patch_size, self.crop, strict=True)):
            raise ValueError(f"patch_size must be more than twice crop >= 0, got {patch_size} and {crop}")
        if flip and (self.patch_size[0] != self.patch_size[1] or self.crop[0] != self.crop[1]):
            raise ValueError(f"patches to be turned must be square along x and y, got {patch_size} and {crop}")
        for name, share in (("background_share", background_share), ("focus_share", focus_share)):
            if not 0 <= share <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {share}")
        self.simulator, self.volumes, self.batches, self.batch_size = simulator, volumes, batches, batch_size
        self.pool_epochs, self.focus, self.focus_share = pool_epochs, focus, focus_share
        self.seed, self.split, self.epoch = seed, split, 0
        self.own = _own_part(batch_size, rank, world_size)
        self.background_share, self.flip, self.labels = background_share, flip, tuple(labels)
        self._pool: dict[int, dict[str, Any]] = {}

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch [0, 1, ...] whose samples are given; validation keeps epoch 0."""
        if epoch // self.pool_epochs != self.epoch // self.pool_epochs:
            self._pool.clear()
        self.epoch = epoch

    def __len__(self) -> int:
        return self.batches

    def volume(self, index: int) -> dict[str, Any]:
        """A volume of the pool: what the simulator gives for it, the voxels ``inside`` its mask and in ``focus``."""
        if index not in self._pool:
            pool = self.epoch // self.pool_epochs
            generator = split_generator(self.seed, pool, index, split=self.split)
            with torch.no_grad():
                sample = self.simulator.simulate(self.simulator.draw(generator, 1, self.split))
            mask = sample["label"]["mask"][0, 0]
            kept = {name: sample["label"][name][0] for name in self.labels}
            self._pool[index] = {
                "image": sample["image"][0],
                "label": kept,
                "inside": _voxels(mask),
                "focus": _voxels(sample["label"][self.focus][0, 0] if self.focus else mask[:0]),
            }
        return self._pool[index]

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < self.batches:
            raise IndexError(index)
        # Numbers from a million on: the streams of the places never meet those of the volumes.
        generator = split_generator(self.seed, self.epoch, _PLACES + index, split=self.split)
        chosen = torch.randint(self.volumes, (self.batch_size,), generator=generator).tolist()
        places = torch.rand((self.batch_size, 5), generator=generator, dtype=torch.float64)
        # Drawn only where it is used: the patches of a pool without focus stay what they were.
        focused = torch.zeros(self.batch_size, dtype=torch.bool)
        if self.focus is not None:
            focused = torch.rand(self.batch_size, generator=generator) < self.focus_share
        turns = torch.rand((self.batch_size, 4), generator=generator) < 0.5
        own = list(zip(chosen, places, focused, turns, strict=True))[self.own]
        patches = [self._patch(self.volume(v), *at) for v, *at in own]
        return {
            "image": torch.stack([image for image, _ in patches]),
            "label": {name: torch.stack([label[name] for _, label in patches]) for name in self.labels},
            "acquisition": {},
        }

    def _patch(
        self, volume: dict[str, Any], place: torch.Tensor, focused: torch.Tensor, turn: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """One patch of the image and the smaller ones of the labels."""
        size = volume["image"].shape[1:]
        if any(count < side for count, side in zip(size, self.patch_size, strict=True)):
            raise ValueError(f"patch_size must be at most the sides of the volumes {tuple(size)}")
        voxels = volume["focus"] if focused and len(volume["focus"]) else volume["inside"]
        if (place[0] < self.background_share and not focused) or not len(voxels):
            middle = [int(p * count) for p, count in zip(place[1:4], size, strict=True)]
        else:
            flat = int(voxels[min(int(place[4] * len(voxels)), len(voxels) - 1)])
            middle = [flat // (size[1] * size[2]), flat // size[2] % size[1], flat % size[2]]
        first = [
            min(max(m - side // 2, 0), count - side)
            for m, side, count in zip(middle, self.patch_size, size, strict=True)
        ]
        inner = [side - 2 * crop for side, crop in zip(self.patch_size, self.crop, strict=True)]
        start = [f + crop for f, crop in zip(first, self.crop, strict=True)]
        image = _cut(volume["image"], first, self.patch_size)
        label = {name: _cut(values, start, inner) for name, values in volume["label"].items()}
        if self.flip:
            image, label = _turned(image, turn), {name: _turned(values, turn) for name, values in label.items()}
        return image, label


_PLACES = 1_000_000


def _own_part(batch_size: int, rank: int, world_size: int) -> slice:
    """The samples of a batch that a process has."""
    if not 0 <= rank < world_size:
        raise ValueError(f"rank must be from 0 to world_size - 1, got {rank} of {world_size}")
    if batch_size < world_size:
        raise ValueError(f"batch_size, of all processes together, must be at least {world_size}, got {batch_size}")
    return slice(rank, None, world_size)


def _voxels(mask: torch.Tensor) -> torch.Tensor:
    """Flat indices ``[M]`` of the voxels of a mask."""
    return mask.flatten().nonzero().squeeze(1).to(torch.int32)


def _cut(values: torch.Tensor, first: Sequence[int], sides: Sequence[int]) -> torch.Tensor:
    """Box ``[C, *sides]`` of a volume ``[C, X, Y, Z]``."""
    (x, y, z), (a, b, c) = first, sides
    return values[:, x : x + a, y : y + b, z : z + c]


def _turned(values: torch.Tensor, turn: torch.Tensor) -> torch.Tensor:
    """Flip x, y, z where the first three are true; exchange x with y where the fourth is."""
    values = values.flip([k + 1 for k in range(3) if turn[k]])
    return values.transpose(1, 2) if turn[3] else values


class EpochSetter:
    """Handler that tells the training dataset its epoch, so that each epoch has samples of its own."""

    def __init__(self, dataset: SimulationDataset | PatchPoolDataset) -> None:
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
