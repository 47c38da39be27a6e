"""docs/scale.md from what scripts/throughput.py has measured. No number by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jinja2
from docs_results import number

TEMPLATES = Path(__file__).with_name("templates")
Row = dict[str, Any]


def page(folder: Path) -> str:
    """The page, as it should be.

    Args:
        folder: of the results, NAME.json for each bundle.

    Raises:
        SystemExit: where nothing is measured.
    """
    results = {path.stem: json.loads(path.read_text("utf-8")) for path in sorted(folder.glob("*.json"))}
    if not results:
        raise SystemExit(f"nothing is measured in {folder}: run python scripts/throughput.py")
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined, autoescape=False,
    )  # fmt: skip
    rows = {name: result["rows"] for name, result in results.items()}
    machines = [result["provenance"] for result in results.values()]
    return templates.get_template("scale.md.j2").render(
        batches=table(["bundle", "processes", "threads of each", "subjects an hour", "seconds a subject",
                       "peak memory of a process [MiB]", "start and first subject [s]"], batch_rows(rows)),
        stages=table(["bundle", "whole [s]", *STAGES, "first subject [s]", "start of a process [s]"], stage_rows(rows)),
        limits={name: limit(found) for name, found in rows.items()},
        trainings=table(["bundle", "samples a second, 1 process", "2 processes", "gain", "simulated a second"],
                        training_rows(rows)),
        memory=max((r["value"] for found in rows.values() for r in found if "peak memory" in r["what"]), default=0.0),
        machines=sorted({f"{m['hardware']['cpu']}, {m['hardware']['cores']} cores" for m in machines}),
        commits=sorted({str(m["commit"]) for m in machines}),
        dates=sorted({m["date"][:10] for m in machines}),
    )  # fmt: skip


STAGES = ("reading", "preparation", "network", "maps", "writing", "report", "config, checks, moving")


def batch_rows(results: dict[str, list[Row]]) -> list[list[str]]:
    """One row for each bundle and setting."""
    found = []
    for name, rows in results.items():
        settings = dict.fromkeys((r["processes"], r["threads"]) for r in rows if r["kind"] == "batch")
        for processes, threads in settings:

            def value(what: str, key: tuple[int, int] = (processes, threads), of: list[Row] = rows) -> str:
                return value_of([r for r in of if (r["processes"], r["threads"]) == key], "batch", what)

            found.append([f"`{name}`", str(processes), str(threads), value("subjects an hour"),
                          value("seconds a subject"), value("peak memory of a process"),
                          value("start and first subject")])  # fmt: skip
    return found


def stage_rows(results: dict[str, list[Row]]) -> list[list[str]]:
    """One row for each bundle, shares of the stages in percent."""
    found = []
    for name, rows in results.items():
        whole = plain(rows, "stage", "subject")
        if whole is None:
            continue
        shares = [plain(rows, "stage", stage) for stage in STAGES]
        start = sum(r["value"] for r in rows if r["kind"] == "start")
        found.append([f"`{name}`", number(whole), *("-" if s is None else f"{100 * s / whole:.0f} %" for s in shares),
                      value_of(rows, "stage", "first subject"), number(start)])  # fmt: skip
    return found


def training_rows(results: dict[str, list[Row]]) -> list[list[str]]:
    """One row for each bundle whose training was measured."""
    found = []
    for name, rows in results.items():
        rates = {
            r["processes"]: r["value"] for r in rows if r["kind"] == "training" and r["what"].startswith("trained")
        }
        if set(rates) == {1, 2}:
            simulated = plain([r for r in rows if r["processes"] == 1], "training", "simulated_per_second")
            found.append([f"`{name}`", number(rates[1]), number(rates[2]), f"{rates[2] / rates[1]:.2f} x",
                          "-" if simulated is None else number(simulated)])  # fmt: skip
    return found


def limit(rows: list[Row]) -> str:
    """The stage that takes longest, with its share."""
    whole = plain(rows, "stage", "subject")
    if not whole:
        return "not measured"
    longest = max(STAGES, key=lambda stage: plain(rows, "stage", stage) or 0.0)
    return f"{longest} ({100 * (plain(rows, 'stage', longest) or 0.0) / whole:.0f} % of {number(whole)} s)"


def plain(rows: list[Row], kind: str, what: str) -> float | None:
    """The value of one row; None where it is not there."""
    return next((float(r["value"]) for r in rows if r["kind"] == kind and r["what"] == what), None)


def value_of(rows: list[Row], kind: str, what: str) -> str:
    """The same as text."""
    value = plain(rows, kind, what)
    return "-" if value is None else number(value)


def table(heading: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [heading, ["---"] * len(heading), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
