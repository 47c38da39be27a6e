"""Dipole inversions against the problems they solve, against one another, and under symmetries."""

import math

import numpy as np
import pytest
import torch
from scipy import integrate

from physics.dipole import field_from_susceptibility
from physics.dipole_inversion import Iteration, l2_gradient, tikhonov, tkd, tv_admm
from physics.dipole_inversion.common import gradient_energy, prepare

OBLIQUE = (0.48, 0.6, 0.64)
METHODS = {"tkd": tkd, "tikhonov": tikhonov, "l2_gradient": l2_gradient, "tv_admm": tv_admm}
every_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)


def noise(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def ellipsoids(shape=(48, 52, 44), n=20, seed=1, voxel_size=(1.0, 1.0, 1.0), dtype=torch.float64):
    """Susceptibility of ellipsoids [ppm], with a mean of 0 over an ellipsoidal mask, and the mask."""
    random = np.random.default_rng(seed)
    axes = [(torch.arange(n, dtype=torch.float64) - (n - 1) / 2) * d for n, d in zip(shape, voxel_size, strict=True)]
    offset = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)
    reach = torch.tensor([-axis[0] for axis in axes])
    mask = (offset / (0.88 * reach)).norm(dim=-1) < 1
    chi = torch.zeros(shape, dtype=torch.float64)
    for _ in range(n):
        centre = torch.from_numpy(random.uniform(-0.6, 0.6, 3)) * reach
        rotation = torch.from_numpy(np.linalg.qr(random.normal(size=(3, 3)))[0])
        semi_axes = torch.from_numpy(random.uniform(2.5, 9.0, 3))
        distance = (((offset - centre) @ rotation) / semi_axes).norm(dim=-1)
        chi += random.normal(0, 0.06) * ((1 - distance) * semi_axes.min() + 0.5).clamp(0, 1)
    chi = torch.where(mask, chi - chi[mask].mean(), 0)
    return chi.to(dtype), mask


def nrmse(estimate, chi, mask):
    """Percent, both with their mean over the mask subtracted."""
    estimate, chi = estimate[mask] - estimate[mask].mean(), chi[mask] - chi[mask].mean()
    return float(100 * (estimate - chi).norm() / chi.norm())


def slope(estimate, chi, mask):
    chi = chi[mask] - chi[mask].mean()
    return float((estimate[mask] * chi).sum() / chi.square().sum())


def gradient(volume, voxel_size):
    return [torch.diff(volume, dim=i, append=volume.narrow(i, 0, 1)) / d for i, d in enumerate(voxel_size)]


# the closed forms


@pytest.mark.parametrize("threshold", [0.1, 0.15, 0.2, 0.25, 0.4, 0.6])
def test_slope_correction_is_the_mean_over_all_directions(threshold):
    """Quadrature of what truncation leaves; at the first four it is .9129, .8683, .8224, .7742."""
    left = integrate.quad(lambda u: min(1, abs(1 / 3 - u**2) / threshold), 0, 1, limit=200)[0]
    field = noise(8, 8, 8)
    corrected = tkd(field, (1, 1, 1), threshold=threshold)
    plain = tkd(field, (1, 1, 1), threshold=threshold, slope_correction=False)
    torch.testing.assert_close(corrected * left, plain)
    published = {0.1: 0.9129, 0.15: 0.8683, 0.2: 0.8224, 0.25: 0.7742}
    assert left == pytest.approx(published.get(threshold, left), abs=1e-4)


@pytest.mark.parametrize("kernel", ["exact", "kspace"])
@pytest.mark.parametrize("threshold", [0.1, 0.15, 0.2, 0.25])
def test_slope_of_corrected_tkd_is_one(threshold, kernel):
    """Where the field is known outside of the object too; what a mask cuts off of it is lost beside."""
    chi, mask = ellipsoids((64, 64, 64), n=30)
    field = field_from_susceptibility(chi, (1, 1, 1))
    corrected = tkd(field, (1, 1, 1), threshold=threshold, kernel=kernel)
    assert slope(corrected, chi, mask) == pytest.approx(1, abs=0.03)
    plain = tkd(field, (1, 1, 1), threshold=threshold, slope_correction=False, kernel=kernel)
    assert slope(plain, chi, mask) < 0.93


