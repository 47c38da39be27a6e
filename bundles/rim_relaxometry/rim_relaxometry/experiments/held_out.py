"""Accuracy on held-out deformed brains, over noise, protocols and the true B."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor
from tqdm import tqdm

from physics.noise import sigma_from_snr
from shared_transforms.anatomy import split_generator
from shared_transforms.experiments import Row, target

from . import charts
from .bench import Bench
from .methods import mle_method
from .monte_carlo import protocol_of
from .scenes import Scene, acquire, acquisition_of, brains, model_of, signal_of
from .statistics import accuracy

TISSUES = ("GM", "WM", "CSF")
SPREAD = 0.03  # standard deviation of the smooth variation of B over a brain


def held_out(
    bench: Bench,
    n_brains: int = 6,
    snr: Sequence[float] = (3, 5, 10, 30, 100),
    noise_models: Sequence[str] = ("gaussian", "rician"),
    protocols: Sequence[str] | None = None,
) -> list[Path]:
    """Error of T in GM, WM and CSF of six deformed brains, with intervals over the brains.

    Args:
        bench: estimators and output folder.
        n_brains: number of heads of the test split.
        snr: signal-to-noise ratios.
        noise_models: ``"gaussian"`` and ``"rician"``.
        protocols: by default those of the paper and a clinical one; texture off and on for the first, on for the rest.
    """
    own = ("N31", "N25", "N23") if bench.parameter == "T1" else ("N6",)
    protocols = bench.pick(list(protocols or (*own, "clinical8")), [own[0], own[-1]])
    levels, n_brains = bench.pick((list(snr), n_brains), ([5.0, 30.0], 2))
    scenes = {texture: _scene(bench, n_brains, texture) for texture in (1.0, 0.0)}
    cases = [
        (protocol, texture, noise_model, level)
        for protocol in protocols for texture in ((0.0, 1.0) if protocol == protocols[0] else (1.0,))
        for noise_model in noise_models for level in levels
    ]  # fmt: skip
    rows: list[Row] = []
    for protocol, texture, noise_model, level in tqdm(cases, desc="held-out brains"):
        common = {"protocol": protocol, "noise": noise_model, "snr": level, "texture": bool(texture)}
        rows += compare(bench, scenes[texture], protocol, level, noise_model, common, protocol == protocols[0])
    _add_ratios(bench, rows, protocols[0])
    notes = [
        f"{n_brains} heads of the test split, whole slices; A at the means of table 1, {bench.parameter} of each "
        "tissue drawn from it for each head; voxels with a tissue fraction above 0.9. Relative errors [%]. "
        + (
            f"B of each head 2 - |N(0, 0.2)| with a smooth variation of SD {SPREAD:g}. "
            if bench.parameter == "T1"
            else ""
        )
        + "Intervals: bootstrap over the heads. rmse_over_mle: RMSE over that of the classical rival (smooth B); "
        "robust_over_mle the same of the robust SD, which its outliers do not inflate; rmse_over_first: over the same "
        "method's with the first protocol.",
        "bound: root mean square of the Cramer-Rao bound, everything unknown; bound_b_known: with B known. The ResNet "
        "knows the first protocol only.",
    ]
    files = bench.write("held_out", [*rows, *bench.absent()], notes, _targets(bench, rows, protocols[0]))
    return [*files, bench.save_figure("held_out", _figure(bench, rows, protocols[0]))]


def _scene(bench: Bench, n: int, texture: float, split: str = "test") -> Scene:
    return brains(
        bench.parameter, n, bench.seed, split=split, texture=texture, inversion_spread=SPREAD, anatomy=bench.anatomy,
        device=bench.device, size=bench.size,
    )  # fmt: skip


def compare(
    bench: Bench,
    scene: Scene,
    protocol: str,
    level: float,
    noise_model: str,
    common: Row,
    paper_smoothness: bool = False,
) -> list[Row]:
    """Rows of all methods on one noisy acquisition of each head: every tissue, the last parameter."""
    acquisition: dict[str, Any] = acquisition_of(bench.parameter, protocol, bench.device)
    image = noisy(bench, scene, acquisition, level, noise_model)
    acquisition["noise"] = noise_model
    bounds = root_mean_square_bounds(bench, scene, acquisition, level)
    rows = []
    for method in bench.methods(acquisition["times"], paper_smoothness):
        estimate = method.estimate(image, acquisition, scene.inside)[:, len(bench.names) - 1]
        for tissue in TISSUES:
            mask = scene.tissue(tissue) & scene.inside
            found = accuracy(estimate, scene.parameters[:, -1], mask, bench.seed)
            if found["voxels"]:
                rows.append({**common, "method": method.name, "tissue": tissue, **found, **bounds[tissue]})
    return rows


def noisy(bench: Bench, scene: Scene, acquisition: Mapping[str, Any], level: float, noise_model: str) -> Tensor:
    """One noisy acquisition ``[n, N, H, W]``: the same numbers whichever methods are compared."""
    generator = split_generator(bench.seed, round(10 * level), split="test", device=bench.device)
    return acquire(signal_of(bench.parameter, scene, acquisition), level, noise_model, generator)


def root_mean_square_bounds(
    bench: Bench, scene: Scene, acquisition: Mapping[str, Any], level: float
) -> dict[str, dict[str, float]]:
    """Root mean square over the voxels of each tissue of the relative Cramer-Rao bound of T [%]."""
    model, found = model_of(bench.parameter, acquisition), {}
    for tissue in TISSUES:
        mask = scene.tissue(tissue) & scene.inside
        voxels = scene.parameters.movedim(1, 0)[:, mask][:, ::7]  # a sample: the bound varies little
        row = {}
        for column, known in (("bound", ()), ("bound_b_known", ("B",) if "B" in bench.names else ())):
            bound = model.cramer_rao_bound(
                *voxels, sigma=sigma_from_snr(level), noise=acquisition["noise"], known=known
            )
            row[column] = 100 * float((bound[-1] / voxels[-1]).double().square().mean().sqrt())
        found[tissue] = row
    return found


def _rival(bench: Bench) -> str:
    return "mle_smooth" if bench.parameter == "T1" else "mle"


def _add_ratios(bench: Bench, rows: list[Row], first: str) -> None:
    """Add the ratios of RMSE to the rival's and to the same method's with the first protocol."""
    keys = ("protocol", "noise", "snr", "texture", "tissue", "method")
    table = {tuple(row[k] for k in keys): row for row in rows}
    for row in rows:
        place = [row[k] for k in keys]
        rival, other = table[(*place[:-1], _rival(bench))], table.get((first, *place[1:]))
        row["rmse_over_mle"] = row["rmse"] / rival["rmse"]
        row["robust_over_mle"] = row["robust_sd"] / rival["robust_sd"]
        row["rmse_over_first"] = row["rmse"] / other["rmse"] if other else math.nan


def _targets(bench: Bench, rows: Sequence[Row], first: str) -> list[Row]:
    found = []
    rival = "RIM RMSE over smooth-B MLE" if bench.parameter == "T1" else "RIM RMSE over MLE"
    for row in rows:
        if row["method"] != "rim" or not row["texture"]:
            continue
        place = f"{row['tissue']}, SNR {row['snr']:g}, {row['protocol']}, {row['noise']}"
        if row["protocol"] == first and row["snr"] >= 10:
            found.append(target(f"{rival}: {place}", row["rmse_over_mle"], 1.3))
        elif row["protocol"] == first and row["snr"] <= 5:
            found.append(target(f"{rival}: {place}", row["rmse_over_mle"], 1.0))
        if row["protocol"] == first and row["snr"] >= 10 and row["tissue"] in ("GM", "WM"):
            found.append(target(f"abs median {bench.parameter} bias [%]: {place}", abs(row["median_bias"]), 3.0))
        if row["protocol"] in ("N23", "N25"):
            found.append(target(f"RMSE over that with N31: {place}", row["rmse_over_first"], 1.25))
    return found


def _figure(bench: Bench, rows: Sequence[Row], first: str) -> Any:
    figure = charts.new_figure(11.0, 6.2)
    axes = figure.subplots(2, 3, squeeze=False)
    for line_of, noise_model in zip(axes, dict.fromkeys(row["noise"] for row in rows), strict=False):
        for axis, tissue in zip(line_of, TISSUES, strict=True):
            chosen = [
                r for r in rows
                if (r["protocol"], r["noise"], r["tissue"], r["texture"]) == (first, noise_model, tissue, True)
            ]  # fmt: skip
            for method in dict.fromkeys(r["method"] for r in chosen if r["method"] != "trivial"):
                points = [r for r in chosen if r["method"] == method]
                charts.line(axis, method, [r["snr"] for r in points], [r["rmse"] for r in points])
            one = [r for r in chosen if r["method"] == "rim"]
            for column, style in (("bound", ":"), ("bound_b_known", "--")):
                axis.plot([r["snr"] for r in one], [r[column] for r in one], style, color="black", lw=1, label=column)
            charts.log_axes(axis, sorted({r["snr"] for r in chosen}), (0.5, 1, 2, 5, 10, 20, 50, 100, 200))
            axis.set(xlabel="SNR", ylabel=f"RMSE of {bench.parameter} [%]", ylim=(0.4, 300))
            axis.set_title(f"{tissue}, {noise_model}, {first}", fontsize=charts.FONT)
            charts.tidy(axis)
    charts.legend_below(figure, axes[0, 0])
    return figure


def inversion_sweep(
    bench: Bench,
    inversion: Sequence[float] = (1.4, 1.5, 1.6, 1.7, 1.8, 1.9, 2.0),
    snr: Sequence[float] = (10, 30),
    noise_models: Sequence[str] = ("gaussian", "rician"),
    n_brains: int = 3,
) -> list[Path]:
    """Bias of T1 where B is the same everywhere and known only to the simulator: does an estimator shrink it?

    Args:
        bench: estimators and output folder.
        inversion: values of B.
        snr: signal-to-noise ratios.
        noise_models: ``"gaussian"`` and ``"rician"``.
        n_brains: number of heads of the test split.
    """
    inversion, snr, n_brains = bench.pick((list(inversion), list(snr), n_brains), ([1.4, 2.0], [10.0], 1))
    rows: list[Row] = []
    cases = [(b, noise_model, level) for noise_model in noise_models for level in snr for b in inversion]
    for b, noise_model, level in tqdm(cases, desc="inversion sweep"):
        scene = brains(
            "T1", n_brains, bench.seed + 2, texture=1.0, inversion=b, table_means=True, anatomy=bench.anatomy,
            device=bench.device, size=bench.size,
        )  # fmt: skip
        rows += compare(bench, scene, "N31", level, noise_model, {"B": b, "noise": noise_model, "snr": level})
    notes = [
        f"{n_brains} heads of the test split, tissues at the means of table 1 with texture, N31. Relative errors of "
        "T1 [%]."
    ]
    targets = [
        target(
            f"abs median T1 bias [%] at B = {r['B']:g}: {r['tissue']}, SNR {r['snr']:g}, {r['noise']}",
            abs(r["median_bias"]), 5.0,
        )
        for r in rows if r["method"] == "rim" and r["tissue"] in ("GM", "WM")
    ]  # fmt: skip
    figure = charts.new_figure(8.0, 3.2)
    for axis, tissue in zip(figure.subplots(1, 2), ("GM", "WM"), strict=True):
        chosen = [r for r in rows if (r["noise"], r["snr"], r["tissue"]) == (noise_models[0], snr[0], tissue)]
        for method in dict.fromkeys(r["method"] for r in chosen if r["method"] != "trivial"):
            points = [r for r in chosen if r["method"] == method]
            charts.line(axis, method, [r["B"] for r in points], [r["median_bias"] for r in points])
        axis.axhspan(-5, 5, color="#e8edf3", zorder=0)
        axis.set(xlabel="true B", ylabel="median bias of T1 [%]", ylim=(-15, 15))
        axis.set_title(f"{tissue}, SNR {snr[0]:g}, {noise_models[0]}", fontsize=charts.FONT)
        charts.tidy(axis)
        last = axis
    charts.legend_below(figure, last)
    files = bench.write("inversion_sweep", [*rows, *bench.absent()], notes, targets)
    return [*files, bench.save_figure("inversion_sweep", figure)]


def smoothness(
    bench: Bench,
    values: Sequence[float] = (5, 50, 500, 5e3, 5e4, 5e5, 5e6),
    snr: Sequence[float] = (5, 10, 30),
    n_brains: int = 2,
) -> list[Path]:
    """The weight of the Laplacian of B that serves the smooth-B MLE best, on heads of the validation split.

    The rival of the network must be at its best; the paper chose 500 from the outliers of its own scans.

    Args:
        bench: estimators and output folder.
        values: weights.
        snr: signal-to-noise ratios; Gaussian noise.
        n_brains: number of heads.
    """
    values, snr, n_brains = bench.pick((list(values), list(snr), n_brains), ([500.0, 5e5], [10.0], 1))
    scene = _scene(bench, n_brains, 1.0, "val")
    acquisition: dict[str, Any] = acquisition_of("T1", protocol_of(bench), bench.device)
    methods = {f"{v:g}": mle_method("mle_smooth", "T1", "smooth", v) for v in values}
    methods |= {"0 (voxelwise)": mle_method("", "T1", "voxelwise"), "inf (shared)": mle_method("", "T1", "shared")}
    rows: list[Row] = []
    for level in snr:
        image = noisy(bench, scene, acquisition, level, "gaussian")
        for value, method in tqdm(methods.items(), desc=f"smoothness, SNR {level:g}"):
            estimate = method.estimate(image, {**acquisition, "noise": "gaussian"}, scene.inside)
            for tissue in TISSUES:
                mask = scene.tissue(tissue) & scene.inside
                found = accuracy(estimate[:, 2], scene.parameters[:, 2], mask, bench.seed)
                b_error = (estimate[:, 1] - scene.parameters[:, 1])[mask]
                rows.append({
                    "snr": level, "smoothness": value, "tissue": tissue, **found,
                    "rmse_of_b": float(b_error.double().square().mean().sqrt()),
                })  # fmt: skip
    score: dict[str, float] = {}
    for row in rows:
        score[row["smoothness"]] = score.get(row["smoothness"], 0.0) + math.log(row["robust_sd"])
    best = min((key for key in score if key in {f"{v:g}" for v in values}), key=lambda key: score[key])
    notes = [
        f"{n_brains} heads of the validation split, N31, Gaussian noise, B varying smoothly with SD {SPREAD:g}. Best: "
        f"{best}, by the geometric mean of the robust SD over tissues and SNR. The paper: 500. The experiments use "
        f"{bench.smoothness:g} for mle_smooth."
    ]
    return bench.write("smoothness", rows, notes)
