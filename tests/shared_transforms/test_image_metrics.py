"""Figures of merit of whole maps against closed forms, scikit-image, and filters in Fourier space."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from scipy.ndimage import gaussian_filter
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from shared_transforms.metrics import (
    HFEN,
    NRMSE,
    XSIM,
    detrended_nrmse,
    hfen,
    nrmse,
    psnr,
    slope,
    ssim,
    xsim,
)

ALL = [nrmse, detrended_nrmse, slope, hfen, xsim, ssim, psnr]


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def blobs(*shape: int, seed: int = 0) -> torch.Tensor:
    """Smooth structure of about 0.05 ppm."""
    low = draw(1, 1, *(n // 4 for n in shape), seed=seed)
    return 0.05 * torch.nn.functional.interpolate(low, shape, mode="trilinear")[0, 0]


def ball(*shape: int) -> torch.Tensor:
    axes = torch.meshgrid(*(torch.linspace(-1, 1, n) for n in shape), indexing="ij")
    return sum(x**2 for x in axes) < 0.8


@pytest.mark.parametrize("gain", [0.7, 1.0, 1.3])
def test_gain_offset_and_noise_have_closed_forms(gain: float) -> None:
    """Noise of SD s on a truth of SD t at gain g: NRMSE^2 = (1 - g)^2 + (s/t)^2, detrended s / (g t), slope g."""
    truth, mask = draw(40, 36, 44), ball(40, 36, 44)
    estimate = gain * truth + 3 + 0.2 * draw(40, 36, 44, seed=1)
    assert nrmse(estimate, truth, mask).item() == pytest.approx(100 * math.hypot(1 - gain, 0.2), rel=0.02)
    assert slope(estimate, truth, mask).item() == pytest.approx(gain, abs=0.005)
    assert detrended_nrmse(estimate, truth, mask).item() == pytest.approx(100 * 0.2 / gain, rel=0.02)


def test_trivial_answers() -> None:
    truth, mask = blobs(24, 24, 24), ball(24, 24, 24)
    assert nrmse(torch.zeros_like(truth), truth, mask).item() == pytest.approx(100)
    assert hfen(torch.zeros_like(truth), truth, mask).item() == pytest.approx(100)
    assert [f(truth, truth, mask).item() for f in (nrmse, hfen, detrended_nrmse)] == [0, 0, 0]
    assert [f(truth, truth, mask).item() for f in (slope, xsim, ssim)] == [pytest.approx(1)] * 3
    assert psnr(truth, truth, mask).item() == math.inf


def test_the_wrong_sign_is_not_detrended() -> None:
    truth = draw(8, 8, 8)
    assert slope(-truth, truth).item() == pytest.approx(-1) and detrended_nrmse(-truth, truth).item() == math.inf
    assert nrmse(-truth, truth).item() == pytest.approx(200)


def test_regression_is_that_of_numpy() -> None:
    truth, mask = draw(9, 8, 7), draw(9, 8, 7, seed=2) > 0
    estimate = 0.8 * truth + 0.1 * truth.square() + 0.3 * draw(9, 8, 7, seed=1)
    x, y = truth[mask].numpy(), estimate[mask].numpy()
    gain, offset = np.polyfit(x, y, 1)
    error = 100 * np.linalg.norm((y - offset) / gain - (x)) / np.linalg.norm(x - x.mean())
    assert slope(estimate, truth, mask).item() == pytest.approx(gain)
    assert detrended_nrmse(estimate, truth, mask).item() == pytest.approx(error)


def test_hfen_is_that_of_the_transfer_function() -> None:
    """A Laplacian of Gaussian is -k^2 exp(-sigma^2 k^2 / 2) in Fourier space."""
    truth, estimate, mask = blobs(32, 36, 40), blobs(32, 36, 40, seed=1), ball(32, 36, 40)
    inner = torch.zeros_like(mask)
    inner[8:-8, 8:-8, 8:-8] = True  # the filter is periodic here and mirrored there: stay off the border
    mask = mask & inner
    k = torch.meshgrid(*(2 * torch.pi * torch.fft.fftfreq(n, dtype=torch.float64) for n in truth.shape), indexing="ij")
    squared = sum(x**2 for x in k)
    transfer = -squared * (-(1.5**2) * squared / 2).exp()
    sharp = [torch.fft.ifftn(transfer * torch.fft.fftn(x * mask)).real for x in (estimate - truth, truth)]
    expected = 100 * (sharp[0].norm() / sharp[1].norm()).item()
    assert hfen(estimate, truth, mask).item() == pytest.approx(expected, rel=0.01)


def test_hfen_masks_before_it_filters() -> None:
    truth, mask = blobs(24, 24, 24), ball(24, 24, 24)
    outside = truth + 10 * (~mask) * draw(24, 24, 24)
    assert hfen(outside, truth, mask).item() == 0
    assert hfen(truth + 0.01, truth, mask).item() > 5  # the surface of the mask; without one there is none
    assert hfen(truth + 0.01, truth).item() < 0.5


def test_ssim_is_that_of_scikit_image() -> None:
    truth, mask = blobs(32, 28, 36), ball(32, 28, 36)
    estimate = 0.9 * truth + 0.01 * draw(32, 28, 36, seed=3)
    pair = [np.pad(torch.where(mask, x, 0).numpy(), 8) for x in (estimate, truth)]
    span = (truth[mask].max() - truth[mask].min()).item()
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "full": True}
    _, similarity = structural_similarity(*pair, data_range=span, **options)
    expected = similarity[8:-8, 8:-8, 8:-8][mask.numpy()].mean()
    assert ssim(estimate, truth, mask).item() == pytest.approx(expected, abs=2e-4)
    assert 0.1 < expected < 0.99


def test_xsim_of_constants_and_of_a_point() -> None:
    """Constants a and b: (2 a b + C1) / (a^2 + b^2 + C1). A point is seen by the 5^3 windows that hold it."""
    middle = torch.zeros(13, 13, 13, dtype=torch.bool)
    middle[6, 6, 6] = True
    full = torch.ones_like(middle)
    flat = torch.ones(64, 64, 64, dtype=torch.float64)
    a, b = 0.03, 0.05
    inside = 60**3 / 64**3 * (2 * a * b + 1e-4) / (a**2 + b**2 + 1e-4)  # of the windows that see no surface
    assert inside < xsim(a * flat, b * flat).item() < inside + 1 - 60**3 / 64**3

    weights = gaussian_filter(middle.double().numpy(), 1.5, radius=2)
    mean, variance = 0.1 * weights, 0.01 * (weights - weights**2)
    expected = (1e-4 / (mean**2 + 1e-4) * 1e-6 / (variance + 1e-6)).mean()
    assert xsim(torch.zeros(13, 13, 13), 0.1 * middle, full).item() == pytest.approx(expected, rel=1e-4)


def test_psnr_is_that_of_scikit_image() -> None:
    truth, mask = blobs(16, 16, 16), ball(16, 16, 16)
    estimate = truth + 0.01 * draw(16, 16, 16)
    x, y = truth[mask].numpy(), estimate[mask].numpy()
    expected = peak_signal_noise_ratio(x, y, data_range=np.ptp(x))
    assert psnr(estimate, truth, mask).item() == pytest.approx(expected)


@pytest.mark.parametrize("metric", ALL)
def test_a_batch_is_its_samples_and_the_outside_is_not_looked_at(metric) -> None:
    truth = torch.stack([blobs(16, 20, 12, seed=seed) for seed in range(4)]).view(2, 2, 16, 20, 12)
    estimate = truth + 0.01 * draw(2, 2, 16, 20, 12, seed=9)
    mask = ball(16, 20, 12)
    batch = metric(estimate, truth, mask)
    assert batch.shape == (2, 2) and batch.dtype == torch.float64
    assert batch[1, 0].item() == pytest.approx(metric(estimate[1, 0], truth[1, 0], mask).item(), rel=1e-6)
    spoilt = torch.where(mask, estimate, torch.nan)
    assert torch.allclose(metric(spoilt, truth, mask), batch)
    assert metric(torch.where(mask, torch.nan, estimate), truth, mask).isnan().all()


@pytest.mark.parametrize("metric", ALL)
def test_bad_input_is_refused(metric) -> None:
    with pytest.raises(ValueError, match="no voxel"):
        metric(draw(2, 4, 4, 4), draw(2, 4, 4, 4), torch.stack([ball(4, 4, 4), torch.zeros(4, 4, 4, dtype=torch.bool)]))
    with pytest.raises(ValueError, match="X, Y, Z"):
        metric(draw(4, 4, 4), draw(4, 4, 5))


@pytest.mark.parametrize("metric, function", [(NRMSE, nrmse), (HFEN, hfen), (XSIM, xsim)])
def test_engine_metrics_are_means_over_samples(metric: type, function) -> None:
    truth = torch.stack([blobs(16, 16, 16, seed=seed) for seed in range(3)])[:, None]
    estimate = truth + 0.01 * torch.arange(1, 4).view(3, 1, 1, 1, 1) * draw(3, 1, 16, 16, 16)
    mask = ball(16, 16, 16).expand_as(truth).clone()
    expected = function(estimate, truth, mask).mean().item()
    empty = {"pred": estimate[:1], "label": {"parameters": truth[:1], "mask": torch.zeros_like(mask[:1])}}
    batches = [
        {"pred": estimate[part], "label": {"parameters": truth[part], "mask": mask[part]}}
        for part in (slice(0, 2), slice(2, 3))
    ]
    engine = Engine(lambda engine, batch: batch)
    metric().attach(engine, "merit")
    for _ in range(2):  # the second run starts anew
        assert engine.run([*batches, empty]).metrics["merit"] == pytest.approx(expected, rel=1e-5)
    assert math.isnan(engine.run([empty]).metrics["merit"])
    whole = {"pred": estimate, "label": {"parameters": truth}}
    assert engine.run([whole]).metrics["merit"] == pytest.approx(function(estimate, truth).mean().item(), rel=1e-5)
