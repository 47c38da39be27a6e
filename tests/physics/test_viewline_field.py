"""Field of the central plane against the three-dimensional convolution, a sphere, a cylinder, and invariants."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from physics.dipole import field_from_susceptibility, sphere_field
from physics.phantoms import draw_particles, folded_planes, volume
from physics.viewline import (
    GYROMAGNETIC_RATIO,
    MILLIMOLAR,
    central_plane_field,
    field_per_concentration,
    fold_planes,
    folded_plane_field,
)

UNIT = field_per_concentration()
CUBE = (1.0, 1.0, 1.0)


def _random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("kind", ["exact", "kspace"])
@pytest.mark.parametrize("depth", [1, 8, 9])
@pytest.mark.parametrize("padding", [1.5, 2.0])
def test_central_plane_of_the_three_dimensional_convolution(kind: str, depth: int, padding: float) -> None:
    concentration = _random(2, 12, depth, 15)
    sizes = (0.9, 0.4, 1.3)
    if kind == "exact" and padding < 2:
        # In free space only up to half of the side: the particles stay within it.
        concentration[:, :4], concentration[:, 8:] = 0, 0
        concentration[..., :5], concentration[..., 10:] = 0, 0
    found = central_plane_field(concentration, sizes, kind=kind, padding=padding)
    whole = field_from_susceptibility(concentration, sizes, kind=kind, padding=2.0 if kind == "exact" else padding)
    expected = UNIT * whole[..., depth // 2, :]
    assert found.shape == (2, 12, 15)
    assert float((found - expected).norm() / expected.norm()) < 1e-12
    single = central_plane_field(concentration.float(), sizes, kind=kind, padding=padding)
    assert single.dtype == torch.float32
    assert float((single - expected).norm() / expected.norm()) < 1e-6


def _fine(points: int) -> Tensor:
    """Middles of the parts of a voxel."""
    return (torch.arange(points, dtype=torch.float64) + 0.5) / points - 0.5


def _plane(side: int) -> tuple[Tensor, Tensor]:
    """Positions along x and z of the pixels of a square, from its middle."""
    places = torch.arange(side, dtype=torch.float64) - (side - 1) / 2
    return places[:, None], places[None, :]


def _sphere(side: int, radius: float) -> Tensor:
    """Shares of the voxels inside of a sphere, folded planes ``[H + 1, side, side]``."""
    x, z = _plane(side)
    y = torch.arange(int(radius) + 2, dtype=torch.float64)[:, None, None]
    parts = _fine(8 if radius < 15 else 4)
    share = torch.zeros(len(y), side, side, dtype=torch.float64)
    for a in parts:
        for b in parts:
            for c in parts:
                share += (x + a).square() + (y + b).square() + (z + c).square() <= radius**2
    share /= len(parts) ** 3
    share[1:] *= 2
    return share


@pytest.mark.parametrize("radius", [3.0, 5.0, 10.0, 20.0])
def test_sphere(radius: float) -> None:
    """Away from the surface, where a voxel holds two fields."""
    side = (int(2 * radius) + 25) | 1
    found = folded_plane_field(_sphere(side, radius), CUBE) / UNIT
    x, z = _plane(side)
    points = torch.stack(torch.broadcast_tensors(x, torch.zeros(()), z), -1)
    expected = sphere_field(points, radius)
    away = ((points.norm(dim=-1) - radius).abs() > 1.5) & torch.ones_like(expected, dtype=torch.bool)
    assert float((found - expected)[away].norm() / expected[away].norm()) < 0.01
    assert float(found[away & (points.norm(dim=-1) < radius)].abs().max()) < 0.01


def test_cylinder_across_b0_is_the_limit_of_long_ones() -> None:
    side, radius = 49, 6.0
    x, z = _plane(side)
    disc = torch.zeros(side, side, dtype=torch.float64)
    for a in _fine(16):
        for c in _fine(16):
            disc += ((x + a).square() + (z + c).square() <= radius**2) / 256
    squared = x.square() + z.square()
    expected = -(radius**2 / squared) / 2 * (x.square() - z.square()) / squared
    outside, inside = squared > (radius + 1.5) ** 2, squared < (radius - 1.5) ** 2
    errors = []
    for half_length in (25, 50, 200):
        planes = disc.repeat(half_length + 1, 1, 1)
        planes[1:] *= 2
        found = folded_plane_field(planes, CUBE) / UNIT
        errors.append(float((found - expected)[outside].norm() / expected[outside].norm()))
    assert errors[0] > 0.1 > errors[1] > 0.02 > 0.01 > errors[2]
    assert float((found[inside] + 1 / 6).abs().max()) < 0.006


def test_units() -> None:
    assert field_per_concentration() == pytest.approx(116.9, abs=0.05)
    assert abs(MILLIMOLAR - 17.9) < 0.01
    # 3.3 kHz at the pole of a sphere of 1 ug/mm^3; outside it falls with the third power of the distance.
    sphere = folded_plane_field(_sphere(41, 12.0), CUBE)
    assert float(sphere[20, 33] * GYROMAGNETIC_RATIO) == pytest.approx(3.32e3 * (12 / 13) ** 3, rel=0.02)
    assert float(sphere[20, 20]) == pytest.approx(0.0, abs=0.01 * UNIT)
    assert float(sphere[33, 20]) < 0 < float(sphere[20, 33])  # stronger at the poles along B0, weaker at the equator
    double = folded_plane_field(_sphere(41, 12.0), CUBE, mass_magnetisation=186.0)
    assert torch.allclose(double, 2 * sphere)
    # Lengths scale: only the shape of a voxel counts.
    assert torch.allclose(folded_plane_field(_sphere(41, 12.0), (0.2, 0.2, 0.2)), sphere, atol=1e-9)


def test_fields_add_up() -> None:
    first, second = _random(10, 5, 12, seed=1), _random(10, 5, 12, seed=2)
    together = central_plane_field(2.0 * first - 0.5 * second, CUBE)
    apart = 2.0 * central_plane_field(first, CUBE) - 0.5 * central_plane_field(second, CUBE)
    assert torch.allclose(together, apart, atol=1e-10)
    assert float(central_plane_field(torch.zeros(8, 3, 8), CUBE).abs().max()) == 0.0


def test_mirror_images() -> None:
    concentration = _random(10, 7, 12, seed=3)
    field = central_plane_field(concentration, CUBE)
    for axis, mirrored in ((0, field.flip(0)), (1, field), (2, field.flip(1))):
        assert torch.allclose(central_plane_field(concentration.flip(axis), CUBE), mirrored, atol=1e-10)


@pytest.mark.parametrize("depth", [1, 2, 7, 8])
def test_folding(depth: int) -> None:
    concentration = _random(3, 6, depth, 5, seed=4)
    folded = fold_planes(concentration)
    assert folded.shape == (3, depth // 2 + 1, 6, 5)
    assert torch.allclose(folded.sum((1, 2, 3)), concentration.sum((1, 2, 3)))
    assert torch.equal(folded[:, 0], concentration[:, :, depth // 2])
    found = folded_plane_field(folded, (1.0, 0.5, 1.0))
    assert torch.allclose(found, central_plane_field(concentration, (1.0, 0.5, 1.0)), atol=1e-10)


def test_particles_folded_and_not() -> None:
    particles = draw_particles(torch.Generator().manual_seed(6), 2, spread=8.0)
    folded = folded_plane_field(folded_planes(particles, (32, 40), 20), CUBE)
    unfolded = central_plane_field(volume(particles, (32, 40), 20), CUBE)
    assert torch.allclose(folded, unfolded, atol=1e-3)
    assert float(folded.abs().max()) > 10.0
    # Empty planes beyond change nothing.
    deeper = folded_plane_field(folded_planes(particles, (32, 40), 37), CUBE)
    assert torch.allclose(deeper, folded_plane_field(folded_planes(particles, (32, 40)), CUBE), atol=1e-3)


def test_gradients() -> None:
    folded = _random(3, 5, 6, seed=5).requires_grad_()
    assert torch.autograd.gradcheck(lambda f: folded_plane_field(f, CUBE), (folded,))
    with torch.no_grad():
        plain = folded_plane_field(folded, CUBE)
    assert torch.allclose(plain, folded_plane_field(folded, CUBE).detach())


def test_the_argument_is_left_alone() -> None:
    folded = _random(3, 8, 8, seed=6)
    kept = folded.clone()
    first, second = folded_plane_field(folded, CUBE, padding=1.0), folded_plane_field(folded, CUBE, padding=1.0)
    assert torch.equal(folded, kept)
    assert torch.equal(first, second)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"voxel_size": (1.0, 1.0)}, "voxel_size"),
        ({"voxel_size": (1.0, -1.0, 1.0)}, "voxel_size"),
        ({"mass_magnetisation": 0.0}, "mass_magnetisation"),
        ({"mass_magnetisation": math.nan}, "mass_magnetisation"),
        ({"kind": "sinc"}, "kind"),
        ({"padding": 0.5}, "padding"),
    ],
)
def test_unusable_arguments(arguments: dict[str, object], message: str) -> None:
    given = {"voxel_size": CUBE} | arguments
    with pytest.raises(ValueError, match=message):
        central_plane_field(torch.zeros(4, 3, 4), **given)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=message):
        folded_plane_field(torch.zeros(3, 4, 4), **given)  # type: ignore[arg-type]


def test_unusable_concentrations() -> None:
    with pytest.raises(ValueError, match="concentration"):
        fold_planes(torch.zeros(4, 4))
    with pytest.raises(ValueError, match="folded"):
        folded_plane_field(torch.zeros(4, 4), CUBE)
    with pytest.raises(ValueError, match="float32 or float64"):
        folded_plane_field(torch.zeros(3, 4, 4, dtype=torch.int32), CUBE)
