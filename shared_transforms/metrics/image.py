"""How near a map is to the truth as an image: the figures of merit of susceptibility mapping.

Each takes an estimate and the truth [..., X, Y, Z] in the same unit and a mask that is broadcastable to them (None
counts all voxels), and gives one number for each volume, [...], in double precision. What lies outside of the mask is
never looked at, be it NaN. NaN inside gives NaN.
"""

from __future__ import annotations

import torch
from scipy.ndimage import gaussian_laplace
from torch import Tensor
from torch.nn import functional

__all__ = ["detrended_nrmse", "hfen", "nrmse", "psnr", "slope", "ssim", "xsim"]

VOLUME = (-3, -2, -1)
SIGMA = 1.5  # [voxels], of the Laplacian of Gaussian and of the windows of SSIM and XSIM


def nrmse(estimate: Tensor, truth: Tensor, mask: Tensor | None = None) -> Tensor:
    """Norm of the difference over the norm of the truth, both without their mean over the mask.

    Args:
        estimate: [..., X, Y, Z].
        truth: [..., X, Y, Z], same unit.
        mask: [..., X, Y, Z], nonzero where counted.

    Returns:
        [...], per cent. The answer 0 everywhere has 100.

    Raises:
        ValueError: when shapes do not fit or a mask is empty.

    Source: QSM Challenge 2.0 Organization Committee, Magn. Reson. Med. 86 (2021) 1241.
    """
    estimate, truth, _ = _centred(estimate, truth, mask)
    return 100 * _norm(estimate - truth) / _norm(truth)


def slope(estimate: Tensor, truth: Tensor, mask: Tensor | None = None) -> Tensor:
    """Slope of the linear regression of the estimate on the truth over the mask: 1 without bias.

    Args:
        estimate: [..., X, Y, Z].
        truth: [..., X, Y, Z], same unit.
        mask: [..., X, Y, Z], nonzero where counted.

    Returns:
        [...], dimensionless.

    Raises:
        ValueError: when shapes do not fit or a mask is empty.
    """
    estimate, truth, _ = _centred(estimate, truth, mask)
    return (estimate * truth).sum(VOLUME) / truth.square().sum(VOLUME)


def detrended_nrmse(estimate: Tensor, truth: Tensor, mask: Tensor | None = None) -> Tensor:
    """Error that is left when the estimate is brought to the offset and the slope of the truth.

    Args:
        estimate: [..., X, Y, Z].
        truth: [..., X, Y, Z], same unit.
        mask: [..., X, Y, Z], nonzero where counted.

    Returns:
        [...], per cent of the norm of the truth. Infinite where the slope is not positive: a map with the wrong sign is
        not one that a scale explains.

    Raises:
        ValueError: when shapes do not fit or a mask is empty.

    Source: QSM Challenge 2.0 Organization Committee, Magn. Reson. Med. 86 (2021) 1241.
    """
    estimate, truth, _ = _centred(estimate, truth, mask)
    trend = ((estimate * truth).sum(VOLUME) / truth.square().sum(VOLUME))[..., None, None, None]
    error = 100 * _norm(estimate / trend - truth) / _norm(truth)
    return torch.where(trend[..., 0, 0, 0] <= 0, torch.inf, error)


def hfen(estimate: Tensor, truth: Tensor, mask: Tensor | None = None) -> Tensor:
    """High-frequency error norm: of the difference after a Laplacian of Gaussian, over that of the truth.

    The maps are set to 0 outside of the mask before they are filtered, so an offset between them shows at its surface:
    give maps with one reference.

    Args:
        estimate: [..., X, Y, Z].
        truth: [..., X, Y, Z], same unit.
        mask: [..., X, Y, Z], nonzero where counted.

    Returns:
        [...], per cent.

    Raises:
        ValueError: when shapes do not fit or a mask is empty.

    Source: Langkammer et al., Magn. Reson. Med. 79 (2018) 1661 (sigma 1.5 voxels).
    """
    estimate, truth, _ = _masked(estimate, truth, mask)
    return 100 * _norm(_sharp(estimate - truth)) / _norm(_sharp(truth))


def xsim(estimate: Tensor, truth: Tensor, mask: Tensor | None = None) -> Tensor:
    """Structural similarity with the constants made for susceptibility maps in ppm.

    A Gaussian window of 5 x 5 x 5 voxels (sigma 1.5), constants 1e-4 and 1e-6 ppm^2, 0 outside of the mask.

    Args:
        estimate: [..., X, Y, Z] [ppm].
        truth: [..., X, Y, Z] [ppm].
        mask: [..., X, Y, Z], nonzero where counted.

    Returns:
        [...], 1 where they are equal; mean over the mask, from single precision.

    Raises:
        ValueError: when shapes do not fit or a mask is empty.

    Source: Milovic et al., Proc. ISMRM 30 (2022) 2425; Magn. Reson. Med. 93 (2025) 411.
    """
    volumes = _masked(estimate, truth, mask)
    return _similarity(*volumes, torch.ones_like(volumes[0][..., 0, 0, 0]), window=5, k1=0.01, k2=0.001)


