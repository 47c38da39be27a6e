"""Time of every method in one run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from physics.perfusion import perfusion_maps
from shared_transforms.experiments import Row, target

from ..frames import FRAME_TIME
from ..network import FRAMES
from .bench import Bench
from .cohort import Subject, cohort
from .methods import COMPARED, LABELS, resampled
from .scores import measured

NUMBER = 2000  # of the subject: one of no other experiment
SNR = 50.0
SECONDS = {"stnet": 0.5}
LARGE_SECONDS = {"osvd": 2.0, "csvd": 0.5}
PAPER_SECONDS = {"paper_stnet": 0.77, "paper_fang": 6.9}


@torch.no_grad()
def timing(
    bench: Bench,
    voxels: int = 10_000,
    large: int = 400_000,
    repeats: int = 3,
    methods: Sequence[str] = COMPARED,
) -> list[Path]:
    """Time for some voxels of one examination of 50 frames, and of two deconvolutions for many.

    Args:
        bench: methods and output folder.
        voxels: in the mask.
        large: voxels for the deconvolutions of :data:`LARGE_SECONDS`.
        repeats: runs, of which the fastest counts.
        methods: names as in :data:`.methods.LABELS`.
    """
    voxels, large, repeats = bench.pick((voxels, large, repeats), (100, 500, 1))
    [subject] = cohort(bench, "test", 1, 1, NUMBER, [SNR])
    subject = with_frames(subject, voxels)
    count = int(subject.mask.sum())
    rows: list[Row] = []
    targets: list[Row] = []
    for method in tqdm(bench.methods(methods), desc="timing"):
        wall, processor = measured(lambda method=method: method.estimate(subject), repeats)  # type: ignore[misc]
        rows.append({
            "method": method.name, "voxels": count, "wall_seconds": wall, "cpu_seconds": processor,
            "wall_seconds_per_10000": wall * 10_000 / count,
        })  # fmt: skip
        if method.name in SECONDS:
            text = f"{method.label}: 10,000 voxels [s]"
            targets.append(target(text, rows[-1]["wall_seconds_per_10000"], SECONDS[method.name]))
    curves = many(subject, large)
    for name, seconds in LARGE_SECONDS.items():
        wall, processor = measured(lambda name=name: _maps(subject, curves, name), repeats)  # type: ignore[misc]
        rows.append({
            "method": name, "voxels": large, "wall_seconds": wall, "cpu_seconds": processor,
            "wall_seconds_per_10000": wall * 10_000 / large,
        })  # fmt: skip
        targets.append(target(f"{LABELS[name]}: {large:,} voxels of {FRAMES} frames [s]", wall, seconds))
    rows += [
        {"method": name, "voxels": 10_000, "wall_seconds_per_10000": value} for name, value in PAPER_SECONDS.items()
    ]
    notes = [
        f"One examination of {FRAMES} frames at SNR {SNR:g}, {torch.get_num_threads()} threads, fastest of {repeats} "
        "runs; wall-clock and processor time, the latter of all threads. ST-Net: everything from concentrations to "
        "maps. Deconvolutions: concentrations to CBV, CBF, Tmax. Paper: ST-Net on an NVIDIA A100; its deconvolution "
        "on hardware it does not name.",
    ]
    return bench.write("timing", [*rows, *bench.absent(methods)], notes, targets)


def with_frames(subject: Subject, voxels: int) -> Subject:
    """The examination on the network's number of frames, its mask cut to so many voxels in its middle slices."""
    same = resampled(subject, FRAME_TIME)
    n = same.aif.shape[-1]
    again = torch.arange(FRAMES, device=same.aif.device).clamp_max(n - 1)  # the last frame again, if there are fewer
    image = torch.cat([same.image[:, :1], same.image[:, 1:][:, again]], 1)
    slices = subject.mask.sum((0, 1, 2, 3)).argsort(descending=True, stable=True)
    mask = torch.zeros_like(subject.mask)
    left = voxels
    for z in slices.tolist():
        inside = subject.mask[..., z].flatten().nonzero().squeeze(1)[:left]
        mask[..., z].view(-1)[inside] = True
        left -= len(inside)
    return replace(same, image=image, mask=mask, aif=same.aif[:, again], vof=same.vof[:, again])


def many(subject: Subject, count: int) -> Tensor:
    """Concentrations ``[count, T]`` of the tissue, again and again."""
    curves = subject.image[0, 1:][:, subject.tissue].T
    return curves[torch.arange(count, device=curves.device) % len(curves)].contiguous()


def _maps(subject: Subject, curves: Tensor, name: str) -> Tensor:
    return perfusion_maps(curves, subject.aif[0], subject.vof[0], subject.frame_time, name)["tmax"]
