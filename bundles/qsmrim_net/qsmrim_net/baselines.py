"""Comparators that are networks: RimNet, on the images alone, and APRL's network, on the radiomics alone."""

from __future__ import annotations

import math

import torch
from monai.networks.blocks import Convolution
from monai.networks.nets import FullyConnectedNet
from torch import Tensor, nn

from .network import PREVALENCE, RadiomicsBranch, check_batch, classifier, right_gradients

__all__ = ["APRLNetwork", "RimNet"]


class RimNet(nn.Module):
    """RimNet: two branches of plain convolutions, one for QSM and one for FLAIR, that meet twice.

    A branch has three blocks of two 3 x 3 x 3 convolutions, ``width``, ``2 width`` and ``4 width`` channels, each block
    followed by a max pooling of 2. FLAIR's first block also goes into the second block of QSM's branch; the last
    features of both go together through fully connected layers of ``8 width``, ``4 width`` and ``2 width`` units.
    Width 32 is the publication: 32, 64, 128 channels, 256, 128, 64 units.

    Three choices of ours: features are averaged over the patch before the fully connected layers, so any patch size
    goes (the publication has 28^3 voxels of 1 mm, fixed); convolutions have batch normalisation and ReLU, so that it
    trains on the same schedule as the others; QSM stands for the phase image, as in the comparison of QSMRim-Net.

    Parameters: 1.88 million at width 32, .47 million at 16, .12 million at 8.

    Args:
        width: channels of the first block.
        dropout: after each of the three fully connected layers; 0.2 leaves half of the paths.
        prevalence: of rims: about the first answer of the untrained network.

    Raises:
        ValueError: for a width below 1, or a prevalence that is not between 0 and 1.

    Source: Barquero et al., NeuroImage: Clinical 28 (2020) 102412.
    """

    def __init__(self, width: int = 16, dropout: float = 0.2, prevalence: float = PREVALENCE) -> None:
        super().__init__()
        if width < 1:
            raise ValueError(f"width must be at least 1, got {width}")
        if not 0.0 < prevalence < 1.0:
            raise ValueError(f"prevalence must be between 0 and 1, got {prevalence}")
        self.qsm_first, self.flair_first = _block(1, width), _block(1, width)
        self.qsm = nn.Sequential(_block(2 * width, 2 * width), _block(2 * width, 4 * width))
        self.flair = nn.Sequential(_block(width, 2 * width), _block(2 * width, 4 * width))
        hidden = (8 * width, 4 * width, 2 * width)
        self.classifier = FullyConnectedNet(8 * width, 1, hidden, dropout, act="relu", adn_ordering="AD")
        for layer in self.classifier.modules():
            if isinstance(layer, nn.Linear):  # He's rule: nothing normalises between these layers
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                nn.init.zeros_(layer.bias)
        nn.init.constant_(self.classifier.output.bias, math.log(prevalence / (1.0 - prevalence)))

    def fit_normalisation(self, features: Tensor) -> None:
        """Nothing to fit: this network reads no radiomics."""

    def forward(self, image: Tensor, radiomics: Tensor | None = None, labels: Tensor | None = None) -> Tensor:
        """Logits ``[N]`` of patches ``[N, 2, X, Y, Z]``, QSM and FLAIR, as :meth:`.network.QSMRimNet.forward`.

        Radiomics and labels are ignored.

        Raises:
            ValueError: for another shape, or a training batch of one.
        """
        check_batch(image, self.training)
        return self.classifier(self.image_features(image)).squeeze(1)

    def image_features(self, image: Tensor) -> Tensor:
        """Features ``[N, 8 width]`` of patches ``[N, 2, X, Y, Z]``."""
        if torch.jit.is_scripting():  # type: ignore[attr-defined]
            features = self._image_features(image)
        else:
            with right_gradients(image, (4, 4, 4)):
                features = self._image_features(image)
        return features

    def _image_features(self, image: Tensor) -> Tensor:
        qsm, flair = self.qsm_first(image[:, :1]), self.flair_first(image[:, 1:])
        return torch.cat([self.qsm(torch.cat([qsm, flair], 1)), self.flair(flair)], 1).mean((2, 3, 4))


class APRLNetwork(nn.Module):
    """APRL (NN): the radiomics branch of QSMRim-Net with a classifier of its own; all radiomics, no image.

    Parameters: 1.13 million at width 64, the paper's; .17 million at 16.

    Args:
        width: as the network's; 64 is the paper: 1024 and 512 units, 128 in the classifier.
        features: number of radiomics.
        dropout: of the branch's first layer and of the classifier.
        prevalence: of rims: the first answer of the untrained classifier.

    Raises:
        ValueError: for a width below 1, or a prevalence that is not between 0 and 1.

    Source: Zhang et al., NeuroImage: Clinical 34 (2022) 102979, section 2.4.
    """

    def __init__(
        self,
        width: int = 64,
        features: int = 527,
        dropout: tuple[float, float] = (0.3, 0.5),
        prevalence: float = PREVALENCE,
    ) -> None:
        super().__init__()
        if width < 1:
            raise ValueError(f"width must be at least 1, got {width}")
        self.radiomics = RadiomicsBranch(width, features, dropout[0])
        self.classifier = classifier(width, dropout[1], prevalence)

    def fit_normalisation(self, features: Tensor) -> None:
        """Take the radiomics' mean and scale from training lesions: :meth:`.RadiomicsBranch.fit_normalisation`."""
        self.radiomics.fit_normalisation(features)

    def forward(self, image: Tensor, radiomics: Tensor | None = None, labels: Tensor | None = None) -> Tensor:
        """Logits ``[N]`` of raw radiomics ``[N, features]``, as :meth:`.network.QSMRimNet.forward`.

        Image and labels are ignored, but for the number of lesions.

        Raises:
            ValueError: for another shape, a training batch of one, or a training without radiomics.
        """
        check_batch(image, self.training)
        return self.classifier(self.radiomics(radiomics, image)).squeeze(1)


def _block(below: int, above: int) -> nn.Sequential:
    # Pooled upwards: no patch is too thin.
    return nn.Sequential(
        Convolution(3, below, above, kernel_size=3, act="relu", norm="batch", bias=False),
        Convolution(3, above, above, kernel_size=3, act="relu", norm="batch", bias=False),
        nn.MaxPool3d(2, ceil_mode=True),
    )
