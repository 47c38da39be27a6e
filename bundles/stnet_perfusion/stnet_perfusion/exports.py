"""Inputs at which exported networks are compared with the network."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from physics.perfusion import gamma_variate

from .network import STNet

__all__ = ["example"]

FRAME_TIME = 1.5  # s


def example(network: STNet, sizes: Sequence[int], generator: torch.Generator) -> dict[str, Tensor]:
    """Tissue curves of random height, arrival and width, with noise, beside a baseline and an arterial curve.

    Args:
        network: whose number of frames the curves have.
        sizes: B, X, Y.
        generator: of the random numbers.

    Returns:
        ``image`` ``[B, 2 N + 1, X, Y]``, see :func:`.frames.standardise`.
    """
    batch, *plane = sizes
    times = FRAME_TIME * torch.arange(network.frames, dtype=torch.float32)
    arrival, alpha, beta, height = (
        low + (high - low) * torch.rand((batch, *plane), generator=generator)
        for low, high in ((8.0, 16.0), (2.0, 4.0), (1.5, 4.0), (0.2, 0.8))
    )
    curves = gamma_variate(times, arrival, alpha, beta)
    tissue = height[..., None] * curves / curves.amax(-1, keepdim=True)
    tissue = tissue + 0.02 * torch.randn(tissue.shape, generator=generator)
    artery = gamma_variate(times, torch.tensor(7.0), torch.tensor(3.0), torch.tensor(1.5))
    artery = (artery / (FRAME_TIME * artery.sum())).expand(batch, *plane, -1)
    baseline = 0.8 + 0.4 * torch.rand((batch, *plane, 1), generator=generator)
    return {"image": torch.cat([tissue, baseline, artery], -1).movedim(-1, 1).contiguous()}
