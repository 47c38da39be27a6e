"""Concentrations of bodies that explain the field around them, from scattered samples of it.

Plane axes ``[X, Z]``, lengths in mm, fields in uT, concentrations in ug/mm^3.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from scipy import optimize
from torch import Tensor

from physics.viewline import ViewLineSequence

from .line_tracking import FieldSamples, along_z

__all__ = ["fit_concentrations", "fit_displacements", "sample_field"]

Array = npt.NDArray[np.float64]

_HUBER = 1.345  # times the spread of the residuals: 95 % efficient for normal errors
_ROUNDS = 12
_SMALLEST = 0.004  # spread of a line's place below which none is assumed [mm]


def sample_field(fields: Tensor, samples: FieldSamples, pixel_size: Sequence[float]) -> Tensor:
    """Fields ``[K, X, Z]`` at the places of the samples of one image ``[1, L, X]``: ``[K, L, X]``, linear along z."""
    place = samples.z[0].T.expand(len(fields), -1, -1)
    return along_z(fields, place, float(pixel_size[1])).transpose(-1, -2)


def fit_concentrations(
    samples: FieldSamples, unit_fields: Tensor, blocked: Tensor, sequence: ViewLineSequence, pixel_size: Sequence[float]
) -> Tensor:
    """Concentration of each body, by weighted least squares with c >= 0, outliers down-weighted.

    Args:
        samples: of one image, ``[1, L, X]``.
        unit_fields: field of each body at 1 ug/mm^3 ``[K, X, Z]`` [uT].
        blocked: boolean ``[X, Z]``; samples there are left out, those of the bodies themselves.
        sequence: its net shift sets the smallest error of a sample.
        pixel_size: (dx, dz) [mm].

    Returns:
        ``[K]`` [ug/mm^3], float64; 0 where too few samples are left.

    Source: iteratively reweighted least squares with Huber's weights; Lawson and Hanson's non-negative solution.
    """
    solution = _reweighted(samples, unit_fields, blocked, sequence, pixel_size, lambda a, b: optimize.nnls(a, b)[0])
    return torch.from_numpy(solution)


def fit_displacements(
    samples: FieldSamples,
    unit_fields: Tensor,
    blocked: Tensor,
    sequence: ViewLineSequence,
    pixel_size: Sequence[float],
    largest_mm: float,
) -> Tensor:
    """How far each body must move for its field to explain the samples better, to first order.

    Args:
        samples: see :func:`fit_concentrations`.
        unit_fields: see :func:`fit_concentrations`.
        blocked: see :func:`fit_concentrations`.
        sequence: see :func:`fit_concentrations`.
        pixel_size: (dx, dz) [mm].
        largest_mm: longest step along an axis [mm].

    Returns:
        (x, z) of each body ``[K, 2]`` [mm], float64; 0 for a body without a positive concentration.
    """
    along_x, along_z_ = torch.gradient(unit_fields, spacing=[float(step) for step in pixel_size], dim=(-2, -1))
    columns = torch.cat([unit_fields, -along_x, -along_z_])
    free = _reweighted(
        samples, columns, blocked, sequence, pixel_size, lambda a, b: np.linalg.lstsq(a, b, rcond=None)[0]
    )
    concentration, along = free[: len(unit_fields)], free[len(unit_fields) :].reshape(2, -1)
    shift = np.where(concentration > 0, along / np.maximum(concentration, 1e-12), 0.0)
    return torch.from_numpy(np.clip(shift, -largest_mm, largest_mm).T.astype(np.float64))


def _reweighted(
    samples: FieldSamples,
    columns: Tensor,
    blocked: Tensor,
    sequence: ViewLineSequence,
    pixel_size: Sequence[float],
    solve: Callable[[Array, Array], npt.ArrayLike],
) -> Array:
    """Coefficients of the columns ``[K, X, Z]`` that explain the samples, with Huber's weights."""
    covered = sample_field(blocked[None].to(columns), samples, pixel_size)[0] > 0
    weight = torch.where(covered, 0.0, samples.weight[0])
    used = weight > 0
    if len(columns) == 0 or int(used.sum()) <= len(columns):
        return np.zeros(len(columns))
    design = sample_field(columns, samples, pixel_size)[:, used].T.double().cpu().numpy()
    target = samples.field[0][used].double().cpu().numpy()
    weights = weight[used].double().cpu().numpy()
    smallest = _SMALLEST / abs(sequence.net_shift)
    factors, solution = np.ones_like(weights), np.zeros(len(columns))
    for _ in range(_ROUNDS):
        root = np.sqrt(weights * factors)
        previous, solution = solution, np.asarray(solve(design * root[:, None], target * root), dtype=np.float64)
        if np.allclose(solution, previous, rtol=1e-4, atol=1e-6):
            break
        residual = np.abs(target - design @ solution)
        spread = max(1.4826 * float(np.median(residual)), smallest)
        factors = np.minimum(1.0, _HUBER * spread / np.maximum(residual, 1e-12))
    return solution
