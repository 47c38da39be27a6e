"""Time of every method for one image."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from tqdm import tqdm

from shared_transforms.experiments import Row, target

from .bench import Bench
from .methods import COMPARED, NETWORKS
from .scenes import held_out

SECONDS = 0.5
THREADS = 2


@torch.no_grad()
def timing(bench: Bench, repeats: int = 5, methods: Sequence[str] = COMPARED) -> list[Path]:
    """Time from one image to its map, with two threads.

    Args:
        bench: methods and output folder.
        repeats: runs of a network, of which the fastest counts; the others run once.
        methods: names as in :data:`.methods.LABELS`.
    """
    image = held_out(bench, 1).image
    rows: list[Row] = []
    count = bench.pick(THREADS, 1)  # small images are slower with two
    with threads(count):
        for method in tqdm(bench.methods(methods), "timing"):
            runs = 1 if method.slow else bench.pick(repeats, 1) + 1  # the first run of a network allocates
            wall, processor = fastest(lambda method=method: method.estimate(image), runs)  # type: ignore[misc]
            rows.append({
                "method": method.name, "pixels": image.shape[-1] ** 2, "threads": count, "wall_seconds": wall,
                "cpu_seconds": processor, "paper": None,
            })  # fmt: skip
    targets = [
        target(f"{row['method']}: {bench.side} x {bench.side} pixels [s]", row["wall_seconds"], SECONDS)
        for row in rows if row["method"] in NETWORKS
    ]  # fmt: skip
    notes = [
        f"One image of the test split, {count} threads; fastest of {repeats} runs of methods that take less than "
        "seconds. Wall-clock and processor time, the latter of all threads. The paper states no time of inference.",
    ]
    return bench.write("timing", [*rows, *bench.absent(methods)], notes, targets)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """So many threads of torch, and as many as before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def fastest(run: Callable[[], torch.Tensor], repeats: int) -> tuple[float, float]:
    """Least wall-clock and least processor time [s] of some calls."""
    walls, processors = [], []
    for _ in range(repeats):
        wall, processor = time.perf_counter(), time.process_time()
        if run().is_cuda:
            torch.cuda.synchronize()
        walls.append(time.perf_counter() - wall)
        processors.append(time.process_time() - processor)
    return min(walls), min(processors)
