"""The picture of the README: for each demonstration what was measured, the estimate, the truth and the error."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from shared_transforms.atomic import atomic_write
from shared_transforms.figures import central_slices, figure_to_png_bytes
from shared_transforms.figures.panels import FONT, add_colour_bar, colour_map, new_figure, show_slice

if TYPE_CHECKING:
    from demos import PanelRow

PNG_DPI = 100
NO_DATA = "#d4d6da"


def draw(rows: Sequence[PanelRow], picture: Path) -> None:
    """Draw the rows below one another.

    Args:
        rows: of as many panels each.
        picture: the PNG file to write.
    """
    figure = new_figure(13.2, 2.75 * len(rows))
    grid = figure.subplots(len(rows), max(len(row.panels) for row in rows), squeeze=False)
    for axes, row in zip(grid, rows, strict=True):
        _row(figure, list(axes), row)
    with atomic_write(picture) as file:
        file.write(figure_to_png_bytes(figure, PNG_DPI))


def _row(figure: Any, axes: list[Any], row: PanelRow) -> None:
    import matplotlib

    for axis, panel in zip(axes, row.panels, strict=True):
        item = central_slices(panel.volume, row.affine, row.mask, 1)[0]
        known = panel.colours in matplotlib.colormaps
        colours = matplotlib.colormaps[panel.colours] if known else colour_map(panel.colours, "map")
        drawn = show_slice(axis, item, panel.low, panel.high, colours.with_extremes(bad=NO_DATA))
        axis.set_title(panel.title, fontsize=FONT)
        if panel.bar:
            add_colour_bar(figure, drawn, [axis], [item.image[np.isfinite(item.image)]], panel.bar)
