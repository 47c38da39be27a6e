"""Vascular territories of the brain and lesions in their shape, from distances to points at MNI positions.

A territory is what lies closer to its own points than to those of others; half of the difference of the two distances
is about the depth below its border. The points place the borders as anatomical maps of the territories do (Tatu et
al., Neurology 50:1699, 1998) to about a centimetre, the spread between people.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from shared_transforms.anatomy import Head, VolumeParameters, head_to_grid, mni_to_head

Point = tuple[float, float, float]
# Points of the right side (MNI, mm).
POINTS: dict[str, tuple[Point, ...]] = {
    "aca": (
        (6, 58, -10), (6, 62, 6), (6, 56, 22), (6, 44, 37), (7, 26, 48), (7, 6, 56), (7, -14, 60), (7, -34, 58),
        (5, 30, 6), (5, 34, -12), (7, 30, 26), (6, 2, 40), (6, -22, 42), (14, 52, 10), (13, 34, 50), (13, 8, 64),
        (14, -18, 68), (8, 16, -8),
    ),
    "mca superior": (
        (40, 42, 4), (32, 54, 2), (38, 42, 20), (46, 26, 24), (48, 10, 32), (44, -4, 46), (36, 24, 40), (38, -18, 54),
        (40, 10, 0), (28, -4, 34), (32, 22, 16), (54, -10, 26), (48, 22, -6), (28, -14, 42),
    ),
    "mca inferior": (
        (54, -12, -20), (56, -30, -8), (54, -48, 6), (50, -56, 24), (48, -44, 42), (40, -60, 36), (44, 4, -32),
        (58, -26, 10), (40, -12, 2), (34, -42, 24), (40, -68, 18), (36, -52, 48), (34, -30, 30),
    ),
    "mca deep": ((26, 2, 2), (22, -5, 8), (24, 10, 6), (29, -10, 8), (18, 12, 14), (20, -4, 20), (14, 6, 16)),
    "pca": (
        (9, -18, 8), (10, -60, 4), (8, -78, 6), (12, -94, 2), (9, -70, 24), (24, -80, -8), (28, -50, -12),
        (24, -30, -16), (38, -62, -16), (26, -94, 4), (12, -28, 4), (22, -50, 6), (22, -68, 6),
    ),
    "posterior fossa": ((6, -26, -26), (6, -30, -46), (20, -60, -36), (36, -64, -42), (8, -70, -24), (30, -50, -34)),
}  # fmt: skip
LEAVES = tuple(POINTS)
NUMBER = (1, 2, 2, 2, 3, 3)  # of the territory of each leaf: ACA, MCA, PCA; three more on the left

_MCA = ("mca superior", "mca inferior", "mca deep")
# Kind of a lesion: share among lesions, leaves, smallest and largest volume beyond the threshold of delay [ml].
KINDS: dict[str, tuple[float, tuple[str, ...], tuple[float, float]]] = {
    "mca": (0.30, _MCA, (40.0, 250.0)),
    "carotid": (0.05, ("aca", *_MCA), (120.0, 250.0)),
    "mca superior": (0.16, ("mca superior",), (6.0, 120.0)),
    "mca inferior": (0.15, ("mca inferior",), (6.0, 110.0)),
    "mca deep": (0.08, ("mca deep",), (2.0, 25.0)),
    "aca": (0.08, ("aca",), (4.0, 70.0)),
    "pca": (0.09, ("pca",), (3.0, 60.0)),
    "border zone": (0.09, _MCA, (4.0, 50.0)),
}
RIM_MM = (3.0, 8.0)


@dataclass(frozen=True)
class Lesions:
    """Random numbers of the lesions of n heads.

    Attributes:
        volume_ml: grey and white matter whose ``penumbra`` exceeds one half ``[n]`` [ml]; 0 where there is no lesion,
            and less is left where the volume shows less of the territory.
        leaves: whether each of :data:`LEAVES` is affected ``[n, 6]``.
        border: whether the lesion lies along the borders of the territory ``[n]``.
        side: 1 for the right hemisphere, -1 for the left ``[n]``.
        centre, core_centre: in the grid ``[n, 3]`` [mm].
        core_share: volume of the core relative to ``volume_ml`` ``[n]``; 0 for none.
        oligaemia_share: volume of oligaemia with penumbra and core relative to ``volume_ml`` ``[n]``.
        rim_mm: widths of the rims of oligaemia, penumbra and core ``[n, 3]`` [mm].
        roughness_mm: standard deviation of the coarse and the fine irregularity of the edge ``[n, 2]`` [mm].
    """

    volume_ml: Tensor
    leaves: Tensor
    border: Tensor
    side: Tensor
    centre: Tensor
    core_centre: Tensor
    core_share: Tensor
    oligaemia_share: Tensor
    rim_mm: Tensor
    roughness_mm: Tensor


def draw_lesions(generator: torch.Generator, volumes: VolumeParameters, head: Head, share: float) -> Lesions:
    """Draw the lesions of the heads in some volumes.

    Args:
        generator: random stream on the CPU.
        volumes: the n volumes; lesions are centred in what they show.
        head: the head that they sample.
        share: of the heads that have a lesion.

    Returns:
        The lesions, on the CPU.
    """
    n = len(volumes)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator)

    kind = torch.multinomial(torch.tensor([row[0] for row in KINDS.values()]), n, True, generator=generator)
    table = torch.tensor([[float(leaf in row[1]) for leaf in LEAVES] for row in KINDS.values()])
    low, high = (torch.tensor([row[2][k] for row in KINDS.values()])[kind] for k in (0, 1))
    volume = low * (high / low) ** uniform(n)
    leaves = table[kind] > 0
    side = torch.where(uniform(n) < 0.5, 1.0, -1.0)
    centre = _draw_centres(generator, volumes, head, leaves, side)
    radius = (volume * 1e3 * 3.0 / (4.0 * torch.pi)) ** (1.0 / 3.0)
    # The core grows from the depth of the territory, where collaterals do not reach.
    towards = 0.5 * radius[:, None] * torch.nn.functional.normalize(torch.randn((n, 3), generator=generator), dim=1)
    has_core = uniform(n) < 0.7
    rim = RIM_MM[0] + (RIM_MM[1] - RIM_MM[0]) * uniform(n, 3)
    return Lesions(
        volume_ml=volume * (uniform(n) < share),
        leaves=leaves,
        border=kind == list(KINDS).index("border zone"),
        side=side,
        centre=centre,
        core_centre=centre + towards,
        core_share=has_core * (0.03 + 0.72 * uniform(n) ** 1.5),
        oligaemia_share=1.1 + 0.7 * uniform(n),
        # Small lesions have narrow rims, or there would be nothing but rim.
        rim_mm=torch.minimum(rim, radius[:, None].clamp_min(RIM_MM[0])),
        roughness_mm=torch.tensor([2.2, 0.8]) * (0.5 + uniform(n, 2)),
    )


def _draw_centres(
    generator: torch.Generator, volumes: VolumeParameters, head: Head, leaves: Tensor, side: Tensor
) -> Tensor:
    """One of the points of the affected leaves for each volume ``[n, 3]``, of those that it shows, with jitter."""
    points, owner = _points()
    mirrored = torch.stack([points * points.new_tensor([s, 1.0, 1.0]) for s in (1.0, -1.0)])
    here = torch.where(side > 0, 0, 1)
    grid = head_to_grid(volumes, mni_to_head(mirrored, head)[here].mT).mT  # [n, points, 3]
    half = torch.tensor([count * step / 2 for count, step in zip(volumes.size, volumes.voxel_mm, strict=True)])
    outside = (grid.abs() - half + 6.0).clamp_min(0.0).sum(-1)
    allowed = leaves[:, owner]
    # Points outside are taken only where no other is near.
    weight = torch.where(allowed, torch.exp(-outside / 2.0), 0.0) + 1e-12 * allowed
    chosen = torch.multinomial(weight, 1, generator=generator)
    place = grid.gather(1, chosen[..., None].expand(-1, -1, 3)).squeeze(1)
    return place + 4.0 * torch.randn((len(side), 3), generator=generator)


def _points() -> tuple[Tensor, Tensor]:
    """Points ``[points, 3]`` of all leaves and the leaf of each."""
    points = torch.tensor([point for leaf in POINTS.values() for point in leaf])
    owner = torch.tensor([number for number, leaf in enumerate(POINTS.values()) for _ in leaf])
    return points, owner


def leaf_distances(positions: Tensor) -> Tensor:
    """Distances ``[6, P]`` [mm] of MNI positions ``[3, P]`` from the points of each leaf on their own side."""
    points = _points()[0].to(positions)
    folded = torch.stack([positions[0].abs(), positions[1], positions[2]])
    # |a - b|^2 as one product; the points are few, the positions many.
    square = points.square().sum(1)[:, None] - 2.0 * points @ folded + folded.square().sum(0)
    nearest = torch.stack([part.amin(0) for part in square.split([len(leaf) for leaf in POINTS.values()])])
    return nearest.clamp_min(1e-6).sqrt()


def depth_in(distances: Tensor, leaves: Tensor) -> Tensor:
    """About the depth [mm] in the union of some leaves, negative outside; distances ``[6, ...]``, leaves ``[6]``."""
    chosen = leaves.to(distances.device)
    return (distances[~chosen].amin(0) - distances[chosen].amin(0)) / 2.0


def border_distance(distances: Tensor) -> Tensor:
    """About the distance [mm] from the borders of the MCA's territory with that of the ACA and the PCA."""
    aca, pca = distances[LEAVES.index("aca")], distances[LEAVES.index("pca")]
    mca = distances[[LEAVES.index(name) for name in _MCA]].amin(0)
    return torch.minimum((aca - mca).abs(), (pca - mca).abs()) / 2.0


