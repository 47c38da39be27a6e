"""Estimates on disk, so that a run that was cut off goes on, and new weights do not redo what has not changed."""

from __future__ import annotations

import hashlib
import inspect
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

import physics.perfusion.deconvolution as deconvolution
from physics.perfusion import maps
from shared_transforms.atomic import atomic_write

from .. import baselines, frames, inferer, network
from .cohort import Subject
from .methods import Method


def cached_estimate(method: Method, subject: Subject, folder: str | Path | None) -> Tensor:
    """Estimate ``[3, V]`` of a method for a subject, taken from the folder if it is there; None keeps none."""
    if folder is None:
        return method.estimate(subject)
    path = Path(folder) / f"{method.name}_{_key(method, subject)}.pt"
    if path.is_file():
        return torch.load(path, map_location=subject.truth.device, weights_only=True)
    estimate = method.estimate(subject)
    with atomic_write(path) as file:
        torch.save(estimate.clone(), file)
    return estimate


def _key(method: Method, subject: Subject) -> str:
    """Changes with the data, the options or weights, and the sources of the methods."""
    digest = hashlib.sha256(method.recipe.encode())
    for module in (maps, baselines, frames, inferer, network):
        digest.update(inspect.getsource(module).encode())
    digest.update(_sources(deconvolution))
    digest.update(repr((subject.frame_time, subject.voxel_size)).encode())
    for values in (subject.image, subject.mask, subject.aif, subject.vof, subject.tissue):
        digest.update(values.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _sources(package: ModuleType) -> bytes:
    """Sources of all modules of a package."""
    return b"".join(path.read_bytes() for path in sorted(Path(package.__path__[0]).glob("*.py")))
