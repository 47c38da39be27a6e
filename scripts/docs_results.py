"""Results of the experiments as documents need them: numbers with three digits, tables in Markdown."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Row = dict[str, Any]
NOTHING = "-"


@dataclass(frozen=True)
class Table:
    """One table of results.

    Attributes:
        name: file name without suffix.
        rows: as they were written.
        provenance: commit, seed, hardware, versions, and for experiments ``notes`` and ``targets``.
    """

    name: str
    rows: list[Row]
    provenance: dict[str, Any]

    def where(self, **conditions: Any) -> list[Row]:
        """Rows whose columns have these values; a tuple allows several."""

        def fits(row: Row) -> bool:
            return all(row.get(k) in v if isinstance(v, tuple) else row.get(k) == v for k, v in conditions.items())

        return [row for row in self.rows if fits(row)]


@dataclass
class Results:
    """All results in a folder.

    Attributes:
        tables: by file name.
        trainings: records of trainings, by file name of the weights (``model.pt``).
    """

    tables: dict[str, Table] = field(default_factory=dict)
    trainings: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> Results:
        """Read every JSON file of the folder."""
        results = cls()
        for path in sorted(folder.glob("*.json")):
            content = json.loads(path.read_text("utf-8"))
            if "rows" in content:
                results.tables[path.stem] = Table(path.stem, content["rows"], content["provenance"])
            elif "weights" in content:
                results.trainings[Path(content["weights"]).name] = content
        return results

    def targets(self, split: Callable[[str], tuple[str, str]] | None = None) -> list[Row]:
        """Every requirement that an experiment or the benchmark has measured, one row for those of one kind.

        A row has ``target``, ``limit``, ``met`` of ``total`` places, the ``worst`` value and its ``place``, ``source``.

        Args:
            split: from the name of a target what is asked for, and where; None for :func:`split_place`.
        """
        split = split or split_place
        groups: dict[tuple[str, str, Any], list[tuple[str, Row]]] = {}
        for table in self.tables.values():
            for row in table.provenance.get("targets", []):
                what, place = split(row["target"])
                groups.setdefault((table.name, what, row["limit"]), []).append((place, row))
            for row in table.rows:
                if row.get("reached") is not None:
                    measured = f"{number(row['value'])} {row['unit']}"
                    one = {"limit": row["target"], "measured": measured, "met": row["reached"]}
                    groups.setdefault((table.name, row["stage"], row["target"]), []).append(("", one))
        found = []
        for (source, what, limit), members in groups.items():
            place, worst = max(members, key=lambda member: _excess(member[1]))
            bound = limit if isinstance(limit, str) else f"{'<=' if _below(worst) else '>='} {number(limit)}"
            met = sum(bool(row["met"]) for _, row in members)
            found.append(
                {"target": what, "limit": bound, "met": met, "total": len(members), "worst": worst["measured"],
                 "place": place, "source": source}
            )  # fmt: skip
        return found


def split_place(target: str) -> tuple[str, str]:
    """What is asked for, and where: "bias [%]: GM, SNR 10" names a place after the colon."""
    what, _, place = target.partition(": ")
    return what, place


def _below(row: Row) -> bool:
    return (row["measured"] <= row["limit"]) == bool(row["met"])


def _excess(row: Row) -> float:
    """How far a requirement is from being met: above 0 where it is not."""
    measured, limit = row["measured"], row["limit"]
    if isinstance(limit, str) or isinstance(measured, str) or measured is None or not limit:
        return 0.0 if row["met"] else 1.0
    return measured / limit - 1 if _below(row) else 1 - measured / limit


def number(value: Any, digits: int = 3) -> str:
    """A number with so many significant digits, without an exponent where it can be done; text as it is."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return str(value)
    if not isinstance(value, float):
        return str(value)
    if value == round(value) and abs(value) < 1e7:
        return f"{value:.0f}"
    if not 1e-4 <= abs(value) < 1e7:
        return f"{value:.{digits}g}"
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:.{decimals}f}"


def method_name(name: str, methods: Mapping[str, str] | None = None) -> str:
    """What a method of the tables is called in documents: as ``methods`` says, or as it is."""
    return (methods or {}).get(name, name.replace("_", " "))


def markdown(
    rows: Iterable[Mapping[str, Any]], columns: Mapping[str, str], methods: Mapping[str, str] | None = None
) -> str:
    """A Markdown table.

    Args:
        rows: the rows.
        columns: column of the rows to its heading.
        methods: names of methods in documents.
    """
    lines = ["| " + " | ".join(columns.values()) + " |", "|" + "---|" * len(columns)]
    for row in rows:
        cells = [method_name(row[c], methods) if c == "method" and row[c] else number(row.get(c)) for c in columns]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def whole_table(
    rows: Sequence[Mapping[str, Any]],
    headings: Mapping[str, str],
    methods: Mapping[str, str] | None = None,
    without: Sequence[str] = (),
) -> str:
    """A Markdown table of all columns that hold something, in the order in which they were written.

    Bounds of intervals, ``<column>_low`` and ``<column>_high``, stand in brackets behind their value.

    Args:
        rows: the rows.
        headings: column to its heading; others are called as the column, with spaces.
        methods: names of methods in documents.
        without: columns to leave out.
    """
    there = dict.fromkeys(c for row in rows for c in row if row[c] is not None and c not in without)
    bounds = {f"{c}_{end}" for c in there for end in ("low", "high")}
    columns = {c: headings.get(c, c.replace("_", " ")) for c in there if c not in bounds}
    return markdown([{c: _with_interval(row, c) for c in columns} for row in rows], columns, methods)


def _with_interval(row: Mapping[str, Any], column: str) -> Any:
    low, high = row.get(f"{column}_low"), row.get(f"{column}_high")
    if low is None or high is None:
        return row.get(column)
    return f"{number(row.get(column))} ({number(low)} to {number(high)})"


def pivot(
    rows: Sequence[Mapping[str, Any]],
    index: Mapping[str, str],
    columns: str,
    value: str,
    methods: Mapping[str, str] | None = None,
) -> str:
    """A Markdown table with one column for each value of a column.

    Args:
        rows: the rows.
        index: columns that name a line, with their headings.
        columns: the column whose values become columns, such as "method".
        value: what stands in the cells.
        methods: names of methods in documents.
    """
    rows = [row for row in rows if row.get(value) is not None]
    names = list(dict.fromkeys(row[columns] for row in rows))
    lines: dict[tuple[Any, ...], Row] = {}
    for row in rows:
        line = lines.setdefault(tuple(row.get(k) for k in index), {k: row.get(k) for k in index})
        line[str(row[columns])] = row.get(value)
    headings = {str(name): method_name(str(name), methods) if columns == "method" else number(name) for name in names}
    return markdown(lines.values(), {**index, **headings}, methods)
