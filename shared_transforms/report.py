"""The report: one HTML file for each series, complete in itself."""

from __future__ import annotations

import base64
import datetime
import os
import shlex
import sys
import time
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, TextIO

import jinja2
import numpy as np
import torch
from ignite.engine import Engine, Events
from matplotlib.figure import Figure
from monai.config import KeysCollection
from monai.engines.utils import IterationEvents

from shared_transforms.atomic import atomic_write
from shared_transforms.figures import figure_to_png_bytes, histogram, map_panel
from shared_transforms.figures.panels import MapLike, axis_label, quantity_name, short
from shared_transforms.figures.slices import Array, as_array
from shared_transforms.io.writer import FileWriterd
from shared_transforms.provenance import git_commit, hardware, versions

__all__ = ["InferenceTimer", "ListFiles", "ReportSection", "SaveReportd"]

_TIMES_IN_A_ROW = 8
_MEASURED = ("map", "error", "residual")  # kinds of maps with statistics over voxels
_BAD_CHI2 = 2.0
_WIDE, _ONE_ROW = 7.0, 4.5  # inches of a figure: fills the page from here on; is of more than one row of panels
_SIGNAL_MODEL = "The maps were put back through the signal model and compared with the measured images."
# Name in ``acquisition``: label and unit. What is not named here is a time [s].
_ACQUISITION = {
    "echo_times": ("Echo time", "s"),
    "voxel_size": ("Voxel size", "mm"),
    "pixel_size": ("Pixel size", "mm"),
    "b0_direction": ("B0 direction in voxel axes", "1"),
    "field_strength": ("Field strength", "T"),
}
_GEOMETRY = ("voxel_size", "pixel_size", "b0_direction", "field_strength")  # of the volume, not of one of its images


@dataclass(frozen=True)
class ReportSection:
    """A part of the page that a bundle adds: text, a table, figures, in this order.

    Attributes:
        heading: its title.
        text: a sentence or two below it.
        rows: of the table, each {column: text}, all with the same columns; the first column names the row.
        figures: each with its caption; bytes are a PNG file that fills the width of the page, however tall.
    """

    heading: str
    text: str = ""
    rows: Sequence[Mapping[str, str]] = ()
    figures: Sequence[tuple[Figure | bytes, str]] = ()


@dataclass(frozen=True)
class _Picture:
    """A figure as the page needs it."""

    source: str
    alternative: str
    caption: str
    shape: str


@dataclass(frozen=True)
class _Statistics:
    """A map inside the mask."""

    name: str
    unit: str
    description: str
    median: float
    fifth: float
    last: float
    rms: float
    voxels: int

    def __str__(self) -> str:
        unit = "" if self.unit == "1" else f" {self.unit}"
        return f"median {short(self.median)}{unit}, 5-95 % {short(self.fifth)} to {short(self.last)}{unit}"


