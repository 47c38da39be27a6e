"""One curve from the voxels of a vessel: noise floor and partial volume act on the signal, before the logarithm."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["average_curve", "unmix_tissue"]

_CLIPPED = 2.0  # noises above zero below which the signal of one voxel cannot be told from the noise floor
_BELIEVED = 2.0  # noises above zero that the signal of blood has at least, once that of tissue is taken out
_SMALLEST = 0.02  # of the baseline: likewise
_FRACTIONS = (0.4, 1.0, 301)  # of blood, least, most and how many that are tried
_AMOUNTS = (0.0, 1.0, 11)  # of tissue in the rest, likewise; what it lacks is fluid
_AREA_ERROR, _AMOUNT_ERROR = 0.06, 0.5  # standard deviations: of the venous area, of the amount of tissue around 1


def average_curve(curves: Tensor, noise: Tensor, attenuation: float | None = None) -> tuple[Tensor, bool]:
    """Mean of a few curves of one vessel.

    With ``attenuation`` the signals are averaged and the logarithm is taken last. Near the noise floor, which clips
    high curves, the squared signals are averaged, less what noise adds to them in a magnitude image (twice its
    variance): the floor of the mean is lower.

    Args:
        curves: concentrations ``[n, T]``.
        noise: standard deviations of their baselines ``[n]``.
        attenuation: -ln(S/S0) for one unit of concentration.

    Returns:
        Curve ``[T]``, and whether its trough cannot be told from the noise floor.
    """
    if attenuation is None:
        return curves.mean(0), False
    variance = (attenuation * noise).square().clamp_min(1e-12)[:, None]
    power = torch.exp(-2.0 * attenuation * curves)
    floor = float(variance.mean()) * _CLIPPED**2 / len(curves) ** 0.5
    squares = (power - 2.0 * variance).mean(0)
    signals = (power - variance).clamp_min(0.0).sqrt().mean(0).square()
    mean = torch.lerp(squares, signals, ((squares / variance.mean() - 4.0) / 12.0).clamp(0.0, 1.0))
    clipped = bool((mean < floor).any())
    return -0.5 * mean.clamp_min(max(0.25 * floor, 1e-6)).log() / attenuation, clipped


def unmix_tissue(
    curve: Tensor, tissue: Tensor, area: float, attenuation: float, noise: float = 0.0
) -> tuple[Tensor, float]:
    """Take out of a vessel's curve what else is in its voxels.

    .. math:: e^{-a c} = f e^{-a c_{blood}} + (1 - f) e^{-a l c_{tissue}}

    with a of ``attenuation``. The fraction f of blood is the one with which
    the blood has the area that it must have, that of the venous output. The amount l of tissue is 1 unless that area
    cannot be had so: vessels lie in fluid, which takes up no contrast agent. Where the area is there already, nothing
    is changed.

    Args:
        curve: of the voxels ``[T]``.
        tissue: of the tissue around them ``[T]``.
        area: sum over the frames that the curve of the blood has, in the unit of the curve.
        attenuation: a, -ln(S/S0) for one unit of concentration.
        noise: standard deviation of the curve before the bolus; less signal of blood than twice that is not believed.

    Returns:
        Curve of the blood ``[T]``, and f, between .4 and 1.

    Raises:
        ValueError: if the curves differ in length, or area or attenuation are not positive.
    """
    if curve.shape != tissue.shape or curve.ndim != 1:
        raise ValueError(f"curve and tissue must be [T], got {tuple(curve.shape)} and {tuple(tissue.shape)}")
    if not (area > 0 and attenuation > 0):
        raise ValueError(f"area and attenuation must be positive, got {area} and {attenuation}")
    if float(curve.sum()) >= area:
        return curve, 1.0
    total = torch.exp(-attenuation * curve.double())
    fractions, amounts = (torch.linspace(*grid, dtype=torch.float64) for grid in (_FRACTIONS, _AMOUNTS))
    fractions, amounts = fractions.to(curve.device)[:, None, None], amounts.to(curve.device)[:, None]
    blood = (total - (1.0 - fractions) * torch.exp(-attenuation * amounts * tissue.double())) / fractions
    lowest = torch.minimum((_BELIEVED * attenuation * noise / fractions).clamp_min(_SMALLEST), total.min())
    curves = -blood.clamp_min(1e-9).log() / attenuation
    misfit = ((curves.sum(-1) / area - 1.0) / _AREA_ERROR).square()
    misfit = misfit + ((amounts[:, 0] - 1.0) / _AMOUNT_ERROR).square()
    best = int(torch.where((blood >= lowest).all(-1), misfit, torch.inf).argmin())
    fraction, amount = divmod(best, _AMOUNTS[2])
    return curves[fraction, amount].to(curve.dtype), float(fractions[fraction])
