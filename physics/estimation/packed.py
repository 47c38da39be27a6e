"""Small symmetric positive matrices of many voxels, packed as their lower triangles ``[Q (Q + 1) / 2, V]``.

Cholesky factors are written out element by element over the voxels: a batched factorisation of ``[V, 3, 3]`` would take
longer than all the rest of a fit.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["invert", "pack_index", "solve"]


def pack_index(row: int, column: int) -> int:
    """Place of an entry of a symmetric matrix in its packed lower triangle."""
    high, low = max(row, column), min(row, column)
    return high * (high + 1) // 2 + low


def _cholesky(packed: Sequence[Tensor], size: int) -> list[list[Tensor]]:
    """Lower factor of symmetric positive matrices given by their packed entries, elementwise over voxels."""
    factor: list[list[Tensor]] = []
    for q in range(size):
        row: list[Tensor] = []
        for r in range(q + 1):
            entry = packed[pack_index(q, r)]
            for k in range(r):
                entry = entry - row[k] * (factor[r] if r < q else row)[k]
            row.append(entry / factor[r][r] if r < q else entry.clamp(min=1e-30).sqrt())
        factor.append(row)
    return factor


def _substitute(factor: list[list[Tensor]], right: Sequence[Tensor]) -> list[Tensor]:
    """Solution x of ``L L' x = right`` for factors ``L``, elementwise over voxels."""
    size, x = len(factor), list(right)
    for q in range(size):
        for k in range(q):
            x[q] = x[q] - factor[q][k] * x[k]
        x[q] = x[q] / factor[q][q]
    for q in reversed(range(size)):
        for k in range(q + 1, size):
            x[q] = x[q] - factor[k][q] * x[k]
        x[q] = x[q] / factor[q][q]
    return x


def solve(packed: Tensor, right: Sequence[Tensor], damping: Tensor | float = 0.0) -> list[Tensor]:
    """Solve small symmetric positive systems for many voxels, scaled to a unit diagonal.

    Args:
        packed: lower triangles, ``[Q (Q + 1) / 2, V]``.
        right: right-hand sides, Q tensors ``[V]``.
        damping: multiple of the diagonal added to it, broadcastable to ``[V]``.

    Returns:
        Solution, Q tensors ``[V]``.
    """
    size = len(right)
    scale = [_inverse_root(packed[pack_index(q, q)]) for q in range(size)]
    scaled = [packed[pack_index(q, r)] * scale[q] * scale[r] for q in range(size) for r in range(q + 1)]
    for q in range(size):
        scaled[pack_index(q, q)] = scaled[pack_index(q, q)].clamp(min=1e-12) + damping
    solution = _substitute(_cholesky(scaled, size), [scale[q] * right[q] for q in range(size)])
    return [scale[q] * solution[q] for q in range(size)]


def _inverse_root(diagonal: Tensor) -> Tensor:
    return torch.where(diagonal > 0, diagonal.clamp(min=torch.finfo(diagonal.dtype).tiny).rsqrt(), 1.0)


def invert(packed: Tensor, size: int) -> tuple[list[Tensor], Tensor]:
    """Diagonal of the inverse of small symmetric matrices, and whether they are regular.

    Args:
        packed: lower triangles, ``[Q (Q + 1) / 2, V]``.
        size: Q.

    Returns:
        Q tensors ``[V]`` and a mask ``[V]``, False where the scaled matrix is singular to working precision.
    """
    scale = [_inverse_root(packed[pack_index(q, q)]) for q in range(size)]
    scaled = [packed[pack_index(q, r)] * scale[q] * scale[r] for q in range(size) for r in range(q + 1)]
    factor = _cholesky(scaled, size)
    limit = 100.0 * torch.finfo(packed.dtype).eps
    regular = torch.stack([factor[q][q] ** 2 > limit for q in range(size)]).all(0)
    diagonal = []
    for q in range(size):
        unit = [torch.full_like(packed[0], float(q == r)) for r in range(size)]
        diagonal.append(_substitute(factor, unit)[q].clamp(min=0.0) * scale[q] ** 2)
    return diagonal, regular
