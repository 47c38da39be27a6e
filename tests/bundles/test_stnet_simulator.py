"""The simulated examinations: reproducible, and consistent with the physics behind them."""

from typing import Any

import pytest
import torch
from stnet_perfusion.acquisition import TISSUE_RELAXIVITY, arterial_curve
from stnet_perfusion.haemodynamics import draw_haemodynamics, tissue_maps
from stnet_perfusion.simulator import PerfusionSimulator, concentration_image

from physics.perfusion import arterial_scale, blood_volume, perfusion_maps
from shared_transforms.anatomy import split_generator


@pytest.fixture(scope="module")
def simulator() -> PerfusionSimulator:
    return PerfusionSimulator(size=(48, 56, 4), voxel_size=(4.0, 4.0, 8.0), lesion_share=1.0)


@pytest.fixture(scope="module")
def series(simulator: PerfusionSimulator) -> dict[str, Any]:
    """One examination with hardly any noise."""
    return simulator.series(simulator.draw(split_generator(1, 0, 0, 0, "test"), 1, "test").with_snr(1e5))


def test_same_seed_same_sample_other_split_another(simulator: PerfusionSimulator) -> None:
    first, second, other = (
        simulator.simulate(simulator.draw(split_generator(0, 0, 0, 0, split), 1, split))
        for split in ("train", "train", "val")
    )
    assert torch.equal(first["image"], second["image"])
    assert all(torch.equal(values, second["label"][name]) for name, values in first["label"].items())
    assert not torch.equal(first["label"]["mask"], other["label"]["mask"])


def test_samples_of_a_draw_do_not_depend_on_each_other(simulator: PerfusionSimulator) -> None:
    drawn = simulator.draw(split_generator(0, 0, 3, 0, "train"), 2, "train")
    both = simulator.simulate(drawn)
    alone = simulator.simulate(drawn.select(1))
    torch.testing.assert_close(both["image"][1:], alone["image"])
    assert both["image"].shape == (2, 101, 48, 56, 4)
    assert both["label"]["parameters"].shape == (2, 3, 48, 56, 4)


def test_central_volume_theorem_holds_in_every_voxel(series: dict[str, Any]) -> None:
    mask = series["mask"]
    torch.testing.assert_close(series["cbv"][mask], (series["cbf"] * series["mtt"] / 60)[mask])
    assert bool((series["tissue"] <= mask).all()) and bool((series["lesion"] <= series["tissue"]).all())
    assert torch.equal(series["lesion"], series["tissue"] & (series["tmax"] > 6.0))


def test_classical_maps_of_the_clean_signal_are_the_truth(series: dict[str, Any]) -> None:
    """Conversion, areas and deconvolution, none of them of the simulator, find what it put in."""
    image = concentration_image(series)
    curves = image[0, 1:].movedim(0, -1)[series["tissue"][0]]
    aif, vof = series["aif_true"][0], series["vof_true"][0]
    dt = series["repetition_time"]
    maps = perfusion_maps(curves, aif, vof, dt, method="csvd")
    truth = {name: series[name][series["tissue"]] for name in ("cbv", "cbf", "tmax")}
    healthy = truth["tmax"] < 5.0
    assert float((maps["cbv"] / truth["cbv"])[healthy].median()) == pytest.approx(1.0, abs=0.06)
    # cSVD loses a part of the flow that its threshold and the transit time decide: .6 to .9.
    assert 0.55 < float((maps["cbf"] / truth["cbf"])[healthy].median()) < 1.0
    assert float((maps["tmax"] - truth["tmax"])[healthy].abs().median()) < 0.5


def test_signal_has_its_transient_its_trough_and_its_noise(simulator: PerfusionSimulator) -> None:
    drawn = simulator.draw(split_generator(2, 0, 0, 0, "test"), 1, "test").with_snr(40.0)
    series = simulator.series(drawn)
    signal = series["signal"][0][series["tissue"][0]]
    before = signal[:, 1 : 1 + series["baseline_frames"]]
    mean = signal.mean(0) / before.mean()
    assert float(mean[0]) == pytest.approx(float(drawn.acquisition.transient[0]), rel=0.01)
    assert 0.3 < float(mean.min()) < 0.85
    snr = before.mean(1) / before.std(1)
    assert float(snr.median()) == pytest.approx(40.0, rel=0.15)


