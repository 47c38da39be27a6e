"""The benchmark on tiny sizes: every stage is measured, and compared with its target the right way round."""

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import benchmark
import benchmarks
import numpy as np
import pytest
import torch
from benchmarks import Row, Settings, deepspio, qsmgan, qsmrim_net, rate, row, stnet_perfusion, timed
from benchmarks import rim_relaxometry as rim
from bundle_files import REPOSITORY

from physics.perfusion import deconvolve
from physics.viewline import ViewLineSequence, central_plane_field, view_line_image


def test_times_of_every_repeat_without_the_first_run() -> None:
    calls = []

    def work() -> None:
        calls.append(1)
        time.sleep(0.05 if len(calls) == 1 else 0.001)

    seconds = timed(work, 4)
    assert len(calls) == 5
    assert len(seconds) == 4
    assert statistics.median(seconds) < 0.05


def test_seconds_must_stay_below_a_target_and_rates_above() -> None:
    slow, fast = [2.0, 4.0, 3.0], [0.2, 0.4, 0.3]
    late = row("stage", slow, "s", target=1.0)
    assert (late.value, late.low, late.high, late.reached, late.target) == (3.0, 2.0, 4.0, False, "<= 1 s")
    assert row("stage", fast, "s", target=1.0).reached is True
    swift = rate("stage", fast, 30.0, "voxels/s", target=50.0)
    assert swift.value == pytest.approx(100.0)
    assert (swift.low, swift.high) == (pytest.approx(75.0), pytest.approx(150.0))
    assert (swift.reached, swift.target) == (True, ">= 50 voxels/s")
    assert rate("stage", slow, 30.0, "voxels/s", target=50.0).reached is False
    assert row("stage", fast, "s").reached is None


def test_sizes_are_scaled_in_steps() -> None:
    assert [Settings(scale=scale).scaled(160, 32, 8) for scale in (1.0, 0.3, 0.01)] == [160, 48, 32]


def test_all_stages_of_rim_relaxometry(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmark, "imports", lambda bundle, settings: iter(()))  # half a minute: tested below
    arguments = ["--bundle", "rim_relaxometry", "--repeats", "1", "--scale", "0.2"]
    assert benchmark.main([*arguments, "--json", f"{tmp_path}/{{bundle}}"]) == 0
    printed = capsys.readouterr().out
    stem = tmp_path / "rim_relaxometry"
    content = json.loads(stem.with_suffix(".json").read_text())
    stages = [item["stage"] for item in content["rows"]]
    for part in ("read a series", "write nine maps", "voxelwise", "shared B", "smooth B", "RIM, 51 x 51", "ResNet"):
        assert sum(part in stage for stage in stages) >= 1, part
    assert sum(stage.startswith("scipy curve_fit") for stage in stages) == 4
    assert sum("share of the simulation" in stage for stage in stages) == 2
    assert len(set(stages)) == len(stages)
    assert all(item["value"] > 0 and item["low"] <= item["value"] <= item["high"] for item in content["rows"])
    assert {item["target"] for item in content["rows"]} >= {">= 50000 voxels/s", "<= 1 s", ">= 100", "<= 15 %"}
    provenance = content["provenance"]
    assert provenance["hardware"]["threads"] == rim.THREADS
    assert f"{rim.THREADS} thread(s)" in printed
    assert f"torch {provenance['versions']['torch']}" in printed
    assert stem.with_suffix(".csv").is_file()


def test_one_group_alone() -> None:
    settings = Settings(repeats=1, scale=0.1)
    found: list[Row] = list(benchmark.measure(rim, settings, only="io"))
    assert [item.stage for item in found] == ["read a series of 31 files", "write nine maps"]
    with pytest.raises(SystemExit, match="io, mle, networks, training, import"):
        next(benchmark.measure(rim, settings, only="speed"))


def test_a_module_that_is_slow_to_import_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmarks, "BASE", "json, math")
    for name, code in (
        ("quick", "x = 1"),
        ("slow", "import time; t = time.process_time()\nwhile time.process_time() < t + 1.2: pass"),
    ):
        (tmp_path / f"{name}.py").write_text(code)
        (tmp_path / "configs").mkdir(exist_ok=True)
        (tmp_path / "configs/inference.json").write_text(json.dumps({"network_def": {"_target_": f"{name}.Net"}}))
        alone, whole, beyond = benchmarks.imports(tmp_path, Settings(repeats=1))
        assert beyond.stage == f"import: {name} beyond json, math"
        assert beyond.value == pytest.approx(whole.value - alone.value)
        assert beyond.reached is (name == "quick")


