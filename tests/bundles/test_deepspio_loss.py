from __future__ import annotations

import math

import pytest
import pywt
import torch
from deepspio.loss import WaveletLoss
from deepspio.network import COMPRESSED_SCALES
from torch import Tensor


@pytest.fixture
def truth() -> Tensor:
    field = torch.zeros(2, 1, 32, 32, dtype=torch.float64)
    field[0, 0, 9:20, 10:23] = 3.0
    field[1, 0, 4:17, 12:15] = 11.0
    return field


def test_the_papers_deviation_against_pywavelets(truth: Tensor) -> None:
    noisy = truth + torch.randn(truth.shape, dtype=truth.dtype, generator=torch.Generator().manual_seed(0))
    expected = 0.0
    for one, other in zip(truth[:, 0].numpy(), noisy[:, 0].numpy(), strict=True):
        (a, rest), (b, others) = (pywt.dwt2(image, "db4", mode="periodization") for image in (one, other))
        parts = zip((a, *rest), (b, *others), strict=True)
        expected += sum(float(abs(x - y).sum() / abs(x).sum()) for x, y in parts) / 2
    found = WaveletLoss(floor=1e-9)(noisy, {"parameters": truth})
    assert float(found) == pytest.approx(expected, rel=1e-6)  # the kernels of the loss are float32


@pytest.mark.parametrize(("weights", "zero"), [((1, 0, 0), 4), ((0, 1, 0), 4), ((0, 0, 1), 1), ((0.5, 2, 3), 13)])
def test_the_empty_map_and_the_truth(weights: tuple[float, float, float], zero: float, truth: Tensor) -> None:
    loss = WaveletLoss(*weights, floor=1e-6)
    assert float(loss(torch.zeros_like(truth), {"parameters": truth})) == pytest.approx(zero, rel=1e-5)
    assert float(loss(truth, {"parameters": truth})) == 0.0


@pytest.mark.parametrize("weights", [(1, 0, 0), (0, 0, 1)])
def test_relative_deviations_do_not_depend_on_the_concentration(
    weights: tuple[float, float, float], truth: Tensor
) -> None:
    loss = WaveletLoss(*weights)
    for scale in (0.05, 4.0):
        found = loss(1.3 * scale * truth, {"parameters": scale * truth})
        assert float(found) == pytest.approx(float(loss(1.3 * truth, {"parameters": truth})), rel=1e-5)


def test_compressed_deviations_of_strong_concentrations_are_those_of_their_logarithms() -> None:
    """asinh(a / s) tends to log(2 a / s): a factor adds the same to all, whatever the sign."""
    loss = WaveletLoss(0, 1, 0, floor=1e-9)
    strong = 1e9 * torch.rand((1, 1, 32, 32), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    scales = torch.tensor(COMPRESSED_SCALES, dtype=torch.float64).view(1, 4, 1, 1)
    logarithms = torch.log(2 * loss.transform(strong).abs() / scales)
    expected = (math.log(2.0) ** 2 / logarithms.square().mean((2, 3))).sum()
    assert float(loss(2 * strong, {"parameters": strong})) == pytest.approx(float(expected), rel=1e-3)


def test_an_almost_empty_channel_counts_relative_to_the_approximation() -> None:
    """A field that is constant has no details: their deviation would be a division by 0."""
    truth = torch.full((1, 1, 32, 32), 2.0)
    prediction = truth + 0.01 * torch.randn(truth.shape, generator=torch.Generator().manual_seed(0))
    assert float(WaveletLoss()(prediction, {"parameters": truth})) < 1.0


def test_errors_of_arguments_and_of_empty_truths(truth: Tensor) -> None:
    for arguments in ({"floor": 0.0}, {"absolute": -1.0}, {"absolute": 0.0}):
        with pytest.raises(ValueError, match="weights"):
            WaveletLoss(**arguments)
    with pytest.raises(ValueError, match="particles"):
        WaveletLoss()(truth, {"parameters": truth * torch.tensor([1.0, 0.0]).view(2, 1, 1, 1)})
