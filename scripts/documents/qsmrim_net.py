"""What the documents of qsmrim_net need beside its configs and results."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from bundle_files import REPOSITORY
from bundle_metadata import Metric, metric_entry
from docs_results import Results, Row

from documents import Documents, constant

METHODS = constant(REPOSITORY / "bundles/qsmrim_net/qsmrim_net/experiments/methods.py", "LABELS")
NETWORK = "qsmrim_net"
CLASSICAL = ("aprl_forest", "rim_contrast", "size")  # without a network
INTERVAL = "95 percent, bootstrap over subjects"
PAPERS = {"thresholds": "own fold"}  # chosen as the paper chose them
# Name of a metric to its table, the rows of it, its column and unit, and whether less is better.
MEASURED: dict[str, tuple[str, Row, Metric, bool]] = {
    "partial_ROC_AUC": ("lesion_table", {}, Metric("partial_ROC_AUC", "proc_auc", "1"), False),
    "PR_AUC": ("lesion_table", {}, Metric("PR_AUC", "pr_auc", "1"), False),
    "F1": ("lesion_table", {}, Metric("F1", "f1", "1"), False),
    "correlation_of_counts": ("subjects", PAPERS, Metric("correlation_of_counts", "pearson", "1"), False),
    "squared_error_of_counts": ("subjects", PAPERS, Metric("squared_error_of_counts", "mse", "1"), True),
    "share_to_review": ("review", PAPERS, Metric("share_to_review", "share", "1"), True),
}
# Table to the columns that name a comparison, and the measures in which the network may lose; True: less is better.
COMPARED: dict[str, tuple[tuple[str, ...], dict[str, bool]]] = {
    "lesion_table": ((), {"proc_auc": False, "pr_auc": False, "f1": False}),
    "ablation": ((), {"proc_auc": False, "pr_auc": False, "f1": False}),
    "thresholds": (("thresholds",), {"f1": False}),
    "subjects": (("thresholds",), {"pearson": False, "mse": True}),
    "review": (("thresholds",), {"share": True}),
    "calibration": (("calibrated",), {"brier": True}),
    "new_cohort": ((), {"proc_auc": False, "pr_auc": False}),
}
HEADINGS = {
    "f1": "F1",
    "ppv": "PPV",
    "tp": "TP",
    "fp": "FP",
    "fn": "FN",
    "tn": "TN",
    "proc_auc": "pROC AUC",
    "pr_auc": "PR AUC",
    "auc": "AUC",
    "pearson": "r",
    "mse": "MSE",
    "ece": "ECE",
    "brier": "Brier score",
    "review_ece": "ECE",
    "share": "share",
    "paper_fp": "paper's FP",
    "paper_to_review": "paper's to review",
    "paper_share": "paper's share",
    "paper_proc_auc": "paper's pROC AUC",
    "paper_pr_auc": "paper's PR AUC",
    "paper_f1": "paper's F1",
    "paper_pearson": "paper's r",
    "paper_mse": "paper's MSE",
    "many_true": "with 4 or more rims",
    "many_counted": "counted with 4 or more",
    "many_both": "both",
    "qsmrim_net": "QSMRim-Net",
    "wall_seconds": "seconds",
}


def eval_metrics(results: Results) -> dict[str, Any]:
    """What QSMRim-Net reaches in the cross-validation, beside the best method without a network."""
    found = {}
    for name, (table, place, metric, less) in MEASURED.items():
        own, rivals = _main(results, table, place, (NETWORK,)), _main(results, table, place, CLASSICAL)
        rivals = [row for row in rivals if row.get(f"{metric.column}_low") is not None]
        if own and rivals and own[0].get(f"{metric.column}_low") is not None:
            best = _best(rivals, metric.column, less)
            count = own[0].get("lesions") or own[0]["subjects"]
            found[name] = metric_entry(metric, own[0], best, METHODS, count) | {"interval": INTERVAL}
    return {"rim": found} if found else {}


def losses(results: Results) -> list[Row]:
    """Where QSMRim-Net does worse than the best of the other methods, variants of itself too."""
    return [row for name in COMPARED for row in _losses_of(results, name)]


def _losses_of(results: Results, name: str) -> Iterator[Row]:
    keys, measures = COMPARED[name]
    for own in _main(results, name, {}, (NETWORK,), keys):
        place = {key: own[key] for key in keys}
        rivals = _main(results, name, place, tuple(method for method in METHODS if method != NETWORK))
        for column, less in measures.items():
            measured = [row for row in rivals if row.get(column) is not None]
            if own.get(column) is None or not measured:
                continue
            best = _best(measured, column, less)
            if (best[column] <= own[column]) if less else (best[column] >= own[column]):
                where = ", ".join(f"{HEADINGS.get(key, key)}: {value}" for key, value in place.items())
                yield {"table": name, "where": where, "metric": HEADINGS[column], "QSMRim-Net": own[column]} | {
                    "best of the others": best[column],
                    "method": best["method"],
                }


def _best(rows: list[Row], column: str, less: bool) -> Row:
    return (min if less else max)(rows, key=lambda row: row[column])


def _main(results: Results, name: str, place: Row, methods: tuple[str, ...], keys: tuple[str, ...] = ()) -> list[Row]:
    """The first row of every method in each place of a table, which has all its seeds; none without such a table."""
    table = results.tables.get(name)
    found: dict[tuple[Any, ...], Row] = {}
    for row in [] if table is None else table.where(method=methods, note=None, **place):
        found.setdefault((row["method"], *(row.get(key) for key in keys)), row)
    return list(found.values())


def whole_target(target: str) -> tuple[str, str]:
    """What is asked for: all of its name; no place of several stands in it."""
    return target, ""


DOCUMENTS = Documents(
    methods=METHODS,
    eval_metrics=eval_metrics,
    losses=losses,
    headings=HEADINGS,
    split_place=whole_target,
)
