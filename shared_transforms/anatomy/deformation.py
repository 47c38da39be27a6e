"""What deforms a head: an affine map and an elastic displacement made of cubic B-splines."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Self

import torch
from torch import Tensor

from shared_transforms.anatomy.fields import spline_weights

CONTROLS = 11  # along each axis
SPACING_MM = 32.0


class Parameters:
    """What draws of slices and of volumes have in common: dataclasses of tensors, recorded with their samples."""

    def to(self, device: torch.device | str) -> Self:
        """The same numbers on another device."""
        moved = {name: v.to(device) if isinstance(v, Tensor) else v for name, v in self.state_dict().items()}
        return self.from_state_dict(moved)

    def state_dict(self) -> dict[str, Any]:
        """Every field by name, tensors and tuples: what is recorded with a sample (`torch.save`, weights_only)."""
        return {item.name: getattr(self, item.name) for item in fields(self)}  # type: ignore[arg-type]

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> Self:
        """Inverse of `state_dict`."""
        return cls(**state)


def affine_matrix(rotation: Tensor, scale: Tensor, shear: Tensor) -> Tensor:
    """Matrix Rz Ry Rx S Z from the scanner to the head.

    Args:
        rotation: [n, 3] angles about x, y, z [radians].
        scale: [n, 3].
        shear: [n, 3] upper triangle xy, xz, yz.

    Returns:
        Matrices [n, 3, 3].
    """
    generators = rotation.new_zeros(3, 3, 3)
    for axis, (i, j) in enumerate(((1, 2), (2, 0), (0, 1))):
        generators[axis, i, j], generators[axis, j, i] = -1.0, 1.0
    about = torch.linalg.matrix_exp(rotation[..., None, None] * generators)
    stretch = torch.eye(3, dtype=shear.dtype, device=shear.device).repeat(len(shear), 1, 1)
    stretch[:, (0, 0, 1), (1, 2, 2)] = shear
    return about[:, 2] @ about[:, 1] @ about[:, 0] @ stretch @ torch.diag_embed(scale)


def elastic_displacement(controls: Tensor, points: Tensor) -> Tensor:
    """Cubic B-spline displacement at any points.

    Args:
        controls: [n, 3, g, g, g] displacements of the control points, `SPACING_MM` apart, the middle one at 0 [mm].
        points: [n, 3, P] positions [mm].

    Returns:
        Displacement [n, 3, P] [mm]; no component exceeds the largest control value.
    """
    g = controls.shape[-1]
    along_x, along_y, along_z = (
        spline_weights(points[:, k] / SPACING_MM + (g - 1) / 2, g).unsqueeze(2) for k in range(3)
    )
    # One axis after the other: [n, P, 1, g] x [n, P, g, ...] instead of g^3 weights for each point.
    plane = along_x.squeeze(2) @ controls.permute(0, 2, 3, 1, 4).reshape(len(controls), g, -1)
    line = along_y @ plane.view(*plane.shape[:2], g, 3 * g)
    return (along_z @ line.view(*line.shape[:2], 3, g).mT).squeeze(2).mT