def test_tkd_divides_where_the_kernel_is_large():
    """Full spectra in numpy. The field is that of the sampled kernel, so nothing of it is outside of the model."""
    field = noise(6, 7, 9)
    k = np.stack(np.meshgrid(*(np.fft.fftfreq(n, d) for n, d in zip((6, 7, 9), (1, 2, 1), strict=True)), indexing="ij"))
    with np.errstate(invalid="ignore"):
        kernel = 1 / 3 - k[2] ** 2 / (k[0] ** 2 + (k[1]) ** 2 + k[2] ** 2)
    kernel[0, 0, 0] = np.inf
    divisor = np.where(np.abs(kernel) < 0.2, np.where(kernel < 0, -0.2, 0.2), kernel)
    expected = np.fft.ifftn(np.fft.fftn(field.numpy()) / divisor).real
    actual = tkd(field, (1, 2, 1), kernel="kspace", padding=1, slope_correction=False)
    np.testing.assert_allclose(actual.numpy(), expected, atol=1e-13)


@pytest.mark.parametrize("method", [tikhonov, l2_gradient])
def test_quadratic_inversions_end_where_the_gradient_vanishes(method):
    """Of ``|D chi - field|^2 + weight R(chi)``, differentiated by autograd through the forward model."""
    field, voxel_size, weight = noise(8, 9, 10), (1.0, 0.5, 2.0), 0.05
    chi = method(field, voxel_size, OBLIQUE, regularisation=weight, padding=1).requires_grad_()
    misfit = (field_from_susceptibility(chi, voxel_size, OBLIQUE, padding=1) - field).square().sum()
    penalty = chi.square().sum() if method is tikhonov else sum(g.square().sum() for g in gradient(chi, voxel_size))
    (slopes,) = torch.autograd.grad(misfit + weight * penalty, chi)
    # the mean of chi is fixed, not fitted
    torch.testing.assert_close(slopes - slopes.mean(), torch.zeros_like(slopes), atol=1e-12, rtol=0)


@pytest.mark.parametrize("method", [tikhonov, l2_gradient])
def test_quadratic_inversions_without_noise_tend_to_the_truth(method):
    chi = noise(8, 9, 10)
    chi -= chi.mean()
    field = field_from_susceptibility(chi, (1, 1, 1), OBLIQUE, padding=1)
    errors = [
        float((method(field, (1, 1, 1), OBLIQUE, regularisation=weight, padding=1) - chi).norm() / chi.norm())
        for weight in (1e-2, 1e-4, 1e-12)
    ]
    assert errors[0] > errors[1] > errors[2] and errors[2] < 0.02


def test_gradient_energy_is_that_of_differences():
    volume, voxel_size = noise(6, 7, 8), (1.0, 0.5, 2.0)
    energy = gradient_energy(volume.shape, voxel_size, volume)
    spectrum = torch.fft.rfftn(volume)
    double = torch.full((5,), 2.0, dtype=torch.float64)
    double[[0, 4]] = 1.0
    by_parseval = (energy * spectrum.abs().square() * double).sum() / volume.numel()
    assert float(by_parseval) == pytest.approx(float(sum(g.square().sum() for g in gradient(volume, voxel_size))))


# total variation


def total_variation_cost(chi, field, mask, weight):
    """``|D chi - field|^2 / 2`` over the mask plus the total variation inside it, for chi confined to the mask."""
    chi = chi * mask
    misfit = (field_from_susceptibility(chi, (1, 1, 1)) - field)[mask]
    variation = 0.0
    for axis in range(3):
        n = chi.shape[axis]
        both = mask.narrow(axis, 1, n - 1) & mask.narrow(axis, 0, n - 1)
        variation += float(chi.diff(dim=axis)[both].abs().sum())
    return float(misfit.square().sum()) / 2 + weight * variation


