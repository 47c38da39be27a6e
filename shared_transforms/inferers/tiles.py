"""Whole volumes through a network for patches, in tiles that overlap and leave no seams."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from monai.inferers import Inferer, SimpleInferer
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

__all__ = ["ContextTileInferer"]


@dataclass(frozen=True)
class _Axis:
    """Tiles along one axis: where they begin, how long they are; the same length for all."""

    starts: tuple[int, ...]
    length: int


class ContextTileInferer(Inferer):
    """Give a volume to a network in tiles, each with what surrounds it, and blend what they say of their borders.

    MONAI's SlidingWindowInferer and PatchInferer (1.6.1) place windows anywhere, so that the poolings of two windows
    fall on different voxels and nothing makes their outputs agree; and they rescale where a network cuts its border
    off. Here tiles begin at multiples of ``alignment`` of one grid, a network may cut off its border, and with
    ``context`` at least as wide as its receptive field the tiles give what the whole volume gives.

    A tile is read with ``context`` voxels of its neighbours (0 outside of the volume) at each side. Its output is used
    as far as ``blend / 2`` voxels into the neighbours, with a weight that falls as a squared cosine over ``blend``
    voxels while the neighbour's rises.

    Args:
        tile: largest side of the output of a tile [voxels], a multiple of ``alignment``; None takes the whole volume,
            filled up to such a multiple, at once. Tiles are evened out: 3 of 56 rather than 2 of 64 and one of 32.
        context: voxels around a tile that the network sees too, a multiple of ``alignment``.
        blend: voxels over which two neighbours are mixed, even; 0 sets them side by side.
        tiles_at_once: tiles in a batch of the network; bounds the memory together with ``tile``.
        alignment: factor by which the network pools, 8 for three poolings by 2.
        inferer: how a batch of tiles goes through the network, for instance an :class:`.AutocastInferer`; None simply
            calls it.
        progress: show a progress bar where there is more than one batch.

    Raises:
        ValueError: if a number does not fit the others.
    """

    def __init__(
        self,
        tile: int | None = 64,
        context: int = 16,
        blend: int = 16,
        tiles_at_once: int = 1,
        alignment: int = 8,
        inferer: Inferer | None = None,
        progress: bool = True,
    ) -> None:
        super().__init__()
        if alignment < 1 or context < 0 or context % alignment or (tile is not None and (tile < 1 or tile % alignment)):
            raise ValueError(f"tile and context must be multiples of alignment, got {tile}, {context}, {alignment}")
        if blend < 0 or blend % 2 or blend > 2 * context:
            raise ValueError(f"blend must be even and at most 2 context, got {blend} and {context}")
        if tiles_at_once < 1:
            raise ValueError(f"tiles_at_once must be at least 1, got {tiles_at_once}")
        self.tile, self.context, self.blend, self.alignment = tile, context, blend, alignment
        self.tiles_at_once, self.progress = tiles_at_once, progress
        self.inferer = SimpleInferer() if inferer is None else inferer

    def __call__(
        self, inputs: Tensor, network: Callable[..., Any], *args: Any, mask: Tensor | None = None, **kwargs: Any
    ) -> Tensor:
        """Apply the network.

        Args:
            inputs: volumes ``[batch, C, X, Y, Z]`` of any size.
            network: takes ``[n, C, x, y, z]`` and gives ``[n, K, x - 2 c, y - 2 c, z - 2 c]`` with any c from 0 on.
            args: passed on to the network.
            mask: ``[batch, 1, X, Y, Z]``, nonzero where an output is wanted; tiles without any are left out.
            kwargs: passed on to the network.

        Returns:
            ``[batch, K, X, Y, Z]`` in the type of the network's output; 0 outside of the mask where there is one.

        Raises:
            ValueError: if the inputs are not volumes, the mask does not fit or is empty, or the network cuts off more
                than the context.
        """
        if inputs.ndim != 5:
            raise ValueError(f"inputs must be [batch, C, X, Y, Z], got shape {tuple(inputs.shape)}")
        plain = inputs.as_tensor() if hasattr(inputs, "as_tensor") else inputs
        wanted = None
        if mask is not None:
            if mask.shape != (plain.shape[0], 1, *plain.shape[2:]):
                raise ValueError(f"mask must be [batch, 1, X, Y, Z] of {(*plain.shape,)}, got {tuple(mask.shape)}")
            wanted = (mask.as_tensor() if hasattr(mask, "as_tensor") else mask) != 0
        axes = self._axes(plain.shape[2:], wanted)
        corners = [
            corner
            for corner in itertools.product(*(axis.starts for axis in axes))
            if wanted is None or _cut(wanted, _slices(corner, axes)).any()
        ]
        batches = [corners[i : i + self.tiles_at_once] for i in range(0, len(corners), self.tiles_at_once)]
        total = weight = plain.new_zeros(())
        quiet = not self.progress or len(batches) == 1
        for number, batch in enumerate(tqdm(batches, desc="tiles", disable=quiet)):
            read = torch.cat([self._read(plain, corner, axes) for corner in batch])
            output = self._kept(self.inferer(read, network, *args, **kwargs), axes)
            if not number:
                total = output.new_zeros(plain.shape[0], output.shape[1], *plain.shape[2:])
                weight = output.new_zeros(plain.shape[2:])
            for corner, part in zip(batch, output.split(plain.shape[0]), strict=True):
                self._add(total, weight, corner, axes, part)
        total /= weight.clamp(min=torch.finfo(weight.dtype).tiny)  # 0 / 0 where all tiles were left out
        return total if wanted is None else torch.where(wanted, total, 0.0)

    def _axes(self, shape: Sequence[int], wanted: Tensor | None) -> list[_Axis]:
        """Tiles of one length over the box of the mask, or over the volume."""
        axes = []
        for dim, size in enumerate(shape):
            first, last = 0, size - 1
            if wanted is not None:
                rows = wanted.movedim(2 + dim, 0).flatten(1).any(1).nonzero()
                if not len(rows):
                    raise ValueError("the mask is empty")
                first, last = int(rows[0]), int(rows[-1])
            first -= first % self.alignment
            extent = last + 1 - first
            count = 1 if self.tile is None else math.ceil(extent / self.tile)
            length = math.ceil(extent / count / self.alignment) * self.alignment
            starts = range(first, last + 1, length)  # evened out, there may be one fewer
            axes.append(_Axis(tuple(starts), length))
        return axes

    def _read(self, volume: Tensor, corner: Sequence[int], axes: Sequence[_Axis]) -> Tensor:
        """A tile and its context, 0 outside of the volume."""
        cut: list[slice] = []
        missing: list[int] = []
        for start, axis, size in zip(corner, axes, volume.shape[2:], strict=True):
            low, high = start - self.context, start + axis.length + self.context
            cut.append(slice(max(low, 0), min(high, size)))
            missing = [max(-low, 0), max(high - size, 0), *missing]  # the last axis comes first
        return functional.pad(_cut(volume, cut), missing)

    def _kept(self, output: Tensor, axes: Sequence[_Axis]) -> Tensor:
        """The tile and half of the blend at each side, cut out of what the network gives."""
        beyond = {size - axis.length for size, axis in zip(output.shape[2:], axes, strict=True)}
        if len(beyond) > 1 or (spare := beyond.pop() - self.blend) < 0 or spare % 2:
            raise ValueError(
                f"the network may cut off at most {self.context - self.blend // 2} voxels, the same number at each "
                f"side (context {self.context}, blend {self.blend}); its output has the sides {(*output.shape[2:],)} "
                f"for inputs of {tuple(axis.length + 2 * self.context for axis in axes)}"
            )
        middle = slice(spare // 2, -(spare // 2) or None)
        return output[:, :, middle, middle, middle]

    def _add(self, total: Tensor, weight: Tensor, corner: Sequence[int], axes: Sequence[_Axis], part: Tensor) -> None:
        """Add the weighted output of a tile, as far as it lies in the volume."""
        where: list[slice] = []
        windows: list[Tensor] = []
        half = self.blend // 2
        for dim, (start, axis) in enumerate(zip(corner, axes, strict=True)):
            low, high = start - half, start + axis.length + half
            inside = slice(max(low, 0), min(high, weight.shape[dim]))
            seen = slice(inside.start - low, inside.stop - low)
            window = _window(axis.length, self.blend).to(part)[seen]
            windows.append(window.reshape([-1 if d == dim else 1 for d in range(3)]))
            part = part.narrow(2 + dim, seen.start, seen.stop - seen.start)
            where.append(inside)
        mixed = windows[0] * windows[1] * windows[2]
        _cut(total, where).add_(mixed * part)
        _cut(weight, where).add_(mixed)


def _cut(volume: Tensor, where: Sequence[slice]) -> Tensor:
    """A view of the last three axes."""
    return volume[..., where[0], where[1], where[2]]


def _slices(corner: Sequence[int], axes: Sequence[_Axis]) -> list[slice]:
    return [slice(start, start + axis.length) for start, axis in zip(corner, axes, strict=True)]


def _window(length: int, blend: int) -> Tensor:
    """1 inside, squared cosines of ``blend`` voxels around both ends; neighbours add up to 1."""
    rising = (torch.pi / 2 * (torch.arange(blend, dtype=torch.float64) + 0.5) / max(blend, 1)).sin().square()
    ramp = torch.cat([rising, torch.ones(length, dtype=torch.float64)])
    return ramp * ramp.flip(0)
