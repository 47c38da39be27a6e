"""What the recurrent inference machine sees of the likelihood: its gradient, scaled by the curvature.

All maps are ``[batch, H, W]``; series have the images first, ``[N, batch, H, W]``. Parameters live in the working
domain of the network: (log A, B, log T1) or (log A, log T2), or without logarithms in the linear domain.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from physics.noise import bessel_ratio
from physics.relaxometry import SignalModel

# Precision of a weak prior on each step, so that a voxel without information stands still.
STEP_PRECISION = {"A": 1.0, "B": 10.0, "T": 1.0}
NEAR, WIDE = 9, 17  # boxes [voxels] over which B is pooled
STEP_LIMIT = 0.7  # largest step in the working domain


@contextmanager
def plain_physics(like: Tensor) -> Iterator[None]:
    """No gradients, and full precision: half precision would confuse neighbouring entries of the dictionary."""
    device = like.device.type
    # Only where it is on: an exporter does not know the context.
    mixed = torch.is_autocast_enabled(device)
    with torch.no_grad(), torch.autocast(device, enabled=False) if mixed else nullcontext():
        yield


def box_mean(x: Tensor, width: int) -> Tensor:
    """Mean over a ``width`` x ``width`` box (odd), zero-padded; ``[batch, H, W]`` to the same shape."""
    half = width // 2
    rows = avg_pool2d(x[:, None], (width, 1), stride=1, padding=(half, 0))
    return avg_pool2d(rows, (1, width), stride=1, padding=(0, half))[:, 0]


def neighbourhood_mean(x: Tensor, log_information: Tensor, width: int) -> Tensor:
    """Mean of ``x`` over a box, each voxel weighted by its information; all ``[batch, H, W]``."""
    weight = torch.exp(log_information)
    return box_mean(weight * x, width) / box_mean(weight, width).clamp(min=1e-6)


def residual_variance(squared: Tensor, energy: Tensor, degrees: int) -> Tensor:
    """Noise variance of each image from its residuals, in spite of voxels that the model does not explain.

    A geometric mean over the voxels, weighted by their energy: bright voxels say most about the noise of tissue, and
    a logarithm bounds what a misfit can do. In a second pass voxels far above the first mean lose their weight.

    Args:
        squared: sum of squared residuals over ``degrees``, ``[batch, H, W]``.
        energy: mean squared signal, ``[batch, H, W]``.
        degrees: degrees of freedom k of a voxel; the logarithm of its mean square is low by log(k/2) - digamma(k/2).

    Returns:
        Variance ``[batch, 1, 1]``.
    """
    half = torch.tensor(0.5 * degrees)
    offset = float(torch.log(half) - torch.digamma(half))
    log_squared = torch.log(squared.clamp(min=1e-12))
    weight = energy
    for _ in range(2):
        total = weight.sum((-2, -1), keepdim=True).clamp(min=1e-12)
        mean = (weight * log_squared).sum((-2, -1), keepdim=True) / total + offset
        weight = energy / (1.0 + (0.2 * torch.exp(log_squared - mean)).square())
    return torch.exp(mean).clamp(min=1e-8)


@dataclass
class Likelihood:
    """Likelihood of the data at one estimate, in the working domain.

    Attributes:
        gradient: of the log-likelihood by each parameter, Q maps.
        hessian: Gauss-Newton approximation, ``hessian[i][j]`` for j <= i.
        chi2: sum of squared residuals over (N - 2) sigma^2.
        variance: noise variance of each image of the batch, ``[batch, 1, 1]``.
    """

    gradient: list[Tensor]
    hessian: list[list[Tensor]]
    chi2: Tensor
    variance: Tensor


def evaluate_likelihood(
    model: SignalModel, data: Tensor, parameters: list[Tensor], jacobian_scale: list[Tensor | float], rician: bool
) -> Likelihood:
    """Gradient and curvature of the likelihood; the noise variance is estimated from the residual.

    Args:
        model: signal model that holds the acquisition of ``data``.
        data: measured series ``[N, batch, H, W]``.
        parameters: tissue parameters in their units, each ``[batch, H, W]``.
        jacobian_scale: derivative of each parameter by its coordinate in the working domain.
        rician: whether the data are Rician magnitudes; otherwise Gaussian noise.

    Returns:
        The likelihood at ``parameters``.
    """
    signal, derivatives = model.signed(*parameters)
    sign = torch.sign(signal)
    residual = data - signal * sign
    energy = data.square().mean(0)
    degrees = max(model.n_images - 2, 1)
    squared = residual.square().sum(0) / degrees
    variance = residual_variance(squared, energy, degrees)
    if rician:
        residual = data * bessel_ratio(data * signal * sign / variance) - signal * sign
    columns = [derivative * (sign * scale) for derivative, scale in zip(derivatives, jacobian_scale, strict=True)]
    gradient = [(residual * column).sum(0) / variance for column in columns]
    hessian = [[(columns[i] * columns[j]).sum(0) / variance for j in range(i + 1)] for i in range(len(columns))]
    return Likelihood(gradient, hessian, squared / variance, variance)


@dataclass
class Steps:
    """Gauss-Newton steps and how certain they are; every map ``[batch, H, W]``.

    Attributes:
        voxelwise: step of each parameter from its own voxel alone.
        smooth: step that shares B with the neighbourhood; the voxelwise one where the model has no B.
        pooled_b: steps of B pooled over a small and over a wide neighbourhood; empty without B.
        log_information: logarithms of curvatures: of T given B, and of B (own voxel, pooled).
        deviation: analytic standard deviation of each parameter in the working domain, B as well known as its pool.
    """

    voxelwise: list[Tensor]
    smooth: list[Tensor]
    pooled_b: list[Tensor]
    log_information: list[Tensor]
    deviation: list[Tensor]


def _limited(step: Tensor) -> Tensor:
    return step.clamp(-STEP_LIMIT, STEP_LIMIT)


def _solve_amplitude_and_time(h: list[list[Tensor]], first: int, last: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Damped curvatures of A and T, their coupling and the determinant."""
    aa = h[first][first] + STEP_PRECISION["A"]
    tt = h[last][last] + STEP_PRECISION["T"]
    at = h[last][first]
    return aa, tt, at, (aa * tt - at * at).clamp(min=1e-6)


