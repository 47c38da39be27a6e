"""What the brain template lacks: CSF film, skull, marrow, muscle, fat, skin, a face, and vessels."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .fields import spline_weights

_PAD = 20  # voxels of 2 mm below the template, where the brain stem goes on


def add_shells(gm: Tensor, wm: Tensor, mask: Tensor, seed: int) -> Tensor:
    """Surround a brain with the rest of a head.

    Layers lie along the distance d from the cavity of the brain, with smoothly varying thickness; a face and a neck give the
    lower head its outline. Boundaries are one voxel wide, the partial volume of a slanted surface.

    Args:
        gm: [X, Y, Z] grey matter fraction, 1 mm, in MNI152 position (voxel 0 at (-98, -134, -72) mm).
        wm: [X, Y, Z] white matter fraction.
        mask: [X, Y, Z] bool, the brain with its CSF.
        seed: of thicknesses and vessels.

    Returns:
        Fractions [9, X, Y, Z], channels as `TISSUES`.
    """
    generator = torch.Generator().manual_seed(seed)
    shape = (int(mask.shape[0]), int(mask.shape[1]), int(mask.shape[2]))
    x, y, z = (
        (torch.arange(shape[k], dtype=torch.float32) - origin).view([-1 if i == k else 1 for i in range(3)])
        for k, origin in enumerate((98, 134, 72))
    )
    depth = _distance(mask)

    def noise(spacing: float) -> Tensor:
        return _field(generator, shape, spacing)

    film = (2.2 + 0.7 * noise(40.0)).clamp_(1.0, 4.0)
    inner = film + (2.0 + 0.4 * noise(30.0)).clamp_(1.2, 3.0)
    # Diploe: thick at the top and the back, none at the temples and below.
    presence = ((z + 30) / 40).clamp(0, 1) * ((z - 0.5 * x.abs() + 45) / 40).clamp(0, 1)
    diploe = inner + ((3.2 + 1.3 * noise(35.0)) * presence).clamp_(0, 7)
    outer = diploe + (1.8 + 0.4 * noise(30.0)).clamp_(1.0, 3.0)
    temple = torch.exp(-(((x.abs() - 72) / 22) ** 2) - ((y - 8) / 28) ** 2 - ((z + 18) / 28) ** 2)
    nape = torch.exp(-((x.abs() / 55) ** 4) - ((y + 95) / 40) ** 2) * ((-z - 12) / 20).clamp(0, 1)
    muscle = (1.0 + 11.0 * temple + 12.0 * nape + 0.6 * noise(25.0)).clamp_(0.5, 16)
    fat = (2.8 + 1.2 * noise(30.0)).clamp_(1.0, 6.0)
    skin = (2.0 + 0.3 * noise(20.0)).clamp_(1.4, 2.8)
    outside = _outline(depth - (outer + muscle + fat + skin), x, y, z)

    cavity, tables = _within(depth, film), _within(depth, outer)
    marrow = _within(depth, diploe) - _within(depth, inner)
    soft = 1 - tables
    deep = _within(outside, -(skin + fat))
    under_skin = _within(outside, -skin)
    rest = 1 - gm - wm

    streaks = torch.sigmoid(8 * (noise(9.0) - 0.9)) * deep  # fat between the muscles
    air, bone, orbit = _face(x, y, z, noise(14.0))
    deep = deep * (1 - air)
    fractions = torch.zeros(9, *shape)
    fractions[0] = cavity * rest
    fractions[1] = gm
    fractions[2] = wm
    fractions[8] = marrow * rest
    fractions[6] = (tables - cavity - marrow).clamp_min(0) * rest + soft * deep * bone * rest
    flesh = soft * deep * (1 - bone) * rest
    fat_part = torch.maximum(streaks, orbit)
    fractions[3] = flesh * fat_part + soft * (under_skin - _within(outside, -(skin + fat))) * rest
    fractions[4] = flesh * (1 - fat_part)
    fractions[5] = soft * (_within(outside, torch.zeros(())) - under_skin) * rest
    vessel = _vessels(depth, outer, x, y, z, noise(17.0), noise(17.0)) * fractions.sum(0)
    fractions *= 1 - vessel
    fractions[7] = vessel
    return fractions.clamp_(0.0, 1.0)


def _within(distance: Tensor, boundary: Tensor) -> Tensor:
    """Part of a voxel of 1 mm that lies below a boundary."""
    return (boundary - distance + 0.5).clamp_(0.0, 1.0)


def _distance(mask: Tensor) -> Tensor:
    """Signed distance [mm] from the closed, smoothed surface of the brain, negative inside; made at 2 mm for speed."""
    from scipy.ndimage import distance_transform_edt, gaussian_filter

    coarse = np.pad(mask[::2, ::2, ::2].numpy(), ((0, 0), (0, 0), (_PAD, 0)), mode="edge")
    grown = distance_transform_edt(~coarse) < 6  # closing by 12 mm bridges fissures and cisterns
    cavity = (distance_transform_edt(grown) >= 6) | coarse
    signed = (distance_transform_edt(~cavity) - distance_transform_edt(cavity)) * 2.0
    signed = gaussian_filter(signed.astype(np.float32), 1.5)[:, :, _PAD:]
    return F.interpolate(torch.from_numpy(signed)[None, None], size=mask.shape, mode="trilinear", align_corners=True)[
        0, 0
    ]


def _field(generator: torch.Generator, shape: tuple[int, int, int], spacing: float) -> Tensor:
    """Smooth random field [X, Y, Z] of standard deviation about 1: normal values on a B-spline grid [mm]."""
    counts = [int((length - 1) / spacing) + 5 for length in shape]
    field = torch.randn(counts[0], counts[1], counts[2], generator=generator) * 3.0  # a spline keeps a third of the SD
    for length, count in zip(shape, counts, strict=True):
        weights = spline_weights(1.0 + torch.arange(length) / spacing, count)
        field = torch.tensordot(
            field, weights, dims=([0], [1])
        )  # the new axis goes last: three turns restore the order
    return field


def _outline(shell: Tensor, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    """Distance [mm] from the skin, negative inside: the shell around the brain joined with a face and a neck."""
    face = (torch.sqrt((x / 66) ** 2 + ((y - 22) / 70) ** 2 + ((z + 62) / 62) ** 2) - 1) * 64
    nose = (torch.sqrt((x / 15) ** 2 + ((y - 84) / 22) ** 2 + ((z + 58) / 26) ** 2) - 1) * 16
    neck = (torch.sqrt((x / 62) ** 2 + ((y + 32) / 62) ** 2) - 1) * 62 + (z + 45).clamp_min(0)
    below = torch.minimum(torch.minimum(face, neck), nose)
    # A rounded union: no sharp edge where the face meets the forehead.
    return -6.0 * torch.logaddexp(-shell / 6.0, -below / 6.0)


def _face(x: Tensor, y: Tensor, z: Tensor, texture: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Air of nose and sinuses, facial bone, orbital fat: fractions [X, Y, Z] of the deep tissue."""
    cheek = torch.sqrt(((x.abs() - 22) / 13) ** 2 + ((y - 45) / 16) ** 2 + ((z + 58) / 15) ** 2)
    throat = torch.sqrt((x / 9) ** 2 + ((y - 30) / 45) ** 2 + ((z + 50) / 18) ** 2)
    orbit = torch.sqrt(((x.abs() - 32) / 17) ** 2 + ((y - 58) / 26) ** 2 + ((z + 38) / 17) ** 2)
    hollow = torch.minimum(cheek, throat)
    air = torch.sigmoid(14 * (1 - hollow))
    walls = torch.sigmoid(14 * (1.18 - hollow)) + torch.sigmoid(14 * (1.12 - orbit)) * torch.sigmoid(
        14 * (orbit - 0.98)
    )
    jaw = torch.sigmoid(8 * (texture - 0.6)) * (y > 10) * (z < -30)
    return air, torch.maximum(walls.clamp(0, 1), jaw), torch.sigmoid(14 * (1 - orbit))


def _vessels(depth: Tensor, outer: Tensor, x: Tensor, y: Tensor, z: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Fraction [X, Y, Z] of blood: the sagittal and transverse sinuses, and tubes where two random fields vanish together."""
    wall = (depth - 1.0) ** 2
    sagittal = torch.sqrt(x**2 + wall)
    sagittal = torch.where((z > -14) & ((z > 25) | (y < -50)), sagittal, 99.0)
    transverse = torch.where((y < -45) & (x.abs() < 55), torch.sqrt((z + 20 - 0.1 * x.abs()) ** 2 + wall), 99.0)
    sinus = _within(torch.minimum(sagittal, transverse), torch.tensor(3.2))
    tube = _within(12.0 * torch.sqrt(first**2 + second**2), torch.tensor(1.1))
    # Wide enough to see: near the surface of the brain and in the soft tissue outside the skull.
    tube = tube * (((depth > -9) & (depth < 2)) | (depth > outer + 1))
    return torch.maximum(sinus, tube)
