"""Unwrapping in space and in time."""

from __future__ import annotations

import math

import pytest
import torch

from physics.phase import unwrap_laplacian, wrap
from shared_transforms.errors import QMRIError
from shared_transforms.unwrapping import unwrap_in_space, unwrap_in_time

TURN = 2 * math.pi


def scene(shape=(24, 26, 18)):
    """A smooth phase of several turns and an ellipsoidal mask with a hole."""
    x, y, z = torch.meshgrid(*(torch.linspace(-1, 1, n, dtype=torch.float64) for n in shape), indexing="ij")
    true = 8 * x**2 - 9 * y + 7 * x * z - 2.5
    radius = (x**2 + y**2 + z**2).sqrt()
    return true, (radius < 0.95) & (radius > 0.2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_smooth_phase_comes_back_with_its_constant(dtype):
    true, mask = scene()
    true = true - TURN * torch.round(true[mask].median() / TURN)
    wrapped = wrap(true).to(dtype)
    assert (wrapped - true)[mask].abs().max() > TURN - 0.1  # there was something to do
    found = unwrap_in_space(wrapped, mask)
    assert found.dtype == dtype
    torch.testing.assert_close(found[mask].double(), true[mask], atol=1e-5, rtol=0)
    assert not found[~mask].any()
    assert found[mask].median().abs() <= math.pi


def test_noise_is_kept_and_only_whole_turns_are_added():
    true, mask = scene()
    generator = torch.Generator().manual_seed(3)
    wrapped = wrap(true + 0.3 * torch.randn(true.shape, generator=generator, dtype=torch.float64))
    found = unwrap_in_space(wrapped, mask)
    turns = (found - wrapped)[mask] / TURN
    assert (turns - turns.round()).abs().max() < 1e-9
    away = (found - true)[mask]
    assert (away - away.median()).abs().max() < 2.5


def test_agrees_with_the_laplacian_where_that_is_exact():
    true, _ = scene()
    everywhere = torch.ones(true.shape, dtype=torch.bool)
    found = unwrap_in_space(wrap(true), everywhere)
    other = unwrap_laplacian(wrap(true))
    difference = (found - other) / TURN
    assert (difference - difference.mean().round()).abs().max() < 1e-9


def test_any_unit_by_its_period():
    true, mask = scene()
    found = unwrap_in_space(wrap(true) * 250 / TURN, mask, period=250.0)
    torch.testing.assert_close(found * TURN / 250, unwrap_in_space(wrap(true), mask))


def test_values_outside_of_the_mask_do_not_matter():
    true, mask = scene()
    spoilt = torch.where(mask, wrap(true), math.nan)
    assert torch.equal(unwrap_in_space(spoilt, mask), unwrap_in_space(wrap(true), mask))


def test_parts_that_do_not_touch_lie_next_to_each_other():
    mask = torch.zeros(12, 10, 10, dtype=torch.bool)
    mask[:7] = True
    mask[9:] = True
    phase = torch.full((12, 10, 10), 3.0)
    phase[9:] = -3.0  # 0.28 below 3.0 + 2 pi k, not 6 below
    found = unwrap_in_space(phase, mask)
    torch.testing.assert_close(found[:7], phase[:7])
    torch.testing.assert_close(found[9:], phase[9:] + TURN)


@pytest.mark.parametrize("shape", [(1, 20, 16), (20, 1, 16), (20, 1, 1), (1, 1, 1)])
def test_slices_and_lines(shape):
    x = torch.linspace(0, 15, shape[0] * shape[1] * shape[2], dtype=torch.float64)
    true = torch.linspace(0, 9, max(shape), dtype=torch.float64)
    true = true[: shape[0]].reshape(-1, 1, 1) if shape[0] > 1 else true[: shape[1]].reshape(1, -1, 1)
    true = true.expand(shape).contiguous()
    assert x.numel() == true.numel()
    found = unwrap_in_space(wrap(true), torch.ones(shape, dtype=torch.bool))
    turns = (found - true) / TURN
    assert (turns - turns.flatten()[0].round()).abs().max() < 1e-9


@pytest.mark.parametrize(
    ("phase", "mask", "period", "field"),
    [
        (torch.zeros(4, 4, 4), torch.ones(4, 4, 5, dtype=torch.bool), TURN, "mask"),
        (torch.zeros(4, 4), torch.ones(4, 4, dtype=torch.bool), TURN, "mask"),
        (torch.zeros(4, 4, 4), torch.ones(4, 4, 4), TURN, "mask"),
        (torch.zeros(4, 4, 4), torch.zeros(4, 4, 4, dtype=torch.bool), TURN, "mask"),
        (torch.full((4, 4, 4), math.nan), torch.ones(4, 4, 4, dtype=torch.bool), TURN, "phase"),
        (torch.zeros(4, 4, 4), torch.ones(4, 4, 4, dtype=torch.bool), 0.0, "period"),
    ],
)
def test_bad_input_in_space(phase, mask, period, field):
    with pytest.raises(QMRIError) as error:
        unwrap_in_space(phase, mask, period)
    assert error.value.field == field


@pytest.mark.parametrize("times", [[0.004, 0.008, 0.012, 0.016], [0.003, 0.0075, 0.0105, 0.0215]], ids=str)
def test_later_echoes_follow_the_first_two(times):
    true, mask = scene()
    frequency, offset = 40 * true, 0.3 * true
    stamps = torch.tensor(times, dtype=torch.float64).reshape(-1, 1, 1, 1)
    phase = offset + TURN * frequency * stamps
    difference = TURN * frequency * (times[1] - times[0])
    found = unwrap_in_time(wrap(phase), times, difference)
    # The first echo stays wrapped; relative to it, all turns are found.
    torch.testing.assert_close(found - found[0], phase - phase[0], atol=1e-9, rtol=0)
    assert torch.equal(found[0], wrap(phase)[0]) and mask.any()


def test_noise_within_half_a_turn_does_no_harm():
    times = [0.004, 0.008, 0.012]
    generator = torch.Generator().manual_seed(4)
    frequency = torch.linspace(-300, 300, 5000, dtype=torch.float64)
    phase = TURN * frequency * torch.tensor(times, dtype=torch.float64)[:, None]
    phase = phase + 0.2 * torch.randn(phase.shape, generator=generator, dtype=torch.float64)
    found = unwrap_in_time(wrap(phase), times, phase[1] - phase[0])
    torch.testing.assert_close(found - found[0], phase - phase[0], atol=1e-9, rtol=0)


def test_bad_input_in_time():
    with pytest.raises(QMRIError, match="one time for each echo"):
        unwrap_in_time(torch.zeros(3, 4), [0.004, 0.008], torch.zeros(4))
