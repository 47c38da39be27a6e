"""Options that come with an item."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any


def item_options(item: Mapping[Hashable, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a loader; a value that the item has under the same name goes before that of the config."""
    return {name: value if item.get(name) is None else item[name] for name, value in options.items()}
