"""Images of the proton density: reproducible, apart between the splits, in range, and a user's own volumes."""

from __future__ import annotations

import math
from dataclasses import fields
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from deepspio.anatomy import SOURCES, Drawn, ProtonDensity
from deepspio.bodies import Containers
from deepspio.volumes import draw_file, volume_head
from torch import Tensor

from shared_transforms.errors import QMRIError


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def mixed() -> ProtonDensity:
    return ProtonDensity(64, shares={"mni152": 1, "uniform": 1, "breast": 1})


def _tensors(drawn: object) -> list[Tensor]:
    found: list[Tensor] = []
    for item in fields(drawn):  # type: ignore[arg-type]
        value = getattr(drawn, item.name)
        found += [value] if isinstance(value, Tensor) else []
        found += _tensors(value) if hasattr(value, "__dataclass_fields__") else []
    return found


def _of_kind(density: ProtonDensity, drawn: Drawn, name: str) -> Tensor:
    return density.images(drawn)[drawn.kind == SOURCES.index(name)]


def test_same_stream_same_images(mixed: ProtonDensity) -> None:
    first, again = (mixed.draw(_generator(3), 12) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(_tensors(first), _tensors(again), strict=True))
    assert torch.equal(mixed.images(first), mixed.images(again))
    assert torch.equal(mixed.images(first), mixed.images(first))  # nothing is left over from the call before
    other = mixed.draw(_generator(4), 12)
    assert not torch.equal(mixed.images(first), mixed.images(other))


def test_splits_share_nothing(mixed: ProtonDensity) -> None:
    draws = [mixed.draw(_generator(3), 12, split) for split in ("train", "val", "test")]
    assert len({drawn.seed for drawn in draws}) == 3
    for one, two in ((0, 1), (0, 2), (1, 2)):
        assert not torch.equal(draws[one].contrast, draws[two].contrast)
        assert not torch.equal(draws[one].containers.fill, draws[two].containers.fill)
        first, second = draws[one].slices, draws[two].slices
        assert first is not None and second is not None
        same = first.displacement.flatten(1)[:, None] == second.displacement.flatten(1)[None]
        assert float(same.float().mean(2).max()) < 0.01  # of any two images; single numbers meet by chance


def test_images_are_densities(mixed: ProtonDensity) -> None:
    drawn = mixed.draw(_generator(5), 40)
    images = mixed.images(drawn)
    assert images.shape == (40, 64, 64)
    assert images.dtype == torch.float32
    assert float(images.min()) >= 0.0
    assert float(images.max()) <= 1.0
    assert set(drawn.kind.tolist()) == {0, 1, 2}
    assert float((images > 0.3).float().mean((1, 2)).min()) > 0.2  # enough anatomy for lines to be seen
    differences = (images[:, None] - images[None]).abs().mean((2, 3)) + torch.eye(40)
    assert float(differences.min()) > 1e-3  # no image twice


def test_heads_fill_the_field_of_view_and_differ_in_contrast(mixed: ProtonDensity) -> None:
    heads = _of_kind(mixed, mixed.draw(_generator(6), 40), "mni152")
    tissue = heads > 0.1
    rows, columns = (tissue.any(axis).float().mean(1) for axis in (2, 1))
    longest = torch.maximum(rows, columns)
    assert float(longest.min()) > 0.75 and float(longest.mean()) > 0.85
    means = (heads * tissue).sum((1, 2)) / tissue.sum((1, 2))
    assert 0.4 < float(means.min()) < float(means.max()) < 0.95
    assert float(means.std()) > 0.03
    # The middle, inside of the brain, has structure.
    assert float(heads[:, 20:44, 20:44].std((1, 2)).min()) > 0.01


def test_containers_have_the_area_of_their_shape() -> None:
    fill = torch.tensor([[0.8, 0.3], [0.9, 0.7], [0.9, 0.7]])
    place = torch.tensor([[0.0, 0.0], [1.0, -1.0], [0.3, 0.2]])
    images = Containers(fill, torch.tensor([1.0, 0.0, 0.5]), place).images((100, 120))
    disc, rectangle, rounded = images.sum((1, 2)).tolist()
    assert disc == pytest.approx(math.pi * 40.0**2, rel=2e-3)  # of 0.8 of the shorter side, whatever the other fill
    assert rectangle == pytest.approx(90 * 84, rel=2e-3)
    corner = 0.5 * 42.0
    assert rounded == pytest.approx(90 * 84 - (4 - math.pi) * corner**2, rel=2e-3)
    # At the ends of its room it touches the borders of the image.
    assert float(images[1, -1].max()) == 1.0 == float(images[1, :, 0].max())
    assert float(images[1, :10].max()) == 0.0


def test_agar_is_uniform_but_for_a_gentle_shading() -> None:
    density = ProtonDensity((64, 80), shares={"uniform": 1.0})
    drawn = density.draw(_generator(8), 60)
    assert drawn.slices is None  # no head was loaded
    images = density.images(drawn)
    assert images.shape == (60, 64, 80)
    inside = torch.nn.functional.avg_pool2d((images > 0.45).float(), 3, 1, 1) > 0.999
    assert float(images[inside].min()) >= 0.9 - 1e-6
    assert float(images.amax((1, 2)).min()) > 0.9
    fills = torch.stack([(images > 0.45).any(axis).float().mean(1) for axis in (2, 1)])
    assert 0.45 < float(fills.min()) < float(fills.max()) < 0.99
    assert 0.3 < float((drawn.containers.roundness == 1.0).float().mean()) < 0.7
    steps = images.diff(dim=1).abs()[inside[:, 1:] & inside[:, :-1]]
    assert float(steps.max()) < 0.02


