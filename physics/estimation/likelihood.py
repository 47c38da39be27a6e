"""Likelihood of magnitude data and its first and second derivatives, summed over the images of each voxel.

Data and amplitudes are in units of the noise standard deviation, so the likelihood has no further scale.
"""

from __future__ import annotations

import torch
from torch import Tensor

from physics.estimation.packed import pack_index
from physics.noise import bessel_ratio_and_log, rician_information
from physics.relaxometry import SignalModel

__all__ = ["equations", "negative_log_likelihood"]


def _scoring_weight(signal: Tensor) -> Tensor:
    """Rician information within 0.009, by a ratio of polynomials: ample for the length of a step."""
    x = signal.square()
    return x * (1.0 + 0.287 * x) / (1.0 + x * (1.1435 + 0.287 * x))


def negative_log_likelihood(model: SignalModel, data: Tensor, parameters: Tensor, noise: str) -> Tensor:
    """Negative log-likelihood ``[V]`` of data ``[N, V]`` at parameters ``[Q, V]``, without constants."""
    signal = model.signed(*parameters)[0].abs()
    nll = 0.5 * (signal - data).square()
    return (nll - bessel_ratio_and_log(data * signal)[1] if noise == "rician" else nll).sum(0)


def equations(model: SignalModel, data: Tensor, parameters: Tensor, noise: str, exact: bool = False) -> Tensor:
    """Negative log-likelihood, its gradient and the packed Fisher matrix.

    The Fisher matrix is ``sum_n w_n ds_n/dp ds_n/dq`` with weight 1 for Gaussian noise and the Rician information of
    the signal for Rician noise. Derivatives by the last parameter are those by its logarithm.

    Args:
        model: signal model.
        data: magnitudes ``[N, V]``.
        parameters: parameters ``[Q, V]``.
        noise: ``"gaussian"`` or ``"rician"``.
        exact: Rician information to 1e-4 rather than 0.009.

    Returns:
        Rows ``[1 + Q + Q (Q + 1) / 2, V]``.
    """
    signal, derivatives = model.signed(*parameters)
    sign = torch.copysign(torch.ones_like(signal), signal)  # never 0: a zero signal has a residual too
    weighted = derivatives
    if noise == "rician":
        magnitude = signal * sign
        ratio, log_bessel = bessel_ratio_and_log(data * magnitude)
        nll = (0.5 * (data - magnitude).square() - log_bessel).sum(0)
        residual = data * ratio * sign - signal
        weight = rician_information(magnitude) if exact else _scoring_weight(signal)
        weighted = tuple(weight * derivative for derivative in derivatives)
    else:
        residual = torch.addcmul(-signal, data, sign)
        nll = 0.5 * residual.square().sum(0)
    size, last = len(derivatives), parameters[-1]
    gradient = [-(residual * derivative).sum(0) for derivative in derivatives]
    fisher = [(weighted[q] * derivatives[r]).sum(0) for q in range(size) for r in range(q + 1)]
    # chain rule of the logarithm on the sums, not on the N images
    gradient[-1] = gradient[-1] * last
    for r in range(size):
        place = pack_index(size - 1, r)
        fisher[place] = fisher[place] * (last * last if r == size - 1 else last)
    return torch.stack([nll, *gradient, *fisher])
