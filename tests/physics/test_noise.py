from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import integrate, special, stats

from physics import noise

DRAWS = 200_000


@pytest.mark.parametrize("signal", [0.0, 0.5, 1.0, 3.0, 10.0])
def test_rician_noise_has_the_moments_of_the_rice_distribution(signal, generator):
    sigma = 0.7
    drawn = noise.add_rician_noise(torch.full((DRAWS,), signal * sigma, dtype=torch.float64), sigma, generator)
    mean, variance = stats.rice.stats(signal, scale=sigma, moments="mv")
    error = math.sqrt(variance / DRAWS)
    assert drawn.mean().item() == pytest.approx(float(mean), abs=5 * error)
    assert drawn.var().item() == pytest.approx(float(variance), rel=0.02)
    assert drawn.min() >= 0


def test_gaussian_noise_has_the_moments_asked_for(generator):
    drawn = noise.add_gaussian_noise(torch.full((DRAWS,), 2.0), 0.5, generator)
    assert drawn.mean().item() == pytest.approx(2.0, abs=0.01)
    assert drawn.std().item() == pytest.approx(0.5, rel=0.01)


def test_complex_noise_is_independent_in_both_parts(generator):
    drawn = noise.add_complex_noise(torch.full((DRAWS,), 1.0 + 2.0j, dtype=torch.complex128), 0.3, generator)
    parts = torch.stack([drawn.real, drawn.imag])
    torch.testing.assert_close(parts.mean(1), torch.tensor([1.0, 2.0], dtype=torch.float64), atol=5e-3, rtol=0)
    torch.testing.assert_close(torch.cov(parts), 0.09 * torch.eye(2, dtype=torch.float64), atol=2e-3, rtol=0)


def test_rician_noise_of_a_phased_signal_depends_on_its_magnitude_only(generator):
    phased = torch.polar(torch.full((DRAWS,), 2.0), torch.linspace(0, 6, DRAWS))
    mean = noise.add_rician_noise(phased, 1.0, generator).mean().item()
    assert mean == pytest.approx(float(stats.rice.mean(2.0)), abs=0.01)


