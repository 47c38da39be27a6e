"""Levenberg-Marquardt on many voxels at once: one damping for each voxel, closed-form solution of the small systems.

Data and amplitudes are in units of the noise standard deviation, so the likelihood has no further scale. The last
parameter, a relaxation time, is stepped in its logarithm. Curvature is the Fisher matrix ``sum_n w_n ds/dp ds/dq``
with weight 1 (Gaussian noise) or the Rician information of the signal (Fisher scoring).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from physics.noise import bessel_ratio, rician_information, rician_nll
from physics.relaxometry import SignalModel

__all__ = ["apply_step", "equations", "invert", "negative_log_likelihood", "pack_index", "refine", "solve"]

_MAX_LOG_STEP = 1.0  # a relaxation time changes by at most a factor e in one step
_DAMPING = (1e-3, 1e-7, 1e4)  # start, lowest, highest: no step beyond it goes downhill


def pack_index(row: int, column: int) -> int:
    """Place of an entry of a symmetric matrix in its packed lower triangle."""
    high, low = max(row, column), min(row, column)
    return high * (high + 1) // 2 + low


def negative_log_likelihood(model: SignalModel, data: Tensor, parameters: Tensor, noise: str) -> Tensor:
    """Negative log-likelihood ``[V]`` of data ``[N, V]`` in noise units at parameters ``[Q, V]``, without constants."""
    signal = model.signed(*parameters)[0].abs_()
    if noise == "rician":
        return rician_nll(data, signal, 1.0).sum(0)
    return 0.5 * signal.sub_(data).square_().sum(0)


def equations(model: SignalModel, data: Tensor, parameters: Tensor, noise: str) -> Tensor:
    """Negative log-likelihood, gradient and packed Fisher matrix, ``[1 + Q + Q (Q + 1) / 2, V]``.

    The derivative by the last parameter is that by its logarithm.
    """
    signal, derivatives = model.signed(*parameters)
    sign = torch.copysign(torch.ones_like(signal), signal)  # never 0: a zero signal has a residual too
    weighted = list(derivatives)
    if noise == "rician":
        magnitude = signal * sign
        nll = rician_nll(data, magnitude, 1.0).sum(0)
        residual = data * bessel_ratio(data * magnitude) * sign - signal
        weight = rician_information(magnitude)
        weighted = [weight * derivative for derivative in derivatives]
    else:
        residual = torch.addcmul(-signal, data, sign)
        nll = 0.5 * (residual * residual).sum(0)
    gradient = [-(residual * derivative).sum(0) for derivative in derivatives]
    fisher = [(weighted[q] * derivatives[r]).sum(0) for q in range(len(derivatives)) for r in range(q + 1)]
    # chain rule of the logarithm on the sums, not on the N images
    n, last = len(derivatives), parameters[-1]
    gradient[-1] = gradient[-1] * last
    for r in range(n):
        place = pack_index(n - 1, r)
        fisher[place] = fisher[place] * (last * last if r == n - 1 else last)
    return torch.stack([nll, *gradient, *fisher])


def _cholesky(packed: Sequence[Tensor], size: int) -> list[list[Tensor]]:
    """Lower factor of symmetric positive matrices given by their packed entries, elementwise over voxels."""
    factor: list[list[Tensor]] = []
    for q in range(size):
        row: list[Tensor] = []
        for r in range(q + 1):
            entry = packed[pack_index(q, r)]
            for k in range(r):
                entry = entry - row[k] * (factor[r] if r < q else row)[k]
            row.append(entry / factor[r][r] if r < q else entry.clamp(min=1e-30).sqrt())
        factor.append(row)
    return factor


def _substitute(factor: list[list[Tensor]], right: Sequence[Tensor]) -> list[Tensor]:
    """Solution x of ``L L' x = right`` for factors ``L``, elementwise over voxels."""
    size, x = len(factor), list(right)
    for q in range(size):
        for k in range(q):
            x[q] = x[q] - factor[q][k] * x[k]
        x[q] = x[q] / factor[q][q]
    for q in reversed(range(size)):
        for k in range(q + 1, size):
            x[q] = x[q] - factor[k][q] * x[k]
        x[q] = x[q] / factor[q][q]
    return x


def solve(packed: Tensor, right: Sequence[Tensor], damping: Tensor | float = 0.0) -> list[Tensor]:
    """Solve small symmetric positive systems for many voxels, scaled to a unit diagonal.

    Args:
        packed: lower triangles, ``[Q (Q + 1) / 2, V]``.
        right: right-hand sides, Q tensors ``[V]``.
        damping: multiple of the diagonal added to it, broadcastable to ``[V]``.

    Returns:
        Solution, Q tensors ``[V]``.
    """
    size = len(right)
    scale = [_inverse_root(packed[pack_index(q, q)]) for q in range(size)]
    scaled = [packed[pack_index(q, r)] * scale[q] * scale[r] for q in range(size) for r in range(q + 1)]
    for q in range(size):
        scaled[pack_index(q, q)] = scaled[pack_index(q, q)].clamp(min=1e-12) + damping
    solution = _substitute(_cholesky(scaled, size), [scale[q] * right[q] for q in range(size)])
    return [scale[q] * solution[q] for q in range(size)]


