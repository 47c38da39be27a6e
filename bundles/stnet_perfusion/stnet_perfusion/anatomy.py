"""The anatomy of the digital reference object: drawn on the CPU, painted on the device.

`draw_anatomy` draws the deformed head, its vessels and its lesion; `paint_anatomy` turns them into volumes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from physics.phantoms import Tubes, paint
from shared_transforms.anatomy import (
    Head,
    VolumeParameters,
    draw_volumes,
    head_points,
    head_to_mni,
    load_head,
    sample_volumes,
    split_seed,
)
from shared_transforms.anatomy.fields import spline_weights

from .territories import (
    LEAVES,
    NUMBER,
    Lesions,
    border_distance,
    draw_lesions,
    leaf_distances,
    paint_lesion,
)
from .vessels import draw_arteries, draw_veins, joined, tubes_in_grid

HEAD_MM = 2.0  # resolution of the head that is sampled
HEAD_SCALE = (0.84, 1.02)  # the template is larger than most heads
MIDDLE_MM = (1.0, 17.0)  # middle of the volume above that of the brain with its cerebellum
BORDER_MM = 4.0  # by which the borders of territories differ between people, about two standard deviations
COARSE_MM, FINE_MM = 24.0, 9.0  # control spacing of the smooth fields
# Arrival [s] at the points of each leaf, relative to the first; then what the way to the cortex, the border zones and
# the deep white matter add.
_ARRIVAL = (0.25, 0.1, 0.15, 0.0, 0.45, 0.45)
_PER_MM, _BORDER, _DEEP = 0.012, 0.35, 0.35
ARRIVAL_MAX_S = 1.5

T = TypeVar("T")


@dataclass(frozen=True)
class Smooth:
    """Numbers of smooth random fields of n grids.

    Attributes:
        controls: of the cubic B-splines ``[n, fields, x, y, z]``.
        shift: of the controls against the grid ``[n, 3]``, in units of their spacing.
        spacing_mm: of the controls.
    """

    controls: Tensor
    shift: Tensor
    spacing_mm: float


@dataclass(frozen=True)
class Anatomy:
    """Everything random about the anatomy of n samples, on the CPU.

    Attributes:
        volumes: deformation of the heads, size, voxel size and place of the grid.
        arteries, veins: tubes, in head coordinates [mm].
        lesions: in the shape of territories; volume 0 where there is none.
        coarse, fine: smooth fields: edge of lesions, two textures; coarse also borders of territories and arrival.
        arrival: scale and asymmetry of the arrival times ``[n, 2]``.
    """

    volumes: VolumeParameters
    arteries: Tubes
    veins: Tubes
    lesions: Lesions
    coarse: Smooth
    fine: Smooth
    arrival: Tensor

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.volumes)

    def select(self, index: int) -> Anatomy:
        """One of the samples, as a batch of one."""
        return _one(self, index)


def _one(drawn: T, index: int) -> T:
    """A dataclass of one sample: of each tensor that of its number, as a batch of one."""
    chosen: dict[str, Any] = {}
    for item in fields(drawn):  # type: ignore[arg-type]
        value = getattr(drawn, item.name)
        if isinstance(value, VolumeParameters):
            value = value.select(index)
        elif isinstance(value, Tensor):
            value = value[index : index + 1]
        elif hasattr(value, "__dataclass_fields__"):
            value = _one(value, index)
        chosen[item.name] = value
    return type(drawn)(**chosen)


@lru_cache(maxsize=2)
def _tissue_head(head: Head) -> Head:
    """Fluid, grey and white matter alone, the channels of a voxel side by side: faster to sample."""
    packed = head.fractions[None, :3].contiguous(memory_format=torch.channels_last_3d)[0]
    return Head(packed, head.voxel_size_mm, head.name)


def draw_anatomy(
    generator: torch.Generator,
    n: int,
    size: Sequence[int],
    voxel_size: Sequence[float],
    split: str = "train",
    head: Head | None = None,
    lesion_share: float = 0.5,
) -> Anatomy:
    """Draw n anatomies: axial slices around the middle of a newly deformed head each.

    One number is taken from the generator and hashed with the split, so one generator gives the three splits different
    heads, vessels and lesions.

    Args:
        generator: random stream on the CPU.
        n: number of samples.
        size: (X, Y, Z) [voxels].
        voxel_size: (dx, dy, dz) [mm].
        split: ``"train"``, ``"val"`` or ``"test"``.
        head: the one to be sampled; by default the template at 2 mm.
        lesion_share: share of samples with a lesion.

    Returns:
        The random numbers, on the CPU.

    Raises:
        QMRIError: where the split is unknown, or a size or voxel size is not positive.
        ValueError: for a share beyond 0 to 1.
    """
    if not 0.0 <= lesion_share <= 1.0:
        raise ValueError(f"lesion_share must lie in [0, 1], got {lesion_share}")
    head = head or load_head(HEAD_MM)
    number = int(torch.randint(2**62, (), generator=generator))
    stream = torch.Generator().manual_seed(split_seed(number, split=split))
    volumes = draw_volumes(
        stream, n, size, voxel_size, split, head=head, head_scale=HEAD_SCALE, max_displacement_mm=6.0
    )
    low, high = MIDDLE_MM
    up = low + (high - low) * torch.rand(n, generator=stream)
    volumes = replace(volumes, position=torch.stack([torch.zeros(n), torch.zeros(n), up], 1))
    return Anatomy(
        volumes=volumes,
        arteries=draw_arteries(stream, n, head),
        veins=draw_veins(stream, n, head),
        lesions=draw_lesions(stream, volumes, head, lesion_share),
        coarse=_draw_smooth(stream, n, 5, volumes, COARSE_MM),
        fine=_draw_smooth(stream, n, 3, volumes, FINE_MM),
        arrival=torch.stack(
            [0.6 + 0.7 * torch.rand(n, generator=stream), 0.1 * torch.randn(n, generator=stream)], 1
        ),
    )  # fmt: skip


def _draw_smooth(
    generator: torch.Generator, n: int, count: int, volumes: VolumeParameters, spacing_mm: float
) -> Smooth:
    """Controls of smooth fields on the grids."""
    edges = [(voxels - 1) * step for voxels, step in zip(volumes.size, volumes.voxel_mm, strict=True)]
    counts = [int(edge / spacing_mm) + 5 for edge in edges]
    controls = torch.randn((n, count, *counts), generator=generator)
    return Smooth(controls, torch.rand((n, 3), generator=generator), spacing_mm)


def _smooth_fields(drawn: Smooth, volumes: VolumeParameters, device: torch.device) -> Tensor:
    """Fields ``[fields, X, Y, Z]`` of one sample with mean 0 and standard deviation 1 over the grid."""
    field = drawn.controls[0].to(device)
    for axis in (2, 1, 0):  # the contiguous axis first
        place = torch.arange(volumes.size[axis]) * (volumes.voxel_mm[axis] / drawn.spacing_mm)
        weights = spline_weights(1.0 + drawn.shift[0, axis] + place, field.shape[1 + axis]).to(device)
        field = torch.einsum(("kxyz,cz->kxyc", "kxyz,cy->kxcz", "kxyz,cx->kcyz")[2 - axis], field, weights)
    return _standardised(field, torch.ones_like(field[0]))


def _standardised(field: Tensor, mask: Tensor) -> Tensor:
    """Fields ``[fields, X, Y, Z]`` with mean 0 and standard deviation 1 over a mask."""
    mask = mask.to(field)
    count = mask.sum().clamp_min(1.0)
    field = field - (field * mask).sum((1, 2, 3), keepdim=True) / count
    variance = (field.square() * mask).sum((1, 2, 3), keepdim=True) / count
    return field / variance.clamp_min(1e-12).sqrt()


def paint_anatomy(anatomy: Anatomy, head: Head | None = None, device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """Volumes of n drawn anatomies.

    Args:
        anatomy: as drawn.
        head: the head that was given to :func:`draw_anatomy`.
        device: where the volumes are made.

    Returns:
        Volumes ``[n, X, Y, Z]``, x to the right, y to the front, z upwards: ``gm``, ``wm``, ``csf``, ``artery``,
        ``vein``, fractions of the voxel with sum at most 1, arteries and veins never in one voxel; ``brain``, bool,
        what a brain extraction would keep; ``oligaemia``, ``penumbra``, ``core``, memberships in [0, 1], each at most
        the one before; ``territory``, uint8, 1 to 3 for ACA, MCA, PCA on the right, 4 to 6 on the left (the posterior
        fossa counts as PCA), 0 outside of the brain; ``hemisphere``, 1 on the right, -1 on the left; ``arrival``,
        delay of the bolus against the proximal MCA territory [s], in [0, 1.5]; and ``texture`` ``[n, 2, X, Y, Z]``,
        two smooth fields with mean 0 and standard deviation 1 over the brain.
    """
    device = torch.device(device)
    head = _tissue_head((head or load_head(HEAD_MM)).to(device))
    painted = [_paint_one(anatomy.select(i), head, device) for i in range(len(anatomy))]
    return {name: torch.stack([volume[name] for volume in painted]) for name in painted[0]}


def _paint_one(anatomy: Anatomy, head: Head, device: torch.device) -> dict[str, Tensor]:
    """Volumes of one sample, without the batch axis."""
    volumes = anatomy.volumes.to(device)
    tissue = sample_volumes(head, volumes)[0]
    artery, vein = _vessels(anatomy, volumes)
    base = tissue.sum(0)
    # Sinuses lie half in the dura: a brain extraction keeps them where they touch the brain.
    near = F.max_pool3d((base > 0.5).float()[None], (3, 3, 1), 1, (1, 1, 0))[0] > 0.5
    brain = (base > 0.5) | ((vein > 0.5) & near)
    csf, gm, wm = (tissue / base.clamp_min(1.0) * (1.0 - artery - vein)).unbind(0)

    position = head_to_mni(head_points(volumes)[0].movedim(0, -1), head).movedim(-1, 0)
    distances = leaf_distances(position.flatten(1)).view(len(LEAVES), *volumes.size)
    coarse = _smooth_fields(anatomy.coarse, volumes, device)
    fine = _smooth_fields(anatomy.fine, volumes, device)
    # Borders of territories differ between people: those of the ACA and the PCA against the MCA move.
    for name in ("aca", "pca"):
        distances[LEAVES.index(name)] += BORDER_MM * coarse[3]
    right = position[0] >= 0.0
    number = torch.tensor(NUMBER, device=device)[distances.argmin(0)]
    lesion = paint_lesion(
        anatomy.lesions, 0, distances, _grid_points(volumes, device), position[0],
        (gm + wm) * (math.prod(volumes.voxel_mm) / 1e3), torch.stack([coarse[0], fine[0]]),
    )  # fmt: skip
    return {
        "gm": gm, "wm": wm, "csf": csf, "brain": brain, "artery": artery, "vein": vein,
        "oligaemia": lesion[0] * brain, "penumbra": lesion[1] * brain, "core": lesion[2] * brain,
        "territory": ((number + 3 * ~right) * brain).to(torch.uint8),
        "hemisphere": torch.where(right, 1.0, -1.0),
        "arrival": _arrival(anatomy, distances, wm, coarse[4], position[0]),
        "texture": _standardised(coarse[1:3] + 0.7 * fine[1:3], brain),
    }  # fmt: skip


def _grid_points(volumes: VolumeParameters, device: torch.device) -> Tensor:
    """Positions of the voxels from the middle of the grid ``[3, X, Y, Z]`` [mm]."""
    axes = [
        (torch.arange(voxels, device=device) - (voxels - 1) / 2.0) * step
        for voxels, step in zip(volumes.size, volumes.voxel_mm, strict=True)
    ]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))


def _vessels(anatomy: Anatomy, volumes: VolumeParameters) -> tuple[Tensor, Tensor]:
    """Fractions ``[X, Y, Z]`` of arteries and veins; where both meet, the larger stays."""
    device = volumes.rotation.device
    both = tubes_in_grid(anatomy.volumes, joined([anatomy.arteries, anatomy.veins]))
    counts = [len(anatomy.arteries), len(anatomy.veins)]
    maps = []
    for parts in zip(*(getattr(both, item.name).to(device).split(counts, 1) for item in fields(both)), strict=True):
        tubes, canvas = Tubes(*parts), torch.zeros((1, 1, *volumes.size), device=device)
        maps.append(paint(canvas, tubes, torch.ones(1, len(tubes), 1, device=device), volumes.voxel_mm)[0, 0])
    artery, vein = maps
    return artery * (artery > vein), vein * (vein >= artery)


def _arrival(anatomy: Anatomy, distances: Tensor, wm: Tensor, noise: Tensor, across: Tensor) -> Tensor:
    """Normal differences of the arrival time ``[X, Y, Z]`` [s]."""
    weights = torch.softmax(-distances / 5.0, 0)
    start = torch.einsum("kxyz,k->xyz", weights, torch.tensor(_ARRIVAL, device=wm.device))
    way = _PER_MM * distances.amin(0).clamp_max(30.0)
    border = _BORDER * torch.exp(-(border_distance(distances) / 6.0).square())
    # Mean of the white matter over about 16 mm, less in volumes that are thinner: high only in its depth.
    step = [
        1 + 2 * min(round(8.0 / length), (voxels - 1) // 2)
        for length, voxels in zip(anatomy.volumes.voxel_mm, wm.shape, strict=True)
    ]
    deep = F.avg_pool3d(wm[None], step, 1, [s // 2 for s in step], count_include_pad=False)[0]
    scale, asymmetry = anatomy.arrival[0].tolist()
    value = start + way + border + _DEEP * deep.square() + 0.06 * noise + asymmetry * torch.tanh(across / 15.0)
    return (scale * value).clamp(0.0, ARRIVAL_MAX_S)
