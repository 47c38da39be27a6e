"""The pieces of the estimators against dense linear algebra, autograd and their limits."""

from __future__ import annotations

import math

import pytest
import torch

from physics.estimation.field import FieldProblem, eliminate, start_field
from physics.estimation.levenberg_marquardt import apply_step, bounds_tensor, refine
from physics.estimation.likelihood import equations, negative_log_likelihood
from physics.estimation.packed import invert, pack_index, solve
from physics.estimation.smooth import ConstantPrior, SmoothPrior, laplacian
from physics.noise import add_gaussian_noise, add_rician_noise, gaussian_nll, rician_nll
from physics.relaxometry import InversionRecovery, SpinEcho

TIMES = [0.05, 0.1, 0.2, 0.4, 0.7, 1.1, 1.6, 2.2, 3.0]
LIMITS = {"B": (0.5, 2.5), "T1": (0.01, 10.0)}
every_noise = pytest.mark.parametrize("noise", ["gaussian", "rician"])


def voxels(count: int, generator: torch.Generator) -> torch.Tensor:
    """Parameters [3, count] with amplitudes in noise units, float64."""
    low, high = torch.tensor([[5.0], [1.5], [0.3]]).double(), torch.tensor([[30.0], [2.0], [2.0]]).double()
    return low + (high - low) * torch.rand(3, count, generator=generator, dtype=torch.float64)


def noisy(model, parameters, noise, generator):
    return (add_rician_noise if noise == "rician" else add_gaussian_noise)(model(*parameters), 1.0, generator)


# Small matrices


