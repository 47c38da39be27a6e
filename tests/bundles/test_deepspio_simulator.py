from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from deepspio.simulator import Draw, ViewLineSimulator
from torch import Tensor

from physics.phantoms import central_plane, volume
from physics.viewline import ViewLineSequence, central_plane_field, view_line_image
from shared_transforms.anatomy import split_generator

AGAR = {"shares": {"uniform": 1.0}}  # needs no template, which takes seconds to load
SIDE = 96
PIXEL = 50.0 / 256.0


def simulator(**changes: Any) -> ViewLineSimulator:
    return ViewLineSimulator(**({"size": SIDE, "anatomy": AGAR, "reuse": 2} | changes))


def draw(source: ViewLineSimulator, n: int = 4, seed: int = 0, split: str = "train") -> Draw:
    return source.draw(torch.Generator().manual_seed(seed), n, split)


def as_drawn(drawn: Draw, **changes: Any) -> Draw:
    """Without mirrors and noise."""
    plain = {"flip": torch.zeros_like(drawn.flip), "density_flip": torch.zeros_like(drawn.density_flip)}
    return replace(drawn, **(plain | changes))


def test_images_are_the_operator_applied_to_the_volume() -> None:
    """An independent way to the field: whole volumes, padded to twice their size."""
    source = simulator(reuse=1)
    drawn = as_drawn(draw(source))
    batch = source.simulate(drawn)
    bodies = volume(drawn.particles, (SIDE, SIDE), 40)
    scale = drawn.concentration[:, None, None]
    field = scale * central_plane_field(bodies, (PIXEL,) * 3)
    concentration = scale * central_plane(drawn.particles, (SIDE, SIDE))
    density = source.density.images(drawn.density)
    expected = view_line_image(density, concentration, field, (PIXEL, PIXEL), ViewLineSequence())
    torch.testing.assert_close(batch["label"]["parameters"][:, 0], concentration)
    # Far bodies wrap around on the simulator's smaller grid: a shift of the lines by a hundredth of a pixel.
    assert float((batch["image"] - expected).abs().max()) < 0.05
    assert float((batch["image"] - expected).abs().mean()) < 1e-3


def test_shapes_ranges_and_units() -> None:
    source = simulator(count=(1, 1), concentration=(2.0, 3.0))
    batch = source.simulate(draw(source, 6))
    assert batch["image"].shape == (6, 2, SIDE, SIDE)
    assert float(batch["image"].min()) >= 0
    values = batch["label"]["parameters"]
    assert values.shape == (6, 1, SIDE, SIDE)
    peaks = values.amax((1, 2, 3))
    assert float(peaks.min()) >= 2.0
    assert float(peaks.max()) <= 3.0
    assert torch.equal(batch["label"]["mask"], values > 0)
    assert batch["acquisition"] == {}


def test_same_draw_same_batch_and_any_sample_again() -> None:
    source = simulator(noise_share=1.0, crop=64)
    first, second = (source.simulate(draw(source, seed=5)) for _ in range(2))
    assert torch.equal(first["image"], second["image"])
    other = source.simulate(draw(source, seed=6))
    assert not torch.equal(first["image"], other["image"])
    own = split_generator(0, 1, 2, 0, "val")
    torch.testing.assert_close(draw(source).concentration, draw(source).concentration)
    assert not torch.equal(source.draw(own, 4, "val").concentration, draw(source).concentration)


def test_one_geometry_serves_several_images_with_other_concentrations() -> None:
    source = simulator(reuse=4)
    drawn = as_drawn(draw(source, 4))
    assert len(drawn.particles) == 1
    values = source.simulate(drawn)["label"]["parameters"]
    shapes = values / drawn.concentration[:, None, None, None]
    torch.testing.assert_close(shapes, shapes[:1].expand_as(shapes))
    assert len(drawn.concentration.unique()) == 4


