"""Repeated noise on one held-out slice: relative bias and coefficient of variation (Fig. 2), standard errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from scipy.stats import chi2
from torch import Tensor
from tqdm import tqdm

from physics.noise import sigma_from_snr
from shared_transforms.anatomy import split_generator
from shared_transforms.experiments import Row, target
from shared_transforms.metrics import coefficient_of_variation, relative_bias, rmse, robust_sd

from . import charts
from .bench import Bench
from .methods import Method
from .scenes import Scene, acquire, acquisition_of, brains, model_of, signal_of
from .statistics import quantiles

AT_ONCE = 4  # repetitions in one batch
REGIONS = ("GM", "WM", "CSF", "brain")
COVERAGE = 1.96


@dataclass
class Repeats:
    """Estimates ``[C, Q, H, W]`` of one slice and their standard errors of that shape."""

    estimates: Tensor
    errors: Tensor


def repeat(
    method: Method, signal: Tensor, acquisition: Mapping[str, Any], snr: float, mask: Tensor, count: int, seed: int
) -> Repeats:
    """Estimate a slice C times, each with noise of its own that depends on (seed, SNR, repetition) alone.

    Args:
        method: estimator.
        signal: noise-free series ``[N, H, W]``.
        acquisition: ``times``, ``repetition_time`` and ``noise``.
        snr: signal-to-noise ratio.
        mask: voxels for the estimators that take a mask, ``[H, W]``.
        count: C.
        seed: of the noise.
    """
    results = []
    for start in range(0, count, AT_ONCE):
        images = []
        for index in range(start, min(count, start + AT_ONCE)):
            generator = split_generator(seed, round(10 * snr), index, split="test", device=signal.device)
            images.append(acquire(signal, snr, acquisition["noise"], generator))
        batch = torch.stack(images)
        results.append(method.estimate(batch, acquisition, mask.expand(len(batch), -1, -1)))
    estimates, errors = torch.cat(results).chunk(2, 1)
    return Repeats(estimates, errors)


def noise(
    bench: Bench,
    snr: Sequence[float] = (3, 5, 10, 30, 60, 100),
    noise_models: Sequence[str] = ("gaussian", "rician"),
    repetitions: int = 100,
    slow_repetitions: int = 10,
) -> list[Path]:
    """Bias and variation of A, B and T over the noise levels; ``calibration`` uses the same runs.

    Args:
        bench: estimators and output folder.
        snr: signal-to-noise ratios.
        noise_models: ``"gaussian"`` (paper) and ``"rician"``.
        repetitions: C of the networks (paper: 100).
        slow_repetitions: C of the maximum-likelihood estimators.
    """
    counts = bench.pick((repetitions, slow_repetitions), (4, 2))
    levels = bench.pick(list(snr), [5.0, 30.0])
    scene = slice_of(bench)
    rows, calibration_rows, files = [], [], []
    for noise_model in noise_models:
        boxes: dict[tuple[str, str], dict[str, dict[str, list[float]]]] = {}
        for level in tqdm(levels, desc=f"noise, {noise_model}"):
            bounds = _bounds(bench, scene, level, noise_model)
            for method, found in _all_repeats(bench, scene, level, noise_model, counts):
                common = {"noise": noise_model, "snr": level, "method": method.name, "C": len(found.estimates)}
                rows += _noise_rows(bench, scene, found, common, bounds)
                if method.has_errors:
                    calibration_rows += _calibration_rows(bench, scene, found, common)
                    _keep_boxes(bench, scene, found, boxes, method.name, f"{level:g}")
        files.append(bench.save_figure(f"noise_{noise_model}", _noise_figure(bench, boxes, levels, noise_model)))
    bench.memory["calibration"] = calibration_rows
    notes = [
        "One held-out slice, tissues at the means of table 1, B of the slice drawn as 2 - |N(0, 0.2)|, protocol "
        f"{protocol_of(bench)}. C repetitions; the MLEs with fewer, being slow. Quartiles are over voxels of the "
        "tissue (fraction above 0.9), RMSE over voxels and repetitions with its interval over repetitions.",
        "bound_cv is the median Cramer-Rao standard deviation over the truth of an unbiased voxelwise estimator, "
        "bound_cv_b_known the same with B known: no estimator that pools B over the image without bias goes below it.",
        "A sample CV of C = 10 reads 4 % low in the median over voxels, of C = 100 not at all.",
        "The paper shows these quantities in its figure 2 without numbers.",
    ]
    return [*bench.write("noise", [*rows, *bench.absent()], notes), *files]


def calibration(
    bench: Bench,
    snr: Sequence[float] = (5, 10, 30, 100),
    noise_models: Sequence[str] = ("gaussian", "rician"),
    repetitions: int = 40,
    slow_repetitions: int = 10,
) -> list[Path]:
    """Standard errors against the standard deviation of repeated estimates, and how often they cover the truth.

    Takes the repetitions of ``noise`` where that has run before in this process.
    """
    rows = bench.memory.get("calibration")
    if rows is None:
        counts = bench.pick((repetitions, slow_repetitions), (4, 2))
        scene, rows = slice_of(bench), []
        for noise_model in noise_models:
            for level in tqdm(bench.pick(list(snr), [10.0]), desc=f"calibration, {noise_model}"):
                for method, found in _all_repeats(bench, scene, level, noise_model, counts):
                    common = {"noise": noise_model, "snr": level, "method": method.name, "C": len(found.estimates)}
                    rows += _calibration_rows(bench, scene, found, common) if method.has_errors else []
    notes = [
        "ratio: median over voxels of the mean standard error over the Monte-Carlo standard deviation (its median made "
        "unbiased for C repetitions), 1 if calibrated. "
        "coverage_95: share of estimates within 1.96 standard errors of the truth; it includes bias. z_robust_sd: "
        "robust SD of error over standard error.",
    ]
    targets = [
        target(
            f"RIM standard error over Monte-Carlo SD, off 1 by: {r['tissue']}, SNR {r['snr']:g}, {r['noise']}",
            abs(r["ratio"] - 1.0), 0.25,
        )
        for r in rows
        if r["method"] == "rim" and r["parameter"] == bench.parameter and r["tissue"] in ("GM", "WM") and r["snr"] >= 10
    ]  # fmt: skip
    figure = _calibration_figure(bench, rows)
    return [
        *bench.write("calibration", [*rows, *bench.absent()], notes, targets),
        bench.save_figure("calibration", figure),
    ]


def protocol_of(bench: Bench) -> str:
    """The paper's protocol for a parameter."""
    return "N31" if bench.parameter == "T1" else "N6"


