"""B shared by an image, or smooth over it, with A and the relaxation time T eliminated in closed form.

Minimised over all voxels x of an image, sigma being the noise standard deviation:

    sum_x nll(data(x) / sigma; A(x), B(x), T(x)) + smoothness / 2 * sum_x (Laplacian B)(x)**2

(Sabidussi et al. 2021, Eq. 2 and section 4.4.1, lambda_B = 500.) The likelihood is normalised by sigma, so the weight
is the inverse variance expected of the Laplacian of B, whatever the noise. The Laplacian reflects at the edges of the
image; an infinite smoothness gives one B for each image. Voxels outside the mask have no data term: there the field
is interpolated.

The start pools the likelihood of B, with A and T at their best, over cells of 16 x 16 voxels: that of one voxel says
next to nothing of B. Each round is a Gauss-Newton step of B with the Schur complements of (A, T), then a descent
in (A, T) at the new B in which each voxel may change to another of its local minima, then a check that the sum
has decreased, or else more damping.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from physics.estimation.grid import Dictionary, build_dictionary, chunks, default_grid
from physics.estimation.levenberg_marquardt import apply_step, bounds_tensor, refine
from physics.estimation.likelihood import negative_log_likelihood
from physics.estimation.packed import pack_index, solve
from physics.estimation.smooth import ConstantPrior, Prior, SmoothPrior
from physics.relaxometry import SignalModel

__all__ = ["FieldFit", "FieldProblem", "eliminate", "fit_field"]

_CELL = 16  # voxels
_LEVELS = 64  # values of B at which T is searched
_ENOUGH = 1.0  # change of the log-likelihood of an image below which its B has converged
_STUCK = 30.0  # damping beyond which it cannot be improved: voxels change between minima at each step


@dataclass
class FieldProblem:
    """Data and constraints of one fit, and where its voxels lie.

    Attributes:
        model: signal model of (A, B, T).
        data: magnitudes of the voxels in the mask in noise units, ``[N, V]``.
        search_data: the same without the bias of Rician noise, for least-squares searches.
        mask: voxels with data, ``[images, H, W]``.
        limits: lowest and highest B and T1.
        noise: ``"gaussian"`` or ``"rician"``.
    """

    model: SignalModel
    data: Tensor
    search_data: Tensor
    mask: Tensor
    limits: Mapping[str, tuple[float, float]]
    noise: str

    def __post_init__(self) -> None:
        self.bounds = bounds_tensor(self.limits, self.data)
        self.place = self.mask.flatten().nonzero()[:, 0]
        self.image = self.place // (self.mask.shape[1] * self.mask.shape[2])

    def to_field(self, values: Tensor) -> Tensor:
        """Values of the voxels ``[V]`` as images ``[images, H, W]`` in float64, zero outside the mask."""
        flat = torch.zeros(self.mask.numel(), dtype=torch.float64, device=values.device)
        flat[self.place] = values.double()
        return flat.view(self.mask.shape)

    def to_voxels(self, field: Tensor) -> Tensor:
        """Values of images ``[images, H, W]`` at the voxels, ``[V]``."""
        return field.reshape(-1)[self.place].to(self.data.dtype)

    def per_image(self, values: Tensor) -> Tensor:
        """Sums over the voxels of each image, ``[images]``."""
        sums = torch.zeros(len(self.mask), dtype=torch.float64, device=values.device)
        return sums.index_add_(0, self.image, values.double())


@dataclass
class FieldFit:
    """Parameters ``[3, V]``, their :func:`equations`, converged ``[V]`` and sampling variance of B ``[V]``."""

    parameters: Tensor
    state: Tensor
    converged: Tensor
    variance: Tensor


def _peak(profile: Tensor, grid: Tensor) -> Tensor:
    """Place of the maximum of ``[G, ...]`` on a uniform grid ``[G]``, refined by a parabola."""
    top = profile.argmax(0, keepdim=True).clamp(1, len(grid) - 2)
    left, middle, right = (profile.gather(0, top + offset)[0] for offset in (-1, 0, 1))
    bend = (2.0 * middle - left - right).clamp(min=1e-12)
    return grid[top[0]] + (0.5 * (right - left) / bend).clamp(-1.0, 1.0) * (grid[1] - grid[0])


def _pooled_profiles(problem: FieldProblem, dictionary: Dictionary) -> Tensor:
    """Log-likelihood of each B of the grid with A and T at their best, by cell: ``[G, images, rows, columns]``."""
    height, width = problem.mask.shape[1:]
    rows, columns = -(-height // _CELL), -(-width // _CELL)
    y, x = problem.place // width % height, problem.place % width
    cell = (problem.image * rows + y // _CELL) * columns + x // _CELL
    sums = torch.zeros(len(dictionary.inversion), len(problem.mask) * rows * columns, device=cell.device).double()
    for part in chunks(len(cell)):
        best = dictionary.correlate(problem.search_data[:, part]).amax(1)
        sums.index_add_(1, cell[part], 0.5 * best.double().square())
    return sums.view(-1, len(problem.mask), rows, columns)


def start_field(problem: FieldProblem, shared: bool) -> Tensor:
    """First field of B ``[images, H, W]`` from log-likelihoods pooled over cells, or over each image."""
    low, high = problem.limits["B"]
    span = (max(low, 1.0), min(high, 2.2)) if low < 2.2 and high > 1.0 else (low, high)
    grid = default_grid(problem.model, problem.limits) | {"B": torch.linspace(*span, 21)}
    dictionary = build_dictionary(problem.model, grid, like=problem.data)
    values = dictionary.inversion.double()
    cells = _pooled_profiles(problem, dictionary)
    whole = cells.sum((-2, -1), keepdim=True)
    if shared:
        return _peak(whole, values).expand(problem.mask.shape)
    row = cells.new_tensor([0.5, 1.0, 0.5])
    kernel = (row[:, None] * row).expand(cells.shape[1], 1, 3, 3)
    coarse = _peak(F.conv2d(cells, kernel, padding=1, groups=cells.shape[1]) + 0.02 * whole, values)
    return F.interpolate(coarse[:, None], size=problem.mask.shape[1:], mode="bilinear")[:, 0]


def eliminate(state: Tensor, damping: float = 1e-4) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Eliminate A and log T from the equations of voxels ``[10, V]``.

    Returns:
        Curvature and gradient of B, each ``[V]``; steps of (A, log T) at fixed B and their slopes by B, ``[2, V]``.
    """
    gradient, fisher = state[1:4], state[4:]
    inner = torch.stack([fisher[pack_index(0, 0)], fisher[pack_index(0, 2)], fisher[pack_index(2, 2)]])
    cross = [fisher[pack_index(1, 0)], fisher[pack_index(1, 2)]]
    slope = -torch.stack(solve(inner, cross, damping))
    step = -torch.stack(solve(inner, [gradient[0], gradient[2]], damping))
    curvature = fisher[pack_index(1, 1)] + cross[0] * slope[0] + cross[1] * slope[1]
    return curvature.clamp(min=0.0), gradient[1] + slope[0] * gradient[0] + slope[1] * gradient[2], step, slope


