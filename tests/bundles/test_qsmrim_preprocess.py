"""Registration on known transforms, a known bias field, and the transforms that bring a FLAIR to the grid of the QSM.

The head is drawn analytically, with one contrast as a gradient echo's magnitude and another as a FLAIR.
"""

from __future__ import annotations

import builtins
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from monai.data.meta_tensor import MetaTensor
from qsmrim_net.preprocess import CorrectBiasd, RegisterFlaird, bias_field
from qsmrim_net.registration import Alignment, register, resample
from scipy import ndimage
from scipy.spatial.transform import Rotation

from shared_transforms.errors import QMRIError

Array = npt.NDArray[Any]
FIXED_SHAPE, MOVING_SHAPE = (64, 76, 40), (70, 84, 44)
# Centre and half axes [mm] of ellipsoids, and their value in magnitude and FLAIR: skin, skull, grey and white matter,
# ventricles, nuclei, lesions of the cortex's side.
PARTS = [
    ((0, 0, 0), (78, 95, 76), 60, 50), ((0, 0, 0), (74, 90, 72), 10, 5), ((0, 0, 0), (68, 84, 66), 100, 120),
    ((0, 0, 5), (50, 66, 48), 80, 90), ((14, 5, 8), (6, 25, 10), 140, 20), ((-14, 5, 8), (6, 25, 10), 140, 20),
    ((0, 30, -20), (10, 6, 14), 140, 20), ((25, 10, -5), (8, 12, 9), 55, 105), ((-24, 12, -4), (8, 12, 9), 55, 105),
    ((30, -40, 20), (14, 8, 8), 60, 150), ((-10, -50, 30), (8, 12, 8), 120, 60), ((35, 40, 20), (9, 9, 12), 70, 140),
]  # fmt: skip


def grid(shape: Sequence[int], voxel: Sequence[float], flip: bool = False) -> Array:
    """An affine with the centre of the box at 0 mm."""
    affine = np.diag([-voxel[0] if flip else voxel[0], voxel[1], voxel[2], 1.0])
    affine[:3, 3] = -affine[:3, :3] @ ((np.asarray(shape) - 1) / 2)
    return affine


FIXED, MOVING = grid(FIXED_SHAPE, (3, 3, 4)), grid(MOVING_SHAPE, (3, 3, 4), flip=True)


def head(shape: Sequence[int], affine: Array, noise: int | None = 0) -> tuple[Array, Array, Array]:
    """Magnitude, FLAIR and brain [X, Y, Z] on a grid whose affine leads to the mm of the head."""
    places = np.stack(np.indices(shape), -1) @ affine[:3, :3].T + affine[:3, 3]
    magnitude, flair, brain = np.zeros(shape), np.zeros(shape), np.zeros(shape, dtype=bool)
    for k, (centre, axes, first, second) in enumerate(PARTS):
        inside = (((places - centre) / axes) ** 2).sum(-1) < 1
        magnitude[inside], flair[inside] = first, second
        brain |= inside & (k >= 2)
    if noise is None:
        return magnitude, flair, brain
    rng = np.random.default_rng(noise)
    images = [np.abs(ndimage.gaussian_filter(v, 0.5) + 3 * rng.standard_normal(shape)) for v in (magnitude, flair)]
    return images[0], images[1], brain


def motion(turn: Sequence[float], shift: Sequence[float], scale: Sequence[float] = (1, 1, 1)) -> Array:
    """[4, 4], mm to mm: degrees about the axes, mm."""
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("xyz", turn, degrees=True).as_matrix() @ np.diag(scale)
    matrix[:3, 3] = shift
    return matrix


def error(found: Array, truth: Array, brain: Array) -> float:
    """Mean distance over the brain [mm]."""
    places = np.c_[np.argwhere(brain), np.ones(brain.sum())] @ FIXED.T
    return float(np.linalg.norm((places @ (found - truth).T)[:, :3], axis=1).mean())


