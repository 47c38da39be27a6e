"""What is zero in a susceptibility map: the mean over the mask, a region that the user draws, cerebrospinal fluid."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform
from scipy import ndimage
from torch import Tensor

from shared_transforms.errors import QMRIError
from shared_transforms.io import read_mask
from shared_transforms.io.nifti import read_header

REFERENCES = ("none", "mean", "roi", "csf")
COVERED = 0.5  # of a region that must lie in the mask
FLUID_RATE = 5.0  # 1/s, R2* below which a voxel is fluid (Liu et al. 2018)
FLUID_DISTANCE = 30.0  # mm from the middle of the mask: the lateral ventricles, not the fluid around the brain
FLUID_PARTS = 3  # largest connected parts that are kept
FLUID_VOLUME = 0.2  # ml, less is no ventricle


class ReferenceRegiond(MapTransform):
    """Put what the reference needs into the item, before anything is computed.

    ``item["reference_region"]``: boolean [X, Y, Z], from the file, with its name in ``item["reference_name"]``.
    ``item["r2star"]``: [X, Y, Z] [1/s], where the fluid is to be found in the echoes. Nothing for "none" and "mean".
    ``ReferenceInMaskd`` goes on from there when the mask is known.

    Args:
        keys: key of the images: N magnitudes and N phases [2 N, X, Y, Z], or a local field.
        reference: "none", "mean", "roi" (the mean over ``reference_file``) or "csf" (the mean over the fluid of the
            ventricles: over ``reference_file``, or where R2* is low).
        reference_file: NIfTI mask of the region.

    Raises:
        QMRIError: an unknown reference, no region where one is needed, or one that is empty or on another grid.
    """

    def __init__(
        self, keys: KeysCollection = "image", reference: str = "mean", reference_file: str | Path | None = None
    ) -> None:
        super().__init__(keys)
        if reference not in REFERENCES:
            raise QMRIError(
                field="reference", found=repr(reference), expected=f"one of {', '.join(REFERENCES)}",
                remedy="correct the config",
            )  # fmt: skip
        if reference == "roi" and reference_file is None:
            raise QMRIError(
                field="reference_file", found="none", expected="a NIfTI mask of the region for reference roi",
                remedy="give reference_file=PATH, or set reference to mean",
            )  # fmt: skip
        self.reference, self.reference_file = reference, reference_file

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item with the region or the relaxation rate."""
        item = dict(data)
        if self.reference in ("none", "mean"):
            return item
        for key in self.key_iterator(item):
            times = item["acquisition"].get("echo_times")
            if self.reference_file is not None:
                region, notes = read_mask(
                    Path(self.reference_file), read_header(Path(item["sources"][0])), "reference_file"
                )
                item["reference_region"] = torch.from_numpy(region)
                item["reference_name"] = f"the mean over {Path(self.reference_file).name}"
                item["notes"] = [*item.get("notes", []), *notes]
                item["sources"] = [*item["sources"], str(self.reference_file)]
            elif times is None:
                raise QMRIError(
                    file=item["sources"][0], field="reference_file", found="none, and no echoes to find the fluid in",
                    expected="a NIfTI mask of the cerebrospinal fluid for reference csf",
                    remedy="give reference_file=PATH, or set reference to mean",
                )  # fmt: skip
            else:
                item["r2star"] = relaxation_rate(item[key][: len(times)].as_tensor(), times.tolist())
        return item


