"""Scores of the comparators that are no networks, on the fold that they do not see."""

from __future__ import annotations

import torch
from torch import Tensor

from .cohort.table import LesionTable

__all__ = ["untrained_logits"]

_EXTREME = 1e-4  # least distance of a forest's share of votes from 0 and 1, for a finite logit


def untrained_logits(name: str, training: LesionTable, held_out: LesionTable, seed: int) -> Tensor:
    """Logits float32 ``[M]`` of the lesions of the held-out fold.

    Args:
        name: ``aprl_forest``: random forest on the first-order features; ``rim_contrast``: shell minus core of the
            patch; ``size``: logarithm of the number of voxels.
        training: lesions of the other folds.
        held_out: those to score.
        seed: of the forest.

    Raises:
        ValueError: for another name.
    """
    if name == "aprl_forest":
        return _forest(training, held_out, seed)
    if name == "rim_contrast":
        from .rim_contrast import RimContrast

        return RimContrast()(held_out.image).float()
    if name == "size":
        return held_out.voxels.float().log()
    raise ValueError(f"name must be aprl_forest, rim_contrast or size, got {name!r}")


def _forest(training: LesionTable, held_out: LesionTable, seed: int) -> Tensor:
    """A lesion without features gets the score of the mean lesion."""
    from .forest import FirstOrderForest
    from .radiomics.names import FIRST_ORDER

    columns = torch.as_tensor(FIRST_ORDER)
    whole = training.select(training.features[:, columns].isfinite().all(1))
    features = whole.features[:, columns]
    forest = FirstOrderForest(seed=seed)
    forest.fit(features, whole.label)
    asked = held_out.features[:, columns]
    asked = torch.where(asked.isfinite().all(1, keepdim=True), asked, features.mean(0))
    return torch.logit(torch.as_tensor(forest.scores(asked)).double(), eps=_EXTREME).float()
