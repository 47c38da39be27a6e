"""Volumes and labels on other voxels: exact on polynomials of degree one, means where voxels grow, no lesion lost."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from qsmrim_net.resample import to_voxels
from scipy import ndimage
from torch import Tensor

VOXELS = (0.75, 0.75, 3.0)  # mm


def field(shape: tuple[int, int, int], size: tuple[float, float, float]) -> Tensor:
    """[2, X, Y, Z]: a constant, and a plane that goes through the box's centre in mm."""
    axes = [(torch.arange(n) - (n - 1) / 2) * s for n, s in zip(shape, size, strict=True)]
    x, y, z = torch.meshgrid(*axes, indexing="ij")
    return torch.stack([torch.full(shape, 7.0), 1000 + x + 2 * y - 3 * z])


def test_equal_voxels_change_nothing() -> None:
    volumes = torch.randn(2, 9, 8, 7, generator=torch.Generator().manual_seed(0))
    labels = (volumes[0] > 1).int()
    found, moved = to_voxels(volumes, labels, VOXELS, VOXELS)
    torch.testing.assert_close(found, volumes)
    assert torch.equal(moved, labels) and moved.dtype == torch.int32


@pytest.mark.parametrize("wanted", [(1.5, 1.5, 3.0), (0.5, 0.5, 1.0), (0.75, 0.6, 4.5), (1.0, 1.0, 2.0)])
def test_planes_stay_planes(wanted: tuple[float, float, float]) -> None:
    shape = (32, 24, 12)
    found, _ = to_voxels(field(shape, VOXELS), torch.zeros(shape, dtype=torch.int32), VOXELS, wanted)
    assert found.shape[1:] == tuple(round(n * v / w) for n, v, w in zip(shape, VOXELS, wanted, strict=True))
    torch.testing.assert_close(found[0], torch.full_like(found[0], 7.0))
    inner = (slice(None), *(slice(4, -4),) * 2, slice(2, -2))
    # The mean of uneven parts of steps is off by a fraction of a step.
    exact = [w <= v or w % v == 0 for v, w in zip(VOXELS, wanted, strict=True)]
    expected = field(tuple(found.shape[1:]), wanted)  # type: ignore[arg-type]
    torch.testing.assert_close(found[inner], expected[inner], rtol=1e-6, atol=1e-3 if all(exact) else 2.0)


def test_voxels_that_double_are_block_means() -> None:
    volumes = 5 + torch.rand(1, 8, 6, 4, generator=torch.Generator().manual_seed(0))
    found, _ = to_voxels(volumes, torch.zeros(8, 6, 4, dtype=torch.int32), (1, 1, 1), (2, 2, 2))
    torch.testing.assert_close(found, torch.nn.functional.avg_pool3d(volumes, 2))


def test_voxels_that_shrink_are_those_of_scipy() -> None:
    volume = 5 + torch.rand(10, 8, 6, generator=torch.Generator().manual_seed(0))
    found, _ = to_voxels(volume[None], torch.zeros(10, 8, 6, dtype=torch.int32), (1, 1, 1), (0.5, 0.5, 0.5))
    axes = [(np.arange(2 * n) - (2 * n - 1) / 2) * 0.5 + (n - 1) / 2 for n in (10, 8, 6)]
    expected = ndimage.map_coordinates(volume.double(), np.meshgrid(*axes, indexing="ij"), order=1, mode="nearest")
    np.testing.assert_allclose(found[0], expected, rtol=1e-5)


@pytest.mark.parametrize("wanted", [(1.0, 1.0, 1.0), (2.0, 2.0, 3.0)])
def test_the_brain_ends_where_it_did_and_its_edge_is_no_mean_with_zeros(wanted: tuple[float, float, float]) -> None:
    volumes = torch.zeros(1, 40, 40, 12)
    volumes[:, 8:32, 8:32, 2:10] = 20.0
    found, _ = to_voxels(volumes, torch.zeros(40, 40, 12, dtype=torch.int32), VOXELS, wanted)
    assert set(found.unique().round(decimals=3).tolist()) == {0.0, 20.0}
    ratio = np.prod(wanted) / np.prod(VOXELS)
    assert float((found != 0).sum()) * ratio == pytest.approx(24 * 24 * 8, rel=0.12)


def two_balls() -> Tensor:
    x, y, z = torch.meshgrid(*[torch.arange(n) * s for n, s in zip((60, 50, 20), VOXELS, strict=True)], indexing="ij")
    labels = torch.zeros(60, 50, 20, dtype=torch.int32)
    for k, (cx, cy, cz) in enumerate([(15, 15, 25), (25, 15, 25), (30, 28, 40)], start=1):
        labels[(x - cx) ** 2 + (y - cy) ** 2 + (z - cz) ** 2 <= 36] = k
    return labels


@pytest.mark.parametrize("wanted", [(1.0, 1.0, 1.0), (0.5, 0.5, 2.0), (1.5, 1.5, 3.0)])
def test_lesions_keep_their_volume_and_place(wanted: tuple[float, float, float]) -> None:
    labels = two_balls()
    _, found = to_voxels(torch.zeros(1, *labels.shape), labels, VOXELS, wanted)
    for k in (1, 2, 3):
        volumes = [float((v == k).sum()) * np.prod(s) for v, s in ((labels, VOXELS), (found, wanted))]
        assert volumes[1] == pytest.approx(volumes[0], rel=0.1)  # a half-filled voxel is filled
        centres = [
            (torch.nonzero(v == k).double().mean(0) - (torch.tensor(v.shape) - 1) / 2) * torch.tensor(s)
            for v, s in ((labels, VOXELS), (found, wanted))
        ]
        assert (centres[0] - centres[1]).abs().max() < 0.3  # mm


def test_no_lesion_is_lost_where_there_is_room() -> None:
    labels = torch.zeros(20, 20, 8, dtype=torch.int32)
    labels[4, 4, 4], labels[5, 5, 4], labels[15, 15, 2] = 1, 2, 3  # single voxels; 1 and 2 meet in one new voxel
    _, found = to_voxels(torch.zeros(1, 20, 20, 8), labels, (1, 1, 1), (2, 2, 2))
    assert found[7, 7, 1] == 3 and found[2, 2, 2] in (1, 2)
    assert sorted(found.unique().tolist()) in ([0, 1, 3], [0, 2, 3])  # no room for both
    labels[5, 5, 4], labels[6, 6, 4] = 0, 2
    _, found = to_voxels(torch.zeros(1, 20, 20, 8), labels, (1, 1, 1), (2, 2, 2))
    assert sorted(found.unique().tolist()) == [0, 1, 2, 3]
    empty = torch.zeros_like(labels)
    assert not to_voxels(torch.zeros(1, 20, 20, 8), empty, (1, 1, 1), (2, 2, 2))[1].any()


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="one grid"):
        to_voxels(torch.zeros(1, 4, 4, 4), torch.zeros(4, 4, 5, dtype=torch.int32), VOXELS, VOXELS)
    with pytest.raises(ValueError, match="above 0 mm"):
        to_voxels(torch.zeros(1, 4, 4, 4), torch.zeros(4, 4, 4, dtype=torch.int32), VOXELS, (1, 0, 1))
