"""Susceptibility of a whole volume with any voxels and any B0, by a network for patches of the training frame."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.inferers import Inferer
from torch import Tensor

from shared_transforms.errors import QMRIError
from shared_transforms.frames import Frame
from shared_transforms.inferers import AutocastInferer, ContextTileInferer
from shared_transforms.serving import takes_carried_arguments

from .network import Generator
from .start import network_input


class FrameInferer(Inferer):
    """Local field and magnitude to susceptibility on the grid they came on.

    They are brought to the training frame (isotropic voxels, B0 along the third axis; nothing is interpolated where
    they are like that but for the order and direction of the axes), there the classical starting map is made and the
    generator applied in overlapping tiles, and its map is brought back.

    Args:
        tile: largest side of the output of a tile [voxels of the frame], a multiple of 8; None takes all at once.
        context: voxels around a tile that the generator sees too, a multiple of 8.
        blend: voxels over which neighbouring tiles are mixed.
        tiles_at_once: tiles in a batch.
        sides: smallest and largest side of the isotropic voxels of the frame [mm]; voxels that are isotropic and in
            between are left as they are.
        tilt: angle between B0 and an axis up to which nothing is rotated [degrees].
        bfloat16: None computes in bfloat16 where the device has instructions for it; True and False decide.
        progress: show a progress bar.

    Raises:
        ValueError: if numbers do not fit each other.
    """

    def __init__(
        self,
        tile: int | None = 96,
        context: int = 24,
        blend: int = 16,
        tiles_at_once: int = 1,
        sides: Sequence[float] = (1.0, 1.0),
        tilt: float = 1.0,
        bfloat16: bool | None = None,
        progress: bool = True,
    ) -> None:
        super().__init__()
        self.sides, self.tilt = (float(sides[0]), float(sides[1])), tilt
        self.tiles = ContextTileInferer(
            tile, context, blend, tiles_at_once, inferer=AutocastInferer(bfloat16), progress=progress
        )

    @takes_carried_arguments
    @torch.no_grad()
    def __call__(
        self,
        inputs: Tensor,
        network: Generator,
        mask: Tensor,
        voxel_size: Sequence[float] = (1.0, 1.0, 1.0),
        b0_direction: Sequence[float] = (0.0, 0.0, 1.0),
    ) -> Tensor:
        """Apply the generator.

        Args:
            inputs: ``[1, 2, X, Y, Z]``: local field [ppm], and magnitude in any unit or all 0 where there is none.
            network: the generator, in evaluation mode.
            mask: ``[1, 1, X, Y, Z]``, nonzero where the field is known.
            voxel_size: [mm].
            b0_direction: unit vector along the axes of the array.

        Returns:
            Susceptibility ``[1, 1, X, Y, Z]`` [ppm], 0 outside the mask.

        Raises:
            QMRIError: if inputs or mask have another shape, the mask is empty, a value in it is not finite, or a
                magnitude negative.
            ValueError: for a voxel size that is not positive or a B0 direction that is not a unit vector.
        """
        volumes = inputs.as_tensor() if hasattr(inputs, "as_tensor") else inputs
        inside = (mask.as_tensor() if hasattr(mask, "as_tensor") else mask) != 0
        _check(volumes, inside)
        volumes, inside = torch.where(inside, volumes, 0.0)[0].float(), inside[0, 0]
        frame = Frame(inside, voxel_size, b0_direction, self.sides, self.tilt)
        framed = frame.mask_to_frame(inside)
        field, magnitude = frame.to_frame(volumes, inside)
        # In sides of a voxel, about 1 each: that is what the generator was trained with, and what has no scale.
        sides = [length / max(frame.voxel_size) for length in frame.voxel_size]
        magnitude = magnitude.clamp(min=0)  # a spline swings below 0 beside dark veins
        image = network_input(field, framed, magnitude, sides, frame.b0_direction, network.channels)
        susceptibility = self.tiles(image[None], network, mask=framed[None, None])
        return frame.from_frame(susceptibility, framed) * inside


def _check(volumes: Tensor, inside: Tensor) -> None:
    if volumes.ndim != 5 or volumes.shape[:2] != (1, 2) or inside.shape != (1, 1, *volumes.shape[2:]):
        raise QMRIError(
            field="image, mask",
            found=f"shapes {tuple(volumes.shape)} and {tuple(inside.shape)}",
            expected="[1, 2, X, Y, Z] (local field, magnitude) and [1, 1, X, Y, Z]",
            remedy="give one volume at a time, with a mask on its grid",
        )
    if not bool((volumes.isfinite() | ~inside).all()):
        raise QMRIError(
            field="image",
            found="NaN or infinite voxels inside the mask",
            expected="finite numbers",
            remedy="repair the field, or take these voxels out of the mask",
        )
    if bool((torch.where(inside, volumes, 0.0)[:, 1] < 0).any()):
        raise QMRIError(
            field="magnitude",
            found="negative voxels inside the mask",
            expected="a magnitude, which is not negative",
            remedy="give the magnitude image, or 0 everywhere where there is none",
        )
