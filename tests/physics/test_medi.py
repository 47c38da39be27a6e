from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import scipy.optimize
import torch
from torch import Tensor

from physics.dipole import field_from_susceptibility
from physics.dipole_inversion import Iteration, medi

SIZE = (1.0, 1.2, 0.9)
OBLIQUE = (0.0, 0.6, 0.8)
SHAPE = (20, 22, 24)


def head(shape: tuple[int, int, int] = SHAPE) -> tuple[Tensor, Tensor, Tensor]:
    """Susceptibility of boxes in an ellipsoid [ppm], its mask and a magnitude with the same edges."""
    axes = [torch.linspace(-1, 1, n) for n in shape]
    x, y, z = torch.meshgrid(*axes, indexing="ij")
    mask = x**2 + y**2 + z**2 < 0.9
    chi = torch.where(x > 0.1, 0.03, -0.03)
    chi[(x.abs() < 0.4) & (y.abs() < 0.3) & (z.abs() < 0.4)] = 0.1
    chi[(x < -0.4) & (y < 0) & (z.abs() < 0.3)] = -0.1
    return chi * mask, mask, (1 + 4 * chi) * mask


def noisy(chi: Tensor, sigma: float, seed: int = 1) -> Tensor:
    field = field_from_susceptibility(chi, SIZE, OBLIQUE)
    return field + sigma * torch.randn(field.shape, generator=torch.Generator().manual_seed(seed))


def error(found: Tensor, chi: Tensor, mask: Tensor) -> float:
    """NRMSE of the demeaned maps."""
    a, b = (values[mask] - values[mask].mean() for values in (found, chi))
    return float((a - b).norm() / b.norm())


def test_recovers_noise_free_map() -> None:
    chi, mask, magnitude = head()
    found = medi(noisy(chi, 0), SIZE, OBLIQUE, mask, magnitude, regularisation=1e-5, iterations=20, padding=2)
    assert error(found, chi, mask) < 0.02
    assert found[~mask].abs().max() == 0
    assert float(found[mask].mean()) == pytest.approx(0, abs=1e-6)


def test_edges_of_the_magnitude_help() -> None:
    chi, mask, magnitude = head()
    field = noisy(chi, 0.004)
    edges, plain = (
        error(medi(field, SIZE, OBLIQUE, mask, m, regularisation=8e-4), chi, mask)
        for m in (magnitude, magnitude * 0 + mask)
    )
    assert edges < 0.8 * plain


def test_flat_magnitude_has_no_edges() -> None:
    chi, mask, magnitude = head()
    field = noisy(chi, 0.004)
    options = {"regularisation": 5e-4, "iterations": 3}
    flat = medi(field, SIZE, OBLIQUE, mask, 7.0 * mask, **options)
    torch.testing.assert_close(flat, medi(field, SIZE, OBLIQUE, mask, **options), atol=1e-6, rtol=0)
    free = medi(field, SIZE, OBLIQUE, mask, magnitude, edge_fraction=1.0, **options)
    unweighted = medi(field, SIZE, OBLIQUE, mask, magnitude, regularisation=0.0, iterations=3)
    torch.testing.assert_close(free, unweighted)


def test_unit_of_the_magnitude_is_of_no_account() -> None:
    chi, mask, magnitude = head()
    field = noisy(chi, 0.004)
    first, second = (medi(field, SIZE, OBLIQUE, mask, c * magnitude, iterations=3) for c in (1.0, 512.0))
    torch.testing.assert_close(first, second)


def test_dark_voxels_count_less() -> None:
    chi, mask, magnitude = head()
    field = noisy(chi, 0.001)
    dark = torch.zeros_like(mask)
    dark[4:8, 9:13, 9:13] = True
    field[dark] += 0.05 * torch.randn(int(dark.sum()), generator=torch.Generator().manual_seed(2))
    weighted = torch.where(dark, 0.01 * magnitude, magnitude)
    # without edges, so that the weights alone make the difference
    maps = [medi(field, SIZE, OBLIQUE, mask, m, edge_fraction=0, regularisation=2e-4) for m in (weighted, None)]
    assert error(maps[0], chi, mask) < 0.7 * error(maps[1], chi, mask)


