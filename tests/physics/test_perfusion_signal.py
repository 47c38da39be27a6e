"""Signal, dummy frames, baseline and bolus of simulated brains."""

from __future__ import annotations

import math
from functools import cache

import pytest
import torch

from physics.perfusion import (
    ArterialInput,
    Frames,
    baseline_signal,
    baseline_snr,
    find_frames,
    relaxation_rate_change,
    signal_from_concentration,
    tissue_concentration,
)

TRANSIENT = (1.25, 1.06)  # signal of the first frames over that of the steady state


@cache
def brain(arrival, dt, n):
    """Mean signal without noise of a brain whose arteries fill at ``arrival`` [s], baseline 1."""
    generator = torch.Generator().manual_seed(3)
    aif = ArterialInput(*torch.tensor([arrival, 3.0, 1.5, 10.0]), 0.15, 15.0, 4.0, 0.1, 60.0)
    mtt, delay = (low + 3 * torch.rand(40, generator=generator) for low in (3.0, 0.0))
    curves = tissue_concentration(aif, torch.arange(n) * dt, torch.full((40,), 50.0), mtt, delay, delay / 2)
    return signal_from_concentration(curves.double(), 1.0, 0.03, 50.0).mean(0)


def measured(arrival, dt, n, dummies=1, drift=0.0, noise=0.001, seed=0):
    signal = brain(arrival, dt, n) * (1 + drift * torch.linspace(0, 1, n, dtype=torch.float64))
    signal[:dummies] *= torch.tensor(TRANSIENT[:dummies], dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    return 400 * signal * (1 + noise * torch.randn(n, generator=generator, dtype=torch.float64))


def test_signal_there_and_back(generator):
    concentration = 0.5 * torch.rand(3, 4, 20, generator=generator, dtype=torch.float64) - 0.05
    s0 = 100 + 300 * torch.rand(3, 4, generator=generator, dtype=torch.float64)
    signal = signal_from_concentration(concentration, s0, 0.03, 50.0)
    assert torch.allclose(relaxation_rate_change(signal, s0, 0.03) / 50.0, concentration)
    echo_times = torch.tensor([0.02, 0.03, 0.04], dtype=torch.float64).reshape(3, 1, 1)
    signal = signal_from_concentration(concentration, s0, echo_times, 50.0)
    assert torch.allclose(relaxation_rate_change(signal, s0, echo_times), 50 * concentration)
    assert relaxation_rate_change(signal.float(), s0.float(), 0.03).dtype == torch.float32


def test_half_the_signal_is_a_known_rate():
    rate = relaxation_rate_change(torch.tensor([2.0, 1.0]), torch.tensor(2.0), 0.03)
    assert rate.tolist() == pytest.approx([0.0, math.log(2) / 0.03])


def test_no_signal_is_the_floor_and_air_is_nothing():
    signal = torch.tensor([[10.0, 0.0, -3.0], [1.0, 2.0, 3.0], [1.0, 2.0, 3.0]], requires_grad=True)
    rate = relaxation_rate_change(signal, torch.tensor([10.0, 0.0, -1.0]), 0.03, floor=0.05)
    ceiling = math.log(20) / 0.03
    assert rate[0].detach().tolist() == pytest.approx([0.0, ceiling, ceiling])
    assert float(rate[1:].detach().abs().max()) == 0
    rate.sum().backward()
    assert bool(torch.isfinite(signal.grad).all())


def test_gradients(generator):
    concentration = torch.rand(2, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    s0 = (1 + torch.rand(2, generator=generator, dtype=torch.float64)).requires_grad_()
    assert torch.autograd.gradcheck(lambda c, s: signal_from_concentration(c, s, 0.03, 20.0), (concentration, s0))
    signal = (0.5 + concentration).detach().requires_grad_()
    assert torch.autograd.gradcheck(lambda s, b: relaxation_rate_change(s, b, 0.03), (signal, s0))


@pytest.mark.parametrize(
    ("dt", "n"), [(1.0, 25), (1.0, 70), (1.0, 160), (1.5, 20), (1.5, 50), (2.0, 20), (2.0, 40), (2.5, 20), (2.5, 160)]
)
def test_frames_of_many_arrivals(dt, n):
    """Every number of baseline frames from two on, drift up and down: dummies, arrival and baseline are right."""
    checked = 0
    for arrival in (2, 3, 4, 6, 9, 14, 22, 40):
        if arrival * dt + 20 > n * dt:
            continue
        clean = brain(arrival * dt, dt, n)
        visible = int((clean < 0.99).nonzero()[0])
        for dummies in range(min(3, arrival - 1)):
            for drift in (-0.05, 0.0, 0.05):
                found = find_frames(measured(arrival * dt, dt, n, dummies, drift, seed=arrival), dt)
                case = f"arrival {arrival}, dummies {dummies}, drift {drift}: {found}"
                assert found.bolus, case
                assert found.dummy == dummies, case
                assert -1 <= found.arrival - visible <= 2, case
                assert dummies < found.baseline_end <= found.arrival, case
                assert abs(found.peak - int(clean.argmin())) <= 1, case
                window = slice(found.dummy, found.baseline_end)
                baseline = float(measured(arrival * dt, dt, n, dummies, drift, seed=arrival)[window].mean()) / 400
                middle = (found.dummy + found.baseline_end - 1) / 2 / (n - 1)
                assert baseline == pytest.approx(1 + drift * middle, abs=0.006), case
                checked += 1
    assert checked >= 3


def test_two_frames_of_baseline_with_noise():
    """The bolus comes at frame 3, frame 0 is a dummy, the mean has noise of .5 %."""
    for seed in range(10):
        found = find_frames(measured(1.5, 1.5, 50, 1, noise=0.005, seed=seed), 1.5)
        assert found.bolus
        assert 1 <= found.dummy < found.baseline_end <= found.arrival <= 5


def test_baseline_ends_before_the_arteries_fill():
    found = find_frames(measured(24.0, 1.5, 60), 1.5)
    assert found.dummy == 1
    assert 13 <= found.baseline_end <= 16  # the arteries fill at frame 16
    assert found.baseline_end < found.arrival


def test_depth_and_tail_are_those_of_the_curve():
    clean = brain(18.0, 1.5, 60)
    found = find_frames(measured(18.0, 1.5, 60, noise=0.0002), 1.5)
    assert found.trough == pytest.approx(float(clean.min()), abs=0.005)
    assert found.tail == pytest.approx(float(clean[-2]), abs=0.005)
    assert find_frames(clean * 7, 1.5).trough == pytest.approx(find_frames(clean, 1.5).trough)


def test_scan_that_ends_soon_after_the_peak():
    clean = brain(18.0, 1.5, 60)
    peak = int(clean.argmin())
    found = find_frames(measured(18.0, 1.5, 60)[: peak + 4], 1.5)
    assert found.bolus
    assert abs(found.peak - peak) <= 1


def test_small_bolus_is_found():
    """A tenth of the usual dose, in noise of .2 %."""
    generator = torch.Generator().manual_seed(0)
    signal = (brain(18.0, 1.5, 60) ** 0.12) * (1 + 0.002 * torch.randn(60, generator=generator, dtype=torch.float64))
    signal[0] *= 1.25
    found = find_frames(signal, 1.5)
    assert found.bolus
    assert found.dummy == 1
    assert abs(found.arrival - int((brain(18.0, 1.5, 60) < 0.99).nonzero()[0])) <= 3


@pytest.mark.parametrize("n", [20, 60, 160])
@pytest.mark.parametrize("drift", [-0.2, -0.05, 0.0, 0.2])
@pytest.mark.parametrize("noise", [0.0, 0.001, 0.02])
def test_drift_and_noise_are_no_bolus(n, drift, noise):
    generator = torch.Generator().manual_seed(n)
    for dummies in range(3):
        signal = 300 * (1 + drift * torch.linspace(0, 1, n) + noise * torch.randn(n, generator=generator))
        signal[:dummies] *= torch.tensor(TRANSIENT[:dummies])
        found = find_frames(signal, 1.5)
        assert not found.bolus
        assert found.arrival == found.peak == found.baseline_end == n
        assert noise > 0.01 or abs(drift) / n >= 0.01 or found.dummy == dummies


@pytest.mark.parametrize("what", ["step", "spike"])
def test_motion_is_no_bolus(what):
    signal = torch.full((60,), 300.0)
    signal[0] = 375.0
    signal[30 : (31 if what == "spike" else None)] *= 0.7
    assert not find_frames(signal, 1.5).bolus


@pytest.mark.parametrize(
    ("signal", "dt", "message"),
    [
        (torch.ones(5), 1.5, "mean_signal"),
        (torch.ones(3, 50), 1.5, "mean_signal"),
        (torch.ones(50).index_fill(0, torch.tensor([4]), math.nan), 1.5, "positive and finite"),
        (torch.zeros(50), 1.5, "positive and finite"),
        (torch.ones(50), 0.0, "dt"),
    ],
)
def test_frames_of_bad_values(signal, dt, message):
    with pytest.raises(ValueError, match=message):
        find_frames(signal, dt)


def test_bad_acquisition_is_named():
    signal, baseline = torch.ones(3), torch.tensor(1.0)
    with pytest.raises(ValueError, match="echo_time"):
        signal_from_concentration(signal, baseline, 0.0, 50.0)
    with pytest.raises(ValueError, match="echo_time"):
        relaxation_rate_change(signal, baseline, -0.03)
    with pytest.raises(ValueError, match="floor"):
        relaxation_rate_change(signal, baseline, 0.03, floor=0.0)


def frames(dummy, end):
    return Frames(dummy, end, end + 2, end + 6, True, 0.6, 0.9)


def test_baseline_is_the_mean_of_its_frames():
    signal = torch.arange(12.0).expand(2, 12)
    assert baseline_signal(signal, frames(2, 6)).tolist() == [3.5, 3.5]


@pytest.mark.parametrize("end", [3, 4, 6, 12, 30])
@pytest.mark.parametrize("snr", [20.0, 80.0])
def test_median_snr_is_right_for_any_number_of_frames(end, snr, generator):
    """With drift of 1 % a frame."""
    noise = torch.randn(20000, 40, generator=generator) / snr
    signal = 250 * (1 + 0.01 / 30 * torch.arange(40) + noise)
    assert float(baseline_snr(signal, frames(1, end)).median()) == pytest.approx(snr, rel=0.04)


def test_snr_needs_two_frames():
    with pytest.raises(ValueError, match="at least 2 frames"):
        baseline_snr(torch.ones(4, 20), frames(1, 2))
