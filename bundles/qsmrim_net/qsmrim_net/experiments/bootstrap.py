"""Is QSMRim-Net better? Differences to every other method on the same lesions, with intervals over subjects."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from shared_transforms.experiments import Row, interval
from shared_transforms.metrics.statistics import bootstrap as resampled

from .bench import Bench
from .methods import LABELS
from .scores import RATES, Integers, Scored, equal_seeds, subject_counts
from .subjects import correlation

OTHERS = tuple(name for name in LABELS if name != "qsmrim_net")
AREAS = ("proc_auc", "pr_auc")
OF_SUBJECTS = ("pearson", "mse")


def bootstrap(bench: Bench, methods: Sequence[str] = OTHERS) -> list[Path]:
    """QSMRim-Net minus another method, at equal seeds: rates, areas, agreement of the counts.

    Args:
        bench: scores and output folder.
        methods: that QSMRim-Net is compared with, as in :data:`.methods.LABELS`.
    """
    ready = [name for name in methods if bench.scores.seeds(name) and bench.scores.seeds("qsmrim_net")]
    rows = [row for name in ready for row in differences(*equal_seeds(bench.scores, "qsmrim_net", name), bench)]
    notes = [
        "difference: QSMRim-Net minus the method, at the seeds that both have, on the same lesions and the same draws "
        "of subjects. differs: the 95 % interval excludes 0. Answers and counts by the paper's thresholds, of the best "
        "F1 on the held-out fold, the same in all draws. The paper found no significant difference of the rates.",
        *bench.source_notes(),
    ]
    missing = bench.absent(["qsmrim_net", *methods])
    return bench.write("bootstrap", [*rows, *missing], notes)


def differences(ours: Scored, other: Scored, bench: Bench) -> list[Row]:
    """A row for each measure."""

    def row(name: str, statistic: Callable[[Scored, Integers], float], of_subjects: bool = False) -> Row:
        def paired(rows: Integers) -> float:
            return statistic(ours, rows) - statistic(other, rows)

        if of_subjects:
            count = len(np.unique(ours.subject))
            estimate = resampled(count, paired, resamples=bench.resamples, seed=bench.seed)
        else:
            estimate = ours.bootstrap(paired, bench.resamples, bench.seed)
        everything = np.arange(estimate.n if of_subjects else len(ours.label))
        return {
            "method": other.method, "seeds": ours.key["seeds"], "measure": name,
            "qsmrim_net": statistic(ours, everything), "other": statistic(other, everything),
            **interval("difference", estimate), "differs": bool(estimate.low > 0 or estimate.high < 0),
        }  # fmt: skip

    rows = [row(name, partial(_of_lesions, "rate", name)) for name in RATES]
    rows += [row(name, partial(_of_lesions, "area", name)) for name in AREAS]
    counts = {one.method: subject_counts(one, one.found) for one in (ours, other)}

    def agreement(one: Scored, rows: Integers) -> float:
        counted, true = counts[one.method]
        return float(correlation(counted[rows], true[rows])["pearson"])

    def error(one: Scored, rows: Integers) -> float:
        counted, true = counts[one.method]
        return float(np.square(counted[rows] - true[rows]).mean())

    return [*rows, row("pearson", agreement, True), row("mse", error, True)]


def _of_lesions(kind: str, name: str, one: Scored, rows: Integers) -> float:
    return one.rate(name, rows) if kind == "rate" else one.area(name, rows)
