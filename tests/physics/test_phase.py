"""The complex field fit, units and Laplacian unwrapping."""

from __future__ import annotations

import math

import pytest
import torch

from physics.phase import (
    fit_field,
    frequency_period,
    frequency_to_ppm,
    rescale_phase,
    unwrap_laplacian,
    wrap,
)

EQUAL = [0.004, 0.008, 0.012]
UNEQUAL = [0.003, 0.0075, 0.0105, 0.0165]
SIX = [0.005 + 0.004 * n for n in range(6)]
every_protocol = pytest.mark.parametrize("times", [EQUAL, UNEQUAL, SIX, [0.005, 0.0074]], ids=str)


def echoes(frequency, offset, times, amplitude=1.0, t2star=0.03):
    """Magnitude and wrapped phase [N, *voxels] of the model, as a scanner gives them."""
    stamps = torch.tensor(times, dtype=frequency.dtype).reshape(-1, *[1] * frequency.ndim)
    signal = amplitude * torch.exp(-stamps / t2star) * torch.exp(1j * (offset + 2 * math.pi * frequency * stamps))
    return signal.abs(), signal.angle()


def random_field(times, shape=(4, 5, 6), seed=3):
    generator = torch.Generator().manual_seed(seed)
    half = 0.49 * frequency_period(times)
    frequency = half * (2 * torch.rand(shape, generator=generator, dtype=torch.float64) - 1)
    return frequency, math.pi * (2 * torch.rand(shape, generator=generator, dtype=torch.float64) - 1)


@every_protocol
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_noise_free_echoes_give_their_frequency_and_offset(times, dtype):
    frequency, offset = random_field(times)
    magnitude, phase = echoes(frequency, offset, times)
    fit = fit_field(magnitude.to(dtype), phase.to(dtype), times, sigma=0.01)
    tolerance = 1e-9 if dtype == torch.float64 else 2e-3
    assert fit.frequency.dtype == fit.offset.dtype == fit.standard_error.dtype == dtype
    assert (fit.frequency - frequency).abs().max() < tolerance
    assert wrap(fit.offset - offset).abs().max() < tolerance
    assert fit.residual.max() < tolerance


@every_protocol
def test_a_frequency_beyond_the_period_comes_back_inside_it(times):
    frequency, offset = random_field(times)
    period = frequency_period(times)
    magnitude, phase = echoes(frequency + 2 * period, offset, times)
    fit = fit_field(magnitude, phase, times, sigma=0.01)
    assert fit.period == period
    torch.testing.assert_close(fit.frequency, frequency, atol=1e-8, rtol=0)


def test_the_period_is_that_of_the_common_measure_of_the_spacings():
    assert frequency_period(EQUAL) == pytest.approx(250)
    assert frequency_period([0.004, 0.010, 0.013]) == pytest.approx(1 / 0.003)
    assert frequency_period([0.004, 0.009, 0.013]) == pytest.approx(1000)
    assert frequency_period([0.004, 0.008, 0.0121]) == pytest.approx(250)  # rounded in a header


def test_almost_equal_spacings_are_refined_from_the_unwrapped_frequency():
    """Echoes a little off the raster do not repeat exactly: the fit from the right period is exact."""
    times = [0.004, 0.008, 0.0121]
    frequency = torch.linspace(130, 370, 20, dtype=torch.float64)
    magnitude, phase = echoes(frequency, torch.tensor(0.3), times)
    first = fit_field(magnitude, phase, times, sigma=0.01)
    unwrapped = first.frequency + first.period
    assert (unwrapped - frequency).abs().max() > 1e-3
    second = fit_field(magnitude, phase, times, sigma=0.01, start=unwrapped)
    torch.testing.assert_close(second.frequency, frequency, atol=1e-8, rtol=0)


