"""Where a point of one image lies in another: linear registration, and one interpolation to follow it.

The search (Mattes mutual information, regular step gradient descent) is that of ITK 5 by SimpleITK, which pyradiomics
brings along. All places are in mm of the affines (RAS).
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from skimage.filters import threshold_otsu
from skimage.measure import block_reduce

from qsmrim_net.radiomics.pyradiomics import one_thread
from shared_transforms.errors import QMRIError

__all__ = ["Alignment", "overlap", "register", "resample", "simple_itk"]

Array = npt.NDArray[np.floating[Any]]
Matrix = npt.NDArray[np.float64]

_LEVELS = (6.0, 3.0, 2.0)  # mm, voxels from coarse to fine, each smoothed by half a voxel
_SAMPLED = (1.0, 1.0, 0.5)  # of the voxels of the brain, at each level
_APART = 0.7  # of the brain within the other image by the headers: less, and the centres of mass are brought together
_STARTS = (0.0, -25.0, 25.0)  # mm from foot to head, tried then: one image may have a neck
_BINS, _ITERATIONS, _RELAXATION = 32, 200, 0.7
_STEP, _LEAST_STEP = 0.25, 0.002  # voxels of the level


class Alignment(NamedTuple):
    """Where a point of the fixed image lies in the moving one.

    Attributes:
        matrix: [4, 4], mm of the fixed image to mm of the moving one.
        information: mutual information reached; NaN where nothing was searched.
    """

    matrix: Matrix
    information: float


def register(
    fixed: Array,
    fixed_affine: Matrix,
    moving: Array,
    moving_affine: Matrix,
    brain: npt.NDArray[np.bool_],
    affine: bool = True,
    seed: int = 0,
) -> Alignment:
    """Align two images of one head, of any contrast: rigidly at all levels, then with 12 parameters at the last one.

    Args:
        fixed: [X, Y, Z].
        fixed_affine: [4, 4], its voxels to mm.
        moving: [x, y, z].
        moving_affine: [4, 4], its voxels to mm.
        brain: [X, Y, Z], where the images are compared.
        affine: False leaves the last step out.
        seed: of the voxels that are sampled.

    Raises:
        QMRIError: SimpleITK is missing, or the search fails.
    """
    sitk = simple_itk()
    # Searched in a frame about the centre of the brain, in units of its spread along an axis: angles, stretches and
    # shifts of one unit then move it about equally far, so that one step suits all parameters.
    places = _place(fixed_affine, np.argwhere(brain))
    unit = float(np.sqrt(places.var(0).mean()))
    frame = np.diag([1 / unit, 1 / unit, 1 / unit, 1.0])
    frame[:3, 3] = -places.mean(0) / unit
    starts = [np.zeros(3)]
    if overlap(brain, np.linalg.inv(moving_affine) @ fixed_affine, moving.shape) < _APART:
        bright = np.argwhere(moving > threshold_otsu(moving))
        towards = _place(moving_affine, bright.mean(0)) - places.mean(0)
        starts = [towards + (0, 0, z) for z in _STARTS]
    results = [(sitk.Euler3DTransform((0, 0, 0), 0, 0, 0, (s / unit).tolist()), 0.0) for s in starts]
    for voxel, sampled in zip(_LEVELS, _SAMPLED, strict=True):
        still, other, inside = (
            _image(*_coarse(values, matrix, voxel), frame, smoothing)
            for values, matrix, smoothing in (
                (fixed, fixed_affine, voxel / 2),
                (moving, moving_affine, voxel / 2),
                (brain.astype(np.float32), fixed_affine, 0.0),
            )
        )
        options = {"mask": inside >= 0.5, "step": voxel / unit, "sampled": sampled, "seed": seed}
        results = [max((_search(still, other, start, **options) for start, _ in results), key=lambda r: r[1])]
        if affine and voxel == _LEVELS[-1]:
            wider = sitk.AffineTransform(3)
            wider.SetMatrix(results[0][0].GetMatrix())
            wider.SetTranslation(results[0][0].GetTranslation())
            results = [_search(still, other, wider, **options)]
    transform, information = results[0]
    if not np.isfinite(information):
        raise QMRIError(
            field="registration", found="images that do not overlap", expected="two images of one head",
            remedy="look at FLAIR and magnitude together; correct the affines, or register them by hand",
        )  # fmt: skip
    found = np.eye(4)
    found[:3, :3] = np.reshape(transform.GetMatrix(), (3, 3))
    found[:3, 3] = transform.GetTranslation()
    return Alignment(np.linalg.inv(frame) @ found @ frame, information)


def resample(values: Array, matrix: Matrix, shape: Sequence[int], nearest: bool = False) -> npt.NDArray[np.float32]:
    """An image on another grid.

    Args:
        values: [x, y, z].
        matrix: [4, 4], voxels of the new grid to voxels of the image.
        shape: of the new grid.
        nearest: by the nearest neighbour, for labels; else linearly, and averaged (as a Gaussian of the width of the
            new voxel does) where the new voxels are larger.

    Returns:
        float32, 0 outside of the image.
    """
    values = np.asarray(values, dtype=np.float32)
    if not nearest:
        width = np.abs(matrix[:3, :3]).sum(1)  # of a new voxel, in voxels of the image
        values = ndimage.gaussian_filter(values, np.sqrt(np.maximum(width**2 - 1, 0) / 12))
    new = np.empty(tuple(shape), dtype=np.float32)
    ndimage.affine_transform(values, matrix[:3, :3], matrix[:3, 3], tuple(shape), new, order=0 if nearest else 1)
    return new


def overlap(brain: npt.NDArray[np.bool_], matrix: Matrix, shape: Sequence[int]) -> float:
    """Share of the voxels of a brain that lie within an image of another grid.

    Args:
        brain: [X, Y, Z].
        matrix: [4, 4], voxels of the brain to voxels of the image.
        shape: of the image.
    """
    there = _place(matrix, np.argwhere(brain))
    return float(((there > -0.5) & (there < np.asarray(shape) - 0.5)).all(1).mean())


def simple_itk() -> Any:
    """SimpleITK, loaded when it is needed.

    Raises:
        QMRIError: it is missing.
    """
    try:
        return import_module("SimpleITK")
    except ImportError as error:
        raise QMRIError(
            field="SimpleITK", found=f"no such package: {error}", expected="SimpleITK for bias field and registration",
            remedy="pip install SimpleITK, or leave both out (bias_correction=false registration=null)",
        ) from error  # fmt: skip


def _search(
    fixed: Any, moving: Any, start: Any, *, mask: Any, step: float, sampled: float, seed: int
) -> tuple[Any, float]:
    """The transform that a search ends at, and its mutual information; minus infinity where the images lie apart."""
    sitk = simple_itk()
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(_BINS)
    method.SetMetricFixedMask(mask)
    if sampled < 1:
        method.SetMetricSamplingStrategy(method.RANDOM)
        method.SetMetricSamplingPercentage(sampled, seed + 1)  # 0 would be the clock
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(
        learningRate=_STEP * step,
        minStep=_LEAST_STEP * step,
        numberOfIterations=_ITERATIONS,
        relaxationFactor=_RELAXATION,
        gradientMagnitudeTolerance=1e-8,
    )
    transform = type(start)(start)
    method.SetInitialTransform(transform, inPlace=True)
    try:
        with one_thread():  # sums in one order: the same result every time
            method.Execute(fixed, moving)
    except RuntimeError:  # too few voxels of the brain lie within the moving image
        return start, float("-inf")
    return transform, -float(method.GetMetricValue())


def _coarse(values: Array, affine: Matrix, voxel: float) -> tuple[Array, Matrix]:
    """Means over whole voxels, so that they measure ``voxel`` mm or little less; the affine goes along."""
    size = np.linalg.norm(affine[:3, :3], axis=0)
    factor = np.maximum(1, np.floor(voxel / size + 1e-6)).astype(int)
    factor = np.minimum(factor, values.shape)
    kept = tuple(slice(0, n // f * f) for n, f in zip(values.shape, factor, strict=True))
    new = affine.copy()
    new[:3, :3] = affine[:3, :3] * factor
    new[:3, 3] = _place(affine, (factor - 1) / 2)
    return block_reduce(values[kept], tuple(factor), np.mean), new


def _image(values: Array, affine: Matrix, frame: Matrix, smoothing: float) -> Any:
    """A SimpleITK image in a frame [4, 4] over mm, smoothed by a Gaussian [mm]."""
    sitk = simple_itk()
    smooth = ndimage.gaussian_filter(values.astype(np.float32), smoothing / np.linalg.norm(affine[:3, :3], axis=0))
    image = sitk.GetImageFromArray(np.ascontiguousarray(smooth.transpose(2, 1, 0)))
    matrix = frame @ affine
    size = np.linalg.norm(matrix[:3, :3], axis=0)
    image.SetSpacing(size.tolist())
    image.SetOrigin(matrix[:3, 3].tolist())
    image.SetDirection((matrix[:3, :3] / size).ravel().tolist())
    return image


def _place(matrix: Matrix, point: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Points [..., 3] by a matrix [4, 4]."""
    return np.asarray(point @ matrix[:3, :3].T + matrix[:3, 3])
