"""Simulated susceptibility mapping: whole heads and phantoms, their local fields and magnitudes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from physics.dipole import check_geometry, field_from_susceptibility
from physics.phantoms import Ellipsoids, Tubes, paint
from shared_transforms.anatomy import (
    TISSUES,
    Head,
    VolumeParameters,
    draw_volumes,
    load_head,
    sample_volumes,
    smooth_volume,
)

from .anatomy import Anatomy, draw_anatomy, ellipsoids_in_grid, tubes_in_grid
from .measurement import Measurement, background_remainder, draw_measurement, field_noise, relative_magnitude
from .phantom import ELLIPSOIDS, Phantom, draw_phantoms
from .start import CHANNELS, demeaned, network_input
from .tissues import NAMES, TEXTURE, draw_tissues

PADDING = 2.0  # of the grid on which the field is computed
DEPTH_MM = 10.0  # depth below and height above the brain's surface that the sampled head knows
_SAMPLED = ("csf", "gm", "wm", "vessels", "skull")  # then all other tissues as one, then the depth
Bodies = TypeVar("Bodies", Ellipsoids, Tubes)
_BRAIN = tuple(NAMES.index(name) for name in ("csf", "grey matter", "white matter", "vein"))


@dataclass(frozen=True)
class Draw:
    """Everything random about n samples; replace parts of it to see one head in other ways.

    Attributes:
        volumes: deformation of the heads, size, voxel size and rotation of the grid.
        anatomy: their deep nuclei, veins and lesions.
        tissues: chi [ppm], R2* [1/s] and signal of every tissue ``[n, tissues, 3]``.
        phantoms: bodies that replace the head where ``is_phantom`` is true.
        is_phantom: ``[n]``.
        texture: smooth variation within tissue, and that from voxel to voxel, of white matter ``[n, 2]`` [ppm].
        roughness: of the surface of nuclei and lesions ``[n]`` [mm].
        margin: distance ``[n]`` [mm] by which the mask is larger than the brain; negative if smaller.
        leak: share ``[n]`` of the field of the brain outside of the mask that is left in the field.
        measurement: noise, magnitude, remainder of the background.
        b0_direction: unit vector in voxel axes.
        seed: of the texture.
    """

    volumes: VolumeParameters
    anatomy: Anatomy
    tissues: Tensor
    phantoms: Phantom
    is_phantom: Tensor
    texture: Tensor
    roughness: Tensor
    margin: Tensor
    leak: Tensor
    measurement: Measurement
    b0_direction: tuple[float, float, float]
    seed: int


@dataclass
class SusceptibilitySimulator:
    """Draws and simulates whole volumes: local field, starting map, magnitude, and the true susceptibility.

    The defaults are the distribution of the training, in its frame: cubic voxels of 1 mm, B0 along z.

    Attributes:
        device: where the simulation runs.
        size: (X, Y, Z) [voxels].
        voxel_size: (dx, dy, dz) [mm].
        b0_direction: unit vector in voxel axes.
        noise_ppm: lowest and highest noise of the field where the magnitude has its mean, log-uniform [ppm]; one value
            twice fixes it, (0, 0) is none.
        phantom_share: share of samples that are phantoms instead of heads.
        magnitude_share: share of samples that show their magnitude.
        channels: of ``image``, see :data:`.start.CHANNELS`.
        head_scale: smallest and largest head relative to the template.
        margin_mm: range by which the mask is larger (> 0) or smaller than the brain, uniform [mm].
        leak: largest share of the field of the brain outside of the mask that is left in the field; none is left in
            half of the samples.
        remainder: factor of the smooth background that is left in the field; 0 is none.
        texture: factor of the variation within tissues; 0 is none.
        pathology: some of :data:`.anatomy.PATHOLOGIES`; not for training.
        grid_rotation: rotation matrix ``[3, 3]`` of the grid against the head.
        anatomy: ``source`` and ``folder`` of :func:`shared_transforms.anatomy.load_head`.
    """

    device: Any = "cpu"
    size: Sequence[int] = (128, 128, 128)
    voxel_size: Sequence[float] = (1.0, 1.0, 1.0)
    b0_direction: Sequence[float] = (0.0, 0.0, 1.0)
    noise_ppm: Sequence[float] = (0.0007, 0.007)
    phantom_share: float = 0.5
    magnitude_share: float = 0.7
    channels: Sequence[str] = CHANNELS
    head_scale: Sequence[float] = (0.7, 1.0)
    margin_mm: Sequence[float] = (-3.0, 0.0)
    leak: float = 0.2
    remainder: float = 1.0
    texture: float = 1.0
    pathology: Sequence[str] = ()
    grid_rotation: Tensor | None = None
    anatomy: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.device = torch.device(self.device)
        self.voxel_size, self.b0_direction = check_geometry(self.voxel_size, self.b0_direction)
        low, high = self.noise_ppm
        if not 0 <= low <= high or (low == 0) != (high == 0):
            raise ValueError(f"noise_ppm must be 0 < low <= high, or (0, 0), got {tuple(self.noise_ppm)}")
        if unknown := set(self.channels) - set(CHANNELS):
            raise ValueError(f"channels must be among {CHANNELS}, got {sorted(unknown)}")
        self.head = load_head(**self.anatomy)
        self._sampled = _sampled_head(self.head).to(self.device)

    def draw(self, generator: torch.Generator, n: int, split: str = "train") -> Draw:
        """Draw n samples.

        Args:
            generator: random stream on the CPU.
            n: number of samples.
            split: ``"train"``, ``"val"`` or ``"test"``.

        Returns:
            The parameters, on the CPU.
        """
        volumes = draw_volumes(
            generator,
            n,
            self.size,
            self.voxel_size,
            split,
            head=self.head,
            head_scale=(self.head_scale[0], self.head_scale[1]),
            grid_rotation=self.grid_rotation,
        )
        extent = [count * step for count, step in zip(volumes.size, volumes.voxel_mm, strict=True)]

        def uniform(*shape: int) -> Tensor:
            return torch.rand(shape, generator=generator)

        low, high = self.margin_mm
        return Draw(
            volumes=volumes,
            anatomy=draw_anatomy(generator, n, self.head, self.pathology),
            tissues=draw_tissues(generator, n),
            phantoms=draw_phantoms(generator, n, (extent[0], extent[1], extent[2])),
            is_phantom=uniform(n) < self.phantom_share,
            texture=self.texture * torch.tensor([0.012, 0.006]) * (0.3 + 0.7 * uniform(n, 2)),
            roughness=0.3 + 0.5 * uniform(n),
            margin=low + (high - low) * uniform(n),
            leak=self.leak * (2.0 * uniform(n) - 1.0).clamp_min(0.0),
            measurement=draw_measurement(
                generator, n, (self.noise_ppm[0], self.noise_ppm[1]), self.remainder, self.magnitude_share
            ),
            b0_direction=(self.b0_direction[0], self.b0_direction[1], self.b0_direction[2]),
            seed=int(torch.randint(2**62, (1,), generator=generator)),
        )

    def simulate(self, drawn: Draw) -> dict[str, Any]:
        """Simulate the samples that belong to a draw.

        Args:
            drawn: parameters of n samples.

        Returns:
            ``image`` ``[n, C, X, Y, Z]``, the channels of :func:`.start.network_input`; ``label``, see
            :meth:`volumes`; ``acquisition``: ``voxel_size`` [mm] and ``b0_direction``.
        """
        label = self.volumes(drawn)
        field, mask, magnitude = (label[name][:, 0] for name in ("measured", "mask", "magnitude"))
        voxel_size, b0 = drawn.volumes.voxel_mm, drawn.b0_direction
        return {
            "image": network_input(field, mask, magnitude, voxel_size, b0, self.channels),
            "label": label,
            "acquisition": {"voxel_size": voxel_size, "b0_direction": b0},
        }

    def volumes(self, drawn: Draw) -> dict[str, Tensor]:
        """Truth and measurement of the samples that belong to a draw.

        Args:
            drawn: parameters of n samples.

        Returns:
            Volumes ``[n, 1, X, Y, Z]``: ``parameters``, the susceptibility [ppm] with mean 0 over the mask; ``mask``;
            ``brain``, the mask without its error; ``field`` of the susceptibility [ppm], without noise and background;
            ``measured``, the field with both; ``magnitude``, relative to its mean over the mask, 0 where it is not
            shown; ``sigma``, the noise of the field [ppm]; ``labels``, index plus 1 into :data:`.tissues.STRUCTURES`,
            0 in phantoms and outside of the mask.
        """
        voxel_size, b0 = drawn.volumes.voxel_mm, drawn.b0_direction
        generator = torch.Generator(self.device).manual_seed(drawn.seed)
        maps, labels, mask, brain = self._tissue(drawn, generator)
        chi = demeaned(maps[:, 0], mask)
        local = field_from_susceptibility(chi, voxel_size, b0, padding=PADDING) * mask
        outside = brain & ~mask & (drawn.leak > 0).to(mask.device).view(-1, 1, 1, 1)
        extra = torch.zeros_like(local)
        if bool(outside.any()):
            # Relative to the brain's mean: a region without contrast to the brain makes no field of its own.
            rest = (maps[:, 0] - _mean(maps[:, 0], mask)) * outside
            extra = field_from_susceptibility(rest, voxel_size, b0, padding=PADDING) * mask
            extra = extra * drawn.leak.to(extra).view(-1, 1, 1, 1)

        noise = torch.Generator(self.device).manual_seed(drawn.measurement.seed)
        clean, magnitude = relative_magnitude(drawn.measurement, maps[:, 1], maps[:, 2], mask, noise)
        sigma = field_noise(drawn.measurement, clean, mask)
        measured = local + extra + background_remainder(drawn.measurement, mask, voxel_size)
        measured = measured + sigma * torch.randn(sigma.shape, generator=noise, device=sigma.device)
        made = {
            "parameters": chi, "mask": mask, "brain": brain, "field": local, "measured": measured,
            "magnitude": magnitude, "sigma": sigma, "labels": labels,
        }  # fmt: skip
        return {name: values.unsqueeze(1) for name, values in made.items()}

    def _tissue(self, drawn: Draw, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """chi, R2* and signal ``[n, 3, X, Y, Z]``, labels, mask and true mask ``[n, X, Y, Z]``."""
        n, size = len(drawn.is_phantom), drawn.volumes.size
        maps = torch.zeros((n, 3, *size), device=self.device)
        labels = torch.zeros((n, *size), device=self.device, dtype=torch.uint8)
        mask = torch.zeros((n, *size), device=self.device, dtype=torch.bool)
        brain = mask.clone()
        for i in range(n):
            build = self._phantom if bool(drawn.is_phantom[i]) else self._head
            smooth = smooth_volume(generator, 2, size, 8.0 / min(drawn.volumes.voxel_mm))
            canvas, labels[i], mask[i], brain[i] = build(drawn, i, smooth[1])
            wide, fine = drawn.texture[i].tolist()
            white = torch.randn(size, generator=generator, device=self.device)
            canvas[0] += canvas[3] * (wide * smooth[0] + fine * white)
            maps[i] = canvas[:3]
        return maps, labels * mask, mask, brain

    def _head(self, drawn: Draw, i: int, smooth: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """One head: chi, R2*, signal, texture ``[4, X, Y, Z]``, labels, mask, true mask ``[X, Y, Z]``."""
        volumes = drawn.volumes.select(i).to(self.device)
        sampled = sample_volumes(self._sampled, volumes)[0]
        values = torch.cat([drawn.tissues[i], TEXTURE[:, None]], 1).to(self.device)
        base = _mixture(sampled, values)
        labels = sampled[:4].argmax(0).to(torch.uint8) + 1
        ventricles, fluid = sampled[0], labels == 1

        def painted(
            canvas: Tensor, bodies: Ellipsoids | Tubes, tissue: Tensor, roughness: Tensor | None = None
        ) -> Tensor:
            shown = (tissue + 1, labels[None])
            paint(canvas[None], bodies, values[tissue][None], volumes.voxel_mm, roughness, (shown[1], shown[0]))
            return canvas

        anatomy = drawn.anatomy
        nuclei = ellipsoids_in_grid(volumes, _one(anatomy.nuclei, i, self.device))
        rough = (float(drawn.roughness[i]) * smooth)[None, None]
        canvas = painted(base.clone(), nuclei, anatomy.nucleus_tissue, rough)
        # Nuclei end where the ventricles begin, wherever the two have been drawn.
        canvas = torch.lerp(canvas, base, ventricles)
        labels[fluid] = 1
        veins = tubes_in_grid(volumes, _one(anatomy.veins, i, self.device))
        canvas = painted(canvas, veins, torch.full((len(veins),), NAMES.index("vein")))
        lesions = ellipsoids_in_grid(volumes, _one(anatomy.lesions, i, self.device))
        canvas = painted(canvas, lesions, anatomy.lesion_tissue)
        # Lengths of the head are longer or shorter in the grid.
        height = (0.5 - sampled[-1]) * 2.0 * DEPTH_MM / float(volumes.scale.mean())
        # The closed surface bridges gaps that are full of bone: they belong to no brain.
        brain = (height < 0.0) & (sampled[:4].sum(0) > 0.5)
        margin = float(drawn.margin[i])
        mask = brain & (height < margin) if margin <= 0.0 else brain | (height < margin)
        return canvas, labels, mask, brain

    def _phantom(self, drawn: Draw, i: int, smooth: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """One phantom, as `_head`."""
        size, voxel_size, phantom = drawn.volumes.size, drawn.volumes.voxel_mm, drawn.phantoms
        values = phantom.values[i].to(self.device)
        values = torch.cat([values, torch.ones_like(values[:, :1])], 1)[None]
        canvas = torch.zeros((1, 4, *size), device=self.device)
        inside = torch.zeros((1, 1, *size), device=self.device)
        one = torch.ones(1, 1, 1, device=self.device)
        paint(inside, _one(phantom.outline, i, self.device), one, voxel_size, (2.0 * smooth)[None, None])
        canvas += values[:, 0].view(1, 4, 1, 1, 1)
        last = 1 + ELLIPSOIDS
        paint(canvas, _one(phantom.ellipsoids, i, self.device), values[:, 1:last], voxel_size)
        paint(canvas, _one(phantom.tubes, i, self.device), values[:, last:], voxel_size)
        mask = inside[0, 0] > 0.5
        return canvas[0], torch.zeros(size, device=self.device, dtype=torch.uint8), mask, mask


def _mixture(sampled: Tensor, values: Tensor) -> Tensor:
    """Values ``[4, X, Y, Z]`` of the fractions: of the brain's own where it fills half of a voxel, else of all.

    The brain's edge has no bone in it: what the skull adds to a voxel half filled has no signal, so no phase.
    """
    own, (bone, air, soft) = values[list(_BRAIN)], (values[NAMES.index(k)] for k in ("bone", "air", "soft"))
    parts = sampled.flatten(1)
    mixed = own.mT @ parts[:4]
    brain = parts[:4].sum(0)
    mixed /= brain.clamp_min(0.5)
    beyond = (brain <= 0.5).nonzero().squeeze(1)
    edge = parts[:6, beyond]
    empty = (1.0 - edge.sum(0)).clamp_min(0.0)
    mixed[:, beyond] = torch.cat([own, bone[None], soft[None]]).mT @ edge + air[:, None] * empty
    return mixed.unflatten(1, sampled.shape[1:])


@lru_cache(maxsize=2)
def _sampled_head(head: Head) -> Head:
    """What is sampled of a head: tissues of the brain, skull, all else, and the depth below the brain's surface.

    The surface is that of the brain with its fluid and vessels, closed over the fissures; the depth is coded in [0, 1],
    1/2 on the surface and 1 deep inside.
    """
    from scipy.ndimage import binary_closing, binary_fill_holes, distance_transform_edt, label

    tissue = {name: head.fractions[index] for index, name in enumerate(TISSUES)}
    brain = (tissue["csf"] + tissue["gm"] + tissue["wm"]) > 0.5
    step = max(1, round(2.0 / head.voxel_size_mm))
    coarse = F.avg_pool3d(brain[None, None].float(), step, ceil_mode=True)[0, 0].numpy() > 0.5
    size = step * head.voxel_size_mm
    closed = np.pad(coarse, 6)
    closed = binary_fill_holes(binary_closing(closed, iterations=max(1, round(5.0 / size))))
    parts, _ = label(closed)
    largest = (parts == np.bincount(parts[parts > 0]).argmax())[6:-6, 6:-6, 6:-6]
    height = (distance_transform_edt(~largest) - distance_transform_edt(largest)) * size
    height = torch.from_numpy(height.astype(np.float32))[None, None]
    depth = F.interpolate(height, size=tuple(s + (-s) % step for s in brain.shape), mode="trilinear")[0, 0]
    depth = depth[: brain.shape[0], : brain.shape[1], : brain.shape[2]]
    code = (0.5 - depth / (2.0 * DEPTH_MM)).clamp(0.0, 1.0)
    other = tissue["fat"] + tissue["muscle"] + tissue["muscle_skin"] + tissue["marrow"]
    channels = torch.stack([*(tissue[name] for name in _SAMPLED), other, code])
    # The channels of a voxel side by side in memory: sampling reads them together.
    packed = channels[None].contiguous(memory_format=torch.channels_last_3d)[0]
    return Head(packed, head.voxel_size_mm, head.name)


def _one(bodies: Bodies, i: int, device: torch.device) -> Bodies:
    """Bodies of one image, on a device."""
    return type(bodies)(*(getattr(bodies, item.name)[i : i + 1].to(device) for item in fields(bodies)))


def _mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over the mask, ``[n, 1, 1, 1]``."""
    count = mask.sum((1, 2, 3), keepdim=True).clamp_min(1)
    return (values * mask).sum((1, 2, 3), keepdim=True) / count
