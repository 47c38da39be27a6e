"""Estimates on disk, so that a run that was cut off goes on, and new weights do not redo what has not changed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TypeVar

import torch
from torch import Tensor

from shared_transforms.atomic import atomic_write

__all__ = ["kept_estimate", "key_of"]

Estimate = TypeVar("Estimate")


def kept_estimate(path: Path, make: Callable[[], Estimate], device: torch.device | str = "cpu") -> Estimate:
    """What a file holds, or else what ``make`` gives, which the file then holds.

    Args:
        path: of the file; its name should have a :func:`key_of` all that the estimate depends on.
        make: gives tensors and plain values, as ``torch.load(weights_only=True)`` reads them.
        device: of tensors that are read.
    """
    if path.is_file():
        found: Estimate = torch.load(path, map_location=device, weights_only=True)
        return found
    estimate = make()
    with atomic_write(path) as file:
        # A view would bring along all that it is a view of.
        torch.save(estimate.clone() if isinstance(estimate, Tensor) else estimate, file)
    return estimate


def key_of(*parts: str | Tensor | ModuleType) -> str:
    """Sixteen hexadecimal digits that change with any of the parts.

    Args:
        parts: texts, the values of tensors, the source of modules and of all modules of a package's folder.
    """
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, str):
            digest.update(part.encode())
        elif isinstance(part, Tensor):
            digest.update(part.detach().cpu().contiguous().numpy().tobytes())
        else:
            for path in _sources(part):
                digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _sources(module: ModuleType) -> list[Path]:
    if hasattr(module, "__path__"):
        return sorted(Path(module.__path__[0]).glob("*.py"))
    return [Path(str(module.__file__))]
