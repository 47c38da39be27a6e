"""The configuration a handler was made by."""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Mapping
from types import FrameType
from typing import Any

from monai.bundle import ConfigParser
from monai.bundle.utils import DEFAULT_MLFLOW_SETTINGS

__all__ = ["OF_THE_RUN", "executing_config", "flatten", "recipe_sha256", "user_values", "without_password"]

# Values at the top of train.json that tell runs and machines apart, not recipes.
OF_THE_RUN = ("fold", "seed", "resume", "tracking_uri", "cache_dir", "processes")

_FOLDERS = ("bundle_root", "dataset_dir", "output_dir")
_NO_RECIPE = {*OF_THE_RUN, "bundle_root", "output_dir", "device", "imports", "initialize", "finalize"}
_NO_RECIPE |= set(DEFAULT_MLFLOW_SETTINGS["configs"])  # what `--tracking mlflow` adds at the top ...
_LOOK_ONLY = {
    "MLFlowHandler",
    "MLflowTracking",
    "FigureHandler",
    "Progress",
    "StatsHandler",
    "Throughput",
}  # ... and below
_KEYS = ("_target_", "_mode_", "_disabled_")  # of MONAI, that decide
_PACKAGE = __name__.removesuffix("shared_transforms.tracking.config")  # "" or, packed, "<bundle>_v<version>."


def executing_config() -> dict[str, Any] | None:
    """The configuration, overlays and overrides included, of the MONAI parser that is making the calling object.

    MONAI gives a component no reference to its parser, so it is looked up on the call stack. Call it in a constructor.

    Returns:
        The content of the parser, or None when no parser is at work.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        candidate = frame.f_locals.get("self")
        if isinstance(candidate, ConfigParser):
            return dict(candidate.get())
        frame = frame.f_back
    return None


def user_values(config: Mapping[str, Any]) -> dict[str, Any]:
    """The values at the top of a configuration that make a recipe: numbers, texts, switches and lists of them.

    Expressions, descriptions and the folders of this machine are left out.
    """

    def plain(value: Any) -> bool:
        if isinstance(value, list):
            return bool(value) and all(plain(item) for item in value)
        return isinstance(value, str | int | float | bool) and not str(value).startswith(("$", "@"))

    return {name: value for name, value in config.items() if plain(value) and name not in _FOLDERS and name[0] != "_"}


def recipe_sha256(config: Mapping[str, Any]) -> str:
    """SHA-256 of what decides the simulated data and the training: equal for two runs of one recipe.

    It is that of the canonical JSON (sorted keys, no white space) of the configuration, overlays and overrides
    included, without :data:`OF_THE_RUN`, device, imports, the folders of bundle and output, descriptions, and handlers
    that only look. A packed bundle gives the hash of the repository's. Folders of own data count by their names.

    Args:
        config: the executed configuration.

    Returns:
        64 hexadecimal digits.
    """

    def decisive(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {name: decisive(item) for name, item in value.items() if not name.startswith("_") or name in _KEYS}
        if isinstance(value, list | tuple):
            return [decisive(item) for item in value if not _looks_only(item)]
        return value

    chosen = {name: decisive(value) for name, value in config.items() if name not in _NO_RECIPE and name[0] != "_"}
    text = json.dumps(chosen, sort_keys=True, separators=(",", ":"), default=str)
    if _PACKAGE:
        text = re.sub(rf"\b{re.escape(_PACKAGE)}(?=(physics|shared_transforms)\b)", "", text)
        text = re.sub(rf"\b{re.escape(_PACKAGE)}", re.sub(r"_v\d\w*\.$", ".", _PACKAGE), text)
    return hashlib.sha256(text.encode()).hexdigest()


def _looks_only(item: Any) -> bool:
    return isinstance(item, Mapping) and str(item.get("_target_")).rpartition(".")[2] in _LOOK_ONLY


def without_password(text: str) -> str:
    """The text with what stands between ``//`` and ``@`` in its addresses taken out."""
    return re.sub(r"(?<=://)[^/\s]*@", "", text)


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} becomes {"a.b": 1}."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat
