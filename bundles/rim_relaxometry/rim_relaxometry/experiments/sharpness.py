"""Sharpness of the boundary between grey and white matter: slopes of sigmoids along lines across it (Fig. 7)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.ndimage import gaussian_filter, map_coordinates
from tqdm import tqdm

from shared_transforms.experiments import Row, interval
from shared_transforms.metrics import bootstrap

from . import charts
from .bench import Bench
from .monte_carlo import repeat
from .scenes import Scene, acquisition_of, brains, signal_of
from .statistics import Array, paired, quantiles, sigmoid_slope

REACH = np.linspace(-4.0, 4.0, 33)  # [pixels] along a line, from grey to white matter
APART = 5.0  # [pixels]


def interface_lines(grey: Array, white: Array, count: int) -> tuple[Array, Array]:
    """Lines across the interface where grey matter lies on one side and white on the other.

    Args:
        grey: fraction of grey matter ``[H, W]``.
        white: fraction of white matter ``[H, W]``.
        count: largest number of lines, at least 5 pixels apart.

    Returns:
        Middle points ``[n, 2]`` and unit normals ``[n, 2]`` (row, column), the normals pointing into white matter.
    """
    smooth = gaussian_filter(white, 1.0)
    gradient = np.stack(np.gradient(smooth), -1)
    at = np.argwhere((np.abs(white - 0.5) < 0.15) & (grey + white > 0.95))
    normal = gradient[at[:, 0], at[:, 1]]
    normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-9)

    def along(fraction: Array, distances: Array) -> Array:
        points = at[:, None] + distances[:, None] * normal[:, None]
        return map_coordinates(fraction, points.reshape(-1, 2).T, order=1).reshape(len(at), -1).min(1)

    quality = np.minimum(along(grey, np.linspace(-4.0, -1.5, 6)), along(white, np.linspace(1.5, 4.0, 6)))
    chosen: list[int] = []
    for index in np.argsort(-quality, kind="stable"):
        if len(chosen) < count and all(np.linalg.norm(at[index] - at[k]) >= APART for k in chosen):
            chosen.append(int(index))
    return at[chosen].astype(float), normal[chosen]


def profiles(image: Array, points: Array, normals: Array) -> Array:
    """Values along the lines by linear interpolation, ``[n, 33]``."""
    places = points[:, None] + REACH[:, None] * normals[:, None]
    return map_coordinates(image, places.reshape(-1, 2).T, order=1, mode="nearest").reshape(len(points), -1)


def sharpness(bench: Bench, lines: int = 20, snr: tuple[float, ...] = (10, 30), repetitions: int = 5) -> list[Path]:
    """Slope of the GM/WM boundary in T1 maps of every method, compared in pairs over the lines.

    Args:
        bench: estimators and output folder.
        lines: number of lines (paper: 20).
        snr: signal-to-noise ratios.
        repetitions: scans; the slope of a line is that of each scan, their median over scans is tested.
    """
    snr, repetitions = bench.pick((tuple(snr), repetitions), ((30.0,), 2))
    scene = brains(
        "T1", 1, bench.seed + 4, table_means=True, anatomy=bench.anatomy, device=bench.device, size=bench.size
    )
    grey, white, truth = (x.double().cpu().numpy() for x in (*scene.fractions[0, 1:3], scene.parameters[0, 2]))
    points, normals = interface_lines(grey, white, lines)
    true_slopes = np.array([sigmoid_slope(REACH, y) for y in profiles(truth, points, normals)])
    rows: list[Row] = []
    boxes: dict[str, dict[str, list[float]]] = {"truth": {}}
    for level in tqdm(snr, desc="sharpness"):
        boxes["truth"][f"{level:g}"] = quantiles(torch.as_tensor(true_slopes))
        slopes = _slopes(bench, scene, level, repetitions, points, normals)
        for method, found in slopes.items():
            boxes.setdefault(method, {})[f"{level:g}"] = quantiles(torch.as_tensor(found))
            rows.append(_row(bench, level, repetitions, method, found, true_slopes, slopes))
    notes = [
        "Slope of a sigmoid [1/pixel] along lines across the GM/WM boundary of a simulated slice without texture, "
        "Rician noise, N31; for each line the median over the scans. ratio_to_truth: median over the lines of the "
        "slope over that of the true map, below 1 where a method blurs. p_...: paired t-tests over the lines.",
        "The paper: real scans, 20 lines drawn by hand, no significant difference between methods; it gives no "
        "numbers.",
    ]
    figure = charts.new_figure(5.5, 3.2)
    axis = figure.subplots()
    charts.grouped_boxes(axis, boxes, [f"{level:g}" for level in snr], (0.0, 8.0))
    axis.set_xlabel("SNR", fontsize=charts.FONT)
    axis.set_ylabel("slope of the boundary [1/pixel]", fontsize=charts.FONT)
    charts.legend_below(figure, axis)
    return [*bench.write("sharpness", [*rows, *bench.absent()], notes), bench.save_figure("sharpness", figure)]


def _slopes(
    bench: Bench, scene: Scene, level: float, repetitions: int, points: Array, normals: Array
) -> dict[str, Array]:
    """For each method the slope of each line, the median over scans."""
    acquisition: dict[str, Any] = acquisition_of("T1", "N31", bench.device)
    signal = signal_of("T1", scene, acquisition)[0]
    acquisition["noise"] = "rician"
    found = {}
    for method in bench.methods(acquisition["times"], paper_smoothness=True, trivial=False):
        maps = repeat(method, signal, acquisition, level, scene.inside[0], repetitions, bench.seed).estimates[:, 2]
        each = [
            [sigmoid_slope(REACH, y) for y in profiles(image, points, normals)] for image in maps.double().cpu().numpy()
        ]
        found[method.name] = np.array([_median(column) for column in np.array(each).T])
    return found


def _median(values: Array) -> float:
    finite = values[np.isfinite(values)]
    return float(np.median(finite)) if len(finite) else float("nan")


def _row(
    bench: Bench, level: float, repetitions: int, method: str, found: Array, truth: Array, slopes: dict[str, Array]
) -> Row:
    ratio = found / truth
    usable = ratio[np.isfinite(ratio)]
    middle = bootstrap(len(usable), lambda chosen: float(np.median(usable[chosen])), seed=bench.seed)
    low, median, high = quantiles(torch.as_tensor(found), (0.25, 0.5, 0.75))
    row: Row = {
        "snr": level, "method": method, "lines": len(found), "scans": repetitions, "slope_q1": low,
        "slope_median": median, "slope_q3": high, "true_slope_median": _median(truth),
        **interval("ratio_to_truth", middle),
        "fits_failed": int((~np.isfinite(found)).sum()), "p_against_truth": paired(found, truth)[1],
    }  # fmt: skip
    for rival in ("mle_voxelwise", "mle_smooth"):
        row[f"p_against_{rival}"] = None if rival == method else paired(found, slopes[rival])[1]
    return row
