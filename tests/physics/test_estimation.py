from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import optimize, stats

from physics.estimation import fit, grid_search, polarity_splits
from physics.noise import add_gaussian_noise, add_rician_noise
from physics.relaxometry import InversionRecovery, SignalModel, SpinEcho

from .conftest import CLINICAL, MODELS, PAPER_T1, PAPER_T2, draw, every_mode, every_model, every_noise

# Grid


@pytest.mark.parametrize("times", [PAPER_T1, CLINICAL, PAPER_T1[:23]])
def test_every_polarity_is_in_the_dictionary(times):
    """From no image inverted to all inverted, so that no search over polarities is needed."""
    assert polarity_splits(InversionRecovery(times)).tolist() == list(range(len(times) + 1))


def test_all_negative_data_are_recognised():
    """CSF and GM are inverted at all of the paper's times: the magnitudes fall, as a decay would."""
    model = InversionRecovery(PAPER_T1)
    truth = torch.tensor([[1.0, 0.85], [1.9, 1.9], [3.5, 1.5]])
    assert (model.signed(*truth)[0] < 0).all()
    found = grid_search(model, model(*truth))
    torch.testing.assert_close(found[2], truth[2], rtol=0.25, atol=0)
    assert (model.signed(*found)[0] < 0).all()
    exact = fit(model.double(), model.double()(*truth.double()), sigma=1e-4)
    torch.testing.assert_close(exact.parameters, truth.double(), rtol=1e-3, atol=0)


def test_grid_search_is_the_best_of_all_atoms_with_its_own_amplitude():
    model = InversionRecovery(CLINICAL, 6.0).double()
    grid = {"B": torch.tensor([1.5, 1.8, 2.0]).double(), "T1": torch.tensor([0.2, 0.5, 0.8, 1.3, 3.0]).double()}
    data = model(*draw(model, (7,))) + 0.05 * torch.randn(9, 7, generator=torch.Generator().manual_seed(1)).double()
    found = grid_search(model, data, grid)
    for voxel in range(7):
        best = math.inf
        for b in grid["B"]:
            for t1 in grid["T1"]:
                atom = model(torch.ones(()).double(), b, t1)
                (amplitude,), (rest,) = np.linalg.lstsq(atom[:, None].numpy(), data[:, voxel].numpy(), rcond=None)[:2]
                if rest < best:
                    best, expected = rest, (amplitude, b.item(), t1.item())
        assert found[:, voxel].tolist() == pytest.approx(expected, rel=1e-9)


