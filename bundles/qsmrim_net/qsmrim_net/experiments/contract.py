"""Does the simulated cohort keep what makes a good score on it mean something?"""

from __future__ import annotations

from pathlib import Path

from shared_transforms.experiments import Row

from ..cohort.contract import contract as measured
from ..folds import stratified_folds
from .bench import Bench


def contract(bench: Bench) -> list[Path]:
    """Counts, kappa, and how far size, first-order features and the true amplitude tell rims apart.

    Args:
        bench: cohort, folds and output folder.

    Raises:
        ValueError: when the bench has no cohort.
    """
    table = bench.training_cohort()
    folds = stratified_folds(table.rims_per_subject().numpy(), bench.folds, bench.fold_seed)
    rows: list[Row] = measured(table, folds, bench.seed)
    targets = [
        {"target": f"cohort: {row['target']}", "limit": limits(row), "measured": row["measured"], "met": row["met"]}
        for row in rows if row["met"] is not None
    ]  # fmt: skip
    notes = [
        "The cohort on which the methods are cross-validated. Partial ROC areas (false positive rate up to .1, divided "
        "by .1) are means over the folds. low, high: the range asked for; the counts are the paper's.",
    ]
    return bench.write("contract", rows, notes, targets)


def limits(row: Row) -> str:
    """The range of a requirement, in words."""
    low, high = row["low"], row["high"]
    if low is not None and high is not None:
        return f"{low:g}" if low == high else f"{low:g} to {high:g}"
    return f"at least {low:g}" if high is None else f"at most {high:g}"
