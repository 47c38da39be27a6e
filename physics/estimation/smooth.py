"""Priors on the field of B over an image: one constant, or a smooth map, with the linear systems they lead to.

All fields are batches of images ``[images, H, W]`` in float64: the stiff term of the prior spans ten decades.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor

__all__ = ["ConstantPrior", "Prior", "SmoothPrior", "laplacian"]


def laplacian(field: Tensor) -> Tensor:
    """Sum of second differences over the last two axes, reflecting at the edges; shape of ``field``."""
    result = torch.zeros_like(field)
    for axis in (-2, -1):
        difference = field.diff(dim=axis)
        size = difference.shape[axis]
        result.narrow(axis, 0, size).add_(difference)
        result.narrow(axis, 1, size).sub_(difference)
    return result


def _cosines(size: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Orthonormal cosine transform (type II) ``[size, size]`` and the eigenvalues of the second difference."""
    k = torch.arange(size, device=like.device, dtype=like.dtype)
    matrix = torch.cos(math.pi / size * k[:, None] * (k + 0.5)) * math.sqrt(2.0 / size)
    matrix[0] *= math.sqrt(0.5)
    return matrix, 2.0 * torch.cos(math.pi / size * k) - 2.0


class Prior(Protocol):
    """What the field of B is assumed to be."""

    def energy(self, field: Tensor) -> Tensor:
        """Negative log of the prior of each image, ``[images]``."""

    def step(self, curvature: Tensor, gradient: Tensor, field: Tensor) -> Tensor:
        """Gauss-Newton step of the field, given the curvature and gradient of the data term at each voxel."""

    def variance(self, curvature: Tensor) -> Tensor:
        """Sampling variance of the estimated field at each voxel."""


class ConstantPrior:
    """One value for each image."""

    def energy(self, field: Tensor) -> Tensor:
        """Zero: a constant field costs nothing."""
        return field.new_zeros(len(field))

    def step(self, curvature: Tensor, gradient: Tensor, field: Tensor) -> Tensor:
        """Ratio of the summed gradient and curvature, the same at each voxel."""
        total = curvature.sum((-2, -1), keepdim=True)
        return (-gradient.sum((-2, -1), keepdim=True) / total.clamp(min=1e-12)).expand_as(field)

    def variance(self, curvature: Tensor) -> Tensor:
        """Inverse of the summed curvature."""
        return curvature.sum((-2, -1), keepdim=True).clamp(min=1e-12).reciprocal().expand_as(curvature)


class SmoothPrior:
    """Quadratic prior ``smoothness / 2 * sum (Laplacian B)**2``.

    Args:
        smoothness: weight, the inverse of the variance expected of the Laplacian of B.
        field: images ``[images, H, W]`` of the size and device to be worked on.
    """

    def __init__(self, smoothness: float, field: Tensor) -> None:
        self.smoothness = smoothness
        rows, second_rows = _cosines(field.shape[-2], field)
        columns, second_columns = _cosines(field.shape[-1], field)
        self.rows, self.columns = rows.float(), columns.float()  # enough for a preconditioner, and twice as fast
        self.spectrum = smoothness * (second_rows[:, None] + second_columns) ** 2

    def energy(self, field: Tensor) -> Tensor:
        """Prior energy of each image, ``[images]``."""
        return 0.5 * self.smoothness * laplacian(field).square().sum((-2, -1))

    def _gradient(self, field: Tensor) -> Tensor:
        return self.smoothness * laplacian(laplacian(field))

    def _solve_uniform(self, field: Tensor, curvature: Tensor) -> Tensor:
        """Solution for a data curvature that is the same all over an image, ``[images, 1, 1]``."""
        transformed = (self.rows @ field.float() @ self.columns.T) / (self.spectrum + curvature)
        return (self.rows.T @ transformed.float() @ self.columns).to(field.dtype)

    def step(self, curvature: Tensor, gradient: Tensor, field: Tensor) -> Tensor:
        """Solve ``(curvature + P) d = -(gradient + P field)`` by conjugate gradients, P being the prior's matrix.

        The preconditioner has the mean curvature of the image, which the cosine transform makes diagonal. The
        residual is reduced thirtyfold: more is lost on an approximate Newton step.
        """
        mean = curvature.mean((-2, -1), keepdim=True).clamp(min=1e-12)
        residual = -(gradient + self._gradient(field))
        solution = torch.zeros_like(residual)
        preconditioned = self._solve_uniform(residual, mean)
        direction = preconditioned
        product = (residual * preconditioned).sum((-2, -1), keepdim=True)
        goal = 1e-3 * product
        for _ in range(40):
            if not bool((product > goal).any()):
                break
            image = curvature * direction + self._gradient(direction)
            length = product / (direction * image).sum((-2, -1), keepdim=True).clamp(min=1e-300)
            solution = solution + length * direction
            residual = residual - length * image
            preconditioned = self._solve_uniform(residual, mean)
            previous, product = product, (residual * preconditioned).sum((-2, -1), keepdim=True)
            direction = preconditioned + product / previous.clamp(min=1e-300) * direction
        return solution

    def variance(self, curvature: Tensor) -> Tensor:
        """Sampling variance in the approximation of a curvature that varies little within the smoothing kernel.

        With curvature c it is the mean over the cosine modes k of ``c / (c + P_k)**2``; c is the map smoothed by the
        kernel of the estimator itself. The bias by smoothing is not part of it.
        """
        mean = curvature.mean((-2, -1), keepdim=True).clamp(min=1e-12)
        local = (mean * self._solve_uniform(curvature, mean)).clamp(min=1e-2 * mean)
        low, high = math.log(float(local.min())), math.log(float(local.max()))
        nodes = torch.linspace(low, high + 1e-6, 32, device=local.device, dtype=local.dtype)
        table = torch.stack([(c / (c + self.spectrum) ** 2).mean() for c in nodes.exp()]).log()
        place = (local.log() - low) / (high + 1e-6 - low) * 31.0
        left = place.long().clamp(0, 30)
        return torch.lerp(table[left], table[left + 1], place - left).exp()
