"""The report, read back as a browser would; the timer and the list of files on a real engine."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from monai.data import MetaTensor
from monai.engines import SupervisedEvaluator
from torch import nn

from shared_transforms.io import ParameterMap
from shared_transforms.report import InferenceTimer, ListFiles, ReportSection, SaveReportd

SHAPE = (12, 14, 1)
VOID = {"meta", "img", "br", "link"}


class Page(HTMLParser):
    """Text, tags and pictures of a page, and whether its tags are closed in order."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, Any]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(content)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)

    def all(self, tag: str) -> list[dict[str, Any]]:
        return [attributes for name, attributes in self.tags if name == tag]


def make_item(**changes: Any) -> dict[str, Any]:
    """T1 of 0.5 s in one half of the mask and 1.5 s in the other, 99 s outside."""
    mask = torch.zeros(SHAPE, dtype=torch.bool)
    mask[2:10, 2:12] = True
    t1 = torch.where(torch.arange(14)[None, :, None] < 7, 0.5, 1.5).expand(SHAPE)
    t1 = torch.where(mask, t1, 99.0)
    maps = {
        "T1map": ParameterMap(t1, "s", "Longitudinal relaxation time", (0.0, 2.0)),
        "Amap": ParameterMap(torch.full(SHAPE, 7.0), "arbitrary", "Amplitude", (0.0, 10.0)),
        "T1stderr": ParameterMap(torch.full(SHAPE, 0.03), "s", "Standard error of T1", (0.0, 0.1), "error"),
        "residual": ParameterMap(torch.full(SHAPE, 0.02), "1", "Relative residual", (0.0, 0.1), "residual"),
        "chi2": ParameterMap(torch.full(SHAPE, 1.1), "1", "Reduced chi-squared", (0.0, 4.0), "residual"),
        "mask": ParameterMap(mask, "1", "Voxels with signal", (0.0, 1.0), "mask"),
    }
    times = torch.linspace(0.1, 2.0, 20)
    return {
        "maps": maps,
        "image": MetaTensor(torch.zeros(20, *SHAPE), affine=torch.eye(4)),
        "stem": "sub-01",
        "sources": ["/in/sub-01_inv-1_IRT1.nii.gz"],
        "notes": ["folded to magnitude", "5 < 6 & <script>alert(1)</script>"],
        "acquisition": {"times": times, "repetition_time": torch.full((20,), 9.5)},
        "residual": 0.0213,
        "seconds": 1.25,
        "files": ["/out/sub-01/sub-01_T1map.nii.gz"],
    } | changes


def report(folder: Path, **options: Any) -> SaveReportd:
    return SaveReportd(
        output_dir=folder,
        title="T1 mapping",
        software_name="rim_relaxometry",
        software_version="1.2.3",
        weights_sha256="c0ffee",
        method="Recurrent inference machine",
        time_name="Inversion time",
        device="cpu",
        **options,
    )


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Page:
    folder = tmp_path_factory.mktemp("out")
    item = report(folder)(make_item())
    assert item["files"] == ["/out/sub-01/sub-01_T1map.nii.gz", str(folder / "sub-01/report.html")]
    return Page((folder / "sub-01/report.html").read_text(encoding="utf-8"))


def test_page_needs_nothing_else(page: Page) -> None:
    assert page.open == [] and not page.all("script") and not page.all("link") and not page.all("a")
    addresses = [v for _, attributes in page.tags for k, v in attributes.items() if k in ("src", "href")]
    assert addresses and all(address.startswith("data:image/png;base64,") for address in addresses)


def test_pictures_are_pictures_with_a_text(page: Page) -> None:
    pictures = page.all("img")
    assert len(pictures) == 7  # T1, its error and histogram; A and its histogram; residual, chi-squared
    for picture in pictures:
        image = matplotlib.image.imread(io.BytesIO(base64.b64decode(picture["src"].partition(",")[2])))
        assert min(image.shape[:2]) > 100 and image.std() > 0.01
    texts = [picture["alt"] for picture in pictures]
    assert texts[0] == "Map of T1: median 1 s, 5-95 % 0.5 to 1.5 s"
    assert texts[1].startswith("Map of standard error of T1") and texts[2].startswith("Histogram of T1")


def test_notes_come_first_and_are_text(page: Page) -> None:
    assert page.text.index("folded to magnitude") < page.text.index("Summary") < page.text.index("Acquisition")
    assert "5 < 6 & <script>alert(1)</script>" in page.text


def test_numbers_are_those_inside_the_mask(page: Page) -> None:
    assert "T1 s 1 0.5 to 1.5 0.03 Longitudinal relaxation time" in page.text
    assert "80 voxels" in page.text
    assert "Relative RMS residual 2.1 %" in page.text and "Median reduced chi-squared 1.10" in page.text


def test_acquisition_and_run(page: Page) -> None:
    assert re.search(r"Image 1 2 .* 8 Inversion time \[s\] 0\.1 0\.2 .* Repetition time \[s\] 9\.5", page.text)
    assert "Image 17 18 19 20 Inversion time [s] 1.7 1.8 1.9 2 " in page.text
    for expected in ("rim_relaxometry 1.2.3", "c0ffee", "Recurrent inference machine", "1.25 s", "torch", "cpu:"):
        assert expected in page.text
    assert "sub-01_inv-1_IRT1.nii.gz" in page.text and "sub-01/report.html" in page.text


