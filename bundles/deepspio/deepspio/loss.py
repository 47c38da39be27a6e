"""Normalised absolute deviation of wavelet coefficients (paper, section 4.4)."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from .wavelets import WaveletTransform

__all__ = ["WaveletLoss"]


class WaveletLoss(nn.Module):
    """Sum over the four channels of ``|a - b|_1 / |a|_1`` of the wavelet coefficients, mean over the images.

    The prediction is transformed as the truth is: the transform is orthonormal, so these are the coefficients that the
    decoders gave. Relative deviations keep images of high concentration from dominating. Where a channel of the truth
    is almost empty the ratio has no meaning; its denominator is therefore at least ``floor`` times that of the
    approximation.

    Args:
        floor: least denominator of a channel, relative to the approximation's.
        image_weight: weight of the same ratio in the image, which is the NMAE; the paper has none.

    Raises:
        ValueError: for a floor that is not positive, or a negative weight.

    Source: della Maggiora et al., IEEE TPAMI (2020), the loss of section 4.4; its second term, a square of the
    weights, is the weight decay of the optimiser.
    """

    def __init__(self, floor: float = 0.02, image_weight: float = 0.0) -> None:
        super().__init__()
        if not floor > 0 or image_weight < 0:
            raise ValueError(f"floor must be > 0 and image_weight >= 0, got {floor} and {image_weight}")
        self.floor, self.image_weight = floor, image_weight
        self.transform = WaveletTransform()

    def forward(self, prediction: Tensor, label: Mapping[str, Tensor]) -> Tensor:
        """Loss of a batch.

        Args:
            prediction: concentration ``[n, 1, X, Z]`` [ug/mm^3].
            label: ``parameters``, the true concentration ``[n, 1, X, Z]``.

        Returns:
            The loss, a scalar; ``4 + image_weight`` for an all-zero prediction of images with all channels.

        Raises:
            ValueError: for a truth without any particles, of which no relative error exists.
        """
        truth = label["parameters"]
        total = truth.abs().sum((1, 2, 3))
        if bool((total == 0).any()):
            raise ValueError("label['parameters'] must hold particles in every image, got one without")
        # The error's transform is the difference of the transforms: one analysis instead of two.
        size = self.transform(truth).abs().sum((2, 3))
        error = prediction.to(truth.dtype) - truth
        channels = self.transform(error).abs().sum((2, 3)) / size.clamp_min(self.floor * size[:, :1])
        loss = channels.sum(1)
        if self.image_weight:
            loss = loss + self.image_weight * error.abs().sum((1, 2, 3)) / total
        return loss.mean()
