"""Whether a map depends on how the volume lies: tiles, flips, permutations, oblique and anisotropic voxels."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from scipy.ndimage import affine_transform, binary_erosion, gaussian_filter
from torch import Tensor, nn
from tqdm import tqdm

from physics.dipole import field_from_susceptibility
from shared_transforms.experiments import Row, target
from shared_transforms.inferers import ContextTileInferer

from ..start import demeaned, network_input
from .bench import Bench
from .case import ALONG_Z, Case, Head, Triple, means
from .heads import draw_head
from .methods import NETWORKS
from .scores import measured

HEAD = 40  # of the test split
CLASSICAL_PERCENT, NETWORK_PERCENT, TILES_PERCENT = 1.0, 10.0, 1.0
SMOOTH_MM = 2.0  # of the head whose map is compared on several grids: voxels hold all of it
DEEP = 4  # voxels below the surface of the brain
ROOM = 1.15  # diameter of the ball around a head over its longest side


@torch.no_grad()
def tiles(
    bench: Bench,
    settings: Sequence[tuple[int, int, int]] = ((48, 8, 0), (64, 16, 16), (96, 24, 16)),
    noise_ppm: float = 0.003,
    scale: float = 0.8,
) -> list[Path]:
    """Maps made of tiles against that of the whole volume at once.

    Args:
        bench: networks and output folder.
        settings: side of a tile, context around it, and blending [voxels]; the last is held to the target.
        noise_ppm: standard deviation of the field [ppm].
        scale: size of the head relative to others.
    """
    case = draw_head(bench, HEAD, scale=scale).measure(noise_ppm, bench.seed)
    rows: list[Row] = []
    targets: list[Row] = []
    for name, network in tqdm(bench.networks.items(), desc="tiles"):
        image = network_input(case.field, case.mask, case.magnitude, channels=network.channels)[None]

        def apply(
            tile: int | None, context: int, blend: int, image: Tensor = image, network: nn.Module = network
        ) -> tuple[Tensor, Row]:
            inferer = ContextTileInferer(tile, context, blend, progress=False)
            return measured(lambda: inferer(image, network, mask=case.mask[None, None])[0, 0])

        whole, costs = apply(None, 16, 0)
        deviation = float(whole[case.mask].std())
        rows.append({"method": name, **costs})
        for tile, context, blend in settings:
            found, costs = apply(tile, context, blend)
            difference = found - whole
            row = {
                "method": name, "tile": tile, "context": context, "blend": blend,
                "difference_percent": 100 * float(difference[case.mask].square().mean().sqrt()) / deviation,
                "largest_step_percent": 100 * largest_step(difference, case.mask) / deviation, **costs,
            }  # fmt: skip
            rows.append(row)
        targets += [
            target(f"tiles less whole volume [% of SD]: {name}", row["difference_percent"], TILES_PERCENT),
            target(f"step at any plane [% of SD]: {name}", row["largest_step_percent"], TILES_PERCENT),
        ]
    notes = [
        f"Noise {noise_ppm:g} ppm, {' x '.join(map(str, case.field.shape))} voxels; the first row of a network is the "
        "whole volume at once. difference: RMS over the mask of the map of tiles less that of the whole volume, over "
        "the SD of that; largest_step: largest mean step of this difference between two neighbouring planes, so at a "
        "seam if there is one. Tiles of 48 with a context of 8, side by side: 64 to 48 voxels, as the paper's network. "
        "Times are without the channels of the input.",
    ]
    return bench.write("tiles", [*rows, *bench.absent()], notes, targets)


def largest_step(difference: Tensor, mask: Tensor) -> float:
    """Largest mean over two neighbouring planes, along any axis, of the modulus of the step between them."""
    largest = 0.0
    for axis in range(3):
        size = difference.shape[axis] - 1
        both = mask.narrow(axis, 0, size) & mask.narrow(axis, 1, size)
        step = (difference.narrow(axis, 1, size) - difference.narrow(axis, 0, size)).abs() * both
        others = [other for other in range(3) if other != axis]
        count = both.sum(others)
        enough = count > 0.1 * count.max()
        largest = max(largest, float((step.sum(others)[enough] / count[enough]).max()))
    return largest


@torch.no_grad()
def equivariance(
    bench: Bench,
    methods: Sequence[str] = ("tkd", "tikhonov", "l2_gradient", "tv", "unet", "qsmgan"),
    noise_ppm: float = 0.003,
    angle: float = 30.0,
    scale: float = 0.6,
) -> list[Path]:
    """The same head on other grids: its map in world space against that on the first grid.

    Args:
        bench: methods and output folder.
        methods: names as in :data:`.methods.LABELS`.
        noise_ppm: standard deviation of the field [ppm], for flips and permutations.
        angle: of the oblique grid [degrees].
        scale: size of the head relative to others.
    """
    head = draw_head(bench, HEAD, scale=scale)
    noisy = head.measure(noise_ppm, bench.seed)
    smooth, brain = in_a_ball(head)
    views: dict[str, tuple[Case, Case, Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {}
    for axis, name in enumerate("xyz"):
        views[f"flip {name}"] = (noisy, flipped(noisy, axis), lambda map_, a=axis: map_.flip(a), _same)  # type: ignore[misc]
    views["axes x y z as y z x"] = (noisy, permuted(noisy, (1, 2, 0)), lambda map_: map_.permute(2, 0, 1), _same)
    views["axes x y z as z y x"] = (noisy, permuted(noisy, (2, 1, 0)), lambda map_: map_.permute(2, 1, 0), _same)
    matrix = turn(angle)
    views[f"oblique {angle:g} degrees"] = (
        smooth, rotated(smooth, matrix), lambda map_: resample(map_, matrix.T), _same
    )  # fmt: skip
    views["1 x 1 x 2 mm"] = (smooth, coarse(smooth, (1, 1, 2)), _same, lambda map_: means(map_, (1, 1, 2)))
    rows = []
    for method in tqdm(bench.methods(noise_ppm, methods), desc="equivariance"):
        on_first = {id(case): bench.estimate(method, case)[0] for case in (noisy, smooth)}
        for view, (first, other, back, shrink) in views.items():
            counted = shrink(brain if first is smooth else first.mask)
            reference = demeaned(shrink(on_first[id(first)]), counted)
            found = demeaned(back(bench.estimate(method, other)[0]), counted)
            change = 100 * float((found - reference).norm() / reference.norm())
            rows.append({"view": view, "method": method.name, "difference_percent": change})
    targets = [
        target(
            f"same map in world space [%]: {row['method']}, {row['view']}", row["difference_percent"],
            NETWORK_PERCENT if row["method"] in NETWORKS else CLASSICAL_PERCENT,
        )
        for row in rows
    ]  # fmt: skip
    notes = [
        "Norm of the difference of two maps of one head over the norm of the first, over the mask. Flips and "
        f"permutations: noise {noise_ppm:g} ppm, the same numbers, all voxels. Oblique and anisotropic: the head is "
        f"smoothed (SD {SMOOTH_MM:g} mm) and free of noise, so that both grids hold all of it, and lies in a ball "
        "whose field is known, so that the mask is the same on both; its field is computed on each grid, the map "
        f"brought back by cubic splines, and compared {DEEP} voxels below the surface of the brain. What is left of "
        "the oblique grid is the cone of k-space, which each grid samples at other places, and in TV the directions "
        "it prefers.",
    ]
    return bench.write("equivariance", [*rows, *bench.absent(methods)], notes, targets)


def _same(volume: Tensor) -> Tensor:
    return volume


def flipped(case: Case, axis: int) -> Case:
    """The same measurement with one axis turned round."""
    b0 = tuple(-v if i == axis else v for i, v in enumerate(case.b0_direction))
    return _moved(case, lambda volume: volume.flip(axis), (b0[0], b0[1], b0[2]))


def permuted(case: Case, order: tuple[int, int, int]) -> Case:
    """The same measurement with its axes in another order."""
    b0 = [case.b0_direction[axis] for axis in order]
    return _moved(case, lambda volume: volume.permute(order).contiguous(), (b0[0], b0[1], b0[2]))


def _moved(case: Case, move: Callable[[Tensor], Tensor], b0: Triple) -> Case:
    field, magnitude, mask, truth = (move(volume) for volume in (case.field, case.magnitude, case.mask, case.truth))
    return Case(field, magnitude, mask, truth, case.voxel_size, b0, case.noise)


def in_a_ball(head: Head) -> tuple[Case, Tensor]:
    """The head without noise and what is smaller than a few voxels, in a ball; and where it is compared."""
    side = 4 * math.ceil(ROOM * max(head.chi.shape) / 4)
    before = [(side - size) // 2 for size in head.chi.shape]
    widths = [(first, side - size - first) for first, size in zip(before, head.chi.shape, strict=True)]
    chi = gaussian_filter(np.pad(head.chi.cpu().numpy(), widths), SMOOTH_MM)
    deep = binary_erosion(np.pad(head.mask.cpu().numpy(), widths), iterations=DEEP)
    line = torch.arange(side) - (side - 1) / 2
    ball = (line[:, None, None].square() + line[:, None].square() + line.square()).sqrt() < side / 2 - 1
    case = _noise_free(torch.from_numpy(chi).to(head.chi), ball.to(head.mask.device), head.voxel_size, ALONG_Z)
    return case, torch.from_numpy(deep).to(head.mask.device)


def _noise_free(chi: Tensor, mask: Tensor, voxel_size: Triple, b0: Triple) -> Case:
    field = field_from_susceptibility(chi, voxel_size, b0) * mask
    return Case(field, mask.to(chi), mask, demeaned(chi, mask), voxel_size, b0)


def turn(angle: float) -> np.ndarray:
    """Rotation by an angle [degrees] about an axis that is none of the grid's."""
    axis = np.array([2.0, 1.0, 0.5]) / math.sqrt(5.25)
    cross = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
    radians = math.radians(angle)
    return np.eye(3) + math.sin(radians) * cross + (1 - math.cos(radians)) * cross @ cross


def resample(volume: Tensor, matrix: np.ndarray) -> Tensor:
    """The volume on a grid turned about its middle: value at R p of the volume stands at p. Cubic splines."""
    middle = (np.array(volume.shape) - 1) / 2
    array = volume.cpu().numpy().astype(np.float64)
    moved = affine_transform(array, matrix, offset=middle - matrix @ middle, order=3, mode="constant")
    return torch.from_numpy(moved).to(volume)


def rotated(case: Case, matrix: np.ndarray) -> Case:
    """The same head and ball on an oblique grid, its field computed there."""
    b0 = matrix.T @ np.array(case.b0_direction)
    return _noise_free(
        resample(case.truth, matrix), case.mask, case.voxel_size, (float(b0[0]), float(b0[1]), float(b0[2]))
    )


def coarse(case: Case, factors: tuple[int, int, int]) -> Case:
    """The same head with larger voxels; its field is the mean over them."""
    x, y, z = (size * factor for size, factor in zip(case.voxel_size, factors, strict=True))
    mask = means(case.mask, factors)
    truth = demeaned(means(case.truth, factors), mask)
    return Case(means(case.field, factors) * mask, mask.to(truth), mask, truth, (x, y, z), case.b0_direction)
