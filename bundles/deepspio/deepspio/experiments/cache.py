"""Maps of the classical methods on disk: they take seconds for an image."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

import physics.viewline as viewline
from shared_transforms.experiments import kept_estimate, key_of

from .. import baselines, dipole_fit, line_tracking, particle_support, resimulation
from .methods import Method

SOURCES = (viewline, baselines, dipole_fit, line_tracking, particle_support, resimulation)


def cached_estimate(method: Method, image: Tensor, folder: str | Path | None) -> Tensor:
    """Maps ``[n, 1, X, Z]`` of a slow method, taken from the folder where they are there; None keeps none."""
    if folder is None or not method.slow:
        return method.estimate(image)
    return torch.cat([_one(method, part, Path(folder)) for part in image.split(1)])


def _one(method: Method, image: Tensor, folder: Path) -> Tensor:
    path = folder / f"{method.name}_{key_of(method.recipe, *SOURCES, image)}.pt"
    return kept_estimate(path, lambda: method.estimate(image), image.device)