def test_total_variation_is_near_its_minimum():
    """No change along the way from the truth, from other inversions or at random lowers the cost of the result."""
    chi, mask = ellipsoids((20, 22, 18), n=4, seed=3)
    field = field_from_susceptibility(chi, (1, 1, 1)) + 0.003 * noise(20, 22, 18)
    weight = 1e-3
    result = tv_admm(field, (1, 1, 1), mask=mask, regularisation=weight, iterations=200, tolerance=0.0, padding=2.0)
    # the mean over the mask is subtracted at the end, though the field depends on it: the best one is put back
    offset = min(np.linspace(-0.02, 0.02, 41), key=lambda c: total_variation_cost(result + c, field, mask, weight))
    least = total_variation_cost(result + offset, field, mask, weight)
    others = [chi, l2_gradient(field, (1, 1, 1), mask=mask), tkd(field, (1, 1, 1), mask=mask), torch.zeros_like(chi)]
    for other in others:
        for step in (0.05, 0.2, 1.0):
            moved = (1 - step) * (result + offset) + step * other
            assert total_variation_cost(moved, field, mask, weight) > 0.999 * least


def test_total_variation_reports_and_stops():
    chi, mask = ellipsoids((24, 24, 24), n=5)
    field = field_from_susceptibility(chi, (1, 1, 1))
    seen: list[Iteration] = []
    tv_admm(field, (1, 1, 1), mask=mask, iterations=6, tolerance=0.0, report=seen.append)
    assert [state.number for state in seen] == [1, 2, 3, 4, 5, 6]
    assert all(state.method == "tv_admm" and state.limit == 6 for state in seen)
    stopped: list[Iteration] = []
    tv_admm(field, (1, 1, 1), mask=mask, iterations=100, tolerance=0.02, report=stopped.append)
    assert len(stopped) < 100 and stopped[-1].change < 0.02 <= min(state.change for state in stopped[:-1])


def test_magnitude_takes_the_weight_from_noisy_voxels():
    chi, mask = ellipsoids((32, 32, 32), n=10)
    magnitude = torch.ones(32, 32, 32, dtype=torch.float64)
    magnitude[:, :16] = 0.2
    field = field_from_susceptibility(chi, (1, 1, 1)) + 0.003 * noise(32, 32, 32) / magnitude
    plain, weighted = (tv_admm(field, (1, 1, 1), mask=mask, magnitude=m, iterations=40) for m in (None, 40 * magnitude))
    assert nrmse(weighted, chi, mask) < 0.95 * nrmse(plain, chi, mask)


# what all have in common


@pytest.mark.parametrize(("voxel_size", "b0"), [((1.0, 1.0, 1.0), (0.0, 0.0, 1.0)), ((1.0, 1.0, 1.0), OBLIQUE)])
@pytest.mark.parametrize("sigma", [0.002, 0.005])
def test_order_of_the_methods_under_noise(sigma, voxel_size, b0):
    chi, mask = ellipsoids(dtype=torch.float32, voxel_size=voxel_size)
    field = field_from_susceptibility(chi, voxel_size, b0) + sigma * noise(*chi.shape, dtype=torch.float32)
    errors = {name: nrmse(method(field, voxel_size, b0, mask), chi, mask) for name, method in METHODS.items()}
    assert errors["tkd"] > errors["tikhonov"] > errors["l2_gradient"] > errors["tv_admm"]


@every_method
def test_tilt_of_b0_is_followed_and_not_to_be_ignored(method):
    chi, mask = ellipsoids((32, 34, 36), n=10, dtype=torch.float32)
    tilted = (0.0, 0.5, math.sqrt(0.75))
    field = field_from_susceptibility(chi, (1, 1, 1), tilted)
    right = method(field, (1, 1, 1), tilted, mask)
    assert nrmse(method(field, (1, 1, 1), (0.0, 0.0, 1.0), mask), chi, mask) > 1.3 * nrmse(right, chi, mask)
    straight = method(field_from_susceptibility(chi, (1, 1, 1)), (1, 1, 1), (0.0, 0.0, 1.0), mask)
    assert nrmse(right, chi, mask) < 1.3 * nrmse(straight, chi, mask)


