"""Table of lesions and summary of the subject: votes, thresholds, places and counts against cases done by hand."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from qsmrim_net.orientation import RasOrder
from qsmrim_net.patches import lesion_geometry
from qsmrim_net.pipeline import LesionInferer, SubjectLesions
from qsmrim_net.table import LesionTabled, lesion_rows, subject_summary
from torch import Tensor, nn

from shared_transforms.errors import QMRIError
from shared_transforms.io import SaveSummaryd

THRESHOLDS = (0.5, 0.25)
VOTES = torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)


def lesions(count: int, affine: np.ndarray | None = None, voxel_size: tuple[float, ...] = (1.0, 1.0, 2.0)) -> Any:
    """Lesions of 2 x 1 x 1, 3 x 1 x 1 ... voxels along X, one below the other."""
    labels = torch.zeros(count + 2, count, 2, dtype=torch.int32)
    for row in range(count):
        labels[: row + 2, row, 1] = row + 1
    x, y, z = voxel_size
    flags = [("too_small",) if row == 0 else () for row in range(count)]
    return SubjectLesions(
        RasOrder.of(np.eye(4) if affine is None else affine), (x, y, z), torch.zeros(2, *labels.shape), labels >= 0,
        labels, list(range(1, count + 1)), flags, lesion_geometry(labels, voxel_size),
        ["too_small" if row == 0 else "ok" for row in range(count)],
    )  # fmt: skip


def rows_of(probabilities: list[list[float]], votes: Tensor = VOTES) -> list[dict[str, Any]]:
    subject = lesions(len(probabilities))
    values = torch.tensor(probabilities, dtype=torch.float64)
    return lesion_rows(subject, values, THRESHOLDS, votes, np.eye(4), tuple(subject.labels.shape))


class Known(nn.Module):
    """Thresholds of a trained ensemble."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("thresholds", torch.tensor(THRESHOLDS))
        self.register_buffer("seed_thresholds", VOTES.float())


def test_two_of_three_make_a_rim_and_a_threshold_counts() -> None:
    rows = rows_of([[0.25, 0.5, 0.75], [0.25, 0.5, 0.5], [0.25, 0.4, 0.7], [0.0, 0.5, 1.0], [0.2, 0.4, 0.7]])
    assert [row["votes"] for row in rows] == [3, 2, 1, 2, 0]
    assert [row["rim"] for row in rows] == [True, True, False, True, False]
    assert [row["probability"] for row in rows] == pytest.approx([0.5, 1.25 / 3, 0.45, 0.5, 1.3 / 3])
    assert [row["above_f1_threshold"] for row in rows] == [True, False, False, True, False]
    assert all(row["above_high_sensitivity_threshold"] for row in rows)
    assert [row["probability_seed2"] for row in rows] == [0.75, 0.5, 0.7, 1.0, 0.7]


@pytest.mark.parametrize(("seeds", "needed"), [(1, 1), (2, 2), (3, 2), (5, 3)])
def test_more_than_half_of_the_seeds_are_needed(seeds: int, needed: int) -> None:
    threshold = torch.full((seeds,), 0.5, dtype=torch.float64)
    rows = rows_of([[0.9] * votes + [0.1] * (seeds - votes) for votes in range(seeds + 1)], threshold)
    assert [row["rim"] for row in rows] == [votes >= needed for votes in range(seeds + 1)]


@pytest.mark.parametrize(("rims", "many"), [(0, False), (3, False), (4, True), (9, True)])
def test_four_or_more(rims: int, many: bool) -> None:
    summary = subject_summary(rows_of([[1.0] * 3] * rims + [[0.0] * 3] * 2), THRESHOLDS, VOTES.tolist())
    assert summary["rim_lesions"] == rims and summary["lesions"] == rims + 2
    assert summary["four_or_more_rim_lesions"] is many


def test_summary_adds_the_rows_up() -> None:
    rows = rows_of([[0.3, 0.3, 0.3], [0.9, 0.9, 0.9], [0.1, 0.1, 0.1], [0.25, 0.25, 0.25]])
    summary = subject_summary(rows, THRESHOLDS, VOTES.tolist())
    assert summary["lesion_volume_ml"] == pytest.approx((2 + 3 + 4 + 5) * 2.0 / 1000)
    assert summary["rim_lesion_volume_ml"] == pytest.approx(3 * 2.0 / 1000)
    assert summary["review"] == {"lesions": 3, "share": 0.75, "by_falling_probability": [2, 1, 4]}
    assert summary["lesions_above_f1_threshold"] == 1
    assert summary["flags"] == {"too_small": 1} and summary["without_radiomics"] == 1
    assert summary["thresholds"]["votes_needed"] == 2 and summary["thresholds"]["high_sensitivity"] == 0.25


