from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse.linalg
import torch
from torch import Tensor

from physics.dipole import field_from_susceptibility
from physics.dipole_inversion import Iteration, ilsqr, tkd
from physics.dipole_inversion.ilsqr import lsqr

SIZE = (1.0, 1.2, 0.9)
OBLIQUE = (0.0, 0.6, 0.8)
SHAPE = (24, 26, 28)


def head() -> tuple[Tensor, Tensor]:
    """Susceptibility of smooth blobs and boxes in an ellipsoid [ppm], and its mask."""
    axes = [torch.linspace(-1, 1, n) for n in SHAPE]
    x, y, z = torch.meshgrid(*axes, indexing="ij")
    mask = x**2 + y**2 + z**2 < 0.9
    chi = 0.05 * torch.exp(-8 * ((x - 0.3) ** 2 + y**2 + z**2))
    chi[(x < -0.2) & (x > -0.6) & (y.abs() < 0.3) & (z.abs() < 0.3)] = 0.1
    chi[(x.abs() < 0.2) & (y > 0.3) & (y < 0.6) & (z.abs() < 0.3)] = -0.1
    return chi * mask, mask


def noisy(chi: Tensor, sigma: float) -> Tensor:
    field = field_from_susceptibility(chi, SIZE, OBLIQUE)
    return field + sigma * torch.randn(field.shape, generator=torch.Generator().manual_seed(1))


def error(found: Tensor, chi: Tensor, mask: Tensor) -> float:
    a, b = (values[mask] - values[mask].mean() for values in (found, chi))
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("iterations", [1, 3, 10])
@pytest.mark.parametrize(("rows", "columns"), [(30, 20), (15, 25)])
def test_lsqr_agrees_with_scipy_after_each_iteration(iterations: int, rows: int, columns: int) -> None:
    generator = torch.Generator().manual_seed(2)
    matrix = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    data = torch.randn(rows, generator=generator, dtype=torch.float64)
    changes: list[float] = []
    found = lsqr(lambda x: matrix @ x, lambda y: matrix.T @ y, data, iterations, lambda _, c: bool(changes.append(c)))
    options = {"atol": 0, "btol": 0, "conlim": 0}
    expected = scipy.sparse.linalg.lsqr(matrix.numpy(), data.numpy(), iter_lim=iterations, **options)[0]
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-8, atol=1e-12)
    before = scipy.sparse.linalg.lsqr(matrix.numpy(), data.numpy(), iter_lim=iterations - 1, **options)[0]
    step = np.linalg.norm(expected - (before if iterations > 1 else 0)) / np.linalg.norm(expected)
    assert changes[-1] == pytest.approx(step, rel=1e-6)


def test_lsqr_ends_with_the_solution_of_least_norm() -> None:
    generator = torch.Generator().manual_seed(3)
    matrix = torch.randn(6, 9, generator=generator, dtype=torch.float64)
    data = torch.randn(6, generator=generator, dtype=torch.float64)
    found = lsqr(lambda x: matrix @ x, lambda y: matrix.T @ y, data, 60, lambda *_: False)
    np.testing.assert_allclose(found.numpy(), np.linalg.pinv(matrix.numpy()) @ data.numpy(), rtol=1e-9)
    assert lsqr(lambda x: matrix @ x, lambda y: matrix.T @ y, 0 * data, 5, lambda *_: False).abs().max() == 0


def test_noise_free_map_is_near_the_truth() -> None:
    chi, mask = head()
    found = ilsqr(noisy(chi, 0), SIZE, OBLIQUE, mask, iterations=60, tolerance=0, threshold=0.1)
    assert error(found, chi, mask) < 0.3
    assert found[~mask].abs().max() == 0
    assert float(found[mask].mean()) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("sigma", [0.002, 0.005])
def test_better_than_truncated_division_and_than_with_the_streaks(sigma: float) -> None:
    chi, mask = head()
    field = noisy(chi, sigma)
    streaky = ilsqr(field, SIZE, OBLIQUE, mask, threshold=1e-9)  # no frequency is near the cone
    clean = ilsqr(field, SIZE, OBLIQUE, mask)
    truncated = tkd(field, SIZE, OBLIQUE, mask)
    assert error(clean, chi, mask) < min(0.95 * error(streaky, chi, mask), error(truncated, chi, mask))


