"""What the brain template lacks: CSF film, skull, marrow, muscle, fat, skin, a face, and vessels."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from shared_transforms.anatomy.fields import spline_weights

_PAD = 20  # voxels of 2 mm below the template, where the brain stem goes on
_SLAB = 12  # sagittal planes worked on together: they stay in the processor's cache


@dataclass(frozen=True)
class _Place:
    """A slab of the head [mm]: MNI x [S, 1, 1], y [1, Y, 1], z [1, 1, Z] and depth [S, Y, Z] outside the brain."""

    x: Tensor
    y: Tensor
    z: Tensor
    depth: Tensor


def add_shells(gm: Tensor, wm: Tensor, mask: Tensor, seed: int) -> Tensor:
    """Surround a brain with the rest of a head.

    Layers lie along the distance from the cavity of the brain, with smoothly varying thickness; a face and a neck give
    the lower head its outline. Boundaries are one voxel wide, the partial volume of a slanted surface.

    Args:
        gm: [X, Y, Z] grey matter fraction, 1 mm, in MNI152 position (voxel 0 at (-98, -134, -72) mm).
        wm: [X, Y, Z] white matter fraction.
        mask: [X, Y, Z] bool, the brain with its CSF.
        seed: of thicknesses and vessels.

    Returns:
        Fractions [9, X, Y, Z]: csf, gm, wm, fat, muscle, muscle_skin, skull, vessels, marrow.
    """
    shape = (int(mask.shape[0]), int(mask.shape[1]), int(mask.shape[2]))
    x, y, z = (
        (torch.arange(shape[k], dtype=torch.float32) - origin).view([-1 if i == k else 1 for i in range(3)])
        for k, origin in enumerate((98, 134, 72))
    )
    depth = _distance(mask)
    noise = _Noise(seed, shape)
    fractions = torch.empty(9, *shape)
    for first in range(0, shape[0], _SLAB):
        slab = slice(first, first + _SLAB)
        place = _Place(x[slab], y, z, depth[slab])
        fractions[:, slab] = _fill(gm[slab], wm[slab], place, noise.of(slab))
    return fractions


# Smooth random fields that vary the layers, and the spacing [mm] of their control points.
_SPACING_MM = {
    "film": 40.0,
    "inner": 30.0,
    "diploe": 35.0,
    "outer": 30.0,
    "muscle": 25.0,
    "fat": 30.0,
    "skin": 20.0,
    "streaks": 9.0,
    "bone": 14.0,
    "vessel": 17.0,
    "vessel_2": 17.0,
}


class _Noise:
    """Smooth random fields of standard deviation about 1, cubic B-splines."""

    def __init__(self, seed: int, shape: tuple[int, int, int]) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.fields = {}
        for name, spacing in _SPACING_MM.items():
            counts = [int((length - 1) / spacing) + 5 for length in shape]
            # A cubic spline keeps about a third of the standard deviation of its control values.
            controls = 3.0 * torch.randn(counts[0], counts[1], counts[2], generator=generator)
            weights = [spline_weights(1.0 + torch.arange(n) / spacing, m) for n, m in zip(shape, counts, strict=True)]
            self.fields[name] = (controls, weights)

    def of(self, slab: slice) -> dict[str, Tensor]:
        """Each field [S, Y, Z] in a slab."""
        fields = {}
        for name, (controls, (along_x, along_y, along_z)) in self.fields.items():
            field = torch.tensordot(along_x[slab], controls, dims=1)
            fields[name] = along_y @ field @ along_z.T
        return fields


def _fill(gm: Tensor, wm: Tensor, place: _Place, noise: dict[str, Tensor]) -> Tensor:
    """Fractions [9, S, Y, Z] in a slab: everything that grey and white matter leave is shared among the layers."""
    film, inner, diploe, outer = _tables(place, noise)
    skin = (2.0 + 0.3 * noise["skin"]).clamp_(1.4, 2.8)
    fat = (2.8 + 1.2 * noise["fat"]).clamp_(1.0, 6.0) + skin
    outside = _outline(place.depth - (outer + _muscle(place, noise["muscle"]) + fat), place)

    cavity, tables = _within(place.depth, film), _within(place.depth, outer)
    marrow = _within(place.depth, diploe) - _within(place.depth, inner)
    head, under_skin, deep = _within(outside, torch.zeros(())), _within(outside, -skin), _within(outside, -fat)
    air, bone, orbit, globe = _face(place, noise["bone"])
    streaks = torch.sigmoid(8 * (noise["streaks"] - 0.9))  # fat between the muscles
    rest = 1 - gm - wm
    soft = (1 - tables) * rest
    flesh = soft * deep * (1 - air)
    vessel = flesh * globe
    flesh -= vessel
    facial_bone = flesh * bone
    flesh -= facial_bone
    deep_fat = flesh * torch.maximum(streaks, orbit)

    fractions = torch.stack(
        [
            cavity * rest,
            gm,
            wm,
            deep_fat + soft * (under_skin - deep),
            flesh - deep_fat,
            soft * (head - under_skin),
            (tables - cavity - marrow).clamp_min(0) * rest + 0.75 * facial_bone,
            vessel,
            marrow * rest + 0.25 * facial_bone,
        ]
    )
    blood = _vessels(place, outer, noise) * fractions.sum(0)
    fractions *= 1 - blood
    fractions[7] += blood
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
    smooth = torch.from_numpy(gaussian_filter(signed.astype(np.float32), 1.5)[:, :, _PAD:])
    return F.interpolate(smooth[None, None], size=mask.shape, mode="trilinear", align_corners=True)[0, 0]


def _tables(place: _Place, noise: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Depths [mm] where CSF film, inner table, diploe and outer table of the skull end."""
    film = (2.2 + 0.7 * noise["film"]).clamp_(1.0, 4.0)
    inner = film + (2.0 + 0.4 * noise["inner"]).clamp_(1.2, 3.0)
    # Diploe: thick above, none at the temples and at the base.
    presence = ((place.z + 30) / 40).clamp(0, 1) * ((place.z - 0.5 * place.x.abs() + 45) / 40).clamp(0, 1)
    diploe = inner + (3.2 + 1.3 * noise["diploe"]).clamp_(0.0, 7.0) * presence
    return film, inner, diploe, diploe + (1.8 + 0.4 * noise["outer"]).clamp_(1.0, 3.0)


