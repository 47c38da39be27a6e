"""Inputs at which exported networks are compared with the network."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .ensemble import RimEnsemble
from .network import RadiomicsBranch

__all__ = ["example"]


def example(network: RimEnsemble, sizes: Sequence[int], generator: torch.Generator) -> dict[str, Tensor]:
    """Lesions with and without a rim, and radiomics about the mean lesion's; the first lesion has none.

    Args:
        network: whose radiomics are normalised as its weights say.
        sizes: N, X, Y, Z.
        generator: of the random numbers.

    Returns:
        ``image`` ``[N, 2, X, Y, Z]``, QSM [50 ppb] and normalised FLAIR, and ``radiomics`` ``[N, 527]``.
    """
    number, *size = sizes
    axes = torch.meshgrid(*(torch.linspace(-1.0, 1.0, side) for side in size), indexing="ij")
    radius = torch.stack(axes).square().sum(0).sqrt()
    rim = torch.exp(-100.0 * (radius - 0.7).square()) * torch.rand((number, 1, 1, 1), generator=generator)
    image = torch.stack([0.3 + rim, torch.ones_like(rim)], 1)
    image = (image + 0.2 * torch.randn(image.shape, generator=generator)) * (radius < 0.8)
    branch = next(module for module in network.modules() if isinstance(module, RadiomicsBranch))
    mean, scale = branch.get_buffer("feature_mean").cpu(), branch.get_buffer("feature_scale").cpu()
    radiomics = mean + scale * torch.randn((number, branch.features), generator=generator)
    radiomics[0] = torch.nan
    return {"image": image, "radiomics": radiomics}
