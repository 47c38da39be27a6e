"""Parts of figures that are alike in all experiments; the colours of the methods are the bundle's."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

__all__ = ["FONT", "legend_below", "line", "log_axes", "new_figure", "tidy"]

FONT = 9


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of a size in inches, without pyplot."""
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def tidy(axis: Axes) -> None:
    """Thin frame, light grid, small labels."""
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(True, axis="y", color="#e3e6ea", lw=0.7)
    axis.set_axisbelow(True)
    axis.tick_params(labelsize=FONT - 1)


def line(axis: Axes, x: Sequence[float], y: Sequence[float | None], colour: str, label: str, style: str = "o-") -> None:
    """Values of one method; None and NaN are left out."""
    points = [(a, b) for a, b in zip(x, y, strict=True) if b is not None and np.isfinite(b)]
    if points:
        axis.plot(*zip(*points, strict=True), style, color=colour, ms=4, lw=1.3, label=label)


def log_axes(axis: Axes, x_ticks: Sequence[float], y_ticks: Sequence[float] | None = None) -> None:
    """Logarithmic axes with plain numbers at the ticks given; without ``y_ticks`` the second stays linear."""
    axis.set_xscale("log")
    axis.set_xticks(list(x_ticks), [f"{x:g}" for x in x_ticks])
    if y_ticks is not None:
        axis.set_yscale("log")
        axis.set_yticks(list(y_ticks), [f"{y:g}" for y in y_ticks])
    axis.minorticks_off()


def legend_below(figure: Figure, axis: Axes) -> None:
    """One legend for all panels, below them."""
    handles, labels = axis.get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    figure.legend(unique.values(), unique.keys(), loc="outside lower center", ncols=8, fontsize=FONT, frameon=False)
