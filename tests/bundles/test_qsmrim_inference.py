"""Inference of rim lesions as its config runs it: right files for right input, and nothing at all for bad input."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from qsmrim_net.orientation import RasOrder

from shared_transforms.errors import QMRIError
from shared_transforms.weights import sha256_file

from .rim_subject import LESIONS, PLAIN, ROOT, SHAPE, VOXEL, ensemble, infer, subject, turned, write

MAPS = ("label-rim_probseg", "desc-rim_dseg", "desc-lesion_dseg")
NO_WRITERS = {f"postprocessing#transforms#{place}#_disabled_": True for place in (3, 4, 5)}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "model.pt"
    torch.save(ensemble().state_dict(), path)
    return path


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, weights: Path) -> Path:
    """Folder of the results from three files, with the report."""
    folder = tmp_path_factory.mktemp("plain")
    infer(write(folder / "in"), folder / "out", weights, report=True)
    return folder / "out" / "sub-01"


def table(folder: Path) -> list[dict[str, str]]:
    [path] = folder.glob("*_lesions.csv")
    return list(csv.DictReader(path.read_text().splitlines()))


def voxels(folder: Path, name: str) -> np.ndarray:
    [path] = folder.glob(f"*_{name}.nii.gz")
    return np.asarray(nib.load(path).dataobj)


def world(rows: list[dict[str, str]]) -> np.ndarray:
    return np.array([[float(row[f"{axis}_mm"]) for axis in "xyz"] for row in rows])


def test_every_file_is_written_and_says_what_it_is(plain: Path, weights: Path) -> None:
    names = {path.name for path in plain.iterdir()}
    images = {f"sub-01_{name}.{kind}" for name in MAPS for kind in ("nii.gz", "json")}
    others = {f"sub-01_{name}" for name in ("lesions.csv", "lesions.json", "subject.json", "sheet.png")}
    assert names == images | others | {"report.html"}
    for name in MAPS:
        assert np.allclose(nib.load(plain / f"sub-01_{name}.nii.gz").affine, PLAIN, atol=1e-5)
        sidecar = json.loads((plain / f"sub-01_{name}.json").read_text())
        assert sidecar["Units"] == "1" and sidecar["GeneratedBy"][0]["WeightsSHA256"] == sha256_file(weights)
    page = (plain / "report.html").read_text()
    for words in (
        "Lesions to review",
        "there is no residual",
        "data:image/png",
        "Unit of the QSM",
        "of 5 lesions have no",
    ):
        assert words in page
    assert "Does the result explain the data?" not in page and "<h2>Maps</h2>" not in page


def test_every_lesion_is_a_row_with_its_place_and_size(plain: Path) -> None:
    rows = table(plain)
    assert len(rows) == len(LESIONS)
    truth = np.array([PLAIN[:3, :3] @ centre + PLAIN[:3, 3] for centre, _ in LESIONS])
    nearest = np.linalg.norm(world(rows)[:, None] - truth, axis=2).argmin(0)  # row of each true lesion
    assert sorted(nearest) == list(range(len(LESIONS)))
    np.testing.assert_allclose(world(rows)[nearest], truth, atol=1e-3)
    mask = subject()[2]
    for (centre, radius), index in zip(LESIONS, nearest, strict=True):
        row = rows[index]
        assert [int(row[f"voxel_{axis}"]) for axis in "ijk"] == list(centre)
        x, y, z = (np.abs(np.arange(n) - c) for n, c in zip(mask.shape, centre, strict=True))
        far = x[:, None, None] ** 2 + y[:, None] ** 2 + 16 * z**2
        assert int(row["voxels"]) == np.count_nonzero(far <= radius**2)
        assert float(row["volume_ml"]) == pytest.approx(int(row["voxels"]) * np.prod(VOXEL) / 1000, rel=1e-5)
    assert sum(int(row["voxels"]) for row in rows) == np.count_nonzero(mask)


def test_maps_paint_the_table(plain: Path) -> None:
    rows, mask = table(plain), subject()[2]
    probability, classes, numbers = (voxels(plain, name) for name in MAPS)
    assert set(np.unique(classes)) == {0, 1, 2} and classes.dtype.kind in "iu"
    np.testing.assert_array_equal(classes > 0, mask > 0)
    np.testing.assert_array_equal(numbers > 0, mask > 0)
    assert not probability[mask == 0].any()
    for row in rows:
        there = numbers == int(row["lesion"])
        assert np.count_nonzero(there) == int(row["voxels"])
        assert set(classes[there]) == {1 + int(row["rim"])}
        np.testing.assert_allclose(probability[there], float(row["probability"]), rtol=1e-5)


def test_a_lesion_too_small_for_features_has_those_of_the_mean(plain: Path) -> None:
    [row] = [row for row in table(plain) if row["radiomics"] != "ok"]
    assert row["voxels"] == "1" and "too_small" in row["flags"]
    place = tuple(int(row[f"voxel_{axis}"]) for axis in "ijk")
    qsm, flair, _ = subject().astype(np.float32)
    brain = (qsm != 0) & (flair > 0)
    middle = np.median(flair[brain])
    patch = torch.zeros(1, 2, 24, 24, 8)
    patch[0, 0, 12, 12, 4] = float(qsm[place] - np.median(qsm[brain])) / 50
    patch[0, 1, 12, 12, 4] = float((flair[place] - middle) / (1.4826 * np.median(abs(flair[brain] - middle))))
    with torch.no_grad():
        expected = ensemble().eval()(patch)[0]
    found = [float(row[f"probability_seed{seed}"]) for seed in range(3)]
    assert found == pytest.approx(expected.tolist(), rel=2e-3)


def test_same_input_same_output_and_one_file_for_three(plain: Path, tmp_path: Path, weights: Path) -> None:
    infer(write(tmp_path / "in"), tmp_path / "again", weights)
    for path in (tmp_path / "again" / "sub-01").iterdir():
        if path.suffix != ".json":  # a sidecar names its sources from where it lies
            assert path.read_bytes() == (plain / path.name).read_bytes(), path.name
    infer(write(tmp_path / "joined", joined=True, unit="ppb"), tmp_path / "one", weights)
    [folder] = [path for path in (tmp_path / "one").iterdir() if path.is_dir()]
    for one, three in zip(table(folder), table(plain), strict=True):
        assert {k: v for k, v in one.items() if "prob" not in k} == {k: v for k, v in three.items() if "prob" not in k}
        for name in (k for k in one if "prob" in k):  # ppm in single precision is not exactly ppb
            assert float(one[name]) == pytest.approx(float(three[name]), rel=1e-3)


@pytest.mark.parametrize(
    ("axes", "flips"),
    [((2, 0, 1), (False, True, False)), ((1, 0, 2), (True, True, True)), ((0, 1, 2), (True,) + (False,) * 2)],
)
def test_other_axes_give_the_same_answer(
    plain: Path, tmp_path: Path, weights: Path, axes: tuple[int, int, int], flips: tuple[bool, ...]
) -> None:
    stored, affine = turned(subject(), PLAIN, axes, flips)
    infer(write(tmp_path / "in", stored, affine), tmp_path / "out", weights)
    folder = tmp_path / "out" / "sub-01"
    rows, expected = table(folder), table(plain)
    assert [row["probability"] for row in rows] == [row["probability"] for row in expected]
    np.testing.assert_allclose(world(rows), world(expected), atol=1e-4)
    for name in MAPS:
        np.testing.assert_array_equal(voxels(folder, name), turned(voxels(plain, name)[None], PLAIN, axes, flips)[0][0])
        assert np.allclose(nib.load(folder / f"sub-01_{name}.nii.gz").affine, affine, atol=1e-5)
    for row in rows:
        there = [int(row[f"voxel_{axis}"]) for axis in "ijk"]
        assert voxels(folder, "desc-lesion_dseg")[tuple(there)] == int(row["lesion"])


def test_oblique_affines_move_the_places_alone(plain: Path, tmp_path: Path, weights: Path) -> None:
    angle = np.deg2rad(12.0)
    turn = np.eye(4)
    turn[1:3, 1:3] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    infer(write(tmp_path / "in", affine=turn @ PLAIN), tmp_path / "out", weights)
    rows, expected = table(tmp_path / "out" / "sub-01"), table(plain)
    np.testing.assert_allclose(world(rows), world(expected) @ turn[:3, :3].T, atol=1e-3)
    assert [row["probability"] for row in rows] == [row["probability"] for row in expected]


def test_order_of_axes_is_undone() -> None:
    stored, affine = turned(np.arange(24.0).reshape(1, 2, 3, 4), np.eye(4), (1, 2, 0), (True, False, True))
    order = RasOrder.of(affine)
    volume = torch.from_numpy(np.ascontiguousarray(stored))
    back = order.to_ras(volume)
    np.testing.assert_array_equal(back.numpy(), np.arange(24.0).reshape(1, 2, 3, 4))
    np.testing.assert_array_equal(order.to_file(back).numpy(), volume.numpy())
    place = order.file_indices(np.array([[1.0, 0.0, 3.0]]), tuple(volume.shape[1:]))[0].astype(int)
    assert volume[0][tuple(place)] == back[0, 1, 0, 3]


def test_other_voxels_are_resampled_and_said(tmp_path: Path, weights: Path) -> None:
    """Each voxel of the file split in two along x: same tissue, same probabilities, volumes of its own grid."""
    fine = subject().repeat(2, 1)
    affine = PLAIN.copy()
    affine[0, 0] = VOXEL[0] / 2
    affine[0, 3] -= VOXEL[0] / 4
    infer(write(tmp_path / "in", fine, affine), tmp_path / "out", weights)
    infer(write(tmp_path / "plain"), tmp_path / "expected", weights)
    rows, expected = (table(tmp_path / name / "sub-01") for name in ("out", "expected"))
    for row, other in zip(rows, expected, strict=True):
        assert int(row["voxels"]) == 2 * int(other["voxels"])
        assert float(row["volume_ml"]) == pytest.approx(float(other["volume_ml"]))
        assert float(row["probability"]) == pytest.approx(float(other["probability"]), rel=1e-2)
    np.testing.assert_allclose(world(rows), world(expected), atol=1e-3)
    notes = json.loads((tmp_path / "out/sub-01/sub-01_subject.json").read_text())["notes"]
    assert any("0.375 x 0.75 x 3 mm" in note for note in notes)


def test_flair_on_a_grid_of_its_own_is_brought_to_the_qsm(plain: Path, tmp_path: Path, weights: Path) -> None:
    write(tmp_path / "in")
    wider = np.pad(subject()[1].astype(np.float32), ((3, 2), (1, 4), (2, 1)))
    affine = PLAIN.copy()
    affine[:3, 3] -= np.array([3, 1, 2]) * VOXEL
    nib.save(nib.Nifti1Image(wider, affine), tmp_path / "in" / "sub-01_FLAIR.nii.gz")
    infer(tmp_path / "in", tmp_path / "out", weights, registration="header")
    found, expected = ([float(r["probability"]) for r in table(f)] for f in (tmp_path / "out/sub-01", plain))
    assert found == pytest.approx(expected, rel=1e-3)


def test_rim_contrast_instead_of_the_network(tmp_path: Path) -> None:
    parser = ConfigParser()
    parser.read_config([str(ROOT / f"configs/{name}.json") for name in ("inference", "rim_contrast")])
    parser.read_meta({"version": "1.2.3"})
    places = {"dataset_dir": str(write(tmp_path / "in")), "output_dir": str(tmp_path / "out")}
    parser.update(places | {"bundle_root": str(ROOT), "device": "cpu", "postprocessing#transforms#5#_disabled_": True})
    parser.get_parsed_content("run")
    rows = table(tmp_path / "out" / "sub-01")
    best = max(rows, key=lambda row: float(row["probability"]))
    assert [int(best[f"voxel_{axis}"]) for axis in "ijk"] == list(LESIONS[0][0])  # the one with a rim of 60 ppb
    assert [row["rim"] for row in rows].count("1") == 1 and best["rim"] == "1" and best["votes"] == "1"
    sidecar = json.loads((tmp_path / "out/sub-01/sub-01_desc-rim_dseg.json").read_text())
    assert sidecar["EstimationMethod"] == "Rim contrast" and "WeightsSHA256" not in sidecar["GeneratedBy"][0]


def test_image_alone_is_enough_for_the_network(plain: Path, tmp_path: Path, weights: Path) -> None:
    """As MONAI Label runs it: transforms, inferer and network by themselves, `image` in, `pred` out."""
    path = write(tmp_path / "in", joined=True) / "sub-01_lesions.nii.gz"
    parser = ConfigParser()
    parser.read_config(str(ROOT / "configs/inference.json"))
    parser.read_meta({"version": "1.2.3"})
    parser.update({"bundle_root": str(ROOT), "device": "cpu", "width": 4, "weights": str(weights)} | NO_WRITERS)
    item = parser.get_parsed_content("preprocessing")({"image": str(path)})
    network = parser.get_parsed_content("network").eval()
    with torch.no_grad():
        item["pred"] = parser.get_parsed_content("inferer")(item["image"][None], network)[0]
    pred = parser.get_parsed_content("postprocessing")(item)["pred"]
    assert pred.shape == (1, *SHAPE) and pred.dtype == torch.float32
    assert np.allclose(pred.affine, PLAIN, atol=1e-5)
    np.testing.assert_allclose(pred[0].numpy(), voxels(plain, MAPS[0]), rtol=1e-3)


def with_empty_mask(volumes: np.ndarray) -> np.ndarray:
    volumes[2] = 0
    return volumes


def with_nan(volumes: np.ndarray) -> np.ndarray:
    volumes[0, 20, 20, 8] = np.nan
    return volumes


def thousandfold(volumes: np.ndarray) -> np.ndarray:
    return volumes * np.array([1000.0, 1, 1]).reshape(3, 1, 1, 1)


def with_everything_marked(volumes: np.ndarray) -> np.ndarray:
    """Voxels of 125 ul for 410 ml: a mask of the brain."""
    volumes[2] = 1
    return volumes


def with_flat_flair(volumes: np.ndarray) -> np.ndarray:
    volumes[1] = volumes[1] > 0
    return volumes


BIG = np.diag([5.0, 5.0, 5.0, 1.0])
# The list of bad input: change of the volumes, arguments of write, overrides, part of the message.
BAD: dict[str, tuple[Callable[[np.ndarray], np.ndarray] | None, dict[str, Any], dict[str, Any], str]] = {
    "empty mask": (with_empty_mask, {}, {}, "empty mask"),
    "NaN": (with_nan, {}, {}, "NaN"),
    "ppm declared as ppb": (None, {"unit": "ppm"}, {"qsm_unit": "ppb"}, "look like ppm"),
    "ppb declared as ppm": (thousandfold, {}, {}, "look like ppb"),
    "no unit": (None, {"unit": None}, {}, "no unit"),
    "mask of the brain": (with_everything_marked, {"affine": BIG}, {}, "lesions, not that of the brain"),
    "FLAIR without contrast": (with_flat_flair, {}, {}, "FLAIR"),
    "no such weights": (None, {}, {"weights": "nowhere.pt"}, "nowhere.pt"),
    "weights of another width": (None, {}, {"width": 8}, "shape"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_leaves_nothing_behind(tmp_path: Path, weights: Path, name: str) -> None:
    change, options, overrides, words = BAD[name]
    write(tmp_path / "in", None if change is None else change(subject()), **options)
    fail(tmp_path, words, **{"weights": weights, **overrides})


def test_flair_of_another_patient_leaves_nothing_behind(tmp_path: Path, weights: Path) -> None:
    write(tmp_path / "in")
    path = tmp_path / "in" / "sub-01_FLAIR.nii.gz"
    moved = PLAIN.copy()
    moved[2, 3] += 30.0
    nib.save(nib.Nifti1Image(subject()[1].astype(np.float32), moved), path)
    fail(tmp_path, "affine", weights=weights)


def fail(folder: Path, words: str, **given: Any) -> None:
    with pytest.raises((QMRIError, RuntimeError)) as caught:
        infer(folder / "in", folder / "out", **given)
    error: BaseException | None = caught.value
    while error is not None and not isinstance(error, QMRIError):
        error = error.__cause__
    assert isinstance(error, QMRIError) and error.remedy, caught.value
    assert words in str(error)
    assert not (folder / "out").exists()


def test_network_and_patches_are_those_of_the_training() -> None:
    inference, train = (json.loads((ROOT / f"configs/{name}.json").read_text()) for name in ("inference", "train"))
    for name in ("size", "voxel_size_mm", "width", "stem", "radiomics", "combine", "image_fusion", "oversampling"):
        assert inference[name] == train[name], name
    assert inference["network_def"]["members"] == [train["network_def"]] * 3
