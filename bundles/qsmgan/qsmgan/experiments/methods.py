"""The methods under comparison, all called alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from physics.dipole_inversion import cosmos, ilsqr, l2_gradient, medi, tikhonov, tkd, tv_admm
from shared_transforms.weights import load_weights

from ..network import Generator
from .case import Case

Inversion = Callable[..., Tensor]
NETWORKS = ("unet", "qsmgan", "paper")

# What a reader calls the methods.
LABELS = {
    "zero": "zero map",
    "tkd": "TKD",
    "tikhonov": "Tikhonov",
    "l2_gradient": "L2 gradient",
    "tv": "TV-ADMM",
    "tv_scaled": "TV x factor",
    "ilsqr": "iLSQR",
    "medi": "MEDI",
    "medi_no_magnitude": "MEDI, no magnitude",
    "cosmos": "COSMOS",
    "unet": "U-Net",
    "qsmgan": "QSMGAN",
    "paper": "paper's U-Net",
}
INVERSIONS: dict[str, Inversion] = {
    "tkd": tkd,
    "tikhonov": tikhonov,
    "l2_gradient": l2_gradient,
    "tv": tv_admm,
    "ilsqr": ilsqr,
    "medi": medi,
    "medi_no_magnitude": medi,
}
SLOW = ("ilsqr", "medi", "medi_no_magnitude")
WEIGHTED = ("tv", "tv_scaled", "medi")  # are given the magnitude


@dataclass(frozen=True)
class Method:
    """A way from a case to a map.

    Attributes:
        name: as in the tables.
        estimate: susceptibility ``[X, Y, Z]`` [ppm] of a case.
        multiple_of: name of the method of whose map this one is a multiple.
        factor: of that map.
        recipe: its options in words; empty for networks, whose weights decide.
        source: module of the inversion.
    """

    name: str
    estimate: Callable[[Case], Tensor]
    multiple_of: str | None = None
    factor: float = 1.0
    recipe: str = ""
    source: str | None = None

    @property
    def slow(self) -> bool:
        """Whether it takes minutes where others take seconds."""
        return self.name in SLOW

    @property
    def label(self) -> str:
        """What a reader calls it."""
        return LABELS.get(self.name, self.name)


def classical(name: str, options: Mapping[str, Any], factor: float = 1.0) -> Method:
    """One of :data:`INVERSIONS`.

    Args:
        name: of the method in the tables; ``"tv_scaled"`` is TV times the factor.
        options: of the inversion.
        factor: by which the map is multiplied.
    """
    base = name.removesuffix("_scaled")
    inversion = INVERSIONS[base]

    def estimate(case: Case) -> Tensor:
        magnitude = case.magnitude if name in WEIGHTED else None
        return factor * inversion(
            case.field, case.voxel_size, case.b0_direction, mask=case.mask, magnitude=magnitude, **options
        )

    recipe = repr((base, factor, sorted(options.items())))
    return Method(name, estimate, None if base == name else base, factor, recipe, inversion.__module__)


def cosmos_method(options: Mapping[str, Any]) -> Method:
    """COSMOS from all orientations of a case."""

    def estimate(case: Case) -> Tensor:
        fields = torch.stack([field for field, _ in case.turned])
        directions = fields.new_tensor([direction for _, direction in case.turned])
        return cosmos(fields, case.voxel_size, directions, mask=case.mask, **options)

    return Method("cosmos", estimate, recipe=repr(sorted(options.items())), source=cosmos.__module__)


def zero_method() -> Method:
    """The answer that needs no data."""
    return Method("zero", lambda case: torch.zeros_like(case.field))


def network_method(name: str, network: nn.Module, inferer: Callable[..., Tensor]) -> Method:
    """A network with everything around it: frame, starting map and tiles."""

    @torch.no_grad()
    def estimate(case: Case) -> Tensor:
        image = torch.stack([case.field, case.magnitude])[None]
        found = inferer(
            image, network, mask=case.mask[None, None], voxel_size=case.voxel_size, b0_direction=case.b0_direction
        )
        return found[0, 0]

    return Method(name, estimate)


def load_generator(
    path: str | Path,
    channels: Sequence[str],
    width: int = 16,
    normalisation: str = "none",
    crop: int = 8,
) -> Generator | None:
    """A generator with its weights, or None where their file is absent.

    Args:
        path: of the weights.
        channels: as for :class:`..network.Generator`.
        width: as there.
        normalisation: as there.
        crop: as there.
    """
    if not Path(path).is_file():
        return None
    network = Generator(channels, width, normalisation=normalisation, crop=crop)
    return load_weights(network, path, network=f"qsmgan {Path(path).stem}").eval()
