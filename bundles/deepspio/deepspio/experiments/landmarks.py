"""Where in the image of a phantom the lines' centres, the void and the bent lines are."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt, uniform_filter1d
from torch import Tensor

from .bench import Bench
from .scenes import QUICK_SCALE, AirSphere, Bottles, disc, phantoms

# A comb of lines so narrow that only their centres are left [mm]; the gradients stay those of the sequence.
NARROW_MM, NARROW_EDGE_MM = 0.2, 0.05
SEEN = 0.1  # of the agar's signal: less is nothing, and a change by less is none
NEAR_CHANGE_MM = 0.5  # a moved line changes at its edges alone, its middle is as bright as before
HALF_VOID = 0.5  # of the signal without particles, over a line pitch


@dataclass(frozen=True)
class Landmarks:
    """Parts of images of phantoms, all ``[n, X, Z]``.

    Attributes:
        inside: boolean: the agar's disc, the bottle and the sphere included.
        to_centre: distance to the nearest centre of a line, as it is bent [mm].
        to_rim: distance to the edge of the void, where the particles take the signal or move it away [mm].
        bent: boolean: at most 0.5 mm from where particles (or the sphere) change the image.
        sphere: boolean: at most 1 mm from the sphere; False without one.
    """

    inside: Tensor
    to_centre: Tensor
    to_rim: Tensor
    bent: Tensor
    sphere: Tensor


def landmarks(bench: Bench, bottles: Bottles, sphere: AirSphere | None = None) -> Landmarks:
    """Landmarks of phantoms, from images of theirs without noise.

    Args:
        bench: sequence, sizes and device.
        bottles: the phantoms.
        sphere: beside every bottle; None for none.
    """
    sequence, step = bench.sequence, bench.pixel_size[1]
    narrow = replace(
        sequence, line_width=NARROW_MM, edge=NARROW_EDGE_MM, relaxivity=0.0, diffusivity=0.0,
        rf_bandwidth=sequence.rf_bandwidth * NARROW_MM / sequence.line_width,
    )  # fmt: skip
    comb = phantoms(replace(bench, sequence=narrow), bottles, sphere=sphere).image.sum(1)
    ridge = torch.nn.functional.max_pool2d(comb[:, None], (1, 3), 1, (0, 1))[:, 0]
    image = phantoms(bench, bottles, sphere=sphere).image
    straight = phantoms(bench, replace(bottles, concentrations=[0.0] * len(image))).image
    scale = bench.pick(1.0, QUICK_SCALE)
    shape = (bench.side, bench.pixel_size[0])
    inside = disc(*shape, image.new_zeros(len(image), 2), bottles.container * scale) > 0.5
    pitch = max(1, round(sequence.line_pitch / step))
    signal, empty = (_running_mean(part.sum(1), pitch) for part in (image, straight))
    near = torch.zeros_like(inside)
    if sphere is not None:
        place = image.new_tensor([sphere.centre]) * scale
        near |= disc(*shape, place, sphere.radius * scale + 1.0) > 0.5
    return Landmarks(
        inside=inside,
        to_centre=distance((comb > SEEN) & (comb == ridge), step),
        to_rim=distance(edge((signal < HALF_VOID * empty) & inside & ~near), step),
        bent=(distance((image - straight).abs().amax(1) > SEEN, step) <= NEAR_CHANGE_MM) & inside,
        sphere=near & inside,
    )


def share(maps: Tensor, region: Tensor, inside: Tensor) -> Tensor:
    """Share of the sum of maps ``[n, X, Z]`` inside that lies in a region, ``[n]``; NaN for an empty map."""
    return (maps * (region & inside)).sum((1, 2)) / (maps * inside).sum((1, 2))


def distance(masks: Tensor, step: float) -> Tensor:
    """Distance of each pixel to the nearest True one of masks ``[n, X, Z]``, pixels ``step`` mm wide [mm].

    Infinite where a mask has none.
    """
    found = [
        distance_transform_edt(~mask) * step if mask.any() else np.full(mask.shape, np.inf)
        for mask in masks.cpu().numpy()
    ]
    return torch.as_tensor(np.stack(found), dtype=torch.float32, device=masks.device)


def edge(masks: Tensor) -> Tensor:
    """Pixels of masks ``[n, X, Z]`` with a neighbour outside."""
    outside = torch.nn.functional.max_pool2d((~masks)[:, None].float(), 3, 1, 1)[:, 0] > 0
    return masks & outside


def _running_mean(maps: Tensor, width: int) -> Tensor:
    """Mean of maps ``[n, X, Z]`` over ``width`` pixels along z."""
    return torch.as_tensor(uniform_filter1d(maps.cpu().numpy(), width, axis=2, mode="nearest"), device=maps.device)
