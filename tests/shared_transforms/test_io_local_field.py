"""Local fields in every unit give the same ppm; what is not declared is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from shared_transforms.errors import QMRIError
from shared_transforms.io import LoadLocalFieldd, find_local_fields, prepare_field

SHAPE = (6, 5, 4)
AFFINE = np.diag([-1.0, 1.5, 2.0, 1.0])
# Hz in one ppm at 3 T: a millionth of the Larmor frequency of the proton, 267.522e6 rad/s/T.
HZ = 267.5221874 * 3.0 / (2 * math.pi)


def field() -> np.ndarray:
    """ppm, 0 on one face."""
    values = np.linspace(-0.05, 0.08, math.prod(SHAPE)).reshape(SHAPE)
    values[0] = 0.0
    return values


def write(path: Path, data: np.ndarray, affine: np.ndarray = AFFINE, **sidecar: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(data.astype(np.float32), affine), path)
    if sidecar:
        Path(str(path).removesuffix(".gz").replace(".nii", ".json")).write_text(json.dumps(sidecar))
    return path


def load(path: Path, **options: Any) -> dict[str, Any]:
    return dict(LoadLocalFieldd(**options)({"image": str(path)}))


@pytest.mark.parametrize(
    ("factor", "sidecar", "options"),
    [
        (1.0, {"Units": "ppm"}, {}),
        (1e3, {"Units": "ppb"}, {}),
        (HZ, {"Units": "Hz", "MagneticFieldStrength": 3}, {}),
        (2 * math.pi * HZ, {"Units": "rad/s", "MagneticFieldStrength": 1.5}, {"field_strength_t": 3}),
        (1e3, {"Units": "ppm"}, {"field_unit": "ppb"}),
        (-1.0, {}, {"field_unit": "PPM", "field_sign": -1}),
    ],
)
def test_every_unit_gives_ppm(tmp_path: Path, factor: float, sidecar: dict, options: dict) -> None:
    item = load(write(tmp_path / "sub-01_localfield.nii.gz", factor * field(), **sidecar), **options)
    image = item["image"]
    assert isinstance(image, MetaTensor) and image.shape == (2, *SHAPE) and image.dtype == torch.float32
    np.testing.assert_allclose(image[0].numpy(), field(), rtol=1e-5, atol=1e-9)
    assert not image[1].any() and item["stem"] == "sub-01"
    assert item["mask"].shape == (1, *SHAPE) and item["mask"].sum() == np.count_nonzero(field())
    assert any("no mask given" in note for note in item["notes"])
    assert item["acquisition"]["voxel_size"].tolist() == [1.0, 1.5, 2.0]
    assert item["acquisition"]["b0_direction"].tolist() == [0.0, 0.0, 1.0]
    np.testing.assert_allclose(image.affine, AFFINE)


def test_mask_and_magnitude(tmp_path: Path) -> None:
    path = write(tmp_path / "sub-01_localfield.nii.gz", field(), Units="ppm")
    inside = np.zeros(SHAPE)
    inside[1:4, 1:4, 1:3] = 1
    magnitude = 10 + np.arange(math.prod(SHAPE)).reshape(SHAPE)
    write(tmp_path / "sub-01_mask.nii.gz", inside)
    write(tmp_path / "sub-01_magnitude.nii.gz", np.stack([3 * magnitude, 4 * magnitude], -1))
    (found,) = find_local_fields(tmp_path)
    item = LoadLocalFieldd()(found)
    assert item["mask"][0].numpy().tolist() == (inside > 0).tolist() and len(item["sources"]) == 3
    np.testing.assert_allclose(item["image"][0].numpy(), field() * inside, rtol=1e-6)
    np.testing.assert_allclose(item["image"][1].numpy(), 5 * magnitude, rtol=1e-6)
    other = load(path, mask_file=tmp_path / "sub-01_mask.nii.gz", magnitude_file=tmp_path / "sub-01_magnitude.nii.gz")
    assert torch.equal(other["image"], item["image"]) and other["mask"].equal(item["mask"])


def test_what_the_engine_is_given(tmp_path: Path) -> None:
    item = load(write(tmp_path / "lfs.nii", field(), Units="ppm", B0_dir=[0.6, 0.0, 0.8]))
    image, label, arguments, keywords = prepare_field(item, "cpu")
    assert image.shape == (1, 2, *SHAPE) and label is None and arguments == ()
    assert keywords["mask"].shape == (1, 1, *SHAPE) and keywords["mask"].dtype == torch.bool
    assert keywords["voxel_size"] == (1.0, 1.5, 2.0) and keywords["b0_direction"] == (0.6, 0.0, 0.8)


def test_maps_of_a_folder(tmp_path: Path) -> None:
    for subject in ("sub-01", "sub-02"):
        write(tmp_path / subject / f"{subject}_localfield.nii.gz", field(), Units="ppm")
        write(tmp_path / subject / f"{subject}_Chimap.nii.gz", field(), Units="ppm")
    (tmp_path / "sub-01/dataset_description.json").write_text(json.dumps({"DatasetType": "derivative"}))
    assert [f["stem"] for f in find_local_fields(tmp_path)] == ["sub-01", "sub-02"]
    assert [f["stem"] for f in find_local_fields(tmp_path / "sub-01/sub-01_localfield.nii.gz")] == ["sub-01"]
    write(tmp_path / "one/tissue.nii", field())
    write(tmp_path / "one/mask.nii", np.ones(SHAPE))
    (alone,) = find_local_fields(tmp_path / "one")
    assert alone["image"].endswith("tissue.nii") and alone["mask"].endswith("mask.nii")
    with pytest.raises(QMRIError, match="input_kind"):
        find_local_fields(write(tmp_path / "two/part-mag.nii", field()).parent)
    with pytest.raises(QMRIError, match="no such folder"):
        find_local_fields(tmp_path / "nowhere")


def test_a_mask_and_a_magnitude_of_pat10_are_not_of_pat1(tmp_path: Path) -> None:
    first, tenth = (write(tmp_path / f"{name}_localfield.nii.gz", field()) for name in ("pat1", "pat10"))
    for name in ("mask", "magnitude"):
        write(tmp_path / f"pat10_{name}.nii.gz", np.ones(SHAPE))
    one, other = find_local_fields(tmp_path)
    assert one == {"image": str(first), "stem": "pat1"}
    assert other.keys() == {"image", "stem", "mask", "magnitude"}
    assert [find_local_fields(path) for path in (first, tenth)] == [[one], [other]]


def test_doubtful_sizes_are_said(tmp_path: Path) -> None:
    path = write(tmp_path / "localfield.nii", 1e3 * field(), Units="ppm")
    assert any("unusually large" in note for note in load(path)["notes"])
    assert any("unusually small" in note for note in load(path, field_unit="ppb", field_sign=-1)["notes"]) is False
    assert any("unusually small" in n for n in load(write(tmp_path / "lfs.nii", 1e-6 * field(), Units="ppm"))["notes"])


def with_voxel(value: float) -> np.ndarray:
    values = field()
    values[3, 2, 1] = value
    return values


BAD: dict[str, tuple[np.ndarray, dict[str, Any], dict[str, Any], str]] = {
    "no unit": (field(), {}, {}, "Units"),
    "phase": (field(), {"Units": "rad"}, {}, "Units"),
    "unknown unit": (field(), {"Units": "ppm"}, {"field_unit": "ppt"}, "field_unit"),
    "Hz without B0": (field(), {"Units": "Hz"}, {}, "MagneticFieldStrength"),
    "B0 in mT": (field(), {"Units": "Hz", "MagneticFieldStrength": 3000}, {}, "MagneticFieldStrength"),
    "B0 not of unit length": (field(), {"Units": "ppm"}, {"b0_direction": [1, 0, 1]}, "b0_direction"),
    "sign": (field(), {"Units": "ppm"}, {"field_sign": 2}, "field_sign"),
    "NaN": (with_voxel(math.nan), {"Units": "ppm"}, {}, "voxel values"),
    "all zero": (0 * field(), {"Units": "ppm"}, {}, "voxel values"),
    "Hz called ppm": (1e4 * field(), {"Units": "ppm"}, {}, "voxel values"),
    "echoes": (np.stack([field(), field()], -1), {"Units": "ppm"}, {}, "dim"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(tmp_path: Path, name: str) -> None:
    data, sidecar, options, place = BAD[name]
    with pytest.raises(QMRIError) as error:
        load(write(tmp_path / "localfield.nii.gz", data, **sidecar), **options)
    assert error.value.field == place and error.value.remedy


def test_bad_mask_and_magnitude(tmp_path: Path) -> None:
    path = write(tmp_path / "localfield.nii.gz", field(), Units="ppm")
    faults = {
        "dim": ("mask_file", np.ones((6, 5, 3)), AFFINE),
        "pixdim": ("magnitude_file", np.ones(SHAPE), np.diag([-1.0, 1.5, 2.1, 1.0])),
        "mask": ("mask_file", np.zeros(SHAPE), AFFINE),
        "voxel values": ("magnitude_file", field(), AFFINE),
    }
    for place, (option, data, affine) in faults.items():
        with pytest.raises(QMRIError) as error:
            load(path, **{option: write(tmp_path / "other.nii.gz", data, affine)})
        assert error.value.field == place, place
