"""View Line inference as its config runs it: right files for right input, and nothing at all for bad input."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from deepspio.network import DeepSPIO
from monai.bundle import ConfigParser
from torch import Tensor, nn

from physics.viewline import ViewLineSequence, folded_plane_field, view_line_image
from shared_transforms.errors import QMRIError
from shared_transforms.weights import sha256_file

ROOT = Path(__file__).resolve().parents[2] / "bundles" / "deepspio"
SIDE, STEP = 64, 0.4
PROTOCOL = {"pixel_size_mm": STEP, "field_of_view_mm": SIDE * STEP, "lines": 13, "width": 4}
SEQUENCE = ViewLineSequence(lines=13, field_of_view=SIDE * STEP)
# x along the third axis, falling; z along the first, falling; the slice along the second.
FLIPPED = np.array([[0, 0, -STEP, 10], [0, 1, 0, 0], [-STEP, 0, 0, 12], [0, 0, 0, 1.0]])
REPORT = "postprocessing#transforms#4#_disabled_"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "model.pt"
    torch.save(DeepSPIO(width=4).state_dict(), path)
    return path


def truth() -> Tensor:
    at = (torch.arange(SIDE) - (SIDE - 1) / 2) * STEP
    return 5.0 * (torch.hypot(at[:, None] - 3.0, at + 2.0) < 2.0).float()


def lines() -> np.ndarray:
    """A ball of particles in a square container ``[2, X, Z]``."""
    at = torch.arange(-10, 11) * STEP
    half = (4.0 - at.square()).clamp_min(0.0).sqrt()
    grid = (torch.arange(SIDE) - (SIDE - 1) / 2) * STEP
    radius = torch.hypot(grid[:, None] - 3.0, grid + 2.0)
    planes = 5.0 * (radius[None] < half[10:, None, None]).float()
    planes[1:] *= 2.0
    density = torch.zeros(SIDE, SIDE)
    density[6:-6, 6:-6] = 1.0
    field = folded_plane_field(planes, (STEP,) * 3)
    return view_line_image(density, planes[0], field, (STEP, STEP), SEQUENCE).numpy()


def write(
    folder: Path, change: Callable[[np.ndarray], np.ndarray] | None = None, affine: np.ndarray = FLIPPED, **fields: Any
) -> Path:
    """The 4-D file ``[Z, 1, X, 2]``, both axes turned round, with its sidecar."""
    folder.mkdir(parents=True)
    values = 900.0 * lines()[:, ::-1, ::-1].transpose(2, 1, 0)[:, None]
    values = values if change is None else change(values.copy())
    image = nib.Nifti1Image(values.astype(np.float32), affine)
    image.header.set_xyzt_units("mm", "sec")
    nib.save(image, folder / "sub-01_viewline.nii.gz")
    sidecar = {"EchoTime": 0.0087, **fields}
    (folder / "sub-01_viewline.json").write_text(json.dumps(sidecar))
    return folder


def infer(data: Path, output: Path, weights: Path, report: bool = False, **overrides: Any) -> ConfigParser:
    parser = ConfigParser()
    parser.read_config(str(ROOT / "configs/inference.json"))
    parser.read_meta({"version": "1.2.3"})
    places = {"bundle_root": str(ROOT), "dataset_dir": str(data), "output_dir": str(output), "weights": str(weights)}
    parser.update(PROTOCOL | places | {"device": "cpu", REPORT: not report} | overrides)
    parser.get_parsed_content("run")
    return parser


class Oracle(nn.Module):
    """Knows the truth; one weight, so that a file of weights can be loaded."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, image: Tensor) -> Tensor:
        assert image.shape == (1, 2, SIDE, SIDE)
        return self.scale * truth()[None, None]


def test_lines_to_maps_summary_and_report(tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "in")
    infer(tmp_path / "in", tmp_path / "out", weights, report=True)
    folder = tmp_path / "out" / "sub-01"
    for name, unit in (("concentration", "ug/mm^3"), ("residual", "1"), ("mask", "1")):
        image = nib.load(folder / f"sub-01_{name}.nii.gz")
        assert image.shape == (SIDE, 1, SIDE)
        np.testing.assert_allclose(image.affine, FLIPPED, atol=1e-6)
        sidecar = json.loads((folder / f"sub-01_{name}.json").read_text())
        assert sidecar["Units"] == unit and sidecar["EstimationMethod"] == "DeepSPIO"
        assert sidecar["GeneratedBy"][0]["WeightsSHA256"] == sha256_file(weights)
    page = (folder / "report.html").read_text()
    for words in ("Particles", "Image and simulation", "concentration [ug/mm^3]", "Pixel size [mm]"):
        assert words in page
    written = {line.strip() for line in capsys.readouterr().out.splitlines() if line.startswith("  ")}
    assert {str(path) for path in folder.iterdir()} == written


