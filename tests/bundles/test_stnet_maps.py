"""Maps from a prediction, the residual of the truth, and deconvolutions behind the network's call."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from monai.data import MetaTensor
from stnet_perfusion.baselines import METHODS, Deconvolution
from stnet_perfusion.maps import MapsFromPredictiond, rounded_top

from physics.perfusion import (
    ArterialInput,
    deconvolve,
    haematocrit_factor,
    perfusion_maps,
    time_to_maximum,
    tissue_concentration,
)
from shared_transforms.errors import QMRIError

SHAPE, DT, FRAMES = (6, 5, 4), 1.5, 60


def artery(delay: float = 0.0) -> ArterialInput:
    return ArterialInput(torch.tensor(15.0 + delay), torch.tensor(3.0), torch.tensor(1.5), torch.tensor(6.0))


def series(k_av: float = 0.5) -> dict[str, Any]:
    """An examination without noise whose maps are known: exponential residues, some of the tissue late."""
    generator = torch.Generator().manual_seed(0)
    cbf = 10 + 50 * torch.rand(SHAPE, generator=generator)
    mtt = 3 + 7 * torch.rand(SHAPE, generator=generator)
    delay = -2 + 10 * torch.rand(SHAPE, generator=generator)
    times = DT * torch.arange(FRAMES)
    tissue = tissue_concentration(artery(), times, cbf, mtt, delay)
    aif = artery().concentration(times)
    # What the deconvolution of the same curves calls Tmax, as the truth of the simulator is defined.
    tmax = time_to_maximum(deconvolve(tissue, aif, DT, "csvd", threshold=0.1), DT, circulant=True)
    mask = torch.ones(SHAPE, dtype=torch.bool)
    mask[0] = False
    image = torch.cat([torch.ones(1, *SHAPE), tissue.movedim(-1, 0)]) * mask
    return {
        "pred": torch.stack([cbf * mtt / 60, cbf, tmax])[None] * mask,
        "image": MetaTensor(image[None], affine=torch.eye(4)),
        "mask": mask[None],
        "aif": k_av * aif,
        "vof": artery(6.0).concentration(times),
        "acquisition": {"repetition_time": torch.tensor(DT)},
        "sources": ["sub-01_dsc.nii.gz"],
        "notes": ["read"],
        "truth": {"cbf": cbf, "mtt": mtt, "tmax": tmax},
    }


def test_truth_explains_the_series_and_other_maps_do_not() -> None:
    item = MapsFromPredictiond()(series())
    assert item["residual"] < 0.02 and item["k_av"] == pytest.approx(0.5, rel=1e-3) and item["notes"] == ["read"]
    mask = item["mask"][0]
    assert float(item["maps"]["residual"].data[mask].max()) < 0.05
    for change, least in (([1, 0.5, 1], 0.25), ([0.5, 0.5, 1], 0.45), ([1, 1, 1.5], 0.1)):
        wrong = series()
        wrong["pred"] = wrong["pred"] * torch.tensor(change).reshape(1, 3, 1, 1, 1)
        assert MapsFromPredictiond()(wrong)["residual"] > least
    empty = series()
    empty["pred"] = torch.zeros_like(empty["pred"])
    result = MapsFromPredictiond()(empty)
    assert result["residual"] == pytest.approx(1.0) and "100% of the concentrations" in result["notes"][-1]


def test_residual_does_not_know_the_factor_nor_the_size_of_the_artery() -> None:
    printed = haematocrit_factor(as_printed=True)
    item = series(k_av=0.2)
    item["pred"][:, :2] *= printed / haematocrit_factor()
    assert MapsFromPredictiond(factor=printed)(item)["residual"] < 0.02
    assert MapsFromPredictiond(tmax_frame_time_s=1.2)(series())["residual"] < 0.05  # Tmax hardly depends on it


def test_maps_units_and_masks() -> None:
    item = MapsFromPredictiond()(series())
    maps, mask = item["maps"], item["mask"][0]
    units = {"cbv": "ml/100 g", "cbf": "ml/100 g/min", "mtt": "s", "tmax": "s", "residual": "1"}
    assert {name: maps[name].unit for name in units} == units
    for name in ("cbf", "mtt", "tmax"):
        torch.testing.assert_close(maps[name].data, item["truth"][name] * mask, rtol=1e-4, atol=1e-4)
    assert (maps["label-hypoperfused_mask"].data == (mask & (item["truth"]["tmax"] > 6))).all()
    assert item["image"].shape == (1 + FRAMES, *SHAPE)
    assert rounded_top(torch.linspace(0, 5.03, 1000)) == 5.0 and rounded_top(torch.zeros(3)) == 1.0


def test_voxels_without_flow_and_nan() -> None:
    item = series()
    item["pred"][0, 1, 3] = 0.0
    assert not MapsFromPredictiond()(item)["maps"]["mtt"].data[3].any()
    item["pred"][0, 2, 3, 2, 1] = float("nan")
    with pytest.raises(QMRIError, match="NaN"):
        MapsFromPredictiond()(item)


@pytest.mark.parametrize("method", METHODS)
def test_deconvolution_has_the_call_of_the_inferer(method: str) -> None:
    item = series()
    image, tensors = item["image"].as_tensor(), [item[name][None] for name in ("mask", "aif", "vof")]
    solve = Deconvolution(method, progress=False)
    found = solve(image, *tensors, frame_time=DT, voxel_size=(2.0, 2.0, 5.0))
    mask = item["mask"][0]
    assert found.shape == (1, 3, *SHAPE) and not found[0][:, ~mask].any()
    cbv, cbf, _ = found[0][:, mask]
    assert float(cbv.median() / item["pred"][0, 0][mask].median()) == pytest.approx(1.0, abs=0.05)
    assert 0.3 < float((cbf / item["pred"][0, 1][mask]).median()) < 1.3
    two = solve(*(torch.cat([x, x]) for x in (image, *tensors)), frame_time=DT, voxel_size=(2.0, 2.0, 5.0))
    torch.testing.assert_close(two[1], found[0])


def test_deconvolution_is_that_of_the_physics() -> None:
    item = series()
    mask = item["mask"][0]
    found = Deconvolution("csvd", {"threshold": 0.15}, factor=0.8)(
        item["image"].as_tensor(), item["mask"][None], item["aif"][None], item["vof"][None], DT
    )
    curves = item["image"].as_tensor()[0, 1:, mask].T
    maps = perfusion_maps(curves, item["aif"], item["vof"], DT, "csvd", factor=0.8, threshold=0.15)
    torch.testing.assert_close(found[0][:, mask], torch.stack([maps[name] for name in ("cbv", "cbf", "tmax")]))


def test_deconvolution_refuses(tmp_path: Path) -> None:
    with pytest.raises(QMRIError, match="one of .*csvd"):
        Deconvolution("svd")
    item = series()
    arguments = (item["image"].as_tensor(), item["mask"][None])
    with pytest.raises(QMRIError, match="options"):
        Deconvolution("csvd", {"oscillation_index": 0.1})(*arguments, item["aif"][None], item["vof"][None], DT)
    with pytest.raises(QMRIError, match="area"):
        Deconvolution("csvd")(*arguments, item["aif"][None], 0 * item["vof"][None], DT)
    with pytest.raises(QMRIError, match="aif"):
        Deconvolution("csvd")(*arguments, item["aif"][None, :-1], item["vof"][None], DT)
    empty = torch.zeros_like(item["mask"][None])
    assert not Deconvolution("csvd")(arguments[0], empty, item["aif"][None], item["vof"][None], DT).any()
