"""What the documents of qsmgan need beside its configs and results."""

from __future__ import annotations

from typing import Any

from bundle_files import REPOSITORY, Bundle
from bundle_metadata import Metric, metric_entry
from docs_results import Results, Row

from documents import Documents, constant

METHODS = constant(REPOSITORY / "bundles" / "qsmgan" / "qsmgan" / "experiments" / "methods.py", "LABELS")
NETWORKS = ("unet", "qsmgan")
# COSMOS has the data of several orientations, the trivial answer none: neither is a rival on the same data.
NO_RIVALS = (*NETWORKS, "paper", "cosmos", "zero")
METRICS = (
    Metric("NRMSE", "nrmse", "percent"),
    Metric("detrended_NRMSE", "detrended_nrmse", "percent"),
    Metric("HFEN", "hfen", "percent"),
    Metric("XSIM", "xsim", "1"),
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
    "cpu_seconds": "CPU seconds",
    "wall_seconds": "seconds",
    "memory_mib": "memory [MiB]",
    "roi_slope": "slope",
    "roi_bias": "bias [ppm]",
    "roi_rmse": "RMSE [ppm]",
    "sd_ppm": "SD [ppm]",
    "p5_ppm": "5th percentile [ppm]",
    "p95_ppm": "95th percentile [ppm]",
    "difference_percent": "difference [% of SD]",
    "largest_step_percent": "largest step [% of SD]",
    "nrmse_with_right": "NRMSE with the right mask [%]",
    "paper_l1": "paper's L1",
    "l1_ppm": "L1 [ppm]",
    "l1_tanh": "L1 of tanh(10 chi)",
    "side": "side [voxels]",
}
METHOD_TABLE = "method_table"
MEAN = "mean"  # what stands for the head in rows over all heads


def eval_metrics(results: Results) -> dict[str, Any]:
    """Errors of QSMGAN at the noise that most heads were measured with, beside the best classical inversion of them."""
    table = results.tables.get(METHOD_TABLE)
    rows = [] if table is None else [row for row in table.where(head=MEAN) if "heads" in row]
    own = max((row for row in rows if row["method"] == "qsmgan"), key=lambda row: row["heads"], default=None)
    if own is None:
        return {}
    same = {"noise_ppm": own["noise_ppm"], "heads": own["heads"]}
    rivals = [row for row in rows if same.items() <= row.items() and row["method"] not in NO_RIVALS]
    found = {}
    for metric in METRICS:
        measured = [row for row in rivals if row.get(metric.column) is not None]
        if measured and own.get(metric.column) is not None:
            entry = metric_entry(metric, own, _best(measured, metric.column), METHODS, own["heads"])
            found[metric.name] = entry | {"interval": "range over the heads", "noise_ppm": own["noise_ppm"]}
    return {"susceptibility": found} if found else {}


def losses(results: Results) -> list[Row]:
    """Where a network does worse than the best classical inversion of the same head, metric by metric."""
    table = results.tables.get(METHOD_TABLE)
    found: list[Row] = []
    for own in [] if table is None else table.where(method=NETWORKS, note=None):
        if own["head"] == MEAN:  # over other heads than those of slow methods
            continue
        rows = table.where(head=own["head"], noise_ppm=own["noise_ppm"]) if table is not None else []
        for metric in METRICS:
            rivals = [r for r in rows if r["method"] not in NO_RIVALS and r.get(metric.column) is not None]
            if not rivals or own.get(metric.column) is None:
                continue
            best = _best(rivals, metric.column)
            if _best([own, best], metric.column) is best:
                found.append(
                    {"network": METHODS[own["method"]], "noise_ppm": own["noise_ppm"], "head": own["head"]}
                    | {"metric": HEADINGS[metric.column], "value": own[metric.column]}
                    | {"best classical": best[metric.column], "method": best["method"]}
                )
    return found


def _best(rows: list[Row], column: str) -> Row:
    """The row with the best value; the first of equals."""
    sign = -1.0 if column in HIGHER_IS_BETTER else 1.0
    return min(rows, key=lambda row: sign * row[column])


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
