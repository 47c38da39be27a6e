"""The stroke summary: known volumes, sides, cores and planes are found, and everything has a unit."""

from __future__ import annotations

import math

import numpy as np
import pytest
from stnet_perfusion.hemispheres import MidPlane, find_mid_plane, mirror_mean, relative_to_mirror
from stnet_perfusion.lesions import core_by_flow, find_lesion, large_parts, normal_flow

SHAPE, VOXEL = (44, 52, 14), (4.0, 4.0, 6.0)
VOXEL_ML = math.prod(VOXEL) / 1000


def affine(yaw: float = 0.0, shift: float = 0.0, flipped: bool = False) -> np.ndarray:
    """Voxels to RAS [mm]: the head's own axes, turned and shifted; the first axis to the left where flipped."""
    turn = np.array([[math.cos(yaw), -math.sin(yaw), 0], [math.sin(yaw), math.cos(yaw), 0], [0, 0, 1]])
    matrix = np.eye(4)
    matrix[:3, :3] = turn @ np.diag([-VOXEL[0] if flipped else VOXEL[0], VOXEL[1], VOXEL[2]])
    matrix[:3, 3] = -matrix[:3, :3] @ ((np.array(SHAPE) - 1) / 2) + [shift, 0, 0]
    return matrix


def position(matrix: np.ndarray) -> np.ndarray:
    grid = np.stack(np.meshgrid(*[np.arange(n) for n in SHAPE], indexing="ij"), -1)
    return grid @ matrix[:3, :3].T + matrix[:3, 3]


def head(matrix: np.ndarray, yaw: float = 0.0, shift: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """A head, symmetric about a plane turned by yaw and shifted along its normal: image and mask."""
    x, y, z = np.moveaxis(position(matrix), -1, 0)
    u, v = math.cos(yaw) * x + math.sin(yaw) * y - shift, -math.sin(yaw) * x + math.cos(yaw) * y
    mask = (u / 68) ** 2 + (v / 88) ** 2 + (z / 60) ** 2 < 1
    ventricle = ((np.abs(u) - 12) / 8) ** 2 + ((v - 10) / 25) ** 2 + (z / 20) ** 2 < 1
    front = 0.3 * v / 88
    return np.where(mask, 1.0 + front + ventricle, 0.0), mask


@pytest.mark.parametrize(("yaw", "shift"), [(0.0, 0.0), (0.15, 0.0), (-0.1, 7.0)])
@pytest.mark.parametrize("flipped", [False, True])
def test_mid_plane_is_found_in_any_orientation(yaw: float, shift: float, flipped: bool) -> None:
    matrix = affine(flipped=flipped)
    image, mask = head(matrix, yaw, shift)
    plane = find_mid_plane(image, mask, matrix)
    angle = math.degrees(math.acos(min(1.0, np.dot(plane.normal, [math.cos(yaw), math.sin(yaw), 0]))))
    assert angle < 1.0 and plane.offset == pytest.approx(shift, abs=1.0) and plane.symmetry > 0.98
    x = position(matrix) @ plane.normal - plane.offset
    np.testing.assert_allclose(plane.side(SHAPE, matrix), x, atol=1e-9)


def test_mirror_is_its_own_inverse_and_keeps_the_plane() -> None:
    matrix = affine(0.1, 3.0, True)
    plane = MidPlane((0.8, 0.6, 0.0), 4.0, 1.0)
    mirror = plane.mirror(matrix)
    np.testing.assert_allclose(mirror @ mirror, np.eye(4), atol=1e-9)
    point = np.linalg.inv(matrix) @ [0.8 * 4.0 - 0.6 * 9.0, 0.6 * 4.0 + 0.8 * 9.0, 5.0, 1.0]
    np.testing.assert_allclose(mirror @ point, point, atol=1e-9)


def test_relative_map_is_the_ratio_of_the_sides() -> None:
    matrix = affine()
    _, mask = head(matrix)
    x = position(matrix)[..., 0]
    cbf = np.where(mask, np.where(x > 0, 15.0, 50.0), 0.0)
    plane = MidPlane((1.0, 0.0, 0.0), 0.0, 1.0)
    ratio = relative_to_mirror(cbf, mask, plane, matrix, 8.0)
    away = mask & (np.abs(x) > 16)
    np.testing.assert_allclose(ratio[away & (x > 0)], 0.3, rtol=1e-3)
    np.testing.assert_allclose(ratio[away & (x < 0)], 50 / 15, rtol=1e-3)
    assert not ratio[~mask].any()
    cbf[30, 20, 7] = 5000.0  # a vessel
    assert np.nanmax(mirror_mean(cbf, mask, plane, matrix, 8.0)) <= 50.0 + 1e-3


def test_lesion_of_known_volume_and_small_parts() -> None:
    tmax = np.full(SHAPE, 2.0)
    tmax[30:40, 20:30, 4:9] = 7.0  # 500 voxels of .096 ml
    tmax[32:36, 22:27, 5:8] = 11.0  # 60 of them
    tmax[33, 23, 6] = 9.0
    tmax[5:7, 20:22, 5:7] = 12.0  # 8 voxels: .77 ml
    tmax[2, 2, 2] = 5.0
    found = find_lesion(tmax, np.ones(SHAPE, bool), VOXEL_ML, 1.0)
    volumes = [found.above[t].sum() for t in (4.0, 6.0, 8.0, 10.0)]
    assert volumes == [500, 500, 60, 59]
    assert found.removed_ml == pytest.approx({t: n * VOXEL_ML for t, n in {4.0: 9, 6.0: 8, 8.0: 8, 10.0: 8}.items()})
    everything = find_lesion(tmax, np.ones(SHAPE, bool), VOXEL_ML, 0.0)
    assert [everything.above[t].sum() for t in (4.0, 6.0, 8.0, 10.0)] == [509, 508, 68, 67]
    none = find_lesion(tmax, np.zeros(SHAPE, bool), VOXEL_ML, 1.0)
    assert not any(mask.any() for mask in none.above.values())


def test_parts_that_touch_at_a_corner_are_one() -> None:
    mask = np.zeros(SHAPE, bool)
    mask[0, 0, 0] = mask[1, 1, 1] = mask[5, 5, 5] = True
    assert large_parts(mask, 1.0, 2.0).sum() == 2 and large_parts(mask, 1.0, 1.0).sum() == 3


def test_core_is_below_a_third_of_the_flow_of_the_other_side() -> None:
    matrix = affine()
    _, mask = head(matrix)
    side = position(matrix)[..., 0]
    lesion = mask & (side > 30)
    cbf = np.where(side > 0, 24.0, 50.0)
    core = lesion & (side > 45)
    cbf[core] = 14.0  # 28 % of the left side, 58 % of the right
    tmax = np.where(lesion, 8.0, 1.0)
    reference, opposite = normal_flow(cbf, tmax, mask, side, lesion)
    assert reference == 50.0 and opposite
    assert (core_by_flow(cbf, reference, lesion, VOXEL_ML, 1.0) == core).all()
    assert normal_flow(cbf, tmax, mask, side, np.zeros_like(lesion))[1] is False
    reference, opposite = normal_flow(cbf, np.where(side < 0, 8.0, 1.0), mask, side, lesion)
    assert reference == 24.0 and not opposite  # the other side is all late
