from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from physics.dipole import field_from_susceptibility
from physics.dipole_inversion import Iteration, cosmos

SIZE = (1.0, 1.5, 0.8)


def tilts(count: int, angle: float = 40.0) -> list[tuple[float, float, float]]:
    """B0 along z, and tilted to several sides."""
    tilt = math.radians(angle)
    turns = [2 * math.pi * k / max(count - 1, 1) + 0.3 for k in range(count - 1)]
    around = [(math.sin(tilt) * math.cos(t), math.sin(tilt) * math.sin(t), math.cos(tilt)) for t in turns]
    return [(0.0, 0.0, 1.0), *around]


def measured(chi: Tensor, directions: list[tuple[float, float, float]], padding: float, kind: str = "exact") -> Tensor:
    return torch.stack([field_from_susceptibility(chi, SIZE, b0, kind, padding) for b0 in directions], -4)


def draw(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64).to(dtype)


def error(found: Tensor, chi: Tensor, mask: Tensor) -> float:
    a, b = (values[mask] - values[mask].mean() for values in (found, chi))
    return float((a - b).norm() / b.norm())


def ball(shape: tuple[int, int, int]) -> Tensor:
    axes = [torch.linspace(-1, 1, n) for n in shape]
    x, y, z = torch.meshgrid(*axes, indexing="ij")
    return x**2 + y**2 + z**2 < 0.8


@pytest.mark.parametrize("shape", [(12, 14, 16), (13, 12, 15)])
@pytest.mark.parametrize("kind", ["exact", "kspace"])
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-11), (torch.float32, 1e-5)])
@pytest.mark.parametrize("count", [3, 5])
def test_noise_free_oblique_is_exact(
    shape: tuple[int, int, int], kind: str, dtype: torch.dtype, limit: float, count: int
) -> None:
    directions = tilts(count)
    chi = draw(*shape, dtype=dtype)
    fields = measured(chi, directions, 1.0, kind)
    options = {"padding": 1.0, "iterations": 0, "threshold": 1e-4, "kernel": kind}
    assert error(cosmos(fields, SIZE, directions, **options), chi, torch.ones(shape, dtype=torch.bool)) < limit


def test_masked_fields_in_free_space() -> None:
    """Neither the field outside the mask is known, nor is anything periodic."""
    mask, directions = ball((12, 13, 14)), tilts(4, 60)
    chi = draw(12, 13, 14) * mask
    fields = measured(chi, directions, 2.0) * mask
    options = {"padding": 2.0, "threshold": 1e-3, "tolerance": 0.0}
    closed, some, many = (
        error(cosmos(fields, SIZE, directions, mask, iterations=n, **options), chi, mask) for n in (0, 10, 300)
    )
    assert many < 1e-5 < some < 0.5 * closed


def test_iterations_are_the_weighted_least_squares() -> None:
    shape, directions = (5, 4, 6), tilts(3, 50)
    n = math.prod(shape)
    mask = torch.ones(shape, dtype=torch.bool)
    mask[0, 0] = mask[-1, -1] = False
    kept = mask.flatten().numpy()
    fields, magnitude = draw(3, *shape), 0.5 + draw(*shape).abs()
    units = torch.eye(n, dtype=torch.float64).reshape(n, *shape)
    weights = magnitude.flatten().numpy()[kept]
    rows, data = [], []
    for field, b0 in zip(fields, directions, strict=True):
        dipole = field_from_susceptibility(units, SIZE, b0).reshape(n, n).T.numpy()
        rows.append(weights[:, None] * dipole[np.ix_(kept, kept)])
        data.append(weights * field.flatten().numpy()[kept])
    expected = np.linalg.lstsq(np.concatenate(rows), np.concatenate(data), rcond=None)[0]
    options = {"padding": 2.0, "iterations": 500, "tolerance": 1e-12, "threshold": 1e-4}
    found = cosmos(fields, SIZE, directions, mask, magnitude, **options)[mask].numpy()
    np.testing.assert_allclose(found, expected - expected.mean(), atol=1e-6 * np.abs(expected).max())


def test_more_directions_are_better() -> None:
    mask = ball((20, 20, 20))
    chi = torch.where(torch.arange(20)[:, None, None] > 9, 0.05, -0.05) * mask
    generator = torch.Generator().manual_seed(5)
    errors = []
    for count in (2, 3, 5, 9):
        fields = measured(chi, tilts(count), 2.0)
        fields += 0.005 * torch.randn(fields.shape, generator=generator)
        errors.append(error(cosmos(fields, SIZE, tilts(count), mask), chi, mask))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.7 * errors[0]


