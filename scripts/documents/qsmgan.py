"""What the documents of qsmgan need beside its configs and results."""

from __future__ import annotations

from typing import Any

from bundle_files import Bundle
from bundle_metadata import Metric, metric_entry
from docs_results import Results, Row, Table

from documents import Documents

METHODS = {
    "tkd": "TKD",
    "tkd_corrected": "TKD, slope corrected",
    "tikhonov": "Tikhonov",
    "l2_gradient": "L2 of gradients",
    "tv_admm": "TV",
    "tv": "TV",
    "tv_scaled": "TV, scaled",
    "ilsqr": "iLSQR",
    "medi": "MEDI",
    "medi0": "MEDI+0",
    "cosmos": "COSMOS",
    "unet": "U-Net",
    "qsmgan": "QSMGAN",
    "paper": "the paper's U-Net",
    "zero": "zero",
}
NETWORKS = ("unet", "qsmgan")
# COSMOS has the data of several orientations, the trivial answer none: neither is a rival on the same data.
NO_RIVALS = (*NETWORKS, "paper", "cosmos", "zero")
METRICS = (
    Metric("NRMSE", "nrmse", "percent"),
    Metric("detrended_NRMSE", "detrended_nrmse", "percent"),
    Metric("HFEN", "hfen", "percent"),
    Metric("XSIM", "xsim", "1"),
    Metric("SSIM", "ssim", "1"),
)
HIGHER_IS_BETTER = ("xsim", "ssim", "psnr")
HEADINGS = {
    "nrmse": "NRMSE [%]",
    "detrended_nrmse": "detrended NRMSE [%]",
    "hfen": "HFEN [%]",
    "xsim": "XSIM",
    "ssim": "SSIM",
    "psnr": "PSNR [dB]",
    "noise_ppm": "noise [ppm]",
    "seconds": "seconds",
    "cpu_seconds": "CPU seconds",
    "memory_mb": "memory [MB]",
    "memory_gb": "memory [GB]",
    "tilt_deg": "tilt [degrees]",
    "voxel_size_mm": "voxel [mm]",
}
CASES = ("data", "object", "phantom", "noise_ppm", "tilt_deg", "voxel_size_mm")
COUNTS = ("heads", "subjects", "volumes", "n", "voxels")
METHOD_TABLE = "method_table"


def eval_metrics(results: Results) -> dict[str, Any]:
    """Errors of QSMGAN on held-out heads with interval and unit, beside the best classical inversion."""
    table = results.tables.get(METHOD_TABLE)
    if table is None:
        return {}
    metrics: dict[str, Any] = {}
    for case, row, rivals in _cases(table, "qsmgan"):
        for metric in METRICS:
            measured = [r for r in rivals if f"{metric.column}_low" in r and r[metric.column] is not None]
            if not measured or f"{metric.column}_low" not in row:
                continue
            name = "_".join([metric.name, *(f"{key}_{value}" for key, value in case.items())]).replace(" ", "_")
            count = next(int(row[key]) for key in COUNTS if row.get(key))
            metrics[name] = metric_entry(metric, row, _best(measured, metric.column), METHODS, count)
    return {"susceptibility": metrics} if metrics else {}


def losses(results: Results) -> list[Row]:
    """Where a network does worse than the best classical inversion on the same data, metric by metric."""
    table = results.tables.get(METHOD_TABLE)
    if table is None:
        return []
    found: list[Row] = []
    for network in NETWORKS:
        for case, row, rivals in _cases(table, network):
            for metric in METRICS:
                measured = [r for r in rivals if r.get(metric.column) is not None]
                if not measured or row.get(metric.column) is None:
                    continue
                best = _best(measured, metric.column)
                if best is not row and _best([best, row], metric.column) is best:
                    found.append(
                        case
                        | {"network": METHODS[network], "metric": HEADINGS[metric.column]}
                        | {"value": row[metric.column], "best": best[metric.column], "method": best["method"]}
                    )
    return found


def _best(rows: list[Row], column: str) -> Row:
    """The row with the best value; the first of equals."""
    sign = -1.0 if column in HIGHER_IS_BETTER else 1.0
    return min(rows, key=lambda row: sign * row[column])


def _cases(table: Table, network: str) -> list[tuple[Row, Row, list[Row]]]:
    """For each case of the table what tells it from others, the network's row, and those of its classical rivals."""
    names = [name for name in table.rows[0] if name in CASES] if table.rows else []
    found = []
    for row in table.where(method=network):
        case = {name: row[name] for name in names}
        rivals = [r for r in table.where(**case) if r["method"] not in NO_RIVALS]
        found.append((case, row, rivals))
    return found


def with_channels(metadata: dict[str, Any], bundle: Bundle) -> dict[str, Any]:
    """The data format with the channels, patch size and crop of train.json."""
    train = bundle.configs.get("train.json", {})
    if not {"channels", "patch_size", "crop"} <= train.keys():
        return metadata
    units = {"magnitude": "relative to its mean"}
    channels = {str(k): f"{name} [{units.get(name, 'ppm')}]" for k, name in enumerate(train["channels"])}
    size, crop = train["patch_size"], train["crop"]
    described = metadata["network_data_format"]
    image, pred = described["inputs"]["image"], described["outputs"]["pred"]
    image = image | {"num_channels": len(channels), "channel_def": channels, "spatial_shape": [size] * 3}
    pred = pred | {"spatial_shape": [size - 2 * crop] * 3}
    return metadata | {"network_data_format": {"inputs": {"image": image}, "outputs": {"pred": pred}}}


DOCUMENTS = Documents(
    methods=METHODS,
    eval_metrics=eval_metrics,
    losses=losses,
    headings=HEADINGS,
    adapt=with_channels,
)