@pytest.mark.parametrize("times", [EQUAL, UNEQUAL, SIX], ids=str)
@pytest.mark.parametrize("given", [True, False])
def test_standard_error_is_the_scatter_of_many_fits(times, given):
    generator = torch.Generator().manual_seed(8)
    sigma, count = 0.02, 20000
    frequency = torch.full((count,), 0.2 * frequency_period(times), dtype=torch.float64)
    magnitude, phase = echoes(frequency, torch.tensor(0.5), times)
    signal = torch.polar(magnitude, phase)
    noise = sigma * torch.randn((2, *signal.shape), generator=generator, dtype=torch.float64)
    noisy = signal + torch.complex(noise[0], noise[1])
    fit = fit_field(noisy.abs(), noisy.angle(), times, sigma=sigma if given else None)
    scatter = (fit.frequency - frequency).std()
    assert fit.sigma.item() == pytest.approx(sigma, rel=0.03)
    assert fit.standard_error.mean().item() == pytest.approx(scatter.item(), rel=0.04)
    assert abs((fit.frequency - frequency).mean()) < 4 * scatter / count**0.5


def test_standard_error_is_the_inverse_fisher_information_by_autograd():
    times, sigma = torch.tensor(UNEQUAL, dtype=torch.float64), 0.03
    amplitude = torch.exp(-times / 0.02)

    def signal(parameters):
        angle = parameters[0] + 2 * math.pi * parameters[1] * times
        return torch.cat([amplitude * angle.cos(), amplitude * angle.sin()])

    jacobian = torch.autograd.functional.jacobian(signal, torch.tensor([0.4, 31.0], dtype=torch.float64))
    bound = sigma * torch.linalg.inv(jacobian.T @ jacobian)[1, 1].sqrt()
    magnitude, phase = echoes(torch.tensor([31.0], dtype=torch.float64), torch.tensor(0.4), UNEQUAL, t2star=0.02)
    assert fit_field(magnitude, phase, UNEQUAL, sigma=sigma).standard_error.item() == pytest.approx(bound.item())


def test_a_weak_echo_weighs_little():
    magnitude, phase = echoes(torch.zeros(1, dtype=torch.float64), torch.tensor(0.0), SIX, t2star=1.0)
    phase[-1] += 1.0
    pulled = fit_field(magnitude, phase, SIX, sigma=0.01).frequency
    magnitude[-1] *= 0.01
    assert fit_field(magnitude, phase, SIX, sigma=0.01).frequency.abs() < 1e-3 * pulled.abs()


def test_sign_of_the_phase():
    frequency, offset = random_field(EQUAL)
    magnitude, phase = echoes(frequency, offset, EQUAL)
    turned = fit_field(magnitude, -phase, EQUAL, phase_sign=-1, sigma=0.01)
    torch.testing.assert_close(turned.frequency, frequency, atol=1e-8, rtol=0)
    assert wrap(turned.offset + offset).abs().max() < 1e-9


def test_scale_of_the_magnitude_does_not_matter():
    frequency, offset = random_field(EQUAL)
    magnitude, phase = echoes(frequency.float(), offset.float(), EQUAL)
    plain = fit_field(magnitude, phase, EQUAL, sigma=0.01)
    small = fit_field(1e-4 * magnitude, phase, EQUAL, sigma=1e-6)
    torch.testing.assert_close(small.frequency, plain.frequency)
    torch.testing.assert_close(small.standard_error, plain.standard_error)


def test_voxels_without_signal():
    magnitude, phase = echoes(torch.full((3,), 20.0), torch.tensor(0.1), EQUAL)
    magnitude[:, 1] = 0
    fit = fit_field(magnitude, phase, EQUAL)
    assert torch.isfinite(fit.frequency).all()
    assert fit.standard_error[1] == math.inf
    assert torch.isfinite(fit.standard_error[[0, 2]]).all()


def test_frequency_is_differentiable_by_the_phase():
    magnitude, phase = echoes(torch.tensor([12.0, -40.0], dtype=torch.float64), torch.tensor(0.2), EQUAL)
    phase.requires_grad_()
    fit_field(magnitude, phase, EQUAL, sigma=0.01).frequency.sum().backward()
    # A common phase is no frequency; a phase that rises with time is: sum of t times gradient = 1 / 2 pi.
    assert phase.grad.sum(0).abs().max() < 1e-9
    slope = (torch.tensor(EQUAL, dtype=torch.float64)[:, None] * phase.grad).sum(0)
    torch.testing.assert_close(slope, torch.full_like(slope, 1 / (2 * math.pi)))


