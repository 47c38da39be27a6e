"""Images with their truth: those of the simulator of the training, and bottles of particles in agar."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d

from physics.dipole import sphere_field
from physics.noise import add_rician_noise, sigma_from_decibels
from physics.phantoms import disc_fractions
from physics.viewline import folded_plane_field, view_line_image
from shared_transforms.anatomy import split_generator

from .bench import Bench

B0_TESLA = 7.0
BOTTLE_RADIUS_MM, BOTTLE_LENGTH_MM = 2.0, 10.0
CONTAINER_RADIUS_MM = 20.0
NEAR, LIT = 8, 0.2  # pixels around particles; proton density above which tissue gives signal
QUICK_SCALE = 0.25  # of all lengths of a phantom in a quick run, whose images are that much smaller


@dataclass(frozen=True)
class Scenes:
    """Images as the methods see them, and their truth.

    Attributes:
        image: even and odd lines ``[n, 2, X, Z]``.
        truth: concentration ``[n, 1, X, Z]`` [ug/mm^3].
        concentration: of a figure or a bottle of each image ``[n]`` [ug/mm^3].
        surrounded: share ``[n]`` of the pixels around the particles that give signal without them.
    """

    image: Tensor
    truth: Tensor
    concentration: Tensor
    surrounded: Tensor

    def __len__(self) -> int:
        return len(self.image)


@torch.no_grad()
def held_out(bench: Bench, count: int, first: int = 0, **changes: Any) -> Scenes:
    """Images of the test split; equal numbers give equal images, whatever the count.

    Args:
        bench: seed, sizes, device and simulator.
        count: how many.
        first: number of the first.
        changes: arguments of the simulator that differ from those of the training.
    """
    simulator = bench.simulator_of(**changes)
    images, truths, concentrations, shares = [], [], [], []
    for number in range(first, first + count):
        drawn = simulator.draw(split_generator(bench.seed, number, split="test"), 1, "test")
        batch = simulator.simulate(drawn)
        images.append(batch["image"])
        truths.append(batch["label"]["parameters"])
        concentrations.append(drawn.concentration)
        shares.append(surrounded(batch["label"]["mask"], batch["label"]["density"]))
    found = (torch.cat(part).to(bench.device) for part in (images, truths, concentrations, shares))
    return Scenes(*found)


def surrounded(mask: Tensor, density: Tensor) -> Tensor:
    """Share ``[n]`` of the pixels near particles that would give signal: particles in air show nothing.

    Args:
        mask: where there are particles ``[n, 1, X, Z]``.
        density: proton density ``[n, 1, X, Z]``.
    """
    inside = mask.to(density.dtype)
    ring = max_pool2d(inside, 2 * NEAR + 1, stride=1, padding=NEAR) - inside
    return (ring * (density > LIT)).sum((1, 2, 3)) / ring.sum((1, 2, 3)).clamp_min(1.0)


@dataclass(frozen=True)
class Bottles:
    """Agar phantoms: a disc of uniform signal, and in it a bottle of particles, its axis along y.

    Attributes:
        concentrations: [ug/mm^3], one for each phantom.
        centres: middle of the bottle (x, z) from the middle of the image [mm], one for each phantom.
        radius: of the bottle [mm].
        length: of the bottle [mm], its middle in the imaging plane.
        container: radius of the agar [mm].
    """

    concentrations: Sequence[float]
    centres: Sequence[tuple[float, float]]
    radius: float = BOTTLE_RADIUS_MM
    length: float = BOTTLE_LENGTH_MM
    container: float = CONTAINER_RADIUS_MM


@dataclass(frozen=True)
class AirSphere:
    """A sphere without signal whose middle lies in the imaging plane.

    Attributes:
        susceptibility: inside minus outside [ppm].
        centre: (x, z) from the middle of the image [mm].
        radius: [mm].
    """

    susceptibility: float
    centre: tuple[float, float] = (7.0, 5.0)
    radius: float = 3.0


@torch.no_grad()
def phantoms(
    bench: Bench,
    bottles: Bottles,
    decibels: Sequence[float] | None = None,
    seed: int = 0,
    sphere: AirSphere | None = None,
) -> Scenes:
    """Simulated agar phantoms.

    Args:
        bench: sequence, sizes and device.
        bottles: the phantoms.
        decibels: signal-to-noise ratio of each, see :func:`physics.noise.sigma_from_decibels`, infinite for no noise;
            None for no noise in any.
        seed: of the noise.
        sphere: beside every bottle; None for none.
    """
    like = torch.zeros((), device=bench.device)
    wanted = torch.cat([like.new_tensor(bottles.centres), like.new_tensor(bottles.concentrations)[:, None]], 1)
    different, number = wanted.unique(dim=0, return_inverse=True)  # repetitions differ in their noise alone
    image, plane = _without_noise(bench, bottles, different[:, :2], different[:, 2, None, None], sphere)
    image, plane = image[number], plane[number]
    if decibels is not None:
        sigma = sigma_from_decibels(image, like.new_tensor(decibels)[:, None, None, None], (1, 2, 3))
        image = add_rician_noise(image, sigma, torch.Generator(bench.device).manual_seed(seed))
    return Scenes(image, plane[:, None], wanted[:, 2], torch.ones_like(wanted[:, 2]))


def _without_noise(
    bench: Bench, bottles: Bottles, centres: Tensor, concentration: Tensor, sphere: AirSphere | None
) -> tuple[Tensor, Tensor]:
    """Images ``[m, 2, X, Z]`` and concentrations in the plane ``[m, X, Z]`` of m different phantoms.

    Args:
        bench: as for :func:`phantoms`.
        bottles: their sizes.
        centres: ``[m, 2]`` [mm].
        concentration: ``[m, 1, 1]``.
        sphere: as for :func:`phantoms`.
    """
    side, steps, scale = bench.side, bench.pixel_size, bench.pick(1.0, QUICK_SCALE)
    places, which = centres.unique(dim=0, return_inverse=True)  # the field is linear in the concentration
    shape = disc(side, steps[0], places * scale, bottles.radius * scale)
    field = concentration * _bottle_field(bench, shape, bottles.length * scale)[which]
    plane = concentration * shape[which]
    agar = disc(side, steps[0], torch.zeros_like(centres[:1]), bottles.container * scale)
    if sphere is not None:
        place = centres.new_tensor([sphere.centre]) * scale
        agar = agar * (1.0 - disc(side, steps[0], place, sphere.radius * scale))
        field = field + _sphere_field(bench, sphere, scale)
    return view_line_image(agar.expand_as(plane), plane, field, steps, bench.sequence), plane


def disc(side: int, step: float, centres: Tensor, radius: float) -> Tensor:
    """Fraction of each pixel that lies in a disc.

    Args:
        side: pixels along both sides.
        step: of the pixels [mm].
        centres: (x, z) from the middle of the image ``[n, 2]`` [mm].
        radius: [mm].

    Returns:
        ``[n, side, side]``.
    """
    width = side * step
    places = centres[:, None] / width + 0.5
    return disc_fractions(places, torch.full_like(places[..., 0], radius / width), (side, side))[:, 0]


def bottle_planes(bench: Bench, bottles: Bottles) -> Tensor:
    """Folded planes ``[n, H + 1, X, Z]`` of phantoms at 1 ug/mm^3, see :func:`physics.viewline.folded_plane_field`."""
    scale = bench.pick(1.0, QUICK_SCALE)
    centres = torch.tensor(bottles.centres, dtype=torch.float32, device=bench.device) * scale
    return _planes(
        bench, disc(bench.side, bench.pixel_size[0], centres, bottles.radius * scale), bottles.length * scale
    )


def _planes(bench: Bench, shape: Tensor, length: float) -> Tensor:
    """Bodies with the cross-sections ``[n, X, Z]``, in planes that are as far apart as pixels."""
    step = bench.pixel_size[0]
    # How much of the planes at the distances 0, 1, ... the body fills: those of both sides add up, the last in part.
    count = max(1, math.ceil(length / 2 / step + 0.5))
    edges = torch.arange(count, device=shape.device) * step - step / 2
    filled = ((length / 2 - edges) / step).clamp(0.0, 1.0) * 2.0
    filled[0] /= 2.0
    return filled[:, None, None] * shape[:, None]


def _bottle_field(bench: Bench, shape: Tensor, length: float) -> Tensor:
    """Field [uT] of bottles at 1 ug/mm^3 with the cross-sections ``[n, X, Z]``."""
    dx, dz = bench.pixel_size
    return folded_plane_field(_planes(bench, shape, length), (dx, dx, dz), bench.mass_magnetisation)


def _sphere_field(bench: Bench, sphere: AirSphere, scale: float) -> Tensor:
    """Field of the sphere in the imaging plane ``[X, Z]`` [uT]."""
    side = bench.side
    x, z = ((torch.arange(side, device=bench.device) - (side - 1) / 2) * step for step in bench.pixel_size)
    rows, columns = torch.meshgrid(x, z, indexing="ij")
    points = torch.stack([rows, torch.zeros_like(rows), columns], -1)
    place = (sphere.centre[0] * scale, 0.0, sphere.centre[1] * scale)
    parts_per_million = sphere_field(points, sphere.radius * scale, centre=place, susceptibility=sphere.susceptibility)
    return parts_per_million * B0_TESLA  # 1e-6 of 1 T is 1 uT
