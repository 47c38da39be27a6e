"""How good a map is, and what it costs."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shared_transforms.experiments import Row
from shared_transforms.metrics import detrended_nrmse, hfen, nrmse, psnr, slope, ssim, xsim

from ..start import demeaned

# Column to function of (estimate, truth, mask), and whether less is better.
SCORES: dict[str, tuple[Callable[..., Tensor], bool]] = {
    "nrmse": (nrmse, True),
    "detrended_nrmse": (detrended_nrmse, True),
    "slope": (slope, False),
    "hfen": (hfen, True),
    "xsim": (xsim, False),
    "ssim": (ssim, False),
    "psnr": (psnr, False),
}
STATUS, CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def scores(estimate: Tensor, truth: Tensor, mask: Tensor, columns: Iterable[str] = SCORES) -> Row:
    """Figures of merit of one map over a mask, both maps relative to their mean over it.

    Args:
        estimate: ``[X, Y, Z]`` [ppm].
        truth: ``[X, Y, Z]`` [ppm].
        mask: ``[X, Y, Z]``, bool.
        columns: some of :data:`SCORES`.
    """
    estimate, truth = demeaned(estimate, mask), demeaned(truth, mask)
    return {name: float(SCORES[name][0](estimate, truth, mask)) for name in columns}


def best_factor(estimate: Tensor, truth: Tensor, mask: Tensor) -> float:
    """The factor of the estimate that makes its error least."""
    estimate, truth = demeaned(estimate, mask).double(), demeaned(truth, mask).double()
    square = float(estimate.square().sum())
    return float((estimate * truth).sum()) / square if square > 0 else 1.0


def region_rows(estimate: Tensor, truth: Tensor, mask: Tensor, regions: Mapping[str, Tensor]) -> list[Row]:
    """Mean susceptibility [ppm] of each structure, estimated and true, both relative to the mean over the mask."""
    estimate, truth = demeaned(estimate, mask), demeaned(truth, mask)
    rows = []
    for name, region in regions.items():
        inside = region & mask
        if inside.any():
            mean, true = float(estimate[inside].mean()), float(truth[inside].mean())
            rows.append({"region": name, "voxels": int(inside.sum()), "chi": mean, "truth": true, "bias": mean - true})
    return rows


def line_through(rows: Sequence[Mapping[str, Any]]) -> Row:
    """Slope and mean bias [ppm] of the means of structures against the truth."""
    chi, truth = (torch.tensor([row[name] for row in rows], dtype=torch.float64) for name in ("chi", "truth"))
    centred = truth - truth.mean()
    return {
        "roi_slope": float((centred * (chi - chi.mean())).sum() / centred.square().sum()),
        "roi_bias": float((chi - truth).mean()),
        "roi_rmse": float((chi - truth).square().mean().sqrt()),
    }


def measured(run: Callable[[], Tensor]) -> tuple[Tensor, Row]:
    """Result of a function, and its processor time [s], wall-clock time [s] and additional peak memory [MiB].

    The peak is that of the whole process, as Linux counts it, less what it held before; empty elsewhere.
    """
    before = _restart_peak()
    wall, processor = time.perf_counter(), time.process_time()
    result = run()
    if result.is_cuda:
        torch.cuda.synchronize()
    row = {"cpu_seconds": time.process_time() - processor, "wall_seconds": time.perf_counter() - wall}
    peak = None if before is None else _kilobytes("VmHWM")
    return result, {**row, "memory_mib": None if peak is None or before is None else (peak - before) / 1024}


def _restart_peak() -> int | None:
    """Memory of the process [KiB], from which the peak is counted anew; None where that cannot be asked."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:  # else what was freed before would count as held
        trim(0)
    try:
        CLEAR_REFS.write_text("5")
    except OSError:
        return None
    return _kilobytes("VmRSS")


def _kilobytes(name: str) -> int | None:
    try:
        lines = STATUS.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith(f"{name}:")), None)
