"""Noise of MR images: Gaussian, Rician and complex, with one definition of SNR.

The signal-to-noise ratio of a series is that of fully relaxed white matter, whose amplitude is 0.65 of that of
cerebrospinal fluid (Sabidussi et al., Med. Image Anal. 2021, Table 1): ``sigma = 0.65 / SNR`` for a series in
which the amplitude of cerebrospinal fluid is 1.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

__all__ = [
    "NOISE_MODELS",
    "REFERENCE_SIGNAL",
    "add_complex_noise",
    "add_gaussian_noise",
    "add_rician_noise",
    "bessel_ratio",
    "bessel_ratio_and_log",
    "check_noise_model",
    "gaussian_nll",
    "rician_information",
    "rician_nll",
    "sigma_from_decibels",
    "sigma_from_snr",
    "snr_from_sigma",
]

NOISE_MODELS = ("gaussian", "rician")
REFERENCE_SIGNAL = 0.65  # amplitude of white matter where that of cerebrospinal fluid is 1

# Abramowitz & Stegun, Handbook of Mathematical Functions, 9.8.1 to 9.8.4: I0 and I1 below and above 3.75.
_I0_SMALL = (1.0, 3.5156229, 3.0899424, 1.2067492, 0.2659732, 0.0360768, 0.0045813)
_I1_SMALL = (0.5, 0.87890594, 0.51498869, 0.15084934, 0.02658733, 0.00301532, 0.00032411)
_I0_LARGE = (
    (0.39894228, 0.01328592, 0.00225319, -0.00157565, 0.00916281)
    + (-0.02057706, 0.02635537, -0.01647633, 0.00392377)
)  # fmt: skip
_I1_LARGE = (
    (0.39894228, -0.03988024, -0.00362018, 0.00163801, -0.01031555)
    + (0.02282967, -0.02895312, 0.01787654, -0.00420059)
)  # fmt: skip


def check_noise_model(noise: str) -> str:
    """Return ``noise`` if it is ``"gaussian"`` or ``"rician"``.

    Raises:
        ValueError: for any other name.
    """
    if noise not in NOISE_MODELS:
        raise ValueError(f"noise must be one of {NOISE_MODELS}, got {noise!r}")
    return noise


def sigma_from_snr(snr: Tensor | float) -> Tensor | float:
    r"""Noise standard deviation [fraction of the CSF amplitude] at a signal-to-noise ratio.

    .. math:: \sigma = 0.65 / \mathrm{SNR}

    Source: Sabidussi et al., Med. Image Anal. 74 (2021) 102220, table 1.
    """
    return REFERENCE_SIGNAL / snr


def snr_from_sigma(sigma: Tensor | float) -> Tensor | float:
    r"""Signal-to-noise ratio at a noise standard deviation [fraction of the CSF amplitude].

    .. math:: \mathrm{SNR} = 0.65 / \sigma

    Source: Sabidussi et al., Med. Image Anal. 74 (2021) 102220, table 1.
    """
    return REFERENCE_SIGNAL / sigma


def sigma_from_decibels(signal: Tensor, decibels: Tensor | float, axes: int | tuple[int, ...] | None = None) -> Tensor:
    r"""Noise standard deviation of each part of a complex image, from a ratio of mean powers.

    .. math:: 10 \log_{10} \frac{\langle |S|^2 \rangle}{2 \sigma^2} = d
        \quad\Longrightarrow\quad \sigma = \sqrt{\langle |S|^2 \rangle / 2} \; 10^{-d / 20}

    with d in dB; the mean is taken over the whole image, dark pixels included.

    Args:
        signal: noise-free real or complex signal, any shape.
        decibels: signal-to-noise ratio [dB], broadcastable to the result; infinite for no noise.
        axes: axes of one image; None for all.

    Returns:
        Standard deviation of the real and of the imaginary part, in the unit of ``signal``; the axes are kept with
        length 1 so that it can be broadcast to the signal.
    """
    everything = tuple(range(signal.ndim)) if axes is None else axes
    power = signal.abs().square().mean(everything, keepdim=True)
    ratio = torch.as_tensor(decibels, dtype=power.dtype, device=power.device)
    return torch.sqrt(power / 2.0) * 10.0 ** (-ratio / 20.0)


def _normal_like(signal: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.randn(signal.shape, generator=generator, device=signal.device, dtype=signal.dtype)


def add_gaussian_noise(signal: Tensor, sigma: Tensor | float, generator: torch.Generator | None = None) -> Tensor:
    r"""Add zero-mean Gaussian noise.

    .. math:: m = S + \sigma n, \qquad n \sim \mathcal{N}(0, 1)

    Args:
        signal: real signal, any shape.
        sigma: standard deviation, broadcastable to ``signal``, in its unit.
        generator: random stream on the device of ``signal``; the global one if absent.

    Returns:
        Noisy signal, shape of ``signal``; may be negative.
    """
    return signal + sigma * _normal_like(signal, generator)


def add_complex_noise(signal: Tensor, sigma: Tensor | float, generator: torch.Generator | None = None) -> Tensor:
    r"""Add independent Gaussian noise of standard deviation ``sigma`` to the real and the imaginary part.

    .. math:: m = S + \sigma (n_1 + i n_2), \qquad n_1, n_2 \sim \mathcal{N}(0, 1)

    Args:
        signal: real or complex signal, any shape.
        sigma: standard deviation of each part, broadcastable to ``signal``.
        generator: random stream on the device of ``signal``; the global one if absent.

    Returns:
        Complex noisy signal, shape of ``signal``.
    """
    real, imag = (signal.real, signal.imag) if signal.is_complex() else (signal, torch.zeros_like(signal))
    return torch.complex(add_gaussian_noise(real, sigma, generator), add_gaussian_noise(imag, sigma, generator))


def add_rician_noise(signal: Tensor, sigma: Tensor | float, generator: torch.Generator | None = None) -> Tensor:
    r"""Magnitude of ``signal`` after complex noise.

    .. math:: m = |S + \sigma (n_1 + i n_2)|, \qquad
        p(m \mid S) = \frac{m}{\sigma^2} \exp\left(-\frac{m^2 + |S|^2}{2 \sigma^2}\right)
        I_0\left(\frac{m |S|}{\sigma^2}\right)

    Source: Gudbjartsson and Patz, Magn. Reson. Med. 34:910 (1995), equation 1.

    Args:
        signal: real or complex signal, any shape.
        sigma: standard deviation of the real and of the imaginary part, broadcastable to ``signal``.
        generator: random stream on the device of ``signal``; the global one if absent.

    Returns:
        Non-negative noisy magnitude, shape of ``signal``.
    """
    return add_complex_noise(signal, sigma, generator).abs()


def _polynomial(x: Tensor, coefficients: tuple[float, ...]) -> Tensor:
    result = torch.full_like(x, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        result = result * x + coefficient
    return result


def _bessel_polynomials(x: Tensor) -> tuple[Tensor, Tensor]:
    """I0 and I1 over a common factor: 1 for x < 3.75, exp(x) / sqrt(x) above."""
    small = (x.clamp(max=3.75) / 3.75) ** 2
    large = 3.75 / x.clamp(min=3.75)
    below = x < 3.75
    i0 = torch.where(below, _polynomial(small, _I0_SMALL), _polynomial(large, _I0_LARGE))
    i1 = torch.where(below, x * _polynomial(small, _I1_SMALL), _polynomial(large, _I1_LARGE))
    return i0, i1


def bessel_ratio(x: Tensor) -> Tensor:
    """Ratio of modified Bessel functions, :math:`I_1(x) / I_0(x)`, for x >= 0.

    Source: Abramowitz and Stegun, Handbook of Mathematical Functions, 9.8.1 to 9.8.4. Polynomials (absolute error at
    most 2e-6) rather than torch.special, which no ONNX operator covers.

    Args:
        x: non-negative argument, any shape.

    Returns:
        Ratio in [0, 1), shape of ``x``.
    """
    i0, i1 = _bessel_polynomials(x)
    return i1 / i0


def bessel_ratio_and_log(x: Tensor) -> tuple[Tensor, Tensor]:
    r""":func:`bessel_ratio` together with :math:`\log(I_0(x) e^{-x})`, at little more cost.

    The absolute error of the logarithm is at most 1e-6. Source: Abramowitz and Stegun, Handbook of Mathematical
    Functions, 9.8.1 to 9.8.4.

    Args:
        x: non-negative argument, any shape.

    Returns:
        Ratio I1(x) / I0(x) and scaled logarithm, each of the shape of ``x``.
    """
    i0, i1 = _bessel_polynomials(x)
    factor = torch.where(x < 3.75, x, 0.5 * torch.log(x.clamp(min=3.75)))
    return i1 / i0, torch.log(i0) - factor


def gaussian_nll(data: Tensor, signal: Tensor, sigma: Tensor | float) -> Tensor:
    r"""Negative log-likelihood of Gaussian data, elementwise, up to the constant :math:`\log(\sigma \sqrt{2 \pi})`.

    .. math:: -\log p(m \mid S) = \frac{(m - S)^2}{2 \sigma^2}

    Args:
        data: measured values, any shape.
        signal: noise-free values, broadcastable to ``data``.
        sigma: noise standard deviation, broadcastable to ``data``.

    Returns:
        ``(data - signal)**2 / (2 sigma**2)``.
    """
    return 0.5 * ((data - signal) / sigma) ** 2


def rician_nll(data: Tensor, signal: Tensor, sigma: Tensor | float) -> Tensor:
    r"""Negative log-likelihood of Rician magnitudes, elementwise, up to the constant :math:`-\log(m / \sigma^2)`.

    .. math:: -\log p(m \mid S) = \frac{m^2 + S^2}{2 \sigma^2} - \log I_0\left(\frac{m S}{\sigma^2}\right)

    Source: Gudbjartsson and Patz, Magn. Reson. Med. 34:910 (1995), equation 1, the logarithm. Written so that it tends
    to :func:`gaussian_nll` plus half a logarithm at high SNR and never overflows.

    Args:
        data: measured magnitudes >= 0, any shape.
        signal: noise-free magnitudes >= 0, broadcastable to ``data``.
        sigma: standard deviation of the real and imaginary noise, broadcastable to ``data``.

    Returns:
        ``(data**2 + signal**2) / (2 sigma**2) - log I0(data signal / sigma**2)``.
    """
    argument = data * signal / sigma**2
    return gaussian_nll(data, signal, sigma) - torch.log(torch.special.i0e(argument))


@lru_cache(maxsize=1)
def _information_table() -> tuple[Tensor, float]:
    """Rician Fisher information on a grid of signal / sigma from 0 to 20, by quadrature in float64."""
    step, limit = 0.02, 20.0
    ratio = torch.arange(0.0, limit + step, step, dtype=torch.float64)[:, None]
    nodes = torch.linspace(0.0, 1.0, 1201, dtype=torch.float64)
    low = (ratio - 10.0).clamp(min=0.0)
    x = low + (ratio + 10.0 - low) * nodes
    density = x * torch.exp(-0.5 * (x - ratio) ** 2) * torch.special.i0e(x * ratio)
    bessel = torch.special.i1e(x * ratio) / torch.special.i0e(x * ratio)
    second_moment = torch.trapezoid(density * (x * bessel) ** 2, x, dim=1)
    return second_moment - ratio[:, 0] ** 2, step


def rician_information(ratio: Tensor) -> Tensor:
    r"""Fisher information on the signal in one Rician magnitude, in units of the Gaussian one, 1 / sigma**2.

    .. math:: w(\rho) = \mathrm{E}\left[\left(x \, \frac{I_1(x \rho)}{I_0(x \rho)}\right)^2\right] - \rho^2,
        \qquad \rho = S / \sigma, \quad x = m / \sigma

    the mean square of the derivative of :func:`rician_nll` by the signal, over Rician x; no unit.

    Args:
        ratio: noise-free signal / sigma, >= 0, any shape.

    Returns:
        Value in [0, 1], shape of ``ratio``: 0 without signal, ``1 - 1 / (2 ratio**2)`` for a large one.
        Interpolated from a table; absolute error at most 1e-4.
    """
    table, step = _information_table()
    table = table.to(ratio)
    position = (ratio / step).clamp(0.0, float(len(table) - 2))
    index = position.long()
    inside = torch.lerp(table[index], table[index + 1], position - index)
    return torch.where(ratio < 20.0, inside, 1.0 - 0.5 / ratio.clamp(min=20.0) ** 2).clamp(0.0, 1.0)
