"""Metrics against numpy, scipy and closed forms."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch
from ignite.engine import Engine
from sklearn.metrics import f1_score

from shared_transforms.metrics import (
    MAE,
    RMSE,
    NormalisedMAE,
    RelativeBias,
    RelativeRMSE,
    StandardizedRMSE,
    ThresholdDice,
    bootstrap,
    coefficient_of_variation,
    normalised_mae,
    relative_bias,
    rmse,
    robust_sd,
)

from .two_processes import in_two_processes


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_relative_bias_and_variation_of_known_numbers() -> None:
    estimates = torch.tensor([[1.1, 2.0], [0.9, 2.6], [1.3, 2.0]])
    assert torch.allclose(relative_bias(estimates, torch.tensor([1.0, 2.0])), torch.tensor([10.0, 10.0]).double())
    expected = 100 * scipy.stats.variation(estimates.double().numpy(), axis=0, ddof=1)
    assert np.allclose(coefficient_of_variation(estimates), expected)


def test_repeated_noise_gives_its_moments() -> None:
    estimates = 1.02 * (2.0 + 0.1 * draw(20_000, 3))
    assert torch.allclose(relative_bias(estimates, torch.full((3,), 2.0)), torch.full((3,), 2.0).double(), atol=0.2)
    assert torch.allclose(coefficient_of_variation(estimates), torch.full((3,), 5.0).double(), atol=0.1)


def test_wrong_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="estimates"):
        relative_bias(draw(4, 2), draw(3))
    with pytest.raises(ValueError, match="1 repetition"):
        coefficient_of_variation(draw(1, 3))
    with pytest.raises(ValueError, match="no voxel"):
        rmse(draw(2, 3), draw(3), torch.zeros(3))


@pytest.mark.parametrize("shape, dim", [((1001,), None), ((1000,), 0), ((7, 50), 1), ((4, 9, 5), 1)])
def test_robust_sd_equals_scipy(shape: tuple[int, ...], dim: int | None) -> None:
    values = draw(*shape)
    expected = 1.4826 * scipy.stats.median_abs_deviation(values.numpy(), axis=dim)
    assert np.allclose(robust_sd(values, dim), expected)


def test_robust_sd_of_a_contaminated_normal() -> None:
    values = 3 * draw(100_000)
    values[:5_000] = 1e6
    assert robust_sd(values).item() == pytest.approx(3.0, rel=0.08)
    assert robust_sd(torch.tensor([1.0, math.nan, 2.0])).isnan()


@pytest.mark.parametrize("relative", [False, True])
def test_rmse_equals_numpy(relative: bool) -> None:
    truth = 1 + draw(6, 4, 5).square()
    estimates = truth + 0.1 * draw(6, 4, 5, seed=1)
    mask = draw(6, 4, 5, seed=2) > 0
    deviation = ((estimates - truth) / (truth if relative else 1)).numpy()[mask.numpy()]
    found = rmse(estimates, truth, mask, relative=relative, resamples=200)
    assert found.value == pytest.approx((100 if relative else 1) * np.sqrt(np.mean(deviation**2)))
    assert found.low < found.value < found.high and found.n == 6
    assert found == rmse(estimates, truth, mask, relative=relative, resamples=200)
    assert found != rmse(estimates, truth, mask, relative=relative, resamples=200, seed=1)


def test_rmse_ignores_nan_outside_the_mask_and_shows_it_inside() -> None:
    estimates, truth = draw(3, 4), torch.zeros(4)
    estimates[:, 3] = math.nan
    assert math.isfinite(rmse(estimates, truth, torch.tensor([1, 1, 1, 0])).value)
    assert math.isnan(rmse(estimates, truth).value)


def test_bootstrap_interval_of_a_mean_is_students() -> None:
    values = draw(400).numpy()
    found = bootstrap(len(values), lambda rows: float(values[rows].mean()), resamples=4000)
    low, high = scipy.stats.t.interval(0.95, len(values) - 1, values.mean(), scipy.stats.sem(values))
    assert (found.low, found.high) == (pytest.approx(low, abs=0.01), pytest.approx(high, abs=0.01))
    alone = bootstrap(1, lambda rows: 2.0)
    assert (alone.low, alone.value, alone.high) == (-math.inf, 2.0, math.inf)


def test_interval_of_rmse_covers() -> None:
    """Of 200 experiments with 40 units each, the 90 % interval holds the true value in about 180."""
    hits = 0
    for seed in range(200):
        found = rmse(0.5 * draw(40, 10, seed=seed), torch.zeros(10), level=0.9, resamples=300, seed=seed)
        hits += found.low <= 0.5 <= found.high
    assert 160 <= hits <= 195


def batches() -> list[dict]:
    """Two batches of unequal size, two parameters with standard errors, half the voxels masked."""
    found = []
    for number, size in enumerate((3, 2)):
        truth = 1 + draw(size, 2, 4, 5, seed=number).square()
        errors = 0.1 + draw(size, 2, 4, 5, seed=number + 10).square()
        prediction = torch.cat([truth + errors * draw(size, 2, 4, 5, seed=number + 20), errors], dim=1)
        mask = draw(size, 1, 4, 5, seed=number + 30) > 0
        found.append({"pred": prediction.float(), "label": {"parameters": truth.float(), "mask": mask}})
    return found


METRICS = {
    MAE: lambda estimate, truth, error: np.abs(estimate - truth).mean(),
    RMSE: lambda estimate, truth, error: np.sqrt(np.mean((estimate - truth) ** 2)),
    RelativeRMSE: lambda estimate, truth, error: 100 * np.sqrt(np.mean((estimate / truth - 1) ** 2)),
    RelativeBias: lambda estimate, truth, error: 100 * np.mean((estimate - truth) / truth),
    StandardizedRMSE: lambda estimate, truth, error: np.sqrt(np.mean(((estimate - truth) / error) ** 2)),
}


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("index", [0, 1])
def test_engine_metrics_equal_numpy(metric: type, index: int) -> None:
    engine = Engine(lambda engine, batch: batch)
    metric(index).attach(engine, "error")
    parts = []
    for batch in batches():
        inside = batch["label"]["mask"][:, 0].numpy()
        estimate, error = batch["pred"][:, index].double().numpy(), batch["pred"][:, 2 + index].double().numpy()
        parts.append([x[inside] for x in (estimate, batch["label"]["parameters"][:, index].double().numpy(), error)])
    estimate, truth, error = (np.concatenate(part) for part in zip(*parts, strict=True))
    for _ in range(2):  # the second run starts anew
        assert engine.run(batches()).metrics["error"] == pytest.approx(METRICS[metric](estimate, truth, error))


def test_standard_errors_of_a_known_scale() -> None:
    truth = torch.ones(1, 1, 200, 200)
    prediction = torch.cat([truth + 0.3 * draw(1, 1, 200, 200).float(), torch.full_like(truth, 0.1)], 1)
    engine = Engine(lambda engine, batch: batch)
    StandardizedRMSE(0).attach(engine, "ratio")
    ratio = engine.run([{"pred": prediction, "label": {"parameters": truth}}]).metrics["ratio"]
    assert ratio == pytest.approx(3.0, rel=0.02)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_engine_metrics_show_bad_estimates(value: float) -> None:
    batch = batches()[0]
    batch["pred"][0, 0] = value
    engine = Engine(lambda engine, batch: batch)
    RMSE(0).attach(engine, "error")
    assert not math.isfinite(engine.run([batch]).metrics["error"])


@pytest.mark.parametrize("masked", [True, False])
def test_dice_of_a_threshold_is_scikit_learns_over_all_voxels(masked: bool) -> None:
    parts, threshold = batches(), 1.2
    if not masked:
        for batch in parts:
            del batch["label"]["mask"]
    engine = Engine(lambda engine, batch: batch)
    ThresholdDice(1, threshold).attach(engine, "dice")
    inside = [batch["label"]["mask"][:, 0] if masked else slice(None) for batch in parts]
    found, true = (
        np.concatenate([(x[where] > threshold).flatten() for x, where in zip(maps, inside, strict=True)])
        for maps in ([b["pred"][:, 1] for b in parts], [b["label"]["parameters"][:, 1] for b in parts])
    )
    expected = f1_score(true, found)
    assert 0.2 < expected < 0.95
    assert engine.run(parts).metrics["dice"] == pytest.approx(expected, rel=1e-12)


def test_dice_of_maps_without_the_finding() -> None:
    engine = Engine(lambda engine, batch: batch)
    ThresholdDice().attach(engine, "dice")
    healthy, ill = torch.full((1, 3, 4, 4), 2.0), torch.full((1, 3, 4, 4), 7.0)
    none = {"pred": healthy, "label": {"parameters": healthy}}
    assert math.isnan(engine.run([none]).metrics["dice"])
    missed = {"pred": healthy, "label": {"parameters": ill}}
    assert engine.run([none, missed]).metrics["dice"] == 0
    assert engine.run([none, {"pred": ill, "label": {"parameters": ill}}]).metrics["dice"] == 1


def test_normalised_mae_has_closed_forms() -> None:
    truth = draw(4, 2, 6, 5)
    assert torch.equal(normalised_mae(torch.zeros_like(truth), truth), torch.ones(4).double())
    assert torch.equal(normalised_mae(truth, truth), torch.zeros(4).double())
    gains = torch.tensor([0.5, 0.9, 1.3, -1.0]).double()
    found = normalised_mae(gains[:, None, None, None] * truth, truth)
    assert torch.allclose(found, (1 - gains).abs())
    other = draw(4, 2, 6, 5, seed=1)
    axes = [
        np.linalg.norm((other[i] - truth[i]).flatten(), 1) / np.linalg.norm(truth[i].flatten(), 1) for i in range(4)
    ]
    assert np.allclose(normalised_mae(other.float(), truth.float()), axes, rtol=1e-6)
    assert torch.allclose(normalised_mae(7 * other, 7 * truth), normalised_mae(other, truth))  # no unit


def test_normalised_mae_refuses_what_it_cannot_say() -> None:
    truth = draw(3, 4)
    truth[1] = 0
    with pytest.raises(ValueError, match="image 1"):
        normalised_mae(truth, truth)
    with pytest.raises(ValueError, match="shape"):
        normalised_mae(truth[:, :1], truth)


def test_engine_metric_of_whole_images() -> None:
    """The mean over images whatever the batches; not that over voxels, nor that of a mask."""
    engine = Engine(lambda engine, batch: batch)
    NormalisedMAE().attach(engine, "nmae")
    parts = batches()
    ratios = [
        float((b["pred"][i, 0] - b["label"]["parameters"][i, 0]).abs().sum() / b["label"]["parameters"][i, 0].sum())
        for b in parts
        for i in range(len(b["pred"]))
    ]
    for _ in range(2):
        assert engine.run(parts).metrics["nmae"] == pytest.approx(np.mean(ratios), rel=1e-6)
    parts[0]["label"]["parameters"][1] = 0  # says nothing
    assert engine.run(parts).metrics["nmae"] == pytest.approx(np.mean([ratios[0], *ratios[2:]]), rel=1e-6)
    parts[0]["pred"][0, 0, 0, 0] = math.nan
    assert math.isnan(engine.run(parts).metrics["nmae"])
    for batch in parts:
        batch["label"]["parameters"].zero_()
    assert math.isnan(engine.run(parts).metrics["nmae"])


@pytest.mark.skipif(sys.platform == "win32", reason="needs fork")
def test_two_processes_agree_with_one(tmp_path: Path) -> None:
    found = in_two_processes(tmp_path, [[batch] for batch in batches()], "RelativeRMSE", 1)
    engine = Engine(lambda engine, batch: batch)
    RelativeRMSE(1).attach(engine, "error")
    alone = engine.run(batches()).metrics["error"]
    assert found == [pytest.approx(alone, rel=1e-12)] * 2
