"""From volumes and labels to what the network sees: one masked patch for each lesion, and the lesions' geometry.

Source: paper of the bundle qsmrim_net (NeuroImage: Clinical 2022, doi 10.1016/j.nicl.2022.102979), section 2.2: QSM and
FLAIR of one lesion, zero outside of it, its centre of mass in the middle. All lesions of a subject are made at once.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from shared_transforms.errors import QMRIError

__all__ = [
    "PATCH_SIZE",
    "QSM_SCALE",
    "lesion_geometry",
    "lesion_patches",
    "normalise_flair",
    "patch_corners",
    "reference_qsm",
]

PATCH_SIZE = (24, 24, 8)  # voxels; the largest rim lesions measure 15 x 20 x 5 at .75 x .75 x 3 mm
QSM_SCALE = 50.0  # ppb that become 1 in a patch
_MAD_TO_DEVIATION = 1.4826  # of a normal distribution


def reference_qsm(qsm_ppb: Tensor, brain: Tensor) -> Tensor:
    """Susceptibility with the median of the brain at 0: maps come with different zeros (CSF, the mean, none).

    Args:
        qsm_ppb: [X, Y, Z] in ppb; exact zeros are voxels without a value.
        brain: boolean [X, Y, Z].

    Returns:
        [X, Y, Z] float32 in ppb; voxels without a value stay 0.

    Raises:
        ValueError: the shapes differ.
        QMRIError: no voxel of the brain has a value.
    """
    if qsm_ppb.shape != brain.shape:
        shapes = f"{tuple(qsm_ppb.shape)} and {tuple(brain.shape)}"
        raise ValueError(f"qsm_ppb and brain: equal shapes are needed, got {shapes}")
    qsm = qsm_ppb.float()
    inside = qsm[brain.bool() & (qsm != 0)]
    if not len(inside):
        raise QMRIError(
            field="QSM", found="no value inside of the brain", expected="a map of the brain",
            remedy="give QSM and mask of one brain, on one grid",
        )  # fmt: skip
    return torch.where(qsm != 0, qsm - inside.median(), 0.0)


def normalise_flair(flair: Tensor, brain: Tensor) -> Tensor:
    """FLAIR with the median of the brain at 0 and its robust standard deviation at 1.

    Args:
        flair: [X, Y, Z], arbitrary units.
        brain: boolean [X, Y, Z].

    Returns:
        (value - median) / (1.4826 MAD), both over the brain, [X, Y, Z] float32. The median of an even number of voxels
        is the lower of the two middle ones.

    Raises:
        ValueError: the shapes differ.
        QMRIError: no voxel of the brain, or half of the brain of one value, so that there is no spread.
    """
    if flair.shape != brain.shape:
        raise ValueError(f"flair and brain: equal shapes are needed, got {tuple(flair.shape)} and {tuple(brain.shape)}")
    inside = flair.float()[brain.bool()]
    if not len(inside):
        raise QMRIError(
            field="brain mask", found="no voxel", expected="a mask of the brain", remedy="give a mask of the brain"
        )
    median = inside.median()
    spread = _MAD_TO_DEVIATION * (inside - median).abs().median()
    if not spread > 0:
        raise QMRIError(
            field="FLAIR", found=f"the value {float(median):g} in half of the brain or more", expected="an image of "
            "the brain with contrast", remedy="take the FLAIR image itself, not a mask or a cut-out of it",
        )  # fmt: skip
    return (flair.float() - median) / spread


def lesion_patches(
    qsm_ppb: Tensor,
    flair_normalised: Tensor,
    labels: Tensor,
    size: Sequence[int] = PATCH_SIZE,
    scale: float = QSM_SCALE,
) -> Tensor:
    """QSM and FLAIR of every lesion, zero outside of the lesion.

    Args:
        qsm_ppb: susceptibility [X, Y, Z] in ppb.
        flair_normalised: FLAIR [X, Y, Z], see :func:`normalise_flair`.
        labels: [X, Y, Z] integers, 0 for the background and 1..L, one value for each lesion.
        size: voxels of a patch along X, Y, Z.
        scale: susceptibility [ppb] that becomes 1.

    Returns:
        [L, 2, *size] float32, QSM / scale then FLAIR, in the order of the labels. The centre of mass, rounded to a
        voxel (halves upwards), lies at index size // 2; what of a lesion lies beyond the patch is cut off. A label
        without voxels gives zeros.

    Raises:
        ValueError: shapes that differ, or a size that is no three positive numbers.
    """
    if not qsm_ppb.shape == flair_normalised.shape == labels.shape or labels.ndim != 3:
        shapes = ", ".join(str(tuple(v.shape)) for v in (qsm_ppb, flair_normalised, labels))
        raise ValueError(
            f"qsm_ppb, flair_normalised and labels: three volumes [X, Y, Z] of one shape are needed, got {shapes}"
        )
    if len(size) != 3 or min(size) < 1:
        raise ValueError(f"size: three positive numbers of voxels are needed, got {tuple(size)}")
    first = patch_corners(lesion_geometry(labels)["centroid"], size)
    flat = torch.zeros((), dtype=torch.long, device=labels.device)
    within = torch.ones((), dtype=torch.bool, device=labels.device)
    for axis, (n, extent) in enumerate(zip(size, labels.shape, strict=True)):
        index = first[:, axis, None] + torch.arange(n, device=labels.device)  # [L, n]
        index = index.reshape(len(first), *(n if a == axis else 1 for a in range(3)))
        within = within & (index >= 0) & (index < extent)
        flat = flat * extent + index.clamp(0, extent - 1)
    own = torch.arange(1, len(first) + 1, device=labels.device).reshape(-1, 1, 1, 1)
    lesion = within & (labels.reshape(-1)[flat] == own)
    channels = (qsm_ppb.float() / scale, flair_normalised.float())
    return torch.stack([torch.where(lesion, c.reshape(-1)[flat], 0.0) for c in channels], dim=1)


def patch_corners(centroid: Tensor, size: Sequence[int] = PATCH_SIZE) -> Tensor:
    """First voxel [L, 3] int64 of the patch of each lesion, which may lie before the volume.

    Args:
        centroid: [L, 3], in voxel indices; NaN counts as 0.
        size: voxels of a patch along X, Y, Z.
    """
    half = torch.tensor([n // 2 for n in size], device=centroid.device)
    return torch.floor(centroid.nan_to_num() + 0.5).long() - half


def lesion_geometry(labels: Tensor, voxel_size: Sequence[float] | Tensor = (1.0, 1.0, 1.0)) -> dict[str, Tensor]:
    """Size and place of every lesion.

    Args:
        labels: [X, Y, Z] integers, 0 for the background and 1..L.
        voxel_size: along X, Y, Z [mm].

    Returns:
        In the order of the labels: ``voxels`` [L] int64; ``volume_ml`` [L] float64; ``centroid`` [L, 3] float64, the
        centre of mass in voxel indices; ``lower`` and ``upper`` [L, 3] int64, the bounding box as first index and last
        index + 1. A label without voxels has a centroid of NaN and a box of zeros.

    Raises:
        ValueError: labels that are no volume [X, Y, Z], are no integers, or are negative.
    """
    if labels.ndim != 3 or labels.is_floating_point():
        raise ValueError(f"labels: integers [X, Y, Z] are needed, got {labels.dtype} {tuple(labels.shape)}")
    position = labels.nonzero()  # [K, 3]
    value = labels[labels != 0].long()  # in the order of nonzero
    if len(value) and int(value.min()) < 0:
        raise ValueError(f"labels: no negative number is allowed, got {int(value.min())}")
    count, row = int(value.max()) if len(value) else 0, value - 1
    voxels = torch.bincount(row, minlength=count)
    total = position.new_zeros(count, 3).index_add_(0, row, position)  # integers: exact in any order
    rows = row[:, None].expand(-1, 3)
    lower = position.new_zeros(count, 3).scatter_reduce_(0, rows, position, "amin", include_self=False)
    upper = position.new_zeros(count, 3).scatter_reduce_(0, rows, position + 1, "amax")
    millilitres = float(torch.as_tensor(voxel_size, dtype=torch.float64).prod()) / 1000
    return {
        "voxels": voxels,
        "volume_ml": voxels.double() * millilitres,
        "centroid": total.double() / voxels[:, None],
        "lower": lower,
        "upper": upper,
    }
