"""Maps, mask, residual; loss; baselines."""

from __future__ import annotations

import math

import pytest
import torch
from rim_relaxometry.baselines import MaximumLikelihood
from rim_relaxometry.loss import StepwiseLoss
from rim_relaxometry.maps import MapsFromPredictiond, noise_deviation, signal_mask

from shared_transforms.inferers import SlicewiseInferer

from .conftest import simulated


def item_of(sigma: float, wrong: float = 1.0) -> dict[str, object]:
    """A square of tissue in air, 2 slices, and a prediction whose T1 is wrong by a factor."""
    generator = torch.Generator().manual_seed(0)
    times = torch.linspace(0.1, 3.0, 12)
    tissue = torch.zeros(24, 24, 2)
    tissue[6:18, 6:18] = 1.0
    t1 = torch.full_like(tissue, 0.9)
    signal = (tissue * (1.0 - 1.9 * torch.exp(-times[:, None, None, None] / t1))).abs()
    noise = torch.randn((2, *signal.shape), generator=generator) * sigma
    image = torch.hypot(signal + noise[0], noise[1])
    maps = [tissue, torch.full_like(tissue, 1.9), wrong * t1]
    pred = torch.stack([*maps, *(0.01 * torch.ones_like(m) for m in maps)])
    return {"image": image, "pred": pred, "acquisition": {"times": times}, "notes": ["read"], "tissue": tissue}


def test_maps_have_units_and_cover_the_tissue() -> None:
    item = MapsFromPredictiond(parameter="T1")(item_of(0.02))
    maps = item["maps"]
    assert list(maps)[0] == "T1map"
    assert {"T1map", "Bmap", "Amap", "T1stderr", "Bstderr", "Astderr", "residual", "chi2", "mask"} == set(maps)
    assert maps["T1map"].unit == maps["T1stderr"].unit == "s"
    assert maps["Bmap"].unit == "1"
    mask = maps["mask"].data
    tissue = item["tissue"] > 0
    assert float((mask == tissue).float().mean()) > 0.97
    assert float(maps["T1map"].data[~mask].abs().max()) == 0.0


def test_residual_and_chi2_tell_a_wrong_map() -> None:
    good = MapsFromPredictiond(parameter="T1")(item_of(0.02))
    bad = MapsFromPredictiond(parameter="T1")(item_of(0.02, wrong=1.5))
    assert good["residual"] < 0.04 < bad["residual"]
    inside = good["maps"]["mask"].data & (good["tissue"] > 0)
    # Three of twelve degrees of freedom were not used up by this prediction, which is the truth.
    assert float(good["maps"]["chi2"].data[inside].mean()) == pytest.approx(1.0, abs=0.15)


def test_batch_axis_is_dropped_and_notes_are_kept() -> None:
    item = item_of(0.02)
    item["pred"], item["image"] = item["pred"][None], item["image"][None]
    result = MapsFromPredictiond(parameter="T1")(item)
    assert result["maps"]["T1map"].data.shape == (24, 24, 2)
    assert result["image"].ndim == 4
    assert result["notes"][0] == "read"


def test_noise_alone_gives_an_empty_mask_and_says_so() -> None:
    item = item_of(0.5)
    item["image"] = torch.hypot(torch.randn(12, 24, 24, 2), torch.randn(12, 24, 24, 2))
    sigma = torch.tensor(1.0)
    assert float(signal_mask(item["image"], sigma).float().mean()) < 0.02


@pytest.mark.parametrize("images", [6, 31])
def test_noise_is_found_in_spite_of_voxels_the_model_does_not_explain(images: int) -> None:
    generator = torch.Generator().manual_seed(1)
    signal = torch.rand((images, 40, 40, 1), generator=generator) + 0.5
    image = signal + 0.03 * torch.randn(signal.shape, generator=generator)
    assert float(noise_deviation(image, signal, 0)) == pytest.approx(0.03, rel=0.03)
    # Scaling the series scales the noise.
    assert float(noise_deviation(1e4 * image, 1e4 * signal, 0)) == pytest.approx(300.0, rel=0.03)
    image[:, :4] *= 1.5  # a tenth of the voxels is off by more than ten standard deviations
    assert float(noise_deviation(image, signal, 0)) == pytest.approx(0.03, rel=0.1)


