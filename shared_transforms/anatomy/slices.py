"""Slices through deformed heads: `draw_slices` draws the numbers, `sample_slices` applies them."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from shared_transforms.anatomy.deformation import CONTROLS, SPACING_MM, Parameters, affine_matrix
from shared_transforms.anatomy.fields import spline_weights, split_seed
from shared_transforms.anatomy.head import Head, load_head
from shared_transforms.errors import QMRIError

PLANES: tuple[str, ...] = ("axial", "coronal", "sagittal")
# Head axes (0 right, 1 anterior, 2 superior) along a slice's rows, columns and normal, plane by plane.
_AXES = ((0, 1, 2), (0, 2, 1), (1, 2, 0))


@dataclass(frozen=True)
class SliceParameters(Parameters):
    """All random numbers of n slices; `sample_slices` needs nothing else. Lengths in mm, angles in radians.

    A point p of the scanner [mm] is at `translation + R S Z p + d(p)` in the head, measured from the middle of its
    volume: R rotation, S shear, Z scale, d the elastic displacement.

    Attributes:
        size: (H, W) of a slice.
        plane: [n] index into `PLANES`; (H, W) run along (x, y), (x, z), (y, z).
        position: [n, 3] middle of the slice in the scanner, (x, y, z) = (right, anterior, superior).
        rotation: [n, 3] angles about x, y, z.
        scale: [n, 3] factors; above 1 the head looks smaller.
        shear: [n, 3] factors xy, xz, yz.
        translation: [n, 3] of the head in the scanner.
        displacement: [n, 3, g, g, g] B-spline control displacements; no component of d exceeds the largest of them.
        pixel_mm: [n] pixel size.
        flip: [n, 2] whether rows and columns run backwards.
    """

    size: tuple[int, int]
    plane: Tensor
    position: Tensor
    rotation: Tensor
    scale: Tensor
    shear: Tensor
    translation: Tensor
    displacement: Tensor
    pixel_mm: Tensor
    flip: Tensor

    def __len__(self) -> int:
        """Number of slices."""
        return int(self.plane.shape[0])

    @classmethod
    def identity(
        cls,
        n: int,
        size: tuple[int, int],
        *,
        plane: str = "axial",
        position: tuple[float, float, float] = (0.0, 0.0, 0.0),
        pixel_mm: float = 1.0,
    ) -> "SliceParameters":
        """Slices of the undeformed head.

        Args:
            n: number of (equal) slices.
            size: (H, W).
            plane: one of `PLANES`.
            position: middle of the slice from the middle of the volume [mm].
            pixel_mm: pixel size [mm].
        """
        return cls(
            size=size, plane=torch.full((n,), PLANES.index(plane)), position=torch.tensor([position]).repeat(n, 1),
            rotation=torch.zeros(n, 3), scale=torch.ones(n, 3), shear=torch.zeros(n, 3), translation=torch.zeros(n, 3),
            displacement=torch.zeros(n, 3, CONTROLS, CONTROLS, CONTROLS), pixel_mm=torch.full((n,), pixel_mm),
            flip=torch.zeros(n, 2, dtype=torch.bool),
        )  # fmt: skip


def draw_slices(
    generator: torch.Generator,
    n: int,
    *,
    size: tuple[int, int] | None = None,
    split: str = "train",
    pixel_mm: tuple[float, float] | None = None,
    whole_slice: bool = False,
    head: Head | None = None,
    max_displacement_mm: float = 8.0,
    plane_probabilities: tuple[float, float, float] | None = None,
) -> SliceParameters:
    """Draw n slices: a new deformation of the head for each.

    One number is taken from the generator and hashed with the split, so one generator gives the three splits different
    streams, whatever its seed.

    Args:
        generator: random generator, see `split_generator`.
        n: number of slices.
        size: (H, W), by default (64, 64), with whole_slice (256, 256).
        split: one of `SPLITS`.
        pixel_mm: range of the pixel size, uniform [mm]; by default (.9, 1.3), with whole_slice (1, 1).
        whole_slice: False: patches whose middle is uniform in the brain, any flip, rotations within 20 degrees.
            True: the whole head, centred, within 25 mm of the middle of the brain, rotations within 8 degrees, no flip.
        head: the one to be sampled: patches lie in its brain. By default `load_head()`.
        max_displacement_mm: bound of every component of the elastic displacement [mm].
        plane_probabilities: of axial, coronal and sagittal, by default (.7, .15, .15), with whole_slice (1, 0, 0).

    Returns:
        The parameters, on the CPU.

    Raises:
        QMRIError: where the split is unknown or the pixel range is not positive and ascending.
    """
    pixel_mm = pixel_mm or ((1.0, 1.0) if whole_slice else (0.9, 1.3))
    if not 0 < pixel_mm[0] <= pixel_mm[1]:
        raise QMRIError(
            field="pixel_mm",
            found=pixel_mm,
            expected="0 < low <= high, in mm",
            remedy="give both ends in mm",
        )
    number = int(torch.randint(2**62, (), generator=generator, device=generator.device))
    stream = torch.Generator().manual_seed(split_seed(number, split=split))
    head = head or load_head()

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(n, *shape, generator=stream) * (high - low) + low

    angle = math.radians(8.0 if whole_slice else 20.0)
    shift = 4.0 if whole_slice else 0.0
    probabilities = plane_probabilities or ((1.0, 0.0, 0.0) if whole_slice else (0.7, 0.15, 0.15))
    plane = torch.multinomial(torch.tensor(probabilities), n, replacement=True, generator=stream)
    rotation, shear = uniform(-angle, angle, 3), uniform(-0.06, 0.06, 3)
    # MNI152 is some 5 % longer each way than a mean head.
    scale = torch.exp(0.05 + uniform(-0.08, 0.08, 1) + uniform(-0.07, 0.07, 3))
    translation = uniform(-shift, shift, 3)
    strength = uniform(0.25, 1.0, 1, 1, 1, 1) * max_displacement_mm
    displacement = strength * uniform(-1.0, 1.0, 3, CONTROLS, CONTROLS, CONTROLS)
    point = uniform(0.0, 1.0, 4)
    voxels = head.brain_voxels
    target = voxels[(point[:, 0] * len(voxels)).long().clamp_max(len(voxels) - 1)].float() + point[:, 1:] - 0.5
    target = (target - head.middle_voxel) * head.voxel_size_mm
    if whole_slice:
        normal = F.one_hot(torch.tensor(_AXES)[plane, 2], 3)
        centre = (head.brain_centre - head.middle_voxel) * head.voxel_size_mm
        target = normal * (centre + 50.0 * (point[:, 1:] - 0.5))
    matrix = affine_matrix(rotation, scale, shear)
    position = torch.linalg.solve(matrix, (target - translation).unsqueeze(-1)).squeeze(-1)
    return SliceParameters(
        size=size or ((256, 256) if whole_slice else (64, 64)), plane=plane, position=position, rotation=rotation,
        scale=scale, shear=shear, translation=translation, displacement=displacement, pixel_mm=uniform(*pixel_mm),
        flip=(uniform(0.0, 1.0, 2) < 0.5) & (not whole_slice),
    )  # fmt: skip


def _offsets(parameters: SliceParameters) -> tuple[Tensor, Tensor]:
    """Distances [n, H] and [n, W] of the pixels from the middle of the slice, in mm, flips applied."""
    sign = 1.0 - 2.0 * parameters.flip.float()
    step = sign * parameters.pixel_mm[:, None]
    rows, columns = (
        step[:, k, None] * (torch.arange(length, device=step.device, dtype=step.dtype) - (length - 1) / 2)
        for k, length in enumerate(parameters.size)
    )
    return rows, columns


def _in_plane(controls: Tensor, plane: Tensor) -> Tensor:
    """Control values [n, 3, g, g, g] with their axes in the order rows, columns, normal of each slice's plane."""
    orders: Tensor = torch.stack([controls.permute(0, 1, *(2 + axis for axis in axes)) for axes in _AXES])
    return orders[plane, torch.arange(len(plane), device=plane.device)]