def test_ppm():
    # 1 ppm of 3 T is 127.73 Hz.
    assert frequency_to_ppm(torch.tensor(127.732435554, dtype=torch.float64), 3.0).item() == pytest.approx(1, abs=1e-9)
    with pytest.raises(ValueError, match="field_strength"):
        frequency_to_ppm(torch.zeros(1), 0.0)


@pytest.mark.parametrize(
    ("magnitude", "times", "options", "message"),
    [
        ((1, 4), [0.004], {}, "at least two echoes"),
        ((3, 4), [0.004, 0.008], {}, "N = 2 echo times"),
        ((2, 4), [4.0, 8.0], {}, "milliseconds"),
        ((2, 4), [0.008, 0.004], {}, "rise"),
        ((2, 4), [0.0, math.nan], {}, "finite and positive"),
        ((2, 4), [0.004, 0.008], {"sigma": 0.1, "phase_sign": 2}, "phase_sign"),
        ((2, 4), [0.004, 0.008], {}, "sigma must be given"),
    ],
)
def test_bad_input_of_the_fit(magnitude, times, options, message):
    with pytest.raises(ValueError, match=message):
        fit_field(torch.ones(magnitude), torch.zeros(magnitude), times, **options)


@pytest.mark.parametrize("dtype", [torch.int16, torch.float32, torch.float64])
def test_stored_phase_in_radians(dtype):
    stored = torch.tensor([-4096, -2048, 0, 1024, 4096]).to(dtype)
    expected = math.pi * torch.tensor([-1, -0.5, 0, 0.25, 1])
    torch.testing.assert_close(rescale_phase(stored, (-4096, 4096)).float(), expected)
    torch.testing.assert_close(rescale_phase(stored + 4096, (0, 8192)).float(), expected)
    with pytest.raises(ValueError, match="stored_range -4000 to 4000, got -4096"):
        rescale_phase(stored, (-4000, 4000))
    with pytest.raises(ValueError, match="the lower first"):
        rescale_phase(stored, (1, -1))


def test_stored_phase_that_is_not_finite():
    with pytest.raises(ValueError, match="1 voxels"):
        rescale_phase(torch.tensor([0.0, math.nan]), (-1, 1))


def test_wrap_keeps_the_phasor():
    phase = torch.linspace(-40, 40, 1001, dtype=torch.float64)
    wrapped = wrap(phase)
    assert wrapped.abs().max() <= math.pi
    torch.testing.assert_close(torch.exp(1j * wrapped), torch.exp(1j * phase))


@pytest.mark.parametrize("voxel_size", [(1.0, 1.0, 1.0), (0.5, 1.0, 3.0)])
@pytest.mark.parametrize("shape", [(16, 18, 11), (2, 9, 12, 20)])
def test_laplacian_unwrapping_of_a_smooth_phase_is_exact(voxel_size, shape):
    axes = [torch.linspace(-1, 1, n, dtype=torch.float64) for n in shape[-3:]]
    x, y, z = torch.meshgrid(*axes, indexing="ij")
    true = 9 * x - 4 * y * z + 4 * torch.cos(2 * z) + torch.arange(math.prod(shape[:-3])).reshape(*shape[:-3], 1, 1, 1)
    unwrapped = unwrap_laplacian(wrap(true), voxel_size)
    assert (true - wrap(true)).abs().max() > 6  # there was something to do
    turns = (unwrapped - true) / (2 * math.pi)
    assert (turns - turns.round()).abs().max() < 1e-10
    assert torch.equal(turns.round(), turns[..., :1, :1, :1].round().expand_as(turns))


def test_laplacian_unwrapping_in_single_precision():
    x = torch.linspace(-30, 30, 96).reshape(-1, 1, 1).expand(96, 40, 40)
    unwrapped = unwrap_laplacian(wrap(x))
    assert (unwrapped - unwrapped.mean() - x).abs().max() < 2e-3


def test_bad_input_of_laplacian_unwrapping():
    with pytest.raises(ValueError, match="X, Y, Z"):
        unwrap_laplacian(torch.zeros(3, 3))
    with pytest.raises(ValueError, match="voxel_size"):
        unwrap_laplacian(torch.zeros(3, 3, 3), (1.0, 0.0, 1.0))
