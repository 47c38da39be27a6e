"""What every experiment of this bundle needs: scores of the cross-validation, the cohort, the shipped network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from shared_transforms.experiments import ResultBench, Row
from shared_transforms.weights import load_weights

from ..cohort.table import LesionTable
from ..predictions import Predictions
from .methods import LABELS

__all__ = ["Bench", "load_network"]

_OF_SCORES = (
    "lesion_table", "ablation", "curves", "subjects", "bootstrap", "review", "raters", "thresholds", "calibration",
    "kinds",
)  # fmt: skip
_OF_NETWORK = ("new_cohort", "timing")


@dataclass
class Bench(ResultBench):
    """Scores and the folder of their results.

    Attributes:
        predictions: file of the scores, see :class:`..predictions.Predictions`.
        output_dir: tables go to ``results`` in it, figures to ``figures``.
        seed: of all random streams.
        quick: a run in seconds that shows that all works; its numbers mean little. May be the text ``"true"``.
        draws: of subjects, for intervals.
        device: where the network runs.
        network: the shipped ensemble, None where its weights are absent.
        weights: file of its weights, for the record.
        cohort: gives lesions of the simulated cohort; arguments as :func:`..cohort.source.load_cohort`.
        folds: of the cross-validation.
        fold_seed: of its division.
        cohort_dir: of the cross-validation's cohort, where it is no simulated one, as in train.json.
    """

    predictions: str | Path
    output_dir: str | Path
    seed: int = 0
    quick: bool | str = False
    draws: int = 500
    device: Any = "cpu"
    network: nn.Module | None = None
    weights: str | Path = "model.pt"
    cohort: Callable[..., LesionTable] | None = None
    folds: int = 5
    fold_seed: int = 0
    cohort_dir: str | Path | None = None

    def __post_init__(self) -> None:
        self.device = torch.device(self.device)
        if self.network is not None:
            self.network = self.network.to(self.device).eval()

    @cached_property
    def scores(self) -> Predictions:
        """The scores of all methods."""
        return Predictions.load(self.predictions)

    def training_cohort(self) -> LesionTable:
        """The cohort of the cross-validation.

        Raises:
            ValueError: when the bench has none.
        """
        if self.cohort is None:
            raise ValueError("cohort must be given, got None")
        return self.cohort(cohort_dir=self.cohort_dir)

    @property
    def resamples(self) -> int:
        """Draws of this run."""
        return self.pick(self.draws, 20)

    def left_out(self, name: str) -> str | None:
        """Why an experiment does not apply, or None if it does."""
        if name in _OF_SCORES and not Path(self.predictions).is_file():
            return f"no file {Path(self.predictions).name} of scores: run cross_validation.json, then its step collect"
        if name in _OF_NETWORK and self.network is None:
            return f"no file {Path(self.weights).name} of the network's weights"
        return None

    def weight_files(self) -> dict[str, str | Path]:
        """The ensemble's weights."""
        return {} if self.network is None else {"weights": self.weights}

    def absent(self, methods: Sequence[str]) -> list[Row]:
        """A row for each method that lacks scores; it says so."""
        return [
            {"method": name, "note": f"left out: {LABELS[name]} has no scores of all folds"}
            for name in methods if not self.scores.seeds(name)
        ]  # fmt: skip

    def source_notes(self) -> list[str]:
        """What a reader must know of the scores."""
        notes = [
            "Each lesion of the simulated cohort is scored by networks whose training did not see its subject: "
            f"{len(set(self.scores.fold.tolist()))} folds, stratified by the number of rims. seeds: trainings whose "
            "answers go together: majority of the votes for answers (of two: both), mean probability for curves. Where "
            "a method has fewer seeds than QSMRim-Net, a further row has QSMRim-Net at the same. Intervals: 95 %, "
            f"bootstrap over subjects, {self.resamples} draws. Columns paper_*: the authors' patients, other data.",
        ]
        if unfinished := self.scores.unfinished():
            notes.append(f"Not all folds are done, and therefore left out: {'; '.join(unfinished)}.")
        return notes


def load_network(definition: nn.Module, path: str | Path) -> nn.Module | None:
    """A network with its weights, or None where their file is absent."""
    return load_weights(definition, path, network="qsmrim_net").eval() if Path(path).is_file() else None
