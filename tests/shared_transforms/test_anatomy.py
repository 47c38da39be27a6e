"""Anatomy: volumes against the literature, invariants of sampling, streams, and a user's own folders."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from shared_transforms.anatomy import (
    SPLITS,
    TISSUES,
    Head,
    SliceParameters,
    brain_mask,
    count_heads,
    displacement_at,
    draw_slices,
    head_mask,
    load_head,
    sample_slices,
    smooth_field,
    split_generator,
    split_seed,
)
from shared_transforms.errors import QMRIError


@pytest.fixture(scope="module")
def head() -> Head:
    return load_head()


def test_fractions_are_a_partition(head: Head) -> None:
    assert head.fractions.shape == (len(TISSUES), 197, 233, 189)
    assert float(head.fractions.min()) >= 0.0
    assert float(head.fractions.sum(0).max()) <= 1.0 + 1e-5


def test_volumes_are_those_of_a_head(head: Head) -> None:
    litres = dict(zip(TISSUES, (head.fractions.sum((1, 2, 3)) / 1e6).tolist(), strict=True))
    # Adults have a brain of 1.1-1.7 l, somewhat more grey than white matter; MNI152 is some 15 % larger than the mean.
    assert 1.1 < litres["gm"] + litres["wm"] < 2.0
    assert 0.6 < litres["gm"] < 1.1
    assert 0.4 < litres["wm"] < 0.8
    assert 0.1 < litres["csf"] < 0.45
    assert all(0.005 < litres[name] < 0.8 for name in TISSUES[3:])
    assert int((brain_mask(head.fractions) & ~head_mask(head.fractions)).sum()) == 0


def test_brain_is_enclosed(head: Head) -> None:
    """From the middle of the brain to the right at the level of the ventricles the tissues come in anatomical order."""
    line = head.fractions[:, 98:, 116, 95]
    centre = (line * torch.arange(line.shape[1])).sum(1) / line.sum(1)
    order = [TISSUES.index(name) for name in ("wm", "skull", "fat", "muscle_skin")]
    assert centre[order].diff().min() > 0


@pytest.mark.parametrize(
    ("plane", "axes", "position"), [("axial", (1, 2), 20), ("coronal", (1, 3), -10), ("sagittal", (2, 3), 31)]
)
def test_identity_is_direct_indexing(head: Head, plane: str, axes: tuple[int, int], position: int) -> None:
    normal = ({1, 2, 3} - set(axes)).pop()
    where = [0.0, 0.0, 0.0]
    where[normal - 1] = float(position)
    size = (head.fractions.shape[axes[0]], head.fractions.shape[axes[1]])
    parameters = SliceParameters.identity(2, size, plane=plane, position=(where[0], where[1], where[2]))
    expected = head.fractions.select(normal, (head.fractions.shape[normal] - 1) // 2 + position)
    sampled = sample_slices(head, parameters)
    torch.testing.assert_close(sampled, expected.expand_as(sampled), atol=1e-4, rtol=0)


@pytest.mark.parametrize(("plane", "axis", "turns"), [("axial", 2, -1), ("coronal", 1, 1), ("sagittal", 0, -1)])
def test_quarter_turn_is_rot90(head: Head, plane: str, axis: int, turns: int) -> None:
    plain = SliceParameters.identity(1, (90, 90), plane=plane, pixel_mm=2.0)
    turned = replace(plain, rotation=torch.nn.functional.one_hot(torch.tensor([axis]), 3) * (math.pi / 2))
    expected = torch.rot90(sample_slices(head, plain), turns, dims=(2, 3))
    torch.testing.assert_close(sample_slices(head, turned), expected, atol=1e-3, rtol=0)


def test_flip_is_flip(head: Head) -> None:
    plain = draw_slices(split_generator(3), 1)
    plain = replace(plain, flip=torch.zeros(1, 2, dtype=torch.bool))
    flipped = replace(plain, flip=torch.tensor([[False, True]]))
    torch.testing.assert_close(sample_slices(head, flipped), sample_slices(head, plain).flip(3), atol=1e-4, rtol=0)


def test_constant_displacement_is_translation(head: Head) -> None:
    plain = SliceParameters.identity(1, (64, 64), position=(10.0, 5.0, 20.0))
    shift = torch.tensor([3.0, -2.0, 5.0])
    moved = replace(plain, displacement=plain.displacement + shift.view(1, 3, 1, 1, 1))
    expected = sample_slices(head, replace(plain, position=plain.position + shift))
    torch.testing.assert_close(sample_slices(head, moved), expected, atol=1e-3, rtol=0)


def test_planes_cut_one_deformed_head(head: Head) -> None:
    """The line where an axial and a coronal slice of one deformation meet is the same in both."""
    drawn = replace(draw_slices(split_generator(5), 1, size=(65, 65)), flip=torch.zeros(1, 2, dtype=torch.bool))
    axial, coronal = (sample_slices(head, replace(drawn, plane=torch.tensor([k]))) for k in (0, 1))
    torch.testing.assert_close(axial[..., 32], coronal[..., 32], atol=1e-4, rtol=0)


def test_displacement_is_bounded_smooth_and_used() -> None:
    parameters = draw_slices(split_generator(1), 16, whole_slice=True)
    field = displacement_at(parameters)
    assert float(field.abs().max()) <= 8.0
    assert float(field.std()) > 0.5
    # No folding: neighbouring pixels (1 mm) never come closer than half their distance.
    assert float(field.diff(dim=2).abs().max()) < 0.5 and float(field.diff(dim=3).abs().max()) < 0.5


def test_patches_lie_in_the_brain(head: Head) -> None:
    parameters = draw_slices(split_generator(2), 200, size=(3, 3), max_displacement_mm=0.0)
    middle = brain_mask(sample_slices(head, parameters))[:, 1, 1]
    assert float(middle.float().mean()) > 0.97
    assert sorted(parameters.plane.unique().tolist()) == [0, 1, 2]


def test_whole_slice_shows_the_whole_head(head: Head) -> None:
    sampled = sample_slices(head, draw_slices(split_generator(4, split="test"), 6, whole_slice=True))
    assert sampled.shape == (6, 9, 256, 256)
    mask = head_mask(sampled)
    border = torch.cat([mask[:, 0], mask[:, -1], mask[:, :, 0], mask[:, :, -1]], dim=1)
    assert not bool(border.any())
    area_cm2 = brain_mask(sampled).sum((1, 2)) / 100
    assert bool(((area_cm2 > 90) & (area_cm2 < 270)).all())


def test_streams_are_reproducible_and_disjoint() -> None:
    def draw(*key: int, split: str = "train") -> torch.Tensor:
        return draw_slices(split_generator(*key, split=split), 2, split=split).displacement

    first = draw(1, 2, 3, 0)
    torch.testing.assert_close(first, draw(1, 2, 3, 0), atol=0, rtol=0)
    others = [draw(0, 2, 3, 0), draw(1, 0, 3, 0), draw(1, 2, 4, 0), draw(1, 2, 3, 1)]
    others += [draw(1, 2, 3, 0, split="val"), draw(1, 2, 3, 0, split="test")]
    assert not any(torch.equal(first, other) for other in others)
    # The same generator in another split gives other numbers too.
    assert not torch.equal(first, draw_slices(split_generator(1, 2, 3, 0), 2, split="val").displacement)
    # What the CPU generator keeps of a seed (its lowest 32 bits) differs between any two splits.
    kept = [{split_seed(seed, 0, k, 0, split) % 2**32 for seed in range(20) for k in range(200)} for split in SPLITS]
    assert not kept[0] & kept[1] and not kept[0] & kept[2] and not kept[1] & kept[2]
    with pytest.raises(QMRIError, match="split"):
        split_seed(0, split="training")


def test_parameters_survive_a_file(head: Head, tmp_path: Path) -> None:
    drawn = draw_slices(split_generator(7), 2, size=(16, 24))
    torch.save(drawn.state_dict(), tmp_path / "drawn.pt")
    again = SliceParameters.from_state_dict(torch.load(tmp_path / "drawn.pt", weights_only=True))
    assert len(again) == 2
    torch.testing.assert_close(sample_slices(head, again), sample_slices(head, drawn), atol=0, rtol=0)


def test_bad_draw_arguments() -> None:
    with pytest.raises(QMRIError, match="pixel_mm"):
        draw_slices(split_generator(0), 1, pixel_mm=(0.0, 1.0))
    with pytest.raises(QMRIError, match="length_px"):
        smooth_field(split_generator(0), 1, (8, 8), 0.0)


@pytest.mark.parametrize("length", [4.0, 16.0, 300.0])
def test_smooth_field_statistics(length: float) -> None:
    field = smooth_field(split_generator(0), 8, (48, 64), length)
    assert field.shape == (8, 48, 64)
    torch.testing.assert_close(field.mean((1, 2)), torch.zeros(8), atol=1e-4, rtol=0)
    torch.testing.assert_close(field.std((1, 2), correction=0), torch.ones(8), atol=1e-3, rtol=0)
    # Smooth: the typical slope is about one standard deviation over the length.
    assert 0.5 < float(field.diff(dim=2).square().mean().sqrt()) * min(length, 32.0) < 2.0


def test_shells_vary_with_the_seed_and_the_brain_does_not() -> None:
    first, second = (load_head(8, seed=seed).fractions for seed in (0, 1))
    assert float((first[6:7] - second[6:7]).abs().max()) > 0.05
    grey = [part[1].sum() for part in (first, second)]
    torch.testing.assert_close(grey[0], grey[1], rtol=0.02, atol=0)


def _labels(path: Path) -> None:
    labels = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    nibabel.save(nibabel.Nifti1Image(labels, np.diag([2.0, 2.0, 2.0, 1.0])), path)


def test_folder_of_labels_in_any_orientation(tmp_path: Path) -> None:
    _labels(tmp_path / "a.nii.gz")
    labels = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    flipped = np.diag([-2.0, 2.0, 2.0, 1.0])
    flipped[0, 3] = 2.0
    nibabel.save(nibabel.Nifti1Image(labels[::-1], flipped), tmp_path / "b.nii")
    assert count_heads(tmp_path) == 2
    first, second = (load_head(folder=tmp_path, subject=k) for k in (0, 1))
    assert first.voxel_size_mm == 2.0
    expected = [None, 0, 1, 2, 3, 4, 5, 6, 7, 3, 5, 8]
    for label, tissue in enumerate(expected):
        voxel = first.fractions[:, label // 6, label % 6 // 3, label % 3]
        assert float(voxel.sum()) == (tissue is not None)
        assert tissue is None or float(voxel[tissue]) == 1.0
    torch.testing.assert_close(second.fractions, first.fractions)


def test_folder_of_fractions(tmp_path: Path) -> None:
    fractions = np.random.default_rng(0).dirichlet(np.ones(10), (4, 5, 6))[..., :9].astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(fractions, np.eye(4)), tmp_path / "a.nii.gz")
    loaded = load_head(folder=tmp_path)
    torch.testing.assert_close(loaded.fractions, torch.from_numpy(fractions).permute(3, 0, 1, 2))


def test_finer_labels_become_fractions(tmp_path: Path) -> None:
    labels = np.zeros((4, 4, 4), np.uint8)
    labels[:2], labels[2:, :1] = 2, 3  # grey matter in half of the volume, white in one of its other layers
    nibabel.save(nibabel.Nifti1Image(labels, np.diag([0.5, 0.5, 0.5, 1.0])), tmp_path / "a.nii.gz")
    loaded = load_head(folder=tmp_path)
    assert loaded.voxel_size_mm == 1.0
    assert loaded.fractions.shape == (9, 2, 2, 2)
    torch.testing.assert_close(loaded.fractions[1, :, 0, 0], torch.tensor([1.0, 0.0]))
    torch.testing.assert_close(loaded.fractions[2, 1, :, 0], torch.tensor([0.5, 0.0]))
    assert load_head(1, folder=str(tmp_path)) is loaded
    assert load_head(0.5, folder=tmp_path).fractions.shape == (9, 4, 4, 4)


def test_position_does_not_depend_on_resolution(head: Head) -> None:
    """The same parameters show the same place at 1 mm and at voxels of 3 mm."""
    coarse = Head(torch.nn.functional.avg_pool3d(head.fractions[None, :, 1:196, 1:232], 3)[0], 3.0, "coarse")
    parameters = draw_slices(split_generator(6), 1, whole_slice=True, size=(80, 80), pixel_mm=(3.0, 3.0))
    fine, rough = (torch.nn.functional.avg_pool2d(sample_slices(h, parameters), 4).flatten() for h in (head, coarse))
    assert float(torch.corrcoef(torch.stack([fine, rough]))[0, 1]) > 0.98


def _bad_values(path: Path) -> None:
    nibabel.save(nibabel.Nifti1Image(np.full((3, 3, 3), 12, np.uint8), np.eye(4)), path / "a.nii")


def _bad_sum(path: Path) -> None:
    nibabel.save(nibabel.Nifti1Image(np.ones((3, 3, 3, 9), np.float32), np.eye(4)), path / "a.nii")


def _bad_voxels(path: Path) -> None:
    nibabel.save(nibabel.Nifti1Image(np.ones((3, 3, 3), np.uint8), np.diag([1.0, 1.0, 3.0, 1.0])), path / "a.nii")


def _truncated(path: Path) -> None:
    _labels(path / "a.nii.gz")
    (path / "a.nii.gz").write_bytes((path / "a.nii.gz").read_bytes()[:40])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "no NIfTI file"),
        (lambda path: path.rmdir(), "no such folder"),
        (_bad_values, "labels 0-11"),
        (_bad_sum, "sum <= 1"),
        (_bad_voxels, "cubic"),
        (_truncated, "readable"),
    ],
)
def test_bad_folder(tmp_path: Path, make: Callable[[Path], None], message: str) -> None:
    folder = tmp_path / "heads"
    folder.mkdir()
    make(folder)
    with pytest.raises(QMRIError, match=message):
        load_head(folder=folder)


def test_bad_source_resolution_and_subject(tmp_path: Path) -> None:
    for arguments in ({"source": "colin"}, {"resolution_mm": 1.5}):
        with pytest.raises(QMRIError):
            load_head(**arguments)  # type: ignore[arg-type]
    _labels(tmp_path / "a.nii.gz")
    with pytest.raises(QMRIError, match="subject"):
        load_head(folder=tmp_path, subject=1)
