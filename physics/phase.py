"""From the echoes of a gradient-echo scan to the frequency of each voxel: complex field fit, wraps, units.

Series have the echo as their first axis, ``[N, *voxels]``. The field is fitted to the complex echoes, so wraps in time
do no harm; wraps in space stay and are removed by :func:`unwrap_laplacian` or by a path-following method.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = [
    "FREQUENCY_PER_TESLA",
    "FieldFit",
    "check_echo_times",
    "fit_field",
    "frequency_period",
    "frequency_to_ppm",
    "rescale_phase",
    "unwrap_laplacian",
    "wrap",
]

FREQUENCY_PER_TESLA = 42.577478518
"""Gyromagnetic ratio of the proton over 2 pi [MHz/T] (CODATA 2018)."""

TWO_PI = 2.0 * math.pi
SUBDIVISIONS = 10  # of the shortest echo spacing that are tried as the common measure of all spacings
ALMOST_WHOLE = 0.1  # a spacing this near to a multiple of the measure, in units of it, counts as one
SAMPLES_PER_LOBE = 4  # trial frequencies in each 1 / (last - first echo time)


def wrap(phase: Tensor) -> Tensor:
    r"""Phase [rad] of any shape brought into -pi to pi: :math:`\varphi - 2 \pi \, \mathrm{round}(\varphi / 2 \pi)`."""
    return phase - TWO_PI * torch.round(phase / TWO_PI)


def rescale_phase(phase: Tensor, stored_range: tuple[float, float]) -> Tensor:
    r"""Phase as a scanner stores it, in radians.

    .. math:: \varphi = 2 \pi \, \frac{v - (v_{-\pi} + v_{\pi}) / 2}{v_{\pi} - v_{-\pi}}

    Args:
        phase: stored values of any shape; integers are taken as well.
        stored_range: the two stored values that stand for -pi and pi: (-4096, 4096), (0, 4096), (-pi, pi).

    Returns:
        Phase [rad] between -pi and pi, of the shape and, for floating-point values, the dtype of ``phase``.

    Raises:
        ValueError: if the range is empty or not finite, if a value is not finite or lies outside of the range.
    """
    low, high = (float(value) for value in stored_range)
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"stored_range must be two finite values, the lower first, got {stored_range}")
    values = phase if phase.is_floating_point() else phase.to(torch.get_default_dtype())
    if not bool(torch.isfinite(values).all()):
        raise ValueError(f"phase must be finite, got {int((~torch.isfinite(values)).sum())} voxels that are not")
    if values.numel():
        smallest, largest = float(values.min()), float(values.max())
        slack = 1e-3 * (high - low)
        if smallest < low - slack or largest > high + slack:
            raise ValueError(f"phase must lie in stored_range {low:g} to {high:g}, got {smallest:g} to {largest:g}")
    scale = TWO_PI / (high - low)
    return ((values - 0.5 * (low + high)) * scale).clamp(-math.pi, math.pi)


def frequency_to_ppm(frequency: Tensor, field_strength: float) -> Tensor:
    r"""Frequency [Hz] of any shape as the relative field [ppm] at ``field_strength`` [T].

    .. math:: b = \frac{f}{(\gamma / 2 \pi) \, B_0}, \qquad \gamma / 2 \pi = 42.577478518 \; \mathrm{MHz / T}

    Source: CODATA 2018, the gyromagnetic ratio of the proton.

    Raises:
        ValueError: if the field strength is not positive and finite.
    """
    if not (math.isfinite(field_strength) and field_strength > 0):
        raise ValueError(f"field_strength must be positive and finite [T], got {field_strength}")
    return frequency / (FREQUENCY_PER_TESLA * field_strength)


def check_echo_times(echo_times: Sequence[float] | Tensor) -> list[float]:
    """Echo times [s] as a list: at least two, finite, positive, rising, and not milliseconds.

    Raises:
        ValueError: if they are not.
    """
    times = [float(t) for t in echo_times]
    if len(times) < 2:
        raise ValueError(
            f"echo_times must hold at least two echoes (one echo cannot tell field from phase offset), got {times}"
        )
    if not all(math.isfinite(t) and t > 0 for t in times):
        raise ValueError(f"echo_times must be finite and positive [s], got {times}")
    if any(late <= early for early, late in zip(times, times[1:], strict=False)):
        raise ValueError(f"echo_times must rise, got {times}")
    if times[-1] > 1.0:
        raise ValueError(f"echo_times must be in seconds, got {times}, which look like milliseconds")
    return times


def frequency_period(echo_times: Sequence[float] | Tensor) -> float:
    r"""Frequency [Hz] that must be added for the echoes to look the same again.

    .. math:: P = 1 / \tau, \qquad t_{n+1} - t_n = k_n \tau, \quad k_n \in \mathbb{N}

    The measure tau [s] is the longest time of which every echo spacing is a multiple; with equal spacings that is the
    spacing. Spacings within a tenth of the measure of a multiple count as one.

    Raises:
        ValueError: for echo times that :func:`check_echo_times` refuses.
    """
    times = check_echo_times(echo_times)
    spacings = [late - early for early, late in zip(times, times[1:], strict=False)]

    def misfit(parts: int) -> float:
        ratios = [spacing * parts / min(spacings) for spacing in spacings]
        return max(abs(ratio - round(ratio)) for ratio in ratios)

    trials = range(1, SUBDIVISIONS + 1)
    parts = next((k for k in trials if misfit(k) <= ALMOST_WHOLE), min(trials, key=misfit))
    return parts / min(spacings)


@dataclass(frozen=True)
class FieldFit:
    """What :func:`fit_field` finds, each a tensor ``[*voxels]`` but for ``period``.

    Attributes:
        frequency: [Hz], positive where the field is stronger; known but for multiples of ``period``.
        offset: phase at echo time zero [rad], -pi to pi, in the sign of the scanner.
        standard_error: of the frequency [Hz]; infinite where the magnitude is zero.
        residual: weighted root mean square of the phase residual [rad].
        sigma: noise of the real and of the imaginary part that ``standard_error`` rests on, one value.
        period: frequency [Hz] after which the echoes repeat.
    """

    frequency: Tensor
    offset: Tensor
    standard_error: Tensor
    residual: Tensor
    sigma: Tensor
    period: float


def fit_field(
    magnitude: Tensor,
    phase: Tensor,
    echo_times: Sequence[float] | Tensor,
    *,
    phase_sign: int = 1,
    sigma: float | Tensor | None = None,
    start: Tensor | None = None,
    iterations: int = 10,
) -> FieldFit:
    r"""Fit frequency and phase offset to the complex echoes.

    .. math:: \min_{f, \varphi_0} \sum_n m_n^2 \left| e^{i \varphi_n} - e^{i (\varphi_0 + 2 \pi f t_n)} \right|^2,
        \qquad
        \sigma_f = \frac{\sigma}{2 \pi \sqrt{\sum_n m_n^2 (t_n - \bar t)^2}}, \quad
        \bar t = \frac{\sum_n m_n^2 t_n}{\sum_n m_n^2}

    with f in Hz, times in s, phases in rad, the noise sigma in the unit of the magnitude m. Least squares on the
    complex signal, so each echo weighs with its squared magnitude and wraps in time do not count (Liu et al., Magn.
    Reson. Med. 2013;69:467, equation 3). The offset is linear in the exponent and profiled out; the frequency starts at
    the best of trial frequencies over one period, hence near the global optimum, or at ``start``, and is refined by
    Gauss-Newton steps, all voxels at once.

    Args:
        magnitude: ``[N, *voxels]``, not negative.
        phase: ``[N, *voxels]`` [rad], wrapped or not.
        echo_times: N times [s].
        phase_sign: 1 where the scanner's phase grows with a stronger field, -1 where it falls.
        sigma: noise of the real and of the imaginary part, in the unit of the magnitude: a number or ``[*voxels]``.
            None estimates one value from the residuals of all voxels, which takes three echoes.
        start: frequency [Hz] ``[*voxels]`` from which to refine, such as an unwrapped one; None searches.
        iterations: Gauss-Newton steps.

    Returns:
        The fit. The standard error is the Cramer-Rao bound at the measured magnitudes.

    Raises:
        ValueError: if shapes do not match, for one echo, an unknown sign, or no ``sigma`` with two echoes.
    """
    times = check_echo_times(echo_times)
    if magnitude.shape != phase.shape or magnitude.ndim == 0 or magnitude.shape[0] != len(times):
        raise ValueError(
            f"magnitude and phase must both be [N, *voxels] with N = {len(times)} echo times, "
            f"got {tuple(magnitude.shape)} and {tuple(phase.shape)}"
        )
    if phase_sign not in (1, -1):
        raise ValueError(f"phase_sign must be 1 or -1, got {phase_sign}")
    if sigma is None and len(times) == 2:
        raise ValueError("sigma must be given with two echoes: their residual is always zero, got None")
    phase = phase if phase.is_floating_point() else phase.to(torch.get_default_dtype())
    # A common scale keeps squares in range; voxels without signal keep weight zero.
    scale = magnitude.detach().amax().clamp(min=torch.finfo(phase.dtype).tiny) if magnitude.numel() else 1.0
    weight = (magnitude.to(phase.dtype) / scale).square()
    total = weight.sum(0)
    safe = total.clamp(min=torch.finfo(phase.dtype).tiny)
    period = frequency_period(times)
    centre = sum((t * w for t, w in zip(times, weight, strict=True)), torch.zeros_like(total)) / safe
    spread = sum(((t - centre) ** 2 * w for t, w in zip(times, weight, strict=True)), torch.zeros_like(total))
    frequency = _search(weight, phase_sign * phase, times, period) if start is None else start.to(phase)
    for _ in range(iterations):
        frequency = frequency + _step(weight, phase_sign * phase, times, frequency, centre, spread)
    if start is None:
        frequency = frequency - period * torch.round(frequency / period)
    turn, residuals = _profile(weight, phase_sign * phase, times, frequency)
    squares = (weight * residuals.square()).sum(0)
    if sigma is None:
        noise = _pooled_noise(squares, total, len(times) - 2) * scale
    else:
        noise = torch.as_tensor(sigma, dtype=phase.dtype, device=phase.device)
    # Twice tiny: a spread that underflowed is no information either.
    known = spread > 2 * torch.finfo(phase.dtype).tiny
    error = (noise / scale) / (TWO_PI * torch.where(known, spread, torch.ones_like(spread)).sqrt())
    return FieldFit(
        frequency=frequency,
        offset=wrap(phase_sign * turn),
        standard_error=torch.where(known, error, math.inf),
        residual=(squares / safe).sqrt(),
        sigma=noise,
        period=period,
    )


def _profile(weight: Tensor, phase: Tensor, times: list[float], frequency: Tensor) -> tuple[Tensor, Tensor]:
    """Best offset [rad] ``[*voxels]`` at a frequency, and the wrapped phase residuals ``[N, *voxels]``."""
    real, imaginary = torch.zeros_like(frequency), torch.zeros_like(frequency)
    rest = torch.stack([p - TWO_PI * t * frequency for t, p in zip(times, phase, strict=True)])
    for w, angle in zip(weight, rest, strict=True):
        real, imaginary = real + w * angle.cos(), imaginary + w * angle.sin()
    offset = torch.atan2(imaginary, real)
    return offset, wrap(rest - offset)


def _step(
    weight: Tensor, phase: Tensor, times: list[float], frequency: Tensor, centre: Tensor, spread: Tensor
) -> Tensor:
    """Gauss-Newton step [Hz]; times from their weighted mean make it independent of the offset's."""
    _, residuals = _profile(weight, phase, times, frequency)
    slope = torch.zeros_like(frequency)
    for t, w, residual in zip(times, weight, residuals, strict=True):
        slope = slope + w * (t - centre) * residual.sin()
    return slope / (TWO_PI * spread.clamp(min=torch.finfo(spread.dtype).tiny))