def displacement_at(parameters: SliceParameters) -> Tensor:
    """Elastic displacement at every pixel, from the cubic B-splines of the control points.

    Args:
        parameters: n slices.

    Returns:
        Displacement [n, 3, H, W] along x, y, z of the head [mm].
    """
    rows, columns = _offsets(parameters)
    axes = torch.tensor(_AXES, device=parameters.plane.device)[parameters.plane]
    position = parameters.position.gather(1, axes)  # along rows, columns, normal
    controls = _in_plane(parameters.displacement, parameters.plane)
    g = controls.shape[-1]
    # A slice is parallel to the control grid, so the three axes separate: no sum over 64 neighbours per pixel.
    weights = [
        spline_weights((position[:, k, None] + offset) / SPACING_MM + (g - 1) / 2, g)
        for k, offset in enumerate((rows, columns, torch.zeros_like(rows[:, :1])))
    ]
    sheet = torch.einsum("ncijk,nk->ncij", controls, weights[2][:, 0])
    return weights[0].unsqueeze(1) @ sheet @ weights[1].unsqueeze(1).mT


def sample_slices(head: Head, parameters: SliceParameters) -> Tensor:
    """Sample the deformed head, linearly between voxels, on the head's device; outside the volume is background.

    Args:
        head: tissue fractions.
        parameters: n slices, see `draw_slices`.

    Returns:
        Tissue fractions [n, 9, H, W] in [0, 1], channels as `TISSUES`; their sum is at most 1.
    """
    fractions = head.fractions
    parameters = parameters.to(fractions.device)
    rows, columns = _offsets(parameters)
    unit = torch.eye(3, device=rows.device)[
        torch.tensor(_AXES, device=rows.device)[parameters.plane]
    ]  # [n, 3 roles, 3]
    matrix = affine_matrix(parameters.rotation, parameters.scale, parameters.shear)
    start = (matrix @ parameters.position.unsqueeze(-1)).squeeze(-1) + parameters.translation
    along = unit @ matrix.mT  # head vectors of one mm along rows, columns, normal
    point = (
        start[:, :, None, None]
        + along[:, 0, :, None, None] * rows[:, None, :, None]
        + along[:, 1, :, None, None] * columns[:, None, None, :]
        + displacement_at(parameters)
    )
    # grid_sample wants (z, y, x of the array, last axis first) in [-1, 1] between the outer voxel centres.
    grid = (
        (point / (head.voxel_size_mm * head.middle_voxel.to(point.device)[:, None, None])).flip(1).permute(0, 2, 3, 1)
    )
    # The slices are the planes of one output volume: the head is not repeated n times.
    sampled = F.grid_sample(fractions[None], grid[None], mode="bilinear", padding_mode="zeros", align_corners=True)
    return sampled[0].transpose(0, 1).clamp(0.0, 1.0).contiguous()
