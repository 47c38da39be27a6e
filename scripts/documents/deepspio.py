"""What the documents of deepspio need beside its configs and results."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from bundle_files import REPOSITORY
from bundle_metadata import Metric, metric_entry
from docs_results import Results, Row

from documents import Documents, constant

_METHODS = REPOSITORY / "bundles/deepspio/deepspio/experiments/methods.py"
METHODS = constant(_METHODS, "LABELS")
CLASSICAL = constant(_METHODS, "CLASSICAL")
NETWORK, ZERO = "deepspio", "zero"
INTERVAL = "95 percent, bootstrap over images"
ERROR = Metric("NMAE", "nmae", "1")
# Table to the name of its metric.
MEASURED = {"simulated": "NMAE", "other_anatomy": "NMAE_other_anatomy"}
# Table to the columns that name a comparison, for those in which the network may lose.
COMPARED: dict[str, tuple[str, ...]] = {
    "simulated": (),
    "other_anatomy": (),
    "concentration": ("true",),
    "air_sphere": ("true",),
    "phantoms": ("batch", "true"),
    "noise": ("true", "snr_db"),
    "noise_repeats": ("true", "snr_db"),
}
ERRORS = ("nmae", "error_percent")
HEADINGS = {
    "nmae": "NMAE",
    "nmae_sd": "SD of NMAE",
    "true": "true [ug/mm^3]",
    "estimated": "estimated [ug/mm^3]",
    "estimated_sd": "SD [ug/mm^3]",
    "error": "error [ug/mm^3]",
    "error_percent": "error [%]",
    "snr_db": "SNR [dB]",
    "wall_seconds": "seconds",
    "cpu_seconds": "CPU seconds",
    "memory_mib": "memory [MiB]",
    "samples_per_second": "samples/s",
}


def eval_metrics(results: Results) -> dict[str, Any]:
    """NMAE of DeepSPIO on held-out images, beside the classical method that is best on the same ones."""
    found = {}
    for table, name in MEASURED.items():
        own, rivals = _rows(results, table, {})
        rivals = [row for row in rivals if row["method"] != ZERO and row.get("nmae_low") is not None]
        if own and rivals and own[0].get("nmae_low") is not None:
            best = min(rivals, key=lambda row: row["nmae"])
            entry = metric_entry(ERROR, own[0], best, METHODS, own[0]["images"])
            entry["baseline"]["n"] = best["images"]
            found[name] = entry | {"interval": INTERVAL}
    return {"concentration": found} if found else {}


def losses(results: Results) -> list[Row]:
    """Where DeepSPIO does worse than the best classical method, or than the answer zero, on the same data."""
    return [row for name, keys in COMPARED.items() for row in _losses_of(results, name, keys)]


def _losses_of(results: Results, name: str, keys: tuple[str, ...]) -> Iterator[Row]:
    for own in _rows(results, name, {})[0]:
        place = {key: own.get(key) for key in keys}
        rivals = _rows(results, name, place)[1]
        for column in ERRORS:
            measured = [row for row in rivals if row.get(column) is not None]
            if own.get(column) is None or not measured:
                continue
            best = min(measured, key=lambda row: abs(row[column]))
            if abs(best[column]) <= abs(own[column]):
                where = ", ".join(f"{HEADINGS.get(key, key)}: {value}" for key, value in place.items())
                yield {"table": name, "where": where, "metric": HEADINGS[column], "DeepSPIO": own[column]} | {
                    "best of the others": best[column],
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
