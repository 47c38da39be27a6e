"""Maps and comparisons of maps as images with colour bars."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any, Protocol

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import Colormap
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patheffects import withStroke

from shared_transforms.figures.slices import Array, Slice, as_array, central_slices

__all__ = ["MapLike", "axis_label", "comparison_panel", "figure_to_png_bytes", "map_panel", "quantity_name", "short"]

_QUANTITIES = {"T1": "magma", "R1": "magma", "T2": "viridis", "R2": "viridis", "A": "gray", "M0": "gray"}
_QUANTITIES |= {"susceptibility": "gray", "local field": "gray", "total field": "gray"}
_QUANTITIES |= {"CBV": "magma", "CBF": "magma", "MTT": "viridis", "Tmax": "plasma"}
_NAMES = {"chi2": "reduced chi-squared", "Chimap": "susceptibility"}
_NAMES |= {"localfield": "local field", "totalfield": "total field"}
_NAMES |= {"cbv": "CBV", "cbf": "CBF", "mtt": "MTT", "tmax": "Tmax", "relcbv": "relative CBV", "relcbf": "relative CBF"}
_DEFAULT, _ERROR, _DIVERGING, _POSITIVE_RESIDUAL = "cividis", "cividis", "RdBu_r", "inferno"
_DARK, _LIGHT = "#16181c", "#d4d6da"  # outside of the mask, for sequential and for diverging maps
FONT, SMALL_FONT = 10.0, 8.0
DPI = 120


class MapLike(Protocol):
    """What a figure needs of a ``shared_transforms.io.ParameterMap``."""

    @property
    def data(self) -> Any:
        """[H, W, D]."""

    @property
    def unit(self) -> str:
        """Unit of the data, "1" for none."""

    @property
    def display_range(self) -> tuple[float, float]:
        """Ends of the colour bar."""

    @property
    def kind(self) -> str:
        """One of "map", "error", "residual" and "mask"."""


def map_panel(
    maps: Mapping[str, MapLike], affine: Any = None, mask: Any = None, n_slices: int = 3, height: float = 2.6
) -> Figure:
    """Maps, one below the other, each with its slices and one colour bar in its unit.

    Args:
        maps: name to map; the name goes beside the unit at the colour bar.
        affine: [4, 4], voxel indices to millimetres (RAS); None when it is not known.
        mask: [H, W, D], nonzero where the maps are meant; the rest is left plain.
        n_slices: largest number of slices of a stack.
        height: height of one row [inch].

    Returns:
        The figure.

    Raises:
        ValueError: without maps.
    """
    if not maps:
        raise ValueError("no maps to show")
    rows = [(name, parameter, _cut_map(parameter, affine, mask, n_slices)) for name, parameter in maps.items()]
    widths = [_width(item) for item in rows[0][2]]
    figure = new_figure(height * sum(widths) + 1.1, (height + 0.25) * len(rows))
    grid = figure.add_gridspec(len(rows), len(widths), width_ratios=widths)
    for row, (name, parameter, slices) in enumerate(rows):
        low, high, colours = _scale(name, parameter, slices)
        axes = [figure.add_subplot(grid[row, column]) for column in range(len(slices))]
        for axis, item in zip(axes, slices, strict=True):
            image = show_slice(axis, item, low, high, colours)
            axis.set_title(item.name, fontsize=SMALL_FONT)
            axis.set_axis_off()  # nothing of it is seen, and its empty ticks are a third of the time of the layout
        label = axis_label(quantity_name(name), parameter.unit)
        add_colour_bar(figure, image, axes, [item.image for item in slices], label)
    return figure


def comparison_panel(
    truth: Any,
    estimates: Mapping[str, Any],
    *,
    quantity: str = "",
    unit: str = "1",
    display_range: tuple[float, float] | None = None,
    error_range: float | None = None,
    mask: Any = None,
    affine: Any = None,
    truth_name: str = "truth",
) -> Figure:
    """Truth and estimates in one row, their errors below, on common scales.

    Args:
        truth: [H, W] or [H, W, D]; of a volume the central slice is shown.
        estimates: method to estimate, same shape and unit.
        quantity: what it is, such as "T1".
        unit: its unit, "1" for none.
        display_range: ends of the colour bar; default the 1st and 99th percentile of the truth.
        error_range: largest error of the colour bar; default the 99th percentile of all absolute errors.
        mask: same shape, nonzero where the values count; the root mean square error under each error map is over it.
        affine: see ``map_panel``.
        truth_name: title of the first image.

    Returns:
        The figure.

    Raises:
        ValueError: without estimates, or when shapes differ.
    """
    reference = as_array(truth)
    inside = np.isfinite(reference) if mask is None else as_array(mask).reshape(reference.shape) != 0
    values = {name: as_array(value) for name, value in estimates.items()}
    if not values or any(value.shape != reference.shape for value in values.values()):
        raise ValueError(f"give estimates of shape {reference.shape}, got {[v.shape for v in values.values()]}")
    low, high = display_range or _percentiles(reference[inside], 1, 99)
    errors = {name: value - reference for name, value in values.items()}
    limit = error_range or _percentiles(np.abs(np.concatenate([e[inside] for e in errors.values()])), 0, 99)[1]

    def middle(volume: Array) -> Slice:
        slices = central_slices(np.where(inside, volume, np.nan), affine, inside, 1)
        return slices[0]

    first = middle(reference)
    columns, width = 1 + len(values), 2.3 * _width(first)
    figure = new_figure(width * columns + 1.2, 2 * 2.6)
    grid = figure.subplots(2, columns, squeeze=False)
    grid[1, 0].axis("off")
    colours = colour_map(quantity, "map")
    shown = [first] + [middle(value) for value in values.values()]
    for axis, item, name in zip(grid[0], shown, [truth_name, *values], strict=True):
        image = show_slice(axis, item, low, high, colours)
        axis.set_title(name, fontsize=FONT)
    add_colour_bar(figure, image, list(grid[0]), [item.image for item in shown], axis_label(quantity, unit))
    shown = [middle(error) for error in errors.values()]
    for axis, item, error in zip(grid[1, 1:], shown, errors.values(), strict=True):
        image = show_slice(axis, item, -limit, limit, _colours(_DIVERGING, _LIGHT))
        suffix = "" if unit == "1" else f" {unit}"
        axis.set_xlabel(f"RMSE {short(np.sqrt(np.mean(error[inside] ** 2)))}{suffix}", fontsize=SMALL_FONT)
    label = axis_label(f"{quantity} error".strip(), unit)
    add_colour_bar(figure, image, list(grid[1]), [item.image for item in shown], label)
    return figure


def figure_to_png_bytes(figure: Figure, dpi: int = DPI) -> bytes:
    """Render a figure.

    Args:
        figure: any figure of this module.
        dpi: dots per inch.

    Returns:
        A PNG file; equal figures give equal bytes.
    """
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, bbox_inches="tight", pad_inches=0.04, metadata={"Software": None})
    return buffer.getvalue()


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of a size in inches, without pyplot."""
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def axis_label(name: str, unit: str) -> str:
    """Name and unit as they stand at an axis, such as "T1 [s]"."""
    return name if unit in ("1", "") else f"{name} [{unit}]".strip()


