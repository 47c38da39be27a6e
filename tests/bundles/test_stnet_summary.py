"""The stroke summary: known volumes, sides, cores and planes are found, and everything has a unit."""

from __future__ import annotations

import html
import json
import math
import re
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from stnet_perfusion.hemispheres import MidPlane, find_mid_plane, mirror_mean, relative_to_mirror
from stnet_perfusion.lesions import (
    core_by_flow,
    find_fluid,
    find_lesion,
    find_vessels,
    flattened,
    large_parts,
    normal_flow,
)
from stnet_perfusion.summary import StrokeSummaryd

from shared_transforms.errors import QMRIError
from shared_transforms.io import ParameterMap, SaveSummaryd
from shared_transforms.report import SaveReportd

SHAPE, VOXEL = (44, 52, 14), (4.0, 4.0, 6.0)
VOXEL_ML = math.prod(VOXEL) / 1000


def affine(yaw: float = 0.0, shift: float = 0.0, flipped: bool = False) -> np.ndarray:
    """Voxels to RAS [mm]: the head's own axes, turned and shifted; the first axis to the left where flipped."""
    turn = np.array([[math.cos(yaw), -math.sin(yaw), 0], [math.sin(yaw), math.cos(yaw), 0], [0, 0, 1]])
    matrix = np.eye(4)
    matrix[:3, :3] = turn @ np.diag([-VOXEL[0] if flipped else VOXEL[0], VOXEL[1], VOXEL[2]])
    matrix[:3, 3] = -matrix[:3, :3] @ ((np.array(SHAPE) - 1) / 2) + [shift, 0, 0]
    return matrix


def position(matrix: np.ndarray) -> np.ndarray:
    grid = np.stack(np.meshgrid(*[np.arange(n) for n in SHAPE], indexing="ij"), -1)
    return grid @ matrix[:3, :3].T + matrix[:3, 3]


