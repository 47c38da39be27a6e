"""Small DSC series with arteries, a sinus, a stroke, noise and faulty voxels, for the tests of input functions."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from physics.perfusion import ArterialInput, relaxation_rate_change, signal_from_concentration, tissue_concentration

TISSUE, BLOOD = 50.0, 7.0  # relaxivities [1/s/mM]


@dataclass(frozen=True)
class Series:
    """One series of random patient, scan and noise; curves ``[T]``, volumes ``[X, Y, Z]``.

    Attributes:
        concentration: as measured, tissue relaxivity ``[X, Y, Z, T]`` [mM].
        aif: true arterial curve in units of ``concentration``.
        vof: true curve of the sinus, likewise.
        artery: share of blood.
        vein: share of blood.
        dt: time between frames [s].
        attenuation: -ln(S/S0) for one unit of ``concentration``.
    """

    concentration: Tensor
    aif: Tensor
    vof: Tensor
    artery: Tensor
    vein: Tensor
    dt: float
    attenuation: float

    @property
    def mask(self) -> Tensor:
        return torch.ones(self.artery.shape, dtype=torch.bool)


def perfusion_series(
    seed: int,
    *,
    sinus: bool = True,
    faults: bool = True,
    snr: float | None = None,
    shape: tuple[int, int, int] = (20, 20, 5),
) -> Series:
    """Draw a series: TR 1 to 2.5 s, SNR 20 to 120, arteries that fill 30 to 100 % of their voxels.

    Half of the patients have a territory with late and slow flow, whose arteries are late, too. ``faults`` adds voxels
    with steps and spikes in time, dark and fluid ones, and in half of the series a frame in which the head moved.
    """
    generator = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float, *size: int) -> Tensor:
        return low + (high - low) * torch.rand(size, generator=generator)

    def one(low: float, high: float) -> float:
        return float(uniform(low, high, 1))

    dt, echo_time = one(1.0, 2.5), one(0.025, 0.035)
    snr = snr or math.exp(one(math.log(20), math.log(120)))
    times = torch.arange(int(one(60, 100) / dt)) * dt
    begin = one(9, 18)
    aif = ArterialInput(
        *torch.tensor([begin, one(2.5, 3.5), one(1.1, 1.8), one(60, 100) / BLOOD]),
        one(0.1, 0.25), one(10, 14), one(1.0, 2.0), one(0.03, 0.1), 150.0,
    )  # fmt: skip
    vof = aif.delayed(one(3, 6), one(1.5, 3.0))
    white = torch.rand(shape, generator=generator) < 0.45
    flow = torch.where(white, 25.0, 60.0) * uniform(0.8, 1.2, *shape)
    volume = torch.where(white, 2.0, 4.0) * uniform(0.7, 1.3, *shape)
    delay, late = uniform(0.0, 0.8, *shape) + 0.3 * white, one(3, 8)
    lesion = torch.zeros(shape, dtype=torch.bool)
    lesion[: shape[0] // 3, shape[1] // 4 : 3 * shape[1] // 4] = one(0, 1) < 0.5
    flow, delay = torch.where(lesion, 0.3 * flow, flow), torch.where(lesion, late + uniform(-1, 1, *shape), delay)
    tissue = tissue_concentration(aif, times, flow, 60.0 * volume / flow, delay)

    artery, vein, lag = (torch.zeros(shape) for _ in range(3))
    for index in range(int(one(4, 9))):
        x, y, z = (int(one(2, n - 4)) for n in shape)
        length, axis = int(one(3, 6)), int(one(0, 2))
        course = (slice(x, x + length), y, z) if axis == 0 else (x, slice(y, y + length), z)
        count = artery[course].shape[0]
        artery[course] = uniform(0.6 if index == 0 else 0.3, 1.0, count)
        lag[course] = 0.6 * late if bool(lesion[course].any()) else one(0, 0.4)
    if sinus:
        middle = shape[0] // 2
        vein[middle - 1 : middle + 2, -3:] = uniform(0.3, 0.9, 3, 3, shape[2])
        vein[middle, -2] = 1.0
    for _ in range(10):  # small veins
        place = tuple(int(one(0, n)) for n in shape)
        vein[place] = torch.maximum(vein[place], uniform(0.2, 0.5, 1))[0]
    artery[vein > 0] = 0.0

    around = signal_from_concentration(tissue, torch.ones(shape), echo_time, TISSUE)
    within = torch.zeros(tissue.shape)
    filled = artery > 0
    arterial = aif.delayed(lag[filled]).concentration(times)
    within[filled] = signal_from_concentration(arterial, torch.tensor(1.1), echo_time, BLOOD)
    venous = signal_from_concentration(vof.concentration(times), torch.tensor(1.1), echo_time, BLOOD)
    signal = (1 - artery - vein)[..., None] * around + artery[..., None] * within + vein[..., None] * venous
    if faults:
        signal = _spoilt(signal, artery + vein > 0, generator)
    noise = torch.randn((2, *signal.shape), generator=generator) / snr
    signal = ((signal + noise[0]).square() + noise[1].square()).sqrt()
    baseline = signal[..., : max(2, int(begin / dt) - 1)].mean(-1)
    rate = relaxation_rate_change(signal, baseline, echo_time)
    ratio = BLOOD / TISSUE
    curves = (aif.concentration(times) * ratio, vof.concentration(times) * ratio)
    return Series(rate / TISSUE, *curves, artery, vein, dt, echo_time * TISSUE)


def _spoilt(signal: Tensor, vessels: Tensor, generator: torch.Generator) -> Tensor:
    """Fluid, dark voxels, spikes and steps in 1 % of the voxels, and in half of the series a frame of motion."""
    frames = signal.shape[-1]
    kind = torch.rand(vessels.shape, generator=generator)
    kind[vessels] = 1.0
    signal = torch.where((kind < 0.05)[..., None], 1.6, signal)
    signal = torch.where(((kind >= 0.05) & (kind < 0.07))[..., None], 0.15 * signal, signal)
    for place in ((kind >= 0.07) & (kind < 0.08)).nonzero().tolist():
        begin, depth = torch.rand(2, generator=generator).tolist()
        start = int(begin * (frames - 4)) + 2
        end = start + 1 + int(3 * depth) if depth < 0.5 else frames
        signal[(*place, slice(start, end))] *= 0.1 + 0.8 * depth
    if float(torch.rand(1, generator=generator)) < 0.5:
        frame = int(torch.randint(frames, (1,), generator=generator))
        signal[..., frame] *= 1 + 0.06 * torch.randn(vessels.shape, generator=generator)
    return signal
