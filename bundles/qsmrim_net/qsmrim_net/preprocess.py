"""What a FLAIR may need before lesions are looked at: its bias field divided out, and the way to the grid of the QSM.

N4 (Tustison et al., IEEE TMI 29:1310, 2010) is that of ITK 5 by SimpleITK, which pyradiomics brings along.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from monai.config import KeysCollection
from monai.data.meta_tensor import MetaTensor
from monai.transforms import MapTransform
from scipy import ndimage
from skimage.filters import threshold_otsu

from qsmrim_net.radiomics.pyradiomics import one_thread
from qsmrim_net.registration import Alignment, Array, Matrix, overlap, register, resample, simple_itk
from shared_transforms.errors import QMRIError
from shared_transforms.io.lesion_maps import check_lesion_overlap

__all__ = ["METHODS", "CorrectBiasd", "RegisterFlaird", "bias_field"]

METHODS = ("affine", "rigid", "header")
_BIAS_VOXEL = 6.0  # mm: a bias field is smooth over centimetres
_BIAS_ITERATIONS = (50, 50, 50)
_MOST_TURN, _MOST_SCALE = 45.0, 1.25  # degrees; beyond, a registration has failed
_LEAST_COVERED, _WELL_COVERED = 0.6, 0.9  # of the brain by the field of view of the FLAIR


class CorrectBiasd(MapTransform):
    """Divide the bias field of the FLAIR out (N4).

    Works on the first channel of ``item["flair"]`` where there is one, a FLAIR on its own grid, and else on the second
    channel of ``item[keys]`` [3, X, Y, Z]. The mean over the head stays; voxels of 0 stay 0. ``details`` of the item
    says how large the field was.

    Args:
        keys: the one key of the images.
        voxel_mm: the field is found on voxels of about this size [mm].
        iterations: at most, at each level; every level has splines twice as fine as the one before.

    Raises:
        QMRIError: SimpleITK is missing.
    """

    def __init__(
        self,
        keys: KeysCollection = "image",
        voxel_mm: float = _BIAS_VOXEL,
        iterations: Sequence[int] = _BIAS_ITERATIONS,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.voxel_mm, self.iterations = voxel_mm, tuple(iterations)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item with the FLAIR corrected; see the class."""
        item = dict(data)
        for key in self.key_iterator(item):
            image, channel = (item["flair"], 0) if "flair" in item else (item[key], 1)
            flair = _numpy(image[channel])
            field = bias_field(flair, _voxel_size(image), self.voxel_mm, self.iterations)
            image = image.clone()
            image[channel] = torch.from_numpy((flair / field).astype(np.float32))
            item["flair" if "flair" in item else key] = image
            low, high = np.percentile(field[flair > 0], (2.5, 97.5))
            item["details"] = {**item.get("details", {}), "Bias field of the FLAIR (N4)": f"{low:.2f} to {high:.2f}"}
        return item


