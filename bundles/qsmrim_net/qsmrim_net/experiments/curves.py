"""The paper's figure 6: mean ROC curve at few false positives, and mean precision-recall curve, of every method."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from shared_transforms.metrics.detection import StepCurve

from . import charts, paper
from .bench import Bench
from .methods import COMPARED
from .scores import comparisons

FALSE_RATES = (0.0, 0.005, 0.01, 0.02, 0.03, 0.05, 0.07, 0.1)
RECALLS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0)


def curves(bench: Bench, methods: Sequence[str] = COMPARED) -> list[Path]:
    """Sensitivities at false positive rates, precisions at recalls, and the figure of both.

    Args:
        bench: scores and output folder.
        methods: names as in :data:`.methods.LABELS`.
    """
    found = comparisons(bench.scores, methods)
    rows = []
    for one in found:
        roc, pr = one.average("roc"), one.average("pr")
        areas = (("roc", roc, paper.PROC_AUC), ("pr", pr, paper.PR_AUC))
        places = {"roc": FALSE_RATES, "pr": RECALLS}
        rows += [
            {
                **one.key, "curve": kind, "x": x, "y": value_at(mean.curve, x, kind == "pr"), "auc": mean.area,
                "folds": len(mean.areas), "paper_auc": reported.get(one.method),
            }
            for kind, mean, reported in areas for x in places[kind]
        ]  # fmt: skip
    notes = [
        "roc: x false positive rate, y sensitivity, auc up to a rate of .1 and divided by it. pr: x recall, y "
        "precision. Step curves of the folds, averaged on the union of their knots; folds without a rim do not count.",
        *bench.source_notes(),
    ]
    files = bench.write("curves", [*rows, *bench.absent(methods)], notes)
    main = [one for one in found if one.seeds == bench.scores.seeds(one.method)]
    return [*files, bench.save_figure("curves", charts.curves_figure(main))]


def value_at(curve: StepCurve, x: float, from_left: bool) -> float:
    """Value at x: right of a knot it is the next step's; ``from_left`` takes the step that ends there."""
    index = int(np.searchsorted(curve.edges, x, side="left" if from_left else "right")) - 1
    return float(curve.values[min(max(index, 0), len(curve.values) - 1)])