def test_places_follow_the_affine_of_the_file() -> None:
    affine = np.array([[0.0, -1, 0, 50], [1, 0, 0, -8], [0, 0, 2, 3], [0, 0, 0, 1.0]])  # X of the world against axis 1
    subject = lesions(3, affine)
    shape = (3, 5, 2)  # of the file: axis 0 is Y of the volumes, axis 1 is X, turned round
    rows = lesion_rows(subject, torch.full((3, 3), 0.5).double(), THRESHOLDS, VOTES, affine, shape)
    for number, row in enumerate(rows):
        middle = (number + 1) / 2  # of 2, 3, 4 voxels from index 0 along X
        i, j, k = number, 5 - 1 - middle, 1
        assert (row["x_mm"], row["y_mm"], row["z_mm"]) == pytest.approx((50 - j, i - 8, 2 * k + 3))
        assert (row["voxel_i"], row["voxel_j"], row["voxel_k"]) == (i, np.floor(j + 0.5), k)


def item_of(probabilities: Tensor, count: int) -> dict[str, Any]:
    subject = lesions(count)
    volume = MetaTensor(torch.zeros(3, *subject.labels.shape), affine=torch.eye(4))
    return {"pred": probabilities, "lesions": subject, "volume": volume, "stem": "sub-01", "sources": ["a"]}


def test_files_say_the_same(tmp_path: Path) -> None:
    item = LesionTabled(network=Known())(item_of(torch.rand(1, 6, 3, generator=torch.Generator().manual_seed(0)), 6))
    save = SaveSummaryd(output_dir=tmp_path, software_name="qsmrim_net", software_version="1", name="subject")
    item["pictures"] = {"sheet": b"PNG"}
    files = [Path(file) for file in save(item)["files"]]
    assert [file.name for file in files] == [
        f"sub-01_{name}" for name in ("sheet.png", "lesions.csv", "lesions.json", "subject.json")
    ]
    rows = list(csv.DictReader(files[1].read_text().splitlines()))
    document = json.loads(files[2].read_text())
    assert document["generated_by"]["Name"] == "qsmrim_net" and len(document["lesions"]) == len(rows) == 6
    for text, row in zip(rows, document["lesions"], strict=True):
        assert list(text) == list(row)
        assert float(text["probability"]) == pytest.approx(row["probability"], rel=1e-5)
        assert int(text["rim"]) == row["rim"] and text["flags"] == ";".join(row["flags"])
    subject = json.loads(files[3].read_text())
    assert subject["stem"] == "sub-01" and subject["lesions"] == 6 and "world" in subject["units"]


@pytest.mark.parametrize("value", [float("nan"), 1.2, -0.1])
def test_no_probability_is_refused(value: float) -> None:
    probabilities = torch.full((2, 3), 0.5)
    probabilities[1, 1] = value
    with pytest.raises(QMRIError, match="between 0 and 1"):
        LesionTabled(network=Known())(item_of(probabilities, 2))


class Sums(nn.Module):
    """Something of each input, lesion by lesion."""

    def forward(self, image: Tensor, radiomics: Tensor) -> Tensor:
        assert len(image) <= 4
        return torch.stack([image.flatten(1).sum(1), radiomics.sum(1)], 1)


def test_inferer_takes_some_at_once_and_finds_the_features() -> None:
    patches, radiomics = torch.randn(11, 2, 4, 4, 2), torch.randn(11, 5)
    infer = LesionInferer(lesions_at_once=4)
    whole = torch.stack([patches.flatten(1).sum(1), radiomics.sum(1)], 1)
    torch.testing.assert_close(infer(patches, Sums(), radiomics=radiomics), whole)
    image = MetaTensor(patches, meta={"radiomics": radiomics})
    found = infer(image[None], Sums())
    assert found.shape == (1, 11, 2)
    torch.testing.assert_close(torch.as_tensor(found[0]), whole)
    with pytest.raises(ValueError, match="radiomics"):
        infer(patches, Sums())
    with pytest.raises(ValueError, match="lesions_at_once"):
        LesionInferer(lesions_at_once=0)
