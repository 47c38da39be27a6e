"""What is missed, and what is taken for a rim: answers by what was simulated."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from shared_transforms.experiments import interval

from ..cohort.table import KINDS
from . import charts
from .bench import Bench
from .methods import COMPARED
from .scores import Flags, comparisons, share_of

THIRDS = ("faint", "middle", "strong")


def kinds(bench: Bench, methods: Sequence[str] = COMPARED) -> list[Path]:
    """Share of the lesions of every kind that is called a rim; rims also by their strength.

    Args:
        bench: scores and output folder.
        methods: names as in :data:`.methods.LABELS`.
    """
    groups = lesion_groups(bench)
    rows = []
    for one in comparisons(bench.scores, methods):
        for name, chosen in groups.items():
            share = one.bootstrap(partial(share_of, one.found, chosen), bench.resamples, bench.seed)
            rows.append({
                **one.key, "kind": name, "lesions": int(chosen.sum()), "called_rim": int(one.found[chosen].sum()),
                **interval("share", share), "paper": None,
            })  # fmt: skip
    notes = [
        "called_rim: by the paper's thresholds, of the best F1 on the held-out fold. Right for rims, wrong for all "
        "other kinds. Rims in three parts of equal size by the susceptibility of the simulated rim over its "
        "surroundings. In the paper's discussion false positives are veins and hyperintense lesions, false negatives "
        "rims that are hyperintense all over.",
        *bench.source_notes(),
    ]
    files = bench.write("kinds", [*rows, *bench.absent(methods)], notes)
    shown = [row for row in rows if row["seeds"] == " ".join(map(str, bench.scores.seeds(row["method"])))]
    return [*files, bench.save_figure("kinds", charts.kinds_figure(shown))]


def lesion_groups(bench: Bench) -> dict[str, Flags]:
    """Lesions ``[M]`` of every kind that there is, and of rims by strength."""
    kind, strength = bench.scores.kind, bench.scores.amplitude_ppb
    groups = {name: kind == name for name in [*KINDS, "unknown"]}
    rims = groups["rim"] & np.isfinite(strength)
    if rims.sum() >= len(THIRDS):
        third = np.full(len(rims), -1)
        ordered = np.flatnonzero(rims)[np.argsort(strength[rims], kind="stable")]
        third[ordered] = np.arange(len(ordered)) * len(THIRDS) // len(ordered)
        groups |= {f"rim, {name}": third == k for k, name in enumerate(THIRDS)}
    return {name: chosen for name, chosen in groups.items() if chosen.any()}
