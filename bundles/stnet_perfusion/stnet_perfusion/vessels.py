"""Large arteries and veins of the head as chains of tubes at MNI positions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from physics.phantoms import Tubes
from shared_transforms.anatomy import Head, VolumeParameters, head_to_grid, mni_to_head

Point = tuple[float, float, float]
Course = tuple[tuple[float, float], tuple[Point, ...]]
"""First and last diameter [mm], then nodes (MNI, mm)."""

# Both sides; the nodes are those of the right one. Courses follow the cisterns and sulci of the template.
ARTERIES: tuple[Course, ...] = (
    ((4.2, 3.6), ((20, -2, -38), (17, 2, -30), (13, 4, -24), (16, 5, -15))),  # internal carotid, from the siphon on
    ((3.2, 2.7), ((16, 5, -15), (25, 6, -15), (33, 4, -14), (39, 3, -11))),  # M1
    ((2.5, 2.1), ((39, 3, -11), (39, 11, -3), (39, 15, 5), (43, 17, 12), (51, 15, 16))),  # M2, frontal
    ((2.6, 2.1), ((39, 3, -11), (40, 1, -3), (39, -1, 8), (39, -3, 17), (47, -5, 20))),  # M2, central
    ((2.6, 2.1), ((39, 3, -11), (42, -7, -5), (40, -15, 4), (38, -24, 14), (46, -32, 21), (54, -40, 25))),  # M2, back
    ((2.3, 2.0), ((42, -7, -5), (51, -16, -8), (57, -30, -4), (57, -44, 4))),  # temporal branch
    ((2.4, 2.3), ((16, 5, -15), (9, 10, -16), (2.5, 16, -13))),  # A1
    ((2.5, 2.1), ((2.5, 16, -13), (2.5, 27, -8), (2.5, 36, 2), (2.5, 36, 13), (2.5, 27, 25), (2.5, 10, 32),
                  (2.5, -10, 34), (2.5, -28, 33))),  # A2 and pericallosal
    ((2.1, 2.0), ((2.5, 36, 8), (3, 46, 20), (3, 40, 34), (4, 24, 44), (4, 6, 50))),  # callosomarginal
    ((2.6, 2.3), ((1, -16, -16), (8, -17, -15), (17, -24, -11), (20, -34, -6), (17, -45, -1))),  # P1, P2
    ((2.2, 2.0), ((17, -45, -1), (15, -57, 4), (12, -70, 6), (10, -82, 5))),  # calcarine
    ((2.2, 2.0), ((20, -34, -6), (30, -46, -13), (34, -62, -12))),  # temporo-occipital
)  # fmt: skip
BASILAR: Course = ((3.6, 3.2), ((0, -20, -52), (0, -16, -40), (0, -13, -28), (0, -15, -16)))

# The superior sagittal sinus runs on the inside of the template's midline outline, from the front to the confluence.
SAGITTAL_SINUS: tuple[Point, ...] = (
    (0, 70, 8), (0, 66, 22), (0, 58, 36), (0, 47, 48), (0, 35, 56), (0, 21, 63), (0, 2, 69), (0, -19, 72),
    (0, -43, 70), (0, -63, 60), (0, -78, 44), (0, -89, 28), (0, -96, 12), (0, -96, -2), (0, -94, -15),
)  # fmt: skip
STRAIGHT_SINUS: tuple[Point, ...] = ((0, -40, 5), (0, -55, 4), (0, -70, -1), (0, -84, -10), (0, -94, -15))
TRANSVERSE_SINUS: tuple[Point, ...] = ((0, -94, -15), (18, -92, -20), (38, -80, -26), (54, -60, -30), (58, -46, -36))
INTERNAL_CEREBRAL: tuple[Point, ...] = ((3, -6, 14), (2.5, -24, 14), (0, -40, 5))
SINUS_DIAMETER_MM = (6.5, 9.0)  # of the superior sagittal sinus at its end; at its front .75 of it


def draw_arteries(generator: torch.Generator, n: int, head: Head) -> Tubes:
    """Arteries of n heads, in head coordinates [mm]: courses and diameters differ between heads and sides.

    Args:
        generator: random stream on the CPU.
        n: number of heads.
        head: the head that they belong to.

    Returns:
        The tubes, on the CPU.
    """
    parts = []
    calibre = torch.exp(0.08 * torch.randn((n, 1), generator=generator))
    for (first, last), course in ARTERIES:
        for side in (1.0, -1.0):
            own = calibre * torch.exp(0.08 * torch.randn((n, 1), generator=generator))
            parts.append(_chain(generator, course, torch.linspace(first, last, len(course) - 1) * own, head, side))
    (first, last), course = BASILAR
    parts.append(_chain(generator, course, torch.linspace(first, last, len(course) - 1) * calibre, head))
    return joined(parts)


def draw_veins(generator: torch.Generator, n: int, head: Head) -> Tubes:
    """Sinuses and internal cerebral veins of n heads; arguments and result as `draw_arteries`."""
    low, high = SINUS_DIAMETER_MM
    main = low + (high - low) * torch.rand((n, 1), generator=generator)
    taper = torch.linspace(0.75, 1.0, len(SAGITTAL_SINUS) - 1)
    # Most people drain to the right: the left transverse sinus is often thin.
    share = 0.3 + 0.5 * torch.rand((n, 1), generator=generator)
    parts = [
        _chain(generator, SAGITTAL_SINUS, main * taper, head),
        _chain(generator, STRAIGHT_SINUS, main * torch.full((4,), 0.55), head),
        _chain(generator, TRANSVERSE_SINUS, main * share.sqrt() * torch.ones(4), head),
        _chain(generator, TRANSVERSE_SINUS, main * (1.0 - share).sqrt() * torch.ones(4), head, -1.0),
        *(_chain(generator, INTERNAL_CEREBRAL, main * torch.full((2,), 0.28), head, side) for side in (1.0, -1.0)),
    ]
    return joined(parts)


def _chain(
    generator: torch.Generator, course: Sequence[Point], diameters: Tensor, head: Head, side: float = 1.0
) -> Tubes:
    """Tubes along a course with jittered nodes; diameters ``[n, nodes - 1]``."""
    n, nodes = len(diameters), len(course)
    # The first node stays in its place, where another vessel goes on.
    whole = torch.randn((n, 1, 3), generator=generator).clamp(-2.0, 2.0)
    each = torch.randn((n, nodes, 3), generator=generator).clamp(-2.0, 2.0)
    jitter = (0.6 * whole + 0.6 * each) * (torch.arange(nodes) > 0)[:, None]
    path = mni_to_head(torch.tensor(course) * torch.tensor([side, 1.0, 1.0]) + jitter, head)
    return Tubes(path[:, :-1], path[:, 1:], diameters / 2.0)


def joined(parts: Sequence[Tubes]) -> Tubes:
    """All tubes of the parts, which belong to the same n heads."""
    return Tubes(*(torch.cat([getattr(part, name) for part in parts], 1) for name in ("starts", "ends", "radii")))


def tubes_in_grid(parameters: VolumeParameters, bodies: Tubes) -> Tubes:
    """Tubes of the head where a deformed grid shows them; their radii stay."""
    points = torch.cat([bodies.starts, bodies.ends], 1).mT
    starts, ends = head_to_grid(parameters, points).mT.split(len(bodies), 1)
    return Tubes(starts, ends, bodies.radii)
