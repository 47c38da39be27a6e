"""What the documents of deepspio need beside its configs and results."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from bundle_files import REPOSITORY
from bundle_metadata import Metric, metric_entry
from docs_results import Results, Row

from documents import Documents, constant

METHODS = constant(REPOSITORY / "bundles/deepspio/deepspio/experiments/methods.py", "LABELS")
# "centre_line_known" is told where the particles are and is no rival on the same data.
CLASSICAL = ("centre_line", "synthesis")
NETWORK, ZERO = "deepspio", "zero"
NMAE, PERCENT = Metric("NMAE", "nmae", "1"), Metric("mean_error_of_phantoms", "percent_error", "percent")
INTERVAL = "95 percent, bootstrap"
# Name of a metric to its table, the row of it, and its column.
MEASURED: dict[str, tuple[str, Row, Metric]] = {
    "NMAE": ("simulated", {"set": "paper", "band": "all"}, NMAE),
    "NMAE_other_anatomy": ("other_anatomy", {"anatomy": "breast", "particles": "in tissue"}, NMAE),
    "mean_error_of_phantoms": ("phantoms", {"batch": "trained range"}, PERCENT),
}
# Table to the columns that name a comparison, for those in which the network may lose.
COMPARED: dict[str, tuple[str, ...]] = {
    "simulated": ("set", "band"),
    "other_anatomy": ("particles", "anatomy"),
    "air_sphere": ("concentration", "sphere_ppm"),
    "phantoms": ("batch", "concentration"),
    "noise": ("study", "concentration", "decibels"),
}
ERRORS = ("nmae", "percent_error")
HEADINGS = {
    "nmae": "NMAE",
    "nmae_sd": "SD",
    "nmae_median": "median",
    "nmae_shared": "NMAE of the shared images",
    "images_shared": "shared images",
    "nmae_best": "best NMAE",
    "nmae_half": "NMAE after half",
    "set": "images of",
    "concentration": "concentration [ug/mm^3]",
    "true": "concentration [ug/mm^3]",
    "decibels": "SNR [dB]",
    "sphere_ppm": "sphere [ppm]",
    "estimated": "estimated [ug/mm^3]",
    "error": "error [ug/mm^3]",
    "percent_error": "error [%]",
    "paper_percent_error": "paper's error [%]",
    "over_heads": "over NMAE in heads",
    "first_below": "first step below 0.95",
    "seconds_per_step": "seconds a step",
    "wall_seconds": "seconds",
    "cpu_seconds": "CPU seconds",
}


def eval_metrics(results: Results) -> dict[str, Any]:
    """Errors of DeepSPIO on held-out images, beside the classical method that is best on them."""
    found = {}
    for name, (table, place, metric) in MEASURED.items():
        own, rivals = _rows(results, table, place)
        rivals = [row for row in rivals if row["method"] != ZERO and row.get(f"{metric.column}_low") is not None]
        if own and rivals and own[0].get(f"{metric.column}_low") is not None:
            best = min(rivals, key=lambda row: row[metric.column])
            entry = metric_entry(metric, own[0], best, METHODS, own[0]["images"])
            entry["baseline"]["n"] = best["images"]
            found[name] = entry | {"interval": INTERVAL}
    return {"concentration": found} if found else {}


def losses(results: Results) -> list[Row]:
    """Where DeepSPIO does worse than the best classical method, or than the map of zeros, on the same data."""
    return [row for name, keys in COMPARED.items() for row in _losses_of(results, name, keys)]


def _losses_of(results: Results, name: str, keys: tuple[str, ...]) -> Iterator[Row]:
    for own in _rows(results, name, {})[0]:
        place = {key: own.get(key) for key in keys}
        rivals = _rows(results, name, place)[1]
        for column in ERRORS:
            # Slow methods have seen fewer images: where the table has the mean over those that all have seen, that.
            used = f"{column}_shared" if own.get(f"{column}_shared") is not None else column
            measured = [row for row in rivals if row.get(used) is not None]
            if own.get(used) is None or not measured:
                continue
            best = min(measured, key=lambda row: row[used])
            if best[used] <= own[used]:
                said = {HEADINGS.get(key, key): value for key, value in place.items() if value is not None}
                where = ", ".join(f"{k}: {v:g}" if isinstance(v, float) else f"{k}: {v}" for k, v in said.items())
                yield {"table": name, "where": where, "metric": HEADINGS[column], "DeepSPIO": own[used]} | {
                    "best of the others": best[used],
                    "method": best["method"],
                }


def _rows(results: Results, name: str, place: Row) -> tuple[list[Row], list[Row]]:
    """Rows of the network and of its rivals in one place of a table; none where there is no such table."""
    table = results.tables.get(name)
    if table is None:
        return [], []
    return (table.where(method=NETWORK, note=None, **place), table.where(method=(ZERO, *CLASSICAL), note=None, **place))


DOCUMENTS = Documents(
    methods=METHODS,
    eval_metrics=eval_metrics,
    losses=losses,
    headings=HEADINGS,
)
