"""Lesions as ragged lists of voxels: the form in which all lesions of a subject are treated at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qsmrim_net.radiomics.names import FEATURES, MINIMUM_VOXELS

__all__ = ["LesionFeatures", "LesionVoxels", "check_volumes", "lesion_voxels", "plain"]

_MOST = 2**16 - 1  # lesions: each has a row, so a stray label must not ask for millions of them


@dataclass
class LesionFeatures:
    """Radiomic features of the lesions of a subject.

    Attributes:
        values: ``[L, 527]``, float64, in the order of :data:`~qsmrim_net.radiomics.names.FEATURES`; row i is that of
            label i + 1; NaN where its status is not "ok".
        status: of each lesion: "ok"; "empty" (no voxel has its label); "too_small" (fewer than three voxels); "line"
            (voxels in one straight line along an axis, which has no shape); "scattered" (no two voxels touch each
            other, so there is no texture); "implausible" (values that span more than 512 bins of 25 ppb, in the image
            or one of its wavelet bands).
    """

    values: Tensor
    status: list[str]


@dataclass
class LesionVoxels:
    """The voxels of the lesions that have features, sorted by lesion.

    Attributes:
        position: voxel indices ``[N, 3]``.
        lesion: which of the M lesions each voxel belongs to ``[N]``, ascending.
        labels: their labels ``[M]``.
        shape: of the volume (X, Y, Z).
        status: of all L lesions, see :class:`LesionFeatures`; "scattered" and "implausible" are found later.
    """

    position: Tensor
    lesion: Tensor
    labels: Tensor
    shape: tuple[int, int, int]
    status: list[str]

    def features(self, values: Tensor, implausible: Tensor | None = None) -> LesionFeatures:
        """Rows for all L lesions.

        Args:
            values: features of the M lesions that have any ``[M, 527]``; NaN where there is no texture.
            implausible: whose rows are void ``[M]``.
        """
        rows = torch.full((len(self.status), len(FEATURES)), torch.nan, dtype=torch.float64)
        known = torch.isfinite(values).all(1)
        if implausible is not None:
            known &= ~implausible
        rows[self.labels[known] - 1] = values[known]
        status = list(self.status)
        for row in (~known).nonzero()[:, 0].tolist():
            wild = implausible is not None and bool(implausible[row])
            status[int(self.labels[row]) - 1] = "implausible" if wild else "scattered"
        return LesionFeatures(rows, status)


def plain(volume: Tensor) -> Tensor:
    """The volume as a tensor without metadata or history, in the processor's memory."""
    return volume.detach().cpu().as_subclass(Tensor)


def check_volumes(qsm: Tensor, labels: Tensor, voxel_size: Sequence[float]) -> tuple[float, float, float]:
    """The checked voxel size [mm].

    Raises:
        ValueError: for volumes that are not three-dimensional or differ in shape, a susceptibility that is not finite,
            labels that are no integers, negative or huge, or a voxel size that is not three positive numbers.
    """
    if qsm.ndim != 3 or qsm.shape != labels.shape:
        raise ValueError(
            f"qsm and labels must be volumes [X, Y, Z] of one shape, got {tuple(qsm.shape)} and {tuple(labels.shape)}"
        )
    if labels.is_floating_point() or labels.is_complex():
        raise ValueError(f"labels must be integers, got {labels.dtype}")
    if labels.numel() and int(labels.min()) < 0:
        raise ValueError(f"labels must be 0 (background) or positive, got {int(labels.min())}")
    if labels.numel() and int(labels.max()) > _MOST:
        raise ValueError(f"labels must be numbered from 1 to {_MOST} at most, got {int(labels.max())}")
    bad = int((~torch.isfinite(qsm)).sum())
    if bad:
        raise ValueError(f"qsm must be finite everywhere, got {bad} voxels that are NaN or infinite")
    size = tuple(float(side) for side in voxel_size)
    if len(size) != 3 or not all(0 < side < float("inf") for side in size):
        raise ValueError(f"voxel_size must be three positive numbers [mm], got {size}")
    return size[0], size[1], size[2]


def lesion_voxels(labels: Tensor) -> LesionVoxels:
    """Lists the voxels of all lesions and says which lesions can have features.

    Args:
        labels: ``[X, Y, Z]``, 0 background, 1 to L one value for each lesion.
    """
    flat = labels.reshape(-1)
    index = flat.nonzero()[:, 0]
    label, order = torch.sort(flat[index].long(), stable=True)
    index = index[order]
    y, z = labels.shape[1:]
    position = torch.stack([index // (y * z), index // z % y, index % z], 1)

    count = torch.bincount(label, minlength=1)[1:]
    each = label[:, None].expand(-1, 3) - 1
    first = torch.zeros(len(count), 3, dtype=torch.long).scatter_reduce(0, each, position, "amin", include_self=False)
    last = torch.zeros(len(count), 3, dtype=torch.long).scatter_reduce(0, each, position, "amax", include_self=False)
    line = (last > first).sum(1) < 2
    status = ["ok"] * len(count)
    for reason, found in (("line", line), ("too_small", count < MINIMUM_VOXELS), ("empty", count == 0)):
        for i in found.nonzero()[:, 0].tolist():
            status[i] = reason
    good = torch.tensor([reason == "ok" for reason in status], dtype=torch.bool)
    kept = good[label - 1]
    lesion = (good.cumsum(0) - 1)[label[kept] - 1]
    shape = (labels.shape[0], y, z)
    return LesionVoxels(position[kept], lesion, good.nonzero()[:, 0] + 1, shape, status)
