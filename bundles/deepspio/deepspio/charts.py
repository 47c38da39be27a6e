"""Figures of the report: the lines, the concentration, what the concentration would have made of the lines."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from shared_transforms.figures.panels import FONT, SMALL_FONT, new_figure

__all__ = ["concentration_figure", "simulation_figure"]

Array = npt.NDArray[np.float64]

_SIDE = 2.6  # of one image [inch]
_CONCENTRATION, _RESIDUAL = "magma", "inferno"
_NAMED = 20  # regions with a number in the figure


def concentration_figure(
    image: Array, concentration: Array, labels: npt.NDArray[np.int64], places: Sequence[tuple[float, float]],
    pixel_size: tuple[float, float], top: float,
) -> Figure:  # fmt: skip
    """The image with its even lines red and its odd lines green, beside the concentration with its regions.

    Args:
        image: ``[2, X, Z]``.
        concentration: ``[X, Z]`` [ug/mm^3].
        labels: number of the region of each voxel ``[X, Z]``, 0 for none.
        places: centre of each region (x, z) from the middle of the image [mm].
        pixel_size: (dx, dz) [mm].
        top: end of the colour bar [ug/mm^3].
    """
    figure = new_figure(2 * _SIDE + 1.1, _SIDE + 0.45)
    left, right = figure.subplots(1, 2)
    extent = _extent(concentration.shape, pixel_size)
    lines = np.clip(image / max(_bright(image), 1e-30), 0.0, 1.0)
    coloured = np.stack([lines[0], lines[1], np.zeros_like(lines[0])], -1)
    left.imshow(coloured.swapaxes(0, 1), origin="lower", extent=extent, interpolation="nearest")
    left.set_title("image: even lines red, odd lines green", fontsize=SMALL_FONT)
    _show(figure, right, concentration, extent, (0.0, top), _CONCENTRATION, "concentration [ug/mm^3]")
    right.set_title("concentration and its regions", fontsize=SMALL_FONT)
    if labels.any():
        x, z = (np.linspace(*ends) for ends in _centres(labels.shape, pixel_size))
        for axis in (left, right):
            axis.contour(x, z, (labels > 0).T, levels=[0.5], colors="white", linewidths=0.7)
    for number, (x_mm, z_mm) in enumerate(places[:_NAMED], 1):
        right.annotate(
            str(number), (x_mm, z_mm), (6, 6), textcoords="offset points", color="white", fontsize=SMALL_FONT,
            path_effects=[withStroke(linewidth=2, foreground="black")],
        )  # fmt: skip
    _label(left, right)
    return figure


def simulation_figure(
    image: Array, simulated: Array, difference: Array, reference: Array, pixel_size: tuple[float, float]
) -> Figure:
    """Both channels measured and simulated, the residual and the signal without iron that was assumed.

    Args:
        image: ``[2, X, Z]``, arbitrary unit.
        simulated: ``[2, X, Z]``, the same.
        difference: absolute, sum of both channels, over the signal without iron ``[X, Z]``.
        reference: signal without iron ``[X, Z]``, unit of the image.
        pixel_size: (dx, dz) [mm].
    """
    figure = new_figure(3 * _SIDE + 0.9, 2 * _SIDE + 0.8)
    axes = figure.subplots(2, 3)
    extent = _extent(difference.shape, pixel_size)
    scale = max(_bright(image), 1e-30)
    for row, (name, channels) in enumerate((("measured", image), ("simulated again", simulated))):
        for channel, lines in enumerate(("even", "odd")):
            axis = axes[row, channel]
            axis.imshow(
                channels[channel].T / scale, origin="lower", extent=extent, cmap="gray", vmin=0.0, vmax=1.0,
                interpolation="nearest",
            )  # fmt: skip
            axis.set_title(f"{lines} lines, {name}", fontsize=SMALL_FONT)
    _show(figure, axes[0, 2], difference, extent, (0.0, 1.0), _RESIDUAL, "relative difference")
    axes[0, 2].set_title("residual, both channels", fontsize=SMALL_FONT)
    _show(figure, axes[1, 2], reference / scale, extent, (0.0, 1.0), "gray", "signal, relative")
    axes[1, 2].set_title("signal without iron, as assumed", fontsize=SMALL_FONT)
    _label(*axes.ravel())
    for axis in axes[0]:
        axis.set_xlabel("")
    for axis in axes[:, 1:].ravel():
        axis.set_ylabel("")
    return figure


def _show(
    figure: Figure, axis: Axes, values: Array, extent: tuple[float, float, float, float], limits: tuple[float, float],
    colours: str, label: str,
) -> None:  # fmt: skip
    low, high = limits
    image = axis.imshow(
        values.T, origin="lower", extent=extent, cmap=colours, vmin=low, vmax=high, interpolation="nearest"
    )
    beyond = bool((values > high).any())
    bar = figure.colorbar(image, ax=axis, fraction=0.046, pad=0.03, extend="max" if beyond else "neither")
    bar.set_label(label, fontsize=SMALL_FONT)
    bar.ax.tick_params(labelsize=SMALL_FONT)
    bar.outline.set_visible(False)


def _label(*axes: Axes) -> None:
    for axis in axes:
        axis.set_xlabel("x [mm]", fontsize=FONT)
        axis.set_ylabel("z, along B0 [mm]", fontsize=FONT)
        axis.tick_params(labelsize=SMALL_FONT)


def _bright(image: Array) -> float:
    """A signal that is bright, but no single pile-up."""
    return float(np.percentile(image, 99.0)) or float(image.max())


def _extent(shape: tuple[int, ...], pixel_size: tuple[float, float]) -> tuple[float, float, float, float]:
    x, z = (0.5 * n * step for n, step in zip(shape, pixel_size, strict=True))
    return -x, x, -z, z


def _centres(shape: tuple[int, ...], pixel_size: tuple[float, float]) -> list[tuple[float, float, int]]:
    ends = [0.5 * (n - 1) * step for n, step in zip(shape, pixel_size, strict=True)]
    return [(-end, end, n) for end, n in zip(ends, shape, strict=True)]
