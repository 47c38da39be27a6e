"""What an estimate predicts: maps put back through the tissue model with the arterial curve as it was measured."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from physics.perfusion.deconvolution import deconvolve
from physics.perfusion.dilution import haematocrit_factor
from physics.perfusion.maps import time_to_maximum

__all__ = ["delay_from_tmax", "reconvolve"]

_TAIL_TIME = 20.0  # s: beyond its last frame the arterial curve is taken to decay, so that its period closes smoothly
_PERIODS = 4  # length of the period of the Fourier series, in lengths of the series
_SHORTEST, _LONGEST, _STEPS = 0.3, 60.0, 64  # s, mean transit times of the table


def reconvolve(
    aif: Tensor,
    dt: float,
    cbf: Tensor,
    mtt: Tensor,
    delay: Tensor | float = 0.0,
    k_av: Tensor | float = 1.0,
    factor: float | None = None,
) -> Tensor:
    r"""Tissue concentration :math:`CBF / (6000 f k_{AV}) \, (c_a * R)(t - d)`, R exponential with integral MTT.

    Source: that of :func:`tissue_concentration`. The convolution is made in the Fourier domain, where delays need not
    be whole frames: the arterial curve is taken as band-limited between its frames, and as decaying (20 s) after the
    last of them.

    Args:
        aif: measured arterial concentration ``[time]``, any unit.
        dt: frame time [s].
        cbf: ``[...]`` [ml/100 g/min].
        mtt: mean transit time ``[...]`` [s]; from 0.3 s.
        delay: of the tissue behind the arterial curve ``[...]`` [s]; negative where the tissue comes first.
        k_av: what the arterial curve has to be divided by to have the area of the venous one.
        factor: haematocrit factor over density [ml/g]; default :func:`haematocrit_factor`.

    Returns:
        Concentration ``[..., time]`` in the unit of ``aif``.

    Raises:
        ValueError: an arterial curve that is no ``[time]``, or a frame time that is not positive.
    """
    if aif.ndim != 1 or not (math.isfinite(dt) and dt > 0.0):
        raise ValueError(f"aif must be [time] and dt positive [s], got shape {tuple(aif.shape)} and {dt}")
    n = len(aif)
    after = torch.arange(1, (_PERIODS - 1) * n + 1, device=aif.device, dtype=aif.dtype) * dt
    curve = torch.cat([aif, aif[-3:].mean() * torch.exp(-after / _TAIL_TIME)])
    omega = 2.0 * math.pi * torch.fft.rfftfreq(len(curve), dt, device=aif.device, dtype=aif.dtype)
    cbf, mtt, late = torch.broadcast_tensors(cbf, mtt, torch.as_tensor(delay, dtype=cbf.dtype, device=cbf.device))
    mtt = mtt.clamp_min(_SHORTEST)[..., None]
    factor = haematocrit_factor() if factor is None else factor
    height = (cbf / (6000.0 * factor * k_av))[..., None] * mtt
    spectrum = (
        torch.fft.rfft(curve)
        * torch.polar(height, -omega * late[..., None])
        / torch.complex(torch.ones_like(mtt), omega * mtt)
    )
    return torch.fft.irfft(spectrum, n=len(curve))[..., :n]


def delay_from_tmax(tmax: Tensor, mtt: Tensor, aif: Tensor, dt: float, threshold: float = 0.1) -> Tensor:
    """Delay of the tissue behind the arterial curve: Tmax less what Tmax is without any delay.

    .. math:: d = T_{max} - T_{max}^{(0)}(MTT)

    Truncation makes the deconvolved residue rise over a frame or two before its maximum, so that Tmax is later than the
    delay by a time that depends on the mean transit time. A table of it is made by deconvolving exponential residues.

    Args:
        tmax: ``[...]`` [s].
        mtt: ``[...]`` [s].
        aif: arterial concentration ``[time]``, any unit.
        dt: frame time [s].
        threshold: of the block-circulant deconvolution that defines Tmax.

    Returns:
        Delay ``[...]`` [s].
    """
    grid = torch.logspace(math.log10(_SHORTEST), math.log10(_LONGEST), _STEPS, dtype=aif.dtype, device=aif.device)
    curves = reconvolve(aif, dt, torch.ones_like(grid), grid)
    residue = deconvolve(curves, aif, dt, method="csvd", threshold=threshold)
    offset = time_to_maximum(residue, dt, circulant=True)
    place = (mtt.clamp(_SHORTEST, _LONGEST) / _SHORTEST).log() / math.log(_LONGEST / _SHORTEST) * (_STEPS - 1)
    left = place.floor().clamp(0, _STEPS - 2).long()
    return tmax - torch.lerp(offset[left], offset[left + 1], place - left)
