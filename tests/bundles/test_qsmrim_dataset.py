"""Tables of lesions, their batches and their folds."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from qsmrim_net.augment import LesionAugmentation
from qsmrim_net.cohort.source import load_cohort
from qsmrim_net.cohort.table import LesionTable
from qsmrim_net.dataset import LesionDataset, fold_tables, prepare_lesion_batch

from shared_transforms.errors import QMRIError

from .lesion_tables import SIZE, lesion_table

TABLE = lesion_table()


def same(first: LesionTable, second: LesionTable) -> bool:
    pairs = ((getattr(first, f.name), getattr(second, f.name)) for f in fields(LesionTable))
    return all(a.dtype == b.dtype and torch.equal(a.nan_to_num(-9), b.nan_to_num(-9)) for a, b in pairs)


def seen(dataset: LesionDataset) -> list[int]:
    """Rows of an epoch, recognised by their image."""
    images = torch.cat([dataset[i]["image"] for i in range(len(dataset))])
    return [int((TABLE.image == image).flatten(1).all(1).nonzero()) for image in images]


def test_a_table_comes_back_from_its_file(tmp_path: Path) -> None:
    TABLE.select(TABLE.subject < 5).save(tmp_path / "part.pt")
    found = LesionTable.load(tmp_path / "part.pt")
    assert same(found, TABLE.select(torch.arange(12)))
    assert (tmp_path / "part.pt").stat().st_size < 12 * 4 * (2 * 8 * 8 * 4 + 2 * 527 + 30) + 6000  # not the whole
    assert same(load_cohort(tmp_path / "part.pt", size=SIZE), found)


def test_parts_make_the_whole() -> None:
    parts = [TABLE.select(TABLE.subject == number) for number in TABLE.subjects()]
    assert same(LesionTable.concatenate(parts), TABLE)
    assert TABLE.rims_per_subject().tolist() == [int(part.label.sum()) for part in parts]


def test_files_that_are_no_table_are_refused(tmp_path: Path) -> None:
    with pytest.raises(QMRIError, match="no such file"):
        LesionTable.load(tmp_path / "none.pt")
    torch.save({"subject": torch.ones(3)}, tmp_path / "other.pt")
    with pytest.raises(QMRIError, match="LesionTable.save"):
        LesionTable.load(tmp_path / "other.pt")
    TABLE.save(tmp_path / "table.pt")
    with pytest.raises(QMRIError, match="patches of"):
        load_cohort(tmp_path / "table.pt", size=(24, 24, 8))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("label", TABLE.label[:-1]),
        ("features", TABLE.features.float()),
        ("raters", TABLE.label),
        ("image", TABLE.image[0]),
    ],
)
def test_tables_that_do_not_fit_are_refused(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=name):
        replace(TABLE, **{name: value})


@pytest.mark.parametrize("batch_size", [7, 48, 64])
def test_every_lesion_once_in_an_epoch(batch_size: int) -> None:
    dataset = LesionDataset(TABLE, batch_size)
    sizes = [len(dataset[i]["label"]) for i in range(len(dataset))]
    assert max(sizes) <= batch_size and max(sizes) - min(sizes) <= 1
    orders = [seen(dataset)]
    dataset.set_epoch(1)
    orders.append(seen(dataset))
    assert orders[0] != orders[1] and sorted(orders[0]) == sorted(orders[1]) == list(range(48))


def test_validation_keeps_order_and_patches() -> None:
    dataset = LesionDataset(TABLE, 20, shuffle=False)
    dataset.set_epoch(3)
    assert seen(dataset) == list(range(48))
    found = torch.cat([dataset[i]["radiomics"] for i in range(len(dataset))])
    assert found.dtype == torch.float32 and torch.equal(found.isnan().all(1), TABLE.status != 0)


def test_an_item_depends_on_seed_epoch_and_index_alone() -> None:
    def item(seed: int = 0, epoch: int = 1, index: int = 2, before: int = 0) -> torch.Tensor:
        dataset = LesionDataset(TABLE, 8, seed, LesionAugmentation())
        dataset.set_epoch(epoch)
        for k in range(before):
            dataset[k]
        return dataset[index]["image"]

    assert torch.equal(item(), item(before=4))
    assert not any(torch.equal(item(), other) for other in (item(seed=1), item(epoch=0), item(index=3)))


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_share_the_batches_of_one_process(world_size: int) -> None:
    one = LesionDataset(TABLE, 16, augmentation=LesionAugmentation())
    ranks = [
        LesionDataset(TABLE, 16, augmentation=LesionAugmentation(), rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    for index in range(len(one)):
        whole = one[index]
        for rank, dataset in enumerate(ranks):
            assert len(dataset) == len(one)
            part = dataset[index]
            assert torch.equal(part["label"], whole["label"][rank::world_size])
            assert torch.allclose(part["image"], whole["image"][rank::world_size], atol=1e-5)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [({"rank": 2, "world_size": 2}, "rank"), ({"batch_size": 1, "world_size": 2}, "batch_size")],
)
def test_batches_that_cannot_be_shared_are_refused(wrong: dict[str, int], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        LesionDataset(TABLE, **wrong)


def test_ranks_need_two_lesions_each_to_train_and_one_else() -> None:
    part = TABLE.select(torch.arange(3))
    with pytest.raises(ValueError, match="at least 4 lesions for 2 ranks, got 3"):
        LesionDataset(part, world_size=2)
    held_out = [LesionDataset(part, shuffle=False, rank=rank, world_size=2)[0]["image"] for rank in range(2)]
    assert [len(images) for images in held_out] == [2, 1]
    with pytest.raises(ValueError, match="at least 4 lesions for 4 ranks, got 3"):
        LesionDataset(part, shuffle=False, world_size=4)


def test_no_subject_is_in_two_folds() -> None:
    held_out = []
    for fold in range(4):
        training, held = fold_tables(TABLE, fold, folds=4, fold_seed=1)
        assert not set(training.subject.tolist()) & set(held.subject.tolist())
        assert len(training) + len(held) == len(TABLE) and len(held.subjects()) == 2
        held_out += held.subjects().tolist()
    assert sorted(held_out) == TABLE.subjects().tolist()


def test_all_lesions_train_and_new_ones_are_held_out() -> None:
    other = TABLE.select(torch.arange(5))
    training, held = fold_tables(TABLE, -1, new_cohort=lambda: other)
    assert training is TABLE and held is other
    with pytest.raises(ValueError, match="new_cohort"):
        fold_tables(TABLE, -1)
    with pytest.raises(ValueError, match="fold must be"):
        fold_tables(TABLE, 5)


def test_labels_are_given_to_the_network_in_training_alone() -> None:
    batch = LesionDataset(TABLE, 8)[0]
    image, label, positional, named = prepare_lesion_batch(batch, "cpu", training=True)
    assert positional == () and named["labels"] is label and image is batch["image"] and label.dtype == torch.int64
    assert prepare_lesion_batch(batch, "cpu")[3] == {"radiomics": batch["radiomics"]}
