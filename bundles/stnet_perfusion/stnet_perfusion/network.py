"""ST-Net: a spatial encoder over every frame, then a temporal network for every voxel (paper, section 2.2)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

__all__ = ["FRAMES", "OUTPUTS", "STNet", "image_channels"]

FRAMES = 50
OUTPUTS = ("CBV", "CBF", "Tmax")
TYPICAL = (4.0, 50.0, 5.0)  # ml/100 g, ml/100 g/min, s: the network's own units
# Of the input: a grey matter curve peaks at about .5 ml/100 g/s, an arterial one of unit area at about .15 /s.
TISSUE_SCALE, ARTERIAL_SCALE = 2.0, 7.0
LARGEST_TISSUE = 6.0  # in those units; voxels full of vessel reach far beyond
SLOPE = 0.01  # of the leaky rectifier


def image_channels(frames: int = FRAMES) -> int:
    """Channels of the input: tissue curve, baseline, arterial curve."""
    return 2 * frames + 1


class STNet(nn.Module):
    """CBV, CBF and Tmax of every voxel from its neighbourhood's curves, its baseline and the arterial curve.

    The spatial encoder looks at each frame alone: four 3 x 3 layers, which leave one position of a 9 x 9
    (``context``) or 7 x 7 (``zero``) neighbourhood. What follows sees one voxel: a layer that merges its 64 features
    with baseline and arterial curve, a global pathway of dilated and a local pathway of plain convolutions over time,
    two convolutions of both, and two fully connected layers.

    With ``context`` no layer pads, so one encoder pass over a slice gives what 9 x 9 patches would give one by one. The
    paper pads its 7 x 7 patches with zeros in the first layer (``zero``): no two neighbours share anything, and every
    patch is encoded by itself. Layers of the temporal network that the paper does not fix are arguments.

    Args:
        frames: N, length of a curve.
        channels: of the spatial encoder's layers.
        padding: ``"context"`` or ``"zero"``.
        width: channels after the merging layer.
        pathway: channels of each of the two pathways.
        dilations: of the layers of the global pathway.
        hidden: units between the two fully connected layers.
        dropout: probability, of those units.
        outputs: names of what is estimated, of :data:`OUTPUTS`.

    Raises:
        ValueError: for an unknown padding or output.
    """

    def __init__(
        self,
        frames: int = FRAMES,
        channels: Sequence[int] = (8, 16, 32, 64),
        padding: str = "context",
        width: int = 48,
        pathway: int = 32,
        dilations: Sequence[int] = (1, 2, 4, 8),
        hidden: int = 128,
        dropout: float = 0.1,
        outputs: Sequence[str] = OUTPUTS,
    ) -> None:
        super().__init__()
        if padding not in ("context", "zero"):
            raise ValueError(f"padding must be context or zero, got {padding!r}")
        if not outputs or set(outputs) - set(OUTPUTS):
            raise ValueError(f"outputs must be among {OUTPUTS}, got {tuple(outputs)}")
        if len(channels) != 4:
            raise ValueError(f"channels must be four numbers, got {tuple(channels)}")
        self.frames, self.padding, self.outputs, self.n_outputs = frames, padding, tuple(outputs), len(outputs)
        # As attributes: TorchScript sees no globals.
        self.tissue_scale, self.arterial_scale, self.largest = TISSUE_SCALE, ARTERIAL_SCALE, LARGEST_TISSUE
        self.crop = 4 if padding == "context" else 3
        sizes = (1, *channels)
        spatial: list[nn.Module] = []
        for k in range(4):
            spatial += [
                nn.Conv2d(sizes[k], sizes[k + 1], 3, padding=int(padding == "zero" and k == 0)),
                nn.ReLU(inplace=True),
            ]
        self.spatial = nn.Sequential(*spatial)
        # Over time, as [voxel, channel, time, 1]: in the memory format channels_last five times as fast as Conv1d.
        self.merge = nn.Sequential(_temporal(channels[-1] + 2, width), nn.ReLU(inplace=True))
        far: list[nn.Module] = []
        for k, dilation in enumerate(dilations):
            far += [_temporal(width if k == 0 else pathway, pathway, dilation=dilation), nn.ReLU(inplace=True)]
        self.far = nn.Sequential(*far)
        self.near = nn.Sequential(
            _temporal(width, pathway), nn.ReLU(inplace=True), _temporal(pathway, pathway), nn.ReLU(inplace=True)
        )
        self.join = nn.Sequential(
            _temporal(2 * pathway, width, stride=2),
            nn.ReLU(inplace=True),
            _temporal(width, pathway, stride=2),
            nn.ReLU(inplace=True),
        )
        length = ((frames + 1) // 2 + 1) // 2
        self.head = nn.Sequential(
            nn.Linear(pathway * length, hidden), nn.LeakyReLU(SLOPE), nn.Dropout(dropout),
            nn.Linear(hidden, len(outputs)), nn.LeakyReLU(SLOPE),
        )  # fmt: skip
        typical = [TYPICAL[OUTPUTS.index(name)] for name in outputs]
        self.register_buffer("typical", torch.tensor(typical), persistent=False)
        self._initialise()

    def _initialise(self) -> None:
        """He's rule; the answer before training is the typical one, on the rectifier's steep side."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        last = self.head[3]
        if isinstance(last, nn.Linear):
            nn.init.normal_(last.weight, std=0.02)
            nn.init.ones_(last.bias)

    def forward(self, image: Tensor) -> Tensor:
        """Estimate every voxel whose whole neighbourhood is in the image.

        Args:
            image: ``[B, 2 N + 1, X, Y]``, see :func:`.frames.standardise`.

        Returns:
            ``[B, outputs, X - 2 crop, Y - 2 crop]``: CBV [ml/100 g], CBF [ml/100 g/min], Tmax [s].
        """
        b, x, y = image.shape[0], image.shape[2] - 2 * self.crop, image.shape[3] - 2 * self.crop
        features = self.encode(image).flatten(0, 1)
        inner = image[:, self.frames :, self.crop : self.crop + x, self.crop : self.crop + y]
        beside = inner.permute(0, 2, 3, 1).reshape(b * x * y, self.frames + 1)
        return self.decode(features, beside).reshape(b, x, y, self.n_outputs).permute(0, 3, 1, 2)

    def estimate(self, image: Tensor, keep: Tensor, at_once: int = 512) -> Tensor:
        """Estimate chosen voxels.

        Args:
            image: as for :meth:`forward`.
            keep: boolean ``[B, X - 2 crop, Y - 2 crop]``, V of them true.
            at_once: voxels that the temporal network sees together; what fits into the cache is fastest.

        Returns:
            ``[V, outputs]``, in the order of ``keep.nonzero()``.
        """
        c, x, y = self.crop, keep.shape[1], keep.shape[2]
        features = self.encode(image).flatten(0, 1)
        inner = image[:, self.frames :, c : c + x, c : c + y].permute(0, 2, 3, 1).flatten(0, 2)
        parts = keep.flatten().nonzero().squeeze(1).split(at_once)
        return torch.cat([self.decode(features[part], inner[part]) for part in parts])

    def encode(self, image: Tensor) -> Tensor:
        """Spatial features ``[B, X' Y', N, C]`` of every frame, ``X'`` and ``Y'`` as in :meth:`forward`."""
        b, n = image.shape[0], self.frames
        tissue = torch.clamp(image[:, :n] * self.tissue_scale, -self.largest, self.largest)
        if self.padding == "zero":
            side = 2 * self.crop + 1
            patches = tissue.unfold(2, side, 1).unfold(3, side, 1)
            x, y = patches.shape[2], patches.shape[3]
            flat = patches.permute(0, 2, 3, 1, 4, 5).reshape(b * x * y * n, 1, side, side)
            return self.spatial(flat).reshape(b, x * y, n, -1)
        frames = tissue.reshape(b * n, 1, image.shape[2], image.shape[3])
        features = self.spatial(frames.contiguous(memory_format=torch.channels_last))
        return features.permute(0, 2, 3, 1).reshape(b, n, -1, features.shape[1]).transpose(1, 2)

    def decode(self, features: Tensor, beside: Tensor) -> Tensor:
        """Estimates ``[V, outputs]`` from features ``[V, N, C]`` and baseline with arterial curve ``[V, 1 + N]``."""
        baseline = beside[:, :1].expand(-1, self.frames).unsqueeze(2)
        arterial = beside[:, 1:].unsqueeze(2) * self.arterial_scale
        joined = torch.cat([features, baseline.to(features.dtype), arterial.to(features.dtype)], 2)
        # [V, N, C] in memory is [V, C, N, 1] with channels last.
        merged = self.merge(joined.transpose(1, 2).unsqueeze(3))
        both = torch.cat([self.far(merged), self.near(merged)], 1)
        return self.head(self.join(both).flatten(1)) * self.typical


def _temporal(inputs: int, outputs: int, dilation: int = 1, stride: int = 1) -> nn.Conv2d:
    """Convolution of three frames over time, as wide as its input for a stride of 1."""
    return nn.Conv2d(inputs, outputs, (3, 1), stride=(stride, 1), padding=(dilation, 0), dilation=(dilation, 1))
