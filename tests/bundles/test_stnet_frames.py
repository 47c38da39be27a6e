"""The standard frames of a series: times, areas, and what drops out."""

import pytest
import torch
from stnet_perfusion.frames import (
    FRAME_TIME,
    LEAD,
    arterial_arrival,
    frame_times,
    measured_volume,
    resampling,
    standardise,
)
from torch import Tensor

from physics.perfusion import ArterialInput, haematocrit_factor, tissue_concentration


def _artery(arrival: float = 15.0) -> ArterialInput:
    values = (arrival, 3.0, 1.5, 10.0, 0.2, 15.0, 2.0, 0.05, 40.0)
    return ArterialInput(*(torch.tensor(v, dtype=torch.float64) for v in values))


@pytest.mark.parametrize("frame_time", [1.0, 1.5, 1.8, 2.5])
@pytest.mark.parametrize("arrival", [4.3, 15.0, 22.7])
def test_arrival_is_a_tenth_of_the_way_up(frame_time: float, arrival: float) -> None:
    fine = torch.arange(0, 60, 0.05, dtype=torch.float64)
    curve = _artery(arrival).concentration(fine)
    truth = float(fine[(curve > 0.1 * curve.max()).nonzero()[0]])
    times = torch.arange(int(80 / frame_time), dtype=torch.float64) * frame_time
    found = arterial_arrival(_artery(arrival).concentration(times)[None], frame_time)
    assert abs(float(found) - truth) < 0.35 * frame_time


def test_arrival_of_a_curve_that_begins_above_its_level_is_the_first_frame() -> None:
    assert float(arterial_arrival(torch.tensor([[0.5, 1.0, 0.4, 0.1]]), 1.5)) == 0.0


@pytest.mark.parametrize("frame_time", [1.0, 1.5, 1.7, 2.5])
def test_resampling_keeps_straight_lines_inside_the_scan(frame_time: float) -> None:
    times = frame_times(torch.tensor([12.0], dtype=torch.float64))
    own = torch.arange(60, dtype=torch.float64) * frame_time
    result = resampling(times, 60, frame_time)[0] @ (3.0 + 0.2 * own)
    inside = (times[0] > FRAME_TIME) & (times[0] < own[-1] - FRAME_TIME)
    tolerance = 1e-9 if frame_time >= FRAME_TIME else 0.05  # a mean of three to four frames, not symmetric between them
    torch.testing.assert_close(result[inside], 3.0 + 0.2 * times[0][inside], atol=tolerance, rtol=0.0)


def test_nothing_before_the_scan_and_its_end_after_it() -> None:
    times = frame_times(torch.tensor([3.0], dtype=torch.float64))
    weights = resampling(times, 20, 2.0)[0]
    assert not weights[times[0] < 0].any()
    result = weights @ torch.linspace(0, 1, 20, dtype=torch.float64)
    torch.testing.assert_close(result[times[0] >= 38.0], torch.ones(int((times[0] >= 38.0).sum()), dtype=torch.float64))


def _series(frame_time: float, cbf: Tensor, mtt: Tensor, n: int = 80) -> tuple[Tensor, Tensor, Tensor]:
    """Image ``[1, 1 + T, V, 1, 1]`` without noise, arterial and venous curve."""
    times = torch.arange(n, dtype=torch.float64) * frame_time
    tissue = tissue_concentration(_artery(), times, cbf, mtt)
    image = torch.cat([torch.ones(len(cbf), 1, dtype=torch.float64), tissue], 1).T[None, ..., None, None]
    return image, _artery().concentration(times)[None], _artery().delayed(5.0, 2.0).concentration(times)[None]


def test_the_integral_of_a_standard_curve_is_the_blood_volume() -> None:
    cbf, mtt = torch.tensor([60.0, 22.0, 15.0], dtype=torch.float64), torch.tensor([4.0, 5.0, 6.0], dtype=torch.float64)
    image, aif, vof = _series(1.5, cbf, mtt)
    standard = standardise(image, aif, vof, 1.5, frames=80)
    torch.testing.assert_close(measured_volume(standard, 80)[0, 0, :, 0, 0], cbf * mtt / 60, rtol=0.03, atol=0.0)
    doubled = standardise(image, aif, vof, 1.5, factor=2 * haematocrit_factor())
    torch.testing.assert_close(doubled[:, :50], 2 * standardise(image, aif, vof, 1.5)[:, :50])


def test_the_arterial_curve_has_unit_area_and_arrives_after_the_lead() -> None:
    cbf = torch.full((1,), 60.0, dtype=torch.float64)
    image, aif, vof = _series(1.5, cbf, cbf / 15)
    arterial = standardise(image, aif, vof, 1.5)[0, 51:, 0, 0, 0]
    assert float(arterial.sum() * FRAME_TIME) == pytest.approx(1.0, abs=1e-6)
    assert abs(float(arterial_arrival(arterial[None], FRAME_TIME)) - LEAD) < 0.3


@pytest.mark.parametrize("frame_time", [1.0, 2.0, 2.5])
def test_series_of_any_repetition_time_come_to_nearly_the_same_frames(frame_time: float) -> None:
    cbf, mtt = torch.tensor([60.0, 12.0], dtype=torch.float64), torch.tensor([4.0, 10.0], dtype=torch.float64)
    reference = standardise(*_series(1.5, cbf, mtt), 1.5)
    other = standardise(*_series(frame_time, cbf, mtt, n=int(120 / frame_time)), frame_time)
    for part in (slice(0, 50), slice(51, 101)):
        scale = reference[:, part].abs().max()
        assert float((other[:, part] - reference[:, part]).abs().max() / scale) < 0.15


def test_curves_that_do_not_fit_are_refused() -> None:
    cbf = torch.full((1,), 60.0, dtype=torch.float64)
    image, aif, vof = _series(1.5, cbf, cbf / 15)
    with pytest.raises(ValueError, match="frames of the series"):
        standardise(image, aif[:, 1:], vof, 1.5)
    with pytest.raises(ValueError, match="positive area"):
        standardise(image, -aif, vof, 1.5)
