"""Perfusion maps: units, closed forms, the identity of CBV, CBF and MTT, Tmax and its sign."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from physics.perfusion import (
    ArterialInput,
    arterial_scale,
    blood_flow,
    blood_volume,
    csvd_operator,
    haematocrit_factor,
    mean_transit_time,
    perfusion_maps,
    time_to_maximum,
    tissue_concentration,
)
from physics.perfusion.deconvolution import METHODS

DT = 1.5
every_method = pytest.mark.parametrize("method", METHODS)


def artery(frames: int = 60) -> tuple[ArterialInput, Tensor, Tensor]:
    """A bolus at 15 s with nothing after it, its frame times and its curve at them."""
    values = (torch.tensor(value, dtype=torch.float64) for value in (15.0, 3.0, 1.5, 8.0))
    curve = ArterialInput(*values)
    times = torch.arange(frames, dtype=torch.float64) * DT
    return curve, times, curve.concentration(times)


def noisy(level: float = 0.02) -> tuple[Tensor, Tensor, Tensor]:
    """Curves ``[4, 3, 60]`` with noise, a measured artery (partial volume .6) and a vein."""
    generator = torch.Generator().manual_seed(11)
    curve, times, aif = artery()
    draw = torch.rand(3, 4, 3, generator=generator, dtype=torch.float64)
    tissue = tissue_concentration(curve, times, 20 + 50 * draw[0], 3 + 6 * draw[1], 5 * draw[2] - 1)
    tissue = tissue + level * torch.randn(tissue.shape, generator=generator, dtype=torch.float64)
    return tissue, 0.6 * aif, curve.delayed(4.0, 2.0).concentration(times)


def test_areas_by_hand() -> None:
    ones = torch.ones(10, dtype=torch.float64)
    assert float(arterial_scale(3 * ones, 4 * ones, 2.0)) == pytest.approx(0.75)
    # 100 x .7051 ml/g x a hundredth of the venous area
    assert float(blood_volume(0.04 * ones, 4 * ones, 2.0)) == pytest.approx(0.7051, abs=1e-4)
    assert float(blood_volume(0.04 * ones, 4 * ones, 2.0, factor=1.0)) == pytest.approx(1.0)
    assert float(blood_volume(0.04 * ones, 4 * ones, 2.0, factor=haematocrit_factor(as_printed=True))) == pytest.approx(
        1.3112, abs=1e-4
    )
    # a residue of .01 /s is .01 ml/ml/s: 60 ml/100 g/min for a factor of 1 ml/g
    assert float(blood_flow(torch.tensor([0.0, 0.01, 0.005]), factor=1.0)) == pytest.approx(60)
    assert float(blood_flow(torch.tensor([0.0, -0.03, 0.01]), k_av=0.5)) == pytest.approx(30 * 0.7051, abs=1e-3)


def test_mean_transit_time_where_nothing_flows() -> None:
    found = mean_transit_time(torch.tensor([4.0, 4.0, 4.0, 0.0]), torch.tensor([60.0, 0.0, -2.0, 0.0]))
    torch.testing.assert_close(found, torch.tensor([4.0, 0.0, 0.0, 0.0]))


@every_method
def test_volume_is_flow_times_transit_time(method: str) -> None:
    tissue, aif, vof = noisy()
    maps = perfusion_maps(tissue, aif, vof, DT, method)
    torch.testing.assert_close(maps["cbf"] * maps["mtt"] / 60, maps["cbv"], rtol=1e-5, atol=0)
    # MTT has neither the haematocrit nor the vein in it
    other = perfusion_maps(tissue, aif, 3 * vof.roll(2), DT, method, factor=1.0)
    torch.testing.assert_close(other["mtt"], maps["mtt"], rtol=1e-5, atol=0)


@every_method
def test_partial_volume_of_the_artery_cancels(method: str) -> None:
    tissue, aif, vof = noisy()
    one, other = (perfusion_maps(tissue, scale * aif, vof, DT, method) for scale in (1.0, 0.37))
    for name in ("cbv", "cbf", "mtt", "tmax"):
        torch.testing.assert_close(other[name], one[name], rtol=1e-5, atol=1e-5)


def test_truth_is_recovered_without_noise() -> None:
    """Long transit times, so that the truncation of the inverse costs little flow; a long scan for the volume."""
    curve, times, aif = artery(frames=160)
    cbf = torch.tensor([10.0, 25.0], dtype=torch.float64)
    mtt = torch.tensor([12.0, 16.0], dtype=torch.float64)
    vof = curve.delayed(4.0, 2.0).concentration(times)
    tissue = tissue_concentration(curve, times, cbf, mtt, torch.tensor(1.2))
    maps = perfusion_maps(tissue, aif, vof, DT, "csvd")
    torch.testing.assert_close(maps["cbv"], cbf * mtt / 60, rtol=2e-3, atol=0)
    torch.testing.assert_close(maps["cbf"], cbf, rtol=0.15, atol=0)
    assert bool((maps["cbf"] < cbf).all())


@pytest.mark.parametrize("kind", [0, 3, 4], ids=["exponential", "lorentzian", "gamma"])
def test_tmax_follows_the_delay(kind: int) -> None:
    """Tmax = delay + 1.5 to 2.7 s, with slope 1 and no grid: delays here are no multiples of the frame time.

    (A gamma residue of 9 s or more is so flat that its Tmax comes later, up to 3.1 s behind the delay.)
    """
    curve, times, aif = artery()
    delay = torch.linspace(-3, 6, 46, dtype=torch.float64)
    weights = torch.zeros(5, dtype=torch.float64)
    weights[kind] = 1
    operator = csvd_operator(aif, DT, 0.1)
    for mtt in (4.0, 6.0):
        cbf = torch.full_like(delay, 40.0)
        tissue = tissue_concentration(curve, times, cbf, torch.full_like(delay, mtt), delay, weights=weights)
        offset = time_to_maximum(tissue @ operator.mT, DT, circulant=True) - delay
        assert float(offset.min()) > 1.5 and float(offset.max()) < 2.7
        assert float(offset.std()) < 0.1  # of a frame time of 1.5 s
        centred = delay - delay.mean()
        slope = float((centred * (offset + delay)).sum() / centred.square().sum())
        assert slope == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("vertex", [-7.3, -0.4, -0.1, 0.0, 0.3, 0.6, 4.25, 9.4])
def test_vertex_of_a_parabola(vertex: float) -> None:
    """Round the ends of the period too; times are no whole seconds."""
    frame = torch.arange(20.0, dtype=torch.float64)
    distance = (frame - vertex + 10) % 20 - 10
    assert float(time_to_maximum(3 - 0.2 * distance**2, 0.7, circulant=True)) == pytest.approx(0.7 * vertex, abs=1e-9)


def test_negative_times_only_for_a_period() -> None:
    residue = torch.zeros(12)
    residue[9] = 1.0
    assert float(time_to_maximum(residue, 2.0, circulant=True)) == -6.0
    assert float(time_to_maximum(residue, 2.0, circulant=False)) == 18.0
    residue = torch.zeros(12)
    residue[6] = 1.0  # the first of the second half
    assert float(time_to_maximum(residue, 2.0, circulant=True)) == -12.0


def test_open_ends_have_no_vertex() -> None:
    ends = torch.tensor([[5.0, 4.0, 1.0, 4.9], [1.0, 2.0, 3.0, 3.5]])
    torch.testing.assert_close(time_to_maximum(ends, 1.5, circulant=False), torch.tensor([0.0, 4.5]))


def test_flat_residue_is_at_zero() -> None:
    torch.testing.assert_close(time_to_maximum(torch.zeros(3, 8), 1.5, circulant=True), torch.zeros(3))
    torch.testing.assert_close(time_to_maximum(torch.ones(3, 8), 1.5, circulant=False), torch.zeros(3))


@every_method
def test_outside_of_the_mask_is_zero(method: str) -> None:
    tissue, aif, vof = noisy()
    mask = torch.ones(4, 3, dtype=torch.bool)
    mask[2, 1] = False
    tissue[2, 1] = math.nan
    maps = perfusion_maps(tissue.float(), aif.float(), vof.float(), DT, method, mask=mask)
    assert list(maps) == ["cbv", "cbf", "mtt", "tmax"]
    for values in maps.values():
        assert values.shape == (4, 3) and values.dtype == torch.float32
        assert bool(torch.isfinite(values).all()) and float(values[2, 1]) == 0


def test_options_reach_the_method() -> None:
    tissue, aif, vof = noisy()
    flow = [float(perfusion_maps(tissue, aif, vof, DT, "csvd", threshold=t)["cbf"].mean()) for t in (0.05, 0.4)]
    assert flow[0] > 1.3 * flow[1]


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: arterial_scale(torch.ones(4), torch.zeros(4), 1.5), "vof must have a positive area"),
        (lambda: arterial_scale(-torch.ones(4), torch.ones(4), 1.5), "aif must have a positive area"),
        (lambda: arterial_scale(torch.ones(4), torch.full((4,), torch.nan), 1.5), "vof must have a positive area"),
        (lambda: blood_volume(torch.ones(4), torch.ones(4), 0.0), "dt must be finite and positive"),
        (lambda: time_to_maximum(torch.ones(5), 1.5, circulant=True), "an even number"),
        (lambda: time_to_maximum(torch.ones(2), 1.5, circulant=False), "3 frames or more"),
        (lambda: time_to_maximum(torch.ones(4), -1.5, circulant=False), "dt must be finite and positive"),
    ],
)
def test_bad_input(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
