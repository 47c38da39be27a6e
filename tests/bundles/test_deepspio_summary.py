"""Regions of particles: known concentrations, areas, masses and places are found, and everything has a unit."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from deepspio.maps import MapsFromPredictiond
from deepspio.regions import centre_of, find_regions
from deepspio.summary import ParticleSummaryd
from monai.data import MetaTensor

from physics.viewline import ViewLineSequence
from shared_transforms.errors import QMRIError
from shared_transforms.io import PlaneOrientation, SaveSummaryd

SIDE, STEP = 96, 0.25
PIXEL = (STEP, STEP)
SEQUENCE = ViewLineSequence(lines=13, field_of_view=SIDE * STEP)


def disc(radius: float, x: float, z: float) -> np.ndarray:
    at = (np.arange(SIDE) - (SIDE - 1) / 2) * STEP
    return np.hypot(at[:, None] - x, at - z) < radius


def two_discs() -> np.ndarray:
    return 5.0 * disc(3.0, -4.0, 2.0) + 8.0 * disc(1.5, 5.0, -3.0)


def summarised(values: np.ndarray, orientation: PlaneOrientation | None = None, **options: Any) -> dict[str, Any]:
    """Maps and summary of a map ``[X, Z]`` as the network might give it, with any image."""
    orientation = orientation or PlaneOrientation(0, 1)
    image = torch.rand(2, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    signs = [-1.0 if flip else 1.0 for flip in (orientation.flip_x, orientation.flip_z)]
    affine = np.eye(4)
    affine[:3, :3] = 0.0
    affine[0, orientation.x_axis] = signs[0] * STEP  # x of the plane lies along R, z along S
    affine[2, orientation.z_axis] = signs[1] * STEP
    affine[1, orientation.slice_axis] = 1.0
    corner = [-sign * (SIDE - 1) / 2 * STEP for sign in signs]
    affine[:3, 3] = [corner[0] + 100.0, 7.0, corner[1]]
    item = {
        "pred": torch.from_numpy(values).float()[None, None],
        "image": MetaTensor(orientation.to_file(image), affine=torch.from_numpy(affine)),
        "plane": image,
        "orientation": orientation,
        "acquisition": {"pixel_size": torch.tensor(PIXEL, dtype=torch.float64)},
        "sources": ["sub-01_viewline.nii.gz"],
        "stem": "sub-01",
    }
    return dict(ParticleSummaryd(**options)(MapsFromPredictiond(sequence=SEQUENCE)(item)))


def test_regions_are_measured() -> None:
    values = two_discs()
    labels, regions, whole = find_regions(values, values > 0, PIXEL)
    large, small = regions
    assert (large.mean, large.peak, large.centre_mean) == pytest.approx((5.0, 5.0, 5.0))
    assert large.area == pytest.approx(math.pi * 9.0, rel=0.02)
    assert small.iron == pytest.approx(8.0 * math.pi * 1.5**2, rel=0.03)
    assert large.centre == pytest.approx((-4.0, 2.0), abs=0.05) and small.centre == pytest.approx((5.0, -3.0), abs=0.05)
    assert large.mean_millimolar == pytest.approx(5.0 * 17.9, rel=1e-3)
    assert whole is not None and whole.iron == pytest.approx(large.iron + small.iron)
    assert whole.area == pytest.approx(large.area + small.area) and whole.peak == 8.0
    assert set(np.unique(labels[values == 5.0])) == {1} and set(np.unique(labels[values == 8.0])) == {2}


def test_centre_is_the_inner_half_of_a_disc_and_of_a_strip() -> None:
    round_centre = centre_of(disc(5.0, 0.0, 0.0), PIXEL)
    assert round_centre.sum() * STEP**2 == pytest.approx(math.pi * 2.5**2, rel=0.15)
    assert not (round_centre & ~disc(2.8, 0.0, 0.0)).any()
    strip = np.zeros((SIDE, SIDE), bool)
    strip[:, 30:51] = True
    rows = centre_of(strip, PIXEL)[40]
    assert rows.nonzero()[0].tolist() == list(range(35, 46))  # 6 to 11 pixels from the next pixel outside


def test_centre_mean_undoes_the_blur_of_the_edge() -> None:
    at = (np.arange(SIDE) - (SIDE - 1) / 2) * STEP
    soft = 6.0 / (1.0 + np.exp((np.hypot(at[:, None], at) - 3.0) / 0.3))
    _, (region,), _ = find_regions(soft, soft > 1.5, PIXEL)
    assert region.mean < 5.4 and region.centre_mean == pytest.approx(6.0, rel=0.02)


def test_small_regions_count_in_the_whole_alone() -> None:
    values = two_discs()
    values[5, 5] = 9.0
    _, regions, whole = find_regions(values, values > 0, PIXEL, smallest_mm2=0.1)
    assert len(regions) == 2 and whole is not None and whole.peak == 9.0
    assert find_regions(values, values > 100, PIXEL)[1:] == ([], None)


@pytest.mark.parametrize(
    "orientation",
    [
        PlaneOrientation(0, 1),
        PlaneOrientation(1, 0, flip_x=True),
        PlaneOrientation(2, 0, flip_z=True),
        PlaneOrientation(0, 2, flip_x=True, flip_z=True),
    ],
)
def test_places_in_the_world(orientation: PlaneOrientation) -> None:
    item = summarised(two_discs(), orientation)
    large, small = item["summary"]["regions"]
    assert [large[f"world_{axis}_mm"] for axis in "ras"] == pytest.approx([96.0, 7.0, 2.0], abs=0.06)
    assert [small[f"world_{axis}_mm"] for axis in "ras"] == pytest.approx([105.0, 7.0, -3.0], abs=0.06)
    mass = 4 / 3 * math.pi * (5.0 * 3.0**3 + 8.0 * 1.5**3)
    assert item["summary"]["mass"]["iron_ug"] == pytest.approx(mass, rel=0.05)


def test_thickness_makes_the_mass() -> None:
    item = summarised(two_discs(), thickness_mm=2.0)
    assert item["summary"]["mass"]["iron_ug"] == pytest.approx(2.0 * item["summary"]["all"]["iron_ug_per_mm"])


def test_files_and_sections(tmp_path: Path) -> None:
    item = summarised(two_discs())
    save = SaveSummaryd(
        output_dir=tmp_path, software_name="deepspio", software_version="1.2.3", weights_sha256="ab", method="DeepSPIO"
    )
    files = save(item)["files"]
    assert [Path(file).name for file in files] == ["sub-01_regions.csv", "sub-01_summary.json"]
    rows = list(csv.DictReader(Path(files[0]).read_text().splitlines()))
    assert [row["region"] for row in rows] == ["1", "2", "all"]
    assert float(rows[0]["centre_mean_ug_per_mm3"]) == pytest.approx(5.0)
    assert float(rows[1]["centre_mean_mM"]) == pytest.approx(8.0 * 17.907, rel=1e-3)
    content = json.loads(Path(files[1]).read_text())
    assert content["generated_by"]["WeightsSHA256"] == "ab" and content["all"]["peak_ug_per_mm3"] == 8.0
    assert content["quality"]["relative_residual"] == pytest.approx(item["residual"])
    particles, simulation = item["sections"]
    assert len(particles.rows) == 3 and "2 regions" in particles.text and len(simulation.figures) == 1


def test_nothing_found(tmp_path: Path) -> None:
    item = summarised(np.zeros((SIDE, SIDE)))
    assert item["summary"]["all"] is None and item["summary"]["mass"]["iron_ug"] == 0.0
    save = SaveSummaryd(output_dir=tmp_path, software_name="deepspio", software_version="1")
    files = save(item)["files"]
    assert Path(files[0]).read_text().count("\n") == 1
    assert "No voxel" in item["sections"][0].text


def test_negative_size_is_refused() -> None:
    with pytest.raises(QMRIError, match="smallest_region_mm2"):
        ParticleSummaryd(smallest_region_mm2=-1.0)
