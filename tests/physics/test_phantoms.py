"""Discs, ellipsoids, tubes and trees against their area or volume, order and limits."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from physics.phantoms import (
    Ellipsoids,
    Tubes,
    disc_fractions,
    draw_discs,
    draw_ellipsoids,
    draw_trees,
    draw_tubes,
    ellipsoid_fractions,
    paint,
    random_rotations,
    tube_fractions,
)


@pytest.mark.parametrize("radius", [0.08, 0.2, 0.31])
@pytest.mark.parametrize("centre", [(0.5, 0.5), (0.43, 0.517)])
def test_area_of_a_disc(radius: float, centre: tuple[float, float]) -> None:
    width = 96
    fractions = disc_fractions(torch.tensor([[centre]]), torch.tensor([[radius]]), (width, width))
    assert fractions.shape == (1, 1, width, width)
    assert float(fractions.sum()) == pytest.approx(math.pi * (radius * width) ** 2, rel=5e-3)


def test_later_discs_cover_earlier_ones() -> None:
    centres = torch.full((1, 2, 2), 0.5)
    fractions = disc_fractions(centres, torch.tensor([[0.4, 0.2]]), (64, 64))
    assert float(fractions[0, 1, 32, 32]) == 1.0
    assert float(fractions[0, 0, 32, 32]) == 0.0
    assert float(fractions[0, 0, 32, 12]) == 1.0
    assert float(fractions.sum(1).max()) <= 1.0 + 1e-6
    union = disc_fractions(centres[:, :1], torch.tensor([[0.4]]), (64, 64))
    assert torch.allclose(fractions.sum(1), union.sum(1), atol=1e-6)


def test_draws_repeat_and_keep_to_their_range() -> None:
    first = draw_discs(torch.Generator().manual_seed(3), 50, 9, (0.05, 0.3))
    again = draw_discs(torch.Generator().manual_seed(3), 50, 9, (0.05, 0.3))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    centres, radii = first
    assert centres.shape == (50, 9, 2)
    assert 0.0 <= float(centres.min()) <= float(centres.max()) <= 1.0
    assert 0.05 <= float(radii.min()) <= float(radii.max()) <= 0.3
    # Log-uniform: half of the radii lie below the geometric mean of the range.
    assert float((radii < math.sqrt(0.05 * 0.3)).float().mean()) == pytest.approx(0.5, abs=0.08)


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("voxel_size", [(1.0, 1.0, 1.0), (0.5, 1.0, 2.0)])
@pytest.mark.parametrize("radii", [(6.0, 6.0, 6.0), (3.0, 5.0, 9.0), (2.0, 8.0, 8.0)])
def test_volume_of_an_ellipsoid(radii: tuple[float, ...], voxel_size: tuple[float, float, float]) -> None:
    body = Ellipsoids.from_radii(
        torch.tensor([[[0.3, -0.2, 0.45]]]), torch.tensor([[radii]]), random_rotations(_generator(1), 1, 1)
    )
    size = [int(24 / step) + 1 for step in voxel_size]
    fractions = ellipsoid_fractions(body, size, voxel_size)
    assert fractions.shape == (1, 1, *size)
    volume = float(fractions.sum()) * math.prod(voxel_size)
    assert volume == pytest.approx(4 / 3 * math.pi * math.prod(radii), rel=0.015)


def test_partial_volume_of_a_sphere_against_fine_voxels() -> None:
    sphere = Ellipsoids.from_radii(torch.tensor([[[0.2, 0.1, -0.3]]]), torch.full((1, 1, 3), 5.0))
    axis = (torch.arange(15 * 8) - 59.5) / 8
    x, y, z = torch.meshgrid(axis, axis, axis, indexing="ij")
    inside = ((x - 0.2) ** 2 + (y - 0.1) ** 2 + (z + 0.3) ** 2 <= 25).float()[None, None]
    exact = torch.nn.functional.avg_pool3d(inside, 8)
    error = ellipsoid_fractions(sphere, (15, 15, 15)) - exact
    assert float(error.abs().max()) < 0.13
    edge = (exact > 0.01) & (exact < 0.99)
    assert float(error[edge].square().mean().sqrt()) < 0.05


@pytest.mark.parametrize("radius", [0.2, 0.4, 0.8, 2.0])
def test_volume_of_a_tube_also_when_thinner_than_a_voxel(radius: float) -> None:
    half = torch.tensor([[[6.0, 3.0, 10.0]]])
    fractions = tube_fractions(Tubes(0.2 - half, 0.2 + half, torch.full((1, 1), radius)), (24, 24, 32))
    expected = math.pi * radius**2 * 2 * float(half.norm()) + 4 / 3 * math.pi * radius**3
    assert float(fractions.sum()) == pytest.approx(expected, rel=0.07)
    assert float(fractions.max()) <= 1.0


def test_a_turned_ellipsoid_is_the_turned_image() -> None:
    radii = torch.tensor([[[3.0, 5.0, 8.0]]])
    quarter = torch.tensor([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    plain = ellipsoid_fractions(Ellipsoids.from_radii(torch.tensor([[[2.0, 1.0, 0.0]]]), radii), (21, 21, 21))
    centre = (quarter @ torch.tensor([2.0, 1.0, 0.0]))[None, None]
    turned = ellipsoid_fractions(Ellipsoids.from_radii(centre, radii, quarter[None, None]), (21, 21, 21))
    torch.testing.assert_close(turned, torch.rot90(plain, 1, (2, 3)), atol=1e-5, rtol=0)


def test_later_bodies_cover_earlier_ones_and_fractions_are_a_partition() -> None:
    bodies = draw_ellipsoids(_generator(2), 2, 12, (30.0, 30.0, 30.0), (2.0, 12.0))
    fractions = ellipsoid_fractions(bodies, (24, 25, 26), (1.2, 1.2, 1.2))
    assert float(fractions.min()) >= 0.0
    assert float(fractions.sum(1).max()) <= 1.0 + 1e-5
    last = ellipsoid_fractions(Ellipsoids(bodies.centres[:, -1:], bodies.shapes[:, -1:]), (24, 25, 26), (1.2, 1.2, 1.2))
    torch.testing.assert_close(fractions[:, -1:], last)


def test_painting_mixes_values_by_fraction_and_labels_more_than_half() -> None:
    body = Ellipsoids.from_radii(torch.zeros(1, 1, 3), torch.full((1, 1, 3), 4.0))
    canvas, labels = torch.full((1, 2, 13, 13, 13), 3.0), torch.zeros(1, 13, 13, 13, dtype=torch.uint8)
    paint(canvas, body, torch.tensor([[[1.0, -2.0]]]), labels=(labels, torch.tensor([7])))
    fraction = ellipsoid_fractions(body, (13, 13, 13))[:, 0]
    torch.testing.assert_close(canvas[:, 0], 3.0 - 2.0 * fraction)
    torch.testing.assert_close(canvas[:, 1], 3.0 - 5.0 * fraction)
    assert torch.equal(labels == 7, fraction > 0.5)


def test_roughness_moves_the_surface_inwards() -> None:
    body = Ellipsoids.from_radii(torch.zeros(1, 1, 3), torch.full((1, 1, 3), 6.0))
    canvas = torch.zeros(1, 1, 17, 17, 17)
    paint(canvas, body, torch.ones(1, 1, 1), roughness=torch.full((1, 1, 17, 17, 17), 1.0))
    assert float(canvas.sum()) == pytest.approx(4 / 3 * math.pi * 5**3, rel=0.02)


def test_bodies_off_the_grid_leave_it_alone() -> None:
    far = Ellipsoids.from_radii(torch.full((1, 1, 3), 50.0), torch.full((1, 1, 3), 4.0))
    assert not ellipsoid_fractions(far, (8, 8, 8)).any()


def test_draws_of_bodies_repeat_and_keep_to_their_ranges() -> None:
    first, again = (draw_ellipsoids(_generator(3), 4, 50, (10.0, 20.0, 30.0), (2.0, 8.0), 2.0) for _ in range(2))
    assert torch.equal(first.centres, again.centres) and torch.equal(first.shapes, again.shapes)
    assert bool((first.centres.abs() <= torch.tensor([5.0, 10.0, 15.0])).all())
    radii = 1.0 / torch.linalg.svdvals(first.shapes)
    assert float(radii.min()) >= 1.0 - 1e-4 and float(radii.max()) <= 16.0 + 1e-3
    tubes = draw_tubes(_generator(4), 3, 40, (10.0, 10.0, 10.0), (0.5, 2.0), (5.0, 9.0))
    length = (tubes.ends - tubes.starts).norm(dim=-1)
    assert float(length.min()) >= 5.0 - 1e-4 and float(length.max()) <= 9.0 + 1e-4
    turns = random_rotations(_generator(5), 100)
    torch.testing.assert_close(turns @ turns.mT, torch.eye(3).expand(100, 3, 3), atol=1e-5, rtol=0)
    assert torch.allclose(torch.linalg.det(turns), torch.ones(100), atol=1e-5)
    assert float(turns.mean(0).abs().max()) < 0.25  # no direction is preferred


def test_trees_branch_by_the_law_of_murray() -> None:
    roots, aim = torch.zeros(2, 3, 3), torch.randn((2, 3, 3), generator=_generator(6))
    tree = draw_trees(_generator(7), roots, aim, levels=3)
    assert len(tree) == 3 * 7
    tips, middle, trunk = tree.radii.split([12, 6, 3], 1)
    for children, parent in ((middle, trunk), (tips, middle)):
        cubes = children.pow(3).unflatten(1, (2, -1)).sum(1)
        torch.testing.assert_close(cubes, parent.pow(3))
    # Every branch begins where a thicker one ends.
    torch.testing.assert_close(tree.starts[:, 12:18].unflatten(1, (2, 3)).mean(1), tree.ends[:, 18:])


@pytest.mark.parametrize(
    "bad",
    [
        lambda: draw_ellipsoids(_generator(), 1, 1, (1.0, 1.0, 1.0), (3.0, 2.0)),
        lambda: draw_trees(_generator(), torch.zeros(1, 1, 3), torch.ones(1, 1, 3), levels=0),
        lambda: paint(torch.zeros(3, 3, 3), draw_ellipsoids(_generator(), 1, 1, (1.0,) * 3), torch.zeros(1, 1, 1)),
        lambda: paint(torch.zeros(1, 2, 3, 3, 3), draw_ellipsoids(_generator(), 1, 1, (1.0,) * 3), torch.ones(1, 1, 1)),
    ],
)
def test_bad_arguments_are_named(bad: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match="must be"):
        bad()