def _search(dictionary: Dictionary, data: Tensor, inversion: Tensor) -> Tensor:
    """Best A and T of the dictionary for voxels ``[N, V]`` of known B ``[V]``: parameters ``[3, V]``."""
    found = data.new_empty(3, data.shape[1])
    found[1] = inversion
    level = torch.bucketize(inversion, 0.5 * (dictionary.inversion[1:] + dictionary.inversion[:-1]))
    for k, voxels in enumerate(level.argsort().split(level.bincount(minlength=len(dictionary.inversion)).tolist())):
        if len(voxels):
            projection, index = (dictionary.atoms[k] @ data[:, voxels]).max(0)
            found[0, voxels] = projection.clamp(min=0.0) / dictionary.norms[k, index]
            found[2, voxels] = dictionary.relaxation[index]
    return found


def _relax(
    problem: FieldProblem, starts: list[Tensor], inversion: Tensor, iterations: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Descend in (A, T) at fixed B ``[V]`` from the best, at each voxel, of the grid and of given starts ``[3, V]``."""
    levels = torch.linspace(float(inversion.min()), float(inversion.max()) + 1e-6, _LEVELS)
    grid = default_grid(problem.model, problem.limits) | {"B": levels}
    dictionary = build_dictionary(problem.model, grid, like=problem.data)
    found = _search(dictionary, problem.search_data, inversion)
    descend = partial(
        refine, problem.model, bounds=problem.bounds, noise=problem.noise, fixed=(1,), iterations=iterations
    )
    parts = []
    for part in chunks(problem.data.shape[1]):
        data, start = problem.data[:, part], found[:, part]
        if starts:
            candidates = torch.stack([start, *(other[:, part] for other in starts)])
            nll = torch.stack([negative_log_likelihood(problem.model, data, c, problem.noise) for c in candidates])
            start = candidates.gather(0, nll.argmin(0).expand(1, 3, -1))[0]
        parts.append(descend(data, start))
    parameters, state, converged = (torch.cat(columns, -1) for columns in zip(*parts, strict=True))
    return parameters, state, converged


def fit_field(problem: FieldProblem, smoothness: float | None, iterations: int = 10) -> FieldFit:
    """Fit A and T of each voxel and a field of B of each image.

    Args:
        problem: data and constraints.
        smoothness: weight of the squared Laplacian of B; None for one B an image.
        iterations: largest number of Gauss-Newton steps of B.
    """
    low, high = problem.limits["B"]
    field = start_field(problem, smoothness is None).clamp(low, high)
    prior: Prior = ConstantPrior() if smoothness is None else SmoothPrior(smoothness, field)
    parameters, state, converged = _relax(problem, [], problem.to_voxels(field), 4)
    objective = problem.per_image(state[0]) + prior.energy(field)
    damping = torch.full_like(objective, 1e-3)
    settled = torch.zeros_like(objective, dtype=torch.bool)
    for _ in range(iterations):
        curvature, gradient, step, slope = eliminate(state)
        images = problem.to_field(curvature)
        images = images + (damping * images.mean((-2, -1)))[:, None, None]
        trial_field = (field + prior.step(images, problem.to_field(gradient), field)).clamp(low, high)
        inversion = problem.to_voxels(trial_field)
        follow = step + slope * (inversion - parameters[1])
        change = torch.stack([follow[0], inversion - parameters[1], follow[1]])
        trial = apply_step(parameters, change, problem.bounds)
        starts = [torch.stack([p[0], inversion, p[2]]) for p in (trial, parameters)]
        trial, trial_state, trial_converged = _relax(problem, starts, inversion, 2)
        decrease = objective - problem.per_image(trial_state[0]) - prior.energy(trial_field)
        better = decrease > 0
        voxels = better[problem.image]
        parameters, state = torch.where(voxels, trial, parameters), torch.where(voxels, trial_state, state)
        converged = torch.where(voxels, trial_converged, converged)
        field = torch.where(better[:, None, None], trial_field, field)
        objective = torch.where(better, objective - decrease, objective)
        damping = torch.where(better, damping * 0.1, (damping * 10.0).clamp(min=0.1))
        settled = (decrease.abs() < _ENOUGH) | (damping > _STUCK)
        if bool(settled.all()):
            break
    parameters, state, converged = _relax(problem, [parameters], parameters[1], 15)
    variance = problem.to_voxels(prior.variance(problem.to_field(eliminate(state)[0])))
    return FieldFit(parameters, state, converged & settled[problem.image], variance)
