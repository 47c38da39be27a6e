"""Residue functions R(t): the fraction of a bolus that is still in the tissue at time t.

All have R(0) = 1 and the integral MTT, and are functions of t / MTT alone; their spectra are MTT times functions of
z = i omega MTT.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

import torch
from torch import Tensor

from physics.perfusion.spectral import Grid, complex_of

__all__ = ["RESIDUES", "residue", "residue_spectrum"]

RESIDUES = ("exponential", "box", "linear", "lorentzian", "gamma")
SHORTEST_MTT = 0.1  # s; tissue of less is an impulse of the same volume for any bolus
LONGEST_MTT = 200.0  # s
_SMOOTH = (0, 3, 4)  # residues whose spectra are smooth in log MTT; the others oscillate
_LOW = 24  # frequencies that are evaluated in double precision: the edges' spectra cancel to second order


def _check_shape(gamma_shape: float | Tensor) -> float:
    shape = float(gamma_shape)
    if not shape > 0:
        raise ValueError(f"gamma_shape must be positive, got {shape}")
    return shape


def residue(times: Tensor, mtt: Tensor, kind: str, gamma_shape: float | Tensor = 3.0) -> Tensor:
    r"""Residue function of one kind.

    .. math:: R(t) = r(t / MTT), \qquad r(u) = \begin{cases}
        e^{-u} & \text{exponential} \\
        [u < 1] & \text{box} \\
        \max(1 - u / 2, 0) & \text{linear} \\
        1 / (1 + (\pi u / 2)^2) & \text{lorentzian} \\
        \Gamma(k, k u) / \Gamma(k) & \text{gamma} \end{cases}

    without unit. ``gamma`` is what a gamma distribution of transit times with the shape k and the mean MTT leaves;
    shape 1 is the exponential, a large shape the box.

    Args:
        times: ``[T]`` [s].
        mtt: mean transit time ``[...]`` [s], positive.
        kind: one of ``RESIDUES``.
        gamma_shape: shape of the gamma distribution, one positive number.

    Returns:
        R ``[..., T]``, 0 before t = 0.

    Raises:
        ValueError: for an unknown kind or a shape that is not positive.

    Source: Ostergaard et al., Magn Reson Med 36:715 (1996); gamma: Mouridsen et al., NeuroImage 33:570 (2006).
    """
    u = times / mtt[..., None]
    if kind == "exponential":
        value = torch.exp(-u.clamp(min=0))
    elif kind == "box":
        value = (u < 1).to(u)
    elif kind == "linear":
        value = (1 - u / 2).clamp(min=0)
    elif kind == "lorentzian":
        value = 1 / (1 + (math.pi / 2 * u) ** 2)
    elif kind == "gamma":
        shape = torch.as_tensor(_check_shape(gamma_shape), dtype=u.dtype, device=u.device)
        value = torch.special.gammaincc(shape, shape * u.clamp(min=0))
    else:
        raise ValueError(f"kind must be one of {RESIDUES}, got {kind!r}")
    return torch.where(u >= 0, value, torch.zeros_like(value))


def _lorentzian(z: Tensor) -> Tensor:
    """2/pi times the integral of exp(-2 z u/pi) / (1 + u^2) over u > 0, for Re z >= 0.

    The path is turned by half the angle of z, where the integrand neither oscillates much nor meets a pole; in log u
    the trapezoidal rule then converges exponentially, with this step to 1e-9.
    """
    angle = z.detach().angle() / 2
    turn = torch.polar(torch.ones_like(angle), -angle)
    exponent = z * turn * (2 / math.pi)
    smallest = float(exponent.detach().abs().min()) if z.numel() else 1.0
    last = min(22.0, math.log(30.0 / max(smallest, 1e-9)))
    step = 0.24
    total = torch.zeros_like(exponent)
    for node in range(math.ceil((22.0 + last) / step)):
        u = math.exp(node * step - 22.0)
        total = total + torch.exp(-exponent * u) * (u / (1 + (u * turn) ** 2))
    return total * turn * (step * 2 / math.pi)


def _gamma(z: Tensor, shape: float) -> Tensor:
    return -torch.expm1(-shape * torch.log1p(z / shape)) / z


def _edges(z: Tensor, decay: Tensor, box: Tensor, linear: Tensor) -> Tensor:
    """Weighted spectra of the box and the linear residue, ``decay`` being exp(-z)."""
    inverse = 1 / z
    of_box = (1 - decay) * inverse
    return box * of_box + linear * (1 - (1 + decay) * of_box / 2) * inverse


def _smooth(z: Tensor, kind: int, gamma_shape: float) -> Tensor:
    if kind == 0:
        return 1 / (1 + z)
    return _lorentzian(z) if kind == 3 else _gamma(z, gamma_shape)


def residue_spectrum(
    omega: Tensor, mtt: Tensor, weights: Tensor | None = None, gamma_shape: float | Tensor = 3.0
) -> Tensor:
    r"""Spectrum of a mixture of residues.

    .. math:: \hat R(\omega) = \int_0^\infty R(t) e^{-i \omega t} dt = MTT \sum_j w_j \rho_j(z), \qquad
        z = i \omega MTT, \quad \rho(z) = \begin{cases}
        1 / (1 + z) & \text{exponential} \\
        (1 - e^{-z}) / z & \text{box} \\
        \left(1 - (1 - e^{-2 z}) / (2 z)\right) / z & \text{linear} \\
        \frac{2}{\pi} \int_0^\infty e^{-2 z u / \pi} / (1 + u^2) \, du & \text{lorentzian} \\
        \left(1 - (1 + z / k)^{-k}\right) / z & \text{gamma} \end{cases}

    Source: the transforms of :func:`residue`. Analytic, that of the Lorentzian by quadrature to 1e-9.

    Args:
        omega: ``[F]`` [rad/s], not 0; complex with a negative imaginary part for the spectrum of R(t) exp(-damping t).
        mtt: ``[...]`` [s], positive.
        weights: ``[..., 5]`` in the order of ``RESIDUES``, sum 1; None for the exponential alone.
        gamma_shape: shape of the gamma residue, one positive number; it is not differentiated.

    Returns:
        Spectrum ``[..., F]`` [s], complex.

    Raises:
        ValueError: for weights of other length or a shape that is not positive.
    """
    kind = complex_of(mtt.dtype)
    z = (1j * omega.to(torch.complex128)) * mtt.double()[..., None]
    if weights is None:
        return (mtt[..., None] / (1 + z)).to(kind)
    weights = check_weights(weights)
    mixture = _edges(z, torch.exp(-z), weights[..., 1:2].double(), weights[..., 2:3].double())
    for index in _SMOOTH:
        mixture = mixture + weights[..., index : index + 1] * _smooth(z, index, _check_shape(gamma_shape))
    return (mtt[..., None] * mixture).to(kind)


def check_weights(weights: Tensor) -> Tensor:
    """Return ``weights`` if its last axis has one value for each residue.

    Raises:
        ValueError: if not.
    """
    if weights.ndim == 0 or weights.shape[-1] != len(RESIDUES):
        raise ValueError(f"weights must be [..., {len(RESIDUES)}] for {RESIDUES}, got shape {tuple(weights.shape)}")
    return weights


def _chebyshev(position: Tensor, degree: int) -> Tensor:
    """Chebyshev polynomials T_0 to T_degree-1 at ``position`` ``[...]``, ``[..., degree]``."""
    rows = [torch.ones_like(position), position]
    while len(rows) < degree:
        rows.append(2 * position * rows[-1] - rows[-2])
    return torch.stack(rows, -1)


def _position(mtt: Tensor) -> Tensor:
    low, high = math.log(SHORTEST_MTT), math.log(LONGEST_MTT)
    return (2 * torch.log(mtt) - (high + low)) / (high - low)


def _coefficients(grid: Grid, kind: int, gamma_shape: float, degree: int) -> Tensor:
    """Chebyshev coefficients in log MTT of one smooth spectrum, real and imaginary parts interleaved, [degree, 2F]."""
    angle = (torch.arange(degree, dtype=torch.float64) + 0.5) * (math.pi / degree)
    low, high = math.log(SHORTEST_MTT), math.log(LONGEST_MTT)
    mtt = torch.exp((angle.cos() + 1) / 2 * (high - low) + low)
    values = _smooth(1j * grid.omega() * mtt[:, None], kind, gamma_shape)
    transform = torch.cos(torch.arange(degree, dtype=torch.float64)[:, None] * angle) * (2 / degree)
    transform[0] /= 2
    return transform @ torch.view_as_real(values).flatten(1)


@lru_cache(maxsize=16)
def _lorentzian_coefficients(grid: Grid, degree: int) -> Tensor:
    """As above for the Lorentzian, whose quadrature takes a tenth of a second."""
    return _coefficients(grid, 3, 1.0, degree)


def _table(grid: Grid, kind: int, gamma_shape: float, degree: int) -> Tensor:
    if kind != 3:
        return _coefficients(grid, kind, gamma_shape, degree)
    # Bands differ from bolus to bolus: one table in blocks of frequencies serves them all.
    block = replace(grid, count=512 * math.ceil(grid.count / 512))
    return _lorentzian_coefficients(block, degree)[:, : 2 * grid.count]


class MixtureSpectrum:
    """The spectra of many voxels' residues on one grid, fast.

    The smooth residues are Chebyshev series in log MTT, one matrix product for all voxels: the nearest singularity of
    the spectra in log z is pi/2 away, so 40 terms reach 1e-7 and 56 terms 1e-10 between the two limits of MTT.

    Args:
        grid: frequencies.
        used: which of ``RESIDUES`` have any weight.
        gamma_shape: shape of the gamma residue.
        like: a tensor that has the dtype and the device.
    """

    def __init__(self, grid: Grid, used: Sequence[bool], gamma_shape: float | Tensor, like: Tensor) -> None:
        degree = 56 if like.dtype == torch.float64 else 40
        shape = _check_shape(gamma_shape)
        self.smooth = [index for index in _SMOOTH if used[index]]
        self.edges = used[1] or used[2]
        self.degree = degree
        tables = [_table(grid, index, shape, degree) for index in self.smooth]
        self.table = torch.cat(tables).to(like) if tables else None
        self.s = 1j * grid.omega(like.device)

    def _edge_rows(self, mtt: Tensor, weights: Tensor) -> Tensor:
        kind = complex_of(mtt.dtype)
        parts = []
        for s, dtype in ((self.s[:_LOW], torch.float64), (self.s[_LOW:], mtt.dtype)):
            rate = s.imag.to(dtype) * mtt.to(dtype)[:, None]
            loss = s.real.to(dtype) * mtt.to(dtype)[:, None]
            decay = torch.polar(torch.exp(-loss), -rate)
            parts.append(_edges(torch.complex(loss, rate), decay, weights[:, 1:2].to(dtype), weights[:, 2:3].to(dtype)))
        return torch.cat([part.to(kind) for part in parts], -1)

    def __call__(self, mtt: Tensor, weights: Tensor) -> Tensor:
        """Spectra ``[N, F]`` [s] for MTT ``[N]`` [s] and weights ``[N, 5]``."""
        inner = mtt.clamp(min=SHORTEST_MTT)
        total = None
        if self.table is not None:
            basis = _chebyshev(_position(inner), self.degree)
            rows = (weights[:, self.smooth, None] * basis[:, None, :]).flatten(1) @ self.table
            total = torch.view_as_complex(rows.unflatten(-1, (-1, 2)))
        if self.edges:
            edges = self._edge_rows(inner, weights)
            total = edges if total is None else total + edges
        if total is None:
            raise ValueError("weights must not be 0 for all residues")
        return total * mtt[:, None]
