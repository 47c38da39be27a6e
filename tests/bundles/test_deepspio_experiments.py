"""The experiments of deepspio: closed forms of their parts, and quick runs of each."""

from __future__ import annotations

import csv
import json
import math
from functools import partial
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bundle_files import REPOSITORY
from deepspio.experiments import (
    EXPERIMENTS,
    air_sphere,
    charts,
    noise,
    other_anatomy,
    phantoms,
    simulated,
    timing,
)
from deepspio.experiments.bench import Bench
from deepspio.experiments.compare import errors, estimates, table
from deepspio.experiments.methods import COMPARED, LABELS, NETWORKS, Method, in_chunks, load_network
from deepspio.experiments.scenes import AirSphere, Bottles, disc, held_out, surrounded
from deepspio.experiments.scenes import phantoms as simulate_phantoms
from deepspio.experiments.scores import centre_mean, mean_row, nmae
from deepspio.network import DeepSPIO
from deepspio.simulator import ViewLineSimulator
from torch import Tensor

from physics.dipole import cylinder_field
from physics.viewline import field_per_concentration
from shared_transforms.errors import QMRIError

ROOT = REPOSITORY / "bundles" / "deepspio"
FEW = ("zero", "centre_line", "deepspio")
WIDTH = 2


def new_bench(folder: Path, **options: Any) -> Bench:
    torch.manual_seed(0)
    settings: dict[str, Any] = {"quick": "true", "anatomy": {"shares": {"uniform": 1.0}}}
    simulator = partial(ViewLineSimulator, noise_share=0.5)
    return Bench({"deepspio": DeepSPIO(WIDTH), "unet": None}, folder, simulator, **(settings | options))


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return new_bench(tmp_path_factory.mktemp("experiments"))


