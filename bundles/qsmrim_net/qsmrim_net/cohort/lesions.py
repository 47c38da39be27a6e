"""Lesions on the fine grid of a subject: susceptibility, FLAIR signal and the fraction that a drawn mask covers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .population import Lesions

__all__ = ["LesionMaps", "add_lesions", "lesion_profile"]

_SOFTNESS_MM = 0.35  # over which the core fades at the surface
_MARGIN_MM = 3.0  # of the box around a lesion, for its mask's error and the ends of its vein
_SUBPIXELS = (-0.25, 0.25)  # in-plane positions, in voxels, of which a value is the mean: rims are thinner than voxels
_CHUNK = 2**22  # points that are evaluated at a time


@dataclass
class LesionMaps:
    """Volumes ``[X, Y, Z]`` that lesions are added to.

    Attributes:
        chi: susceptibility [ppb].
        flair: FLAIR signal, white matter 1.
        tissue: fraction of a voxel that is lesion.
        cover: fraction that the mask of its lesion covers; ``owner``: number of that lesion from 1.
    """

    chi: Tensor
    flair: Tensor
    tissue: Tensor
    cover: Tensor
    owner: Tensor


def lesion_profile(lesions: Lesions, where: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Distance from the surface, susceptibility and lesion fraction at points.

    The surface is an ellipsoid with waves; the distance is exact on it and of first order elsewhere.

    Args:
        lesions: L lesions.
        where: points ``[L, 3, P]`` from the centre of each [mm].

    Returns:
        Signed distance [mm], negative inside; susceptibility over white matter [ppb]; lesion fraction: each ``[L, P]``.
    """
    along = (lesions.rotation @ where) / lesions.radii[..., None]
    level = along.norm(dim=1).clamp_min(1e-4)
    slope = (along / lesions.radii[..., None]).norm(dim=1) / level
    radial = torch.nn.functional.normalize(where, dim=1)
    waves = torch.cos(lesions.wave_direction @ radial + lesions.wave_phase[..., None])
    uneven = 1.0 + (lesions.wave_height[..., None] * waves).sum(1)
    distance = (level / uneven - 1.0) / slope.clamp_min(1e-4) * uneven
    inside = torch.sigmoid(-distance / _SOFTNESS_MM)
    # Patches of the core, a few millimetres wide, from waves in space instead of direction.
    patches = torch.cos(0.6 * (lesions.wave_direction @ where) + lesions.wave_phase[..., None].flip(1)).mean(1)
    chi = lesions.core[:, None] * inside * (1.0 + 2.0 * lesions.patchiness[:, None] * patches)
    chi = chi + _rim(lesions, distance, radial, waves) + _vein(lesions, where, distance)
    return distance, chi, inside


def _rim(lesions: Lesions, distance: Tensor, radial: Tensor, waves: Tensor) -> Tensor:
    """A shell below the surface, over the covered part of it, of uneven strength [ppb]."""
    width = lesions.thickness[:, None] / 2.355
    shell = torch.exp(-0.5 * ((distance + 0.5 * lesions.thickness[:, None]) / width) ** 2)
    cosine = (lesions.arc[:, None] @ radial).squeeze(1)
    covered = torch.sigmoid((cosine - (1.0 - 2.0 * lesions.coverage[:, None])) / 0.08)
    return lesions.rim[:, None] * shell * covered * (1.0 - 0.15 * (1.0 - waves[:, 0]))


def _vein(lesions: Lesions, where: Tensor, distance: Tensor) -> Tensor:
    """A straight vein through or along the lesion, which fades beyond it [ppb]."""
    offset = where - (lesions.vein_offset * lesions.radii.mean(1, keepdim=True))[..., None]
    beside = offset - lesions.vein_direction[..., None] * (lesions.vein_direction[:, None] @ offset)
    tube = torch.sigmoid((lesions.vein_radius[:, None] - beside.norm(dim=1)) / 0.12)
    return lesions.vein[:, None] * tube * torch.sigmoid((2.0 - distance) / 0.4)


def add_lesions(maps: LesionMaps, lesions: Lesions, centres: Tensor, voxel_size: Sequence[float]) -> None:
    """Add lesions to the maps of a subject, in place.

    Args:
        maps: volumes on the fine grid.
        lesions: L lesions.
        centres: ``[L, 3]`` [voxels of that grid].
        voxel_size: (dx, dy, dz) of that grid [mm].
    """
    step = maps.chi.new_tensor(list(voxel_size))
    half = ((lesions.radii.amax(1, keepdim=True) * 1.3 + _MARGIN_MM) / step).ceil().long()
    # Lesions of about one size share a box: a few groups instead of a loop over lesions.
    order = half[:, 0].argsort()
    start = 0
    while start < len(lesions):
        stop = start + 1
        while stop < len(lesions) and half[order[stop], 0] <= 1.35 * half[order[start], 0] + 1:
            points = (stop + 1 - start) * int((2 * half[order[stop]] + 1).prod())
            if points > _CHUNK:
                break
            stop += 1
        chosen = order[start:stop]
        _add_group(maps, lesions.from_state_dict({k: v[chosen] for k, v in lesions.state_dict().items()}),
                   centres[chosen], half[chosen].amax(0), step, chosen + 1)  # fmt: skip
        start = stop


def _add_group(
    maps: LesionMaps, lesions: Lesions, centres: Tensor, half: Tensor, step: Tensor, numbers: Tensor
) -> None:
    """Lesions that share a box of ``2 half + 1`` voxels."""
    size = torch.tensor(maps.chi.shape)
    reach = torch.cartesian_prod(*(torch.arange(-int(h), int(h) + 1) for h in half))
    index = centres.round().long()[:, None] + reach  # [L, P, 3]
    within = ((index >= 0) & (index < size)).all(-1)
    place = (
        index.clamp(torch.zeros(3, dtype=torch.long), size - 1) * torch.tensor([size[1] * size[2], size[2], 1])
    ).sum(-1)
    chi = fraction = cover = torch.zeros(index.shape[:2])
    softness = 0.25 * step[0]
    for shift_x in _SUBPIXELS:
        for shift_y in _SUBPIXELS:
            where = (index + torch.tensor([shift_x, shift_y, 0.0]) - centres[:, None]) * step
            distance, values, inside = lesion_profile(lesions, where.mT)
            chi, fraction = chi + 0.25 * values, fraction + 0.25 * inside
            cover = cover + 0.25 * torch.sigmoid((lesions.edge[:, None] - distance) / softness)
    flat, chosen = place[within], within
    maps.chi.view(-1).index_add_(0, flat, chi[chosen])
    maps.flair.view(-1).index_add_(0, flat, (lesions.flair[:, None] * fraction)[chosen])
    maps.tissue.view(-1).index_add_(0, flat, fraction[chosen])
    _cover(maps, place, cover * within, numbers)


def _cover(maps: LesionMaps, place: Tensor, cover: Tensor, numbers: Tensor) -> None:
    """Each voxel to the lesion whose mask covers most of it."""
    largest, owner = maps.cover.view(-1), maps.owner.view(-1)
    before = largest.clone()
    largest.scatter_reduce_(0, place.flatten(), cover.flatten(), "amax")
    won = (cover == largest[place]) & (cover > before[place])
    owner[place[won]] = numbers[:, None].expand_as(place)[won].to(owner)
