"""Ellipsoids and tubes in space: their volume fractions, and painting them into maps.

Positions are in mm, from the middle of the grid along its axes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Ellipsoids", "Tubes", "ellipsoid_fractions", "paint", "tube_fractions"]

Box = tuple[slice, slice, slice]
Axes = tuple[Tensor, Tensor, Tensor]
"""Coordinates of a box of voxels, ``[x, 1, 1]``, ``[1, y, 1]`` and ``[1, 1, z]`` [mm]."""


def _combined(weights: Tensor | None, parts: Sequence[Tensor]) -> Tensor:
    """Weighted sum of three tensors that broadcast; sums of two axes stay planes until the third comes in."""
    x, y, z = parts if weights is None else [w * part for w, part in zip(weights, parts, strict=True)]
    return x + y + z


def _length(parts: Sequence[Tensor]) -> Tensor:
    """Length of a vector of three components."""
    x, y, z = parts
    return (x * x + y * y + z * z).sqrt()


@dataclass(frozen=True)
class Ellipsoids:
    r"""The points :math:`\{p : |S (p - c)| \le 1\}`, with the shape S and the centre c.

    Attributes:
        centres: ``[n, count, 3]`` [mm].
        shapes: ``[n, count, 3, 3]`` [1/mm]; for radii r along the columns of a rotation R it is diag(1/r) R^T.
    """

    centres: Tensor
    shapes: Tensor

    @classmethod
    def from_radii(cls, centres: Tensor, radii: Tensor, rotations: Tensor | None = None) -> Ellipsoids:
        """Ellipsoids with radii ``[n, count, 3]`` [mm] along the columns of ``rotations`` ``[n, count, 3, 3]``."""
        shapes = torch.diag_embed(1.0 / radii)
        return cls(centres, shapes if rotations is None else shapes @ rotations.mT)

    def __len__(self) -> int:
        return int(self.centres.shape[1])

    def extent(self) -> tuple[Tensor, Tensor]:
        """Lowest and highest coordinate of each body ``[n, count, 3]`` [mm]."""
        half = torch.linalg.inv(self.shapes).norm(dim=-1)
        return self.centres - half, self.centres + half

    def distance(self, image: int, body: int, axes: Axes) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Distance [mm] from the surface, negative inside, and its gradient at the points of a box.

        To first order in the distance, and exact on the surface.
        """
        shape = self.shapes[image, body]
        offset = [axis - centre for axis, centre in zip(axes, self.centres[image, body], strict=True)]
        # With Q = shape^T shape the level is sqrt(o Q o) and its gradient Q o / level.
        pull = [_combined(row, offset) for row in (shape.mT @ shape).unbind(0)]
        level = _combined(None, [p * o for p, o in zip(pull, offset, strict=True)]).clamp_min(1e-12).sqrt()
        steepness = _length(pull).clamp_min(1e-12)  # times the level
        # (level - 1) / |gradient|
        return (level - 1.0) * level / steepness, tuple(p / steepness for p in pull)

    def curvature(self, image: int, body: int) -> Tensor:
        """Mean of the reciprocal radii, twice for a sphere of that radius [1/mm]: the sum of principal curvatures."""
        return 2.0 * self.shapes[image, body].norm() / 3.0**0.5


