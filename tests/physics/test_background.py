"""Background field removal: what comes from outside goes, what comes from inside stays."""

from __future__ import annotations

import math

import pytest
import torch

from physics.background import lbv, pdf, smv_kernel, vsharp
from physics.dipole import cuboid_field, sphere_field

METHODS = {"vsharp": vsharp, "pdf": pdf, "lbv": lbv}
LOCAL_ERROR = {"vsharp": 0.12, "pdf": 0.25, "lbv": 0.1}
SIZES = [(2.0, 2.0, 2.0), (1.5, 1.5, 4.0), (4.0, 2.0, 1.5), (1.5, 3.0, 2.0)]
OBLIQUE = (0.5, -0.5, math.sqrt(0.5))
every_method = pytest.mark.parametrize("name", METHODS)


def grid(voxel_size, extent=88.0):
    axes = [(torch.arange(round(extent / d), dtype=torch.float64) + 0.5) * d for d in voxel_size]
    points = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)
    return points - points.mean((0, 1, 2))


def head(points, scale=1.0):
    """An ellipsoid of 68 x 76 x 64 mm."""
    return (points / torch.tensor([34.0, 38.0, 32.0], dtype=torch.float64)).norm(dim=-1) < scale


def spheres(points, bodies, b0_direction=(0.0, 0.0, 1.0)):
    return sum(
        sphere_field(points, radius, centre=centre, b0_direction=b0_direction, susceptibility=chi)
        for centre, radius, chi in bodies
    )


OUTSIDE = [((0.0, 45.0, -17.0), 5.0, 9.0), ((42.0, 0.0, 5.0), 5.0, -9.0), ((0.0, 0.0, 300.0), 150.0, 9.0)]
INSIDE = [((0.0, 8.0, -5.0), 5.0, 0.2), ((-13.0, 0.0, 5.0), 5.0, -0.15), ((13.0, -10.0, 8.0), 4.0, 0.3)]


def scene(voxel_size, b0_direction=(0.0, 0.0, 1.0)):
    """Background with offset and shim gradient, local field, mask."""
    points = grid(voxel_size)
    background = spheres(points, OUTSIDE, b0_direction) + 0.05 + 0.002 * points[..., 0] - 0.001 * points[..., 2]
    return background, spheres(points, INSIDE, b0_direction), head(points)


def run(name, field, mask, voxel_size=(1.0, 1.0, 1.0), b0_direction=(0.0, 0.0, 1.0), **options):
    if name == "pdf":
        return pdf(field, mask, voxel_size, b0_direction, **options)
    return METHODS[name](field, mask, voxel_size, **options)


@every_method
@pytest.mark.parametrize("voxel_size", SIZES, ids=str)
def test_background_goes_and_local_field_stays(name, voxel_size):
    background, local, mask = scene(voxel_size)
    left, valid = run(name, background, mask, voxel_size)
    spread = (background - background[mask].mean())[valid].norm()
    assert left[valid].norm() < 0.01 * spread
    found, _ = run(name, background + local, mask, voxel_size)
    assert (found - local)[valid].norm() < LOCAL_ERROR[name] * local[valid].norm()


@every_method
def test_oblique_field(name):
    background, local, mask = scene((2.0, 2.0, 2.0), OBLIQUE)
    found, valid = run(name, background + local, mask, (2.0, 2.0, 2.0), OBLIQUE)
    assert (found - local)[valid].norm() < LOCAL_ERROR[name] * local[valid].norm()


@every_method
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_convention_of_the_result(name, dtype):
    background, local, mask = scene((3.0, 3.0, 3.0))
    field = (background + local).to(dtype)
    found, valid = run(name, field, mask, (3.0, 3.0, 3.0))
    assert found.shape == valid.shape == field.shape
    assert found.dtype == dtype and valid.dtype == torch.bool
    assert not found[~valid].any()
    assert not (valid & ~mask).any() and valid.sum() > 0.5 * mask.sum()
    double, _ = run(name, field.double(), mask, (3.0, 3.0, 3.0))
    assert (found - double).abs().max() < 1e-4


