"""Figures of the experiments."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from shared_transforms.experiments import Row, charts
from shared_transforms.figures.panels import colour_map

from .methods import LABELS
from .scenes import Scenes
from .scores import nmae

# Okabe and Ito: told apart with every kind of colour vision.
COLOURS = {
    "zero": "#BBBBBB",
    "centre_line": "#56B4E9",
    "synthesis": "#E69F00",
    "unet": "#009E73",
    "deepspio": "#D55E00",
}
TOP = 1.5  # of the colour bar, in true concentrations
CEILING = 2.0  # of the NMAE in figures: the zero map has 1


def two_channels(image: Tensor) -> np.ndarray:
    """Even lines in red and odd ones in green, x to the right and z upwards.

    Args:
        image: ``[2, X, Z]``.

    Returns:
        ``[Z, X, 3]`` in [0, 1], for ``imshow(..., origin="lower")``.
    """
    even, odd = (channel.detach().cpu().numpy().T for channel in image)
    picture = np.stack([even, odd, np.zeros_like(even)], -1)
    bright = float(np.quantile(picture.max(-1), 0.995))
    return np.clip(picture / bright, 0.0, 1.0) if bright > 0 else picture


def maps_figure(scenes: Scenes, maps: Mapping[str, Tensor], which: Iterable[int], title: str = "") -> Figure:
    """Images, truth and maps, a column for each image; maps relative to the true concentration.

    Args:
        scenes: images and truth.
        maps: method to maps ``[n, 1, X, Z]`` [ug/mm^3].
        which: numbers of the images shown.
        title: beside the words "View Line image".
    """
    chosen = list(which)
    names = [name for name in LABELS if name in maps and name != "zero"]
    figure = charts.new_figure(2.0 * len(chosen) + 1.2, 2.1 * (2 + len(names)))
    axes = figure.subplots(2 + len(names), len(chosen), squeeze=False)
    for column, number in enumerate(chosen):
        concentration = float(scenes.concentration[number])
        axes[0, column].imshow(two_channels(scenes.image[number]), origin="lower")
        axes[0, column].set_title(f"{concentration:.3g} ug/mm^3", fontsize=charts.FONT)
        for row, (name, values) in enumerate([("", scenes.truth), *((name, maps[name]) for name in names)], 1):
            shown = axes[row, column].imshow(
                (values[number, 0] / concentration).cpu().numpy().T, origin="lower", vmin=0.0, vmax=TOP,
                cmap=colour_map("concentration", "map"),
            )  # fmt: skip
            if name:
                error = float(nmae(values[[number]], scenes.truth[[number]]))
                axes[row, column].set_xlabel(f"NMAE {error:.2f}", fontsize=charts.FONT - 1)
    for row, label in enumerate([f"View Line image\n{title}".strip(), "truth", *(LABELS[name] for name in names)]):
        axes[row, 0].set_ylabel(label, fontsize=charts.FONT)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    bar = figure.colorbar(shown, ax=axes[1:].ravel().tolist(), shrink=0.6, pad=0.02, extend="both")
    bar.set_label("over the true concentration", fontsize=charts.FONT)
    bar.ax.tick_params(labelsize=charts.FONT - 1)
    return figure


def bands_figure(rows: Sequence[Row]) -> Figure:
    """Mean NMAE of every method over the concentration, in bands.

    Args:
        rows: with ``method``, ``nmae``, and ``middle`` of the band where they are of one.
    """
    figure = charts.new_figure(5.4, 3.4)
    axis = figure.subplots()
    _lines(axis, [row for row in rows if row.get("middle")], "middle")
    axis.set_xlabel("concentration [ug/mm^3]", fontsize=charts.FONT)
    charts.legend_below(figure, axis)
    return figure


def noise_figure(rows: Sequence[Row]) -> Figure:
    """Mean NMAE over the concentration, a panel for each noise level; bars are one SD."""
    levels = list(dict.fromkeys(row["decibels"] for row in rows))
    figure = charts.new_figure(2.7 * len(levels), 3.3)
    axes = figure.subplots(1, len(levels), squeeze=False, sharey=True)[0]
    for axis, level in zip(axes, levels, strict=True):
        _lines(axis, [row for row in rows if row["decibels"] == level], "concentration")
        axis.set_title("no noise" if level == "none" else f"{level:g} dB", fontsize=charts.FONT)
        axis.set_xlabel("concentration [ug/mm^3]", fontsize=charts.FONT)
    charts.legend_below(figure, axes[0])
    return figure


def levels_figure(rows: Sequence[Row]) -> Figure:
    """Mean NMAE at one concentration over the signal-to-noise ratio; bars are one SD."""
    figure = charts.new_figure(5.0, 3.3)
    axis = figure.subplots()
    _lines(axis, rows, "decibels")
    axis.set_xlabel("signal-to-noise ratio [dB]", fontsize=charts.FONT)
    charts.legend_below(figure, axis)
    return figure


def _lines(axis: Axes, rows: Sequence[Row], x: str) -> None:
    """NMAE of every method."""
    for name in LABELS:
        own = [row for row in rows if row["method"] == name]
        if own:
            numbers = {key: [row[key] for row in own] for key in (x, "nmae", "nmae_sd")}
            charts.line(axis, numbers[x], numbers["nmae"], COLOURS[name], LABELS[name])
            spread = [0.0 if sd is None else float(sd) for sd in numbers["nmae_sd"]]
            axis.errorbar(numbers[x], numbers["nmae"], spread, fmt="none", ecolor=COLOURS[name], elinewidth=0.8)
    charts.tidy(axis)
    axis.set_ylim(0.0, CEILING)
    axis.set_ylabel("NMAE", fontsize=charts.FONT)
