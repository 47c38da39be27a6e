"""Checked reading of weighted and perfusion series, gradient echoes and field maps, and writing of parameter maps."""

from shared_transforms.io.find import find_series
from shared_transforms.io.find_echoes import find_gradient_echoes
from shared_transforms.io.geometry import read_mask
from shared_transforms.io.gradient_echo import LoadGradientEchoesd, load_gradient_echoes
from shared_transforms.io.load import LoadSeriesd, load_series
from shared_transforms.io.local_field import LoadLocalFieldd, find_field_inputs, find_local_fields, load_local_field
from shared_transforms.io.maps import ParameterMap
from shared_transforms.io.perfusion import LoadPerfusionSeriesd, find_perfusion_series, load_perfusion_series
from shared_transforms.io.prepare import prepare_field, prepare_perfusion, prepare_series
from shared_transforms.io.save import SaveMapsd

__all__ = [
    "LoadGradientEchoesd",
    "LoadLocalFieldd",
    "LoadPerfusionSeriesd",
    "LoadSeriesd",
    "ParameterMap",
    "SaveMapsd",
    "find_field_inputs",
    "find_gradient_echoes",
    "find_local_fields",
    "find_perfusion_series",
    "find_series",
    "load_gradient_echoes",
    "load_local_field",
    "load_perfusion_series",
    "load_series",
    "prepare_field",
    "prepare_perfusion",
    "prepare_series",
    "read_mask",
]