@every_method
def test_what_lies_outside_of_the_mask_does_not_matter(name):
    background, local, mask = scene((3.0, 3.0, 3.0))
    field = background + local
    bad = torch.where(mask, field, math.nan)
    assert torch.equal(run(name, bad, mask, (3.0, 3.0, 3.0))[0], run(name, field, mask, (3.0, 3.0, 3.0))[0])


@pytest.mark.parametrize("name", ["vsharp", "lbv"])
def test_linear(name):
    background, local, mask = scene((3.0, 3.0, 3.0))
    options = {} if name == "vsharp" else {"tolerance": 1e-12}
    one, two = (run(name, f, mask, (3.0, 3.0, 3.0), **options)[0] for f in (background, local))
    both, _ = run(name, 2 * background - 3 * local, mask, (3.0, 3.0, 3.0), **options)
    torch.testing.assert_close(both, 2 * one - 3 * two, atol=1e-9, rtol=0)


@every_method
def test_batch_is_every_volume_alone(name):
    background, local, mask = scene((3.0, 3.0, 3.0))
    fields = torch.stack([background + local, local])[:, None]
    masks = torch.stack([mask, head(grid((3.0, 3.0, 3.0)), 0.8)])[:, None]
    options = {} if name == "vsharp" else {"tolerance": 0.0, "iterations": 8}
    together, valid = run(name, fields, masks, (3.0, 3.0, 3.0), **options)
    for index in range(2):
        alone, valid_alone = run(name, fields[index, 0], masks[index, 0], (3.0, 3.0, 3.0), **options)
        assert torch.equal(valid[index, 0], valid_alone)
        torch.testing.assert_close(together[index, 0], alone, atol=1e-6, rtol=0)
    shared, _ = run(name, fields, mask, (3.0, 3.0, 3.0), **options)
    assert shared.shape == fields.shape


@every_method
def test_axes_can_be_swapped(name):
    """The map of the swapped volume is the swapped map."""
    size = (2.0, 3.0, 4.0)
    background, local, mask = scene(size)
    found, valid = run(name, background + local, mask, size)
    order = (2, 0, 1)
    turned, turned_valid = run(
        name, (background + local).permute(order), mask.permute(order), (4.0, 2.0, 3.0), (1.0, 0.0, 0.0)
    )
    assert torch.equal(turned_valid, valid.permute(order))
    torch.testing.assert_close(turned, found.permute(order), atol=1e-6, rtol=0)


@pytest.mark.parametrize("voxel_size", SIZES, ids=str)
def test_lbv_removes_harmonic_polynomials(voxel_size):
    """x^2 - z^2 and xyz are harmonic on the grid too: nothing is left but the tolerance."""
    points = grid(voxel_size) / 30
    x, y, z = points.unbind(-1)
    mask = head(grid(voxel_size))
    for polynomial in (1 + x - 2 * y + 0.5 * z, x * y - y * z, x**2 - z**2, 2 * y**2 - x**2 - z**2, x * y * z):
        left, valid = lbv(polynomial, mask, voxel_size, tolerance=1e-9)
        assert valid.any() and left.abs().max() < 1e-6


@pytest.mark.parametrize("peel", [0, 1, 2])
def test_lbv_gives_a_bump_back_that_is_zero_on_the_border(peel):
    mask = torch.zeros(20, 21, 22, dtype=torch.bool)
    mask[2:18, 3:19, 4:20] = True
    generator = torch.Generator().manual_seed(1)
    bump = torch.zeros(20, 21, 22, dtype=torch.float64)
    bump[6:14, 7:15, 8:16] = torch.randn(8, 8, 8, generator=generator, dtype=torch.float64)
    # Not harmonic: what is left is the bump minus the harmonic function of its border values, which are zero.
    found, valid = lbv(bump, mask, peel=peel, tolerance=1e-10)
    assert valid.sum() == (16 - 2 * (peel + 1)) ** 3
    assert (found - bump).abs().max() < 1e-7


