"""The 527 radiomic features of all lesions of a subject."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from qsmrim_net.radiomics.lesions import LesionFeatures
from qsmrim_net.radiomics.reference import reference_features

__all__ = ["LesionFeatures", "extract_features"]


def extract_features(qsm: Tensor, labels: Tensor, voxel_size: Sequence[float]) -> LesionFeatures:
    """The 527 radiomic features of all lesions of a subject.

    Args:
        qsm: susceptibility ``[X, Y, Z]`` [ppb], RAS order.
        labels: ``[X, Y, Z]``, 0 background, 1 to L one value for each lesion.
        voxel_size: (dx, dy, dz) [mm].

    Raises:
        ValueError: for volumes that differ in shape, a susceptibility that is not finite, labels or a voxel size that
            make no sense.
        QMRIError: pyradiomics is not installed.
    """
    return reference_features(qsm, labels, voxel_size)
