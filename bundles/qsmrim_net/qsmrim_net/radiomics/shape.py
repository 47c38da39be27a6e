"""Shape features, by pyradiomics's own class: its tables of the triangle mesh differ from those of other libraries."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module

import torch
from torch import Tensor

from qsmrim_net.radiomics.names import SHAPE_NAMES
from qsmrim_net.radiomics.pyradiomics import one_thread, pyradiomics_module, quiet

__all__ = ["shape_features"]


def shape_features(position: Tensor, counts: Sequence[int], voxel_size: Sequence[float]) -> Tensor:
    """The 14 shape features of lesions.

    Args:
        position: voxel indices of all lesions ``[N, 3]``, one lesion after another.
        counts: voxels of each of the M lesions.
        voxel_size: (dx, dy, dz) [mm].

    Returns:
        ``[M, 14]``, in the order of :data:`~qsmrim_net.radiomics.names.SHAPE_NAMES`.

    Raises:
        QMRIError: pyradiomics is not installed.
    """
    shape = pyradiomics_module("shape").RadiomicsShape
    sitk = import_module("SimpleITK")
    rows = []
    with quiet(), one_thread():
        for voxels in position.split(list(counts)):
            voxels = voxels - voxels.amin(0)
            # SimpleITK's arrays are [Z, Y, X].
            mask = torch.zeros(voxels.amax(0).add(1).flip(0).tolist(), dtype=torch.uint8)
            mask[tuple(voxels.flip(1).T)] = 1
            image = sitk.GetImageFromArray(mask.numpy())
            image.SetSpacing([float(side) for side in voxel_size])
            found = shape(image, image).execute()
            rows.append([float(found[name]) for name in SHAPE_NAMES])
    return torch.tensor(rows, dtype=torch.float64).reshape(-1, len(SHAPE_NAMES))
