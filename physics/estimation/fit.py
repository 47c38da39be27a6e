"""Maximum-likelihood fit of a signal model to magnitude images: validation, noise level, errors of the estimates."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from physics.estimation.field import FieldProblem, eliminate, fit_field
from physics.estimation.grid import build_dictionary, chunks, default_grid
from physics.estimation.levenberg_marquardt import bounds_tensor, refine
from physics.estimation.likelihood import equations
from physics.estimation.packed import invert, pack_index
from physics.noise import check_noise_model
from physics.relaxometry import SignalModel

__all__ = ["B_MODES", "DEFAULT_BOUNDS", "Fit", "fit"]

Limits = Mapping[str, tuple[float, float]]  # lowest and highest value by parameter name
B_MODES = ("voxelwise", "shared", "smooth")
DEFAULT_BOUNDS = {"B": (0.5, 2.5), "T1": (0.01, 10.0), "T2": (1e-3, 5.0)}  # times in seconds
_SIGMA_SAMPLE = 4096  # voxels of each image from which the noise is estimated


@dataclass
class Fit:
    r"""Result of :func:`fit`. Voxels outside the mask are zero (``converged``: False) in all of it.

    Attributes:
        parameters: estimates ``[Q, *shape]`` in the order and units of the model.
        standard_errors: their standard errors ``[Q, *shape]``; infinite where the data do not determine them.
        residual: data - model ``[N, *shape]``.
        sigma: noise standard deviation, given or estimated; broadcastable to ``[*shape]``.
        chi2: reduced chi-square ``[*shape]``, :math:`\frac{1}{N - Q} \sum_n (m_n - \mathrm{E} m_n)^2 / \mathrm{Var}\,
            m_n`, about 1 where the model explains the data; 0 if as many parameters as images are fitted.
        converged: whether the optimum was reached ``[*shape]``, that of B included.
    """

    parameters: Tensor
    standard_errors: Tensor
    residual: Tensor
    sigma: Tensor
    chi2: Tensor
    converged: Tensor


def _check(model: SignalModel, data: Tensor, mask: Tensor | None, noise: str, b_mode: str) -> Tensor:
    """Raise ValueError for what cannot be fitted; returns the mask ``[*shape]``."""
    check_noise_model(noise)
    shape = data.shape[1:]
    if data.ndim == 0 or data.shape[0] != model.n_images:
        raise ValueError(f"data must have {model.n_images} images on its first axis, got shape {tuple(data.shape)}")
    if not data.is_floating_point():
        raise ValueError(f"data must be real floating-point magnitudes, got {data.dtype}")
    if data.shape[0] < len(model.parameter_names):
        raise ValueError(f"{len(model.parameter_names)} parameters need as many images, got {data.shape[0]}")
    if b_mode not in B_MODES:
        raise ValueError(f"b_mode must be one of {B_MODES}, got {b_mode!r}")
    if b_mode == "smooth" and "B" in model.parameter_names and len(shape) < 2:
        raise ValueError(f"a smooth B needs images on the last two axes, got shape {tuple(data.shape)}")
    if mask is None:
        mask = torch.ones(shape, dtype=torch.bool, device=data.device)
    if mask.shape != shape or mask.dtype != torch.bool:
        raise ValueError(f"mask must be bool of shape {tuple(shape)}, got {mask.dtype} of {tuple(mask.shape)}")
    inside = data[:, mask]
    if not bool(torch.isfinite(inside).all()):
        raise ValueError("data must be finite inside the mask")
    if noise == "rician" and bool((inside < 0).any()):
        raise ValueError("Rician data are magnitudes and cannot be negative")
    return mask


def _bounds(model: SignalModel, bounds: Limits | None) -> dict[str, tuple[float, float]]:
    names = model.parameter_names[1:]
    wanted = dict(bounds or {})
    if set(wanted) - set(names):
        raise ValueError(f"bounds can be given for {names}, got {sorted(wanted)} (A is only kept from being negative)")
    result = {name: wanted.get(name, DEFAULT_BOUNDS[name]) for name in names}
    for name, (low, high) in result.items():
        if not (low < high and math.isfinite(high) and (low > 0 or name == "B")):
            raise ValueError(f"bounds of {name} must be two finite ascending values, a time above 0, got {(low, high)}")
    return result


def _without_bias(data: Tensor, noise: str) -> Tensor:
    """Data in noise units with the first-order bias of Rician noise taken off (Gudbjartsson and Patz 1995)."""
    return (data.square() - 1.0).clamp(min=0.0).sqrt() if noise == "rician" else data


def _fit_voxelwise(
    model: SignalModel, data: Tensor, bounds: Limits, noise: str, iterations: int
) -> tuple[Tensor, Tensor]:
    """Parameters ``[Q, V]`` and converged ``[V]`` of data ``[N, V]`` in noise units: grid, then Levenberg-Marquardt."""
    dictionary = build_dictionary(model, default_grid(model, bounds), like=data)
    limits = bounds_tensor(bounds, data)
    parameters = data.new_empty(len(model.parameter_names), data.shape[1])
    converged = torch.zeros(data.shape[1], dtype=torch.bool, device=data.device)
    for part in chunks(data.shape[1]):
        piece = data[:, part].contiguous()
        start = dictionary.search(_without_bias(piece, noise))
        parameters[:, part], _, converged[part] = refine(model, piece, start, limits, noise, iterations=iterations)
    return parameters, converged


def _pearson(model: SignalModel, data: Tensor, parameters: Tensor, noise: str) -> Tensor:
    """Sum over images ``[V]`` of the squared deviation from the expected value over the expected variance."""
    signal = model(*parameters)
    if noise == "gaussian":
        return (data - signal).square().sum(0)
    x = 0.25 * signal.square()  # of the mean of a Rician magnitude, sqrt(pi/2) L_1/2(-signal^2 / 2)
    mean = math.sqrt(math.pi / 2.0) * ((1.0 + 2.0 * x) * torch.special.i0e(x) + 2.0 * x * torch.special.i1e(x))
    variance = torch.where(
        signal < 30.0, 2.0 + signal.square() - mean.square(), 1.0 - 0.5 / signal.clamp(min=1).square()
    )
    return ((data - mean).square() / variance.clamp(min=0.4)).sum(0)


def _estimate_sigma(model: SignalModel, sample: Tensor, limits: Limits, noise: str) -> Tensor:
    """Noise standard deviation from the residual of a voxelwise fit to voxels ``[N, V]`` of one image.

    The median over voxels of their chi-square is compared with that of its distribution, so voxels which the model
    does not explain have little influence. Where there are any, only voxels with signal are used: the background
    of a magnitude image is not Gaussian.
    """
    freedom = sample.shape[0] - len(model.parameter_names)
    expected = freedom * (1.0 - 2.0 / (9.0 * freedom)) ** 3  # median of chi-square (Wilson and Hilferty)
    scale = sample.abs().max()
    floor = math.sqrt(torch.finfo(sample.dtype).eps) * scale  # of noise-free data
    sigma = 0.05 * scale  # sets no more than the tolerance of the first fit
    for likelihood in ("gaussian", "gaussian") if noise == "gaussian" else ("gaussian", noise, noise, noise):
        units = sample / sigma
        parameters, _ = _fit_voxelwise(model, units, limits, likelihood, 20)
        statistic = _pearson(model, units, parameters, likelihood)
        bright = units.mean(0) > 3.0
        statistic = statistic[bright] if int(bright.sum()) > 20 else statistic
        sigma = (sigma * (statistic.median() / expected).sqrt()).clamp(min=floor)
    return sigma


def _estimate_sigmas(
    model: SignalModel, data: Tensor, images: Tensor, count: int, limits: Limits, noise: str
) -> Tensor:
    """Noise standard deviation of each of ``count`` images, all-zero voxels left out.

    Args:
        model: signal model.
        data: magnitudes ``[N, V]``.
        images: image to which each voxel belongs, ``[V]``.
        count: number of images.
        limits: bounds of the nonlinear parameters.
        noise: ``"gaussian"`` or ``"rician"``.

    Raises:
        ValueError: if there are not more images than parameters.
    """
    if data.shape[0] <= len(model.parameter_names):
        raise ValueError(f"sigma cannot be estimated from {data.shape[0]} images: give it")
    sigmas = data.new_ones(count)  # an image without voxels has nothing to be normalised
    for image in range(count):
        voxels = ((images == image) & (data != 0).any(0)).nonzero()[:, 0]
        if len(voxels):
            sample = data[:, voxels[:: max(1, len(voxels) // _SIGMA_SAMPLE)]]
            sigmas[image] = _estimate_sigma(model, sample, limits, noise)
    return sigmas


def _errors(model: SignalModel, data: Tensor, parameters: Tensor, noise: str, variance_b: Tensor | None) -> Tensor:
    """Standard errors ``[Q, V]`` from the inverse Fisher matrix, in float64.

    With the variance ``[V]`` of a shared or smooth B: that of A and T at fixed B, plus what B's variance adds to it.
    """
    result = torch.empty_like(parameters)
    size = len(parameters)
    for part in chunks(data.shape[1]):
        state = equations(model, data[:, part].double(), parameters[:, part].double(), noise, exact=True)
        if variance_b is None:
            diagonal, regular = invert(state[1 + size :], size)
        else:
            fisher = state[1 + size :]
            inner = torch.stack([fisher[pack_index(0, 0)], fisher[pack_index(0, 2)], fisher[pack_index(2, 2)]])
            (of_a, of_t), regular = invert(inner, 2)
            extra, slope = variance_b[part].double(), eliminate(state, damping=0.0)[3]
            diagonal = [of_a + slope[0] ** 2 * extra, extra, of_t + slope[1] ** 2 * extra]
        diagonal[-1] = diagonal[-1] * parameters[-1, part].double() ** 2
        errors = torch.stack(diagonal).sqrt()
        result[:, part] = torch.where(regular & (parameters[0, part] > 0), errors, math.inf).to(result.dtype)
    return result


def _as_images(shape: torch.Size) -> tuple[int, int, int]:
    """Shape ``(images, H, W)`` of a stack whose images are its last two axes; fewer axes are one row of one image."""
    return (math.prod(shape[:-2]), shape[-2], shape[-1]) if len(shape) >= 2 else (1, 1, math.prod(shape))


def _scatter(values: Tensor, mask: Tensor) -> Tensor:
    """Values ``[..., V]`` of the voxels in the mask as ``[..., *shape]``, zero elsewhere."""
    full = torch.zeros((*values.shape[:-1], mask.numel()), dtype=values.dtype, device=values.device)
    full[..., mask.flatten()] = values
    return full.reshape((*values.shape[:-1], *mask.shape))


def _noise_level(
    model: SignalModel, data: Tensor, mask: Tensor, sigma: Tensor | float | None, limits: Limits, noise: str
) -> tuple[Tensor, Tensor]:
    """Sigma as given or estimated, broadcastable to ``[*shape]``, and its values at the voxels in the mask ``[V]``."""
    shape = data.shape[1:]
    if sigma is None:
        images = mask.reshape(_as_images(shape)).nonzero()[:, 0]
        levels = _estimate_sigmas(model, data[:, mask], images, _as_images(shape)[0], limits, noise)
        return levels.reshape(*shape[:-2], 1, 1) if len(shape) >= 2 else levels[0], levels[images]
    given = torch.as_tensor(sigma, dtype=data.dtype, device=data.device)
    if given.ndim > len(shape) or any(g not in (1, n) for g, n in zip(given.shape[::-1], shape[::-1], strict=False)):
        raise ValueError(f"sigma must be broadcastable to {tuple(shape)}, got shape {tuple(given.shape)}")
    voxels = given.expand(shape)[mask]
    if not bool(((voxels > 0) & torch.isfinite(voxels)).all()):
        raise ValueError("sigma must be positive and finite inside the mask")
    return given, voxels


@torch.no_grad()
def fit(
    model: SignalModel,
    data: Tensor,
    *,
    noise: str = "gaussian",
    sigma: Tensor | float | None = None,
    b_mode: str = "voxelwise",
    smoothness: float = 500.0,
    mask: Tensor | None = None,
    bounds: Limits | None = None,
    iterations: int | None = None,
) -> Fit:
    r"""Maximum-likelihood estimate of the parameters of a signal model.

    .. math:: \hat p = \arg\min_p \sum_x \left[ \sum_{n=1}^{N} -\log \mathcal{L}\left(\frac{m_n(x)}{\sigma};
        \frac{s_n(p(x))}{\sigma}\right) + \frac{\lambda}{2} \left(\nabla^2 B\right)^2(x) \right], \qquad
        \mathrm{se}_q = \sqrt{(F^{-1})_{qq}}

    over the voxels x, with F the Fisher matrix at the estimate
    (:meth:`physics.relaxometry.SignalModel.cramer_rao_bound`). The second term is there for a smooth B alone. A
    dictionary with A eliminated (variable projection) gives the start of a Levenberg-Marquardt refinement under the
    Gaussian or the Rician likelihood. B is free in each voxel, one value for each image, or a smooth field (Sabidussi
    et al., Med. Image Anal. 2021, Eq. 2).

    Standard errors come from the inverse Fisher matrix. For a shared or smooth B they are those of A and T at fixed
    B plus the share of the sampling variance of B, which for a smooth B is approximate (curvature taken as
    constant within the smoothing kernel; the bias by smoothing is not included).

    Args:
        model: signal model, its times being lists ``[N]``.
        data: magnitudes ``[N, *shape]``; images are the last two axes, leading axes are independent images.
        noise: ``"gaussian"`` or ``"rician"``.
        sigma: noise standard deviation in the unit of the data, broadcastable to ``[*shape]``; by default estimated
            from the residual of a voxelwise fit, one value for each image.
        b_mode: ``"voxelwise"``, ``"shared"`` or ``"smooth"``; without effect on models that have no B.
        smoothness: weight of the squared Laplacian of B, in units of the log-likelihood: 500 as in the paper. A B
            that varies over tens of voxels is better served by 1e5 to 5e5.
        mask: voxels to be fitted, bool ``[*shape]``; all by default.
        bounds: lowest and highest value by parameter name, in the units of the model; by default B in [0.5, 2.5],
            T1 in [0.01, 10] s, T2 in [0.001, 5] s. A is never negative.
        iterations: largest number of Levenberg-Marquardt steps (default 30), or of Gauss-Newton steps of B (10).

    Returns:
        Estimates with errors, residual and quality of fit; dtype and device of the data.

    Raises:
        ValueError: if shapes, names or values of the arguments do not fit together.
    """
    mask = _check(model, data, mask, noise, b_mode)
    limits = _bounds(model, bounds)
    if not smoothness > 0:
        raise ValueError(f"smoothness must be positive, got {smoothness}")
    data = data.detach()
    given, sigma_of = _noise_level(model, data, mask, sigma, limits, noise)
    units = data[:, mask] / sigma_of
    n_free, variance_b = len(model.parameter_names), None
    if b_mode == "voxelwise" or "B" not in model.parameter_names or units.shape[1] == 0:
        parameters, converged = _fit_voxelwise(model, units, limits, noise, 30 if iterations is None else iterations)
    else:
        stack = mask.reshape(_as_images(mask.shape))
        problem = FieldProblem(model, units, _without_bias(units, noise), stack, limits, noise)
        weight = smoothness if b_mode == "smooth" else None
        result = fit_field(problem, weight, 10 if iterations is None else iterations)
        parameters, converged, variance_b = result.parameters, result.converged, result.variance
        n_free -= 1  # nearly all of B is determined by the other voxels
    errors = _errors(model, units, parameters, noise, variance_b)
    chi2, residual = torch.zeros_like(units[0]), torch.empty_like(units)
    for part in chunks(units.shape[1]):
        if len(units) > n_free:
            chi2[part] = _pearson(model, units[:, part], parameters[:, part], noise) / (len(units) - n_free)
        residual[:, part] = units[:, part] - model(*parameters[:, part])
    for rows in (parameters[:1], errors[:1], residual):
        rows *= sigma_of
    parameters, errors, residual, chi2 = (_scatter(rows, mask) for rows in (parameters, errors, residual, chi2))
    return Fit(parameters, errors, residual, given, chi2, _scatter(converged, mask))