@pytest.mark.parametrize("b_mode", ["voxelwise", "shared", "smooth"])
def test_maximum_likelihood_has_the_call_of_the_network(b_mode: str) -> None:
    batch = simulated("T1", "clinical", 100.0)
    estimator = MaximumLikelihood("T1", times=(0.1, 0.2), b_mode=b_mode, noise="gaussian")
    pred = estimator(batch["image"], **batch["acquisition"])
    truth, mask = batch["label"]["parameters"], batch["label"]["mask"][:, 0]
    assert pred.shape == (2, 6, 48, 48)
    error = ((pred[:, 2] - truth[:, 2]) / truth[:, 2])[mask]
    if b_mode == "voxelwise":  # imprecise, but as imprecise as it says
        relative = pred[:, 5][mask] / truth[:, 2][mask]
        assert 0.45 < float((error / relative).abs().median()) < 0.9
    else:
        assert float(error.abs().median()) < 0.05
    assert list(estimator.parameters()) == []


def test_maximum_likelihood_refuses_what_it_does_not_know() -> None:
    with pytest.raises(ValueError, match="b_mode must be one of"):
        MaximumLikelihood("T1", times=(0.1,), b_mode="free")
    with pytest.raises(ValueError, match="volumes, but"):
        MaximumLikelihood("T1", times=(0.1, 0.2, 0.3))(torch.rand(1, 4, 8, 8))


def test_loss_of_the_truth_is_zero_and_errors_are_calibrated() -> None:
    torch.manual_seed(0)
    parameters = torch.rand(2, 3, 16, 16) + 0.5
    label = {
        "parameters": parameters,
        "mask": torch.ones(2, 1, 16, 16, dtype=torch.bool),
        "sigma": torch.tensor([0.01, 0.1]),
    }
    exact = torch.cat([parameters, torch.zeros_like(parameters)], 1)[:, None].repeat(1, 4, 1, 1, 1)
    plain = StepwiseLoss(("A", "B", "T1"), error_weight=0.0)
    assert float(plain(exact, label)) == pytest.approx(0.0, abs=1e-6)
    last_wrong, first_wrong = exact.clone(), exact.clone()
    last_wrong[:, -1, 2] *= 1.1
    first_wrong[:, 0, 2] *= 1.1
    assert float(plain(last_wrong, label)) == pytest.approx(4.0 * float(plain(first_wrong, label)), rel=1e-4)
    # The likelihood of the errors is least at the standard deviation of the errors.
    noisy = parameters * torch.exp(0.2 * torch.randn_like(parameters))
    noisy[:, 1] = parameters[:, 1] + 0.2 * torch.randn(2, 16, 16)
    honest = StepwiseLoss(("A", "B", "T1"), error_weight=1.0)

    def cost(deviation: float) -> float:
        pred = torch.cat([noisy, torch.full_like(noisy, math.log(deviation))], 1)[:, None]
        return float(honest(pred, label))

    assert cost(0.2) < min(cost(0.15), cost(0.27))


def test_slices_go_through_the_network_with_their_acquisition() -> None:
    seen = []

    def network(x: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        seen.append((x.shape[0], times))
        return x[:, :2] * 2.0

    volume = torch.rand(1, 3, 4, 5, 7)
    times = torch.tensor([1.0])
    result = SlicewiseInferer(slices_at_once=3, progress=False)(volume, network, times=times)
    assert torch.equal(result, 2.0 * volume[:, :2])
    assert [n for n, _ in seen] == [3, 3, 1]
    assert all(t is times for _, t in seen)
    with pytest.raises(ValueError, match="must be"):
        SlicewiseInferer()(volume[0], network, times=times)
    with pytest.raises(ValueError, match="at least 1"):
        SlicewiseInferer(slices_at_once=0)
