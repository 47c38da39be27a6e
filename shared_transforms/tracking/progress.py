"""A progress bar where somebody looks at it."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any, TextIO

import ignite.distributed as idist
from ignite.engine import Engine
from ignite.handlers import ProgressBar
from monai.utils.enums import CommonKeys

__all__ = ["Progress"]


class Progress:
    """Handler of any engine: a bar with the loss, if the engine has one; silent where the output is no terminal.

    Args:
        description: text before the bar, such as "training".
        persist: whether the bar stays when an epoch is done.
        stream: where to; default standard error.
    """

    def __init__(self, description: str = "", persist: bool = True, stream: TextIO | None = None) -> None:
        self.description = description
        self.persist = persist
        self.stream = stream

    def attach(self, engine: Engine) -> None:
        """Attach the bar on rank 0 of a terminal."""
        stream = self.stream or sys.stderr
        if idist.get_rank() == 0 and stream.isatty():
            bar = ProgressBar(persist=self.persist, desc=self.description, file=stream)
            bar.attach(engine, output_transform=_loss)


def _loss(output: Any) -> dict[str, float]:
    if isinstance(output, Mapping) and CommonKeys.LOSS in output:
        return {"loss": float(output[CommonKeys.LOSS])}
    return {}
