"""Closed-form fields against numerical integrals of dipoles, limits and one another."""

import math

import numpy as np
import pytest
import torch
from scipy import integrate

from physics.dipole import cuboid_field, cylinder_field, sphere_field

OBLIQUE = (0.48, -0.6, 0.64)
DIRECTIONS = [(0.0, 0.0, 1.0), (1.0, 0.0, 0.0), (0.0, 0.6, 0.8), OBLIQUE]


def positions(*points):
    return torch.tensor(points, dtype=torch.float64)


def dipole_density(offset, b0):
    """Field at ``offset`` [..., 3] from a unit volume of unit susceptibility."""
    distance = np.linalg.norm(offset, axis=-1)
    return (3 * (offset @ np.asarray(b0)) ** 2 / distance**2 - 1) / (4 * math.pi * distance**3)


def integrated_cuboid(point, size, b0, nodes=24):
    """Gauss-Legendre sum of the dipoles in a cuboid at the origin, for a point outside."""
    x, w = np.polynomial.legendre.leggauss(nodes)
    grid = np.stack(np.meshgrid(*(x * length / 2 for length in size), indexing="ij"), -1)
    weight = np.einsum("i,j,k->ijk", w, w, w) * math.prod(size) / 8
    return float((weight * dipole_density(np.asarray(point) - grid, b0)).sum())


@pytest.mark.parametrize("b0", DIRECTIONS)
@pytest.mark.parametrize("size", [(2.0, 2.0, 2.0), (1.0, 2.0, 6.0), (0.5, 4.0, 1.0)])
def test_cuboid_outside_is_the_integral_of_its_dipoles(size, b0):
    points = [(2.0, 3.0, 4.0), (-3.0, 0.0, 0.0), (0.0, 0.0, -5.0), (1.5, -3.5, 0.2)]
    expected = [integrated_cuboid(point, size, b0) for point in points]
    assert cuboid_field(positions(*points), size, b0_direction=b0).tolist() == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("b0", DIRECTIONS)
def test_inside_a_cuboid_the_missing_sphere_is_integrated(b0):
    """A sphere around the point adds nothing, so the dipoles of the rest of the cuboid are left: shells of radii r."""
    size, point = (2.0, 3.0, 4.0), np.array([0.3, -0.2, 0.5])
    x, w = np.polynomial.legendre.leggauss(100)
    azimuth = (np.arange(200) + 0.5) * 2 * math.pi / 200
    sine = np.sqrt(1 - x**2)
    direction = np.stack(
        [sine[:, None] * np.cos(azimuth), sine[:, None] * np.sin(azimuth), np.broadcast_to(x[:, None], (100, 200))], -1
    )
    # the integral over r of 1/r^3 r^2 from the sphere to the surface is the log of the distance to the surface
    with np.errstate(divide="ignore"):
        to_faces = np.max(np.stack([(np.array(size) / 2 * s - point) / direction for s in (1, -1)]), axis=0)
    angular = (3 * (direction @ np.asarray(b0)) ** 2 - 1) / (4 * math.pi)
    expected = float((w[:, None] * angular * np.log(to_faces.min(-1))).sum() * 2 * math.pi / 200)
    actual = float(cuboid_field(positions(point.tolist()), size, b0_direction=b0)[0])
    assert actual == pytest.approx(expected, abs=1e-4)


def test_cube_has_no_field_at_its_centre_and_a_cuboid_that_of_its_shape():
    centre = positions((0.0, 0.0, 0.0))
    for b0 in DIRECTIONS:
        assert float(cuboid_field(centre, (3.0, 3.0, 3.0), b0_direction=b0)) == pytest.approx(0, abs=1e-15)
    assert float(cuboid_field(centre, (1.0, 1.0, 1e5))) == pytest.approx(1 / 3, abs=1e-8)  # a needle along B0
    assert float(cuboid_field(centre, (1e5, 1e5, 1.0))) == pytest.approx(1 / 3 - 1, abs=1e-4)  # a plate across B0


