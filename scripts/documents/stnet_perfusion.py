"""What the documents of stnet_perfusion need beside its configs and results."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from bundle_files import REPOSITORY
from bundle_metadata import Metric, metric_entry
from docs_results import Results, Row

from documents import Documents, constant

METHODS = constant(REPOSITORY / "bundles/stnet_perfusion/stnet_perfusion/experiments/methods.py", "LABELS")
NETWORK = "stnet"
CLASSICAL = ("ssvd", "csvd", "osvd", "tikhonov", "ttv")
UNITS = {"CBV": "ml/100 g", "CBF": "ml/100 g/min", "Tmax": "s"}
MAP_METRICS = (Metric("SSIM", "ssim", "1"), Metric("PCC", "pcc", "1"), Metric("NRMSE", "nrmse", "1"))
LESION_METRICS = (Metric("DICE", "dice", "1"), Metric("AUC", "auc", "1"), Metric("HD95", "hd95", "mm"))
HIGHER_IS_BETTER = ("psnr", "ssim", "pcc", "scc", "auc", "dice", "iou")
ERRORS = (*HIGHER_IS_BETTER, "nrmse", "mae", "hd95", "cbv_mae", "cbf_mae", "tmax_mae")
INTERVAL = "95 percent, bootstrap over examinations"
CALIBRATION = {
    "table1": "all methods alike, on validation data",
    "table2_uncalibrated": "none, as inference gives them",
}
FIXED = "6 s"  # the threshold of Tmax that nobody chose on data
# Table to the columns that name a comparison, for those in which a network may lose.
COMPARED = {
    "table1": ("threshold",),
    "table2": ("region", "parameter"),
    "noise_sweep": ("snr",),
}
HEADINGS = {
    "psnr": "PSNR [dB]",
    "ssim": "SSIM",
    "pcc": "PCC",
    "scc": "SCC",
    "nrmse": "NRMSE",
    "mae": "MAE",
    "auc": "AUC",
    "dice": "DICE",
    "iou": "IoU",
    "hd95": "HD95 [mm]",
    "threshold": "threshold of Tmax",
    "threshold_s": "threshold [s]",
    "cbv_mae": "CBV MAE [ml/100 g]",
    "cbf_mae": "CBF MAE [ml/100 g/min]",
    "mtt_mae": "MTT MAE [s]",
    "tmax_mae": "Tmax MAE [s]",
    "cbv": "CBV [ml/100 g]",
    "cbf": "CBF [ml/100 g/min]",
    "snr": "SNR",
    "subjects": "examinations",
    "cbv_mae_uncalibrated": "CBV MAE, uncalibrated",
    "cbf_mae_uncalibrated": "CBF MAE, uncalibrated",
    "tmax_mae_uncalibrated": "Tmax MAE, uncalibrated",
    "lesion_tmax_mae": "Tmax MAE in lesions [s]",
    "cbv_over_true": "CBV / true",
    "cbf_over_true": "CBF / true",
    "cbf_over_true_sd": "SD of CBF / true",
    "cbv_factor": "factor of CBV",
    "cbf_factor": "factor of CBF",
    "tmax_offset_s": "offset of Tmax [s]",
    "frame_time_s": "frame time [s]",
    "wall_seconds_per_10000": "seconds for 10,000 voxels",
    "bias_ml": "bias [ml]",
    "sd_ml": "SD [ml]",
    "mae_ml": "MAE [ml]",
    "truth_mean_ml": "true mean [ml]",
    "cpu_seconds": "CPU seconds",
    "wall_seconds": "seconds",
    "memory_mib": "memory [MiB]",
}


def eval_metrics(results: Results) -> dict[str, Any]:
    """Errors of ST-Net's maps on held-out examinations, beside the classical method that is best in each."""
    found: dict[str, Any] = {}
    for parameter, unit in UNITS.items():
        metrics = (Metric("MAE", "mae", unit), *MAP_METRICS)
        found[parameter] = _metrics(results, "table2_uncalibrated", metrics, region="brain", parameter=parameter)
    found["hypoperfusion"] = _metrics(results, "table1", LESION_METRICS, threshold=FIXED)
    return {name: entries for name, entries in found.items() if entries}


def _metrics(results: Results, name: str, metrics: tuple[Metric, ...], **where: Any) -> dict[str, Any]:
    """Entries of one table for the rows with these values."""
    table = results.tables.get(name)
    own = table.where(method=NETWORK, note=None, **where) if table is not None else []
    if table is None or not own:
        return {}
    entries = {}
    for metric in metrics:
        rivals = [row for row in table.where(method=CLASSICAL, **where) if row.get(metric.column) is not None]
        if rivals and own[0].get(metric.column) is not None:
            best = _best(rivals, metric.column)
            entry = metric_entry(metric, own[0], best, METHODS, own[0]["subjects"])
            entries[metric.name] = entry | {"interval": INTERVAL, "calibration": CALIBRATION[name]}
    return entries


def losses(results: Results) -> list[Row]:
    """Where ST-Net does worse than the best classical method on the same data, metric by metric."""
    return [row for name, keys in COMPARED.items() for row in _losses_of(results, name, keys)]


def _losses_of(results: Results, name: str, keys: tuple[str, ...]) -> Iterator[Row]:
    table = results.tables.get(name)
    for own in [] if table is None else table.where(method=NETWORK, note=None):
        place = {key: own.get(key) for key in keys}
        rivals = [] if table is None else table.where(method=CLASSICAL, note=None, **place)
        for column in [column for column in own if column in ERRORS]:
            measured = [row for row in rivals if row.get(column) is not None]
            if not measured or own[column] is None:
                continue
            best = _best(measured, column)
            if _best([own, best], column) is best:
                where = ", ".join(f"{HEADINGS.get(k, k)} {v}" if k == "snr" else str(v) for k, v in place.items())
                yield {"table": name, "where": where, "metric": HEADINGS[column], "ST-Net": own[column]} | {
                    "best classical": best[column],
                    "method": best["method"],
                }


def _best(rows: list[Row], column: str) -> Row:
    """The row with the best value; the first of equals."""
    sign = -1.0 if column in HIGHER_IS_BETTER else 1.0
    return min(rows, key=lambda row: sign * row[column])


DOCUMENTS = Documents(
    methods=METHODS,
    eval_metrics=eval_metrics,
    losses=losses,
    headings=HEADINGS,
)
