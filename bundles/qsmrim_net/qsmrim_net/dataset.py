"""Batches of lesions, and the lesions of a fold."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from qsmrim_net.augment import LesionAugmentation
from qsmrim_net.cohort.table import LesionTable
from qsmrim_net.folds import stratified_folds
from shared_transforms.anatomy import split_generator

__all__ = ["LesionDataset", "fold_tables", "prepare_lesion_batch"]

_ORDER = 1_000_000  # number of the stream that shuffles: none of a batch


class LesionDataset(Dataset):
    """Whole batches of lesions; an item depends on (seed, epoch, index) alone, and each rank has its part of it.

    Use it with ``DataLoader(dataset, batch_size=None)``, and with
    :class:`~shared_transforms.simulation.EpochSetter`. Every lesion comes once in an epoch; the batches differ by one
    lesion at most. The lesions of all ranks together are the batch of one process, augmented alike.

    Args:
        table: the lesions.
        batch_size: largest number of lesions in a batch, over all ranks.
        seed: seed of the run.
        augmentation: what is done to the patches; None leaves them as they are.
        shuffle: a new order in each epoch, else that of the table.
        rank: process of a distributed run.
        world_size: number of processes.
        device: where the lesions are kept and augmented.

    Raises:
        ValueError: no lesion, or a batch of fewer lesions than one for each rank; with ``shuffle``, which is to train,
            than two for each of several ranks (batch normalisation).
    """

    def __init__(
        self,
        table: LesionTable,
        batch_size: int = 64,
        seed: int = 0,
        augmentation: LesionAugmentation | None = None,
        shuffle: bool = True,
        rank: int = 0,
        world_size: int = 1,
        device: torch.device | str = "cpu",
    ) -> None:
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must be from 0 to world_size - 1, got {rank} of {world_size}")
        if batch_size < 1 or not len(table):
            raise ValueError(f"batch_size and the number of lesions must be at least 1, got {batch_size}, {len(table)}")
        least = 2 * world_size if shuffle else world_size
        if world_size > 1 and len(table) // -(-len(table) // batch_size) < least:
            raise ValueError(
                f"every batch must hold at least {least} lesions for {world_size} ranks, got {len(table)} "
                f"lesions and batch_size {batch_size}"
            )
        self.table, self.batch_size, self.seed = table, batch_size, seed
        self.augmentation, self.shuffle, self.rank, self.world_size = augmentation, shuffle, rank, world_size
        self.device, self.epoch = torch.device(device), 0
        # What the network takes, where it computes.
        self._image = table.image.to(self.device)
        self._radiomics = table.features.float().to(self.device)
        self._label = table.label.to(self.device)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch [0, 1, ...], with an order and augmentations of its own."""
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-len(self.table) // self.batch_size)

    def rows(self, index: int) -> Tensor:
        """Rows of the table in batch ``index`` of this epoch, of all ranks together."""
        order = torch.arange(len(self.table))
        if self.shuffle:
            generator = split_generator(self.seed, self.epoch, _ORDER)
            order = order[torch.randperm(len(order), generator=generator)]
        return order.tensor_split(len(self))[index]

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        own = slice(self.rank, None, self.world_size)
        rows = self.rows(index)
        chosen = rows[own].to(self.device)
        image = self._image[chosen]
        if self.augmentation is not None:
            drawn = self.augmentation.draw(split_generator(self.seed, self.epoch, index), len(rows))
            image = self.augmentation.apply(image, drawn.select(own))
        return {"image": image, "radiomics": self._radiomics[chosen], "label": self._label[chosen]}


def fold_tables(
    table: LesionTable,
    fold: int,
    folds: int = 5,
    fold_seed: int = 0,
    new_cohort: Callable[[], LesionTable] | None = None,
) -> tuple[LesionTable, LesionTable]:
    """Lesions to train with and lesions held out; no subject has lesions in both.

    Args:
        table: the whole cohort.
        fold: number of the held-out fold; -1 trains with all.
        folds: number of folds.
        fold_seed: seed of the subjects' folds.
        new_cohort: makes the lesions that are held out where all of the table's train.

    Returns:
        Training lesions and held-out lesions.

    Raises:
        ValueError: a fold that there is not, or -1 without ``new_cohort``.
    """
    if fold == -1:
        if new_cohort is None:
            raise ValueError("fold -1 trains with all lesions and needs new_cohort to hold out, got None")
        return table, new_cohort()
    if not 0 <= fold < folds:
        raise ValueError(f"fold must be from 0 to {folds - 1}, or -1 for all, got {fold}")
    of_subject = torch.as_tensor(stratified_folds(table.rims_per_subject().numpy(), folds, fold_seed))
    held_out = of_subject[torch.searchsorted(table.subjects(), table.subject)] == fold
    return table.select(~held_out), table.select(held_out)


def prepare_lesion_batch(
    batch: dict[str, Tensor],
    device: torch.device | str | None = None,
    non_blocking: bool = False,
    training: bool = False,
    **_: Any,
) -> tuple[Tensor, Tensor, tuple, dict[str, Tensor]]:
    """``prepare_batch`` of MONAI's engines: image, label, and radiomics as an argument of the network.

    Args:
        batch: item of :class:`LesionDataset`.
        device: where to.
        non_blocking: whether the copy may go on behind.
        training: the network is given the labels too, for its oversampling.
    """
    moved = {name: value.to(device, non_blocking=non_blocking) for name, value in batch.items()}
    named = {"radiomics": moved["radiomics"]} | ({"labels": moved["label"]} if training else {})
    return moved["image"], moved["label"], (), named