@pytest.mark.parametrize("method", [tkd, tikhonov, l2_gradient])
def test_closed_forms_are_linear(method):
    field, mask = noise(2, 9, 10, 11), noise(9, 10, 11, seed=1) > 0
    maps = method(field, (1, 1, 2), OBLIQUE, mask)
    combined = method(1000 * field[0] - 3 * field[1], (1, 1, 2), OBLIQUE, mask)
    torch.testing.assert_close(combined, 1000 * maps[0] - 3 * maps[1])


@every_method
@pytest.mark.parametrize("order", [(1, 0, 2), (1, 2, 0)])
def test_permuted_axes(method, order):
    field, mask, voxel_size = noise(10, 12, 15), noise(10, 12, 15, seed=1) > -1, (1.0, 0.5, 2.0)
    permuted = method(
        field.permute(order), [voxel_size[i] for i in order], [OBLIQUE[i] for i in order], mask.permute(order)
    )
    expected = method(field, voxel_size, OBLIQUE, mask).permute(order)
    torch.testing.assert_close(permuted, expected, atol=1e-9, rtol=1e-7)


@every_method
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_flipped_axis(method, axis):
    """The volume lies in a corner of the padded grid, where the flip moves it; the circular problem is the same."""
    chi, mask = ellipsoids((24, 25, 26), n=5)
    field = field_from_susceptibility(chi, (1, 1, 1), OBLIQUE) + 0.002 * noise(24, 25, 26)
    b0 = [-b if i == axis else b for i, b in enumerate(OBLIQUE)]
    expected = method(field, (1, 1, 1), OBLIQUE, mask)
    assert nrmse(method(field.flip(axis), (1, 1, 1), b0, mask.flip(axis)).flip(axis), expected, mask) < 1e-3


@every_method
def test_result_has_mean_zero_and_nothing_outside_the_mask(method):
    field, mask = noise(12, 14, 16, dtype=torch.float32), noise(12, 14, 16, seed=1) > 0
    chi = method(field, (1, 1, 2), OBLIQUE, mask)
    assert chi.shape == field.shape and chi.dtype == torch.float32
    assert float(chi[mask].mean()) == pytest.approx(0, abs=1e-6)
    assert not bool(chi[~mask].any()) and bool(chi[mask].any())
    spoilt = torch.where(mask, field, math.nan)
    torch.testing.assert_close(method(spoilt, (1, 1, 2), OBLIQUE, mask), chi)
    whole = method(field, (1, 1, 2), OBLIQUE)
    torch.testing.assert_close(whole, method(field, (1, 1, 2), OBLIQUE, torch.ones_like(mask)))


@every_method
def test_volumes_of_a_batch(method):
    field, mask = noise(2, 3, 10, 11, 12), noise(2, 1, 10, 11, 12, seed=1) > -1
    options = {"tolerance": 0.0} if method is tv_admm else {}
    both = method(field, (1, 1, 2), OBLIQUE, mask, **options)
    one = method(field[1, 2], (1, 1, 2), OBLIQUE, mask[1, 0], **options)
    torch.testing.assert_close(both[1, 2], one)


@every_method
def test_input_is_left_as_it_was(method):
    field, mask, magnitude = noise(8, 9, 10), noise(8, 9, 10, seed=1) > 0, noise(8, 9, 10, seed=2).abs()
    copies = field.clone(), mask.clone(), magnitude.clone()
    first = method(field, (1, 1, 1), mask=mask, magnitude=magnitude)
    assert all(torch.equal(*pair) for pair in zip((field, mask, magnitude), copies, strict=True))
    assert torch.equal(method(field, (1, 1, 1), mask=mask, magnitude=magnitude), first)