class SaveReportd(FileWriterd):
    """Write ``<output_dir>/<stem>/report.html``: remarks, maps with units, residual, acquisition, and what was run.

    The page needs no other file, no network and no script. It stands after ``SaveMapsd`` and adds itself to
    ``item["files"]``. Of the item it reads ``maps`` ({BIDS suffix: ParameterMap}, with the voxels that count in
    ``mask``), ``stem``, ``sources``, ``notes``, ``acquisition`` ({name: [N] in seconds}; voxel size, B0 direction and
    field strength stand apart), and where they are there ``residual`` (relative root mean square of data minus model),
    ``details`` ({what: value}, how the data were read and processed), ``sections`` (of the bundle's own, see
    ``ReportSection``), ``seconds`` (from ``InferenceTimer``) and ``files``.

    Args:
        keys: the one key of the maps.
        output_dir: folder of the maps.
        title: what the maps are, such as "T1 mapping".
        software_name: name of the bundle.
        software_version: its version.
        weights_sha256: sha256 of the network's weights; None for an estimator without any.
        method: how the maps were computed, in a few words.
        time_name: what the times of the acquisition are, such as "Inversion time".
        residual_text: how the residual was made.
        device: where the network ran.
        residual_outside: show the residual of the whole image, not within ``mask`` alone.
        image_key: key of the MetaTensor [N, H, W, D] whose affine the maps have.
        filename: name of the page, in the folder of the series.
        allow_missing_keys: see MapTransform.
    """

    def __init__(
        self,
        keys: KeysCollection = "maps",
        *,
        output_dir: str | Path,
        title: str,
        software_name: str,
        software_version: str,
        weights_sha256: str | None = None,
        method: str = "",
        time_name: str = "Time",
        residual_text: str = _SIGNAL_MODEL,
        device: str | torch.device | None = None,
        residual_outside: bool = False,
        image_key: str = "image",
        filename: str = "report.html",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.output_dir = Path(output_dir)
        self.title = title
        self.software = f"{software_name} {software_version}"
        self.weights_sha256 = weights_sha256
        self.method = method
        self.time_name = time_name
        self.residual_text = residual_text
        self.device = device
        self.residual_outside = residual_outside
        self.image_key = image_key
        self.filename = filename

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item with the page added to ``files``."""
        item = dict(data)
        for key in self.key_iterator(item):
            stem = str(item["stem"])
            page = self.output_dir / stem / self.filename
            written = [*(Path(name) for name in item.get("files", [])), page]
            content = self._page(item, item[key], written)
            with atomic_write(page) as file:
                file.write(content.encode())
            item["files"] = [str(name) for name in written]
        return item

    def _page(self, item: Mapping[Hashable, Any], maps: Mapping[str, MapLike], written: Sequence[Path]) -> str:
        mask = as_array(maps["mask"].data) != 0 if "mask" in maps else None
        affine = getattr(item.get(self.image_key), "affine", None)
        shown = {name: m for name, m in maps.items() if m.kind in ("map", "error")}
        statistics = {name: _statistics(name, m, mask) for name, m in maps.items() if m.kind in _MEASURED}
        around = None if self.residual_outside else mask
        errors = {name: statistics.get(_error_of(name)) for name, m in maps.items() if m.kind == "map"}
        return _template().render(
            title=self.title,
            stem=item["stem"],
            software=self.software,
            date=datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
            notes=[*item.get("notes", []), *_remarks(statistics)],
            statistics=[(statistics[name], error) for name, error in errors.items()],
            errors=any(errors.values()),
            sections=[
                (section, [_picture(figure, caption, caption) for figure, caption in section.figures])
                for section in item.get("sections", [])
            ],
            groups=_groups(shown, statistics, affine, mask),
            residuals=[
                _map_picture(name, m, statistics[name], affine, around, statistics[name].description)
                for name, m in maps.items()
                if m.kind == "residual"
            ],
            residual_numbers=_residual_numbers(item, statistics),
            residual_text=self.residual_text,
            times=_time_table(item.get("acquisition", {}), self.time_name),
            settings=_settings(item.get("acquisition", {})) | item.get("details", {}),
            run=self._run(item),
            sources=[_relative(Path(name), self.output_dir) for name in item.get("sources", [])],
            files=[_relative(name, self.output_dir) for name in written],
        )

    def _run(self, item: Mapping[Hashable, Any]) -> dict[str, str]:
        machine = hardware()
        commit = git_commit()
        device = str(self.device) if self.device is not None else "cpu"
        where = machine["gpu"] if device.startswith("cuda") else f"{machine['cpu']}, {machine['threads']} thread(s)"
        rows = {
            "Software": self.software + (f", commit {commit}" if commit else ""),
            "Method": self.method,
            "Weights (sha256)": self.weights_sha256 or "none: an estimator without weights",
            "Command": shlex.join([Path(sys.orig_argv[0]).name, *sys.orig_argv[1:]]) if sys.orig_argv else "",
            "Device": f"{device}: {where}",
            "Computing time": f"{item['seconds']:.2f} s" if "seconds" in item else "",
            "Versions": ", ".join(f"{name} {version}" for name, version in versions().items()),
        }
        return {name: value for name, value in rows.items() if value}


class InferenceTimer:
    """Handler of an inference engine that puts ``seconds``, the time of the network alone, into each output."""

    def attach(self, engine: Engine) -> None:
        """Attach to an evaluator of MONAI."""
        engine.add_event_handler(Events.ITERATION_STARTED, self._start)
        engine.add_event_handler(IterationEvents.FORWARD_COMPLETED, self._stop)

    def _start(self, engine: Engine) -> None:
        self._began = _now()

    def _stop(self, engine: Engine) -> None:
        engine.state.output["seconds"] = _now() - self._began


class ListFiles:
    """Handler that prints, at the end of an inference, every file that was written.

    Args:
        stream: where to; default standard output.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = stream
        self.files: dict[str, None] = {}

    def attach(self, engine: Engine) -> None:
        """Attach to an engine whose postprocessing leaves ``files`` in the items."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._collect)
        engine.add_event_handler(Events.COMPLETED, self._print)

    def _collect(self, engine: Engine) -> None:
        for state in (engine.state.output, engine.state.batch):
            for item in state if isinstance(state, list | tuple) else [state]:
                if isinstance(item, Mapping):
                    self.files.update(dict.fromkeys(item.get("files", [])))

    def _print(self, engine: Engine) -> None:
        lines = [f"{len(self.files)} files written:", *(f"  {name}" for name in self.files)]
        print("\n".join(lines), file=self.stream or sys.stdout, flush=True)


def _now() -> float:
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


def _template() -> jinja2.Template:
    text = files(__package__).joinpath("report.html.j2").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["short"] = short
    return environment.from_string(text)


def _statistics(name: str, parameter: MapLike, mask: Array | None) -> _Statistics:
    values = as_array(parameter.data).astype(np.float64)
    inside = values[np.isfinite(values) if mask is None else mask & np.isfinite(values)]
    fifth, median, last = np.percentile(inside, [5, 50, 95]) if len(inside) else [np.nan] * 3
    rms = float(np.sqrt(np.mean(np.square(inside)))) if len(inside) else np.nan
    description = getattr(parameter, "description", "")
    return _Statistics(
        quantity_name(name), parameter.unit, description, float(median), float(fifth), float(last), rms, len(inside)
    )


def _remarks(statistics: Mapping[str, _Statistics]) -> list[str]:
    """What the numbers themselves say."""
    remarks = []
    if statistics and all(item.voxels == 0 for item in statistics.values()):
        remarks.append("No voxel lies in the mask: the maps are empty.")
    chi2 = statistics.get("chi2")
    if chi2 is not None and chi2.median > _BAD_CHI2:
        remarks.append(
            f"The median reduced chi-squared is {short(chi2.median, 2)}, where 1 is expected: the signal model does "
            "not explain these data within their noise. Look at the residual before you use the maps."
        )
    return remarks


def _groups(
    maps: Mapping[str, MapLike], statistics: Mapping[str, _Statistics], affine: Any, mask: Array | None
) -> list[tuple[_Statistics, list[_Picture]]]:
    """Each parameter with its map, its standard error and its histogram."""
    groups = []
    for name, parameter in maps.items():
        if parameter.kind == "error":
            continue
        pictures = [_map_picture(name, parameter, statistics[name], affine, mask)]
        error = _error_of(name)
        if error in maps:
            pictures.append(_map_picture(error, maps[error], statistics[error], affine, mask))
        figure = histogram(
            parameter.data,
            quantity=quantity_name(name),
            unit=parameter.unit,
            mask=mask,
            display_range=_increasing(parameter.display_range),
        )
        pictures.append(_picture(figure, f"Histogram of {quantity_name(name)}: {statistics[name]}"))
        groups.append((statistics[name], pictures))
    return groups


def _error_of(name: str) -> str:
    return name.removesuffix("map") + "stderr"


def _map_picture(
    name: str, parameter: MapLike, numbers: _Statistics, affine: Any, mask: Array | None, caption: str = ""
) -> _Picture:
    figure = map_panel({name: parameter}, affine, mask, height=3.0)
    return _picture(figure, f"Map of {quantity_name(name)}: {numbers}", caption)


def _picture(figure: Figure | bytes, alternative: str, caption: str = "") -> _Picture:
    if isinstance(figure, bytes):
        content, shape = figure, "wide tall"
    else:
        width, height = figure.get_size_inches()
        content = figure_to_png_bytes(figure)
        # Rows of panels below each other would be too small to read at the height of one row.
        shape = "wide tall" if width > _WIDE and height > _ONE_ROW else "wide" if width > 1.8 * height else ""
    return _Picture(f"data:image/png;base64,{base64.b64encode(content).decode()}", alternative, caption, shape)


def _residual_numbers(item: Mapping[Hashable, Any], statistics: Mapping[str, _Statistics]) -> dict[str, str]:
    numbers = {}
    if "residual" in item:
        numbers["Relative RMS residual"] = f"{100 * float(item['residual']):.2g} %"
    elif "residual" in statistics:
        numbers["Median residual"] = f"{statistics['residual'].median:.3g}"
    if "residual" in statistics and statistics["residual"].unit != "1":
        numbers["RMS residual"] = f"{statistics['residual'].rms:.2g} {statistics['residual'].unit}"
    if "chi2" in statistics:
        numbers["Median reduced chi-squared"] = f"{statistics['chi2'].median:.2f}"
    return numbers


def _time_table(acquisition: Mapping[str, Any], time_name: str) -> list[dict[str, list[str]]]:
    """Times in rows of a few: [{"Image": ["1", ...], "Inversion time [s]": [...]}, ...]."""
    columns = {}
    for name, values in acquisition.items():
        if name in _GEOMETRY or as_array(values).ndim == 0:
            continue
        label = time_name if name == "times" else _ACQUISITION.get(name, (name.replace("_", " ").capitalize(), "s"))[0]
        columns[f"{label} [s]"] = [f"{value:.5g}" for value in as_array(values).ravel()]
    if not columns:
        return []
    n = max(len(values) for values in columns.values())
    columns = {"Image": [str(i + 1) for i in range(n)], **columns}
    starts = range(0, n, _TIMES_IN_A_ROW)
    return [{name: values[i : i + _TIMES_IN_A_ROW] for name, values in columns.items()} for i in starts]


def _settings(acquisition: Mapping[str, Any]) -> dict[str, str]:
    """What holds for the whole volume: {"Voxel size [mm]": "1 x 1 x 2", ...}."""
    rows = {}
    for name in _GEOMETRY:
        if name in acquisition:
            label, unit = _ACQUISITION[name]
            between = " x " if name.endswith("_size") else ", "
            rows[axis_label(label, unit)] = between.join(f"{v:.4g}" for v in as_array(acquisition[name]).ravel())
    for name, value in acquisition.items():  # one time for all images
        if name not in _GEOMETRY and as_array(value).ndim == 0:
            rows[axis_label(name.replace("_", " ").capitalize(), "s")] = f"{float(value):.5g}"
    return rows


def _increasing(limits: tuple[float, float]) -> tuple[float, float] | None:
    return limits if limits[0] < limits[1] else None


def _relative(path: Path, folder: Path) -> str:
    try:
        return Path(os.path.relpath(path, folder)).as_posix()
    except ValueError:  # another drive
        return path.as_posix()
