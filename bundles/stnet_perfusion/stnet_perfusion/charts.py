"""Figures of the report: where the input functions were taken, and where perfusion is late."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from shared_transforms.figures.panels import FONT, SMALL_FONT, add_colour_bar, colour_map, new_figure, show_slice
from shared_transforms.figures.slices import Slice, radiological

__all__ = ["curves_figure", "lesion_figure"]

Array = npt.NDArray[Any]

_COLOURS = {"aif": "#c0392b", "vof": "#1f5a92"}
_LABELS = {"aif": "arterial", "vof": "venous"}
_SLICES, _COLUMNS = 12, 6  # of the lesion's figure
_CORE_COLOUR, _LESION_COLOUR = "#e83e8c", "#35d07f"


def curves_figure(
    curves: Mapping[str, Array], frame_time: float, voxels: Mapping[str, Array], background: Array, affine: Array
) -> Figure:
    """The arterial and the venous curve, and the slices with most of their voxels.

    Args:
        curves: "aif" and "vof" to concentrations ``[T]`` [mM].
        frame_time: [s].
        voxels: the same names to voxel indices ``[n, 3]``, where the curve comes from voxels.
        background: image ``[X, Y, Z]`` below the voxels.
        affine: ``[4, 4]``, voxel indices to millimetres (RAS).
    """
    shown = {name: np.asarray(places, int) for name, places in voxels.items() if len(places)}
    figure = new_figure(4.2 + 2.4 * len(shown), 2.7)
    grid = figure.add_gridspec(1, 1 + len(shown), width_ratios=[4.2] + [2.4] * len(shown))
    axis = figure.add_subplot(grid[0, 0])
    for name, curve in curves.items():
        times = frame_time * np.arange(len(curve))
        axis.plot(times, curve, color=_COLOURS[name], marker=".", markersize=4, linewidth=1.2, label=_LABELS[name])
    axis.set_xlabel("time [s]", fontsize=FONT)
    axis.set_ylabel("concentration in blood [mM]", fontsize=FONT)
    axis.tick_params(labelsize=SMALL_FONT)
    axis.spines[["top", "right"]].set_visible(False)
    axis.axhline(0.0, color="#9aa3ad", linewidth=0.6)
    axis.legend(fontsize=SMALL_FONT, frameon=False)
    limits = _limits(background)
    for column, (name, places) in enumerate(shown.items(), 1):
        marks = np.zeros(background.shape, bool)
        marks[tuple(places.T)] = True
        axis = figure.add_subplot(grid[0, column])
        _marked_slice(axis, background, marks, affine, limits, _COLOURS[name])
        axis.set_title(f"{_LABELS[name]} voxels\n{axis.get_title()}", fontsize=SMALL_FONT)
    return figure


def lesion_figure(tmax: Array, mask: Array, lesion: Array, core: Array, affine: Array, threshold: float) -> Figure:
    """Axial slices of Tmax with the outlines of the lesion and of its core.

    Args:
        tmax: ``[X, Y, Z]`` [s].
        mask: boolean: brain.
        lesion: boolean: Tmax above the threshold.
        core: boolean.
        affine: ``[4, 4]``, voxel indices to millimetres (RAS).
        threshold: [s].
    """
    volume, size = radiological(np.where(mask, tmax, np.nan), affine)
    lesion, core, inside = (radiological(part, affine)[0] for part in (lesion, core, mask))
    levels = _spread(lesion if lesion.any() else inside, _SLICES)
    columns = min(_COLUMNS, len(levels))
    rows = -(-len(levels) // columns)
    figure = new_figure(1.55 * columns + 0.9, 1.75 * rows + 0.1)
    axes = np.ravel(figure.subplots(rows, columns, squeeze=False))
    box = _box(inside)
    shown = []
    for axis, k in zip(axes, levels, strict=False):
        item = _axial(volume, k, size, box)
        image = show_slice(axis, item, 0.0, 2.0 * threshold, colour_map("Tmax", "map"))
        axis.set_title(item.name, fontsize=SMALL_FONT)
        shown.append(item.image)
        for part, colour in ((lesion, _LESION_COLOUR), (core, _CORE_COLOUR)):
            outline = _axial(part, k, size, box).image.astype(float)
            if outline.any():
                axis.contour(outline, [0.5], colors=[colour], linewidths=1.0)
    for axis in axes[len(levels) :]:
        axis.axis("off")
    add_colour_bar(figure, image, list(axes), shown, "Tmax [s]")
    return figure


def _marked_slice(
    axis: Axes, background: Array, marks: Array, affine: Array, limits: tuple[float, float], colour: str
) -> None:
    """The axial slice with most marks, each with a ring around it."""
    volume, size = radiological(background, affine)
    marked, _ = radiological(marks, affine)
    k = int(np.argmax(marked.sum((0, 1))))
    item = _axial(volume, k, size, None)
    show_slice(axis, item, *limits, colour_map("M0", "map"))
    rows, columns = np.nonzero(_axial(marked, k, size, None).image)
    axis.scatter(columns, rows, s=18, facecolors="none", edgecolors=colour, linewidths=0.9)
    axis.set_title(f"{item.name} ({len(rows)} of {int(marked.sum())})")


def _axial(volume: Array, k: int, size: tuple[float, float, float], box: tuple[slice, slice] | None) -> Slice:
    columns, rows = box or (slice(None), slice(None))
    name = f"axial {k + 1} of {volume.shape[2]}"
    return Slice(np.flip(volume[columns, rows, k]).T, size[1] / size[0], name, "RLAP")


def _box(inside: Array) -> tuple[slice, slice]:
    """The part of a slice where the brain is."""
    parts = []
    for axis in (0, 1):
        occupied = np.flatnonzero(inside.any(axis=(1 - axis, 2)))
        parts.append(slice(occupied[0], occupied[-1] + 1) if len(occupied) else slice(None))
    return parts[0], parts[1]


def _spread(where: Array, n: int) -> Sequence[int]:
    """At most n slices, spread over those that a mask reaches."""
    occupied = np.flatnonzero(where.any(axis=(0, 1)))
    if not len(occupied):
        occupied = np.arange(where.shape[2])
    chosen = np.unique(np.round(np.linspace(0, len(occupied) - 1, min(n, len(occupied)))).astype(int))
    return [int(k) for k in occupied[chosen]]


def _limits(image: Array) -> tuple[float, float]:
    positive = image[np.isfinite(image) & (image > 0)]
    return (0.0, float(np.percentile(positive, 99))) if len(positive) else (0.0, 1.0)
