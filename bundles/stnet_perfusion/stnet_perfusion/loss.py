"""Supervised and physical loss of ST-Net (paper, equation 9)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from shared_transforms.distributed import shared_count

from .network import OUTPUTS, TYPICAL

__all__ = ["PerfusionLoss"]


class PerfusionLoss(nn.Module):
    """Mean absolute error of every output in units of its typical value, plus that of CBV against the measured curves.

    The physical part needs no truth: the integral of a tissue curve over that of the vein, times ``100 kH / rho``, is
    CBV (equations 2 and 4; in the standard frames that integral has the unit of CBV already, see
    :func:`.frames.standardise`). Both parts are relative to the typical CBV, so ``physics_weight`` has no unit; the
    paper adds an integral of concentration to errors in ml/100 g. A scan that ends before the bolus has passed makes
    the integral too small, one reason for a small weight.

    Args:
        physics_weight: w; 0 leaves the physical part out.
        stride: only every so many voxels along x and y count: the paper's stride between patches.
        outputs: of the network.

    Raises:
        ValueError: for a negative weight, a stride below 1, or a physical part without CBV among the outputs.
    """

    typical: Tensor

    def __init__(self, physics_weight: float = 0.1, stride: int = 1, outputs: Sequence[str] = OUTPUTS) -> None:
        super().__init__()
        if physics_weight < 0 or stride < 1:
            raise ValueError(f"physics_weight must be >= 0 and stride >= 1, got {physics_weight} and {stride}")
        if physics_weight and "CBV" not in outputs:
            raise ValueError("the physical part needs CBV among the outputs: set physics_weight to 0")
        self.physics_weight, self.stride = physics_weight, stride
        self.chosen = [OUTPUTS.index(name) for name in outputs]
        self.register_buffer("typical", torch.tensor([TYPICAL[k] for k in self.chosen]))
        self.cbv = outputs.index("CBV") if "CBV" in outputs else 0

    def forward(self, prediction: Tensor, label: Mapping[str, Tensor]) -> Tensor:
        """Compute the loss, over the voxels of all processes of a training (:func:`.shared_count`).

        Args:
            prediction: ``[B, outputs, X, Y, 1]``.
            label: ``parameters`` ``[B, 3, X, Y, 1]``; ``brain`` ``[B, 1, X, Y, 1]``, the voxels that count: with those
                of fluid, or the network answers anything at the rim of the brain; ``area`` ``[B, 1, X, Y, 1]``, the
                integral of the measured curve [ml/100 g].

        Returns:
            The loss, a scalar.
        """
        s = self.stride
        pred, truth, mask, area = (
            values[:, :, ::s, ::s]
            for values in (prediction.float(), label["parameters"][:, self.chosen], label["brain"], label["area"])
        )
        inside = mask.to(pred)
        count = shared_count(inside.sum())
        typical = self.typical.to(pred).view(1, -1, 1, 1, 1)
        loss = ((pred - truth).abs() / typical * inside).sum() / (count * len(self.chosen))
        if self.physics_weight:
            against = (pred[:, self.cbv : self.cbv + 1] - area).abs() / typical[:, self.cbv : self.cbv + 1]
            loss = loss + self.physics_weight * (against * inside).sum() / count
        return loss