def head(matrix: np.ndarray, yaw: float = 0.0, shift: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """A head, symmetric about a plane turned by yaw and shifted along its normal: image and mask."""
    x, y, z = np.moveaxis(position(matrix), -1, 0)
    u, v = math.cos(yaw) * x + math.sin(yaw) * y - shift, -math.sin(yaw) * x + math.cos(yaw) * y
    mask = (u / 68) ** 2 + (v / 88) ** 2 + (z / 60) ** 2 < 1
    ventricle = ((np.abs(u) - 12) / 8) ** 2 + ((v - 10) / 25) ** 2 + (z / 20) ** 2 < 1
    front = 0.3 * v / 88
    return np.where(mask, 1.0 + front + ventricle, 0.0), mask


@pytest.mark.parametrize(("yaw", "shift"), [(0.0, 0.0), (0.15, 0.0), (-0.1, 7.0)])
@pytest.mark.parametrize("flipped", [False, True])
def test_mid_plane_is_found_in_any_orientation(yaw: float, shift: float, flipped: bool) -> None:
    matrix = affine(flipped=flipped)
    image, mask = head(matrix, yaw, shift)
    plane = find_mid_plane(image, mask, matrix)
    angle = math.degrees(math.acos(min(1.0, np.dot(plane.normal, [math.cos(yaw), math.sin(yaw), 0]))))
    assert angle < 1.0 and plane.offset == pytest.approx(shift, abs=1.0) and plane.symmetry > 0.98
    x = position(matrix) @ plane.normal - plane.offset
    np.testing.assert_allclose(plane.side(SHAPE, matrix), x, atol=1e-9)


def test_mirror_is_its_own_inverse_and_keeps_the_plane() -> None:
    matrix = affine(0.1, 3.0, True)
    plane = MidPlane((0.8, 0.6, 0.0), 4.0, 1.0)
    mirror = plane.mirror(matrix)
    np.testing.assert_allclose(mirror @ mirror, np.eye(4), atol=1e-9)
    point = np.linalg.inv(matrix) @ [0.8 * 4.0 - 0.6 * 9.0, 0.6 * 4.0 + 0.8 * 9.0, 5.0, 1.0]
    np.testing.assert_allclose(mirror @ point, point, atol=1e-9)


def test_relative_map_is_the_ratio_of_the_sides() -> None:
    matrix = affine()
    _, mask = head(matrix)
    x = position(matrix)[..., 0]
    cbf = np.where(mask, np.where(x > 0, 15.0, 50.0), 0.0)
    plane = MidPlane((1.0, 0.0, 0.0), 0.0, 1.0)
    ratio = relative_to_mirror(cbf, mask, plane, matrix, 8.0)
    away = mask & (np.abs(x) > 16)
    np.testing.assert_allclose(ratio[away & (x > 0)], 0.3, rtol=1e-3)
    np.testing.assert_allclose(ratio[away & (x < 0)], 50 / 15, rtol=1e-3)
    assert not ratio[~mask].any()
    cbf[30, 20, 7] = 5000.0  # a vessel
    assert np.nanmax(mirror_mean(cbf, mask, plane, matrix, 8.0)) <= 50.0 + 1e-3


def test_lesion_of_known_volume_and_small_parts() -> None:
    tmax = np.full(SHAPE, 2.0)
    tmax[30:40, 20:30, 4:9] = 7.0  # 500 voxels of .096 ml
    tmax[32:36, 22:27, 5:8] = 11.0  # 60 of them
    tmax[33, 23, 6] = 9.0
    tmax[5:7, 20:22, 5:7] = 12.0  # 8 voxels: .77 ml
    tmax[2, 2, 2] = 5.0
    found = find_lesion(tmax, np.ones(SHAPE, bool), VOXEL_ML, 1.0)
    volumes = [found.above[t].sum() for t in (4.0, 6.0, 8.0, 10.0)]
    assert volumes == [500, 500, 60, 59]
    assert found.removed_ml == pytest.approx({t: n * VOXEL_ML for t, n in {4.0: 9, 6.0: 8, 8.0: 8, 10.0: 8}.items()})
    everything = find_lesion(tmax, np.ones(SHAPE, bool), VOXEL_ML, 0.0)
    assert [everything.above[t].sum() for t in (4.0, 6.0, 8.0, 10.0)] == [509, 508, 68, 67]
    none = find_lesion(tmax, np.zeros(SHAPE, bool), VOXEL_ML, 1.0)
    assert not any(mask.any() for mask in none.above.values())


def test_parts_that_touch_at_a_corner_are_one() -> None:
    mask = np.zeros(SHAPE, bool)
    mask[0, 0, 0] = mask[1, 1, 1] = mask[5, 5, 5] = True
    assert large_parts(mask, 1.0, 2.0).sum() == 2 and large_parts(mask, 1.0, 1.0).sum() == 3


def test_core_is_below_a_third_of_the_flow_of_the_other_side() -> None:
    matrix = affine()
    _, mask = head(matrix)
    side = position(matrix)[..., 0]
    lesion = mask & (side > 30)
    cbf = np.where(side > 0, 24.0, 50.0)
    core = lesion & (side > 45)
    cbf[core] = 14.0  # 28 % of the left side, 58 % of the right
    tmax = np.where(lesion, 8.0, 1.0)
    reference, opposite = normal_flow(cbf, tmax, mask, side, lesion)
    assert reference == 50.0 and opposite
    assert (core_by_flow(cbf, reference, lesion, VOXEL_ML, 1.0) == core).all()
    assert normal_flow(cbf, tmax, mask, side, np.zeros_like(lesion))[1] is False
    reference, opposite = normal_flow(cbf, np.where(side < 0, 8.0, 1.0), mask, side, lesion)
    assert reference == 24.0 and not opposite  # the other side is all late


def test_fluid_is_bright_and_without_blood_whatever_the_shading() -> None:
    matrix = affine()
    image, mask = head(matrix)
    ventricle = mask & (image > 1.45)
    x = position(matrix)[..., 0]
    stroke = mask & (x > 40) & ~ventricle
    cbv = np.where(mask & ~ventricle, np.where(stroke, 0.6, 4.0), 0.0)  # no blood in the fluid, little in the stroke
    baseline = np.where(mask, np.where(ventricle, 1.4, 1.0), 0.0) * np.exp(0.004 * x)
    flat = flattened(baseline, mask, np.array(VOXEL))
    assert np.median(flat[mask]) == pytest.approx(1.0) and abs(flat[stroke].mean() - 1.0) < 0.1
    fluid = find_fluid(flat, cbv, mask, np.array(VOXEL))
    assert fluid[ventricle].mean() > 0.8 and not fluid[stroke].any() and fluid[mask & ~ventricle].mean() < 0.02
    cbv[5, 26, 7] = 30.0
    assert np.argwhere(find_vessels(cbv, mask & ~fluid)).tolist() == [[5, 26, 7]]


def examination(**changes: Any) -> dict[str, Any]:
    """Maps of a head with a stroke on the patient's right: 60 ml beyond 6 s, 20 of it beyond 10 s, 10 of it core."""
    matrix = affine(flipped=True)
    image, mask = head(matrix)
    x = position(matrix)[..., 0]
    voxels = np.argwhere(mask & (x > 30) & (image < 1.4))  # no ventricle
    voxels = voxels[np.argsort(np.abs(voxels - voxels.mean(0)).max(1), kind="stable")]
    tmax, cbf, cbv = (np.where(mask, value, 0.0) for value in (2.0, 40.0, 3.0))
    for volume, late in ((60, 7.0), (20, 11.0)):
        tmax[tuple(voxels[: round(volume / VOXEL_ML)].T)] = late
    cbf[tuple(voxels[: round(10 / VOXEL_ML)].T)] = 8.0
    tmax[mask & (x < -60)] = -0.5
    maps = {
        name: ParameterMap(torch.from_numpy(values).float(), unit, name, (0.0, 10.0))
        for name, values, unit in (("cbv", cbv, "ml/100 g"), ("cbf", cbf, "ml/100 g/min"), ("tmax", tmax, "s"))
    }
    maps["mtt"] = ParameterMap(torch.full(SHAPE, 4.5), "s", "mtt", (0.0, 10.0))
    maps["mask"] = ParameterMap(torch.from_numpy(mask), "1", "brain", (0.0, 1.0), "mask")
    times = 1.5 * torch.arange(40)
    frames = torch.zeros(2, *SHAPE)
    frames[0] = torch.from_numpy(image)
    return {
        "maps": maps,
        "image": MetaTensor(frames, affine=torch.from_numpy(matrix)),
        "aif": (-((times - 20) ** 2) / 20).exp() * 6,
        "vof": (-((times - 26) ** 2) / 30).exp() * 7,
        "input_functions": {
            "aif": {"source": "automatic", "voxels": torch.tensor([[10, 20, 5], [11, 20, 5]]), "score": 0.9},
            "vof": {"source": "csv file vof.csv", "voxels": None, "score": None},
            "k_av_measured": 0.45,
        },
        "acquisition": {"repetition_time": torch.tensor(1.5)},
        "k_av": 0.7,
        "residual": 0.2,
        "quality": {"snr": 45.0, "dummy_frames": 1, "mask_automatic": True, "trough": float("nan")},
        "stem": "sub-01",
        "sources": ["sub-01_dsc.nii.gz"],
        "notes": ["read"],
    } | changes


def test_summary_of_a_known_stroke() -> None:
    item = StrokeSummaryd()(examination())
    summary = item["summary"]
    late = summary["hypoperfusion"]
    assert late["volume_ml"]["tmax_above_6_s"] == pytest.approx(60, abs=VOXEL_ML)
    assert late["volume_ml"]["tmax_above_4_s"] == late["volume_ml"]["tmax_above_6_s"]
    assert late["volume_ml"]["tmax_above_10_s"] == pytest.approx(20, abs=VOXEL_ML)
    assert late["intensity_ratio"] == pytest.approx(1 / 3, abs=0.01)
    assert late["side"] == "right" and late["left_ml"] == 0
    assert summary["core"]["volume_ml"] == pytest.approx(10, abs=VOXEL_ML)
    assert summary["core"]["normal_cbf_ml_per_100g_per_min"] == 40.0 and "opposite" in summary["core"]["normal_tissue"]
    assert summary["mismatch"]["volume_ml"] == pytest.approx(50, abs=2 * VOXEL_ML)
    assert summary["mismatch"]["ratio"] == pytest.approx(6, abs=0.1) and summary["mismatch"]["met"] is True
    assert summary["input_functions"]["aif"]["time_to_peak_s"] == pytest.approx(20, abs=0.75)
    assert summary["input_functions"]["aif"]["voxels"] == [[10, 20, 5], [11, 20, 5]]
    assert 0 < summary["negative_delay"]["share"] < 0.05 and "artery" in summary["negative_delay"]["meaning"]
    assert summary["quality"]["snr"] == 45.0 and summary["quality"]["trough"] is None  # JSON has no NaN
    assert summary["quality"]["mask_automatic"] is True and summary["quality"]["fluid_volume_ml"] == 0.0
    assert summary["medians"]["cbf"] == {"unit": "ml/100 g/min", "right": 40.0, "left": 40.0}
    assert item["notes"] == ["read"]
    maps = item["maps"]
    core = maps["label-core_mask"].data
    assert float(core.sum()) * VOXEL_ML == pytest.approx(10, abs=VOXEL_ML)
    assert float(maps["relcbf"].data[core].median()) == pytest.approx(0.2, abs=0.01)
    assert maps["label-hypoperfused_mask"].kind == "mask" and maps["relcbv"].unit == "1"


@pytest.mark.parametrize(
    ("late", "core", "met"), [(60, 40, False), (60, 30, True), (20, 10, False), (14, 0, False), (16, 0, True)]
)
def test_mismatch_criterion(late: float, core: float, met: bool) -> None:
    """A ratio of at least 1.8 and at least 15 ml; without a core the ratio is beyond all bounds."""
    item = examination()
    tmax, cbf = item["maps"]["tmax"].data, item["maps"]["cbf"].data
    places = (tmax > 6).nonzero()
    tmax[tmax > 6], cbf[cbf < 10] = 2.0, 40.0
    order = (places - places.float().mean(0)).abs().amax(1).argsort(stable=True)
    tmax[tuple(places[order[: round(late / VOXEL_ML)]].T)] = 8.0
    cbf[tuple(places[order[: round(core / VOXEL_ML)]].T)] = 4.0
    summary = StrokeSummaryd()(item)["summary"]
    assert summary["mismatch"]["met"] is met
    assert summary["mismatch"]["ratio"] == (pytest.approx(late / core, rel=0.01) if core else None)


def test_core_from_a_file(tmp_path: Path) -> None:
    matrix = affine(flipped=True)
    nib.save(nib.Nifti1Image(np.zeros(SHAPE, np.int16), matrix), tmp_path / "sub-01_dsc.nii.gz")
    core = np.zeros(SHAPE, np.uint8)
    core[5:10, 20:30, 5:7] = 1
    nib.save(nib.Nifti1Image(core, matrix), tmp_path / "core.nii.gz")
    item = examination(sources=[str(tmp_path / "sub-01_dsc.nii.gz")])
    result = StrokeSummaryd(core_mask_file=tmp_path / "core.nii.gz")(item)
    assert result["summary"]["core"]["volume_ml"] == pytest.approx(100 * VOXEL_ML)
    assert "core.nii.gz" in result["summary"]["core"]["source"] and result["sources"][-1].endswith("core.nii.gz")
    nib.save(nib.Nifti1Image(core[1:], matrix), tmp_path / "other.nii.gz")
    for name in ("other.nii.gz", "nowhere.nii.gz"):
        with pytest.raises(QMRIError):
            StrokeSummaryd(core_mask_file=tmp_path / name)(examination(sources=item["sources"]))
    with pytest.raises(QMRIError, match="smallest_part_ml"):
        StrokeSummaryd(smallest_part_ml=-1.0)


def test_head_without_a_stroke_and_an_artery_that_is_late() -> None:
    item = examination()
    item["maps"]["tmax"].data.fill_(-0.5)
    result = StrokeSummaryd()(item)
    summary = result["summary"]
    assert summary["hypoperfusion"]["side"] is None and summary["hypoperfusion"]["intensity_ratio"] is None
    assert summary["mismatch"]["met"] is False and summary["core"]["volume_ml"] == 0
    assert result["notes"][-1].startswith(
        "100% of the tissue has Tmax < 0: the contrast agent is in this tissue before"
    )


def test_files(tmp_path: Path) -> None:
    item = StrokeSummaryd()(examination(files=["map"]))
    names = {"software_name": "stnet_perfusion", "software_version": "1.2.3", "method": "cSVD"}
    item = SaveSummaryd(output_dir=tmp_path, weights_sha256="c0ffee", **names)(item)
    path = tmp_path / "sub-01" / "sub-01_summary.json"
    assert item["files"] == ["map", str(path)] and [p.name for p in path.parent.iterdir()] == [path.name]
    content = json.loads(path.read_text())
    assert content["generated_by"]["WeightsSHA256"] == "c0ffee" and content["notes"] == ["read"]
    assert content["hypoperfusion"] == item["summary"]["hypoperfusion"] and "Not a medical device" in str(content)
    item["maps"] = {name: item["maps"][name] for name in ("tmax", "mask")}
    item = SaveReportd(output_dir=tmp_path, title="Perfusion", **names)(item)
    page = html.unescape(re.sub(r"<[^>]*>", " ", (path.parent / "report.html").read_text()))
    page = " ".join(page.split())
    assert "Tmax > 6 s 60.0 ml 0.0 ml in isolated parts below 1 ml left out" in page
    assert "60 ml with Tmax above 6 s, on the patient's right; core 10 ml" in page and "is met" in page
    assert "Arterial input automatic 2 0.90" in page and "Venous output csv file vof.csv -" in page
    assert "is 0.70: CBF is corrected" in page and "It was 0.45 before tissue was taken out" in page
    assert "Dummy frames 1" in page and "Baseline SNR 45" in page and "Signal at the bolus -" in page
    assert page.index("Late perfusion and core") < page.index("Arterial input and venous output") < page.index("Maps")
    bare = examination()
    del bare["input_functions"], bare["quality"]
    assert StrokeSummaryd()(bare)["summary"]["input_functions"]["aif"]["source"] == "given"
