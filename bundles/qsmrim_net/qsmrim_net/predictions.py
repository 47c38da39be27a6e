"""Scores of all methods, seeds and folds side by side: one row a lesion, each scored by models that never saw it."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shared_transforms.atomic import atomic_write
from shared_transforms.errors import QMRIError
from shared_transforms.metrics.detection import average_precision, partial_roc_auc
from shared_transforms.provenance import provenance, write_table

from .cohort.table import KINDS
from .experiments.methods import METHODS
from .fold_scores import FoldScores

__all__ = ["Predictions", "collect"]

UNKNOWN = "unknown"  # kind of a lesion that was not simulated
_LOGIT = re.compile(r"logit_(\w+)_seed(\d+)")
_COLUMNS = (
    "subject", "lesion", "fold", "label", "rater_1", "rater_2", "kind", "voxels", "volume_ml", "amplitude_ppb",
    "status",
)  # fmt: skip
Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass
class Predictions:
    """M lesions in the order of subject and lesion.

    Attributes:
        subject, lesion, fold, label, voxels, status: int64 ``[M]``, as in :class:`.cohort.table.LesionTable`.
        raters: the two raters' answers, int64 ``[M, 2]``.
        kind: what was simulated, one of :data:`.cohort.table.KINDS` or "unknown", text ``[M]``.
        volume_ml: float64 ``[M]``.
        amplitude_ppb: of the simulated rim, NaN where unknown, float64 ``[M]``.
        logits: method, seed -> scores float64 ``[M]``, NaN in folds that were not run.
        source: where the numbers come from.
    """

    subject: Integers
    lesion: Integers
    fold: Integers
    label: Integers
    raters: Integers
    kind: NDArray[np.str_]
    voxels: Integers
    volume_ml: Floats
    amplitude_ppb: Floats
    status: Integers
    logits: dict[tuple[str, int], Floats]
    source: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.subject)

    def seeds(self, method: str) -> tuple[int, ...]:
        """Seeds with which a method has scores of all lesions, rising."""
        return tuple(sorted(seed for (name, seed), z in self.logits.items() if name == method and np.isfinite(z).all()))

    def unfinished(self) -> list[str]:
        """Methods and seeds that lack folds, in words."""
        return [f"{name}, seed {seed}" for (name, seed), z in sorted(self.logits.items()) if not np.isfinite(z).all()]

    def scores(self, method: str, seeds: Sequence[int]) -> Floats:
        """Logits ``[seeds, M]``.

        Raises:
            KeyError: for a seed that was not run.
        """
        return np.stack([self.logits[method, seed] for seed in seeds])

    def save(self, path: str | Path) -> Path:
        """Write a csv with one row a lesion; its first lines, with ``#``, say where the numbers come from."""
        text = io.StringIO(newline="")
        for name, value in self.source.items():
            text.write(f"# {name}: {value if isinstance(value, str) else json.dumps(value)}\n")
        names = sorted(self.logits, key=lambda key: (list(METHODS).index(key[0]), key[1]))
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow([*_COLUMNS, *(f"logit_{method}_seed{seed}" for method, seed in names)])
        columns = [
            self.subject, self.lesion, self.fold, self.label, *self.raters.T, self.kind, self.voxels,
            _texts(self.volume_ml), _texts(self.amplitude_ppb), self.status,
            *(_texts(self.logits[name]) for name in names),
        ]  # fmt: skip
        writer.writerows(zip(*columns, strict=True))
        with atomic_write(path) as file:
            file.write(text.getvalue().encode())
        return Path(path)

    @classmethod
    def load(cls, path: str | Path) -> Predictions:
        """Read a file that :meth:`save` wrote.

        Raises:
            QMRIError: when the file or one of its columns is missing.
        """
        if not Path(path).is_file():
            raise QMRIError(
                file=path, found="no such file", expected="scores of a cross-validation",
                remedy="run configs/cross_validation.json first, or give --predictions",
            )  # fmt: skip
        lines = Path(path).read_text("utf-8").splitlines()
        source = dict(line[2:].split(": ", 1) for line in lines if line.startswith("# "))
        header, *rows = csv.reader(line for line in lines if not line.startswith("#"))
        if missing := [name for name in _COLUMNS if name not in header]:
            raise QMRIError(
                file=path, field=", ".join(missing), found="no such column", expected=", ".join(_COLUMNS),
                remedy="give a file that the collect step of configs/cross_validation.json wrote",
            )  # fmt: skip
        found = dict(zip(header, np.array(rows).T, strict=True))
        logits = {(m[1], int(m[2])): _floats(found[name]) for name in header if (m := _LOGIT.fullmatch(name))}
        whole: dict[str, Any] = {
            name: found[name].astype(np.int64) for name in ("subject", "lesion", "fold", "label", "voxels", "status")
        }
        return cls(
            **whole, raters=np.stack([found[f"rater_{k}"].astype(np.int64) for k in (1, 2)], 1), kind=found["kind"],
            volume_ml=_floats(found["volume_ml"]), amplitude_ppb=_floats(found["amplitude_ppb"]), logits=logits,
            source=source,
        )  # fmt: skip


