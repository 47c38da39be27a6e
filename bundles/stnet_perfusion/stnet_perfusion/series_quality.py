"""How good a DSC series is for what is asked of it, in numbers and in words."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from physics.perfusion import ArterialInput, Frames, tissue_concentration

__all__ = ["late_volume_missed", "quality_notes", "series_quality"]

LOW_SNR = 20.0
FEW_BASELINE_FRAMES = 5
MISSED = 0.1  # of the CBV of late tissue
UNFINISHED = 0.02  # of the voxels
WITH_BOLUS = 0.5  # of the mask
SHALLOW, DEEP = 0.85, 0.25  # lowest mean signal of the brain over the baseline; .5 to .6 is usual
_LATE_DELAY, _LATE_MTT = 6.0, 12.0  # s, of tissue at risk
_ALPHA, _BETA = 3.0, 1.5  # of a usual first passage in an artery, s
_DETECTED = 4.0  # standard deviations of a mean over three frames


def late_volume_missed(seconds: float) -> float:
    """Share of the CBV of tissue at risk (delay 6 s, MTT 12 s) that a series does not see, 0 to 1.

    Args:
        seconds: of data after the arrival of the contrast agent.
    """
    step = 0.5
    times = torch.arange(0.0, 120.0, step, dtype=torch.float64)
    zero = torch.zeros((), dtype=torch.float64)
    bolus = ArterialInput(
        arrival=zero, alpha=zero + _ALPHA, beta=zero + _BETA, peak=zero + 1.0, recirculation=zero,
        recirculation_delay=zero + 10.0, recirculation_width=zero + 1.0, tail=zero, tail_time=zero + 50.0,
    )  # fmt: skip
    one = torch.ones((), dtype=torch.float64)
    curve = tissue_concentration(bolus, times, 20.0 * one, _LATE_MTT * one, _LATE_DELAY * one)
    return float(1.0 - curve[times < seconds].sum() / curve.sum())


def series_quality(concentration: Tensor, frames: Frames, start: int, dt: float, noise: float) -> dict[str, Any]:
    """Figures of a series.

    Args:
        concentration: of the voxels of the brain ``[V, T]`` [mM], without dummy frames.
        frames: of the file.
        start: first frame of the baseline.
        dt: time between two frames [s].
        noise: standard deviation of a concentration [mM].

    Returns:
        Numbers by name: ``dummy_frames``; ``baseline_first_frame``, ``baseline_last_frame`` (from 0, both
        included), ``baseline_frames``; ``arrival_s``; ``trough`` and ``tail``, lowest and last mean signal over the
        baseline; ``seconds_after_arrival``; ``late_cbv_missed``, see :func:`late_volume_missed`; ``truncation_share``
        of the voxels are still above half their peak at the end; ``bolus_share`` of the voxels show a bolus.
    """
    smooth = torch.nn.functional.avg_pool1d(concentration[:, None], 3, 1)[:, 0]
    peak = smooth[:, max(0, frames.arrival - frames.dummy - 1) :].amax(-1)
    shown = peak > _DETECTED * noise / math.sqrt(3.0)
    unfinished = shown & (smooth[:, -1] > 0.5 * peak)
    seconds = (concentration.shape[1] + frames.dummy - frames.arrival) * dt
    return {
        "dummy_frames": frames.dummy,
        "baseline_first_frame": start,
        "baseline_last_frame": frames.baseline_end - 1,
        "baseline_frames": frames.baseline_end - start,
        "arrival_s": frames.arrival * dt,
        "trough": frames.trough,
        "tail": frames.tail,
        "seconds_after_arrival": seconds,
        "late_cbv_missed": late_volume_missed(seconds),
        "truncation_share": float(unfinished.sum() / shown.sum().clamp_min(1)),
        "bolus_share": float(shown.float().mean()),
    }


def quality_notes(quality: dict[str, Any]) -> list[str]:
    """What a user must know of :func:`series_quality` and ``snr``, the median of the baseline."""
    notes = []
    if quality["snr"] < LOW_SNR:
        notes.append(
            f"the baseline SNR is {quality['snr']:.0f}, below {LOW_SNR:g}: Tmax of single voxels is unreliable, and "
            "CBV and CBF of white matter are too"
        )
    if quality["baseline_frames"] < FEW_BASELINE_FRAMES:
        notes.append(
            f"{quality['baseline_frames']} frames of baseline only, before the contrast agent arrives at "
            f"{quality['arrival_s']:.0f} s: an error of the baseline shifts the whole curve"
        )
    missed, unfinished = quality["late_cbv_missed"] > MISSED, quality["truncation_share"] > UNFINISHED
    if missed or unfinished:
        parts = [f"the series ends {quality['seconds_after_arrival']:.0f} s after the contrast agent arrives"]
        if missed:
            parts.append(f"of tissue with late flow (delay 6 s, MTT 12 s) {quality['late_cbv_missed']:.0%} of CBV")
        if unfinished:
            parts.append(f"in {quality['truncation_share']:.0%} of the voxels the bolus has not passed by then")
        joined = f"{parts[0]}: {' is not seen, and '.join(parts[1:])}" + (" is not seen" if not unfinished else "")
        notes.append(f"{joined}; CBV and MTT come out too low there")
    if quality["bolus_share"] < WITH_BOLUS:
        notes.append(
            f"the bolus shows in {quality['bolus_share']:.0%} of the mask only: it may hold more than the brain, or "
            "lie beside it"
        )
    if quality["trough"] > SHALLOW:
        notes.append(
            f"the bolus is weak, the signal of the brain falls to {quality['trough']:.0%} of the baseline (usual: 50 to"
            " 60 %): little contrast agent, or a slow injection"
        )
    if quality["trough"] < DEEP:
        notes.append(
            f"the signal of the brain falls to {quality['trough']:.0%} of the baseline: in arteries it may fall into "
            "the noise, and their peak is then too low"
        )
    return notes
