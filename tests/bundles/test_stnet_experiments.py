"""The experiments of stnet_perfusion: closed forms of their parts, and quick runs of each."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import replace
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bundle_files import REPOSITORY
from skimage.metrics import structural_similarity
from stnet_perfusion.experiments import (
    EXPERIMENTS,
    aif,
    calibration,
    method_tables,
    noise_sweep,
    osipi,
    paper,
    scores,
    studies,
    timing,
)
from stnet_perfusion.experiments.bench import Bench, calibrate
from stnet_perfusion.experiments.cohort import Subject, cohort
from stnet_perfusion.experiments.methods import (
    COMPARED,
    LABELS,
    NETWORKS,
    TRIED,
    Method,
    classical,
    load_network,
    resampled,
)
from stnet_perfusion.inferer import STNetInferer
from stnet_perfusion.network import STNet
from torch import Tensor

from shared_transforms.errors import QMRIError

ROOT = REPOSITORY / "bundles" / "stnet_perfusion"
FEW = ("trivial", "csvd", "osvd", "stnet")
CHANNELS = (2, 2, 2, 4)


def new_bench(folder: Path, **options: Any) -> Bench:
    torch.manual_seed(0)
    networks = {"stnet": STNet(channels=CHANNELS)}
    settings: dict[str, Any] = {"quick": "true", "train_config": ROOT / "configs" / "train.json"}
    return Bench(networks, folder, STNetInferer(progress=False), **(settings | options))


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """A bench whose methods are calibrated."""
    found = new_bench(tmp_path_factory.mktemp("experiments"))
    found.cache_dir = Path(found.output_dir) / "cache"
    calibration.calibration(found, methods=FEW)
    return found


@pytest.fixture(scope="module")
def subject(bench: Bench) -> Subject:
    [one] = cohort(bench, "test", 1, 1)
    return one


def table(bench: Bench, name: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    content = json.loads((Path(bench.output_dir) / "results" / f"{name}.json").read_text())
    lines = (Path(bench.output_dir) / "results" / f"{name}.csv").read_text().splitlines()
    assert len(list(csv.DictReader(line for line in lines if not line.startswith("#")))) == len(content["rows"])
    assert "quick" in content["provenance"]["experiment"]
    return content["rows"], content["provenance"]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_factor_is_the_best_of_many() -> None:
    truth = draw(500).exp()
    estimate = truth / 1.7 + 0.3 * draw(500, seed=1)  # some below 0
    found = calibration.least_absolute_factor(estimate, truth)
    tried = torch.linspace(0.5, 3, 2001, dtype=torch.float64)
    errors = (tried[:, None] * estimate - truth).abs().sum(1)
    assert (found * estimate - truth).abs().sum() <= errors.min() + 1e-9
    assert calibration.least_absolute_factor(truth / 1.7, truth) == pytest.approx(1.7)
    assert calibration.least_absolute_factor(torch.zeros(5), truth[:5]) == 1.0


def test_calibration_undoes_scale_and_offset() -> None:
    truth = torch.stack([draw(400).exp(), 20 * draw(400, seed=1).exp(), 5 + 2 * draw(400, seed=2)])
    estimate = truth * torch.tensor([[0.8], [0.5], [1.0]]) + torch.tensor([[0.0], [0.0], [-0.7]])
    lesion = truth[2] > 6
    row = calibration.fitted(estimate, truth, lesion, torch.ones_like(lesion))
    assert (row["cbv_factor"], row["cbf_factor"], row["tmax_offset_s"]) == pytest.approx((1.25, 2.0, 0.7))
    assert torch.allclose(calibrate(estimate, row), truth)
    assert row["tmax_mae"] == pytest.approx(0, abs=1e-9) and row["tmax_mae_uncalibrated"] == pytest.approx(0.7)
    assert row["dice"] == 1 and 6 <= row["threshold_s"] < truth[2][lesion].min() + 1e-6


def test_calibration_table(bench: Bench) -> None:
    rows, _ = table(bench, "calibration")
    chosen = [row["method"] for row in rows if row.get("chosen")]
    assert chosen == ["trivial", "csvd", "osvd", "stnet"]
    assert {row["frame_time_s"] for row in rows if row["method"] == "csvd"} == {None, 1.5}
    assert all(row["cbf_mae"] <= row["cbf_mae_uncalibrated"] for row in rows if "cbf_mae" in row)
    tried = {row["options"] for row in rows if row["method"] == "csvd"}
    assert len(tried) == 1 + len(TRIED["csvd"]) and all(0 < float(v) < 1 for o in tried for v in json.loads(o).values())
    trivial = bench.calibrated("trivial")
    assert trivial["threshold_s"] is None and trivial["dice"] == 0


def test_methods_need_a_calibration_of_their_weights(bench: Bench, tmp_path: Path) -> None:
    with pytest.raises(QMRIError, match="calibration"):
        new_bench(tmp_path).methods(["csvd"])
    changed = new_bench(Path(bench.output_dir))
    with torch.no_grad():
        next(iter(changed.networks["stnet"].parameters())).add_(1.0)  # type: ignore[union-attr]
    with pytest.raises(QMRIError, match="other weights"):
        changed.calibrated("stnet")


def test_subjects_are_the_same_whatever_the_noise(bench: Bench, subject: Subject) -> None:
    again, low, high = *cohort(bench, "test", 1, 1), *cohort(bench, "test", 1, 1, snr=(20.0, 100.0))
    assert torch.equal(again.image, subject.image) and torch.equal(low.truth, subject.truth)
    assert (low.snr, high.snr) == (20.0, 100.0) and torch.equal(low.tissue, high.tissue)
    assert subject.stroke and bool(subject.lesion.any())
    assert torch.equal(subject.truth[2] > 6, subject.lesion)
    quiet = [float((s.image[0, 1] - high.image[0, 1])[s.tissue].std()) for s in (low, high)]
    assert quiet[0] > 0 == quiet[1]
    [healthy] = cohort(bench, "test", 1, 0)
    assert not healthy.stroke and healthy.name == subject.name
    assert healthy.lesion.double().mean() < 0.01
    fixed = replace_snr(bench, 33.0)
    assert next(iter(cohort(fixed, "val", 1, 0))).snr == 33.0


def replace_snr(bench: Bench, snr: float) -> Bench:
    return replace(bench, snr=snr)


def test_volume_of_tissue_values(subject: Subject) -> None:
    volume = subject.volume(subject.truth)
    assert torch.equal(volume[:, subject.tissue], subject.truth)
    assert float(volume[:, ~subject.tissue].abs().sum()) == 0
    assert subject.voxel_ml == pytest.approx(0.216)


def test_resampling_keeps_lines_and_areas(subject: Subject) -> None:
    n, dt = 40, 2.0
    ramp = torch.arange(n) * dt
    line = ramp[None, :, None, None, None].expand(1, n, 1, 1, 1)
    image = torch.cat([torch.ones_like(line[:, :1]), line], 1)
    bump = torch.exp(-(((ramp - 30) / 6) ** 2))[None]
    found = resampled(replace(subject, image=image, aif=bump, vof=ramp[None], frame_time=dt), 1.5)
    assert found.frame_time == 1.5 and found.image.shape[1] == 1 + 53
    assert torch.allclose(found.vof[0], torch.arange(53) * 1.5, atol=1e-4)
    assert torch.allclose(found.image[0, 1:, 0, 0, 0], found.vof[0], atol=1e-4)
    assert float(found.aif.sum() * 1.5) == pytest.approx(float(bump.sum() * dt), rel=2e-3)


def test_scores_of_the_truth_and_of_a_shift(subject: Subject) -> None:
    best = scores.map_scores(subject, subject.truth[1], 1)
    assert set(best) == {"brain", "lesion"}
    for row in best.values():
        assert (row["ssim"], row["pcc"], row["scc"]) == pytest.approx((1, 1, 1)) and row["mae"] == row["nrmse"] == 0
        assert row["psnr"] == math.inf
    moved = scores.map_scores(subject, subject.truth[1] + 5, 1)
    for name, region in (("brain", torch.ones_like(subject.lesion)), ("lesion", subject.lesion)):
        truth = subject.truth[1][region].double()
        span = float(subject.truth[1].max() - subject.truth[1].min())
        expected = {
            "mae": 5,
            "pcc": 1,
            "nrmse": 5 / float(truth.square().mean().sqrt()),
            "psnr": 20 * math.log10(span / 5),
        }
        assert {key: moved[name][key] for key in expected} == pytest.approx(expected, rel=1e-3)
        assert moved[name]["ssim"] < 1


def test_similarity_is_that_of_single_slices(subject: Subject) -> None:
    truth = subject.truth[0].double()
    estimate = truth + 0.3 * draw(len(truth))
    found = subject.volume(scores.similarity_map(subject, estimate, truth, 4.0))
    x, y = (subject.volume(values).numpy()[..., 1] for values in (estimate, truth))
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "full": True}
    _, one = structural_similarity(x, y, data_range=4.0, **options)
    inside = subject.tissue[..., 1].numpy()
    assert np.allclose(found[..., 1].numpy()[inside], one[inside])


def test_regions_of_the_truth(subject: Subject) -> None:
    row = scores.region_scores(subject, subject.truth[2], 6.0)
    assert row == pytest.approx({"auc": 1, "dice": 1, "iou": 1, "hd95": 0})
    none = scores.region_scores(subject, torch.zeros_like(subject.truth[2]), 6.0)
    assert (none["auc"], none["dice"], none["iou"]) == (0.5, 0, 0) and math.isnan(none["hd95"])


def test_summary_leaves_out_and_counts_what_does_not_exist() -> None:
    rows = [{"method": "a", "hd95": value, "dice": 0.5} for value in (2.0, 4.0, math.nan)]
    [row] = scores.summaries(rows, ("method",), ("hd95", "dice"))
    assert (row["hd95"], row["hd95_missing"], row["subjects"]) == (3.0, 1, 3)
    assert row["hd95_sd"] == pytest.approx(math.sqrt(2)) and "dice_missing" not in row
    assert row["hd95_low"] <= 3 <= row["hd95_high"]
    ratio = scores.ratio_of_sums([1.0, 2.0], [4.0, 2.0])
    assert (ratio.value, ratio.low, ratio.high) == (0.5, 0.25, 1)  # one of four samples is the first twice


def test_interval_is_students_for_many_subjects() -> None:
    values = draw(400).numpy() + 3
    found = scores.ratio_of_sums(values, np.ones(400))
    half = 1.96 * values.std(ddof=1) / 20
    assert (found.low, found.high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.02)


def test_estimates_are_kept_for_equal_data_and_options_alone(bench: Bench, subject: Subject, tmp_path: Path) -> None:
    kept = replace(bench, cache_dir=tmp_path)
    method = classical("csvd", {})
    first = kept.estimate(method, subject)
    silent = Method(method.name, lambda _: torch.zeros(3, 1), method.recipe)
    assert torch.equal(kept.estimate(silent, subject), first)
    kept.estimate(classical("csvd", {"threshold": 0.2}), subject)
    kept.estimate(method, replace(subject, frame_time=2 * subject.frame_time))
    assert len(list(tmp_path.iterdir())) == 3


def test_method_tables(bench: Bench) -> None:
    method_tables.method_tables(bench, methods=FEW)
    rows, provenance = table(bench, "table2")
    ours = [row for row in rows if row["method"] in FEW and "region" in row]
    assert {(row["region"], row["parameter"]) for row in ours} == {
        (region, name) for region in ("brain", "lesion") for name in ("CBV", "CBF", "Tmax")
    }
    assert {row["subjects"] for row in ours} == {3, 2}
    assert all(row.get("pcc") is None for row in ours if row["method"] == "trivial")
    assert [t["target"] for t in provenance["targets"]] == [
        f"SSIM of {name}: ST-Net, brain" for name in ("CBV", "CBF", "Tmax")
    ]
    raw, _ = table(bench, "table2_uncalibrated")
    assert len(raw) == len(rows) - len(paper.map_rows())
    first, provenance = table(bench, "table1")
    assert {row["threshold"] for row in first if "threshold" in row} == {"6 s", "operating point"}
    assert next(row for row in first if row["method"] == "trivial")["hd95_missing"] == 2
    assert len(provenance["targets"]) == 3
    volumes, _ = table(bench, "volumes")
    assert len(volumes) == 3 and all(row["trivial_ml"] == 0 for row in volumes)
    agreement, _ = table(bench, "volume_agreement")
    assert {(row["method"], row["group"]) for row in agreement if "group" in row} == {
        (name, group) for name in FEW[:4] for group in ("all", "stroke")
    }
    for name in ("maps", "table2", "volumes"):
        assert (Path(bench.output_dir) / "figures" / f"{name}.png").stat().st_size > 5_000


def test_noise_sweep(bench: Bench) -> None:
    noise_sweep.noise_sweep(bench, snr=(20, 50), methods=FEW)
    rows, provenance = table(bench, "noise_sweep")
    ours = {(row["snr"], row["method"]): row for row in rows if "snr" in row}
    assert set(ours) == {(snr, name) for snr in (20, 50) for name in FEW[:4]}
    assert ours[20, "trivial"]["tmax_mae"] == ours[50, "trivial"]["tmax_mae"]
    assert ours[20, "csvd"]["cbv_mae"] > ours[50, "csvd"]["cbv_mae"]
    assert len(provenance["targets"]) == 2 + 4 + 2 * 2 * 4


def test_timing_and_its_data(bench: Bench, subject: Subject) -> None:
    cut = timing.with_frames(subject, 150)
    assert cut.image.shape[1] == 51 and cut.aif.shape == (1, 50) and int(cut.mask.sum()) == 150
    assert not (cut.mask & ~subject.mask).any()
    curves = timing.many(cut, 7000)
    assert curves.shape == (7000, 50) and torch.equal(curves[0], curves[len(subject.truth[0])])
    timing.timing(bench, methods=FEW)
    rows, provenance = table(bench, "timing")
    assert all(row["wall_seconds"] > 0 for row in rows if "cpu_seconds" in row)
    assert len(provenance["targets"]) == 3


def test_automatic_curves(bench: Bench, subject: Subject) -> None:
    row, item = aif.compared(subject)
    assert item is not None and row["voxels"] == len(item["input_functions"]["aif"]["voxels"])
    true = subject.series["aif_true"][0].double().numpy()
    assert row["correlation"] == pytest.approx(np.corrcoef(item["aif"].double().numpy(), true)[0, 1])
    assert row["area_error_percent"] == pytest.approx(100 * (float(item["vof"].sum()) / true.sum() - 1), rel=1e-4)
    seen = dict(aif.curves_of(subject, item))
    assert list(seen) == ["true", "marked", "automatic", "automatic, as measured"] and seen["marked"] is subject
    assert torch.equal(seen["automatic"].image, subject.image)
    nothing = replace(subject, image=torch.zeros_like(subject.image))
    failed, none = aif.compared(nothing)
    assert none is None and failed["failed"] and failed["note"]
    aif.aif(bench, methods=("csvd", "stnet"))
    rows, provenance = table(bench, "aif")
    assert [row["subject"] for row in rows[:2]] == ["median", "worst"] and len(rows) == 4
    assert rows[1]["correlation"] <= rows[0]["correlation"] <= 1
    assert len(provenance["targets"]) == 8
    maps, _ = table(bench, "aif_maps")
    assert {(row["method"], row["curves"]) for row in maps} == {
        (name, source)
        for name in ("csvd", "stnet")
        for source in ("true", "marked", "automatic", "automatic, as measured")
    }


def test_osipi_curves(bench: Bench, tmp_path: Path) -> None:
    """Curves that are the arterial one, at a share of it: CBV is that share."""
    times = torch.arange(60) * 1.5
    arterial = torch.where(times > 15, (times - 15) ** 3 * torch.exp(-(times - 15) / 1.5), 0.0)
    lines = [",".join(osipi.COLUMNS)]
    for share in (0.02, 0.04):
        numbers = (" ".join(f"{x:.6e}" for x in curve.tolist()) for curve in (share * arterial, arterial))
        lines.append(",".join([f"share {share}", *numbers, f"{100 * share}", "50", "1.5"]))
    (tmp_path / osipi.FILE).write_text("\n".join(lines))
    own = replace(bench, data_dir=tmp_path)
    osipi.osipi(own, methods=("csvd", "stnet"))
    rows, _ = table(own, "osipi")
    found = [row["cbv"] for row in rows if row["method"] == "csvd" and row["curve"] != "all"]
    assert found == pytest.approx([2.0, 4.0], rel=1e-3)
    assert {row["method"] for row in rows if row["curve"] == "all"} == {"csvd", "stnet"}
    with pytest.raises(QMRIError, match="no such file"):
        osipi.read_curves(tmp_path / "none.csv")
    assert bench.left_out("osipi") is not None and own.left_out("osipi") is None


def test_studies_train_every_variant(bench: Bench) -> None:
    small = {"channels": list(CHANNELS), "batch_size": 1, "patch_size": [12, 12, 1]}
    variants = {"default": small, "one": {**small, "outputs": ["Tmax"], "physics_weight": 0.0}}
    studies.studies(bench, variants=variants)
    rows, _ = table(bench, "studies")
    assert [row["variant"] for row in rows] == ["default", "one"]
    assert rows[0]["tmax_mae_over_default"] == 1 and rows[1].get("cbv_mae") is None and rows[1]["tmax_mae"] > 0
    studies.studies(bench, variants=variants)  # all there already
    assert [row["seconds_per_step"] for row in table(bench, "studies")[0]] == [row["seconds_per_step"] for row in rows]


def test_weights_that_are_not_there_are_left_out(bench: Bench, tmp_path: Path) -> None:
    assert load_network(tmp_path / "none.pt") is None
    without = Bench({"stnet": None}, tmp_path, STNetInferer())
    assert not without.networks and [row["method"] for row in without.absent()] == ["stnet"]
    assert not bench.absent()
    torch.save(STNet(channels=CHANNELS).state_dict(), tmp_path / "some.pt")
    network = load_network(tmp_path / "some.pt", channels=CHANNELS)
    assert network is not None and not network.training
    with pytest.raises(QMRIError, match="other"):
        Bench({"other": STNet(channels=CHANNELS)}, tmp_path, STNetInferer())


def test_numbers_of_the_paper() -> None:
    [row] = [
        row for row in paper.map_rows()
        if (row["method"], row["parameter"], row["region"]) == ("paper_stnet", "CBV", "lesion")
    ]  # fmt: skip
    assert "ssim" not in row and row["nrmse"] == 0.331
    assert len(paper.map_rows()) == 12 and {row["method"] for row in paper.segmentation_rows()} < set(LABELS)


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
    assert set(config["networks"]) == set(NETWORKS) == set(config["weights"])
    assert set(COMPARED) < set(LABELS)
    for name in ("channels", "padding", "dropout", "size", "voxel_size_mm"):
        assert config[name] == train[name], name
