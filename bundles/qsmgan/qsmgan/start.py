"""What the generator is given: the field, a classical estimate of the susceptibility to start from, the magnitude.

The paper gives the field alone. A network sees one patch, while the dipole spreads over the whole head: an estimate
made of the whole volume carries into each patch what lies outside of it, and leaves to the network what the classical
method cannot do. ``channels=("field",)`` is the paper's input.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from physics.dipole import field_from_susceptibility, susceptibility_adjoint
from physics.dipole_inversion import tv_admm

CHANNELS = ("field", "start", "residual", "correction", "magnitude")
ITERATIONS = 10
REGULARISATION = 3e-4  # [ppm mm], of the total variation
EDGE_FRACTION = 0.15  # of the differences, where the magnitude has its edges


def starting_map(
    field: Tensor,
    mask: Tensor,
    magnitude: Tensor | None = None,
    voxel_size: Sequence[float] = (1.0, 1.0, 1.0),
    b0_direction: Sequence[float] = (0.0, 0.0, 1.0),
) -> Tensor:
    """Susceptibility by a few iterations of total-variation regularisation that knows the edges of the magnitude.

    Args:
        field: local field ``[..., X, Y, Z]`` [ppm].
        mask: where it is known ``[..., X, Y, Z]``, boolean.
        magnitude: ``[..., X, Y, Z]`` in any unit, weight of the field; None or all 0 for equal weights and no edges.
        voxel_size: [mm].
        b0_direction: unit vector in voxel axes.

    Returns:
        Susceptibility ``[..., X, Y, Z]`` [ppm], mean 0 over the mask, 0 outside.
    """
    weight = mask.to(field.dtype)
    if magnitude is not None:
        there = (magnitude * weight).sum((-3, -2, -1), keepdim=True) > 0
        weight = torch.where(there, magnitude.to(field.dtype) * weight, weight)
    start = tv_admm(
        field,
        voxel_size,
        b0_direction,
        mask,
        weight,
        regularisation=REGULARISATION,
        edge_fraction=EDGE_FRACTION,
        iterations=ITERATIONS,
        tolerance=0.0,  # the network has learnt to go on from this number of iterations
    )
    return demeaned(start, mask)


def network_input(
    field: Tensor,
    mask: Tensor,
    magnitude: Tensor | None = None,
    voxel_size: Sequence[float] = (1.0, 1.0, 1.0),
    b0_direction: Sequence[float] = (0.0, 0.0, 1.0),
    channels: Sequence[str] = CHANNELS,
) -> Tensor:
    """Channels of the generator, made of a whole volume.

    Args:
        field: local field ``[..., X, Y, Z]`` [ppm].
        mask: where it is known ``[..., X, Y, Z]``, boolean.
        magnitude: ``[..., X, Y, Z]`` in any unit; None, or all 0 where there is none.
        voxel_size: [mm].
        b0_direction: unit vector in voxel axes.
        channels: which of :data:`CHANNELS`, in order.

    Returns:
        ``[..., C, X, Y, Z]``: field [ppm], starting map [ppm], the field it does not explain [ppm], the direction of
        steepest descent of that field's square (the adjoint of the dipole applied to it) [ppm], and the magnitude
        relative to its mean over the mask; all 0 outside the mask.

    Raises:
        ValueError: for an unknown channel.
    """
    if unknown := set(channels) - set(CHANNELS):
        raise ValueError(f"channels must be among {CHANNELS}, got {sorted(unknown)}")
    inside = mask.to(field.dtype)
    made: dict[str, Tensor] = {"field": field * inside}
    if {"start", "residual", "correction"} & set(channels):
        made["start"] = starting_map(made["field"], mask, magnitude, voxel_size, b0_direction)
    if {"residual", "correction"} & set(channels):
        explained = field_from_susceptibility(made["start"], voxel_size, b0_direction)
        made["residual"] = demeaned(made["field"] - explained, mask)
    if "correction" in channels:
        made["correction"] = susceptibility_adjoint(made["residual"], voxel_size, b0_direction) * inside
    if "magnitude" in channels:
        shown = torch.zeros_like(field) if magnitude is None else magnitude.to(field.dtype) * inside
        mean = shown.sum((-3, -2, -1), keepdim=True) / inside.sum((-3, -2, -1), keepdim=True).clamp(min=1.0)
        made["magnitude"] = torch.where(mean > 0, shown / mean.clamp(min=1e-30), 0.0)
    return torch.stack([made[name] for name in channels], -4)


def demeaned(values: Tensor, mask: Tensor) -> Tensor:
    """Values minus their mean over the mask, 0 outside; ``[..., X, Y, Z]``."""
    inside = mask.to(values.dtype)
    mean = (values * inside).sum((-3, -2, -1), keepdim=True) / inside.sum((-3, -2, -1), keepdim=True).clamp(min=1.0)
    return (values - mean) * inside
