"""The summary of a batch: one row for each unit, made from what lies on the disk, so that several runs agree."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from shared_transforms.atomic import atomic_write
from shared_transforms.batch.inference import Outcome
from shared_transforms.batch.layout import HIDDEN
from shared_transforms.batch.record import RECORD_SUFFIX, Maker, read_record
from shared_transforms.batch.units import Unit

COLUMNS = {
    "subject": {"Description": "Folder of the subject"},
    "session": {"Description": "Folder of the session"},
    "status": {
        "Description": "What became of it",
        "Levels": {
            "done": "Maps are there",
            "failed": "Not done, as the message says; maps of an earlier run may be there",
            "absent": "No images of this kind",
            "running": "Another process is at it",
            "pending": "Not begun, or done by another version, with other weights or another config",
        },
    },
    "seconds": {"Description": "Time it took", "Units": "s"},
    "peak_memory_mb": {"Description": "Most memory its process had held until then", "Units": "MiB"},
    "message": {"Description": "File, field, what was found, what is expected, what to do"},
}
_NOTHING = "n/a"  # as BIDS writes it


def keep_failure(output: Path, unit: Unit, outcome: Outcome) -> None:
    """Remember why a unit is not done, for the tables of later runs; forget it where it is done."""
    path = _failure(output, unit)
    if outcome.status in ("done", "kept"):
        path.unlink(missing_ok=True)
    elif outcome.status in ("failed", "absent"):
        content = {
            "status": outcome.status, "seconds": round(outcome.seconds, 3), "message": outcome.message,
            "peak_memory_mb": round(outcome.peak_memory_mb, 1), "details": outcome.details,
        }  # fmt: skip
        with atomic_write(path) as file:
            file.write((json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())


def rows_of(output: Path, units: Iterable[Unit], made_by: Maker, running: Iterable[Unit] = ()) -> list[dict[str, Any]]:
    """A row for each unit, with the names of ``COLUMNS``.

    Args:
        output: the derivative.
        units: all of the data set.
        made_by: what makes the maps; those of another maker do not count.
        running: those that another process has.
    """
    rows, busy = [], set(running)
    for unit in units:
        row: dict[str, Any] = dict.fromkeys(COLUMNS, _NOTHING)
        row |= {"subject": unit.subject, "session": unit.session or _NOTHING}
        record = read_record(unit.below(output) / f"{unit.label}{RECORD_SUFFIX}")
        failure = _read(_failure(output, unit))
        if unit in busy:
            row["status"] = "running"
        elif failure:
            row |= {name: failure[name] for name in ("status", "seconds", "peak_memory_mb", "message")}
        elif record and record.made_by == made_by:
            row |= {"status": "done", "seconds": record.seconds, "peak_memory_mb": record.peak_memory_mb}
        else:
            row["status"] = "pending"
        rows.append(row)
    return rows


def write_table(output: Path, rows: Sequence[Mapping[str, Any]], provenance: Mapping[str, Any]) -> Path:
    """Write ``batch.tsv``, and ``batch.json`` with what its columns are and where it comes from; returns the table."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, dialect="excel-tab", lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows([" ".join(str(row[name]).split()) for name in COLUMNS] for row in rows)
    sidecar = json.dumps({**COLUMNS, "Provenance": dict(provenance)}, indent=2, ensure_ascii=False) + "\n"
    for name, content in (("batch.json", sidecar), ("batch.tsv", text.getvalue())):
        with atomic_write(output / name) as file:
            file.write(content.encode())
    return output / "batch.tsv"


def read_provenance(output: Path) -> dict[str, Any]:
    """What an earlier run wrote of itself into ``batch.json``; empty where there was none."""
    found = _read(output / "batch.json").get("Provenance")
    return found if isinstance(found, dict) else {}


def _failure(output: Path, unit: Unit) -> Path:
    return output / HIDDEN / "failed" / f"{unit.label}.json"


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
