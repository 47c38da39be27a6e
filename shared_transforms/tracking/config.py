"""The configuration a handler was made by."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from types import FrameType
from typing import Any

from monai.bundle import ConfigParser

__all__ = ["executing_config", "flatten", "user_values"]

_FOLDERS = ("bundle_root", "dataset_dir", "output_dir")


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


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} becomes {"a.b": 1}."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat
