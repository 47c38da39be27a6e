"""A head as tissue fractions: nilearn's MNI152 template with shells around it, or a user's own files."""

from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from shared_transforms.anatomy.shells import add_shells
from shared_transforms.errors import QMRIError

TISSUES: tuple[str, ...] = ("csf", "gm", "wm", "fat", "muscle", "muscle_skin", "skull", "vessels", "marrow")
# BrainWeb's labels 1-11; connective tissue has no channel of its own and joins fat, dura (10) joins muscle_skin.
_LABEL_TO_TISSUE = {1: 0, 2: 1, 3: 2, 4: 3, 5: 4, 6: 5, 7: 6, 8: 7, 9: 3, 10: 5, 11: 8}
# The template's probabilities are means over 152 people: boundaries are wide and fissures washed out. A power makes
# them as crisp as one person's voxels, a weight gives the fissures their fluid back.
_SHARPNESS = 2.0
_CSF_WEIGHT = 1.6


@dataclass(frozen=True, eq=False)
class Head:
    """One anatomy.

    Attributes:
        fractions: [9, X, Y, Z] float32, volume fraction of each of `TISSUES` in a voxel; background is what is left
            of 1. X runs to the right, Y to the front, Z upwards (RAS).
        voxel_size_mm: edge of the cubic voxels [mm].
        name: where it comes from.
    """

    fractions: Tensor
    voxel_size_mm: float
    name: str

    def to(self, device: torch.device | str) -> "Head":
        """The same head on another device."""
        return Head(self.fractions.to(device), self.voxel_size_mm, self.name)

    @property
    def middle_voxel(self) -> Tensor:
        """Indices [3] of the middle of the volume, the origin of all positions; on the CPU."""
        return (torch.tensor(self.fractions.shape[1:], dtype=torch.float32) - 1) / 2

    @cached_property
    def brain_voxels(self) -> Tensor:
        """Indices [M, 3] int16 of the voxels in `brain_mask`; on the CPU."""
        return brain_mask(self.fractions).nonzero().to("cpu", torch.int16)

    @cached_property
    def brain_centre(self) -> Tensor:
        """Mean [3] of `brain_voxels`; on the CPU."""
        return self.brain_voxels.double().mean(0).float()


def brain_mask(fractions: Tensor) -> Tensor:
    """Where csf + gm + wm exceed one half.

    Args:
        fractions: a volume [9, X, Y, Z], a slice [9, H, W] or slices [n, 9, H, W].

    Returns:
        Boolean mask without the tissue dimension.
    """
    return fractions.narrow(_tissue_dimension(fractions), 0, 3).sum(_tissue_dimension(fractions)) > 0.5


def head_mask(fractions: Tensor) -> Tensor:
    """Where the tissues together exceed one tenth; arguments and result as `brain_mask`."""
    return fractions.sum(_tissue_dimension(fractions)) > 0.1


def _tissue_dimension(fractions: Tensor) -> int:
    """Dimension of the tissues: 0 for one volume [9, X, Y, Z] or slice [9, H, W], 1 for slices [n, 9, H, W]."""
    if fractions.ndim == 4 and fractions.shape[1] == len(TISSUES) and fractions.shape[0] != len(TISSUES):
        return 1
    return 0


def count_heads(folder: str | Path) -> int:
    """Number of NIfTI files in a user's folder."""
    return len(_files(folder))


def load_head(
    resolution_mm: float = 1.0,
    source: str = "mni152",
    folder: str | Path | None = None,
    subject: int = 0,
    seed: int = 0,
) -> Head:
    """Load a head. The last two stay in memory (0.3 GB each at 1 mm); keep more of them yourself.

    Args:
        resolution_mm: voxel size. The template has 1, 2, ... 8 mm; finer voxels of a folder are averaged to the nearest
            whole multiple of their own size, which turns labels into fractions.
        source: "mni152" (nilearn's packaged template; Fonov et al., NeuroImage 54, 2011), used without a folder.
        folder: a folder of `*.nii` or `*.nii.gz`, each one head: BrainWeb labels [X, Y, Z] with values 0-11, or
            fractions [X, Y, Z, 9] in the order of `TISSUES`. Voxels must be cubic to within 1 %.
        subject: number of the file in the sorted folder.
        seed: of the shells and vessels around the template.

    Returns:
        The head, on the CPU.

    Raises:
        QMRIError: where an argument or a file is unusable.
    """
    return _load(float(resolution_mm), source, None if folder is None else str(folder), subject, seed)


@lru_cache(maxsize=2)
def _load(resolution_mm: float, source: str, folder: str | None, subject: int, seed: int) -> Head:
    """`load_head` with its arguments in one form, so that equal requests meet in the cache."""
    if not 0 < resolution_mm <= 8 or (folder is None and resolution_mm % 1):
        raise QMRIError(
            field="resolution_mm",
            found=resolution_mm,
            expected="a whole number of mm, 1 to 8" if folder is None else "more than 0 and at most 8 mm",
            remedy="choose another resolution",
        )
    if folder is not None:
        return _load_own(folder, subject, resolution_mm)
    if source != "mni152":
        raise QMRIError(
            field="source",
            found=repr(source),
            expected='"mni152", or a folder',
            remedy="give the folder of your own heads",
        )
    fractions = _pool(_mni152(seed), int(resolution_mm))
    return Head(fractions, resolution_mm, f"mni152 with shells {seed}")


