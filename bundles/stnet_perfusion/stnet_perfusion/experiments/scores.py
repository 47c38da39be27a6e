"""How good maps are: figures of merit of one subject, and their summary over a cohort."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor

from shared_transforms.experiments import Row, interval
from shared_transforms.metrics import (
    Estimate,
    dice,
    hausdorff95,
    iou,
    normalised_rmse,
    pearson,
    roc_auc,
    spearman,
)

from .cohort import Subject

MAP_SCORES = ("psnr", "ssim", "pcc", "scc", "nrmse", "mae")
REGION_SCORES = ("auc", "dice", "iou", "hd95")
SIGMA = 1.5  # [voxels] of the windows of SSIM
HYPOPERFUSED = 6.0  # s
RESAMPLES = 2000


def map_scores(subject: Subject, estimate: Tensor, parameter: int) -> dict[str, Row]:
    """Figures of merit of one map in the brain's tissue and in the lesion.

    The data range of PSNR and SSIM is that of the truth in the subject's tissue, largest minus smallest value, for
    both regions. SSIM is two-dimensional: slices are three times as thick as pixels are wide.

    Args:
        subject: the examination.
        estimate: ``[V]``.
        parameter: 0 CBV, 1 CBF, 2 Tmax.

    Returns:
        ``brain``, and ``lesion`` where there is a stroke: a row of :data:`MAP_SCORES` each.
    """
    truth = subject.truth[parameter].double().cpu()
    estimate = estimate.double().cpu()
    span = float(truth.max() - truth.min())
    similarity = similarity_map(subject, estimate, truth, span)
    regions = {"brain": torch.ones_like(subject.lesion).cpu()}
    if subject.stroke and int(subject.lesion.sum()) > 1:
        regions["lesion"] = subject.lesion.cpu()
    found = {}
    for name, region in regions.items():
        x, y = estimate[region], truth[region]
        found[name] = {
            "psnr": _psnr(x, y, span),
            "ssim": float(similarity[region].mean()),
            "pcc": pearson(x, y),
            "scc": spearman(x, y),
            "nrmse": normalised_rmse(x, y),
            "mae": float((x - y).abs().mean()),
        }
    return found


def _psnr(estimate: Tensor, truth: Tensor, span: float) -> float:
    if bool((estimate == truth).all()):
        return math.inf
    return float(peak_signal_noise_ratio(truth.numpy(), estimate.numpy(), data_range=span))


def similarity_map(subject: Subject, estimate: Tensor, truth: Tensor, span: float) -> Tensor:
    """Structural similarity ``[V]`` of the slices: Gaussian window of 11 x 11 pixels, 0 outside of the tissue."""
    inside = subject.tissue.cpu()
    pair = [np.zeros(inside.shape), np.zeros(inside.shape)]
    for volume, values in zip(pair, (estimate, truth), strict=True):
        volume[inside.numpy()] = values.numpy()
    _, similarity = structural_similarity(
        *pair, data_range=span, gaussian_weights=True, sigma=SIGMA, use_sample_covariance=False, full=True,
        channel_axis=2,
    )  # fmt: skip
    return torch.from_numpy(similarity[inside.numpy()])


def region_scores(subject: Subject, tmax: Tensor, threshold: float) -> Row:
    """How well Tmax tells the hypoperfused tissue: AUC, and Dice, IoU and HD95 [mm] of a threshold.

    Args:
        subject: with a stroke.
        tmax: ``[V]`` [s].
        threshold: what exceeds it is taken for hypoperfused [s].
    """
    found = tmax > threshold
    return {
        "auc": roc_auc(tmax, subject.lesion),
        "dice": dice(found, subject.lesion),
        "iou": iou(found, subject.lesion),
        "hd95": hausdorff95(subject.volume(found), subject.volume(subject.lesion), subject.voxel_size),
    }


def summaries(rows: Sequence[Row], by: Sequence[str], columns: Iterable[str], seed: int = 0) -> list[Row]:
    """Mean over subjects of each column, its SD (``_sd``) and 95 % bootstrap interval (``_low``, ``_high``).

    Values that do not exist (NaN) are left out; ``_missing`` counts them where there are any.

    Args:
        rows: of single subjects.
        by: columns that make a group.
        columns: what is averaged.
        seed: of the bootstrap.
    """
    groups: dict[tuple, list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in by), []).append(row)
    found = []
    for place, members in groups.items():
        summary: Row = {**dict(zip(by, place, strict=True)), "subjects": len(members)}
        for column in columns:
            values = np.array([member[column] for member in members], float)
            there = values[np.isfinite(values)]
            if len(there):
                mean = ratio_of_sums(there, np.ones_like(there), seed)
                summary |= {column: mean.value, f"{column}_sd": float(there.std(ddof=1)) if len(there) > 1 else None}
                summary |= {key: value for key, value in interval(column, mean).items() if key != column}
            if len(there) < len(values):
                summary[f"{column}_missing"] = len(values) - len(there)
        found.append(summary)
    return found


def ratio_of_sums(above: Sequence[float], below: Sequence[float], seed: int = 0) -> Estimate:
    """Sum over subjects of one quantity over the sum of another, with its 95 % bootstrap interval over subjects."""
    top, bottom = np.array(above, float), np.array(below, float)
    n = len(top)
    value = float(top.sum() / bottom.sum()) if bottom.sum() > 0 else math.nan
    if n < 2:
        return Estimate(value, -math.inf, math.inf, n)
    rows = np.random.default_rng(seed).integers(0, n, (RESAMPLES, n))
    tops, bottoms = top[rows].sum(1), bottom[rows].sum(1)
    low, high = np.quantile(tops[bottoms > 0] / bottoms[bottoms > 0], (0.025, 0.975))
    return Estimate(value, float(low), float(high), n)


def pooled_dice(found: Tensor, true: Tensor) -> float:
    """Dice of the voxels of all subjects together; NaN where there are none."""
    size = int(found.sum()) + int(true.sum())
    return 2.0 * int((found & true).sum()) / size if size else math.nan


def measured(run: Callable[[], Any], repeats: int = 1) -> tuple[float, float]:
    """Least wall-clock and least processor time [s] of some calls."""
    walls, processors = [], []
    for _ in range(repeats):
        wall, processor = time.perf_counter(), time.process_time()
        run()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        walls.append(time.perf_counter() - wall)
        processors.append(time.process_time() - processor)
    return min(walls), min(processors)