def test_padding_lowers_the_error_of_the_wrap_around():
    chi, _ = ellipsoids()
    exact = field_from_susceptibility(chi, (1, 1, 1), padding=2.0)
    errors = [float((field_from_susceptibility(chi, (1, 1, 1), padding=p) - exact).norm()) for p in (1.0, 1.25, 1.5)]
    assert errors[0] > 2 * errors[1] and errors[1] > errors[2]
    torch.testing.assert_close(field_from_susceptibility(chi, (1, 1, 1), padding=2.5), exact)  # nothing left to wrap


def nan_inside(shape):
    field = torch.zeros(shape)
    field[2, 2, 2] = math.nan
    return field


@every_method
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"field": torch.zeros(8, 8)}, r"axes \[..., X, Y, Z\]"),
        ({"field": torch.zeros(8, 8, 8, dtype=torch.int16)}, "field must be float32 or float64, got torch.int16"),
        ({"field": nan_inside((8, 8, 8))}, "field must be finite inside the mask"),
        ({"voxel_size": (1, -1, 1)}, "voxel_size must be positive"),
        ({"b0_direction": (0, 1, 1)}, "b0_direction must have unit length"),
        ({"mask": torch.ones(8, 8, 9, dtype=torch.bool)}, r"mask must have the shape of the field \(8, 8, 8\)"),
        ({"mask": torch.ones(2, 8, 8, 8, dtype=torch.bool)}, "mask must have the shape of the field"),
        ({"mask": torch.zeros(8, 8, 8, dtype=torch.bool)}, "mask must not be empty"),
        ({"mask": torch.ones(8, 8, 8)}, "mask must be bool, got torch.float32"),
        ({"magnitude": torch.ones(8, 8, 9)}, "magnitude must have the shape of the field"),
        ({"magnitude": -torch.ones(8, 8, 8)}, "magnitude must be finite and not negative"),
        ({"magnitude": torch.zeros(8, 8, 8)}, "not 0 everywhere"),
        ({"magnitude": nan_inside((8, 8, 8)) + 1}, "magnitude must be finite"),
        ({"kernel": "image"}, "one of"),
        ({"padding": 0.9}, "padding must be at least 1"),
    ],
)
def test_bad_input(method, arguments, message):
    given = {"field": torch.ones(8, 8, 8), "voxel_size": (1, 1, 1)} | arguments
    with pytest.raises(ValueError, match=message):
        method(**given)


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        (tkd, {"threshold": 0.0}, "threshold must lie between 0 and 2/3, got 0.0"),
        (tkd, {"threshold": 0.7}, "threshold"),
        (tikhonov, {"regularisation": 0.0}, "regularisation must be finite and positive, got 0.0"),
        (l2_gradient, {"regularisation": math.nan}, "regularisation"),
        (tv_admm, {"regularisation": -1.0}, "regularisation"),
        (tv_admm, {"iterations": 0}, "iterations must be at least 1, got 0"),
        (tv_admm, {"tolerance": -1.0}, "tolerance must be finite and not negative"),
    ],
)
def test_bad_options(method, options, message):
    with pytest.raises(ValueError, match=message):
        method(torch.ones(8, 8, 8), (1, 1, 1), **options)


def test_prepared_magnitude_has_mean_one_over_the_mask():
    mask = noise(2, 6, 7, 8) > 0
    magnitude = noise(2, 6, 7, 8, seed=1).abs() * 1000
    problem = prepare(noise(2, 6, 7, 8), (1, 1, 1), (0, 0, 1), mask, magnitude, kernel="exact", padding=1.25)
    assert problem.magnitude is not None and problem.grid == (8, 9, 10)
    assert not bool(problem.magnitude[~mask].any())
    assert [float(problem.magnitude[i][mask[i]].mean()) for i in range(2)] == pytest.approx([1, 1])