def _inverse_root(diagonal: Tensor) -> Tensor:
    return torch.where(diagonal > 0, diagonal.clamp(min=torch.finfo(diagonal.dtype).tiny).rsqrt(), 1.0)


def invert(packed: Tensor, size: int) -> tuple[list[Tensor], Tensor]:
    """Diagonal of the inverse of small symmetric matrices, and whether they are regular.

    Args:
        packed: lower triangles, ``[Q (Q + 1) / 2, V]``.
        size: Q.

    Returns:
        Q tensors ``[V]`` and a mask ``[V]``, False where the scaled matrix is singular to working precision.
    """
    scale = [_inverse_root(packed[pack_index(q, q)]) for q in range(size)]
    scaled = [packed[pack_index(q, r)] * scale[q] * scale[r] for q in range(size) for r in range(q + 1)]
    factor = _cholesky(scaled, size)
    limit = 100.0 * torch.finfo(packed.dtype).eps
    regular = torch.stack([factor[q][q] ** 2 > limit for q in range(size)]).all(0)
    diagonal = []
    for q in range(size):
        unit = [torch.full_like(packed[0], float(q == r)) for r in range(size)]
        diagonal.append(_substitute(factor, unit)[q].clamp(min=0.0) * scale[q] ** 2)
    return diagonal, regular


def apply_step(parameters: Tensor, step: Tensor, bounds: Tensor) -> Tensor:
    """Parameters ``[Q, V]`` after a step (the last in its logarithm), clamped to bounds ``[2, Q, 1]``."""
    trial = parameters + step
    if len(trial) == 3:  # the signal is linear in A and in A B: keep the step straight in these two
        product = parameters[0] * (parameters[1] + step[1]) + parameters[1] * step[0]
        trial[1] = product / trial[0].clamp(min=1e-6)
    trial[-1] = parameters[-1] * torch.exp(step[-1].clamp(-_MAX_LOG_STEP, _MAX_LOG_STEP))
    return torch.clamp(trial, bounds[0], bounds[1])


def _damped_step(parameters: Tensor, state: Tensor, damping: Tensor, bounds: Tensor, free: Tensor) -> Tensor:
    """Step ``[Q, V]``; parameters not free, or at a bound which the gradient points beyond, stay."""
    size = len(parameters)
    gradient, fisher = state[1 : 1 + size], state[1 + size :]
    outward = ((parameters <= bounds[0]) & (gradient > 0)) | ((parameters >= bounds[1]) & (gradient < 0))
    moves = (~outward & free).to(parameters.dtype)
    packed = torch.stack([fisher[pack_index(q, r)] * moves[q] * moves[r] for q in range(size) for r in range(q + 1)])
    return -torch.stack(solve(packed, list(gradient * moves), damping))


def refine(
    model: SignalModel,
    data: Tensor,
    start: Tensor,
    bounds: Tensor,
    noise: str,
    *,
    fixed: Sequence[int] = (),
    iterations: int = 30,
    tolerance: float = 1e-5,
) -> tuple[Tensor, Tensor, Tensor]:
    """Minimise the negative log-likelihood voxel by voxel; voxels that converged are dropped from the work.

    Args:
        model: signal model.
        data: magnitudes in noise units, ``[N, V]`` (one chunk).
        start: parameters ``[Q, V]``, A in noise units.
        bounds: lowest and highest values, ``[2, Q, 1]``.
        noise: ``"gaussian"`` or ``"rician"``.
        fixed: indices of parameters held at their start.
        iterations: largest number of steps.
        tolerance: a voxel has converged when its next step promises a smaller decrease of the likelihood.

    Returns:
        Parameters ``[Q, V]``, their :func:`equations` ``[1 + Q + Q (Q + 1) / 2, V]``, converged ``[V]``.
    """
    free = torch.tensor([q not in fixed for q in range(len(start))], device=start.device)[:, None]
    current, state = start, equations(model, data, start, noise)
    damping = torch.full_like(state[0], _DAMPING[0])
    result, result_state = start.clone(), state.clone()
    converged = torch.zeros_like(damping, dtype=torch.bool)
    index = torch.arange(data.shape[1], device=data.device)
    for iteration in range(iterations + 1):
        step = _damped_step(current, state, damping, bounds, free)
        promise = -0.5 * (step * state[1 : 1 + len(start)]).sum(0)
        done = (promise < tolerance) | (damping > _DAMPING[2])  # much damping: at a kink of the modulus
        n_done = int(done.sum())
        if n_done == len(done) or iteration == iterations:
            result[:, index], result_state[:, index], converged[index] = current, state, done
            break
        if n_done > 0.3 * len(done):  # copying the rest costs about as much as one step on them
            result[:, index], result_state[:, index], converged[index] = current, state, done
            keep = (~done).nonzero()[:, 0]
            index, current, state, damping, step = (x[..., keep] for x in (index, current, state, damping, step))
            data = data[:, keep]
        trial = apply_step(current, step, bounds)
        trial_state = equations(model, data, trial, noise)
        better = trial_state[0] <= state[0]
        current, state = torch.where(better, trial, current), torch.where(better, trial_state, state)
        damping = torch.where(better, damping * 0.1, damping * 8.0).clamp(min=_DAMPING[1])
    return result, result_state, converged
