"""Patches and geometry of the lesions against closed forms and an independent implementation (scipy.ndimage)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from qsmrim_net.patches import lesion_geometry, lesion_patches, normalise_flair, reference_qsm
from scipy import ndimage
from torch import Tensor

from shared_transforms.errors import QMRIError


def scattered(seed: int, lesions: int = 12, shape: tuple[int, int, int] = (40, 36, 14)) -> Tensor:
    """Labels [X, Y, Z] of random blobs, none of them empty; some touch the border."""
    rng = np.random.default_rng(seed)
    smooth = ndimage.gaussian_filter(rng.standard_normal(shape), (2, 2, 1))
    found, count = ndimage.label(smooth > np.quantile(smooth, 0.85))
    assert count >= lesions
    return torch.from_numpy(np.where(found <= lesions, found, 0).astype(np.int32))


def test_flair_is_normalised_by_the_robust_spread_of_the_brain() -> None:
    rng = torch.Generator().manual_seed(0)
    brain = torch.zeros(30, 30, 30, dtype=torch.bool)
    brain[5:25, 5:25, 5:25] = True
    flair = 300 + 40 * torch.randn(brain.shape, generator=rng)
    flair[~brain] = 1e6
    inside = normalise_flair(flair, brain)[brain]
    assert inside.median() == 0
    assert inside.std() == pytest.approx(1, abs=0.03)  # the MAD of a normal distribution is 1 / 1.4826 of its SD
    # invariant under gain and offset, and hardly moved by a few lesions
    torch.testing.assert_close(normalise_flair(3 * flair + 70, brain)[brain], inside, rtol=1e-4, atol=1e-4)
    bright = flair.clone()
    bright[10:13, 10:13, 10:13] += 5000
    away = brain & (bright == flair)
    plain, with_lesion = (normalise_flair(image, brain)[away] for image in (flair, bright))
    torch.testing.assert_close(with_lesion, plain, rtol=0.02, atol=0.02)


def test_maps_that_differ_by_their_zero_become_equal() -> None:
    brain = torch.zeros(12, 12, 12, dtype=torch.bool)
    brain[2:10, 2:10, 2:10] = True
    qsm = torch.where(brain, 30 * torch.randn(brain.shape, generator=torch.Generator().manual_seed(1)), 0.0)
    found = reference_qsm(qsm, brain)
    assert found[brain].median() == 0 and not found[~brain].any()
    shifted = torch.where(brain, qsm + 17, 0.0)
    torch.testing.assert_close(reference_qsm(shifted, brain), found, rtol=0, atol=1e-4)
    torch.testing.assert_close(found[brain].diff(), qsm[brain].diff(), rtol=0, atol=1e-4)
    torch.testing.assert_close(reference_qsm(qsm, torch.ones_like(brain)), found)  # voxels without a value do not count
    with pytest.raises(QMRIError, match="no value inside"):
        reference_qsm(0 * qsm, brain)
    with pytest.raises(ValueError, match="equal shapes"):
        reference_qsm(qsm[1:], brain)


def test_a_flair_without_spread_or_brain_is_refused() -> None:
    flair = torch.ones(4, 4, 4)
    with pytest.raises(QMRIError, match="the value 1 in half of the brain"):
        normalise_flair(flair, flair > 0)
    with pytest.raises(QMRIError, match="no voxel"):
        normalise_flair(flair, flair < 0)
    with pytest.raises(ValueError, match="equal shapes"):
        normalise_flair(flair, torch.ones(4, 4, 5))


@pytest.mark.parametrize("seed", [0, 1])
def test_geometry_is_that_of_scipy(seed: int) -> None:
    labels = scattered(seed)
    index = np.arange(1, 13)
    found = lesion_geometry(labels, (0.75, 0.75, 3.0))
    volume = labels.numpy()
    counts = np.bincount(volume.ravel(), minlength=13)[1:]
    np.testing.assert_array_equal(found["voxels"], counts)
    np.testing.assert_allclose(found["volume_ml"], counts * 0.75 * 0.75 * 3 / 1000)
    centres = ndimage.center_of_mass(np.ones(volume.shape), volume, index)
    np.testing.assert_allclose(found["centroid"], centres)
    boxes = ndimage.find_objects(volume)
    np.testing.assert_array_equal(found["lower"], [[s.start for s in box] for box in boxes])
    np.testing.assert_array_equal(found["upper"], [[s.stop for s in box] for box in boxes])


def test_a_missing_label_keeps_its_row() -> None:
    labels = torch.zeros(10, 10, 5, dtype=torch.int32)
    labels[2, 3, 1], labels[7, 7, 4] = 1, 3
    found = lesion_geometry(labels)
    assert found["voxels"].tolist() == [1, 0, 1]
    assert found["centroid"][1].isnan().all() and found["upper"][1].tolist() == [0, 0, 0]
    patches = lesion_patches(torch.full(labels.shape, 50.0), torch.ones(labels.shape), labels, (4, 4, 4))
    assert patches.sum(dim=(1, 2, 3, 4)).tolist() == [2, 0, 2]


@pytest.mark.parametrize("size", [(24, 24, 8), (9, 8, 5)])
def test_each_patch_is_the_padded_masked_crop(size: tuple[int, int, int]) -> None:
    labels = scattered(2)
    qsm, flair = torch.randn(2, *labels.shape, generator=torch.Generator().manual_seed(3))
    patches = lesion_patches(1000 * qsm, flair, labels, size)
    assert patches.shape == (12, 2, *size) and patches.dtype == torch.float32
    pad = [(n, n) for n in size]
    volume = labels.numpy()
    for k, centre in enumerate(ndimage.center_of_mass(np.ones(volume.shape), volume, np.arange(1, 13)), 1):
        first = [int(np.floor(c + 0.5)) - n // 2 + n for c, n in zip(centre, size, strict=True)]
        crop = tuple(slice(f, f + n) for f, n in zip(first, size, strict=True))
        for channel, image in enumerate((20 * qsm, flair)):
            expected = np.pad(image.numpy() * (volume == k), pad)[crop]
            np.testing.assert_allclose(patches[k - 1, channel], expected, rtol=1e-5)


def test_a_lesion_inside_of_its_patch_loses_nothing_and_moves_with_it() -> None:
    labels = torch.zeros(60, 60, 20, dtype=torch.int32)
    labels[20:29, 30:35, 8:11] = 1
    qsm = torch.randn(labels.shape, generator=torch.Generator().manual_seed(0))
    patch = lesion_patches(qsm, qsm, labels)
    assert patch[0, 1].sum() == pytest.approx(float(qsm[labels == 1].sum()), abs=1e-4)
    assert patch[0, 1, 12, 12, 4] == qsm[24, 32, 9]  # the centre of mass
    moved = [v.roll((-20, -30, -8), (0, 1, 2)) for v in (qsm, labels)]  # into the corner of the volume
    torch.testing.assert_close(lesion_patches(moved[0], moved[0], moved[1]), patch)


def test_a_lesion_larger_than_the_patch_is_cut_and_no_lesion_gives_no_patch() -> None:
    labels = torch.ones(50, 40, 30, dtype=torch.int32)
    ones = torch.ones(labels.shape)
    assert (lesion_patches(50 * ones, ones, labels) == 1).all()
    assert lesion_patches(ones, ones, 0 * labels).shape == (0, 2, 24, 24, 8)


def test_what_cannot_be_cut_is_refused() -> None:
    image, labels = torch.ones(4, 4, 4), torch.ones(4, 4, 4, dtype=torch.int32)
    with pytest.raises(ValueError, match="one shape"):
        lesion_patches(image, image, labels[:3])
    with pytest.raises(ValueError, match="three positive numbers"):
        lesion_patches(image, image, labels, (4, 4))
    with pytest.raises(ValueError, match="integers"):
        lesion_geometry(image)
    with pytest.raises(ValueError, match="negative"):
        lesion_geometry(-labels)
