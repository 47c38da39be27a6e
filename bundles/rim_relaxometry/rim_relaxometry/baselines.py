"""Classical estimators with the call signature of the network, so that one overlay swaps them in."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from physics.estimation import fit

from .network import RelaxometryEstimator

B_MODES = ("voxelwise", "shared", "smooth")


class MaximumLikelihood(RelaxometryEstimator):
    """Maximum-likelihood estimation: voxelwise, or with B shared by the image or smooth over it.

    Args:
        parameter: ``"T1"`` for (A, B, T1) or ``"T2"`` for (A, T2).
        times: protocol used where the call gives none: inversion or echo times [s].
        repetition_time: its TR [s], one value or one for each image; None for full recovery.
        noise: likelihood where the call gives none, ``"gaussian"`` or ``"rician"``.
        b_mode: ``"voxelwise"``, ``"shared"`` or ``"smooth"``; of no effect on T2.
        smoothness: weight of the squared Laplacian of B where it is smooth, relative to the log-likelihood. The default
            gives the least T1 error in simulations; the paper's lambda_B is 500.

    Raises:
        ValueError: if an option is none of its choices.
    """

    def __init__(
        self,
        parameter: str = "T1",
        times: Sequence[float] = (),
        repetition_time: Sequence[float] | float | None = None,
        noise: str = "rician",
        b_mode: str = "smooth",
        smoothness: float = 5e5,
    ) -> None:
        super().__init__(parameter, times, repetition_time, noise)
        if b_mode not in B_MODES:
            raise ValueError(f"b_mode must be one of {B_MODES}, got {b_mode!r}")
        self.b_mode, self.smoothness = b_mode, smoothness

    @torch.no_grad()
    def forward(
        self,
        image: Tensor,
        times: Tensor | None = None,
        repetition_time: Tensor | None = None,
        noise: str | None = None,
    ) -> Tensor:
        """Estimate the maps; arguments and result as for the network in evaluation: ``[batch, 2 Q, H, W]``."""
        model = self.model_of(image, times, repetition_time)
        result = fit(
            model, image.movedim(1, 0), noise=noise or self.noise, b_mode=self.b_mode, smoothness=self.smoothness
        )
        return torch.cat([result.parameters, result.standard_errors]).movedim(0, 1)