@every_model
@pytest.mark.parametrize("shape", [(), (5,), (2, 3, 4), (0, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_grid_search_is_near_the_truth_for_every_shape(name, shape, dtype):
    model = MODELS[name]()
    truth = draw(model, shape).to(dtype)
    found = grid_search(model, model(*truth))
    assert found.shape == truth.shape
    assert found.dtype == dtype
    torch.testing.assert_close(found[-1], truth[-1], rtol=0.3, atol=0)


def test_times_that_differ_between_voxels_are_refused():
    model = SpinEcho(torch.rand(6, 4))
    for estimate in (grid_search, fit):
        with pytest.raises(ValueError, match="times"):
            estimate(model, torch.ones(6, 4))


# Fit, noise-free


@every_model
@pytest.mark.parametrize("shape", [(), (1,), (6,), (3, 4), (2, 1, 3, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_noise_free_parameters_are_found(name, shape, dtype):
    model = MODELS[name]()
    truth = draw(model, shape).to(dtype)
    data = model(*truth)
    result = fit(model, data, sigma=1e-3)
    tolerance = 1e-3 if dtype == torch.float32 else 1e-5
    torch.testing.assert_close(result.parameters, truth, rtol=tolerance, atol=0)
    assert result.standard_errors.shape == truth.shape
    assert result.residual.shape == data.shape
    assert result.chi2.shape == result.converged.shape == shape
    tensors = (result.parameters, result.standard_errors, result.residual, result.chi2, result.sigma)
    assert {x.dtype for x in tensors} == {dtype}
    assert result.converged.all()


@every_mode
def test_an_empty_or_fully_masked_stack_gives_zeros(b_mode):
    model = InversionRecovery(CLINICAL)
    nothing = fit(model, torch.rand(9, 3, 4), b_mode=b_mode, mask=torch.zeros(3, 4, dtype=torch.bool))
    assert not nothing.parameters.any() and not nothing.chi2.any() and not nothing.converged.any()
    assert fit(model, torch.rand(9, 0, 4), b_mode=b_mode).parameters.shape == (3, 0, 4)


@pytest.mark.parametrize("name", ["inversion_recovery", "inversion_recovery_tr", "look_locker"])
@pytest.mark.parametrize("b_mode", ["shared", "smooth"])
@every_noise
def test_a_constant_b_is_found_with_a_and_t1(name, b_mode, noise):
    model = MODELS[name]()
    truth = draw(model, (2, 20, 24), one_b=True).float()
    result = fit(model, model(*truth), sigma=1e-3, noise=noise, b_mode=b_mode)
    torch.testing.assert_close(result.parameters, truth, rtol=3e-3, atol=0)


# Fit against an independent implementation


def curve_fit(model: SignalModel, data: np.ndarray, start: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Estimates and standard errors by scipy; the signal is written out again in numpy."""
    times = model.times.double().numpy()

    def inversion(t, a, b, t1):
        return np.abs(a * (1 - b * np.exp(-t / t1)))

    def decay(t, a, t2):
        return a * np.exp(-t / t2)

    function = inversion if isinstance(model, InversionRecovery) else decay
    sigma = np.full(len(times), 0.02)
    found, covariance = optimize.curve_fit(function, times, data, start, sigma, absolute_sigma=True, xtol=1e-12)
    return found, np.sqrt(np.diag(covariance))


@pytest.mark.parametrize("name", ["inversion_recovery", "t2_preparation"])
def test_estimates_and_errors_are_those_of_scipy(name, generator):
    model = MODELS[name]().double()
    truth = draw(model, (12,))
    data = add_gaussian_noise(model(*truth), 0.02, generator)
    result = fit(model, data, sigma=0.02)
    for voxel in range(12):
        expected, errors = curve_fit(model, data[:, voxel].numpy(), truth[:, voxel].numpy())
        assert result.parameters[:, voxel].tolist() == pytest.approx(expected.tolist(), rel=2e-3)
        assert result.standard_errors[:, voxel].tolist() == pytest.approx(errors.tolist(), rel=1e-2)


def test_rician_estimates_are_the_maximum_of_the_likelihood_of_scipy(generator):
    model = SpinEcho(PAPER_T2).double()
    truth = draw(model, (6,))
    data = add_rician_noise(model(*truth), 0.1, generator)
    result = fit(model, data, sigma=0.1, noise="rician")
    times = np.array(PAPER_T2)

    def nll(log_values: np.ndarray, values: np.ndarray) -> float:
        signal = np.exp(log_values[0] - times / np.exp(log_values[1]))
        return -float(stats.rice.logpdf(values, signal / 0.1, scale=0.1).sum())

    for voxel in range(6):
        start, values = np.log(truth[:, voxel].numpy()), data[:, voxel].numpy()
        found = optimize.minimize(nll, start, (values,), method="Nelder-Mead", options={"xatol": 1e-7})
        assert result.parameters[:, voxel].log().tolist() == pytest.approx(found.x.tolist(), abs=3e-3)


# Invariants


@every_mode
@every_noise
def test_scaling_the_data_scales_the_amplitude_alone(b_mode, noise, generator):
    model = InversionRecovery(CLINICAL).double()
    truth = draw(model, (8, 8), one_b=True)
    data = add_rician_noise(model(*truth), 0.02, generator)
    for factor in (1e-6, 4000.0):
        one = fit(model, data, noise=noise, b_mode=b_mode)
        other = fit(model, factor * data, noise=noise, b_mode=b_mode)
        torch.testing.assert_close(other.parameters[0], factor * one.parameters[0], rtol=1e-5, atol=0)
        torch.testing.assert_close(other.parameters[1:], one.parameters[1:], rtol=1e-5, atol=0)
        torch.testing.assert_close(other.standard_errors[1:], one.standard_errors[1:], rtol=1e-4, atol=0)
        torch.testing.assert_close(other.sigma, factor * one.sigma, rtol=1e-5, atol=0)


def test_voxels_do_not_influence_each_other_in_a_voxelwise_fit(generator):
    model = InversionRecovery(CLINICAL).double()
    data = add_gaussian_noise(model(*draw(model, (40,))), 0.02, generator)
    order = torch.randperm(40, generator=generator)
    straight, shuffled = fit(model, data, sigma=0.02), fit(model, data[:, order], sigma=0.02)
    torch.testing.assert_close(shuffled.parameters, straight.parameters[:, order], rtol=1e-4, atol=1e-5)


@every_mode
@every_noise
def test_masked_and_empty_voxels_are_free_of_nan(b_mode, noise, generator):
    model = InversionRecovery(CLINICAL)
    data = add_rician_noise(model(*draw(model, (2, 12, 12), one_b=True).float()), 0.05, generator)
    mask = torch.ones(2, 12, 12, dtype=torch.bool)
    mask[:, :4] = False
    data[:, :, :4] = math.nan  # outside the mask anything may stand
    data[:, :, 8:] = 0.0
    result = fit(model, data, noise=noise, b_mode=b_mode, mask=mask)
    for values in (result.parameters, result.residual, result.chi2):
        assert torch.isfinite(values).all()
        assert not values[..., :4, :].any()
    assert not torch.isnan(result.standard_errors).any()
    assert not result.standard_errors[..., :4, :].any()
    assert not result.converged[:, :4].any()
    assert not result.parameters[0, :, 8:].any()
    assert torch.isinf(result.standard_errors[2, :, 8:]).all()  # nothing is known of T1 without signal


def test_bounds_are_kept(generator):
    model = InversionRecovery(PAPER_T1)
    data = torch.rand(31, 200, generator=generator)
    bounds = {"B": (1.4, 1.9), "T1": (0.3, 2.5)}
    for b_mode in ("voxelwise", "shared"):
        found = fit(model, data, bounds=bounds, b_mode=b_mode).parameters
        for row, (low, high) in zip(found[1:], bounds.values(), strict=True):
            assert row.min() >= low - 1e-6 and row.max() <= high + 1e-6
        assert (found[0] >= 0).all()


def test_no_graph_is_kept_and_data_are_left_alone():
    model = SpinEcho(PAPER_T2)
    data = model(*draw(model, (5,)).float()).requires_grad_()
    before = data.detach().clone()
    result = fit(model, data)
    assert not result.parameters.requires_grad
    assert torch.equal(data.detach(), before)


def test_a_model_without_b_ignores_the_mode():
    model = SpinEcho(PAPER_T2)
    data = model(*draw(model, (5,)).float())
    assert torch.equal(fit(model, data, b_mode="smooth").parameters, fit(model, data).parameters)


def test_as_many_images_as_parameters_can_be_fitted_if_sigma_is_given():
    model = SpinEcho([0.02, 0.08])
    truth = draw(model, (5,)).float()
    result = fit(model, model(*truth), sigma=0.01)
    torch.testing.assert_close(result.parameters, truth, rtol=1e-3, atol=0)
    assert not result.chi2.any()
    with pytest.raises(ValueError, match="sigma"):
        fit(model, model(*truth))


# Refusals


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"data": torch.ones(8, 4, 4)}, "9 images"),
        ({"data": torch.ones(9, 4, 4, dtype=torch.complex64)}, "real"),
        ({"data": torch.full((9, 4, 4), math.nan)}, "finite"),
        ({"data": torch.full((9, 4, 4), -1.0), "noise": "rician"}, "negative"),
        ({"noise": "poisson"}, "noise"),
        ({"b_mode": "global"}, "b_mode"),
        ({"data": torch.ones(9, 4), "b_mode": "smooth"}, "last two axes"),
        ({"mask": torch.ones(4, 3, dtype=torch.bool)}, "mask"),
        ({"mask": torch.ones(4, 4)}, "mask"),
        ({"sigma": 0.0}, "sigma"),
        ({"sigma": torch.ones(3)}, "sigma"),
        ({"smoothness": 0.0}, "smoothness"),
        ({"bounds": {"T2": (0.1, 1.0)}}, "bounds"),
        ({"bounds": {"T1": (1.0, 0.5)}}, "bounds"),
        ({"bounds": {"A": (0.0, 1.0)}}, "bounds"),
    ],
)
def test_bad_arguments_are_refused(arguments, words):
    options = {"data": torch.ones(9, 4, 4)} | arguments
    with pytest.raises(ValueError, match=words):
        fit(InversionRecovery(CLINICAL), options.pop("data"), **options)


def test_fewer_images_than_parameters_are_refused():
    with pytest.raises(ValueError, match="as many images"):
        fit(InversionRecovery([0.1, 1.0]), torch.ones(2, 3))