def test_unobserved_frequencies_are_zero() -> None:
    """Minimum norm: what no orientation sees is not made up, and a full threshold leaves nothing."""
    directions = tilts(3)
    fields = measured(draw(12, 12, 12), directions, 1.0)
    norms = [
        float(cosmos(fields, SIZE, directions, padding=1.0, iterations=0, threshold=t).norm())
        for t in (1e-4, 0.1, 0.2, 9.0)
    ]
    assert norms == sorted(norms, reverse=True)
    assert norms[-1] == 0


def test_order_and_sign_of_the_directions_are_of_no_account() -> None:
    directions = tilts(3)
    fields = draw(3, 8, 9, 10)
    plain = cosmos(fields, SIZE, directions)
    turned = cosmos(fields[[2, 0, 1]], SIZE, [tuple(-c for c in directions[k]) for k in (2, 0, 1)])
    torch.testing.assert_close(plain, turned, atol=1e-12, rtol=1e-9)
    torch.testing.assert_close(cosmos(fields, SIZE, torch.tensor(directions, dtype=torch.float64)), plain)


def test_linear() -> None:
    directions, options = tilts(3), {"iterations": 0}
    first, second = draw(2, 3, 8, 9, 10)
    both = cosmos(3 * first - second, SIZE, directions, **options)
    parts = [cosmos(fields, SIZE, directions, **options) for fields in (first, second)]
    torch.testing.assert_close(both, 3 * parts[0] - parts[1])
    torch.testing.assert_close(cosmos(1000 * first, SIZE, directions), 1000 * cosmos(first, SIZE, directions))


def test_permuted_axes_give_the_permuted_map() -> None:
    directions, order = tilts(3), (1, 2, 0)
    fields, mask = draw(3, 8, 9, 10), ball((8, 9, 10))
    plain = cosmos(fields, SIZE, directions, mask)
    turned = [tuple(b0[axis] for axis in order) for b0 in directions]
    found = cosmos(fields.permute(0, 2, 3, 1), [SIZE[axis] for axis in order], turned, mask.permute(order))
    torch.testing.assert_close(found, plain.permute(order), atol=1e-10, rtol=0)


def test_batch_is_the_single_volumes() -> None:
    directions = tilts(3)
    fields = draw(2, 2, 3, 8, 9, 10)
    masks = torch.stack([ball((8, 9, 10)), torch.ones(8, 9, 10, dtype=torch.bool)])
    magnitude = 1 + draw(8, 9, 10).abs()
    found = cosmos(fields, SIZE, directions, masks, magnitude)
    assert found.shape == (2, 2, 8, 9, 10)
    for i in range(2):
        for j in range(2):
            torch.testing.assert_close(found[i, j], cosmos(fields[i, j], SIZE, directions, masks[j], magnitude))
            assert found[i, j][~masks[j]].abs().sum() == 0
            assert float(found[i, j][masks[j]].mean()) == pytest.approx(0, abs=1e-12)


def test_reports_and_stops_at_the_tolerance() -> None:
    directions, mask = tilts(4, 60), ball((14, 14, 14))
    fields = measured(draw(14, 14, 14) * mask, directions, 2.0)
    seen: list[Iteration] = []
    cosmos(fields, SIZE, directions, mask, iterations=50, tolerance=0.02, report=seen.append)
    assert [s.number for s in seen] == list(range(1, len(seen) + 1))
    assert {(s.method, s.limit) for s in seen} == {("cosmos", 50)}
    assert seen[-1].change < 0.02 <= min(s.change for s in seen[:-1])


@pytest.mark.parametrize(
    ("shape", "directions", "options", "text"),
    [
        ((3, 6, 6, 6), tilts(2), {}, "one for each of the 3 fields, got 2"),
        ((1, 6, 6, 6), tilts(1), {}, "at least 2, got 1"),
        ((2, 6, 6, 6), [(0, 0, 1), (0, 0, -1)], {}, "parallel"),
        ((3, 6, 6, 6), [(0, 0, 1), (0, 0, 1), (0, 0.01, 1)], {}, "parallel"),
        ((2, 6, 6, 6), [(0, 0, 1), (0, 1, 1)], {}, "unit length"),
        ((6, 6, 6), tilts(6), {}, r"\[..., D, X, Y, Z\]"),
        ((2, 6, 6, 6), tilts(2), {"iterations": -1}, "iterations"),
        ((2, 6, 6, 6), tilts(2), {"threshold": 0.0}, "threshold"),
        ((2, 6, 6, 6), tilts(2), {"tolerance": -1.0}, "tolerance"),
        ((2, 6, 6, 6), tilts(2), {"padding": 0.5}, "padding"),
        ((2, 6, 6, 6), tilts(2), {"mask": torch.ones(6, 6, 5, dtype=torch.bool)}, "mask"),
    ],
)
def test_refuses(
    shape: tuple[int, ...], directions: list[tuple[float, float, float]], options: dict[str, object], text: str
) -> None:
    with pytest.raises(ValueError, match=text):
        cosmos(torch.ones(shape), SIZE, directions, **options)  # type: ignore[arg-type]