def matrices(size: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Symmetric positive matrices [20, size, size] of badly scaled rows, and the same packed."""
    root = torch.randn(20, size, size + 2, generator=generator, dtype=torch.float64)
    scale = torch.logspace(-3, 4, size, dtype=torch.float64)
    full = (root @ root.mT) * scale[:, None] * scale
    return full, torch.stack([full[:, q, r] for q in range(size) for r in range(q + 1)])


def test_packing_is_symmetric_and_complete():
    places = [pack_index(q, r) for q in range(4) for r in range(q + 1)]
    assert places == list(range(10))
    assert pack_index(1, 3) == pack_index(3, 1)


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_small_systems_are_solved_and_inverted(size, generator):
    full, packed = matrices(size, generator)
    right = torch.randn(20, size, generator=generator, dtype=torch.float64)
    expected = torch.linalg.solve(full, right)
    torch.testing.assert_close(torch.stack(solve(packed, list(right.T)), 1), expected, rtol=1e-8, atol=0)
    diagonal, regular = invert(packed, size)
    expected = torch.linalg.inv(full).diagonal(dim1=1, dim2=2)
    torch.testing.assert_close(torch.stack(diagonal, 1), expected, rtol=1e-8, atol=0)
    assert regular.all()


def test_damping_is_relative_to_the_diagonal(generator):
    full, packed = matrices(3, generator)
    right = torch.randn(20, 3, generator=generator, dtype=torch.float64)
    damping = torch.linspace(0, 5, 20, dtype=torch.float64)
    damped = full + damping[:, None, None] * torch.diag_embed(full.diagonal(dim1=1, dim2=2))
    result = torch.stack(solve(packed, list(right.T), damping), 1)
    torch.testing.assert_close(result, torch.linalg.solve(damped, right), rtol=1e-8, atol=0)


def test_singular_matrices_are_told_and_harmless():
    packed = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]], dtype=torch.float64)
    diagonal, regular = invert(packed, 2)
    assert not regular.any()
    assert torch.isfinite(torch.stack(diagonal)).all()
    assert torch.isfinite(torch.stack(solve(packed, [torch.ones(2).double()] * 2, 1e-3))).all()


# Likelihood


@every_noise
def test_gradient_is_that_of_autograd(noise, generator):
    model = InversionRecovery(TIMES, 6.0).double()
    parameters = voxels(40, generator)
    data = noisy(model, parameters, noise, generator)
    logged = parameters.clone()
    logged[2] = logged[2].log()
    logged.requires_grad_()
    likelihood = rician_nll if noise == "rician" else gaussian_nll
    nll = likelihood(data, model(logged[0], logged[1], logged[2].exp()), 1.0).sum(0)
    (expected,) = torch.autograd.grad(nll.sum(), logged)
    state = equations(model, data, parameters, noise)
    torch.testing.assert_close(state[0], nll.detach(), rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(state[1:4], expected, rtol=1e-4, atol=1e-2 if noise == "rician" else 1e-9)
    torch.testing.assert_close(negative_log_likelihood(model, data, parameters, noise), state[0])


@every_noise
def test_fisher_matrix_gives_the_cramer_rao_bound(noise, generator):
    model = InversionRecovery(TIMES).double()
    parameters = voxels(30, generator)
    data = noisy(model, parameters, noise, generator)
    expected = model.cramer_rao_bound(*parameters, sigma=1.0, noise=noise)
    for exact, tolerance in ((True, 1e-6), (False, 0.02)):
        variance, regular = invert(equations(model, data, parameters, noise, exact)[4:], 3)
        bound = torch.stack(variance).sqrt()
        bound[2] *= parameters[2]
        assert regular.all()
        torch.testing.assert_close(bound, expected, rtol=tolerance, atol=0)


@pytest.mark.parametrize(
    ("model", "rest"), [(SpinEcho([0.01, 0.1]), (0.1,)), (InversionRecovery([0.01, 0.1]), (2.0, 1.0))]
)
def test_a_vanished_signal_still_has_its_residual(model, rest):
    """Else an amplitude of zero would look like a perfect fit. Both signs of the recovery are covered."""
    parameters = torch.tensor([0.0, *rest])[:, None]
    state = equations(model, torch.tensor([[3.0], [4.0]]), parameters, "gaussian")
    assert state[0].item() == pytest.approx(12.5)
    assert state[1].item() < 0  # more amplitude, more likelihood


# Levenberg-Marquardt


@every_noise
def test_refinement_never_goes_uphill_and_ends_where_the_gradient_vanishes(noise, generator):
    model = InversionRecovery(TIMES).double()
    truth = voxels(300, generator)
    data = noisy(model, truth, noise, generator)
    start = truth * (0.7 + 0.6 * torch.rand(3, 300, generator=generator, dtype=torch.float64))
    bounds = bounds_tensor(LIMITS, data)
    before = negative_log_likelihood(model, data, start.clamp(max=bounds[1, :]), noise)
    last = before
    for iterations in (1, 3, 10, 60):
        found, state, converged = refine(
            model, data, start.clamp(max=bounds[1, :]), bounds, noise, iterations=iterations, tolerance=1e-10
        )
        assert (state[0] <= last + 1e-9).all()
        last = state[0]
    # negative data, which Gaussian noise leaves near a null, draw the null to a time: a minimum with a kink
    inside = converged & (found[1] > 0.51) & (found[1] < 2.49) & (data > 0).all(0)
    assert inside.float().mean() > 0.6
    slope = state[1:4] / state[4:][[0, 2, 5]].sqrt()  # in standard deviations
    assert slope[:, inside].abs().quantile(0.98) < 1e-3


def test_fixed_parameters_stay(generator):
    model = InversionRecovery(TIMES)
    truth = voxels(50, generator).float()
    start = truth * torch.tensor([[1.3], [0.95], [0.8]])
    found, _, _ = refine(model, model(*truth), start, bounds_tensor(LIMITS, start), "gaussian", fixed=(1,))
    assert torch.equal(found[1], start[1])
    assert not torch.isclose(found[[0, 2]], start[[0, 2]]).any()


def test_a_step_keeps_the_bounds_and_is_straight_in_a_and_ab():
    bounds = bounds_tensor(LIMITS, torch.ones(1))
    parameters = torch.tensor([[10.0], [2.0], [1.0]])
    moved = apply_step(parameters, torch.tensor([[1.0], [0.1], [0.2]]), bounds)
    assert moved[0].item() == pytest.approx(11.0)
    assert (moved[0] * moved[1]).item() == pytest.approx(20.0 + 2.0 * 1.0 + 10.0 * 0.1)
    assert moved[2].item() == pytest.approx(math.exp(0.2))
    far = apply_step(parameters, torch.tensor([[-50.0], [9.0], [99.0]]), bounds)
    assert far[0].item() == 0.0
    assert LIMITS["B"][0] <= far[1].item() <= LIMITS["B"][1]
    assert far[2].item() == pytest.approx(math.e)  # one factor e at a time


# Priors on the field


def dense(smoothness: float, height: int, width: int) -> torch.Tensor:
    """Matrix of the smooth prior, one column a voxel."""
    unit = torch.eye(height * width, dtype=torch.float64).view(-1, height, width)
    columns = laplacian(unit).flatten(1)
    return smoothness * columns @ columns.T


@pytest.mark.parametrize("shape", [(5, 7), (1, 6), (8, 1)])
def test_the_laplacian_is_symmetric_and_knows_constants_and_curvature(shape, generator):
    field = torch.randn(2, *shape, generator=generator, dtype=torch.float64)
    other = torch.randn(2, *shape, generator=generator, dtype=torch.float64)
    torch.testing.assert_close((laplacian(field) * other).sum(), (field * laplacian(other)).sum())
    torch.testing.assert_close(laplacian(torch.full(shape, 3.0)), torch.zeros(shape))
    parabola = torch.arange(9.0)[:, None] ** 2 + 0.5 * torch.arange(8.0) ** 2
    torch.testing.assert_close(laplacian(parabola)[1:-1, 1:-1], torch.full((7, 6), 3.0))


@pytest.mark.parametrize("smoothness", [1.0, 500.0, 1e6])
def test_the_smooth_step_solves_its_dense_system(smoothness, generator):
    height, width = 9, 11
    curvature = 50.0 * torch.rand(2, height, width, generator=generator, dtype=torch.float64)
    curvature[:, :3] = 0.0  # no data there
    gradient = torch.randn(2, height, width, generator=generator, dtype=torch.float64) * (curvature > 0)
    field = 1.8 + 0.01 * torch.randn(2, height, width, generator=generator, dtype=torch.float64)
    prior = SmoothPrior(smoothness, field)
    matrix = dense(smoothness, height, width)
    step = torch.zeros_like(field)
    for _ in range(4):  # each solution reduces the residual thirtyfold
        step = step + prior.step(curvature, gradient + curvature * step, field + step)
    for image in range(2):
        right = -(gradient[image].flatten() + matrix @ field[image].flatten())
        expected = torch.linalg.solve(matrix + torch.diag(curvature[image].flatten()), right)
        torch.testing.assert_close(step[image].flatten(), expected, rtol=1e-3, atol=1e-5)
    flat = field.flatten(1)
    torch.testing.assert_close(prior.energy(field), 0.5 * torch.einsum("ia,ab,ib->i", flat, matrix, flat))


def test_the_variance_of_a_smooth_field_is_that_of_the_dense_estimator():
    """For a uniform curvature it is exact on average; c is the information, P the prior's matrix."""
    height, width = 10, 12
    curvature = torch.full((1, height, width), 7.0, dtype=torch.float64)
    for smoothness in (0.1, 20.0, 1e5):
        prior = SmoothPrior(smoothness, curvature)
        inverse = torch.linalg.inv(dense(smoothness, height, width) + 7.0 * torch.eye(height * width).double())
        expected = (inverse @ (7.0 * inverse)).diagonal().mean()
        torch.testing.assert_close(prior.variance(curvature).mean(), expected, rtol=1e-4, atol=0)
    rough, stiff = SmoothPrior(1e-9, curvature), SmoothPrior(1e12, curvature)
    torch.testing.assert_close(rough.variance(curvature), 1 / curvature, rtol=1e-3, atol=0)
    torch.testing.assert_close(stiff.variance(curvature), ConstantPrior().variance(curvature), rtol=1e-3, atol=0)


def test_the_constant_step_is_that_of_the_sum(generator):
    curvature = torch.rand(3, 4, 5, generator=generator, dtype=torch.float64)
    gradient = torch.randn(3, 4, 5, generator=generator, dtype=torch.float64)
    step = ConstantPrior().step(curvature, gradient, torch.zeros_like(curvature))
    torch.testing.assert_close(step[:, 0, 0], -gradient.sum((1, 2)) / curvature.sum((1, 2)))
    assert not step.std((1, 2)).any()


# B as a field


def problem(noise, generator, b=1.83):
    model = InversionRecovery(TIMES)
    parameters = voxels(2 * 40 * 40, generator).float()
    parameters[1] = b
    data = noisy(model, parameters, noise, generator)
    return FieldProblem(model, data, data, torch.ones(2, 40, 40, dtype=torch.bool), LIMITS, noise), parameters


def test_elimination_is_the_schur_complement(generator):
    model = InversionRecovery(TIMES).double()
    parameters = voxels(15, generator)
    state = equations(model, noisy(model, parameters, "gaussian", generator), parameters, "gaussian")
    curvature, gradient, step, slope = eliminate(state, damping=0.0)
    for voxel in range(15):
        full = torch.stack([torch.stack([state[4 + pack_index(q, r), voxel] for r in range(3)]) for q in range(3)])
        torch.testing.assert_close(curvature[voxel], 1 / torch.linalg.inv(full)[1, 1], rtol=1e-8, atol=0)
        newton = -torch.linalg.solve(full, state[1:4, voxel])
        torch.testing.assert_close(-gradient[voxel] / curvature[voxel], newton[1], rtol=1e-6, atol=0)
        torch.testing.assert_close(step[:, voxel] + slope[:, voxel] * newton[1], newton[[0, 2]], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("shared", [True, False])
def test_the_start_of_the_field_is_near_the_truth(shared, generator):
    posed, _ = problem("gaussian", generator)
    field = start_field(posed, shared)
    assert field.shape == posed.mask.shape
    assert (field - 1.83).abs().max() < 0.06


def test_fields_and_voxels_are_mapped_to_and_fro(generator):
    mask = torch.rand(3, 5, 6, generator=generator) > 0.4
    count = int(mask.sum())
    posed = FieldProblem(InversionRecovery(TIMES), torch.ones(9, count), torch.ones(9, count), mask, LIMITS, "gaussian")
    values = torch.arange(count, dtype=torch.float32)
    field = posed.to_field(values)
    assert torch.equal(field[mask].float(), values)
    assert not field[~mask].any()
    assert torch.equal(posed.to_voxels(field), values)
    torch.testing.assert_close(posed.per_image(values), field.sum((1, 2)))
