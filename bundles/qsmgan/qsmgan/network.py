"""Generator and critic (Chen et al. 2020, figure 1; widths and activations as in the authors' public code)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .start import CHANNELS

# One unit of a channel inside the network: fields of tissue are some 0.01 ppm, susceptibilities some 0.05 ppm.
SCALES = {"field": 100.0, "start": 20.0, "residual": 100.0, "correction": 100.0, "magnitude": 1.0}
OUTPUT_SCALE = 20.0  # of the susceptibility: the last layer works in units of 0.05 ppm
LIMIT = 10.0  # of a channel, in its unit: the phase of a voxel without signal may say anything
SLOPE = 0.1
NORMALISATIONS = ("none", "batch")


class Generator(nn.Module):
    """3-D U-Net from field to susceptibility, whose output is the middle of its input.

    Every level has two convolutions of 3 x 3 x 3 with LeakyReLU, average pooling on the way down and transposed
    convolutions on the way up, then two convolutions of 1 x 1 x 1. The border is cut off at the end: near it the
    sources of the field lie outside the patch. If a starting map is among the channels, the output is that map plus
    what the network says.

    Args:
        channels: of the input, see :data:`.start.CHANNELS`; ``("field",)`` is the paper's.
        width: feature maps of the first level, doubled at each of the next.
        levels: number of levels; sides of the input are multiples of ``2 ** (levels - 1)``.
        normalisation: ``"none"`` or ``"batch"``, the paper's.
        crop: voxels cut off at each side (paper: 8, 64 to 48).

    Raises:
        ValueError: if an option is none of its choices.
    """

    def __init__(
        self,
        channels: Sequence[str] = CHANNELS,
        width: int = 16,
        levels: int = 4,
        normalisation: str = "none",
        crop: int = 8,
    ) -> None:
        super().__init__()
        if unknown := set(channels) - set(CHANNELS) or not channels:
            raise ValueError(f"channels must be some of {CHANNELS}, got {tuple(channels)}: {unknown}")
        if normalisation not in NORMALISATIONS:
            raise ValueError(f"normalisation must be one of {NORMALISATIONS}, got {normalisation!r}")
        if width < 1 or levels < 2 or crop < 0:
            raise ValueError(f"width >= 1, levels >= 2, crop >= 0 are needed, got {width}, {levels}, {crop}")
        self.channels = tuple(channels)
        self.crop, self.output_scale, self.limit = crop, OUTPUT_SCALE, LIMIT
        self.start_channel = self.channels.index("start") if "start" in self.channels else -1
        scales = torch.tensor([SCALES[name] for name in self.channels]).reshape(1, -1, 1, 1, 1)
        self.register_buffer("scales", scales, persistent=False)
        widths = [width * 2**level for level in range(levels)]
        self.down = nn.ModuleList(
            _double(below, above, normalisation) for below, above in zip([len(channels), *widths], widths, strict=False)
        )
        self.pool = nn.AvgPool3d(2)
        self.up = nn.ModuleList(nn.ConvTranspose3d(2 * w, w, 2, stride=2) for w in reversed(widths[:-1]))
        self.merge = nn.ModuleList(_double(2 * w, w, normalisation) for w in reversed(widths[:-1]))
        last = nn.Conv3d(width, 1, 1)
        self.head = nn.Sequential(nn.Conv3d(width, width, 1), nn.LeakyReLU(SLOPE), last)
        self.apply(_initialise)
        nn.init.normal_(last.weight, std=0.01)  # it starts from the starting map

    def forward(self, image: Tensor) -> Tensor:
        """Estimate the susceptibility.

        Args:
            image: ``[batch, C, X, Y, Z]``, channels in their units (ppm; magnitude relative to its mean), 0 outside the
                mask; sides that are multiples of ``2 ** (levels - 1)``.

        Returns:
            ``[batch, 1, X - 2 crop, Y - 2 crop, Z - 2 crop]`` [ppm], relative to its mean over the head.
        """
        scales = torch.jit.annotate(Tensor, self.scales)  # TorchScript reads no annotation of the class
        features = (image * scales).clamp(-self.limit, self.limit)
        passed = []
        for level, block in enumerate(self.down):
            features = block(features if level == 0 else self.pool(features))
            passed.append(features)
        passed.pop()
        for up, merge in zip(self.up, self.merge):  # noqa: B905 - TorchScript knows no strict
            features = merge(torch.cat([passed.pop(), up(features)], 1))
        estimate = self._cropped(self.head(features)) / self.output_scale
        if self.start_channel >= 0:
            estimate = estimate + self._cropped(image[:, self.start_channel : self.start_channel + 1])
        return estimate

    def _cropped(self, volume: Tensor) -> Tensor:
        c = self.crop
        x, y, z = volume.shape[2], volume.shape[3], volume.shape[4]
        return volume[:, :, c : x - c, c : y - c, c : z - c]


class Critic(nn.Module):
    """Four blocks of strided convolutions that score patches: high for true maps, low for generated ones.

    It sees the field beside the map, so that it judges whether the two belong together. No normalisation: the gradient
    penalty is defined for each sample alone (Gulrajani et al. 2017, section 4).

    Args:
        width: feature maps of the first block, doubled at each of the next.
        blocks: number of blocks, each of which halves the side.
    """

    scales: Tensor

    def __init__(self, width: int = 8, blocks: int = 4) -> None:
        super().__init__()
        widths = [2, *(width * 2**block for block in range(blocks))]
        layers: list[nn.Module] = []
        for below, above in zip(widths[:-1], widths[1:], strict=True):
            layers += [nn.Conv3d(below, above, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        self.features = nn.Sequential(*layers)
        self.score = nn.Linear(widths[-1], 1)
        scales = torch.tensor([OUTPUT_SCALE, SCALES["field"]]).reshape(1, -1, 1, 1, 1)
        self.register_buffer("scales", scales, persistent=False)

    def forward(self, susceptibility: Tensor, field: Tensor) -> Tensor:
        """Score patches.

        Args:
            susceptibility: ``[batch, 1, X, Y, Z]`` [ppm].
            field: of the same shape [ppm].

        Returns:
            Scores ``[batch]``.
        """
        features = self.features(torch.cat([susceptibility, field], 1) * self.scales)
        return self.score(features.mean((2, 3, 4)))[:, 0]


def _double(below: int, above: int, normalisation: str) -> nn.Sequential:
    layers: list[nn.Module] = []
    for count in (below, above):
        layers.append(nn.Conv3d(count, above, 3, padding=1, bias=normalisation == "none"))
        if normalisation == "batch":
            layers.append(nn.BatchNorm3d(above))
        layers.append(nn.LeakyReLU(SLOPE))
    return nn.Sequential(*layers)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv3d | nn.ConvTranspose3d):
        # Keeps the size of the features from layer to layer; the paper's Xavier weights shrink them, and without
        # normalisation the network does not learn.
        nn.init.kaiming_normal_(module.weight, a=SLOPE)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
