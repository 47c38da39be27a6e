"""Augmentation of lesion patches against scipy, closed cases and the ranges of the paper."""

from __future__ import annotations

import math

import pytest
import torch
from qsmrim_net.augment import AugmentationDraw, LesionAugmentation
from scipy.ndimage import affine_transform, gaussian_filter
from scipy.spatial.transform import Rotation
from torch import Tensor

VOXEL = (0.75, 0.75, 3.0)
SHARP = 1e-3  # voxels: the blur's kernel is one voxel


def drawn(
    flip: int = -1,
    scale: float = 1.0,
    degrees: tuple[float, ...] = (0.0, 0.0, 0.0),
    sigma: tuple[float, ...] = (SHARP, SHARP, SHARP),
) -> AugmentationDraw:
    """One patch."""
    angles = torch.deg2rad(torch.tensor([degrees]))
    return AugmentationDraw(torch.tensor([flip]), torch.tensor([scale]), angles, torch.tensor([sigma]))


def patches(n: int = 3, size: tuple[int, ...] = (24, 22, 8), border: int = 2) -> Tensor:
    """Lesions in the midst of nothing [n, 2, X, Y, Z]."""
    generator = torch.Generator().manual_seed(0)
    image = torch.zeros(n, 2, *size)
    inner = (..., *(slice(border, side - border) for side in size))
    image[inner] = torch.randn(image[inner].shape, generator=generator)
    return image


def test_nothing_drawn_is_nothing_done() -> None:
    image = patches(1)
    assert torch.allclose(LesionAugmentation(VOXEL).apply(image, drawn()), image, atol=1e-5)


def test_an_empty_patch_stays_empty() -> None:
    augmentation = LesionAugmentation(VOXEL)
    draw = augmentation.draw(torch.Generator().manual_seed(0), 2)
    assert not augmentation.apply(torch.zeros(2, 2, 9, 9, 5), draw).any()


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_mirrored_about_the_voxel_in_the_middle(axis: int) -> None:
    """Where the patch has its centre of mass; of an even side, the first row then has no counterpart."""
    image = patches(1, (8, 10, 6), border=1)
    expected = image.flip(axis + 2).roll(1, axis + 2)
    assert torch.allclose(LesionAugmentation(VOXEL).apply(image, drawn(flip=axis)), expected, atol=1e-5)


def test_a_quarter_turn_in_the_slice() -> None:
    image = patches(1, (9, 9, 5))
    turned = LesionAugmentation(VOXEL).apply(image, drawn(degrees=(0.0, 0.0, 90.0)))
    assert torch.allclose(turned, image.rot90(1, (2, 3)), atol=1e-4)


@pytest.mark.parametrize(("degrees", "reached"), [((90.0, 0.0, 0.0), (8, 8, 5)), ((0.0, -90.0, 0.0), (8, 8, 5))])
def test_turned_in_space_not_in_voxels(degrees: tuple[float, ...], reached: tuple[int, ...]) -> None:
    """3 mm away are four voxels of .75 mm in the slice, and one across it."""
    image = torch.zeros(1, 2, 17, 17, 9)
    image[..., 8 if degrees[0] else 12, 12 if degrees[0] else 8, 4] = 1.0
    moved = LesionAugmentation(VOXEL).apply(image, drawn(degrees=degrees))[0, 0]
    assert moved[reached] == pytest.approx(1.0, abs=1e-4)


def test_as_scipy_interpolates() -> None:
    """Rotations about x, y and z one after the other, a scale, a mirror; also of what leaves the patch."""
    image = patches(4)
    augmentation = LesionAugmentation(VOXEL, flip_share=1.0, degrees=20.0, scale=(0.8, 1.25))
    draw = augmentation.draw(torch.Generator().manual_seed(3), 4)
    draw = AugmentationDraw(draw.flip, draw.scale, draw.angles, torch.full((4, 3), SHARP))
    moved = augmentation.apply(image, draw)
    step, middle = torch.diag(torch.tensor(VOXEL)).double(), torch.tensor([12.0, 11.0, 4.0]).double()
    for n in range(4):
        rotation = torch.from_numpy(Rotation.from_euler("xyz", draw.angles[n].double().numpy()).as_matrix())
        mirror = torch.ones(3).double()
        mirror[draw.flip[n]] = -1
        forward = step.inverse() @ rotation @ torch.diag(mirror) @ step * float(draw.scale[n])
        backward = forward.inverse()
        offset = (middle - backward @ middle).numpy()
        for channel in range(2):
            expected = affine_transform(image[n, channel].double().numpy(), backward.numpy(), offset, order=1)
            assert abs(moved[n, channel].double().numpy() - expected).max() < 1e-4


def test_blurred_as_scipy_does() -> None:
    """Each patch with its own kernels, of the radius int(4 sigma + .5), and 0 beyond the patch."""
    image = patches(4, border=0)
    augmentation = LesionAugmentation(VOXEL)
    draw = augmentation.draw(torch.Generator().manual_seed(5), 4)
    still = AugmentationDraw(torch.full((4,), -1), torch.ones(4), torch.zeros(4, 3), draw.sigma)
    blurred = augmentation.apply(image, still)
    for n in range(4):
        expected = gaussian_filter(image[n, 1].numpy(), draw.sigma[n].tolist(), mode="constant", truncate=4.0)
        assert abs(blurred[n, 1].numpy() - expected).max() < 1e-4


def test_drawn_from_the_papers_ranges() -> None:
    draw = LesionAugmentation(VOXEL).draw(torch.Generator().manual_seed(1), 20000)
    for values, low, high in (
        (draw.scale, 0.95, 1.05),
        (torch.rad2deg(draw.angles), -5.0, 5.0),
        (draw.sigma[:, :2], 0.1, 0.95),
        (draw.sigma[:, 2], 0.03, 0.3),
    ):
        assert low <= values.min() and values.max() <= high
        assert float(values.mean()) == pytest.approx((low + high) / 2, abs=0.03 * (high - low))
        assert float(values.std()) == pytest.approx((high - low) / math.sqrt(12), rel=0.03)
    shares = torch.bincount(draw.flip + 1, minlength=4) / 20000
    assert shares.tolist() == pytest.approx([1 / 2, 1 / 6, 1 / 6, 1 / 6], abs=0.02)


def test_patches_do_not_know_of_each_other() -> None:
    """Of a part of the batch, as a rank of several has it."""
    image, augmentation = patches(5), LesionAugmentation(VOXEL)
    image[0] = 0
    image[0, :, 10:13, 10:13, 3:5] = 1.0
    draw = augmentation.draw(torch.Generator().manual_seed(2), 5)
    whole = augmentation.apply(image, draw)
    alone = augmentation.apply(image[::2], draw.select(slice(None, None, 2)))
    assert torch.allclose(whole[::2], alone, atol=1e-5)


@pytest.mark.parametrize(
    "wrong",
    [{"voxel_size": (1.0, 1.0)}, {"flip_share": 1.5}, {"scale": (1.1, 0.9)}, {"sigma_slice": (0.0, 0.3)}],
)
def test_refused(wrong: dict[str, tuple[float, ...]]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        LesionAugmentation(**wrong)  # type: ignore[arg-type]
