"""A network in bfloat16, where the device computes in it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from monai.inferers import Inferer, SimpleInferer
from torch import Tensor

__all__ = ["AutocastInferer", "bfloat16_device"]


def bfloat16_device(device: torch.device | str) -> bool:
    """Whether bfloat16 is faster than float32 on a device: its own instructions for it, not an emulation.

    Args:
        device: any device of torch.

    Returns:
        True for CUDA of compute capability 8.0 on, and for a CPU with AVX512_BF16 or AMX.
    """
    kind = torch.device(device).type
    if kind == "cuda":
        return torch.cuda.is_available() and torch.cuda.get_device_capability(device) >= (8, 0)
    if kind == "cpu":
        # There is no public question of this before torch 2.10; the names of the older ones came one by one.
        questions = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
        return any(bool(getattr(torch.cpu, question, bool)()) for question in questions)
    return False


class AutocastInferer(Inferer):
    """Another inferer, or the whole input at once, in bfloat16 (convolutions, matrix products) where the device has it.

    The ``amp`` of MONAI's engines is ``torch.autocast("cuda")`` and leaves a CPU in float32. bfloat16 has the range of
    float32, so no gradient scaler is needed. Weights, their gradients and the result stay in float32.

    Args:
        enabled: None takes bfloat16 where the device has instructions for it; True and False decide.
        inferer: how the input is given to the network; default MONAI's SimpleInferer, the whole at once.
    """

    def __init__(self, enabled: bool | None = None, inferer: Inferer | None = None) -> None:
        super().__init__()
        self.enabled, self.inferer = enabled, inferer or SimpleInferer()

    def __call__(self, inputs: Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Apply the network.

        Args:
            inputs: what the network takes, ``[batch, C, ...]``.
            network: any network.
            args: passed on to the network.
            kwargs: passed on to the network.

        Returns:
            The network's output, reduced precision brought back to float32.
        """
        plain = inputs.as_tensor() if hasattr(inputs, "as_tensor") else inputs
        enabled = bfloat16_device(plain.device) if self.enabled is None else self.enabled
        with torch.autocast(plain.device.type, torch.bfloat16, enabled=enabled):
            output = self.inferer(plain, network, *args, **kwargs)
        return output.float() if output.dtype in (torch.bfloat16, torch.float16) else output
