"""Indicator dilution against closed forms and adaptive quadrature."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import integrate, special, stats

from physics.perfusion import (
    RESIDUES,
    ArterialInput,
    gamma_variate,
    haematocrit_factor,
    residue,
    residue_spectrum,
    tissue_concentration,
)

GAMMA_SHAPE = 2.6
# Written apart from the module: u = t / MTT.
SHAPES = {
    "exponential": lambda u: math.exp(-u),
    "box": lambda u: float(u < 1),
    "linear": lambda u: max(0.0, 1 - u / 2),
    "lorentzian": lambda u: 1 / (1 + (math.pi * u / 2) ** 2),
    "gamma": lambda u: stats.gamma.sf(u, GAMMA_SHAPE, scale=1 / GAMMA_SHAPE),
}
every_residue = pytest.mark.parametrize("kind", RESIDUES)
UNIT_FLOW = 6000 * haematocrit_factor()  # ml/100 g/min, of which a tissue curve is the plain convolution


def double(*values):
    return [torch.tensor(value, dtype=torch.float64) for value in values]


def bolus(arrival=10.0, alpha=3.0, beta=1.5, peak=5.0, **others):
    return ArterialInput(*double(arrival, alpha, beta, peak), **others)


def complete(**changes):
    values = {"recirculation": 0.2, "recirculation_delay": 15.0, "recirculation_width": 3.0}
    return bolus(**{**values, "tail": 0.1, "tail_time": 60.0, **changes})


def only(kind):
    return torch.eye(5, dtype=torch.float64)[RESIDUES.index(kind)]


def gamma_variate_numpy(t, arrival=10.0, alpha=3.0, beta=1.5, peak=5.0):
    x = max(t - arrival, 0.0) / (alpha * beta)
    return peak * (x * math.exp(1 - x)) ** alpha


def frames(n=50, dt=1.5):
    return torch.arange(n, dtype=torch.float64) * dt


def centroid(curve, times):
    return float((curve * times).sum() / curve.sum())


def test_haematocrit_factor():
    assert haematocrit_factor() == pytest.approx(0.7051, abs=5e-5)
    assert haematocrit_factor(as_printed=True) == pytest.approx(1.3112, abs=5e-5)
    assert haematocrit_factor(0.4, 0.4, 1.0) == 1.0


@pytest.mark.parametrize("arguments", [(1.0,), (-0.1,), (0.45, 1.2), (0.45, 0.25, 0.0)])
def test_haematocrit_out_of_range(arguments):
    with pytest.raises(ValueError, match=r"must (lie|be)"):
        haematocrit_factor(*arguments)


def test_gamma_variate_peaks_at_one():
    arrival, alpha, beta = double([4.0, 9.0], [2.0, 3.5], [1.2, 0.8])
    times = torch.cat([frames(40, 0.25), arrival + alpha * beta])
    curve = gamma_variate(times, arrival, alpha, beta)
    assert torch.allclose(curve.diagonal(40), torch.ones(2, dtype=torch.float64))
    assert float(curve.max()) <= 1 + 1e-12
    assert float(curve[times <= arrival[:, None]].abs().max()) == 0


@every_residue
@pytest.mark.parametrize("mtt", [2.0, 12.0])
def test_residue_starts_at_one_and_has_the_area_mtt(kind, mtt):
    def value(t):
        return float(residue(torch.tensor([t], dtype=torch.float64), *double(mtt), kind, GAMMA_SHAPE)[0])

    assert value(0.0) == 1.0
    assert value(-0.1) == 0.0
    assert value(1.3 * mtt) == pytest.approx(SHAPES[kind](1.3), abs=1e-12)
    ends = [0, mtt, 2 * mtt, math.inf]
    area = sum(integrate.quad(value, low, high)[0] for low, high in zip(ends, ends[1:], strict=False))
    assert area == pytest.approx(mtt, rel=1e-6)


def test_gamma_residue_of_shape_one_is_exponential():
    times, (mtt,) = frames(30), double([3.0, 8.0])
    assert torch.allclose(residue(times, mtt, "gamma", 1.0), residue(times, mtt, "exponential"), atol=1e-12)


@every_residue
def test_residue_spectrum_is_the_transform(kind):
    """Of R exp(-damping t), by quadrature with the oscillating weight."""
    mtt, damping, omega = 5.0, 0.04, 0.7

    def damped(t):
        return SHAPES[kind](t / mtt) * math.exp(-damping * t)

    edges = [0.0, mtt, 2 * mtt, 8 * mtt, 400.0]
    real, imaginary = (
        sum(
            integrate.quad(damped, low, high, weight=weight, wvar=omega, limit=200)[0]
            for low, high in zip(edges, edges[1:], strict=False)
        )
        for weight in ("cos", "sin")
    )
    found = residue_spectrum(torch.tensor([omega - 1j * damping]), *double(mtt), only(kind), GAMMA_SHAPE)
    assert complex(found[0]) == pytest.approx(complex(real, -imaginary), abs=1e-6)


def test_lorentzian_spectrum_in_closed_form():
    """Its cosine transform is MTT exp(-2 omega MTT / pi)."""
    omega, (mtt,) = torch.linspace(0.01, 12.0, 60, dtype=torch.float64), double(4.0)
    found = residue_spectrum(omega, mtt, only("lorentzian")).real
    assert torch.allclose(found, 4.0 * torch.exp(-8.0 * omega / math.pi), atol=1e-8)


def test_exponential_residue_in_closed_form():
    """Gamma variate and exponential: an incomplete gamma function."""
    mtt, alpha, beta = 6.0, 3.0, 1.5
    rate = 1 / beta - 1 / mtt
    after = np.maximum(frames().numpy() - 10.0, 0.0)
    scale = 5.0 * (math.e / (alpha * beta)) ** alpha * special.gamma(alpha + 1) / rate ** (alpha + 1)
    expected = scale * np.exp(-after / mtt) * special.gammainc(alpha + 1, rate * after)
    found = tissue_concentration(bolus(), frames(), *double(UNIT_FLOW, mtt)).numpy()
    assert np.abs(found - expected).max() < 1e-6 * expected.max()


@every_residue
@pytest.mark.parametrize(("mtt", "delay"), [(3.0, 0.0), (14.0, 3.7)])
def test_tissue_is_the_convolution(kind, mtt, delay):
    times = torch.tensor([5.0, 11.0, 14.2, 17.0, 23.1, 40.0, 70.0], dtype=torch.float64)

    def convolution(t):
        start = 10.0 + delay
        if t <= start:
            return 0.0
        edges = sorted({start, t, *(x for x in (t - mtt, t - 2 * mtt, start + 4.5, start + 15.0) if start < x < t)})
        return sum(
            integrate.quad(lambda x: gamma_variate_numpy(x - delay) * SHAPES[kind]((t - x) / mtt), low, high)[0]
            for low, high in zip(edges, edges[1:], strict=False)
        )

    expected = np.array([convolution(float(t)) for t in times])
    arguments = (times, *double(UNIT_FLOW, mtt, delay), 0.0, only(kind), GAMMA_SHAPE)
    found = tissue_concentration(bolus(), *arguments).numpy()
    assert np.abs(found - expected).max() < 2e-6 * expected.max()
    single = ArterialInput(*(value.float() for value in double(10.0, 3.0, 1.5, 5.0)))
    arguments = [value.float() if isinstance(value, torch.Tensor) else value for value in arguments]
    found = tissue_concentration(single, *arguments)
    assert found.dtype == torch.float32
    assert np.abs(found.numpy() - expected).max() < 1e-4 * expected.max()


@pytest.mark.parametrize("kind", ["exponential", "box", "linear", "gamma"])
def test_area_of_tissue_is_the_blood_volume(kind):
    times, artery = frames(250, 1.0), complete(beta=3.0, tail_time=15.0)
    cbf, mtt = double([30.0, 60.0], [9.0, 4.0])
    curve = tissue_concentration(artery, times, cbf, mtt, *double(2.0, 1.5), only(kind), GAMMA_SHAPE)
    expected = cbf * mtt / (6000 * haematocrit_factor()) * artery.area()
    assert torch.allclose(curve.sum(-1), expected, rtol=1e-4)
    printed = haematocrit_factor(as_printed=True)
    other = tissue_concentration(artery, times, cbf, mtt, *double(2.0, 1.5), only(kind), factor=printed)
    assert torch.allclose(other.sum(-1) * printed, expected * haematocrit_factor(), rtol=1e-4)


def test_arterial_curve_is_the_sum_of_its_parts():
    """First and second pass are gamma variates; the tail decays from its height with its time constant."""
    times = frames(300, 0.5)
    one = 5 * gamma_variate(times, *double(10.0, 3.0, 1.5))
    assert torch.allclose(bolus().concentration(times), one, atol=1e-6)
    two = gamma_variate(times, *double(25.0, 3.0, 4.5))
    passes = complete(tail=0.0).concentration(times) - one
    assert torch.allclose(passes, two * 0.2 * one.sum() / two.sum(), atol=1e-5)
    tail = (complete().concentration(times) - one - passes)[times > 60]
    late = times[times > 60]
    assert torch.allclose(tail.log().diff() / late.diff(), torch.full_like(late[1:], -1 / 60), atol=1e-6)
    # The mean age of the tail counts from the mean arrival of the bolus, to first order in its width over 60 s.
    expected = 0.1 * 5 * math.exp(-(60.5 - 10 - 4 * 1.5) / 60)
    assert float(tail[0]) == pytest.approx(expected, rel=5e-3)


def test_area_of_the_arterial_curve():
    times, artery = frames(250, 1.0), complete(beta=3.0, tail_time=15.0)
    curve = artery.concentration(times)
    assert float(curve.sum()) == pytest.approx(float(artery.area()), rel=3e-5)
    assert float(curve.min()) > -1e-6 * 5
    vein = artery.delayed(*double(5.0, 2.0))
    assert float(vein.area()) == float(artery.area())
    assert float(vein.concentration(times).sum()) == pytest.approx(float(artery.area()), rel=3e-5)


def test_delay_and_dispersion_shift_the_mean():
    times, artery = frames(250, 1.0), complete(beta=3.0, tail_time=15.0)
    here = centroid(artery.concentration(times), times)
    twice = artery.delayed(*double(4.0, 1.5)).delayed(*double(1.0, 2.5))
    assert centroid(twice.concentration(times), times) - here == pytest.approx(9.0, abs=1e-3)
    tissue = [
        tissue_concentration(artery, times, *double(50.0, 5.0, delay, wide)) for delay, wide in ((0.0, 0.0), (3.0, 2.0))
    ]
    assert centroid(tissue[1], times) - centroid(tissue[0], times) == pytest.approx(5.0, abs=1e-3)
    assert float(tissue[1].sum()) == pytest.approx(float(tissue[0].sum()), rel=1e-6)
    assert float(tissue[1].max()) < float(tissue[0].max())


def test_dispersed_artery_is_dispersed_tissue():
    late = complete().delayed(*double(2.0, 1.5))
    expected = tissue_concentration(late, frames(), *double(50.0, 5.0))
    assert torch.allclose(tissue_concentration(complete(), frames(), *double(50.0, 5.0, 2.0, 1.5)), expected, atol=1e-7)


@pytest.mark.parametrize("shift", [-4, -1, 3])
def test_whole_frames_of_delay_shift_the_curve(shift):
    def curve(delay):
        return tissue_concentration(complete(), frames(), *double(50.0, 5.0, delay))

    moved = torch.roll(curve(0.0), shift)
    keep = slice(max(shift, 0), 50 + min(shift, 0))
    assert torch.allclose(curve(1.5 * shift)[keep], moved[keep], atol=1e-6 * float(moved.max()))


def test_arrival_before_the_first_frame():
    """A curve that begins before t = 0 is still the same curve."""
    early = tissue_concentration(complete(arrival=3.0), frames(), *double(50.0, 5.0, -6.0))
    late = tissue_concentration(complete(arrival=3.0), frames() + 12.0, *double(50.0, 5.0, 6.0))
    assert torch.allclose(early, late, atol=1e-6 * float(late.max()))


@pytest.mark.parametrize(("n", "dt"), [(20, 1.0), (50, 1.5), (160, 2.5)])
def test_nothing_comes_before_the_bolus(n, dt):
    """A tail that outlasts the period, and the longest residue, do not come back at the start."""
    times = frames(n, dt).float()
    lasting = complete(arrival=9.0, tail=0.3, tail_time=1e4)
    values = [torch.tensor(value) for value in (50.0, 60.0)]
    curve = tissue_concentration(lasting, times, *values, weights=only("lorentzian").float())
    assert float(curve[times < 9].abs().max()) < 1e-4 * float(curve.max())
    single = ArterialInput(*(value.float() for value in double(9.0, 3.0, 1.5, 5.0)), tail=0.3, tail_time=math.inf)
    curve = single.concentration(times)
    assert float(curve[times < 9].abs().max()) < 1e-4 * 5
    if n * dt > 60:
        assert float(curve[-1]) == pytest.approx(1.5, rel=1e-3)


def test_times_need_no_order():
    order = torch.randperm(50, generator=torch.Generator().manual_seed(1))
    curve = tissue_concentration(complete(), frames(), *double(50.0, 5.0))
    assert torch.allclose(tissue_concentration(complete(), frames()[order], *double(50.0, 5.0)), curve[order])


def test_linear_in_flow_artery_and_mixture():
    cbf, mtt = double([20.0, 45.0], [9.0, 5.0])
    one, two = (tissue_concentration(complete(peak=peak), frames(), cbf, mtt) for peak in (5.0, 10.0))
    assert torch.allclose(two, 2 * one)
    assert torch.allclose(tissue_concentration(complete(), frames(), 3 * cbf, mtt), 3 * one)
    weights = torch.tensor([0.3, 0.1, 0.2, 0.25, 0.15], dtype=torch.float64)
    parts = [tissue_concentration(complete(), frames(), cbf, mtt, weights=only(kind)) for kind in RESIDUES]
    mixed = tissue_concentration(complete(), frames(), cbf, mtt, weights=weights)
    assert torch.allclose(mixed, sum(w * part for w, part in zip(weights, parts, strict=True)), atol=1e-9)


def test_batch_of_arteries_is_aligned_with_the_leading_axes(generator):
    peaks, arrivals = double([5.0, 8.0, 3.0], [10.0, 12.0, 15.0])
    batch = ArterialInput(arrivals, *double(3.0, 1.5), peaks)
    cbf, mtt = (20 + 10 * torch.rand(3, 4, 2, generator=generator, dtype=torch.float64) for _ in range(2))
    weights = torch.rand(3, 4, 2, 5, generator=generator, dtype=torch.float64)
    together = tissue_concentration(batch, frames(), cbf, mtt, 1.0, 0.5, weights)
    assert together.shape == (3, 4, 2, 50)
    for i in range(3):
        alone = ArterialInput(arrivals[i], *double(3.0, 1.5), peaks[i])
        expected = tissue_concentration(alone, frames(), cbf[i], mtt[i], 1.0, 0.5, weights[i])
        assert torch.allclose(together[i], expected, atol=1e-7)
        assert torch.allclose(batch.concentration(frames())[i], alone.concentration(frames()), atol=1e-7)
    one_voxel = tissue_concentration(batch, frames(), *double(50.0, 5.0))
    assert one_voxel.shape == (3, 50)


def test_many_voxels_equal_few(generator):
    """More voxels than are worked on at a time, in single precision."""
    single = ArterialInput(*(value.float() for value in double(10.0, 3.0, 1.5, 5.0)))
    cbf, mtt, delay = (1 + 20 * torch.rand(2500, generator=generator) for _ in range(3))
    weights = torch.rand(2500, 5, generator=generator)
    curves = tissue_concentration(single, frames().float(), cbf, mtt, delay, weights=weights)
    some = torch.tensor([0, 1023, 1024, 2499])
    few = [value[some].double() for value in (cbf, mtt, delay)]
    expected = tissue_concentration(bolus(), frames(), *few, weights=weights[some].double())
    assert torch.allclose(curves[some].double(), expected, atol=1e-4 * float(expected.max()))


def test_no_voxels_and_no_transit_time():
    empty = torch.zeros(0, dtype=torch.float64)
    assert tissue_concentration(bolus(), frames(), empty, empty).shape == (0, 50)
    none = tissue_concentration(bolus(), frames(), *double([0.0, 50.0], [0.0, 0.0]), weights=torch.full((5,), 0.2))
    assert float(none.abs().max()) == 0
    # A transit of 10 ms is an impulse: the arterial curve itself, times the blood volume, within .1 s.
    short = tissue_concentration(bolus(), frames(), *double(UNIT_FLOW, 0.01)) / 0.01
    assert torch.allclose(short, bolus(arrival=10.1).concentration(frames()), atol=0.01 * 5)


def test_gradients(generator):
    times = frames(12, 3.0)
    aif = double(8.0, 3.0, 6.0, 3.0, 0.2, 12.0, 2.0, 0.1, 50.0)
    tissue = double([40.0, 25.0], [5.0, 9.0], [1.0, -2.0], [0.5, 1.5])
    weights = torch.rand(2, 5, generator=generator, dtype=torch.float64)
    for value in (*aif, *tissue, weights):
        value.requires_grad_()

    def curves(*values):
        return tissue_concentration(ArterialInput(*values[:9]), times, *values[9:])

    assert torch.autograd.gradcheck(curves, (*aif, *tissue, weights), atol=1e-5, fast_mode=True)
    assert torch.autograd.gradcheck(
        lambda *values: ArterialInput(*values).concentration(times), aif, atol=1e-5, fast_mode=True
    )


@pytest.mark.parametrize(
    ("change", "parameter"),
    [
        ({"mtt": -1.0}, "mtt"),
        ({"mtt": 300.0}, "mtt"),
        ({"mtt": math.nan}, "mtt"),
        ({"dispersion": -0.5}, "dispersion"),
        ({"weights": torch.ones(4)}, "weights"),
        ({"weights": torch.zeros(5)}, "weights"),
        ({"gamma_shape": 0.0, "weights": torch.ones(5)}, "gamma_shape"),
        ({"factor": 0.0}, "factor"),
        ({"aif": {"beta": 0.0}}, "beta"),
        ({"aif": {"alpha": -1.0}}, "alpha"),
        ({"aif": {"tail_time": 0.0}}, "tail_time"),
    ],
)
def test_bad_values_are_named(change, parameter):
    change = dict(change)
    aif = complete(**change.pop("aif", {}))
    arguments = {"cbf": 50.0, "mtt": 5.0, **change}
    for name in ("cbf", "mtt"):
        arguments[name] = torch.tensor(arguments[name], dtype=torch.float64)
    with pytest.raises(ValueError, match=parameter):
        tissue_concentration(aif, frames(), **arguments)


def test_unknown_residue():
    with pytest.raises(ValueError, match="kind must be one of"):
        residue(frames(), *double(5.0), "plug")
