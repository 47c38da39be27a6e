"""Time and memory of every method for one volume."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from shared_transforms.experiments import Row, target

from .bench import Bench
from .case import Case
from .methods import NETWORKS
from .scores import measured

SECONDS, LARGE_SECONDS, LARGE_MIB = 60.0, 1.5, 2048.0
ONCE = ("tv", *NETWORKS)  # the kernel of the grid is little of their time


@torch.no_grad()
def timing(
    bench: Bench,
    side: int = 160,
    large_side: int = 256,
    methods: Sequence[str] = ("tkd", "tikhonov", "l2_gradient", "tv", "unet", "qsmgan"),
    large: Sequence[str] = ("tkd", "l2_gradient"),
) -> list[Path]:
    """Processor time of each method for a cube with an ellipsoid as its mask.

    Args:
        bench: methods and output folder.
        side: of the volume [voxels].
        large_side: of a large volume.
        methods: names as in :data:`.methods.LABELS`, for the volume.
        large: those for the large volume.
    """
    rows: list[Row] = []
    targets: list[Row] = []
    for length, names in bench.pick([(side, methods), (large_side, large)], [(24, methods)]):
        case = cube(length, bench.seed)
        for method in tqdm(bench.methods(case.noise, names), desc=f"timing {length}"):
            for run in ("first",) if method.name in ONCE else ("first", "second"):
                _, costs = measured(lambda method=method, case=case: method.estimate(case))  # type: ignore[misc]
                rows.append({"side": length, "method": method.name, "run": run, **costs})
            seconds, memory = costs["cpu_seconds"], costs["memory_mib"]
            if method.name in NETWORKS:
                targets.append(target(f"{method.label}, {length}^3, inference [CPU s]", seconds, SECONDS))
            elif length == large_side and method.name in large:
                targets.append(target(f"{method.label}, {length}^3 [CPU s]", seconds, LARGE_SECONDS))
                if memory is not None:
                    targets.append(target(f"{method.label}, {length}^3, memory [MiB]", memory, LARGE_MIB))
    notes = [
        f"One volume of side^3 voxels of 1 mm, {torch.get_num_threads()} threads. cpu_seconds: processor time of all "
        "threads; memory_mib: additional peak of the process. The first run makes the dipole kernel of that grid, "
        "later ones find it in memory; targets are on the last. Networks: everything from the field to the map.",
    ]
    return bench.write("timing", [*rows, *bench.absent(methods)], notes, targets)


def cube(side: int, seed: int) -> Case:
    """A cube with noise inside an ellipsoid: times do not depend on what a map shows."""
    line = torch.linspace(-1.0, 1.0, side)
    x, y, z = torch.meshgrid(line, line, line, indexing="ij")
    mask = (x / 0.85).square() + (y / 0.95).square() + (z / 0.8).square() < 1
    field = 0.01 * torch.randn(mask.shape, generator=torch.Generator().manual_seed(seed)) * mask
    return Case(field, mask.float(), mask, torch.zeros_like(field), noise=0.003)