def test_the_marked_artery_is_smaller_and_flatter_than_the_true_one(series: dict[str, Any]) -> None:
    """Tissue in its voxels adds before the logarithm: what is left of the signal at the peak is the tissue's."""
    measured, true = series["aif"][0], series["aif_true"][0]
    assert float(torch.corrcoef(torch.stack([measured, true]))[0, 1]) > 0.9
    assert 0.4 < float(arterial_scale(measured, true, series["repetition_time"])) < 1.05
    assert float(measured.max() / true.max()) < float(measured.sum() / true.sum()) + 0.01


def test_more_noise_changes_the_image_not_the_truth(simulator: PerfusionSimulator) -> None:
    drawn = simulator.draw(split_generator(0, 0, 5, 0, "val"), 1, "val")
    quiet, loud = simulator.series(drawn.with_snr(100.0)), simulator.series(drawn.with_snr(20.0))
    for name in ("cbv", "cbf", "tmax", "tissue", "aif_true"):
        assert torch.equal(quiet[name], loud[name])
    assert loud["sigma"] == pytest.approx(5 * quiet["sigma"])


def test_strokes_are_slower_and_later_than_the_tissue_around_them(series: dict[str, Any]) -> None:
    lesion, healthy = series["lesion"], series["tissue"] & (series["tmax"] < 4.5)
    assert int(lesion.sum()) > 20
    assert float(series["cbf"][lesion].median()) < 0.7 * float(series["cbf"][healthy].median())
    assert float(series["mtt"][lesion].median()) > 1.2 * float(series["mtt"][healthy].median())
    assert float(series["delay"][lesion].median()) > float(series["delay"][healthy].median()) + 1.0


def test_a_voxel_of_fluid_has_no_flow_and_fractions_are_weights() -> None:
    drawn = draw_haemodynamics(torch.Generator().manual_seed(0), 1)
    zero = torch.zeros(3)
    voxels = {
        "gm": torch.tensor([1.0, 0.5, 0.0]), "wm": zero, "oligaemia": zero, "penumbra": zero, "core": zero,
        "arrival": zero, "texture": torch.zeros(2, 3),
    }  # fmt: skip
    maps = tissue_maps(drawn, 0, voxels)
    assert float(maps["cbf"][0]) == pytest.approx(2 * float(maps["cbf"][1]), rel=1e-4)
    assert float(maps["cbv"][2]) < 1e-3
    torch.testing.assert_close(maps["weights"].sum(-1), torch.ones(3))


def test_the_area_of_the_label_is_the_volume_by_integration(simulator: PerfusionSimulator) -> None:
    drawn = simulator.draw(split_generator(4, 0, 0, 0, "train"), 1, "train").with_snr(1e5)
    sample, series = simulator.simulate(drawn), simulator.series(drawn)
    mask = series["tissue"][0]
    curves = concentration_image(series)[0, 1:].movedim(0, -1)[mask]
    integral = blood_volume(curves, series["vof"][0], series["repetition_time"])
    assert float((sample["label"]["area"][0, 0][mask] / integral).median()) == pytest.approx(1.0, abs=0.05)


def test_tissue_peaks_as_real_tissue_does() -> None:
    simulator = PerfusionSimulator(size=(32, 40, 4), voxel_size=(5.0, 5.0, 10.0), lesion_share=0.0)
    peaks = []
    for k in range(12):
        drawn = simulator.draw(split_generator(7, 0, k, 0, "test"), 1, "test").with_snr(1e4)
        series = simulator.series(drawn)
        curves = concentration_image(series)[0, 1:].movedim(0, -1)[series["tissue"][0]]
        peaks.append(float(curves.amax(-1).median()) * TISSUE_RELAXIVITY)
        assert arterial_curve(drawn.acquisition, 0).peak.ndim == 0
    assert 12.0 < sorted(peaks)[6] < 28.0  # 20 /s in patients


@pytest.mark.parametrize("bad", [{"snr": (0.0, 20.0)}, {"repetition_time": (2.0, 1.0)}, {"lesion_share": 1.2}])
def test_bad_arguments_are_named(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        PerfusionSimulator(**bad)
