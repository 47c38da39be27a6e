"""Random ellipsoids, tubes and branching trees of tubes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from physics.phantoms.bodies import Ellipsoids, Tubes

__all__ = ["draw_ellipsoids", "draw_trees", "draw_tubes", "random_rotations"]


def _log_uniform(generator: torch.Generator, shape: Sequence[int], bounds: tuple[float, float]) -> Tensor:
    low, high = bounds
    if not 0 < low <= high:
        raise ValueError(f"a range must be 0 < low <= high, got {bounds}")
    return low * (high / low) ** torch.rand(tuple(shape), generator=generator, device=generator.device)


def _directions(generator: torch.Generator, shape: Sequence[int]) -> Tensor:
    """Unit vectors ``[..., 3]``, uniform on the sphere."""
    normal = torch.randn((*shape, 3), generator=generator, device=generator.device)
    return torch.nn.functional.normalize(normal, dim=-1)


def _inside(generator: torch.Generator, shape: Sequence[int], extent: Sequence[float]) -> Tensor:
    """Points ``[..., 3]`` uniform in a box of edges ``extent`` around 0 [mm]."""
    uniform = torch.rand((*shape, 3), generator=generator, device=generator.device)
    return (uniform - 0.5) * uniform.new_tensor(list(extent))


def random_rotations(generator: torch.Generator, *shape: int) -> Tensor:
    r"""Rotation matrices ``[*shape, 3, 3]``, uniform over all rotations.

    From unit quaternions :math:`q / |q|, \; q \sim \mathcal{N}(0, I_4)`.
    """
    quaternion = torch.randn((*shape, 4), generator=generator, device=generator.device)
    w, x, y, z = torch.nn.functional.normalize(quaternion, dim=-1).unbind(-1)
    rows = (
        torch.stack([1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)], -1),
        torch.stack([2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)], -1),
        torch.stack([2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)], -1),
    )
    return torch.stack(rows, -2)


def draw_ellipsoids(
    generator: torch.Generator,
    n: int,
    count: int,
    extent: Sequence[float],
    radius: tuple[float, float] = (2.0, 30.0),
    elongation: float = 2.0,
) -> Ellipsoids:
    r"""Random ellipsoids, large ones first so that they do not cover the small ones.

    .. math:: r = r_{low} \left(r_{high} / r_{low}\right)^U, \qquad r_a = r \, e_a, \quad \ln e_a \sim
        \mathcal{U}(-\ln e, \ln e)

    with U uniform in [0, 1] and the elongation e.

    Args:
        generator: random stream; its device is that of the result.
        n: number of images.
        count: bodies in each image.
        extent: edges of the box around 0 in which the centres lie, uniformly [mm].
        radius: smallest and largest mean radius, log-uniform [mm].
        elongation: largest factor between a radius and the mean one, log-uniform.

    Returns:
        The ellipsoids, of any orientation.

    Raises:
        ValueError: where a range is not 0 < low <= high.
    """
    mean = _log_uniform(generator, (n, count, 1), radius).sort(dim=1, descending=True).values
    radii = mean * _log_uniform(generator, (n, count, 3), (1.0 / elongation, elongation))
    centres = _inside(generator, (n, count), extent)
    return Ellipsoids.from_radii(centres, radii, random_rotations(generator, n, count))


def draw_tubes(
    generator: torch.Generator,
    n: int,
    count: int,
    extent: Sequence[float],
    radius: tuple[float, float] = (0.5, 4.0),
    length: tuple[float, float] = (10.0, 60.0),
) -> Tubes:
    """Random straight tubes: :math:`r = r_{low} (r_{high} / r_{low})^U` with U uniform in [0, 1], lengths likewise.

    Args:
        generator: random stream; its device is that of the result.
        n: number of images.
        count: bodies in each image.
        extent: edges of the box around 0 in which the middles lie, uniformly [mm].
        radius: smallest and largest radius, log-uniform [mm].
        length: shortest and longest length, log-uniform [mm].

    Returns:
        The tubes, of any direction.

    Raises:
        ValueError: where a range is not 0 < low <= high.
    """
    middle = _inside(generator, (n, count), extent)
    half = _log_uniform(generator, (n, count, 1), length) / 2 * _directions(generator, (n, count))
    return Tubes(middle - half, middle + half, _log_uniform(generator, (n, count), radius))


def draw_trees(
    generator: torch.Generator,
    roots: Tensor,
    directions: Tensor,
    radius: tuple[float, float] = (0.4, 1.2),
    length: tuple[float, float] = (5.0, 12.0),
    levels: int = 4,
    bend: float = 0.5,
) -> Tubes:
    r"""Random branching vessels: each tube ends in two, thinner by Murray's law and bent.

    .. math:: r_{parent}^3 = r_1^3 + r_2^3 \quad\Longrightarrow\quad r_1 = r_2 = 2^{-1/3} \, r_{parent}

    Args:
        generator: random stream on the device of the roots.
        roots: where the trees begin ``[n, trees, 3]`` [mm].
        directions: where they grow to ``[n, trees, 3]``, any length.
        radius: of the first tube, log-uniform [mm].
        length: of each tube, log-uniform [mm].
        levels: tubes from the root to a tip.
        bend: strength of the random change of direction at a branch, relative to the direction.

    Returns:
        ``trees (2^levels - 1)`` tubes in each image, thin ones first.

    Raises:
        ValueError: where a range is not 0 < low <= high, or levels is not positive.

    Source:
        C. D. Murray, PNAS 12, 1926: the cubes of the radii at a branch add up.
    """
    if levels < 1:
        raise ValueError(f"levels must be at least 1, got {levels}")
    n, trees = roots.shape[:2]
    start, along = roots, torch.nn.functional.normalize(directions, dim=-1)
    thickness = _log_uniform(generator, (n, trees), radius)
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    for _ in range(levels):
        turn = bend * _directions(generator, start.shape[:2])
        along = torch.nn.functional.normalize(along + turn, dim=-1)
        end = start + along * _log_uniform(generator, (*start.shape[:2], 1), length)
        parts.append((start, end, thickness))
        start, along = end.repeat(1, 2, 1), along.repeat(1, 2, 1)
        thickness = thickness.repeat(1, 2) * 0.5 ** (1.0 / 3.0)
    starts, ends, radii = (torch.cat(column[::-1], 1) for column in zip(*parts, strict=True))
    return Tubes(starts, ends, radii)
