"""The one call for all deconvolutions."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor

from physics.perfusion.deconvolution.circulant import csvd, osvd
from physics.perfusion.deconvolution.common import check_series, rows_inside

__all__ = ["CIRCULANT", "METHODS", "deconvolve"]

_VOXELWISE: dict[str, Callable[..., Tensor]] = {"csvd": csvd, "osvd": osvd}
METHODS = tuple(_VOXELWISE)
CIRCULANT = ("csvd", "osvd")


def deconvolve(
    concentration: Tensor, aif: Tensor, dt: float, method: str = "osvd", *, mask: Tensor | None = None, **options: Any
) -> Tensor:
    """Residue of each voxel."""
    check_series(concentration, aif, dt, mask)
    if method not in _VOXELWISE:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    solve = _VOXELWISE[method]
    known = {name for name, value in inspect.signature(solve).parameters.items() if value.kind is value.KEYWORD_ONLY}
    options = {name: value for name, value in options.items() if value is not None}
    if unknown := options.keys() - known:
        raise ValueError(f"options of {method} are {', '.join(sorted(known))}, got {', '.join(sorted(unknown))}")
    found = solve(rows_inside(concentration, mask), aif, dt, **options)
    if mask is None:
        return found.reshape(*concentration.shape[:-1], -1)
    whole = concentration.new_zeros(*mask.shape, found.shape[-1])
    return whole.masked_scatter(mask[..., None], found) if found.requires_grad else whole.index_put_((mask,), found)
