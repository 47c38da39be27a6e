"""Read an arterial or venous curve from a table."""

from __future__ import annotations

import csv
import math
import re
from pathlib import Path

import torch
from torch import Tensor

from shared_transforms.errors import QMRIError

__all__ = ["read_curve"]

_SAME_STEP = 0.02  # of the frame time
_TIME = re.compile(r"(?i)t(ime)?[ _]*[\[(]?(s|sec|seconds?)?[\])]?$")
_RATE = re.compile(r"(?i)r2 ?([*_-]|star)|r2$|relaxation")
_KEEP = "write a header, e.g. time,concentration (s, mM in blood) or time,delta_r2star (s, 1/s), and one line a frame"


def read_curve(path: Path, name: str, frames: int, dt: float, dummy: int, relaxivity: float) -> Tensor:
    """Read a curve from a text file with columns of time [s] and concentration in blood [mM] or Delta R2* [1/s].

    The columns are separated by commas, semicolons or tabs and named in the first line. Time is ``time`` or ``t``, with
    or without its unit. Of several other columns the one counts whose name holds ``name`` (so what
    ``SaveInputFunctionsd`` wrote can be given back). A name with R2 makes it Delta R2*, which is divided by
    ``relaxivity``.

    Args:
        path: the file.
        name: "aif" or "vof".
        frames: T', number of frames without dummy frames.
        dt: between frames [s].
        dummy: frames at the start that were left out; the table may have them, they are left out too.
        relaxivity: of blood [1/s/mM].

    Returns:
        ``[T']`` [mM].

    Raises:
        QMRIError: no such file, no header, no time or curve in it, something that is no finite number, as many lines as
            neither frames nor frames without dummy frames, other times, or a curve that is nowhere positive.
    """
    header, rows = _read(path)
    time_column = next((i for i, title in enumerate(header) if _TIME.match(title)), None)
    columns = [i for i in range(len(header)) if i != time_column]
    named = [i for i in columns if name in header[i].lower()]
    chosen = named if len(named) == 1 else columns
    if time_column is None or len(chosen) != 1:
        raise _fail(
            path, "header", f"columns {', '.join(header)}", f"time [s] and one curve, or one named {name}", _KEEP
        )
    numbers = [[_number(row[i], path, line) for i in (time_column, chosen[0])] for line, row in enumerate(rows, 2)]
    times, values = torch.tensor(numbers, dtype=torch.float64).reshape(-1, 2).unbind(1)
    _check_times(path, times, frames, dt, dummy)
    values = values[len(values) - frames :]
    if _RATE.search(header[chosen[0]]):
        values = values / relaxivity
    if not float(values.sum()) > 0:
        raise _fail(path, header[chosen[0]], f"a curve with the sum {float(values.sum()):.3g}", "a bolus", _KEEP)
    return values.float()


def _read(path: Path) -> tuple[list[str], list[list[str]]]:
    """Names of the columns, and the lines below them as text."""
    if not path.is_file():
        raise _fail(path, "path", "no such file", "a text file with a curve", "check the path")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise _fail(path, "file content", f"not readable as text: {error}", "a text file", _KEEP) from error
    first = text.strip().split("\n")[0]
    mark = max(",;\t", key=first.count)
    rows = [[cell.strip() for cell in row] for row in csv.reader(text.splitlines(), delimiter=mark) if any(row)]
    if not rows:
        raise _fail(path, "file content", "an empty file", "a header and a line for each frame", _KEEP)
    header = rows.pop(0)
    if any(_is_number(cell) for cell in header):
        raise _fail(path, "header", f"no header: the first line is {first.strip()!r}", "names of the columns", _KEEP)
    uneven = [line for line, row in enumerate(rows, 2) if len(row) != len(header)]
    if uneven:
        raise _fail(path, f"line {uneven[0]}", f"{len(rows[uneven[0] - 2])} columns", f"{len(header)} as above", _KEEP)
    return header, rows


def _number(cell: str, path: Path, line: int) -> float:
    if not _is_number(cell) or not math.isfinite(float(cell)):
        raise _fail(
            path, f"line {line}", repr(cell), "a finite number, with a point", "mend or measure this frame again"
        )
    return float(cell)


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _check_times(path: Path, times: Tensor, frames: int, dt: float, dummy: int) -> None:
    allowed = f"{frames}" + (f", or {frames + dummy} with the first {dummy}, which are left out" if dummy else "")
    if len(times) not in (frames, frames + dummy):
        raise _fail(
            path, "number of lines", f"{len(times)} frames", f"as many as the series has: {allowed}",
            "give one value for each frame; resample a curve that was measured at other times to those of the series",
        )  # fmt: skip
    steps = times.diff()
    starts = [0.0] if len(times) > frames else [0.0, dummy * dt]
    begins = any(abs(float(times[0]) - start) <= 1.01 * dt for start in starts)
    if float((steps - dt).abs().max()) > _SAME_STEP * dt or not begins:
        first, last, shortest, longest = (float(v) for v in (times[0], times[-1], steps.min(), steps.max()))
        found = f"{first:g} to {last:g} s in steps of {shortest:g} to {longest:g}"
        looks = " (milliseconds?)" if float(steps.median()) > 100 * dt else ""
        raise _fail(
            path, "time", f"{found} s{looks}", f"those of the frames: from 0 in steps of {dt:g} s",
            "resample the curve to the frames of the series, times in seconds",
        )  # fmt: skip


def _fail(path: Path, field: str, found: str, expected: str, remedy: str) -> QMRIError:
    return QMRIError(file=path, field=field, found=found, expected=expected, remedy=remedy)