class ReferenceInMaskd(MapTransform):
    """Find the fluid in R2*, or check that the region lies in the mask, which is known by now.

    ``item["reference_region"]`` loses what is outside of the mask; for "csf" it is ``item["csf_mask"]`` too, for MEDI.

    Args:
        keys: key of the mask, boolean [1, X, Y, Z].
        reference: as given to ``ReferenceRegiond``.

    Raises:
        QMRIError: a region that lies outside of the mask for the most part, or no fluid.
    """

    def __init__(self, keys: KeysCollection = "mask", reference: str = "mean") -> None:
        super().__init__(keys)
        self.reference = reference

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item with the region."""
        item = dict(data)
        if self.reference in ("none", "mean"):
            return item
        for key in self.key_iterator(item):
            mask = item[key][0].cpu()
            if "r2star" in item:
                voxel_size = item["acquisition"]["voxel_size"].tolist()
                item["reference_region"] = fluid_mask(item.pop("r2star"), mask, voxel_size, item["sources"][0])
                item["reference_name"] = f"cerebrospinal fluid, found by R2* below {FLUID_RATE:g} 1/s"
            region = item["reference_region"]
            share = float((region & mask).sum()) / float(region.sum())
            if share < COVERED:
                raise QMRIError(
                    file=item["sources"][-1], field="reference_file", found=f"{share:.0%} of the region is in the mask",
                    expected=f"at least {COVERED:.0%}", remedy="draw the region in the mask, or take another mask",
                )  # fmt: skip
            item["reference_region"] = region & mask
            if self.reference == "csf":
                item["csf_mask"] = item["reference_region"]
        return item


def relaxation_rate(magnitude: Tensor, echo_times: Sequence[float]) -> Tensor:
    """R2* by a straight line through the logarithm of the echoes, weighted by their squares.

    Args:
        magnitude: ``[N, X, Y, Z]``, not negative.
        echo_times: N of them [s].

    Returns:
        ``[X, Y, Z]`` [1/s]; infinite where there is no signal in two echoes.
    """
    times = torch.tensor(echo_times, dtype=magnitude.dtype, device=magnitude.device).reshape(-1, 1, 1, 1)
    weight = magnitude.square()
    weight = weight / weight.sum(0).clamp(min=torch.finfo(weight.dtype).tiny)
    logarithm = torch.where(magnitude > 0, magnitude, 1.0).log()
    centred = times - (weight * times).sum(0)
    variance = (weight * centred.square()).sum(0)
    slope = (weight * centred * logarithm).sum(0) / variance.clamp(min=torch.finfo(weight.dtype).tiny)
    return torch.where(variance > 0, -slope, torch.inf)


def fluid_mask(r2star: Tensor, mask: Tensor, voxel_size: Sequence[float], file: str) -> Tensor:
    """Cerebrospinal fluid of the ventricles: connected voxels of low R2* around the middle of the brain.

    Args:
        r2star: ``[X, Y, Z]`` [1/s].
        mask: boolean ``[X, Y, Z]``.
        voxel_size: [mm].
        file: for the message.

    Returns:
        Boolean ``[X, Y, Z]``.

    Raises:
        QMRIError: less fluid than any ventricle holds.

    Source: Liu, Spincemaille, Yao, Zhang, Wang, "MEDI+0: morphology enabled dipole inversion with automatic uniform
    cerebrospinal fluid zero reference", Magn. Reson. Med. 79 (2018) 2795-2803.
    """
    inside = mask.cpu().numpy()
    sizes = np.asarray(voxel_size)
    # The median takes the noise out of a rate that few echoes give, and keeps edges.
    rate = ndimage.median_filter(np.nan_to_num(r2star.cpu().numpy(), posinf=1e3), size=3)
    middle = np.argwhere(inside).mean(0)
    offsets = [((np.arange(n) - c) * s) ** 2 for n, c, s in zip(inside.shape, middle, sizes, strict=True)]
    near = sum(np.ix_(*offsets)) < FLUID_DISTANCE**2
    parts, count = ndimage.label(inside & near & (rate < FLUID_RATE))
    volumes = np.bincount(parts.ravel(), minlength=count + 1)[1:] * sizes.prod() / 1000.0
    kept = [i + 1 for i in np.argsort(volumes)[::-1][:FLUID_PARTS] if volumes[i] >= FLUID_VOLUME]
    if not kept:
        raise QMRIError(
            file=file, field="reference", found=f"no fluid: no part of {FLUID_VOLUME:g} ml with R2* below "
            f"{FLUID_RATE:g} 1/s within {FLUID_DISTANCE:g} mm of the middle of the mask",
            expected="ventricles in the field of view, for reference csf",
            remedy="give a mask of the fluid, reference_file=PATH, or set reference to mean",
        )  # fmt: skip
    return torch.from_numpy(np.isin(parts, kept))


def zero_of(chi: Tensor, mask: Tensor, item: Mapping[Hashable, Any], reference: str) -> tuple[float, str]:
    """The value of a susceptibility map that becomes zero [ppm], and what to say of it.

    Args:
        chi: ``[X, Y, Z]`` [ppm].
        mask: boolean ``[X, Y, Z]``.
        item: what ``ReferenceInMaskd`` returned.
        reference: as given to ``ReferenceRegiond``.
    """
    if reference == "none":
        return 0.0, "nothing: as the method leaves it"
    if reference == "mean":
        return float(chi[mask].mean()), "its mean over the mask"
    inside = item["reference_region"] & mask
    count, spread = int(inside.sum()), float(chi[inside].std(correction=0))
    return float(chi[inside].mean()), f"{item['reference_name']} ({count} voxels, standard deviation {spread:.3f} ppm)"
