"""Closed-form fields of a sphere, an infinite cylinder and a cuboid of uniform susceptibility.

All fields are relative to B0 and Lorentz-corrected: zero inside a sphere. The susceptibility is so small that the
magnetisation is uniform along B0, so the fields of several bodies add up.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["cuboid_field", "cylinder_field", "shape_factor", "shear_factor", "sphere_field"]


def _unit_vector(vector: Sequence[float] | Tensor, name: str, like: Tensor) -> Tensor:
    values = torch.as_tensor(vector, dtype=like.dtype, device=like.device)
    if values.shape != (3,) or not abs(float(values.norm()) - 1.0) <= 1e-3:
        raise ValueError(f"{name} must have 3 components and unit length, got {values.tolist()}")
    return values / values.norm()


def _offsets(points: Tensor, centre: Sequence[float] | Tensor) -> Tensor:
    if points.ndim == 0 or points.shape[-1] != 3 or not points.is_floating_point():
        raise ValueError(
            f"points must be real positions [..., 3] in mm, got shape {tuple(points.shape)}, {points.dtype}"
        )
    return points - torch.as_tensor(centre, dtype=points.dtype, device=points.device)


def _positive(value: float, name: str) -> float:
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name} must be positive and finite [mm], got {value}")
    return float(value)


def sphere_field(
    points: Tensor,
    radius: float,
    *,
    centre: Sequence[float] | Tensor = (0.0, 0.0, 0.0),
    b0_direction: Sequence[float] | Tensor = (0.0, 0.0, 1.0),
    susceptibility: float = 1.0,
) -> Tensor:
    r"""Field of a sphere.

    .. math:: b = \frac{\chi}{3} \left(\frac{R}{r}\right)^3 (3 \cos^2\theta - 1) \;\text{ outside}, \qquad
        b = 0 \;\text{ inside}

    at the distance r from the centre [mm] and the angle :math:`\theta` from B0.

    Args:
        points: positions ``[..., 3]`` [mm].
        radius: R [mm].
        centre: of the sphere [mm].
        b0_direction: unit vector.
        susceptibility: inside minus outside [ppm].

    Returns:
        Field ``[...]`` [ppm].

    Raises:
        ValueError: for a radius that is not positive, points that are not ``[..., 3]``, b0_direction not a unit vector.

    Source: Jackson, Classical Electrodynamics, section 5.11, with the Lorentz sphere subtracted.
    """
    radius = _positive(radius, "radius")
    offset = _offsets(points, centre)
    along = offset @ _unit_vector(b0_direction, "b0_direction", points)
    squared = offset.square().sum(-1)
    # inside, r is replaced before the division so that the gradient stays finite at the centre
    inside = squared <= radius**2
    squared = torch.where(inside, radius**2, squared)
    outside_field = (radius**2 / squared) ** 1.5 * (3 * along.square() / squared - 1) * (susceptibility / 3)
    return torch.where(inside, torch.zeros_like(outside_field), outside_field)


def cylinder_field(
    points: Tensor,
    radius: float,
    *,
    axis: Sequence[float] | Tensor,
    centre: Sequence[float] | Tensor = (0.0, 0.0, 0.0),
    b0_direction: Sequence[float] | Tensor = (0.0, 0.0, 1.0),
    susceptibility: float = 1.0,
) -> Tensor:
    r"""Field of an infinite cylinder that makes the angle t with B0.

    .. math:: b = \frac{\chi}{6} (3 \cos^2 t - 1) \;\text{ inside}, \qquad
        b = \frac{\chi}{2} \left(\frac{R}{r}\right)^2 \sin^2 t \cos 2\varphi \;\text{ outside}

    where r is the distance from the axis [mm] and :math:`\varphi` the angle around it, from the projection of B0.

    Args:
        points: positions ``[..., 3]`` [mm].
        radius: R [mm].
        axis: unit vector along the cylinder.
        centre: a point on the axis [mm].
        b0_direction: unit vector.
        susceptibility: inside minus outside [ppm].

    Returns:
        Field ``[...]`` [ppm].

    Raises:
        ValueError: for a radius that is not positive, points that are not ``[..., 3]``, a direction of other length.

    Source: Haacke et al., Magnetic Resonance Imaging (1999), chapter 25.
    """
    radius = _positive(radius, "radius")
    offset = _offsets(points, centre)
    along = _unit_vector(axis, "axis", points)
    b0 = _unit_vector(b0_direction, "b0_direction", points)
    cosine = b0 @ along
    across = offset - (offset @ along)[..., None] * along
    squared = across.square().sum(-1)
    inside = squared <= radius**2
    squared = torch.where(inside, radius**2, squared)
    # sin^2 t cos 2p = 2 (projection of b0 on the radius)^2 - |b0 across the axis|^2
    projected = (across @ b0).square() / squared
    outside_field = (radius**2 / squared) * (2 * projected - (1 - cosine**2)) * (susceptibility / 2)
    return torch.where(inside, (susceptibility / 6 * (3 * cosine**2 - 1)).expand_as(outside_field), outside_field)


def shape_factor(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    """Antiderivative of N_xx, ``atan(yz / (x r)) / 4 pi``: differences over the corners of a cuboid give N_xx.

    Source: Aharoni, J Appl Phys 83:3432 (1998); Newell et al., J Geophys Res 98:9551 (1993).
    """
    below = x * (x.square() + y.square() + z.square()).sqrt()
    # on a face the two one-sided limits are +-1/8: their mean
    return torch.atan(torch.where(below == 0, 0.0, y * z / torch.where(below == 0, 1.0, below))) / (4 * math.pi)


def shear_factor(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    """Antiderivative of N_xy, ``-asinh(z / sqrt(x^2 + y^2)) / 4 pi``.

    The usual form is ``log(r + z)``, which cancels badly for z < 0. It differs from asinh by a function of x and y,
    and this is lost in the difference along z.
    """
    rho = (x.square() + y.square()).clamp(min=1e-60).sqrt()  # beyond an edge, on its line, the difference stays finite
    return torch.asinh(z / rho) / (-4 * math.pi)


def cuboid_field(
    points: Tensor,
    size: Sequence[float],
    *,
    centre: Sequence[float] | Tensor = (0.0, 0.0, 0.0),
    b0_direction: Sequence[float] | Tensor = (0.0, 0.0, 1.0),
    susceptibility: float = 1.0,
) -> Tensor:
    r"""Field of a cuboid with edges along the axes.

    .. math:: b = \chi \left(\tfrac{1}{3} \operatorname{tr} N - \hat b \cdot N \hat b\right), \qquad
        N_{xx} = \sum_{\pm\pm\pm} \frac{\pm 1}{4\pi} \arctan \frac{y z}{x r}, \qquad
        N_{xy} = -\sum_{\pm\pm\pm} \frac{\pm 1}{4\pi} \operatorname{arsinh} \frac{z}{\sqrt{x^2 + y^2}}

    N is the demagnetisation tensor, (x, y, z) the point from each of the eight corners [mm], r its distance, the sign
    the product of the three of the corner, :math:`\hat b` the direction of B0; other elements by exchange of axes. tr N
    is 1 inside and 0 outside. On a face the field is the mean of both sides; on an edge it is infinite where B0 is
    oblique to it.

    Args:
        points: positions ``[..., 3]`` [mm].
        size: lengths of the edges [mm].
        centre: of the cuboid [mm].
        b0_direction: unit vector.
        susceptibility: inside minus outside [ppm].

    Returns:
        Field ``[...]`` [ppm].

    Raises:
        ValueError: for a size that is not positive, points that are not ``[..., 3]``, b0_direction not a unit vector.

    Source: Newell et al., J Geophys Res 98:9551 (1993); Aharoni, J Appl Phys 83:3432 (1998).
    """
    if len(size) != 3:
        raise ValueError(f"size must have 3 lengths [mm], got {len(size)}")
    half = [_positive(float(length), "size") / 2 for length in size]
    offset = _offsets(points, centre)
    b0 = _unit_vector(b0_direction, "b0_direction", points)
    field = torch.zeros_like(offset[..., 0])
    for signs in ((i, j, k) for i in (1, -1) for j in (1, -1) for k in (1, -1)):
        x, y, z = (offset[..., axis] + signs[axis] * half[axis] for axis in range(3))
        parity = signs[0] * signs[1] * signs[2]
        diagonal = (shape_factor(x, y, z), shape_factor(y, z, x), shape_factor(z, x, y))
        corner = sum((1 / 3 - b0[axis] ** 2) * diagonal[axis] for axis in range(3))
        corner = corner - 2 * (
            b0[0] * b0[1] * shear_factor(x, y, z)
            + b0[1] * b0[2] * shear_factor(y, z, x)
            + b0[2] * b0[0] * shear_factor(z, x, y)
        )
        field = field + parity * corner
    return susceptibility * field
