"""Numbers of an inference: summary, tables and pictures beside each other; maps of objects; pages in the report."""

from __future__ import annotations

import base64
import csv
import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from monai.data import MetaTensor

from shared_transforms.figures import figure_to_png_bytes
from shared_transforms.io import ParameterMap, SaveMapsd, SaveSummaryd
from shared_transforms.report import ReportSection, SaveReportd

NAMES: dict[str, Any] = {"software_name": "test", "software_version": "1.2"}


def test_rows_become_csv_and_json(tmp_path: Path) -> None:
    rows = [
        {"name": "a, b", "volume_ml": 1 / 3, "count": 3, "found": True, "flags": ["x", "y"], "place": None},
        {"name": 'say "c"', "volume_ml": 1e-9, "count": 0, "found": False, "flags": [], "place": 2.0},
    ]
    item = {"summary": {"n": 2}, "stem": "sub-01", "tables": {"lesions": rows, "plain": "x,y\n1,2\n"}, "notes": ["n"]}
    files = SaveSummaryd(output_dir=tmp_path, name="subject", **NAMES)(item)["files"]
    assert [Path(file).name for file in files] == [
        f"sub-01_{name}" for name in ("lesions.csv", "lesions.json", "plain.csv", "subject.json")
    ]
    back = list(csv.DictReader(Path(files[0]).read_text().splitlines()))
    assert [row["name"] for row in back] == ["a, b", 'say "c"'] and back[0]["flags"] == "x;y"
    assert [row["found"] for row in back] == ["1", "0"] and back[0]["place"] == ""
    assert float(back[0]["volume_ml"]) == pytest.approx(1 / 3, rel=1e-5) and float(back[1]["volume_ml"]) == 1e-9
    document = json.loads(Path(files[1]).read_text())
    assert document["lesions"] == rows and document["generated_by"]["Version"] == "1.2"
    assert Path(files[2]).read_text() == "x,y\n1,2\n"
    assert json.loads(Path(files[3]).read_text())["notes"] == ["n"]


def test_table_without_rows_and_numbers_that_are_none(tmp_path: Path) -> None:
    item = {"summary": {"n": 0}, "stem": "sub-01", "tables": {"lesions": []}}
    files = SaveSummaryd(output_dir=tmp_path, **NAMES)(item)["files"]
    assert json.loads(Path(files[1]).read_text())["lesions"] == []
    with pytest.raises(ValueError, match="JSON"):
        SaveSummaryd(output_dir=tmp_path / "nan", **NAMES)(item | {"summary": {"n": float("nan")}})
    assert not (tmp_path / "nan").exists()


@pytest.mark.parametrize(("largest", "kind"), [(2, np.uint8), (255, np.uint8), (256, np.int32), (70_000, np.int32)])
def test_labels_stay_whole_numbers(tmp_path: Path, largest: int, kind: type) -> None:
    values = torch.zeros(4, 3, 2, dtype=torch.int64)
    values[1, 1, 1], values[0, 0, 0] = largest, 1
    maps = {"dseg": ParameterMap(values, "1", "Numbers", (0.0, float(largest)), "labels")}
    image = MetaTensor(torch.zeros(1, 4, 3, 2), affine=torch.eye(4))
    SaveMapsd(output_dir=tmp_path, **NAMES)({"maps": maps, "image": image, "stem": "s", "sources": ["a"]})
    read = nib.load(tmp_path / "s" / "s_dseg.nii.gz")
    assert read.get_data_dtype() == kind
    np.testing.assert_array_equal(np.asarray(read.dataobj), values.numpy())


def test_report_leaves_maps_of_objects_to_its_sections_and_shows_whole_pages(tmp_path: Path) -> None:
    figure = Figure(figsize=(3, 9))
    figure.add_subplot().plot([0, 1])
    page = figure_to_png_bytes(figure)
    values = torch.zeros(8, 8, 1)
    values[2:4, 2:4] = 0.7
    maps = {
        "probseg": ParameterMap(values, "1", "Probability", (0.0, 1.0), "painted"),
        "dseg": ParameterMap((values > 0).int(), "1", "Numbers", (0.0, 1.0), "labels"),
    }
    section = ReportSection("Objects", "All of them.", figures=[(page, "Sheet")])
    item = {"maps": maps, "stem": "s", "sections": [section]}
    item["image"] = MetaTensor(torch.zeros(1, 8, 8, 1), affine=torch.eye(4))
    written = SaveReportd(output_dir=tmp_path, title="Objects", **NAMES)(item)["files"][-1]
    text = Path(written).read_text()
    assert text.count("<img ") == 1 and 'class="wide tall"' in text and 'alt="Sheet"' in text
    assert "<h2>Maps</h2>" not in text and 'id="summary"' not in text and "the maps are empty" not in text
    assert base64.b64encode(page).decode() in text
