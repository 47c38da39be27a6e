"""QSM, FLAIR and lesion mask as tools write them: found, told apart, brought to ppb, and refused if in doubt."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

from shared_transforms.errors import QMRIError
from shared_transforms.io import LoadLesionMapsd, find_lesion_maps, load_lesion_maps, prepare_lesions

SHAPE = (12, 14, 10)
AFFINE = np.array([[-1.5, 0, 0, 9], [0, 1.5, 0, -10], [0, 0, 3.0, -15], [0, 0, 0, 1]])
NAMES = ("sub-01_Chimap", "sub-01_FLAIR", "sub-01_label-lesion_mask")


def volumes() -> dict[str, np.ndarray]:
    """QSM [ppb], FLAIR and lesion mask [X, Y, Z]; the brain leaves a border of one voxel free."""
    rng = np.random.default_rng(0)
    brain = np.pad(np.ones([n - 2 for n in SHAPE]), 1)
    mask = np.zeros(SHAPE)
    mask[4:7, 4:7, 3:5], mask[8, 9, 6] = 1, 1
    return {"qsm": rng.normal(0, 25, SHAPE) * brain, "flair": rng.uniform(50, 200, SHAPE) * brain, "mask": mask}


def save(path: Path, data: np.ndarray, affine: np.ndarray = AFFINE, **sidecar: Any) -> Path:
    """One NIfTI file, and a sidecar if it has fields."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(data.astype(np.float32), affine), path)
    if sidecar:
        Path(str(path).replace(".nii.gz", ".json")).write_text(json.dumps(sidecar))
    return path


def subject(folder: Path, unit: str | None = "ppb", names: tuple[str, str, str] = NAMES, **other: np.ndarray) -> Path:
    """The three files; ``other`` replaces volumes."""
    given = volumes() | other
    scale = 1e-3 if unit == "ppm" else 1.0
    save(folder / f"{names[0]}.nii.gz", given["qsm"] * scale, **({} if unit is None else {"Units": unit}))
    save(folder / f"{names[1]}.nii.gz", given["flair"])
    save(folder / f"{names[2]}.nii.gz", given["mask"])
    return folder


def load(path: Path, **options: Any) -> dict[str, Any]:
    return dict(LoadLesionMapsd(**options)({"image": str(path)}))


def names_of(item: Mapping[str, Any]) -> list[str]:
    return [Path(p).name.removesuffix(".nii.gz") for p in item["image"]]


