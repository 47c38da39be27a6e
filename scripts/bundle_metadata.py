"""What metadata.json takes from configs, constraints, trainings and results; the rest of it is written by hand."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bundle_files import Bundle
from bundle_rules import ACQUISITION, BASES
from docs_results import Results, Row, method_name

if TYPE_CHECKING:
    from documents import Documents

VERSIONS = {"monai_version": "monai", "pytorch_version": "torch", "numpy_version": "numpy"}


@dataclass(frozen=True)
class Metric:
    """One number of ``eval_metrics`` and the column it comes from.

    Attributes:
        name: of the metric.
        column: of the table; its interval stands in ``<column>_low`` and ``<column>_high``.
        unit: of the value.
    """

    name: str
    column: str
    unit: str


def filled(bundle: Bundle, results: Results, constraints: Path, documents: Documents) -> dict[str, Any]:
    """The metadata with versions, acquisition, eval_metrics and provenance brought up to date.

    Args:
        bundle: the bundle.
        results: its results.
        constraints: the pip constraints that name the versions which ran together.
        documents: what is special of the bundle.
    """
    metadata = dict(bundle.metadata)
    pins = dict(re.findall(r"^([\w.-]+)==([\w.]+)", constraints.read_text("utf-8"), re.MULTILINE))
    metadata |= {field: pins[package] for field, package in VERSIONS.items()}
    required = metadata.get("required_packages_version", {})
    metadata["required_packages_version"] = {name: pins.get(name.lower(), given) for name, given in required.items()}
    train, inference = (bundle.configs.get(name, {}) for name in BASES)
    metadata["acquisition"] = {key: train[key] for key in train if key in inference and ACQUISITION.fullmatch(key)}
    metadata = documents.adapt(metadata, bundle)
    metadata["eval_metrics"] = documents.eval_metrics(results)
    metadata["provenance"] = {record["weights"]: provenance(record) for record in results.trainings.values()}
    return metadata


def provenance(record: Mapping[str, Any]) -> Row:
    """The entry of a file of weights; ``commit`` is the plain one, changes beyond it are told beside it."""
    entry: Row = {
        "sha256": record["sha256"],
        "seed": record["seed"],
        "commit": record["commit"].removesuffix("-dirty"),
        "recipe": record["recipe"],
        "hardware": f"{record['hardware']}, {wall_time(record)}",
        "network": record["network"],
    }
    if record["commit"].endswith("-dirty"):
        entry["uncommitted_changes"] = True
    return entry


def wall_time(record: Mapping[str, Any]) -> str:
    """How long a training took, in words, by stages and members; a run that was tracked only in part says so."""
    stages = [*record.get("after", []), record, *record.get("members", [])]
    if not all(stage["seconds"] for stage in stages):
        return "time not recorded"
    text = " + ".join(f"{stage['seconds'] / 60:.0f}" for stage in stages) + " minutes"
    timed, epochs = record["epochs_timed"], record["epochs"]
    return text if timed == epochs else f"{text} for {timed} of {epochs} epochs"


def metric_entry(metric: Metric, row: Row, best: Row, methods: Mapping[str, str], count: int) -> Row:
    """One entry of ``eval_metrics``: the network's value with unit and interval, beside the best classical method's.

    Args:
        metric: which.
        row: the network's row of the table.
        best: that of the classical method.
        methods: names of methods in documents.
        count: of what the metric was taken over.
    """
    return {
        "value": row[metric.column],
        "unit": metric.unit,
        "n": count,
        "confidence_interval": interval(row, metric.column),
        "baseline": {
            "name": method_name(best["method"], methods),
            "value": best[metric.column],
            "confidence_interval": interval(best, metric.column),
        },
    }


def interval(row: Row, column: str) -> list[float]:
    """Confidence interval of a column."""
    return [row[f"{column}_low"], row[f"{column}_high"]]
