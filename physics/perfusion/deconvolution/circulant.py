"""Truncated singular values of the block-circulant matrix: cSVD and oSVD.

The arterial curve is padded with as many zeros, so that a residue that begins before the arterial curve does (tissue
that the contrast agent reaches first) is found at the end of the period, as a negative delay. The discrete Fourier
transform diagonalises the matrix: its singular values are the moduli of the spectrum, and one truncation of them is one
dense operator for all voxels.

Source: Wu et al., Magn Reson Med 50:164 (2003).
"""

from __future__ import annotations

import torch
from torch import Tensor

from physics.perfusion.deconvolution.common import arterial_spectrum, by_chunks, check_aif, check_fraction

__all__ = ["csvd", "csvd_operator", "osvd", "oscillation"]

# Tried from the lowest, as in the source; below 5 % there is noise alone in measured curves.
_THRESHOLDS = tuple(step / 20 for step in range(1, 20))


def csvd_operator(aif: Tensor, dt: float, threshold: float = 0.1) -> Tensor:
    r"""Pseudo-inverse of the block-circulant matrix of an arterial curve, for the measured half of the period.

    .. math:: A_{ij} = \Delta t \, c_a\left[(i - j) \bmod 2N\right], \quad \lambda = \Delta t \, \mathrm{DFT}(c_a),
        \qquad A^+ = \mathrm{DFT}^{-1} \operatorname{diag}\left(
        \frac{[\,|\lambda_k| \ge \tau \max |\lambda|\,]}{\lambda_k}\right) \mathrm{DFT}

    ``residue[..., 2N] = operator @ concentration[..., N]``. Row i is the residue at time i dt, for i >= N at the
    negative time (i - 2N) dt. Neighbouring frames are not weighted. Source: Wu et al., Magn Reson Med 50:164 (2003).

    Args:
        aif: arterial concentration ``[..., N]``, any batch of curves.
        dt: frame time [s].
        threshold: singular values below this part of the largest one are left out, at least 0 and less than 1.

    Returns:
        ``[..., 2N, N]`` [1/s] over the unit of ``aif``, in its dtype.

    Raises:
        ValueError: for an arterial curve that is not finite, zero or of one frame, dt not positive, a bad threshold.
    """
    check_aif(aif, dt)
    check_fraction(threshold, "threshold")
    n = aif.shape[-1]
    spectrum = arterial_spectrum(aif, dt)
    size = spectrum.abs()
    kept = (size >= threshold * size.amax(-1, keepdim=True)) & (size > 0)
    inverse = torch.where(kept, 1 / torch.where(kept, spectrum, torch.ones_like(spectrum)), 0)
    kernel = torch.fft.irfft(inverse, 2 * n).to(aif.dtype)
    frame = torch.arange(2 * n, device=aif.device)
    return kernel[..., (frame[:, None] - frame[:n]) % (2 * n)]


def csvd(rows: Tensor, aif: Tensor, dt: float, *, threshold: float = 0.1) -> Tensor:
    """Residues ``[voxel, 2 time]`` of curves ``[voxel, time]`` by one operator; see :func:`csvd_operator`."""
    return rows @ csvd_operator(aif, dt, threshold).to(rows).mT


def oscillation(residue: Tensor) -> Tensor:
    r"""Oscillation index of a residue ``[..., L]``: :math:`\sum_{k=2}^{L-1} |f_k - 2 f_{k-1} + f_{k-2}| / (L \max f)`.

    The definition of Wu et al. (2003) over the whole period, L = 2N, frames counted from 0, without the differences
    across its ends; max is the largest value, not the largest modulus. Infinite where no value is positive.
    """
    bend = residue[..., 2:] - 2 * residue[..., 1:-1] + residue[..., :-2]
    peak = residue.amax(-1)
    index = bend.abs().sum(-1) / (residue.shape[-1] * peak)
    return torch.where(peak > 0, index, torch.inf)


def osvd(rows: Tensor, aif: Tensor, dt: float, *, oscillation_index: float = 0.035) -> Tensor:
    """Residues ``[voxel, 2 time]`` of curves ``[voxel, time]``, each with the lowest threshold that it bears.

    Thresholds are 5 % of the largest singular value, 10 %, ... 95 %. A voxel takes the first that brings its
    oscillation index (:func:`oscillation`) below the given one, or the last where none does.
    """
    if not oscillation_index > 0:
        raise ValueError(f"oscillation_index must be positive, got {oscillation_index}")
    operators = [csvd_operator(aif, dt, threshold).to(rows).mT.contiguous() for threshold in _THRESHOLDS]

    def solve(part: Tensor) -> Tensor:
        residue = part @ operators[0]
        open_rows = torch.arange(len(part), device=part.device)
        latest = residue
        for operator in operators[1:]:
            still = oscillation(latest.detach()) >= oscillation_index
            open_rows = open_rows[still]
            if not len(open_rows):
                break
            latest = part[open_rows] @ operator
            residue = residue.index_copy(0, open_rows, latest)
        return residue

    return by_chunks(rows, 2 * rows.shape[-1], solve)
