"""Radiomic features of lesions: against pyradiomics, PyWavelets, closed forms and invariants."""

from __future__ import annotations

import logging
import sys
from importlib import import_module

import numpy as np
import pytest
import pywt
import torch
from qsmrim_net.radiomics import extract
from qsmrim_net.radiomics.extract import extract_features
from qsmrim_net.radiomics.names import (
    BANDS,
    FEATURES,
    FIRST_ORDER,
    FIRST_ORDER_NAMES,
    GLCM_NAMES,
    GLRLM_NAMES,
    SHAPE_NAMES,
)
from qsmrim_net.radiomics.pyradiomics import one_thread, pyradiomics_module, quiet
from qsmrim_net.radiomics.reference import reference_features, whole_volume_features
from qsmrim_net.radiomics.wavelet import HIGH_PASS, LOW_PASS, voxel_bands
from scipy import ndimage
from torch import Tensor

from shared_transforms.errors import QMRIError

VOXEL_SIZE = (0.75, 0.75, 3.0)


def texture(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Susceptibility like that of white matter with noise [ppb]."""
    field = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), (1.2, 1.2, 0.5))
    return 12 * field / field.std() - 20


def subject(seed: int = 0, shape: tuple[int, int, int] = (44, 45, 17)) -> tuple[Tensor, Tensor]:
    """Irregular lesions of 3 to 700 voxels with rims of different strength."""
    generator = np.random.default_rng(seed)
    qsm, labels = texture(shape, seed), np.zeros(shape, np.int32)
    rough = texture(shape, seed + 1000) / 12
    radii = (9.0, 6.0, 4.5, 3.5, 3.0, 2.5, 2.0, 1.6)
    centres = [(x, y, z) for x in (11, 32) for y in (11, 32) for z in (4, 12)]
    for label, (radius, centre) in enumerate(zip(radii, centres, strict=True), 1):
        offset = [index - middle for index, middle in zip(np.indices(shape), centre, strict=True)]
        distance = np.sqrt(offset[0] ** 2 + offset[1] ** 2 + (4 * offset[2]) ** 2)
        inside = distance + 0.2 * radius * (rough - rough.mean()) < radius
        parts, _ = ndimage.label(inside, np.ones((3, 3, 3)))
        inside = parts == np.bincount(parts[parts > 0]).argmax()
        labels[inside] = label
        qsm += generator.uniform(0, 40) * inside + generator.uniform(0, 50) * (inside & (distance > radius - 2))
    return torch.from_numpy(qsm).float(), torch.from_numpy(labels)


def assert_equal_features(found: Tensor, expected: Tensor) -> None:
    # Some features are zero but for rounding, such as the skewness of a symmetric matrix.
    difference = (found - expected).abs() / (expected.abs() + 1e-6)
    difference = difference.nan_to_num(nan=torch.inf).reshape(-1, len(FEATURES)).amax(0)
    assert difference.max() < 1e-8, (FEATURES[int(difference.argmax())], float(difference.max()))


def of(values: Tensor, name: str) -> float:
    """A feature of the first lesion."""
    return float(values[0, FEATURES.index(name)])


# Names


def test_there_are_527_names():
    assert len(FEATURES) == len(set(FEATURES)) == 527
    assert [FEATURES[i] for i in FIRST_ORDER] == [f"original_firstorder_{name}" for name in FIRST_ORDER_NAMES]
    assert len(FIRST_ORDER) == 18


def test_names_are_all_that_pyradiomics_has_but_sum_average():
    known = {"shape": SHAPE_NAMES, "firstorder": FIRST_ORDER_NAMES, "glcm": GLCM_NAMES, "glrlm": GLRLM_NAMES}
    classes = import_module("radiomics").getFeatureClasses()
    for kind, names in known.items():
        theirs = [name for name, deprecated in classes[kind].getFeatureNames().items() if not deprecated]
        assert [name for name in theirs if name != "SumAverage"] == list(names)


def test_order_is_that_of_pyradiomics():
    with quiet():
        extractor = pyradiomics_module("featureextractor").RadiomicsFeatureExtractor(additionalInfo=False)
        extractor.disableAllFeatures()
        for kind in ("shape", "firstorder", "glcm", "glrlm"):
            extractor.enableFeatureClassByName(kind)
        extractor.enableImageTypeByName("Wavelet")
        sitk = import_module("SimpleITK")
        image = sitk.GetImageFromArray(texture((6, 6, 6)))
        mask = sitk.GetImageFromArray(np.pad(np.ones((4, 4, 4), np.uint8), 1))
        found = extractor.execute(image, mask)
    assert tuple(name for name in found if not name.endswith("SumAverage")) == FEATURES


# Wavelet


def test_filters_are_those_of_the_coiflet():
    wavelet = pywt.Wavelet("coif1")
    assert wavelet.dec_lo == list(LOW_PASS)
    assert wavelet.dec_hi == list(HIGH_PASS)
    assert sum(LOW_PASS) == pytest.approx(2**0.5)
    assert sum(HIGH_PASS) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("shape", [(8, 10, 6), (7, 9, 5), (4, 2, 1)])
def test_bands_are_those_of_pywavelets_everywhere(shape):
    volume = texture(shape)
    padded = np.pad(volume, [(0, side % 2) for side in shape], "wrap")
    expected = pywt.swtn(padded, "coif1", level=1, start_level=0)[0]
    inside = tuple(slice(side) for side in shape)
    found = voxel_bands(torch.from_numpy(volume), torch.ones(shape).nonzero())
    for band, values in zip(BANDS, found, strict=True):
        theirs = expected[band.replace("L", "a").replace("H", "d")][inside]
        np.testing.assert_allclose(values.reshape(shape), theirs, rtol=1e-12, atol=1e-12)


# Against pyradiomics


@pytest.fixture(scope="module")
def lesions() -> tuple[Tensor, Tensor]:
    return subject()


def test_features_are_those_of_pyradiomics(lesions):
    qsm, labels = lesions
    counts = torch.bincount(labels.flatten())[1:]
    assert counts.min() < 10 and counts.max() > 400
    found = extract_features(qsm, labels, VOXEL_SIZE)
    expected = reference_features(qsm, labels, VOXEL_SIZE)
    assert found.status == expected.status == ["ok"] * 8
    assert found.values.shape == (8, 527) and found.values.dtype == torch.float64
    assert_equal_features(found.values, expected.values)


@pytest.mark.parametrize("scale", [0.2, 3.0])
def test_few_and_many_grey_levels(scale):
    qsm, labels = subject(1)
    labels = torch.where(labels > 2, labels - 2, 0)
    assert_equal_features(
        extract_features(qsm * scale, labels, VOXEL_SIZE).values,
        reference_features(qsm * scale, labels, VOXEL_SIZE).values,
    )


def test_values_on_the_edges_of_bins(lesions):
    # Multiples of 12.5 ppb: half of the voxels lie exactly on an edge, below zero too.
    qsm, labels = lesions
    qsm = (qsm / 12.5).round() * 12.5
    assert_equal_features(
        extract_features(qsm, labels, VOXEL_SIZE).values, reference_features(qsm, labels, VOXEL_SIZE).values
    )


def test_a_crop_gives_the_features_of_the_whole_volume(lesions):
    qsm, labels = lesions
    cropped = reference_features(qsm, torch.where(labels == 3, 1, 0), VOXEL_SIZE).values
    assert_equal_features(cropped[0], whole_volume_features(qsm, labels == 3, VOXEL_SIZE))


@pytest.mark.parametrize("corner", [(0, 0, 0), (-5, -4, -3), (0, -4, 0)])
def test_lesions_at_the_border_are_continued_as_in_pyradiomics(corner):
    qsm = torch.from_numpy(texture((16, 13, 9)))
    labels = torch.zeros(qsm.shape, dtype=torch.int32)
    block = tuple(slice(start, start + side or None) for start, side in zip(corner, (5, 4, 3), strict=True))
    labels[block] = 1
    expected = whole_volume_features(qsm, labels == 1, VOXEL_SIZE)[None]
    assert_equal_features(extract_features(qsm, labels, VOXEL_SIZE).values, expected)
    assert_equal_features(reference_features(qsm, labels, VOXEL_SIZE).values, expected)


def test_a_lesion_in_one_slice(lesions):
    qsm, labels = lesions
    labels = torch.where((labels == 2) & (torch.arange(17) == 12), 1, 0)
    found = extract_features(qsm, labels, VOXEL_SIZE)
    assert found.status == ["ok"]
    assert_equal_features(found.values, reference_features(qsm, labels, VOXEL_SIZE).values)


# Invariants


def test_a_lesion_does_not_depend_on_the_others(lesions):
    qsm, labels = lesions
    together = extract_features(qsm, labels, VOXEL_SIZE).values
    for label in (2, 7):
        alone = extract_features(qsm, torch.where(labels == label, 1, 0), VOXEL_SIZE).values
        torch.testing.assert_close(alone[0], together[label - 1], rtol=1e-10, atol=1e-10)


def test_batches_do_not_change_anything(lesions, monkeypatch):
    at_once = extract_features(*lesions, VOXEL_SIZE).values
    for size in (1, 150):
        monkeypatch.setattr(extract, "_BATCH", size)
        torch.testing.assert_close(extract_features(*lesions, VOXEL_SIZE).values, at_once, rtol=1e-10, atol=1e-10)


def test_swapped_axes_swap_the_bands(lesions):
    qsm, labels = lesions
    values = extract_features(qsm, labels, VOXEL_SIZE).values
    swapped = extract_features(qsm.permute(2, 0, 1), labels.permute(2, 0, 1), (3.0, 0.75, 0.75)).values
    for band in BANDS:
        name = band[2] + band[0] + band[1]
        for i, feature in enumerate(FEATURES):
            if feature.startswith(f"wavelet-{band}_"):
                other = FEATURES.index(feature.replace(band, name, 1))
                torch.testing.assert_close(values[:, i], swapped[:, other], rtol=1e-7, atol=1e-7)


def test_bin_edges_do_not_move_with_the_lesion(lesions):
    # 50 ppb more are two levels more, of which the texture of the image itself knows nothing.
    qsm, labels = lesions[0].double(), lesions[1]
    low, high = (extract_features(volume, labels, VOXEL_SIZE).values for volume in (qsm, qsm + 50))
    same = [i for i, name in enumerate(FEATURES) if name.startswith(("original_glcm", "original_glrlm"))]
    torch.testing.assert_close(low[:, same], high[:, same], rtol=1e-9, atol=1e-9)
    mean = FEATURES.index("original_firstorder_Mean")
    torch.testing.assert_close(high[:, mean] - low[:, mean], torch.full((8,), 50.0, dtype=torch.float64))


def test_tensors_with_metadata_are_taken(lesions):
    from monai.data import MetaTensor

    qsm, labels = lesions
    found = extract_features(MetaTensor(qsm), MetaTensor(labels), VOXEL_SIZE).values
    assert type(found) is Tensor
    torch.testing.assert_close(found, extract_features(qsm, labels, VOXEL_SIZE).values)


# Closed forms


def block(values: Tensor) -> Tensor:
    """Features of a lesion with these values in the middle of a larger volume."""
    volume, labels = torch.zeros(12, 12, 12), torch.zeros(12, 12, 12, dtype=torch.int32)
    inside = tuple(slice(4, 4 + side) for side in values.shape)
    volume[inside], labels[inside] = values, 1
    return extract_features(volume, labels, (1.0, 1.0, 2.0)).values


def test_a_flat_lesion():
    values = block(torch.full((3, 3, 3), 60.0))
    expected = {
        "firstorder_Mean": 60,
        "firstorder_Energy": 27 * 3600,
        "firstorder_TotalEnergy": 2 * 27 * 3600,
        "firstorder_Entropy": 0,
        "firstorder_Uniformity": 1,
        "firstorder_Skewness": 0,
        "firstorder_Kurtosis": 0,
        "glcm_JointAverage": 1,
        "glcm_Contrast": 0,
        "glcm_Correlation": 1,
        "glcm_MCC": 1,
        "glcm_Imc1": 0,
        "glcm_Imc2": 0,
        "glcm_JointEntropy": 0,
        "glcm_InverseVariance": 0,
        # Runs: 9 along an axis, 3 x 5 along the diagonal of a face, 19 along one of the cube.
        "glrlm_RunPercentage": (3 * 9 + 6 * 15 + 4 * 19) / 13 / 27,
        "glrlm_GrayLevelNonUniformity": (3 * 9 + 6 * 15 + 4 * 19) / 13,
        "shape_VoxelVolume": 54,
    }
    for name, value in expected.items():
        assert of(values, f"original_{name}") == pytest.approx(value, abs=1e-12), name


def test_layers():
    # Levels 1, 2, 3, 4 along X, the same within a layer: 9 of the 13 directions climb one level with each step.
    values = block(torch.tensor([0.0, 25.0, 50.0, 75.0])[:, None, None].expand(4, 3, 3))
    expected = {
        "firstorder_Entropy": 2,
        "firstorder_Uniformity": 1 / 4,
        "firstorder_Median": 37.5,
        "firstorder_10Percentile": 0,
        "firstorder_InterquartileRange": 37.5,
        "firstorder_Variance": 25**2 * 1.25,
        "firstorder_Kurtosis": (2 * 1.5**4 + 2 * 0.5**4) / 4 / 1.25**2,
        "glcm_Contrast": 9 / 13,
        "glcm_DifferenceVariance": 0,
        "glcm_JointAverage": 2.5,
        "glcm_Idn": (4 + 9 / (1 + 1 / 4)) / 13,
        # Within a layer: two bits, the level is known from its neighbour's. Across: 3 pairs in 2 orders.
        "glcm_JointEntropy": (4 * 2 + 9 * np.log2(6)) / 13,
        "glcm_MCC": 1,
        # Runs of one voxel across layers; within one of three along the axes, of 1, 2, 3, 2, 1 along the diagonals.
        "glrlm_LongRunEmphasis": (9 + 2 * 9 + 2 * 19 / 5) / 13,
    }
    for name, value in expected.items():
        assert of(values, f"original_{name}") == pytest.approx(value, abs=1e-12), name


def test_constant_and_ramp_in_the_bands():
    # Coiflets of order 1 have two vanishing moments: a ramp has no detail. The low-pass filter has a gain of sqrt 2.
    x, y, z = torch.meshgrid(*[torch.arange(14.0, dtype=torch.float64)] * 3, indexing="ij")
    bands = voxel_bands(3 * x - 2 * y + z + 5, torch.tensor([[6, 7, 5], [8, 6, 6]]))
    torch.testing.assert_close(bands[:7], torch.zeros(7, 2, dtype=torch.float64), rtol=0, atol=1e-9)
    torch.testing.assert_close(bands[7, 1] - bands[7, 0], torch.tensor(9 * 2**1.5, dtype=torch.float64))


# Lesions without features, and input that is refused


def test_every_lesion_has_a_row_and_a_status():
    qsm, labels = torch.from_numpy(texture((20, 20, 10))), torch.zeros(20, 20, 10, dtype=torch.int32)
    labels[2, 2, 2] = 1
    labels[5, 5, 5:7] = 2
    labels[8, 2:8, 3] = 3
    # 4 is missing
    labels[12:15, 3:6, 3:5] = 5
    labels[12:18:2, 12:18:2, 2] = 6
    labels[4:7, 12:15, 6:8] = 7
    labels[17, 2, 2] = labels[17, 3, 3] = labels[17, 4, 2] = 8
    qsm[5, 13, 6] = 1e9
    found = extract_features(qsm, labels, VOXEL_SIZE)
    expected = ["too_small", "too_small", "line", "empty", "ok", "scattered", "implausible", "ok"]
    assert found.status == expected
    assert found.values.shape == (8, 527)
    for row, status in zip(found.values, expected, strict=True):
        assert bool(torch.isfinite(row).all()) if status == "ok" else bool(row.isnan().all())
    # pyradiomics itself would fill the memory with the seventh.
    without = reference_features(qsm, torch.where(labels == 7, 0, labels), VOXEL_SIZE)
    assert without.status == [*expected[:6], "empty", "ok"]
    assert_equal_features(found.values[[4, 7]], without.values[[4, 7]])


def test_scattered_voxels_alone():
    labels = torch.zeros(12, 12, 12, dtype=torch.int32)
    labels[2:9:3, 2:9:3, 4] = 1
    found = extract_features(torch.from_numpy(texture((12, 12, 12))), labels, VOXEL_SIZE)
    assert found.status == ["scattered"] and bool(found.values.isnan().all())


def test_no_lesions():
    found = extract_features(torch.zeros(4, 4, 4), torch.zeros(4, 4, 4, dtype=torch.int32), VOXEL_SIZE)
    assert found.values.shape == (0, 527) and found.status == []


def test_a_volume_filled_by_its_lesion():
    found = extract_features(torch.from_numpy(texture((5, 4, 3))), torch.ones(5, 4, 3, dtype=torch.uint8), VOXEL_SIZE)
    assert found.status == ["ok"] and bool(torch.isfinite(found.values).all())


@pytest.mark.parametrize("function", [extract_features, reference_features])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused(function, bad):
    qsm, labels = torch.zeros(6, 6, 6), torch.ones(6, 6, 6, dtype=torch.int32)
    qsm[1, 2, 3] = bad
    with pytest.raises(ValueError, match="qsm must be finite everywhere, got 1 voxels"):
        function(qsm, labels, VOXEL_SIZE)


@pytest.mark.parametrize(
    ("labels", "voxel_size", "message"),
    [
        (torch.ones(4, 4, 5, dtype=torch.int32), VOXEL_SIZE, r"\[X, Y, Z\] of one shape"),
        (torch.ones(4, 4, 4), VOXEL_SIZE, "labels must be integers"),
        (-torch.ones(4, 4, 4, dtype=torch.int32), VOXEL_SIZE, "labels must be 0"),
        (torch.full((4, 4, 4), 10**9), VOXEL_SIZE, "numbered from 1"),
        (torch.ones(4, 4, 4, dtype=torch.int32), (1.0, 0.0, 1.0), "three positive numbers"),
        (torch.ones(4, 4, 4, dtype=torch.int32), (1.0, 1.0), "three positive numbers"),
    ],
)
def test_bad_input_is_refused(labels, voxel_size, message):
    with pytest.raises(ValueError, match=message):
        extract_features(torch.zeros(4, 4, 4), labels, voxel_size)


def test_a_missing_pyradiomics_is_named(monkeypatch, lesions):
    monkeypatch.setitem(sys.modules, "radiomics.shape", None)
    with pytest.raises(QMRIError, match=r"pyradiomics==3\.0\.1"):
        extract_features(*lesions, VOXEL_SIZE)


def test_pyradiomics_is_quiet_and_left_as_it_was(lesions, capfd, caplog):
    threads = import_module("SimpleITK").ProcessObject
    logger = logging.getLogger("radiomics")
    before = logger.level, threads.GetGlobalDefaultNumberOfThreads()
    qsm, labels = lesions
    with caplog.at_level(logging.DEBUG):
        reference_features(qsm, labels == 5, VOXEL_SIZE)
        extract_features(qsm, labels, VOXEL_SIZE)
    assert not caplog.records
    assert capfd.readouterr() == ("", "")
    with pytest.raises(RuntimeError), quiet(), one_thread():
        raise RuntimeError
    assert (logger.level, threads.GetGlobalDefaultNumberOfThreads()) == before