def collect(output_dir: str | Path, results_dir: str | Path) -> list[Path]:
    """Put the scores of all finished runs together.

    Args:
        output_dir: of :func:`.cross_validation.cross_validate`.
        results_dir: gets ``predictions.csv`` and ``cross_validation.csv`` and ``.json``, one row a run.

    Returns:
        The files.

    Raises:
        QMRIError: without scores, or with scores of two cohorts, other folds, or two recipes of one method.
    """
    paths = sorted(Path(output_dir).glob("*/fold-*_seed-*.pt"))
    runs = [FoldScores.load(path) for path in paths]
    if not runs:
        raise QMRIError(
            file=output_dir, found="no scores", expected="files METHOD/fold-F_seed-S.pt",
            remedy="run configs/cross_validation.json with this output_dir first",
        )  # fmt: skip
    first: dict[str, FoldScores] = {}
    for run, path in zip(runs, paths, strict=True):
        run.refuse_other_recipe(first.setdefault(run.method, run).recipe, path)
        if run.cohort != runs[0].cohort:
            raise QMRIError(
                file=path, field="cohort", found=f"scores of cohort {run.cohort}",
                expected=f"{runs[0].cohort}, that of {paths[0]}", remedy="give each cohort its own output_dir",
            )  # fmt: skip
    predictions = _side_by_side(runs)
    source = provenance() | {
        "commit": ", ".join(sorted({str(run.provenance.get("commit")) for run in runs})),
        "cohort": runs[0].cohort,
        "hours": round(sum(run.seconds for run in runs) / 3600, 2),
    }
    predictions.source = source
    rows = [_run_row(run) for run in sorted(runs, key=lambda r: (list(METHODS).index(r.method), r.seed, r.fold))]
    recipes = {"recipes": {method: run.recipe for method, run in first.items()}}
    folder = Path(results_dir)
    return [
        predictions.save(folder / "predictions.csv"),
        *write_table(folder / "cross_validation", rows, source | recipes),
    ]


def _run_row(run: FoldScores) -> dict[str, Any]:
    label, score = run.lesions["label"].numpy(), run.logit.double().numpy()
    areas = {"proc_auc": partial_roc_auc(label, score), "pr_auc": average_precision(label, score)}
    return {
        "method": run.method, "seed": run.seed, "fold": run.fold, "lesions": len(label), "rims": int(label.sum()),
        **{name: round(value, 5) if np.isfinite(value) else None for name, value in areas.items()},
        "seconds": round(run.seconds, 1), "commit": run.provenance.get("commit"),
    }  # fmt: skip


def _side_by_side(runs: Sequence[FoldScores]) -> Predictions:
    """Lesions of all folds, in order; a fold that one run has and another lacks is NaN there.

    Raises:
        QMRIError: when a lesion stands in two folds.
    """
    by_fold = {run.fold: run for run in runs}
    columns = {
        name: np.concatenate([run.lesions[name].numpy() for run in by_fold.values()]) for name in runs[0].lesions
    }
    fold = np.concatenate([np.full(len(run.logit), number) for number, run in by_fold.items()])
    if any(len(set(fold[columns["subject"] == subject])) > 1 for subject in np.unique(columns["subject"])):
        raise QMRIError(
            field="fold", found="a subject in two folds", expected="runs of one division into folds",
            remedy="give each fold_seed its own output_dir",
        )  # fmt: skip
    order = np.lexsort((columns["lesion"], columns["subject"]))
    place = {key: row for row, key in enumerate(zip(columns["subject"][order], columns["lesion"][order], strict=True))}
    logits: dict[tuple[str, int], Floats] = {}
    for run in runs:
        keys = zip(run.lesions["subject"].tolist(), run.lesions["lesion"].tolist(), strict=True)
        column = logits.setdefault((run.method, run.seed), np.full(len(fold), np.nan))
        column[[place[key] for key in keys]] = run.logit.double().numpy()
    names = np.array([*KINDS, UNKNOWN])
    whole: dict[str, Any] = {
        name: columns[name][order].astype(np.int64)
        for name in ("subject", "lesion", "label", "raters", "voxels", "status")
    }
    return Predictions(
        **whole, fold=fold[order], kind=names[columns["kind"][order]], logits=logits,
        volume_ml=columns["volume_ml"][order].astype(float), amplitude_ppb=columns["amplitude"][order].astype(float),
    )  # fmt: skip


def _texts(values: Floats) -> list[str]:
    """Seven significant digits, so that ties of single precision stay ties, and nothing for NaN."""
    return [f"{value:.7g}" if np.isfinite(value) else "" for value in values]


def _floats(texts: NDArray[np.str_]) -> Floats:
    return np.array([float(text) if text else np.nan for text in texts])
