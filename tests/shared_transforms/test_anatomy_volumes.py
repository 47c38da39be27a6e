"""Whole volumes of a deformed head: sampling against indexing, views of one head, the map and its inverse, streams."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from shared_transforms.anatomy import (
    MNI_MIDDLE_MM,
    SPLITS,
    Head,
    SliceParameters,
    VolumeParameters,
    brain_mask,
    displacement_at,
    draw_volumes,
    grid_to_head,
    head_points,
    head_to_grid,
    load_head,
    sample_slices,
    sample_volumes,
    smooth_volume,
    split_generator,
)
from shared_transforms.errors import QMRIError

SIZE = (40, 44, 36)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def head() -> Head:
    """The template at 4 mm: the same brain, quickly sampled."""
    fractions = torch.nn.functional.avg_pool3d(load_head().fractions[None], 4)[0]
    return Head(fractions, 4.0, "coarse")


def _drawn(head: Head, n: int = 1, **options: object) -> VolumeParameters:
    return draw_volumes(split_generator(3), n, SIZE, (4.0, 4.0, 4.0), head=head, **options)  # type: ignore[arg-type]


def test_identity_is_direct_indexing(head: Head) -> None:
    size = head.fractions.shape[1:]
    sampled = sample_volumes(head, VolumeParameters.identity(1, size, (4.0, 4.0, 4.0)))
    torch.testing.assert_close(sampled[0], head.fractions, atol=1e-4, rtol=0)


def test_fractions_stay_a_partition(head: Head) -> None:
    sampled = sample_volumes(head, _drawn(head, 2))
    assert sampled.shape == (2, 9, *SIZE)
    assert float(sampled.min()) >= 0.0
    assert float(sampled.sum(1).max()) <= 1.0 + 1e-5


def test_slices_and_volumes_deform_alike(head: Head) -> None:
    """The middle sheet of a volume is the axial slice with the same numbers."""
    drawn = replace(_drawn(head), size=(41, 45, 37))
    same = {k: getattr(drawn, k) for k in ("position", "rotation", "scale", "shear", "translation", "displacement")}
    sheet = SliceParameters(
        size=(41, 45), plane=torch.zeros(1, dtype=torch.long), pixel_mm=torch.full((1,), 4.0),
        flip=torch.zeros(1, 2, dtype=torch.bool), **same,
    )  # fmt: skip
    torch.testing.assert_close(sample_volumes(head, drawn)[..., 18], sample_slices(head, sheet), atol=5e-3, rtol=0)
    middle = torch.zeros(1, 3, 1)
    elastic = grid_to_head(drawn, middle) - grid_to_head(replace(drawn, displacement=drawn.displacement * 0), middle)
    torch.testing.assert_close(elastic[..., 0], displacement_at(sheet)[:, :, 20, 22], atol=1e-3, rtol=0)


def test_coarse_points_are_near_the_exact_ones(head: Head) -> None:
    drawn = replace(_drawn(head), voxel_mm=(1.0, 1.5, 2.0))
    axes = [(torch.arange(c) - (c - 1) / 2) * s for c, s in zip(SIZE, drawn.voxel_mm, strict=True)]
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij")).flatten(1)[None]
    error = head_points(drawn).flatten(2) - grid_to_head(drawn, grid)
    assert float(error.norm(dim=1).max()) < 0.15
    assert float(error.norm(dim=1).mean()) < 0.03


def test_the_inverse_map_inverts(head: Head) -> None:
    turn = torch.linalg.matrix_exp(torch.tensor([[0.0, -0.4, 0.2], [0.4, 0.0, -0.3], [-0.2, 0.3, 0.0]]))
    drawn = _drawn(head, 3, grid_rotation=turn)
    points = 60.0 * (2.0 * torch.rand((3, 3, 200), generator=split_generator(1)) - 1.0)
    torch.testing.assert_close(grid_to_head(drawn, head_to_grid(drawn, points)), points, atol=0.01, rtol=0)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_grid_turned_by_a_right_angle_is_the_turned_volume(head: Head, axis: int) -> None:
    angle = torch.zeros(3)
    angle[axis] = math.pi / 2
    i, j = [(1, 2), (2, 0), (0, 1)][axis]
    turn = torch.eye(3)
    turn[i, i] = turn[j, j] = 0.0
    turn[i, j], turn[j, i] = -1.0, 1.0
    plain = draw_volumes(split_generator(5), 1, (32, 32, 32), (4.0, 4.0, 4.0), head=head)
    turned = replace(plain, grid_rotation=turn[None])
    expected = torch.rot90(sample_volumes(head, plain), -1, (i + 2, j + 2))
    torch.testing.assert_close(sample_volumes(head, turned), expected, atol=5e-3, rtol=0)


def test_the_same_head_in_other_voxels(head: Head) -> None:
    """Voxels of 4 x 8 x 16 mm hold the means of those of 4 mm."""
    fine = draw_volumes(split_generator(6), 1, (32, 32, 32), (4.0, 4.0, 4.0), head=head)
    coarse = replace(fine, size=(32, 16, 8), voxel_mm=(4.0, 8.0, 16.0))
    expected = torch.nn.functional.avg_pool3d(sample_volumes(head, fine), (1, 2, 4))
    torch.testing.assert_close(sample_volumes(head, coarse), expected, atol=5e-3, rtol=0)


def test_the_brain_is_in_the_middle_and_as_large_as_asked(head: Head) -> None:
    volumes = []
    for scale in (0.7, 1.0):
        drawn = _drawn(head, 4, head_scale=(scale, scale), max_shift_mm=0.0)
        brain = brain_mask(sample_volumes(head, drawn))
        for one in brain:
            where = one.nonzero().float()
            middle = (where.amin(0) + where.amax(0) + 1) / 2 - torch.tensor(SIZE) / 2
            assert float(middle.abs().max()) * 4.0 < 16.0
        volumes.append(float(brain.float().mean()))
    assert volumes[0] / volumes[1] == pytest.approx(0.7**3, rel=0.15)


def test_mni_positions_of_the_template() -> None:
    """Heads of the lateral ventricles are fluid, genu and splenium of the corpus callosum are white matter."""
    points = torch.tensor([[8.0, 10.0, 17.0], [-8.0, 10.0, 17.0], [0.0, 28.0, 6.0], [0.0, -36.0, 18.0]])
    fine = load_head()
    voxels = (points - torch.tensor(MNI_MIDDLE_MM) + fine.middle_voxel).round().long()
    csf, _, wm = fine.fractions[(slice(0, 3), *voxels.unbind(1))]
    assert float(csf[:2].min()) > 0.9
    assert float(wm[2:].min()) > 0.9


def test_streams_repeat_and_are_disjoint(head: Head) -> None:
    drawn = {split: draw_volumes(split_generator(1), 2, SIZE, head=head, split=split) for split in SPLITS}
    again = draw_volumes(split_generator(1), 2, SIZE, head=head)
    assert torch.equal(drawn["train"].displacement, again.displacement)
    assert not torch.equal(drawn["train"].displacement, drawn["val"].displacement)
    assert not torch.equal(drawn["val"].displacement, drawn["test"].displacement)


def test_parameters_survive_a_file_and_can_be_taken_apart(head: Head, tmp_path: Path) -> None:
    drawn = _drawn(head, 2)
    torch.save(drawn.state_dict(), tmp_path / "drawn.pt")
    again = VolumeParameters.from_state_dict(torch.load(tmp_path / "drawn.pt", weights_only=True))
    assert len(again) == 2
    both = sample_volumes(head, again)
    torch.testing.assert_close(both[1:], sample_volumes(head, drawn.select(1)), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("bad", "field"),
    [
        ({"size": (4, 4)}, "size"),
        ({"voxel_mm": (1.0, 0.0, 1.0)}, "voxel_mm"),
        ({"head_scale": (0.0, 1.0)}, "head_scale"),
        ({"grid_rotation": 2 * torch.eye(3)}, "grid_rotation"),
        ({"split": "training"}, "split"),
    ],
)
def test_bad_arguments(head: Head, bad: dict, field: str) -> None:
    with pytest.raises(QMRIError, match=field):
        draw_volumes(split_generator(0), 1, **({"head": head} | bad))


@pytest.mark.parametrize("length", [4.0, 20.0])
def test_smooth_volume_statistics(length: float) -> None:
    volume = smooth_volume(split_generator(0), 4, (24, 30, 20), length)
    assert volume.shape == (4, 24, 30, 20)
    torch.testing.assert_close(volume.mean((1, 2, 3)), torch.zeros(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(volume.std((1, 2, 3), correction=0), torch.ones(4), atol=1e-3, rtol=0)
    for axis in (1, 2, 3):
        slope = float(volume.diff(dim=axis).square().mean().sqrt())
        assert 0.3 < slope * length < 2.0
    with pytest.raises(QMRIError, match="length_px"):
        smooth_volume(split_generator(0), 1, (8, 8, 8), 0.0)