def item(truth: Array, with_mask: bool = False, magnitude: bool = True) -> dict[str, Any]:
    """What the reader gives: the head of the QSM at rest, that of the FLAIR moved by ``truth``."""
    first, _, brain = head(FIXED_SHAPE, FIXED)
    _, second, _ = head(MOVING_SHAPE, np.linalg.inv(truth) @ MOVING, noise=1)
    flair = [second, (second > 128).astype(float)] if with_mask else [second]
    image = np.stack([brain * 20.0, 0 * first, (0.0 if with_mask else 1.0) * lesion(FIXED_SHAPE, FIXED)])
    return {
        "image": MetaTensor(torch.from_numpy(image).float(), affine=torch.from_numpy(FIXED)),
        "flair": MetaTensor(torch.from_numpy(np.stack(flair)).float(), affine=torch.from_numpy(MOVING)),
        "sources": ["qsm.nii.gz", "flair.nii.gz", "mask.nii.gz"],
    } | ({"magnitude": torch.from_numpy(first).float()[None]} if magnitude else {})


def lesion(shape: Sequence[int], affine: Array) -> Array:
    """Voxels of the last part."""
    places = np.stack(np.indices(shape), -1) @ affine[:3, :3].T + affine[:3, 3]
    return (((places - PARTS[-1][0]) / np.asarray(PARTS[-1][1])) ** 2).sum(-1) < 1


def test_a_rigid_motion_is_found() -> None:
    truth = motion((4, -3, 6), (5, -4, 8))
    magnitude, _, brain = head(FIXED_SHAPE, FIXED)
    _, flair, _ = head(MOVING_SHAPE, np.linalg.inv(truth) @ MOVING, noise=1)
    found = register(magnitude, FIXED, flair, MOVING, brain, affine=False)
    assert error(np.eye(4), truth, brain) > 8 and error(found.matrix, truth, brain) < 0.5  # mm; voxels of 3 x 3 x 4
    np.testing.assert_allclose(found.matrix[:3, :3] @ found.matrix[:3, :3].T, np.eye(3), atol=1e-9)
    again = register(magnitude, FIXED, flair, MOVING, brain, affine=False)
    assert np.array_equal(found.matrix, again.matrix)


def test_an_affine_motion_is_found_from_headers_that_lie_apart() -> None:
    truth = motion((5, 3, -4), (3, 2, -5), (1.04, 0.97, 1.02))
    magnitude, _, brain = head(FIXED_SHAPE, FIXED)
    _, flair, _ = head(MOVING_SHAPE, np.linalg.inv(truth) @ MOVING, noise=1)
    table = np.eye(4)
    table[:3, 3] = (10, -150, 120)  # another origin of the scanner
    found = register(magnitude, FIXED, flair, table @ MOVING, brain)
    assert error(found.matrix, table @ truth, brain) < 1.0


def test_resampling_is_exact_on_planes_and_keeps_labels() -> None:
    values = np.fromfunction(lambda x, y, z: 5 + x + 2 * y - z, (20, 18, 16))
    matrix = np.array([[0.5, 0.1, 0, 3], [0, 0.8, 0, 2], [0, 0.1, 0.6, 4], [0, 0, 0, 1.0]])
    found = resample(values, matrix, (10, 10, 10))
    there = np.stack(np.indices((10, 10, 10)), -1) @ matrix[:3, :3].T + matrix[:3, 3]
    np.testing.assert_allclose(found, 5 + there @ (1, 2, -1), rtol=1e-5)
    labels = resample(np.arange(8.0).reshape(2, 2, 2), np.diag([0.5, 0.5, 0.5, 1]), (2, 2, 2), nearest=True)
    assert set(np.unique(labels)) <= set(range(8))
    # voxels four times as large: noise is averaged, not picked
    noise = np.random.default_rng(0).standard_normal((64, 64, 64))
    assert resample(noise, np.diag([4.0, 4, 4, 1]), (16, 16, 16)).std() < 0.25


def test_the_flair_comes_to_the_grid_of_the_qsm() -> None:
    truth = motion((4, -3, 6), (5, -4, 8))
    result = RegisterFlaird(method="rigid")(item(truth))
    assert "flair" not in result and "magnitude" not in result and result["notes"] == []
    _, still, brain = head(FIXED_SHAPE, FIXED)
    assert np.corrcoef(result["image"][1][brain], still[brain])[0, 1] > 0.9
    untouched = item(truth)["image"]
    assert torch.equal(result["image"][0], untouched[0]) and torch.equal(result["image"][2], untouched[2])
    assert torch.equal(torch.as_tensor(result["image"].affine), torch.as_tensor(untouched.affine))
    assert "rigid, the brain moved by" in result["details"]["Registration of the FLAIR"]


