"""Whole volumes of deformed heads: `draw_volumes` draws the numbers, `sample_volumes` applies them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from shared_transforms.anatomy.deformation import CONTROLS, Parameters, affine_matrix, elastic_displacement
from shared_transforms.anatomy.fields import split_seed
from shared_transforms.anatomy.head import Head, load_head
from shared_transforms.errors import QMRIError

MNI_MIDDLE_MM = (0.0, -18.0, 22.0)
"""MNI position of the middle of the template's volume, the origin of head coordinates (see `load_head`)."""
_COARSE_MM = 4.0  # the elastic displacement, made of splines 32 mm apart, is linear to .05 mm between such points
_INVERSIONS = 12  # steps of the fixed point; each leaves less than half of the error


@dataclass(frozen=True)
class VolumeParameters(Parameters):
    """All random numbers of n volumes; `sample_volumes` needs nothing else. Lengths in mm, angles in radians.

    A point g of the grid, measured from its middle along its axes, is at p = G g + c in the scanner and at
    q = t + R S Z p + d(p) in the head, measured from the middle of the head's volume: G turns the grid, c places it,
    R rotation, S shear, Z scale, t translation, d the elastic displacement. G and c choose the view of a head, the
    others the head that is viewed.

    Attributes:
        size: (X, Y, Z) of a volume [voxels].
        voxel_mm: (dx, dy, dz).
        grid_rotation: [n, 3, 3] rotation matrix G.
        position: [n, 3] middle c of the grid in the scanner.
        rotation: [n, 3] angles about x, y, z.
        scale: [n, 3] factors; above 1 the head looks smaller.
        shear: [n, 3] factors xy, xz, yz.
        translation: [n, 3] of the head in the scanner.
        displacement: [n, 3, g, g, g] B-spline control displacements.
    """

    size: tuple[int, int, int]
    voxel_mm: tuple[float, float, float]
    grid_rotation: Tensor
    position: Tensor
    rotation: Tensor
    scale: Tensor
    shear: Tensor
    translation: Tensor
    displacement: Tensor

    def __len__(self) -> int:
        """Number of volumes."""
        return int(self.rotation.shape[0])

    def select(self, index: int) -> "VolumeParameters":
        """One of the volumes, as a batch of one."""
        chosen = {name: v[index, None] if isinstance(v, Tensor) else v for name, v in self.state_dict().items()}
        return self.from_state_dict(chosen)

    @classmethod
    def identity(
        cls,
        n: int,
        size: Sequence[int],
        voxel_mm: Sequence[float] = (1.0, 1.0, 1.0),
        position: tuple[float, float, float] = (0.0, 0.0, 0.0),
    ) -> "VolumeParameters":
        """Volumes of the undeformed head.

        Args:
            n: number of (equal) volumes.
            size: (X, Y, Z).
            voxel_mm: (dx, dy, dz) [mm].
            position: middle of the grid from the middle of the head's volume [mm].
        """
        return cls(
            size=_three_sizes(size), voxel_mm=_three_lengths(voxel_mm), grid_rotation=torch.eye(3).repeat(n, 1, 1),
            position=torch.tensor([position]).repeat(n, 1), rotation=torch.zeros(n, 3), scale=torch.ones(n, 3),
            shear=torch.zeros(n, 3), translation=torch.zeros(n, 3),
            displacement=torch.zeros(n, 3, CONTROLS, CONTROLS, CONTROLS),
        )  # fmt: skip


