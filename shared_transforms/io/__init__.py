"""Checked reading of weighted series and writing of parameter maps."""

from shared_transforms.io.find import find_series
from shared_transforms.io.load import LoadSeriesd, load_series
from shared_transforms.io.maps import ParameterMap
from shared_transforms.io.prepare import prepare_series
from shared_transforms.io.save import SaveMapsd

__all__ = ["LoadSeriesd", "ParameterMap", "SaveMapsd", "find_series", "load_series", "prepare_series"]
