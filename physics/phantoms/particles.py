"""Iron particles as metaballs, tori and cylinders on a voxel grid, drawn apart from being rasterised.

All lengths are in voxels, as in the paper (its l is in 1/voxel^2). Positions are (x, y, z) from the middle of the
image: x along phase encoding, y across the imaged plane y = 0, z along B0 and readout. The voxel (i, j) of a plane
[X, Z] lies at (i - (X - 1) / 2, j - (Z - 1) / 2); planes lie at whole y.

Source: della Maggiora et al. 2020, section 3.2, equations 2 and 3.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Self

import torch
from torch import Tensor

__all__ = [
    "Cylinders",
    "Figures",
    "Metaballs",
    "Particles",
    "Tori",
    "central_plane",
    "draw_particles",
    "empty",
    "folded_planes",
    "volume",
]


def _columns(values: Tensor, like: Tensor) -> Tensor:
    """One number of each figure ``[F]``, shaped to meet positions ``[F, ...]``."""
    return values.reshape(-1, *[1] * (like.ndim - 1))


class Figures:
    """What the kinds of figures have in common: frozen dataclasses whose tensors have the figure as first axis."""

    def _map(self, change: Callable[[Tensor], Tensor]) -> Self:
        return type(self)(*(change(getattr(self, item.name)) for item in fields(self)))  # type: ignore[arg-type]

    def __len__(self) -> int:
        """Number of figures."""
        return int(getattr(self, fields(self)[0].name).shape[0])  # type: ignore[arg-type]

    def select(self, which: Tensor) -> Self:
        """The figures of these numbers ``[M]`` (or of a mask ``[F]``), in that order."""
        return self._map(lambda values: values[which])

    def to(self, device: torch.device | str) -> Self:
        """The same figures on another device."""
        return self._map(lambda values: values.to(device))

    @property
    def middle(self) -> Tensor:
        """Middle ``[F, 3]`` of a box around each figure."""
        raise NotImplementedError

    @property
    def extent(self) -> Tensor:
        """Half edges ``[F, 3]`` of that box: no point of the figure is farther from the middle along an axis."""
        raise NotImplementedError

    def inside(self, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        """Whether positions lie in the figures.

        Args:
            x: positions ``[F, ...]`` that broadcast with y and z and have as many axes; a first axis of length 1 puts
                the same positions to every figure.
            y: see x.
            z: see x.

        Returns:
            Boolean ``[F, ...]``.
        """
        raise NotImplementedError

    def shadow(self, x: Tensor, y: Tensor) -> Tensor:
        """Whether the line along z through (x, y) may meet the figures; arguments and result as `inside`."""
        raise NotImplementedError


@dataclass(frozen=True)
class Metaballs(Figures):
    r"""Where :math:`\sum_i 1 / |x - x_i|^2 \ge l` (equation 2).

    Attributes:
        centres: ``x_i`` of the balls ``[F, N, 3]``.
        valid: boolean ``[F, N]``, which balls exist; at least one of each figure.
        threshold: l ``[F]`` [1/voxel^2]; a single ball has the radius ``1 / sqrt(l)``.
    """

    centres: Tensor
    valid: Tensor
    threshold: Tensor

    @property
    def middle(self) -> Tensor:
        """Middle ``[F, 3]`` between the outermost balls."""
        low, high = self._bounds()
        return (low + high) / 2

    @property
    def extent(self) -> Tensor:
        """Half edges ``[F, 3]``: N balls in one place have the radius ``sqrt(N / l)``, apart they reach less far."""
        low, high = self._bounds()
        return (high - low) / 2 + (self.valid.sum(1) / self.threshold).sqrt()[:, None]

    def _bounds(self) -> tuple[Tensor, Tensor]:
        valid = self.valid[..., None]
        return self.centres.where(valid, math.inf).amin(1), self.centres.where(valid, -math.inf).amax(1)

    def inside(self, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        """Equation 2; see `Figures.inside`."""
        return self._reaches(x, y, z)

    def shadow(self, x: Tensor, y: Tensor) -> Tensor:
        """All balls moved to the height z of the position, where they reach farthest; see `Figures.shadow`."""
        return self._reaches(x, y, None)

    def _reaches(self, x: Tensor, y: Tensor, z: Tensor | None) -> Tensor:
        total: Tensor | float = 0.0
        for ball in range(self.centres.shape[1]):
            place = [_columns(self.centres[:, ball, axis], x) for axis in range(3)]
            # a ball that does not exist is infinitely far away; a position at a centre gives infinity, which is inside
            absent = _columns(torch.zeros_like(self.threshold).where(self.valid[:, ball], math.inf), x)
            squared = (x - place[0]).square() + (y - place[1]).square() + absent
            total = total + (squared if z is None else squared + (z - place[2]).square()).reciprocal()
        return torch.as_tensor(total >= _columns(self.threshold, x))


@dataclass(frozen=True)
class Tori(Figures):
    r"""Where :math:`(\sqrt{(x - x_0)^2 + (y - y_0)^2} - R)^2 + (z - z_0)^2 \le r^2` (equation 3), the axis along B0.

    Attributes:
        centres: ``[F, 3]``.
        radius: r of the tube ``[F]``.
        ring_radius: R, from the axis to the middle of the tube ``[F]``.
    """

    centres: Tensor
    radius: Tensor
    ring_radius: Tensor

    @property
    def middle(self) -> Tensor:
        """The centres ``[F, 3]``."""
        return self.centres

    @property
    def extent(self) -> Tensor:
        """R + r across the axis, r along it: ``[F, 3]``."""
        outer = self.ring_radius + self.radius
        return torch.stack([outer, outer, self.radius], 1)

    def inside(self, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        """Equation 3; see `Figures.inside`."""
        height = z - _columns(self.centres[:, 2], x)
        return self._from_tube(x, y) + height.square() <= _columns(self.radius, x).square()

    def shadow(self, x: Tensor, y: Tensor) -> Tensor:
        """The ring seen along its axis; see `Figures.shadow`."""
        return self._from_tube(x, y) <= _columns(self.radius, x).square()

    def _from_tube(self, x: Tensor, y: Tensor) -> Tensor:
        """Squared distance from the middle of the tube, in the plane of the ring."""
        off_x, off_y = x - _columns(self.centres[:, 0], x), y - _columns(self.centres[:, 1], x)
        return (torch.hypot(off_x, off_y) - _columns(self.ring_radius, x)).square()


@dataclass(frozen=True)
class Cylinders(Figures):
    r"""Where :math:`(x - x_0)^2 + (z - z_0)^2 \le r^2` and :math:`|y - y_0| \le h`: the axis is along y, across B0.

    Attributes:
        centres: ``[F, 3]``.
        radius: r ``[F]``.
        half_length: h ``[F]``.
    """

    centres: Tensor
    radius: Tensor
    half_length: Tensor

    @property
    def middle(self) -> Tensor:
        """The centres ``[F, 3]``."""
        return self.centres

    @property
    def extent(self) -> Tensor:
        """r across the axis, h along it: ``[F, 3]``."""
        return torch.stack([self.radius, self.half_length, self.radius], 1)

    def inside(self, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        """See `Figures.inside`."""
        off_x, off_z = x - _columns(self.centres[:, 0], x), z - _columns(self.centres[:, 2], x)
        return (off_x.square() + off_z.square() <= _columns(self.radius, x).square()) & self._beside(y)

    def shadow(self, x: Tensor, y: Tensor) -> Tensor:
        """The rectangle seen along z; see `Figures.shadow`."""
        return ((x - _columns(self.centres[:, 0], x)).abs() <= _columns(self.radius, x)) & self._beside(y)

    def _beside(self, y: Tensor) -> Tensor:
        """Whether y lies between the two ends."""
        return (y - _columns(self.centres[:, 1], y)).abs() <= _columns(self.half_length, y)


@dataclass(frozen=True)
class Particles:
    """Figures of n scenes.

    Attributes:
        count: n.
        figures: figures of all scenes, one entry for each kind.
        scenes: for each kind the number of the scene ``[F]`` (0 to n - 1) of each figure.
    """

    count: int
    figures: tuple[Figures, ...]
    scenes: tuple[Tensor, ...]

    def __len__(self) -> int:
        """Number of scenes."""
        return self.count

    def to(self, device: torch.device | str) -> Particles:
        """The same particles on another device."""
        return Particles(
            self.count, tuple(f.to(device) for f in self.figures), tuple(s.to(device) for s in self.scenes)
        )


def draw_particles(
    generator: torch.Generator,
    n: int,
    *,
    count: tuple[int, int] = (1, 5),
    shares: Mapping[str, float] | None = None,
    spread: float = 80.0,
    depth: float = 3.0,
    threshold: tuple[float, float] = (0.01, 0.05),
    balls: tuple[int, int] = (1, 3),
    ball_offset: float = 5.0,
    radius: tuple[float, float] = (2.0, 4.0),
    ring_radius: tuple[float, float] = (5.0, 10.0),
    cylinder_radius: tuple[float, float] = (3.0, 13.0),
    half_length: tuple[float, float] = (5.0, 30.0),
) -> Particles:
    """Draw the figures of n scenes; every range is uniform, with both ends.

    Args:
        generator: random stream; its device is that of the result.
        n: number of scenes.
        count: fewest and most figures in a scene.
        shares: of "metaball", "torus" and "cylinder" among the figures, by default one half, one half and none; they
            are divided by their sum.
        spread: radius of the disc around the middle of the plane in which the middles of the figures lie.
        depth: largest distance of a figure's middle from the plane y = 0. Below the smallest ``1 / sqrt(l)``, R + r
            and half length, every figure meets the plane.
        threshold: l of the metaballs [1/voxel^2].
        balls: fewest and most balls of a metaball.
        ball_offset: largest distance of a ball from the figure's middle along each axis; the first ball has its y.
        radius: r of the tori.
        ring_radius: R of the tori.
        cylinder_radius: of the cylinders.
        half_length: of the cylinders.

    Returns:
        The particles: metaballs, tori, cylinders.

    Raises:
        ValueError: where a range is not ascending, a length not positive, or the shares are unusable.
    """
    kinds = ("metaball", "torus", "cylinder")
    shares = {"metaball": 0.5, "torus": 0.5} if shares is None else shares
    weights = torch.tensor([float(shares.get(kind, 0.0)) for kind in kinds])
    if set(shares) - set(kinds) or not bool((weights >= 0).all()) or not 0 < float(weights.sum()) < math.inf:
        raise ValueError(f"shares must be numbers >= 0 of {kinds} with a positive sum, got {dict(shares)}")
    for name, bounds in {
        "count": count, "threshold": threshold, "balls": balls, "radius": radius, "ring_radius": ring_radius,
        "cylinder_radius": cylinder_radius, "half_length": half_length,
    }.items():  # fmt: skip
        if not 0 < bounds[0] <= bounds[1] < math.inf:
            raise ValueError(f"{name} must be 0 < low <= high, got {bounds}")
    for name, length in {"spread": spread, "depth": depth, "ball_offset": ball_offset}.items():
        if not 0 <= length < math.inf:
            raise ValueError(f"{name} must be a length >= 0 [voxels], got {length}")
    device, slots = generator.device, n * count[1]

    def uniform(bounds: tuple[float, float], *shape: int) -> Tensor:
        return bounds[0] + (bounds[1] - bounds[0]) * torch.rand((slots, *shape), generator=generator, device=device)

    present = torch.randint(count[0], count[1] + 1, (n, 1), generator=generator, device=device)
    exists = (torch.arange(count[1], device=device) < present).flatten()
    kind = torch.multinomial(weights.to(device).expand(max(slots, 1), -1), 1, generator=generator)[:slots, 0]
    away, angle = spread * uniform((0.0, 1.0)).sqrt(), uniform((0.0, 2 * math.pi))
    middle = torch.stack([away * angle.cos(), uniform((-depth, depth)), away * angle.sin()], 1)
    offset = uniform((-ball_offset, ball_offset), balls[1], 3)
    offset[:, 0, 1] = 0.0
    number = torch.randint(balls[0], balls[1] + 1, (slots, 1), generator=generator, device=device)
    drawn: tuple[Figures, ...] = (
        Metaballs(middle[:, None] + offset, torch.arange(balls[1], device=device) < number, uniform(threshold)),
        Tori(middle, uniform(radius), uniform(ring_radius)),
        Cylinders(middle, uniform(cylinder_radius), uniform(half_length)),
    )
    chosen = [(exists & (kind == k)).nonzero()[:, 0] for k in range(len(kinds))]
    return Particles(
        n,
        tuple(figures.select(which) for figures, which in zip(drawn, chosen, strict=True)),
        tuple(which.div(count[1], rounding_mode="floor") for which in chosen),
    )


def folded_planes(particles: Particles, size: Sequence[int], half_planes: int | None = None) -> Tensor:
    """Number of figures in each voxel, :math:`n(y) + n(-y)`: what the field of the plane y = 0 depends on.

    Args:
        particles: n scenes; what lies outside of the grid is cut off.
        size: (X, Z).
        half_planes: H, the farthest plane; None for the farthest that any of the figures may reach.

    Returns:
        ``[n, H + 1, X, Z]`` float32: the plane y = 0, then the sums of the planes y and -y.

    Raises:
        ValueError: where a size is not positive or half_planes is negative.
    """
    return _rasterise(particles, size, half_planes, folded=True)


def volume(particles: Particles, size: Sequence[int], half_planes: int | None = None) -> Tensor:
    """Number of figures in each voxel of the planes y = -H to H: ``[n, X, 2 H + 1, Z]``; see `folded_planes`."""
    return _rasterise(particles, size, half_planes, folded=False).movedim(1, 2)


def central_plane(particles: Particles, size: Sequence[int]) -> Tensor:
    """Number of figures in each pixel of the plane y = 0: ``[n, X, Z]``; see `folded_planes`."""
    return folded_planes(particles, size, 0)[:, 0]


def empty(particles: Particles, size: Sequence[int]) -> Tensor:
    """Which scenes have nothing in the plane y = 0 of (X, Z) voxels: boolean ``[n]``."""
    return ~central_plane(particles, size).flatten(1).any(1)


def _farthest_plane(particles: Particles) -> int:
    """Largest |y| in the boxes of all figures, as a whole number not below it."""
    reach = [f.middle[:, 1].abs() + f.extent[:, 1] for f in particles.figures if len(f)]
    return math.ceil(float(torch.cat(reach).max())) if reach else 0


def _rasterise(particles: Particles, size: Sequence[int], half_planes: int | None, *, folded: bool) -> Tensor:
    half_planes = _farthest_plane(particles) if half_planes is None else half_planes
    if len(size) != 2 or min(size) < 1 or half_planes < 0:
        raise ValueError(f"size must be two numbers > 0 and half_planes >= 0, got {tuple(size)} and {half_planes}")
    width, length = int(size[0]), int(size[1])
    planes = half_planes + 1 if folded else 2 * half_planes + 1
    device = particles.scenes[0].device if particles.scenes else None
    counts = torch.zeros(particles.count * planes * width * length, device=device)
    for figures, scene in zip(particles.figures, particles.scenes, strict=True):
        if len(figures) == 0:
            continue
        figure, x, y, z = _occupied(figures, (width, half_planes, length))
        plane = y.abs() if folded else y + half_planes
        index = ((scene[figure] * planes + plane) * width + x) * length + z
        counts.index_add_(0, index, torch.ones((), device=device).expand(len(index)))
    return counts.view(particles.count, planes, width, length)


def _occupied(figures: Figures, grid: tuple[int, int, int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Occupied voxels on the grid (X, H, Z): number of the figure, x and z index from 0, y from -H; each ``[M]``.

    A figure is searched in its box, and of the box only the lines along z that its shadow contains: about a fifth of
    the voxels.
    """
    width, half_planes, length = grid
    half = (torch.tensor([width - 1, 0, length - 1], device=figures.middle.device)) / 2
    origin = (figures.middle + half).floor()
    reach = [int(r) + 2 for r in figures.extent.amax(0)]
    x, y, z = (
        origin[:, axis, None] + torch.arange(-reach[axis], reach[axis] + 1, device=origin.device) for axis in range(3)
    )
    shadow = figures.shadow((x - half[0])[:, :, None], y[:, None, :])
    shadow &= ((x >= 0) & (x < width))[:, :, None] & (y.abs() <= half_planes)[:, None, :]
    figure, row, column = shadow.nonzero(as_tuple=True)
    line_x, line_y, line_z = x[figure, row], y[figure, column], z[figure]
    inside = figures.select(figure).inside((line_x - half[0])[:, None], line_y[:, None], line_z - half[2])
    inside &= (line_z >= 0) & (line_z < length)
    line, height = inside.nonzero(as_tuple=True)
    return figure[line], line_x[line].long(), line_y[line].long(), line_z[line, height].long()