def draw_volumes(
    generator: torch.Generator,
    n: int,
    size: Sequence[int] = (128, 128, 128),
    voxel_mm: Sequence[float] = (1.0, 1.0, 1.0),
    split: str = "train",
    *,
    head: Head | None = None,
    head_scale: tuple[float, float] = (0.9, 1.1),
    max_rotation_deg: float = 10.0,
    max_shift_mm: float = 4.0,
    max_displacement_mm: float = 8.0,
    grid_rotation: Tensor | None = None,
) -> VolumeParameters:
    """Draw n volumes with the box around the brain in their middle: a new deformation of the head for each.

    One number is taken from the generator and hashed with the split, so one generator gives the three splits different
    streams, whatever its seed.

    Args:
        generator: random generator, see `split_generator`.
        n: number of volumes.
        size: (X, Y, Z) [voxels].
        voxel_mm: (dx, dy, dz) [mm].
        split: one of `SPLITS`.
        head: the one to be sampled; by default `load_head()`.
        head_scale: range of the size of the drawn head relative to the given one.
        max_rotation_deg: bound of the head's rotation about each axis.
        max_shift_mm: bound of the distance of that box from the middle of the grid along each axis.
        max_displacement_mm: bound of every component of the elastic displacement.
        grid_rotation: rotation matrix [3, 3] of the grid against the scanner; the head is the same with any of them.

    Returns:
        The parameters, on the CPU.

    Raises:
        QMRIError: where the split is unknown, or a size, a voxel size or the range of scales is not positive.
    """
    size, voxel_mm = _three_sizes(size), _three_lengths(voxel_mm)
    if not 0 < head_scale[0] <= head_scale[1]:
        raise QMRIError(
            field="head_scale", found=head_scale, expected="0 < low <= high", remedy="give both ends of the range"
        )
    turn = torch.eye(3) if grid_rotation is None else torch.as_tensor(grid_rotation, dtype=torch.float32)
    if turn.shape != (3, 3) or float((turn @ turn.T - torch.eye(3)).abs().max()) > 1e-4:
        raise QMRIError(
            field="grid_rotation", found=turn.tolist(), expected="a rotation matrix [3, 3]", remedy="normalise it"
        )
    number = int(torch.randint(2**62, (), generator=generator, device=generator.device))
    stream = torch.Generator().manual_seed(split_seed(number, split=split))
    head = head or load_head()

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(n, *shape, generator=stream) * (high - low) + low

    angle = math.radians(max_rotation_deg)
    rotation, shear = uniform(-angle, angle, 3), uniform(-0.06, 0.06, 3)
    scale = torch.exp(uniform(-0.05, 0.05, 3)) / uniform(*head_scale, 1)
    strength = uniform(0.25, 1.0, 1, 1, 1, 1) * max_displacement_mm
    displacement = strength * uniform(-1.0, 1.0, 3, CONTROLS, CONTROLS, CONTROLS)
    # The brain stays where it is in the scanner, whatever its scale: in the middle of every grid.
    voxels = head.brain_voxels.float()
    centre = ((voxels.amin(0) + voxels.amax(0)) / 2 - head.middle_voxel) * head.voxel_size_mm
    shift = (affine_matrix(rotation, scale, shear) @ uniform(-max_shift_mm, max_shift_mm, 3, 1)).squeeze(-1)
    return VolumeParameters(
        size=size, voxel_mm=voxel_mm, grid_rotation=turn.repeat(n, 1, 1), position=torch.zeros(n, 3),
        rotation=rotation, scale=scale, shear=shear, translation=centre - shift, displacement=displacement,
    )  # fmt: skip


def _three_sizes(size: Sequence[int]) -> tuple[int, int, int]:
    """(X, Y, Z), checked."""
    if len(size) != 3 or min(size) < 2:
        raise QMRIError(field="size", found=tuple(size), expected="three numbers > 1", remedy="give X, Y and Z")
    return int(size[0]), int(size[1]), int(size[2])


def _three_lengths(voxel_mm: Sequence[float]) -> tuple[float, float, float]:
    """(dx, dy, dz), checked."""
    if len(voxel_mm) != 3 or not all(0 < length < math.inf for length in voxel_mm):
        raise QMRIError(
            field="voxel_mm", found=tuple(voxel_mm), expected="three lengths > 0 mm", remedy="give dx, dy and dz"
        )
    return float(voxel_mm[0]), float(voxel_mm[1]), float(voxel_mm[2])


def _grid_to_scanner(parameters: VolumeParameters, points: Tensor) -> Tensor:
    """Scanner positions [n, 3, P] of grid positions [n, 3, P], all in mm."""
    return parameters.grid_rotation @ points + parameters.position.unsqueeze(-1)