@pytest.mark.parametrize("axis", [0, 1])
def test_mirrored_particles_have_the_mirrored_field(axis: int) -> None:
    """Along x the whole image is mirrored; along z the lines bend as in an image of which all gradients are turned."""
    source = simulator(reuse=1)
    flip = torch.zeros(2, 2, dtype=torch.bool)
    flip[:, axis] = True
    drawn = as_drawn(draw(source, 2))
    plain = source.simulate(drawn)
    turned = source.simulate(replace(drawn, flip=flip, density_flip=flip))
    torch.testing.assert_close(turned["label"]["parameters"], plain["label"]["parameters"].flip(2 + axis))
    if axis == 0:
        torch.testing.assert_close(turned["image"], plain["image"].flip(2), atol=1e-4, rtol=0)
    else:  # the sign of the shift stays that of the field, which mirroring does not turn
        assert float((turned["image"] - plain["image"].flip(3)).abs().max()) > 0.1


def test_noise_has_the_ratio_that_was_drawn() -> None:
    source = simulator(noise_share=1.0, decibels=(25.0, 25.0), reuse=1)
    drawn = draw(source, 2)
    noisy = source.simulate(drawn)["image"].double()
    clean = source.simulate(replace(drawn, decibels=torch.full((2,), torch.inf)))["image"].double()
    bright = clean > 0.6  # there the magnitude's noise is that of one part of the complex image
    for one, other, here in zip(noisy, clean, bright, strict=True):
        error = (one - other)[here]
        sigma = float((other.square().mean() / 2 / 10**2.5).sqrt())
        assert float(error.std()) == pytest.approx(sigma, rel=0.1)


def test_share_of_noisy_images() -> None:
    found = draw(simulator(noise_share=0.3, decibels=(5.0, 40.0)), 400).decibels
    noisy = found[found.isfinite()]
    assert len(noisy) / 400 == pytest.approx(0.3, abs=0.08)
    assert 5.0 <= float(noisy.min()) <= float(noisy.max()) <= 40.0


@pytest.mark.parametrize("seed", range(4))
def test_windows_hold_particles_and_are_cut_from_the_whole_image(seed: int) -> None:
    source, whole = simulator(crop=48), simulator()
    drawn = draw(source, 4, seed)
    small, large = source.simulate(drawn), whole.simulate(drawn)
    assert small["image"].shape == (4, 2, 48, 48)
    assert bool(small["label"]["mask"].flatten(1).any(1).all())
    for cut, image, label, truth in zip(
        small["image"], large["image"], small["label"]["parameters"], large["label"]["parameters"], strict=True
    ):
        places = image.unfold(1, 48, 1).unfold(2, 48, 1)  # [2, X', Z', 48, 48]
        # The outermost columns of a window have one-sided field gradients.
        distance = (places - cut[:, None, None])[..., 1:-1, :].abs().amax((0, 3, 4))
        assert float(distance.min()) < 1e-4
        x, z = divmod(int(distance.argmin()), distance.shape[1])
        assert torch.equal(label, truth[:, x : x + 48, z : z + 48])


def test_shares_of_figures() -> None:
    source = simulator(figures={"cylinder": 1.0}, count=(2, 2))
    figures = draw(source, 8).particles.figures
    assert [len(kind) for kind in figures] == [0, 0, 8]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"concentration": (0.0, 1.0)}, "concentration"),
        ({"noise_share": 1.2}, "noise_share"),
        ({"decibels": (9.0, 3.0)}, "decibels"),
        ({"reuse": 0}, "reuse"),
        ({"crop": 128}, "crop"),
    ],
)
def test_impossible_arguments(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        simulator(**change)


def test_particles_that_never_meet_the_plane(monkeypatch: pytest.MonkeyPatch) -> None:
    source = simulator()

    def nothing(particles: Any, size: Any) -> Tensor:
        return torch.ones(len(particles), dtype=torch.bool)

    monkeypatch.setattr("deepspio.simulator.empty", nothing)
    with pytest.raises(RuntimeError, match="no figures"):
        draw(source)
