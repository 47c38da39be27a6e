"""Patches from a pool of volumes: every item from its numbers alone, cut where it says, turned as a whole."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from shared_transforms.simulation import EpochSetter, PatchPoolDataset, SimulationDataset, prepare_simulated_batch

SIZE = (20, 24, 28)


@dataclass
class Ramp:
    """Volumes that say where each of their voxels lies, and count how often one is made."""

    device: torch.device = torch.device("cpu")
    made: int = 0
    empty: bool = False

    def draw(self, generator: torch.Generator, n: int, split: str) -> torch.Tensor:
        return torch.rand((n,), generator=generator)

    def simulate(self, drawn: torch.Tensor) -> dict[str, Any]:
        self.made += 1
        place = torch.stack(torch.meshgrid(*(torch.arange(float(s)) for s in SIZE), indexing="ij"))
        place = place.expand(len(drawn), *place.shape)
        number = drawn.view(-1, 1, 1, 1, 1).expand(-1, 1, *SIZE)
        mask = torch.zeros((len(drawn), 1, *SIZE), dtype=torch.bool)
        mask[..., 9:12, 11:13, 13:15] = not self.empty
        label = {"parameters": place[:, :1], "mask": mask, "place": place, "sigma": number}
        return {"image": torch.cat([place, number], 1), "label": label, "acquisition": {"voxel_size": 1.0}}


def _dataset(simulator: Ramp | None = None, **options: Any) -> PatchPoolDataset:
    options = {"volumes": 3, "batches": 8, "batch_size": 4, "patch_size": 8, "crop": 2, "seed": 1} | options
    return PatchPoolDataset(simulator or Ramp(), **options)


def _images(**options: Any) -> SimulationDataset:
    return SimulationDataset(Ramp(), 8, 4, seed=1, **options)


def _same(first: dict[str, Any], second: dict[str, Any]) -> bool:
    return torch.equal(first["image"], second["image"]) and all(
        torch.equal(values, second["label"][name]) for name, values in first["label"].items()
    )


def test_items_do_not_depend_on_what_was_asked_before() -> None:
    """A run that is killed in epoch 4 and goes on sees what an uninterrupted run sees."""
    uninterrupted = _dataset()
    seen = {}
    for epoch in range(5):
        uninterrupted.set_epoch(epoch)
        seen[epoch] = [uninterrupted[i] for i in range(len(uninterrupted))]
    resumed = _dataset()
    resumed.set_epoch(4)
    for i in (5, 6, 7, 0):
        assert _same(resumed[i], seen[4][i])
    assert not _same(seen[3][0], seen[4][0])


@pytest.mark.parametrize("other", [{"seed": 2}, {"split": "val"}, {"split": "test"}])
def test_seeds_and_splits_differ(other: dict[str, Any]) -> None:
    first, second = _dataset()[0], _dataset(**other)[0]
    numbers = [set(item["image"][:, 3].flatten().tolist()) for item in (first, second)]
    assert not numbers[0] & numbers[1]


@pytest.mark.parametrize("world_size", [2, 3])
@pytest.mark.parametrize("make", [_dataset, _images])
def test_processes_share_the_batches_of_one(make: Callable[..., Any], world_size: int) -> None:
    """However many they are; batches of four among three are shared unequally."""
    whole = make()
    parts = [make(rank=rank, world_size=world_size) for rank in range(world_size)]
    for epoch in (0, 1):
        for dataset in (whole, *parts):
            dataset.set_epoch(epoch)
        for i in range(3):
            batch = whole[i]
            for rank, part in enumerate(parts):
                own = slice(rank, None, world_size)
                expected = {
                    "image": batch["image"][own], "label": {name: v[own] for name, v in batch["label"].items()},
                }  # fmt: skip
                assert _same(part[i], expected)


def test_a_pool_is_made_once_and_serves_its_epochs() -> None:
    simulator = Ramp()
    dataset = _dataset(simulator, pool_epochs=2)
    seen: list[set[float]] = []
    for epoch in range(4):
        dataset.set_epoch(epoch)
        items = [dataset[i] for i in range(len(dataset))]
        seen.append({float(v) for item in items for v in item["image"][:, 3, 0, 0, 0]})
    assert simulator.made == 6  # two pools of three volumes, made when first needed
    assert seen[0] == seen[1] and seen[2] == seen[3] and not seen[0] & seen[2]
    assert len(seen[0]) == 3


def test_labels_are_the_middle_of_the_input() -> None:
    dataset = _dataset(labels=("parameters", "mask", "place"))
    for i in range(len(dataset)):
        item = dataset[i]
        assert item["image"].shape == (4, 4, 8, 8, 8)
        assert item["label"]["place"].shape == (4, 3, 4, 4, 4)
        # The image and its labels are flipped and exchanged together.
        assert torch.equal(item["image"][:, :3, 2:-2, 2:-2, 2:-2], item["label"]["place"])
        assert item["label"]["mask"].dtype == torch.bool


def test_patches_are_turned_in_all_sixteen_ways() -> None:
    dataset = _dataset(batches=60)
    seen = set()
    for i in range(60):
        for patch in dataset[i]["image"]:
            steps = [patch[:3].diff(dim=axis).flatten(1)[:, 0].tolist() for axis in (1, 2, 3)]
            assert abs(steps[2][2]) == 1.0  # B0 stays along the last axis
            seen.add(tuple(tuple(step) for step in steps))
    assert len(seen) == 16
    plain = _dataset(flip=False)[0]["image"]
    assert bool((plain[:, 2].diff(dim=3) == 1).all())


def test_middles_are_voxels_of_the_mask() -> None:
    dataset = _dataset(batches=40, flip=False, background_share=0.0)
    middles = torch.cat([dataset[i]["image"][:, :3, 4, 4, 4] for i in range(40)])
    assert bool((middles >= torch.tensor([9.0, 11.0, 13.0])).all())
    assert bool((middles < torch.tensor([12.0, 13.0, 15.0])).all())
    assert len({tuple(m.tolist()) for m in middles}) == 12
    anywhere = _dataset(batches=40, flip=False, background_share=1.0)
    middles = torch.cat([anywhere[i]["image"][:, :3, 4, 4, 4] for i in range(40)])
    assert float((middles[:, 0] < 9).float().mean()) > 0.2


def test_a_volume_without_mask_gives_background() -> None:
    item = _dataset(Ramp(empty=True), background_share=0.0)[0]
    assert item["image"].shape == (4, 4, 8, 8, 8)


def test_items_go_through_the_engines() -> None:
    dataset = _dataset()
    image, label, args, kwargs = prepare_simulated_batch(dataset[2], "cpu")
    assert image.shape == (4, 4, 8, 8, 8)
    assert set(label) == {"parameters", "mask"}
    assert args == () and kwargs == {}

    class State:
        epoch = 3

    class FakeEngine:
        state = State()

    EpochSetter(dataset)(FakeEngine())
    assert dataset.epoch == 2


@pytest.mark.parametrize(
    "bad",
    [
        {"volumes": 0},
        {"batches": 0},
        {"pool_epochs": 0},
        {"crop": 4},
        {"crop": -1},
        {"background_share": 1.5},
        {"focus_share": -0.1},
        {"crop": (2, 2, 4)},
        {"rank": 2, "world_size": 2},
        {"batch_size": 1, "world_size": 2},
    ],
)
def test_bad_arguments_are_named(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        _dataset(**bad)
    with pytest.raises(IndexError):
        _dataset()[8]


def test_a_patch_larger_than_the_volume_is_refused() -> None:
    with pytest.raises(ValueError, match="patch_size must be at most"):
        _dataset(patch_size=24)[0]


def test_slices_are_cut_where_patch_and_crop_say() -> None:
    dataset = _dataset(patch_size=(8, 8, 1), crop=(2, 2, 0), labels=("place", "mask"))
    batch = dataset[0]
    assert batch["image"].shape[2:] == (8, 8, 1) and batch["label"]["mask"].shape[2:] == (4, 4, 1)
    assert torch.equal(batch["image"][:, :3, 2:-2, 2:-2], batch["label"]["place"])
    with pytest.raises(ValueError, match="square"):
        _dataset(patch_size=(8, 6, 1), crop=(2, 2, 0))


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_a_share_of_the_patches_has_a_rare_voxel_in_its_middle(share: float) -> None:
    class Rare(Ramp):
        def simulate(self, drawn: torch.Tensor) -> dict[str, Any]:
            sample = super().simulate(drawn)
            sample["label"]["rare"] = torch.zeros_like(sample["label"]["mask"])
            sample["label"]["rare"][..., 6, 7, 8] = True
            sample["label"]["mask"][:] = True
            return sample

    dataset = _dataset(Rare(), batch_size=200, batches=1, patch_size=3, crop=1, focus="rare", focus_share=share)
    middle = dataset[0]["image"][:, :3, 1, 1, 1]
    hits = (middle == torch.tensor([6.0, 7.0, 8.0])).all(1).double().mean()
    assert abs(hits - share) < 0.11
