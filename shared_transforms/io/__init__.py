"""Checked reading of series, gradient echoes, field maps, lesion maps and View Line images; writing of maps."""

from shared_transforms.io.find import find_series
from shared_transforms.io.find_echoes import find_gradient_echoes
from shared_transforms.io.geometry import read_mask
from shared_transforms.io.gradient_echo import LoadGradientEchoesd, load_gradient_echoes
from shared_transforms.io.lesion_maps import LoadLesionMapsd, find_lesion_maps, load_lesion_maps
from shared_transforms.io.load import LoadSeriesd, load_series
from shared_transforms.io.local_field import LoadLocalFieldd, find_field_inputs, find_local_fields, load_local_field
from shared_transforms.io.maps import ParameterMap
from shared_transforms.io.perfusion import LoadPerfusionSeriesd, find_perfusion_series, load_perfusion_series
from shared_transforms.io.prepare import (
    prepare_field,
    prepare_lesions,
    prepare_perfusion,
    prepare_series,
    prepare_view_line,
)
from shared_transforms.io.save import SaveMapsd
from shared_transforms.io.summary import SaveSummaryd
from shared_transforms.io.view_line import LoadViewLined, PlaneOrientation, find_view_lines, load_view_line

__all__ = [
    "LoadGradientEchoesd",
    "LoadLesionMapsd",
    "LoadLocalFieldd",
    "LoadPerfusionSeriesd",
    "LoadSeriesd",
    "LoadViewLined",
    "ParameterMap",
    "PlaneOrientation",
    "SaveMapsd",
    "SaveSummaryd",
    "find_field_inputs",
    "find_gradient_echoes",
    "find_lesion_maps",
    "find_local_fields",
    "find_perfusion_series",
    "find_series",
    "find_view_lines",
    "load_gradient_echoes",
    "load_lesion_maps",
    "load_local_field",
    "load_perfusion_series",
    "load_series",
    "load_view_line",
    "prepare_field",
    "prepare_lesions",
    "prepare_perfusion",
    "prepare_series",
    "prepare_view_line",
    "read_mask",
]