class RegisterFlaird(MapTransform):
    """Bring a FLAIR, and the lesions that were drawn on it, from its own grid to that of the QSM.

    ``item["flair"]`` [1, x, y, z] or, with lesions, [2, x, y, z] goes, with one interpolation, into the second (and
    third) channel of ``item[keys]`` [3, X, Y, Z]: FLAIR linearly, averaged where the new voxels are larger; lesions by
    the nearest neighbour. ``flair`` and ``magnitude`` are removed from the item; ``details`` says how far it moved.

    Args:
        keys: the one key of the images.
        method: "affine" (12 parameters) or "rigid" (6): the FLAIR is registered to ``item["magnitude"]`` [1, X, Y, Z]
            within the brain (QSM other than 0), from where the headers put it, or with the centres of mass together
            where these leave them apart. "header": the affines of the files are trusted.
        seed: of the voxels that are sampled.

    Raises:
        QMRIError: no FLAIR on its own grid; no magnitude; a registration that turns, scales or misses the brain as none
            does; lesions outside of the brain; SimpleITK is missing.
    """

    def __init__(
        self, keys: KeysCollection = "image", method: str = "affine", seed: int = 0, allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        if method not in METHODS:
            raise QMRIError(
                field="registration", found=repr(method), expected=f"one of {', '.join(METHODS)}, or null",
                remedy="correct the config",
            )  # fmt: skip
        self.method, self.seed = method, seed

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item with the FLAIR on the grid of the QSM; see the class."""
        item = dict(data)
        for key in self.key_iterator(item):
            flair, magnitude = item.pop("flair", None), item.pop("magnitude", None)
            self._check(item, flair, magnitude)
            image = item[key].clone()
            fixed, moving = _affine(image), _affine(flair)
            found = Alignment(np.eye(4), float("nan"))
            brain, name = _numpy(image[0]) != 0, str(flair.meta.get("filename_or_obj", "FLAIR"))
            if self.method != "header":
                found = register(
                    _numpy(magnitude[0]), fixed, _numpy(flair[0]), moving, brain, self.method == "affine", self.seed
                )
                _check_alignment(found, name)
            to_moving = np.linalg.inv(moving) @ found.matrix @ fixed
            notes = _check_cover(overlap(brain, to_moving, flair.shape[1:]), name)
            for channel, values in enumerate(flair, start=1):
                new = resample(_numpy(values), to_moving, tuple(brain.shape), nearest=channel > 1)
                image[channel] = torch.from_numpy(new)
            notes += check_lesion_overlap(_numpy(image), item["sources"][min(2, len(item["sources"]) - 1)])
            item[key] = image
            item["notes"] = [*item.get("notes", []), *notes]
            item["details"] = {**item.get("details", {}), "Registration of the FLAIR": self._told(found, fixed, brain)}
        return item

    def _check(self, item: Mapping[Hashable, Any], flair: Any, magnitude: Any) -> None:
        source = next(iter(item.get("sources", [])), None)
        if flair is None:
            raise QMRIError(
                file=source, field="registration", found="a FLAIR that was read on the grid of the QSM",
                expected="a FLAIR on a grid of its own", remedy="read it with own_flair_grid=True",
            )  # fmt: skip
        if magnitude is None and self.method != "header":
            raise QMRIError(
                file=source, field="magnitude", found="no magnitude image of the gradient echo", expected="one to "
                "register the FLAIR to, on the grid of the QSM: the QSM itself shows too little of the anatomy",
                remedy="add NAME_magnitude.nii.gz, or name it: magnitude_file=PATH; registration=header trusts the "
                "affines of the files",
            )  # fmt: skip

    def _told(self, found: Alignment, fixed: npt.NDArray[np.float64], brain: npt.NDArray[np.bool_]) -> str:
        if self.method == "header":
            return "by the headers alone"
        voxels = np.argwhere(brain)[:: max(1, brain.size // 100_000)]
        here = np.c_[voxels, np.ones(len(voxels))] @ fixed.T
        moved = np.linalg.norm((here @ found.matrix.T - here)[:, :3], axis=1)
        return f"{self.method}, the brain moved by {moved.mean():.1f} mm on average, {moved.max():.1f} mm at most"


def bias_field(
    flair: Array,
    voxel_size: Sequence[float],
    voxel_mm: float = _BIAS_VOXEL,
    iterations: Sequence[int] = _BIAS_ITERATIONS,
) -> npt.NDArray[np.float32]:
    """The smooth field that an image is multiplied by, by N4.

    Found on voxels of about ``voxel_mm``, within what is brighter than Otsu's threshold, and evaluated everywhere.

    Args:
        flair: [X, Y, Z], 0 or more.
        voxel_size: [mm].
        voxel_mm: see :class:`CorrectBiasd`.
        iterations: likewise.

    Returns:
        [X, Y, Z] float32, of geometric mean 1 over what is brighter than the threshold.

    Raises:
        QMRIError: SimpleITK is missing.
    """
    sitk = simple_itk()
    step = [max(1, min(round(voxel_mm / s), n)) for s, n in zip(voxel_size, flair.shape, strict=True)]
    first = [(s - 1) // 2 for s in step]
    few = np.asarray(flair, dtype=np.float32)[tuple(slice(f, None, s) for f, s in zip(first, step, strict=True))]
    bright = few > threshold_otsu(few[few > 0])
    image, mask = (
        sitk.GetImageFromArray(np.ascontiguousarray(v.transpose(2, 1, 0))) for v in (few, bright.astype(np.uint8))
    )
    spacing = tuple(float(v * s) for v, s in zip(voxel_size, step, strict=True))
    image.SetSpacing(spacing)
    mask.SetSpacing(spacing)
    method = sitk.N4BiasFieldCorrectionImageFilter()
    method.SetMaximumNumberOfIterations([int(i) for i in iterations])
    with one_thread():  # sums in one order: the same result every time
        method.Execute(image, mask)
    log = sitk.GetArrayFromImage(method.GetLogBiasFieldAsImage(image)).transpose(2, 1, 0)
    log = log - log[bright].mean()
    inverse = 1 / np.asarray(step)
    fine = ndimage.affine_transform(log, inverse, -np.asarray(first) * inverse, flair.shape, order=1, mode="nearest")
    return np.exp(fine).astype(np.float32)


def _check_alignment(found: Alignment, file: str) -> None:
    """What a registration of one head to itself cannot give."""
    stretch = np.linalg.svd(found.matrix[:3, :3])
    scales, turn = stretch[1], stretch[0] @ stretch[2]
    angle = np.degrees(np.arccos(np.clip((np.trace(turn) - 1) / 2, -1, 1)))
    if angle > _MOST_TURN or scales.max() > _MOST_SCALE or scales.min() < 1 / _MOST_SCALE:
        raise QMRIError(
            file=file, field="registration", found=f"a head turned by {angle:.0f} degrees and scaled by "
            f"{scales.min():.2f} to {scales.max():.2f}",
            expected=f"at most {_MOST_TURN:g} degrees, and scales of {1 / _MOST_SCALE:g} to {_MOST_SCALE:g}",
            remedy="give the FLAIR of this patient; if it is, try registration=rigid, or register it by hand",
        )  # fmt: skip


def _check_cover(covered: float, file: str) -> list[str]:
    """Remarks on the share of the brain that the FLAIR covers."""
    if covered < _LEAST_COVERED:
        raise QMRIError(
            file=file, field="registration", found=f"a FLAIR that covers {covered:.0%} of the brain of the QSM",
            expected=f"{_LEAST_COVERED:.0%} or more", remedy="give the FLAIR of this patient; if it is, register it by "
            "hand, or with another method (registration=affine, rigid or header)",
        )  # fmt: skip
    if covered >= _WELL_COVERED:
        return []
    return [f"the FLAIR covers {covered:.0%} of the brain of the QSM: lesions beyond have no FLAIR"]


def _numpy(values: Any) -> Any:
    return torch.as_tensor(values).detach().cpu().numpy()


def _affine(image: MetaTensor) -> Matrix:
    return np.asarray(image.affine, dtype=np.float64)


def _voxel_size(image: MetaTensor) -> tuple[float, ...]:
    return tuple(float(v) for v in np.linalg.norm(_affine(image)[:3, :3], axis=0))
