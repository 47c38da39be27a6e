"""Discs in the plane, drawn apart from being rasterised."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["disc_fractions", "draw_discs"]


def draw_discs(
    generator: torch.Generator, n: int, count: int, radius: tuple[float, float] = (0.05, 0.35)
) -> tuple[Tensor, Tensor]:
    r"""Centres and radii of random discs, as fractions of the image's width; :math:`\ln r` is uniform.

    Args:
        generator: random stream; its device is that of the result.
        n: number of images.
        count: discs in each image.
        radius: smallest and largest radius, drawn log-uniformly.

    Returns:
        Centres (row, column) ``[n, count, 2]`` in [0, 1] and radii ``[n, count]``.
    """
    device = generator.device
    centres = torch.rand((n, count, 2), generator=generator, device=device)
    low, high = radius
    radii = low * (high / low) ** torch.rand((n, count), generator=generator, device=device)
    return centres, radii


def disc_fractions(centres: Tensor, radii: Tensor, size: tuple[int, int]) -> Tensor:
    r"""Volume fraction of each disc in each pixel; later discs cover earlier ones.

    .. math:: F_j = f_j \prod_{l > j} (1 - f_l), \qquad
        f = \operatorname{clamp}_{[0, 1]} \left(W (r - |p - c|) + \tfrac{1}{2}\right)

    with positions p, centre c and radius r in fractions of the width of W pixels.

    Args:
        centres: (row, column) ``[n, count, 2]``, fractions of the width.
        radii: ``[n, count]``, fractions of the width.
        size: height and width of the image [pixels].

    Returns:
        Fractions ``[n, count, H, W]`` in [0, 1] with sum at most 1; the edge is linear over one pixel, the exact
        partial volume of a straight edge along an axis.
    """
    height, width = size
    rows = (torch.arange(height, device=centres.device, dtype=centres.dtype) + 0.5)[:, None] / width
    columns = (torch.arange(width, device=centres.device, dtype=centres.dtype) + 0.5)[None, :] / width
    distance = torch.hypot(rows - centres[..., 0, None, None], columns - centres[..., 1, None, None])
    inside = ((radii[..., None, None] - distance) * width + 0.5).clamp(0.0, 1.0)
    uncovered = (1.0 - inside).flip(1).cumprod(1).flip(1)  # not under this disc nor under a later one
    visible_after = torch.cat([uncovered[:, 1:], torch.ones_like(uncovered[:, :1])], 1)
    return inside * visible_after
