"""Measured data, from raw phase to maps by every method; there is no truth to compare with."""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from physics.dipole import field_from_susceptibility
from shared_transforms.experiments import Row
from shared_transforms.io import LoadGradientEchoesd

from ..pipeline import LocalFieldd
from ..start import demeaned
from . import charts
from .bench import Bench
from .case import Case

METHODS = ("tkd", "tikhonov", "l2_gradient", "tv", "ilsqr", "medi", "medi_no_magnitude", "unet", "qsmgan", "paper")


@torch.no_grad()
def real_data(
    bench: Bench,
    magnitude: str = "Mag.nii",
    phase: str = "Phase.nii",
    reading: Mapping[str, Any] | None = None,
    noise_ppm: float = 0.003,
    methods: Sequence[str] = METHODS,
) -> list[Path]:
    """Maps of one measured series: what the field says against each, and how far they agree.

    Args:
        bench: methods, output folder, and ``data_dir``.
        magnitude: name of the file of magnitudes in the folder.
        phase: name of the file of phases.
        reading: options of :class:`shared_transforms.io.LoadGradientEchoesd`: what the files do not say.
        noise_ppm: the classical methods take the options tuned for this noise.
        methods: names as in :data:`.methods.LABELS`.
    """
    folder = Path(str(bench.data_dir))
    item: dict[Hashable, Any] = {"image": [folder / magnitude], "phase": [folder / phase], "mask": None}
    item = LocalFieldd()(LoadGradientEchoesd(**(reading or {}))(item))
    case = case_of(item, noise_ppm)
    maps: dict[str, Tensor] = {}
    rows: list[Row] = []
    for method in bench.methods(noise_ppm, methods):
        estimate, costs = bench.estimate(method, case)
        maps[method.name] = estimate = demeaned(estimate, case.mask)
        low, high = estimate[case.mask].quantile(torch.tensor([0.05, 0.95])).tolist()
        rows.append({
            "method": method.name, "residual": unexplained(estimate, case), "sd_ppm": float(estimate[case.mask].std()),
            "p5_ppm": low, "p95_ppm": high, "cpu_seconds": costs["cpu_seconds"],
        })  # fmt: skip
    agreement = [
        {"method": first, "other": second, "correlation": correlation(maps[first], maps[second], case.mask)}
        for first, second in itertools.combinations(maps, 2)
    ]
    field = case.field[case.mask]
    notes = [
        f"{magnitude}, {phase}: {' x '.join(map(str, case.field.shape))} voxels of "
        f"{' x '.join(f'{v:.3g}' for v in case.voxel_size)} mm, {int(case.mask.sum())} in the mask, B0 along "
        f"{tuple(round(v, 3) for v in case.b0_direction)}; local field SD {float(field.std()):.3g} ppm. "
        "There is no truth, and the crop is smaller than what a dipole reaches: the numbers say how the methods "
        "differ, not which is right.",
        "residual: norm of the measured field that the field of the map does not explain, over the norm of the field "
        "[%], both without their mean over the mask; a method that fits noise has less. correlation: of two maps over "
        "the mask.",
        *(f"reading: {note}" for note in item.get("notes", [])),
    ]
    files = bench.write("real_data", [*rows, *agreement, *bench.absent(methods)], notes)
    limit = 2.5 * float(torch.stack([m[case.mask].std() for m in maps.values()]).median())
    figure = charts.maps_figure(None, maps, case.mask, case.voxel_size, display_range=(-limit, limit))
    return [*files, bench.save_figure("real_data", figure)]


def case_of(item: Mapping[Hashable, Any], noise: float) -> Case:
    """The local field of an inference item as the methods take it."""
    image = item["image"].as_tensor().float()
    mask, acquisition = item["mask"][0].bool(), item["acquisition"]
    mask = mask.as_tensor() if hasattr(mask, "as_tensor") else mask
    x, y, z = (float(v) for v in acquisition["voxel_size"])
    i, j, k = (float(v) for v in acquisition["b0_direction"])
    field = torch.where(mask, image[0], 0.0)
    return Case(field, image[1] * mask, mask, torch.zeros_like(field), (x, y, z), (i, j, k), noise)


def unexplained(estimate: Tensor, case: Case) -> float:
    """Norm of the field less the field of the map over that of the field [%], without means."""
    found = field_from_susceptibility(estimate, case.voxel_size, case.b0_direction)
    field = demeaned(case.field, case.mask)
    return 100 * float((demeaned(found, case.mask) - field).norm() / field.norm())


def correlation(first: Tensor, second: Tensor, mask: Tensor) -> float:
    """Pearson's, over the mask."""
    return float(torch.corrcoef(torch.stack([first[mask], second[mask]]))[0, 1])
