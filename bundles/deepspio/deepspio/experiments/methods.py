"""The methods under comparison, all called alike."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from physics.viewline import ViewLineSequence
from shared_transforms.weights import load_weights

from ..baselines import AnalysisBySynthesis, CentreLine, ZeroMap
from ..network import DeepSPIO, UNetComparator

# What a reader calls the methods.
LABELS = {
    "zero": "zero map",
    "centre_line": "centre line",
    "centre_line_known": "centre line, geometry known",
    "synthesis": "analysis by synthesis",
    "unet": "U-Net",
    "deepspio": "DeepSPIO",
}
BASELINES: dict[str, Callable[..., nn.Module]] = {"centre_line": CentreLine, "synthesis": AnalysisBySynthesis}
CLASSICAL = tuple(BASELINES)  # take seconds for an image
NETWORKS = ("deepspio", "unet")
COMPARED = ("zero", *CLASSICAL, "unet", "deepspio")
ARCHITECTURES: dict[str, Callable[..., nn.Module]] = {"deepspio": DeepSPIO, "unet": UNetComparator}
CHUNK = 8  # images that are estimated at once


@dataclass(frozen=True)
class Method:
    """A way from an image to a map.

    Attributes:
        name: as in the tables.
        estimate: concentration ``[n, 1, X, Z]`` [ug/mm^3] of images ``[n, 2, X, Z]``.
        recipe: its options, or what its weights are, in words: changes when its answers may.
    """

    name: str
    estimate: Callable[[Tensor], Tensor]
    recipe: str

    @property
    def label(self) -> str:
        """What a reader calls it."""
        return LABELS.get(self.name, self.name)

    @property
    def slow(self) -> bool:
        """Whether an image takes it seconds."""
        return self.name in CLASSICAL


def classical(name: str, sequence: ViewLineSequence, pixel_size: Sequence[float], options: Mapping[str, Any]) -> Method:
    """One of :data:`CLASSICAL`.

    Args:
        name: of the method.
        sequence: with which the images were taken.
        pixel_size: (dx, dz) [mm].
        options: further arguments of the baseline.
    """
    module = BASELINES[name](sequence=sequence, pixel_size=tuple(pixel_size), **options)
    return Method(name, in_chunks(module), repr((name, sequence, tuple(pixel_size), sorted(options.items()))))


def zero_method() -> Method:
    """The answer that needs no data."""
    return Method("zero", in_chunks(ZeroMap()), "zero")


def network_method(name: str, network: nn.Module) -> Method:
    """A network, which takes out the scale of an image itself."""
    digest = hashlib.sha256()
    for key, value in sorted(network.state_dict().items()):
        digest.update(key.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return Method(name, in_chunks(network), f"{name} {digest.hexdigest()[:16]}")


def in_chunks(module: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The same function of a batch, a few images at a time."""

    @torch.no_grad()
    def estimate(image: Tensor) -> Tensor:
        return torch.cat([module(part) for part in image.split(CHUNK)])

    return estimate


def load_network(name: str, path: str | Path, **arguments: Any) -> nn.Module | None:
    """A network with its weights, or None where their file is absent.

    Args:
        name: one of :data:`NETWORKS`.
        path: of the weights.
        arguments: of the network's class.
    """
    if not Path(path).is_file():
        return None
    return load_weights(ARCHITECTURES[name](**arguments), path, network=f"deepspio {Path(path).stem}").eval()