@pytest.mark.parametrize("add", [noise.add_gaussian_noise, noise.add_rician_noise, noise.add_complex_noise])
def test_noise_is_reproducible_and_broadcasts_sigma(add):
    signal = torch.ones(4, 5, dtype=torch.float64)
    sigma = torch.tensor([[0.0], [0.1], [1.0], [10.0]], dtype=torch.float64)
    first, second = (add(signal, sigma, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, second)
    assert first.shape == signal.shape
    torch.testing.assert_close(first[0].abs(), signal[0])
    assert first[3].abs().std() > first[1].abs().std()


@pytest.mark.parametrize("snr", [3.0, 10.0, torch.tensor([5.0, 100.0])])
def test_snr_is_that_of_white_matter(snr):
    sigma = noise.sigma_from_snr(snr)
    torch.testing.assert_close(torch.as_tensor(sigma * snr), torch.full_like(torch.as_tensor(snr), 0.65))
    torch.testing.assert_close(torch.as_tensor(noise.snr_from_sigma(sigma)), torch.as_tensor(snr))


def test_bessel_ratio_agrees_with_scipy():
    x = np.concatenate([np.linspace(0, 30, 3001), np.geomspace(30, 1e6, 200)])
    expected = special.i1e(x) / special.i0e(x)
    np.testing.assert_allclose(noise.bessel_ratio(torch.from_numpy(x)).numpy(), expected, atol=3e-6)
    single = noise.bessel_ratio(torch.from_numpy(x).float())
    assert single.dtype == torch.float32
    np.testing.assert_allclose(single.numpy(), expected, atol=4e-6)


def test_bessel_logarithm_agrees_with_scipy():
    x = np.concatenate([np.linspace(0, 30, 3001), np.geomspace(30, 1e6, 200)])
    ratio, logarithm = noise.bessel_ratio_and_log(torch.from_numpy(x))
    np.testing.assert_allclose(logarithm.numpy(), np.log(special.i0e(x)), atol=1e-6)
    assert torch.equal(ratio, noise.bessel_ratio(torch.from_numpy(x)))


@pytest.mark.parametrize("signal", [0.0, 0.4, 2.0, 8.0])
@pytest.mark.parametrize("sigma", [1.0, 0.2])
def test_rician_nll_is_that_of_scipy_up_to_its_stated_constant(signal, sigma):
    data = np.linspace(0.05, 12.0, 60) * sigma
    nll = noise.rician_nll(torch.from_numpy(data), torch.tensor(signal * sigma, dtype=torch.float64), sigma).numpy()
    np.testing.assert_allclose(nll - np.log(data / sigma**2), -stats.rice.logpdf(data, signal, scale=sigma), rtol=1e-9)


def test_gaussian_nll_is_that_of_scipy_up_to_its_stated_constant():
    data = np.linspace(-2, 4, 50)
    nll = noise.gaussian_nll(torch.from_numpy(data), torch.tensor(1.0, dtype=torch.float64), 0.3).numpy()
    constant = math.log(0.3 * math.sqrt(2 * math.pi))
    np.testing.assert_allclose(nll + constant, -stats.norm.logpdf(data, 1.0, 0.3), rtol=1e-12)


def test_rician_nll_neither_overflows_nor_loses_its_slope():
    data = torch.tensor([0.0, 1e-3, 1e4], dtype=torch.float64)
    signal = torch.tensor([0.0, 5e3, 1e4 + 1], dtype=torch.float64, requires_grad=True)
    nll = noise.rician_nll(data, signal, 1.0)
    (slope,) = torch.autograd.grad(nll.sum(), signal)
    assert torch.isfinite(nll).all()
    expected = signal.detach() - data * noise.bessel_ratio(data * signal.detach())
    torch.testing.assert_close(slope, expected, atol=0.03, rtol=0)  # the ratio is good to 2e-6, times data 1e4


@pytest.mark.parametrize("ratio", [0.05, 0.5, 1.0, 2.0, 5.0, 12.0])
def test_rician_information_agrees_with_quadrature(ratio):
    """Variance of the score, -x + d I1/I0(d x), under the density of scipy's Rice distribution."""

    def integrand(d: float) -> float:
        score = d * special.i1e(d * ratio) / special.i0e(d * ratio) - ratio
        return float(score**2 * stats.rice.pdf(d, ratio))

    expected, _ = integrate.quad(integrand, max(0.0, ratio - 12), ratio + 12, limit=200)
    assert noise.rician_information(torch.tensor(ratio)).item() == pytest.approx(expected, abs=2e-4)


def test_rician_information_agrees_with_monte_carlo(generator):
    signal = torch.tensor([0.3, 1.0, 3.0], dtype=torch.float64)[:, None].expand(-1, DRAWS)
    data = noise.add_rician_noise(signal, 1.0, generator)
    moving = signal.clone().requires_grad_()
    (score,) = torch.autograd.grad(noise.rician_nll(data, moving, 1.0).sum(), moving)
    torch.testing.assert_close(score.var(1), noise.rician_information(signal[:, 0]), rtol=0.02, atol=2e-3)


def test_rician_information_has_its_limits():
    ratio = torch.tensor([0.0, 19.99, 20.01, 1e3])
    value = noise.rician_information(ratio)
    assert value.dtype == torch.float32
    assert value[0].item() == pytest.approx(0.0, abs=1e-4)
    assert value[1].item() == pytest.approx(value[2].item(), abs=1e-4)  # no jump where the table ends
    assert value[3].item() == pytest.approx(1.0, abs=1e-5)
    grid = noise.rician_information(torch.linspace(0, 30, 1000, dtype=torch.float64))
    assert (grid.diff() > -1e-4).all()
    assert ((grid >= 0) & (grid <= 1)).all()


def test_unknown_noise_is_refused():
    with pytest.raises(ValueError, match="gaussian.*poisson"):
        noise.check_noise_model("poisson")
    assert [noise.check_noise_model(name) for name in noise.NOISE_MODELS] == ["gaussian", "rician"]


def test_decibels_are_the_ratio_of_mean_powers_of_signal_and_noise(generator):
    signal = torch.rand((3, 1000, 100), generator=generator, dtype=torch.float64)
    decibels = torch.tensor([5.0, 19.0, math.inf], dtype=torch.float64)[:, None, None]
    sigma = noise.sigma_from_decibels(signal, decibels, axes=(1, 2))
    error = noise.add_complex_noise(signal, sigma, generator) - signal
    power = signal.square().mean((1, 2)) / error.abs().square().mean((1, 2))
    torch.testing.assert_close(10 * power[:2].log10(), decibels[:2, 0, 0], atol=0.05, rtol=0)
    assert float(error[2].abs().max()) == 0
    assert noise.sigma_from_decibels(signal, 0.0).shape == (1, 1, 1)