def results(bench: Bench, name: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Rows and provenance of a table, which has a column for the paper and a row for the absent network."""
    content = json.loads((Path(bench.output_dir) / "results" / f"{name}.json").read_text())
    lines = (Path(bench.output_dir) / "results" / f"{name}.csv").read_text().splitlines()
    reader = csv.DictReader(line for line in lines if not line.startswith("#"))
    assert len(list(reader)) == len(content["rows"]) and "paper" in (reader.fieldnames or [])
    assert "quick" in content["provenance"]["experiment"]
    return content["rows"], content["provenance"]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_scores_of_trivial_answers() -> None:
    truth = draw(5, 1, 8, 8).clamp_min(0)
    assert torch.equal(nmae(torch.zeros_like(truth), truth), torch.ones(5).double())
    assert torch.equal(nmae(truth, truth), torch.zeros(5).double())
    assert torch.allclose(nmae(1.25 * truth, truth), torch.full((5,), 0.25).double(), atol=1e-6)


def test_mean_of_images_and_its_spread() -> None:
    values = draw(400).double() + 3
    row = mean_row(values)
    assert row["images"] == 400 and row["nmae"] == pytest.approx(float(values.mean()))
    assert row["nmae_sd"] == pytest.approx(np.std(values.numpy(), ddof=1))
    half = 1.96 * row["nmae_sd"] / 20
    assert (row["nmae_low"], row["nmae_high"]) == pytest.approx((row["nmae"] - half, row["nmae"] + half), abs=0.02)
    assert mean_row(values[:1])["nmae_sd"] is None


def test_area_and_place_of_a_disc() -> None:
    [shape] = disc(128, 0.25, torch.tensor([[3.0, -2.0]]), 2.5)
    assert float(shape.sum()) * 0.25**2 == pytest.approx(math.pi * 2.5**2, rel=2e-3)
    axis = (torch.arange(128) - 63.5) * 0.25
    middle = [float((shape.sum(k) * axis).sum() / shape.sum()) for k in (1, 0)]
    assert middle == pytest.approx([3.0, -2.0], abs=1e-3)  # x is the first axis


def test_centre_of_a_disc_is_its_concentration() -> None:
    places = [(1.0, 2.0), (-3.0, 0.5)]
    true = torch.tensor([4.0, 9.0])
    maps = (true[:, None, None] * disc(96, 0.2, torch.tensor(places), 2.0))[:, None]
    assert centre_mean(maps, places, 1.0, 0.2) == pytest.approx(true)
    ramp = torch.arange(96.0).expand(2, 1, 96, 96)  # a mean over a disc is the value in its middle
    assert centre_mean(ramp, places, 1.0, 0.2) == pytest.approx(torch.tensor([47.5 + 10.0, 47.5 + 2.5]), abs=0.01)
    assert centre_mean(maps, [(-1.0, -2.0), (3.0, -0.5)], 0.5, 0.2) == pytest.approx(torch.zeros(2))


def test_field_of_a_long_bottle_is_that_of_a_cylinder(tmp_path: Path) -> None:
    from deepspio.experiments.scenes import _bottle_field

    bench = new_bench(tmp_path, quick=False, size=48)
    shape = disc(48, bench.pixel_size[0], torch.zeros(1, 2), 1.5)
    [field] = _bottle_field(bench, shape, 30.0)
    x = (torch.arange(48) - 23.5) * bench.pixel_size[0]
    points = torch.stack(torch.meshgrid(x, torch.zeros(1), x, indexing="ij"), -1)[:, 0].double()
    exact = field_per_concentration() * cylinder_field(points, 1.5, axis=(0.0, 1.0, 0.0))
    away = (points.norm(dim=-1) - 1.5).abs() > 0.4  # not the pixels that its surface cuts
    assert float((field - exact)[away].abs().max()) < 0.02 * float(exact.abs().max())


def test_phantoms_differ_as_they_should(bench: Bench) -> None:
    concentrations = [0.22, 5.0, 5.0, 20.0]
    bottles = Bottles(concentrations, [(1.0, 2.0), (-2.0, 0.0), (-2.0, 0.0), (0.0, 0.0)])
    quiet = simulate_phantoms(bench, bottles)
    assert quiet.image.shape == (4, 2, 64, 64) and quiet.truth.shape == (4, 1, 64, 64)
    assert quiet.truth.amax((1, 2, 3)) == pytest.approx(torch.tensor(concentrations))
    assert torch.equal(quiet.concentration, torch.tensor(concentrations)) and torch.equal(
        quiet.image[1], quiet.image[2]
    )
    alone = simulate_phantoms(bench, Bottles([20.0], [(0.0, 0.0)]))
    assert torch.allclose(alone.image[0], quiet.image[3], atol=1e-5)
    noisy = simulate_phantoms(bench, bottles, [20.0, 10.0, 10.0, math.inf], seed=3)
    assert torch.equal(noisy.image[3], quiet.image[3]) and not torch.equal(noisy.image[1], noisy.image[2])
    power = quiet.image[1].square().mean()
    # E |S + n|^2 = |S|^2 + 2 sigma^2: power rises by a tenth at 10 dB
    assert float(noisy.image[1].square().mean() / power) == pytest.approx(1.1, abs=0.01)
    again = simulate_phantoms(bench, bottles, [20.0, 10.0, 10.0, math.inf], seed=3)
    assert torch.equal(again.image, noisy.image)


def test_air_sphere_is_dark_and_bends_the_lines(bench: Bench) -> None:
    bottles = Bottles([1e-3], [(-2.0, -1.0)])
    without, empty, air = (
        simulate_phantoms(bench, bottles, sphere=sphere).image[0].sum(0)
        for sphere in (None, AirSphere(0.0), AirSphere(9.42))
    )
    sphere = AirSphere(0.0)
    [inside] = disc(64, bench.pixel_size[0], torch.tensor([sphere.centre]) / 4, sphere.radius / 4 - 0.4)
    assert float(empty[inside == 1].abs().max()) < 1e-6 < float(without[inside == 1].mean())
    difference = (air - empty).abs()
    assert float(difference.max()) > 0.1 * float(empty.max())
    weak = simulate_phantoms(bench, bottles, sphere=AirSphere(0.942)).image[0].sum(0)
    assert float((weak - empty).abs().max()) < float(difference.max())


def test_held_out_images_do_not_depend_on_their_number(bench: Bench) -> None:
    two, second = held_out(bench, 2), held_out(bench, 1, first=1)
    assert torch.equal(two.image[1], second.image[0]) and torch.equal(two.truth[1], second.truth[0])
    assert two.image.shape == (2, 2, 64, 64)
    changed = held_out(bench, 2, anatomy={"shares": {"breast": 1.0}}, noise_share=0.0)
    assert torch.equal(changed.truth, two.truth) and not torch.equal(changed.image, two.image)
    other = new_bench(Path(bench.output_dir), seed=1)
    assert not torch.equal(held_out(other, 1).truth, two.truth[:1])


def test_slow_methods_see_the_first_images(bench: Bench) -> None:
    scenes = held_out(bench, 3)
    maps = estimates(bench, bench.methods(FEW), scenes, slow=2)
    assert [len(maps[name]) for name in FEW] == [3, 2, 3]
    rows = {row["method"]: row for row in table(bench, errors(maps, scenes), {"set": "a"})}
    assert [rows[name]["images"] for name in FEW] == [3, 2, 3]
    assert all(row["images_shared"] == 2 for row in rows.values())
    assert (rows["zero"]["nmae"], rows["zero"]["nmae_shared"], rows["zero"]["nmae_sd"]) == (1, 1, 0)
    chunks = in_chunks(lambda image: image[:, :1] * image.shape[0])
    assert torch.equal(chunks(torch.ones(9, 2, 1, 1)).flatten(), torch.tensor([8.0] * 8 + [1.0]))


def test_maps_are_kept_for_equal_images_and_options_alone(bench: Bench, tmp_path: Path) -> None:
    from deepspio.experiments.cache import cached_estimate

    image = draw(2, 2, 16, 16).abs()
    method = Method("centre_line", lambda x: x[:, :1], "a")
    first = cached_estimate(method, image, tmp_path)
    silent = Method("centre_line", lambda x: torch.zeros_like(x[:, :1]), "a")
    assert torch.equal(first, image[:, :1]) and torch.equal(cached_estimate(silent, image, tmp_path), first)
    assert not cached_estimate(Method("centre_line", silent.estimate, "b"), image, tmp_path).any()
    assert not cached_estimate(silent, image + 1, tmp_path).any() and not cached_estimate(silent, image, None).any()
    cached_estimate(Method("deepspio", silent.estimate, "a"), image, tmp_path)
    assert len(list(tmp_path.iterdir())) == 6


def test_simulated(bench: Bench) -> None:
    files = simulated.simulated(bench, methods=FEW)
    rows, provenance = results(bench, "simulated")
    own = {(row["set"], row["method"]): row for row in rows if row.get("band") == "all"}
    assert set(own) == {(name, method) for name in simulated.SETS for method in FEW}
    assert own["paper", "deepspio"]["paper"] == 0.17 and own["paper", "zero"]["paper"] is None
    assert all(row["nmae"] == 1 for key, row in own.items() if key[1] == "zero")
    bands = [row for row in rows if row.get("middle") and row["method"] == "deepspio"]
    assert sum(row["images"] for row in bands) == own["paper", "deepspio"]["images"] == 4
    assert [t["limit"] for t in provenance["targets"]][:2] == [0.17, 0.35] and len(provenance["targets"]) == 4
    assert {path.name for path in files} >= {"simulated.png", "simulated_bands.png", "simulated.csv"}


def test_bands_hold_every_concentration(bench: Bench) -> None:
    concentration = torch.tensor([0.22, 1.0, 17.5, 12.0])
    rows = simulated.banded(bench, {"zero": torch.ones(4)}, concentration)
    assert [(row["band"], row["images"]) for row in rows] == [
        ("0.22-1", 1),
        ("1-3.5", 1),
        ("10.5-14", 1),
        ("14-17.5", 1),
    ]


def test_other_anatomy(bench: Bench) -> None:
    other_anatomy.other_anatomy(bench, methods=FEW)
    rows, provenance = results(bench, "other_anatomy")
    own = {(row["anatomy"], row["method"]): row for row in rows if row.get("particles") == "anywhere"}
    assert set(own) == {(name, method) for name in ("mni152", "breast") for method in FEW}
    zero, ours = own["breast", "zero"], own["breast", "deepspio"]
    assert (zero["difference"], zero["over_heads"]) == (0, 1) and ours["paper"] == 0.16
    ratio = ours["nmae"] / own["mni152", "deepspio"]["nmae"]
    assert ours["over_heads"] == pytest.approx(ratio, rel=1e-4)
    assert provenance["targets"][0]["measured"] == ours["over_heads"] and provenance["targets"][0]["limit"] == 1.1
    within = [row for row in rows if row.get("particles") == "in tissue"]
    assert all(row["images"] <= ours["images"] for row in within)


def test_particles_in_air_are_not_surrounded_by_signal() -> None:
    mask, density = torch.zeros(3, 1, 64, 64, dtype=torch.bool), torch.zeros(3, 1, 64, 64)
    mask[:, :, 30:34, 30:34] = True
    density[0] = 1.0
    density[1, :, :32] = 0.5  # the edge of the tissue goes through the middle of the particles
    assert surrounded(mask, density).tolist() == pytest.approx([1.0, 0.5, 0.0])


def test_air_sphere(bench: Bench) -> None:
    air_sphere.air_sphere(bench, methods=FEW)
    rows, _ = results(bench, "air_sphere")
    ours = {(row["concentration"], row["sphere_ppm"]): row for row in rows if row["method"] == "deepspio"}
    assert len(ours) == 12 and {key[1] for key in ours} == {None, 0.94248, 9.4248}
    assert [ours[c, 0.94248]["paper"] for c in (0.22, 6.7, 13.0, 20.0)] == [1.96, 0.24, 0.30, 0.21]
    assert all(ours[c, None]["over_without"] == 1 for c in (0.22, 6.7, 13.0, 20.0))


def test_phantoms(bench: Bench) -> None:
    phantoms.phantoms(bench, methods=FEW)
    rows, provenance = results(bench, "phantoms")
    assert any("SIMULATED" in note for note in provenance["notes"])
    single = [row for row in rows if row.get("concentration") and row["method"] == "zero"]
    assert len(single) == 9 and all(row["percent_error"] == 100 and row["nmae"] == 1 for row in single)
    means = {(row["method"], row["batch"]): row for row in rows if isinstance(row.get("batch"), str)}
    assert means["zero", "trained range"]["images"] == 8 and means["zero", "all"]["images"] == 9
    # Table 1 of the paper states 1.97, 5.59, 15.5, 17.4, 12.89, 8.02, 1.14, 11.17 and 19.42 %, from rounded values
    assert means["zero", "all"]["paper_percent_error"] == pytest.approx(10.34, abs=0.1)
    [one] = provenance["targets"]
    assert (one["limit"], one["measured"]) == (10.4, means["deepspio", "trained range"]["percent_error"])
    assert len([row for row in rows if row["method"] == "centre_line_known" and row.get("concentration")]) == 9
    places = [phantoms.draw_bottles(bench, batch).centres for batch in (1, 2)]
    assert not set(places[0]) & set(places[1]) and np.abs(np.array(places[0])).max() <= 3


def test_noise(bench: Bench) -> None:
    noise.noise(bench, methods=FEW)
    rows, _ = results(bench, "noise")
    grid = [row for row in rows if row.get("study") == "concentrations"]
    assert {(row["concentration"], row["decibels"]) for row in grid} == {
        (c, d) for c in (0.22, 13.95) for d in (5, 11, 19, "none")
    }
    count = {(row["method"], row["decibels"]): row["images"] for row in grid}
    assert (count["deepspio", 5], count["centre_line", 5], count["deepspio", "none"]) == (2, 1, 1)
    levels = [row for row in rows if row.get("study") == "levels"]
    assert {row["method"] for row in levels} == {"zero", "deepspio"} and {row["images"] for row in levels} == {3}
    assert all(row["nmae_sd"] == 0 for row in levels if row["method"] == "zero")


def test_timing(bench: Bench) -> None:
    before = torch.get_num_threads()
    timing.timing(bench, methods=FEW)
    rows, provenance = results(bench, "timing")
    assert all(row["wall_seconds"] > 0 for row in rows if row.get("pixels")) and torch.get_num_threads() == before
    assert [t["limit"] for t in provenance["targets"]] == [0.5]


def test_pictures_have_their_axes_right() -> None:
    image = torch.zeros(2, 6, 4)
    image[0, 5, 1] = image[1, 2, 3] = 1.0
    picture = charts.two_channels(image)
    assert picture.shape == (4, 6, 3)
    assert picture[1, 5].tolist() == [1, 0, 0] and picture[3, 2].tolist() == [0, 1, 0] and picture.sum() == 2


def test_networks_without_weights_are_left_out(bench: Bench, tmp_path: Path) -> None:
    assert load_network("deepspio", tmp_path / "none.pt") is None
    assert [method.name for method in bench.methods(COMPARED)] == [name for name in COMPARED if name != "unet"]
    assert [row["method"] for row in bench.absent()] == ["unet"]
    torch.save(DeepSPIO(WIDTH).state_dict(), tmp_path / "some.pt")
    network = load_network("deepspio", tmp_path / "some.pt", width=WIDTH)
    assert network is not None and not network.training
    with pytest.raises(QMRIError, match="other"):
        Bench({"other": network}, tmp_path, ViewLineSimulator)


def test_config_names_every_function() -> None:
    config = json.loads((ROOT / "configs" / "experiments.json").read_text())
    train = json.loads((ROOT / "configs" / "train.json").read_text())
    assert config["initialize"][0] == "$sys.path.insert(0, @bundle_root)"
    assert tuple(config["experiments"]) == EXPERIMENTS
    for name, node in config["experiments"].items():
        module, _, function = node["_target_"].rpartition(".")
        parameters = signature(getattr(import_module(module), function)).parameters
        assert {k for k in node if not k.startswith("_")} <= set(parameters), name
    assert set(config["bench"]) - {"_target_"} <= set(signature(Bench).parameters)
    assert set(config["simulator"]) - {"_target_", "_mode_"} <= set(signature(ViewLineSimulator).parameters)
    assert set(config["networks"]) == set(NETWORKS) == set(config["weights"]) and set(COMPARED) == set(LABELS) - {
        "centre_line_known"
    }
    own = {
        "imports",
        "_desc_",
        "bundle_root",
        "output_dir",
        "device",
        "size",
        "weights",
        "initialize",
        "run",
        "finalize",
    }
    shared = {name for name in config if name in train} - own  # the images are larger than those of the training
    assert {"pixel_size_mm", "echo_time_s", "figures", "noise_db", "anatomy", "width", "sequence"} <= shared
    assert {name: config[name] for name in shared} == {name: train[name] for name in shared}
