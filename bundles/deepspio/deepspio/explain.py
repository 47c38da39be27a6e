"""What the network looked at: Grad-CAM of its layers and guided back-propagation (paper, section 5.2).

Everything here works on a copy of the network: its weights, gradients, hooks and training mode stay as they were.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
from monai.visualize import GradCAM
from torch import Tensor, nn

from .network import DeepSPIO

__all__ = ["SCORES", "attention_layers", "feature_attention", "grad_cam", "guided_saliency", "on_image"]

# What is summed up to the one number y that attention explains: a decoder's output, all four, or the concentration.
SCORES = ("cA", "cH", "cV", "cD", "all", "concentration")
RECTIFIERS = (nn.ReLU, nn.LeakyReLU)


def attention_layers(network: DeepSPIO) -> list[str]:
    """Names of the layers whose attention is worth a look, from the image on.

    Returns:
        The twelve convolutions of the encoder (the ReLU behind each, or the strided convolution itself, which is
        linear), so that number 5 is entry 4; the four blocks of the bottleneck; the last features of each decoder.
    """
    encoder = [
        name for name, module in network.named_modules()
        if name.startswith("encoder.")
        and (isinstance(module, nn.ReLU) or (isinstance(module, nn.Conv2d) and max(module.stride) > 1))
    ]  # fmt: skip
    bottleneck = [f"bottleneck.{k}" for k in range(len(network.bottleneck))]
    decoders = [
        f"decoders.{k}.{len(decoder) - 2}"  # type: ignore[arg-type]
        for k, decoder in enumerate(network.decoders)
    ]
    return [*encoder, *bottleneck, *decoders]


def grad_cam(network: nn.Module, image: Tensor, layer: str, score: str = "cA") -> Tensor:
    """Attention map of a layer: ``ReLU(sum_k alpha_k A_k)``, alpha_k the mean of dy/dA_k over the feature map A_k.

    MONAI's ``GradCAM`` without its default post-processing, which turns the map upside down and scales it.

    Args:
        network: with ``coefficients(image)``; for ``score="concentration"`` any network with an output per image.
        image: View Line image ``[B, 2, X, Z]``.
        layer: name of the layer, as in ``network.named_modules()``; see :func:`attention_layers`.
        score: what y is the sum of, one of :data:`SCORES`.

    Returns:
        ``[B, 1, X, Z]``, at least 0, in units of y, linearly interpolated to the image; scale differs by layer.

    Raises:
        ValueError: for an unknown layer or score.

    Source: paper, section 5.2 and figure 11; Selvaraju et al. 2017.
    """
    return _attention(GradCAM, network, image, layer, score)


def feature_attention(network: nn.Module, image: Tensor, layer: str, score: str = "cA") -> Tensor:
    """Attention maps of the single features of a layer: ``ReLU(alpha_k A_k)``, as in figure 12.

    Args and errors are those of :func:`grad_cam`.

    Returns:
        ``[B, K, X, Z]``, K the number of feature maps.
    """
    return _attention(_FeatureCAM, network, image, layer, score)


def on_image(maps: Tensor, image: Tensor) -> Tensor:
    """Attention maps ``[B, K, X, Z]`` times the image ``[B, 2, X, Z]``, whose even and odd lines are added up."""
    return maps * image.sum(1, keepdim=True)


def guided_saliency(
    network: nn.Module,
    image: Tensor,
    target: Any,
    loss: Callable[[Tensor, Any], Tensor],
    guided: bool = True,
) -> Tensor:
    """Gradient of the loss at the image, back-propagated along positive gradients alone.

    Behind every ReLU and LeakyReLU the gradient is cut off below 0 before it goes on. Own hooks: MONAI's
    ``GuidedBackpropGrad`` finds modules by their NAME and gives plain gradients where none contains "relu", puts a ReLU
    in the place of a LeakyReLU, which changes the output, takes one image at a time and knows class scores, no loss.

    The scale that a network takes out of the image by ``scaled`` is held: the gradient of a largest value lies on its
    place alone, whatever is there.

    Args:
        network: ``[B, 2, X, Z] -> [B, 1, X, Z]``.
        image: View Line image ``[B, 2, X, Z]``.
        target: what the loss takes as its second argument.
        loss: of the network's output and the target, a mean over the images.
        guided: False gives the plain gradient.

    Returns:
        ``[B, 1, X, Z]``, the largest magnitude over the two channels, per unit of the image as the network scales it;
        of each image's own loss, whatever the others in the batch.

    Raises:
        ValueError: if no module is a rectifier: there would be nothing to guide.

    Source: paper, section 5.2, figures 13 and 14; Springenberg et al. 2015.
    """
    copy = _copy(network)
    rectifiers = [module for module in copy.modules() if isinstance(module, RECTIFIERS)]
    if guided and not rectifiers:
        raise ValueError("network must have modules nn.ReLU or nn.LeakyReLU for guided=True, got none")
    for module in rectifiers if guided else []:
        module.register_forward_hook(_cut_negative_gradients)
    if hasattr(network, "scaled"):
        with torch.no_grad():
            image = network.scaled(image)  # type: ignore[operator]
        copy.scaled = _as_it_is  # type: ignore[assignment]
    with torch.enable_grad():
        leaf = image.detach().clone().requires_grad_()
        value = loss(copy(leaf), target) * len(image)  # undoes the mean over the images
        (gradient,) = torch.autograd.grad(value, leaf)
    return gradient.abs().amax(1, keepdim=True)


class _Score(nn.Module):
    """The network with the number that is explained as its output ``[B, 1]``."""

    def __init__(self, network: nn.Module, score: str) -> None:
        super().__init__()
        self.network, self.score = network, score

    def forward(self, image: Tensor) -> Tensor:
        if self.score == "concentration":
            return self.network(image).flatten(1).sum(1, keepdim=True)
        channels = self.network.coefficients(image).sum((2, 3))  # type: ignore[operator]
        if self.score == "all":
            return channels.sum(1, keepdim=True)
        k = SCORES.index(self.score)
        return channels[:, k : k + 1]


class _FeatureCAM(GradCAM):
    """Grad-CAM before the sum over the features."""

    def compute_map(
        self, x: Tensor, class_idx: Any = None, retain_graph: bool = False, layer_idx: int = -1, **kwargs: Any
    ) -> Tensor:
        """Maps ``[B, K, x, z]`` of the size of the layer."""
        _, features, gradients = self.nn_module(x, class_idx=class_idx, retain_graph=retain_graph, **kwargs)
        weights = gradients[layer_idx].mean((2, 3), keepdim=True)
        return torch.relu(weights * features[layer_idx])


def _attention(kind: type[GradCAM], network: nn.Module, image: Tensor, layer: str, score: str) -> Tensor:
    if score not in SCORES:
        raise ValueError(f"score must be one of {SCORES}, got {score!r}")
    names = [name for name, _ in network.named_modules() if name]
    if layer not in names:
        raise ValueError(f"layer must be one of {', '.join(names)}, got {layer!r}")
    scored = _Score(_copy(network), score)
    with torch.enable_grad():
        # The gradient at the image makes the backward hooks run where all weights are frozen.
        leaf = image.detach().clone().requires_grad_()
        maps = kind(scored, f"network.{layer}", postprocessing=nn.Identity())(leaf, class_idx=0)
    return maps.detach()


def _copy(network: nn.Module) -> nn.Module:
    """The network as it answers, without in-place operations, which hooks do not stand."""
    copy = deepcopy(network).eval().requires_grad_(False)
    for module in copy.modules():
        if getattr(module, "inplace", False):
            module.inplace = False  # type: ignore[assignment]
    return copy


def _as_it_is(image: Tensor) -> Tensor:
    return image


def _cut_negative_gradients(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    output.register_hook(lambda gradient: gradient.clamp(min=0))
