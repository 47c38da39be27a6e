"""The model card of a bundle, as the description of a run."""

from __future__ import annotations

import re
from pathlib import Path

__all__ = ["MODEL_CARD", "description"]

MODEL_CARD = Path("docs/README.md")  # below the bundle's root
_BEFORE = "*Model card of the bundle with its shipped weights. The numbers of this run are its metrics.*\n\n"
_AFTER = "*The rest is in the artifacts, `model_card/README.md`.*\n"


def description(card: str, longest: int = 8000) -> str:
    """Markdown that MLflow's page of a run shows: the whole sections of a model card that fit, from its beginning.

    Pictures and links into the bundle, which lead nowhere on that page, are left out. A first section that is too long
    is cut at the end of a paragraph.

    Args:
        card: text of ``docs/README.md``.
        longest: number of characters; of a tag, MLflow takes these.
    """
    text = re.sub(r"<!--.*?-->\s*", "", card, flags=re.DOTALL)
    text = re.sub(r"!\[[^]]*\]\([^)]*\)\n*", "", text)
    text = re.sub(r"\[([^]]*)\]\((?!https?:)[^)]*\)", r"\1", text).strip() + "\n"
    room = longest - len(_BEFORE)
    if len(text) <= room:
        return _BEFORE + text
    room -= len(_AFTER)
    end = text.rfind("\n\n##", 0, room)
    if end < 0:
        end = text.rfind("\n\n", 0, room)
    return _BEFORE + text[: max(end, 0)] + "\n\n" + _AFTER