def test_headers_alone_and_lesions_that_were_drawn_on_the_flair() -> None:
    given = item(np.eye(4), with_mask=True, magnitude=False)
    result = RegisterFlaird(method="header")(given)
    _, still, brain = head(FIXED_SHAPE, FIXED)
    assert np.corrcoef(result["image"][1][brain], still[brain])[0, 1] > 0.95
    mask = np.asarray(result["image"][2]) > 0
    bright = still > 128
    assert set(result["image"][2].unique().tolist()) == {0.0, 1.0}
    assert 2 * (mask & bright).sum() / (mask.sum() + bright.sum()) > 0.7  # a few voxels wide, on two grids


def test_a_known_bias_field_is_divided_out() -> None:
    _, flair, brain = head(FIXED_SHAPE, FIXED)
    x, y, z = np.meshgrid(*[np.linspace(-1, 1, n) for n in FIXED_SHAPE], indexing="ij")
    field = np.exp(0.5 * x - 0.35 * y * z + 0.3 * np.cos(2 * y))
    ratio = (bias_field(flair * field, (3, 3, 4)) / field)[brain]
    assert field[brain].std() / field[brain].mean() > 0.17
    assert ratio.std() / ratio.mean() < 0.05


@pytest.mark.parametrize("own", [True, False])
def test_the_flair_alone_is_corrected(own: bool) -> None:
    _, flair, _ = head(FIXED_SHAPE, FIXED)
    biased = torch.from_numpy(flair * np.linspace(0.7, 1.3, FIXED_SHAPE[0])[:, None, None]).float()
    others = torch.ones(FIXED_SHAPE)
    key, channel = ("flair", 0) if own else ("image", 1)
    volumes = {"image": torch.stack([others, others if own else biased, others])}
    volumes |= {"flair": torch.stack([biased, others])} if own else {}
    given: dict[str, Any] = {k: MetaTensor(v, affine=torch.from_numpy(FIXED)) for k, v in volumes.items()}
    result = CorrectBiasd(iterations=(5,))(given)
    expected = biased / torch.from_numpy(bias_field(biased.numpy(), (3, 3, 4), iterations=(5,)))
    torch.testing.assert_close(torch.as_tensor(result[key][channel]), expected)
    assert not torch.allclose(expected, biased, rtol=0.005)
    for k, v in volumes.items():
        assert torch.equal(given[k].as_tensor(), v)  # what was given stays as it was
        assert all(torch.equal(result[k][c], given[k][c]) for c in range(len(v)) if (k, c) != (key, channel))
    assert "N4" in next(iter(result["details"]))


def test_what_cannot_be_registered_is_said() -> None:
    given = item(np.eye(4), magnitude=False)
    with pytest.raises(QMRIError, match="no magnitude image"):
        RegisterFlaird()(given)
    with pytest.raises(QMRIError, match="own_flair_grid"):
        RegisterFlaird()({k: v for k, v in given.items() if k != "flair"})
    with pytest.raises(QMRIError, match="'elastic'"):
        RegisterFlaird(method="elastic")
    given["flair"].affine[2, 3] += 130
    with pytest.raises(QMRIError, match="of the brain of the QSM"):
        RegisterFlaird(method="header")(given)


@pytest.mark.parametrize(("turn", "scale"), [((0, 0, 60), 1.0), ((0, 0, 0), 1.4)])
def test_a_head_that_is_turned_or_stretched_as_none_is_refused(
    turn: Sequence[float], scale: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = Alignment(motion(turn, (0, 0, 0), (scale, 1, 1)), 1.0)
    monkeypatch.setattr("qsmrim_net.preprocess.register", lambda *_: found)
    with pytest.raises(QMRIError, match=f"turned by {turn[2]} degrees and scaled by 1.00 to {scale:.2f}"):
        RegisterFlaird()(item(np.eye(4)))


def test_a_missing_library_is_said_plainly(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def fail(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("SimpleITK"):
            raise ImportError("No module named 'SimpleITK'")
        return real(name, *args, **kwargs)

    monkeypatch.setattr("qsmrim_net.registration.import_module", fail)
    with pytest.raises(QMRIError, match="pip install SimpleITK"):
        bias_field(np.ones((8, 8, 8)), (1, 1, 1))
