"""Attention, saliency and convergence: landmarks against geometry, shares against areas, quick runs complete."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bundle_files import REPOSITORY
from deepspio.experiments import EXPERIMENTS, attention, convergence, saliency
from deepspio.experiments.bench import Bench
from deepspio.experiments.landmarks import distance, edge, landmarks, share
from deepspio.experiments.scenes import AirSphere, Bottles, phantoms
from deepspio.network import DeepSPIO
from deepspio.simulator import ViewLineSimulator

ROOT = REPOSITORY / "bundles" / "deepspio"
TRAIN = ROOT / "configs" / "train.json"


def new_bench(folder: Path, quick: str = "true", **options: Any) -> Bench:
    torch.manual_seed(0)
    networks = {"deepspio": DeepSPIO(width=2)}
    settings: dict[str, Any] = {"anatomy": {"shares": {"uniform": 1.0}}, "quick": quick}
    return Bench(networks, folder, ViewLineSimulator, **(settings | options))


def table(bench: Bench, name: str) -> list[dict[str, Any]]:
    stem = Path(bench.output_dir) / "results" / name
    content = json.loads(stem.with_suffix(".json").read_text())
    lines = stem.with_suffix(".csv").read_text().splitlines()
    assert len(list(csv.DictReader(line for line in lines if not line.startswith("#")))) == len(content["rows"])
    return content["rows"]


def test_centres_of_straight_lines_are_those_of_the_sequence(tmp_path: Path) -> None:
    bench = new_bench(tmp_path, quick="false", size=128)
    found = landmarks(bench, Bottles([0.0], [(0.0, 0.0)], container=9.0))
    z = (np.arange(128) - 63.5) * bench.pixel_size[1]
    expected = np.abs(z - 2.0 * np.round(z / 2.0))  # one line at 0, every 2 mm
    inside = found.inside[0].numpy()
    assert abs(inside.sum() * bench.pixel_size[0] ** 2 / (np.pi * 81) - 1) < 0.01
    middle = found.to_centre[0, 64].numpy()[inside[64]]
    assert np.abs(middle - expected[inside[64]]).max() < 0.11 + 0.5 * bench.pixel_size[1]
    assert not found.bent.any() and not found.sphere.any() and bool(found.to_rim.isinf().all())


def test_centres_follow_the_lines_where_particles_bend_them(tmp_path: Path) -> None:
    bench = new_bench(tmp_path, quick="false", size=128)
    bottles = Bottles([0.0, 7.0], [(0.0, 0.0)] * 2, radius=1.0, length=5.0, container=11.0)
    image, found = phantoms(bench, bottles).image.sum(1), landmarks(bench, bottles)
    x = (torch.arange(128) - 63.5) * bench.pixel_size[0]
    radius = (x[:, None] ** 2 + x**2).sqrt()

    def mean_distance(to_centre: torch.Tensor, seen: torch.Tensor) -> float:
        ring = (radius > 2.0) & (radius < 4.0)
        return float((to_centre * seen)[ring].sum() / seen[ring].sum())

    # A line of 1 mm is on the average 0.25 mm from its own centre.
    straight, followed = (mean_distance(found.to_centre[k], image[k]) for k in (0, 1))
    assert straight == pytest.approx(0.25, abs=0.04) and followed == pytest.approx(0.25, abs=0.06)
    assert mean_distance(found.to_centre[0], image[1]) > followed + 0.1  # from centres of straight lines
    assert found.bent[1][(radius > 2.0) & (radius < 3.0)].float().mean() > 0.8
    # The rim of the void lies around the bottle.
    rim = (found.to_rim[1] == 0) & found.inside[1]
    assert radius[rim].min() > 0.7 and radius[rim].max() < 5


def test_parts_are_disjoint_and_cover_the_image(tmp_path: Path) -> None:
    bench = new_bench(tmp_path)
    sphere = AirSphere(0.942)
    places = landmarks(bench, Bottles([7.0, 14.0], [(0.0, 0.0)] * 2), sphere)
    parts = saliency.parts_of(places)
    assert torch.equal(torch.stack(list(parts.values())).sum(0), torch.ones_like(places.inside, dtype=torch.long))
    assert all(part.any() for part in parts.values())
    everywhere = torch.ones_like(places.inside)
    maps = torch.rand(places.inside.shape, generator=torch.Generator().manual_seed(0))
    assert torch.stack([share(maps, part, everywhere) for part in parts.values()]).sum(0).allclose(torch.ones(2))
    even = share(torch.ones_like(maps), parts["bent"], places.inside)
    assert even.allclose(parts["bent"].sum((1, 2)) / places.inside.sum((1, 2)))
    assert share(torch.zeros_like(maps), parts["bent"], places.inside).isnan().all()


def test_distance_and_edge_of_a_square() -> None:
    mask = torch.zeros(2, 20, 20, dtype=torch.bool)
    mask[0, 5:10, 5:10] = True
    rim = edge(mask)
    assert int(rim[0].sum()) == 16 and not rim[0, 6:9, 6:9].any() and not rim[1].any()
    found = distance(mask, 0.5)
    assert found[0, 13, 14].item() == pytest.approx(0.5 * np.hypot(4, 5)) and bool(found[1].isinf().all())


def test_attention_runs(tmp_path: Path) -> None:
    bench = new_bench(tmp_path)
    files = attention.attention(bench, concentrations=(7.0,))
    rows = table(bench, "attention")
    assert len(rows) == 2 * 20 + 1
    assert [row["number"] for row in rows[:20]] == list(range(1, 21)) and rows[20]["method"] == "untrained"
    assert all(row["images"] + row["empty"] == 1 for row in rows)
    assert all(0 <= row["centres"] <= 1 and 0 < row["bent_chance"] < 1 for row in rows if row["images"])
    # Of the image itself half of the light is within 0.25 mm of a centre, of the area half as much.
    assert rows[-1]["centres_ratio"] == pytest.approx(2, abs=0.5)
    assert [file.stat().st_size > 5_000 for file in files if file.suffix == ".png"] == [True] * 3
    assert attention.score_of("decoders.2.17") == "cV" and attention.score_of("encoder.0.2") == "cA"


def test_saliency_runs(tmp_path: Path) -> None:
    bench = new_bench(tmp_path)
    files = saliency.saliency(bench, concentrations=(1.0, 14.0), beside_air=(7.0,))
    rows = table(bench, "saliency")
    assert len(rows) == 2 * (2 + 2 + 1)
    for row in rows:
        assert sum(row.get(part) or 0 for part in saliency.PARTS) == pytest.approx(1, abs=1e-3)
        assert row["magnitude"] > 0 and ("sphere" in row) == (row["data"] == "air sphere")
    assert len([file for file in files if file.suffix == ".png"]) == 3


def test_saliency_is_that_of_each_image_and_its_unit_does_not_matter(tmp_path: Path) -> None:
    bench = new_bench(tmp_path)
    network = bench.networks["deepspio"]
    assert isinstance(network, DeepSPIO)
    scenes = phantoms(bench, Bottles([3.0, 9.0], [(0.0, 0.0)] * 2))
    found = saliency.saliency_of(network, scenes)
    brighter = replace(scenes, image=8 * scenes.image)
    assert torch.allclose(saliency.saliency_of(network, brighter), found, rtol=1e-4)


def test_networks_that_are_absent_are_said(tmp_path: Path) -> None:
    bench = new_bench(tmp_path, weights={"deepspio": "models/model.pt"})
    bench.networks = {}
    for run, name in ((attention.attention, "attention"), (saliency.saliency, "saliency")):
        run(bench)
        assert "model.pt" in table(bench, name)[0]["note"]


def test_convergence_runs_and_is_repeatable(tmp_path: Path) -> None:
    curves = []
    for name in ("first", "second"):
        bench = new_bench(tmp_path / name)
        convergence.convergence(bench, TRAIN, variants=("DeepSPIO", "U-Net"))
        rows = table(bench, "convergence")
        assert [row["variant"] for row in rows] == ["DeepSPIO", "U-Net"]
        curves.append(table(bench, "convergence_curves"))
    assert curves[0] == curves[1]
    assert {row["step"] for row in curves[0]} == {0, 2, 4}
    assert [row["nmae"] for row in curves[0] if row["step"] == 0] == pytest.approx([1, 1], abs=0.05)
    assert (tmp_path / "first" / "figures" / "convergence.png").stat().st_size > 5_000


def test_variants_differ_in_what_they_say(tmp_path: Path) -> None:
    settings = {"device": torch.device("cpu"), "seed": 0, "width": 2}
    runs = {name: convergence.start(TRAIN, settings, changes) for name, changes in convergence.VARIANTS.items()}
    assert [type(run.network).__name__ for run in runs.values()] == ["DeepSPIO", "UNetComparator"] * 2
    assert [run.network.compress for run in runs.values()] == [True, True, False, False]
    truth = torch.zeros((2, 1, 32, 32))
    truth[..., 5:19, 8:21] = 3.0
    nothing = [float(run.loss(torch.zeros_like(truth), {"parameters": truth})) for run in runs.values()]
    assert nothing[3] == pytest.approx(1) and nothing[0] == nothing[1] and max(nothing) < 4.01
    twice = [float(run.loss(2 * truth, {"parameters": truth})) for run in runs.values()]
    assert twice[2:] == pytest.approx(nothing[2:])  # absolute deviations
    weights = [[p.clone() for p in run.network.parameters()] for run in runs.values()]
    assert all(torch.equal(a, b) for a, b in zip(weights[0], weights[2], strict=True))


def test_config_has_the_experiments(tmp_path: Path) -> None:
    config = json.loads((ROOT / "configs" / "experiments.json").read_text())["experiments"]
    for name in ("attention", "saliency", "convergence"):
        module, _, function = config[name]["_target_"].rpartition(".")
        parameters = signature(getattr(import_module(module), function)).parameters
        assert {k for k in config[name] if not k.startswith("_")} <= set(parameters) and name in EXPERIMENTS
    with pytest.raises(ValueError, match="'nothing'"):
        convergence.parser_of(TRAIN, {"nothing": 1})
