"""A concentration map put back through the sequence: bodies, signal without iron, residual, notes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from deepspio.maps import MapsFromPredictiond
from deepspio.resimulation import lift, noise_floor, reference_signal, resimulate, support_of
from monai.data import MetaTensor
from torch import Tensor

from physics.noise import add_rician_noise
from physics.viewline import ViewLineSequence, field_per_concentration, folded_plane_field, view_line_image
from shared_transforms.errors import QMRIError
from shared_transforms.io import PlaneOrientation

SIDE, STEP = 96, 0.25
PIXEL = (STEP, STEP)
SEQUENCE = ViewLineSequence(lines=13, field_of_view=SIDE * STEP)
ORIENTATION = PlaneOrientation(x_axis=0, z_axis=1)


def plane(x: float = 0.0, z: float = 0.0) -> Tensor:
    """Distance from (x, z) of every pixel [mm]."""
    at = (torch.arange(SIDE, dtype=torch.float32) - (SIDE - 1) / 2) * STEP
    return torch.hypot(at[:, None] - x, at - z)


def ball(radius: float, concentration: float, x: float = 0.6, z: float = 0.4) -> tuple[Tensor, Tensor]:
    """Map and field of a sphere: 0 inside, a dipole's outside."""
    at = (torch.arange(SIDE, dtype=torch.float32) - (SIDE - 1) / 2) * STEP
    distance = plane(x, z)
    cosine = (at - z) / distance
    field = field_per_concentration() * concentration / 3 * (radius / distance) ** 3 * (3 * cosine**2 - 1)
    inside = distance < radius
    return concentration * inside.float(), field.masked_fill(inside, 0.0)


def image_of(concentration: Tensor, field: Tensor, density: Tensor | None = None, noise: float = 0.0) -> Tensor:
    density = torch.ones(SIDE, SIDE) if density is None else density
    image = view_line_image(density, concentration, field, PIXEL, SEQUENCE)
    return add_rician_noise(image, noise, torch.Generator().manual_seed(0)) if noise else image


def item_of(pred: Tensor, image: Tensor) -> dict[str, Any]:
    affine = np.array([[STEP, 0, 0, -12], [0, 0, 1, 0], [0, STEP, 0, -12], [0, 0, 0, 1.0]])
    return {
        "pred": pred[None, None],
        "image": image[None],
        "file_image": MetaTensor(image[..., None], affine=torch.from_numpy(affine)),
        "plane": image,
        "orientation": ORIENTATION,
        "acquisition": {"pixel_size": torch.tensor(PIXEL, dtype=torch.float64)},
        "sources": ["sub-01_viewline.nii.gz"],
        "stem": "sub-01",
        "notes": [],
    }


def maps_of(pred: Tensor, image: Tensor, **options: Any) -> dict[str, Any]:
    return dict(MapsFromPredictiond(sequence=SEQUENCE, **options)(item_of(pred, image)))


@pytest.mark.parametrize(("radius", "tolerance"), [(1.5, 0.06), (3.0, 0.03), (6.0, 0.02)])
def test_a_disc_becomes_a_ball(radius: float, tolerance: float) -> None:
    inside = (plane(0.1, -0.05) < radius).double()
    planes = lift(5.0 * inside, PIXEL)
    assert float(planes.sum()) * STEP**3 == pytest.approx(5.0 * 4 / 3 * math.pi * radius**3, rel=tolerance)
    for k in range(len(planes)):  # each plane of a ball is a smaller disc, there on both sides
        width = radius**2 - (k * STEP) ** 2
        if width > (3 * STEP) ** 2:
            area = float(planes[k].sum()) * STEP**2 / (5.0 * (2 if k else 1))
            assert area == pytest.approx(math.pi * width, abs=1.2 * 2 * math.pi * radius * STEP / 2)
    assert torch.equal(planes[0], 5.0 * inside)


def test_the_field_of_a_lifted_disc_is_that_of_a_sphere() -> None:
    concentration, field = ball(3.0, 5.0)
    found = folded_plane_field(lift(concentration, PIXEL), (STEP,) * 3)
    outside = plane(0.6, 0.4) > 3.5
    assert float((found - field)[outside].norm() / field[outside].norm()) < 0.04
    well_inside = plane(0.6, 0.4) < 2.0
    assert float(found[well_inside].abs().max()) < 0.06 * float(field.abs().max())


