"""How far two regions coincide, and how well a map tells a region from the rest.

Masks that are empty have rules: both empty agree fully (Dice and IoU 1), one empty not at all (0). A distance to an
empty region does not exist: it is NaN, to be left out of means and counted.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["dice", "equal_error_threshold", "hausdorff95", "iou", "roc_auc"]


def dice(found: Tensor, true: Tensor) -> float:
    """Dice overlap of two regions.

    Args:
        found: any shape, nonzero inside.
        true: same shape, nonzero inside.

    Returns:
        In [0, 1]; 1 where both are empty, 0 where one is.

    Raises:
        ValueError: when the shapes differ.
    """
    found, true = _regions(found, true)
    size = int(found.sum()) + int(true.sum())
    return 2.0 * int((found & true).sum()) / size if size else 1.0


def iou(found: Tensor, true: Tensor) -> float:
    """Intersection over union of two regions (Jaccard index).

    Args:
        found: any shape, nonzero inside.
        true: same shape, nonzero inside.

    Returns:
        In [0, 1]; 1 where both are empty, 0 where one is.

    Raises:
        ValueError: when the shapes differ.
    """
    overlap = dice(found, true)
    return overlap / (2.0 - overlap)


def hausdorff95(found: Tensor, true: Tensor, voxel_size: Sequence[float]) -> float:
    """Hausdorff distance with the 95th percentile instead of the maximum, between the borders of two regions.

    The larger of both directions, as MONAI has it.

    Args:
        found: [X, Y, Z], nonzero inside.
        true: same shape, nonzero inside.
        voxel_size: (dx, dy, dz) [mm].

    Returns:
        Distance [mm]; NaN where a region is empty.

    Raises:
        ValueError: when the shapes differ.
    """
    from monai.metrics import compute_hausdorff_distance  # here: MONAI takes seconds to import

    found, true = _regions(found, true)
    if not (found.any() and true.any()):
        return math.nan
    spacing = [float(step) for step in voxel_size]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of MONAI about a call of its own
        distance = compute_hausdorff_distance(
            found[None, None], true[None, None], include_background=True, percentile=95, spacing=spacing
        )
    return float(distance)


def roc_auc(score: Tensor, true: Tensor) -> float:
    """Area under the receiver operating characteristic of a map against a region.

    Args:
        score: any shape, higher where the region is thought to be.
        true: same shape, nonzero inside.

    Returns:
        In [0, 1], .5 for a map that says nothing; NaN where all or no voxels are in the region.

    Raises:
        ValueError: when the shapes differ.
    """
    from sklearn.metrics import roc_auc_score  # here: only experiments need it

    score, true = _scored(score, true)
    return float(roc_auc_score(true.numpy(), score.numpy())) if true.any() and not true.all() else math.nan


def equal_error_threshold(score: Tensor, true: Tensor) -> float:
    """Threshold of a map at which as large a share of the region is missed as of the rest is taken: TPR = 1 - FPR.

    Args:
        score: any shape, higher where the region is thought to be.
        true: same shape, nonzero inside.

    Returns:
        In the unit of the score; the region found is where the score is larger or equal. NaN where all or no voxels
        are in the region, or the score is the same everywhere.

    Raises:
        ValueError: when the shapes differ.
    """
    from sklearn.metrics import roc_curve

    score, true = _scored(score, true)
    if true.all() or not true.any() or not (score != score[0]).any():
        return math.nan
    false_positive, true_positive, thresholds = roc_curve(true.numpy(), score.numpy(), drop_intermediate=False)
    # The first point of the curve takes no voxel: its threshold is infinite.
    return float(thresholds[1:][abs(true_positive - (1.0 - false_positive))[1:].argmin()])


def _regions(found: Tensor, true: Tensor) -> tuple[Tensor, Tensor]:
    if found.shape != true.shape:
        raise ValueError(f"both must have one shape, got {tuple(found.shape)} and {tuple(true.shape)}")
    return found != 0, true != 0


def _scored(score: Tensor, true: Tensor) -> tuple[Tensor, Tensor]:
    if score.shape != true.shape:
        raise ValueError(f"both must have one shape, got {tuple(score.shape)} and {tuple(true.shape)}")
    return torch.as_tensor(score).detach().flatten().double().cpu(), (true != 0).flatten().cpu()
