"""Figures of the experiments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes

from shared_transforms.experiments import charts as shared
from shared_transforms.experiments.charts import FONT, legend_below, log_axes, new_figure, tidy

__all__ = ["FONT", "colour", "grouped_boxes", "legend_below", "line", "log_axes", "new_figure", "tidy"]

# Okabe and Ito: told apart with every kind of colour vision.
COLOURS = {
    "rim": "#D55E00",
    "resnet": "#009E73",
    "mle": "#0072B2",
    "mle_voxelwise": "#56B4E9",
    "mle_shared": "#CC79A7",
    "mle_smooth": "#0072B2",
    "trivial": "#999999",
    "truth": "#222222",
}
OTHER = "#E69F00"
Boxes = Mapping[str, Mapping[str, Sequence[float]]]  # method -> place -> five quantiles


def colour(method: str) -> str:
    """Colour of a method, the same in every figure."""
    return COLOURS.get(method, OTHER)


def grouped_boxes(axis: Axes, boxes: Boxes, places: Sequence[str], limits: tuple[float, float] | None = None) -> None:
    """Boxes of several methods side by side at each place: quartiles, median, whiskers at 5 and 95 %.

    Args:
        axis: to be drawn on.
        boxes: method to (place to the quantiles at 5, 25, 50, 75 and 95 %).
        places: labels in order.
        limits: ends of the value axis.
    """
    width = 0.8 / max(len(boxes), 1)
    for number, (method, values) in enumerate(boxes.items()):
        offset = (number - (len(boxes) - 1) / 2) * width
        at = [k for k, place in enumerate(places) if place in values and np.isfinite(values[place]).all()]
        keys = ("whislo", "q1", "med", "q3", "whishi")
        stats = [dict(zip(keys, values[places[k]], strict=True)) for k in at]
        if not stats:
            continue
        drawn = axis.bxp(
            stats, positions=[k + offset for k in at], widths=0.85 * width, showfliers=False, patch_artist=True,
            manage_ticks=False, boxprops={"facecolor": colour(method), "edgecolor": colour(method), "alpha": 0.8},
            medianprops={"color": "black", "lw": 1.0}, whiskerprops={"color": colour(method)},
            capprops={"color": colour(method)},
        )  # fmt: skip
        drawn["boxes"][0].set_label(method)
        flat = [(k, values[places[k]][2]) for k in at if values[places[k]][0] == values[places[k]][-1]]
        if flat:  # a single value: no box to see
            axis.plot([k + offset for k, _ in flat], [v for _, v in flat], "o", color=colour(method), ms=3.5)
    axis.axhline(0.0, color="#3c4654", lw=0.8)
    axis.set_xticks(range(len(places)), places)
    axis.set_xlim(-0.6, len(places) - 0.4)
    if limits is not None:
        axis.set_ylim(*limits)
    tidy(axis)


def line(axis: Axes, method: str, x: Sequence[float], y: Sequence[float], style: str = "o-") -> None:
    """One method's values, NaN left out."""
    shared.line(axis, x, y, colour(method), method, style)
