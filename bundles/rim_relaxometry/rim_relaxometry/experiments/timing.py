"""Time for one 256 x 256 slice by every method, on one thread and in one run (section 6.1)."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import curve_fit
from torch import Tensor
from tqdm import tqdm

from shared_transforms.anatomy import split_generator
from shared_transforms.experiments import Row, target

from .bench import Bench
from .held_out import noisy
from .methods import Method
from .monte_carlo import protocol_of
from .scenes import Scene, acquisition_of, brains
from .statistics import Array

SLICE = (256, 256)
PAPER_SECONDS = {"rim": 3.8, "resnet": 27.0, "mle_smooth_500": 575.0}  # Intel Core i5 2.7 GHz
SNR = 30.0


def timing(bench: Bench, repeats: int = 3, loop_voxels: int = 400) -> list[Path]:
    """Seconds for one slice, background included, and the ratio to a loop of scipy's curve_fit over the voxels.

    Args:
        bench: estimators and output folder.
        repeats: runs after one that warms up; the fastest counts, as other work on the machine only slows it.
        loop_voxels: voxels of the loop, whose time is scaled to the slice.
    """
    repeats, loop_voxels = bench.pick((repeats, loop_voxels), (1, 50))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rows, seconds = _time_all(bench, repeats, loop_voxels)
    finally:
        torch.set_num_threads(threads)
    notes = [
        f"One slice of {SLICE[0]} x {SLICE[1]} voxels, protocol {protocol_of(bench)}, SNR {SNR:g}, one thread, all "
        f"methods in one process. seconds: wall clock, fastest of {repeats} after a warm-up; cpu_seconds: processor "
        "time of this process, equal to it on an idle machine and less inflated by other work; the targets are on it.",
        f"scipy_loop: curve_fit without bounds on {loop_voxels} random voxels of the slice, scaled up; "
        "scipy_loop_tissue: of its tissue, where fits converge sooner; scipy_loop_bounds: with bounds on every "
        "parameter, as tools use it. All methods fit the whole slice, background included. The paper's times are of "
        "another machine and implementation.",
    ]
    voxels = SLICE[0] * SLICE[1]
    targets = [target("RIM, 256 x 256 slice, one thread [s of processor time]", seconds["rim"], 1.0)]
    targets.append(target("scipy loop over RIM, same run", seconds["scipy_loop"] / seconds["rim"], 100.0, below=False))
    voxelwise = "mle_voxelwise" if bench.parameter == "T1" else "mle"
    targets.append(target("voxelwise MLE, Gaussian [voxels/s]", voxels / seconds[voxelwise], 5e4, below=False))
    return bench.write("timing", [*rows, *bench.absent()], notes, targets)


def _time_all(bench: Bench, repeats: int, loop_voxels: int) -> tuple[list[Row], dict[str, float]]:
    scene = _whole_slice(bench)
    acquisition: dict[str, Any] = acquisition_of(bench.parameter, protocol_of(bench), bench.device)
    image = noisy(bench, scene, acquisition, SNR, "gaussian")
    acquisition["noise"] = "gaussian"
    methods = bench.methods(acquisition["times"], paper_smoothness=True, trivial=False)
    found: dict[str, tuple[float, float, float | None]] = {
        method.name: (*_stopwatch(_call(method, image, acquisition), repeats), None)
        for method in tqdm(methods, desc="timing")
    }
    found |= _scipy_loops(bench, scene, image[0].abs(), acquisition["times"], loop_voxels)
    loop = found["scipy_loop"]
    rows: list[Row] = [
        {
            "method": name, "noise": "gaussian", "seconds": wall, "cpu_seconds": processor,
            "voxels_per_second": image[0, 0].numel() / wall, "faster_than_scipy_loop": loop[0] / wall,
            "faster_in_cpu_time": loop[1] / processor, "paper_seconds": PAPER_SECONDS.get(name),
            "paper_faster_than_its_mle": PAPER_SECONDS["mle_smooth_500"] / PAPER_SECONDS[name]
            if name in PAPER_SECONDS else None,
            "share_failed": failed,
        }
        for name, (wall, processor, failed) in found.items()
    ]  # fmt: skip
    rician = {**acquisition, "noise": "rician"}
    for method in methods:
        wall, processor = _stopwatch(_call(method, image.abs(), rician), 1)
        rows.append({
            "method": method.name, "noise": "rician", "seconds": wall, "cpu_seconds": processor,
            "voxels_per_second": image[0, 0].numel() / wall,
        })  # fmt: skip
    return rows, {name: value[1] for name, value in found.items()}


def _whole_slice(bench: Bench) -> Scene:
    """A head slice padded to 256 x 256 with background."""
    scene = brains(bench.parameter, 1, bench.seed, table_means=True, anatomy=bench.anatomy, size=bench.size)
    height, width = scene.parameters.shape[-2:]
    pad = (0, SLICE[1] - width, 0, SLICE[0] - height)
    fractions = torch.nn.functional.pad(scene.fractions, pad)
    parameters = torch.nn.functional.pad(scene.parameters, pad, value=1.0)
    parameters[:, 0, height:], parameters[:, 0, :, width:] = 0.0, 0.0
    return Scene(parameters.to(bench.device), fractions.to(bench.device))


def _call(method: Method, image: Tensor, acquisition: dict[str, Any]) -> Callable[[], Tensor]:
    return lambda: method.estimate(image, acquisition, None)


def _stopwatch(run: Callable[[], Tensor], repeats: int) -> tuple[float, float]:
    """Shortest wall-clock and processor time [s] of several runs after one that warms up."""
    times = []
    for _ in range(repeats + 1):
        wall, processor = time.perf_counter(), time.process_time()
        run().sum().item()  # waits for the device
        times.append((time.perf_counter() - wall, time.process_time() - processor))
    return min(t[0] for t in times[1:]), min(t[1] for t in times[1:])


def _scipy_loops(
    bench: Bench, scene: Scene, image: Tensor, times: Tensor, count: int
) -> dict[str, tuple[float, float, float]]:
    """Three loops of curve_fit over a sample of voxels, scaled to the slice: wall clock, processor time [s], failures.

    Args:
        bench: for parameter and seed.
        scene: where tissue is.
        image: ``[N, H, W]``.
        times: ``[N]`` [s].
        count: voxels of each sample.
    """
    inside = scene.inside[0].cpu()
    samples = {"slice": torch.ones_like(inside), "tissue": inside}
    series = {}
    for name, mask in samples.items():
        places = mask.nonzero()
        order = torch.randperm(len(places), generator=split_generator(bench.seed, split="test"))[:count]
        series[name] = image.cpu()[:, places[order, 0], places[order, 1]].double().numpy().T
    t1 = bench.parameter == "T1"
    bounds = ([0.0, 0.5, 0.01], [np.inf, 2.5, 10.0]) if t1 else ([0.0, 1e-3], [np.inf, 5.0])
    settings: dict[str, tuple[str, dict[str, Any]]] = {
        "scipy_loop": ("slice", {}), "scipy_loop_tissue": ("tissue", {}),
        "scipy_loop_bounds": ("slice", {"bounds": bounds}),
    }  # fmt: skip
    return {
        name: _loop(series[sample], times.cpu().double().numpy(), t1, image[0].numel(), options)
        for name, (sample, options) in settings.items()
    }


def _loop(series: Array, times: Array, t1: bool, voxels: int, options: dict[str, Any]) -> tuple[float, float, float]:
    """Wall clock and processor time [s] for ``voxels`` voxels, and the share of fits that failed."""

    def recovery(x: Array, a: float, b: float, t: float) -> Array:
        return np.abs(a * (1.0 - b * np.exp(-x / t)))

    def decay(x: Array, a: float, t: float) -> Array:
        return a * np.exp(-x / t)

    failed = 0
    wall, processor = time.perf_counter(), time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for y in series:
            start = (max(float(y.max()), 1e-6), 2.0, 1.0) if t1 else (max(float(y.max()), 1e-6), 0.1)
            try:
                curve_fit(recovery if t1 else decay, times, y, p0=start, **options)
            except RuntimeError:
                failed += 1
    scale = voxels / len(series)
    return (time.perf_counter() - wall) * scale, (time.process_time() - processor) * scale, failed / len(series)
