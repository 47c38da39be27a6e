"""Deconvolution: closed forms, loops over voxels by scipy, invariants, limits, and the OSIPI curves."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch

from physics.perfusion.deconvolution import CIRCULANT, METHODS, csvd_operator, deconvolve, oscillation
from physics.perfusion.deconvolution.dense import lcurve_curvature
from physics.perfusion.maps import perfusion_maps, time_to_maximum

from .perfusion_curves import DT, FRAMES, arterial, circulant, noisy, tissue

OSIPI = Path(__file__).resolve().parents[3] / "shared" / "data" / "perfusion" / "osipi" / "dsc_data.csv"

every_method = pytest.mark.parametrize("method", METHODS)
voxelwise = pytest.mark.parametrize("method", [method for method in METHODS if method != "ttv"])


# --- closed forms ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("frames", [-4, -1, 0, 1, 7])
def test_shifted_arterial_curve_has_one_frame_of_residue(frames: int) -> None:
    generator = torch.Generator().manual_seed(1)
    aif = torch.zeros(30, dtype=torch.float64)
    aif[6:20] = torch.rand(14, generator=generator, dtype=torch.float64)
    residue = deconvolve(2.5 * aif.roll(frames), aif, 0.8, "csvd", threshold=1e-12)
    expected = torch.zeros(60, dtype=torch.float64)
    expected[frames % 60] = 2.5 / 0.8  # negative delays at the end; the frame time is in it
    torch.testing.assert_close(residue, expected, atol=1e-6, rtol=0)


def test_full_rank_ssvd_solves_the_triangular_system() -> None:
    generator = torch.Generator().manual_seed(2)
    aif = torch.rand(12, generator=generator, dtype=torch.float64) * 0.2
    aif[0] = 2.0
    curves = torch.rand(3, 12, generator=generator, dtype=torch.float64)
    expected = scipy.linalg.solve_triangular(0.7 * scipy.linalg.toeplitz(aif, np.zeros(12)), curves.T, lower=True).T
    found = deconvolve(curves, aif, 0.7, "ssvd", threshold=0.0)
    torch.testing.assert_close(found, torch.from_numpy(expected.copy()), atol=1e-9, rtol=1e-9)


def test_oscillation_index_by_hand() -> None:
    # second differences -2 and 1, four frames, largest value 1
    assert float(oscillation(torch.tensor([0.0, 1.0, 0.0, 0.0]))) == pytest.approx(3 / 4)
    # not the largest modulus
    assert float(oscillation(torch.tensor([0.0, 1.0, -2.0, 1.0]))) == pytest.approx((4 + 6) / 4)
    assert float(oscillation(3 + torch.arange(8.0))) == pytest.approx(0, abs=1e-6)
    assert math.isinf(oscillation(-torch.ones(8)))


@pytest.mark.parametrize("mtt, csvd, osvd", [(4, 0.626, 0.704), (6, 0.707, 0.787), (12, 0.870, 0.883)])
def test_recovered_flow(mtt: float, csvd: float, osvd: float) -> None:
    curve, aif = tissue(mtt), arterial()
    assert float(deconvolve(curve, aif, DT, "csvd").max()) == pytest.approx(csvd, abs=0.02)
    assert float(deconvolve(curve, aif, DT, "osvd").max()) == pytest.approx(osvd, abs=0.02)


@every_method
def test_frame_time_is_in_the_residue(method: str) -> None:
    """The same curves, twice as densely sampled, have the same residue in 1/s."""
    flow = [
        float(deconvolve(tissue(8, dt=dt, frames=n)[None], arterial(n, dt), dt, method).max())
        for dt, n in ((1.5, 60), (0.75, 120))
    ]
    assert flow[1] == pytest.approx(flow[0], rel=0.15)


# --- independent implementations ------------------------------------------------------------------------------------


def loop_truncated(curves: np.ndarray, matrix: np.ndarray, threshold: float) -> np.ndarray:
    left, size, right = scipy.linalg.svd(matrix)
    inverse = np.array([1 / s if s >= threshold * size[0] else 0.0 for s in size])
    return np.stack([right.T @ (inverse * (left.T @ curve)) for curve in curves])


def loop_osvd(curves: np.ndarray, matrix: np.ndarray, limit: float) -> np.ndarray:
    left, size, right = scipy.linalg.svd(matrix)
    found = []
    for curve in curves:
        for percent in range(5, 100, 5):
            kept = size >= percent / 100 * size[0]
            residue = right[kept].T @ ((left[:, kept].T @ curve) / size[kept])
            bend = sum(abs(residue[k] - 2 * residue[k - 1] + residue[k - 2]) for k in range(2, len(residue)))
            if bend / residue.max() / len(residue) < limit:
                break
        found.append(residue)
    return np.stack(found)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_to_a_loop_over_voxels(dtype: torch.dtype) -> None:
    curves, aif = noisy(300)
    padded = np.pad(curves.numpy(), ((0, 0), (0, 40)))
    whole = circulant(aif.numpy(), DT)
    triangle = DT * scipy.linalg.toeplitz(aif.numpy(), np.zeros(40))
    expected = {
        "ssvd": loop_truncated(curves.numpy(), triangle, 0.2),
        "csvd": loop_truncated(padded, whole, 0.1),
        "osvd": loop_osvd(padded, whole, 0.035),
    }
    for method, values in expected.items():
        found = deconvolve(curves.to(dtype), aif.to(dtype), DT, method)
        assert found.dtype == dtype
        np.testing.assert_allclose(found.double().numpy(), values, atol=1e-4 * np.abs(values).max())


def test_osvd_uses_many_thresholds_here() -> None:
    """The loop above proves little where all voxels pass at once."""
    curves, aif = noisy(300)
    found = deconvolve(curves, aif, DT, "osvd")
    alike = [
        int((deconvolve(curves, aif, DT, "csvd", threshold=step / 20) - found).abs().amax(-1).lt(1e-9).sum())
        for step in range(1, 20)
    ]
    assert sum(count > 0 for count in alike) >= 4


def test_chunks_do_not_show() -> None:
    curves, aif = noisy(40)
    many = curves.repeat(120, 1)  # 4800 voxels
    for method in METHODS[:-1]:
        few = deconvolve(curves, aif, DT, method)
        torch.testing.assert_close(deconvolve(many, aif, DT, method), few.repeat(120, 1), atol=1e-9, rtol=1e-9)


def test_tikhonov_with_a_given_weight_is_ridge_regression() -> None:
    curves, aif = noisy(5)
    matrix = circulant(aif.numpy(), DT)[:40]
    weight = 0.07 * scipy.linalg.svdvals(matrix)[0]
    stacked = np.vstack([matrix, weight * np.eye(80)])
    for curve, found in zip(curves, deconvolve(curves, aif, DT, "tikhonov", regularisation=0.07), strict=True):
        expected = np.linalg.lstsq(stacked, np.pad(curve.numpy(), (0, 80)), rcond=None)[0]
        np.testing.assert_allclose(found.numpy(), expected, atol=1e-8 * np.abs(expected).max())


@pytest.mark.parametrize("selection", ["lcurve", "gcv"])
def test_tikhonov_selects_a_weight(selection: str) -> None:
    """Against all weights in turn: hat matrices for GCV, numerical derivatives for the curvature."""
    curves, aif = noisy(8)
    matrix = circulant(aif.numpy(), DT)[:40]
    relative = np.logspace(-3, 0, 61)
    weights = relative * scipy.linalg.svdvals(matrix)[0]
    found = deconvolve(curves, aif, DT, "tikhonov", selection=selection)
    inverses = [np.linalg.solve(matrix.T @ matrix + w**2 * np.eye(80), matrix.T) for w in weights]
    freedom = np.array([np.trace(np.eye(40) - matrix @ inverse) for inverse in inverses])
    each = torch.stack([deconvolve(curves, aif, DT, "tikhonov", regularisation=w) for w in relative], dim=1)
    for curve, residue, again in zip(curves.numpy(), found, each, strict=True):
        misfit = np.array([np.sum((matrix @ (inverse @ curve) - curve) ** 2) for inverse in inverses])
        size = np.array([np.sum((inverse @ curve) ** 2) for inverse in inverses])
        distance = (again - residue).norm(dim=-1) / residue.norm()
        chosen = int(distance.argmin())
        assert distance[chosen] < 1e-6
        if selection == "gcv":
            assert chosen == np.argmin(misfit / freedom**2)
        else:  # derivatives over steps of 12 % are not exact
            x, y = np.log(misfit) / 2, np.log(size) / 2
            dx, dy = np.gradient(x), np.gradient(y)
            bend = (dx * np.gradient(dy) - np.gradient(dx) * dy) / (dx**2 + dy**2) ** 1.5
            assert bend[chosen] >= 0.9 * np.max(bend[1:-1])


def test_curvature_of_a_circle() -> None:
    """Norms whose logarithms run along a circle of radius 2: the curvature is 1/2, whatever the weights.

    With x and y the halves of the logarithms of the squared norms, d residual / d w = -w^2 d solution / d w gives
    w^2 = residual tan(angle) / solution.
    """
    angle = torch.linspace(math.pi + 0.3, 1.5 * math.pi - 0.3, 9, dtype=torch.float64)
    sine, cosine = torch.sin(angle), torch.cos(angle)
    residual, solution = torch.exp(4 * cosine), torch.exp(4 * sine)
    weights = (residual / solution * torch.tan(angle)).sqrt()
    by_angle = weights * (-2 * sine - 2 * cosine + 0.5 / (sine * cosine))
    curvature = lcurve_curvature(weights, residual, solution, 4 * solution * cosine / by_angle)
    torch.testing.assert_close(curvature, torch.full_like(curvature, 0.5))


# --- invariants -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("frames", [-2, -1, 1, 2, 4])
@pytest.mark.parametrize("method", ["csvd", "osvd"])
def test_circulant_methods_do_not_see_whole_frames_of_delay(method: str, frames: int) -> None:
    aif = arterial()
    at_once, later = (deconvolve(tissue(6, delay), aif, DT, method) for delay in (0.0, frames * DT))
    torch.testing.assert_close(later, at_once.roll(frames), atol=1e-3 * float(at_once.max()), rtol=0)
    assert float(later.max()) == pytest.approx(float(at_once.max()), rel=1e-3)
    assert int(later.argmax()) == (int(at_once.argmax()) + frames) % (2 * FRAMES)


def test_ssvd_does_see_delay() -> None:
    """An arterial curve 3 s late makes flow 1.5 times as large or more."""
    aif = arterial()
    on_time, late = (deconvolve(tissue(4, delay), aif, DT, "ssvd").max() for delay in (0.0, -3.0))
    assert float(late / on_time) >= 1.5


def test_csvd_is_not_ssvd_in_disguise() -> None:
    aif = arterial()
    residue = deconvolve(tissue(6, -4.5), aif, DT, "csvd")
    assert residue.shape == (2 * FRAMES,)
    assert int(residue.argmax()) >= FRAMES  # a negative delay, never a large Tmax
    assert -4.5 < float(time_to_maximum(residue, DT, circulant=True)) < 0


@every_method
def test_scale(method: str) -> None:
    """Twice the contrast agent in both leaves the residue; in tissue alone, doubles it."""
    curves, aif = noisy(6)
    once = deconvolve(curves, aif, DT, method)
    torch.testing.assert_close(deconvolve(7 * curves, 7 * aif, DT, method), once, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(deconvolve(2 * curves, aif, DT, method), 2 * once, rtol=1e-6, atol=1e-9)


@every_method
def test_shapes_and_masks(method: str) -> None:
    curves, aif = noisy(12)
    volume = curves.reshape(3, 2, 2, 40)
    mask = torch.ones(3, 2, 2, dtype=torch.bool)
    mask[1, 0, 1] = mask[2, 1, 0] = False
    holed = torch.where(mask[..., None], volume, torch.nan)
    found = deconvolve(holed, aif, DT, method, mask=mask)
    assert found.shape == (3, 2, 2, 80 if method in CIRCULANT else 40)
    assert bool((found[~mask] == 0).all()) and bool(torch.isfinite(found).all())
    if method == "ttv":  # neighbours count
        other = deconvolve(torch.where(mask[..., None], volume, 50 * volume), aif, DT, method, mask=mask)
    else:
        other = torch.where(mask[..., None], deconvolve(volume, aif, DT, method), 0)
    torch.testing.assert_close(found, other)
    none = deconvolve(holed, aif, DT, method, mask=torch.zeros_like(mask))
    assert none.shape == found.shape and not bool(none.any())


def test_operator_of_many_arterial_curves() -> None:
    aifs = torch.stack([arterial(20), arterial(20).roll(2), arterial(20) ** 2]).reshape(3, 1, 20)
    operators = csvd_operator(aifs, DT, 0.2)
    assert operators.shape == (3, 1, 40, 20)
    curve = tissue(5, frames=20)
    for aif, operator in zip(aifs[:, 0], operators[:, 0], strict=True):
        torch.testing.assert_close(operator @ curve, deconvolve(curve, aif, DT, "csvd", threshold=0.2))


@voxelwise
def test_differentiable_in_the_concentration(method: str) -> None:
    curves, aif = noisy(3, frames=24)
    curves.requires_grad_(True)
    options = {"selection": "gcv"} if method == "tikhonov" else {}
    mask = torch.tensor([True, False, True])
    assert torch.autograd.gradcheck(lambda x: deconvolve(x, aif, DT, method, mask=mask, **options), curves)


@every_method
def test_nothing_in_nothing_out(method: str) -> None:
    found = deconvolve(torch.zeros(2, 30), arterial(30).float(), DT, method)
    assert not bool(found.any())


# --- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change, message",
    [
        ({"method": "fsvd"}, "method must be one of ssvd, csvd, osvd, tikhonov, ttv, got 'fsvd'"),
        ({"dt": 0.0}, "dt must be finite and positive"),
        ({"dt": math.nan}, "dt must be finite and positive"),
        ({"aif": torch.ones(9)}, "aif must be"),
        ({"aif": torch.zeros(10)}, "aif must not be zero"),
        ({"aif": torch.full((10,), torch.nan)}, "aif must be finite"),
        ({"aif": torch.ones(10, dtype=torch.int64)}, "aif must be floating"),
        ({"concentration": torch.full((2, 10), torch.inf)}, "concentration must be finite"),
        ({"concentration": torch.ones(2, 10, dtype=torch.int64)}, "concentration must be floating"),
        ({"mask": torch.ones(3, dtype=torch.bool)}, "mask must be bool"),
        ({"mask": torch.ones(2)}, "mask must be bool"),
        ({"threshold": 1.0}, "threshold must be at least 0 and less than 1"),
        ({"threshold": -0.1}, "threshold must be at least 0 and less than 1"),
        ({"method": "osvd", "threshold": 0.1}, "options of osvd must be among oscillation_index, got threshold"),
        ({"method": "csvd", "oscillation_index": 0.1}, "options of csvd"),
        ({"method": "osvd", "oscillation_index": 0.0}, "oscillation_index must be positive"),
        ({"method": "tikhonov", "selection": "aic"}, "selection must be one of lcurve, gcv"),
        ({"method": "tikhonov", "regularisation": 0.0}, "regularisation must be finite and positive"),
        ({"method": "ttv", "regularisation": -1.0}, "regularisation must be finite and positive"),
        ({"method": "ttv", "temporal": 0.0}, "temporal must be"),
        ({"method": "ttv", "iterations": 0}, "iterations must be at least 1"),
        ({"method": "ttv", "voxel_size": (1.0, 2.0)}, "voxel_size must be 1 positive numbers"),
        ({"method": "ttv", "concentration": torch.ones(1, 1, 1, 1, 10)}, "1 to 3 axes of space"),
        ({"method": "ttv", "concentration": torch.ones(2, 3), "aif": torch.ones(3)}, "4 frames or more"),
    ],
)
def test_bad_input(change: dict, message: str) -> None:
    arguments = {"concentration": torch.ones(2, 10), "aif": torch.ones(10), "dt": 1.5, "method": "csvd", **change}
    with pytest.raises(ValueError, match=message):
        deconvolve(**arguments)


def test_none_is_the_default() -> None:
    curves, aif = noisy(2)
    torch.testing.assert_close(
        deconvolve(curves, aif, DT, "csvd", threshold=None), deconvolve(curves, aif, DT, "csvd", threshold=0.1)
    )


# --- external curves ------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not OSIPI.is_file(), reason="../shared/data is absent")
@every_method
def test_osipi(method: str) -> None:
    """14 curves of a digital reference object, within the tolerances of the collection that they come from."""
    with OSIPI.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 14
    truth, flows = [], []
    for row in rows:
        curve, aif = (torch.tensor([float(v) for v in row[name].split()]) for name in ("C_tis", "C_aif"))
        maps = perfusion_maps(curve[None], aif, aif, float(row["tr"]), method, factor=1.0)
        cbv, cbf = float(row["cbv"]), float(row["cbf"])
        assert float(maps["cbv"]) == pytest.approx(cbv, abs=1 + 0.1 * cbv)
        assert float(maps["cbf"]) == pytest.approx(cbf, abs=15 + 0.1 * cbf)
        truth.append(cbf)
        flows.append(float(maps["cbf"]))
    assert np.corrcoef(truth, flows)[0, 1] > 0.99
