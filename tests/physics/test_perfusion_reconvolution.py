"""Maps put back through the tissue model with a measured arterial curve."""

from __future__ import annotations

import pytest
import torch

from physics.perfusion import (
    ArterialInput,
    deconvolve,
    delay_from_tmax,
    haematocrit_factor,
    reconvolve,
    time_to_maximum,
    tissue_concentration,
)

DT, N = 1.5, 60
TIMES = DT * torch.arange(N, dtype=torch.float64)


@pytest.fixture(scope="module")
def artery() -> ArterialInput:
    one = torch.ones((), dtype=torch.float64)
    return ArterialInput(15 * one, 3 * one, 1.5 * one, 8 * one, 0.2, 12.0, 1.5, 0.02, 60.0)


@pytest.mark.parametrize("delay", [-2.3, 0.0, 3.7])
def test_equals_the_analytic_model(artery: ArterialInput, delay: float) -> None:
    """The frames of the arterial curve hold it all: sampled or analytic, the tissue is the same."""
    cbf, mtt = torch.tensor([60.0, 20.0, 15.0]), torch.tensor([3.0, 5.0, 12.0])
    truth = tissue_concentration(artery, TIMES, cbf.double(), mtt.double(), torch.tensor(delay).double())
    found = reconvolve(artery.concentration(TIMES), DT, cbf.double(), mtt.double(), delay)
    error = (found - truth).square().sum(-1).sqrt() / truth.square().sum(-1).sqrt()
    assert float(error.max()) < 0.01
    assert float((found - truth)[:, :8].abs().max()) < 2e-3 * float(truth.max())  # causal: nothing before the bolus


def test_area_is_the_blood_volume(artery: ArterialInput) -> None:
    times = DT * torch.arange(400, dtype=torch.float64)  # long enough for the tail
    aif = artery.concentration(times)
    found = reconvolve(aif, DT, torch.tensor(30.0).double(), torch.tensor(6.0).double(), 2.0)
    volume = 30.0 * 6.0 / 60.0  # ml/100 g
    assert float(found.sum() / aif.sum()) == pytest.approx(volume / (100 * haematocrit_factor()), rel=2e-3)


def test_partial_volume_of_the_artery_drops_out(artery: ArterialInput) -> None:
    aif = artery.concentration(TIMES)
    cbf, mtt = torch.tensor([40.0, 10.0]).double(), torch.tensor([4.0, 9.0]).double()
    whole, part = reconvolve(aif, DT, cbf, mtt, 1.0), reconvolve(0.3 * aif, DT, cbf, mtt, 1.0, k_av=0.3)
    torch.testing.assert_close(part, whole)
    torch.testing.assert_close(reconvolve(aif, DT, 2 * cbf, mtt, 1.0), 2 * whole)


@pytest.mark.parametrize("dt", [1.0, 2.0])
def test_delay_comes_back_from_tmax(artery: ArterialInput, dt: float) -> None:
    times = dt * torch.arange(60, dtype=torch.float64)
    delay = torch.linspace(-3, 9, 25, dtype=torch.float64)[:, None]
    mtt = torch.tensor([2.5, 4.0, 7.0, 14.0], dtype=torch.float64)
    aif = artery.concentration(times)
    curves = tissue_concentration(
        artery, times, 50 * torch.ones(25, 4).double(), mtt.expand(25, 4), delay.expand(25, 4)
    )
    tmax = time_to_maximum(deconvolve(curves, aif, dt, "csvd", threshold=0.1), dt, circulant=True)
    assert float((tmax - delay).min()) > 0.3  # Tmax is no delay
    assert float((delay_from_tmax(tmax, mtt.expand(25, 4), aif, dt) - delay).abs().max()) < 0.35


def test_bad_arguments() -> None:
    flow = torch.ones(2)
    for aif, dt in ((torch.ones(2, 3), 1.0), (torch.ones(5), 0.0), (torch.ones(5), float("nan"))):
        with pytest.raises(ValueError, match="aif must be .* got"):
            reconvolve(aif, dt, flow, flow)
