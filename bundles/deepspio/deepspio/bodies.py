"""Generated proton density: containers of agar, and breasts, which no network has been trained on."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from shared_transforms.anatomy import smooth_field

CONTRAST = 0.2  # largest change of a tissue's density from image to image
FILL = (0.6, 0.95)  # of the field of view, along each axis
# Density of fat, gland, skin with ligaments, and muscle, relative to fluid.
_BREAST = (1.0, 0.72, 0.6, 0.85)


def _pixels(size: tuple[int, int], like: Tensor) -> tuple[Tensor, Tensor]:
    """Positions ``[X, 1]`` and ``[1, Z]`` of the pixels from the middle of the image [pixels]."""
    x, z = (torch.arange(n, device=like.device, dtype=like.dtype) - (n - 1) / 2 for n in size)
    return x[:, None], z[None, :]


@dataclass(frozen=True)
class Containers:
    """Discs and rounded rectangles filled with agar.

    Attributes:
        fill: share of the field of view ``[n, 2]`` that the container takes along x and z.
        roundness: radius of the corners ``[n]`` over half the shorter edge; 1 where the container is a disc.
        place: ``[n, 2]`` in [-1, 1], from one border of the room that is left to the other.
    """

    fill: Tensor
    roundness: Tensor
    place: Tensor

    def images(self, size: tuple[int, int]) -> Tensor:
        """Density ``[n, X, Z]``: 1 inside, 0 outside, the share of the container in a pixel on its edge."""
        disc = (self.roundness == 1.0)[:, None]
        sides = torch.tensor(size, device=self.fill.device, dtype=self.fill.dtype)
        half = torch.where(disc, self.fill[:, :1] * sides.amin(), self.fill * sides) / 2
        centre = self.place * (sides / 2 - half)
        corner = self.roundness * half.amin(1)
        beyond = [
            (p - centre[:, axis, None, None]).abs() - (half[:, axis] - corner)[:, None, None]
            for axis, p in enumerate(_pixels(size, self.fill))
        ]
        # Signed distance from the edge: around the corners, or to the nearer side.
        outside = torch.hypot(beyond[0].clamp(min=0.0), beyond[1].clamp(min=0.0))
        distance = outside + torch.maximum(*beyond).clamp(max=0.0) - corner[:, None, None]
        return (0.5 - distance).clamp(0.0, 1.0)


def draw_containers(generator: torch.Generator, n: int) -> Containers:
    """Draw n containers, half of them discs.

    Args:
        generator: random stream on the CPU.
        n: number of containers.
    """

    def uniform(*shape: int) -> Tensor:
        return torch.rand((n, *shape), generator=generator)

    disc = uniform() < 0.5
    fill = FILL[0] + (FILL[1] - FILL[0]) * uniform(2)
    return Containers(fill, torch.where(disc, 1.0, 0.05 + 0.45 * uniform()), 2.0 * uniform(2) - 1.0)


@dataclass(frozen=True)
class Breasts:
    """Breasts that hang from a chest wall at low x: half an ellipse with skin, fat, gland and ligaments.

    Lengths are shares of the field of view.

    Attributes:
        wall: thickness of the chest wall ``[n]``.
        reach: from the chest wall to the nipple ``[n]``.
        width: half of the breast's width ``[n]``.
        shift: of its middle along z ``[n]``.
        skin: thickness ``[n]``.
        gland: from 0, mostly fat, to 1, mostly gland ``[n]``.
        contrast: factors of the densities of fat, gland, skin and muscle ``[n, 4]``.
    """

    wall: Tensor
    reach: Tensor
    width: Tensor
    shift: Tensor
    skin: Tensor
    gland: Tensor
    contrast: Tensor

    def images(self, size: tuple[int, int], generator: torch.Generator) -> Tensor:
        """Density ``[n, X, Z]``, at most 1 + `CONTRAST`.

        Args:
            size: (X, Z).
            generator: of the smooth fields, on the device of the breasts.
        """
        side = float(max(size))
        wall, reach, width, shift, skin, gland = (
            getattr(self, name)[:, None, None] for name in ("wall", "reach", "width", "shift", "skin", "gland")
        )
        outline, clumps, strands, sheets = (
            smooth_field(generator, len(self.wall), size, side * length) for length in (0.3, 0.06, 0.02, 0.11)
        )
        x, z = _pixels(size, self.wall)
        across = z / size[1] - shift
        out = (x / size[0] + 0.5) - wall - 0.15 * across.square()  # from the surface of the chest wall
        radius = torch.hypot(out / reach, across / width) * (1.0 + 0.02 * outline)
        depth = (1.0 - radius) * torch.minimum(reach, width)  # below the skin, nearly
        inside = _share(depth, side)
        skin_share = inside * (1.0 - _share(depth - skin, side))
        # Gland fills the middle behind the nipple and thins out towards the subcutaneous fat.
        middle = (out / reach - 0.4).square() / 0.2 + (across / width).square() / 0.25
        gland_share = torch.sigmoid(5.0 * (0.7 * clumps + 0.4 * strands + 2.0 * gland - middle)) * _share(
            depth - 2.5 * skin, side
        )
        # Ligaments are thin sheets: where a smooth field passes through zero.
        ligament = 0.8 * torch.exp(-(sheets / 0.07).square()) * (1.0 - gland_share) * (1.0 - skin_share)
        fat, parenchyma, fibre, muscle = (
            torch.tensor(_BREAST, device=self.wall.device) * self.contrast
        ).T[..., None, None]  # fmt: skip
        tissue = fat + (parenchyma - fat) * gland_share
        tissue = tissue + (fibre - tissue) * torch.maximum(skin_share, ligament)
        chest = 1.0 - _share(out, side)
        return chest * muscle * (1.0 + 0.04 * clumps).clamp(0.9, 1.0) + (1.0 - chest) * inside * tissue


def _share(distance: Tensor, side: float) -> Tensor:
    """Share of a pixel that lies within an edge at this distance [fields of view]."""
    return (0.5 + distance * side).clamp(0.0, 1.0)


def draw_breasts(generator: torch.Generator, n: int) -> Breasts:
    """Draw n breasts.

    Args:
        generator: random stream on the CPU.
        n: number of breasts.
    """

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand((n, *shape), generator=generator)

    return Breasts(
        wall=uniform(0.06, 0.14),
        reach=uniform(0.55, 0.76),
        width=uniform(0.36, 0.46),
        shift=uniform(-0.03, 0.03),
        skin=uniform(0.008, 0.014),
        gland=uniform(0.0, 1.0),
        contrast=uniform(1.0 - CONTRAST, 1.0 + CONTRAST, 4),
    )
