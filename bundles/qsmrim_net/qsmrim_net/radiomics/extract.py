"""The 527 radiomic features of all lesions of a subject, in batches.

The definitions are those of pyradiomics 3.0.1 (bins of 25 ppb, the 13 directions apart, coiflet 1, one level), to which
:mod:`qsmrim_net.radiomics.reference` compares; only the 14 shape features are computed by pyradiomics itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from qsmrim_net.radiomics.first_order import first_order_features
from qsmrim_net.radiomics.glcm import glcm_features
from qsmrim_net.radiomics.glrlm import glrlm_features
from qsmrim_net.radiomics.lesions import LesionFeatures, check_volumes, lesion_voxels, plain
from qsmrim_net.radiomics.levels import grey_levels, lines_of_voxels
from qsmrim_net.radiomics.names import BIN_WIDTH, FEATURES, IMAGES, SHAPE_NAMES
from qsmrim_net.radiomics.shape import shape_features
from qsmrim_net.radiomics.wavelet import voxel_bands

__all__ = ["LesionFeatures", "extract_features"]

_BATCH = 4096  # voxels of the lesions treated at once: what fits into a processor's cache is fastest
_WIDEST = 512  # bins of 25 ppb: no tissue spans that many, and its matrices would fill the memory


def extract_features(qsm: Tensor, labels: Tensor, voxel_size: Sequence[float]) -> LesionFeatures:
    """The 527 radiomic features of all lesions of a subject.

    The wavelet bands take in the voxels up to three beyond a lesion, whatever they belong to. Where these lie outside
    of the volume, the volume repeats itself, as it does in pyradiomics: a lesion at the border sees the opposite one.
    Works on the processor, whatever device the volumes are on.

    Args:
        qsm: susceptibility ``[X, Y, Z]`` [ppb], RAS order.
        labels: ``[X, Y, Z]``, 0 background, 1 to L one value for each lesion.
        voxel_size: (dx, dy, dz) [mm].

    Raises:
        ValueError: for volumes that differ in shape, a susceptibility that is not finite, labels or a voxel size that
            make no sense.
        QMRIError: pyradiomics is not installed.
    """
    qsm, labels = plain(qsm), plain(labels)
    size = check_volumes(qsm, labels, voxel_size)
    voxels = lesion_voxels(labels)
    counts = torch.bincount(voxels.lesion, minlength=len(voxels.labels))
    rows = [torch.empty(0, len(FEATURES), dtype=torch.float64)]
    wild = [torch.empty(0, dtype=torch.bool)]
    for position, batch in _batches(voxels.position, counts):
        some, some_wild = _features(qsm, position, batch, size)
        rows.append(some)
        wild.append(some_wild)
    return voxels.features(torch.cat(rows), torch.cat(wild))


def _batches(position: Tensor, counts: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Lesions, as many at once as the memory allows: their voxels and how many each has."""
    batch = (counts.cumsum(0) - 1) // _BATCH
    sizes = batch.unique_consecutive(return_counts=True)[1].tolist()
    for some in counts.split(sizes) if sizes else ():
        yield position[: int(some.sum())], some
        position = position[int(some.sum()) :]


def _features(
    volume: Tensor, position: Tensor, counts: Tensor, voxel_size: tuple[float, float, float]
) -> tuple[Tensor, Tensor]:
    """Features ``[M, 527]`` of lesions with the voxels ``[N, 3]``, as many for each as ``counts`` says.

    Also says which lesions have values that no tissue has ``[M]``.
    """
    lesions = len(counts)
    lesion = torch.repeat_interleave(torch.arange(lesions), counts)
    values = torch.cat([volume[tuple(position.T)].double()[None], voxel_bands(volume, position)])
    wild = _wild(values, lesion, lesions)
    values[:, wild[lesion]] = 0
    lines = lines_of_voxels(position, lesion, lesions)
    textures = []
    for images in values.split(max(1, len(IMAGES) * _BATCH // len(lesion))):
        levels = grey_levels(images, lesion, lesions)
        first_order = first_order_features(images, lesion, levels, voxel_size[0] * voxel_size[1] * voxel_size[2])
        glcm = glcm_features(levels, lines, lesion)
        textures.append(torch.cat([first_order, glcm, glrlm_features(levels, lines, lesion)], 2))
    texture = torch.cat(textures).transpose(0, 1).reshape(lesions, len(FEATURES) - len(SHAPE_NAMES))
    return torch.cat([shape_features(position, counts.tolist(), voxel_size), texture], 1), wild


def _wild(values: Tensor, lesion: Tensor, lesions: int) -> Tensor:
    """Lesions ``[M]`` whose values ``[J, N]`` span too many bins in any image."""
    index, start = lesion.expand(len(values), -1), torch.zeros(len(values), lesions, dtype=torch.float64)
    highest = start.scatter_reduce(1, index, values, "amax", include_self=False)
    lowest = start.scatter_reduce(1, index, values, "amin", include_self=False)
    return (highest - lowest > (_WIDEST - 1) * BIN_WIDTH).any(0)