def ssim(estimate: Tensor, truth: Tensor, mask: Tensor | None = None) -> Tensor:
    """Structural similarity with the window and the constants of its authors.

    A Gaussian window of 11 x 11 x 11 voxels (sigma 1.5), constants .01 and .03 of the data range, 0 outside of the
    mask. The data range is that of the truth in the mask, largest minus smallest value.

    Args:
        estimate: [..., X, Y, Z].
        truth: [..., X, Y, Z], same unit.
        mask: [..., X, Y, Z], nonzero where counted.

    Returns:
        [...], 1 where they are equal; mean over the mask, from single precision.

    Raises:
        ValueError: when shapes do not fit or a mask is empty.

    Source: Wang et al., IEEE Trans. Image Process. 13 (2004) 600, eq. 13.
    """
    volumes = _masked(estimate, truth, mask)
    return _similarity(*volumes, _data_range(*volumes[1:]), window=11, k1=0.01, k2=0.03)


def psnr(estimate: Tensor, truth: Tensor, mask: Tensor | None = None) -> Tensor:
    """Peak signal-to-noise ratio: data range of the truth in the mask (largest minus smallest value) over the RMSE.

    Args:
        estimate: [..., X, Y, Z].
        truth: [..., X, Y, Z], same unit.
        mask: [..., X, Y, Z], nonzero where counted.

    Returns:
        [...], dB.

    Raises:
        ValueError: when shapes do not fit or a mask is empty.
    """
    estimate, truth, inside = _masked(estimate, truth, mask)
    mean_square = (estimate - truth).square().sum(VOLUME) / inside.sum(VOLUME)
    return 20 * _data_range(truth, inside).log10() - 10 * mean_square.log10()


def _masked(estimate: Tensor, truth: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    if estimate.shape != truth.shape or truth.ndim < 3:
        raise ValueError(f"estimate and truth must be [..., X, Y, Z], got {(*estimate.shape,)} and {(*truth.shape,)}")
    estimate, truth = (x.as_tensor() if hasattr(x, "as_tensor") else x for x in (estimate, truth))
    inside = torch.ones_like(truth, dtype=torch.bool) if mask is None else (mask != 0).expand_as(truth)
    if not inside.flatten(-3).any(-1).all():
        raise ValueError("the mask leaves no voxel")
    return torch.where(inside, estimate.double(), 0.0), torch.where(inside, truth.double(), 0.0), inside


def _centred(estimate: Tensor, truth: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    estimate, truth, inside = _masked(estimate, truth, mask)
    count = inside.sum(VOLUME, keepdim=True)
    estimate, truth = (torch.where(inside, x - x.sum(VOLUME, keepdim=True) / count, 0.0) for x in (estimate, truth))
    return estimate, truth, inside


def _norm(volumes: Tensor) -> Tensor:
    return torch.linalg.vector_norm(volumes, dim=VOLUME)


def _listed(volumes: Tensor) -> Tensor:
    return volumes.reshape(-1, *volumes.shape[-3:])


def _sharp(volumes: Tensor) -> Tensor:
    filtered = [torch.from_numpy(gaussian_laplace(x, SIGMA)) for x in _listed(volumes).cpu().numpy()]
    return torch.stack(filtered).to(volumes.device).view_as(volumes)


def _data_range(truth: Tensor, inside: Tensor) -> Tensor:
    low, high = (torch.where(inside, truth, sign * torch.inf) for sign in (1, -1))
    return high.amax(VOLUME) - low.amin(VOLUME)


def _similarity(
    estimate: Tensor, truth: Tensor, inside: Tensor, data_range: Tensor, *, window: int, k1: float, k2: float
) -> Tensor:
    from monai.metrics.regression import compute_ssim_and_cs  # here: MONAI takes seconds to import

    values = []
    for x, y, where, size in zip(*map(_listed, (estimate, truth, inside)), data_range.flatten(), strict=True):
        # All is 0 outside of the mask: its box, padded with 0, is as good as the volume, and much faster.
        box = tuple(slice(int(i.min()), int(i.max()) + 1) for i in where.nonzero(as_tuple=True))
        pair = [functional.pad(v[box][None, None], (window // 2,) * 6) for v in (x, y)]
        kernel = ((window,) * 3, (SIGMA,) * 3, float(size))
        values.append(compute_ssim_and_cs(*pair, 3, *kernel, k1=k1, k2=k2)[0][0, 0][where[box]].double().mean())
    return torch.stack(values).view_as(data_range)
