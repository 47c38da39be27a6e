"""One head at many noise levels, B0 directions and resolutions."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from shared_transforms.experiments import Row

from . import charts
from .bench import Bench
from .case import Case, Triple, means
from .heads import draw_head
from .scores import scores

METHODS = ("tkd", "l2_gradient", "tv", "unet", "qsmgan", "paper")
COLUMNS = ("nrmse", "detrended_nrmse", "slope", "hfen", "xsim")
AXES = {"nrmse": "NRMSE [%]", "hfen": "HFEN [%]", "xsim": "XSIM"}
HEAD = 10  # of the test split: none of the method table
# The plane in which B0 is tilted is no plane of the grid.
SIDEWAYS = (0.8, 0.6)


@torch.no_grad()
def noise_sweep(
    bench: Bench,
    noise_ppm: Sequence[float] = (0.0007, 0.0015, 0.003, 0.006, 0.012),
    methods: Sequence[str] = METHODS,
    scale: float = 0.8,
) -> list[Path]:
    """Scores over the noise of the field.

    Args:
        bench: methods and output folder.
        noise_ppm: standard deviations of the field where the magnitude has its mean [ppm].
        methods: names as in :data:`.methods.LABELS`.
        scale: size of the head relative to the others.
    """
    head = draw_head(bench, HEAD, scale=scale)
    levels = bench.pick(list(noise_ppm), [0.003])
    cases = ((level, head.measure(level, bench.seed)) for level in levels)
    rows = _rows(bench, "noise_ppm", cases, methods)
    files = bench.write("noise_sweep", [*rows, *bench.absent(methods)], [_note(head.chi.shape, "")])
    figure = charts.curves_figure(rows, "noise_ppm", AXES, "noise of the field [ppm]", log=True)
    return [*files, bench.save_figure("noise_sweep", figure)]


@torch.no_grad()
def tilt_sweep(
    bench: Bench,
    degrees: Sequence[float] = (0, 10, 20, 30, 45),
    noise_ppm: float = 0.003,
    methods: Sequence[str] = METHODS,
    scale: float = 0.8,
) -> list[Path]:
    """Scores over the angle between B0 and the third axis of the volume.

    Args:
        bench: methods and output folder.
        degrees: angles [degrees].
        noise_ppm: standard deviation of the field [ppm].
        methods: names as in :data:`.methods.LABELS`.
        scale: size of the head relative to the others.
    """
    head = draw_head(bench, HEAD, scale=scale)
    angles = bench.pick(list(degrees), [30.0])
    cases = ((angle, head.measure(noise_ppm, bench.seed, tilted(angle))) for angle in angles)
    rows = _rows(bench, "tilt_degrees", cases, methods)
    note = "B0 is tilted in a plane that is none of the grid's; all methods are told its direction. "
    files = bench.write("tilt_sweep", [*rows, *bench.absent(methods)], [_note(head.chi.shape, note)])
    figure = charts.curves_figure(rows, "tilt_degrees", AXES, "tilt of B0 [degrees]")
    return [*files, bench.save_figure("tilt_sweep", figure)]


@torch.no_grad()
def resolution_sweep(
    bench: Bench,
    voxel_sizes: Sequence[Triple] = ((0.8, 0.8, 0.8), (1, 1, 1), (1, 1, 2), (1, 1, 3), (2, 2, 2)),
    noise_ppm: float = 0.003,
    methods: Sequence[str] = METHODS,
    scale: float = 0.8,
) -> list[Path]:
    """Scores over the voxel size.

    Args:
        bench: methods and output folder.
        voxel_sizes: [mm]; whole numbers are means over voxels of 1 mm, of map and field alike.
        noise_ppm: standard deviation of the field [ppm], the same for every voxel size.
        methods: names as in :data:`.methods.LABELS`.
        scale: size of the head relative to the others.
    """
    sizes: list[Triple] = bench.pick([(float(x), float(y), float(z)) for x, y, z in voxel_sizes], [(1.0, 1.0, 2.0)])
    names = [" x ".join(f"{v:g}" for v in size) for size in sizes]
    cases = ((name, resampled(bench, size, noise_ppm, scale)) for name, size in zip(names, sizes, strict=True))
    rows = _rows(bench, "voxel_mm", cases, methods)
    note = (
        "Large voxels are means over small ones, of the true map and of the noise-free field alike; the truth is the "
        "map with these voxels, so that scores of different voxels are not of the same truth. "
    )
    files = bench.write("resolution_sweep", [*rows, *bench.absent(methods)], [_note(None, note)])
    figure = charts.curves_figure(rows, "voxel_mm", AXES, "voxel [mm]", categories=names)
    return [*files, bench.save_figure("resolution_sweep", figure)]


def tilted(angle: float) -> Triple:
    """B0 direction at an angle [degrees] to the third axis."""
    sine = math.sin(math.radians(angle))
    return (sine * SIDEWAYS[0], sine * SIDEWAYS[1], math.cos(math.radians(angle)))


def resampled(bench: Bench, voxel_size: Triple, noise: float, scale: float) -> Case:
    """The head of the sweeps measured with a voxel size [mm]."""
    if any(step % 1 for step in voxel_size):
        return draw_head(bench, HEAD, voxel_size=voxel_size, scale=scale).measure(noise, bench.seed)
    x, y, z = (int(step) for step in voxel_size)
    head = draw_head(bench, HEAD, scale=scale).cut(multiple=2 * math.lcm(x, y, z))
    large = head.coarser((x, y, z))
    # The field of the mean is not the mean of the field, and that is what a voxel measures.
    return large.measure(noise, bench.seed, field=means(head.local_field(), (x, y, z)))


def _rows(bench: Bench, column: str, cases: Iterable[tuple[float | str, Case]], methods: Sequence[str]) -> list[Row]:
    rows = []
    for value, case in tqdm(cases, desc=column):
        for method in bench.methods(case.noise, methods):
            estimate, costs = bench.estimate(method, case)
            found = scores(estimate, case.truth, case.mask, COLUMNS)
            rows.append({column: value, "method": method.name, **found, "cpu_seconds": costs["cpu_seconds"]})
    return rows


def _note(shape: Sequence[int] | None, more: str) -> str:
    size = "" if shape is None else f", {' x '.join(map(str, shape))} voxels of 1 mm"
    return (
        f"One head of the test split{size}, one draw of noise; no background left in the field. {more}Options of the "
        "classical methods from results/tuning.json at the closest noise level. nrmse, hfen [%]."
    )
