"""Simulated examinations against figures of real ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.optimize import curve_fit
from torch import Tensor
from tqdm import tqdm

from physics.perfusion import baseline_signal, baseline_snr, find_frames, relaxation_rate_change
from shared_transforms.anatomy import split_generator
from shared_transforms.experiments import Row, charts

from ..anatomy import paint_anatomy
from ..simulator import Draw, PerfusionSimulator
from .bench import Bench
from .cohort import simulator_of

FIRST = 3000  # number of the first subject: none of the other tables
PURE = 0.8  # fraction of grey or white matter of the voxels that stand for it; less in the large ones of a quick run
WINDOW_S = (6.0, 30.0)  # after the first pass, in which the second one is looked for
SMALLEST_PASS = 0.03  # of the first pass

_SCANS = "clinical DSC series of acute strokes"
_MR = "Helenius et al., Acta Radiol 44:538, 2003 (DSC, 80 healthy); PMC5801598 (DCE, 29 patients): means +- SD"


@dataclass(frozen=True)
class Figures:
    """What a quantity is in real examinations.

    Attributes:
        unit: as text.
        low, high: usual range; None where nothing is known to compare with.
        source: where it is from.
    """

    unit: str
    low: float | None = None
    high: float | None = None
    source: str = ""


# MTT of the second source is 60 CBV / CBF of its means.
REFERENCE: dict[str, Figures] = {
    "first frame over baseline": Figures("", 1.2, 1.3, f"{_SCANS}: 1.25"),
    "baseline SNR": Figures("", 50.0, 70.0, _SCANS),
    "peak change of R2*": Figures("1/s", 16.0, 24.0, f"{_SCANS}: about 20"),
    "trough over baseline": Figures("", 0.53, 0.59, _SCANS),
    "second pass": Figures("frame", 21.0, 24.0, _SCANS),
    "second pass after the first": Figures("s"),
    "tail over baseline": Figures("", 0.90, 0.93, _SCANS),
    "grey matter CBF": Figures("ml/100 g/min", 47.8, 117.2, _MR),
    "grey matter CBV": Figures("ml/100 g", 3.6, 6.4, _MR),
    "grey matter MTT": Figures("s", 2.4, 5.0, _MR),
    "white matter CBF": Figures("ml/100 g/min", 13.8, 38.0, _MR),
    "white matter CBV": Figures("ml/100 g", 0.9, 2.6, _MR),
    "white matter MTT": Figures("s", 3.5, 5.0, _MR),
    "grey over white matter CBF": Figures("", 1.9, 4.8, f"{_MR}: ratios of the means"),
    "tissue with Tmax > 6 s in strokes": Figures("ml"),
}


@dataclass(frozen=True)
class Curve:
    """Mean signal of a brain over its baseline, from the second frame on, and its times after the arrival [s]."""

    times: np.ndarray
    signal: np.ndarray


@torch.no_grad()
def realism(bench: Bench, subjects: int = 40, strokes: int = 20) -> list[Path]:
    """Signal, circulation and lesions of simulated examinations beside those of real ones.

    Args:
        bench: for seed, sizes, device and output folder; the SNR is as drawn.
        subjects: of the test split, others than in the other tables.
        strokes: how many of these with a stroke.
    """
    subjects, strokes = bench.pick((subjects, strokes), (2, 1))
    simulators = {share: simulator_of(bench, share) for share in (0.0, 1.0)}
    single: list[Row] = []
    curves = []
    for number in tqdm(range(subjects), "realism"):
        stroke = number < strokes
        simulator = simulators[float(stroke)]
        drawn = simulator.draw(split_generator(bench.seed, FIRST + number, split="test"), 1, "test")
        row, curve = examine(simulator, drawn, bench.pick(PURE, 0.5))
        if not stroke:
            row.pop("tissue with Tmax > 6 s in strokes")
        single.append(row)
        curves.append(curve)
    rows = summary(single)
    notes = [
        f"{subjects} simulated examinations of the test split, {strokes} with a stroke, as in training: SNR "
        f"{simulator.snr[0]:g} to {simulator.snr[1]:g}, repetition time {simulator.repetition_time[0]:g} to "
        f"{simulator.repetition_time[1]:g} s. simulated: median over the examinations, _low and _high: 5th and 95th "
        "percentile; inside: whether the median lies in the range of the reference; share_inside: of the examinations.",
        "Baseline, arrival, trough and tail are found in the mean signal of the brain as in a measured series; peak "
        "change of R2*: median over its voxels. second pass: frame, from 0, of the largest residual after a "
        "gamma-variate fit to the first pass of that mean; frames depend on the repetition time and on when the bolus "
        "was given, which both vary here. CBF, CBV, MTT: means of the truth over voxels of nearly pure grey or white "
        "matter outside of strokes.",
    ]
    files = bench.write("realism", rows, notes)
    return [*files, bench.save_figure("realism", _figure(rows, curves))]


def examine(simulator: PerfusionSimulator, drawn: Draw, pure: float = PURE) -> tuple[Row, Curve]:
    """Quantities of :data:`REFERENCE` in one examination, and the mean signal of its brain.

    Args:
        simulator: that has drawn it.
        drawn: one examination.
        pure: smallest fraction of a tissue in the voxels that stand for it.
    """
    series = simulator.series(drawn)
    signal = series["signal"][series["mask"]]
    step = series["repetition_time"]
    mean = signal.mean(0)
    frames = find_frames(mean, step)
    baseline = baseline_signal(signal, frames)
    rate = relaxation_rate_change(signal[:, frames.dummy :], baseline, series["echo_time"])
    whole = (mean / baseline.mean()).cpu()
    curve = -whole[frames.dummy :].clamp_min(1e-3).log()
    second = second_pass(curve, step)
    row: Row = {
        "first frame over baseline": float(whole[0]),
        "baseline SNR": float(baseline_snr(signal, frames).median()),
        "peak change of R2*": float(rate.amax(-1).median()),
        "trough over baseline": frames.trough,
        "second pass": second + frames.dummy,
        "second pass after the first": (second - int(curve.argmax())) * step,
        "tail over baseline": frames.tail,
        **_circulation(simulator, drawn, series["tissue"][0], {k: series[k][0] for k in ("cbf", "cbv", "mtt")}, pure),
        "tissue with Tmax > 6 s in strokes": int(series["lesion"].sum()) * math.prod(simulator.voxel_size) / 1e3,
    }
    times = (np.arange(frames.dummy, len(whole)) - frames.arrival) * step
    return row, Curve(times, whole[frames.dummy :].numpy())


def _circulation(
    simulator: PerfusionSimulator, drawn: Draw, tissue: Tensor, maps: dict[str, Tensor], pure: float
) -> Row:
    """Mean CBF, CBV and MTT of healthy grey and white matter."""
    painted = paint_anatomy(drawn.anatomy, simulator.head, simulator.device)
    healthy = tissue & (painted["oligaemia"][0] == 0.0)
    row: Row = {}
    for name, fraction in (("grey", painted["gm"][0]), ("white", painted["wm"][0])):
        inside = healthy & (fraction > pure)
        for key, values in maps.items():
            row[f"{name} matter {key.upper()}"] = float(values[inside].mean())
    row["grey over white matter CBF"] = row["grey matter CBF"] / row["white matter CBF"]
    return row


def second_pass(curve: Tensor, step: float) -> float:
    """Frame of the second pass of a bolus.

    A gamma variate is fitted to the first pass, to where the curve has fallen to half of its peak; the second pass is
    the highest peak of what is left.

    Args:
        curve: change of the relaxation rate in any unit ``[T]``.
        step: time between frames [s].

    Returns:
        The frame, counted from 0, between frames by a parabola; NaN where none stands out.
    """
    y = curve.double().numpy()
    times = np.arange(len(y)) * step
    peak = int(y.argmax())
    below = np.nonzero(y[peak:] < 0.5 * y[peak])[0]
    if not len(below) or y[peak] <= 0.0:
        return math.nan
    end = peak + int(below[0]) + 1
    start = (times[peak] - 8.0, 3.0, 2.5, y[peak])
    bounds = ((-np.inf, 0.5, 0.3, 0.0), (times[peak] - 0.1, 12.0, 15.0, 10.0 * y[peak]))
    try:
        found, _ = curve_fit(_first_pass, times[:end], y[:end], start, bounds=bounds, max_nfev=2000)
    except RuntimeError:
        return math.nan
    rest = y - _first_pass(times, *found)
    after = times - times[peak]
    rest[(after < WINDOW_S[0]) | (after > WINDOW_S[1])] = -np.inf
    best = int(rest.argmax())
    inner = 0 < best < len(rest) - 1 and np.isfinite(rest[best - 1 : best + 2]).all()
    if not inner or rest[best] < SMALLEST_PASS * y[peak]:
        return math.nan
    before, here, then = rest[best - 1 : best + 2]
    curvature = before - 2.0 * here + then
    return best + (0.5 * (before - then) / curvature if curvature < 0.0 else 0.0)


def _first_pass(times: np.ndarray, arrival: float, alpha: float, beta: float, height: float) -> np.ndarray:
    """Gamma variate whose peak is ``height``, at ``arrival + alpha beta``."""
    relative = np.clip((times - arrival) / (alpha * beta), 1e-9, None)
    return height * np.exp(alpha * (np.log(relative) + 1.0 - relative))


def summary(single: Sequence[Row]) -> list[Row]:
    """Median and percentiles of every quantity beside its reference; what was not found in a subject is left out."""
    rows: list[Row] = []
    for name, real in REFERENCE.items():
        values = np.array([row[name] for row in single if name in row], dtype=float)
        values = values[np.isfinite(values)]
        row: Row = {"quantity": name, "unit": real.unit, "subjects": len(values)}
        if len(values):
            low, median, high = np.percentile(values, (5, 50, 95))
            row |= {"simulated": median, "simulated_low": low, "simulated_high": high}
        row |= {"reference_low": real.low, "reference_high": real.high}
        if len(values) and real.low is not None and real.high is not None:
            row["inside"] = bool(real.low <= median <= real.high)
            row["share_inside"] = float(((values >= real.low) & (values <= real.high)).mean())
        rows.append(row | {"source": real.source})
    return rows


def _figure(rows: Sequence[Row], curves: Sequence[Curve]) -> Figure:
    figure = charts.new_figure(9.5, 3.8)
    left, right = figure.subplots(1, 2, width_ratios=(1.2, 1.0))
    for curve in curves:
        left.plot(curve.times, curve.signal, color="#0072B2", lw=0.7, alpha=0.5)
    for name in ("trough over baseline", "tail over baseline"):
        left.axhspan(REFERENCE[name].low, REFERENCE[name].high, color="#E69F00", alpha=0.4, lw=0)
    left.set_xlabel("time after the arrival in the brain [s]", fontsize=charts.FONT)
    left.set_ylabel("mean signal over baseline", fontsize=charts.FONT)
    left.set_title("orange: trough and tail of real series", fontsize=charts.FONT)
    _ranges(right, rows)
    for axis in (left, right):
        charts.tidy(axis)
    return figure


def _ranges(axis: Axes, rows: Sequence[Row]) -> None:
    """Every quantity on a scale on which the real range reaches from 0 to 1."""
    known = [row for row in rows if "inside" in row][::-1]
    axis.axvspan(0.0, 1.0, color="#E69F00", alpha=0.4, lw=0)
    for place, row in enumerate(known):
        low, width = row["reference_low"], row["reference_high"] - row["reference_low"]
        middle, *ends = ((row[f"simulated{end}"] - low) / width for end in ("", "_low", "_high"))
        axis.plot(ends, (place, place), color="#0072B2", lw=1.5)
        axis.plot(middle, place, "o", color="#0072B2", ms=4)
    axis.set_yticks(range(len(known)), [row["quantity"] for row in known])
    axis.set_xlim(-3.0, 4.0)
    axis.set_xlabel("simulated median, 5 to 95 %; real range: 0 to 1", fontsize=charts.FONT)
