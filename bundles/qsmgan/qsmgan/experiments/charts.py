"""Figures of the experiments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from torch import Tensor

from shared_transforms.experiments import Row, charts
from shared_transforms.figures import plane_panel

from .methods import LABELS
from .scores import scores

# Okabe and Ito: told apart with every kind of colour vision.
COLOURS = {
    "zero": "#BBBBBB",
    "tkd": "#999999",
    "tikhonov": "#666666",
    "l2_gradient": "#56B4E9",
    "tv": "#0072B2",
    "tv_scaled": "#0072B2",
    "ilsqr": "#CC79A7",
    "medi": "#E69F00",
    "medi_no_magnitude": "#E69F00",
    "cosmos": "#222222",
    "unet": "#009E73",
    "qsmgan": "#D55E00",
    "paper": "#F0E442",
}
RANGE, ERROR_RANGE = (-0.15, 0.15), 0.1  # [ppm]


def maps_figure(
    truth: Tensor | None,
    maps: Mapping[str, Tensor],
    mask: Tensor,
    voxel_size: Sequence[float] = (1.0, 1.0, 1.0),
    **options: Any,
) -> Figure:
    """Maps of the methods in three planes on one grey scale, and their errors.

    Args:
        truth: ``[X, Y, Z]`` [ppm], or None where there is none.
        maps: method to map of that shape.
        mask: of that shape.
        voxel_size: [mm].
        options: of :func:`shared_transforms.figures.plane_panel`.
    """
    affine = [[float(voxel_size[i]) * (i == j) for j in range(4)] for i in range(3)] + [[0.0, 0.0, 0.0, 1.0]]
    captions = None
    volumes = {LABELS.get(name, name): volume for name, volume in maps.items()}
    if truth is not None:
        captions = {
            name: f"NRMSE {scores(volume, truth, mask, ['nrmse'])['nrmse']:.1f} %" for name, volume in volumes.items()
        }
        volumes = {"truth": truth, **volumes}
    settings: dict[str, Any] = {
        "quantity": "susceptibility", "unit": "ppm", "display_range": RANGE, "error_range": ERROR_RANGE,
        "reference": None if truth is None else "truth", "mask": mask, "affine": affine, "captions": captions,
    }  # fmt: skip
    return plane_panel(volumes, **{**settings, **options})


def curves_figure(
    rows: Sequence[Row],
    x: str,
    columns: Mapping[str, str],
    label: str,
    log: bool = False,
    categories: Sequence[str] | None = None,
) -> Figure:
    """Scores of all methods over one variable, a panel for each score.

    Args:
        rows: with ``method``, the variable and the scores.
        x: column of the variable.
        columns: column of a score to the label of its axis.
        label: of the variable.
        log: logarithmic axis of the variable.
        categories: values of the variable in order, where it is no number.
    """
    figure = charts.new_figure(3.4 * len(columns), 3.6)
    axes = figure.subplots(1, len(columns), squeeze=False)[0]
    methods = [name for name in LABELS if any(row["method"] == name for row in rows)]
    for axis, (column, title) in zip(axes, columns.items(), strict=True):
        for name in methods:
            own = [row for row in rows if row["method"] == name and row.get(column) is not None]
            places = [categories.index(row[x]) if categories else row[x] for row in own]
            style = "s--" if name.endswith(("_scaled", "_no_magnitude")) else "o-"
            charts.line(axis, places, [row[column] for row in own], COLOURS[name], LABELS[name], style)
        charts.tidy(axis)
        axis.set_xlabel(label, fontsize=charts.FONT)
        axis.set_ylabel(title, fontsize=charts.FONT)
        if log:
            charts.log_axes(axis, sorted({row[x] for row in rows if row.get(x) is not None}))
        if categories:
            axis.set_xticks(range(len(categories)), list(categories), fontsize=charts.FONT - 2)
    charts.legend_below(figure, axes[0])
    return figure
