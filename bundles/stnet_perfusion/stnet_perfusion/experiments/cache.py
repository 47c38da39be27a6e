"""Estimates of all methods on disk."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

import physics.perfusion.deconvolution as deconvolution
from physics.perfusion import maps
from shared_transforms.experiments import kept_estimate, key_of

from .. import baselines, frames, inferer, network
from .cohort import Subject
from .methods import Method

SOURCES = (maps, deconvolution, baselines, frames, inferer, network)


def cached_estimate(method: Method, subject: Subject, folder: str | Path | None) -> Tensor:
    """Estimate ``[3, V]`` of a method for a subject, taken from the folder if it is there; None keeps none."""
    if folder is None:
        return method.estimate(subject)
    data = (subject.image, subject.mask, subject.aif, subject.vof, subject.tissue)
    key = key_of(method.recipe, *SOURCES, repr((subject.frame_time, subject.voxel_size)), *data)
    path = Path(folder) / f"{method.name}_{key}.pt"
    return kept_estimate(path, lambda: method.estimate(subject), subject.truth.device)
