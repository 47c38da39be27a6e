"""Single lesions of a mask: components, splits of confluent spheres, instance labels, flags, and what is refused."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from qsmrim_net.lesions import find_lesions
from scipy import ndimage
from torch import Tensor

from shared_transforms.errors import QMRIError

VOXELS = (0.75, 0.75, 3.0)  # mm


def ball(
    centre: Sequence[float], radius: float, shape: Sequence[int] = (80, 60, 16), voxel_size: Sequence[float] = VOXELS
) -> Tensor:
    """[X, Y, Z] int32, 1 inside of a sphere given in mm."""
    axes = torch.meshgrid(
        *[torch.arange(n) * v for n, v in zip(shape, map(float, voxel_size), strict=True)], indexing="ij"
    )
    return (sum((a - c) ** 2 for a, c in zip(axes, centre, strict=True)) <= radius**2).int()


def test_components_share_a_face_an_edge_or_a_corner() -> None:
    mask = torch.zeros(12, 12, 6, dtype=torch.uint8)
    mask[1, 1, 1] = mask[2, 2, 2] = mask[2, 3, 2] = 1  # joined by a corner
    mask[8, 8, 4] = 1
    mask[8, 10, 4] = 1  # one voxel between them
    found = find_lesions(mask, VOXELS)
    assert found.labels.dtype == torch.int32
    assert found.ids == [1, 2, 3] and found.flags == [(), ("too_small",), ("too_small",)]
    assert [int((found.labels == k).sum()) for k in (1, 2, 3)] == [3, 1, 1]
    assert torch.equal(found.labels > 0, mask > 0)


@pytest.mark.parametrize("seed", [0, 1])
def test_without_a_split_the_components_are_those_of_scipy_in_their_order(seed: int) -> None:
    rng = np.random.default_rng(seed)
    mask = ndimage.gaussian_filter(rng.standard_normal((30, 30, 12)), 1.5) > 0.08
    expected, count = ndimage.label(mask, structure=np.ones((3, 3, 3)))
    found = find_lesions(torch.from_numpy(mask), VOXELS, split=False)
    assert len(found.ids) == count > 3
    np.testing.assert_array_equal(found.labels, expected)  # scipy counts by the first voxel as well


@pytest.mark.parametrize(("voxel_size", "shape"), [(VOXELS, (80, 60, 16)), ((1.0, 1.0, 1.0), (60, 45, 48))])
@pytest.mark.parametrize("axis", [0, 1])
def test_two_touching_spheres_are_split_in_the_middle(
    voxel_size: Sequence[float], shape: Sequence[int], axis: int
) -> None:
    first, second = [22.0, 22.0, 24.0], [22.0, 22.0, 24.0]
    second[axis] += 10.0
    bodies = [ball(c, 5.5, shape, voxel_size) for c in (first, second)]
    mask = bodies[0] | bodies[1]
    assert len(find_lesions(mask, voxel_size, split=False).ids) == 1
    found = find_lesions(mask, voxel_size)
    assert all("split" in flags for flags in found.flags) and len(found.flags) == 2
    for k, body in enumerate(bodies, 1):
        own = found.labels == k
        dice = 2 * int((own & (body > 0)).sum()) / int(own.sum() + body.sum())
        assert dice > 0.95
    # the plane between them is half-way, to a voxel
    border = torch.nonzero(found.labels == 1)[:, axis].max() * voxel_size[axis]
    assert abs(float(border) - 27) <= voxel_size[axis]


@pytest.mark.parametrize("radius", [1.0, 2.0, 3.3, 5.0, 6.5, 8.0])
@pytest.mark.parametrize(("voxel_size", "shape"), [(VOXELS, (80, 60, 16)), ((1.0, 1.0, 1.0), (60, 45, 48))])
def test_one_sphere_stays_whole(radius: float, voxel_size: Sequence[float], shape: Sequence[int]) -> None:
    mask = ball((24.3, 22.1, 23.8), radius, shape, voxel_size)
    found = find_lesions(mask, voxel_size)
    assert found.ids == [1] and "split" not in found.flags[0]
    assert torch.equal(found.labels, mask)


def test_an_ellipsoid_and_bodies_without_a_neck_stay_whole() -> None:
    long = ball((10, 22, 24), 6, voxel_size=(0.35, 0.75, 3.0))  # 2.1 times as long as wide, in voxels of .75 mm
    assert find_lesions(long, VOXELS).ids == [1]
    overlapping = ball((22, 22, 24), 6) | ball((27, 22, 24), 6)
    assert find_lesions(overlapping, VOXELS).ids == [1]


def test_the_size_of_the_voxels_counts() -> None:
    """Two spheres of 1 mm voxels are two flat discs with a wide neck if the voxels are 8 mm thick in x."""
    mask = ball((18, 22, 24), 6, (60, 45, 48), (1, 1, 1)) | ball((29, 22, 24), 6, (60, 45, 48), (1, 1, 1))
    assert len(find_lesions(mask, (1, 1, 1)).ids) == 2
    assert len(find_lesions(mask, (1, 1, 1), neck=0.2).ids) == 1
    assert len(find_lesions(mask, (0.2, 0.2, 0.2)).ids) == 1  # 1.2 mm bodies: below radius_mm


def test_order_does_not_depend_on_the_values_of_a_binary_mask_and_is_fixed() -> None:
    mask = ball((10, 10, 10), 3) + ball((40, 10, 20), 4) + ball((20, 30, 30), 3) + ball((31, 30, 30), 8)
    found = [find_lesions(m, VOXELS).labels for m in (mask.clamp(max=1), 255 * mask.clamp(max=1).float(), mask > 0)]
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
    first = [int(torch.nonzero(found[0].flatten() == k)[0]) for k in range(1, int(found[0].max()) + 1)]
    assert first == sorted(first)


def test_a_mask_that_tells_the_lesions_apart_is_taken_as_it_is() -> None:
    mask = torch.zeros(80, 60, 16, dtype=torch.int16)
    touching = ball((22, 22, 24), 5) > 0, ball((32, 22, 24), 5) > 0
    mask[touching[1]], mask[touching[0]] = 3, 7
    mask[70:72, 5:7, 3:5] = 12
    mask[73, 5:7, 3:5] = 12  # apart
    found = find_lesions(mask, VOXELS)
    assert found.ids == [3, 7, 12] and found.flags == [(), (), ("in_parts",)]
    for label, own in enumerate(found.ids, 1):
        assert torch.equal(found.labels == label, mask == own)


def test_classes_are_no_lesions() -> None:
    mask = torch.zeros(60, 60, 16, dtype=torch.int32)
    for k in range(6):
        mask[8 * k + 2 : 8 * k + 6, 10:14, 4:6] = 1 + k % 2
    found = find_lesions(mask, VOXELS)
    assert found.ids == [1, 2, 3, 4, 5, 6] and "taken for classes" in found.notes[0]


def test_flags_of_size_and_place() -> None:
    mask = torch.zeros(80, 60, 16, dtype=torch.int32)
    mask[2:27, 5, 5] = 1  # 25 voxels long: one more than the patch
    mask[2:26, 30, 5] = 1  # 24 voxels
    mask[50, 50, 2:4] = 1  # 2 voxels
    brain = torch.zeros(mask.shape, dtype=torch.bool)
    brain[:, :, 3:] = True
    found = find_lesions(mask, VOXELS, brain=brain, split=False)
    assert found.flags == [("oversize",), (), ("too_small", "outside_brain")]
    assert find_lesions(mask, VOXELS, patch_size=(32, 32, 16), fewest_voxels=1).flags == [(), (), ()]


def test_what_is_no_lesion_mask_is_refused() -> None:
    mask = torch.zeros(64, 64, 64)
    with pytest.raises(QMRIError, match="empty mask"):
        find_lesions(mask, VOXELS)
    for value in (0.4, -1.0, float("nan")):
        bad = mask.clone()
        bad[3, 3, 3] = value
        with pytest.raises(QMRIError, match="whole numbers"):
            find_lesions(bad, VOXELS)
    with pytest.raises(QMRIError, match="262144 voxels, 442 ml"):
        find_lesions(mask + 1, VOXELS)
    noise = torch.zeros(64, 64, 64)
    noise[::4, ::4, ::4] = 1
    with pytest.raises(QMRIError, match="4096 separate lesions"):
        find_lesions(noise, (1, 1, 1))
    with pytest.raises(ValueError, match="volumes"):
        find_lesions(mask[0], VOXELS)
    with pytest.raises(ValueError, match="voxel_size"):
        find_lesions(mask, (1, 1, 0))
    with pytest.raises(ValueError, match="neck"):
        find_lesions(mask, VOXELS, neck=1.0)


def test_a_mask_of_five_million_voxels_is_refused_at_any_voxel_size() -> None:
    mask = torch.ones(172, 171, 171, dtype=torch.uint8)
    with pytest.raises(QMRIError, match="5029452 voxels"):
        find_lesions(mask, (0.1, 0.1, 0.1))