def test_lbv_converges_in_few_cycles_at_any_voxel_size():
    for voxel_size in SIZES:
        background, _, mask = scene(voxel_size)
        numbers = []
        lbv(background, mask, voxel_size, tolerance=1e-6, report=lambda i, numbers=numbers: numbers.append(i))
        assert len(numbers) <= 15
        assert numbers[-1].method == "lbv" and numbers[-1].change <= 1e-6 and numbers[-1].limit == 100


def test_pdf_is_weighted_least_squares_over_the_sources_outside():
    """Against a dense solution with the cuboid's closed form; few sources, so that it converges."""
    generator = torch.Generator().manual_seed(2)
    shape, size = (9, 8, 7), (1.0, 1.5, 2.0)
    mask = torch.rand(shape, generator=generator) > 0.05
    field = torch.randn(shape, generator=generator, dtype=torch.float64)
    weight = 0.5 + torch.rand(shape, generator=generator, dtype=torch.float64)
    places = torch.stack(torch.meshgrid(*(torch.arange(n) for n in shape), indexing="ij"), -1).double()
    points = places * torch.tensor(size, dtype=torch.float64)
    columns = [torch.ones(shape, dtype=torch.float64), *points.unbind(-1)]
    # Twice the grid has no sources in its padding only if the mask says so: embed, with the padding in the mask.
    wide = torch.ones((18, 16, 14), dtype=torch.bool)
    wide[:9, :8, :7] = mask
    for source in points[~mask]:
        columns.append(cuboid_field(points, size, centre=source.tolist(), b0_direction=OBLIQUE))
    matrix = torch.stack([column[mask] * weight[mask] for column in columns], -1)
    solution = torch.linalg.lstsq(matrix, (field * weight)[mask][:, None]).solution[:, 0]
    expected = field[mask] - torch.stack([column[mask] for column in columns], -1) @ solution

    def embed(volume):
        return torch.nn.functional.pad(volume, (0, 7, 0, 8, 0, 9))

    numbers = []
    local, _ = pdf(
        embed(field),
        wide,
        size,
        OBLIQUE,
        weight=embed(weight),
        padding=1.0,
        iterations=100,
        tolerance=1e-12,
        report=numbers.append,
    )
    assert numbers[-1].method == "pdf" and numbers[-1].change <= 1e-12
    torch.testing.assert_close(local[:9, :8, :7][mask], expected, atol=1e-8, rtol=0)


def test_pdf_explains_more_with_every_iteration():
    background, local, mask = scene((3.0, 3.0, 3.0))
    norms = [pdf(background + local, mask, (3.0, 3.0, 3.0), iterations=n, tolerance=0)[0].norm() for n in (1, 2, 5, 20)]
    assert norms == sorted(norms, reverse=True)


def test_pdf_with_two_scales_of_weight_is_the_same():
    background, local, mask = scene((3.0, 3.0, 3.0))
    weight = 1.0 + grid((3.0, 3.0, 3.0))[..., 0].abs()
    one, _ = pdf(background + local, mask, (3.0, 3.0, 3.0), weight=weight)
    two, _ = pdf(background + local, mask, (3.0, 3.0, 3.0), weight=1e3 * weight)
    torch.testing.assert_close(one, two)


def test_pdf_weighs_bad_voxels_down():
    background, local, mask = scene((2.0, 2.0, 2.0))
    spoilt = background + local
    bad = (grid((2.0, 2.0, 2.0)) - torch.tensor([0.0, 20.0, -20.0])).norm(dim=-1) < 5
    spoilt[bad] += 5.0
    good = mask & ~bad

    def error(weight):
        return (pdf(spoilt, mask, (2.0, 2.0, 2.0), weight=weight)[0] - local)[good].norm() / local[good].norm()

    weight = torch.where(bad, 0.0, 1.0)
    assert error(weight) < 0.2 < error(None)


