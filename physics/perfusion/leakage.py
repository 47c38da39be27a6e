"""Leakage of contrast agent through a broken blood-brain barrier, by the reference curve of intact tissue."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["correct_leakage"]


def correct_leakage(rate: Tensor, reference: Tensor, dt: float) -> tuple[Tensor, Tensor, Tensor]:
    r"""Fit two terms of the reference curve by least squares and take the second, the leakage, away.

    .. math:: \Delta R_2^*(t) \approx K_1 \bar r(t) - K_2 \int_0^t \bar r(u) \, du, \qquad
        \Delta R_{2, corrected}^*(t) = \Delta R_2^*(t) + K_2 \int_0^t \bar r(u) \, du

    K2 is positive where T1 shortening outside of the vessels raises the signal, negative where T2* shortening lowers
    it.

    Args:
        rate: Delta R2* ``[..., T]`` [1/s], in any other unit the result is in it.
        reference: mean Delta R2* of tissue that does not leak ``[T]`` (or broadcastable to ``rate``) [1/s].
        dt: time between frames [s].

    Returns:
        The corrected curve ``[..., T]`` [1/s]; K1 ``[...]`` [1], blood volume over that of the reference; K2 ``[...]``
        [1/s].

    Raises:
        ValueError: if the numbers of frames differ, ``dt`` is not positive, or the reference and its integral have the
            same course (all zero, for one).

    Source: Boxerman, Schmainda and Weisskoff, AJNR 27:859 (2006).
    """
    if rate.shape[-1:] != reference.shape[-1:]:
        raise ValueError(f"reference must have the {rate.shape[-1]} frames of rate, got {reference.shape[-1]}")
    if not dt > 0:
        raise ValueError(f"dt must be positive [s], got {dt}")
    integral = torch.nn.functional.pad(torch.cumulative_trapezoid(reference, dx=dt, dim=-1), (1, 0))
    aa, bb = reference.square().sum(-1), integral.square().sum(-1)
    ab = (reference * integral).sum(-1)
    determinant = aa * bb - ab**2
    if not bool((determinant > 1e-6 * aa * bb).all()):
        raise ValueError("reference must have a bolus: it and its integral have the same course")
    ar, br = (rate * reference).sum(-1), (rate * integral).sum(-1)
    k1 = (bb * ar - ab * br) / determinant
    k2 = (ab * ar - aa * br) / determinant
    return rate + k2[..., None] * integral, k1, k2
