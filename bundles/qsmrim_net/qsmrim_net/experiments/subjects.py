"""Subject by subject, the paper's figure 7: how many rims are found, how many are there."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import pearsonr

from shared_transforms.experiments import Row, interval, target
from shared_transforms.metrics.statistics import bootstrap

from . import charts, paper
from .bench import Bench
from .methods import COMPARED
from .scores import Flags, Scored, comparisons, subject_counts

CORRELATION, ERROR = 0.89, 1.0
MANY = 4  # rims: with disability, in the paper's discussion


def subjects(bench: Bench, methods: Sequence[str] = COMPARED) -> list[Path]:
    """Correlation and squared error of the counts, with the paper's thresholds and with cross-fitted ones.

    Args:
        bench: scores and output folder.
        methods: names as in :data:`.methods.LABELS`.
    """
    rows, figure = [], {}
    for one in comparisons(bench.scores, methods):
        for name, found in (("own fold", one.found), ("other folds", one.fitted.found)):
            rows.append(count_row(one, found, bench) | {"thresholds": name})
        if one.seeds == bench.scores.seeds(one.method):
            figure[one.method] = subject_counts(one, one.found)
    ours = next((row for row in rows if row["method"] == "qsmrim_net"), None)
    targets = [] if ours is None else [
        target("QSMRim-Net: Pearson's r of the counts", ours["pearson"], CORRELATION, below=False),
        target("QSMRim-Net: mean squared error of the counts", ours["mse"], ERROR),
    ]  # fmt: skip
    notes = [
        "Rims found of each subject against those that the consensus says. thresholds: of the best F1, chosen on the "
        "held-out fold itself as the paper did, or on the other folds. pearson with Fisher's interval; mse with a "
        "bootstrap interval. many_*: subjects with four or more rims.",
        *bench.source_notes(),
    ]
    files = bench.write("subjects", [*rows, *bench.absent(methods)], notes, targets)
    return [*files, bench.save_figure("subjects", charts.subjects_figure(figure))]


def count_row(one: Scored, found: Flags, bench: Bench) -> Row:
    """Agreement of the counts of one method's answers."""
    counted, true = subject_counts(one, found)
    many, truly = counted >= MANY, true >= MANY
    reported = paper.SUBJECTS.get(one.method, (None,) * 4)
    names = ("paper_pearson", "paper_pearson_low", "paper_pearson_high", "paper_mse")

    def squared(rows: Any) -> float:
        return float(np.square(counted - true)[rows].mean())

    error = bootstrap(len(true), squared, resamples=bench.resamples, seed=bench.seed)
    return {
        **one.key, "thresholds": None, "subjects": len(true), **correlation(counted, true), **interval("mse", error),
        "counted": int(counted.sum()), "true": int(true.sum()), "most_counted": int(counted.max()),
        "many_true": int(truly.sum()), "many_counted": int(many.sum()), "many_both": int((many & truly).sum()),
        **dict(zip(names, reported, strict=True)),
    }  # fmt: skip


def correlation(x: Any, y: Any) -> Row:
    """Pearson's r with Fisher's interval; NaN where one of the two does not vary."""
    if np.ptp(x) == 0 or np.ptp(y) == 0 or len(x) < 4:
        return {"pearson": math.nan, "pearson_low": math.nan, "pearson_high": math.nan}
    result = pearsonr(x, y)
    limits = result.confidence_interval(0.95)
    return {"pearson": float(result.statistic), "pearson_low": float(limits.low), "pearson_high": float(limits.high)}
