"""Dipole kernel and forward model against closed forms; adjoint, symmetries, cache."""

import itertools
import math

import mpmath
import numpy as np
import pytest
import torch

from physics.dipole import (
    check_geometry,
    cuboid_field,
    dipole_kernel,
    fast_shape,
    field_from_susceptibility,
    sphere_field,
    susceptibility_adjoint,
)

AXIAL, TILTED, DIAGONAL = (0.0, 0.0, 1.0), (0.0, 0.5, math.sqrt(0.75)), (1 / math.sqrt(3),) * 3
OBLIQUE = (-0.48, 0.6, 0.64)
DIRECTIONS = [AXIAL, (1.0, 0.0, 0.0), TILTED, DIAGONAL, OBLIQUE]
SIZES = [(1.0, 1.0, 1.0), (1.0, 1.0, 3.0), (0.5, 1.0, 1.0), (1.0, 2.0, 0.7)]
SHAPES = [(12, 14, 16), (9, 11, 13), (10, 13, 8)]
every_kind = pytest.mark.parametrize("kind", ["exact", "kspace"])


def centres(shape, voxel_size):
    """Positions [X, Y, Z, 3] of the voxel centres [mm]."""
    axes = [torch.arange(n, dtype=torch.float64) * d for n, d in zip(shape, voxel_size, strict=True)]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)


