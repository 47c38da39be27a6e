"""Experiments of qsmgan at tiny sizes: their numbers against independent computations, their tables complete."""

from __future__ import annotations

import csv
import json
import math
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from qsmgan.experiments import (
    geometry,
    method_table,
    pathology,
    receptive_field,
    sweeps,
    timing,
    tuning,
    wrong_mask,
)
from qsmgan.experiments.bench import Bench
from qsmgan.experiments.case import Case, Head, means
from qsmgan.experiments.heads import NUCLEI, draw_head
from qsmgan.experiments.methods import INVERSIONS, LABELS, NETWORKS, load_generator
from qsmgan.experiments.scores import best_factor, line_through, measured, region_rows, scores
from qsmgan.inferer import FrameInferer
from qsmgan.network import Generator
from torch import Tensor

from physics.dipole import field_from_susceptibility
from shared_transforms.figures import plane_panel

ROOT = Path(__file__).parents[2] / "bundles" / "qsmgan"
COARSE = {"resolution_mm": 8.0}  # of the template: quick to load


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    torch.manual_seed(0)
    networks = {"unet": Generator(width=2), "qsmgan": Generator(width=2), "paper": None}
    inferer = FrameInferer(tile=None, context=8, blend=0, progress=False)
    return Bench(networks, tmp_path, inferer, quick="true", anatomy=COARSE, quick_size=(32, 40, 32))


