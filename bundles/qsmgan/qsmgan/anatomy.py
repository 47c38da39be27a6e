"""Deep nuclei, veins and pathology as bodies at MNI positions, and where a deformed grid shows them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from physics.phantoms import Ellipsoids, Tubes, draw_trees, random_rotations
from shared_transforms.anatomy import MNI_SPREAD_MM, Head, VolumeParameters, head_to_grid, mni_to_head

from .tissues import NAMES

PATHOLOGIES = ("calcification", "microbleeds", "tumour")

# Right side, MNI [mm]: tissue, centre, radii, then turns [degrees] about x and z. The first four have the centres and
# volumes of the Harvard-Oxford subcortical atlas to 2 mm and 15 %; the others follow maps of the red nucleus and the
# substantia nigra (Pauli et al., Sci Data 5:180063, 2018) and of the dentate (Diedrichsen et al., NeuroImage 54:1786,
# 2011) only roughly. The last of a place covers the rest.
_NUCLEI: tuple[tuple[str, tuple[float, ...], tuple[float, ...], tuple[float, float]], ...] = (
    ("caudate", (12.0, 15.5, 4.5), (5.5, 8.5, 10.5), (-25.0, 8.0)),
    ("caudate", (14.5, 5.0, 16.5), (4.5, 12.0, 5.5), (-20.0, 8.0)),
    ("caudate", (18.0, -11.0, 21.0), (2.8, 10.0, 3.5), (0.0, 20.0)),
    ("putamen", (26.0, 2.0, 0.5), (6.2, 19.5, 12.5), (0.0, 18.0)),
    ("pallidum", (19.7, -4.0, -1.0), (5.0, 13.0, 7.2), (0.0, 30.0)),
    ("thalamus", (11.5, -18.0, 7.0), (9.5, 17.5, 11.5), (15.0, 25.0)),
    ("red nucleus", (5.0, -20.0, -9.0), (3.2, 3.4, 4.8), (0.0, 0.0)),
    ("substantia nigra", (10.0, -18.0, -12.5), (2.8, 8.0, 4.0), (30.0, 35.0)),
    ("dentate", (15.5, -57.0, -35.0), (6.5, 9.0, 5.5), (0.0, -25.0)),
    ("white matter", (14.0, -55.5, -34.5), (4.8, 6.5, 3.3), (0.0, -25.0)),
)
# Courses [mm] and radius of the large veins inside the brain's mask; those off the midline on both sides.
_VEINS: tuple[tuple[float, tuple[tuple[float, float, float], ...]], ...] = (
    (1.7, ((0, -40, 5), (0, -55, 4), (0, -70, -1), (0, -86, -9))),  # straight sinus
    (0.8, ((2, 2, 13), (2.5, -12, 16), (2, -26, 14), (0, -40, 5))),  # internal cerebral
    (0.8, ((12, 2, -18), (17, -14, -13), (14, -30, -4), (0, -40, 5))),  # basal, of Rosenthal
    (0.6, ((20, -14, 22), (14, -2, 20), (7, 4, 15), (2, 2, 13))),  # thalamostriate
    (0.6, ((7, 26, 12), (3, 16, 12), (2, 2, 13))),  # septal
)
SURFACE_TREES, DEEP_TREES = 24, 10


@dataclass(frozen=True)
class Anatomy:
    """Structures of n heads, in head coordinates [mm].

    Attributes:
        nuclei: ellipsoids of the deep nuclei.
        nucleus_tissue: index ``[count]`` into :data:`.tissues.NAMES`.
        veins: tubes of the veins.
        lesions: ellipsoids of the pathology; none in a healthy head.
        lesion_tissue: index ``[count]`` into :data:`.tissues.NAMES`.
    """

    nuclei: Ellipsoids
    nucleus_tissue: Tensor
    veins: Tubes
    lesions: Ellipsoids
    lesion_tissue: Tensor


def draw_anatomy(generator: torch.Generator, n: int, head: Head, pathology: Sequence[str] = ()) -> Anatomy:
    """Draw the structures of n heads: jittered nuclei, veins with random branches, and the pathology asked for.

    Args:
        generator: random stream on the CPU.
        n: number of heads.
        head: the head they belong to.
        pathology: some of :data:`PATHOLOGIES`.

    Returns:
        The bodies, on the CPU.

    Raises:
        ValueError: for an unknown pathology.
    """
    if unknown := set(pathology) - set(PATHOLOGIES):
        raise ValueError(f"pathology must be some of {PATHOLOGIES}, got {sorted(unknown)}")
    nuclei, tissue = _draw_nuclei(generator, n, head)
    lesions, lesion_tissue = _draw_lesions(generator, n, head, pathology)
    return Anatomy(nuclei, tissue, _draw_veins(generator, n, head), lesions, lesion_tissue)


def _draw_nuclei(generator: torch.Generator, n: int, head: Head) -> tuple[Ellipsoids, Tensor]:
    tissue = torch.tensor([NAMES.index(name) for name, *_ in _NUCLEI]).repeat(2)
    centre, radii, turn = (torch.tensor([row[k] for row in _NUCLEI]) for k in (1, 2, 3))
    count = len(_NUCLEI)
    # Both sides share most of what differs between people.
    shift = 1.0 * torch.randn((n, count, 3), generator=generator)
    size = torch.exp(0.1 * torch.randn((n, count, 3), generator=generator))
    tilt = torch.deg2rad(turn + 5.0 * torch.randn((n, count, 2), generator=generator))
    rotation = _turn(tilt[..., 0], 0) @ _turn(tilt[..., 1], 2)
    sides = []
    for sign in (1.0, -1.0):
        mirror = torch.tensor([sign, 1.0, 1.0])
        own = 0.5 * torch.randn((n, count, 3), generator=generator)
        place = (centre + shift.clamp(-2.0, 2.0)) * mirror + own
        sides.append((mni_to_head(place, head), radii * size.clamp(0.8, 1.25), mirror[:, None] * rotation))
    centres, lengths, rotations = (torch.cat(column, 1) for column in zip(*sides, strict=True))
    return Ellipsoids.from_radii(centres, lengths, rotations), tissue


def _turn(angle: Tensor, axis: int) -> Tensor:
    """Rotation matrices ``[..., 3, 3]`` about an axis."""
    i, j = [(1, 2), (2, 0), (0, 1)][axis]
    matrix = torch.eye(3).repeat(*angle.shape, 1, 1)
    matrix[..., i, i] = matrix[..., j, j] = torch.cos(angle)
    matrix[..., j, i] = torch.sin(angle)
    matrix[..., i, j] = -torch.sin(angle)
    return matrix


def _draw_veins(generator: torch.Generator, n: int, head: Head) -> Tubes:
    """Large veins at their places, trees that enter from the surface, and trees in the deep white matter."""
    starts, ends, radii = [], [], []
    for radius, course in _VEINS:
        path = torch.tensor(course, dtype=torch.float32)
        for mirror in (1.0,) if not path[:, 0].any() else (1.0, -1.0):
            place = path * torch.tensor([mirror, 1.0, 1.0]) + 1.0 * torch.randn((n, *path.shape), generator=generator)
            place = mni_to_head(place, head)
            starts.append(place[:, :-1])
            ends.append(place[:, 1:])
            thickness = radius * torch.exp(0.2 * torch.randn((n, 1), generator=generator))
            radii.append(thickness.expand(n, len(path) - 1))
    large = Tubes(torch.cat(starts, 1), torch.cat(ends, 1), torch.cat(radii, 1))

    voxels = (head.brain_voxels.float() - head.middle_voxel) * head.voxel_size_mm
    middle = (head.brain_centre - head.middle_voxel) * head.voxel_size_mm
    pick = torch.randint(len(voxels), (n, 24 * SURFACE_TREES + DEEP_TREES), generator=generator)
    place = voxels[pick]
    # Of 24 voxels drawn, the one farthest from the middle (in units of the brain's size) lies near the surface.
    crowd = place[:, : 24 * SURFACE_TREES].unflatten(1, (SURFACE_TREES, 24))
    far = ((crowd - middle) / torch.tensor(MNI_SPREAD_MM)).norm(dim=-1).argmax(-1)
    surface = crowd.gather(2, far[..., None, None].expand(-1, -1, 1, 3)).squeeze(2)
    roots = torch.cat([surface, place[:, 24 * SURFACE_TREES :]], 1)
    aim = middle - roots + 40.0 * torch.randn(roots.shape, generator=generator)
    trees = draw_trees(generator, roots, aim, radius=(0.4, 1.3), length=(5.0, 12.0))
    return Tubes(*(torch.cat([getattr(trees, k), getattr(large, k)], 1) for k in ("starts", "ends", "radii")))


def _draw_lesions(
    generator: torch.Generator, n: int, head: Head, pathology: Sequence[str]
) -> tuple[Ellipsoids, Tensor]:
    """Ellipsoids of the lesions asked for, in the brain, away from its surface."""
    centres, radii, names = [], [], []

    def inside(count: int, share: float) -> Tensor:
        """Places in the middle ``share`` of the brain."""
        voxels = head.brain_voxels
        pick = voxels[torch.randint(len(voxels), (n, count), generator=generator)].float()
        return ((head.brain_centre + (pick - head.brain_centre) * share) - head.middle_voxel) * head.voxel_size_mm

    def length(count: int, low: float, high: float) -> Tensor:
        return low * (high / low) ** torch.rand((n, count, 3), generator=generator)

    if "tumour" in pathology:
        where = inside(1, 0.6)
        centres.append(where.repeat(1, 5, 1) + torch.tensor([0.0, 1, 1, 1, 1])[:, None] * 7.0
                       * torch.randn((n, 5, 3), generator=generator))  # fmt: skip
        radii.append(torch.cat([length(1, 12.0, 20.0), length(4, 1.2, 3.5)], 1))
        names += ["tumour", "microbleed", "microbleed", "calcification", "calcification"]
    if "calcification" in pathology:
        centres.append(inside(4, 0.75))
        radii.append(length(4, 1.2, 4.0))
        names += ["calcification"] * 4
    if "microbleeds" in pathology:
        centres.append(inside(8, 0.85))
        radii.append(length(8, 0.8, 2.5))
        names += ["microbleed"] * 8
    tissue = torch.tensor([NAMES.index(name) for name in names], dtype=torch.long)
    if not names:
        return Ellipsoids(torch.zeros(n, 0, 3), torch.zeros(n, 0, 3, 3)), tissue
    rotations = random_rotations(generator, n, len(names))
    return Ellipsoids.from_radii(torch.cat(centres, 1), torch.cat(radii, 1), rotations), tissue


def ellipsoids_in_grid(parameters: VolumeParameters, bodies: Ellipsoids) -> Ellipsoids:
    """Ellipsoids of the head where a deformed grid shows them: moved, and strained as the head is at their centres."""
    n, count = bodies.centres.shape[:2]
    if not count:
        return bodies
    step = 2.0  # [mm]
    probes = torch.cat([torch.zeros(1, 3), step * torch.eye(3), -step * torch.eye(3)]).to(bodies.centres)
    points = (bodies.centres[:, :, None] + probes).reshape(n, -1, 3).mT
    seen = head_to_grid(parameters, points).mT.reshape(n, count, 7, 3)
    columns = ((seen[:, :, 1:4] - seen[:, :, 4:7]) / (2 * step)).mT  # d grid / d head
    return Ellipsoids(seen[:, :, 0], bodies.shapes @ torch.linalg.inv(columns))


def tubes_in_grid(parameters: VolumeParameters, bodies: Tubes) -> Tubes:
    """Tubes of the head where a deformed grid shows them; their radii stay."""
    points = torch.cat([bodies.starts, bodies.ends], 1).mT
    starts, ends = head_to_grid(parameters, points).mT.split(len(bodies), 1)
    return Tubes(starts, ends, bodies.radii)