def slice_of(bench: Bench) -> Scene:
    """The held-out slice of the Monte-Carlo experiments."""
    return brains(
        bench.parameter, 1, bench.seed, table_means=True, texture=0.5, anatomy=bench.anatomy, device=bench.device,
        size=bench.size,
    )  # fmt: skip


def _all_repeats(
    bench: Bench, scene: Scene, level: float, noise_model: str, counts: tuple[int, int]
) -> list[tuple[Method, Repeats]]:
    acquisition: dict[str, Any] = acquisition_of(bench.parameter, protocol_of(bench), bench.device)
    signal = signal_of(bench.parameter, scene, acquisition)[0]
    acquisition["noise"] = noise_model
    found = []
    for method in bench.methods(acquisition["times"], paper_smoothness=True):
        count = counts[1] if method.slow or not method.has_errors else counts[0]
        found.append((method, repeat(method, signal, acquisition, level, scene.inside[0], count, bench.seed)))
    return found


def _bounds(bench: Bench, scene: Scene, level: float, noise_model: str) -> tuple[Tensor, Tensor]:
    """Relative Cramer-Rao bounds [%] ``[Q, H, W]``, all parameters unknown and with B known."""
    model = model_of(bench.parameter, acquisition_of(bench.parameter, protocol_of(bench), bench.device))
    truth, sigma = scene.parameters[0], sigma_from_snr(level)
    known = ("B",) if "B" in bench.names else ()
    inside = scene.inside[0]
    bounds = []
    for given in ((), known):
        bound = torch.full_like(truth, torch.inf)
        voxels = truth[:, inside]
        bound[:, inside] = 100 * model.cramer_rao_bound(*voxels, sigma=sigma, noise=noise_model, known=given) / voxels
        bounds.append(bound)
    return bounds[0], bounds[1]


def _noise_rows(bench: Bench, scene: Scene, found: Repeats, common: Row, bounds: tuple[Tensor, Tensor]) -> list[Row]:
    rows = []
    for q, name in enumerate(bench.names):
        truth, estimates = scene.parameters[0, q], found.estimates[:, q]
        bias, variation = relative_bias(estimates, truth), coefficient_of_variation(estimates)
        for region in REGIONS:
            mask = scene.tissue(region)[0] & scene.inside[0]
            if not bool(mask.any()):
                continue
            b, v = (quantiles(m[mask], (0.25, 0.5, 0.75)) for m in (bias, variation))
            root = rmse(estimates, truth, mask, relative=True, resamples=500, seed=bench.seed)
            error = 100 * (estimates[:, mask] / truth[mask] - 1)
            bound, bound_b = (float(x[q][mask].double().median()) for x in bounds)
            rows.append({
                **common, "parameter": name, "tissue": region, "voxels": int(mask.sum()),
                "bias_q1": b[0], "bias_median": b[1], "bias_q3": b[2],
                "cv_q1": v[0], "cv_median": v[1], "cv_q3": v[2],
                "rmse": root.value, "rmse_low": root.low, "rmse_high": root.high,
                "robust_sd": float(robust_sd(error)), "bound_cv": bound, "bound_cv_b_known": bound_b,
            })  # fmt: skip
    return rows