def grid_to_head(parameters: VolumeParameters, points: Tensor) -> Tensor:
    """Where points of the grids lie in the head.

    Args:
        parameters: n volumes.
        points: [n, 3, P] from the middle of each grid along its axes [mm].

    Returns:
        Points [n, 3, P] from the middle of the head's volume [mm]; add `MNI_MIDDLE_MM` for MNI positions.
    """
    where = _grid_to_scanner(parameters, points)
    matrix = affine_matrix(parameters.rotation, parameters.scale, parameters.shear)
    moved = matrix @ where + parameters.translation.unsqueeze(-1)
    return moved + elastic_displacement(parameters.displacement, where)


def head_to_grid(parameters: VolumeParameters, points: Tensor) -> Tensor:
    """Inverse of `grid_to_head`, by a fixed point: good to .01 mm.

    Args:
        parameters: n volumes.
        points: [n, 3, P] from the middle of the head's volume [mm].

    Returns:
        Points [n, 3, P] from the middle of each grid along its axes [mm].
    """
    inverse = torch.linalg.inv(affine_matrix(parameters.rotation, parameters.scale, parameters.shear))
    target = points - parameters.translation.unsqueeze(-1)
    where = inverse @ target
    for _ in range(_INVERSIONS):
        where = inverse @ (target - elastic_displacement(parameters.displacement, where))
    return parameters.grid_rotation.mT @ (where - parameters.position.unsqueeze(-1))


def head_points(parameters: VolumeParameters) -> Tensor:
    """`grid_to_head` of every voxel: exact on points about 4 mm apart, linear between them.

    Args:
        parameters: n volumes.

    Returns:
        Points [n, 3, X, Y, Z] from the middle of the head's volume [mm].
    """
    axes = [
        torch.linspace(-0.5, 0.5, max(2, math.ceil((count - 1) * length / _COARSE_MM) + 1)) * ((count - 1) * length)
        for count, length in zip(parameters.size, parameters.voxel_mm, strict=True)
    ]
    coarse = torch.stack(torch.meshgrid(*axes, indexing="ij")).to(parameters.rotation)
    points = grid_to_head(parameters, coarse.flatten(1).expand(len(parameters), -1, -1))
    # The affine part is linear: only the elastic one is interpolated.
    return F.interpolate(
        points.unflatten(2, coarse.shape[1:]), size=parameters.size, mode="trilinear", align_corners=True
    )


def sample_volumes(head: Head, parameters: VolumeParameters) -> Tensor:
    """Sample the deformed head, on the head's device; outside its volume is background.

    Linear between the head's voxels. Voxels larger than the head's are means over as many points, so that fractions
    stay those of the whole voxel.

    Args:
        head: tissue fractions [9, X', Y', Z']; any other number of channels in [0, 1] does as well.
        parameters: n volumes, see `draw_volumes`.

    Returns:
        Tissue fractions [n, 9, X, Y, Z] in [0, 1], channels as `TISSUES`; their sum is at most 1.
    """
    parameters = parameters.to(head.fractions.device)
    steps = [max(1, round(length / head.voxel_size_mm)) for length in parameters.voxel_mm]
    fine = VolumeParameters.from_state_dict(
        parameters.state_dict()
        | {
            "size": tuple(count * step for count, step in zip(parameters.size, steps, strict=True)),
            "voxel_mm": tuple(length / step for length, step in zip(parameters.voxel_mm, steps, strict=True)),
        }
    )
    middle = head.middle_voxel.to(head.fractions.device).view(3, 1, 1, 1)
    # grid_sample wants (z, y, x of the array, last axis first) in [-1, 1] between the outer voxel centres.
    where = (head_points(fine) / (head.voxel_size_mm * middle)).flip(1).permute(0, 2, 3, 4, 1)
    # With the channels last, the eight neighbours of a point are read together: twice as fast.
    volume = head.fractions[None].contiguous(memory_format=torch.channels_last_3d)
    sampled = [
        F.grid_sample(volume, grid[None], mode="bilinear", padding_mode="zeros", align_corners=True) for grid in where
    ]
    result = torch.cat(sampled).clamp_(0.0, 1.0)
    return F.avg_pool3d(result, steps) if max(steps) > 1 else result
