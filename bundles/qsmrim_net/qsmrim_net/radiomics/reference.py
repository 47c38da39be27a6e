"""The 527 features by pyradiomics and PyWavelets alone: what :mod:`qsmrim_net.radiomics.extract` is compared with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from qsmrim_net.radiomics.lesions import LesionFeatures, check_volumes, lesion_voxels, plain
from qsmrim_net.radiomics.names import BIN_WIDTH, FEATURES, FIRST_ORDER_NAMES, GLCM_NAMES, GLRLM_NAMES, SHAPE_NAMES
from qsmrim_net.radiomics.pyradiomics import one_thread, pyradiomics_module, quiet

__all__ = ["reference_features", "whole_volume_features"]

MARGIN = 3  # voxels around a lesion that its wavelet coefficients depend on


def _extractor() -> Any:
    """pyradiomics's extractor with the settings of this project."""
    extractor = pyradiomics_module("featureextractor").RadiomicsFeatureExtractor(binWidth=BIN_WIDTH)
    extractor.disableAllFeatures()
    extractor.enableFeaturesByName(
        shape=list(SHAPE_NAMES), firstorder=list(FIRST_ORDER_NAMES), glcm=list(GLCM_NAMES), glrlm=list(GLRLM_NAMES)
    )
    extractor.disableAllImageTypes()
    extractor.enableImageTypes(Original={}, Wavelet={"wavelet": "coif1", "level": 1})
    return extractor


def _execute(
    extractor: Any, qsm: npt.NDArray[Any], mask: npt.NDArray[Any], voxel_size: Sequence[float]
) -> npt.NDArray[np.float64]:
    """Features ``[527]`` of the mask ``[X, Y, Z]``."""
    import SimpleITK

    images = []
    for volume in (qsm.astype(np.float64), mask.astype(np.uint8)):
        # SimpleITK's arrays are [Z, Y, X].
        image = SimpleITK.GetImageFromArray(np.ascontiguousarray(volume.transpose(2, 1, 0)))
        image.SetSpacing([float(side) for side in voxel_size])
        images.append(image)
    found = extractor.execute(*images)
    return np.array([float(found[name]) for name in FEATURES])


def _around(first: int, last: int, side: int) -> npt.NDArray[np.int64]:
    """Indices first - 3 to last + 3 along an axis, continued beyond the volume as pyradiomics does.

    A copy of the first voxel makes an odd side even, then the volume repeats itself.
    """
    index = np.arange(first - MARGIN, last + MARGIN + 1) % (side + side % 2)
    return np.where(index == side, 0, index)


def reference_features(qsm: Tensor, labels: Tensor, voxel_size: Sequence[float]) -> LesionFeatures:
    """What :func:`~qsmrim_net.radiomics.extract.extract_features` gives, one lesion after another by pyradiomics.

    Each lesion is cut out with three voxels around it, which gives the features of the whole volume in a fraction of
    the time. Lesions with implausible values are not told from others.

    Args:
        qsm: susceptibility ``[X, Y, Z]`` [ppb].
        labels: ``[X, Y, Z]``, 0 background, 1 to L one value for each lesion.
        voxel_size: (dx, dy, dz) [mm].

    Raises:
        ValueError: see :func:`~qsmrim_net.radiomics.lesions.check_volumes`.
        QMRIError: pyradiomics is not installed.
    """
    qsm, labels = plain(qsm), plain(labels)
    size = check_volumes(qsm, labels, voxel_size)
    voxels = lesion_voxels(labels)
    volume = qsm.numpy()
    values = np.empty((len(voxels.labels), len(FEATURES)))
    with quiet(), one_thread():
        extractor = _extractor()
        for row in range(len(values)):
            position = voxels.position[voxels.lesion == row].numpy()
            first, last = position.min(0), position.max(0)
            box = [_around(int(a), int(b), n) for a, b, n in zip(first, last, volume.shape, strict=True)]
            mask = np.zeros([len(side) for side in box], dtype=bool)
            mask[tuple((position - first + MARGIN).T)] = True
            values[row] = _execute(extractor, volume[np.ix_(*box)], mask, size)
    return voxels.features(torch.from_numpy(values))


def whole_volume_features(qsm: Tensor, mask: Tensor, voxel_size: Sequence[float]) -> Tensor:
    """Features ``[527]`` of one lesion by pyradiomics on the whole volume, not cut out: slow, the last word.

    Args:
        qsm: susceptibility ``[X, Y, Z]`` [ppb].
        mask: of the lesion ``[X, Y, Z]``.
        voxel_size: (dx, dy, dz) [mm].

    Raises:
        QMRIError: pyradiomics is not installed.
    """
    with quiet(), one_thread():
        return torch.from_numpy(_execute(_extractor(), qsm.numpy(), mask.numpy(), voxel_size))
