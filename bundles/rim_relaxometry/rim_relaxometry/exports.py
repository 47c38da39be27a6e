"""Inputs at which exported networks are compared with the network."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from .network import RelaxometryEstimator

__all__ = ["example"]

RANGES = {"A": (500.0, 1000.0), "B": (1.7, 2.0), "T1": (0.4, 2.5), "T2": (0.03, 0.3)}
SNR = 50.0


def example(network: RelaxometryEstimator, sizes: Sequence[int], generator: torch.Generator) -> dict[str, Tensor]:
    """Series of smooth random maps by the network's own signal model, with Rician noise.

    Args:
        network: whose acquisition the series has.
        sizes: B, H, W.
        generator: of the random numbers.

    Returns:
        ``image`` ``[B, N, H, W]``, magnitudes.
    """
    batch, *plane = sizes
    maps = []
    for name in network.names:
        low, high = RANGES[name]
        coarse = torch.rand((batch, 1, 4, 4), generator=generator)
        maps.append(low + (high - low) * interpolate(coarse, plane, mode="bilinear")[:, 0])
    device = network.signal_model.times.device
    signal = network.signal_model(*(values.to(device) for values in maps)).movedim(0, 1).cpu()
    noise = RANGES["A"][1] / SNR * torch.randn((2, *signal.shape), generator=generator)
    return {"image": torch.hypot(signal + noise[0], noise[1])}
