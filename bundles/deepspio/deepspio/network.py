"""DeepSPIO: strided encoder, residual bottleneck and one decoder for each wavelet channel (paper, section 4).

Every network here is called as ``network(image)`` and returns the concentration. The image's scale is taken out inside,
so the receiver gain does not matter.
"""

from __future__ import annotations

import torch
from monai.networks.nets import BasicUNet
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from .wavelets import CHANNELS, WaveletTransform, check_images

__all__ = ["STRIDE", "DeepSPIO", "UNetComparator"]

STRIDE = 16  # of the deepest features, in pixels; sides of the image are multiples of it
SLOPE = 0.01  # of the leaky rectifier
# One unit of each decoder's output, for an object of 5 ug/mm^3: an orthonormal transform of one level doubles what is
# constant, so its approximations are 10 ug/mm^3; its details, at its border alone, average .6 to .7 and reach 2.5 to 4.
# Details in units of 10 would drown in the last layer's noise, and their gradients would drive the encoder.
COEFFICIENT_SCALES = (10.0, 2.0, 2.0, 2.0)  # ug/mm^3
CONCENTRATION_SCALE = 5.0  # ug/mm^3: the same object's, where the output is the concentration itself
# The same through a hyperbolic sine: linear up to the coefficients of 0.2 ug/mm^3, exponential above.
COMPRESSED_SCALES = (0.4, 0.1, 0.1, 0.1)  # ug/mm^3
COMPRESSED_CONCENTRATION = 0.2  # ug/mm^3
LARGEST = 7.0  # of what goes into the hyperbolic sine: 110 ug/mm^3, beyond six figures of 17.5 ug/mm^3 in one place
FAINTEST = 1e-20  # smallest scale of an image that is divided by it


class _ScaledNetwork(nn.Module):
    """What both networks share: the check of the image, and its scale."""

    def __init__(self, width: int, in_channels: int, compress: bool) -> None:
        super().__init__()
        if width < 1 or in_channels < 1:
            raise ValueError(f"width and in_channels must be at least 1, got {width} and {in_channels}")
        self.width, self.in_channels = width, in_channels
        # As attributes: TorchScript sees no globals.
        self.stride, self.faintest, self.compress, self.largest = STRIDE, FAINTEST, compress, LARGEST

    def scaled(self, image: Tensor) -> Tensor:
        """Images ``[B, C, X, Z]`` divided by their brightest 16 x 16 pixels: the mean of the sum of the channels there.

        Even and odd lines together cover about half of the object, so the lines' own signal comes out at about 2.
        """
        if not torch.jit.is_scripting():  # type: ignore[attr-defined]
            check_images("image", image, self.in_channels, self.stride, self.stride)
        brightness = avg_pool2d(image.sum(1, keepdim=True), self.stride)
        return image / brightness.amax((1, 2, 3), keepdim=True).clamp_min(self.faintest)

    def expanded(self, output: Tensor) -> Tensor:
        """What the last layer's output means in units of its scale: itself, or its hyperbolic sine."""
        return output.clamp(-self.largest, self.largest).sinh() if self.compress else output


class DeepSPIO(_ScaledNetwork):
    """Concentration of iron particles from the even and odd lines of a View Line image.

    The encoder's four blocks have two 3 x 3 convolutions with batch normalisation and ReLU each, and a linear one of
    stride 2 in place of pooling; widths 1, 2, 4 and 8 times ``width``. Four residual blocks add a convolution with
    normalisation and ReLU to a linear 1 x 1 projection. From there four decoders, one for each wavelet channel, go up
    three times by transposed convolutions of stride 2, each followed by a 3 x 3 convolution, both with LeakyReLU and
    batch normalisation, to half the image's sides, where the coefficients are. There are no skip connections: lines
    are displaced by the field, so features of the image do not lie where the particles are.

    A pixel of the concentration sees 251 to 267 pixels of the image along each axis, at least 113 and at most 143 to
    either side (22 to 28 mm of 50 mm in 256 pixels): the field of distant lines counts.

    Parameters: 24.2 million at width 64, 6.05 million at 32, 1.52 million at 16, .38 million at 8.

    Args:
        width: channels of the encoder's first block.
        in_channels: of the image.
        compress: the output is the hyperbolic sine of the last layer: a small step of a weight changes weak and strong
            concentrations by the same percentage, as a relative loss asks for; False for the paper's linear output.

    Raises:
        ValueError: if one of them is below 1.
    """

    def __init__(self, width: int = 16, in_channels: int = 2, compress: bool = True) -> None:
        super().__init__(width, in_channels, compress)
        scales = torch.tensor(COMPRESSED_SCALES if compress else COEFFICIENT_SCALES).reshape(1, -1, 1, 1)
        self.register_buffer("coefficient_scales", scales, persistent=False)
        widths = [in_channels, width, 2 * width, 4 * width, 8 * width]
        self.encoder = nn.Sequential(
            *(_encoder_block(below, above) for below, above in zip(widths[:-1], widths[1:], strict=True))
        )
        self.bottleneck = nn.Sequential(*(ResidualBlock(8 * width) for _ in range(4)))
        decoders = [_decoder(width) for _ in CHANNELS]
        self.decoders = nn.ModuleList(decoders)
        self.wavelet = WaveletTransform()
        self.apply(_initialise)
        for decoder in decoders:
            # It starts near the empty map, whose relative error is 1, not from noise of many times the signal.
            nn.init.normal_(decoder[-1].get_parameter("weight"), std=1e-3)

    def forward(self, image: Tensor) -> Tensor:
        """Estimate the concentration.

        Args:
            image: magnitude ``[B, 2, X, Z]``, even and odd lines, of any scale; X and Z multiples of 16.

        Returns:
            ``[B, 1, X, Z]`` [ug/mm^3].

        Raises:
            ValueError: for another shape.
        """
        return self.wavelet.synthesis(self.coefficients(image))

    def coefficients(self, image: Tensor) -> Tensor:
        """Orthonormal wavelet coefficients ``[B, 4, X/2, Z/2]`` [ug/mm^3] of the concentration, as the decoders say.

        Args:
            image: as for :meth:`forward`; channels of the answer are those of :data:`.wavelets.CHANNELS`.
        """
        features = self.bottleneck(self.encoder(self.scaled(image)))
        coefficients = torch.cat([decoder(features) for decoder in self.decoders], 1)
        scales = torch.jit.annotate(Tensor, self.coefficient_scales)  # TorchScript reads no annotation of the class
        return self.expanded(coefficients.to(image.dtype)) * scales