def noise(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def two_cuboids(shape, voxel_size, b0):
    """Susceptibility of two cuboids made of whole voxels, one at the border, and its field in closed form."""
    chi = torch.zeros(shape, dtype=torch.float64)
    field = torch.zeros_like(chi)
    for value, first, last in ((1.0, (2, 3, 1), (6, 8, 5)), (-0.4, (5, 0, 6), (9, 2, 8))):
        chi[tuple(slice(a, b) for a, b in zip(first, last, strict=True))] = value
        size = [(b - a) * d for a, b, d in zip(first, last, voxel_size, strict=True)]
        centre = [(a + b - 1) / 2 * d for a, b, d in zip(first, last, voxel_size, strict=True)]
        points = centres(shape, voxel_size)
        field += cuboid_field(points, size, centre=centre, b0_direction=b0, susceptibility=value)
    return chi, field


@pytest.mark.parametrize("b0", DIRECTIONS)
@pytest.mark.parametrize("voxel_size", SIZES)
def test_exact_kernel_gives_the_closed_form_of_cuboids(voxel_size, b0):
    for shape in SHAPES:
        chi, expected = two_cuboids(shape, voxel_size, b0)
        torch.testing.assert_close(field_from_susceptibility(chi, voxel_size, b0), expected, atol=1e-13, rtol=0)
        single = field_from_susceptibility(chi.float(), voxel_size, b0)
        assert single.dtype == torch.float32
        torch.testing.assert_close(single.double(), expected, atol=1e-6, rtol=0)


def multiprecision_field(offset, voxel_size, b0):
    """Field of one voxel with 50 digits, from the usual antiderivatives with log(r + z)."""
    with mpmath.workdps(50):
        total = mpmath.mpf(0)
        for signs in itertools.product((1, -1), repeat=3):
            p = [mpmath.mpf(o) + s * mpmath.mpf(d) / 2 for o, s, d in zip(offset, signs, voxel_size, strict=True)]
            r = mpmath.sqrt(sum(q * q for q in p))
            for i, j in itertools.product(range(3), repeat=2):
                k = 3 - i - j if i != j else 0
                entry = mpmath.atan(p[(i + 1) % 3] * p[(i + 2) % 3] / (p[i] * r)) if i == j else -mpmath.log(r + p[k])
                total -= math.prod(signs) * mpmath.mpf(b0[i]) * mpmath.mpf(b0[j]) * entry / (4 * mpmath.pi)
        return float(total)


@pytest.mark.parametrize("voxel_size", [(1.0, 1.0, 1.0), (1.0, 1.0, 3.0), (0.5, 1.0, 1.0)])
def test_cancellation_far_from_the_voxel_stays_at_rounding(voxel_size):
    """The closed form is a third difference. 170 voxels away it keeps an absolute error below 1e-15 all the same."""
    b0 = check_geometry((1, 1, 1), OBLIQUE)[1]
    for axis in range(3):
        shape = [6, 6, 6]
        shape[axis] = 400
        kernel = dipole_kernel(shape, voxel_size, b0, dtype=torch.float64)
        field = torch.fft.irfftn(kernel, s=shape)
        for far in (1, 20, 80, 170):
            index = [2, 1, 2]
            index[axis] = far
            offset = [i * d for i, d in zip(index, voxel_size, strict=True)]
            assert float(field[tuple(index)]) == pytest.approx(multiprecision_field(offset, voxel_size, b0), abs=1e-15)


def partial_volume_sphere(shape, voxel_size, radius, parts=6):
    """Share of each voxel inside a sphere at the middle voxel, and the offsets [X, Y, Z, 3] of the voxel centres."""
    offset = centres(shape, voxel_size) - torch.tensor([n // 2 * d for n, d in zip(shape, voxel_size, strict=True)])
    distance = offset.norm(dim=-1)
    half_diagonal = math.hypot(*voxel_size) / 2
    share = (distance < radius).double()
    border = (distance - radius).abs() <= half_diagonal
    steps = (torch.arange(parts, dtype=torch.float64) + 0.5) / parts - 0.5
    inner = torch.stack(torch.meshgrid(*(steps * d for d in voxel_size), indexing="ij"), -1).reshape(-1, 3)
    share[border] = ((offset[border][:, None] + inner).norm(dim=-1) < radius).double().mean(-1)
    return share, offset


def error_outside(radius, voxel_size, b0, kind="exact"):
    """NRMSE against the closed form, from one and a half voxels outside the sphere to three radii."""
    shape = [math.ceil(3.5 * radius / d) for d in voxel_size]
    share, offset = partial_volume_sphere(shape, voxel_size, radius)
    field = field_from_susceptibility(share.float(), voxel_size, b0, kind).double()
    distance = offset.norm(dim=-1)
    shell = (distance > radius + 1.5 * max(voxel_size)) & (distance < 3 * radius)
    expected = sphere_field(offset, radius, b0_direction=b0)[shell]
    return float((field[shell] - expected).norm() / expected.norm())


@pytest.mark.parametrize("b0", [AXIAL, TILTED, DIAGONAL])
@pytest.mark.parametrize(
    ("voxel_size", "radius", "limit"),
    [
        ((1.0, 1.0, 1.0), 12.0, 0.01),
        ((0.5, 1.0, 1.0), 12.0, 0.01),
        # eight slices: this sphere made of voxels is a longer body than the sphere, whatever the kernel
        ((1.0, 1.0, 3.0), 12.0, 0.02),
        ((1.0, 1.0, 3.0), 24.0, 0.01),
    ],
)
def test_partial_volume_sphere(voxel_size, radius, limit, b0):
    assert error_outside(radius, voxel_size, b0) < limit


def test_sampled_kspace_kernel_is_worse_where_b0_is_oblique_or_voxels_are_long():
    cases = (((1.0, 1.0, 1.0), 12.0, DIAGONAL, 4.0), ((1.0, 1.0, 3.0), 24.0, AXIAL, 1.5))
    for voxel_size, radius, b0, least in cases:
        sampled, exact = (error_outside(radius, voxel_size, b0, kind) for kind in ("kspace", "exact"))
        assert sampled > least * exact


@every_kind
@pytest.mark.parametrize("padding", [1.0, 1.25, 2.0])
def test_adjoint(kind, padding):
    for shape, voxel_size, b0 in itertools.product(SHAPES, SIZES[1:3], (AXIAL, OBLIQUE)):
        chi, field = noise(*shape), noise(*shape, seed=1)
        left = (field_from_susceptibility(chi, voxel_size, b0, kind, padding) * field).sum()
        right = (chi * susceptibility_adjoint(field, voxel_size, b0, kind, padding)).sum()
        assert float(left) == pytest.approx(float(right), rel=1e-12, abs=1e-12)


@every_kind
def test_gradient_is_the_adjoint(kind):
    chi = noise(3, 4, 5).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: field_from_susceptibility(x, (1, 2, 1), OBLIQUE, kind), (chi,))
    weight = noise(3, 4, 5, seed=1)
    field_from_susceptibility(chi, (1, 2, 1), OBLIQUE, kind).backward(weight)
    torch.testing.assert_close(chi.grad, susceptibility_adjoint(weight, (1, 2, 1), OBLIQUE, kind))


@every_kind
@pytest.mark.parametrize("order", [(1, 0, 2), (2, 1, 0), (1, 2, 0)])
def test_permuted_axes_give_the_permuted_field(kind, order):
    chi, voxel_size = noise(8, 9, 10), (1.0, 0.5, 3.0)
    permuted = field_from_susceptibility(
        chi.permute(order), [voxel_size[i] for i in order], [OBLIQUE[i] for i in order], kind
    )
    torch.testing.assert_close(permuted, field_from_susceptibility(chi, voxel_size, OBLIQUE, kind).permute(order))


@every_kind
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_flipped_axis_gives_the_flipped_field(kind, axis):
    chi, voxel_size = noise(8, 9, 10), (1.0, 0.5, 3.0)
    b0 = [-b if i == axis else b for i, b in enumerate(OBLIQUE)]
    flipped = field_from_susceptibility(chi.flip(axis), voxel_size, b0, kind)
    torch.testing.assert_close(flipped, field_from_susceptibility(chi, voxel_size, OBLIQUE, kind).flip(axis))


@every_kind
def test_opposite_b0_and_scaled_voxels_change_nothing(kind):
    chi = noise(8, 9, 10)
    field = field_from_susceptibility(chi, (1, 0.5, 2), OBLIQUE, kind)
    opposite = field_from_susceptibility(chi, (1, 0.5, 2), [-b for b in OBLIQUE], kind)
    torch.testing.assert_close(opposite, field)
    torch.testing.assert_close(field_from_susceptibility(chi, (3, 1.5, 6), OBLIQUE, kind), field)


@every_kind
@pytest.mark.parametrize("shape", [(8, 8, 8), (8, 9, 10), (7, 6, 5), (1, 4, 6)])
def test_spectrum_is_equal_at_k_and_minus_k(kind, shape):
    """On the planes that rfftn keeps whole, Nyquist included; and under each flip that leaves B0 in place."""
    kernel = dipole_kernel(shape, (1, 2, 0.7), OBLIQUE, kind, dtype=torch.float64)
    planes = [0, shape[2] // 2] if shape[2] % 2 == 0 else [0]
    for plane in planes:
        mirrored = kernel[..., plane].flip((0, 1)).roll((1, 1), (0, 1))
        torch.testing.assert_close(mirrored, kernel[..., plane], atol=1e-14, rtol=0)
    in_space = torch.fft.irfftn(kernel, s=shape)  # a spectrum that is real throughout belongs to an even function
    torch.testing.assert_close(in_space.flip((0, 1, 2)).roll((1, 1, 1), (0, 1, 2)), in_space, atol=1e-14, rtol=0)
    torch.testing.assert_close(torch.fft.rfftn(in_space).real, kernel, atol=1e-13, rtol=0)


def test_kspace_kernel_off_the_nyquist_planes():
    shape, voxel_size = (5, 7, 9), (1.0, 2.0, 0.5)
    k = np.stack(np.meshgrid(*(np.fft.fftfreq(n, d) for n, d in zip(shape, voxel_size, strict=True)), indexing="ij"))
    with np.errstate(invalid="ignore"):
        expected = 1 / 3 - np.tensordot(OBLIQUE, k, 1) ** 2 / np.tensordot(np.ones(3), k**2, 1)
    expected[0, 0, 0] = 0
    kernel = dipole_kernel(shape, voxel_size, OBLIQUE, "kspace", dtype=torch.float64)
    np.testing.assert_allclose(kernel.numpy(), expected[..., :5], atol=1e-14)


def test_both_kernels_agree_at_low_frequencies():
    exact, sampled = (dipole_kernel((96,) * 3, (1, 1, 1), OBLIQUE, kind) for kind in ("exact", "kspace"))
    low = (slice(4, 9),) * 3
    torch.testing.assert_close(exact[low], sampled[low], atol=0.02, rtol=0)


def test_zero_frequency():
    assert float(dipole_kernel((8, 8, 8), (1, 1, 1), kind="kspace")[0, 0, 0]) == 0
    assert float(dipole_kernel((8, 8, 8), (1, 1, 1), kind="kspace", zero_frequency=1 / 3)[0, 0, 0]) == pytest.approx(
        1 / 3
    )
    long = dipole_kernel((8, 8, 64), (1, 1, 1), dtype=torch.float64)
    # the sum over the sampled kernel is the field at the middle of the box filled with susceptibility, up to its border
    assert float(long[0, 0, 0]) == pytest.approx(float(torch.fft.irfftn(long, s=(8, 8, 64)).sum()))
    assert float(long[0, 0, 0]) == pytest.approx(float(cuboid_field(torch.zeros(1, 3), (8.0, 8.0, 64.0))), abs=0.02)
    fixed = dipole_kernel((8, 8, 64), (1, 1, 1), dtype=torch.float64, zero_frequency=0.0)
    assert float(fixed[0, 0, 0]) == 0 and torch.equal(fixed[1:], long[1:])


def test_volumes_of_a_batch_are_independent():
    chi = noise(2, 3, 6, 7, 8, dtype=torch.float32)
    field = field_from_susceptibility(chi, (1, 1, 2), OBLIQUE)
    assert field.shape == chi.shape
    torch.testing.assert_close(field[1, 2], field_from_susceptibility(chi[1, 2], (1, 1, 2), OBLIQUE))


def test_field_is_linear_and_shifts_with_its_source():
    chi = torch.zeros(2, 12, 12, 12, dtype=torch.float64)
    chi[0, 3, 4, 5], chi[1, 6, 6, 6] = 1.0, -2.0
    field = field_from_susceptibility(chi, (1, 1, 2), OBLIQUE)
    torch.testing.assert_close(field_from_susceptibility(chi.sum(0), (1, 1, 2), OBLIQUE), field.sum(0))
    torch.testing.assert_close(field[1, 5:, 5:, 5:] / -2, field[0, 2:9, 3:10, 4:11])


def test_kernel_is_cached_and_can_be_trained_through_after_inference_mode():
    shape = (6, 10, 14)
    with torch.inference_mode():
        kernel = dipole_kernel(shape, (1, 1, 1), TILTED)
    assert dipole_kernel(list(shape), torch.ones(3), torch.tensor(TILTED, dtype=torch.float64)) is kernel
    assert dipole_kernel(shape, (1, 1, 1), TILTED, dtype=torch.float64) is not kernel
    spectrum = torch.ones_like(kernel, requires_grad=True)
    (spectrum * kernel).sum().backward()
    torch.testing.assert_close(spectrum.grad, kernel)


def test_fast_shape_pads_to_lengths_without_large_factors():
    assert fast_shape((3, 64, 100, 161), 2.0) == (128, 200, 324)
    assert fast_shape((7, 11, 13), 1.0) == (7, 11, 13)
    with pytest.raises(ValueError, match="padding must be at least 1"):
        fast_shape((8, 8, 8), 0.9)


def test_direction_is_scaled_to_unit_length():
    sizes, direction = check_geometry([1, 2, 3], (0.0, 0.6003, 0.8))
    assert sizes == (1.0, 2.0, 3.0) and math.hypot(*direction) == pytest.approx(1, abs=1e-15)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"voxel_size": (1, 1)}, "voxel_size must be 3 finite numbers"),
        ({"voxel_size": (1, 0, 1)}, "voxel_size must be positive"),
        ({"voxel_size": (1, math.nan, 1)}, "voxel_size must be 3 finite"),
        ({"b0_direction": (0, 1, 1)}, "b0_direction must have unit length"),
        ({"b0_direction": (0, 0, 0)}, "b0_direction must have unit length"),
        ({"b0_direction": (0, math.inf, 1)}, "b0_direction must be 3 finite"),
        ({"kind": "image"}, r"one of \('exact', 'kspace'\), got 'image'"),
        ({"padding": 0.5}, "padding must be at least 1"),
        ({"chi": torch.zeros(8, 8)}, r"axes \[..., X, Y, Z\]"),
        ({"chi": torch.zeros(8, 0, 8)}, "not empty"),
        ({"chi": torch.zeros(8, 8, 8, dtype=torch.int32)}, "float32 or float64"),
    ],
)
def test_bad_input(arguments, message):
    given = {"chi": torch.zeros(8, 8, 8), "voxel_size": (1, 1, 1)} | arguments
    with pytest.raises(ValueError, match=message):
        field_from_susceptibility(**given)


def test_bad_kernel_arguments():
    with pytest.raises(ValueError, match="shape must be 3"):
        dipole_kernel((8, 8), (1, 1, 1))
    with pytest.raises(ValueError, match="dtype"):
        dipole_kernel((8, 8, 8), (1, 1, 1), dtype=torch.float16)
    with pytest.raises(ValueError, match="zero_frequency"):
        dipole_kernel((8, 8, 8), (1, 1, 1), zero_frequency=math.nan)
