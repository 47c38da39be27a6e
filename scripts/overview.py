"""The picture of the README: weighted images, estimate, truth and error of the demonstration."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nibabel as nib
import numpy as np

from shared_transforms.atomic import atomic_write
from shared_transforms.figures import central_slices, figure_to_png_bytes
from shared_transforms.figures.panels import FONT, add_colour_bar, axis_label, colour_map, new_figure, show_slice

if TYPE_CHECKING:
    from demo import Scan

SHOWN = {"T1": (0, 3, 7), "T2": (0, 3, 11)}  # weighted images, by number
RANGE_S = {"T1": (0.0, 2.5), "T2": (0.0, 0.2)}
ERROR_PERCENT = 20.0
ERROR_COLOURS = "RdBu_r"
PNG_DPI = 100


def draw(scans: Sequence[Scan], maps: Path, picture: Path) -> None:
    """Draw one row for each scan: three weighted images, estimate, truth, error.

    Args:
        scans: the scans with their truth.
        maps: folder of the maps, ``<parameter>/sub-demo/`` below it.
        picture: the PNG file to write.
    """
    figure = new_figure(13.2, 2.75 * len(scans))
    rows = figure.subplots(len(scans), 6, squeeze=False)
    for axes, scan in zip(rows, scans, strict=True):
        _row(figure, list(axes), scan, maps / scan.parameter / "sub-demo")
    with atomic_write(picture) as file:
        file.write(figure_to_png_bytes(figure, PNG_DPI))


def _row(figure: Any, axes: list[Any], scan: Scan, folder: Path) -> None:
    import matplotlib

    image: Any = nib.load(folder / f"sub-demo_{scan.parameter}map.nii.gz")
    mask_image: Any = nib.load(folder / "sub-demo_mask.nii.gz")
    mask, estimate = np.asarray(mask_image.dataobj) > 0, np.asarray(image.dataobj)

    def middle(volume: Any) -> Any:
        return central_slices(volume, scan.affine, mask, 1)[0]

    name = {"T1": "TI", "T2": "TE"}[scan.parameter]
    gray, top = colour_map("A", "map"), float(np.percentile(scan.series[:, mask], 99.5))
    for axis, number in zip(axes, SHOWN[scan.parameter], strict=False):
        show_slice(axis, middle(scan.series[number]), 0.0, top, gray)
        axis.set_title(f"{name} {1000 * scan.times[number]:g} ms", fontsize=FONT)
    low, high = RANGE_S[scan.parameter]
    colours = colour_map(scan.parameter, "map")
    shown = [middle(np.where(mask, volume, np.nan)) for volume in (estimate, scan.truth)]
    titles = [f"{scan.parameter}, estimate", f"{scan.parameter}, truth"]
    for axis, item, title in zip(axes[3:5], shown, titles, strict=True):
        drawn = show_slice(axis, item, low, high, colours)
        axis.set_title(title, fontsize=FONT)
    add_colour_bar(figure, drawn, [axes[4]], [item.image for item in shown], axis_label(scan.parameter, "s"))
    error = middle(np.where(mask, 100 * (estimate / scan.truth - 1), np.nan))
    diverging = matplotlib.colormaps[ERROR_COLOURS].with_extremes(bad="#d4d6da")
    drawn = show_slice(axes[5], error, -ERROR_PERCENT, ERROR_PERCENT, diverging)
    axes[5].set_title(f"{scan.parameter}, error", fontsize=FONT)
    add_colour_bar(figure, drawn, [axes[5]], [error.image], axis_label("error", "%"))