@pytest.mark.parametrize(
    ("names", "stem"),
    [
        (NAMES, "sub-01"),
        (("anat/sub-01_ses-2_Chimap", "anat/sub-01_ses-2_FLAIR", "anat/sub-01_ses-2_lesions"), "sub-01_ses-2"),
        (("p7_QSM", "p7_T2_FLAIR", "p7_lesion_mask"), "p7"),
        (("sub-01_space-FLAIR_Chimap", "sub-01_space-QSM_FLAIR", "sub-01_space-QSM_label-lesion_dseg"), "sub-01"),
        (("sub-01_Chimap", "sub-01_FLAIR", "sub-01_dseg"), "sub-01"),
        (("out/sub-01/sub-01_Chimap", "raw/sub-01/anat/sub-01_FLAIR", "seg/sub-01_lesions"), "sub-01"),
        (("gre_5_qsm", "flair_3", "roi_lesions"), "gre_5"),
    ],
)
def test_what_tools_write_is_found_and_read(tmp_path: Path, names: tuple[str, str, str], stem: str) -> None:
    subject(tmp_path, names=names)
    (found,) = find_lesion_maps(tmp_path)
    assert names_of(found) == [Path(n).name for n in names] and found["stem"] == stem
    item = LoadLesionMapsd()(found)
    assert item["image"].shape == (3, *SHAPE) and item["image"].dtype == torch.float32
    for channel, values in zip(item["image"], volumes().values(), strict=True):
        np.testing.assert_allclose(channel, values, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(item["image"].affine, AFFINE)
    assert item["acquisition"]["voxel_size"].tolist() == [1.5, 1.5, 3.0]
    assert item["sources"] == found["image"] and item["notes"] == [] and item["stem"] == stem
    assert item["details"]["Lesion mask"] == "19 voxels, 0.13 ml"


def test_ppm_and_ppb_give_the_same_map(tmp_path: Path) -> None:
    ppb, ppm = (load(subject(tmp_path / unit, unit)) for unit in ("ppb", "ppm"))
    torch.testing.assert_close(ppm["image"].as_tensor(), ppb["image"].as_tensor())
    assert ppm["details"]["Unit of the QSM"] == "ppm, from the sidecar"
    bare = load(subject(tmp_path / "bare", None), qsm_unit="ppb")
    torch.testing.assert_close(bare["image"].as_tensor(), ppb["image"].as_tensor())
    assert bare["details"]["Unit of the QSM"] == "ppb, from the config (qsm_unit)"


def test_one_file_of_three_or_four_volumes(tmp_path: Path) -> None:
    three = [*volumes().values()]
    for name, parts in (("three", three), ("four", [*three, 90 + three[1]])):
        path = save(tmp_path / name / "scan_7.nii.gz", np.stack(parts, -1), Units="ppb")
        for given in (path, path.parent):
            (found,) = find_lesion_maps(given)
            assert found["image"] == [str(path)] and found["stem"] == "scan_7"
        item = load(path)  # as MONAI Label gives it
        np.testing.assert_allclose(item["image"], np.stack(three), rtol=1e-6, atol=1e-6)
        assert item["sources"] == [str(path)] and "magnitude" not in item
    moved = load(tmp_path / "four/scan_7.nii.gz", own_flair_grid=True)
    np.testing.assert_allclose(moved["magnitude"][0], 90 + three[1], rtol=1e-6)
    assert moved["flair"].shape == (1, *SHAPE)


def test_several_subjects_brain_mask_and_magnitude(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for label in ("01", "02"):
        subject(tmp_path, names=tuple(n.replace("01", label) for n in NAMES))  # type: ignore[arg-type]
    brain = volumes()["qsm"] != 0
    save(tmp_path / "sub-02_desc-brain_mask.nii.gz", brain)
    for echo in (1, 2):
        save(tmp_path / f"sub-02_echo-{echo}_part-mag_MEGRE.nii.gz", 100 + volumes()["flair"])
    save(tmp_path / "sub-03_Chimap.nii.gz", volumes()["qsm"], Units="ppb")
    with caplog.at_level(logging.WARNING):
        first, second = find_lesion_maps(tmp_path)
    assert "sub-03_Chimap" in caplog.text and "no FLAIR image and no lesion mask" in caplog.text
    assert [names_of(s)[0] for s in (first, second)] == ["sub-01_Chimap", "sub-02_Chimap"]
    assert "brain" not in first and Path(second["magnitude"]).name == "sub-02_echo-1_part-mag_MEGRE.nii.gz"
    item = LoadLesionMapsd()(second)
    assert item["brain"].dtype == torch.bool and torch.equal(item["brain"][0], torch.from_numpy(brain))
    assert "magnitude" not in item  # it is there to register with
    with pytest.raises(QMRIError, match="2 subjects: sub-01, sub-02"):
        load(tmp_path)
    with pytest.raises(QMRIError, match="one file for 3 susceptibility maps"):
        find_lesion_maps(tmp_path, flair_file=tmp_path / "sub-01_FLAIR.nii.gz")


def test_results_of_an_earlier_run_are_no_input(tmp_path: Path) -> None:
    subject(tmp_path)
    mask = volumes()["mask"]
    for name in ("sub-01_desc-lesion_dseg", "sub-01_desc-rim_dseg", "sub-01_label-rim_probseg"):
        save(tmp_path / "derivatives/sub-01" / f"{name}.nii.gz", mask, EstimationMethod="QSMRim-Net")
    (found,) = find_lesion_maps(tmp_path)
    assert names_of(found) == list(NAMES)


def test_files_that_are_named_come_first(tmp_path: Path) -> None:
    subject(tmp_path)
    other = save(tmp_path / "sub-01_acq-2_FLAIR.nii.gz", volumes()["flair"])
    lesions = save(tmp_path / "elsewhere/roi.nii.gz", volumes()["mask"])
    with pytest.raises(QMRIError, match="flair_file=PATH"):
        find_lesion_maps(tmp_path)
    (found,) = find_lesion_maps(tmp_path, flair_file=other, mask_file=lesions)
    assert found["image"][1:] == [str(other), str(lesions)]
    (found,) = find_lesion_maps(tmp_path / "sub-01_Chimap.nii.gz", flair_file=other)
    assert names_of(found)[0] == "sub-01_Chimap"


def shifted(by: float) -> np.ndarray:
    affine = AFFINE.copy()
    affine[0, 3] += by
    return affine


def test_a_flair_on_a_grid_of_its_own(tmp_path: Path) -> None:
    subject(tmp_path)
    flair = np.random.default_rng(1).uniform(50, 200, (20, 22, 18))
    grid = np.diag([1.0, 1.0, 2.0, 1.0])
    save(tmp_path / "sub-01_FLAIR.nii.gz", flair, grid)
    with pytest.raises(QMRIError, match=r"shape \(20, 22, 18\)"):
        load(tmp_path)
    save(tmp_path / "sub-01_magnitude.nii.gz", 100 + volumes()["flair"])
    item = load(tmp_path, own_flair_grid=True)
    np.testing.assert_allclose(item["flair"][0], flair, rtol=1e-6)
    np.testing.assert_allclose(item["flair"].affine, grid)
    assert not item["image"][1].any() and item["image"][2].sum() == 19
    assert item["magnitude"].shape == (1, *SHAPE) and len(item["sources"]) == 4
    lesions = np.zeros(flair.shape)
    lesions[5:8, 5:8, 5:8] = 1
    save(tmp_path / "sub-01_label-lesion_mask.nii.gz", lesions, grid)
    item = load(tmp_path, own_flair_grid=True)  # lesions drawn on the FLAIR go with it
    assert item["flair"].shape == (2, 20, 22, 18) and not item["image"][2].any()
    with pytest.raises(QMRIError, match="lesion mask of this QSM"):
        load(tmp_path, own_flair_grid=True, mask_space="qsm")


BAD: dict[str, tuple[dict[str, np.ndarray], str]] = {
    "empty mask": ({"mask": np.zeros(SHAPE)}, "an empty mask"),
    "probabilities": ({"mask": 0.5 * volumes()["mask"]}, "whole numbers"),
    "negative labels": ({"mask": -volumes()["mask"]}, "whole numbers"),
    "NaN in the QSM": ({"qsm": np.where(volumes()["mask"] > 0, np.nan, volumes()["qsm"])}, "19 NaN or infinite"),
    "NaN in the FLAIR": ({"flair": np.where(volumes()["mask"] > 0, np.inf, volumes()["flair"])}, "19 NaN or infinite"),
    "NaN in the mask": ({"mask": np.where(volumes()["mask"] > 0, np.nan, 0.0)}, "19 NaN or infinite"),
    "no FLAIR": ({"flair": np.zeros(SHAPE)}, "zero everywhere"),
    "lesions beyond the brain": ({"mask": np.pad(np.ones((1, 14, 10)), ((0, 11), (0, 0), (0, 0)))}, "the QSM is 0"),
    "another patient's FLAIR": ({"flair": np.where(volumes()["mask"] > 0, 0, volumes()["flair"])}, "the FLAIR is 0"),
    "phase as FLAIR": ({"flair": volumes()["flair"] * np.sign(volumes()["qsm"])}, "of the voxels are negative"),
    "ppm declared as ppb": ({"qsm": 1e-3 * volumes()["qsm"]}, "they look like ppm"),
    "values of no tissue": ({"qsm": 1e6 * volumes()["qsm"]}, "neither ppm nor ppb"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_volumes_are_refused(kind: str, tmp_path: Path) -> None:
    other, message = BAD[kind]
    with pytest.raises(QMRIError, match=message) as caught:
        load(subject(tmp_path / "in", **other))
    assert caught.value.file and caught.value.field and caught.value.remedy
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in"]


@pytest.mark.parametrize(
    ("declared", "scale", "message"),
    [
        ("ppb", 1e-3, "they look like ppm"),
        ("ppm", 1.0, "they look like ppb"),
        (None, 1.0, "no unit in the sidecar"),
        ("Hz", 1.0, "'Hz'"),
    ],
)
def test_a_unit_must_be_declared_and_fit(tmp_path: Path, declared: str | None, scale: float, message: str) -> None:
    subject(tmp_path)
    sidecar = {} if declared is None else {"Units": declared}
    (tmp_path / "sub-01_Chimap.json").unlink()
    save(tmp_path / "sub-01_Chimap.nii.gz", scale * volumes()["qsm"], **sidecar)
    with pytest.raises(QMRIError, match=message):
        load(tmp_path)


@pytest.mark.parametrize(("scale", "remark"), [(0.1, "small"), (1.0, None), (8.0, "large")])
def test_an_unusual_spread_is_said(tmp_path: Path, scale: float, remark: str | None) -> None:
    notes = load(subject(tmp_path, qsm=scale * volumes()["qsm"]))["notes"]
    assert (f"unusually {remark}" in notes[0]) if remark else notes == []


def test_grids_and_counts_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    subject(tmp_path)
    save(tmp_path / "sub-01_FLAIR.nii.gz", volumes()["flair"], shifted(4))
    with pytest.raises(QMRIError, match="moves a corner by 4 mm"):
        load(tmp_path)
    paths = [tmp_path / f"{n}.nii.gz" for n in NAMES]
    with pytest.raises(QMRIError, match="2 files"):
        load_lesion_maps(paths[:2])
    for count in (2, 5):
        joined = save(tmp_path / f"{count}/four_d.nii.gz", np.stack([volumes()["qsm"]] * count, -1), Units="ppb")
        with pytest.raises(QMRIError, match=f"{count} volumes"):
            load_lesion_maps(joined)
    subject(tmp_path)
    save(paths[2], np.stack([volumes()["mask"]] * 2, -1))
    with pytest.raises(QMRIError, match="2 volumes"):
        load_lesion_maps(paths)
    save(paths[2], volumes()["mask"], shifted(-4))
    with pytest.raises(QMRIError, match="lesion mask of this QSM"):
        load_lesion_maps(paths)
    with pytest.raises(QMRIError, match="mask_space"):
        load_lesion_maps(paths, own_flair_grid=True, mask_space="t1")


def test_a_mask_of_the_brain_is_no_lesion_mask(tmp_path: Path) -> None:
    large = np.diag([7.0, 7.0, 7.0, 1.0])
    for name, values in zip(NAMES, volumes().values(), strict=True):
        save(tmp_path / f"{name}.nii.gz", values if "mask" not in name else np.ones(SHAPE), large, Units="ppb")
    with pytest.raises(QMRIError, match="1680 voxels, 576 ml"):
        load(tmp_path)


def test_a_flair_that_cannot_be_registered_is_refused(tmp_path: Path) -> None:
    subject(tmp_path)
    save(tmp_path / "sub-01_FLAIR.nii.gz", np.ones((12, 14, 3)))
    with pytest.raises(QMRIError, match="9 mm from foot to head"):
        load(tmp_path, own_flair_grid=True)
    image = nib.Nifti1Image(volumes()["flair"].astype(np.float32), None)
    nib.save(image, tmp_path / "sub-01_FLAIR.nii.gz")
    with pytest.raises(QMRIError, match="no orientation"):
        load(tmp_path, own_flair_grid=True)


def test_missing_and_ambiguous_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(QMRIError, match="no such file or folder"):
        find_lesion_maps(tmp_path / "nowhere")
    with pytest.raises(QMRIError, match="no NIfTI file"):
        find_lesion_maps(tmp_path)
    save(tmp_path / "sub-01_FLAIR.nii.gz", volumes()["flair"])
    with pytest.raises(QMRIError, match="sub-01_FLAIR.nii.gz"):
        find_lesion_maps(tmp_path)
    save(tmp_path / "sub-01_Chimap.nii.gz", volumes()["qsm"])
    with pytest.raises(QMRIError, match="no lesion mask") as caught:
        find_lesion_maps(tmp_path)
    assert caught.value.field == "mask" and "mask_file=PATH" in caught.value.remedy
    subject(tmp_path)
    save(tmp_path / "sub-01_lesions.nii.gz", volumes()["mask"])
    with pytest.raises(QMRIError, match="2 files: sub-01_label-lesion_mask.nii.gz, sub-01_lesions.nii.gz"):
        find_lesion_maps(tmp_path)
    save(tmp_path / "sub-01_QSM.nii.gz", volumes()["qsm"])
    with pytest.raises(QMRIError, match="one susceptibility map for sub-01"):
        find_lesion_maps(tmp_path)
    with pytest.raises(QMRIError, match="no such file"):
        find_lesion_maps(tmp_path, mask_file=tmp_path / "absent.nii.gz")


def test_lesions_go_into_the_network_as_a_batch() -> None:
    item = {"patches": torch.ones(5, 2, 8, 8, 4), "radiomics": torch.ones(5, 527, dtype=torch.float64)}
    image, label, arguments, keywords = prepare_lesions(item, "cpu")
    assert image.shape == (5, 2, 8, 8, 4) and label is None and arguments == ()
    assert list(keywords) == ["radiomics"] and keywords["radiomics"].dtype == torch.float32
