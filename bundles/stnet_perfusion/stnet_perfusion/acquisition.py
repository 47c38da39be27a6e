"""The contrast agent in the vessels, the scan, and the voxels in which a physician marks artery and vein."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from physics.noise import add_rician_noise
from physics.perfusion import ArterialInput, relaxation_rate_change, signal_from_concentration
from shared_transforms.anatomy.deformation import Parameters

__all__ = [
    "BLOOD_RELAXIVITY",
    "FLOOR",
    "TISSUE_RELAXIVITY",
    "Acquisition",
    "arterial_curve",
    "draw_acquisition",
    "measured_curve",
    "n_frames",
    "venous_curve",
]

TISSUE_RELAXIVITY, BLOOD_RELAXIVITY = 50.0, 7.0  # 1/s/mM
FLOOR = 0.02  # of the baseline: the smallest signal that is put into the logarithm
BLOOD_SIGNAL = 1.1  # baseline of blood where that of grey matter is 1
MARKED = 12  # most voxels that are marked in a vessel
_BASELINE_MARGIN = 2.0  # s between the last baseline frame and the arrival in the arteries


@dataclass(frozen=True)
class Acquisition(Parameters):
    """Everything random about n scans, times in s.

    Attributes:
        repetition_time: time between two frames ``[n]``.
        echo_time: ``[n]``.
        duration: of the scan ``[n]``.
        snr: median baseline of the brain over the noise's standard deviation ``[n]``.
        transient: signal of the first frame over that of the steady state ``[n]``.
        bolus: arrival, alpha, beta, peak [mM], recirculated fraction, its delay and width, tail fraction, its time
            constant ``[n, 9]``; see :class:`physics.perfusion.ArterialInput`.
        venous: delay and dispersion of the vein ``[n, 2]``.
        marked: voxels in artery and vein ``[n, 2]``.
        purity: volume fraction of blood in each marked voxel ``[n, 2, MARKED]``.
        shading: slope of the receive field along x and y over the volume ``[n, 2]``.
        signals: baseline of fluid and white matter where that of grey matter is 1 ``[n, 2]``.
        seed: of the noise ``[n]``.
    """

    repetition_time: Tensor
    echo_time: Tensor
    duration: Tensor
    snr: Tensor
    transient: Tensor
    bolus: Tensor
    venous: Tensor
    marked: Tensor
    purity: Tensor
    shading: Tensor
    signals: Tensor
    seed: Tensor

    def __len__(self) -> int:
        """Number of scans."""
        return int(self.snr.shape[0])


def draw_acquisition(
    generator: torch.Generator, n: int, snr: tuple[float, float], repetition_time: tuple[float, float]
) -> Acquisition:
    """Draw n scans.

    Args:
        generator: random stream on the CPU.
        n: number of scans.
        snr: smallest and largest baseline SNR, log-uniform.
        repetition_time: shortest and longest, uniform [s].
    """

    def uniform(*ranges: tuple[float, float]) -> Tensor:
        low, high = torch.tensor(ranges).T
        return low + (high - low) * torch.rand((n, len(ranges)), generator=generator)

    bolus = uniform(
        (12.0, 22.0), (2.3, 4.0), (1.0, 2.0), (8.5, 18.0),
        (0.1, 0.3), (9.0, 14.0), (1.0, 3.0), (0.12, 0.28), (40.0, 80.0),
    )  # fmt: skip
    # Arteries are narrow, the sinus is wide: their voxels are full of blood to a different degree.
    purity = torch.stack([uniform(*[(0.5, 1.0)] * MARKED), uniform(*[(0.85, 1.0)] * MARKED)], 1)
    return Acquisition(
        repetition_time=uniform(repetition_time)[:, 0],
        echo_time=uniform((0.025, 0.045))[:, 0],
        duration=uniform((65.0, 95.0))[:, 0],
        snr=torch.exp(uniform((math.log(snr[0]), math.log(snr[1])))[:, 0]),
        transient=uniform((1.15, 1.35))[:, 0],
        bolus=bolus,
        venous=uniform((3.5, 7.0), (1.0, 3.0)),
        marked=torch.randint(4, MARKED + 1, (n, 2), generator=generator),
        purity=purity,
        shading=uniform((-0.2, 0.2), (-0.2, 0.2)),
        signals=uniform((1.1, 1.5), (0.75, 0.9)),
        seed=torch.randint(2**62, (n,), generator=generator),
    )


def n_frames(drawn: Acquisition, i: int) -> int:
    """Frames of a scan, with the first one, which is not in the steady state."""
    return math.ceil(float(drawn.duration[i] / drawn.repetition_time[i]))


def arterial_curve(drawn: Acquisition, i: int) -> ArterialInput:
    """The true curve of the artery, in the blood itself."""
    arrival, alpha, beta, peak, again, delay, width, tail, tail_time = drawn.bolus[i].unbind(0)
    return ArterialInput(arrival, alpha, beta, peak, again, delay, width, tail, tail_time)


def venous_curve(drawn: Acquisition, i: int) -> ArterialInput:
    """The true curve of the sinus: the arterial one, later and wider, with the same area."""
    delay, dispersion = drawn.venous[i].unbind(0)
    return arterial_curve(drawn, i).delayed(delay, dispersion)


def baseline_frames(drawn: Acquisition, i: int) -> int:
    """Frames from the second on that end before the contrast agent comes."""
    end = float(drawn.bolus[i, 0]) - _BASELINE_MARGIN
    return max(2, int(end / float(drawn.repetition_time[i])))


def measured_curve(
    drawn: Acquisition, i: int, vein: bool, blood: Tensor, tissue: Tensor, sigma: float, generator: torch.Generator
) -> Tensor:
    """What a few marked voxels of a vessel give: a mean over partial volumes and noise, in blood concentration.

    Args:
        drawn: n scans.
        i: the scan.
        vein: the vein instead of the artery.
        blood: true concentration in the vessel ``[T]`` [mM].
        tissue: concentration in the tissue around it ``[T]`` [mM].
        sigma: noise where the baseline of grey matter is 1.
        generator: of the noise, on the device of the curves.

    Returns:
        Concentration ``[T]`` [mM].
    """
    part = int(vein)
    echo_time = float(drawn.echo_time[i])
    purity = drawn.purity[i, part, : int(drawn.marked[i, part])].to(blood)[:, None]
    around = signal_from_concentration(tissue, torch.ones((), device=blood.device), echo_time, TISSUE_RELAXIVITY)
    inside = signal_from_concentration(
        blood, torch.full((), BLOOD_SIGNAL, device=blood.device), echo_time, BLOOD_RELAXIVITY
    )
    signal = add_rician_noise(purity * inside + (1.0 - purity) * around, sigma, generator)
    baseline = signal[:, : baseline_frames(drawn, i)].mean(-1)
    return relaxation_rate_change(signal, baseline, echo_time, FLOOR).mean(0) / BLOOD_RELAXIVITY