def paint_lesion(
    lesion: Lesions, i: int, distances: Tensor, points: Tensor, across: Tensor, tissue: Tensor, edge: Tensor
) -> Tensor:
    """Memberships of one head's lesion.

    Args:
        lesion: of n heads.
        i: which of them.
        distances: :func:`leaf_distances` ``[6, X, Y, Z]``.
        points: positions in the grid ``[3, X, Y, Z]`` [mm].
        across: MNI x ``[X, Y, Z]`` [mm].
        tissue: volume of grey and white matter in each voxel ``[X, Y, Z]`` [ml].
        edge: coarse and fine smooth fields of unit standard deviation ``[2, X, Y, Z]``.

    Returns:
        Oligaemia, penumbra and core ``[3, X, Y, Z]`` in [0, 1], each inside the one before.
    """
    result = torch.zeros((3, *tissue.shape), device=tissue.device)
    target = float(lesion.volume_ml[i])
    if target == 0.0:
        return result
    inside = 6.0 - border_distance(distances) if bool(lesion.border[i]) else depth_in(distances, lesion.leaves[i])
    coarse, fine = lesion.roughness_mm[i].tolist()
    rough = coarse * edge[0] + fine * edge[1]
    own = across * float(lesion.side[i])
    inside = torch.where(own > 0.0, inside + rough, -1e3)
    target = min(target, 0.95 * float(tissue[inside > -2.0].sum()))
    if target <= 0.0:
        return result
    # A lesion smaller than the territory gathers around its centre, a larger one than the ball fills the territory.
    radius = 1.4 * (target * 1e3 * 3.0 / (4.0 * torch.pi)) ** (1.0 / 3.0)
    whole = torch.minimum(inside, radius + rough - _distance(points, lesion.centre[i]))
    inner = torch.minimum(whole, radius + rough - _distance(points, lesion.core_centre[i]))
    falx = (own / 2.0).clamp(0.0, 1.0)  # no lesion crosses the midline
    level = _level(whole, tissue, target)
    outer = max(min(_level(whole, tissue, target * float(lesion.oligaemia_share[i])), level - 1.0), level - 15.0)
    result[0] = falx * _ramp(whole - outer, lesion.rim_mm[i, 0])
    result[1] = result[0] * _ramp(whole - level, lesion.rim_mm[i, 1])
    if float(lesion.core_share[i]) > 0.0:
        deep = _level(inner, tissue, target * float(lesion.core_share[i]))
        result[2] = result[1] * _ramp(inner - deep, lesion.rim_mm[i, 2])
    return result


def _distance(points: Tensor, centre: Tensor) -> Tensor:
    """Distance [mm] of positions ``[3, ...]`` from a point ``[3]``."""
    return (points - centre.to(points).view(3, 1, 1, 1)).square().sum(0).sqrt()


def _level(values: Tensor, weights: Tensor, amount: float) -> float:
    """The value that weights of the given sum exceed."""
    ordered, order = values.flatten().sort(descending=True)
    total = weights.flatten()[order].cumsum(0)
    return float(ordered[int((total < amount).sum().clamp_max(len(ordered) - 1))])


def _ramp(values: Tensor, width: Tensor) -> Tensor:
    """From 0 to 1 over a width around 0, smooth at both ends."""
    t = (values / float(width) + 0.5).clamp(0.0, 1.0)
    return t * t * (3.0 - 2.0 * t)
