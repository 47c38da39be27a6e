"""Discs against their area, order and limits."""

from __future__ import annotations

import math

import pytest
import torch

from physics.phantoms import disc_fractions, draw_discs


@pytest.mark.parametrize("radius", [0.08, 0.2, 0.31])
@pytest.mark.parametrize("centre", [(0.5, 0.5), (0.43, 0.517)])
def test_area_of_a_disc(radius: float, centre: tuple[float, float]) -> None:
    width = 96
    fractions = disc_fractions(torch.tensor([[centre]]), torch.tensor([[radius]]), (width, width))
    assert fractions.shape == (1, 1, width, width)
    assert float(fractions.sum()) == pytest.approx(math.pi * (radius * width) ** 2, rel=5e-3)


def test_later_discs_cover_earlier_ones() -> None:
    centres = torch.full((1, 2, 2), 0.5)
    fractions = disc_fractions(centres, torch.tensor([[0.4, 0.2]]), (64, 64))
    assert float(fractions[0, 1, 32, 32]) == 1.0
    assert float(fractions[0, 0, 32, 32]) == 0.0
    assert float(fractions[0, 0, 32, 12]) == 1.0
    assert float(fractions.sum(1).max()) <= 1.0 + 1e-6
    union = disc_fractions(centres[:, :1], torch.tensor([[0.4]]), (64, 64))
    assert torch.allclose(fractions.sum(1), union.sum(1), atol=1e-6)


def test_draws_repeat_and_keep_to_their_range() -> None:
    first = draw_discs(torch.Generator().manual_seed(3), 50, 9, (0.05, 0.3))
    again = draw_discs(torch.Generator().manual_seed(3), 50, 9, (0.05, 0.3))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    centres, radii = first
    assert centres.shape == (50, 9, 2)
    assert 0.0 <= float(centres.min()) <= float(centres.max()) <= 1.0
    assert 0.05 <= float(radii.min()) <= float(radii.max()) <= 0.3
    # Log-uniform: half of the radii lie below the geometric mean of the range.
    assert float((radii < math.sqrt(0.05 * 0.3)).float().mean()) == pytest.approx(0.5, abs=0.08)
