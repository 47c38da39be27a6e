"""Scores of the lesions of one held-out fold, on disk: one file for each method, fold and seed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shared_transforms.atomic import atomic_write
from shared_transforms.checkpoint import load_checkpoint
from shared_transforms.errors import QMRIError
from shared_transforms.tracking.config import OF_THE_RUN

__all__ = ["COLUMNS", "FoldScores", "score_file"]

# What the experiments need to know of a lesion.
COLUMNS = ("subject", "lesion", "label", "raters", "kind", "voxels", "volume_ml", "amplitude", "status")
# Scores keep a digest of the cohort itself.
_OF_THE_RUN = (*OF_THE_RUN, "cohort_dir")


@dataclass
class FoldScores:
    """What a method says of the lesions of a fold that it was not trained on.

    Attributes:
        method: name, see :data:`.experiments.methods.METHODS`.
        fold: held out.
        seed: of the training.
        lesions: the columns :data:`COLUMNS` of the cohort's table for these n lesions.
        logit: score, float32 ``[n]``: higher is more rim-like.
        cohort: digest of the cohort, see :func:`.cross_validation.cohort_key`.
        seconds: of training and scoring.
        recipe: values that decide the training.
        provenance: commit, date, hardware, versions.
    """

    method: str
    fold: int
    seed: int
    lesions: dict[str, Tensor]
    logit: Tensor
    cohort: str
    seconds: float
    recipe: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.recipe = {name: value for name, value in self.recipe.items() if name not in _OF_THE_RUN}
        if not bool(self.logit.isfinite().all()):
            raise QMRIError(
                field=f"{self.method}, fold {self.fold}, seed {self.seed}",
                found=f"{int((~self.logit.isfinite()).sum())} scores of {len(self.logit)} that are not finite",
                expected="a finite score for every lesion",
                remedy="the training diverged: lower learning_rate, or look at the features of these lesions",
            )

    def save(self, path: Path) -> None:
        """Write the file, complete or not at all."""
        with atomic_write(path) as file:
            torch.save(asdict(self), file)

    @classmethod
    def load(cls, path: Path) -> FoldScores:
        """Read a file that :meth:`save` wrote.

        Raises:
            QMRIError: for a file that is none.
        """
        content = load_checkpoint(path)
        try:
            return cls(**content)
        except TypeError as error:
            raise QMRIError(
                file=path, found=f"a dictionary of {', '.join(map(str, content))}", expected="scores of a fold",
                remedy="delete the file: the run is then done again",
            ) from error  # fmt: skip

    def refuse_other_recipe(self, recipe: Mapping[str, Any], path: Path) -> None:
        """Compare with the recipe of a run that is asked for; values that only one of them has, or None, are free.

        Raises:
            QMRIError: when a value differs.
        """
        for name in sorted(set(recipe) & set(self.recipe)):
            if recipe[name] is not None and recipe[name] != self.recipe[name]:
                raise QMRIError(
                    file=path, field=name, found=f"scores of a run with {self.recipe[name]!r}",
                    expected=f"{recipe[name]!r}, as asked for",
                    remedy="give another output_dir, or delete the scores that are out of date",
                )  # fmt: skip


def score_file(output_dir: str | Path, method: str, fold: int, seed: int) -> Path:
    """Where the scores of a run stand."""
    return Path(output_dir) / method / f"fold-{fold}_seed-{seed}.pt"
