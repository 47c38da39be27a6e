"""The one call for all deconvolutions."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from physics.perfusion.deconvolution.circulant import csvd, osvd
from physics.perfusion.deconvolution.common import check_series, rows_inside
from physics.perfusion.deconvolution.dense import ssvd, tikhonov
from physics.perfusion.deconvolution.tensor_tv import ttv

__all__ = ["CIRCULANT", "METHODS", "deconvolve"]

_VOXELWISE: dict[str, Callable[..., Tensor]] = {"ssvd": ssvd, "csvd": csvd, "osvd": osvd, "tikhonov": tikhonov}
_SOLVERS: dict[str, Callable[..., Tensor]] = {**_VOXELWISE, "ttv": ttv}
METHODS = tuple(_SOLVERS)
CIRCULANT = ("csvd", "osvd", "tikhonov", "ttv")  # these return 2 x time, negative delays at the end


def deconvolve(
    concentration: Tensor, aif: Tensor, dt: float, method: str = "osvd", *, mask: Tensor | None = None, **options: Any
) -> Tensor:
    r"""Residue function r with :math:`c(t) = \int c_a(t - u) \, r(u) \, du`; it contains the blood flow.

    Options (those of another method are refused; None stands for the default):

    * ``ssvd``: ``threshold`` .2 of the largest singular value. The flow depends on the delay, and tissue that the
      contrast agent reaches before the arterial curve rises has no answer in it.
    * ``csvd``: ``threshold`` .1 of the largest singular value, of the block-circulant matrix.
    * ``osvd``: ``oscillation_index`` .035. Each voxel has the first threshold of 5, 10 .. 95 % of the largest singular
      value that brings its index (:func:`oscillation`) below.
    * ``tikhonov``: ``selection`` of the weight of each voxel, ``"lcurve"`` or ``"gcv"``; or one weight for all,
      ``regularisation``, relative to the largest singular value. In noise (baseline SNR 20 to 50) cross-validation
      takes far too small a weight for some voxels.
    * ``ttv``: ``regularisation`` .15, weight of the total variation relative to the noise of the curves; ``temporal``
      .3, weight of a difference from frame to frame beside that from voxel to voxel; ``voxel_size`` [mm], one value an
      axis, None for a cube (differences over a longer side count less); ``iterations`` 60, all of them made;
      ``report``, called after each. It has no derivatives. Defaults chosen on a simulated box of grey and white matter
      with a lesion, baseline SNR 20, 50 and 100.

    Args:
        concentration: of tissue ``[..., time]``; for ``ttv`` ``[X, Y, Z, time]`` or with fewer axes of space.
        aif: arterial concentration ``[time]`` in the same unit.
        dt: frame time [s].
        method: ``"ssvd"``, ``"csvd"``, ``"osvd"``, ``"tikhonov"`` or ``"ttv"``.
        mask: bool ``[...]``; voxels outside are not read, are no neighbours, and have the residue 0.
        **options: see above.

    Returns:
        Residue [1/s]. ``ssvd``: ``[..., time]``. All others ``[..., 2 time]``, index i at i dt; from index ``time`` on
        at (i - 2 time) dt, for tissue that the contrast agent reaches before the arterial curve rises.

    Raises:
        ValueError: unknown method, option of another method or out of range; aif of other length, zero or not finite;
            dt not positive; concentration not floating or not finite inside the mask; mask not bool or of other shape;
            for ``ttv`` more than 3 axes of space or fewer than 4 frames.

    Source: Ostergaard et al., Magn Reson Med 36:715 (1996), ssvd; Wu et al., Magn Reson Med 50:164 (2003), csvd and
    osvd; Calamante et al., Magn Reson Med 50:1237 (2003), tikhonov; Fang et al., IEEE Trans Med Imaging 34:1533 (2015),
    ttv. Matrices are not weighted over neighbouring frames.
    """
    check_series(concentration, aif, dt, mask)
    if method not in _SOLVERS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    options = _checked(method, options)
    rows = rows_inside(concentration, mask)
    if method == "ttv":
        space = concentration.shape[:-1]
        everywhere = torch.ones(space, dtype=torch.bool, device=rows.device) if mask is None else mask
        found = ttv(rows, aif, dt, everywhere, **options)
    else:
        found = _VOXELWISE[method](rows, aif, dt, **options)
    if mask is None:
        return found.reshape(*concentration.shape[:-1], found.shape[-1])
    whole = concentration.new_zeros(*mask.shape, found.shape[-1])
    return whole.index_put_((mask,), found)


def _checked(method: str, options: dict[str, Any]) -> dict[str, Any]:
    """Options that are given. Raises ValueError for one that the method does not know."""
    parameters = inspect.signature(_SOLVERS[method]).parameters.values()
    known = [parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]
    given = {name: value for name, value in options.items() if value is not None}
    if unknown := sorted(given.keys() - set(known)):
        raise ValueError(f"options of {method} must be among {', '.join(known)}, got {', '.join(unknown)}")
    return given
