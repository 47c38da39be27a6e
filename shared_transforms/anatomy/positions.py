"""MNI positions in a head, for structures that a simulator adds to it."""

from __future__ import annotations

import torch
from torch import Tensor

from shared_transforms.anatomy.head import Head
from shared_transforms.anatomy.volumes import MNI_MIDDLE_MM

# Mean and standard deviation of the brain of the template [mm, MNI]: other heads are matched by theirs.
_MNI_CENTRE = (-0.5, -21.8, 8.8)
MNI_SPREAD_MM = (34.1, 41.3, 32.7)
"""Standard deviation of the positions in the template's brain along x, y, z."""


def _match(head: Head) -> tuple[Tensor, Tensor]:
    """Scale and shift ``[3]`` from MNI to head coordinates: the template's own, or those of size and place."""
    if head.name.startswith("mni152"):
        return torch.ones(3), -torch.tensor(MNI_MIDDLE_MM)
    scale = head.brain_voxels.float().std(0) * head.voxel_size_mm / torch.tensor(MNI_SPREAD_MM)
    centre = (head.brain_centre - head.middle_voxel) * head.voxel_size_mm
    return scale, centre - torch.tensor(_MNI_CENTRE) * scale


def mni_to_head(points: Tensor, head: Head) -> Tensor:
    """Head coordinates of MNI positions.

    Args:
        points: MNI positions ``[..., 3]`` [mm].
        head: the template, or a head of one's own, which is matched by place and size of its brain.

    Returns:
        Points ``[..., 3]`` from the middle of the head's volume [mm].
    """
    scale, shift = (values.to(points) for values in _match(head))
    return points * scale + shift


def head_to_mni(points: Tensor, head: Head) -> Tensor:
    """MNI positions ``[..., 3]`` [mm] of head coordinates; the inverse of `mni_to_head`."""
    scale, shift = (values.to(points) for values in _match(head))
    return (points - shift) / scale
