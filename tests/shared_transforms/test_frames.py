"""The training frame against closed-form fields and functions."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates
from scipy.spatial.transform import Rotation

from physics.dipole import field_from_susceptibility, sphere_field
from shared_transforms.errors import QMRIError
from shared_transforms.frames import Frame

TILTED = Rotation.from_rotvec(np.deg2rad(30) * np.array([0.8, 0.6, 0.0]))
OBLIQUE = tuple(TILTED.apply([0.0, 0.0, 1.0]).tolist())
DIAGONAL = (1 / math.sqrt(3),) * 3


def points(shape, size, centre=None) -> torch.Tensor:
    """Positions [mm] of the voxels relative to the centre (an index; None: the middle)."""
    centre = [(n - 1) / 2 for n in shape] if centre is None else centre
    axes = [(torch.arange(n, dtype=torch.float64) - c) * s for n, s, c in zip(shape, size, centre, strict=True)]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)


def error(found: torch.Tensor, expected: torch.Tensor, mask: torch.Tensor) -> float:
    return ((found - expected)[mask].norm() / expected[mask].norm()).item()


@pytest.mark.parametrize("axis, sign", list(itertools.product(range(3), (1, -1))))
def test_aligned_volumes_are_permuted_and_flipped(axis, sign):
    """The field of a random object is the field of the moved object with B0 along the third axis, exactly."""
    generator = torch.Generator().manual_seed(axis)
    chi = torch.randn(2, 6, 8, 7, generator=generator, dtype=torch.float64)
    size = (1.0, 1.002, 0.998)
    b0 = [0.0, 0.0, 0.0]
    b0[axis] = sign
    field = field_from_susceptibility(chi, size, b0)
    frame = Frame(torch.ones(6, 8, 7), size, b0)
    assert frame.exact and frame.b0_direction in [(0, 0, 1), (0, 0, -1)]
    mask = torch.ones(6, 8, 7, dtype=torch.bool)
    moved_chi, moved_field = frame.to_frame(chi, mask), frame.to_frame(field, mask)
    assert tuple(moved_chi.shape) == (2, *frame.shape) and frame.mask_to_frame(mask).all()
    assert torch.allclose(field_from_susceptibility(moved_chi, frame.voxel_size), moved_field, atol=1e-12)
    assert torch.equal(frame.from_frame(moved_chi, frame.mask_to_frame(mask)), chi)


@pytest.mark.parametrize("b0", [(0, 0, 1), OBLIQUE, (-0.6, 0.8, 0), DIAGONAL], ids=["axial", "30", "transverse", "111"])
@pytest.mark.parametrize("size, bound", [((1, 1, 1), 0.02), ((1, 1, 2), 0.035), ((0.5, 1, 1), 0.02)], ids=str)
def test_field_of_a_sphere_has_its_axis_along_the_third(b0, size, bound):
    shape = tuple(int(56 / s) for s in size)
    position = points(shape, size)
    radius = position.norm(dim=-1)
    mask = radius < 24
    direction = torch.tensor(b0, dtype=torch.float64)
    frame = Frame(mask, size, b0)
    assert frame.exact == (b0 == (0, 0, 1) and size == (1, 1, 1))
    assert frame.voxel_size == (1, 1, 1) and frame.b0_direction == pytest.approx((0, 0, 1))
    found = frame.to_frame(sphere_field(position, 6.0, b0_direction=direction), mask)
    there = points(frame.shape, (1, 1, 1))
    framed = frame.mask_to_frame(mask)
    assert abs(int(framed.sum()) / (4 / 3 * math.pi * 24**3) - 1) < bound
    outside = framed & (there.norm(dim=-1) > 9)  # the field jumps at the sphere
    assert error(found, sphere_field(there, 6.0), outside) < bound


@pytest.mark.parametrize(
    "b0, size, bound", [(OBLIQUE, (1, 1, 1), 0.03), ((0, 0, 1), (1, 1, 3), 1e-3), (OBLIQUE, (2, 1, 1), 0.03)]
)
def test_there_and_back_is_the_volume(b0, size, bound):
    shape = tuple(int(48 / s) for s in size)
    position = points(shape, size)
    mask = position.norm(dim=-1) < 22
    volume = (1 + (position[..., 0] / 2.5).sin() * (position[..., 1] / 4).cos() + position[..., 2] / 20) * mask
    frame = Frame(mask, size, b0)
    framed = frame.mask_to_frame(mask)
    back = frame.from_frame(frame.to_frame(volume, mask) * framed, framed)
    assert error(back, volume, mask) < bound
    assert error(back, volume, mask & (position.norm(dim=-1) < 18)) < 0.4 * bound + 1e-3


def test_a_cubic_spline_keeps_what_a_linear_interpolation_blurs():
    shape = (40, 40, 40)
    position = points(shape, (1, 1, 1))
    mask = position.norm(dim=-1) < 18
    volume = (2 * math.pi * position / 5).sin().prod(-1)  # five voxels a period
    frame = Frame(mask, (1, 1, 1), OBLIQUE)
    framed = frame.mask_to_frame(mask)
    back = frame.from_frame(frame.to_frame(volume, mask), framed)
    turned = TILTED.apply(position.reshape(-1, 3).numpy()).reshape(*shape, 3) + 19.5
    linear = map_coordinates(volume.numpy(), np.moveaxis(turned, -1, 0), order=1)
    turned_back = TILTED.inv().apply(position.reshape(-1, 3).numpy()).reshape(*shape, 3) + 19.5
    twice = torch.from_numpy(map_coordinates(linear, np.moveaxis(turned_back, -1, 0), order=1))
    inner = position.norm(dim=-1) < 12
    assert error(back, volume, inner) < 0.1 < 0.5 < error(twice, volume, inner)


def test_fine_noise_is_averaged_and_not_picked():
    noise = torch.randn(40, 40, 40, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(40, 40, 40)
    frame = Frame(mask, (0.5, 0.5, 0.5), (0, 0, 1))
    found = frame.to_frame(noise, mask)[5:-5, 5:-5, 5:-5]
    assert found.std().item() == pytest.approx(1 / math.sqrt(8), rel=0.35)


def test_isotropic_voxels_of_an_accepted_side_stay():
    mask = torch.ones(9, 8, 7)
    assert Frame(mask, (0.7, 0.7, 0.7), (0, 0, 1), sides=(0.5, 1.5)).voxel_size == (0.7, 0.7, 0.7)
    assert Frame(mask, (0.7, 0.7, 0.7), (0, 0, 1), sides=(0.5, 1.5)).exact
    assert Frame(mask, (0.7, 0.7, 2.0), (0, 0, 1), sides=(0.5, 1.5)).voxel_size == (0.7,) * 3
    assert Frame(mask, (0.3, 0.3, 0.3), (0, 0, 1), sides=(0.5, 1.5)).voxel_size == (0.5,) * 3
    assert Frame(mask, (2.0, 2.0, 2.0), (0, 0, 1), sides=(0.5, 1.5)).voxel_size == (1.5,) * 3
    slight = math.radians(0.9)
    frame = Frame(mask, (1, 1, 1), (math.sin(slight), 0, math.cos(slight)))
    assert frame.exact and frame.b0_direction == pytest.approx((math.sin(slight), 0, math.cos(slight)))
    assert not Frame(mask, (1, 1, 1), (math.sin(slight), 0, math.cos(slight)), tilt=0.5).exact


def test_all_of_the_mask_survives():
    """A rod from corner to corner: the frame is as long as it is."""
    mask = torch.zeros(30, 30, 30)
    mask[range(30), range(30), range(30)] = 1
    mask = torch.nn.functional.max_pool3d(mask[None], 3, 1, 1)[0]
    frame = Frame(mask, (1, 1, 1), DIAGONAL)
    assert frame.shape[2] >= 29 * math.sqrt(3) and max(frame.shape[:2]) < 15
    framed = frame.mask_to_frame(mask)
    assert frame.from_frame(framed.float(), framed)[mask != 0].min() > 0.3


def test_values_outside_the_mask_are_not_looked_at():
    mask = points((20, 20, 20), (1, 1, 1)).norm(dim=-1) < 8
    volume = torch.where(mask, 1.0, torch.nan)
    frame = Frame(mask, (1, 1, 1), OBLIQUE)
    found = frame.to_frame(volume, mask)
    assert torch.allclose(found[frame.mask_to_frame(mask)], torch.tensor(1.0), atol=5e-3)


def test_bad_input_is_refused():
    with pytest.raises(QMRIError, match="mask"):
        Frame(torch.zeros(4, 4, 4), (1, 1, 1), (0, 0, 1))
    with pytest.raises(QMRIError, match="mask"):
        Frame(torch.ones(1, 4, 4, 4), (1, 1, 1), (0, 0, 1))
    with pytest.raises(ValueError, match="unit length"):
        Frame(torch.ones(4, 4, 4), (1, 1, 1), (0, 0, 2))
    with pytest.raises(ValueError, match="voxel_size"):
        Frame(torch.ones(4, 4, 4), (1, 0, 1), (0, 0, 1))
    with pytest.raises(ValueError, match="sides"):
        Frame(torch.ones(4, 4, 4), (1, 1, 1), (0, 0, 1), sides=(2, 1))
    with pytest.raises(ValueError, match="volumes must be"):
        Frame(torch.ones(4, 4, 4), (1, 1, 1), (0, 0, 1)).to_frame(torch.ones(4, 4, 5), torch.ones(4, 4, 4))
