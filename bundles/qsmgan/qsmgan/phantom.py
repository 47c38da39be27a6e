"""Phantoms of ellipsoids and tubes inside a large body: shapes that no brain has, so that shape predicts nothing."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from physics.phantoms import Ellipsoids, Tubes, draw_ellipsoids, draw_tubes, random_rotations

ELLIPSOIDS, TUBES = 64, 24
TISSUE_PPM = 0.07  # standard deviation of most bodies
STRONG_PPM = (0.2, 1.0)  # of a tenth of them, either sign


@dataclass(frozen=True)
class Phantom:
    """Bodies of n phantoms, in the grid [mm].

    Attributes:
        outline: one ellipsoid each, the body that is the mask.
        ellipsoids, tubes: inside of it; tubes cover ellipsoids.
        values: susceptibility [ppm], R2* [1/s] and signal of the outline, the ellipsoids, the tubes
            ``[n, 1 + ellipsoids + tubes, 3]``.
    """

    outline: Ellipsoids
    ellipsoids: Ellipsoids
    tubes: Tubes
    values: Tensor


def draw_phantoms(generator: torch.Generator, n: int, extent: tuple[float, float, float]) -> Phantom:
    """Draw n phantoms.

    Args:
        generator: random stream on the CPU.
        n: number of phantoms.
        extent: edges of the grid [mm].

    Returns:
        The phantoms; sizes of bodies go with the smallest edge.
    """
    side = min(extent)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator)

    radii = torch.tensor(extent) * (0.33 + 0.15 * uniform(n, 1, 3))
    centre = 0.04 * side * (2.0 * uniform(n, 1, 3) - 1.0)
    outline = Ellipsoids.from_radii(centre, radii, _slight_rotations(generator, n))
    inner = (0.85 * extent[0], 0.85 * extent[1], 0.85 * extent[2])
    ellipsoids = draw_ellipsoids(generator, n, ELLIPSOIDS, inner, (0.02 * side, 0.16 * side), 1.6)
    tubes = draw_tubes(generator, n, TUBES, inner, (0.5, 0.02 * side), (0.08 * side, 0.5 * side))
    count = 1 + ELLIPSOIDS + TUBES
    strength = TISSUE_PPM * torch.randn((n, count), generator=generator)
    low, high = STRONG_PPM
    strong = low * (high / low) ** uniform(n, count) * torch.sign(uniform(n, count) - 0.5)
    # Only small bodies are strong, as only vessels, bleeds and calcifications are.
    small = torch.arange(count) > count // 2
    chi = torch.where((uniform(n, count) < 0.1) & small, strong, strength)
    relaxation = 20.0 * torch.exp(0.5 * torch.randn((n, count), generator=generator))
    density = 0.3 + 0.7 * uniform(n, count)
    return Phantom(outline, ellipsoids, tubes, torch.stack([chi, relaxation, density], -1))


def _slight_rotations(generator: torch.Generator, n: int) -> Tensor:
    """Rotations ``[n, 1, 3, 3]`` by some ten degrees: half way from none to a random one, made orthogonal again."""
    mixed = torch.eye(3) + 0.15 * random_rotations(generator, n, 1)
    left, _, right = torch.linalg.svd(mixed)
    return left @ right
