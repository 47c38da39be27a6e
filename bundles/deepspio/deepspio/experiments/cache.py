"""Maps of the classical methods on disk, so that new weights do not redo what has not changed."""

from __future__ import annotations

import hashlib
import inspect
from pathlib import Path

import torch
from torch import Tensor

import physics.viewline as viewline
from shared_transforms.atomic import atomic_write

from .. import baselines, dipole_fit, line_tracking, particle_support, resimulation
from .methods import Method


def cached_estimate(method: Method, image: Tensor, folder: str | Path | None) -> Tensor:
    """Maps ``[n, 1, X, Z]`` of a slow method, taken from the folder where they are there; None keeps none."""
    if folder is None or not method.slow:
        return method.estimate(image)
    return torch.cat([_one(method, part, Path(folder)) for part in image.split(1)])


def _one(method: Method, image: Tensor, folder: Path) -> Tensor:
    path = folder / f"{method.name}_{_key(method, image)}.pt"
    if path.is_file():
        return torch.load(path, map_location=image.device, weights_only=True)
    estimate = method.estimate(image)
    with atomic_write(path) as file:
        torch.save(estimate.clone(), file)
    return estimate


def _key(method: Method, image: Tensor) -> str:
    """Changes with the image, the options, and the sources of the methods."""
    digest = hashlib.sha256(method.recipe.encode())
    for path in sorted(Path(viewline.__path__[0]).glob("*.py")):
        digest.update(path.read_bytes())
    for module in (baselines, dipole_fit, line_tracking, particle_support, resimulation):
        digest.update(inspect.getsource(module).encode())
    digest.update(image.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
