"""Perfusion maps from concentrations and residues: CBV, CBF, MTT, Tmax.

Areas are sums over the frames times the frame time, as the deconvolution takes its integrals. Time is the last axis.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from physics.perfusion.deconvolution import CIRCULANT, deconvolve
from physics.perfusion.dilution import haematocrit_factor

__all__ = [
    "arterial_scale",
    "blood_flow",
    "blood_volume",
    "mean_transit_time",
    "perfusion_maps",
    "time_to_maximum",
]


def _area(curve: Tensor, name: str, dt: float) -> Tensor:
    """Area ``[...]`` of a curve ``[..., time]``. Raises ValueError unless it is positive."""
    if not (math.isfinite(dt) and dt > 0):
        raise ValueError(f"dt must be finite and positive [s], got {dt}")
    area = curve.sum(-1) * dt
    if not bool((area > 0).all()):
        raise ValueError(f"{name} must have a positive area, got {float(area.min())}")
    return area


def arterial_scale(aif: Tensor, vof: Tensor, dt: float) -> Tensor:
    r"""The area of the arterial curve over that of the venous one: what partial volume leaves of the artery.

    .. math:: k_{AV} = \frac{\sum_i c_a(t_i) \, \Delta t}{\sum_i c_v(t_i) \, \Delta t}

    Both areas are the same where neither curve suffers from partial volume and both are recorded to their end.

    Args:
        aif: arterial concentration ``[..., time]``.
        vof: venous concentration ``[..., time]`` in the unit of ``aif``.
        dt: frame time [s].

    Returns:
        ``[...]``, no unit.

    Raises:
        ValueError: if an area or dt is not positive.
    """
    return _area(aif, "aif", dt) / _area(vof, "vof", dt)


def blood_volume(concentration: Tensor, vof: Tensor, dt: float, factor: float | None = None) -> Tensor:
    r"""Cerebral blood volume.

    .. math:: CBV = 100 \, \kappa \, \frac{\sum_i c(t_i) \, \Delta t}{\sum_i c_v(t_i) \, \Delta t}

    with kappa in ml/g. Source: Ostergaard et al., Magn Reson Med 36:715 (1996).

    Args:
        concentration: of tissue ``[..., time]``.
        vof: venous concentration ``[time]`` in the same unit.
        dt: frame time [s].
        factor: haematocrit factor [ml/g]; None for :func:`haematocrit_factor`.

    Returns:
        ``[...]`` [ml/100 g]; negative where noise makes the area negative.

    Raises:
        ValueError: if the venous area or dt is not positive.
    """
    factor = haematocrit_factor() if factor is None else factor
    return concentration.sum(-1) * (100 * factor * dt / _area(vof, "vof", dt))


def blood_flow(residue: Tensor, k_av: Tensor | float = 1.0, factor: float | None = None) -> Tensor:
    r"""Cerebral blood flow.

    .. math:: CBF = 6000 \, \kappa \, k_{AV} \max_t r(t)

    with kappa in ml/g and r in 1/s; the maximum over the whole period, negative delays included. Source: Ostergaard et
    al., Magn Reson Med 36:715 (1996).

    Args:
        residue: ``[..., time]`` or ``[..., 2 time]`` [1/s].
        k_av: from :func:`arterial_scale`.
        factor: haematocrit factor [ml/g]; None for :func:`haematocrit_factor`.

    Returns:
        ``[...]`` [ml/100 g/min].
    """
    factor = haematocrit_factor() if factor is None else factor
    return residue.amax(-1) * (6000 * factor * k_av)


def mean_transit_time(cbv: Tensor, cbf: Tensor) -> Tensor:
    r"""Mean transit time ``[...]`` [s], from CBV [ml/100 g] and CBF [ml/100 g/min]; 0 where CBF is not positive.

    .. math:: MTT = 60 \, CBV / CBF

    Source: the central volume theorem, Meier and Zierler, J. Appl. Physiol. 6:731 (1954).
    """
    flows = cbf > 0
    return torch.where(flows, 60 * cbv / torch.where(flows, cbf, torch.ones_like(cbf)), 0)


def time_to_maximum(residue: Tensor, dt: float, circulant: bool) -> Tensor:
    r"""Tmax: time of the maximum of the residue, the vertex of the parabola through it and its two neighbours.

    .. math:: T_{max} = \left(j + \frac{r_{j+1} - r_{j-1}}{2 (2 r_j - r_{j-1} - r_{j+1})}\right) \Delta t, \qquad
        j = \arg\max_i r_i

    Source: Calamante et al., Stroke 41:1169 (2010), what it means.

    Args:
        residue: ``[..., time]``, or the period ``[..., 2 time]`` of a circulant method.
        dt: frame time [s].
        circulant: whether the second half of the residue is at negative times. The parabola then goes round the
            ends; else a maximum in the first or last frame stays there.

    Returns:
        ``[...]`` [s]. Negative where tissue is reached before the arterial curve rises; 0 where the residue is flat.

    Raises:
        ValueError: for a period of an odd number of frames, fewer than 3 frames, or dt not positive.
    """
    n = residue.shape[-1]
    if n < 3 or (circulant and n % 2):
        raise ValueError(f"residue must have 3 frames or more, an even number if circulant, got {n}")
    if not (math.isfinite(dt) and dt > 0):
        raise ValueError(f"dt must be finite and positive [s], got {dt}")
    peak, place = residue.max(-1)
    sides = [(place + step) % n if circulant else (place + step).clamp(0, n - 1) for step in (-1, 1)]
    before, after = (residue.gather(-1, side[..., None])[..., 0] for side in sides)
    bend = 2 * peak - before - after
    shift = (after - before) / torch.where(bend > 0, 2 * bend, torch.ones_like(bend))
    if not circulant:
        shift = torch.where((place > 0) & (place < n - 1), shift, 0)
    frame = torch.where(place >= n // 2, place - n, place) if circulant else place
    return (frame + torch.where(bend > 0, shift, 0)) * dt


def perfusion_maps(
    concentration: Tensor,
    aif: Tensor,
    vof: Tensor,
    dt: float,
    method: str = "osvd",
    *,
    factor: float | None = None,
    mask: Tensor | None = None,
    **options: Any,
) -> dict[str, Tensor]:
    """CBV, CBF, MTT and Tmax by one deconvolution, :math:`c = c_a * r`.

    By :func:`deconvolve`, :func:`arterial_scale`, :func:`blood_volume`, :func:`blood_flow`, :func:`mean_transit_time`
    and :func:`time_to_maximum`, which have the formulas.

    Args:
        concentration: of tissue ``[..., time]``, of shape ``[X, Y, Z, time]`` for ``ttv``.
        aif: arterial concentration ``[time]`` in the same unit.
        vof: venous concentration ``[time]`` in the same unit.
        dt: frame time [s].
        method: of :func:`deconvolve`.
        factor: haematocrit factor [ml/g]; None for :func:`haematocrit_factor`.
        mask: bool ``[...]``; maps are 0 outside.
        **options: of the method, see :func:`deconvolve`.

    Returns:
        Maps ``[...]``: ``cbv`` [ml/100 g], ``cbf`` [ml/100 g/min], ``mtt`` [s], ``tmax`` [s].

    Raises:
        ValueError: as :func:`deconvolve`; if the area of ``aif`` or ``vof`` is not positive.
    """
    k_av = arterial_scale(aif, vof, dt)
    residue = deconvolve(concentration, aif, dt, method, mask=mask, **options)
    cbv = blood_volume(concentration, vof, dt, factor)
    if mask is not None:
        cbv = torch.where(mask, cbv, 0)
    cbf = blood_flow(residue, k_av, factor)
    tmax = time_to_maximum(residue, dt, method in CIRCULANT)
    return {"cbv": cbv, "cbf": cbf, "mtt": mean_transit_time(cbv, cbf), "tmax": tmax}
