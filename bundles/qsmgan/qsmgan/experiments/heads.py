"""Heads of the simulator, as the experiments need them."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from shared_transforms.anatomy import split_generator

from ..simulator import SusceptibilitySimulator
from ..tissues import STRUCTURES
from .bench import Bench
from .case import Head, Triple

NUCLEI = ("caudate", "putamen", "pallidum", "thalamus", "red nucleus", "substantia nigra", "dentate")
SCALES = (0.9, 1.0)  # of the heads: the brain lies within the field of view
QUICK_SCALES = (0.2, 0.2)
MARGIN_MM = -1.0  # of the mask: the outermost millimetre of the brain is cut off, as by any background removal


@torch.no_grad()
def draw_head(
    bench: Bench,
    index: int,
    split: str = "test",
    voxel_size: Triple = (1.0, 1.0, 1.0),
    margin_mm: float = MARGIN_MM,
    pathology: Sequence[str] = (),
    scale: float = 1.0,
) -> Head:
    """A head, cut to the box of its mask. With equal index it is the same, whatever voxels and mask.

    Args:
        bench: for seed, size, anatomy and device.
        index: which head.
        split: ``"val"`` or ``"test"``.
        voxel_size: [mm]; the field of view stays.
        margin_mm: by which the mask is larger (> 0) or smaller than the brain.
        pathology: as for :class:`..simulator.SusceptibilitySimulator`.
        scale: of head and field of view, beside that of the bench.
    """
    scale = bench.pick(scale * bench.scale, 1.0)
    millimetres = [scale * length for length in bench.pick(bench.size, bench.quick_size)]
    sizes = [scale * size for size in bench.pick(SCALES, QUICK_SCALES)]
    simulator = SusceptibilitySimulator(
        device=bench.device,
        size=[2 * round(length / step / 2) for length, step in zip(millimetres, voxel_size, strict=True)],
        voxel_size=voxel_size,
        noise_ppm=(1.0, 1.0),
        phantom_share=0.0,
        magnitude_share=1.0,
        channels=("field",),
        head_scale=sizes,
        margin_mm=(margin_mm, margin_mm),
        leak=0.0,
        remainder=0.0,
        pathology=pathology,
        anatomy=bench.anatomy,
    )
    drawn = simulator.draw(split_generator(bench.seed, index, split=split), 1, split)
    made = {name: volume[0, 0] for name, volume in simulator.simulate(drawn)["label"].items()}
    names = made["labels"]
    regions = {name: names == number for number, name in enumerate(STRUCTURES, 1)}
    head = Head(
        made["parameters"], made["magnitude"], made["sigma"], made["mask"], made["brain"], voxel_size,
        {name: region for name, region in regions.items() if bool(region.any())},
    )  # fmt: skip
    return head.cut()
