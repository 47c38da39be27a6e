"""Whole series through ST-Net: in its standard frames, tile by tile, voxels outside of the mask left out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from monai.inferers import Inferer
from torch import Tensor
from tqdm import tqdm

from physics.perfusion import haematocrit_factor
from shared_transforms.serving import takes_carried_arguments

from .frames import FRAME_TIME, standardise
from .network import STNet

__all__ = ["STNetInferer"]


class STNetInferer(Inferer):
    """Maps of a series, from any number of frames at any repetition time.

    The encoder sees each tile once, with its neighbours around it; the temporal network sees the voxels of the mask, as
    many at once as fit into a processor's cache. Neither changes the result.

    Args:
        frame_time: of the network's frames [s].
        factor: haematocrit factor over density of the maps [ml/g]; default the standard one. CBV and CBF are
            proportional to it.
        tile: largest side of what is encoded at once [voxels].
        voxels_at_once: in the temporal network.
        progress: show a bar where there is more than one slice.

    Raises:
        ValueError: where a number is not positive.
    """

    def __init__(
        self,
        frame_time: float = FRAME_TIME,
        factor: float | None = None,
        tile: int = 48,
        voxels_at_once: int = 512,
        progress: bool = True,
    ) -> None:
        super().__init__()
        self.factor = haematocrit_factor() if factor is None else factor
        if min(frame_time, self.factor, tile, voxels_at_once) <= 0:
            raise ValueError(
                "frame_time, factor, tile and voxels_at_once must be positive, got "
                f"{frame_time}, {self.factor}, {tile} and {voxels_at_once}"
            )
        self.frame_time, self.tile, self.voxels_at_once, self.progress = frame_time, tile, voxels_at_once, progress

    @takes_carried_arguments
    def __call__(
        self, inputs: Tensor, network: STNet, *, mask: Tensor, aif: Tensor, vof: Tensor, frame_time: float, **_: Any
    ) -> Tensor:
        """Estimate the maps.

        Args:
            inputs: ``[B, 1 + T, X, Y, Z]``: baseline relative to its median, then T concentrations of tissue [mM].
            network: with all three outputs.
            mask: boolean ``[B, 1, X, Y, Z]``.
            aif: arterial concentration ``[B, T]`` [mM].
            vof: venous concentration ``[B, T]`` [mM].
            frame_time: of the series [s].

        Returns:
            ``[B, outputs, X, Y, Z]``: CBV [ml/100 g], CBF [ml/100 g/min], Tmax [s]; 0 outside of the mask.

        Raises:
            ValueError: for curves of another length than the series, or without a positive area.
        """
        plain, inside = (x.as_tensor() if hasattr(x, "as_tensor") else x for x in (inputs, mask))
        maps = torch.zeros((plain.shape[0], network.n_outputs, *plain.shape[2:]), device=plain.device)
        work = [
            (b, z) for b in range(plain.shape[0]) for z in range(plain.shape[-1]) if bool(inside[b, 0, ..., z].any())
        ]
        for b, z in tqdm(work, desc="slices", disable=not self.progress or len(work) < 2):
            keep = inside[b, 0, ..., z]
            image = plain[b : b + 1, ..., z] * keep
            standard = standardise(image, aif[b : b + 1], vof[b : b + 1], frame_time, network.frames, self.frame_time)
            self._slice(standard, keep, network, maps[b, ..., z])
        # The network works with the standard factor.
        scale = {"CBV": self.factor / haematocrit_factor(), "CBF": self.factor / haematocrit_factor(), "Tmax": 1.0}
        return maps * maps.new_tensor([scale[name] for name in network.outputs]).view(-1, 1, 1, 1)

    def _slice(self, image: Tensor, keep: Tensor, network: STNet, maps: Tensor) -> None:
        """Fill the maps ``[outputs, X, Y]`` of one slice from its standard image ``[1, 2 N + 1, X, Y]``."""
        c = network.crop
        padded = F.pad(image, (c, c, c, c))
        for x, y in _tiles(keep, self.tile):
            inner = keep[x, y]
            part = padded[:, :, x.start : x.stop + 2 * c, y.start : y.stop + 2 * c]
            maps[:, x, y][:, inner] = network.estimate(part, inner[None], self.voxels_at_once).T


def _tiles(keep: Tensor, side: int) -> Iterator[tuple[slice, slice]]:
    """Tiles that together cover the true voxels of a slice ``[X, Y]``; those without any are left out."""
    rows, columns = (keep.any(axis).nonzero() for axis in (1, 0))
    for x in range(int(rows[0]), int(rows[-1]) + 1, side):
        for y in range(int(columns[0]), int(columns[-1]) + 1, side):
            tile = (slice(x, min(x + side, int(rows[-1]) + 1)), slice(y, min(y + side, int(columns[-1]) + 1)))
            if bool(keep[tile].any()):
                yield tile