def short(value: float, digits: int = 3) -> str:
    """A number with some significant digits, as people write it: 1240, not 1.24e+03."""
    return f"{float(f'{value:.{digits}g}'):g}" if abs(value) < 1e6 else f"{value:.{digits}g}"


def quantity_name(suffix: str) -> str:
    """What a reader calls a map: "T1map" is T1, "T1stderr" the standard error of T1."""
    if suffix in _NAMES:
        return _NAMES[suffix]
    if suffix.endswith("stderr"):
        return f"standard error of {quantity_name(suffix.removesuffix('stderr'))}"
    return suffix.removesuffix("map") or suffix


def colour_map(quantity: str, kind: str) -> Colormap:
    """The colour map of a quantity such as "T1map" or "T1".

    Args:
        quantity: name, of which the beginning counts.
        kind: see ``MapLike``, or "difference"; a signed residual has its own in ``map_panel``.
    """
    if kind == "error":
        return _colours(_ERROR, _DARK)
    if kind == "mask":
        return _colours("gray", _DARK)
    if kind == "difference":
        return _colours(_DIVERGING, _LIGHT)
    return _colours(_QUANTITIES.get(quantity_name(quantity), _DEFAULT), _DARK)


def show_slice(axis: Axes, item: Slice, low: float, high: float, colours: Colormap) -> AxesImage:
    """Draw one slice with letters for its edges, without ticks."""
    image = axis.imshow(
        np.ma.masked_invalid(item.image),
        vmin=low,
        vmax=high,
        cmap=colours,
        aspect=item.aspect,
        interpolation="nearest",
    )
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set_visible(False)
    spots = ((0.02, 0.5, "left", "center"), (0.98, 0.5, "right", "center"), (0.5, 0.98, "center", "top"))
    dark = np.mean(colours.get_bad()[:3]) < 0.5
    ink, halo = ("white", _DARK) if dark else ("black", _LIGHT)
    for letter, (x, y, horizontal, vertical) in zip(item.edges, spots, strict=False):
        axis.text(
            x,
            y,
            letter,
            transform=axis.transAxes,
            fontsize=SMALL_FONT,
            ha=horizontal,
            va=vertical,
            color=ink,
            path_effects=[withStroke(linewidth=2, foreground=halo)],
        )
    return image


