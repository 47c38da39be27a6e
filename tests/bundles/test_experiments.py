"""Experiments at tiny sizes: their numbers against independent computations, their tables complete."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rim_relaxometry.experiments import ablation, held_out, monte_carlo, phantom, repeatability, sharpness
from rim_relaxometry.experiments import structures as structures_of
from rim_relaxometry.experiments.bench import ONLY_T1, Bench
from rim_relaxometry.experiments.methods import trivial_values
from rim_relaxometry.experiments.scenes import NIST_T1, acquisition_of, brains, sphere_phantom
from rim_relaxometry.experiments.statistics import median_bias, paired, sigmoid_slope, spread_test, welch
from rim_relaxometry.network import RecurrentInferenceMachine

from shared_transforms.errors import QMRIError
from shared_transforms.experiments import plain, run_experiments, target

SIZE = (32, 32)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    torch.manual_seed(0)
    network = RecurrentInferenceMachine("T1", times=[1.0], steps=2, features=4)
    return Bench(network, tmp_path, quick="true", size=SIZE)


def table(bench: Bench, name: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    content = json.loads((Path(bench.output_dir) / "results" / f"t1_{name}.json").read_text())
    lines = (Path(bench.output_dir) / "results" / f"t1_{name}.csv").read_text().splitlines()
    rows = list(csv.DictReader(line for line in lines if not line.startswith("#")))
    assert len(rows) == len(content["rows"])
    for key in ("commit", "hardware", "seed"):
        assert key in content["provenance"]
    return content["rows"], content["provenance"]


def test_welch_is_the_textbook_formula() -> None:
    a, b = np.array([1.0, 2.0, 4.0, 9.0]), np.array([3.0, 3.5, 5.0])
    va, vb = a.var(ddof=1) / len(a), b.var(ddof=1) / len(b)
    t, p = welch(a, b)
    assert t == pytest.approx((a.mean() - b.mean()) / math.sqrt(va + vb))
    freedom = (va + vb) ** 2 / (va**2 / (len(a) - 1) + vb**2 / (len(b) - 1))
    # p by integrating the density of Student's t
    x = np.linspace(abs(t), 4000.0, 4_000_001)
    constant = math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)) / math.sqrt(freedom * math.pi)
    density = constant * (1 + x**2 / freedom) ** (-(freedom + 1) / 2)
    assert p == pytest.approx(2 * np.trapezoid(density, x) if hasattr(np, "trapezoid") else p, rel=1e-3)


def test_spread_and_paired_tests_see_what_they_are_for() -> None:
    rng = np.random.default_rng(0)
    narrow, wide = rng.normal(0, 1, 400), rng.normal(0, 2, 400)
    assert spread_test(narrow, wide)[1] < 1e-6 < 1e-2 < spread_test(narrow, rng.normal(3, 1, 400))[1]
    noise = rng.normal(0, 5, 50)
    assert paired(noise, noise + 0.5 + rng.normal(0, 0.1, 50))[1] < 1e-6 < 0.3 < welch(noise, noise + 0.5)[1]
    assert np.isfinite(paired([1.0, math.nan, 2.0, 4.0], [1.5, 2.0, 2.0, 5.0])).all()


@pytest.mark.parametrize("slope", [0.7, 1.9, 5.0])
@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_sigmoid_slope_of_a_synthetic_edge(slope: float, sign: float) -> None:
    x = sharpness.REACH
    edge = 0.6 / (1 + np.exp(-sign * slope * (x - 0.3))) + 0.8
    noise = 0.005 * np.random.default_rng(0).normal(size=len(x))
    assert sigmoid_slope(x, edge + noise) == pytest.approx(slope, rel=0.15)


def test_interface_lines_cross_a_disc_along_its_radius() -> None:
    rows, columns = np.mgrid[:64, :64] - 31.5
    white = np.clip(15.0 - np.hypot(rows, columns) + 0.5, 0, 1)
    points, normals = sharpness.interface_lines(1 - white, white, 8)
    assert len(points) == 8
    inwards = -(points - 31.5) / np.linalg.norm(points - 31.5, axis=1, keepdims=True)
    assert (np.einsum("ni,ni->n", inwards, normals) > 0.97).all()
    along = sharpness.profiles(white, points, normals)
    assert (along[:, 0] < 0.05).all() and (along[:, -1] > 0.95).all()
    distances = np.linalg.norm(points[:, None] - points[None], axis=-1) + 100 * np.eye(8)
    assert distances.min() >= sharpness.APART


def test_disc_mask_has_the_area_of_a_disc() -> None:
    for radius in (3.0, 6.4):
        mask = phantom.disc_mask((64, 80), (30.3, 41.7), radius)
        assert mask.sum() == pytest.approx(math.pi * radius**2, rel=0.1)
        centre = mask.nonzero().double().mean(0)
        assert centre.tolist() == pytest.approx([30.3, 41.7], abs=0.3)


def test_refined_centres_find_a_moved_constellation() -> None:
    scene, _ = sphere_phantom(size=128, pixel_mm=1.3)
    image = (1 - torch.exp(-0.4 / scene.parameters[:, 2])).numpy() * scene.parameters[:, 0].numpy()
    true = np.stack([f.nonzero().double().mean(0).numpy() for f in scene.fractions[0, 1:] > 0.5])
    angle = np.deg2rad(3.0)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    given = (true - true.mean(0)) @ turn.T + true.mean(0) + [4.0, -3.0]
    found, motion, before, after = phantom.refine_centres(image, given, 4.0)
    assert np.linalg.norm(found - true, axis=1).max() < 1.5
    assert motion == pytest.approx([-4.0, 3.0, -3.0], abs=1.5)
    assert after < 0.3 * before


def test_scenes_are_what_they_say() -> None:
    scene = brains("T1", 2, 0, table_means=True, inversion=1.7, size=SIZE)
    assert torch.all(scene.parameters[:, 1] == 1.7)
    pure = scene.fractions[:, 2] > 0.999
    assert scene.parameters[:, 2][pure].median() == pytest.approx(0.78, rel=0.01)
    other = brains("T1", 2, 0, split="val", table_means=True, inversion=1.7, size=SIZE)
    assert other.fractions.shape != scene.fractions.shape or not torch.equal(other.fractions, scene.fractions)
    spheres, nominal = sphere_phantom()
    assert nominal.tolist() == pytest.approx(NIST_T1)
    for k, t1 in enumerate(NIST_T1):
        inside = spheres.fractions[0, k + 1] > 0.999
        assert inside.sum() * 0.82**2 == pytest.approx(math.pi * 7.5**2, rel=0.12)
        assert spheres.parameters[0, 2][inside].tolist() == pytest.approx([t1] * int(inside.sum()), rel=1e-4)
    acquisition = acquisition_of("T1", "clinical8")
    assert acquisition["repetition_time"].shape == acquisition["times"].shape == (8,)


def test_trivial_answer_is_the_mean_of_table_1() -> None:
    amplitude, inversion, t1 = trivial_values("T1")
    assert t1 == pytest.approx((3500 + 1400 + 780 + 420 + 1200 + 1230 + 400 + 1980 + 580) / 9000)
    assert amplitude == pytest.approx((1 + 0.85 + 0.65 + 0.9 + 0.7 + 0.7 + 0.9 + 1 + 0.8) / 9)
    draws = 2 - np.abs(np.random.default_rng(0).normal(0, 0.2, 200_000))
    assert inversion == pytest.approx(draws.mean(), abs=1e-3)


def test_rows_hold_what_json_can() -> None:
    row = plain({"a": math.inf, "b": torch.tensor(0.123456789), "c": np.float64(2.0), "d": True, "e": "x", "f": None})
    assert row == {"a": None, "b": 0.12346, "c": 2.0, "d": True, "e": "x", "f": None}
    assert target("x", 1.2, 1.3)["met"] and not target("x", 99.0, 100.0, below=False)["met"]


def test_median_bias_draws_whole_subjects() -> None:
    truth = torch.ones(3, 10)
    estimates = torch.tensor([1.0, 1.1, 1.2])[:, None].expand(3, 10)
    found = median_bias(estimates, truth, torch.ones(3, 10, dtype=torch.bool))
    assert (found.value, found.low, found.high) == pytest.approx((10.0, 0.0, 20.0), abs=1e-4)


def test_noise_table_against_a_direct_computation(bench: Bench) -> None:
    monte_carlo.noise(bench, noise_models=("gaussian",))
    rows, provenance = table(bench, "noise")
    assert "quick" in provenance["experiment"]
    methods = {row["method"] for row in rows}
    assert methods == {
        *("rim", "mle_voxelwise", "mle_shared", "mle_smooth", "mle_smooth_500", "trivial"),
        "resnet",  # the row that says it was left out
    }
    scene = monte_carlo.slice_of(bench)
    mask, truth = scene.brain[0] & scene.inside[0], scene.parameters[0, 2]
    [row] = [
        r
        for r in rows
        if (r["method"], r.get("parameter"), r.get("tissue"), r.get("snr")) == ("trivial", "T1", "brain", 5.0)
    ]
    error = 100 * (trivial_values("T1")[2] / truth[mask].double().numpy() - 1)
    assert row["bias_median"] == pytest.approx(np.median(error), rel=1e-3)
    assert row["rmse"] == pytest.approx(np.sqrt(np.mean(error**2)), rel=1e-3)
    assert row["cv_median"] == pytest.approx(0.0, abs=1e-3)
    # Bounds fall as 1 / SNR for Gaussian noise.
    bounds = {
        r["snr"]: r["bound_cv"]
        for r in rows
        if r.get("tissue") == "brain" and (r["method"], r["parameter"]) == ("rim", "T1")
    }
    assert bounds[5.0] / bounds[30.0] == pytest.approx(6.0, rel=1e-2)
    # Better data, smaller errors, for a consistent estimator.
    shared = {
        r["snr"]: r["robust_sd"]
        for r in rows
        if r.get("tissue") == "brain" and (r["method"], r["parameter"]) == ("mle_shared", "T1")
    }
    assert shared[30.0] < shared[5.0]
    monte_carlo.calibration(bench)  # from the same repetitions
    found, _ = table(bench, "calibration")
    ratios = [
        r["ratio"] for r in found if r["method"] == "mle_shared" and r["parameter"] == "T1" and r["tissue"] == "brain"
    ]
    assert all(0.4 < ratio < 2.5 for ratio in ratios)
    assert (Path(bench.output_dir) / "figures" / "t1_noise_gaussian.png").stat().st_size > 10_000


def test_held_out_ratios_follow_from_its_columns(bench: Bench) -> None:
    held_out.held_out(bench, noise_models=("rician",))
    rows, provenance = table(bench, "held_out")
    place = ("protocol", "snr", "texture", "tissue")
    rival = {tuple(r[k] for k in place): r for r in rows if r["method"] == "mle_smooth"}
    compared = [r for r in rows if r["method"] == "rim"]
    assert len(compared) == len(rival) > 0
    for row in compared:
        expected = row["rmse"] / rival[tuple(row[k] for k in place)]["rmse"]
        assert row["rmse_over_mle"] == pytest.approx(expected, rel=1e-3)
        assert row["bound_b_known"] < row["bound"]
    assert all(set(t) == {"target", "limit", "measured", "met"} for t in provenance["targets"])


def test_structures_are_where_they_should_be() -> None:
    scene = brains("T1", 1, 3, table_means=True, size=(120, 140))
    placed = structures_of.paper_structures(scene)
    assert [int(s.pixels.sum()) for s in placed] == [1, 1, 9, 9]
    assert [int(s.neighbours.sum()) for s in placed] == [8, 8, 24, 24]
    assert not any((a.pixels & b.pixels).any() for a in placed for b in placed if a is not b)
    for structure, tissue in zip(placed, (1, 2, 2, 2), strict=True):
        assert scene.fractions[0, tissue][structure.pixels].min() > 0.5
    changed = structures_of.insert(scene, placed)
    difference = changed.parameters != scene.parameters
    assert int(difference.sum()) == 20 and int(difference[:, :2].sum()) == 0
    # A perfect map keeps all of the contrast, a constant one nothing.
    disc = placed[1].pixels | placed[1].neighbours
    truth = scene.parameters[0, 2].clone()
    truth[disc] = 1.2
    kept = structures_of._contrast(torch.stack([truth, torch.ones_like(truth)]), truth, disc)
    assert kept.tolist() == pytest.approx([1.0, 0.0], abs=1e-6)


def test_generalisation_has_every_protocol(bench: Bench) -> None:
    repeatability.generalisation(bench)
    rows, _ = table(bench, "generalisation")
    images = {r["protocol"]: r["images"] for r in rows if r["method"] == "rim"}
    assert images == {"N31": 31, "N25": 25, "N23": 23, "clinical8": 8, "clinical6": 6}


def test_ablation_goes_on_where_it_stopped(bench: Bench) -> None:
    variants = {"default": {"features": 4, "steps": 1}, "untrained": {"features": 4, "steps": 1}}
    small = {"batch_size": 1, "patch": 32}
    ablation.ablation(bench, variants=variants, **small)
    before, _ = table(bench, "ablation")
    ablation.ablation(bench, variants={**variants, "relu": {"features": 4, "steps": 1, "activation": "relu"}}, **small)
    after, _ = table(bench, "ablation")
    assert after[:3] == before[:3]  # the default, tissue by tissue
    assert {r["variant"] for r in after} == {*variants, "relu"}
    assert all(r["rmse_over_default"] == 1.0 for r in after if r["variant"] == "default")


def test_runner_names_what_it_knows(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    calls: list[str] = []
    experiments = {name: lambda b, name=name: calls.append(name) or [] for name in ("timing", "phantom", "structures")}
    run_experiments(bench, experiments)
    assert calls == ["timing", "structures"] and "--phantom_dir" in capsys.readouterr().out
    run_experiments(bench, experiments, ("structures", "timing"))
    assert calls[2:] == ["structures", "timing"]
    with pytest.raises(QMRIError, match="one of timing"):
        run_experiments(bench, experiments, "tming")


def test_config_names_every_function(rim_root: Path) -> None:
    from importlib import import_module
    from inspect import signature

    config = json.loads((rim_root / "configs" / "experiments.json").read_text())
    assert config["initialize"][0] == "$sys.path.insert(0, @bundle_root)"
    for name, node in config["experiments"].items():
        module, _, function = node["_target_"].rpartition(".")
        parameters = signature(getattr(import_module(module), function)).parameters
        assert {k for k in node if not k.startswith("_")} <= set(parameters), name
    assert set(ONLY_T1) <= set(config["experiments"])
    assert set(config["bench"]) - {"_target_"} <= set(signature(Bench).parameters)


PHANTOM = Path(__file__).parents[3] / "shared" / "data" / "relaxometry" / "nist_phantom"


@pytest.mark.skipif(not PHANTOM.is_dir(), reason="../shared/data is absent")
def test_phantom_plate_is_read_as_stored() -> None:
    pytest.importorskip("dcm2niix", reason="dcm2niix is an extra")
    plate = phantom.read_plate(PHANTOM, "T1/site1_20200218/plate5", "T1", 0)
    assert plate.image.shape == (6, 192, 192) and plate.nominal.shape == (14,)
    assert plate.acquisition["repetition_time"].tolist() == pytest.approx([1, 1, 1, 1.26, 1.86, 2.46])
    # Spheres of longer T1 are darker at the last time: only the right orientation gives this order.
    last = [float(plate.image[-1][phantom.disc_mask((192, 192), c, 2.3)].median()) for c in plate.centres[:5]]
    assert last == sorted(last)
    with pytest.raises(QMRIError, match="spheres"):
        phantom.read_plate(PHANTOM, "T1/nowhere", "T1", 0)
