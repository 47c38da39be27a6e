"""From raw echoes to the local field: a simulated head, bad input, and the real crop in ../shared/data."""

from __future__ import annotations

import math
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from qsmgan.head_mask import head_mask, noise_by_differences
from qsmgan.pipeline import LocalField, LocalFieldd, local_field

from physics.dipole import sphere_field
from shared_transforms.errors import QMRIError
from shared_transforms.io import LoadGradientEchoesd

ROMEO = Path(__file__).resolve().parents[3] / "shared" / "data" / "qsm" / "romeo_small"
TIMES = (0.004, 0.008, 0.012)
STRENGTH = 3.0
PPM = 127.732435554  # Hz in one ppm at 3 T
VOXEL = (2.0, 2.0, 2.5)
OBLIQUE = (0.6, 0.0, 0.8)
LIMITS = {"vsharp": 0.2, "pdf": 0.35, "lbv": 0.2}


@lru_cache(maxsize=8)
def scan(times: tuple[float, ...] = TIMES, noise: float = 0.004, sign: int = 1) -> dict[str, Any]:
    """Raw echoes of an ellipsoid with sources inside and outside; the field covers several turns."""
    shape = (44, 46, 34)
    axes = [(torch.arange(n, dtype=torch.float64) - (n - 1) / 2) * d for n, d in zip(shape, VOXEL, strict=True)]
    points = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)
    head = (points / torch.tensor([34.0, 37.0, 32.0])).norm(dim=-1) < 1
    inside = [((0.0, 9.0, -5.0), 6.0, 0.4), ((-13.0, -2.0, 5.0), 6.0, -0.3), ((13.0, -12.0, 8.0), 5.0, 0.5)]
    outside = [((0.0, 43.0, -17.0), 6.0, 9.0), ((41.0, 0.0, 8.0), 6.0, -9.0), ((0.0, 0.0, 300.0), 150.0, 9.0)]

    def field(bodies: list[Any]) -> torch.Tensor:
        return sum(sphere_field(points, r, centre=c, b0_direction=OBLIQUE, susceptibility=x) for c, r, x in bodies)  # type: ignore[return-value]

    local, background = field(inside), field(outside) + 0.5 + 0.03 * points[..., 0]
    stamps = torch.tensor(times, dtype=torch.float64).reshape(-1, 1, 1, 1)
    angle = sign * 2 * math.pi * PPM * (local + background) * stamps + 0.4 + 0.01 * points[..., 1]
    generator = torch.Generator().manual_seed(5)
    shade = head * (1 + 0.3 * (points[..., 2] / 32))
    signal = torch.polar(shade * torch.exp(-stamps / 0.03), angle)
    signal = signal + noise * torch.complex(*torch.randn((2, *signal.shape), generator=generator, dtype=torch.float64))
    return {
        "magnitude": signal.abs().float(), "phase": signal.angle().float(), "local": local.float(),
        "total": (local + background).float(), "head": head, "points": points,
    }  # fmt: skip


def run(
    data: dict[str, Any], times: tuple[float, ...] = TIMES, mask: str | None = "head", **options: Any
) -> LocalField:
    given = None if mask is None else data[mask]
    return local_field(data["magnitude"], data["phase"], times, STRENGTH, VOXEL, OBLIQUE, given, **options)


def relative(found: torch.Tensor, truth: torch.Tensor, mask: torch.Tensor) -> float:
    difference, truth = (found - truth)[mask], truth[mask]
    return float((difference - difference.mean()).norm() / (truth - truth.mean()).norm())


@pytest.mark.parametrize("background", LIMITS)
def test_local_field_of_a_simulated_head(background: str) -> None:
    data = scan()
    states: list[Any] = []
    found = run(data, background=background, report=states.append)
    assert (data["total"].amax() - data["total"].amin()) * PPM * 0.004 > 2  # turns between two echoes
    assert relative(found.local_field, data["local"], found.mask) < LIMITS[background]
    assert found.local_field.dtype == torch.float32
    assert not found.local_field[~found.mask].any() and not (found.mask & ~found.head).any()
    assert found.notes == [] and torch.equal(found.head, data["head"])
    assert [state.number for state in states] == list(range(1, len(states) + 1))
    assert (len(states) > 0) == (background != "vsharp")


