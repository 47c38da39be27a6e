"""How good maps are: NMAE of single images, its summary, and the middle of a phantom."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from shared_transforms.experiments import Row, interval
from shared_transforms.metrics import Estimate, bootstrap, normalised_mae

from .scenes import disc


def nmae(estimate: Tensor, truth: Tensor) -> Tensor:
    """NMAE of each image ``[n]`` of maps ``[n, 1, X, Z]``, over the whole image."""
    return normalised_mae(estimate, truth).cpu()


def mean_row(values: Tensor, seed: int = 0, column: str = "nmae") -> Row:
    """Mean of a figure of merit over images, its SD and its 95 % bootstrap interval.

    Args:
        values: of the images ``[n]``.
        seed: of the bootstrap.
        column: what it is called.

    Returns:
        Columns ``images``, ``<column>``, ``<column>_sd``, ``<column>_low`` and ``<column>_high``.
    """
    n = len(values)
    spread = float(values.double().std()) if n > 1 else None
    return {"images": n, column: None, f"{column}_sd": spread, **interval(column, mean_of(values, seed))}


def mean_of(values: Tensor, seed: int = 0) -> Estimate:
    """Mean over images with its 95 % bootstrap interval."""
    numbers = values.double().cpu().numpy()
    return bootstrap(len(numbers), lambda rows: float(numbers[rows].mean()), seed=seed)


def centre_mean(maps: Tensor, centres: Sequence[tuple[float, float]], radius: float, step: float) -> Tensor:
    """Mean of each map over a disc: what a reader of a phantom takes for its concentration.

    Args:
        maps: ``[n, 1, X, Z]`` [ug/mm^3], as wide as long.
        centres: (x, z) of the discs from the middle of the image [mm].
        radius: of the discs [mm].
        step: of the pixels [mm].

    Returns:
        ``[n]`` [ug/mm^3]; pixels count by their share in the disc.
    """
    weights = disc(maps.shape[-1], step, torch.tensor(centres, dtype=maps.dtype, device=maps.device), radius)
    return ((maps[:, 0] * weights).sum((1, 2)) / weights.sum((1, 2))).cpu()
