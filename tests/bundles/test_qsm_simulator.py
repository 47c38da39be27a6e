"""The simulator of susceptibility: its physics, its masks, its noise, its tissues, and one head seen in many ways."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import Any

import pytest
import torch
from qsmgan.anatomy import PATHOLOGIES
from qsmgan.simulator import SusceptibilitySimulator
from qsmgan.tissues import NAMES, STRUCTURES, TISSUES, draw_tissues

from physics.dipole import field_from_susceptibility
from shared_transforms.anatomy import Head, load_head, split_generator
from shared_transforms.simulation import PatchPoolDataset

SIZE, VOXEL = (36, 44, 36), (4.0, 4.0, 4.0)


@lru_cache(maxsize=1)
def _template(step: int) -> Head:
    """The template in voxels of some mm: what is sampled in such voxels is the same, only sooner."""
    return Head(torch.nn.functional.avg_pool3d(load_head().fractions[None], step)[0], float(step), "mni152, coarse")


@pytest.fixture(autouse=True)
def _coarse_head(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qsmgan.simulator.load_head", lambda: _template(2))


def _simulator(**options: Any) -> SusceptibilitySimulator:
    """Heads in voxels of 4 mm, without network channels that take an inversion."""
    usual = {"size": SIZE, "voxel_size": VOXEL, "phantom_share": 0.0, "channels": ("field", "magnitude")}
    return SusceptibilitySimulator(**(usual | options))


def _still(**options: Any) -> SusceptibilitySimulator:
    """No noise, no remainder, no texture: the anatomy alone."""
    return _simulator(**({"noise_ppm": (0, 0), "remainder": 0.0, "leak": 0.0, "texture": 0.0} | options))


def _volumes(simulator: SusceptibilitySimulator, seed: int = 0, n: int = 1) -> dict[str, torch.Tensor]:
    return simulator.volumes(simulator.draw(split_generator(seed), n))


def _mean(values: torch.Tensor, where: torch.Tensor) -> float:
    return float(values[where].mean())


@pytest.mark.parametrize("phantom_share", [0.0, 1.0])
def test_a_sample_can_be_drawn_again_alone(phantom_share: float) -> None:
    first, again = (_simulator(phantom_share=phantom_share) for _ in range(2))
    one, two = (s.simulate(s.draw(split_generator(4, 1, 2, split="val"), 1, "val")) for s in (first, again))
    assert torch.equal(one["image"], two["image"])
    for name, values in one["label"].items():
        assert torch.equal(values, two["label"][name]), name
    other = first.simulate(first.draw(split_generator(4, 1, 3, split="val"), 1, "val"))
    assert not torch.equal(one["image"], other["image"])


def test_splits_never_share_a_head() -> None:
    simulator = _simulator()
    drawn = [simulator.draw(split_generator(0), 1, split) for split in ("train", "val", "test")]
    for k, first in enumerate(drawn):
        for second in drawn[:k]:
            assert not torch.equal(first.volumes.displacement, second.volumes.displacement)


@pytest.mark.parametrize("phantom_share", [0.0, 1.0])
@pytest.mark.parametrize("b0", [(0.0, 0.0, 1.0), (0.0, 0.6, 0.8)])
def test_the_field_is_that_of_the_labelled_susceptibility(phantom_share: float, b0: tuple[float, float, float]) -> None:
    made = _volumes(_still(phantom_share=phantom_share, b0_direction=b0))
    chi, mask = made["parameters"], made["mask"]
    expected = field_from_susceptibility(chi, VOXEL, b0) * mask
    torch.testing.assert_close(made["field"], expected, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(made["measured"], expected, atol=1e-6, rtol=1e-4)
    assert float(chi[mask].double().mean()) == pytest.approx(0.0, abs=1e-7)
    assert float(expected.std()) > 1e-3


def test_everything_is_zero_outside_of_the_mask() -> None:
    simulator = _simulator(channels=("field", "start", "residual", "magnitude"), phantom_share=0.5, magnitude_share=1.0)
    made = simulator.simulate(simulator.draw(split_generator(1), 2))
    outside = ~made["label"]["mask"]
    assert bool(outside.any())
    assert made["image"].shape == (2, 4, *SIZE)
    assert not (made["image"] * outside).any()
    for name in ("parameters", "field", "measured", "magnitude", "sigma", "labels"):
        assert not (made["label"][name] * outside).any(), name
    assert bool(torch.isfinite(made["image"]).all())
    # Of a field with little noise the starting map is a fair estimate of the truth.
    start, chi = made["image"][:, 1], made["label"]["parameters"][:, 0]
    assert float(torch.corrcoef(torch.stack([start.flatten(), chi.flatten()]))[0, 1]) > 0.5


def test_noise_has_the_standard_deviation_asked_for() -> None:
    sigma = 0.004
    simulator = _simulator(noise_ppm=(sigma, sigma), remainder=0.0, leak=0.0)
    made = _volumes(simulator, 2)
    mask = made["mask"]
    scaled = ((made["measured"] - made["field"])[mask] / made["sigma"][mask]).double()
    assert float(scaled.mean()) == pytest.approx(0.0, abs=0.02)
    assert float(scaled.std()) == pytest.approx(1.0, rel=0.02)
    # sigma is that of the mean magnitude: it goes with the reciprocal of the signal.
    assert float((1.0 / made["sigma"][mask].double()).mean()) * sigma == pytest.approx(1.0, rel=0.02)


def test_noise_levels_are_log_uniform() -> None:
    drawn = _simulator(noise_ppm=(0.0007, 0.007)).draw(split_generator(3), 400)
    level = drawn.measurement.sigma
    assert float(level.min()) >= 0.0007 and float(level.max()) <= 0.007
    assert float((level < (0.0007 * 0.007) ** 0.5).float().mean()) == pytest.approx(0.5, abs=0.08)


def test_the_magnitude_is_withheld_in_its_share_and_tells_nothing_of_susceptibility() -> None:
    drawn = _simulator(magnitude_share=0.7).draw(split_generator(4), 600)
    assert float(drawn.measurement.magnitude_shown.float().mean()) == pytest.approx(0.7, abs=0.06)
    values = draw_tissues(split_generator(5), 3000).double()
    for k in range(len(NAMES)):
        if TISSUES[NAMES[k]].chi_sd:
            correlation = torch.corrcoef(values[:, k].T)[0, 1:]
            assert float(correlation.abs().max()) < 0.08
    grey, white = (values[:, NAMES.index(name)] for name in ("grey matter", "white matter"))
    signal = [tissue[:, 2] * torch.exp(-0.015 * tissue[:, 1]) for tissue in (grey, white)]
    assert 0.1 < float((signal[0] > signal[1]).float().mean()) < 0.9
    hidden = _volumes(_simulator(magnitude_share=0.0))
    assert not hidden["magnitude"].any()
    assert bool((hidden["sigma"][hidden["mask"]] > 0).all())
    shown = _volumes(_simulator(magnitude_share=1.0))
    assert _mean(shown["magnitude"], shown["mask"]) == pytest.approx(1.0, abs=0.02)


# What in vivo studies of healthy adults report relative to CSF [ppm], widely: Wharton and Bowtell 2010, Deistung et al.
# 2013, Liu et al. 2015, Marques et al. 2021.
LITERATURE = {
    "csf": (-0.02, 0.02),
    "grey matter": (-0.02, 0.06),
    "white matter": (-0.09, 0.0),
    "vein": (0.1, 0.46),
    "caudate": (0.02, 0.1),
    "putamen": (0.01, 0.12),
    "pallidum": (0.07, 0.22),
    "thalamus": (-0.03, 0.05),
    "red nucleus": (0.03, 0.16),
    "substantia nigra": (0.05, 0.19),
    "dentate": (0.04, 0.16),
}


def test_tissues_lie_in_the_ranges_of_the_literature() -> None:
    values = draw_tissues(split_generator(6), 2000)
    for name, (low, high) in LITERATURE.items():
        chi = values[:, NAMES.index(name), 0]
        assert low <= float(chi.min()) and float(chi.max()) <= high, name
        assert float(chi.std()) > 0.001, name
    assert set(LITERATURE) | {"calcification", "microbleed", "tumour"} == set(STRUCTURES)


def test_structures_have_their_values_sides_and_sizes() -> None:
    simulator = _still(size=(72, 88, 72), voxel_size=(2.0, 2.0, 2.0), head_scale=(0.95, 0.95))
    drawn = simulator.draw(split_generator(8), 1)
    made = simulator.volumes(drawn)
    chi, labels = made["parameters"], made["labels"]
    csf = float(drawn.tissues[0, 0, 0])
    offset = _mean(chi, labels == STRUCTURES.index("csf") + 1) - csf
    millilitres = {
        "caudate": (2.0, 12.0), "putamen": (3.0, 13.0), "pallidum": (1.0, 6.0), "thalamus": (5.0, 20.0),
        "red nucleus": (0.15, 1.2), "substantia nigra": (0.3, 2.0), "dentate": (0.5, 4.0),
    }  # fmt: skip
    for name, (low, high) in millilitres.items():
        where = labels == STRUCTURES.index(name) + 1
        volume = float(where.sum()) * 2.0**3 / 1000
        assert low < volume < high, (name, volume)
        expected = float(drawn.tissues[0, NAMES.index(name), 0]) + offset
        core = -torch.nn.functional.max_pool3d(-where.float(), 3, 1, 1) > 0
        if int(core.sum()) > 10:
            assert float(chi[core].median()) == pytest.approx(expected, abs=0.01), name
        # As much on one side as on the other.
        x = where.nonzero()[:, 2].float()
        assert 0.25 < float((x > 35.5).float().mean()) < 0.75, name


def test_pathology_is_off_unless_asked_for() -> None:
    healthy = _still().draw(split_generator(9), 2)
    assert len(healthy.anatomy.lesions) == 0
    simulator = _still(pathology=PATHOLOGIES, size=(72, 88, 72), voxel_size=(2.0, 2.0, 2.0))
    drawn = simulator.draw(split_generator(9), 1)
    made = simulator.volumes(drawn)
    found = set(made["labels"].unique().tolist())
    for name in ("calcification", "microbleed", "tumour"):
        assert STRUCTURES.index(name) + 1 in found, name
    assert float(made["parameters"].max()) > 0.25 and float(made["parameters"].min()) < -0.15
    # The same head without them differs at the lesions alone.
    lesions = drawn.anatomy.lesions
    none = replace(lesions, centres=lesions.centres[:, :0], shapes=lesions.shapes[:, :0])
    plain = simulator.volumes(
        replace(drawn, anatomy=replace(drawn.anatomy, lesions=none, lesion_tissue=drawn.anatomy.lesion_tissue[:0]))
    )
    changed = made["labels"] != plain["labels"]
    assert bool((made["labels"][changed] > STRUCTURES.index("dentate") + 1).all())
    with pytest.raises(ValueError, match="pathology must be some of"):
        _simulator(pathology=("stroke",)).draw(split_generator(0), 1)


def test_a_tilted_head_is_a_tilted_field() -> None:
    """The grid turned by a right angle about x, and B0 with it: the same head, the same field, turned."""
    turn = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, -1.0], [0.0, 1.0, 0.0]])
    upright = _still(size=(36, 44, 44))
    drawn = upright.draw(split_generator(10), 1)
    drawn = replace(drawn, roughness=torch.zeros(1))  # it goes with the grid
    plain = upright.volumes(drawn)
    turned = upright.volumes(
        replace(drawn, volumes=replace(drawn.volumes, grid_rotation=turn[None]), b0_direction=(0.0, 1.0, 0.0))
    )
    for name in ("parameters", "field"):
        expected = torch.rot90(plain[name], -1, (3, 4))
        error = (turned[name] - expected)[turned["mask"]].square().mean().sqrt()
        assert float(error) < 0.06 * float(expected[turned["mask"]].std()), name


def test_orientations_of_one_head_share_all_but_the_field() -> None:
    simulator = _still()
    drawn = simulator.draw(split_generator(11), 1)
    first, second = (simulator.volumes(replace(drawn, b0_direction=b0)) for b0 in ((0.0, 0.0, 1.0), (0.6, 0.0, 0.8)))
    for name in ("parameters", "mask", "labels", "magnitude"):
        assert torch.equal(first[name], second[name]), name
    assert not torch.allclose(first["field"], second["field"], atol=1e-3)
    noisy = _simulator(remainder=0.0, leak=0.0)
    drawn = noisy.draw(split_generator(11), 1)
    again = replace(drawn, measurement=replace(drawn.measurement, seed=5))
    first, second = (noisy.volumes(d) for d in (drawn, again))
    assert torch.equal(first["field"], second["field"])
    assert not torch.equal(first["measured"], second["measured"])


def test_masks_with_errors() -> None:
    """A mask that is too small cuts the brain; one that is too large has bone, noise and its field in it."""
    simulator = _still(margin_mm=(0.0, 0.0), size=(72, 88, 72), voxel_size=(2.0, 2.0, 2.0))
    drawn = simulator.draw(split_generator(12), 1)
    right, small, large = (simulator.volumes(replace(drawn, margin=torch.tensor([m]))) for m in (0.0, -6.0, 5.0))
    assert torch.equal(right["mask"], right["brain"])
    assert torch.equal(large["brain"], right["brain"])
    assert not bool((small["mask"] & ~right["mask"]).any()) and not bool((right["mask"] & ~large["mask"]).any())
    assert float(small["mask"].sum()) < 0.9 * float(right["mask"].sum())
    assert float(large["mask"].sum()) > 1.1 * float(right["mask"].sum())
    beyond = large["mask"] & ~right["mask"]
    assert _mean(large["parameters"], beyond) < -0.5  # bone
    assert float(right["parameters"].min()) > -0.3  # none in the right one
    leaking = simulator.volumes(replace(drawn, margin=torch.tensor([-6.0]), leak=torch.tensor([1.0])))
    assert torch.equal(leaking["field"], small["field"])
    assert float((leaking["measured"] - small["measured"]).abs().max()) > 1e-3


def test_what_the_background_removal_left_is_harmonic_and_as_large_as_drawn() -> None:
    simulator = _still(remainder=1.0, phantom_share=1.0)
    drawn = simulator.draw(split_generator(13), 1)
    made = simulator.volumes(drawn)
    rest, mask = (made["measured"] - made["field"])[0, 0].double(), made["mask"][0, 0]
    assert float(rest[mask].std()) == pytest.approx(float(drawn.measurement.remainder), rel=0.01)
    inner = mask[2:-2, 2:-2, 2:-2]
    for axis in range(3):
        inner = inner & mask.roll(1, axis)[2:-2, 2:-2, 2:-2] & mask.roll(-1, axis)[2:-2, 2:-2, 2:-2]
    laplacian = sum(rest.roll(s, axis) for axis in range(3) for s in (1, -1)) - 6 * rest
    curvature = rest.roll(1, 0) + rest.roll(-1, 0) - 2 * rest
    cut = (slice(2, -2),) * 3
    assert float(laplacian[cut][inner].abs().max()) < 0.02 * float(curvature[cut][inner].abs().max()) + 1e-6


def test_anisotropic_voxels_hold_means() -> None:
    simulator = _still(voxel_size=VOXEL)
    drawn = replace(simulator.draw(split_generator(14), 1), roughness=torch.zeros(1))
    fine = simulator.volumes(drawn)
    thick = simulator.volumes(
        replace(drawn, volumes=replace(drawn.volumes, size=(36, 44, 18), voxel_mm=(4.0, 4.0, 8.0)))
    )
    mean = torch.nn.functional.avg_pool3d(fine["parameters"], (1, 1, 2))
    inside = torch.nn.functional.avg_pool3d(fine["mask"].float(), (1, 1, 2)) == 1
    pair = torch.stack([mean[inside], thick["parameters"][inside]])
    assert float(torch.corrcoef(pair)[0, 1]) > 0.95


def test_patches_come_from_the_simulator() -> None:
    pool = PatchPoolDataset(_simulator(phantom_share=0.5), volumes=2, batches=2, batch_size=3, patch_size=24, crop=4)
    item = pool[1]
    assert item["image"].shape == (3, 2, 24, 24, 24)
    assert item["label"]["parameters"].shape == item["label"]["mask"].shape == (3, 1, 16, 16, 16)


@pytest.mark.parametrize(
    ("bad", "name"),
    [
        ({"noise_ppm": (0.01, 0.001)}, "noise_ppm"),
        ({"noise_ppm": (0.0, 0.001)}, "noise_ppm"),
        ({"channels": ("phase",)}, "channels"),
        ({"b0_direction": (0.0, 1.0, 1.0)}, "b0_direction"),
        ({"voxel_size": (1.0, -1.0, 1.0)}, "voxel_size"),
    ],
)
def test_bad_options_are_named(bad: dict[str, Any], name: str) -> None:
    with pytest.raises(ValueError, match=name):
        _simulator(**bad)
