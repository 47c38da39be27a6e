"""Held-out examinations of the digital reference object, one at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from shared_transforms.anatomy import split_generator

from ..simulator import PerfusionSimulator, concentration_image

PARAMETERS = ("CBV", "CBF", "Tmax")
UNITS = ("ml/100 g", "ml/100 g/min", "s")
SMALLEST_LESION_ML = 1.0  # a stroke with less tissue of Tmax > 6 s has nothing to segment
DRAWS = 50
QUICK_VOXEL_MM = (6.0, 6.0, 6.0)


class Site(Protocol):
    """What a cohort needs of the bench."""

    seed: int
    device: Any
    anatomy: dict[str, Any]
    size: Sequence[int]
    voxel_size: Sequence[float]
    snr: float | None

    @property
    def is_quick(self) -> bool:
        """Whether sizes are those of a quick run."""


@dataclass(frozen=True)
class Subject:
    """One examination as the methods see it, and its truth.

    Attributes:
        name: split and number.
        stroke: whether it was drawn with a stroke.
        image: ``[1, 1 + T, X, Y, Z]``, baseline and concentrations [mM].
        mask: brain ``[1, 1, X, Y, Z]``, boolean: where the methods work.
        aif: arterial concentration ``[1, T]`` [mM], measured in marked voxels.
        vof: venous concentration ``[1, T]`` [mM], likewise.
        frame_time: [s].
        voxel_size: [mm].
        snr: of the baseline.
        tissue: ``[X, Y, Z]``, boolean, V voxels: where maps are judged.
        truth: CBV [ml/100 g], CBF [ml/100 g/min], Tmax [s] there, ``[3, V]``.
        lesion: voxels with Tmax > 6 s among them ``[V]``, boolean.
        series: all that the simulator gives, see :meth:`..simulator.PerfusionSimulator.series`.
    """

    name: str
    stroke: bool
    image: Tensor
    mask: Tensor
    aif: Tensor
    vof: Tensor
    frame_time: float
    voxel_size: tuple[float, float, float]
    snr: float
    tissue: Tensor
    truth: Tensor
    lesion: Tensor
    series: dict[str, Any]

    def volume(self, values: Tensor) -> Tensor:
        """Values of the tissue ``[..., V]`` as volumes ``[..., X, Y, Z]``, 0 elsewhere."""
        whole = torch.zeros((*values.shape[:-1], *self.tissue.shape), dtype=values.dtype, device=values.device)
        whole[..., self.tissue] = values
        return whole

    @property
    def voxel_ml(self) -> float:
        """Volume of a voxel."""
        return math.prod(self.voxel_size) / 1000.0


def simulator_of(site: Site, lesion_share: float) -> PerfusionSimulator:
    """The simulator of the training with the sizes of the experiments."""
    size, voxel_size = (
        ([s // 3 for s in site.size[:2]] + [3], QUICK_VOXEL_MM) if site.is_quick else (site.size, site.voxel_size)
    )
    return PerfusionSimulator(
        device=site.device, size=size, voxel_size=voxel_size, lesion_share=lesion_share, anatomy=site.anatomy
    )


@torch.no_grad()
def cohort(
    site: Site, split: str, subjects: int, strokes: int, first: int = 0, snr: Sequence[float] = ()
) -> Iterator[Subject]:
    """Examinations of a split, the ones with a stroke first; equal numbers give equal heads, whatever the noise.

    Args:
        site: seed, sizes, device; its ``snr`` replaces that of every subject.
        split: ``"train"``, ``"val"`` or ``"test"``.
        subjects: how many.
        strokes: how many of these with a stroke.
        first: number of the first.
        snr: baseline SNRs at which each subject is examined; none for one examination with the SNR drawn.
    """
    simulators = {share: simulator_of(site, share) for share in (0.0, 1.0)}
    for number in range(first, first + subjects):
        stroke = number - first < strokes
        generator = split_generator(site.seed, number, split=split)
        simulator = simulators[float(stroke)]
        for _ in range(DRAWS):
            drawn = simulator.draw(generator, 1, split)
            if site.snr is not None:
                drawn = drawn.with_snr(float(site.snr))
            found = _subject(simulator, drawn, f"{split} {number}", stroke)
            # Of quick heads few voxels are seen: any lesion is enough there.
            least = 0.0 if site.is_quick else SMALLEST_LESION_ML
            if not stroke or found.voxel_ml * int(found.lesion.sum()) > least:
                break
        for level in snr:
            yield _subject(simulator, drawn.with_snr(level), found.name, stroke)
        if not snr:
            yield found


def _subject(simulator: PerfusionSimulator, drawn: Any, name: str, stroke: bool) -> Subject:
    series = simulator.series(drawn)
    tissue = series["tissue"][0]
    x, y, z = (float(step) for step in simulator.voxel_size)
    return Subject(
        name=name,
        stroke=stroke,
        image=concentration_image(series),
        mask=series["mask"][:, None],
        aif=series["aif"],
        vof=series["vof"],
        frame_time=series["repetition_time"],
        voxel_size=(x, y, z),
        snr=series["snr"],
        tissue=tissue,
        truth=torch.cat([series[name] for name in ("cbv", "cbf", "tmax")])[:, tissue],
        lesion=series["lesion"][0][tissue],
        series=series,
    )