@pytest.mark.parametrize("times", [TIMES, (0.004, 0.007), (0.003, 0.0075, 0.0105, 0.0165), (0.004, 0.0078, 0.0119)])
def test_total_field_and_its_standard_error(times: tuple[float, ...]) -> None:
    """But for one constant turn, the field is right in every voxel within its standard error."""
    data = scan(times)
    found = run(data, times)
    away = (found.total_field - data["total"])[data["head"]]
    spacing = min(b - a for a, b in zip(times, times[1:], strict=False))
    constant = float(away.median()) * PPM * spacing
    assert abs(constant - round(constant)) < 0.02
    score = ((away - away.median()) / found.standard_error[data["head"]]).double()
    assert 0.9 < score.square().mean().sqrt() < 1.1
    assert not found.standard_error[~data["head"]].any()


def test_laplacian_unwrapping_gives_the_same_local_field() -> None:
    data = scan(noise=0.0)
    path, laplacian = (run(data, unwrapping=u, background="lbv") for u in ("path", "laplacian"))
    assert relative(laplacian.local_field, path.local_field, path.mask) < 0.2


def test_sign_of_the_phase() -> None:
    one, two = run(scan(noise=0.0)), run(scan(noise=0.0, sign=-1), phase_sign=-1)
    assert relative(two.local_field, one.local_field, one.mask) < 0.01
    wrong = run(scan(noise=0.0, sign=-1))
    assert relative(-wrong.local_field, one.local_field, one.mask) < 0.01


def test_noise_free_echoes_are_usable() -> None:
    for background in LIMITS:
        found = run(scan(noise=0.0), background=background)
        assert found.local_field.isfinite().all()
        assert relative(found.local_field, scan()["local"], found.mask) < LIMITS[background]


def test_a_mask_is_made_and_said() -> None:
    data = scan(noise=0.03)
    found = run(data, mask=None)
    overlap = 2 * (found.head & data["head"]).sum() / (found.head.sum() + data["head"].sum())
    assert overlap > 0.97
    assert len(found.notes) == 1 and "no mask was given" in found.notes[0]
    usual = run(data)
    common = usual.mask & found.mask
    error, usual_error = (relative(f.local_field, data["local"], common) for f in (found, usual))
    assert error < 1.2 * usual_error


def test_made_mask_keeps_the_head_apart_from_noise_and_fills_its_holes() -> None:
    data = scan(noise=0.03)
    magnitude, phase = data["magnitude"].clone(), data["phase"].clone()
    vessel = data["points"][..., :2].norm(dim=-1) < 2.5
    magnitude[:, vessel] *= 0.02  # no signal along a line through the head
    mask = head_mask(magnitude, phase, 0.03, VOXEL)
    middle = vessel & (data["points"][..., 2].abs() < 20)
    assert mask[middle].all()
    assert (mask & ~data["head"]).sum() < 0.02 * data["head"].sum()
    noise = torch.polar(torch.rand(3, 20, 20, 20), 6 * torch.rand(3, 20, 20, 20))
    assert head_mask(noise.abs(), noise.angle(), 0.5, VOXEL).sum() == 0


def test_made_mask_of_a_volume_without_air_is_everything() -> None:
    data = scan()
    box = (slice(None), slice(15, 29), slice(15, 31), slice(10, 24))
    mask = head_mask(data["magnitude"][box], data["phase"][box], 0.01, VOXEL)
    assert mask.float().mean() > 0.99


@pytest.mark.parametrize("noise", [0.01, 0.05])
def test_noise_from_differences(noise: float) -> None:
    data = scan((0.004, 0.007), noise)
    assert float(noise_by_differences(data["magnitude"], data["phase"])) == pytest.approx(noise, rel=0.1)
    # A scanner sets air to zero.
    assert float(noise_by_differences(data["magnitude"] * data["head"], data["phase"])) == pytest.approx(noise, rel=0.2)


