"""Inputs at which exported networks are compared with the network."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from physics.dipole import field_from_susceptibility

from .network import Generator
from .start import network_input

__all__ = ["example"]


def example(network: Generator, sizes: Sequence[int], generator: torch.Generator) -> dict[str, Tensor]:
    """The field of random cubes of susceptibility within a ball, with noise, and the other channels made of it.

    Args:
        network: whose channels the image has.
        sizes: B, X, Y, Z.
        generator: of the random numbers.

    Returns:
        ``image`` ``[B, C, X, Y, Z]``, see :func:`.start.network_input`.
    """
    batch, *size = sizes
    coarse = 0.1 * torch.randn((batch, 1, *(-(-side // 4) for side in size)), generator=generator)  # ppm
    blocks = torch.nn.functional.interpolate(coarse, scale_factor=4.0)[:, 0, : size[0], : size[1], : size[2]]
    axes = torch.meshgrid(*(torch.linspace(-1.0, 1.0, side) for side in size), indexing="ij")
    mask = (torch.stack(axes).square().sum(0) < 0.8).expand(batch, *size)
    field = field_from_susceptibility(blocks * mask, (1.0, 1.0, 1.0))
    field = field + 0.002 * torch.randn(field.shape, generator=generator)
    return {"image": network_input(field, mask, 1.0 + blocks, channels=network.channels)}
