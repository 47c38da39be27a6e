"""Susceptibility inference as its config runs it: right maps for right input, and nothing at all for bad input."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from qsmgan.baselines import METHODS, ClassicalInversion
from qsmgan.maps import MapsFromFieldd
from qsmgan.network import Generator
from qsmgan.reference import ReferenceInMaskd, ReferenceRegiond, fluid_mask, relaxation_rate

from physics import dipole_inversion
from physics.dipole import field_from_susceptibility
from shared_transforms.errors import QMRIError
from shared_transforms.weights import sha256_file

ROOT = Path(__file__).resolve().parents[2] / "bundles" / "qsmgan"
SHAPE, VOXEL = (28, 24, 20), (1.0, 1.2, 1.5)
AFFINE = np.diag([-1.0, 1.2, 1.5, 1.0])
TIMES = (0.004, 0.008, 0.012)
FIELD_STRENGTH = 3.0
LARMOR = 267.5221874 * FIELD_STRENGTH  # rad/s in one ppm


def grid() -> np.ndarray:
    """Millimetres from the centre, [3, X, Y, Z]."""
    axes = [(np.arange(n) - n / 2) * size for n, size in zip(SHAPE, VOXEL, strict=True)]
    return np.stack(np.meshgrid(*axes, indexing="ij"))


def ball(radius: float) -> np.ndarray:
    return np.linalg.norm(grid(), axis=0) < radius


def head() -> np.ndarray:
    return np.linalg.norm(grid() / np.reshape([12.0, 12.5, 12.5], (3, 1, 1, 1)), axis=0) < 1


def sphere_field(chi: float = 0.1, radius: float = 4.0) -> np.ndarray:
    """Closed form: chi/3 (R/r)^3 (3 cos^2 - 1) outside, 0 inside [ppm]."""
    r = np.linalg.norm(grid(), axis=0).clip(min=1e-6)
    return np.where(r > radius, chi / 3 * (radius / r) ** 3 * (3 * (grid()[2] / r) ** 2 - 1), 0.0)


def write(path: Path, data: np.ndarray, affine: np.ndarray = AFFINE, **sidecar: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(np.asarray(data, np.float32), affine), path)
    if sidecar:
        path.with_name(path.name.replace(".nii.gz", ".json")).write_text(json.dumps(sidecar))
    return path


def write_local_field(folder: Path, data: np.ndarray | None = None, **sidecar: Any) -> Path:
    write(folder / "sub-01_localfield.nii.gz", (sphere_field() if data is None else data) * head(), **sidecar)
    write(folder / "sub-01_mask.nii.gz", head())
    return folder


def write_echoes(folder: Path, change: Callable[[np.ndarray], np.ndarray] | None = None, **fields: Any) -> Path:
    """Magnitude and phase of a sphere in a head; a field that is None is left out of the sidecars."""
    sidecar = {"MagneticFieldStrength": FIELD_STRENGTH, "EchoTime": list(TIMES), **fields}
    sidecar = {k: v for k, v in sidecar.items() if v is not None}
    generator = np.random.default_rng(0)
    noise = generator.normal(0, 0.01, (2, *SHAPE, len(TIMES)))
    times = np.array(TIMES)
    signal = head()[..., None] * np.exp(-20 * times + 1j * (LARMOR * sphere_field()[..., None] * times + 0.5))
    signal = signal + noise[0] + 1j * noise[1]
    phase = np.angle(signal)
    write(folder / "sub-01_part-mag_MEGRE.nii.gz", np.abs(signal), **sidecar)
    write(folder / "sub-01_part-phase_MEGRE.nii.gz", phase if change is None else change(phase), **sidecar)
    return folder


def infer(data: Path, output: Path, overlay: str | None = "tkd", report: bool = False, **overrides: Any) -> None:
    """Run inference.json with an overlay, as ``monai.bundle run`` does; the report takes longest and is left out."""
    overrides["postprocessing#transforms#2#_disabled_"] = not report
    parser = ConfigParser()
    names = ["inference"] if overlay is None else ["inference", overlay]
    parser.read_config([str(ROOT / f"configs/{name}.json") for name in names])
    parser.read_meta(str(ROOT / "configs/metadata.json"))
    parser.update(
        {"bundle_root": str(ROOT), "dataset_dir": str(data), "output_dir": str(output), "device": "cpu"} | overrides
    )
    parser.get_parsed_content("run")


def read(path: Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj)


def refused(folder: Path, **overrides: Any) -> QMRIError:
    """The error of an inference that writes nothing; MONAI wraps it."""
    with pytest.raises((QMRIError, RuntimeError)) as caught:
        infer(folder / "in", folder / "out", **overrides)
    error: BaseException | None = caught.value
    while error is not None and not isinstance(error, QMRIError):
        error = error.__cause__
    assert isinstance(error, QMRIError) and error.remedy, caught.value
    assert not (folder / "out").exists()
    return error


def test_local_field_to_susceptibility(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_local_field(tmp_path / "in", Units="ppm")
    infer(tmp_path / "in", tmp_path / "out", report=True, input_kind="local_field")
    folder = tmp_path / "out" / "sub-01"
    chi, mask = read(folder / "sub-01_Chimap.nii.gz"), read(folder / "sub-01_mask.nii.gz") > 0
    assert chi[ball(3)].mean() - chi[mask & ~ball(5)].mean() == pytest.approx(0.1, rel=0.1)
    assert (mask == head()).all() and not chi[~mask].any() and abs(chi[mask].mean()) < 1e-6
    np.testing.assert_allclose(nib.load(folder / "sub-01_Chimap.nii.gz").affine, AFFINE)
    sidecar = json.loads((folder / "sub-01_Chimap.json").read_text())
    assert sidecar["Units"] == "ppm" and "TKD" in sidecar["EstimationMethod"]
    assert sidecar["Sources"] == ["../../in/sub-01_localfield.nii.gz", "../../in/sub-01_mask.nii.gz"]
    np.testing.assert_allclose(read(folder / "sub-01_localfield.nii.gz"), sphere_field() * head(), atol=1e-6)
    page = (folder / "report.html").read_text()
    assert "its mean over the mask" in page and "1 x 1.2 x 1.5" in page and "put back through the dipole" in page
    assert "9 files written" in capsys.readouterr().out


def test_unit_and_sign_do_not_change_the_map(tmp_path: Path) -> None:
    write_local_field(tmp_path / "a", Units="ppm")
    hertz = -LARMOR / (2 * math.pi) * sphere_field()
    write_local_field(tmp_path / "b", hertz, Units="Hz", MagneticFieldStrength=FIELD_STRENGTH)
    infer(tmp_path / "a", tmp_path / "out", input_kind="local_field")
    infer(tmp_path / "b", tmp_path / "out2", input_kind="local_field", field_sign=-1)
    maps = [read(tmp_path / name / "sub-01/sub-01_Chimap.nii.gz") for name in ("out", "out2")]
    np.testing.assert_allclose(*maps, atol=2e-5)


def test_b0_direction_is_followed(tmp_path: Path) -> None:
    """The same object, stored with other axes, has the same map in space."""
    write_local_field(tmp_path / "a", Units="ppm")
    turned, affine = np.flip(np.transpose(sphere_field() * head(), (2, 0, 1)), 2), np.zeros((4, 4))
    affine[[2, 0, 1], [0, 1, 2]], affine[3, 3] = (1.5, -1.0, -1.2), 1.0
    affine[1, 3] = 1.2 * (SHAPE[1] - 1)
    write(tmp_path / "b/sub-01_localfield.nii.gz", turned, affine, Units="ppm")
    write(tmp_path / "b/sub-01_mask.nii.gz", np.flip(np.transpose(head(), (2, 0, 1)), 2), affine)
    for name in ("a", "b"):
        infer(tmp_path / name, tmp_path / f"out_{name}", input_kind="local_field")
    files = [tmp_path / f"out_{name}/sub-01/sub-01_Chimap.nii.gz" for name in ("a", "b")]
    first, second = (nib.as_closest_canonical(nib.load(f)) for f in files)
    np.testing.assert_allclose(first.affine, second.affine, atol=1e-6)
    a, b = np.asarray(first.dataobj), np.asarray(second.dataobj)
    assert np.abs(a - b).max() < 0.01 * np.abs(a).max()


def test_echoes_to_susceptibility(tmp_path: Path) -> None:
    write_echoes(tmp_path / "in")
    write(tmp_path / "in/sub-01_mask.nii.gz", head())
    infer(tmp_path / "in", tmp_path / "out", background_removal="lbv")
    folder = tmp_path / "out/sub-01"
    chi, mask = read(folder / "sub-01_Chimap.nii.gz"), read(folder / "sub-01_mask.nii.gz") > 0
    assert chi[ball(3)].mean() - chi[mask & ~ball(5)].mean() == pytest.approx(0.1, rel=0.2)
    assert (read(folder / "sub-01_headmask.nii.gz") > 0).sum() > mask.sum() > 0.5 * head().sum()
    total = read(folder / "sub-01_totalfield.nii.gz")
    assert np.corrcoef(total[mask], sphere_field()[mask])[0, 1] > 0.9
    assert json.loads((folder / "sub-01_totalfield.json").read_text())["Units"] == "ppm"


def test_network_with_any_weights(tmp_path: Path) -> None:
    """The generator begins as the identity on its starting map, which is a susceptibility map already."""
    torch.manual_seed(0)
    torch.save(Generator(width=2).state_dict(), tmp_path / "model.pt")
    write_local_field(tmp_path / "in", Units="ppm")
    weights = {"weights": str(tmp_path / "model.pt"), "width": 2, "tile_voxels": 16, "context_voxels": 16}
    infer(tmp_path / "in", tmp_path / "out", None, input_kind="local_field", blend_voxels=8, **weights)
    folder = tmp_path / "out/sub-01"
    chi = read(folder / "sub-01_Chimap.nii.gz")
    assert chi.shape == SHAPE and not chi[~head()].any()
    assert chi[ball(3)].mean() - chi[head() & ~ball(5)].mean() == pytest.approx(0.1, rel=0.2)
    sidecar = json.loads((folder / "sub-01_Chimap.json").read_text())
    assert sidecar["GeneratedBy"][0]["WeightsSHA256"] == sha256_file(tmp_path / "model.pt")


def with_nan(phase: np.ndarray) -> np.ndarray:
    phase[3, 4, 5, 1] = np.nan
    return phase


# The list of bad input: (fields of the sidecars, change of the phase, overrides, field of the error).
BAD: dict[str, tuple[dict[str, Any], Callable[[np.ndarray], np.ndarray] | None, dict[str, Any], str]] = {
    "phase outside of its range": ({}, lambda p: 1.5 * p, {}, "voxel values"),
    "phase in a scale of its own": ({}, lambda p: 1e-3 * p, {}, "voxel values"),
    "phase outside of the range declared": ({}, lambda p: p, {"phase_range": [-1, 1]}, "phase_range"),
    "phase with NaN": ({}, with_nan, {}, "voxel values"),
    "no field strength": ({"MagneticFieldStrength": None}, None, {}, "MagneticFieldStrength"),
    "no echo time": ({"EchoTime": None}, None, {}, "EchoTime"),
    "echo times in ms": ({"EchoTime": [4, 8, 12]}, None, {}, "EchoTime"),
    "B0 not of unit length": ({}, None, {"data_b0_direction": [0, 1, 1]}, "b0_direction"),
    "B0 not of unit length, sidecar": ({"B0_dir": [0, 0, 0]}, None, {}, "B0_dir"),
    "unknown kind of input": ({}, None, {"input_kind": "field"}, "input_kind"),
    "no mask there": ({}, None, {"mask_file": "nowhere.nii.gz"}, "path"),
    "unknown reference": ({}, None, {"reference": "zero"}, "reference"),
    "reference without a region": ({}, None, {"reference": "roi"}, "reference_file"),
    "reference of no file": ({}, None, {"reference": "csf", "reference_file": "nowhere.nii.gz"}, "path"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_writes_nothing(tmp_path: Path, name: str) -> None:
    fields, change, overrides, place = BAD[name]
    write_echoes(tmp_path / "in", change, **fields)
    assert refused(tmp_path, **overrides).field == place


@pytest.mark.parametrize(
    ("mask", "place"),
    [(np.ones((28, 24, 19)), "dim"), (np.zeros(SHAPE), "mask"), (np.full(SHAPE, np.nan), "voxel values")],
)
def test_bad_mask_writes_nothing(tmp_path: Path, mask: np.ndarray, place: str) -> None:
    write_echoes(tmp_path / "in")
    write(tmp_path / "in/sub-01_mask.nii.gz", mask)
    assert refused(tmp_path).field == place


def test_one_echo_writes_nothing(tmp_path: Path) -> None:
    for part in ("mag", "phase"):
        data = np.linspace(-3.1, 3.1, math.prod(SHAPE)).reshape(SHAPE)
        write(
            tmp_path / f"in/sub-01_echo-1_part-{part}_MEGRE.nii.gz", data if part == "phase" else 4 + data,
            EchoTime=0.005, MagneticFieldStrength=3,
        )  # fmt: skip
    assert refused(tmp_path).found == "one echo"


def item(chi: np.ndarray, folder: Path) -> dict[str, Any]:
    """What the engine hands to the maps, for a field that this susceptibility makes."""
    inside = torch.from_numpy(head())[None]
    values = torch.tensor(chi * head(), dtype=torch.float32)[None]
    field = field_from_susceptibility(values, VOXEL)
    source = write(folder / "field.nii.gz", field[0].numpy())
    return {
        "image": MetaTensor(torch.cat([field, torch.zeros_like(field)])[None], affine=torch.tensor(AFFINE)),
        "pred": values[None],
        "mask": inside,
        "acquisition": {"voxel_size": torch.tensor(VOXEL), "b0_direction": torch.tensor([0.0, 0.0, 1.0])},
        "sources": [str(source)],
    }


def test_residual_of_the_true_map_is_zero_whatever_the_reference(tmp_path: Path) -> None:
    truth = 0.1 * ball(4) + 0.02
    for reference in ("none", "mean"):
        result = MapsFromFieldd(reference=reference)(item(truth, tmp_path))
        assert result["residual"] < 1e-4 and abs(result["maps"]["residual"].data).max() < 1e-6
        mean = float(result["maps"]["Chimap"].data[head()].mean())
        assert mean == pytest.approx(truth[head()].mean() if reference == "none" else 0.0, abs=1e-6)
        assert result["maps"]["Chimap"].unit == result["maps"]["residual"].unit == "ppm"
    wrong = item(truth, tmp_path)
    wrong["pred"] = -wrong["pred"]
    assert MapsFromFieldd()(wrong)["residual"] == pytest.approx(2.0, rel=1e-3)
    assert any("unexplained" in note for note in MapsFromFieldd()(wrong)["notes"])


@pytest.mark.parametrize("reference", ["roi", "csf"])
def test_reference_region_becomes_zero(tmp_path: Path, reference: str) -> None:
    def referenced(region: np.ndarray) -> dict[Any, Any]:
        file = write(tmp_path / "region.nii.gz", region)
        given = ReferenceRegiond(reference=reference, reference_file=file)(item(0.1 * ball(4) + 0.02, tmp_path))
        given = ReferenceInMaskd(reference=reference)(given)
        assert ("csf_mask" in given) == (reference == "csf")
        return MapsFromFieldd(reference=reference)(given)

    result = referenced(ball(3))
    chi = result["maps"]["Chimap"].data.numpy()
    assert abs(chi[ball(3)].mean()) < 1e-6 and chi[head() & ~ball(5)].mean() == pytest.approx(-0.1, abs=1e-6)
    assert "region.nii.gz" in result["details"]["Susceptibility is relative to"]
    assert "region.nii.gz" in result["maps"]["Chimap"].description
    for region, place in ((~head(), "reference_file"), (0 * head(), "reference_file"), (head()[1:], "dim")):
        with pytest.raises(QMRIError) as error:
            referenced(region)
        assert error.value.field == place


def test_fluid_is_found_by_its_relaxation(tmp_path: Path) -> None:
    """A ventricle of R2* = 2/s in a head of 20/s; fluid at its surface and a drop of it are not taken."""
    shape, mm = (40, 40, 32), (2.0, 2.0, 2.5)
    axes = [(np.arange(n) - n / 2) * size for n, size in zip(shape, mm, strict=True)]
    distance = np.linalg.norm(np.stack(np.meshgrid(*axes, indexing="ij")), axis=0)
    ventricle = distance < 9
    rate = np.where(ventricle | (distance > 35), 2.0, 20.0)
    rate[27, 20, 16] = 2.0
    times = (0.005, 0.012, 0.03)
    echoes = 100 * torch.stack([torch.tensor(np.exp(-t * rate)) for t in times]).float()
    r2star = relaxation_rate(echoes, times)
    torch.testing.assert_close(r2star, torch.tensor(rate).float(), rtol=1e-3, atol=1e-3)
    found = fluid_mask(r2star, torch.tensor(distance < 38), mm, "file").numpy()
    # The median of a voxel and its neighbours rounds the corners off.
    assert not found[~ventricle].any() and found.sum() > 0.85 * ventricle.sum()
    with pytest.raises(QMRIError, match="no fluid"):
        fluid_mask(torch.full(shape, 20.0), torch.tensor(distance < 38), mm, "file")
    assert relaxation_rate(torch.zeros(2, 1, 1, 1), (0.01, 0.02)).isinf().all()


def test_fluid_needs_echoes_or_a_file(tmp_path: Path) -> None:
    with pytest.raises(QMRIError, match="no echoes"):
        ReferenceRegiond(reference="csf")(item(0.1 * ball(4), tmp_path))


def test_a_map_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    broken = item(0.1 * ball(4), tmp_path)
    broken["pred"][0, 0, 14, 12, 10] = math.nan
    with pytest.raises(QMRIError, match="susceptibility"):
        MapsFromFieldd()(broken)


@pytest.mark.parametrize("method", METHODS)
def test_classical_inversion_is_that_of_the_physics(method: str) -> None:
    field = torch.tensor(sphere_field() * head(), dtype=torch.float32)
    inside = torch.from_numpy(head())
    magnitude = 1 + torch.rand(SHAPE, generator=torch.Generator().manual_seed(0))
    image = torch.stack([field, magnitude])[None]
    options = {"iterations": 2} if method in ("tv", "ilsqr", "medi") else {}
    network = ClassicalInversion(method, options, progress=False)
    found = network(image, mask=inside[None, None], voxel_size=VOXEL, b0_direction=(0.0, 0.6, 0.8))
    function = getattr(dipole_inversion, METHODS[method])
    expected = function(field, VOXEL, (0.0, 0.6, 0.8), inside, magnitude, **options)
    assert found.shape == (1, 1, *SHAPE)
    torch.testing.assert_close(found[0, 0], expected, rtol=1e-4, atol=1e-6)


def test_medi_with_fluid_is_medi_plus_zero(tmp_path: Path) -> None:
    write_local_field(tmp_path / "in", Units="ppm")
    file = str(write(tmp_path / "fluid.nii.gz", ball(3)))
    few = {"network_def#options": {"iterations": 1}, "input_kind": "local_field"}
    infer(tmp_path / "in", tmp_path / "plain", "medi", reference="none", **few)
    infer(tmp_path / "in", tmp_path / "fluid", "medi", reference="csf", reference_file=file, **few)
    plain, fluid = (read(tmp_path / name / "sub-01/sub-01_Chimap.nii.gz") for name in ("plain", "fluid"))
    # The variance over the fluid is penalised, and its mean is zero.
    assert abs(plain[head()].mean()) < 1e-6 and abs(fluid[ball(3)].mean()) < 1e-6
    assert fluid[ball(3)].std() < plain[ball(3)].std()


def test_unknown_methods_and_options_are_refused() -> None:
    with pytest.raises(QMRIError, match="tkd, tikhonov"):
        ClassicalInversion("cosmos")
    with pytest.raises(QMRIError, match="threshold"):
        ClassicalInversion("tkd", {"treshold": 0.1})
    with pytest.raises(QMRIError, match="options of tkd"):
        ClassicalInversion("tkd", {"mask": None})