def test_streaks_lie_near_the_cone() -> None:
    """What is subtracted has next to no field: the data are explained as well as before."""
    chi, mask = head()
    field = noisy(chi, 0.005)
    streaky, clean = (ilsqr(field, SIZE, OBLIQUE, mask, threshold=t) for t in (1e-9, 0.1))
    removed = streaky - clean
    assert removed.norm() > 0.1 * streaky.norm()
    ratios = [float(field_from_susceptibility(m, SIZE, OBLIQUE)[mask].norm() / m.norm()) for m in (removed, chi)]
    assert ratios[0] < 0.5 * ratios[1]


def test_scales_with_the_field() -> None:
    chi, mask = head()
    field = noisy(chi, 0.003).double()
    plain, scaled = (ilsqr(c * field, SIZE, OBLIQUE, mask, iterations=8) for c in (1.0, 1000.0))
    torch.testing.assert_close(scaled, 1000 * plain, rtol=1e-6, atol=1e-9)


def test_batch_is_the_single_volumes() -> None:
    chi, mask = head()
    fields = torch.stack([noisy(chi, 0.003), noisy(-0.5 * chi, 0.001)])
    masks = torch.stack([mask, mask & (torch.arange(SHAPE[0]) < 18)[:, None, None]])
    for field, inside, found in zip(fields, masks, ilsqr(fields, SIZE, OBLIQUE, masks, iterations=5), strict=True):
        torch.testing.assert_close(found, ilsqr(field, SIZE, OBLIQUE, inside, iterations=5))


def test_permuted_axes_give_the_permuted_map() -> None:
    chi, mask = head()
    field, order = noisy(chi, 0.003).double(), (2, 0, 1)
    plain = ilsqr(field, SIZE, OBLIQUE, mask, iterations=6)
    sizes, b0 = ([values[axis] for axis in order] for values in (SIZE, OBLIQUE))
    turned = ilsqr(field.permute(order), sizes, b0, mask.permute(order), iterations=6)
    torch.testing.assert_close(turned, plain.permute(order), atol=1e-8, rtol=0)


def test_reports_both_solutions_and_stops_at_the_tolerance() -> None:
    chi, mask = head()
    seen: list[Iteration] = []
    ilsqr(noisy(chi, 0.003), SIZE, OBLIQUE, mask, iterations=40, tolerance=0.05, report=seen.append)
    assert {(s.method, s.limit) for s in seen} == {("ilsqr", 80)}
    for start in (0, 40):
        part = [s for s in seen if start < s.number <= start + 40]
        assert [s.number for s in part] == list(range(start + 1, start + len(part) + 1))
        assert part[-1].change < 0.05 <= min(s.change for s in part[:-1])
    seen.clear()
    ilsqr(noisy(chi, 0.003), SIZE, OBLIQUE, mask, iterations=4, tolerance=0, report=seen.append)
    assert [s.number for s in seen] == list(range(1, 9))


def test_zero_field_gives_zero() -> None:
    assert ilsqr(torch.zeros(8, 9, 10), SIZE, OBLIQUE).abs().max() == 0


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"threshold": 0.0}, "threshold"),
        ({"threshold": 0.7}, "threshold"),
        ({"iterations": 0}, "iterations"),
        ({"tolerance": -1.0}, "tolerance"),
        ({"kernel": "nearest"}, "kernel"),
        ({"padding": 0.9}, "padding"),
        ({"mask": torch.zeros(6, 7, 8, dtype=torch.bool)}, "empty"),
        ({"voxel_size": (1, 1, 0)}, "voxel_size"),
    ],
)
def test_refuses(options: dict[str, object], text: str) -> None:
    arguments = {"voxel_size": SIZE} | options
    with pytest.raises(ValueError, match=text):
        ilsqr(torch.ones(6, 7, 8), **arguments)  # type: ignore[arg-type]


def test_refuses_a_field_that_is_not_finite() -> None:
    field = torch.ones(6, 7, 8)
    field[2, 3, 4] = torch.nan
    with pytest.raises(ValueError, match="finite"):
        ilsqr(field, SIZE)