def _calibration_rows(bench: Bench, scene: Scene, found: Repeats, common: Row) -> list[Row]:
    rows = []
    # A sample standard deviation of few repetitions is too small in the median over voxels.
    few = len(found.estimates) - 1
    spread = found.estimates.double().std(0) * (few / float(chi2.ppf(0.5, few))) ** 0.5
    stated = found.errors.double().mean(0)
    deviation = found.estimates.double() - scene.parameters[0]
    for q, name in enumerate(bench.names):
        for region in REGIONS:
            mask = scene.tissue(region)[0] & scene.inside[0]
            if not bool(mask.any()):
                continue
            z = deviation[:, q][:, mask] / found.errors[:, q][:, mask].double()
            usable = torch.isfinite(z)
            low, middle, high = quantiles((stated[q] / spread[q])[mask], (0.25, 0.5, 0.75))
            rows.append({
                **common, "parameter": name, "tissue": region,
                "mc_sd": quantiles(spread[q][mask], (0.5,))[0], "standard_error": quantiles(stated[q][mask], (0.5,))[0],
                "ratio": middle, "ratio_q1": low, "ratio_q3": high,
                "coverage_95": float((z.abs() < COVERAGE).double().mean()),
                "z_robust_sd": float(robust_sd(z[usable])) if bool(usable.any()) else float("nan"),
                "share_without_error": float((~usable).double().mean()),
            })  # fmt: skip
    return rows


def _keep_boxes(
    bench: Bench, scene: Scene, found: Repeats,
    boxes: dict[tuple[str, str], dict[str, dict[str, list[float]]]], method: str, place: str,
) -> None:  # fmt: skip
    mask = scene.brain[0] & scene.inside[0]
    for q, name in enumerate(bench.names):
        measures = {
            "Relative bias": relative_bias(found.estimates[:, q], scene.parameters[0, q]),
            "CV": coefficient_of_variation(found.estimates[:, q]),
        }
        for measure, values in measures.items():
            boxes.setdefault((measure, name), {}).setdefault(method, {})[place] = quantiles(values[mask])


def _noise_figure(
    bench: Bench, boxes: Mapping[tuple[str, str], charts.Boxes], levels: Sequence[float], noise_model: str
) -> Figure:
    figure = charts.new_figure(4.3 * len(bench.names), 5.6)
    axes = figure.subplots(2, len(bench.names), squeeze=False)
    limits = {"Relative bias": (-40.0, 60.0), "CV": (0.0, 80.0)}
    for row, measure in enumerate(limits):
        for column, name in enumerate(bench.names):
            axis = axes[row, column]
            charts.grouped_boxes(axis, boxes[measure, name], [f"{x:g}" for x in levels], limits[measure])
            axis.set_ylabel(f"{measure} of {name} [%]", fontsize=charts.FONT)
            axis.set_xlabel("SNR", fontsize=charts.FONT)
    charts.legend_below(figure, axes[0, 0])
    figure.suptitle(f"{noise_model.capitalize()} noise, voxels of the brain", fontsize=charts.FONT + 1)
    return figure


def _calibration_figure(bench: Bench, rows: Sequence[Row]) -> Figure:
    models = list(dict.fromkeys(row["noise"] for row in rows))
    figure = charts.new_figure(8.0, 3.0 * len(models))
    axes = figure.subplots(len(models), 2, squeeze=False)
    for line_of, noise_model in zip(axes, models, strict=True):
        for axis, tissue in zip(line_of, ("GM", "WM"), strict=True):
            chosen = [
                r for r in rows
                if (r["noise"], r["tissue"], r["parameter"]) == (noise_model, tissue, bench.parameter)
            ]  # fmt: skip
            for method in dict.fromkeys(r["method"] for r in chosen):
                points = [(r["snr"], r["ratio"]) for r in chosen if r["method"] == method]
                charts.line(axis, method, [p[0] for p in points], [p[1] for p in points])
            axis.axhline(1.0, color="black", lw=0.8, ls="--")
            charts.log_axes(axis, sorted({r["snr"] for r in chosen}), (0.25, 0.5, 1, 2, 4, 8))
            axis.set(xlabel="SNR", ylabel="standard error / Monte-Carlo SD", ylim=(0.2, 12))
            axis.set_title(f"{bench.parameter} in {tissue}, {noise_model}", fontsize=charts.FONT)
            charts.tidy(axis)
    charts.legend_below(figure, axes[0, 0])
    return figure