def test_mean_of_three_orthogonal_directions_is_zero():
    """N has the trace 1 inside and 0 outside: tr N / 3 - b.N b has none."""
    points = torch.randn(50, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 2
    rotation = positions((2, -1, 2), (2, 2, -1), (-1, 2, 2)) / 3
    total = sum(cuboid_field(points, (2.0, 1.0, 3.0), b0_direction=column) for column in rotation.T)
    torch.testing.assert_close(total, torch.zeros(50, dtype=torch.float64), atol=1e-14, rtol=0)


def test_parts_add_up_to_the_whole():
    points = torch.randn(50, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 3
    whole = cuboid_field(points, (3.0, 2.0, 2.0), centre=(0.5, 0.0, 0.0), b0_direction=OBLIQUE, susceptibility=0.7)
    left = cuboid_field(points, (1.0, 2.0, 2.0), centre=(-0.5, 0.0, 0.0), b0_direction=OBLIQUE, susceptibility=0.7)
    right = cuboid_field(points, (2.0, 2.0, 2.0), centre=(1.0, 0.0, 0.0), b0_direction=OBLIQUE, susceptibility=0.7)
    torch.testing.assert_close(left + right, whole, atol=1e-14, rtol=1e-12)


def test_face_of_a_cuboid_has_the_mean_of_both_sides():
    size, inner, face, outer = (2.0, 2.0, 2.0), (0.3, 0.2, 1 - 1e-9), (0.3, 0.2, 1.0), (0.3, 0.2, 1 + 1e-9)
    sides = cuboid_field(positions(inner, face, outer), size, b0_direction=OBLIQUE)
    assert float(sides[0] - sides[2]) == pytest.approx(1 / 3 - OBLIQUE[2] ** 2, abs=1e-6)
    assert float(sides[1]) == pytest.approx(float(sides[0] + sides[2]) / 2, abs=1e-6)


def test_field_beyond_an_edge_is_finite_and_continuous():
    near = cuboid_field(positions((1.0, 1.0, 2.0), (1.0 + 1e-7, 1.0, 2.0)), (2.0, 2.0, 2.0), b0_direction=OBLIQUE)
    assert bool(near.isfinite().all()) and float(near[0] - near[1]) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("b0", DIRECTIONS)
def test_distant_cuboid_and_sphere_are_dipoles(b0):
    point, volume = positions((300.0, 400.0, -500.0)), 24.0
    expected = volume * dipole_density(point.numpy(), b0)[0]
    assert float(cuboid_field(point, (2.0, 3.0, 4.0), b0_direction=b0)) == pytest.approx(expected, abs=1e-13)
    radius = (volume * 3 / (4 * math.pi)) ** (1 / 3)
    assert float(sphere_field(point, radius, b0_direction=b0)) == pytest.approx(expected, rel=1e-12, abs=1e-20)


def test_sphere_at_pole_and_equator_and_inside():
    points = positions((0, 0, 4), (4, 0, 0), (0.1, 0.2, 0.3), (0, 0, 0))
    field = sphere_field(points, 2.0, susceptibility=3.0)
    assert field.tolist() == pytest.approx([3 * 2 / 3 / 8, -3 / 3 / 8, 0, 0])
    moved = sphere_field(points + 5, 2.0, centre=(5.0, 5.0, 5.0), susceptibility=3.0)
    torch.testing.assert_close(moved, field)


@pytest.mark.parametrize("b0", DIRECTIONS)
@pytest.mark.parametrize("axis", [(0.0, 0.0, 1.0), (0.6, 0.0, 0.8)])
def test_thin_cylinder_is_a_line_of_dipoles(axis, b0):
    along = np.asarray(axis)
    point = np.array([1.0, 2.0, -0.5])
    expected = integrate.quad(lambda s: dipole_density(point - s * along, b0), -np.inf, np.inf, epsabs=1e-12)[0]
    field = cylinder_field(positions(point.tolist()), 0.1, axis=axis, b0_direction=b0)
    assert float(field) == pytest.approx(expected * math.pi * 0.1**2, abs=1e-12)


def test_cylinder_inside():
    inside = positions((0.3, 0.1, 7.0))
    assert float(cylinder_field(inside, 1.0, axis=(0, 0, 1))) == pytest.approx(1 / 3)
    assert float(cylinder_field(inside, 1.0, axis=(0, 0, 1), b0_direction=(1, 0, 0))) == pytest.approx(-1 / 6)


def test_square_rod_tends_to_the_cylinder_far_away():
    points = positions((15.0, 0.0, 0.0), (9.0, 12.0, 1.0))
    rod = cuboid_field(points, (1.0, 1.0, 1e5), b0_direction=OBLIQUE)
    cylinder = cylinder_field(points, math.sqrt(1 / math.pi), axis=(0, 0, 1), b0_direction=OBLIQUE)
    torch.testing.assert_close(rod, cylinder, rtol=1e-4, atol=1e-8)


def test_gradients_by_position():
    points = positions((2.0, 0.3, -0.2), (0.4, 0.1, 0.2)).requires_grad_()
    for field in (
        lambda p: sphere_field(p, 1.0, b0_direction=OBLIQUE),
        lambda p: cylinder_field(p, 1.0, axis=(0, 0, 1), b0_direction=OBLIQUE),
        lambda p: cuboid_field(p, (2.0, 1.0, 1.0), b0_direction=OBLIQUE),
    ):
        assert torch.autograd.gradcheck(field, (points,))


def test_bad_input():
    point = positions((1.0, 2.0, 3.0))
    with pytest.raises(ValueError, match="radius"):
        sphere_field(point, 0.0)
    with pytest.raises(ValueError, match="radius"):
        cylinder_field(point, math.nan, axis=(0, 0, 1))
    with pytest.raises(ValueError, match="axis .* unit length"):
        cylinder_field(point, 1.0, axis=(0, 0, 2))
    with pytest.raises(ValueError, match="b0_direction .* unit length"):
        cuboid_field(point, (1, 1, 1), b0_direction=(0, 1, 1))
    with pytest.raises(ValueError, match="size"):
        cuboid_field(point, (1, 1, -1))
    with pytest.raises(ValueError, match="3 lengths"):
        cuboid_field(point, (1, 1))
    with pytest.raises(ValueError, match=r"points .*shape \(1, 2\)"):
        sphere_field(point[:, :2], 1.0)
