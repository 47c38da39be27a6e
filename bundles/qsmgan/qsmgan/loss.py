"""What the generator and the critic minimise."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import conv3d

from physics.dipole import field_from_susceptibility
from shared_transforms.distributed import batch_mean, shared_count

from .network import Critic

TYPICAL = 0.02  # [ppm] added to the RMS of a sample before it divides the errors: a flat patch is not all that counts


class SusceptibilityLoss(nn.Module):
    """Weighted sum of the squared and the absolute error, of its gradient, and of the field that it makes.

    The error is divided by the root mean square of the true map plus 0.02 ppm, so that strong sources do not outweigh
    the rest. The paper's supervised loss is ``absolute=1, gradient=0.5`` and nothing else, with ``compress``.

    Args:
        squared: weight of the mean squared error over the mask; its minimum is that of the NRMSE.
        absolute: weight of the mean absolute error.
        gradient: weight of the mean absolute error of the 3-D Sobel gradients.
        field: weight of the mean absolute field of the error, relative to that of the true map, both with no sources
            outside of the patch: an error that the field does not show costs nothing here.
        compress: compare tanh(10 chi) as the paper does, not chi; there errors are not divided.

    Raises:
        ValueError: if a weight is negative, or all are zero.
    """

    sobel: Tensor

    def __init__(
        self,
        squared: float = 1.0,
        absolute: float = 0.2,
        gradient: float = 0.1,
        field: float = 0.1,
        compress: bool = False,
    ) -> None:
        super().__init__()
        weights = {"squared": squared, "absolute": absolute, "gradient": gradient, "field": field}
        if min(weights.values()) < 0 or not any(weights.values()):
            raise ValueError(f"weights must be at least 0 and not all 0, got {weights}")
        self.weights, self.compress = weights, compress
        self.register_buffer("sobel", sobel_kernels(), persistent=False)

    def forward(self, pred: Tensor, label: Mapping[str, Tensor]) -> Tensor:
        """Loss of a batch, over the voxels of the masks of all processes of a training (:func:`.shared_count`).

        Args:
            pred: estimates ``[batch, 1, X, Y, Z]`` [ppm].
            label: ``parameters`` ``[batch, 1, X, Y, Z]`` [ppm] and ``mask`` of that shape.

        Returns:
            Scalar.
        """
        parts = self.parts(pred.float(), label["parameters"].float(), label["mask"])
        return torch.stack([self.weights[name] * value for name, value in parts.items()]).sum()

    def parts(self, pred: Tensor, truth: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """The terms whose weight is not 0, by name, before they are weighted; arguments as for ``forward``."""
        inside = mask.to(pred)
        voxels = shared_count(inside.sum())
        if self.compress:
            error = (torch.tanh(10.0 * pred) - torch.tanh(10.0 * truth)) * inside
        else:
            count = inside.sum((1, 2, 3, 4), keepdim=True).clamp(min=1.0)
            size = ((truth * inside).square().sum((1, 2, 3, 4), keepdim=True) / count).sqrt()
            error = (pred - truth) * inside / (size + TYPICAL)
        found: dict[str, Tensor] = {}
        if self.weights["squared"]:
            found["squared"] = error.square().sum() / voxels
        if self.weights["absolute"]:
            found["absolute"] = error.abs().sum() / voxels
        if self.weights["gradient"]:
            found["gradient"] = conv3d(error, self.sobel, padding=1).abs().sum() / (3.0 * voxels)
        if self.weights["field"]:
            found["field"] = field_from_susceptibility(error, (1.0, 1.0, 1.0), padding=1.5).abs().sum() / voxels
        return found


def sobel_kernels() -> Tensor:
    """3-D Sobel kernels ``[3, 1, 3, 3, 3]``: the derivative along x, y, z of a map on a grid, in its unit per voxel."""
    smooth, slope = torch.tensor([1.0, 2.0, 1.0]) / 4.0, torch.tensor([-1.0, 0.0, 1.0]) / 2.0
    axes = [[slope if i == k else smooth for i in range(3)] for k in range(3)]
    return torch.stack([torch.einsum("i,j,k->ijk", *lines) for lines in axes])[:, None]


def gradient_penalty(critic: Critic, true: Tensor, made: Tensor, field: Tensor, share: Tensor) -> Tensor:
    """Mean squared deviation of the critic's slope from 1 between true and generated maps.

    Args:
        critic: gives scores ``[batch]`` of maps and fields.
        true: true maps ``[batch, 1, X, Y, Z]`` [ppm].
        made: generated maps of that shape.
        field: fields of that shape [ppm].
        share: of the true map in the mixture ``[batch]``, uniform in [0, 1].

    Returns:
        Scalar. The slope is that along the maps in the critic's own unit.

    Source: Gulrajani et al., Improved training of Wasserstein GANs (2017), equation 3.
    """
    scale = critic.scales.flatten()[0]
    weight = share[:, None, None, None, None]
    mixed = ((weight * true + (1.0 - weight) * made) * scale).detach().requires_grad_(True)
    scores = critic(mixed / scale, field)
    [slope] = torch.autograd.grad(scores.sum(), mixed, create_graph=True)
    return batch_mean((slope.flatten(1).norm(dim=1) - 1.0).square())
