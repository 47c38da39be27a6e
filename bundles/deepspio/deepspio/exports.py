"""Inputs at which exported networks are compared with the network."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .network import DeepSPIO

__all__ = ["example"]

SIGNAL = 700.0  # of a line, in the unit of a scanner's image


def example(network: DeepSPIO, sizes: Sequence[int], generator: torch.Generator) -> dict[str, Tensor]:
    """Lines along X that overlap at a dark spot, with noise.

    Args:
        network: whose number of channels the image has.
        sizes: B, X, Z.
        generator: of the random numbers.

    Returns:
        ``image`` ``[B, 2, X, Z]``, even and odd lines.
    """
    batch, rows, columns = sizes
    x = torch.linspace(-1.0, 1.0, rows)[:, None]
    z = torch.linspace(-1.0, 1.0, columns)[None]
    centre = torch.rand((2, batch, 1, 1, 1), generator=generator) - 0.5
    away = ((x - centre[0]).square() + (z - centre[1]).square()).sqrt()
    position = torch.arange(columns) / 20.0 + 0.5 * torch.exp(-10.0 * away)  # bent lines
    phase = torch.arange(network.in_channels).reshape(1, -1, 1, 1) / network.in_channels
    lines = 0.5 + 0.5 * torch.tanh(10.0 * torch.cos(2.0 * torch.pi * (position + phase)))
    image = SIGNAL * lines * (away > 0.1)
    return {"image": (image + 0.02 * SIGNAL * torch.randn(image.shape, generator=generator)).abs()}
