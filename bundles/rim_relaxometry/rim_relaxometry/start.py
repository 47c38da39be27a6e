"""Where the recurrent inference machine starts: a flat guess as in the paper, or the best entry of a dictionary."""

from __future__ import annotations

import torch
from torch import Tensor

from physics.relaxometry import SignalModel

from .curvature import box_mean, residual_variance

B_GRID = (1.2, 2.15, 9)  # lowest, highest, number
T1_GRID = (0.08, 6.0, 56)  # [s]
T2_GRID = (0.004, 4.0, 64)  # [s]
POOL_WIDTH = 17  # box [voxels], applied twice, over which B is taken as constant
GLOBAL_SHARE = 0.02  # weight of the whole image beside the neighbourhood


def flat_start(data: Tensor, has_b: bool) -> list[Tensor]:
    """The paper's start: A the maximum over the series, B = 2, T1 = 1 s or T2 = 0.1 s.

    Args:
        data: series ``[N, batch, H, W]``.
        has_b: whether the model is an inversion recovery.

    Returns:
        Maps (A, B, T1) or (A, T2), each ``[batch, H, W]``.
    """
    amplitude = data.amax(0)
    flat = torch.ones_like(amplitude)
    return [amplitude, 2.0 * flat, flat] if has_b else [amplitude, 0.1 * flat]


def _logarithmic(grid: tuple[float, float, int], like: Tensor) -> Tensor:
    low, high, number = grid
    return torch.logspace(0.0, 1.0, number, base=high / low, device=like.device, dtype=like.dtype) * low


def _best_match(data: Tensor, atoms: Tensor) -> tuple[Tensor, Tensor]:
    """Largest correlation of each voxel with the unit atoms ``[K, N]`` and its index; each ``[batch, H, W]``."""
    correlation = (atoms @ data.flatten(1)).clamp(min=0.0)
    best, index = correlation.max(0)
    return best.reshape(data.shape[1:]), index.reshape(data.shape[1:])


def _without_noise_floor(model: SignalModel, data: Tensor, times: Tensor) -> Tensor:
    """Rician data with their noise floor taken off: sqrt(data^2 - 1.5 sigma^2), sigma from a coarse fit.

    Between the exact correction of bright voxels (1 sigma^2 for the mean) and that of empty ones (2 sigma^2).
    """
    one = torch.ones_like(times)
    best = torch.zeros_like(data[0])
    for b in (1.3, 1.7, 2.0):
        atoms = model(one, b * one, times).T
        best = torch.maximum(best, _best_match(data, atoms / atoms.norm(dim=1, keepdim=True))[0])
    energy = data.square().sum(0)
    degrees = max(model.n_images - 2, 1)
    variance = residual_variance((energy - best.square()).clamp(min=0.0) / degrees, energy, degrees)
    return (data.square() - 1.5 * variance).clamp(min=0.0).sqrt()


def dictionary_start(model: SignalModel, data: Tensor, has_b: bool, rician: bool = False) -> list[Tensor]:
    """Best entry of a dictionary of magnitude signals, with B shared by the neighbourhood.

    The amplitude is eliminated (it is linear), and every polarity pattern of an inversion recovery is among the
    entries. The error as a function of B is pooled over a neighbourhood; its minimum, refined by a
    parabola, is B there.

    Args:
        model: signal model with times ``[N]``.
        data: series ``[N, batch, H, W]``.
        has_b: whether the model is an inversion recovery.
        rician: whether the data have a Rician noise floor, which then is taken off an inversion recovery first.

    Returns:
        Maps (A, B, T1) or (A, T2), each ``[batch, H, W]``.
    """
    times = _logarithmic(T1_GRID if has_b else T2_GRID, data)
    one = torch.ones_like(times)
    if not has_b:
        atoms = model(one, times).T
        norm = atoms.norm(dim=1)
        best, index = _best_match(data, atoms / norm[:, None])
        return [best / norm[index], times[index]]
    if rician:
        data = _without_noise_floor(model, data, times)
    b_values = torch.linspace(*B_GRID, device=data.device, dtype=data.dtype)
    energy = data.square().sum(0)
    amplitudes, relaxations, errors = [], [], []
    for b in b_values:
        atoms = model(one, b * one, times).T
        norm = atoms.norm(dim=1)
        best, index = _best_match(data, atoms / norm[:, None])
        amplitudes.append(best / norm[index])
        relaxations.append(times[index])
        errors.append(energy - best.square())
    b_map, nearest = _pooled_b(torch.stack(errors), b_values)
    pick = nearest[None]
    amplitude = torch.stack(amplitudes).gather(0, pick)[0]
    return [amplitude, b_map, torch.stack(relaxations).gather(0, pick)[0]]


def _pooled_b(errors: Tensor, b_values: Tensor) -> tuple[Tensor, Tensor]:
    """B with the least pooled error and the index of its nearest grid value; each ``[batch, H, W]``."""
    number, batch = errors.shape[:2]
    pooled = box_mean(box_mean(errors.flatten(0, 1), POOL_WIDTH), POOL_WIDTH).unflatten(0, (number, batch))
    pooled = pooled + GLOBAL_SHARE * errors.mean((-2, -1), keepdim=True)
    nearest = pooled.argmin(0)
    inside = nearest.clamp(1, number - 2)[None]
    left, centre, right = (pooled.gather(0, inside + k)[0] for k in (-1, 0, 1))
    bend = (left - 2.0 * centre + right).clamp(min=1e-9)
    shift = (0.5 * (left - right) / bend).clamp(-1.0, 1.0)
    step = b_values[1] - b_values[0]
    return b_values[inside[0]] + shift * step, nearest
