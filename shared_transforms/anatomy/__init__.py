"""Anatomy for the simulators: a head as tissue fractions, drawn deformations, and slices sampled from it."""

from shared_transforms.anatomy.fields import SPLITS, smooth_field, split_generator, split_seed
from shared_transforms.anatomy.head import TISSUES, Head, brain_mask, count_heads, head_mask, load_head
from shared_transforms.anatomy.slices import PLANES, SliceParameters, displacement_at, draw_slices, sample_slices

__all__ = [
    "PLANES",
    "SPLITS",
    "TISSUES",
    "Head",
    "SliceParameters",
    "brain_mask",
    "count_heads",
    "displacement_at",
    "draw_slices",
    "head_mask",
    "load_head",
    "sample_slices",
    "smooth_field",
    "split_generator",
    "split_seed",
]