def add_colour_bar(figure: Figure, image: AxesImage, axes: list[Axes], shown: list[Array], label: str) -> None:
    """A colour bar with arrows where values lie beyond its ends."""
    low, high = image.get_clim()
    values = np.concatenate([item[np.isfinite(item)].ravel() for item in shown])
    below, above = bool((values < low).any()), bool((values > high).any())
    extend = {(False, False): "neither", (True, False): "min", (False, True): "max", (True, True): "both"}[below, above]
    bar = figure.colorbar(image, ax=axes, extend=extend, fraction=0.05, pad=0.02, aspect=22)
    bar.set_label(label, fontsize=FONT)
    bar.ax.tick_params(labelsize=SMALL_FONT)
    bar.outline.set_visible(False)


def _cut_map(parameter: MapLike, affine: Any, mask: Any, n_slices: int) -> list[Slice]:
    data = as_array(parameter.data).astype(np.float64)
    if mask is not None and parameter.kind != "mask":
        data = np.where(as_array(mask).reshape(data.shape) != 0, data, np.nan)
    return central_slices(data, affine, mask, n_slices)


def _scale(name: str, parameter: MapLike, slices: list[Slice]) -> tuple[float, float, Colormap]:
    low, high = parameter.display_range
    values = np.concatenate([item.image[np.isfinite(item.image)].ravel() for item in slices])
    if not low < high:
        low, high = _percentiles(values, 1, 99)
    if parameter.kind == "residual" and len(values) and values.min() < 0:
        high = max(abs(low), abs(high))
        return -high, high, _colours(_DIVERGING, _LIGHT)
    if parameter.kind == "residual":
        return low, high, _colours(_POSITIVE_RESIDUAL, _DARK)
    return low, high, colour_map(name, parameter.kind)


def _percentiles(values: Array, low: float, high: float) -> tuple[float, float]:
    finite = values[np.isfinite(values)]
    if not len(finite):
        return 0.0, 1.0
    first, last = (float(value) for value in np.percentile(finite, [low, high]))
    return (first, last) if last > first else (first, first + max(abs(first), 1.0) * 1e-3)


def _width(item: Slice) -> float:
    rows, columns = item.image.shape
    return float(np.clip(columns / (rows * item.aspect), 0.4, 2.5))


def _colours(name: str, outside: str) -> Colormap:
    return matplotlib.colormaps[name].with_extremes(bad=outside)