def test_whole_turns_of_the_phase_are_of_no_account() -> None:
    chi, mask, magnitude = head()
    field = noisy(chi, 0.002).double()
    wrapped = field.clone()
    wrapped[8:11, 8:11, 8:11] += 2 * math.pi / 16
    clean, turned = (medi(f, SIZE, OBLIQUE, mask, magnitude, iterations=4) for f in (field, wrapped))
    torch.testing.assert_close(clean, turned, atol=1e-9, rtol=0)
    linear = medi(wrapped, SIZE, OBLIQUE, mask, magnitude, iterations=4, phase_per_ppm=0)
    assert error(linear, chi, mask) > 3 * error(clean, chi, mask)


def test_linear_data_term_is_the_limit_of_small_phases() -> None:
    chi, mask, magnitude = head()
    field = noisy(chi, 0.002).double()
    linear, small = (medi(field, SIZE, OBLIQUE, mask, magnitude, phase_per_ppm=s, iterations=4) for s in (0.0, 1e-3))
    torch.testing.assert_close(linear, small, atol=1e-8, rtol=0)


def test_csf_is_uniform_and_zero() -> None:
    chi, mask, magnitude = head()
    csf = torch.zeros_like(mask)
    csf[8:12, 9:13, 10:14] = True
    field = noisy(chi, 0.006)
    spreads = []
    for weight in (0.0, 0.1, 100.0):
        found = medi(field, SIZE, OBLIQUE, mask, regularisation=1e-5, csf_mask=csf, csf_weight=weight, iterations=6)
        assert float(found[csf].mean()) == pytest.approx(0, abs=1e-6)
        assert found[~mask].abs().max() == 0
        spreads.append(float(found[csf].std()))
    assert spreads[0] > spreads[1] > spreads[2]
    assert spreads[2] < 0.01 * spreads[0]


def test_csf_is_the_zero_of_the_map() -> None:
    chi, mask, magnitude = head()
    csf = torch.zeros_like(mask)
    csf[8:12, 9:13, 10:14] = True  # inside the middle box, 0.1 ppm
    options = {"regularisation": 1e-5, "csf_mask": csf, "iterations": 20, "padding": 2.0}
    found = medi(noisy(chi, 0), SIZE, OBLIQUE, mask, magnitude, **options)
    torch.testing.assert_close(found[mask], chi[mask] - 0.1, atol=0.004, rtol=0)


def test_large_regularisation_leaves_nothing_and_small_one_explains_the_field() -> None:
    chi, mask, _ = head()
    field = noisy(chi, 0.002)
    assert medi(field, SIZE, OBLIQUE, mask, regularisation=1e3).abs().max() < 1e-3
    residuals = []
    for regularisation in (1e-2, 1e-3, 1e-4, 1e-5):
        found = medi(field, SIZE, OBLIQUE, mask, regularisation=regularisation)
        residual = (field_from_susceptibility(found, SIZE, OBLIQUE) - field)[mask]
        residuals.append(float((residual - residual.mean()).norm()))
    assert all(a > b for a, b in itertools.pairwise(residuals))


def test_minimum_agrees_with_a_general_optimiser() -> None:
    shape, regularisation = (5, 6, 4), 2e-3
    generator = torch.Generator().manual_seed(3)
    n = math.prod(shape)
    units = torch.eye(n, dtype=torch.float64).reshape(n, *shape)
    dipole = field_from_susceptibility(units, SIZE, OBLIQUE).reshape(n, n).numpy()
    field = 0.1 * torch.randn(shape, generator=generator, dtype=torch.float64)
    magnitude = 0.5 + torch.rand(shape, generator=generator, dtype=torch.float64)
    index = np.arange(n).reshape(shape)
    rows = []
    for axis, d in enumerate(SIZE):
        low, high = (np.take(index, range(a, shape[axis] - 1 + a), axis).ravel() for a in (0, 1))
        rows.append((np.eye(n)[high] - np.eye(n)[low]) / d)
    gradient = np.concatenate(rows)
    steps = np.abs(gradient @ magnitude.numpy().ravel())
    gradient = gradient[steps <= np.sort(steps)[math.ceil(0.7 * len(steps)) - 1]]
    weights = (magnitude / magnitude.mean()).numpy().ravel()

    def cost(x: np.ndarray, smoothing: float) -> tuple[float, np.ndarray]:
        residual = weights * (dipole @ x - field.numpy().ravel())
        step = gradient @ x
        length = np.sqrt(step**2 + smoothing**2)
        value = residual @ residual / 2 + regularisation * length.sum()
        return value, dipole.T @ (weights * residual) + regularisation * gradient.T @ (step / length)

    best = scipy.optimize.minimize(
        cost, np.zeros(n), args=(1e-4,), jac=True, method="L-BFGS-B", options={"maxiter": 9000}
    )
    found = medi(
        field, SIZE, OBLIQUE, None, magnitude, regularisation=regularisation, phase_per_ppm=0, iterations=60,
        tolerance=1e-5, padding=2,
    ).numpy().ravel()  # fmt: skip
    free = best.x - best.x.mean()  # a constant has a field in free space, so the cost is compared with it put back
    costs = min(cost(found + best.x.mean(), 0.0)[0], cost(found, 0.0)[0])
    assert costs == pytest.approx(cost(best.x, 0.0)[0], rel=0.01)
    assert np.linalg.norm(found - free) < 0.05 * np.linalg.norm(free)


