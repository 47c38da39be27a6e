"""The page on scale is what was measured."""

import json
from pathlib import Path

import pytest
import throughput
from bundle_files import REPOSITORY
from scale_page import limit, page
from throughput import BATCHES, BUNDLES, PAGE, main, row, scratch_folder, stage_of


def test_the_page_is_what_was_measured(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--check"]) == 0, capsys.readouterr().err
    measured = {path.stem for path in (REPOSITORY / "docs" / "scale").glob("*.json")}
    assert measured == set(BUNDLES) == set(BATCHES)


def results(folder: Path, seconds: float) -> Path:
    rows = [
        row("start", "import of torch and MONAI", 3.0, "s"),
        *(row("stage", name, value, "s") for name, value in (("network", 6.0), ("report", 3.0), ("subject", 10.0))),
        *(row("batch", "subjects an hour", 3600 * n / seconds, "1/h", n) for n in (1, 2)),
        *(row("training", "trained_per_second", 12.0 * n, "1/s", n) for n in (1, 2)),
    ]
    hardware = {"cpu": "a processor", "cores": 2}
    origin = {"hardware": hardware, "commit": "abc", "date": "2026-01-02T00:00:00+00:00"}
    folder.mkdir()
    (folder / "deepspio.json").write_text(json.dumps({"rows": rows, "provenance": origin}))
    return folder


def test_rates_and_limits_stand_in_the_page(tmp_path: Path) -> None:
    text = page(results(tmp_path / "scale", 20.0))
    assert "| `deepspio` | 1 | 1 | 180 |" in text and "| `deepspio` | 2 | 1 | 360 |" in text
    assert "`deepspio`: network (60 % of 10 s)" in text
    assert "| `deepspio` | 12 | 24 | 2.00 x | - |" in text
    assert "a processor, 2 cores (2026-01-02, commit abc)" in text
    assert "**not measured**" in text


def test_an_outdated_page_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(throughput, "PAGE", tmp_path / "scale.md")
    with pytest.raises(SystemExit, match="nothing is measured"):
        main(["--check", "--output", str(tmp_path)])
    folder = str(results(tmp_path / "scale", 20.0))
    assert main(["--check", "--output", folder]) == 1 and "out of date" in capsys.readouterr().err
    assert main(["--write", "--output", folder]) == 0 and main(["--check", "--output", folder]) == 0
    (tmp_path / "scale.md").write_text((tmp_path / "scale.md").read_text().replace("180", "181"))
    assert main(["--check", "--output", folder]) == 1
    assert PAGE == REPOSITORY / "docs" / "scale.md"


@pytest.mark.parametrize(("state", "kept"), [("abc", True), ("abc-dirty", False), (None, False)])
def test_scans_of_another_commit_are_not_measured(
    state: str | None, kept: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit: list[str | None] = ["before"]
    monkeypatch.setattr("shared_transforms.provenance.git_commit", lambda folder: commit[0])
    (scratch_folder(tmp_path) / "scan").touch()
    commit[0] = state
    assert not list(scratch_folder(tmp_path).iterdir())
    (scratch_folder(tmp_path) / "scan").touch()
    assert bool(list(scratch_folder(tmp_path).iterdir())) == kept


def test_without_results_there_is_no_page(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="nothing is measured"):
        page(tmp_path)
    assert limit([]) == "not measured"


@pytest.mark.parametrize(
    ("transform", "after", "stage"),
    [
        ("LoadSeriesd", False, "reading"), ("ReadRequestd", False, "reading"), ("BrainMaskd", False, "preparation"),
        ("MapsFromPredictiond", True, "maps"), ("SaveMapsd", True, "writing"), ("SaveReportd", True, "report"),
        ("ContactSheetd", True, "report"), ("SaveSummaryd", True, "writing"),
    ],
)  # fmt: skip
def test_each_transform_belongs_to_a_stage(transform: str, after: bool, stage: str) -> None:
    assert stage_of(transform, after) == stage