def table(bench: Bench, name: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    content = json.loads((Path(bench.output_dir) / "results" / f"{name}.json").read_text())
    lines = (Path(bench.output_dir) / "results" / f"{name}.csv").read_text().splitlines()
    rows = list(csv.DictReader(line for line in lines if not line.startswith("#")))
    assert len(rows) == len(content["rows"])
    assert "quick" in content["provenance"]["experiment"]
    return content["rows"], content["provenance"]


def ball(size: int, radius: float) -> Tensor:
    line = torch.arange(size) - (size - 1) / 2
    return (line[:, None, None] ** 2 + line[:, None] ** 2 + line**2).sqrt() < radius


def simple_head(size: int = 24) -> Head:
    mask = ball(size, 10.0)
    generator = torch.Generator().manual_seed(3)
    chi = torch.randn(mask.shape, generator=generator) * mask
    chi = (chi - chi[mask].mean()) * mask
    return Head(chi, mask.float(), mask.float(), mask, mask, regions={"core": ball(size, 4.0)})


def test_noise_levels_differ_by_a_factor_alone() -> None:
    head = simple_head()
    clean = head.local_field()
    low, high = head.measure(0.01, 5), head.measure(0.02, 5)
    assert torch.allclose(high.field - clean, 2 * (low.field - clean), atol=1e-6)
    assert float((low.field - clean)[head.mask].std()) == pytest.approx(0.01, rel=0.05)
    turned = head.measure(0.01, 5, orientations=[(0.0, 0.0, 1.0), (0.0, 0.6, 0.8)]).turned
    assert [b0 for _, b0 in turned] == [(0.0, 0.0, 1.0), (0.0, 0.6, 0.8)]
    assert float((turned[0][0] - low.field)[head.mask].std()) == pytest.approx(0.01 * 2**0.5, rel=0.05)


def test_smaller_mask_takes_sources_away() -> None:
    head = simple_head()
    smaller = head.inside(ball(24, 6.0))
    assert float(smaller.chi[smaller.mask].mean()) == pytest.approx(0.0, abs=1e-6)
    assert not smaller.chi[~smaller.mask].any()
    cut = smaller.cut(margin=2, multiple=4)
    assert cut.chi.shape == (16, 16, 16) and int(cut.mask.sum()) == int(smaller.mask.sum())
    assert torch.equal(cut.chi[cut.mask], smaller.chi[smaller.mask])


def test_coarser_voxels_are_means() -> None:
    head = simple_head()
    large = head.coarser((1, 2, 3))
    assert large.chi.shape == (24, 12, 8) and large.voxel_size == (1.0, 2.0, 3.0)
    x, y, z = (large.mask.nonzero()[7]).tolist()
    block = head.chi[x, 2 * y : 2 * y + 2, 3 * z : 3 * z + 3]
    shift = means(head.chi, (1, 2, 3))[large.mask].mean()
    assert float(large.chi[x, y, z]) == pytest.approx(float(block.mean() - shift), abs=1e-6)


def test_factor_scores_and_regions() -> None:
    head = simple_head()
    estimate = 0.5 * head.chi + 3.0
    assert best_factor(estimate, head.chi, head.mask) == pytest.approx(2.0, rel=1e-4)
    found = scores(estimate, head.chi, head.mask, ["nrmse", "slope", "detrended_nrmse"])
    assert found == pytest.approx({"nrmse": 50.0, "slope": 0.5, "detrended_nrmse": 0.0}, abs=1e-3)
    [row] = region_rows(estimate, head.chi, head.mask, head.regions)
    assert row["truth"] == pytest.approx(float(head.chi[head.regions["core"]].mean()), abs=1e-6)
    assert row["chi"] == pytest.approx(row["truth"] / 2, abs=1e-6)
    line = line_through([{"chi": 0.7 * t + 0.01, "truth": t} for t in (0.0, 0.1, 0.3)])
    assert line["roi_slope"] == pytest.approx(0.7)
    assert line["roi_bias"] == pytest.approx(0.01 - 0.3 * 0.4 / 3)


def test_measured_counts_time_and_memory() -> None:
    result, costs = measured(lambda: torch.ones(64, 1024, 1024).sum())
    assert float(result) == 2**26 and costs["wall_seconds"] > 0 and costs["cpu_seconds"] >= 0
    if costs["memory_mib"] is not None:
        assert costs["memory_mib"] == pytest.approx(256, rel=0.15)


def test_tilt_is_the_angle_to_the_third_axis() -> None:
    for angle in (0.0, 10.0, 45.0):
        b0 = sweeps.tilted(angle)
        assert math.hypot(*b0) == pytest.approx(1.0)
        assert math.degrees(math.acos(b0[2])) == pytest.approx(angle, abs=1e-5)


def test_streaks_are_counted_in_the_cone_alone() -> None:
    size, mask = 32, torch.ones(32, 32, 32, dtype=torch.bool)
    truth = torch.zeros(size, size, size)
    truth[16, 16, 16] = 1.0
    n = torch.arange(size)
    waves = {}
    for name, (kx, kz) in {"along B0": (0, 4), "across B0": (4, 0), "magic angle": (7, 5)}.items():
        waves[name] = torch.cos(2 * math.pi * (kx * n[:, None, None] + kz * n) / size).expand(size, size, size)
    found = {name: wrong_mask.streaks(truth + wave, truth, mask) for name, wave in waves.items()}
    # Only where cos^2 is near 1/3: 25 / 74 = .338. The wave has the norm sqrt(N / 2), the truth about 1.
    assert found["magic angle"] == pytest.approx(100 * math.sqrt(size**3 / 2), rel=1e-2)
    assert found["along B0"] < 1e-2 and found["across B0"] < 1e-2


def test_counted_region_is_far_from_what_is_wrong() -> None:
    right, given = ball(32, 12.0), ball(32, 12.0)
    given[:10] = False
    region = wrong_mask.counted(given, right, 3.0)
    assert region.any() and not (region & ~right).any()
    near = torch.cdist(region.nonzero().double(), ((given != right) | ~right).nonzero().double()).min()
    assert float(near) > 3.0
    assert (wrong_mask.counted(right, right, 3.0) | ~region).all()


def test_largest_step_sees_a_seam() -> None:
    mask, difference = ball(24, 10.0), torch.zeros(24, 24, 24)
    assert geometry.largest_step(difference, mask) == 0.0
    difference[:, 12:] = 0.3
    assert geometry.largest_step(difference, mask) == pytest.approx(0.3)


def test_moved_cases_are_the_same_physics() -> None:
    case = simple_head().measure(0.0, 0, (0.6, 0.0, 0.8))
    for other in (geometry.flipped(case, 2), geometry.permuted(case, (1, 2, 0))):
        field = field_from_susceptibility(other.truth, other.voxel_size, other.b0_direction) * other.mask
        assert torch.allclose(field, other.field, atol=1e-5)
    matrix = geometry.turn(90.0)
    assert np.allclose(matrix @ matrix.T, np.eye(3)) and np.trace(matrix) == pytest.approx(1.0)
    blob = Case(*(torch.zeros(20, 20, 20) for _ in range(2)), ball(20, 8.0), ball(20, 4.0).float())
    again = geometry.resample(geometry.resample(blob.truth, matrix), matrix.T)
    assert float((again - blob.truth).square().mean().sqrt()) < 0.1


def test_lesions_and_their_contrast() -> None:
    first, second = torch.zeros(2, 30, 30, 30, dtype=torch.bool)
    first[5:8, 5:8, 5:8], second[20:22, 20:22, 20:22] = True, True
    mask = torch.ones(30, 30, 30, dtype=torch.bool)
    truth = 0.5 * (first | second)
    head = Head(truth, truth, truth, mask, mask, (1.0, 1.0, 2.0), {"microbleed": first | second})
    lesions = pathology.lesions_of(head)
    assert [(kind, int(lesion.sum())) for kind, lesion in lesions] == [("microbleed", 27), ("microbleed", 8)]
    assert 4 / 3 * math.pi * pathology.radius_of(lesions[0][1], head) ** 3 == pytest.approx(54.0)
    found = pathology.contrast(0.8 * truth + 1.0, truth, lesions[0][1], mask)
    assert found["true_contrast"] == pytest.approx(0.5) and found["recovered"] == pytest.approx(0.8)


def test_summary_is_over_the_heads_that_both_saw() -> None:
    rows = [
        {"method": m, "noise_ppm": 0.003, "head": h, "nrmse": v}
        for m, h, v in (("unet", "0", 10.0), ("unet", "1", 30.0), ("medi", "0", 20.0))
    ]
    assert method_table.compared(rows, "nrmse", 0.003, "unet", "medi") == (10.0, 20.0)
    assert method_table.compared(rows, "nrmse", 0.003, "unet", "tkd") is None
    [unet, _] = method_table.summaries(rows)
    assert (unet["nrmse"], unet["nrmse_low"], unet["nrmse_high"], unet["heads"]) == (20.0, 10.0, 30.0, 2)


def test_tuning_is_read_by_the_methods(bench: Bench) -> None:
    tuning.tuning(bench, {"tikhonov": {"regularisation": [0.01, 1000.0]}, "tkd": {"threshold": [0.2, 0.1]}})
    rows, _ = table(bench, "tuning")
    best = {row["method"]: row for row in rows if row["best"]}
    assert best["tikhonov"]["value"] == 0.01 and best["tikhonov"]["at_edge"]
    head = draw_head(bench, 0, "val")
    case = head.measure(0.003, bench.seed + tuning.NOISE_SEED)
    tuned = scores(bench.classical("tikhonov", 0.003).estimate(case), case.truth, case.mask, ["nrmse"])
    assert tuned["nrmse"] == pytest.approx(best["tikhonov"]["nrmse"], rel=1e-3)
    assert bench.tuned("tv", 0.003) is None


def test_method_table_and_nuclei(bench: Bench) -> None:
    methods = ("zero", "tkd", "l2_gradient", "cosmos", "unet", "qsmgan", "paper")
    method_table.method_table(bench, methods=methods)
    rows, provenance = table(bench, "method_table")
    mean = {row["method"]: row for row in rows if row.get("head") == "mean"}
    assert set(mean) == set(methods) - {"paper"}
    assert mean["zero"]["nrmse"] == pytest.approx(100.0) and mean["zero"]["detrended_nrmse"] is None
    assert mean["cosmos"]["nrmse"] < mean["tkd"]["nrmse"]
    assert any(row["method"] == "paper" and "left out" in row["note"] for row in rows)
    ratios = {t["target"]: t["measured"] for t in provenance["targets"]}
    expected = mean["unet"]["nrmse"] / mean["tkd"]["nrmse"]
    assert ratios["U-Net NRMSE over that of TKD: noise 0.003 ppm"] == pytest.approx(expected, rel=1e-3)
    nuclei, _ = table(bench, "nuclei")
    assert {row["region"] for row in nuclei if row.get("region")} <= set(NUCLEI)
    assert (Path(bench.output_dir) / "figures" / "method_table.png").stat().st_size > 10_000


def test_a_multiple_of_a_map_costs_what_the_map_does(bench: Bench) -> None:
    results = Path(bench.output_dir) / "results"
    results.mkdir()
    row = {"method": "tv", "noise_ppm": 0.003, "option": "regularisation", "value": 1e-3, "factor": 1.25, "best": True}
    (results / "tuning.json").write_text(json.dumps({"rows": [row]}))
    case = simple_head().measure(0.003, 0)
    found = {m.name: (e, c) for m, e, c in method_table.estimates(bench, case, ("tv", "tv_scaled"))}
    assert torch.allclose(found["tv_scaled"][0], 1.25 * found["tv"][0])
    assert found["tv_scaled"][1] == found["tv"][1]


def test_cache_gives_the_map_again_and_no_other(bench: Bench, tmp_path: Path) -> None:
    bench.cache_dir = tmp_path / "cache"
    case, other = simple_head().measure(0.003, 0), simple_head().measure(0.003, 1)
    method = bench.classical("tikhonov", 0.003, {"regularisation": 0.02})
    first, costs = bench.estimate(method, case)
    again, same = bench.estimate(method, case)
    assert torch.equal(first, again) and costs == same
    assert torch.equal(bench.estimate(method, other)[0], method.estimate(other))
    bench.estimate(bench.classical("tikhonov", 0.003, {"regularisation": 0.03}), case)
    assert len(list(bench.cache_dir.iterdir())) == 3
    [network] = bench.methods(0.003, ("unet",))
    bench.estimate(network, case)
    assert len(list(bench.cache_dir.iterdir())) == 3


def test_sweeps_pathology_and_masks(bench: Bench) -> None:
    few = ("tkd", "unet")
    sweeps.resolution_sweep(bench, methods=few)
    rows, _ = table(bench, "resolution_sweep")
    assert {(row["voxel_mm"], row["method"]) for row in rows} == {("1 x 1 x 2", name) for name in few}
    pathology.pathology(bench, methods=few)
    rows, _ = table(bench, "pathology")
    assert {row["method"] for row in rows if row["lesion"] == "neighbourhood of all"} == set(few)
    wrong_mask.wrong_mask(bench, methods=few)
    rows, _ = table(bench, "wrong_mask")
    assert {row["mask"] for row in rows} == {"right", "rim of noise", "with bone", "bite"}
    assert all(row["change"] == 0 and row["nrmse"] == row["nrmse_with_right"] for row in rows if row["mask"] == "right")
    assert all(row["change"] > 0 for row in rows if row["mask"] != "right")


def test_receptive_field_trains_every_input(bench: Bench) -> None:
    receptive_field.receptive_field(bench, batch_size=1)
    rows, _ = table(bench, "receptive_field")
    assert [row["input"] for row in rows] == [16, 24, None]
    assert rows[-1]["nrmse"] == pytest.approx(100.0)
    assert all(row["l1_ppm"] > 0 for row in rows)


def test_tiles_geometry_and_timing(bench: Bench) -> None:
    geometry.tiles(bench, settings=((16, 8, 0),))
    rows, _ = table(bench, "tiles")
    assert {row["method"] for row in rows} == set(NETWORKS)
    geometry.equivariance(bench, methods=("tkd",))
    rows, provenance = table(bench, "equivariance")
    flips = [row["difference_percent"] for row in rows if row["view"].startswith(("flip", "axes"))]
    assert len(flips) == 5 and max(flips) < 0.01
    assert len(provenance["targets"]) == len(rows)
    timing.timing(bench, methods=("tkd",))
    assert all(row["cpu_seconds"] >= 0 for row in table(bench, "timing")[0] if "run" in row)


def test_planes_show_differences_beside_the_maps() -> None:
    volumes = {"truth": torch.zeros(8, 10, 12), "one": torch.ones(8, 10, 12)}
    options: dict[str, Any] = {"quantity": "susceptibility", "unit": "ppm", "display_range": (-1.0, 1.0)}
    with_errors = plane_panel(volumes, reference="truth", **options)
    assert len([axis for axis in with_errors.axes if axis.images]) == 9
    shown = plane_panel(volumes, centre=(2, 3, 4), **options).axes[0].images[0].get_array()
    assert shown.shape == (12, 10)  # sagittal: rows along z, columns along y
    with pytest.raises(ValueError, match="other"):
        plane_panel(volumes, reference="other", **options)


def test_weights_that_are_not_there_are_left_out(bench: Bench, tmp_path: Path) -> None:
    assert load_generator(tmp_path / "none.pt", ("field",)) is None
    assert set(bench.networks) == {"unet", "qsmgan"}
    assert [row["method"] for row in bench.absent()] == ["paper"]
    torch.save(Generator(("field",), 2).state_dict(), tmp_path / "some.pt")
    network = load_generator(tmp_path / "some.pt", ("field",), 2)
    assert network is not None and not network.training
    assert bench.left_out("real_data") is not None and bench.left_out("timing") is None


def test_config_names_every_function() -> None:
    config = json.loads((ROOT / "configs" / "experiments.json").read_text())
    assert config["initialize"][0] == "$sys.path.insert(0, @bundle_root)"
    for name, node in config["experiments"].items():
        module, _, function = node["_target_"].rpartition(".")
        parameters = signature(getattr(import_module(module), function)).parameters
        assert {k for k in node if not k.startswith("_")} <= set(parameters), name
    assert set(config["bench"]) - {"_target_"} <= set(signature(Bench).parameters)
    assert set(config["experiments"]["tuning"]["grid"]) == set(INVERSIONS)
    assert set(config["networks"]) == set(NETWORKS) == set(config["weights"])
    assert set(INVERSIONS) | set(NETWORKS) < set(LABELS)
