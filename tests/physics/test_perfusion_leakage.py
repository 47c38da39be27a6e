"""Leakage correction of curves that were made with leakage."""

from __future__ import annotations

import pytest
import torch
from scipy import integrate

from physics.perfusion import ArterialInput, correct_leakage, tissue_concentration

TIMES = torch.arange(60, dtype=torch.float64) * 1.5


def reference(times=TIMES):
    """Delta R2* of intact tissue [1/s]."""
    values = torch.tensor([15.0, 3.0, 1.5, 10.0, 0.15, 15.0, 4.0, 0.1, 60.0], dtype=torch.float64)
    cbf, mtt = torch.tensor([50.0, 4.5], dtype=torch.float64)
    return 50 * tissue_concentration(ArterialInput(*values), times, cbf, mtt)


def leaky(k1, k2):
    """K1 reference - K2 integral, the integral on a grid of .05 s."""
    fine = torch.arange(1771, dtype=torch.float64) * 0.05
    integral = integrate.cumulative_trapezoid(reference(fine).numpy(), dx=0.05, initial=0)[::30]
    return k1 * reference() - k2 * torch.from_numpy(integral.copy())


@pytest.mark.parametrize("k2", [-0.03, 0.02, 0.05])
@pytest.mark.parametrize("k1", [0.6, 1.0, 2.5])
def test_leakage_is_recovered(k1, k2):
    corrected, found1, found2 = correct_leakage(leaky(k1, k2), reference(), 1.5)
    assert float(found1) == pytest.approx(k1, rel=0.01)
    assert float(found2) == pytest.approx(k2, rel=0.03)
    assert torch.allclose(corrected, k1 * reference(), atol=0.02 * float(k1 * reference().max()))


@pytest.mark.parametrize("k2", [0.02, 0.05])
def test_leakage_is_recovered_in_noise(k2, generator):
    """Mean over 400 voxels; noise 1/s, where the curve peaks near 20/s."""
    rate = leaky(1.0, k2) + torch.randn(20, 20, 60, generator=generator, dtype=torch.float64)
    corrected, _, found = correct_leakage(rate, reference(), 1.5)
    assert corrected.shape == (20, 20, 60)
    assert found.shape == (20, 20)
    assert float(found.mean()) == pytest.approx(k2, rel=0.03)


@pytest.mark.parametrize("k2", [0.02, 0.05])
def test_blood_volume_is_that_without_leakage(k2):
    """K1 is the ratio of blood volumes; uncorrected, leakage of .05 takes most of the area away."""
    rate = leaky(1.0, k2)
    corrected, _, _ = correct_leakage(rate, reference(), 1.5)
    area = float(reference().sum())
    assert float(corrected.sum()) == pytest.approx(area, rel=0.02)
    assert float(rate.sum()) < 0.7 * area


def test_intact_tissue_stays():
    corrected, k1, k2 = correct_leakage(1.4 * reference().float(), reference().float(), 1.5)
    assert corrected.dtype == torch.float32
    assert float(k1) == pytest.approx(1.4, abs=1e-5)
    assert float(k2) == pytest.approx(0.0, abs=1e-6)
    assert torch.allclose(corrected, 1.4 * reference().float(), atol=1e-3)


def test_linear_and_differentiable(generator):
    rate = torch.randn(3, 60, generator=generator, dtype=torch.float64)
    double, k1, k2 = correct_leakage(2 * rate, reference(), 1.5)
    once = correct_leakage(rate, reference(), 1.5)
    for two, one in zip((double, k1, k2), once, strict=True):
        assert torch.allclose(two, 2 * one)
    curve = reference()[::4].clone().requires_grad_()
    short = rate[:, ::4].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda r, c: correct_leakage(r, c, 6.0), (short, curve))


def test_fit_is_the_least_squares_fit(generator):
    """No other pair of constants leaves less: against torch.linalg.lstsq."""
    rate = leaky(1.2, 0.03) + torch.randn(60, generator=generator, dtype=torch.float64)
    integral = integrate.cumulative_trapezoid(reference().numpy(), dx=1.5, initial=0)
    design = torch.stack([reference(), -torch.from_numpy(integral)], 1)
    expected = torch.linalg.lstsq(design, rate[:, None]).solution[:, 0]
    _, k1, k2 = correct_leakage(rate, reference(), 1.5)
    assert torch.allclose(torch.stack([k1, k2]), expected)


@pytest.mark.parametrize(
    ("curve", "dt", "message"),
    [(reference()[:-1], 1.5, "frames"), (torch.zeros(60), 1.5, "bolus"), (reference(), 0.0, "dt")],
)
def test_bad_values_are_named(curve, dt, message):
    with pytest.raises(ValueError, match=message):
        correct_leakage(leaky(1.0, 0.02), curve, dt)
