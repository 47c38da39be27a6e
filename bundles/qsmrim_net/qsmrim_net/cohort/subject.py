"""One simulated subject: anatomy and lesions -> field -> ten echoes -> fitted field -> QSM; FLAIR and a lesion mask."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from physics.dipole import field_from_susceptibility
from physics.dipole_inversion import tv_admm
from physics.noise import add_gaussian_noise
from physics.phantoms import Tubes, draw_tubes, paint
from physics.phase import FREQUENCY_PER_TESLA, fit_field, frequency_to_ppm
from shared_transforms.anatomy import (
    TISSUES,
    Head,
    VolumeParameters,
    draw_volumes,
    load_head,
    sample_volumes,
    smooth_volume,
)

from .lesions import LesionMaps, add_lesions
from .population import Lesions, draw_lesions
from .raters import draw_raters

__all__ = ["GradientEcho", "Subject", "SubjectDraw", "draw_subject", "echoes", "simulate_subject"]

_SAMPLED = ("csf", "gm", "wm")
# Of _SAMPLED, then of lesions, then of veins: susceptibility [ppb], R2* [1/s], signal without decay, FLAIR signal.
_CHI = (0.0, 20.0, -30.0)
_RATE = (3.0, 18.0, 21.0, 13.0, 45.0)
_DENSITY = (1.15, 1.05, 0.9, 1.0, 0.9)
_FLAIR = (0.15, 1.3, 1.0)
_VEIN_CHI = (120.0, 280.0)
_REPLACED = 0.8  # share of the tissue's own susceptibility that white matter's takes the place of in a lesion
_ITERATIONS = 8  # of the inversion; more do not come nearer to the truth


@dataclass(frozen=True)
class GradientEcho:
    """The protocol of the paper, section 2.1.1.

    Attributes:
        echo_times: [s].
        field_strength: B0 [T].
        voxel_size: (dx, dy, dz) [mm], as reconstructed.
        size: (X, Y, Z) [voxels]: a box around the cerebrum.
        slices: fine slices in one: the signal is the mean over them.
        snr: of the first echo in white matter, one channel; drawn in this range.
        regularisation: weight of the total variation in the inversion.
    """

    echo_times: Sequence[float] = field(default_factory=lambda: tuple(0.0063 + 0.0041 * k for k in range(10)))
    field_strength: float = 3.0
    voxel_size: Sequence[float] = (0.75, 0.75, 3.0)
    size: tuple[int, int, int] = (176, 224, 40)
    slices: int = 3
    snr: Sequence[float] = (35.0, 60.0)
    regularisation: float = 1e-4


@dataclass(frozen=True)
class SubjectDraw:
    """Everything random about a subject but noise and texture, which follow from ``seed``.

    Attributes:
        volumes: deformation of the head.
        lesions: of the subject.
        raters: what two raters said of them ``[L, 2]``.
        veins: of the brain.
        vein_chi: ``[1, count, 1]`` [ppb].
        texture: standard deviation of white matter's variation [ppb].
        snr: of the first echo.
        seed: of places, texture and noise.
    """

    volumes: VolumeParameters
    lesions: Lesions
    raters: Tensor
    veins: Tubes
    vein_chi: Tensor
    texture: float
    snr: float
    seed: int


@dataclass
class Subject:
    """A subject as an examination gives it, and the truth.

    Attributes:
        qsm: susceptibility ``[X, Y, Z]`` [ppb], cerebrospinal fluid 0, outside of the brain 0.
        flair: FLAIR signal ``[X, Y, Z]``, arbitrary unit.
        magnitude: of the first echo ``[X, Y, Z]``.
        labels: number of the lesion ``[X, Y, Z]`` int32, 0 outside.
        brain: bool ``[X, Y, Z]``.
        truth: susceptibility ``[X, Y, Z]`` [ppb] that was put in, mean of each voxel.
        voxel_size: (dx, dy, dz) [mm].
        lesions: what each lesion is, in the order of the labels 1..L.
        raters: what two raters said of them ``[L, 2]``.
        echoes: complex echoes ``[N, X, Y, Z]``, where they were asked for.
    """

    qsm: Tensor
    flair: Tensor
    magnitude: Tensor
    labels: Tensor
    brain: Tensor
    truth: Tensor
    voxel_size: tuple[float, float, float]
    lesions: Lesions
    raters: Tensor
    echoes: Tensor | None = None


def draw_subject(
    generator: torch.Generator,
    rims: int,
    lesions: int,
    confluent: int = 0,
    split: str = "train",
    protocol: GradientEcho | None = None,
    head: Head | None = None,
) -> SubjectDraw:
    """Draw one subject.

    Args:
        generator: random stream on the CPU.
        rims: rim-positive lesions.
        lesions: all lesions.
        confluent: very large rim-negative ones.
        split: of the anatomy, see :func:`shared_transforms.anatomy.draw_volumes`.
        protocol: the paper's by default.
        head: nilearn's MNI152 template by default.

    Returns:
        The parameters.
    """
    protocol = protocol or GradientEcho()
    extent = [count * step for count, step in zip(protocol.size, protocol.voxel_size, strict=True)]
    # Anatomy on a grid of its own, coarser than the fine one: its boundaries are smooth over a millimetre or two.
    coarse = [max(2, round(length / 1.4)) for length in extent]
    steps = [length / count for length, count in zip(extent, coarse, strict=True)]
    volumes = draw_volumes(generator, 1, coarse, steps, split, head=head or load_head(), head_scale=(0.88, 1.0))
    drawn = draw_lesions(generator, rims, lesions, confluent)
    low, high = protocol.snr
    chi = torch.empty(1, 30, 1).uniform_(*_VEIN_CHI, generator=generator)
    return SubjectDraw(
        volumes=volumes,
        lesions=drawn,
        raters=draw_raters(generator, drawn),
        veins=draw_tubes(generator, 1, 30, [0.8 * length for length in extent], (0.3, 0.8), (8.0, 30.0)),
        vein_chi=chi,
        texture=3.0 + 2.0 * float(torch.rand((), generator=generator)),
        snr=low + (high - low) * float(torch.rand((), generator=generator)),
        seed=int(torch.randint(2**62, (), generator=generator)),
    )


def simulate_subject(
    drawn: SubjectDraw, protocol: GradientEcho | None = None, head: Head | None = None, keep_echoes: bool = False
) -> Subject:
    """Simulate the examination of a subject.

    Args:
        drawn: the subject; the same gives the same examination.
        protocol: as it was drawn with.
        head: as it was drawn with.
        keep_echoes: whether the examination holds the complex echoes too.

    Returns:
        The examination.
    """
    protocol = protocol or GradientEcho()
    generator = torch.Generator().manual_seed(drawn.seed)
    tissue, maps, vessels, centres = _fine_maps(drawn, protocol, head or load_head(), generator)
    signal, brain = echoes(drawn, protocol, tissue, maps, vessels, generator)
    qsm = _susceptibility(signal, brain, tissue, protocol)
    mean = _slice_mean(torch.stack([maps.flair, maps.cover, maps.chi]), protocol.slices)
    bias = torch.exp(0.04 * smooth_volume(generator, 1, protocol.size, 60.0)[0])
    flair = 300.0 * add_gaussian_noise(mean[0] * bias, 0.035, generator).clamp_min(0.0)
    return Subject(
        qsm=qsm,
        flair=flair * brain,
        magnitude=signal[0].abs(),
        labels=_labels(maps, centres, protocol.slices, brain),
        brain=brain,
        truth=mean[2] * brain,
        voxel_size=tuple(protocol.voxel_size),  # type: ignore[arg-type]
        lesions=drawn.lesions,
        raters=drawn.raters,
        echoes=signal if keep_echoes else None,
    )


def _fine_maps(
    drawn: SubjectDraw, protocol: GradientEcho, head: Head, generator: torch.Generator
) -> tuple[Tensor, LesionMaps, Tensor, Tensor]:
    """Tissue fractions ``[3, X, Y, Z']``, lesion maps, fraction of veins, centres of lesions, on the fine grid."""
    x, y, z = protocol.size
    size = (x, y, z * protocol.slices)
    step = (protocol.voxel_size[0], protocol.voxel_size[1], protocol.voxel_size[2] / protocol.slices)
    chosen = Head(head.fractions[[TISSUES.index(name) for name in _SAMPLED]], head.voxel_size_mm, head.name)
    tissue = F.interpolate(sample_volumes(chosen, drawn.volumes), size=size, mode="trilinear", align_corners=False)[0]
    csf, gm, wm = tissue
    veins = paint(
        torch.zeros(1, 2, *size), drawn.veins, torch.cat([drawn.vein_chi, torch.ones_like(drawn.vein_chi)], -1), step
    )[0]
    texture = smooth_volume(generator, 1, size, 5.0)[0] + 0.6 * smooth_volume(generator, 1, size, 16.0)[0]
    chi = sum(value * part for value, part in zip(_CHI, tissue, strict=True))
    chi = chi + drawn.texture * texture * wm + veins[0] * (wm > 0.5)
    flair = sum(value * part for value, part in zip(_FLAIR, tissue, strict=True))
    maps = LesionMaps(
        chi=torch.zeros(size), flair=flair.contiguous(), tissue=torch.zeros(size), cover=torch.zeros(size),
        owner=torch.zeros(size, dtype=torch.int32),
    )  # fmt: skip
    centres = _places(drawn.lesions, wm, step, generator)
    add_lesions(maps, drawn.lesions, centres, step)
    # What a lesion leaves of its tissue's own structure.
    maps.chi += torch.lerp(chi, torch.full_like(chi, _CHI[2]), _REPLACED * maps.tissue.clamp(0.0, 1.0))
    return tissue, maps, veins[1], centres


def _places(lesions: Lesions, wm: Tensor, step: Sequence[float], generator: torch.Generator) -> Tensor:
    """Centres ``[L, 3]`` [voxels] in white matter, the largest first, apart from each other where there is room."""
    sparse = wm[::2, ::2, ::2]
    deep = F.avg_pool3d(sparse[None, None], (5, 5, 3), stride=1, padding=(2, 2, 1))[0, 0]
    share = torch.where(sparse > 0.5, deep.square().square(), 0.0)
    many = max(4000, 200 * len(lesions))
    # More than 2^24 categories cannot be drawn by multinomial: the inverse of the distribution function is.
    total = share.flatten().double().cumsum(0)
    picked = torch.searchsorted(total, torch.rand(many, generator=generator, dtype=torch.float64) * total[-1])
    candidates = 2.0 * torch.stack(torch.unravel_index(picked, share.shape), 1).float()
    millimetres, scale = candidates * torch.tensor(step), lesions.radii.mean(1)
    centres, free = torch.zeros(len(lesions), 3), torch.full((many,), math.inf)
    for lesion in scale.argsort(descending=True).tolist():
        gap = free - scale[lesion]
        best = int((gap > 1.5).float().argmax()) if bool((gap > 1.5).any()) else int(gap.argmax())
        centres[lesion] = candidates[best]
        free = torch.minimum(free, (millimetres - millimetres[best]).norm(dim=1) - scale[lesion])
    return centres


def echoes(
    drawn: SubjectDraw,
    protocol: GradientEcho,
    tissue: Tensor,
    maps: LesionMaps,
    vessels: Tensor,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Complex echoes ``[N, X, Y, Z]`` with noise, and the brain's mask ``[X, Y, Z]``.

    The signal is summed over the fine slices of each slice, so the field's spread through the plane takes signal away.
    """
    step = (protocol.voxel_size[0], protocol.voxel_size[1], protocol.voxel_size[2] / protocol.slices)
    change = field_from_susceptibility(maps.chi * 1e-3, step, padding=1.15)
    frequency = FREQUENCY_PER_TESLA * protocol.field_strength * change
    lesion, vein = maps.tissue.clamp(0.0, 1.0), vessels.clamp(0.0, 1.0)
    rest = 1.0 - torch.maximum(lesion, vein)
    density, rate, filled = (torch.zeros_like(lesion) for _ in range(3))
    for part, m, r in zip((*(rest * t for t in tissue), lesion, vein), _DENSITY, _RATE, strict=True):
        density.add_(part, alpha=m)
        rate.add_(part, alpha=r)
        filled.add_(part)
    rate /= filled.clamp_min(1e-3)
    # Equal spacings: each echo is the one before times one complex factor.
    times = protocol.echo_times
    phase = 2 * math.pi * frequency
    now = torch.polar(density * torch.exp(-times[0] * rate), times[0] * phase)
    spacing = times[1] - times[0]
    factor = torch.polar(torch.exp(-spacing * rate), spacing * phase)
    sigma = _DENSITY[2] * math.exp(-times[0] * _RATE[2]) / drawn.snr
    result = []
    for _ in times:
        clean = torch.view_as_real(_slice_mean(now, protocol.slices))
        result.append(torch.view_as_complex(add_gaussian_noise(clean, sigma, generator)))
        now *= factor
    brain = _slice_mean(tissue.sum(0), protocol.slices) > 0.6
    return torch.stack(result), brain


def _susceptibility(signal: Tensor, brain: Tensor, tissue: Tensor, protocol: GradientEcho) -> Tensor:
    """QSM [ppb] of the echoes: fit of the field over the echoes, then a regularised inversion, fluid set to 0."""
    inside = signal[:, brain]
    spacing = protocol.echo_times[1] - protocol.echo_times[0]
    start = torch.angle((inside[1:] * inside[:-1].conj()).sum(0)) / (2 * math.pi * spacing)
    fit = fit_field(inside.abs(), inside.angle(), protocol.echo_times, start=start, iterations=2)
    measured = torch.zeros(brain.shape)
    measured[brain] = frequency_to_ppm(fit.frequency, protocol.field_strength)
    chi = 1e3 * tv_admm(
        measured, protocol.voxel_size, mask=brain, regularisation=protocol.regularisation, iterations=_ITERATIONS
    )
    fluid = (_slice_mean(tissue[0], protocol.slices) > 0.9) & brain
    reference = chi[fluid].mean() if bool(fluid.any()) else chi.new_zeros(())
    return (chi - reference) * brain


def _labels(maps: LesionMaps, centres: Tensor, slices: int, brain: Tensor) -> Tensor:
    """The mask as drawn on slices: voxels of which a lesion covers more than half, at least one for every lesion."""
    cover = _slice_mean(maps.cover, slices)
    owners = torch.stack([maps.owner[..., k::slices] for k in range(slices)])
    most = torch.stack([maps.cover[..., k::slices] for k in range(slices)]).argmax(0, keepdim=True)
    labels = torch.where((cover > 0.5) & brain, owners.gather(0, most)[0], 0)
    there = torch.bincount(labels.flatten(), minlength=len(centres) + 1) > 0
    lost = (~there[1:]).nonzero()[:, 0]
    x, y, z = centres[lost].round().long().T
    labels[x, y, z // slices] = (lost + 1).to(labels)
    return labels.to(torch.int32)


def _slice_mean(volumes: Tensor, slices: int) -> Tensor:
    """Means ``[..., X, Y, Z]`` over the fine slices of ``[..., X, Y, Z slices]``."""
    total = volumes[..., ::slices].clone()
    for k in range(1, slices):
        total += volumes[..., k::slices]
    return total / slices
