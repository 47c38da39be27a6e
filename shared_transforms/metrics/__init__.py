"""Errors of parameter maps: over experiments and subjects, of images, values and regions, and as engine metrics.

Relative errors are in per cent, save ``normalised_rmse`` and ``normalised_mae``. Everything is computed in double
precision, unless said.
"""

from shared_transforms.metrics.agreement import concordance, normalised_rmse, pearson, spearman
from shared_transforms.metrics.engine import (
    HFEN,
    MAE,
    NRMSE,
    RMSE,
    XSIM,
    AveragePrecision,
    NormalisedMAE,
    PartialROC,
    RelativeBias,
    RelativeRMSE,
    StandardizedRMSE,
    ThresholdDice,
)
from shared_transforms.metrics.image import detrended_nrmse, hfen, nrmse, psnr, slope, ssim, xsim
from shared_transforms.metrics.overlap import dice, equal_error_threshold, hausdorff95, iou, roc_auc
from shared_transforms.metrics.statistics import (
    Estimate,
    bootstrap,
    coefficient_of_variation,
    normalised_mae,
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
    "AveragePrecision",
    "Estimate",
    "NormalisedMAE",
    "PartialROC",
    "RelativeBias",
    "RelativeRMSE",
    "StandardizedRMSE",
    "ThresholdDice",
    "bootstrap",
    "coefficient_of_variation",
    "concordance",
    "detrended_nrmse",
    "dice",
    "equal_error_threshold",
    "hausdorff95",
    "hfen",
    "iou",
    "normalised_mae",
    "normalised_rmse",
    "nrmse",
    "pearson",
    "psnr",
    "relative_bias",
    "rmse",
    "robust_sd",
    "roc_auc",
    "slope",
    "spearman",
    "ssim",
    "xsim",
]
