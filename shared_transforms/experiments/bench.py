"""What every experiment needs of its bundle: sizes of full and quick runs, and where and how results are written."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from matplotlib.figure import Figure
from torch import Tensor

from shared_transforms.atomic import atomic_write
from shared_transforms.figures import figure_to_png_bytes
from shared_transforms.metrics import Estimate
from shared_transforms.provenance import provenance, write_table
from shared_transforms.weights import sha256_file

__all__ = ["NetworkBench", "ResultBench", "Row", "interval", "plain", "target"]

Size = TypeVar("Size")
Row = dict[str, Any]
DIGITS = 5  # significant digits in the tables


class ResultBench:
    """Base of a bundle's bench, which adds the methods under comparison.

    Attributes:
        output_dir: tables go to ``results`` in it, figures to ``figures``.
        seed: of all random streams.
        quick: a run that shows that all works; its numbers mean little. May be the text ``"true"``.
    """

    output_dir: str | Path
    seed: int
    quick: bool | str

    def pick(self, full: Size, quick: Size) -> Size:
        """The size of a full run, or that of a quick one."""
        return quick if str(self.quick).lower() in ("true", "1") else full

    def write(
        self, name: str, rows: Sequence[Mapping[str, Any]], notes: Sequence[str] = (), targets: Sequence[Row] = ()
    ) -> list[Path]:
        """Write a table with its provenance.

        Args:
            name: of the experiment, see :meth:`file_name`.
            rows: the table; numbers are rounded, those that are not finite left empty.
            notes: what a reader must know of the data and the methods.
            targets: rows of :func:`target`.

        Returns:
            The csv and the json file.
        """
        source = provenance(self.seed)
        source["experiment"] = self.title(name) + self.pick("", " (quick run: sizes too small to count)")
        for key, path in self.weight_files().items():
            if Path(path).is_file():
                source[key] = {"file": Path(path).name, "sha256": sha256_file(path)}
        source["notes"] = list(notes)
        source["targets"] = [plain(row) for row in targets]
        if targets:
            print(f"  {name}: {sum(row['met'] for row in targets)} of {len(targets)} targets met", flush=True)
        stem = Path(self.output_dir) / "results" / self.file_name(name)
        return write_table(stem, [plain(row) for row in rows], source)

    def written(self, name: str) -> list[Row]:
        """Rows of a table that was written before, none if it was not."""
        path = Path(self.output_dir) / "results" / f"{self.file_name(name)}.json"
        return json.loads(path.read_text("utf-8"))["rows"] if path.is_file() else []

    def save_figure(self, name: str, figure: Figure) -> Path:
        """Write a figure as png."""
        path = Path(self.output_dir) / "figures" / f"{self.file_name(name)}.png"
        with atomic_write(path) as file:
            file.write(figure_to_png_bytes(figure))
        return path

    def file_name(self, name: str) -> str:
        """File name, without suffix, of the results of an experiment."""
        return name

    def title(self, name: str) -> str:
        """What an experiment is called in its files and on the screen."""
        return name

    def weight_files(self) -> Mapping[str, str | Path]:
        """Files of weights whose sha256 is recorded, by their name in the provenance."""
        return {}

    def left_out(self, name: str) -> str | None:
        """Why an experiment does not apply, or None if it does."""
        return None


class NetworkBench(ResultBench):
    """Base of a bench whose networks may be absent, with their weights.

    Attributes:
        network_names: what a network may be called.
        networks: those that are there, by name.
        weights: name to file of weights, for the record.
    """

    network_names: ClassVar[tuple[str, ...]]
    networks: Mapping[str, Any]
    weights: Mapping[str, str | Path]

    def absent(self, names: Iterable[str] | None = None) -> list[Row]:
        """A row for each network, of the given names or of all, that is missing; it says why."""
        return [
            {"method": name, "note": f"left out: no file {Path(self.weights.get(name, name)).name} of its weights"}
            for name in (self.network_names if names is None else names)
            if name in self.network_names and name not in self.networks
        ]

    def weight_files(self) -> dict[str, str | Path]:
        """Files of the networks' weights."""
        return {f"weights {name}": path for name, path in self.weights.items() if name in self.networks}


def target(what: str, value: float, limit: float, below: bool = True) -> Row:
    """One requirement and whether it is met.

    Args:
        what: the requirement in words; a place after a colon.
        value: measured.
        limit: the largest (``below``) or smallest value that meets it.
        below: direction.
    """
    return {"target": what, "limit": limit, "measured": value, "met": bool(value <= limit if below else value >= limit)}


def plain(row: Mapping[str, Any]) -> Row:
    """A row as csv and json can hold it: numbers rounded to five digits, None for what is not finite."""
    return {name: _plain(value) for name, value in row.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        value = value.item()
    if hasattr(value, "item") and not isinstance(value, float | int):
        value = value.item()
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
    return value


def interval(name: str, estimate: Estimate) -> Row:
    """Columns ``name``, ``name_low`` and ``name_high`` of an estimate with its confidence interval."""
    return {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}