def test_the_networks_import_little() -> None:
    """Nothing but what torch and MONAI do; what training, figures or radiomics need is imported where it is used."""
    roots = [REPOSITORY / "bundles" / name for name in benchmark.BUNDLES]
    own = {"physics", "shared_transforms", *benchmark.BUNDLES}
    code = (
        f"import sys; sys.path[:0] = {[str(root) for root in (REPOSITORY, *roots)]}; import torch, monai, json\n"
        "packages = lambda: {module.partition('.')[0] for module in sys.modules}\n"
        f"before = packages(); import {', '.join(benchmarks.network_module(root) for root in roots)}\n"
        "print(json.dumps(sorted(packages() - before)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd="/", capture_output=True, text=True, check=True)
    found = set(json.loads(done.stdout.splitlines()[-1]))
    assert found - own - sys.stdlib_module_names == set()
    assert set(benchmark.BUNDLES) < found


def test_tables_of_several_bundles_have_names_of_their_own(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        benchmark.main(["--json", "speed"])
    assert "{bundle}" in capsys.readouterr().err


SMALL = Settings(repeats=1, scale=0.1)
STAGES = {
    "kernels": ["exact, 16^3", "exact, 26^3", "kspace, 16^3", "kspace, 26^3"],
    "fields": ["field of 16^3"],
    "direct": ["TKD, 16^3", "TKD, 26^3", "Tikhonov, 26^3", "L2 of gradients, 26^3", "numpy fftn TKD, 26^3: its"],
    "iterative": ["TV, 30 iterations, 16^3", "iLSQR, 16^3", "MEDI, 16^3"],
    "simulation": ["draw", "deformed anatomy", "field", "starting map", "whole head", "whole phantom"],
    "training": ["training step: 2 x 32^3 to 16^3", "WGAN-GP: 5 critic steps"],
    "inference": ["QSMGAN, 32^3"],
}


@pytest.mark.parametrize("group", STAGES)
def test_all_stages_of_qsmgan(group: str) -> None:
    assert STAGES.keys() == qsmgan.groups(SMALL).keys()
    found = list(benchmark.measure(qsmgan, SMALL, group))
    stages = [item.stage for item in found]
    for part in STAGES[group]:
        assert sum(part in stage for stage in stages) >= 1, part
    assert len(set(stages)) == len(stages)
    assert all(item.value > 0 for item in found if item.unit == "CPU s")
    assert any(item.unit == "MiB" for item in found)


def test_targets_of_direct_inversions_are_those_of_the_large_volume() -> None:
    targets = {item.stage: item.target for item in benchmark.measure(qsmgan, SMALL, "direct") if item.target}
    assert targets["TKD, 26^3"] == "<= 1.5 CPU s"
    assert targets["L2 of gradients, 26^3: peak memory"] == "<= 2048 MiB"
    assert not any("16^3" in stage for stage in targets)


def test_the_rival_is_a_working_tkd() -> None:
    """Where the kernel is not small, it inverts a field made in k-space without error."""
    chi = np.random.default_rng(0).normal(size=(16, 18, 20))
    k = np.stack(np.meshgrid(*[np.fft.fftfreq(n) for n in chi.shape], indexing="ij"))
    with np.errstate(invalid="ignore"):
        kernel = 1 / 3 - k[2] ** 2 / (k**2).sum(0)
    kept = np.nan_to_num(np.abs(kernel)) > 0.2
    spectrum = np.fft.fftn(chi) * kept
    found = qsmgan.plain_tkd(np.fft.ifftn(spectrum * np.nan_to_num(kernel)).real, 0.2)
    np.testing.assert_allclose(found, np.fft.ifftn(spectrum).real, atol=1e-12)


def test_costs_count_the_memory_of_a_stage() -> None:
    found = qsmgan.costs(lambda: torch.ones(2**24), 1)  # 64 MiB
    if found[0]["memory_mib"] is not None:  # Linux
        assert 60 < found[0]["memory_mib"] < 100


PERFUSION_STAGES = {
    "simulation": ["draw", "anatomy, vessels, stroke", "whole series and truth", "training sample"],
    "deconvolution": ["cSVD, 20000 voxels", "oSVD, 20000", "solve_circulant: its", "loop over voxels: its", "Tikhonov"],
    "spatial": ["total variation"],
    "networks": ["of one slice: spatial encoder", "of one slice: temporal network", "masked out", "patch: its time"],
    "training": ["training step"],
    "inference": ["ST-Net, whole brain", "oSVD, whole brain"],
}


@pytest.mark.parametrize("group", PERFUSION_STAGES)
def test_all_stages_of_stnet_perfusion(group: str) -> None:
    settings = Settings(repeats=1, scale=0.05)
    assert PERFUSION_STAGES.keys() == stnet_perfusion.groups(settings).keys()
    found = list(benchmark.measure(stnet_perfusion, settings, group))
    stages = [item.stage for item in found]
    for part in PERFUSION_STAGES[group]:
        assert sum(part in stage for stage in stages) >= 1, part
    assert len(set(stages)) == len(stages)
    assert all(item.value > 0 for item in found)
    targets = {item.stage: item.target for item in found if item.target}
    if group == "deconvolution":
        assert sorted(targets.values()) == ["<= 0.5 s", "<= 2 s"]
    if group == "networks":
        assert list(targets.values()) == ["<= 0.5 s"]


def test_the_rivals_deconvolve() -> None:
    """scipy's solver is cSVD to the last digit; the loop finds the same flow but for its steps of the threshold."""
    concentration, aif = stnet_perfusion.curves(40)
    rows, curve = concentration.double(), aif.double()
    ours = {method: deconvolve(rows, curve, 1.5, method).numpy() for method in ("csvd", "osvd")}
    found = stnet_perfusion.scipy_csvd(rows.numpy(), curve.numpy(), 1.5)
    np.testing.assert_allclose(found, ours["csvd"], atol=1e-10 * np.abs(ours["csvd"]).max())
    flow = stnet_perfusion.loop_osvd(rows.numpy(), curve.numpy(), 1.5).max(1)
    assert np.median(np.abs(flow / ours["osvd"].max(1) - 1)) < 0.03


VIEW_LINE_STAGES = {
    "simulation": ["draw", "rasterised", "field of the plane", "anatomy", "noise", "wavelet", "all stages, windows"],
    "fields": ["field of the plane", "3-D transforms", "field of the volume: its time"],
    "images": ["25 lines at once", "loop over the lines in numpy", "loop over the lines: its time"],
    "wavelets": ["PyWavelets: its time"],
    "networks": ["DeepSPIO, width", "U-Net, width"],
    "training": ["training step"],
}


@pytest.mark.parametrize("group", VIEW_LINE_STAGES)
def test_all_stages_of_deepspio(group: str) -> None:
    assert VIEW_LINE_STAGES.keys() == deepspio.groups(SMALL).keys()
    found = list(benchmark.measure(deepspio, SMALL, group))
    stages = [item.stage for item in found]
    for part in VIEW_LINE_STAGES[group]:
        assert sum(part in stage for stage in stages) >= 1, part
    assert len(set(stages)) == len(stages)
    assert all(item.value > 0 for item in found)
    targets = {"simulation": [">= 100 samples/s"], "networks": ["<= 0.5 s"]}
    assert [item.target for item in found if item.target] == targets.get(group, [])


def test_the_loop_over_the_lines_makes_the_same_image() -> None:
    """But for the soft edges of a line beyond the middle to its neighbour, which are below 1e-6."""
    side, planes, pixel = deepspio.geometry(Settings(scale=0.3))
    density, concentration, volume = (values.double() for values in deepspio.scenes(1, side, planes))
    field = central_plane_field(volume, (pixel,) * 3)
    sequence = ViewLineSequence()
    ours = view_line_image(density, concentration, field, (pixel, pixel), sequence)[0].numpy()
    m, c, b = (values[0].numpy() for values in (density, concentration, field))
    assert ours.max() > 0.5
    np.testing.assert_allclose(deepspio.loop_image(m, c, b, pixel, sequence), ours, atol=1e-6)


RIM_LESION_STAGES = {
    "simulation": ["draw a subject", "simulate a subject: 48 x 64 x 12 voxels, 3 lesions, 10 echoes"],
    "lesions": ["lesions of a binary mask", "normalisation of FLAIR", "patches of 3 lesions"],
    "radiomics": ["one thread, 3 at once", "3 by pyradiomics and PyWavelets", "its time / that here, 3 lesions"],
    "networks": ["QSMRim-Net, width 16", "three seeds", "the paper's stem", "RimNet"],
    "training": ["training step"],
    "inference": ["files to report"],
}


@pytest.mark.parametrize("group", RIM_LESION_STAGES)
def test_all_stages_of_qsmrim_net(group: str) -> None:
    assert RIM_LESION_STAGES.keys() == qsmrim_net.groups(SMALL).keys()
    found = list(benchmark.measure(qsmrim_net, SMALL, group))
    stages = [item.stage for item in found]
    for part in RIM_LESION_STAGES[group]:
        assert sum(part in stage for stage in stages) == 1, part
    assert len(set(stages)) == len(stages)
    assert all(item.value > 0 for item in found)
    targets = {"radiomics": ["<= 15 ms"], "inference": ["<= 4.6 s"]}
    assert [item.target for item in found if item.target] == targets.get(group, [])
