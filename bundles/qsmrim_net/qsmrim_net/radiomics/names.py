"""Names and order of the 527 radiomic features, and the settings they are computed with.

The names are pyradiomics's own (van Griethuysen et al., Cancer Research 77 (2017) e104), for the image itself and its
eight bands of one level of the undecimated coiflet-1 transform: 14 + 9 x (18 + 23 + 16) = 527. Sum Average of the
co-occurrence matrix is left out: it is twice Joint Average.
"""

from __future__ import annotations

__all__ = [
    "BANDS",
    "BIN_WIDTH",
    "FEATURES",
    "FIRST_ORDER",
    "FIRST_ORDER_NAMES",
    "GLCM_NAMES",
    "GLRLM_NAMES",
    "IMAGES",
    "MINIMUM_VOXELS",
    "SHAPE_NAMES",
]

BIN_WIDTH = 25.0  # [ppb], of the grey levels
MINIMUM_VOXELS = 3  # fewer have no texture and no shape

# The first letter is the filter along X, the second along Y, the third along Z: L low-pass, H high-pass.
BANDS = ("LLH", "LHL", "LHH", "HLL", "HLH", "HHL", "HHH", "LLL")
IMAGES = ("original", *(f"wavelet-{band}" for band in BANDS))

SHAPE_NAMES = (
    "Elongation",
    "Flatness",
    "LeastAxisLength",
    "MajorAxisLength",
    "Maximum2DDiameterColumn",
    "Maximum2DDiameterRow",
    "Maximum2DDiameterSlice",
    "Maximum3DDiameter",
    "MeshVolume",
    "MinorAxisLength",
    "Sphericity",
    "SurfaceArea",
    "SurfaceVolumeRatio",
    "VoxelVolume",
)
FIRST_ORDER_NAMES = (
    "10Percentile",
    "90Percentile",
    "Energy",
    "Entropy",
    "InterquartileRange",
    "Kurtosis",
    "Maximum",
    "MeanAbsoluteDeviation",
    "Mean",
    "Median",
    "Minimum",
    "Range",
    "RobustMeanAbsoluteDeviation",
    "RootMeanSquared",
    "Skewness",
    "TotalEnergy",
    "Uniformity",
    "Variance",
)
GLCM_NAMES = (
    "Autocorrelation",
    "ClusterProminence",
    "ClusterShade",
    "ClusterTendency",
    "Contrast",
    "Correlation",
    "DifferenceAverage",
    "DifferenceEntropy",
    "DifferenceVariance",
    "Id",
    "Idm",
    "Idmn",
    "Idn",
    "Imc1",
    "Imc2",
    "InverseVariance",
    "JointAverage",
    "JointEnergy",
    "JointEntropy",
    "MCC",
    "MaximumProbability",
    "SumEntropy",
    "SumSquares",
)
GLRLM_NAMES = (
    "GrayLevelNonUniformity",
    "GrayLevelNonUniformityNormalized",
    "GrayLevelVariance",
    "HighGrayLevelRunEmphasis",
    "LongRunEmphasis",
    "LongRunHighGrayLevelEmphasis",
    "LongRunLowGrayLevelEmphasis",
    "LowGrayLevelRunEmphasis",
    "RunEntropy",
    "RunLengthNonUniformity",
    "RunLengthNonUniformityNormalized",
    "RunPercentage",
    "RunVariance",
    "ShortRunEmphasis",
    "ShortRunHighGrayLevelEmphasis",
    "ShortRunLowGrayLevelEmphasis",
)
_TEXTURES = (("firstorder", FIRST_ORDER_NAMES), ("glcm", GLCM_NAMES), ("glrlm", GLRLM_NAMES))

FEATURES: tuple[str, ...] = (
    *(f"original_shape_{name}" for name in SHAPE_NAMES),
    *(f"{image}_{kind}_{name}" for image in IMAGES for kind, names in _TEXTURES for name in names),
)
# Where the 18 first-order features of the image itself stand in a row.
FIRST_ORDER: tuple[int, ...] = tuple(i for i, name in enumerate(FEATURES) if name.startswith("original_firstorder_"))
