"""Who is in the simulated cohort: lesions and rims of each subject, and what each lesion is. Numbers only."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from shared_transforms.anatomy.deformation import Parameters

__all__ = ["KINDS", "LESIONS", "RIM_COUNTS", "Lesions", "Population", "draw_lesions", "draw_population"]

RIM_COUNTS: tuple[int, ...] = (
    *(0,) * 112, *(1,) * 22, *(2,) * 14, *(3,) * 8, *(4,) * 5, *(5,) * 4, *(6,) * 2, 7, 8, 9, 10, 17,
)  # fmt: skip
"""Rims of 172 subjects: a vector that fits everything the paper says of them (177 rims, Fig. 3, medians)."""
LESIONS = 4163  # of 172 subjects
KINDS: tuple[str, ...] = ("rim", "isointense", "hyperintense", "hypointense", "vein", "weak_edge")
"""What a lesion is; all but the first are rim-negative."""
_NEGATIVE_SHARES = (0.48, 0.27, 0.08, 0.12, 0.05)  # of KINDS[1:]
_FAINT = 0.1  # share of rims that are as weak as the edges of other lesions
_CONFLUENT = 7  # rim-negative lesions larger than 32 x 32 x 16 voxels, paper section 2.3
_WAVES = 4  # directions that make a surface uneven


@dataclass(frozen=True)
class Population:
    """Counts of each subject, before anything is drawn of the lesions.

    Attributes:
        rims: ``[S]`` rim-positive lesions.
        lesions: ``[S]`` all lesions, at least one and at least the rims.
        confluent: ``[S]`` rim-negative lesions among them that are very large.
    """

    rims: Tensor
    lesions: Tensor
    confluent: Tensor


def draw_population(generator: torch.Generator, subjects: int = len(RIM_COUNTS)) -> Population:
    """Draw the counts of a cohort.

    Args:
        generator: random stream on the CPU.
        subjects: number S of subjects. 172 gives the paper's cohort exactly (4163 lesions, 177 rims); other
            numbers draw subjects from it, and lesions in proportion.

    Returns:
        The counts.

    Raises:
        ValueError: without a subject.
    """
    if subjects < 1:
        raise ValueError(f"subjects must be at least 1, got {subjects}")
    cycles = -(-subjects // len(RIM_COUNTS))
    order = torch.cat([torch.randperm(len(RIM_COUNTS), generator=generator) for _ in range(cycles)])
    rims = torch.tensor(RIM_COUNTS)[order[:subjects]]
    total = max(subjects, round(LESIONS * subjects / len(RIM_COUNTS)))
    # Exponential weights: some have a few lesions, some a hundred. Those with more rims have more lesions.
    weight = -torch.rand(subjects, generator=generator, dtype=torch.float64).clamp_min(1e-9).log()
    weight = (weight + 0.1) * (1.0 + 0.12 * rims)
    least = 1 + rims
    left = max(0, total - int(least.sum()))
    extra = torch.multinomial(weight, left, replacement=True, generator=generator) if left else least[:0]
    lesions = least + torch.bincount(extra, minlength=subjects)
    wanted = round(_CONFLUENT * subjects / len(RIM_COUNTS))
    owners = (
        torch.multinomial((lesions - rims).double(), wanted, replacement=True, generator=generator)
        if wanted
        else extra[:0]
    )
    confluent = torch.minimum(torch.bincount(owners, minlength=subjects), lesions - rims)
    return Population(rims, lesions, confluent)


@dataclass(frozen=True)
class Lesions(Parameters):
    """Everything random about the L lesions of a subject but their places. Lengths in mm, susceptibilities in ppb.

    Attributes:
        kind: ``[L]`` index into :data:`KINDS`.
        radii: ``[L, 3]`` of the ellipsoid.
        rotation: ``[L, 3, 3]`` of its axes.
        wave_direction: ``[L, 4, 3]``, ``wave_phase`` and ``wave_height`` ``[L, 4]``: unevenness of the surface.
        core: ``[L]`` susceptibility of the interior over white matter.
        patchiness: ``[L]`` relative variation of the core.
        rim: ``[L]`` largest susceptibility of the rim over white matter; 0 without one.
        thickness: ``[L]`` of the rim, full width at half maximum.
        coverage: ``[L]`` share of the surface that the rim covers.
        arc: ``[L, 3]`` unit vector to the middle of the covered part.
        vein: ``[L]`` susceptibility of a vein over white matter; 0 without one.
        vein_radius: ``[L]``.
        vein_direction: ``[L, 3]`` unit vector.
        vein_offset: ``[L, 3]`` of the vein from the centre, in radii.
        flair: ``[L]`` signal over that of white matter.
        edge: ``[L]`` distance by which the drawn mask is larger than the lesion; negative if smaller.
    """

    kind: Tensor
    radii: Tensor
    rotation: Tensor
    wave_direction: Tensor
    wave_phase: Tensor
    wave_height: Tensor
    core: Tensor
    patchiness: Tensor
    rim: Tensor
    thickness: Tensor
    coverage: Tensor
    arc: Tensor
    vein: Tensor
    vein_radius: Tensor
    vein_direction: Tensor
    vein_offset: Tensor
    flair: Tensor
    edge: Tensor

    def __len__(self) -> int:
        """Number of lesions."""
        return int(self.kind.shape[0])


def draw_lesions(generator: torch.Generator, rims: int, lesions: int, confluent: int = 0) -> Lesions:
    """Draw the lesions of one subject, rims first.

    Sizes of rims and others come from one distribution, so that size tells little; veins and weak edges look like
    rims in parts.

    Args:
        generator: random stream on the CPU.
        rims: rim-positive lesions.
        lesions: all lesions.
        confluent: very large rim-negative ones.

    Returns:
        The parameters.
    """
    n = lesions

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(n, *shape, generator=generator)

    def direction(*shape: int) -> Tensor:
        return torch.nn.functional.normalize(torch.randn(n, *shape, 3, generator=generator), dim=-1)

    shares = torch.tensor(_NEGATIVE_SHARES)
    kind = 1 + torch.multinomial(shares, n, replacement=True, generator=generator)
    kind[:rims] = 0
    big = torch.zeros(n, dtype=torch.bool)
    big[n - confluent :] = confluent > 0
    radii = _radii(generator, n, kind == 0, big)

    def of_kind(*values: tuple[float, float]) -> Tensor:
        low, high = torch.tensor(values).T
        return low[kind] + (high - low)[kind] * torch.rand(n, generator=generator)

    # In the order of KINDS.
    core = of_kind((-6.0, 26.0), (-7.0, 9.0), (12.0, 48.0), (-26.0, -9.0), (-6.0, 20.0), (-6.0, 22.0))
    rim = of_kind((28.0, 65.0), (0.0, 0.0), (0.0, 0.0), (0.0, 0.0), (0.0, 0.0), (8.0, 26.0))
    # The consensus is not physics: some rims that it saw are no stronger than edges that it did not.
    faint = (kind == 0) & (torch.rand(n, generator=generator) < _FAINT)
    rim = torch.where(faint, uniform(12.0, 28.0), rim)
    crossed = (kind == 4) | (torch.rand(n, generator=generator) < 0.08)
    # A vein beside the lesion follows its edge like a part of a rim; one through its middle is the central vein sign.
    offset = direction() * torch.where(uniform(0.0, 1.0, 1) < 0.6, uniform(0.7, 1.0, 1), uniform(0.0, 0.3, 1))
    return Lesions(
        kind=kind, radii=radii, rotation=torch.linalg.qr(torch.randn(n, 3, 3, generator=generator))[0],
        wave_direction=2.5 * direction(_WAVES), wave_phase=uniform(0.0, 6.2832, _WAVES),
        wave_height=uniform(0.0, 0.09, _WAVES), core=core, patchiness=uniform(0.0, 0.25), rim=rim,
        thickness=uniform(0.6, 1.3), coverage=uniform(0.45, 1.0), arc=direction(),
        vein=torch.where(crossed, uniform(120.0, 280.0), 0.0), vein_radius=uniform(0.3, 0.6),
        vein_direction=direction(), vein_offset=offset, flair=uniform(0.35, 0.95),
        edge=(0.15 + 0.25 * torch.randn(n, generator=generator)).clamp(-0.3, 0.9),
    )  # fmt: skip


def _radii(generator: torch.Generator, n: int, rim: Tensor, big: Tensor) -> Tensor:
    """Log-normal radii ``[n, 3]``; rims cannot be smaller than a rim is thick, nor larger than the paper's largest."""
    size = torch.exp(torch.randn(n, generator=generator) * 0.36 + 1.27)
    size = torch.where(rim, (1.12 * size).clamp(3.8, 7.0), size.clamp(1.5, 9.0))
    size = torch.where(big, 13.0 + 4.0 * torch.rand(n, generator=generator), size)
    elongation = torch.exp(0.22 * torch.randn(n, 3, generator=generator))
    elongation = elongation / elongation.prod(1, keepdim=True) ** (1 / 3)
    return size[:, None] * elongation
