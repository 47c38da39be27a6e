"""Signal of a T2*-weighted series: to and from concentration, baseline, dummy frames and arrival of the bolus."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = [
    "Frames",
    "baseline_signal",
    "baseline_snr",
    "find_frames",
    "relaxation_rate_change",
    "signal_from_concentration",
]

MOST_DUMMIES = 5
SMALLEST_DUMMY = 0.015  # of the baseline
SMALLEST_BOLUS = 0.03  # drop of ln(signal); in a brain it is about .6
MARGIN = 3.0  # s, by which arteries are ahead of the mean of the brain
FEWEST_FRAMES = 8


def _check_echo_time(echo_time: Tensor | float) -> None:
    lowest = float(torch.as_tensor(echo_time).min())
    if not lowest > 0:
        raise ValueError(f"echo_time must be positive [s], got {lowest}")


def signal_from_concentration(
    concentration: Tensor, s0: Tensor | float, echo_time: Tensor | float, relaxivity: float
) -> Tensor:
    r"""Signal of tissue with contrast agent.

    .. math:: S = S_0 e^{-TE \, r \, c}

    with TE in s, r in 1/s/mM, c in mM. Source: Rosen et al., Magn Reson Med 14:249 (1990).

    Args:
        concentration: ``[..., T]`` [mM].
        s0: signal without contrast agent ``[...]``.
        echo_time: TE [s], one value or broadcastable to ``[..., T]``.
        relaxivity: r [1/s/mM], change of R2* with the concentration.

    Returns:
        ``[..., T]`` in the unit of ``s0``.

    Raises:
        ValueError: if the echo time is not positive.
    """
    _check_echo_time(echo_time)
    s0 = torch.as_tensor(s0, dtype=concentration.dtype, device=concentration.device)
    return s0[..., None] * torch.exp(-relaxivity * echo_time * concentration)


def relaxation_rate_change(signal: Tensor, baseline: Tensor, echo_time: Tensor | float, floor: float = 0.02) -> Tensor:
    r"""Change of the relaxation rate.

    .. math:: \Delta R_2^* = -\frac{1}{TE} \ln \frac{\max(S, \epsilon S_0)}{S_0}

    with TE in s and the floor :math:`\epsilon`. Source: Rosen et al., Magn Reson Med 14:249 (1990).

    Args:
        signal: ``[..., T]``.
        baseline: S0 ``[...]``. Where it is not positive (air), the change is 0.
        echo_time: TE [s], one value or broadcastable to ``[..., T]``.
        floor: smallest signal over baseline that is put into the logarithm: noise may make it 0 or negative.

    Returns:
        Delta R2* ``[..., T]`` [1/s].

    Raises:
        ValueError: if the echo time is not positive or the floor not between 0 and 1.
    """
    _check_echo_time(echo_time)
    if not 0 < floor < 1:
        raise ValueError(f"floor must lie between 0 and 1, got {floor}")
    tissue = (baseline > 0)[..., None]
    ratio = torch.where(tissue, signal / torch.where(baseline > 0, baseline, 1.0)[..., None], 1.0)
    return -torch.log(ratio.clamp(min=floor)) / echo_time


@dataclass(frozen=True)
class Frames:
    """What the mean signal of the brain says about a series. Frames count from 0.

    Attributes:
        dummy: number of frames at the start that are not in the steady state.
        baseline_end: end of the baseline, which is frames ``dummy`` to ``baseline_end - 1``.
        arrival: first frame with contrast agent; the number of frames if there is no bolus.
        peak: frame of the lowest signal; the number of frames if there is no bolus.
        bolus: whether there is a bolus.
        trough: lowest signal over baseline.
        tail: signal at the end of the series over baseline.
    """

    dummy: int
    baseline_end: int
    arrival: int
    peak: int
    bolus: bool
    trough: float
    tail: float


def _median3(y: Tensor) -> Tensor:
    padded = torch.cat([y[:1], y, y[-1:]])
    return padded.unfold(0, 3, 1).median(-1).values


def _spread(y: Tensor) -> float:
    """Noise of a smooth curve from its second differences, by their median."""
    return 1.4826 * float(y.diff(n=2).abs().median()) / math.sqrt(6)


def _peak(y: Tensor) -> tuple[int, float]:
    """Frame and height of the largest value over the line from the first to the last frames, single spikes apart."""
    smooth = _median3(y)
    edge = max(3, len(y) // 10)
    start, end = smooth[1:4].median(), smooth[-edge:].median()
    excess = smooth - (start + (end - start) * torch.linspace(0, 1, len(y), dtype=y.dtype))
    peak = 2 + int(excess[2:-1].argmax())
    return peak, float(excess[peak])


def _level(y: Tensor) -> Tensor:
    """Level of a curve before its last frame: a few frames near the end, past the transient."""
    return y[len(y) // 2 :].median() if len(y) else y.new_zeros(())


def _onset(y: Tensor, peak: int) -> int:
    """Number of frames before the curve begins to rise to its peak."""
    level = y[max(1, peak // 4) : max(2, peak // 2)].median()
    tolerance, onset = 0.1, peak
    for _ in range(4):
        height = max(float(y[peak] - level), SMALLEST_BOLUS)
        low = (y[:peak] <= level + tolerance * height).nonzero()
        onset = int(low[-1]) + 1 if len(low) else 1
        level = _level(y[:onset])
        noise = float(y[onset // 2 : onset].std()) if onset >= 6 else 0.0
        tolerance = min(0.1, max(0.02, 3 * noise / height))
    return onset


def _dummies(y: Tensor, end: int) -> int:
    """Number of frames at the start that differ from the four that follow; at least one before ``end`` is left."""
    few = min(_spread(y), 0.007)  # of the whole curve, to which the bolus adds in a short series
    noise = float(y[end // 2 : end].diff().square().mean().sqrt()) / math.sqrt(2) if end >= 6 else few
    tolerance = max(SMALLEST_DUMMY, 5 * noise)
    for frame in range(min(end - 1, MOST_DUMMIES)):
        if abs(float(y[frame] - y[frame + 1 : min(frame + 5, end)].median())) <= tolerance:
            return frame
    return max(0, min(end - 1, MOST_DUMMIES))


def find_frames(mean_signal: Tensor, dt: float) -> Frames:
    r"""Dummy frames, baseline and bolus from the mean signal of the brain, by the curve :math:`y = -\ln S`.

    The bolus is a fall of the signal by more than 3 % and 6 times the noise, of which a sixth or more comes back before
    the end; drift, steps and single spikes are none. The baseline ends 3 s before the arrival in the mean of the brain,
    since arteries are earlier, as far as three frames remain.

    Args:
        mean_signal: ``[T]``, positive, at least 8 frames.
        dt: time between frames [s].

    Raises:
        ValueError: if the signal is not one curve of at least 8 positive finite values, or ``dt`` is not positive.
    """
    if mean_signal.ndim != 1 or len(mean_signal) < FEWEST_FRAMES:
        raise ValueError(f"mean_signal must be [T], T >= {FEWEST_FRAMES}, got shape {tuple(mean_signal.shape)}")
    signal = mean_signal.detach().double().cpu()
    if not bool((torch.isfinite(signal) & (signal > 0)).all()):
        raise ValueError(f"mean_signal must be positive and finite, got {float(signal.min())} to {float(signal.max())}")
    if not dt > 0:
        raise ValueError(f"dt must be positive [s], got {dt}")
    n = len(signal)
    y = -signal.log()
    peak, excess = _peak(y)
    noise = _spread(y)
    recovered = float(_median3(y)[peak] - _median3(y)[peak:].min())
    bolus = excess > max(SMALLEST_BOLUS, 6 * noise) and recovered > max(excess / 6, 4 * noise)
    onset = _onset(y, peak) if bolus else n
    peak = peak if bolus else n
    early = onset - math.ceil(MARGIN / dt) if bolus else n
    dummy = _dummies(y, max(early, min(onset, 3)))
    end = max(early, min(onset, dummy + 3))
    level = float(signal[dummy:end].mean())
    return Frames(
        dummy=dummy,
        baseline_end=end,
        arrival=onset,
        peak=peak,
        bolus=bolus,
        trough=float(signal[dummy:].min()) / level,
        tail=float(signal[-3:].median()) / level,
    )


def baseline_signal(signal: Tensor, frames: Frames) -> Tensor:
    r"""Mean signal of the baseline, ``[..., T]`` to ``[...]``, :math:`S_0 = \sum_i S_i / n` in the unit of S."""
    return signal[..., frames.dummy : frames.baseline_end].mean(-1)


def baseline_snr(signal: Tensor, frames: Frames) -> Tensor:
    r"""Signal-to-noise ratio of the baseline: its mean over its noise, from differences of successive frames.

    .. math:: \mathrm{SNR} = S_0 \left[\frac{1}{m(\nu)} \, \frac{1}{2 (n - 1)} \sum_i (S_{i+1} - S_i)^2\right]^{-1/2},
        \qquad m(\nu) = \left(1 - \frac{2}{9 \nu}\right)^3, \quad \nu = \frac{2 (n - 1)^2}{3 n - 4}

    Source: von Neumann et al., Ann. Math. Stat. 12:153 (1941), for nu. Differences do not see drift. Few frames make a
    skewed estimate; it is scaled such that the MEDIAN over voxels is right.

    Args:
        signal: ``[..., T]``.
        frames: what :func:`find_frames` found.

    Returns:
        ``[...]``; infinite where the signal does not change.

    Raises:
        ValueError: if the baseline has fewer than two frames.
    """
    window = signal[..., frames.dummy : frames.baseline_end]
    n = window.shape[-1]
    if n < 2:
        raise ValueError(f"the baseline must have at least 2 frames, got {n}")
    variance = window.diff(dim=-1).square().mean(-1) / 2
    freedom = 2 * (n - 1) ** 2 / (3 * n - 4)  # von Neumann et al. 1941, of the mean square successive difference
    median = (1 - 2 / (9 * freedom)) ** 3
    return window.mean(-1) / (variance / median).sqrt()
