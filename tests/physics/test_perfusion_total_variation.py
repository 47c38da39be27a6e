"""Deconvolution with tensor total variation: its functional, neighbours, voxel sizes, gain in noise."""

from __future__ import annotations

import math

import numpy as np
import scipy.optimize
import torch
from torch import Tensor

from physics.perfusion.deconvolution import deconvolve
from physics.perfusion.maps import time_to_maximum

from .perfusion_curves import DT, arterial, circulant, noisy, tissue


def objective(
    residue: np.ndarray, curves: np.ndarray, matrix: np.ndarray, weight: float, temporal: float, eps: float
) -> float:
    """Functional for voxels in one row ``[voxel, 2 time]``, total variation rounded by eps."""
    space = np.diff(residue, axis=0, append=residue[-1:])
    time = temporal * (np.roll(residue, -1, axis=1) - residue)
    return 0.5 * np.sum((residue @ matrix.T - curves) ** 2) + weight * np.sum(np.sqrt(space**2 + time**2 + eps**2))


def test_ttv_minimises_its_functional() -> None:
    curves, aif = noisy(3, frames=8 * 5, level=0.05)
    curves, aif = curves[:, ::5].contiguous(), aif[::5].contiguous()  # 8 frames
    found = deconvolve(curves, aif, 1.0, "ttv", regularisation=0.3, temporal=0.5, iterations=5000)
    matrix = circulant(aif.numpy(), 1.0)[:8]
    size = np.linalg.norm(matrix, 2)
    third = np.median(np.median(np.sort(np.abs(np.diff(curves.numpy(), 3, axis=1)))[:, [2]], axis=1))
    noise = third / 0.67449 / math.sqrt(20)
    args = (curves.numpy() / noise, matrix / size, 0.3, 0.5)
    ours = objective(found.numpy() * size / noise, *args, eps=0.0)
    best = scipy.optimize.minimize(
        lambda x: objective(x.reshape(3, 16), *args, eps=1e-3), np.zeros(48), method="L-BFGS-B",
        options={"maxiter": 3000, "maxfun": 400000, "ftol": 1e-14},
    )  # fmt: skip
    exact = objective(best.x.reshape(3, 16), *args, eps=0.0)
    assert ours <= exact * 1.002


def phantom(noise: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Two kinds of tissue, halves of a box: curves with and without noise, arterial curve, mask."""
    aif = arterial(40).float()
    kinds = torch.stack([tissue(4, 0.5, frames=40), 0.6 * tissue(9, 5.0, frames=40)]).float()
    clean = kinds[(torch.arange(12) >= 6).long()][:, None, None].expand(12, 8, 5, 40).contiguous()
    generator = torch.Generator().manual_seed(8)
    mask = torch.ones(12, 8, 5, dtype=torch.bool)
    mask[:2, :2] = False
    return clean + noise * clean.max() * torch.randn(clean.shape, generator=generator), clean, aif, mask


def test_ttv_beats_osvd_in_noise() -> None:
    curves, clean, aif, mask = phantom(0.1)
    truth = time_to_maximum(deconvolve(clean, aif, DT, "csvd"), DT, circulant=True)
    error = {
        method: float(
            (time_to_maximum(deconvolve(curves, aif, DT, method, mask=mask), DT, circulant=True) - truth)[mask]
            .abs()
            .mean()
        )
        for method in ("csvd", "osvd", "ttv")
    }
    assert error["ttv"] < 0.5 * error["osvd"] < error["csvd"]


def test_ttv_reports_every_iteration() -> None:
    curves, _, aif, mask = phantom(0.05)
    seen: list[tuple[str, int, int]] = []
    deconvolve(
        curves, aif, DT, "ttv", mask=mask, iterations=4,
        report=lambda state: seen.append((state.method, state.number, state.limit)),
    )  # fmt: skip
    assert seen == [("ttv", number, 4) for number in (1, 2, 3, 4)]


def test_ttv_respects_voxel_size() -> None:
    """Slices far from each other do not talk; a common scale of the voxels does nothing."""
    curves, _, aif, _ = phantom(0.05)
    pair = curves[..., :2, :].clone()
    mirrored = pair.clone()
    mirrored[:, :, 1] = pair[:, :, 1].flip(1)

    def first(volume: Tensor, size: tuple[float, float, float] | None) -> Tensor:
        return deconvolve(volume, aif, DT, "ttv", voxel_size=size)[:, :, 0]

    far = (2.0, 2.0, 2e6)
    torch.testing.assert_close(first(pair, far), first(mirrored, far), atol=1e-5, rtol=1e-3)
    assert float((first(pair, None) - first(mirrored, None)).abs().max()) > 1e-3
    torch.testing.assert_close(first(pair, (2.0, 2.0, 2.0)), first(pair, None))