def test_prediction_lands_where_it_belongs(tmp_path: Path) -> None:
    """The truth comes back in the order of the file, and puts the image together again."""
    torch.save(Oracle().state_dict(), tmp_path / "oracle.pt")
    write(tmp_path / "in")
    infer(tmp_path / "in", tmp_path / "out", tmp_path / "oracle.pt", network_def=Oracle())
    found = np.asarray(nib.load(tmp_path / "out/sub-01/sub-01_concentration.nii.gz").dataobj)[:, 0]
    np.testing.assert_array_equal(found, truth().numpy()[::-1, ::-1].T)
    summary = json.loads((tmp_path / "out/sub-01/sub-01_summary.json").read_text())
    quality = summary["quality"]
    assert quality["relative_residual"] < 0.5 * quality["relative_residual_without_iron"]
    (region,) = summary["regions"]
    assert region["centre_mean_ug_per_mm3"] == pytest.approx(5.0)
    assert (region["x_mm"], region["z_mm"]) == pytest.approx((3.0, -2.0), abs=0.1)
    corner = FLIPPED @ [SIDE - 1, 0, SIDE - 1, 1]  # where the plane begins
    world = [region["world_r_mm"] - corner[0], region["world_s_mm"] - corner[2]]
    half = (SIDE - 1) / 2 * STEP
    assert world == pytest.approx([3.0 + half, -2.0 + half], abs=0.1)


def as_one_channel(values: np.ndarray) -> np.ndarray:
    return values[..., :1]


def odd_side(values: np.ndarray) -> np.ndarray:
    return values[:-1]


def negative(values: np.ndarray) -> np.ndarray:
    return values - 50.0


def with_nan(values: np.ndarray) -> np.ndarray:
    values[10, 0, 10, 0] = np.nan
    return values


# The list of bad input: (change of the values, affine, fields of the sidecar, overrides, part of the message).
BAD: dict[str, tuple[Any, np.ndarray, dict[str, Any], dict[str, Any], str]] = {
    "one channel": (as_one_channel, FLIPPED, {}, {}, "channel"),
    "odd side": (odd_side, FLIPPED, {}, {}, "63"),
    "negative": (negative, FLIPPED, {}, {}, "negative"),
    "NaN": (with_nan, FLIPPED, {}, {}, "NaN"),
    "other pixels": (None, FLIPPED * 2, {}, {}, "0.8"),
    "across the main field": (None, FLIPPED[[0, 2, 1, 3]], {}, {}, "B0"),
    "other echo time": (None, FLIPPED, {"EchoTime": 0.02}, {}, "20 ms"),
    "no such thickness": (None, FLIPPED, {}, {"thickness_mm": -1.0}, "thickness_mm"),
    "no such weights": (None, FLIPPED, {}, {"weights": "nowhere.pt"}, "nowhere.pt"),
    "weights of another width": (None, FLIPPED, {}, {"width": 8}, "shape"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_leaves_nothing_behind(tmp_path: Path, weights: Path, name: str) -> None:
    change, affine, fields, overrides, words = BAD[name]
    write(tmp_path / "in", change, affine, **fields)
    given = {"weights": weights, **overrides}
    with pytest.raises((QMRIError, RuntimeError)) as caught:
        infer(tmp_path / "in", tmp_path / "out", **given)
    error: BaseException | None = caught.value
    while error is not None and not isinstance(error, QMRIError):
        error = error.__cause__
    assert isinstance(error, QMRIError) and error.remedy, caught.value
    assert words in str(error)
    assert not (tmp_path / "out").exists()


def test_protocol_of_inference_is_that_of_the_training() -> None:
    inference, train = (json.loads((ROOT / f"configs/{name}.json").read_text()) for name in ("inference", "train"))
    names = [name for name in inference if name.rpartition("_")[2] in ("mm", "hz", "s", "mM", "kg", "sign")]
    shared = [name for name in (*names, "lines", "width", "sequence") if name in train]
    assert len(shared) >= 14
    for name in shared:
        assert inference[name] == train[name], name
