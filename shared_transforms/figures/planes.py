"""Volumes by several methods in three planes, and how they differ from a reference."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from shared_transforms.figures.panels import (
    FONT,
    SMALL_FONT,
    add_colour_bar,
    axis_label,
    colour_map,
    new_figure,
    show_slice,
)
from shared_transforms.figures.slices import Array, Slice, as_array, planes

__all__ = ["plane_panel"]


def plane_panel(
    volumes: Mapping[str, Any],
    *,
    quantity: str,
    unit: str,
    display_range: tuple[float, float],
    error_range: float | None = None,
    reference: str | None = None,
    mask: Any = None,
    affine: Any = None,
    centre: tuple[int, int, int] | None = None,
    captions: Mapping[str, str] | None = None,
    height: float = 1.55,
) -> Figure:
    """One row for each volume: its sagittal, coronal and axial plane, and the same planes less the reference.

    Args:
        volumes: name to volume ``[H, W, D]``.
        quantity: what they show, for the colour bar, such as "susceptibility".
        unit: its unit.
        display_range: ends of the grey scale, one for all.
        error_range: largest difference of its colour bar.
        reference: name of the volume that is subtracted; None shows no differences.
        mask: same shape, nonzero where the values count; the rest is left plain.
        affine: ``[4, 4]``, voxel indices to millimetres (RAS).
        centre: voxel through which the planes go; default the middle of the mask.
        captions: name to a text below the name, such as its error.
        height: of one row [inch].

    Returns:
        The figure.

    Raises:
        ValueError: without volumes, when shapes differ, or for an unknown reference.
    """
    arrays = {name: as_array(volume).astype(np.float64) for name, volume in volumes.items()}
    shapes = {array.shape for array in arrays.values()}
    if len(shapes) != 1 or (reference is not None and reference not in arrays):
        raise ValueError(f"give volumes of one shape with {reference!r} among them, got {sorted(map(str, shapes))}")
    inside = np.ones(shapes.pop(), dtype=bool) if mask is None else as_array(mask) != 0

    def cut(array: Array) -> list[Slice]:
        return planes(np.where(inside, array, np.nan), affine, inside, centre)

    shown = {name: cut(array) for name, array in arrays.items()}
    errors = {} if reference is None else {name: cut(a - arrays[reference]) for name, a in arrays.items()}
    errors.pop(reference or "", None)
    widths = [item.image.shape[1] / (item.image.shape[0] * item.aspect) for item in next(iter(shown.values()))]
    columns = len(widths) * (2 if errors else 1)
    figure = new_figure(height * sum(widths) * (2 if errors else 1) + 1.6, height * len(arrays) + 0.2)
    grid = figure.subplots(len(arrays), columns, squeeze=False, width_ratios=widths * (2 if errors else 1))
    figure.set_layout_engine("constrained", w_pad=0.01, h_pad=0.01, wspace=0.0, hspace=0.0)
    low, high = display_range
    limit = error_range or (high - low) / 4
    for axes, (name, slices) in zip(grid, shown.items(), strict=True):
        for axis, item in zip(axes, slices, strict=False):
            image = show_slice(axis, item, low, high, colour_map(quantity, "map"))
        label = name + (f"\n{captions[name]}" if captions and name in captions else "")
        axes[0].set_ylabel(label, fontsize=SMALL_FONT)
        for axis, item in zip(axes[len(slices) :], errors.get(name, []), strict=False):
            difference = show_slice(axis, item, -limit, limit, colour_map(quantity, "difference"))
        if errors and name not in errors:
            for axis in axes[len(slices) :]:
                axis.axis("off")
    for axis, item in zip(grid[0], next(iter(shown.values())), strict=False):
        axis.set_title(item.name.split()[0], fontsize=FONT)
    left = [axis for axes in grid for axis in axes[: len(widths)]]
    label = axis_label(quantity, unit)
    add_colour_bar(figure, image, left, [item.image for slices in shown.values() for item in slices], label)
    if errors:
        right = [axis for axes in grid for axis in axes[len(widths) :]]
        add_colour_bar(
            figure, difference, right, [item.image for slices in errors.values() for item in slices],
            axis_label(f"{quantity} less {reference}", unit),
        )  # fmt: skip
    return figure
