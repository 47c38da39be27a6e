"""Levenberg-Marquardt on many voxels at once, each with its own damping.

The last parameter, a relaxation time, is stepped in its logarithm. Under Rician noise the curvature is the Fisher
matrix (Fisher scoring). Data and amplitudes are in units of the noise standard deviation.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from physics.estimation.likelihood import equations
from physics.estimation.packed import pack_index, solve
from physics.relaxometry import SignalModel

__all__ = ["apply_step", "bounds_tensor", "refine"]

_MAX_LOG_STEP = 1.0  # a relaxation time changes by at most a factor e in one step
_DAMPING = (1e-3, 1e-7, 1e4)  # start, lowest, highest: no step beyond it goes downhill


def bounds_tensor(bounds: Mapping[str, tuple[float, float]], like: Tensor) -> Tensor:
    """Bounds ``[2, Q, 1]`` of A, which are 0 and infinity, and of the other parameters in their order."""
    rows = [(0.0, math.inf), *bounds.values()]
    return torch.tensor(rows, dtype=like.dtype, device=like.device).T[..., None]


def apply_step(parameters: Tensor, step: Tensor, bounds: Tensor) -> Tensor:
    """Parameters ``[Q, V]`` after a step (the last in its logarithm), clamped to bounds ``[2, Q, 1]``."""
    trial = parameters + step
    if len(trial) == 3:  # the signal is linear in A and in A B: keep the step straight in these two
        product = parameters[0] * trial[1] + parameters[1] * step[0]
        straight = (step[1] != 0) & (trial[0] > 0.1 * parameters[0])
        trial[1] = torch.where(straight, product / trial[0], trial[1])
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
