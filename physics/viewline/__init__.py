"""View Line imaging of saturated iron particles: field of the imaging plane, sequence, images."""

from physics.viewline.acquisition import excitation_position, view_line_image
from physics.viewline.field import (
    MILLIMOLAR,
    central_plane_field,
    field_per_concentration,
    fold_planes,
    folded_plane_field,
)
from physics.viewline.sequence import GYROMAGNETIC_RATIO, ViewLineSequence

__all__ = [
    "GYROMAGNETIC_RATIO",
    "MILLIMOLAR",
    "ViewLineSequence",
    "central_plane_field",
    "excitation_position",
    "field_per_concentration",
    "fold_planes",
    "folded_plane_field",
    "view_line_image",
]
