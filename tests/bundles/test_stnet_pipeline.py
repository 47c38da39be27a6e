"""From signal to concentration: closed forms, a phantom with everything a head has, and data that must be refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from stnet_perfusion.brain_mask import brain_mask
from stnet_perfusion.pipeline import BrainMaskd, Concentrationd
from stnet_perfusion.series_quality import late_volume_missed
from stnet_perfusion.simulator import PerfusionSimulator, concentration_image

from shared_transforms.errors import QMRIError

SIZE, VOXEL = (46, 54, 6), (4.0, 4.0, 6.0)
DT, TE, RELAXIVITY = 1.5, 0.03, 50.0
FRAMES, ARRIVAL = 50, 18.0
AFFINE = torch.diag(torch.tensor([-4.0, 4.0, 6.0, 1.0], dtype=torch.float64))


def bolus(times: np.ndarray, arrival: float = ARRIVAL, beta: float = 2.0) -> np.ndarray:
    """A gamma variate of peak 1, 3 beta after its arrival."""
    x = np.clip((times - arrival) / beta, 0, None)
    return (x / 3) ** 3 * np.exp(3 - x)


def ellipsoid(*radii: float, centre: tuple[float, float, float] = (0, 0, 0)) -> np.ndarray:
    """[X, Y, Z] of the points within an ellipsoid [mm] about the middle of the volume."""
    axes = np.meshgrid(*((np.arange(n) - (n - 1) / 2) * d for n, d in zip(SIZE, VOXEL, strict=True)), indexing="ij")
    return sum(((a - c) / r) ** 2 for a, c, r in zip(axes, centre, radii, strict=True)) < 1


BRAIN = ellipsoid(66, 80, 90)
TIMES = DT * np.arange(FRAMES)


def true_concentration(frames: int = FRAMES, arrival: float = ARRIVAL) -> np.ndarray:
    """[T, X, Y, Z] [mM]: peaks from .2 to .5, arrivals that differ by up to 3 s."""
    axis = np.linspace(0, 1, SIZE[0])
    curves = np.stack([(0.2 + 0.3 * a) * bolus(DT * np.arange(frames), arrival + 3 * a) for a in axis], -1)
    return curves[:, :, None, None] * BRAIN


def signal_of(concentration: np.ndarray, snr: float = np.inf, transient: float = 1.25) -> torch.Tensor:
    """[T, X, Y, Z]: signal of 400 in the brain, less elsewhere; Rician noise."""
    axis = np.linspace(0.8, 1.2, SIZE[1])[None, :, None]
    s0 = 400.0 * axis * np.where(BRAIN, 1.0, 0.0)
    signal = s0 * np.exp(-TE * RELAXIVITY * concentration)
    signal[0] *= transient
    random = np.random.default_rng(1)
    real, imaginary = (400.0 / snr * random.standard_normal(signal.shape) for _ in range(2))
    return torch.from_numpy(np.hypot(signal + real, imaginary).astype(np.float32))


def item_of(signal: torch.Tensor, mask: np.ndarray | None = BRAIN, dt: float = DT) -> dict[str, Any]:
    return {
        "image": MetaTensor(signal, affine=AFFINE),
        "mask": None if mask is None else torch.from_numpy(mask)[None],
        "acquisition": {
            "repetition_time": torch.tensor(dt, dtype=torch.float64),
            "echo_time": torch.tensor(TE, dtype=torch.float64),
            "voxel_size": torch.tensor(VOXEL, dtype=torch.float64),
        },
        "sources": ["perf.nii.gz"],
    }


def test_concentrations_are_those_that_made_the_signal() -> None:
    truth = true_concentration()
    signal = signal_of(truth)
    kept = signal.clone()
    item = Concentrationd()(item_of(signal))
    image = item["image"]
    assert isinstance(image, MetaTensor) and torch.equal(image.affine, AFFINE) and image.shape == (FRAMES, *SIZE)
    np.testing.assert_allclose(image[1:].numpy(), truth[1:], atol=2e-5)
    baseline = np.broadcast_to(np.linspace(0.8, 1.2, SIZE[1])[None, :, None], SIZE)[BRAIN]
    ratio = image[0].numpy()[BRAIN] / baseline
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-5)
    assert np.median(image[0].numpy()[BRAIN]) == pytest.approx(1, rel=0.01)
    assert not image[1:, ~torch.from_numpy(BRAIN)].any()
    assert torch.equal(signal, kept)  # what was read is still there
    assert item["frames"].dummy == 1 and item["quality"]["dummy_frames"] == 1
    assert item["mask"].equal(torch.from_numpy(BRAIN)[None]) and item["details"]["Dummy frames"] == "1 (found)"


def test_unit_of_the_signal_drops_out_and_relaxivity_divides() -> None:
    signal = signal_of(true_concentration(), snr=50)
    one = Concentrationd()(item_of(signal))["image"]
    torch.testing.assert_close(Concentrationd()(item_of(0.01 * signal))["image"], one, rtol=1e-3, atol=1e-5)
    half = Concentrationd(tissue_relaxivity=100.0)(item_of(signal))["image"]
    torch.testing.assert_close(2.0 * half[1:], one[1:])


def test_concentrations_are_those_of_the_training() -> None:
    simulator = PerfusionSimulator(size=(48, 56, 4), voxel_size=(4.0, 4.0, 6.0))
    series = simulator.series(simulator.draw(torch.Generator().manual_seed(3), 1, "val"))
    item = item_of(series["signal"][0].movedim(-1, 0), series["mask"][0].numpy(), series["repetition_time"])
    item["acquisition"]["echo_time"] = torch.tensor(series["echo_time"])
    made = Concentrationd(dummy_frames=1, baseline_frames=[1, series["baseline_frames"]])(item)
    expected, mask = concentration_image(series)[0], series["mask"][0]
    torch.testing.assert_close(made["image"][:, mask], expected[:, mask], rtol=1e-4, atol=1e-5)
    found = Concentrationd()(item)["frames"]
    assert found.dummy == 1 and abs(found.baseline_end - 1 - series["baseline_frames"]) <= 4


@pytest.mark.parametrize("snr", [20, 60])
def test_figures_of_quality(snr: float) -> None:
    item = Concentrationd()(item_of(signal_of(true_concentration(), snr)))
    quality = item["quality"]
    assert quality["snr"] == item["snr"] == pytest.approx(snr, rel=0.06)
    mean = np.exp(-TE * RELAXIVITY * true_concentration()[1:, BRAIN]).mean(1)
    assert quality["trough"] == pytest.approx(mean.min(), abs=0.01)
    assert quality["tail"] == pytest.approx(np.median(mean[-3:]), abs=0.01)
    assert abs(quality["arrival_s"] - ARRIVAL) <= 3 * DT
    assert quality["seconds_after_arrival"] == pytest.approx(FRAMES * DT - quality["arrival_s"])
    first, last = quality["baseline_first_frame"], quality["baseline_last_frame"]
    assert first == 1 and last * DT < ARRIVAL and quality["baseline_frames"] == last - first + 1 >= 6
    assert quality["bolus_share"] > 0.97 and quality["truncation_share"] < 0.005 and item.get("notes") == []


def test_what_a_short_series_misses() -> None:
    # CBV of 4 ml/100 g measured in 39, 45, 60 and 75 s of data, the artery arriving at 15 s.
    for seconds, measured in ((39, 2.38), (45, 3.01), (60, 3.72), (75, 3.92)):
        assert late_volume_missed(seconds - 15) == pytest.approx(1 - measured / 4, abs=0.02)
    assert late_volume_missed(0) == 1 and late_volume_missed(115) == pytest.approx(0, abs=1e-3)
    notes = {}
    for frames in (22, 28, 50):
        item = Concentrationd()(item_of(signal_of(true_concentration(frames), 60)))
        notes[frames] = " ".join(item["notes"])
    assert "has not passed" in notes[22] and "is not seen" in notes[28] and "not passed" not in notes[28]
    assert notes[50] == ""


def test_what_is_noted() -> None:
    def notes(*given: Any, **options: Any) -> str:
        return " ".join(Concentrationd(**options)(item_of(*given))["notes"])

    assert "SNR is 1" in notes(signal_of(true_concentration(), 12))
    assert "frames of baseline only" in notes(signal_of(true_concentration(arrival=4.5), 60))
    assert "the bolus is weak" in notes(signal_of(0.2 * true_concentration(), 200))
    assert "in arteries" in notes(signal_of(4.0 * true_concentration(), 60))
    wide = np.ones(SIZE, dtype=bool)
    assert "of the mask only" in notes(signal_of(np.where(ellipsoid(40, 50, 90), true_concentration(), 0), 60), BRAIN)
    air = " ".join(Concentrationd()(item_of(signal_of(true_concentration(), 60), wide))["notes"])
    assert "of the mask only" in air


def test_frames_that_are_given() -> None:
    signal = signal_of(true_concentration(), 60)
    signal[5:7] *= 1.1  # a jerk in the baseline
    item = Concentrationd(dummy_frames=2, baseline_frames=[7, 10])(item_of(signal))
    assert item["image"].shape[0] == 1 + FRAMES - 2
    quality = item["quality"]
    assert (quality["dummy_frames"], quality["baseline_first_frame"], quality["baseline_last_frame"]) == (2, 7, 10)
    steady = item["image"][1:][:, torch.from_numpy(BRAIN)].mean(1)
    assert steady[7 - 2 : 11 - 2].abs().max() < 0.005 and steady[5 - 2] < -0.05  # 1.1 is -.064 mM
    assert Concentrationd(dummy_frames=0)(item_of(signal))["image"].shape[0] == 1 + FRAMES
    # Without a number of dummy frames they are those found, none of the baseline.
    assert Concentrationd(baseline_frames=[7, 10])(item_of(signal))["quality"]["dummy_frames"] <= 7
    late = Concentrationd(baseline_frames=[7, 16])(item_of(signal))
    assert "too low" in " ".join(late["notes"])


def test_leakage_is_taken_away() -> None:
    truth = true_concentration()
    reference = truth[:, BRAIN].mean(1)
    integral = np.concatenate([[0], np.cumsum((reference[1:] + reference[:-1]) / 2) * DT])
    part = ellipsoid(20, 20, 30, centre=(30, 0, 0)) & BRAIN
    leaking = truth - np.where(part, 0.03 * integral[:, None, None, None], 0.0)  # T1 shortening: K2 > 0
    signal = signal_of(leaking)
    left = {}
    for corrected in (False, True):
        item = Concentrationd(leakage_correction=corrected)(item_of(signal))
        left[corrected] = np.abs(item["image"][1:].numpy() - truth[1:])[:, part].mean()
    assert left[True] < 0.2 * left[False]
    assert abs(item["quality"]["leakage_k2_median"]) < 0.01 and "corrected" in item["details"]["Leakage"]


def head(snr: float = 40.0) -> tuple[torch.Tensor, np.ndarray]:
    """Signal of a head, and the brain in it: bone, scalp, eyes, muscle, ventricles, tissue without flow."""
    ventricles, infarct = ellipsoid(10, 25, 20), ellipsoid(14, 22, 20, centre=(-60, 10, 0)) & BRAIN
    eyes = sum(ellipsoid(12, 12, 12, centre=(x, 84, -6)) for x in (-28, 28)) > 0
    muscle = ellipsoid(16, 30, 12, centre=(74, 20, -12)) & ~BRAIN
    scalp = ellipsoid(80, 96, 100) & ~ellipsoid(73, 88, 96)
    truth = np.where(ventricles | infarct, 0.0, true_concentration())
    late = ellipsoid(25, 35, 20, centre=(-45, 10, 0)) & BRAIN & ~infarct
    truth = np.where(late, 0.15 * bolus(TIMES, ARRIVAL + 8, 5.0)[:, None, None, None], truth)
    truth = np.where(scalp | muscle, 0.04 * bolus(TIMES, ARRIVAL + 3, 3.0)[:, None, None, None], truth)
    s0 = 400.0 * BRAIN + 300.0 * (ventricles & BRAIN)
    s0 = np.where(scalp & ~eyes, 250.0, s0)
    s0 = np.where(muscle, 220.0, s0)
    s0 = np.where(eyes & ~BRAIN, 700.0, s0)
    random = np.random.default_rng(2)
    clean = s0 * np.exp(-TE * RELAXIVITY * truth)
    clean[0] *= 1.25
    real, imaginary = (400.0 / snr * random.standard_normal(clean.shape) for _ in range(2))
    return torch.from_numpy(np.hypot(clean + real, imaginary).astype(np.float32)), infarct | late


@pytest.mark.parametrize("snr", [20.0, 80.0])
def test_mask_of_the_brain(snr: float) -> None:
    signal, ill = head(snr)
    item = BrainMaskd()(item_of(signal, None))
    mask = item["mask"][0].numpy()
    assert item["mask"].dtype == torch.bool and 2 * (mask & BRAIN).sum() / (mask.sum() + BRAIN.sum()) > 0.96
    assert (mask & BRAIN).sum() > 0.99 * BRAIN.sum() and mask[ill].mean() > 0.95
    assert mask[ellipsoid(10, 25, 20)].all()
    assert item["quality"]["mask_automatic"] and "no mask was given" in item["notes"][0]
    assert Concentrationd()(item)["snr"] == pytest.approx(snr, rel=0.15)


def test_mask_follows_voxel_axes_and_scale() -> None:
    signal, _ = head()
    affine = AFFINE.numpy()
    mask = brain_mask(signal, DT, affine)
    turned = brain_mask(signal.permute(0, 3, 2, 1).contiguous(), DT, affine[:, [2, 1, 0, 3]])
    assert (turned.permute(2, 1, 0) != mask).sum() < 0.01 * mask.sum()
    assert (brain_mask(5.0 * signal, DT, affine) != mask).sum() < 0.01 * mask.sum()


def test_a_mask_that_is_given_is_kept() -> None:
    item = BrainMaskd()(item_of(head()[0]))
    assert item["mask"].equal(torch.from_numpy(BRAIN)[None]) and item["quality"] == {"mask_automatic": False}
    assert item["details"] == {"Mask of the brain": "given"} and "notes" not in item


def test_single_faults_are_mended() -> None:
    signal = signal_of(true_concentration(), 60)
    inside = np.argwhere(BRAIN)
    x, y, z = inside[:20].T
    signal[20, x[:10], y[:10], z[:10]] = -3.0  # one frame of ten voxels
    signal[:, x[10:], y[10:], z[10:]] = 0.0  # no signal at all in ten others
    item = Concentrationd()(item_of(signal))
    assert item["image"].isfinite().all() and int(item["mask"].sum()) == BRAIN.sum() - 10
    assert not item["mask"][0, x[10:], y[10:], z[10:]].any()
    assert [note.split()[0] for note in item["notes"]] == ["10", "10"] and "lowest -3" in item["notes"][1]
    ceiling = -np.log(0.02) / TE / RELAXIVITY
    np.testing.assert_allclose(item["image"][20, x[:10], y[:10], z[:10]].numpy(), ceiling, rtol=1e-5)


def flat() -> torch.Tensor:
    return signal_of(0 * true_concentration(), 60)


def shifted() -> torch.Tensor:
    signal = signal_of(true_concentration(), 60)
    return signal - signal.mean(0)


def spotted(value: float) -> torch.Tensor:
    signal = signal_of(true_concentration(), 60)
    signal[25, 20:26] = value
    return signal


def leaving() -> torch.Tensor:
    """The bolus is under way when the series begins."""
    return signal_of(true_concentration(60)[14:], 60, transient=1.0)


def beside() -> np.ndarray:
    return ellipsoid(90, 105, 100) & ~ellipsoid(75, 90, 100)


# What is wrong: (signal, mask), field, part of what was found.
BAD: dict[str, tuple[Any, str, str]] = {
    "no contrast agent": (lambda: (flat(), BRAIN), "signal", "no bolus"),
    "no contrast agent, no mask": (lambda: (flat(), None), "signal", "no bolus"),
    "a bright bolus": (lambda: (signal_of(-true_concentration(), 60), BRAIN), "signal", "no bolus"),
    "one value everywhere": (lambda: (torch.full((FRAMES, *SIZE), 7.0), None), "signal", "no bolus"),
    "mask beside the brain": (lambda: (signal_of(true_concentration(), 60), beside()), "mask", "outside of it"),
    "mask where nothing is": (lambda: (signal_of(true_concentration()), beside()), "mask", "have no signal"),
    "empty mask": (lambda: (signal_of(true_concentration()), ~BRAIN & BRAIN), "mask", "0 voxels"),
    "mean taken away": (lambda: (shifted(), BRAIN), "voxel values", "negative or zero"),
    "mean taken away, no mask": (lambda: (shifted(), None), "signal", "no bolus"),
    "negative in a part": (lambda: (spotted(-5.0), BRAIN), "voxel values", "the lowest -5"),
    "zero in a part": (lambda: (spotted(0.0), BRAIN), "voxel values", "the lowest 0"),
    "no baseline": (lambda: (leaving(), BRAIN), "baseline", "arrives in frame"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name: str) -> None:
    make, field, found = BAD[name]
    with pytest.raises(QMRIError) as error:
        Concentrationd()(BrainMaskd()(item_of(*make())))
    assert error.value.field == field and found in error.value.found
    assert error.value.file == "perf.nii.gz" and error.value.expected and error.value.remedy


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"dummy_frames": -1}, "dummy_frames"),
        ({"dummy_frames": 1.5}, "dummy_frames"),
        ({"dummy_frames": 20}, "dummy_frames"),
        ({"baseline_frames": [3]}, "baseline_frames"),
        ({"baseline_frames": [8, 3]}, "baseline_frames"),
        ({"baseline_frames": [3, 50]}, "baseline_frames"),
        ({"baseline_frames": [20, 30]}, "baseline_frames"),
        ({"dummy_frames": 4, "baseline_frames": [2, 8]}, "baseline_frames"),
        ({"tissue_relaxivity": 0.0}, "tissue_relaxivity"),
    ],
)
def test_bad_options(options: dict[str, Any], field: str) -> None:
    with pytest.raises(QMRIError) as error:
        Concentrationd(**options)(item_of(signal_of(true_concentration(), 60)))
    assert error.value.field == field
