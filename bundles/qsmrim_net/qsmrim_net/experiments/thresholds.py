"""How much a threshold that is chosen on the lesions it is judged on flatters."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from shared_transforms.metrics.detection import f1_threshold

from .bench import Bench
from .methods import COMPARED
from .scores import Scored, comparisons


def thresholds(bench: Bench, methods: Sequence[str] = COMPARED) -> list[Path]:
    """Rates and counts with the paper's thresholds and with those of the other folds.

    Args:
        bench: scores and output folder.
        methods: names as in :data:`.methods.LABELS`.
    """
    rows = []
    for one in comparisons(bench.scores, methods):
        for name, found in (("own fold", one.found), ("other folds", one.fitted.found)):
            rates = one.rates_row(bench.resamples, bench.seed, found)
            rows.append({**one.key, "thresholds": name, **rates, **_spread(one, name)})
    notes = [
        "own fold: threshold of the best F1 of each held-out fold and seed, on the fold itself (paper; optimistic). "
        "other folds: calibration and threshold of each seed from the other folds, whose lesions were scored by "
        "networks that had not seen them either; what a user gets. threshold_*: lowest and highest over folds and "
        "seeds, of the probability (other folds: calibrated).",
        *bench.source_notes(),
    ]
    return bench.write("thresholds", [*rows, *bench.absent(methods)], notes)


def _spread(one: Scored, name: str) -> dict[str, float]:
    if name == "other folds":
        values = np.concatenate([fitted.seed_thresholds for fitted in one.fitted.calibrations.values()])
    else:
        inside = [one.fold == fold for fold in np.unique(one.fold)]
        logits = [f1_threshold(one.label[k], z[k]) for k in inside for z in one.logits.T]
        values = 1 / (1 + np.exp(-np.array(logits)))
    return {"threshold_low": float(np.nanmin(values)), "threshold_high": float(np.nanmax(values))}