def test_breasts_hang_from_a_wall_in_air() -> None:
    density = ProtonDensity(96, shares={"breast": 1.0})
    images = density.images(density.draw(_generator(9), 30))
    assert float(images[:, 0].min()) > 0.3  # the chest wall along the whole of one side
    assert float(images[:, -3:].max()) == 0.0  # air beyond the nipple
    assert float(images[:, 60:, :4].max()) == 0.0
    assert float(images[:, 40, 44:52].amin()) > 0.2
    widths = (images > 0.1).float().sum(2)  # half an ellipse narrows from the wall on
    assert bool((widths[:, 20] > widths[:, 45]).all()) and bool((widths[:, 45] > widths[:, 68]).all())
    assert float(images[:, 25:45, 35:60].std((1, 2)).mean()) > 0.03  # fat, gland, ligaments


def _write(path: Path, affine: np.ndarray, shape: tuple[int, ...] = (20, 24, 10), scale: float = 700.0) -> None:
    """An ellipsoid with a bright spot to the right, in front and at the top."""
    grid = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape[:3]), indexing="ij")
    values = scale * 0.6 * (grid[0] ** 2 + grid[1] ** 2 + grid[2] ** 2 < 0.9)
    spot = (grid[0] - 0.5) ** 2 + (grid[1] - 0.4) ** 2 + (grid[2] - 0.3) ** 2 < 0.12
    image = nib.Nifti1Image((values + 0.4 * scale * spot).astype(np.float32), affine)
    if len(shape) > 3:
        image = nib.Nifti1Image(np.repeat(image.get_fdata()[..., None], shape[3], 3).astype(np.float32), affine)
    nib.save(image, path)


AXIAL = np.diag([8.0, 8.0, 16.0, 1.0])


def test_volume_of_a_file_in_any_orientation(tmp_path: Path) -> None:
    _write(tmp_path / "axial.nii.gz", AXIAL)
    head = volume_head(str(tmp_path / "axial.nii.gz"))
    assert head.fractions.shape == (1, 20, 24, 20)  # cubic voxels
    assert head.voxel_size_mm == 8.0
    assert float(head.fractions.max()) == 1.0
    assert float(head.fractions[0, 10, 4, 10]) == pytest.approx(0.6, abs=0.01)
    # The same head stored with its axes in the order (superior, left, posterior).
    stored = np.asarray(nib.load(tmp_path / "axial.nii.gz").dataobj).transpose(2, 0, 1)[:, ::-1, ::-1]
    affine = np.zeros((4, 4))
    affine[2, 0], affine[0, 1], affine[1, 2], affine[3, 3] = 16.0, -8.0, -8.0, 1.0
    nib.save(nib.Nifti1Image(np.ascontiguousarray(stored), affine), tmp_path / "other.nii")
    other = volume_head(str(tmp_path / "other.nii"))
    assert torch.equal(other.fractions, head.fractions)


def test_images_of_a_folder(tmp_path: Path) -> None:
    for k in range(10):
        _write(tmp_path / f"IXI{k:03d}-PD.nii.gz", AXIAL, scale=100.0 * (k + 1))
    density = ProtonDensity(48, shares={"mni152": 1.0}, folder=tmp_path)
    files = {
        split: {density.draw(_generator(k), 2, split).file for k in range(12)} for split in ("train", "val", "test")
    }
    assert len(files["train"]) > 2
    assert not files["train"] & files["val"] and not files["train"] & files["test"] and not files["val"] & files["test"]
    drawn = density.draw(_generator(1), 4)
    images = density.images(drawn)
    assert torch.equal(images, density.images(density.draw(_generator(1), 4)))
    assert images.shape == (4, 48, 48)
    assert float(images.max()) <= 1.0
    assert float(images.amax((1, 2)).min()) > 0.5
    assert float((images > 0.3).float().mean((1, 2)).min()) > 0.2


def test_few_files_serve_every_split(tmp_path: Path) -> None:
    _write(tmp_path / "one.nii", AXIAL)
    assert {draw_file(_generator(), tmp_path, split) for split in ("train", "val", "test")} == {
        str(tmp_path / "one.nii")
    }


def test_unusable_folders_and_files(tmp_path: Path) -> None:
    with pytest.raises(QMRIError, match="no such folder"):
        ProtonDensity(32, folder=tmp_path / "nowhere")
    with pytest.raises(QMRIError, match="no NIfTI file"):
        ProtonDensity(32, folder=tmp_path)
    _write(tmp_path / "series.nii", AXIAL, shape=(20, 24, 10, 2))
    with pytest.raises(QMRIError, match="one volume"):
        ProtonDensity(32, shares={"mni152": 1.0}, folder=tmp_path).draw(_generator(), 1)
    _write(tmp_path / "series.nii", AXIAL, scale=-1.0)
    with pytest.raises(QMRIError, match="no positive value"):
        ProtonDensity(32, shares={"mni152": 1.0}, folder=tmp_path).draw(_generator(), 1)


@pytest.mark.parametrize("shares", [{"brain": 1.0}, {"uniform": 0.0}, {"uniform": -1.0, "breast": 2.0}, {}])
def test_unusable_shares(shares: dict[str, float]) -> None:
    with pytest.raises(QMRIError, match="shares"):
        ProtonDensity(32, shares=shares)


def test_unusable_arguments() -> None:
    with pytest.raises(QMRIError, match="size"):
        ProtonDensity((32, 32, 32), shares={"uniform": 1.0})
    with pytest.raises(QMRIError, match="split"):
        ProtonDensity(32, shares={"uniform": 1.0}).draw(_generator(), 1, "training")
    heads = ProtonDensity(32, shares={"uniform": 1.0})
    drawn = heads.draw(_generator(), 2)
    drawn.kind.zero_()
    with pytest.raises(ValueError, match="without slices"):
        heads.images(drawn)
