"""A progress bar where somebody looks at it."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any, TextIO

import ignite.distributed as idist
import torch
from ignite.engine import Engine
from ignite.handlers import ProgressBar

__all__ = ["Progress", "scalars"]


class Progress:
    """Handler of any engine: a bar with the losses, if the engine has any; silent where the output is no terminal.

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
            bar.attach(engine, output_transform=scalars)


def scalars(output: Any) -> dict[str, torch.Tensor]:
    """The losses in the output of an engine: its entries without axes, detached, where they are (no wait for a GPU)."""
    if not isinstance(output, Mapping):
        return {}
    numbers = {
        str(name): torch.as_tensor(value).detach()
        for name, value in output.items()
        if isinstance(value, float | torch.Tensor)
    }
    return {name: value for name, value in numbers.items() if value.ndim == 0}
