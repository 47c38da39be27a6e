"""Augmentation of lesion patches: flips, small rotations and scales, blur; section 2.3 of the paper."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from math import radians

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["AugmentationDraw", "LesionAugmentation"]

_SIZES = 4  # groups of lesions of about one size in a batch


@dataclass(frozen=True, eq=False)
class AugmentationDraw:
    """What is done to N patches.

    Attributes:
        flip: axis that is mirrored (0 x, 1 y, 2 z), or -1 for none, int64 ``[N]``.
        scale: magnification ``[N]``.
        angles: rotations about x, y and z [rad], one after the other, ``[N, 3]``.
        sigma: standard deviations of the Gaussian blur along x, y and z [voxels], ``[N, 3]``.
    """

    flip: Tensor
    scale: Tensor
    angles: Tensor
    sigma: Tensor

    def select(self, rows: slice | Tensor) -> AugmentationDraw:
        """What is done to some of the patches."""
        return replace(self, **{field.name: getattr(self, field.name)[rows] for field in fields(self)})


class LesionAugmentation:
    """Mirrors, turns, magnifies and blurs whole batches of patches on their device.

    Rotations are in space, not in voxels: a voxel of 0.75 x 0.75 x 3 mm stays where it is in the head. Beyond the patch
    all is 0, as it is beyond the lesion. The blur's kernels reach int(4 sigma + .5) voxels.

    Args:
        voxel_size: of the patches (x, y, z) [mm].
        flip_share: share of the patches that are mirrored, along one axis each.
        scale: lowest and highest magnification.
        degrees: largest rotation about each axis [degrees].
        sigma_in_plane: lowest and highest blur along x and y [voxels].
        sigma_slice: lowest and highest blur along z [voxels].
    """

    def __init__(
        self,
        voxel_size: Sequence[float] = (0.75, 0.75, 3.0),
        flip_share: float = 0.5,
        scale: Sequence[float] = (0.95, 1.05),
        degrees: float = 5.0,
        sigma_in_plane: Sequence[float] = (0.1, 0.95),
        sigma_slice: Sequence[float] = (0.03, 0.3),
    ) -> None:
        if len(voxel_size) != 3 or min(voxel_size) <= 0:
            raise ValueError(f"voxel_size must be three positive lengths [mm], got {voxel_size}")
        if not 0 <= flip_share <= 1:
            raise ValueError(f"flip_share must be in [0, 1], got {flip_share}")
        for name, (low, high) in {"scale": scale, "sigma_in_plane": sigma_in_plane, "sigma_slice": sigma_slice}.items():
            if not 0 < low <= high:
                raise ValueError(f"{name} must be 0 < lowest <= highest, got {low} and {high}")
        self.voxel_size, self.flip_share, self.degrees = tuple(map(float, voxel_size)), flip_share, degrees
        self.scale, self.sigma = tuple(scale), (tuple(sigma_in_plane), tuple(sigma_in_plane), tuple(sigma_slice))

    def draw(self, generator: torch.Generator, n: int) -> AugmentationDraw:
        """All that is random for ``n`` patches."""
        uniform = torch.rand((n, 9), generator=generator)
        axis = (3 * uniform[:, 1]).long().clamp(max=2)
        low, high = torch.tensor([self.scale, *self.sigma]).T
        ranges = low + (high - low) * uniform[:, 2:6]
        return AugmentationDraw(
            flip=torch.where(uniform[:, 0] < self.flip_share, axis, -1),
            scale=ranges[:, 0],
            angles=radians(self.degrees) * (2 * uniform[:, 6:9] - 1),
            sigma=ranges[:, 1:4],
        )

    def apply(self, image: Tensor, drawn: AugmentationDraw) -> Tensor:
        """Patches as drawn.

        Args:
            image: patches ``[N, C, X, Y, Z]``.
            drawn: what is done to them.

        Returns:
            Patches ``[N, C, X, Y, Z]``, of the same kind on the same device.
        """
        return _blurred(self._moved(image, drawn), drawn.sigma.to(image))

    def _moved(self, image: Tensor, drawn: AugmentationDraw) -> Tensor:
        """Mirrored, turned and magnified about the voxel in the middle, by trilinear interpolation."""
        # Most of a patch is empty, and most lesions are small: those of one size have a small box in common.
        order = image.ne(0).any(1).flatten(1).sum(1).argsort()
        parts = zip(image[order].chunk(_SIZES), self._matrices(drawn.select(order.cpu())).chunk(_SIZES), strict=True)
        return torch.cat([_transformed(*part) for part in parts])[order.argsort()]

    def _matrices(self, drawn: AugmentationDraw) -> Tensor:
        """Matrices ``[N, 3, 3]`` that take a place, in voxels from the middle, to where it comes."""
        (cx, cy, cz), (sx, sy, sz) = drawn.angles.T.cos(), drawn.angles.T.sin()
        zero, one = torch.zeros_like(cx), torch.ones_like(cx)
        about_x = torch.stack([one, zero, zero, zero, cx, -sx, zero, sx, cx], 1).unflatten(1, (3, 3))
        about_y = torch.stack([cy, zero, sy, zero, one, zero, -sy, zero, cy], 1).unflatten(1, (3, 3))
        about_z = torch.stack([cz, -sz, zero, sz, cz, zero, zero, zero, one], 1).unflatten(1, (3, 3))
        mirror = torch.where(F.one_hot(drawn.flip + 1, 4)[:, 1:] > 0, -1.0, 1.0)
        step = torch.tensor(self.voxel_size)
        in_mm = about_z @ about_y @ about_x * (mirror * drawn.scale[:, None])[:, None]
        return in_mm * step / step[:, None]


def _transformed(image: Tensor, forward: Tensor) -> Tensor:
    """Patches ``[N, C, X, Y, Z]`` moved by matrices ``[N, 3, 3]``, about the voxel in the middle."""
    result, occupied = torch.zeros_like(image), image.ne(0).any(1).any(0)
    if not occupied.any():
        return result
    size = torch.tensor(image.shape[2:])
    middle = size // 2
    # Only the box that anything can reach is computed.
    ends = torch.stack([_ends(occupied, axis) for axis in range(3)], 1) - middle  # [2, 3]
    reached = torch.cartesian_prod(*ends.float().T) @ forward.transpose(1, 2) + middle  # [N, 8, 3]
    first = (reached.amin((0, 1)).floor().long() - 1).clamp(min=0)
    last = torch.minimum(reached.amax((0, 1)).ceil().long() + 1, size - 1)
    if (first > last).any():  # all of it left the patch
        return result
    box = [slice(int(a), int(b) + 1) for a, b in zip(first, last, strict=True)]
    places = torch.cartesian_prod(*(torch.arange(s.start, s.stop) for s in box)) - middle
    backward = torch.linalg.inv(forward).transpose(1, 2).to(image)
    # grid_sample counts from -1 to 1 between the patch's faces, z first.
    grid = (2 * (places.to(image) @ backward + middle.to(image)) + 1) / size.to(image) - 1
    grid = grid.flip(-1).reshape(len(image), *(s.stop - s.start for s in box), 3)
    result[:, :, *box] = F.grid_sample(image, grid, padding_mode="zeros", align_corners=False)
    return result


def _ends(occupied: Tensor, axis: int) -> Tensor:
    """First and last place along an axis where there is something."""
    there = occupied.movedim(axis, 0).flatten(1).any(1).nonzero()
    return torch.stack([there[0, 0], there[-1, 0]]).cpu()


def _blurred(image: Tensor, sigma: Tensor) -> Tensor:
    """Gaussian blur of each patch with its own standard deviations ``[N, 3]`` [voxels]."""
    x, y, z = (_kernels(side, sigma[:, axis]) for axis, side in enumerate(image.shape[2:]))
    n, _, *sides = image.shape
    along_z = torch.bmm(image.reshape(n, -1, sides[2]), z).reshape(image.shape)
    along_y = torch.matmul(y[:, None, None], along_z)
    return torch.matmul(x[:, None], along_y.flatten(3)).reshape(image.shape)


def _kernels(side: int, sigma: Tensor) -> Tensor:
    """Convolutions ``[N, side, side]`` as matrices, for standard deviations ``[N]``; 0 comes in from outside."""
    # The sum of a kernel counts also what lies beyond the patch.
    reach = (4 * sigma + 0.5).floor()
    away = torch.arange(-side + 1, side, device=sigma.device, dtype=sigma.dtype)
    weight = torch.exp(-0.5 * (away / sigma[:, None]) ** 2) * (away.abs() <= reach[:, None])
    weight = weight / weight.sum(1, keepdim=True)
    place = torch.arange(side, device=sigma.device)
    return weight[:, side - 1 + place - place[:, None]]
