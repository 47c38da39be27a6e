"""What an iterative inversion tells its caller."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["Iteration", "Report"]


@dataclass(frozen=True)
class Iteration:
    """State after one iteration.

    Attributes:
        method: name of the inversion.
        number: of the iteration, from 1.
        limit: number after which the method stops in any case.
        change: norm of the update over the norm of the map; the method stops when it falls below its tolerance.
    """

    method: str
    number: int
    limit: int
    change: float


Report = Callable[[Iteration], None]
