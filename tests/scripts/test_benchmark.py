"""The benchmark on tiny sizes: every stage is measured, and compared with its target the right way round."""

import json
import statistics
import time
from pathlib import Path

import benchmark
import pytest


def test_times_of_every_repeat_without_the_first_run() -> None:
    calls = []

    def work() -> None:
        calls.append(1)
        time.sleep(0.05 if len(calls) == 1 else 0.001)

    seconds = benchmark.timed(work, 4)
    assert len(calls) == 5
    assert len(seconds) == 4
    assert statistics.median(seconds) < 0.05


def test_seconds_must_stay_below_a_target_and_rates_above() -> None:
    slow, fast = [2.0, 4.0, 3.0], [0.2, 0.4, 0.3]
    late = benchmark.row("stage", slow, target=1.0)
    assert (late.value, late.low, late.high, late.reached, late.target) == (3.0, 2.0, 4.0, False, "<= 1 s")
    assert benchmark.row("stage", fast, target=1.0).reached is True
    rate = benchmark.row("stage", fast, "voxels/s", work=30.0, target=50.0)
    assert rate.value == pytest.approx(100.0)
    assert (rate.low, rate.high) == (pytest.approx(75.0), pytest.approx(150.0))
    assert rate.reached is True
    assert benchmark.row("stage", slow, "voxels/s", work=30.0, target=50.0).reached is False
    assert benchmark.row("stage", fast).reached is None


def test_all_stages(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stem = tmp_path / "speed"
    arguments = ["--size", "48", "--repeats", "1", "--loop-voxels", "6", "--scale", "0.4", "--json", str(stem)]
    assert benchmark.main(arguments) == 0
    printed = capsys.readouterr().out
    content = json.loads(stem.with_suffix(".json").read_text())
    stages = [row["stage"] for row in content["rows"]]
    for part in ("read a series", "write nine maps", "voxelwise", "shared B", "smooth B", "RIM, 48 x 48", "ResNet"):
        assert sum(part in stage for stage in stages) >= 1, part
    assert sum(stage.startswith("scipy curve_fit") for stage in stages) == 4
    assert sum("share of the simulation" in stage for stage in stages) == 2
    assert len(set(stages)) == len(stages)
    assert all(row["value"] > 0 and row["low"] <= row["value"] <= row["high"] for row in content["rows"])
    assert {row["target"] for row in content["rows"]} >= {">= 50000 voxels/s", "<= 1 s", ">= 100", "<= 15 %"}
    provenance = content["provenance"]
    assert provenance["hardware"]["threads"] >= 1
    assert f"{provenance['hardware']['threads']} thread(s)" in printed
    assert f"torch {provenance['versions']['torch']}" in printed
    assert stem.with_suffix(".csv").is_file()


def test_one_group_alone() -> None:
    stages = [row.stage for row in benchmark.measure(32, 1, 3, only="io")]
    assert stages == ["read a series of 31 files", "write nine maps"]
