"""Figures of iron particles against their volumes, the equations voxel by voxel, and invariants of their sum."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from physics.phantoms import (
    Cylinders,
    Figures,
    Metaballs,
    Particles,
    Tori,
    central_plane,
    draw_particles,
    empty,
    folded_planes,
    volume,
)

SIZE = (40, 44)


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _alone(figures: Figures) -> Particles:
    """Each figure in a scene of its own."""
    return Particles(len(figures), (figures,), (torch.arange(len(figures)),))


def _places(n: int) -> Tensor:
    """Middles anywhere in a voxel."""
    return torch.rand((n, 3), generator=_generator(1)) - 0.5


def _ball(n: int, balls: int, threshold: float) -> Metaballs:
    centres = _places(n)[:, None].repeat(1, 3, 1)
    centres[:, balls:] = 7.0  # of balls that do not exist
    return Metaballs(centres, torch.arange(3).expand(n, -1) < balls, torch.full((n,), threshold))


N = 120
FIGURES: dict[str, tuple[Figures, float]] = {
    # Balls in one place add up to one of the radius sqrt(N / l).
    "ball": (_ball(N, 1, 0.01), 4 / 3 * math.pi * 10.0**3),
    "small ball": (_ball(N, 1, 0.05), 4 / 3 * math.pi * 0.05**-1.5),
    "two balls": (_ball(N, 2, 0.03), 4 / 3 * math.pi * (2 / 0.03) ** 1.5),
    "three balls": (_ball(N, 3, 0.03), 4 / 3 * math.pi * 1000.0),
    "torus": (Tori(_places(N), torch.full((N,), 4.0), torch.full((N,), 10.0)), 2 * math.pi**2 * 10 * 16),
    "thin torus": (Tori(_places(N), torch.full((N,), 2.0), torch.full((N,), 5.0)), 2 * math.pi**2 * 5 * 4),
    "cylinder": (Cylinders(_places(N), torch.full((N,), 7.3), torch.full((N,), 9.0)), math.pi * 7.3**2 * 18),
}


@pytest.mark.parametrize("name", FIGURES)
def test_volume_of_a_figure(name: str) -> None:
    """The mean count over all places in a voxel is the volume; a single one is near it."""
    figures, expected = FIGURES[name]
    counts = volume(_alone(figures), SIZE, 15).sum((1, 2, 3))
    assert float(counts.mean()) == pytest.approx(expected, abs=4 * float(counts.std()) / math.sqrt(N))
    assert float(counts.mean()) == pytest.approx(expected, rel=0.02)
    assert float((counts / expected - 1).abs().max()) < 0.2


def test_the_axis_of_a_torus_is_along_b0_and_that_of_a_cylinder_across_it() -> None:
    middle = torch.zeros(1, 3)
    torus = volume(_alone(Tori(middle, torch.tensor([3.0]), torch.tensor([9.0]))), (41, 41), 20)[0]
    along_x, along_y, along_z = (torch.nonzero(torus)[:, axis] for axis in range(3))
    assert [int(a.amax() - a.amin()) for a in (along_x, along_y, along_z)] == [24, 24, 6]
    assert float(torus[20, 20].sum()) == 0.0  # the hole, along z through the middle
    cylinder = volume(_alone(Cylinders(middle, torch.tensor([4.0]), torch.tensor([11.0]))), (41, 41), 20)[0]
    extents = [int(torch.nonzero(cylinder)[:, axis].float().std(correction=0) * 100) for axis in range(3)]
    assert extents[0] == extents[2] < extents[1]
    assert torch.equal(cylinder[:, 9], cylinder[:, 31])  # the same disc from -11 to 11
    assert float(cylinder[:, 8].sum()) == 0.0


def test_voxels_against_the_equations() -> None:
    """Every voxel by itself, in double precision: only voxels on the very surface may differ."""
    particles = draw_particles(
        _generator(4), 3, shares={"metaball": 1, "torus": 1, "cylinder": 1}, count=(6, 6), spread=15.0
    )
    found = volume(particles, SIZE, 20).double().numpy()
    x, y, z = np.meshgrid(
        np.arange(40) - 19.5, np.arange(41) - 20.0, np.arange(44) - 21.5, indexing="ij"
    )  # fmt: skip
    expected = np.zeros_like(found)
    balls, tori, cylinders = particles.figures
    assert isinstance(balls, Metaballs) and isinstance(tori, Tori) and isinstance(cylinders, Cylinders)
    with np.errstate(divide="ignore"):
        for centres, valid, level, scene in zip(
            balls.centres, balls.valid, balls.threshold, particles.scenes[0], strict=True
        ):
            total = sum(
                1 / ((x - c[0]) ** 2 + (y - c[1]) ** 2 + (z - c[2]) ** 2) for c in centres[valid].double().numpy()
            )
            expected[scene] += total >= float(level)
    for centre, small, large, scene in zip(
        tori.centres, tori.radius, tori.ring_radius, particles.scenes[1], strict=True
    ):
        ring = np.sqrt((x - float(centre[0])) ** 2 + (y - float(centre[1])) ** 2) - float(large)
        expected[scene] += ring**2 + (z - float(centre[2])) ** 2 <= float(small) ** 2
    for centre, small, half, scene in zip(
        cylinders.centres, cylinders.radius, cylinders.half_length, particles.scenes[2], strict=True
    ):
        disc = (x - float(centre[0])) ** 2 + (z - float(centre[2])) ** 2 <= float(small) ** 2
        expected[scene] += disc & (np.abs(y - float(centre[1])) <= float(half))
    assert min(len(f) for f in particles.figures) > 2
    assert expected.max() >= 2  # figures overlap
    assert np.abs(found - expected).sum() <= 3


@pytest.fixture(scope="module")
def particles() -> Particles:
    return draw_particles(_generator(7), 4, shares={"metaball": 2, "torus": 1, "cylinder": 1}, spread=18.0)


def test_folding_adds_up_the_planes_on_both_sides(particles: Particles) -> None:
    whole = volume(particles, SIZE, 12)
    folded = folded_planes(particles, SIZE, 12)
    assert folded.shape == (4, 13, *SIZE)
    assert torch.equal(folded[:, 0], whole[:, :, 12])
    for distance in range(1, 13):
        assert torch.equal(folded[:, distance], whole[:, :, 12 - distance] + whole[:, :, 12 + distance])
    assert torch.equal(central_plane(particles, SIZE), whole[:, :, 12])


def test_what_leaves_the_grid_is_cut_off(particles: Particles) -> None:
    large = folded_planes(particles, (SIZE[0] + 40, SIZE[1] + 60), 40)
    small = folded_planes(particles, SIZE, 9)
    assert float(large.sum()) > float(small.sum())
    assert torch.equal(small, large[:, :10, 20:-20, 30:-30])
    everything = folded_planes(particles, (SIZE[0] + 40, SIZE[1] + 60))
    planes = everything.shape[1]
    assert torch.equal(everything, large[:, :planes])
    assert float(large[:, planes:].sum()) == 0.0


def test_figures_add_up_in_any_order(particles: Particles) -> None:
    whole = folded_planes(particles, SIZE, 12)
    parts = torch.zeros_like(whole)
    for figures, scenes in zip(particles.figures, particles.scenes, strict=True):
        for k in range(len(figures)):
            one = Particles(4, (figures.select(torch.tensor([k])),), (scenes[[k]],))
            parts += folded_planes(one, SIZE, 12)
    assert torch.equal(parts, whole)
    shuffled = [torch.randperm(len(figures), generator=_generator(k)) for k, figures in enumerate(particles.figures)]
    turned = Particles(
        4,
        tuple(f.select(order) for f, order in zip(particles.figures, shuffled, strict=True))[::-1],
        tuple(s[order] for s, order in zip(particles.scenes, shuffled, strict=True))[::-1],
    )
    assert torch.equal(folded_planes(turned, SIZE, 12), whole)


def test_draws_repeat_and_keep_to_their_ranges() -> None:
    first = draw_particles(_generator(2), 300, shares={"metaball": 1, "torus": 1, "cylinder": 2})
    again = draw_particles(_generator(2), 300, shares={"metaball": 1, "torus": 1, "cylinder": 2})
    balls, tori, cylinders = first.figures
    assert isinstance(balls, Metaballs) and isinstance(tori, Tori) and isinstance(cylinders, Cylinders)
    assert torch.equal(tori.centres, again.figures[1].middle)
    assert torch.equal(folded_planes(first, (16, 16), 2), folded_planes(again, (16, 16), 2))
    for values, low, high in (
        (balls.threshold, 0.01, 0.05), (tori.radius, 2.0, 4.0), (tori.ring_radius, 5.0, 10.0),
        (cylinders.radius, 3.0, 13.0), (cylinders.half_length, 5.0, 30.0), (balls.valid.sum(1), 1, 3),
        (tori.centres[:, :2:2].norm(dim=1), 0.0, 80.0), (tori.centres[:, 1], -3.0, 3.0),
    ):  # fmt: skip
        assert low <= float(values.min()) < low + 0.05 * (high - low) + 0.3
        assert high - 0.05 * (high - low) - 0.3 < float(values.max()) <= high
    assert float((balls.centres[:, 1:] - balls.centres[:, :1]).abs().max()) <= 10.0
    figures = torch.bincount(torch.cat(first.scenes), minlength=300)
    assert sorted(set(figures.tolist())) == [1, 2, 3, 4, 5]
    shares = [len(f) / int(figures.sum()) for f in first.figures]
    assert shares == pytest.approx([0.25, 0.25, 0.5], abs=0.06)
    assert len(draw_particles(_generator(), 20).figures[2]) == 0


def test_every_drawn_scene_meets_the_plane_and_an_empty_one_is_reported() -> None:
    drawn = draw_particles(_generator(5), 300)
    assert not bool(empty(drawn, (256, 256)).any())
    away = torch.tensor([[0.0, 0.0, 0.0], [0.0, 9.0, 0.0], [300.0, 0.0, 0.0]])
    discs = _alone(Cylinders(away, torch.full((3,), 4.0), torch.full((3,), 5.0)))
    assert empty(discs, (32, 32)).tolist() == [False, True, True]
    assert empty(Particles(2, (), ()), (8, 8)).tolist() == [True, True]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"shares": {"cube": 1.0}}, "shares"),
        ({"shares": {"torus": 0.0}}, "shares"),
        ({"count": (0, 3)}, "count"),
        ({"threshold": (0.05, 0.01)}, "threshold"),
        ({"radius": (2.0, math.inf)}, "radius"),
        ({"spread": -1.0}, "spread"),
    ],
)
def test_unusable_ranges(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        draw_particles(_generator(), 2, **arguments)  # type: ignore[arg-type]


def test_unusable_grids() -> None:
    with pytest.raises(ValueError, match="size"):
        folded_planes(draw_particles(_generator(), 1), (8,), 2)
    with pytest.raises(ValueError, match="half_planes"):
        folded_planes(draw_particles(_generator(), 1), (8, 8), -1)
