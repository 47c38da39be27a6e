"""The ISMRM/NIST system phantom, real scans: error of every sphere (section 5.2, Fig. 4)."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy.ndimage import map_coordinates
from scipy.optimize import minimize
from torch import Tensor
from tqdm import tqdm

from shared_transforms.errors import QMRIError
from shared_transforms.experiments import Row, target
from shared_transforms.io import find_series, load_series

from ..maps import noise_deviation
from ..network import PARAMETERS
from . import charts
from .bench import Bench
from .methods import Method, trivial_values
from .scenes import model_of
from .statistics import Array

RADIUS_MM = 3.0
MOTION = (10.0, 10.0, 10.0)  # largest shift along rows and columns [pixels] and rotation [degrees] of the given centres
RANGES = {"T1": (100.0, 1500.0), "T2": (40.0, 900.0)}  # [ms] nominal values that count
LIMITS = {"mle": 5.0, "rim": 8.0}  # [%] median error
LIMIT_ONE = 20.0  # [%] of any sphere
# series, first echoes left out, whether the targets are about it
SERIES: dict[str, tuple[tuple[str, int, bool], ...]] = {
    "T1": (("T1/site1_20200218/plate5", 0, True), ("T1/site3_ge/plate4", 0, True), ("T1/site3_ge/plate5", 0, True)),
    "T2": (("T2/site3_ge/plate5", 0, True), ("T2/site3_ge/plate4", 1, False), ("T2/site1_20200218/plate4", 1, False)),
}
# Section 6.2: average relative bias [%] of the paper's own phantom scans (3 T, 23 inversion times).
PAPER_BIAS = {"rim": 1.34, "mle_smooth_500": 1.71, "resnet": 31.06}


@dataclass
class Plate:
    """One series as a slice.

    Attributes:
        name: of the series.
        image: ``[N, H, W]`` in rows and columns of the stored pixel array.
        acquisition: times and TR [s], and ``noise``.
        nominal: ``[14]`` [ms].
        centres: (row, column) as given, ``[14, 2]``.
        spacing_mm: pixel size.
    """

    name: str
    image: Tensor
    acquisition: dict[str, Any]
    nominal: Array
    centres: Array
    spacing_mm: float


def phantom(bench: Bench) -> list[Path]:
    """Error of each sphere's median in every series and by every method.

    Raises:
        QMRIError: where the folder is not the phantom's.
    """
    if bench.phantom_dir is None:
        raise QMRIError(
            field="phantom_dir", found="no folder", expected="the folder with spheres.json and the DICOM series",
            remedy="give --phantom_dir",
        )  # fmt: skip
    rows: list[Row] = []
    summaries: list[Row] = []
    for series, skip, counted in tqdm(SERIES[bench.parameter], desc="phantom"):
        plate = read_plate(Path(bench.phantom_dir), series, bench.parameter, skip)
        centres, motion, before, after = refine_centres(
            plate.image.numpy(), plate.centres, 1.5 * RADIUS_MM / plate.spacing_mm
        )
        masks = [disc_mask(plate.image.shape[-2:], centre, RADIUS_MM / plate.spacing_mm) for centre in centres]
        placed = {"shift_rows_px": motion[0], "shift_columns_px": motion[1], "rotation_deg": motion[2],
                  "inhomogeneity_given": before, "inhomogeneity": after}  # fmt: skip
        for method in [
            m for m in bench.methods(plate.acquisition["times"], paper_smoothness=True) if m.name != "resnet"
        ]:
            found = _sphere_rows(bench, plate, method, masks)
            rows += found
            summaries.append(_summary(bench.parameter, plate.name, method.name, found, counted) | placed)
    summaries += _pooled(bench.parameter, rows)
    low, high = RANGES[bench.parameter]
    notes = [
        "ISMRM/NIST system phantom, 1.5 T, real DICOM data; nominal values of its makers. Discs of 3 mm; estimates "
        "of the whole image with the Rician likelihood and, for T1, with TR. error: of the disc's median; sd: over "
        "its voxels.",
        f"Spheres of {low:g} to {high:g} ms count. bound: Cramer-Rao bound at the method's own estimate and residual "
        "noise.",
        "The given centres are moved rigidly (at most 10 pixels, 10 degrees) to where the discs are most "
        "homogeneous: on plate 5 of site 3 they lie on the walls of the spheres. inhomogeneity is the mean SD over "
        "mean in the discs.",
        "Plates 4 of T2: the first echo is left out and stimulated echoes still raise T2 by 10 to 20 %: no target. "
        "The paper's values are of its own phantom scans.",
        *[f"{row['method']}: {row['note']}" for row in bench.absent(fits_resnet=False)],
    ]
    targets = [
        row for s in summaries if s["targets_apply"] for row in _targets(bench.parameter, s)
    ]  # fmt: skip
    files = bench.write("phantom", rows, notes)
    files += bench.write("phantom_summary", [*summaries, *bench.absent(fits_resnet=False)], notes, targets)
    return [*files, bench.save_figure("phantom", _figure(bench.parameter, rows))]


def read_plate(folder: Path, series: str, parameter: str, skip_first: int) -> Plate:
    """Convert a series of DICOM files and read it.

    Args:
        folder: of the phantom, with ``spheres.json``.
        series: its subfolder.
        parameter: ``"T1"`` or ``"T2"``.
        skip_first: echoes to leave out.
    """
    try:
        spheres = json.loads((folder / "spheres.json").read_text(encoding="utf-8"))[series]
    except (OSError, json.JSONDecodeError, KeyError) as error:
        raise QMRIError(
            file=folder / "spheres.json", field=series, found=f"{type(error).__name__}: {error}",
            expected="centres and nominal values of the spheres of every series",
            remedy="give the folder of the NIST phantom",
        ) from error  # fmt: skip
    kind = "inversion_recovery" if parameter == "T1" else "multi_echo"
    with tempfile.TemporaryDirectory() as converted:
        convert(folder / series, Path(converted))
        [found] = find_series(converted, kind)
        item = load_series(found["image"], kind, skip_first)
    # dcm2niix stores an axial or coronal image as [column, rows upwards].
    image = item["image"].as_tensor()[..., 0].flip(2).transpose(1, 2).contiguous()
    return Plate(
        series, image, {**item["acquisition"], "noise": "rician"}, np.asarray(spheres["nominal_ms"], float),
        np.asarray(spheres["sphere_centres_row_col"], float), float(spheres["pixel_spacing_mm"]),
    )  # fmt: skip


def convert(dicom: Path, output: Path) -> None:
    """DICOM to NIfTI with sidecars by dcm2niix."""
    try:
        import dcm2niix  # type: ignore[import-untyped]  # an extra: only this experiment needs it
    except ImportError as error:
        raise QMRIError(
            field="dcm2niix", found="not installed", expected="the package dcm2niix, which holds the program",
            remedy="pip install dcm2niix",
        ) from error  # fmt: skip
    command = [dcm2niix.bin, "-z", "y", "-o", str(output), str(dicom)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise QMRIError(
            file=dicom, field="DICOM", found=(done.stdout + done.stderr)[-300:], expected="one series",
            remedy="give the folder of the NIST phantom",
        )  # fmt: skip


def disc_mask(shape: Sequence[int], centre: Sequence[float], radius: float) -> Tensor:
    """Pixels within a distance [pixels] of (row, column), ``[H, W]`` bool."""
    rows, columns = torch.arange(shape[0])[:, None], torch.arange(shape[1])[None, :]
    return (rows - float(centre[0])) ** 2 + (columns - float(centre[1])) ** 2 <= radius**2


def refine_centres(image: Array, centres: Array, radius: float) -> tuple[Array, Array, float, float]:
    """Rigid motion of all centres together that makes each disc homogeneous and the discs different.

    Args:
        image: ``[N, rows, columns]``.
        centres: ``[n, 2]`` (row, column).
        radius: of the discs that are compared [pixels].

    Returns:
        Centres ``[n, 2]``; the motion (rows, columns [pixels], rotation [degrees]); the mean of SD over mean in the
        discs at the given and at the refined centres.
    """
    middle = centres.mean(0)
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, 7)] * 2, indexing="ij"), -1).reshape(-1, 2)
    disc = radius * grid[(grid**2).sum(1) <= 1]
    scaled = image / image.max(axis=(1, 2), keepdims=True)

    def moved(motion: Array) -> Array:
        angle = np.deg2rad(motion[2])
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        return (centres - middle) @ turn.T + middle + motion[:2]

    def values(motion: Array) -> Array:
        points = (moved(motion)[:, None] + disc).reshape(-1, 2).T
        found = np.stack([map_coordinates(one, points, order=1) for one in scaled])
        return found.reshape(len(scaled), len(centres), -1)

    def mixture(motion: Array) -> float:
        # Discs between the spheres are homogeneous too, but all alike.
        found = values(motion)
        return float((50.0 * found.var(2).mean(1) - found.mean(2).var(1)).mean())

    def inhomogeneity(motion: Array) -> float:
        found = values(motion)
        return float((found.std(2) / (found.mean(2) + 0.02)).mean())

    axes = [np.linspace(-limit, limit, number) for limit, number in zip(MOTION, (11, 11, 9), strict=True)]
    coarse = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)
    starts = coarse[np.argsort([mixture(motion) for motion in coarse])[:5]]
    bounds = [(-limit, limit) for limit in MOTION]
    best = min((minimize(mixture, s, method="Nelder-Mead", bounds=bounds) for s in starts), key=lambda found: found.fun)
    return moved(best.x), best.x, inhomogeneity(np.zeros(3)), inhomogeneity(best.x)


def _sphere_rows(bench: Bench, plate: Plate, method: Method, masks: Sequence[Tensor]) -> list[Row]:
    image = plate.image[None].to(bench.device)
    acquisition = {k: v.to(bench.device) if isinstance(v, Tensor) else v for k, v in plate.acquisition.items()}
    pred = method.estimate(image, acquisition, None)[0].cpu()
    count = len(PARAMETERS[bench.parameter])
    estimate, error = 1000 * pred[count - 1], 1000 * pred[-1]
    model = model_of(bench.parameter, plate.acquisition)
    in_spheres = torch.stack(list(masks)).any(0)
    fitted = model(*pred[:count])
    sigma = noise_deviation(plate.image[:, in_spheres], fitted[:, in_spheres], count)
    rows = []
    for number, (mask, nominal) in enumerate(zip(masks, plate.nominal, strict=True), 1):
        values = estimate[mask].double()
        median = float(values.median())
        row: Row = {
            "series": plate.name, "method": method.name, "sphere": number, "nominal_ms": float(nominal),
            "median_ms": median, "error": 100 * (median / nominal - 1), "sd": 100 * float(values.std()) / nominal,
        }  # fmt: skip
        if method.has_errors:
            bound = model.cramer_rao_bound(*pred[:count][:, mask], sigma=sigma, noise="rician")[-1]
            row["standard_error"] = 100 * float(error[mask].median()) / nominal
            row["bound"] = 1e5 * float(bound.double().median()) / nominal
        rows.append(row)
    return rows


def _pooled(parameter: str, rows: Sequence[Row]) -> list[Row]:
    """Summaries over all series that the targets are about, where there are several."""
    counted = [series for series, _, applies in SERIES[parameter] if applies]
    if len(counted) < 2:
        return []
    chosen = [row for row in rows if row["series"] in counted]
    return [
        _summary(parameter, "all", method, [row for row in chosen if row["method"] == method], True)
        for method in dict.fromkeys(row["method"] for row in chosen)
    ]


def _summary(parameter: str, series: str, method: str, rows: Sequence[Row], counted: bool) -> Row:
    low, high = RANGES[parameter]
    inside = [row for row in rows if low <= row["nominal_ms"] <= high]
    errors = np.array([abs(row["error"]) for row in inside])
    return {
        "series": series, "method": method, "spheres": len(inside), "median_abs_error": float(np.median(errors)),
        "mean_abs_error": float(errors.mean()), "max_abs_error": float(errors.max()),
        "median_error": float(np.median([row["error"] for row in inside])),
        "median_sd": float(np.median([row["sd"] for row in inside])), "targets_apply": counted,
        "paper_mean_bias_of_own_scans": PAPER_BIAS.get(method) if parameter == "T1" else None,
        "trivial_ms": 1000 * trivial_values(parameter)[-1],
    }  # fmt: skip


def _targets(parameter: str, summary: Mapping[str, Any]) -> list[Row]:
    method, place = summary["method"], f"{summary['series']}, {summary['method']}"
    if method == "rim":
        found = [target(f"median abs error [%]: {place}", summary["median_abs_error"], LIMITS["rim"])]
        if parameter == "T1":
            found.append(target(f"largest abs error [%]: {place}", summary["max_abs_error"], LIMIT_ONE))
        return found
    if method.startswith("mle"):
        return [target(f"median abs error [%]: {place}", summary["median_abs_error"], LIMITS["mle"])]
    return []


def _figure(parameter: str, rows: Sequence[Row]) -> Figure:
    series = list(dict.fromkeys(row["series"] for row in rows))
    figure = charts.new_figure(4.2 * len(series), 5.6)
    axes = figure.subplots(2, len(series), squeeze=False, sharex=True)
    low, high = RANGES[parameter]
    for column, name in enumerate(series):
        chosen = [row for row in rows if row["series"] == name and row["method"] != "trivial"]
        for method in dict.fromkeys(row["method"] for row in chosen):
            points = sorted((r["nominal_ms"], r["error"], r["sd"]) for r in chosen if r["method"] == method)
            for row_of, value in ((0, 1), (1, 2)):
                charts.line(axes[row_of, column], method, [p[0] for p in points], [p[value] for p in points])
        for axis, label in zip(axes[:, column], ("error of the median [%]", "SD in the sphere [%]"), strict=True):
            axis.axvspan(low, high, color="#e8edf3", zorder=0)
            axis.set(xscale="log", ylabel=label)
            charts.tidy(axis)
        axes[0, column].axhline(0, color="#3c4654", lw=0.8)
        axes[0, column].set(ylim=(-40, 40), title=name)
        axes[0, column].title.set_fontsize(charts.FONT)
        axes[1, column].set(ylim=(0, 30), xlabel=f"nominal {parameter} [ms]")
    charts.legend_below(figure, axes[0, 0])
    return figure