def _muscle(place: _Place, noise: Tensor) -> Tensor:
    """Thickness [mm] of the muscle outside the skull: temporal muscle, nape, elsewhere the thin epicranium."""
    x, y, z = place.x, place.y, place.z
    temple = torch.exp(-(((x.abs() - 72) / 22) ** 2)) * torch.exp(-((y - 8) ** 2 + (z + 18) ** 2) / 28**2)
    nape = torch.exp(-((x.abs() / 55) ** 4)) * torch.exp(-(((y + 95) / 40) ** 2)) * ((-z - 12) / 20).clamp(0, 1)
    return (1.0 + 11.0 * temple + 12.0 * nape + 0.6 * noise).clamp_(0.5, 16.0)


def _ellipsoid(place: _Place, centre: tuple[float, float, float], radii: tuple[float, float, float]) -> Tensor:
    """Distance from the centre [mm] in units of the radii; off the midline one ellipsoid on each side."""
    x = place.x.abs() if centre[0] else place.x
    (a, b, c), (p, q, r) = centre, radii
    return torch.sqrt(((x - a) / p) ** 2 + ((place.y - b) / q) ** 2 + ((place.z - c) / r) ** 2)


def _outline(shell: Tensor, place: _Place) -> Tensor:
    """Distance [mm] from the skin, negative inside: the shell around the brain joined with a face and a neck."""
    face = (_ellipsoid(place, (0, 22, -62), (66, 70, 62)) - 1) * 64
    nose = (_ellipsoid(place, (0, 84, -58), (15, 22, 26)) - 1) * 16
    neck = (torch.sqrt((place.x / 62) ** 2 + ((place.y + 32) / 62) ** 2) - 1) * 62 + (place.z + 45).clamp_min(0)
    below = torch.minimum(torch.minimum(face, neck), nose)
    # A rounded union: no sharp edge where the face meets the forehead.
    return -6.0 * torch.logaddexp(-shell / 6.0, -below / 6.0)


def _face(place: _Place, texture: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Air of nose, sinuses and throat, facial bone, orbits and eyeballs: fractions [S, Y, Z] of the deep tissue."""
    sinus = _ellipsoid(place, (22, 48, -60), (12, 15, 13))
    nose = _ellipsoid(place, (0, 56, -54), (9, 24, 17))
    throat = torch.sqrt((place.x / 11) ** 2 + ((place.y - 24) / 7) ** 2) + ((place.z + 52) / 10).clamp_min(0)
    hollow = torch.minimum(torch.minimum(sinus, nose), throat)
    orbit = _ellipsoid(place, (31, 58, -36), (18, 27, 17))
    globe = torch.sigmoid(14 * (1 - _ellipsoid(place, (31, 66, -36), (12, 12, 12))))
    walls = torch.sigmoid(14 * (1.2 - hollow)) + torch.sigmoid(14 * (1.14 - orbit)) * torch.sigmoid(14 * (orbit - 1))
    patches = (
        torch.sigmoid(8 * (texture - 0.5)) * torch.sigmoid((place.y - 12) / 3) * torch.sigmoid((-32 - place.z) / 2)
    )
    in_orbit = torch.sigmoid(14 * (1 - orbit))
    bone = torch.maximum(walls.clamp(0, 1), patches * (1 - in_orbit))
    return torch.sigmoid(14 * (1 - hollow)), bone, in_orbit, globe


def _vessels(place: _Place, outer: Tensor, noise: dict[str, Tensor]) -> Tensor:
    """Fraction [S, Y, Z] of blood: the venous sinuses, and tubes where two random fields vanish together."""
    x, y, z = place.x, place.y, place.z
    wall = (place.depth - 1.0) ** 2
    sagittal = torch.where((z > -14) & ((z > 25) | (y < -50)), torch.sqrt(x**2 + wall), 99.0)
    transverse = torch.where((y < -45) & (x.abs() < 55), torch.sqrt((z + 20 - 0.1 * x.abs()) ** 2 + wall), 99.0)
    sinus = _within(torch.minimum(sagittal, transverse), torch.tensor(3.2))
    tube = _within(12.0 * torch.sqrt(noise["vessel"] ** 2 + noise["vessel_2"] ** 2), torch.tensor(1.1))
    # Wide enough to see: near the surface of the brain, and in the soft tissue outside the skull.
    near = ((place.depth > -9) & (place.depth < 2)) | (place.depth > outer + 1)
    return torch.maximum(sinus, tube * near)