def test_what_a_user_must_read() -> None:
    data = dict(scan())
    data["everything"] = torch.ones_like(data["head"])
    notes = " ".join(run(data, mask="everything", background="lbv").notes)
    assert "after unwrapping" in notes and "standard error" in notes
    data["magnitude"] = data["magnitude"].clone()
    data["magnitude"][:, 20:22, 20:22, 16] = 0
    assert any("4 voxels of the mask have no signal" in note for note in run(data, background="lbv").notes)


BAD = {
    "one echo": ({"magnitude": torch.ones(1, 8, 8, 8), "phase": torch.zeros(1, 8, 8, 8)}, "echoes", "one echo"),
    "other shapes": ({"phase": torch.zeros(3, 8, 8, 7)}, "magnitude, phase", "on one grid"),
    "empty mask": ({"mask": torch.zeros(8, 8, 8, dtype=torch.bool)}, "mask", "not empty"),
    "mask of another shape": ({"mask": torch.ones(8, 8, 7, dtype=torch.bool)}, "mask", "on the grid"),
    "NaN in the phase": ({"phase": torch.full((3, 8, 8, 8), math.nan)}, "phase", "NaN"),
    "NaN in the magnitude": ({"magnitude": torch.full((3, 8, 8, 8), math.nan)}, "magnitude", "NaN"),
    "stored phase": ({"phase": torch.linspace(-4096, 4095, 1536).reshape(3, 8, 8, 8)}, "phase", "phase_range"),
    "scaled phase": ({"phase": torch.linspace(-0.0036, 0.0036, 1536).reshape(3, 8, 8, 8)}, "phase", "phase_range"),
    "swapped": ({"magnitude": torch.linspace(-3, 3, 1536).reshape(3, 8, 8, 8)}, "magnitude", "swapped"),
    "all zero": ({"magnitude": torch.zeros(3, 8, 8, 8)}, "magnitude", "zeros"),
    "no times": ({"echo_times": None}, "echo_times", "give the echo times"),
    "too few times": ({"echo_times": (0.004, 0.008)}, "magnitude, phase", "N = 2"),
    "milliseconds": ({"echo_times": (4.0, 8.0, 12.0)}, "echo_times", "milliseconds"),
    "no B0": ({"b0_direction": None}, "b0_direction", "B0 direction"),
    "B0 not of unit length": ({"b0_direction": (0.0, 0.0, 2.0)}, "voxel_size, b0_direction", "unit length"),
    "no field strength": ({"field_strength": None}, "field_strength", "field strength"),
    "field strength zero": ({"field_strength": 0.0}, "field_strength", "positive"),
    "voxel size zero": ({"voxel_size": (1.0, 0.0, 1.0)}, "voxel_size, b0_direction", "voxel_size"),
    "unknown removal": ({"background": "sharp"}, "background", "vsharp, pdf, lbv"),
    "unknown unwrapping": ({"unwrapping": "none"}, "unwrapping", "path, laplacian"),
    "thin mask": ({"background": "lbv", "peel": 5}, "mask", "too thin"),
    "only noise": ({"mask": None}, "mask", "none was given"),
    "mask off the signal": ({"mask": "off"}, "mask", "without signal"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name: str) -> None:
    change, place, message = BAD[name]
    generator = torch.Generator().manual_seed(0)
    given: dict[str, Any] = {
        "magnitude": 0.1 + torch.rand((3, 8, 8, 8), generator=generator),
        "phase": 6 * torch.rand((3, 8, 8, 8), generator=generator) - 3,
        "echo_times": TIMES, "field_strength": 3.0, "voxel_size": (1.0, 1.0, 1.0), "b0_direction": (0.0, 0.0, 1.0),
        "mask": torch.ones(8, 8, 8, dtype=torch.bool), **change,
    }  # fmt: skip
    if change.get("mask") == "off":
        given["magnitude"][:, :4] = 0
        given["mask"] = torch.zeros(8, 8, 8, dtype=torch.bool)
        given["mask"][:4] = True
    with pytest.raises(QMRIError, match=message) as error:
        local_field(**given, file="sub-01.nii.gz")
    assert error.value.field == place
    assert error.value.file == ("sub-01.nii.gz" if "unknown" not in name else None)


def test_transform_of_an_inference_item() -> None:
    data = scan()
    affine = np.diag([2.0, 2.0, 2.5, 1.0])
    item = {
        "image": MetaTensor(torch.cat([data["magnitude"], data["phase"]]), affine=affine),
        "mask": data["head"][None], "notes": ["before"], "details": {"a": "b"}, "sources": ["mag.nii"],
        "acquisition": {
            "echo_times": torch.tensor(TIMES), "field_strength": torch.tensor(STRENGTH),
            "voxel_size": torch.tensor(VOXEL), "b0_direction": torch.tensor(OBLIQUE),
        },
    }  # fmt: skip
    found = LocalFieldd(background="lbv", progress=False)(item)
    expected = run(data, background="lbv")
    assert isinstance(found["image"], MetaTensor) and np.allclose(found["image"].affine, affine)
    torch.testing.assert_close(found["image"].as_tensor(), torch.stack([expected.local_field, expected.magnitude]))
    assert torch.equal(found["mask"], expected.mask[None])
    assert found["notes"] == ["before"] and found["details"]["Mask"] == "given"
    assert set(found["stages"]) == {"totalfield", "totalfieldstderr", "headmask"}
    assert all(tuple(m.data.shape) == tuple(data["head"].shape) for m in found["stages"].values())
    made = LocalFieldd(progress=False)({**item, "mask": None})
    assert made["details"]["Mask"] == "made from the data" and made["notes"][0] == "before" and len(made["notes"]) == 2
    with pytest.raises(QMRIError, match="vsharp, pdf, lbv"):
        LocalFieldd(background="none")


needs_real_data = pytest.mark.skipif(not ROMEO.is_dir(), reason="../shared/data is absent")
STORED = 0.0036743774  # stands for pi, as ../shared/data/README.md says


@lru_cache(maxsize=3)
def real(background: str) -> dict[Any, Any]:
    """The real crop through reader and pipeline."""
    reader = LoadGradientEchoesd(phase_range=[-STORED, STORED], echo_times_s=list(TIMES), field_strength_t=3.0)
    item = reader({"image": [ROMEO / "Mag.nii"], "phase": [ROMEO / "Phase.nii"], "mask": None})
    return LocalFieldd(background=background, progress=False)(item)


@needs_real_data
@pytest.mark.parametrize("background", LIMITS)
def test_real_crop_from_raw_phase(background: str) -> None:
    found = real(background)
    field, mask = found["image"].as_tensor()[0], found["mask"][0]
    stages = {name: m.data for name, m in found["stages"].items()}
    head = stages["headmask"]
    assert head.float().mean() > 0.95  # the crop lies inside the brain
    assert stages["totalfield"][head].std() > 0.2 > 0.05 > field[mask].std() > 0.01  # ppm, 3 T
    assert 0.002 < stages["totalfieldstderr"][head].median() < 0.02
    assert any("no mask was given" in note for note in found["notes"])
    # Nothing is left of the slope of the background through the crop.
    assert abs(field[:25][mask[:25]].mean() - field[26:][mask[26:]].mean()) < 0.01


@needs_real_data
def test_methods_agree_on_the_real_crop() -> None:
    found = [real(name) for name in LIMITS]
    common = torch.stack([f["mask"][0] for f in found]).all(0)
    correlation = torch.corrcoef(torch.stack([f["image"].as_tensor()[0][common] for f in found]))
    assert correlation.min() > 0.7


@needs_real_data
def test_real_crop_with_its_phase_as_stored_is_refused() -> None:
    reader = LoadGradientEchoesd(echo_times_s=list(TIMES), field_strength_t=3.0)
    with pytest.raises(QMRIError, match="phase_range"):
        reader({"image": [ROMEO / "Mag.nii"], "phase": [ROMEO / "Phase.nii"], "mask": None})