def test_a_strip_becomes_a_cylinder_and_a_thickness_an_extrusion() -> None:
    strip = torch.zeros(SIDE, SIDE, dtype=torch.float64)
    strip[10:86, 40:56] = 2.0
    planes = lift(strip, PIXEL)
    assert float(planes[:, 48].sum()) * STEP**2 == pytest.approx(2.0 * math.pi * (8 * STEP) ** 2, rel=0.07)
    flat = lift(strip, PIXEL, thickness_mm=1.9)
    torch.testing.assert_close(flat.sum(0) * STEP, 1.9 * strip)


def test_lift_without_particles_and_on_the_whole_plane() -> None:
    assert not lift(torch.zeros(SIDE, SIDE), PIXEL).any()
    assert not lift(torch.full((SIDE, SIDE), 0.1), PIXEL).any()  # below the training
    assert lift(torch.ones(SIDE, SIDE), PIXEL).isfinite().all()


def test_simulation_is_differentiable_in_the_concentration() -> None:
    concentration, field = ball(2.0, 3.0)
    image = image_of(concentration, field)
    reference = torch.ones(SIDE, SIDE)
    scale = torch.tensor(1.2, requires_grad=True)
    simulated, _ = resimulate(scale * concentration, image, SEQUENCE, PIXEL, reference=reference)
    (simulated - image).square().sum().backward()
    assert scale.grad is not None and float(scale.grad) > 0  # less iron fits better


def test_signal_without_iron_is_exact_for_a_uniform_signal() -> None:
    nothing = torch.zeros(SIDE, SIDE)
    image = 37.0 * image_of(nothing, nothing)
    found = reference_signal(image, SEQUENCE, PIXEL)
    lit = slice(4, -4)  # beyond the outermost line nothing is known
    torch.testing.assert_close(found[:, lit], torch.full_like(found[:, lit], 37.0), rtol=1e-4, atol=0.0)
    simulated, _ = resimulate(nothing, image, SEQUENCE, PIXEL)
    assert float((simulated - image).norm() / image.norm()) < 1e-3


def test_signal_without_iron_bridges_voids_and_ends_with_the_object() -> None:
    density = (plane() < 9.0).float() * 2.0
    concentration, field = ball(2.0, 5.0)
    image = image_of(concentration, field, density)
    found = reference_signal(image, SEQUENCE, PIXEL, concentration > 0)
    assert not found[plane() > 10.0].any()
    void = plane(0.6, 0.4) < 2.0
    torch.testing.assert_close(found[void], torch.full_like(found[void], 2.0), rtol=0.15, atol=0.0)
    # Thin and dark is bone, and not filled, where no iron is near.
    ring = (plane() - 6.0).abs() < 0.3
    nothing = torch.zeros(SIDE, SIDE)
    found = reference_signal(image_of(nothing, nothing, density.masked_fill(ring, 0.0)), SEQUENCE, PIXEL)
    assert float(found[ring].mean()) < 0.6 * float(found[~ring & (plane() < 8.0)].mean())


@pytest.mark.parametrize("noise", [0.0, 0.02])
@pytest.mark.parametrize("concentration", [1.0, 3.5, 14.0])
@pytest.mark.parametrize("head", [False, True])
def test_truth_explains_the_image_best(concentration: float, noise: float, head: bool) -> None:
    density = (plane() < 10.5).float() * (1.0 - 0.3 * torch.cos(plane())) if head else None
    truth, field = ball(2.0, concentration)
    image = image_of(truth, field, density, noise)
    # At 1 ug/mm^3 the lines hardly bend: half of it fits as well.
    others = (0.0, 2.0) if concentration == 1.0 else (0.0, 0.5, 2.0)
    residual = {scale: maps_of(scale * truth, image)["residual"] for scale in (*others, 1.0)}
    assert residual[1.0] < 0.75 * min(residual[scale] for scale in others)
    found = maps_of(truth, image)
    assert found["residual"] < 0.15 + found["resimulation"]["noise"]
    assert not any("unexplained" in note or "no better" in note for note in found["notes"])


