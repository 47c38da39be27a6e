"""What the documents of rim_relaxometry need beside its configs and results."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from bundle_files import Bundle
from bundle_metadata import Metric, metric_entry
from docs_results import Results, Row, Table, split_place

from documents import Documents

METHODS = {
    "rim": "RIM",
    "resnet": "ResNet",
    "mle": "MLE",
    "mle_voxelwise": "MLE, B voxelwise",
    "mle_shared": "MLE, B shared",
    "mle_smooth": "MLE, B smooth",
    "mle_smooth_500": "MLE, B smooth, paper's weight",
    "trivial": "mean of table 1",
}
PROTOCOL = {"T1": "N31", "T2": "N6"}  # the protocols of the configs
TISSUES = ("GM", "WM", "CSF")
NOISE_LEVELS = (10, 30)  # SNR
METRICS = (Metric("RMSE", "rmse", "percent"), Metric("median_bias", "median_bias", "percent"))


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
            name = f"{metric.name}_{row['tissue']}_SNR{row['snr']:g}"
            metrics[name] = metric_entry(metric, row, best, METHODS, row["voxels"])
    return metrics


def losses(results: Results, parameter: str) -> list[Row]:
    """Where the RIM has a larger RMSE than the best classical estimator on the same data."""
    table = results.tables.get(f"{parameter.lower()}_held_out")
    if table is None:
        return []
    keys = ("protocol", "noise", "snr", "texture", "tissue")
    groups: dict[tuple[Any, ...], dict[str, float]] = {}
    for row in table.rows:
        if row.get("rmse") is not None:
            groups.setdefault(tuple(row.get(k) for k in keys), {})[row["method"]] = row["rmse"]
    found = []
    for group, errors in groups.items():
        rivals = {name: error for name, error in errors.items() if name.startswith("mle")}
        best = min(rivals, key=lambda name: rivals[name], default=None)
        if best is not None and "rim" in errors and errors["rim"] > rivals[best]:
            found.append(
                dict(zip(keys, group, strict=True)) | {"rim": errors["rim"], "best": rivals[best], "method": best}
            )
    return found


def place_of(target: str) -> tuple[str, str]:
    """What is asked for, and where: "bias: GM, SNR 10" and "error in GM, SNR 10: within 25 %" name a place."""
    if match := re.fullmatch(r"(.+?) in ((?:GM|WM|CSF)\b.*?): (.+)", target):
        return f"{match[1]}: {match[3]}", match[2]
    if match := re.fullmatch(r"(.+?) at (B = [\d.]+): (.+)", target):
        return match[1], f"{match[2]}, {match[3]}"
    return split_place(target)


def with_channels(metadata: dict[str, Any], bundle: Bundle) -> dict[str, Any]:
    """The data formats with one input channel for each time of the protocol in the configs."""
    for key, overlay, name in (
        ("network_data_format", "train.json", "TI"),
        ("t2_network_data_format", "t2.json", "TE"),
    ):
        if key in metadata and "times_s" in bundle.configs.get(overlay, {}):
            metadata[key] = _with_times(metadata[key], bundle.configs[overlay]["times_s"], name)
    return metadata


def _with_times(data_format: Mapping[str, Any], times: Sequence[float], name: str) -> dict[str, Any]:
    channels = {str(number): f"{name} {1000 * seconds:g} ms" for number, seconds in enumerate(times)}
    image = {**data_format["inputs"]["image"], "num_channels": len(times), "channel_def": channels}
    return {**data_format, "inputs": {**data_format["inputs"], "image": image}}


DOCUMENTS = Documents(
    network="RecurrentInferenceMachine",
    methods=METHODS,
    eval_metrics=eval_metrics,
    losses=losses,
    split_place=place_of,
    adapt=with_channels,
    # Buffers of the acquisition, which earlier networks kept among their weights.
    dispensable=("signal_model.",),
)
