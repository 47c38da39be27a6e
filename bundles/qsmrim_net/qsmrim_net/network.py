"""QSMRim-Net: residual network on the images, fully connected branch on the radiomics, DeepSMOTE, classifier.

Every network of this bundle is called as ``network(image, radiomics, labels)`` and returns logits of a rim; the ones
that read no radiomics, or no image, ignore them. Raw radiomics go in: their normalisation is part of the weights.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext

import torch
from monai.networks.nets import ResNet
from torch import Tensor, nn

from .smote import DeepSMOTE

__all__ = ["PREVALENCE", "STEMS", "QSMRimNet", "RadiomicsBranch", "check_batch", "classifier", "right_gradients"]

PREVALENCE = 177 / 4163  # of rims among the lesions of the paper (section 2.1.2)
STEMS = ("thin", "paper")
COMBINATIONS = ("concatenate", "add")
IMAGE_FUSIONS = ("channels", "branches")
LARGEST = 8.0  # standard deviations that a feature is let to lie from the mean lesion
CONSTANT = 1e-6  # a feature that varies by less, relative to its size, carries nothing


class QSMRimNet(nn.Module):
    """Logit of a paramagnetic rim from the QSM, FLAIR and radiomics of a lesion.

    * Image: MONAI's ``ResNet`` of 18 layers, of widths 1, 2, 4 and 8 times ``width`` and strides 1, 2, 2, 1, as the
      authors' (torch's usual network has 2 in its last stage), averaged over the patch to ``8 width`` features.
    * Radiomics: :class:`RadiomicsBranch`, ``8 width`` features too.
    * Fusion: the two are concatenated (paper) or added (released code), then go through two fully connected layers
      with batch normalisation and Swish.
    * :class:`~qsmrim_net.smote.DeepSMOTE` in training, then a classifier of ``2 width`` hidden units.

    All sizes scale with ``width``; 64 with the paper's stem is the paper: 512 features of each branch, 1024 -> 512 at
    the fusion, 128 hidden units. Any patch size goes.

    Parameters: 35.11 million at width 64 with the paper's stem, 34.84 million, the released network's, with "add"
    instead; 2.30 million at width 16 with the thin stem, 2.07 million of them on the images; .61 million at width 8.

    Args:
        width: channels of the first stage.
        stem: "thin", a 3 x 3 x 3 convolution of stride (2, 2, 1) without pooling, which keeps rims of one or two voxels
            apart; "paper", 7 x 7 x 7 of stride 2 and a max pooling of stride 2.
        radiomics: False for the images alone; the argument of that name is then ignored.
        combine: "concatenate" or "add", of the branches.
        image_fusion: "channels", QSM and FLAIR as two channels of one network; "branches", a network for each, their
            features concatenated and brought to ``8 width`` by a linear layer, as RimNet fuses (section 2.6).
        oversampling: False for no synthetic rims in training; all layers stay.
        features: number of radiomics.
        dropout: of the radiomics' first layer and of the classifier.
        prevalence: of rims: the first answer of the untrained classifier.

    Raises:
        ValueError: for a width below 1, an unknown choice, or a prevalence that is not between 0 and 1.

    Source: Zhang et al., NeuroImage: Clinical 34 (2022) 102979, sections 2.2.1 to 2.2.3; layer sizes and dropouts that
    the text does not give, from the authors' public code.
    """

    def __init__(
        self,
        width: int = 16,
        stem: str = "thin",
        radiomics: bool = True,
        combine: str = "concatenate",
        image_fusion: str = "channels",
        oversampling: bool = True,
        features: int = 527,
        dropout: tuple[float, float] = (0.3, 0.5),
        prevalence: float = PREVALENCE,
    ) -> None:
        super().__init__()
        if width < 1:
            raise ValueError(f"width must be at least 1, got {width}")
        for name, value, allowed in (
            ("stem", stem, STEMS), ("combine", combine, COMBINATIONS), ("image_fusion", image_fusion, IMAGE_FUSIONS),
        ):  # fmt: skip
            if value not in allowed:
                raise ValueError(f"{name} must be one of {allowed}, got {value!r}")
        self.concatenate, self.oversampling = combine == "concatenate", oversampling
        self.reduction = (8, 8, 4) if stem == "thin" else (16, 16, 16)  # of a patch's sides at the last stage
        channels = 8 * width
        branches = 2 if image_fusion == "branches" else 1
        self.image = nn.ModuleList(_resnet(width, stem, 2 // branches) for _ in range(branches))
        self.image_fusion = nn.Linear(2 * channels, channels) if branches == 2 else None
        self.radiomics = RadiomicsBranch(width, features, dropout[0]) if radiomics else None
        fused = 2 * channels if radiomics and self.concatenate else channels
        self.fusion = nn.Sequential(*_dense(fused, channels), *_dense(channels, channels))
        self.smote = DeepSMOTE()
        self.classifier = classifier(width, dropout[1], prevalence)

    def fit_normalisation(self, features: Tensor) -> None:
        """Take the radiomics' mean and scale from training lesions, see :meth:`RadiomicsBranch.fit_normalisation`.

        Without a radiomics branch nothing is done.
        """
        if self.radiomics is not None:
            self.radiomics.fit_normalisation(features)

    def forward(self, image: Tensor, radiomics: Tensor | None = None, labels: Tensor | None = None) -> Tensor:
        """Logits of a batch of lesions.

        Args:
            image: patches ``[N, 2, X, Y, Z]``, QSM [50 ppb] and normalised FLAIR, 0 outside of the lesion.
            radiomics: raw features ``[N, 527]`` of QSM in ppb; NaN where there is none, which counts as the mean
                lesion's. May be left out in evaluation: then every lesion has the mean's.
            labels: ``[N]``, 1 for a rim, 0 for none: only for training's synthetic rims.

        Returns:
            ``[N]``; in training with labels ``[N + 2n]``, two synthetic rims for each of the n rims at the end.

        Raises:
            ValueError: for another shape, a training batch of one, or a training without radiomics.
        """
        check_batch(image, self.training)
        features = self.image_features(image)
        if self.radiomics is not None:
            second = self.radiomics(radiomics, features)
            features = torch.cat([features, second], 1) if self.concatenate else features + second
        features = self.fusion(features)
        if self.oversampling and self.training and labels is not None:
            features = self.smote(features, labels)
        return self.classifier(features).squeeze(1)

    def image_features(self, image: Tensor) -> Tensor:
        """Features ``[N, 8 width]`` of patches ``[N, 2, X, Y, Z]``."""
        if torch.jit.is_scripting():  # type: ignore[attr-defined]
            features = self._image_features(image)
        else:
            with right_gradients(image, self.reduction):
                features = self._image_features(image)
        return features

    def _image_features(self, image: Tensor) -> Tensor:
        found: list[Tensor] = []
        for index, network in enumerate(self.image):
            found.append(network(image if self.image_fusion is None else image[:, index : index + 1]))
        features = torch.cat(found, 1)
        return features if self.image_fusion is None else self.image_fusion(features)


class RadiomicsBranch(nn.Module):
    """Features of the radiomics: normalisation, then two fully connected layers with batch normalisation and Swish.

    Radiomics are standardised with the buffers ``feature_mean`` and ``feature_scale`` ``[features]`` and clamped to 8
    standard deviations: they have long tails. What is NaN becomes 0, the mean lesion's value.

    Args:
        width: the hidden layer has 16 times, the output 8 times as many units; 64 is the paper.
        features: number of radiomics.
        dropout: after the first layer.
    """

    def __init__(self, width: int = 16, features: int = 527, dropout: float = 0.3) -> None:
        super().__init__()
        self.features, self.largest = features, LARGEST
        self.register_buffer("feature_mean", torch.zeros(features))
        self.register_buffer("feature_scale", torch.ones(features))
        self.layers = nn.Sequential(*_dense(features, 16 * width), nn.Dropout(dropout), *_dense(16 * width, 8 * width))

    @torch.jit.unused
    def fit_normalisation(self, features: Tensor) -> None:
        """Take mean and standard deviation of training lesions' raw radiomics ``[M, features]``.

        Lesions with a value that is not finite do not count. A constant feature is centred, not scaled.

        Raises:
            ValueError: for another number of features, or fewer than two lesions that count.
        """
        if features.ndim != 2 or features.shape[1] != self.features:
            raise ValueError(f"features must have shape [M, {self.features}], got {tuple(features.shape)}")
        valid = features[features.isfinite().all(1)].double()
        if valid.shape[0] < 2:
            raise ValueError(f"features must hold at least two finite rows, got {valid.shape[0]}")
        scale, mean = torch.std_mean(valid, 0)
        constant = scale <= CONSTANT * mean.abs()
        self.get_buffer("feature_mean").copy_(mean)
        self.get_buffer("feature_scale").copy_(torch.where(constant, torch.ones_like(scale), scale))

    def forward(self, radiomics: Tensor | None, like: Tensor) -> Tensor:
        """Features ``[N, 8 width]`` of raw radiomics ``[N, features]``; without, in evaluation, the mean lesion's.

        ``like`` is any tensor of N rows; its device is taken where there are no radiomics.

        Raises:
            ValueError: for another shape, or a training without radiomics.
        """
        if radiomics is None:
            if self.training:
                raise ValueError("radiomics must be given in training: this network reads them")
            return self.layers(torch.zeros(like.shape[0], self.features, device=like.device))
        return self.layers(self.standardised(radiomics))

    def standardised(self, radiomics: Tensor) -> Tensor:
        """Raw radiomics ``[N, features]`` in standard deviations from the mean lesion, within -8 and 8."""
        tracing = torch.jit.is_tracing()  # type: ignore[attr-defined]
        if not tracing and (radiomics.ndim != 2 or radiomics.shape[1] != self.features):
            raise ValueError(f"radiomics must have shape [N, {self.features}], got {radiomics.shape}")
        # TorchScript reads no annotation of the class.
        mean, scale = torch.jit.annotate(Tensor, self.feature_mean), torch.jit.annotate(Tensor, self.feature_scale)
        values = ((radiomics.to(mean.dtype) - mean) / scale).clamp(-self.largest, self.largest)
        return torch.where(torch.isnan(values), torch.zeros_like(values), values)


def check_batch(image: Tensor, training: bool) -> None:
    """Check patches ``[N, 2, X, Y, Z]``.

    Raises:
        ValueError: for another shape, or a single lesion in training: batch normalisation has no variance of one row.
    """
    if torch.jit.is_tracing():  # type: ignore[attr-defined]
        return  # shapes are symbols
    if image.ndim != 5 or image.shape[1] != 2:
        raise ValueError(f"image must have shape [N, 2, X, Y, Z], got {image.shape}")
    if training and image.shape[0] < 2:
        raise ValueError("image must hold at least 2 lesions in training (batch normalisation), got 1; drop that batch")


def right_gradients(image: Tensor, reduction: tuple[int, int, int]) -> AbstractContextManager[object]:
    """Context without CPU autocast where it would spoil gradients of maps ``reduction`` times smaller than the image.

    The bfloat16 gradients of torch's three-dimensional convolutions by their weights are uninitialised memory where the
    map's first side is 2, and write beyond theirs where a stride of 2 meets another side of 1 (torch 2.13, oneDNN).
    """
    if image.device.type == "cpu" and torch.is_autocast_enabled("cpu") and torch.is_grad_enabled():
        smallest = [-(-side // factor) for side, factor in zip(image.shape[2:], reduction, strict=True)]
        if smallest[0] < 3 or min(smallest) < 2:
            return torch.autocast("cpu", enabled=False)
    return nullcontext()


def classifier(width: int, dropout: float, prevalence: float) -> nn.Sequential:
    """Head from ``8 width`` features to one logit ``[N, 1]``, over ``2 width`` hidden units with Swish and dropout.

    Its last bias is the log-odds of the prevalence: an untrained network starts there.

    Raises:
        ValueError: for a prevalence that is not between 0 and 1.
    """
    if not 0.0 < prevalence < 1.0:
        raise ValueError(f"prevalence must be between 0 and 1, got {prevalence}")
    last = nn.Linear(2 * width, 1)
    nn.init.constant_(last.bias, math.log(prevalence / (1.0 - prevalence)))
    return nn.Sequential(nn.Linear(8 * width, 2 * width), nn.SiLU(), nn.Dropout(dropout), last)


def _dense(below: int, above: int) -> tuple[nn.Module, ...]:
    return nn.Linear(below, above), nn.BatchNorm1d(above), nn.SiLU()


def _resnet(width: int, stem: str, channels: int) -> ResNet:
    thin = stem == "thin"
    network = ResNet(
        "basic", [2, 2, 2, 2], [width, 2 * width, 4 * width, 8 * width], n_input_channels=channels,
        conv1_t_size=3 if thin else 7, conv1_t_stride=(2, 2, 1) if thin else 2, no_max_pool=thin, feed_forward=False,
        bias_downsample=False,
    )  # fmt: skip
    last = network.layer4[0]  # MONAI's strides are 1, 2, 2, 2
    for convolution in (last.conv1, last.downsample[0]):
        convolution.stride = (1, 1, 1)
    return network
