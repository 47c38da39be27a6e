"""Maps of the classical methods on disk, so that a run that was cut off goes on, and new weights do not redo them."""

from __future__ import annotations

import hashlib
import inspect
import sys
from pathlib import Path

import torch
from torch import Tensor

from shared_transforms.atomic import atomic_write
from shared_transforms.experiments import Row

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
    if folder is None or not method.recipe:
        return measured(lambda: method.estimate(case))
    path = Path(folder) / f"{method.name}_{_key(method, case)}.pt"
    if path.is_file():
        kept = torch.load(path, map_location=case.field.device, weights_only=True)
        return kept["estimate"], kept["costs"]
    estimate, costs = measured(lambda: method.estimate(case))
    with atomic_write(path) as file:
        torch.save({"estimate": estimate, "costs": costs}, file)
    return estimate, costs


def _key(method: Method, case: Case) -> str:
    """Changes with the data, the options and the source of the inversion."""
    digest = hashlib.sha256(method.recipe.encode())
    if method.source is not None:
        digest.update(inspect.getsource(sys.modules[method.source]).encode())
    digest.update(repr((case.voxel_size, case.b0_direction, [b0 for _, b0 in case.turned])).encode())
    for volume in (case.field, case.mask, case.magnitude, *(field for field, _ in case.turned)):
        digest.update(volume.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