def test_page_is_accessible(page: Page) -> None:
    assert page.all("html")[0]["lang"] == "en" and len(page.all("h1")) == 1 and len(page.all("main")) == 1
    assert all("scope" in attributes for attributes in page.all("th"))
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h\d", tag)]
    assert all(b - a <= 1 for a, b in zip(levels, levels[1:], strict=False))


def test_bad_fit_is_said_and_a_good_one_too(tmp_path: Path) -> None:
    item = make_item(notes=[])
    item["maps"] = {name: item["maps"][name] for name in ("T1map", "chi2", "mask")}
    page = Page(Path(report(tmp_path)(item)["files"][-1]).read_text(encoding="utf-8"))
    assert "No remarks" in page.text
    item["maps"]["chi2"] = ParameterMap(torch.full(SHAPE, 5.0), "1", "Reduced chi-squared", (0.0, 4.0), "residual")
    page = Page(Path(report(tmp_path)(item)["files"][-1]).read_text(encoding="utf-8"))
    assert "does not explain these data" in page.text


def test_empty_mask_and_a_bare_item(tmp_path: Path) -> None:
    item = make_item()
    maps = {"T1map": item["maps"]["T1map"], "mask": ParameterMap(torch.zeros(SHAPE), "1", "", (0, 1), "mask")}
    bare = {"maps": maps, "stem": "series", "image": item["image"]}
    page = Page(Path(report(tmp_path)(bare)["files"][-1]).read_text(encoding="utf-8"))
    assert "the maps are empty" in page.text and "Acquisition" not in page.text


def test_geometry_details_and_a_residual_with_a_unit(tmp_path: Path) -> None:
    item = make_item(details={"Phase as stored": "0 to 4095"})
    item["maps"] = {
        "Chimap": ParameterMap(torch.full(SHAPE, 0.1), "ppm", "Susceptibility", (-0.2, 0.2)),
        "residual": ParameterMap(torch.full(SHAPE, -0.02), "ppm", "Difference", (-0.1, 0.1), "residual"),
    }
    item["acquisition"] = {
        "echo_times": torch.tensor([0.004, 0.0123]),
        "field_strength": torch.tensor(3.0),
        "voxel_size": torch.tensor([1.0, 1.0, 2.5]),
        "b0_direction": torch.tensor([0.0, 0.6, 0.8]),
    }
    writer = report(tmp_path, residual_text="Put back through the dipole.")
    page = Page(Path(writer(item)["files"][-1]).read_text(encoding="utf-8"))
    assert page.open == []
    settings = "Voxel size [mm] 1 x 1 x 2.5 B0 direction in voxel axes 0, 0.6, 0.8 Field strength [T] 3"
    assert f"Acquisition {settings} Phase as stored 0 to 4095 Image 1 2 Echo time [s] 0.004 0.0123 What" in page.text
    assert "Put back through the dipole." in page.text and "signal model" not in page.text
    assert "RMS residual 0.02 ppm" in page.text and "susceptibility [ppm]" in page.text
    assert "standard error" not in page.text  # a column that no map fills is left out


def test_sections_of_a_bundle(tmp_path: Path) -> None:
    figure = Figure(figsize=(6, 2))
    figure.add_subplot().plot([0, 1])
    rows = [{"Region": f"Tmax > {i} s", "Volume": f"{10 * i} ml"} for i in (4, 6)]
    sections = [
        ReportSection("Volumes", "Of <tissue>.", rows),
        ReportSection("Curves", figures=[(figure, "AIF & VOF")]),
    ]
    acquisition = {"echo_time": torch.tensor(0.03), "repetition_time": torch.tensor(1.5)}
    item = make_item(sections=sections, acquisition=acquisition)
    page = Page(Path(report(tmp_path)(item)["files"][-1]).read_text(encoding="utf-8"))
    assert page.open == [] and all("scope" in attributes for attributes in page.all("th"))
    assert "Volumes Of <tissue>. Region Volume Tmax > 4 s 40 ml Tmax > 6 s 60 ml Curves AIF & VOF Maps" in page.text
    assert page.all("img")[0]["alt"] == "AIF & VOF" and len(page.all("img")) == 8
    assert "Echo time [s] 0.03 Repetition time [s] 1.5 What" in page.text  # one for all images: no list of times


def test_volume_is_shown_in_three_planes(tmp_path: Path) -> None:
    data = torch.rand(20, 22, 18)
    item = {"maps": {"T1map": ParameterMap(data, "s", "T1", (0.0, 1.0))}, "stem": "volume"}
    item["image"] = MetaTensor(torch.zeros(2, *data.shape), affine=torch.eye(4))
    page = Page(Path(report(tmp_path)(item)["files"][-1]).read_text(encoding="utf-8"))
    assert page.all("figure")[0].get("class") == "wide"


def test_engine_times_reports_and_lists(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    items = [make_item(stem=stem, files=[]) for stem in ("sub-01", "sub-02")]
    for item in items:
        del item["seconds"]
        item["maps"] = {name: item["maps"][name] for name in ("T1map", "mask")}
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=items,
        network=nn.Identity(),
        prepare_batch=lambda batch, *args, **kwargs: (batch["image"], None),
        postprocessing=report(tmp_path),
        val_handlers=[InferenceTimer(), ListFiles()],
        decollate=False,
    )
    evaluator.run()
    assert 0 <= evaluator.state.output["seconds"] < 10
    printed = capsys.readouterr().out.split("\n")
    assert printed[:3] == ["2 files written:"] + [f"  {tmp_path}/{stem}/report.html" for stem in ("sub-01", "sub-02")]
    assert np.all(["Computing time" in (tmp_path / s / "report.html").read_text() for s in ("sub-01", "sub-02")])