def gauss_newton_steps(likelihood: Likelihood, has_b: bool) -> Steps:
    """Gauss-Newton steps with A and T eliminated in closed form.

    Args:
        likelihood: gradient and curvature at the present estimate.
        has_b: whether the parameters are (A, B, T) rather than (A, T).

    Returns:
        The steps, each limited to +-0.7 in the working domain.
    """
    g, h = likelihood.gradient, likelihood.hessian
    last = len(g) - 1
    aa, tt, at, determinant = _solve_amplitude_and_time(h, 0, last)
    step_a = (tt * g[0] - at * g[last]) / determinant
    step_t = (aa * g[last] - at * g[0]) / determinant
    deviation_a, deviation_t = (tt / determinant).sqrt(), (aa / determinant).sqrt()
    log_t = torch.log(determinant / aa)
    if not has_b:
        steps = [_limited(step_a), _limited(step_t)]
        return Steps(steps, steps, [], [log_t], [deviation_a, deviation_t])
    # Response of A and T to B, then what is left to say about B itself.
    response_a = (tt * h[1][0] - at * h[2][1]) / determinant
    response_t = (aa * h[2][1] - at * h[1][0]) / determinant
    curvature = (h[1][1] - h[1][0] * response_a - h[2][1] * response_t).clamp(min=0.0)
    slope = g[1] - h[1][0] * step_a - h[2][1] * step_t
    near = [box_mean(m, NEAR) for m in (slope, curvature)]
    wide = [box_mean(box_mean(m, WIDE), WIDE) for m in near]
    own_b = _limited(slope / (curvature + STEP_PRECISION["B"]))
    near_b, wide_b = (_limited(s / (c + STEP_PRECISION["B"] / w**2)) for w, (s, c) in ((NEAR, near), (WIDE, wide)))
    information_b = wide[1] * WIDE**2 + STEP_PRECISION["B"]

    def steps_given(step_b: Tensor) -> list[Tensor]:
        return [_limited(step_a - response_a * step_b), step_b, _limited(step_t - response_t * step_b)]

    return Steps(
        voxelwise=steps_given(own_b),
        smooth=steps_given(wide_b),
        pooled_b=[near_b, wide_b],
        log_information=[log_t, torch.log1p(curvature), torch.log(information_b)],
        deviation=[
            (deviation_a**2 + response_a**2 / information_b).sqrt(),
            information_b.rsqrt(),
            (deviation_t**2 + response_t**2 / information_b).sqrt(),
        ],
    )
