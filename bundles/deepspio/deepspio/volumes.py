"""Proton density volumes of a user's folder (IXI), as heads that can be cut."""

from __future__ import annotations

from functools import cached_property, lru_cache
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from shared_transforms.anatomy import Head
from shared_transforms.errors import QMRIError
from shared_transforms.io.nifti import is_nifti, read_data, read_header, read_volume

BRIGHTEST = 99.5  # percentile of the signal that becomes the density 1
FOREGROUND = 0.3  # of it, from here on a voxel belongs to the head
_STEP = 4  # voxels between those that are looked at to find the head
_KEPT = 64  # volumes in memory, 11 MB each for IXI


class Volume(Head):
    """Intensities ``[1, X, Y, Z]`` in [0, 1] in the place of fractions; the head, not the brain, is the foreground."""

    @cached_property
    def brain_voxels(self) -> Tensor:
        """Indices ``[M, 3]`` int16 of voxels of the head, one of 64; on the CPU."""
        coarse = self.fractions[0, ::_STEP, ::_STEP, ::_STEP] > FOREGROUND
        return (coarse.nonzero() * _STEP).to("cpu", torch.int16)

    def to(self, device: torch.device | str) -> Volume:
        """The same volume on another device."""
        return Volume(self.fractions.to(device), self.voxel_size_mm, self.name)


def draw_file(generator: torch.Generator, folder: Path, split: str) -> str:
    """Choose a volume of a folder.

    Args:
        generator: random stream on the CPU.
        folder: holds `*.nii` or `*.nii.gz`.
        split: one of `SPLITS`; from ten files on each has files of its own.

    Raises:
        QMRIError: where there is no such file.
    """
    files = sorted(item for item in folder.iterdir() if is_nifti(item)) if folder.is_dir() else []
    if not files:
        raise QMRIError(
            file=folder,
            field="folder",
            found="no NIfTI file" if folder.is_dir() else "no such folder",
            expected="proton density volumes *.nii or *.nii.gz",
            remedy="give the folder that holds them, or none for the MNI152 template",
        )
    if len(files) >= 10:
        parts = {"train": range(8), "val": (8,), "test": (9,)}
        files = [item for k, item in enumerate(files) if k % 10 in parts[split]]
    return str(files[int(torch.randint(len(files), (), generator=generator))])


def volume_head(file: str) -> Volume:
    """The volume of a file as a head with cubic voxels; the last 64 stay in memory, with 256 grey values.

    Args:
        file: a 3-D NIfTI image of any orientation.

    Raises:
        QMRIError: where it is no readable 3-D image with a signal.
    """
    values, size = _volume(file)
    return Volume(values.float().div_(255.0)[None], size, Path(file).name)


@lru_cache(maxsize=_KEPT)
def _volume(file: str) -> tuple[Tensor, float]:
    """Grey values ``[X, Y, Z]`` uint8 along right, anterior, superior, and the edge of the voxels [mm]."""
    info = read_header(Path(file))
    if info.n_volumes != 1 or min(info.shape) < 2:
        raise QMRIError(
            file=file,
            field="dim",
            found=f"{info.shape} voxels, {info.n_volumes} volumes",
            expected="one volume",
            remedy="take the proton density volume out of the series",
        )
    data = np.empty(info.shape, dtype=np.float32)
    read_volume(info, read_data(info), 0, data)
    orientation = nib.io_orientation(info.affine)
    data = np.ascontiguousarray(nib.apply_orientation(data, orientation))
    sizes = [info.voxel_size[int(axis)] for axis in np.argsort(orientation[:, 0])]
    positive = data[data > 0]
    if not len(positive):
        raise QMRIError(
            file=file, field="voxel values", found="no positive value", expected="magnitudes", remedy="check the image"
        )
    data = np.clip(data / np.percentile(positive, BRIGHTEST), 0.0, 1.0)
    edge = min(sizes)
    shape = [max(2, round(n * size / edge)) for n, size in zip(data.shape, sizes, strict=True)]
    cubic = F.interpolate(torch.from_numpy(data)[None, None], size=shape, mode="trilinear", align_corners=False)
    return cubic[0, 0].mul_(255.0).round_().to(torch.uint8), float(edge)
