"""A head as tissue fractions: nilearn's MNI152 template with shells around it, or a user's own files."""

from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import QMRIError
from .shells import add_shells

TISSUES: tuple[str, ...] = ("csf", "gm", "wm", "fat", "muscle", "muscle_skin", "skull", "vessels", "marrow")
# BrainWeb's labels 1-11; connective tissue has no channel of its own and joins fat, dura (10) joins muscle_skin.
_LABEL_TO_TISSUE = {1: 0, 2: 1, 3: 2, 4: 3, 5: 4, 6: 5, 7: 6, 8: 7, 9: 3, 10: 5, 11: 8}
_SHARPNESS = 1.5


@dataclass(frozen=True, eq=False)
class Head:
    """One anatomy.

    Attributes:
        fractions: [9, X, Y, Z] float32, volume fraction of each of `TISSUES` in a voxel; background is what is left of 1.
            X runs to the right, Y to the front, Z upwards (RAS).
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


def brain_mask(fractions: Tensor) -> Tensor:
    """Where csf + gm + wm exceed one half.

    Args:
        fractions: [..., 9, *shape] with the tissues at dimension 0 or, for a batch of slices [n, 9, H, W], 1.

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


@lru_cache(maxsize=3)
def load_head(
    resolution_mm: float = 1.0,
    source: str = "mni152",
    folder: str | Path | None = None,
    subject: int = 0,
    seed: int = 0,
) -> Head:
    """Load a head; the last three stay in memory.

    Args:
        resolution_mm: voxel size of the template, a whole number of mm (folders keep their own).
        source: "mni152" (nilearn's packaged template; Fonov et al., NeuroImage 54, 2011), used without a folder.
        folder: a folder of `*.nii` or `*.nii.gz`, each one head: BrainWeb labels [X, Y, Z] with values 0-11, or fractions
            [X, Y, Z, 9] in the order of `TISSUES`. Voxels must be cubic to within 1 %.
        subject: number of the file in the sorted folder.
        seed: of the shells and vessels around the template.

    Returns:
        The head, on the CPU.

    Raises:
        QMRIError: where an argument or a file is unusable.
    """
    if folder is not None:
        return _load_own(folder, subject)
    if source != "mni152":
        raise QMRIError(
            field="source",
            found=repr(source),
            expected='"mni152", or a folder',
            remedy="give the folder of your own heads",
        )
    step = int(resolution_mm)
    if step != resolution_mm or not 1 <= step <= 8:
        raise QMRIError(
            field="resolution_mm", found=resolution_mm, expected="1, 2, ... 8 mm", remedy="choose a whole number of mm"
        )
    fractions = _mni152(seed)
    if step > 1:
        fractions = F.avg_pool3d(fractions[None], step)[0]
    return Head(fractions, float(step), f"mni152 shells {seed}")


def _mni152(seed: int) -> Tensor:
    """Fractions [9, 197, 233, 189] at 1 mm, voxel (0, 0, 0) at MNI (-98, -134, -72) mm."""
    from nilearn import datasets  # 3 s to import: only when used

    gm, wm, mask = (
        torch.from_numpy(np.asarray(load(resolution=1).dataobj, dtype=np.float32))
        for load in (
            datasets.load_mni152_gm_template,
            datasets.load_mni152_wm_template,
            datasets.load_mni152_brain_mask,
        )
    )
    # The template's probabilities are means over 152 people; a power makes them as crisp as one person's voxels.
    csf = (1 - gm - wm).clamp_min(0) * mask
    csf, gm, wm = (part.pow_(_SHARPNESS) for part in (csf, gm, wm))
    total = (csf + gm + wm).clamp_min(1e-6)
    inside = mask > 0
    return add_shells(gm / total * inside, wm / total * inside, inside, seed)


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


def _load_own(folder: str | Path, subject: int) -> Head:
    """Read one of a user's heads."""
    import nibabel

    files = _files(folder)
    if not 0 <= subject < len(files):
        raise QMRIError(
            file=str(folder),
            field="subject",
            found=subject,
            expected=f"0 to {len(files) - 1}",
            remedy="choose a file's number",
        )
    file = files[subject]
    try:
        image = nibabel.as_closest_canonical(nibabel.load(file))  # type: ignore[arg-type]
        data = np.asarray(image.dataobj, dtype=np.float32)  # type: ignore[attr-defined]
    except Exception as error:  # nibabel, zlib and numpy each raise their own kinds
        raise QMRIError(
            file=str(file),
            field="image",
            found=str(error),
            expected="a readable NIfTI image",
            remedy="write the file again",
        ) from error
    sizes = np.asarray(image.header.get_zooms()[:3], dtype=float)  # type: ignore[attr-defined]
    if not np.isfinite(sizes).all() or sizes.min() <= 0 or sizes.max() > 1.01 * sizes.min():
        raise QMRIError(
            file=str(file),
            field="voxel size",
            found=sizes.tolist(),
            expected="cubic voxels",
            remedy="resample the image",
        )
    return Head(_as_fractions(torch.from_numpy(data), file), float(sizes.mean()), file.name)


def _as_fractions(data: Tensor, file: Path) -> Tensor:
    """Turn labels [X, Y, Z] or fractions [X, Y, Z, 9] into fractions [9, X, Y, Z]."""
    if data.ndim == 4 and data.shape[3] == len(TISSUES):
        total = data.sum(3)
        if bool(torch.isfinite(data).all()) and float(data.min()) >= -1e-4 and float(total.max()) <= 1 + 1e-3:
            data = data.clamp_min(0) / total.clamp_min(1)[..., None]
            return data.permute(3, 0, 1, 2).contiguous()
        found = f"values {float(data.min()):.4g} to {float(data.max()):.4g}, largest sum {float(total.max()):.4g}"
        raise QMRIError(
            file=str(file), field="fractions", found=found, expected="values >= 0, sum <= 1", remedy="divide by the sum"
        )
    if data.ndim == 3 and bool(torch.isin(data, torch.arange(12.0)).all()):
        channel = torch.zeros(12, len(TISSUES))
        for label, tissue in _LABEL_TO_TISSUE.items():
            channel[label, tissue] = 1.0
        return channel[data.long()].permute(3, 0, 1, 2).contiguous()
    raise QMRIError(
        file=str(file),
        field="image",
        found=f"shape {tuple(data.shape)}, values {float(data.min()):.4g} to {float(data.max()):.4g}",
        expected="labels 0-11 of shape [X, Y, Z], or fractions of shape [X, Y, Z, 9]",
        remedy="convert the image",
    )
