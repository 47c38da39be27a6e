"""Slices of a volume through a network for images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from monai.inferers import Inferer
from torch import Tensor
from tqdm import tqdm

from shared_transforms.serving import takes_carried_arguments

__all__ = ["SlicewiseInferer"]


class SlicewiseInferer(Inferer):
    """Give whole slices of a volume to a network for images, several at once.

    MONAI's SliceInferer (1.6.1) drops the keyword arguments of the network, which carry the acquisition here.

    Args:
        slices_at_once: slices in a batch of the network; bounds the memory.
        progress: show a progress bar where there is more than one batch.
    """

    def __init__(self, slices_at_once: int = 4, progress: bool = True) -> None:
        super().__init__()
        if slices_at_once < 1:
            raise ValueError(f"slices_at_once must be at least 1, got {slices_at_once}")
        self.slices_at_once, self.progress = slices_at_once, progress

    @takes_carried_arguments
    def __call__(self, inputs: Tensor, network: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """Apply the network.

        Args:
            inputs: volumes ``[batch, C, H, W, D]``.
            network: takes ``[batch, C, H, W]`` and gives ``[batch, K, H, W]``.
            args: passed on to the network.
            kwargs: passed on to the network.

        Returns:
            ``[batch, K, H, W, D]``.

        Raises:
            ValueError: if the inputs are not volumes.
        """
        if inputs.ndim != 5:
            raise ValueError(f"inputs must be [batch, C, H, W, D], got shape {tuple(inputs.shape)}")
        plain = inputs.as_tensor() if hasattr(inputs, "as_tensor") else inputs
        batch, depth = plain.shape[0], plain.shape[-1]
        parts = plain.movedim(-1, 1).flatten(0, 1).split(self.slices_at_once)
        quiet = not self.progress or len(parts) == 1
        results = [network(part, *args, **kwargs) for part in tqdm(parts, desc="slices", disable=quiet)]
        return torch.cat(results).unflatten(0, (batch, depth)).movedim(1, -1)
