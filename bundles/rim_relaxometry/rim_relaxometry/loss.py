"""Training loss of the recurrent inference machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from physics.noise import REFERENCE_SIGNAL
from shared_transforms.distributed import shared_count

WEIGHTS = {"A": 0.5, "B": 0.7, "T1": 1.0, "T2": 1.0}
SPAN = {"A": 1.0, "B": 0.6, "T1": 1.0, "T2": 1.0}  # an error of this size counts as one


class StepwiseLoss(nn.Module):
    """Charbonnier loss of every step, later ones more, plus a likelihood for the standard errors.

    The error is relative for A, T1 and T2 (difference of logarithms), absolute for B, and divided by the error that
    the noise level allows, sqrt(0.03^2 + (0.36 sigma / 0.65)^2), so that all noise levels weigh alike. The standard
    errors are fitted to the errors of the last step by a Gaussian likelihood which does not reach the estimates.

    Args:
        parameter_names: (A, B, T1) or (A, T2).
        error_weight: weight of the likelihood of the standard errors.
    """

    def __init__(self, parameter_names: Sequence[str], error_weight: float = 0.02) -> None:
        super().__init__()
        self.names = tuple(parameter_names)
        self.error_weight = error_weight

    def forward(self, pred: Tensor, label: Mapping[str, Tensor]) -> Tensor:
        """Mean loss over the voxels of the mask, of all processes of a training (:func:`.shared_count`).

        Args:
            pred: ``[batch, J, 2 Q, H, W]``: the maps of every step, then the logarithms of the standard errors.
            label: ``parameters`` ``[batch, Q, H, W]``, ``mask`` ``[batch, 1, H, W]`` and ``sigma`` ``[batch]``.

        Returns:
            Scalar.
        """
        count = len(self.names)
        error = self._relative(pred[:, :, :count], 2) - self._relative(label["parameters"], 1)[:, None]
        span = error.new_tensor([SPAN[name] for name in self.names])[:, None, None]
        weight = error.new_tensor([WEIGHTS[name] for name in self.names])[:, None, None]
        allowed = torch.sqrt(0.03**2 + (0.36 * label["sigma"] / REFERENCE_SIGNAL) ** 2)[:, None, None, None, None]
        cost = weight * ((1.0 + (error / (span * allowed)) ** 2).sqrt() - 1.0)
        mask = label["mask"].to(cost)[:, None]
        rising = torch.arange(1, pred.shape[1] + 1, device=pred.device, dtype=pred.dtype)
        rising = (rising / rising.sum())[:, None, None, None]
        voxels = shared_count(mask.sum())
        fit = (rising * cost * mask).sum() / voxels
        last = error[:, -1].detach().square().clamp(max=4.0)
        log_error = pred[:, -1, count:].clamp(-9.0, 3.0)
        likelihood = (log_error + 0.5 * last * torch.exp(-2.0 * log_error)) * mask[:, 0]
        return fit + self.error_weight * likelihood.sum() / voxels

    def _relative(self, maps: Tensor, axis: int) -> Tensor:
        channels = [
            m if name == "B" else m.clamp(min=1e-4).log() for name, m in zip(self.names, maps.unbind(axis), strict=True)
        ]
        return torch.stack(channels, axis)
