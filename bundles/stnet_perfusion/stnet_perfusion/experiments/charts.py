"""Figures of the experiments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from shared_transforms.experiments import Row, charts
from shared_transforms.figures.panels import colour_map

from .cohort import PARAMETERS, UNITS, Subject
from .methods import LABELS

# Okabe and Ito: told apart with every kind of colour vision.
COLOURS = {
    "trivial": "#BBBBBB",
    "ssvd": "#666666",
    "csvd": "#56B4E9",
    "osvd": "#0072B2",
    "tikhonov": "#CC79A7",
    "ttv": "#E69F00",
    "stnet": "#D55E00",
}
RANGES = ((0.0, 6.0), (0.0, 90.0), (0.0, 12.0))  # of the colour bars, in the units of the parameters
SCORES = {"ssim": "SSIM", "pcc": "Pearson", "nrmse": "NRMSE"}


def maps_figure(subject: Subject, maps: Mapping[str, Tensor]) -> Figure:
    """One slice of the truth and of the methods, a row for each parameter: the slice with most hypoperfused tissue.

    Args:
        subject: the examination.
        maps: method to CBV, CBF, Tmax ``[3, V]``.
    """
    columns = {"truth": subject.truth, **{LABELS.get(name, name): maps[name] for name in maps}}
    z = int(subject.volume(subject.lesion).sum((0, 1)).argmax())
    inside = subject.tissue[..., z].cpu().numpy()
    figure = charts.new_figure(2.0 * len(columns) + 0.6, 6.6)
    axes = figure.subplots(3, len(columns), squeeze=False)
    aspect = subject.voxel_size[1] / subject.voxel_size[0]
    for column, (label, values) in enumerate(columns.items()):
        volumes = subject.volume(values)[..., z].cpu().numpy()
        for k, name in enumerate(PARAMETERS):
            axis = axes[k, column]
            low, high = RANGES[k]
            picture = np.ma.masked_array(volumes[k], ~inside).T
            image = axis.imshow(
                picture, origin="lower", vmin=low, vmax=high, cmap=colour_map(name.lower(), "map"), aspect=aspect
            )
            axis.set_axis_off()
            if k == 0:
                axis.set_title(label, fontsize=charts.FONT)
            if column == len(columns) - 1:
                bar = figure.colorbar(image, ax=axes[k].tolist(), shrink=0.8, pad=0.01)
                bar.set_label(f"{name} [{UNITS[k]}]", fontsize=charts.FONT)
                bar.ax.tick_params(labelsize=charts.FONT - 1)
    return figure


def boxes_figure(rows: Sequence[Row]) -> Figure:
    """Figures of merit of single subjects in the brain: a panel for each parameter and score.

    Args:
        rows: ``region``, ``parameter``, ``method`` and the scores of :data:`SCORES`.
    """
    methods = [name for name in LABELS if any(row["method"] == name for row in rows)]
    figure = charts.new_figure(9.6, 7.2)
    axes = figure.subplots(len(PARAMETERS), len(SCORES), squeeze=False)
    for line, parameter in zip(axes, PARAMETERS, strict=True):
        for axis, (column, title) in zip(line, SCORES.items(), strict=True):
            for place, name in enumerate(methods):
                values = [
                    row[column] for row in rows
                    if (row["region"], row["parameter"], row["method"]) == ("brain", parameter, name)
                    and np.isfinite(row[column])
                ]  # fmt: skip
                if values:
                    _box(axis, values, place, COLOURS[name])
            charts.tidy(axis)
            axis.set_xticks(range(len(methods)), [LABELS[name] for name in methods], rotation=40, ha="right")
            axis.tick_params(axis="x", labelsize=charts.FONT - 2)
            axis.set_title(f"{parameter}: {title}", fontsize=charts.FONT)
    return figure


def _box(axis: Axes, values: Sequence[float], place: int, colour: str) -> None:
    axis.boxplot(
        [values], positions=[place], widths=0.6, patch_artist=True, manage_ticks=False,
        boxprops={"facecolor": colour, "alpha": 0.6}, medianprops={"color": "#222222"},
        flierprops={"marker": ".", "markersize": 3},
    )  # fmt: skip


def volumes_figure(rows: Sequence[Row]) -> Figure:
    """Volumes of hypoperfused tissue of every method against the truth.

    Args:
        rows: one for each subject, ``truth_ml`` and ``<method>_ml``.
    """
    methods = [name for name in LABELS if f"{name}_ml" in rows[0] and name != "trivial"]
    figure = charts.new_figure(2.4 * max(1, len(methods)), 2.9)
    axes = figure.subplots(1, max(1, len(methods)), squeeze=False, sharex=True, sharey=True)[0]
    top = 1.05 * max([row["truth_ml"] for row in rows] + [1.0])
    for axis, name in zip(axes, methods, strict=False):
        axis.plot([0, top], [0, top], color="#999999", lw=0.8)
        x, y = [row["truth_ml"] for row in rows], [row[f"{name}_ml"] for row in rows]
        axis.plot(x, y, ".", color=COLOURS[name], ms=5)
        charts.tidy(axis)
        axis.set_title(LABELS[name], fontsize=charts.FONT)
        axis.set_xlabel("true volume [ml]", fontsize=charts.FONT)
    axes[0].set_ylabel("Tmax > 6 s [ml]", fontsize=charts.FONT)
    return figure


def sweep_figure(rows: Sequence[Row]) -> Figure:
    """Errors and Dice of all methods over the SNR."""
    panels = {
        "cbv_mae": "CBV MAE [ml/100 g]", "cbf_mae": "CBF MAE [ml/100 g/min]", "tmax_mae": "Tmax MAE [s]",
        "dice": "Dice (Tmax > 6 s)",
    }  # fmt: skip
    figure = charts.new_figure(3.0 * len(panels), 3.4)
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    methods = [name for name in LABELS if any(row["method"] == name for row in rows)]
    for axis, (column, title) in zip(axes, panels.items(), strict=True):
        for name in methods:
            own = [row for row in rows if row["method"] == name]
            charts.line(axis, [row["snr"] for row in own], [row[column] for row in own], COLOURS[name], LABELS[name])
        charts.tidy(axis)
        charts.log_axes(axis, sorted({row["snr"] for row in rows}))
        axis.set_xlabel("baseline SNR", fontsize=charts.FONT)
        axis.set_title(title, fontsize=charts.FONT)
    charts.legend_below(figure, axes[0])
    return figure
