"""Curves for the tests of deconvolution, made without the code under test."""

from __future__ import annotations

import math

import numpy as np
import scipy.linalg
import scipy.signal
import torch
from torch import Tensor

DT, FRAMES, ARRIVAL = 1.5, 60, 15.0
FINE = 0.005  # s


def bolus(times: np.ndarray) -> np.ndarray:
    """Gamma-variate of shape 3 and scale 1.5 s."""
    late = np.clip(times - ARRIVAL, 0, None)
    return late**3 * np.exp(-late / 1.5)


def tissue(
    mtt: float, delay: float = 0.0, residue: str = "exponential", frames: int = FRAMES, dt: float = DT
) -> Tensor:
    """Curve of unit flow ``[time]``: the convolution as a sum over steps of 5 ms."""
    times = np.arange(0, frames * dt, FINE)
    shape = {
        "exponential": lambda x: np.exp(-x),
        "lorentzian": lambda x: 1 / (1 + (math.pi * x / 2) ** 2),
        "gamma": lambda x: np.exp(-3 * x) * (1 + 3 * x + 4.5 * x**2),
    }[residue]
    fine = scipy.signal.fftconvolve(bolus(times - delay), shape(times / mtt))[: len(times)] * FINE
    step = round(dt / FINE)
    return torch.from_numpy(fine[::step][:frames].copy())


def arterial(frames: int = FRAMES, dt: float = DT) -> Tensor:
    return torch.from_numpy(bolus(np.arange(frames) * dt))


def noisy(voxels: int, frames: int = 40, level: float = 0.02, seed: int = 3) -> tuple[Tensor, Tensor]:
    """Curves ``[voxels, frames]`` of several transit times and delays with noise, and an arterial curve."""
    generator = torch.Generator().manual_seed(seed)
    table = torch.stack([tissue(mtt, delay, frames=frames) for mtt in (3.0, 6.0, 11.0) for delay in (-2.0, 0.0, 4.3)])
    curves = table[torch.randint(len(table), (voxels,), generator=generator)]
    noise = torch.randn(curves.shape, generator=generator, dtype=torch.float64)
    return curves + level * curves.max() * noise, arterial(frames)


def circulant(aif: np.ndarray, dt: float) -> np.ndarray:
    return dt * scipy.linalg.circulant(np.pad(aif, (0, len(aif))))
