"""Relative deviations of wavelet coefficients (paper, section 4.4)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from shared_transforms.distributed import batch_mean

from .network import COMPRESSED_SCALES
from .wavelets import WaveletTransform

__all__ = ["WaveletLoss"]


class WaveletLoss(nn.Module):
    """Relative deviations of the four wavelet channels, summed over the channels, mean over the images.

    The prediction is transformed as the truth is: the transform is orthonormal, so these are the coefficients that the
    decoders gave. Where a channel of the truth is almost empty a ratio has no meaning; its denominator is therefore at
    least ``floor`` times that of the approximation.

    * ``absolute``: ``|a - b|_1 / |a|_1``, the paper's. Its best answer, as long as places are uncertain, is the median:
      zero, which a training leaves late.
    * ``compressed``: ``|A - B|_2^2 / |A|_2^2`` with ``A = asinh(a / scale)``. Squares ask for the mean, which leaves
      zero at once, and the inverse hyperbolic sine counts weak and strong concentrations alike.
    * ``image``: ``|c - d|_1 / |c|_1`` of the concentration itself, which is the NMAE.

    Args:
        absolute: weight of the paper's deviation.
        compressed: weight of the squared one.
        image: weight of the NMAE.
        floor: least denominator of a channel, relative to the approximation's.

    Raises:
        ValueError: for a floor that is not positive, a negative weight, or none that is positive.

    Source: della Maggiora et al., IEEE TPAMI (2020), the loss of section 4.4; its second term, a square of the
    weights, is the weight decay of the optimiser.
    """

    scales: Tensor

    def __init__(self, absolute: float = 1.0, compressed: float = 0.0, image: float = 0.0, floor: float = 0.02) -> None:
        super().__init__()
        weights = (absolute, compressed, image)
        if not floor > 0 or min(weights) < 0 or not sum(weights) > 0:
            raise ValueError(f"floor must be > 0, weights >= 0 and not all 0, got {floor} and {weights}")
        self.absolute, self.compressed, self.image, self.floor = absolute, compressed, image, floor
        self.register_buffer("scales", torch.tensor(COMPRESSED_SCALES).view(1, -1, 1, 1), persistent=False)
        self.transform = WaveletTransform()

    def forward(self, prediction: Tensor, label: Mapping[str, Tensor]) -> Tensor:
        """Loss of a batch, of all processes of a training (:func:`.batch_mean`).

        Args:
            prediction: concentration ``[n, 1, X, Z]`` [ug/mm^3].
            label: ``parameters``, the true concentration ``[n, 1, X, Z]``.

        Returns:
            The loss, a scalar; an all-zero prediction has 4 for each of the first two and 1 for the third, where all
            channels are above the floor.

        Raises:
            ValueError: for a truth without any particles, of which no relative error exists.
        """
        truth = label["parameters"]
        total = truth.abs().sum((1, 2, 3))
        if bool((total == 0).any()):
            raise ValueError("label['parameters'] must hold particles in every image, got one without")
        prediction = prediction.to(truth.dtype)
        loss = torch.zeros_like(total)
        if self.absolute or self.compressed:
            true, found = self.transform(truth), self.transform(prediction)
            if self.absolute:
                loss = loss + self.absolute * self._ratio((true - found).abs(), true.abs())
            if self.compressed:
                true, found = (torch.asinh(part / self.scales) for part in (true, found))
                loss = loss + self.compressed * self._ratio((true - found).square(), true.square())
        if self.image:
            loss = loss + self.image * (truth - prediction).abs().sum((1, 2, 3)) / total
        return batch_mean(loss)

    def _ratio(self, error: Tensor, size: Tensor) -> Tensor:
        """Sum over the channels of the ratio of sums ``[n]``."""
        whole = size.sum((2, 3))
        return (error.sum((2, 3)) / whole.clamp_min(self.floor * whole[:, :1])).sum(1)
