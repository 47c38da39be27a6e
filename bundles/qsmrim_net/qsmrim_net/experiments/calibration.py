"""Do the probabilities mean what they say, before and after they are calibrated?"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from shared_transforms.experiments import interval, target
from shared_transforms.metrics.calibration import expected_calibration_error, reliability

from . import charts
from .bench import Bench
from .methods import COMPARED
from .scores import Floats, Integers, comparisons

ERROR = 0.05


def calibration(bench: Bench, methods: Sequence[str] = COMPARED) -> list[Path]:
    """Expected calibration error and Brier score of the mean probability, as it comes and cross-fitted.

    Args:
        bench: scores and output folder.
        methods: names as in :data:`.methods.LABELS`.
    """
    rows, bins, figure = [], [], {}
    for one in comparisons(bench.scores, methods):
        prevalence = float(one.label.mean())
        for name, value in (("before", one.mean), ("after", one.fitted.mean)):
            error = one.bootstrap(partial(_error, one.label, value), bench.resamples, bench.seed)
            rows.append({
                **one.key, "calibrated": name, **interval("ece", error), "brier": _brier(one.label, value),
                "brier_of_prevalence": prevalence * (1 - prevalence), "mean_probability": float(value.mean()),
                "prevalence": prevalence, "paper": None,
            })  # fmt: skip
            if one.method == "qsmrim_net" and one.seeds == bench.scores.seeds("qsmrim_net"):
                figure[name] = found = reliability(one.label, value)
                bins += [
                    {"calibrated": name, "from": low, "to": high, "lesions": int(n), "predicted": p, "observed": o}
                    for low, high, n, p, o in zip(
                        found.edges[:-1], found.edges[1:], found.counts, found.predicted, found.observed, strict=True
                    )
                ]  # fmt: skip
    ours = next((row for row in rows if row["method"] == "qsmrim_net" and row["calibrated"] == "after"), None)
    targets = [] if ours is None else [target("QSMRim-Net: ECE after calibration", ours["ece"], ERROR)]
    notes = [
        "ece: ten bins of equal width of the mean probability over the seeds. before: as the networks give it; trained "
        "with additional synthetic rims it says too much. after: each seed's logit by Platt's line, fitted on the "
        "other folds. Most lesions are in the first bin, so that the prevalence, said of each, has an ece of 0: brier "
        "(mean squared error of the probability) tells it from a method. The paper has no calibration.",
        *bench.source_notes(),
    ]
    files = bench.write("calibration", [*rows, *bench.absent(methods)], notes, targets)
    if bins:
        files += bench.write("reliability", bins, notes[:1])
        files.append(bench.save_figure("reliability", charts.reliability_figure(figure)))
    return files


def _error(label: Integers, probability: Floats, rows: Integers) -> float:
    return expected_calibration_error(label[rows], probability[rows])


def _brier(label: Integers, probability: Floats) -> float:
    return float(np.square(probability - label).mean())
