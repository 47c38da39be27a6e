"""Anatomy for the simulators: a head as tissue fractions, drawn deformations, and slices sampled from it."""

from shared_transforms.anatomy.fields import SPLITS, smooth_field, smooth_volume, split_generator, split_seed
from shared_transforms.anatomy.head import TISSUES, Head, brain_mask, count_heads, head_mask, load_head
from shared_transforms.anatomy.positions import MNI_SPREAD_MM, head_to_mni, mni_to_head
from shared_transforms.anatomy.slices import PLANES, SliceParameters, displacement_at, draw_slices, sample_slices
from shared_transforms.anatomy.volumes import (
    MNI_MIDDLE_MM,
    VolumeParameters,
    draw_volumes,
    grid_to_head,
    head_points,
    head_to_grid,
    sample_volumes,
)

__all__ = [
    "MNI_MIDDLE_MM",
    "MNI_SPREAD_MM",
    "PLANES",
    "SPLITS",
    "TISSUES",
    "Head",
    "SliceParameters",
    "VolumeParameters",
    "brain_mask",
    "count_heads",
    "displacement_at",
    "draw_slices",
    "draw_volumes",
    "grid_to_head",
    "head_mask",
    "head_points",
    "head_to_grid",
    "head_to_mni",
    "load_head",
    "mni_to_head",
    "sample_slices",
    "sample_volumes",
    "smooth_field",
    "smooth_volume",
    "split_generator",
    "split_seed",
]