@pytest.mark.parametrize("voxel_size", SIZES, ids=str)
@pytest.mark.parametrize("radius", [4.0, 7.5, 12.0])
def test_spherical_mean_of_a_harmonic_polynomial_is_its_value_at_the_centre(voxel_size, radius):
    kernel = smv_kernel(radius, voxel_size)
    assert all(n % 2 == 1 for n in kernel.shape)
    axes = [(torch.arange(n) - n // 2) * d for n, d in zip(kernel.shape, voxel_size, strict=True)]
    x, y, z = torch.meshgrid(*(axis.double() for axis in axes), indexing="ij")
    assert not kernel[(x**2 + y**2 + z**2) > radius**2 * (1 + 1e-5)].any()
    for polynomial in (1.0 + 0 * x, 3 + x, 3 + x * y - z, 3 + x**2 - z**2, 3 + 2 * y**2 - x**2 - z**2, 3 + x * y * z):
        centre = polynomial[tuple(n // 2 for n in kernel.shape)]
        torch.testing.assert_close((kernel * polynomial).sum(), centre, atol=1e-9, rtol=0)


def test_radius_of_vsharp_decides_the_mask():
    background, _, mask = scene((2.0, 2.0, 2.0))
    counts = [int(vsharp(background, mask, (2.0, 2.0, 2.0), smallest_radius=r)[1].sum()) for r in (2.0, 4.0, 6.0, 8.0)]
    assert counts == sorted(counts, reverse=True) and len(set(counts)) == 4
    depth = torch.where(head(grid((2.0, 2.0, 2.0)), 1 - 9.0 / 32), 1, 0).bool()  # at least 8 mm and a voxel deep
    valid = vsharp(background, mask, (2.0, 2.0, 2.0), smallest_radius=8.0)[1]
    assert not (depth & ~valid).any()


BAD = [
    ({"field": torch.zeros(4, 4)}, "X, Y, Z"),
    ({"field": torch.zeros(8, 8, 8, dtype=torch.int32)}, "real"),
    ({"mask": torch.ones(8, 8, 7, dtype=torch.bool)}, "shape of the field"),
    ({"mask": torch.ones(8, 8, 8)}, "boolean"),
    ({"mask": torch.zeros(8, 8, 8, dtype=torch.bool)}, "empty"),
    ({"field": torch.full((8, 8, 8), math.nan)}, "finite"),
    ({"voxel_size": (1.0, 1.0, 0.0)}, "voxel_size"),
]


@every_method
@pytest.mark.parametrize(("change", "message"), BAD, ids=[message for _, message in BAD])
def test_bad_volumes(name, change, message):
    given = {"field": torch.zeros(8, 8, 8), "mask": torch.ones(8, 8, 8, dtype=torch.bool), **change}
    with pytest.raises(ValueError, match=message):
        METHODS[name](**given)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("vsharp", {"threshold": 0.0}, "threshold"),
        ("vsharp", {"smallest_radius": 0.5}, "smallest_radius"),
        ("vsharp", {"smallest_radius": 6.0, "largest_radius": 5.0}, "smallest_radius"),
        ("vsharp", {"smallest_radius": 5.0, "largest_radius": 5.0}, "too thin"),
        ("pdf", {"b0_direction": (0.0, 0.0, 2.0)}, "unit length"),
        ("pdf", {"weight": -torch.ones(8, 8, 8)}, "weight"),
        ("pdf", {"weight": torch.ones(8, 8, 7)}, "weight"),
        ("pdf", {"iterations": 0}, "iterations"),
        ("lbv", {"peel": -1}, "peel"),
        ("lbv", {"peel": 4}, "too thin"),
    ],
)
def test_bad_options(name, options, message):
    with pytest.raises(ValueError, match=message):
        METHODS[name](torch.zeros(8, 8, 8), torch.ones(8, 8, 8, dtype=torch.bool), **options)
