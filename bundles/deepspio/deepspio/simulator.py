"""Simulated View Line images of iron particles in anatomy (paper, section 3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from physics.noise import add_rician_noise, sigma_from_decibels
from physics.phantoms import Particles, draw_particles, empty, folded_planes
from physics.viewline import ViewLineSequence, folded_plane_field, view_line_image

from .anatomy import Drawn, ProtonDensity

PIXEL_MM = 50.0 / 256.0
CONCENTRATION = (0.22, 17.5)  # of the training [ug/mm^3]
PAPER_FIGURES = {"metaball": 0.5, "torus": 0.5}
PADDING = 1.25  # of the field's grid: beyond 0.75 sides of distance the field of such small bodies is below 1e-4
ATTEMPTS = 100


@dataclass
class Draw:
    """Everything random about a batch of n images.

    Attributes:
        particles: the figures of each scene.
        density: the anatomy of each scene.
        scene: number ``[n]`` of the scene of each image.
        flip: whether its particles are mirrored along x and z ``[n, 2]``: the dipole field is even along both.
        density_flip: the same for its anatomy.
        concentration: of one figure ``[n]`` [ug/mm^3]; where figures overlap it adds up.
        decibels: signal-to-noise ratio ``[n]`` [dB], infinite for no noise.
        place: random numbers ``[n, 3]`` that choose where a crop lies.
        seed: of the noise.
    """

    particles: Particles
    density: Drawn
    scene: Tensor
    flip: Tensor
    density_flip: Tensor
    concentration: Tensor
    decibels: Tensor
    place: Tensor
    seed: int


@dataclass
class ViewLineSimulator:
    """Draws and simulates batches of View Line images with the concentration in their plane.

    A geometry costs the most, and its field is linear in the concentration: each serves ``reuse`` images with other
    concentrations, mirrored at random, in an anatomy that is mirrored by itself.

    Attributes:
        device: where the simulation runs.
        size: pixels of a side.
        crop: pixels of a side of the windows around particles that are given, None for whole images.
        pixel_size: [mm], also the distance of the planes.
        sequence: the View Line sequence.
        mass_magnetisation: of the particles [A m^2/kg].
        concentration: lowest and highest of a figure, uniform [ug/mm^3].
        figures: shares of "metaball", "torus" and "cylinder".
        count: fewest and most figures.
        spread: radius of the disc in which the figures' middles lie, over the side of the image.
        noise_share: share of noisy images.
        decibels: lowest and highest signal-to-noise ratio of these, uniform [dB].
        reuse: images of each geometry.
        anatomy: arguments of :class:`.anatomy.ProtonDensity`.

    Raises:
        ValueError: where a number is out of its range.
    """

    device: Any = "cpu"
    size: int = 256
    crop: int | None = None
    pixel_size: float = PIXEL_MM
    sequence: ViewLineSequence = field(default_factory=ViewLineSequence)
    mass_magnetisation: float = 93.0
    concentration: Sequence[float] = CONCENTRATION
    figures: Mapping[str, float] = field(default_factory=lambda: dict(PAPER_FIGURES))
    count: Sequence[int] = (1, 5)
    spread: float = 0.3
    noise_share: float = 0.0
    decibels: Sequence[float] = (5.0, 40.0)
    reuse: int = 8
    anatomy: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0 < self.concentration[0] <= self.concentration[1]:
            raise ValueError(f"concentration must be 0 < low <= high [ug/mm^3], got {tuple(self.concentration)}")
        if not 0 <= self.noise_share <= 1 or self.decibels[0] > self.decibels[1]:
            raise ValueError(
                f"noise_share must be in [0, 1] and decibels low <= high, got {self.noise_share}, {self.decibels}"
            )
        if self.reuse < 1 or (self.crop is not None and not 0 < self.crop <= self.size):
            raise ValueError(f"reuse must be >= 1 and 0 < crop <= size, got {self.reuse}, {self.crop}, {self.size}")
        self.device = torch.device(self.device)
        self.density = ProtonDensity(size=self.size, device=self.device, **self.anatomy)

    def draw(self, generator: torch.Generator, n: int, split: str = "train") -> Draw:
        """Draw n images.

        Args:
            generator: random stream on the CPU.
            n: number of images.
            split: ``"train"``, ``"val"`` or ``"test"``.

        Returns:
            The parameters, on the CPU.

        Raises:
            RuntimeError: where no figures are found that meet the plane.
        """
        scenes = -(-n // self.reuse)
        low, high = (float(c) for c in self.concentration)
        quiet, loud = (float(d) for d in self.decibels)

        def uniform(*shape: int) -> Tensor:
            return torch.rand(shape, generator=generator)

        particles = self._draw_particles(generator, scenes)
        noisy = uniform(n) < self.noise_share
        return Draw(
            particles=particles,
            density=self.density.draw(generator, scenes, split),
            scene=torch.arange(n) % scenes,
            flip=uniform(n, 2) < 0.5,
            density_flip=uniform(n, 2) < 0.5,
            concentration=low + (high - low) * uniform(n),
            decibels=torch.where(noisy, quiet + (loud - quiet) * uniform(n), torch.inf),
            place=uniform(n, 3),
            seed=int(torch.randint(2**62, (1,), generator=generator)),
        )

    def _draw_particles(self, generator: torch.Generator, scenes: int) -> Particles:
        """Figures that meet the plane in every scene: a relative error of nothing does not exist."""
        for _ in range(ATTEMPTS):
            particles = draw_particles(
                generator,
                scenes,
                count=(int(self.count[0]), int(self.count[1])),
                shares=self.figures,
                spread=self.spread * self.size,
            )
            if not bool(empty(particles, (self.size, self.size)).any()):
                return particles
        raise RuntimeError(f"no figures in the plane after {ATTEMPTS} draws: check figures, count and spread")

    def simulate(self, drawn: Draw) -> dict[str, Any]:
        """Simulate the batch that belongs to a draw.

        Args:
            drawn: parameters of n images.

        Returns:
            ``image`` ``[n, 2, X, Z]``, even and odd lines, magnitude in the unit of the proton density; ``label`` with
            ``parameters``, the concentration ``[n, 1, X, Z]`` [ug/mm^3], ``mask`` ``[n, 1, X, Z]``, where it is not 0,
            and ``density`` ``[n, 1, X, Z]``, the proton density; an empty ``acquisition``.
        """
        planes = folded_planes(drawn.particles.to(self.device), (self.size, self.size))
        unit = folded_plane_field(planes, (self.pixel_size,) * 3, self.mass_magnetisation, padding=PADDING)
        bodies = _mirrored(planes[:, 0], drawn.scene, drawn.flip)
        fields = _mirrored(unit, drawn.scene, drawn.flip)
        density = _mirrored(self.density.images(drawn.density), drawn.scene, drawn.density_flip)
        if self.crop is not None:
            rows, columns = _windows(bodies, drawn.place.to(bodies), self.crop)
            # What lies along z is imaged by itself: places x outside of the window need not be.
            bodies, fields, density = (part.take_along_dim(rows[:, :, None], 1) for part in (bodies, fields, density))
        scale = drawn.concentration.to(bodies)[:, None, None]
        concentration = scale * bodies
        step = (self.pixel_size, self.pixel_size)
        image = view_line_image(density, concentration, scale * fields, step, self.sequence)
        if self.crop is not None:
            image = image.take_along_dim(columns[:, None, None], 3)
            concentration, density = (part.take_along_dim(columns[:, None], 2) for part in (concentration, density))
        image = self._noisy(image, drawn)
        label = {
            "parameters": concentration[:, None],
            "mask": concentration[:, None] > 0,
            "density": density[:, None],
        }
        return {"image": image, "label": label, "acquisition": {}}

    def _noisy(self, image: Tensor, drawn: Draw) -> Tensor:
        """Magnitudes after complex noise, in the images that have any."""
        noisy = drawn.decibels.isfinite().nonzero()[:, 0].to(self.device)
        if not len(noisy):
            return image
        generator = torch.Generator(self.device).manual_seed(drawn.seed)
        decibels = drawn.decibels.to(image)[noisy][:, None, None, None]
        sigma = sigma_from_decibels(image[noisy], decibels, axes=(1, 2, 3))
        image[noisy] = add_rician_noise(image[noisy], sigma, generator)
        return image


def _mirrored(maps: Tensor, scene: Tensor, flip: Tensor) -> Tensor:
    """Maps ``[n, X, Z]`` of the scenes ``[G, X, Z]``, mirrored along x and z where ``flip`` says so."""
    chosen = maps[scene.to(maps.device)]
    for axis, turned in enumerate(flip.to(maps.device).unbind(1), start=1):
        chosen = torch.where(turned[:, None, None], chosen.flip(axis), chosen)
    return chosen


def _windows(bodies: Tensor, place: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Pixels along x and z ``[n, side]`` of a window of each image that holds particles.

    An occupied pixel is chosen, and the window lies around it so that the pixel is in its inner half.
    """
    size = bodies.shape[-1]
    occupied = bodies.flatten(1) > 0
    rank = (place[:, :1] * occupied.sum(1, keepdim=True)).floor()
    pixel = (occupied.cumsum(1) > rank).to(torch.uint8).argmax(1)
    corner = torch.stack([pixel // size, pixel % size], 1) - side // 4 - (place[:, 1:] * (side / 2)).long()
    first = corner.clamp(0, size - side)
    inside = torch.arange(side, device=bodies.device)
    return first[:, :1] + inside, first[:, 1:] + inside
