"""Maps of the classical methods on disk, with what they cost."""

from __future__ import annotations

import sys
from pathlib import Path

from torch import Tensor

from shared_transforms.experiments import Row, kept_estimate, key_of

from .case import Case
from .methods import Method
from .scores import measured


def cached_estimate(method: Method, case: Case, folder: str | Path | None) -> tuple[Tensor, Row]:
    """Map of a method and what it cost, see :func:`.scores.measured`; taken from the folder if it is there.

    Args:
        method: only those with a ``recipe`` are kept.
        case: what it is given.
        folder: where maps are kept; None keeps none.
    """

    def made() -> tuple[Tensor, Row]:
        return measured(lambda: method.estimate(case))

    if folder is None or not method.recipe:
        return made()
    sources = [] if method.source is None else [sys.modules[method.source]]
    geometry = repr((case.voxel_size, case.b0_direction, [b0 for _, b0 in case.turned]))
    data = (case.field, case.mask, case.magnitude, *(field for field, _ in case.turned))
    path = Path(folder) / f"{method.name}_{key_of(method.recipe, *sources, geometry, *data)}.pt"
    return kept_estimate(path, made, case.field.device)