@dataclass(frozen=True)
class Tubes:
    r"""Straight tubes with round ends; chains of them make bent ones.

    .. math:: \left\{p : \min_{0 \le t \le 1} |p - a - t (b - a)| \le r\right\}

    from the start a to the end b, with the radius r.

    Attributes:
        starts, ends: ``[n, count, 3]`` [mm].
        radii: ``[n, count]`` [mm].
    """

    starts: Tensor
    ends: Tensor
    radii: Tensor

    def __len__(self) -> int:
        return int(self.radii.shape[1])

    def extent(self) -> tuple[Tensor, Tensor]:
        """Lowest and highest coordinate of each body ``[n, count, 3]`` [mm]."""
        radii = self.radii.unsqueeze(-1)
        return torch.minimum(self.starts, self.ends) - radii, torch.maximum(self.starts, self.ends) + radii

    def distance(self, image: int, body: int, axes: Axes) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Distance [mm] from the surface, negative inside, and its gradient at the points of a box."""
        start, end = self.starts[image, body], self.ends[image, body]
        line = end - start
        offset = [axis - begin for axis, begin in zip(axes, start, strict=True)]
        along = (_combined(line, offset) / line.square().sum().clamp_min(1e-12)).clamp(0.0, 1.0)
        away = [o - component * along for o, component in zip(offset, line, strict=True)]
        length = _length(away)
        return length - self.radii[image, body], tuple(part / length.clamp_min(1e-6) for part in away)

    def curvature(self, image: int, body: int) -> Tensor:
        """Sum of the principal curvatures of the side [1/mm]."""
        return 1.0 / self.radii[image, body]


def _boxes(
    bodies: Ellipsoids | Tubes, size: Sequence[int], voxel_size: Sequence[float], margin: float
) -> Iterator[tuple[int, int, Box]]:
    """Image, body and the part of the grid around it, for each body that meets the grid."""
    low, high = bodies.extent()
    step = low.new_tensor(list(voxel_size))
    middle = (low.new_tensor([float(s) for s in size]) - 1.0) / 2.0
    first = ((low - margin) / step + middle).floor().long().cpu()
    last = ((high + margin) / step + middle).ceil().long().cpu() + 1
    first, last = first.clamp_min(0), torch.minimum(last, torch.tensor(list(size)))
    for image in range(first.shape[0]):
        for body in range(first.shape[1]):
            begin, end = first[image, body].tolist(), last[image, body].tolist()
            if all(b < e for b, e in zip(begin, end, strict=True)):
                yield image, body, (slice(begin[0], end[0]), slice(begin[1], end[1]), slice(begin[2], end[2]))


def _axes(box: Box, size: Sequence[int], voxel_size: Sequence[float], like: Tensor) -> Axes:
    """Positions of the voxels of a box."""
    x, y, z = (
        (torch.arange(part.start, part.stop, device=like.device, dtype=like.dtype) - (count - 1) / 2) * step
        for part, count, step in zip(box, size, voxel_size, strict=True)
    )
    return x[:, None, None], y[None, :, None], z[None, None, :]


def _fraction(bodies: Ellipsoids | Tubes, image: int, body: int, axes: Axes, voxel: Tensor, rough: Tensor) -> Tensor:
    """Volume fraction of a body in the voxels of a box."""
    distance, normal = bodies.distance(image, body, axes)
    # A ramp with the second moment of the voxel's own profile along the normal: its width is one voxel.
    width = _length([step * part for step, part in zip(voxel, normal, strict=True)]).clamp_min(1e-6)
    curvature, scale = bodies.curvature(image, body), voxel.new_ones(())
    if isinstance(bodies, Tubes):
        # Thinner than a voxel: drawn one voxel wide, and so faint that the area of the section is kept.
        half = 0.5 * voxel.prod() ** (1.0 / 3.0)
        radius = bodies.radii[image, body]
        distance = distance - (half - radius).clamp_min(0.0)
        curvature, scale = curvature.clamp_max(1.0 / half), (radius / half).clamp_max(1.0).square()
    # A ramp across a convex surface adds volume: moving it inwards by w^2 k / 24 takes it away again.
    ramp = distance + rough + width.square() * curvature / 24.0
    return (0.5 - ramp / width).clamp(0.0, 1.0) * scale


def paint(
    canvas: Tensor,
    bodies: Ellipsoids | Tubes,
    values: Tensor,
    voxel_size: Sequence[float] = (1.0, 1.0, 1.0),
    roughness: Tensor | None = None,
    labels: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    r"""Paint bodies into maps, in place: the later ones cover the earlier ones by their volume fraction.

    .. math:: m \leftarrow m + f (v - m), \qquad
        f = \operatorname{clamp}_{[0, 1]} \left(\frac{1}{2} - \frac{\delta + w^2 \kappa / 24}{w}\right)

    with the distance delta [mm] from the surface, its sum of curvatures kappa [1/mm] and w the width of a voxel along
    the normal [mm].

    Args:
        canvas: maps ``[n, C, X, Y, Z]``.
        bodies: ``count`` bodies in each of the n images.
        values: value of each body in each map ``[n, count, C]``.
        voxel_size: (dx, dy, dz) [mm].
        roughness: ``[n, 1, X, Y, Z]`` distance [mm] by which the surfaces are moved inwards; None for none.
        labels: label maps ``[n, X, Y, Z]`` and the label ``[count]`` of each body, set where a body fills more than
            half of a voxel; None for none.

    Returns:
        The canvas.

    Raises:
        ValueError: where the shapes do not fit.
    """
    if canvas.ndim != 5:
        raise ValueError(f"canvas must be [n, C, X, Y, Z], got {list(canvas.shape)}")
    expected = [canvas.shape[0], len(bodies), canvas.shape[1]]
    if list(values.shape) != expected:
        raise ValueError(f"values must be [n, count, C] = {expected}, got {list(values.shape)}")
    size, voxel = canvas.shape[2:], canvas.new_tensor(list(voxel_size))
    values = values.to(canvas)[..., None, None, None]
    margin = float(voxel.norm()) / 2 + (0.0 if roughness is None else float(roughness.abs().max()))
    for image, body, box in _boxes(bodies, size, voxel_size, margin):
        axes = _axes(box, size, voxel_size, canvas)
        rough = canvas.new_zeros(()) if roughness is None else roughness[(image, 0, *box)]
        fraction = _fraction(bodies, image, body, axes, voxel, rough)
        part = canvas[(image, slice(None), *box)]
        part += fraction * (values[image, body] - part)
        if labels is not None:
            labels[0][(image, *box)][fraction > 0.5] = int(labels[1][body])
    return canvas


def _fractions(bodies: Ellipsoids | Tubes, size: Sequence[int], voxel_size: Sequence[float], like: Tensor) -> Tensor:
    """Painted with a map for each body: what is left of each."""
    n, count = like.shape[:2]
    canvas = torch.zeros((n, count, *size), device=like.device, dtype=like.dtype)
    values = torch.eye(count, device=like.device, dtype=like.dtype).expand(n, count, count)
    return paint(canvas, bodies, values, voxel_size)


def ellipsoid_fractions(
    ellipsoids: Ellipsoids, size: Sequence[int], voxel_size: Sequence[float] = (1.0, 1.0, 1.0)
) -> Tensor:
    r"""Volume fraction of each ellipsoid in each voxel; later ones cover earlier ones.

    .. math:: F_j = f_j \prod_{l > j} (1 - f_l)

    with f of :func:`paint`.

    Args:
        ellipsoids: ``count`` bodies in each of n images.
        size: (X, Y, Z) [voxels].
        voxel_size: (dx, dy, dz) [mm].

    Returns:
        Fractions ``[n, count, X, Y, Z]`` in [0, 1] with sum at most 1; the edge is linear over one voxel.
    """
    return _fractions(ellipsoids, size, voxel_size, ellipsoids.centres)


def tube_fractions(tubes: Tubes, size: Sequence[int], voxel_size: Sequence[float] = (1.0, 1.0, 1.0)) -> Tensor:
    r"""Volume fraction of each tube in each voxel, as :func:`ellipsoid_fractions`; also of tubes thinner than a voxel.

    .. math:: F_j = f_j \prod_{l > j} (1 - f_l)
    """
    return _fractions(tubes, size, voxel_size, tubes.starts)
