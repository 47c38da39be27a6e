"""From analytic spectra to curves at any times: a damped Fourier series.

A plain Fourier series repeats itself: the tail of a curve that outlasts the period comes back before the bolus. Here
the curve is multiplied by exp(-damping t) first, that is, its spectrum is taken at omega - i damping, and the result is
multiplied by exp(+damping t). What comes back is then smaller by exp(-damping x period).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Grid", "complex_of", "frequency_grid", "synthesis_matrix", "synthesise"]

SHORTEST_PERIOD = 256.0  # s: long against every transit time, so that few frequencies change where a scan is longer
MOST_FREQUENCIES = 16384
# damping x period: 6e-6 and 1e-7 of a tail come back; rounding grows by exp(damping x time), 120 and 600 at most.
DAMPING = {torch.float32: 12.0, torch.float64: 16.0}


@dataclass(frozen=True)
class Grid:
    """Frequencies of a damped Fourier series.

    Attributes:
        count: number F of frequencies, the first is 0.
        period: of the series [s].
        damping: of the curve before the transform [1/s].
    """

    count: int
    period: float
    damping: float

    def omega(self, device: torch.device | str = "cpu") -> Tensor:
        """Angular frequencies omega_k - i damping, complex128 ``[F]`` [rad/s]."""
        omega = torch.arange(self.count, dtype=torch.float64, device=device) * (2 * math.pi / self.period)
        return torch.complex(omega, torch.full_like(omega, -self.damping))


def complex_of(dtype: torch.dtype) -> torch.dtype:
    """The complex dtype of a real one: complex128 for float64, complex64 for any other."""
    return torch.complex128 if dtype == torch.float64 else torch.complex64


def frequency_grid(times: Tensor, band: float, dtype: torch.dtype) -> Grid:
    """Frequencies for curves at ``times`` ``[T]`` [s] whose spectra end at ``band`` [rad/s].

    The period is 2.5 times the last time, and at least 256 s, in steps of 64 s.
    """
    first, last = (float(edge) for edge in torch.aminmax(times.detach())) if times.numel() else (0.0, 0.0)
    span = max(last, 0.0) - min(first, 0.0)
    period = max(SHORTEST_PERIOD, 64.0 * math.ceil(2.5 * span / 64.0))
    count = 32 * math.ceil((1 + band * period / (2 * math.pi)) / 32)
    return Grid(min(count, MOST_FREQUENCIES), period, DAMPING.get(dtype, DAMPING[torch.float32]) / period)


def synthesis_matrix(grid: Grid, times: Tensor, dtype: torch.dtype) -> Tensor:
    """Matrix ``[2F, T]`` that takes interleaved real and imaginary parts of a spectrum to the curve at ``times``."""
    times = times.double()
    phase = grid.omega(times.device).real[:, None] * times
    scale = torch.exp(grid.damping * times) * (2 / grid.period)
    basis = torch.stack([phase.cos(), -phase.sin()], 1) * scale
    basis[0] /= 2
    return basis.flatten(0, 1).to(dtype)


def synthesise(spectrum: Tensor, matrix: Tensor) -> Tensor:
    """Curves ``[..., T]`` of the spectra ``[..., F]``, by the matrix ``[2F, T]`` of :func:`synthesis_matrix`."""
    return torch.view_as_real(spectrum).flatten(-2) @ matrix