def test_batch_is_the_single_volumes_with_masks_of_their_own() -> None:
    chi, mask, magnitude = head()
    fields = torch.stack([noisy(chi, 0.002), noisy(0.5 * chi, 0.002, 2)])
    masks = torch.stack([mask, mask & (torch.arange(SHAPE[0]) < 14)[:, None, None]])
    both = medi(fields, SIZE, OBLIQUE, masks, magnitude, iterations=3)
    for field, inside, found in zip(fields, masks, both, strict=True):
        torch.testing.assert_close(found, medi(field, SIZE, OBLIQUE, inside, magnitude, iterations=3))


def test_permuted_and_shifted_axes_give_the_same_map() -> None:
    chi, mask, magnitude = (values.double() if values.is_floating_point() else values for values in head())
    field = noisy(chi, 0).double()
    order = (2, 0, 1)
    plain = medi(field, SIZE, OBLIQUE, mask, magnitude, iterations=3, padding=2)
    sizes, b0 = ([values[axis] for axis in order] for values in (SIZE, OBLIQUE))
    turned = medi(
        *(field.permute(order), sizes, b0, mask.permute(order), magnitude.permute(order)), iterations=3, padding=2
    )
    torch.testing.assert_close(turned, plain.permute(order), atol=1e-9, rtol=0)
    wider = [torch.nn.functional.pad(values, (3, 0, 1, 4, 0, 2)) for values in (field, mask, magnitude)]
    moved = medi(wider[0], SIZE, OBLIQUE, wider[1], wider[2], iterations=3, padding=2)
    torch.testing.assert_close(moved[:-2, 1:-4, 3:], plain, atol=1e-9, rtol=0)


def test_reports_every_step_and_stops_at_the_tolerance() -> None:
    chi, mask, magnitude = head()
    seen: list[Iteration] = []
    medi(noisy(chi, 0.002), SIZE, OBLIQUE, mask, magnitude, iterations=30, tolerance=0.01, report=seen.append)
    assert [s.number for s in seen] == list(range(1, len(seen) + 1))
    assert {(s.method, s.limit) for s in seen} == {("medi", 30)}
    assert seen[-1].change < 0.01 <= seen[-2].change
    assert seen[0].change > seen[1].change > seen[2].change


def test_zero_field_gives_zero() -> None:
    assert medi(torch.zeros(6, 7, 8), SIZE, OBLIQUE).abs().max() == 0


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"regularisation": -1.0}, "regularisation"),
        ({"regularisation": math.nan}, "regularisation"),
        ({"edge_fraction": 1.5}, "edge_fraction"),
        ({"csf_weight": -0.1}, "csf_weight"),
        ({"phase_per_ppm": math.inf}, "phase_per_ppm"),
        ({"iterations": 0}, "iterations"),
        ({"tolerance": -1.0}, "tolerance"),
        ({"csf_mask": torch.ones(6, 7, 8)}, "csf_mask must be bool"),
        ({"csf_mask": torch.zeros(6, 7, 8, dtype=torch.bool)}, "inside the mask"),
        ({"csf_mask": torch.ones(6, 7, 9, dtype=torch.bool)}, "shape of the field"),
        ({"magnitude": -torch.ones(6, 7, 8)}, "magnitude"),
        ({"mask": torch.zeros(6, 7, 8, dtype=torch.bool)}, "empty"),
        ({"b0_direction": (0, 0, 2.0)}, "unit length"),
    ],
)
def test_refuses(options: dict[str, object], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        medi(torch.ones(6, 7, 8), SIZE, **options)  # type: ignore[arg-type]
