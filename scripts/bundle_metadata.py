"""What metadata.json takes from configs, constraints, trainings and results; the rest of it is written by hand."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bundle_files import Bundle
from bundle_rules import ACQUISITION, BASES
from docs_results import Results, Row, Table, method_name

VERSIONS = {"monai_version": "monai", "pytorch_version": "torch", "numpy_version": "numpy"}
PROTOCOL = {"T1": "N31", "T2": "N6"}  # the protocols of the configs
TISSUES = ("GM", "WM", "CSF")
NOISE_LEVELS = (10, 30)  # SNR


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


METRICS = (Metric("RMSE", "rmse", "percent"), Metric("median_bias", "median_bias", "percent"))


def filled(bundle: Bundle, results: Results, constraints: Path) -> dict[str, Any]:
    """The metadata with versions, acquisition, eval_metrics and provenance brought up to date.

    Args:
        bundle: the bundle.
        results: its results.
        constraints: the pip constraints that name the versions which ran together.
    """
    metadata = dict(bundle.metadata)
    pins = dict(re.findall(r"^([\w.-]+)==([\w.]+)", constraints.read_text("utf-8"), re.MULTILINE))
    metadata |= {field: pins[package] for field, package in VERSIONS.items()}
    required = metadata.get("required_packages_version", {})
    metadata["required_packages_version"] = {package: pins.get(package, required[package]) for package in required}
    train, inference = (bundle.configs.get(name, {}) for name in BASES)
    metadata["acquisition"] = {key: train[key] for key in train if key in inference and ACQUISITION.fullmatch(key)}
    for key, overlay, name in (
        ("network_data_format", "train.json", "TI"),
        ("t2_network_data_format", "t2.json", "TE"),
    ):
        if key in metadata and "times_s" in bundle.configs.get(overlay, {}):
            metadata[key] = _with_channels(metadata[key], bundle.configs[overlay]["times_s"], name)
    metadata["eval_metrics"] = eval_metrics(results)
    metadata["provenance"] = {record["weights"]: provenance(record) for record in results.trainings.values()}
    return metadata


def _with_channels(data_format: Mapping[str, Any], times: Sequence[float], name: str) -> dict[str, Any]:
    """The data format with one input channel for each time of the protocol in the config."""
    channels = {str(number): f"{name} {1000 * seconds:g} ms" for number, seconds in enumerate(times)}
    image = {**data_format["inputs"]["image"], "num_channels": len(times), "channel_def": channels}
    return {**data_format, "inputs": {**data_format["inputs"], "image": image}}


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
    """How long a training took, in words; a run that was tracked only in part says so."""
    if not record["seconds"]:
        return "time not recorded"
    text = f"{record['seconds'] / 60:.0f} minutes"
    timed, epochs = record["epochs_timed"], record["epochs"]
    return text if timed == epochs else f"{text} for {timed} of {epochs} epochs"


def eval_metrics(results: Results) -> dict[str, Any]:
    """Errors on held-out heads for each parameter, with interval and unit, beside the best classical estimator."""
    found: dict[str, Any] = {}
    for parameter in PROTOCOL:
        table = results.tables.get(f"{parameter.lower()}_held_out")
        if table is not None:
            found[parameter] = _metrics_of(table, parameter)
    return found


def _metrics_of(table: Table, parameter: str) -> dict[str, Any]:
    metrics: dict[str, Any] = {}
    shown = {"protocol": PROTOCOL[parameter], "noise": "rician", "texture": True}
    for row in table.where(method="rim", tissue=TISSUES, snr=NOISE_LEVELS, **shown):
        rivals = table.where(tissue=row["tissue"], snr=row["snr"], **shown)
        rivals = [r for r in rivals if r["method"].startswith("mle") and r.get("rmse") is not None]
        if not rivals:
            continue
        best = min(rivals, key=lambda r: r["rmse"])
        for metric in METRICS:
            metrics[f"{metric.name}_{row['tissue']}_SNR{row['snr']:g}"] = {
                "value": row[metric.column],
                "unit": metric.unit,
                "n": row["voxels"],
                "confidence_interval": interval(row, metric.column),
                "baseline": {
                    "name": method_name(best["method"]),
                    "value": best[metric.column],
                    "confidence_interval": interval(best, metric.column),
                },
            }
    return metrics


def interval(row: Row, column: str) -> list[float]:
    """Confidence interval of a column."""
    return [row[f"{column}_low"], row[f"{column}_high"]]