class ResidualBlock(nn.Module):
    """Convolution with normalisation and ReLU, plus a linear projection of the same input (paper, section 4.2)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(*_convolution(channels, channels))
        self.shortcut = nn.Conv2d(channels, channels, 1)

    def forward(self, features: Tensor) -> Tensor:
        """Features ``[B, C, X, Z]`` to features of that shape."""
        return self.body(features) + self.shortcut(features)


class UNetComparator(_ScaledNetwork):
    """Plain U-Net that gives the concentration itself: max pooling, skip connections, transposed convolutions.

    MONAI's ``BasicUNet`` with batch normalisation and LeakyReLU, four levels down.

    Parameters: 1.95 million at width 16, .49 million at 8.

    Args:
        width: channels of the first level, doubled at each of the next.
        in_channels: of the image.
        compress: the output is the hyperbolic sine of the last layer: a small step of a weight changes weak and strong
            concentrations by the same percentage, as a relative loss asks for; False for the paper's linear output.

    Raises:
        ValueError: if one of them is below 1.
    """

    def __init__(self, width: int = 16, in_channels: int = 2, compress: bool = True) -> None:
        super().__init__(width, in_channels, compress)
        self.concentration_scale = COMPRESSED_CONCENTRATION if compress else CONCENTRATION_SCALE
        features = (width, 2 * width, 4 * width, 8 * width, 16 * width, width)
        self.unet = BasicUNet(
            2, in_channels, 1, features, act=("LeakyReLU", {"negative_slope": SLOPE}), norm=("batch", {"affine": True})
        )
        self.apply(_initialise)
        nn.init.normal_(self.unet.final_conv.weight, std=1e-3)  # it starts near the empty map too

    def forward(self, image: Tensor) -> Tensor:
        """Concentration ``[B, 1, X, Z]`` [ug/mm^3] of images ``[B, 2, X, Z]``, as :meth:`DeepSPIO.forward`."""
        return self.expanded(self.unet(self.scaled(image)).to(image.dtype)) * self.concentration_scale


def _convolution(below: int, above: int) -> tuple[nn.Module, ...]:
    # No bias: the normalisation has one.
    return nn.Conv2d(below, above, 3, padding=1, bias=False), nn.BatchNorm2d(above), nn.ReLU(inplace=True)


def _encoder_block(below: int, above: int) -> nn.Sequential:
    return nn.Sequential(
        *_convolution(below, above), *_convolution(above, above), nn.Conv2d(above, above, 3, stride=2, padding=1)
    )


def _decoder(width: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for below, above in ((8, 4), (4, 2), (2, 1)):
        below, above = below * width, above * width
        layers += [nn.ConvTranspose2d(below, above, 2, stride=2), nn.LeakyReLU(SLOPE), nn.BatchNorm2d(above)]
        layers += [nn.Conv2d(above, above, 3, padding=1), nn.LeakyReLU(SLOPE), nn.BatchNorm2d(above)]
    return nn.Sequential(*layers, nn.Conv2d(width, 1, 3, padding=1))


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        # He's rule; of a transposed 2 x 2 convolution of stride 2 every output pixel sees one weight of each channel.
        fan = module.in_channels * (1 if isinstance(module, nn.ConvTranspose2d) else module.kernel_size[0] ** 2)
        nn.init.normal_(module.weight, std=(2.0 / fan) ** 0.5)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
