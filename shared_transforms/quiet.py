"""Libraries whose remarks are about themselves, kept quiet for a while."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["quiet"]


@contextmanager
def quiet(logger: str, below: int) -> Iterator[None]:
    """Neither warnings nor messages of a library's log, as long as it lasts.

    Args:
        logger: name of the library's logger.
        below: messages of lower levels than this one of ``logging`` are left out.
    """
    log = logging.getLogger(logger)
    level = log.level
    log.setLevel(below)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)
