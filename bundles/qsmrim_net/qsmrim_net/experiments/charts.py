"""Figures of the experiments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from shared_transforms.experiments import Row
from shared_transforms.experiments.charts import FONT, legend_below, new_figure, tidy
from shared_transforms.metrics.calibration import Reliability

from .methods import LABELS
from .scores import Scored

__all__ = ["COLOURS", "curves_figure", "kinds_figure", "reliability_figure", "subjects_figure"]

COLOURS = {
    "qsmrim_net": "#D55E00", "no_oversampling": "#E69F00", "image_only": "#CC79A7", "image_only_branches": "#882255",
    "rimnet": "#0072B2", "aprl_network": "#56B4E9", "aprl_forest": "#009E73", "rim_contrast": "#777777",
    "size": "#bbbbbb",
}  # fmt: skip
_MOST_FALSE = 0.1


def curves_figure(methods: Sequence[Scored]) -> Figure:
    """Mean ROC curves up to a false positive rate of .1, and mean precision-recall curves."""
    figure = new_figure(9.0, 4.2)
    left, right = figure.subplots(1, 2)
    for one in methods:
        roc, pr = one.average("roc"), one.average("pr")
        colour, label = COLOURS[one.method], LABELS[one.method]
        left.stairs(roc.curve.values, roc.curve.edges, baseline=None, color=colour, label=f"{label} {roc.area:.3f}")
        right.stairs(pr.curve.values, pr.curve.edges, baseline=None, color=colour, label=f"{label} {pr.area:.3f}")
    left.set_xlim(0, _MOST_FALSE)
    right.set_xlim(0, 1)
    _name(left, "false positive rate", "sensitivity", "ROC, area up to .1 over .1")
    _name(right, "recall", "precision", "precision-recall, area")
    for axis in (left, right):
        axis.set_ylim(0, 1.01)
        axis.legend(fontsize=FONT - 2, frameon=False, loc="lower right" if axis is left else "lower left")
    return figure


def subjects_figure(counts: Mapping[str, tuple[NDArray, NDArray]]) -> Figure:
    """Rims found over rims that are there, a panel a method; points are moved a little apart."""
    columns = max(1, min(3, len(counts)))
    lines = max(1, -(-len(counts) // columns))
    figure = new_figure(3.1 * columns, 2.9 * lines)
    axes = figure.subplots(lines, columns, squeeze=False).ravel()
    highest = max([1, *(int(true.max()) for _, true in counts.values())])
    generator = np.random.default_rng(0)
    for axis, (method, (found, true)) in zip(axes, counts.items(), strict=False):
        moved = generator.uniform(-0.25, 0.25, (2, len(true)))
        axis.plot([0, highest], [0, highest], color="#999999", lw=0.8, ls="--")
        axis.plot(true + moved[0], found + moved[1], ".", color=COLOURS[method], ms=4, alpha=0.6)
        if np.ptp(true) > 0:
            slope, intercept = np.polyfit(true, found, 1)
            axis.plot([0, highest], [intercept, intercept + slope * highest], color=COLOURS[method], lw=1.2)
        _name(axis, "rims of the subject", "rims found", LABELS[method])
    for axis in axes[len(counts) :]:
        axis.set_axis_off()
    return figure


def reliability_figure(curves: Mapping[str, Reliability]) -> Figure:
    """Observed over predicted frequency, and lesions in the bins, before and after the calibration."""
    figure = new_figure(4.4, 4.4)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    upper.plot([0, 1], [0, 1], color="#999999", lw=0.8, ls="--")
    for (name, found), colour in zip(curves.items(), ("#56B4E9", COLOURS["qsmrim_net"]), strict=False):
        some = found.counts > 0
        upper.plot(found.predicted[some], found.observed[some], "o-", color=colour, ms=4, lw=1.2, label=name)
        lower.stairs(found.counts, found.edges, color=colour, baseline=0.5)
    lower.set_yscale("log")
    _name(upper, "", "share of rims", LABELS["qsmrim_net"])
    _name(lower, "probability", "lesions", "")
    upper.legend(fontsize=FONT - 1, frameon=False)
    return figure


def kinds_figure(rows: Sequence[Row]) -> Figure:
    """Share called a rim, by kind, a bar a method."""
    groups = list(dict.fromkeys(row["kind"] for row in rows))
    methods = list(dict.fromkeys(row["method"] for row in rows))
    figure = new_figure(9.0, 3.6)
    axis = figure.subplots()
    width = 0.8 / max(1, len(methods))
    for k, method in enumerate(methods):
        own = {row["kind"]: row["share"] for row in rows if row["method"] == method}
        places = [x + (k - (len(methods) - 1) / 2) * width for x in range(len(groups))]
        axis.bar(places, [own.get(group, 0.0) for group in groups], width, color=COLOURS[method], label=LABELS[method])
    axis.set_xticks(range(len(groups)), groups, rotation=20, ha="right")
    _name(axis, "", "share called a rim", "")
    legend_below(figure, axis)
    return figure


def _name(axis: Axes, x: str, y: str, title: str) -> None:
    axis.set_xlabel(x, fontsize=FONT)
    axis.set_ylabel(y, fontsize=FONT)
    axis.set_title(title, fontsize=FONT)
    tidy(axis)