@torch.no_grad()
def _search(weight: Tensor, phase: Tensor, times: list[float], period: float) -> Tensor:
    """Trial frequency [Hz] ``[*voxels]`` at which the echoes, turned back by it, agree best."""
    count = math.ceil(SAMPLES_PER_LOBE * period * (times[-1] - times[0]))
    best, frequency = torch.full_like(weight[0], -1.0), torch.zeros_like(weight[0])
    for index in range(count):
        trial = period * ((index + 0.5) / count - 0.5)
        real, imaginary = torch.zeros_like(best), torch.zeros_like(best)
        for t, w, p in zip(times, weight, phase, strict=True):
            angle = p - TWO_PI * t * trial
            real, imaginary = real + w * angle.cos(), imaginary + w * angle.sin()
        agreement = real.square() + imaginary.square()
        better = agreement > best
        best, frequency = torch.where(better, agreement, best), torch.where(better, trial, frequency)
    return frequency


@torch.no_grad()
def _pooled_noise(squares: Tensor, total: Tensor, degrees: int) -> Tensor:
    """Noise deviation from weighted squared phase residuals, by the median over the stronger voxels.

    The median leaves out voxels that one frequency does not explain. Weak voxels are left out because their phase
    residual is bounded by pi whatever the noise.
    """
    positive = total > 0
    if not bool(positive.any()):
        return squares.new_zeros(())
    strong = total >= 0.9 * total[positive].mean()
    return (squares[strong].median() / _chi_squared_median(degrees)).sqrt()


