"""Errors of parameter maps: over repeated experiments, over subjects, of whole images, and as metrics of the engines.

All relative quantities are in per cent. Everything is computed in double precision, unless said.
"""

from shared_transforms.metrics.engine import (
    HFEN,
    MAE,
    NRMSE,
    RMSE,
    XSIM,
    RelativeBias,
    RelativeRMSE,
    StandardizedRMSE,
    ThresholdDice,
)
from shared_transforms.metrics.image import detrended_nrmse, hfen, nrmse, psnr, slope, ssim, xsim
from shared_transforms.metrics.statistics import (
    Estimate,
    bootstrap,
    coefficient_of_variation,
    relative_bias,
    rmse,
    robust_sd,
)

__all__ = [
    "HFEN",
    "MAE",
    "NRMSE",
    "RMSE",
    "XSIM",
    "Estimate",
    "RelativeBias",
    "RelativeRMSE",
    "StandardizedRMSE",
    "ThresholdDice",
    "bootstrap",
    "coefficient_of_variation",
    "detrended_nrmse",
    "hfen",
    "nrmse",
    "psnr",
    "relative_bias",
    "rmse",
    "robust_sd",
    "slope",
    "ssim",
    "xsim",
]