def _pool(fractions: Tensor, step: int) -> Tensor:
    """Mean of [C, X, Y, Z] over cubes of step voxels."""
    return F.avg_pool3d(fractions[None], step)[0] if step > 1 else fractions


def _mni152(seed: int) -> Tensor:
    """Fractions [9, 197, 233, 189] at 1 mm, voxel (0, 0, 0) at MNI (-98, -134, -72) mm."""
    try:
        from nilearn import datasets  # 3 s to import: only when used
    except ImportError as error:
        raise QMRIError(
            field="source",
            found="nilearn is not installed",
            expected="nilearn, which brings the MNI152 template",
            remedy="pip install nilearn, or give the folder of your own heads",
        ) from error

    gm, wm, mask = (
        torch.from_numpy(np.asarray(load(resolution=1).dataobj, dtype=np.float32))
        for load in (
            datasets.load_mni152_gm_template,
            datasets.load_mni152_wm_template,
            datasets.load_mni152_brain_mask,
        )
    )
    csf = _CSF_WEIGHT * (1 - gm - wm).clamp_min_(0)
    csf, gm, wm = (part.pow_(_SHARPNESS) for part in (csf, gm, wm))
    scale = mask / (csf + gm + wm).clamp_min_(1e-6)
    return add_shells(gm.mul_(scale), wm.mul_(scale), mask > 0, seed)


def _files(folder: str | Path) -> list[Path]:
    """NIfTI files of a folder, sorted."""
    path = Path(folder)
    files = sorted(item for item in path.glob("*") if item.name.endswith((".nii", ".nii.gz"))) if path.is_dir() else []
    if not files:
        raise QMRIError(
            file=str(path),
            field="folder",
            found="no NIfTI file" if path.is_dir() else "no such folder",
            expected="*.nii or *.nii.gz: BrainWeb labels [X, Y, Z] or fractions [X, Y, Z, 9]",
            remedy="give the folder that holds them, or none for the template",
        )
    return files


def _load_own(folder: str, subject: int, resolution_mm: float) -> Head:
    """Read one of a user's heads."""
    files = _files(folder)
    if not 0 <= subject < len(files):
        raise QMRIError(
            file=folder,
            field="subject",
            found=subject,
            expected=f"0 to {len(files) - 1}",
            remedy="choose the number of a file",
        )
    data, sizes = _read(files[subject])
    if not np.isfinite(sizes).all() or sizes.min() <= 0 or sizes.max() > 1.01 * sizes.min():
        raise QMRIError(
            file=files[subject],
            field="voxel size",
            found=sizes.tolist(),
            expected="cubic voxels",
            remedy="resample the image",
        )
    size = float(sizes.mean())
    step = max(1, round(resolution_mm / size))
    if step > min(data.shape[:3]):
        step = 1
    return Head(_as_fractions(data, step, files[subject]), size * step, files[subject].name)


def _read(file: Path) -> tuple[Tensor, np.ndarray]:
    """Voxels in RAS order and their three sizes [mm]."""
    import nibabel

    try:
        image: Any = nibabel.load(file)
        image = nibabel.as_closest_canonical(image)
        data = np.asarray(image.dataobj, dtype=np.float32)
    except Exception as error:  # nibabel, zlib and numpy each raise their own kinds
        raise QMRIError(
            file=file,
            field="image",
            found=str(error),
            expected="a readable NIfTI image",
            remedy="write the file again",
        ) from error
    return torch.from_numpy(data), np.asarray(image.header.get_zooms()[:3], dtype=float)


def _as_fractions(data: Tensor, step: int, file: Path) -> Tensor:
    """Turn labels [X, Y, Z] or fractions [X, Y, Z, 9] into fractions [9, X, Y, Z], means over cubes of step voxels."""
    if data.ndim == 4 and data.shape[3] == len(TISSUES):
        total = data.sum(3)
        if bool(torch.isfinite(data).all()) and float(data.min()) >= -1e-4 and float(total.max()) <= 1 + 1e-3:
            data = data.clamp_min(0) / total.clamp_min(1)[..., None]
            return _pool(data.permute(3, 0, 1, 2).contiguous(), step)
        raise QMRIError(
            file=file,
            field="fractions",
            found=f"values {float(data.min()):.4g} to {float(data.max()):.4g}, largest sum {float(total.max()):.4g}",
            expected="values >= 0, sum <= 1",
            remedy="divide by the sum",
        )
    if data.ndim == 3 and bool(torch.isin(data, torch.arange(12.0)).all()):
        tissue = torch.full((12,), -1, dtype=torch.int8)
        tissue[list(_LABEL_TO_TISSUE)] = torch.tensor(list(_LABEL_TO_TISSUE.values()), dtype=torch.int8)
        tissues = tissue[data.long()]
        # One tissue after the other: nine float copies of a head at 0.5 mm would take 2 GB.
        return torch.cat([_pool((tissues == k).float()[None], step) for k in range(len(TISSUES))])
    raise QMRIError(
        file=file,
        field="image",
        found=f"shape {tuple(data.shape)}, values {float(data.min()):.4g} to {float(data.max()):.4g}",
        expected="labels 0-11 of shape [X, Y, Z], or fractions of shape [X, Y, Z, 9]",
        remedy="convert the image",
    )