def _chi_squared_median(degrees: int) -> float:
    low, high = 0.0, float(degrees)  # the median lies below the mean
    for _ in range(50):
        middle = torch.tensor(0.5 * (low + high), dtype=torch.float64)
        below = torch.special.gammainc(torch.tensor(0.5 * degrees, dtype=torch.float64), 0.5 * middle) < 0.5
        low, high = (float(middle), high) if bool(below) else (low, float(middle))
    return 0.5 * (low + high)


def unwrap_laplacian(phase: Tensor, voxel_size: tuple[float, float, float] = (1.0, 1.0, 1.0)) -> Tensor:
    r"""Unwrap in space by the Poisson equation, over the whole grid, with mirrored borders.

    .. math:: \min_\psi \sum_x \sum_a \frac{1}{d_a^2} \left(\Delta_a \psi - \mathrm{wrap}(\Delta_a \varphi)\right)^2
        \quad\Longrightarrow\quad
        \sum_a \frac{\Delta_a^{T} \Delta_a \psi}{d_a^2}
        = \sum_a \frac{\Delta_a^{T} \, \mathrm{wrap}(\Delta_a \varphi)}{d_a^2}

    with :math:`\Delta_a` the difference to the next voxel along axis a. The Laplacian of the true phase is known from
    the wrapped one (Schofield and Zhu, Opt. Lett. 2003;28:1194); here by wrapped differences of neighbours, of which
    the result is the least-squares one (Ghiglia and Romero, J. Opt. Soc. Am. A 1994;11:107): exact where no true
    difference exceeds pi. Open-ended lines of phase (poles, noise) spread their error smoothly. There is no mask;
    values outside of the object count.

    Args:
        phase: ``[..., X, Y, Z]`` [rad].
        voxel_size: (dx, dy, dz) [mm]; weighs the differences, nearer neighbours count more.

    Returns:
        Phase ``[..., X, Y, Z]`` [rad], its constant chosen so that it agrees with ``phase`` modulo 2 pi.

    Raises:
        ValueError: if the volume has fewer than three axes or a voxel size is not positive.
    """
    if phase.ndim < 3:
        raise ValueError(f"phase must be [..., X, Y, Z], got shape {tuple(phase.shape)}")
    if not all(math.isfinite(size) and size > 0 for size in voxel_size) or len(voxel_size) != 3:
        raise ValueError(f"voxel_size must be three positive sizes [mm], got {voxel_size}")
    laplacian = torch.zeros_like(phase)
    eigenvalue = phase.new_zeros((1, 1, 1))
    transforms = []
    for axis, size in zip((-3, -2, -1), voxel_size, strict=True):
        step = wrap(phase.diff(dim=axis)) / size**2
        edge = torch.zeros_like(phase.narrow(axis, 0, 1))
        laplacian = laplacian + torch.cat([step, edge], axis) - torch.cat([edge, step], axis)
        length = phase.shape[axis]
        order = torch.arange(length, dtype=torch.float64, device=phase.device)
        cosines = torch.cos(math.pi / length * order[:, None] * (order[None, :] + 0.5)) * math.sqrt(2.0 / length)
        cosines[0] /= math.sqrt(2.0)
        transforms.append(cosines.to(phase.dtype))
        values = 2.0 * (torch.cos(math.pi / length * order) - 1.0) / size**2
        eigenvalue = eigenvalue + values.to(phase.dtype).reshape(length, *[1] * (-axis - 1))
    spectrum = _along_axes(laplacian, transforms)
    spectrum = torch.where(eigenvalue != 0, spectrum / torch.where(eigenvalue != 0, eigenvalue, 1.0), 0.0)
    smooth = _along_axes(spectrum, [matrix.T for matrix in transforms])
    apart = phase - smooth
    axes = (-3, -2, -1)
    constant = torch.atan2(apart.sin().mean(axes, keepdim=True), apart.cos().mean(axes, keepdim=True))
    return smooth + constant


def _along_axes(volume: Tensor, matrices: Sequence[Tensor]) -> Tensor:
    """Volume ``[..., X, Y, Z]`` with one matrix applied along each of the last three axes."""
    for axis, matrix in zip((-3, -2, -1), matrices, strict=True):
        volume = (volume.movedim(axis, -1) @ matrix.T).movedim(-1, axis)
    return volume