def test_noise_is_measured_between_the_lines() -> None:
    image = image_of(torch.zeros(SIDE, SIDE), torch.zeros(SIDE, SIDE), noise=0.1)
    assert float(noise_floor(image, SEQUENCE)) == pytest.approx(0.1, rel=0.12)


def test_maps_have_units_and_keep_negative_values() -> None:
    truth, field = ball(2.0, 5.0)
    image = image_of(truth, field)
    estimate = truth.clone()
    estimate[:20, :20] = -0.3
    item = maps_of(estimate, image)
    maps = item["maps"]
    assert maps["concentration"].unit == "ug/mm^3" and maps["residual"].unit == "1" and maps["mask"].kind == "mask"
    assert maps["concentration"].data.shape == (SIDE, SIDE, 1)
    assert torch.equal(maps["concentration"].data[..., 0], estimate)
    assert torch.equal(maps["mask"].data[..., 0], truth > 0)
    assert item["pred"].shape == (1, SIDE, SIDE, 1) and item["image"].shape == (2, SIDE, SIDE, 1)
    assert "file_image" not in item
    share = 400 * 0.3 / float(truth.sum())
    assert any(f"Negative concentrations add up to {share:.0%}" in note for note in item["notes"])


@pytest.mark.parametrize(
    ("concentration", "place", "words"),
    [
        (20.0, (0.6, 0.4), "extrapolation"),
        (5.0, (10.5, 0.0), "edge of the image"),
        (0.1, (0.6, 0.4), "No particles found"),
    ],
)
def test_notes(concentration: float, place: tuple[float, float], words: str) -> None:
    truth, field = ball(2.0, concentration, *place)
    item = maps_of(truth, image_of(truth, field))
    assert any(words in note for note in item["notes"])
    within, around = ball(2.0, 5.0)
    assert not any(words in note for note in maps_of(within, image_of(within, around))["notes"])


def test_iron_in_the_wrong_place_is_said() -> None:
    truth, field = ball(2.0, 5.0)
    wrong, _ = ball(2.0, 5.0, -6.0, -5.0)
    assert any("no better than no iron" in note for note in maps_of(wrong, image_of(truth, field))["notes"])


def test_body_is_said() -> None:
    truth, field = ball(2.0, 5.0)
    item = maps_of(truth, image_of(truth, field), thickness_mm=3.0)
    assert any("3 mm across the plane" in note for note in item["notes"])


def test_support() -> None:
    values = torch.tensor([[0.0, 0.22, 0.21], [1.0, 4.0, -1.0]])
    assert support_of(values).tolist() == [[False, False, False], [False, True, False]]
    assert support_of(values / 10).tolist() == [[False, False, False], [False, True, False]]


def test_bad_values_are_refused() -> None:
    image = torch.rand(2, SIDE, SIDE)
    with pytest.raises(QMRIError, match="NaN"):
        maps_of(torch.full((SIDE, SIDE), torch.nan), image)
    with pytest.raises(QMRIError, match="thickness_mm"):
        MapsFromPredictiond(sequence=SEQUENCE, thickness_mm=0.0)
    with pytest.raises(ValueError, match="thickness_mm"):
        lift(torch.ones(8, 8), PIXEL, thickness_mm=-1.0)
    with pytest.raises(ValueError, match="pixel_size"):
        lift(torch.ones(8, 8), (0.0, 1.0))
    with pytest.raises(ValueError, match="even and odd"):
        reference_signal(torch.ones(1, 32, 32), SEQUENCE, PIXEL)
    with pytest.raises(ValueError, match="axes"):
        lift(torch.ones(2, 8, 8), PIXEL)
    with pytest.raises(ValueError, match="longer than a line pitch"):
        reference_signal(torch.ones(2, 8, 4), SEQUENCE, PIXEL)
    with pytest.raises(ValueError, match="plane"):
        resimulate(torch.ones(8, 8), torch.ones(2, 8, 9), SEQUENCE, PIXEL)
