"""Distributions: a histogram of a map, and boxes over the noise level."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from shared_transforms.figures.panels import FONT, SMALL_FONT, axis_label, new_figure, short
from shared_transforms.figures.slices import as_array

__all__ = ["box_plot_over_snr", "histogram"]

# Okabe and Ito: told apart with every kind of colour vision, and in print.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#666666")
_INK = "#3c4654"


def histogram(
    values: Any,
    *,
    quantity: str = "",
    unit: str = "1",
    mask: Any = None,
    display_range: tuple[float, float] | None = None,
    bins: int = 100,
) -> Figure:
    """Distribution of a map, with median and the range of the middle 90 %.

    Args:
        values: any shape; values that are not finite are left out.
        quantity: what it is.
        unit: its unit, "1" for none.
        mask: same shape, nonzero where counted.
        display_range: range of the axis; values beyond it are counted in the first and last bin.
        bins: number of bins.

    Returns:
        The figure. Without any finite value it says so.
    """
    array = as_array(values).astype(np.float64)
    inside = np.isfinite(array) if mask is None else np.isfinite(array) & (as_array(mask).reshape(array.shape) != 0)
    sample = array[inside]
    figure = new_figure(3.6, 2.7)
    axis = figure.add_subplot()
    _plain(axis)
    axis.set_xlabel(axis_label(quantity, unit), fontsize=FONT)
    axis.set_yticks([])
    axis.spines["left"].set_visible(False)
    if not len(sample):
        axis.text(0.5, 0.5, "no values", transform=axis.transAxes, ha="center", fontsize=FONT)
        return figure
    low, high = display_range or (float(sample.min()), float(sample.max()))
    if not low < high:
        low, high = low - 0.5, low + 0.5
    counts, edges = np.histogram(np.clip(sample, low, high), bins=bins, range=(low, high))
    axis.stairs(counts, edges, fill=True, color="#8fa3bf")  # one outline: a hundred bars take long to draw
    fifth, median, last = np.percentile(sample, [5, 50, 95])
    axis.axvspan(fifth, last, color="#8fa3bf", alpha=0.22, lw=0, label=f"5-95 %: {short(fifth)} to {short(last)}")
    axis.axvline(median, color="#b3261e", lw=1.4, label=f"median: {short(median)}")
    axis.set_xlim(low, high)
    axis.legend(fontsize=SMALL_FONT, frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    return figure


def box_plot_over_snr(
    results: Mapping[str, Mapping[float, Any]],
    *,
    label: str,
    bound: Mapping[float, float] | None = None,
    limits: tuple[float, float] | None = None,
) -> Figure:
    """Boxes of a measure for each signal-to-noise ratio, the methods side by side.

    The box spans the quartiles with a line at the median, the whiskers the middle 90 %.

    Args:
        results: method to (SNR to the values of the measure, any shape).
        label: the measure and its unit, for the axis.
        bound: SNR to a limit such as the Cramer-Rao bound, drawn as a dashed line.
        limits: ends of the value axis.

    Returns:
        The figure.

    Raises:
        ValueError: without results.
    """
    levels = sorted({snr for values in results.values() for snr in values})
    if not levels:
        raise ValueError("no results to show")
    figure = new_figure(max(4.5, 0.9 * len(levels) + 1.5), 3.2)
    axis = figure.add_subplot()
    _plain(axis)
    axis.yaxis.grid(True, color="#e3e6ea", lw=0.8)
    axis.set_axisbelow(True)
    axis.axhline(0, color=_INK, lw=0.8)
    width = 0.8 / len(results)
    for number, (method, values) in enumerate(results.items()):
        offset = (number - (len(results) - 1) / 2) * width
        _boxes(axis, levels, values, offset, 0.85 * width, _COLOURS[number % len(_COLOURS)], method)
    if bound:
        places = [levels.index(snr) for snr in sorted(bound) if snr in levels]
        line = [bound[levels[place]] for place in places]
        axis.plot(places, line, color="black", ls="--", marker="_", lw=1.2, label="Cramer-Rao bound")
    axis.set_xticks(range(len(levels)), [f"{snr:g}" for snr in levels])
    axis.set_xlim(-0.6, len(levels) - 0.4)
    if limits is not None:
        axis.set_ylim(limits)
    axis.set_xlabel("signal-to-noise ratio", fontsize=FONT)
    axis.set_ylabel(label, fontsize=FONT)
    axis.legend(fontsize=SMALL_FONT, frameon=False, ncols=2)
    return figure


def _boxes(
    axis: Axes, levels: list[float], values: Mapping[float, Any], offset: float, width: float, colour: str, name: str
) -> None:
    places = [place for place, snr in enumerate(levels) if snr in values]
    if not places:
        return
    samples = [as_array(values[levels[place]]).ravel() for place in places]
    drawn = axis.boxplot(
        [sample[np.isfinite(sample)] for sample in samples],
        positions=[place + offset for place in places],
        widths=width,
        whis=(5, 95),
        showfliers=False,
        patch_artist=True,
        manage_ticks=False,
        medianprops={"color": "black", "lw": 1.2},
        whiskerprops={"color": colour},
        capprops={"color": colour},
        boxprops={"facecolor": colour, "edgecolor": colour, "alpha": 0.75},
    )
    drawn["boxes"][0].set_label(name)


def _plain(axis: Axes) -> None:
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["left", "bottom"]].set_color(_INK)
    axis.tick_params(labelsize=SMALL_FONT, color=_INK)
