"""Figures: orientation, aspect, units, scales; and that they are drawn at all."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import matplotlib.image
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from shared_transforms.figures import (
    box_plot_over_snr,
    central_slices,
    comparison_panel,
    figure_to_png_bytes,
    histogram,
    map_panel,
)
from shared_transforms.figures.panels import short


@dataclass
class Map:
    """Stands for shared_transforms.io.ParameterMap."""

    data: Any
    unit: str = "s"
    display_range: tuple[float, float] = (0.0, 2.0)
    kind: str = "map"


def patient(signs: tuple[int, int, int], order: tuple[int, int, int], size=(1.0, 2.0, 3.0)) -> tuple[np.ndarray, Any]:
    """A head of 24 x 22 x 20 mm-ish voxels with a bright spot left, in front and above, stored in any order of axes."""
    volume = np.zeros((24, 22, 20))
    volume[4, 18, 15] = 1.0  # RAS: small x is the patient's left
    affine = np.diag([*size, 1.0])
    affine[:3, 3] = -10, -20, -30
    for axis, sign in enumerate(signs):
        if sign < 0:
            volume = np.flip(volume, axis)
            affine[:3, 3] += affine[:3, axis] * (volume.shape[axis] - 1)
            affine[:3, axis] *= -1
    affine[:, :3] = affine[:, list(order)]
    return volume.transpose(order), affine


@pytest.mark.parametrize("signs", [(1, 1, 1), (-1, 1, 1), (-1, -1, -1), (1, -1, 1)])
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 0, 2)])
def test_slices_are_radiological(signs: tuple[int, int, int], order: tuple[int, int, int]) -> None:
    volume, affine = patient(signs, order, size=(1.0, 1.2, 1.3))
    axial, coronal, sagittal = central_slices(volume, affine, volume, margin=None)
    assert [s.name.split()[0] for s in (axial, coronal, sagittal)] == ["axial", "coronal", "sagittal"]
    assert [s.edges for s in (axial, coronal, sagittal)] == ["RLAP", "RLSI", "APSI"]
    # left of the patient is right in the image; front above in the axial, left in the sagittal view; top is above
    assert np.argwhere(axial.image == 1).tolist() == [[22 - 1 - 18, 24 - 1 - 4]]
    assert np.argwhere(coronal.image == 1).tolist() == [[20 - 1 - 15, 24 - 1 - 4]]
    assert np.argwhere(sagittal.image == 1).tolist() == [[20 - 1 - 15, 22 - 1 - 18]]
    assert [s.aspect for s in (axial, coronal, sagittal)] == pytest.approx([1.2, 1.3, 1.3 / 1.2])


def test_oblique_volume_takes_the_closest_axes() -> None:
    volume, affine = patient((1, 1, 1), (0, 1, 2), size=(1.0, 1.0, 1.0))
    angle = np.deg2rad(20)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    oblique = affine.copy()
    oblique[:3, :3] = turn @ affine[:3, :3]
    for one, two in zip(central_slices(volume, affine), central_slices(volume, oblique), strict=True):
        assert np.array_equal(one.image, two.image) and one.aspect == pytest.approx(two.aspect)


def test_single_slice_and_stack_show_their_own_plane() -> None:
    affine = np.array([[2.0, 0, 0, 0], [0, 0, 5.0, 0], [0, 2.0, 0, 0], [0, 0, 0, 1]])  # coronal, 5 mm thick
    (only,) = central_slices(np.ones((30, 40, 1)), affine)
    assert (only.name, only.edges, only.image.shape, only.aspect) == ("coronal", "RLSI", (40, 30), 1.0)
    stack = central_slices(np.arange(8.0) * np.ones((30, 40, 8)), affine, n=3)
    assert [float(s.image[0, 0]) for s in stack] == [2, 4, 5] and stack[0].name == "coronal 3 of 8"


def test_without_affine_rows_are_rows() -> None:
    image = np.arange(12.0).reshape(3, 4)
    (only,) = central_slices(torch.tensor(image))
    assert np.array_equal(only.image, image) and only.aspect == 1 and only.edges == "" and only.name == ""
    with pytest.raises(ValueError, match="shape"):
        central_slices(np.zeros((2, 2, 2, 2)))


def test_crop_to_the_mask() -> None:
    mask = np.zeros((50, 60))
    mask[20:30, 10:40] = 1
    (only,) = central_slices(np.ones((50, 60)), mask=mask, margin=0.1)
    assert only.image.shape == (12, 36)


def test_map_panel_shows_units_scales_and_nothing_outside() -> None:
    mask = np.zeros((8, 9, 1))
    mask[2:6, 2:7] = 1
    data = np.where(mask > 0, 1.5, 99.0)
    data[3, 3] = 5.0
    residual = np.where(mask > 0, -0.4, 0.0)
    maps = {
        "T1map": Map(data),
        "T1stderr": Map(data, kind="error"),
        "residual": Map(residual, "%", (-1, 2), "residual"),
    }
    figure = map_panel(maps, np.eye(4), mask)
    images = [axis.images[0] for axis in figure.axes if axis.images]
    assert [image.get_clim() for image in images] == [(0, 2), (0, 2), (-2, 2)]
    assert np.nanmax(images[0].get_array().filled(np.nan)) == 5.0  # 99 lies outside of the mask
    bars = [axis.get_ylabel() for axis in figure.axes if axis.get_ylabel()]
    assert bars == ["T1 [s]", "standard error of T1 [s]", "residual [%]"]
    figure_to_png_bytes(figure)
    with pytest.raises(ValueError, match="no maps"):
        map_panel({})


@pytest.mark.parametrize("data", [np.full((5, 5, 1), np.nan), np.zeros((5, 5, 1))])
def test_map_without_contrast(data: np.ndarray) -> None:
    figure_to_png_bytes(map_panel({"T1map": Map(data, display_range=(0, 0))}, np.eye(4)))
    figure_to_png_bytes(histogram(data, quantity="T1", unit="s"))


def test_comparison_has_symmetric_errors_and_their_rmse() -> None:
    truth = 1 + np.random.default_rng(0).random((16, 18))
    estimates = {"rim": truth + 0.1, "mle": truth - 0.3}
    figure = comparison_panel(truth, estimates, quantity="T1", unit="s", mask=np.ones((16, 18)))
    errors = [axis for axis in figure.axes if axis.get_xlabel()]
    assert [axis.get_xlabel() for axis in errors] == ["RMSE 0.1 s", "RMSE 0.3 s"]
    low, high = errors[0].images[0].get_clim()
    assert low == -high == pytest.approx(-0.3)
    shown = [axis.images[0].get_clim() for axis in figure.axes if axis.get_title() in ("truth", "rim", "mle")]
    assert len(shown) == 3 and len(set(shown)) == 1
    figure_to_png_bytes(figure)
    with pytest.raises(ValueError, match="shape"):
        comparison_panel(truth, {"rim": truth[:4]})


def test_histogram_states_median_and_range() -> None:
    values = np.concatenate([np.arange(0, 101) / 100, [np.nan, np.inf]])
    mask = np.ones(103)
    axis = histogram(values, quantity="T1", unit="s", mask=mask, display_range=(0, 2)).axes[0]
    texts = [text.get_text() for text in axis.get_legend().get_texts()]
    assert texts == ["5-95 %: 0.05 to 0.95", "median: 0.5"] and axis.get_xlabel() == "T1 [s]"


def test_numbers_are_short_and_plain() -> None:
    assert [short(x) for x in (1243.2, 0.00681, 2.0, float("nan"), 1.5e7)] == ["1240", "0.00681", "2", "nan", "1.5e+07"]


def test_box_plot_has_each_method_at_each_level() -> None:
    generator = np.random.default_rng(0)
    results = {"rim": {3.0: generator.normal(size=50), 10.0: generator.normal(size=50)}, "mle": {3.0: [1.0, np.nan]}}
    figure = box_plot_over_snr(results, label="bias [%]", bound={3.0: 2.0, 10.0: 0.6}, limits=(-3, 3))
    axis = figure.axes[0]
    assert [tick.get_text() for tick in axis.get_xticklabels()] == ["3", "10"]
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["rim", "mle", "Cramer-Rao bound"]
    figure_to_png_bytes(figure)
    with pytest.raises(ValueError, match="no results"):
        box_plot_over_snr({"rim": {}}, label="bias [%]")


def test_png_is_a_picture_and_repeats() -> None:
    figure = histogram(np.arange(10.0))
    content = figure_to_png_bytes(figure, dpi=50)
    picture = matplotlib.image.imread(io.BytesIO(content))
    assert 100 < picture.shape[0] < picture.shape[1] < 200 and picture.std() > 0.01
    assert content == figure_to_png_bytes(histogram(np.arange(10.0)), dpi=50)
    assert isinstance(figure, Figure)


def test_no_global_state() -> None:
    import matplotlib.pyplot

    before = dict(matplotlib.rcParams)
    map_panel({"T1map": Map(np.ones((4, 4, 1)))})
    assert matplotlib.pyplot.get_fignums() == [] and dict(matplotlib.rcParams) == before
