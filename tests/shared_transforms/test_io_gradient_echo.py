"""Gradient echoes as the converters write them: found, paired, scaled, and refused where there is doubt."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

from shared_transforms.errors import QMRIError
from shared_transforms.io import LoadGradientEchoesd, find_field_inputs, find_gradient_echoes, load_gradient_echoes

SHAPE = (6, 5, 4)
TIMES = (0.004, 0.009, 0.015)
AFFINE = np.diag([-1.0, 1.5, 2.0, 1.0])
SIDECAR = {"MagneticFieldStrength": 3.0, "ScanningSequence": "GR"}


def phases(n: int = len(TIMES)) -> np.ndarray:
    """True phase [rad], [N, X, Y, Z]: fills -pi to pi without touching either end."""
    return np.linspace(-3.1, 3.1, n * math.prod(SHAPE)).reshape(n, *SHAPE)


def magnitudes(n: int = len(TIMES)) -> np.ndarray:
    return 100.0 + np.arange(n * math.prod(SHAPE)).reshape(n, *SHAPE) % 37 + 50 * np.arange(n)[:, None, None, None]


def write(path: Path, data: np.ndarray, sidecar: dict[str, Any] | None = None, affine: np.ndarray = AFFINE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(data, affine), path)
    if sidecar is not None:
        Path(str(path).removesuffix(".gz").replace(".nii", ".json")).write_text(json.dumps(sidecar))
    return path


def series(
    folder: Path,
    magnitude: str = "gre_5_e{i}.nii.gz",
    phase: str = "gre_6_e{i}_ph.nii.gz",
    stored: np.ndarray | None = None,
    times: tuple[float, ...] = TIMES,
    affine: np.ndarray = AFFINE,
    **fields: Any,
) -> Path:
    """One file for each echo and part; phase in radians unless ``stored`` says otherwise. None removes a field."""
    values = phases(len(times)) if stored is None else stored
    for i, time in enumerate(times):
        for number, (name, data) in enumerate(((magnitude, magnitudes(len(times))[i]), (phase, values[i])), start=5):
            sidecar = {"EchoTime": time, "SeriesNumber": number, **SIDECAR, **fields}
            sidecar = {k: v for k, v in sidecar.items() if v is not None}
            write(folder / name.format(i=i + 1), data.astype(np.float32), sidecar, affine)
    return folder


def load(folder: Path, **options: Any) -> dict[str, Any]:
    return dict(LoadGradientEchoesd(**options)({"image": str(folder)}))


BIDS = ("sub-01/anat/sub-01_echo-{i}_part-mag_MEGRE.nii.gz", "sub-01/anat/sub-01_echo-{i}_part-phase_MEGRE.nii.gz")


@pytest.mark.parametrize(
    ("names", "stem"),
    [
        (BIDS, "sub-01"),
        (("gre_5_e{i}.nii.gz", "gre_5_e{i}_ph.nii.gz"), "gre_5"),
        (("head_mag_echo{i}.nii", "head_phase_echo{i}.nii"), "head"),
    ],
)
def test_what_converters_write_is_found_and_paired(tmp_path: Path, names: tuple[str, str], stem: str) -> None:
    series(tmp_path, *names)
    (found,) = find_gradient_echoes(tmp_path)
    assert [Path(p).name for p in found["image"]] == [Path(names[0].format(i=i)).name for i in (1, 2, 3)]
    assert [Path(p).name for p in found["phase"]] == [Path(names[1].format(i=i)).name for i in (1, 2, 3)]
    assert found["stem"] == stem and "mask" not in found
    item = LoadGradientEchoesd()(found)
    assert item["image"].shape == (6, *SHAPE) and item["image"].dtype == torch.float32
    torch.testing.assert_close(item["image"][3:].as_tensor(), torch.tensor(phases(), dtype=torch.float32))
    torch.testing.assert_close(item["image"][:3].as_tensor(), torch.tensor(magnitudes(), dtype=torch.float32))
    assert item["acquisition"]["echo_times"].tolist() == list(TIMES) and item["mask"] is None
    assert item["acquisition"]["field_strength"] == 3.0
    torch.testing.assert_close(item["acquisition"]["voxel_size"], torch.tensor([1.0, 1.5, 2.0], dtype=torch.float64))
    assert len(item["sources"]) == 6 and "phase" not in item


def test_two_files_with_lists_and_without_sidecars(tmp_path: Path) -> None:
    fields = {"EchoTime": list(TIMES), **SIDECAR}
    write(tmp_path / "a/Mag.nii", np.moveaxis(magnitudes(), 0, -1), fields)
    write(tmp_path / "a/Phase.nii", np.moveaxis(phases(), 0, -1), fields)
    write(tmp_path / "b/Mag.nii", np.moveaxis(magnitudes(), 0, -1))
    write(tmp_path / "b/Phase.nii", np.moveaxis(phases(), 0, -1))
    first, second = find_field_inputs(tmp_path, "gradient_echo")
    assert (first["stem"], second["stem"]) == ("a", "b")
    plain = LoadGradientEchoesd()(first)
    given = LoadGradientEchoesd(echo_times_s=list(TIMES), field_strength_t=3)(second)
    assert torch.equal(plain["image"], given["image"])
    assert torch.equal(plain["acquisition"]["echo_times"], given["acquisition"]["echo_times"])
    for file in ("a/Mag.nii", "a/Phase.nii"):  # one file of a series is enough
        assert torch.equal(LoadGradientEchoesd()({"image": str(tmp_path / file)})["image"], plain["image"])


def test_magnitude_and_phase_of_two_scanner_series_and_their_repetition(tmp_path: Path) -> None:
    for magnitude, phase in ((5, 6), (9, 10)):
        for i, time in enumerate(TIMES):
            for number, end, data in ((magnitude, "", magnitudes()[i]), (phase, "_ph", phases()[i])):
                name = f"gre_{number}_e{i + 1}{end}.nii.gz"
                write(tmp_path / name, data + number, {"EchoTime": time, "SeriesNumber": number, **SIDECAR})
    found = find_gradient_echoes(tmp_path)
    pairs = [(Path(f["image"][0]).name, Path(f["phase"][0]).name) for f in found]
    assert pairs == [("gre_5_e1.nii.gz", "gre_6_e1_ph.nii.gz"), ("gre_9_e1.nii.gz", "gre_10_e1_ph.nii.gz")]
    assert len({f["stem"] for f in found}) == 2 and all(len(f["image"]) == len(f["phase"]) == 3 for f in found)


def test_phase_is_known_by_what_the_scanner_says(tmp_path: Path) -> None:
    for i, time in enumerate(TIMES):
        fields = {"EchoTime": time, **SIDECAR}
        # Philips; the names say nothing.
        write(tmp_path / f"a_e{i + 1}.nii", magnitudes()[i], fields | {"ImageType": ["ORIGINAL", "PRIMARY", "M_FFE"]})
        write(tmp_path / f"b_e{i + 1}.nii", phases()[i], fields | {"ImageType": ["ORIGINAL", "PHASE MAP", "P", "FFE"]})
    (found,) = find_gradient_echoes(tmp_path)
    assert all("a_e" in p for p in found["image"]) and all("b_e" in p for p in found["phase"])
    for i, time in enumerate(TIMES):  # a third scan: which belongs to which is not guessed
        write(tmp_path / f"c_e{i + 1}.nii", magnitudes()[i], {"EchoTime": time, **SIDECAR})
    with pytest.raises(QMRIError, match="phase without magnitude"):
        find_gradient_echoes(tmp_path)


def test_an_echo_without_sidecar_is_not_left_out(tmp_path: Path) -> None:
    series(tmp_path, *BIDS)
    (tmp_path / BIDS[0].format(i=2).replace(".nii.gz", ".json")).unlink()
    with pytest.raises(QMRIError, match="echo-2_part-mag_MEGRE.json"):
        find_gradient_echoes(tmp_path)


def test_echoes_are_put_in_order(tmp_path: Path) -> None:
    fields = {"EchoTime": [0.015, 0.004, 0.009], **SIDECAR}
    write(tmp_path / "Mag.nii", np.moveaxis(magnitudes(), 0, -1), fields)
    write(tmp_path / "Phase.nii", np.moveaxis(phases(), 0, -1), fields)
    item = load(tmp_path)
    assert item["acquisition"]["echo_times"].tolist() == [0.004, 0.009, 0.015]
    torch.testing.assert_close(item["image"][0].as_tensor(), torch.tensor(magnitudes()[1], dtype=torch.float32))
    torch.testing.assert_close(item["image"][3].as_tensor(), torch.tensor(phases()[1], dtype=torch.float32))


@pytest.mark.parametrize(
    ("stored", "options", "tolerance"),
    [
        (np.round(phases() / math.pi * 4096), {}, 1e-3),
        (np.round(phases() / math.pi * 2048) + 2048, {}, 2e-3),
        (phases() % (2 * math.pi), {}, 1e-5),
        (phases() / math.pi, {"phase_range": [-1, 1]}, 1e-5),
        (np.round(phases() * 1000), {"phase_range": [-3142, 3141]}, 2e-3),
        (phases() * 0.1, {"phase_range": (-0.1 * math.pi, 0.1 * math.pi)}, 1e-5),
    ],
)
def test_scales_of_phase(tmp_path: Path, stored: np.ndarray, options: dict[str, Any], tolerance: float) -> None:
    loaded = load(series(tmp_path, stored=stored), **options)["image"][3:].numpy()
    turns = (loaded - phases()) / (2 * math.pi)
    offset = 0.5 if stored.min() >= 0 and stored.max() < 7 else 0.0  # 0 to 2 pi: the circle is cut at another place
    assert np.abs(turns + offset - np.round(turns + offset)).max() < tolerance


def test_sign_turns_the_phase(tmp_path: Path) -> None:
    series(tmp_path)
    plain, turned = load(tmp_path)["image"], load(tmp_path, field_sign=-1)["image"]
    assert torch.equal(turned[3:], -plain[3:]) and torch.equal(turned[:3], plain[:3])
    with pytest.raises(QMRIError, match="field_sign"):
        load(tmp_path, field_sign=0)


def rotation(degrees: float, axis: int) -> np.ndarray:
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return np.roll(np.array([[1, 0, 0], [0, c, -s], [0, s, c]]), (axis, axis), (0, 1))


@pytest.mark.parametrize("flip", [(1, 1, 1), (-1, 1, 1), (1, -1, -1)])
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 0, 2)])
def test_direction_of_b0_is_that_of_the_scanner(tmp_path: Path, flip: tuple, order: tuple) -> None:
    axes = (rotation(30, 0) @ rotation(-20, 1) @ np.diag(flip))[:, order]
    affine = np.eye(4)
    affine[:3, :3] = axes * (0.5, 1.0, 3.0)
    direction = load(series(tmp_path, affine=affine))["acquisition"]["b0_direction"].numpy()
    # The voxel axes, each one millimetre long, add up to the z axis of the scanner.
    np.testing.assert_allclose(axes @ direction, [0, 0, 1], atol=1e-6)


def test_direction_of_b0_given(tmp_path: Path) -> None:
    series(tmp_path, B0_dir=[0.0, 0.6, 0.8])
    assert load(tmp_path)["acquisition"]["b0_direction"].tolist() == [0.0, 0.6, 0.8]
    assert load(tmp_path, b0_direction=[1, 0, 0])["acquisition"]["b0_direction"].tolist() == [1.0, 0.0, 0.0]


def test_mask_beside_and_in_a_derivative(tmp_path: Path) -> None:
    inside = (magnitudes()[0] > 120).astype(np.uint8)
    series(tmp_path / "a", *BIDS)
    write(tmp_path / "a/derivatives/bet/sub-01/anat/sub-01_desc-brain_mask.nii.gz", inside)
    write(tmp_path / "a/derivatives/bet/sub-02/anat/sub-02_desc-brain_mask.nii.gz", inside)
    assert load(tmp_path / "a")["mask"].squeeze(0).numpy().tolist() == (inside > 0).tolist()
    series(tmp_path / "b")
    path = write(tmp_path / "b/mask.nii.gz", inside)
    item = load(tmp_path / "b")
    assert item["mask"].dtype == torch.bool and item["mask"].shape == (1, *SHAPE) and str(path) in item["sources"]
    assert load(tmp_path / "b", mask_file=path)["mask"].equal(item["mask"])
    write(tmp_path / "b/gre_mask.nii.gz", inside)
    write(tmp_path / "b/gre_brain_mask.nii.gz", inside)
    with pytest.raises(QMRIError, match="mask_file"):
        load(tmp_path / "b")


def joined(path: Path, echo_time: object = TIMES) -> Path:
    """All magnitudes, then all phases."""
    data = np.moveaxis(np.concatenate([magnitudes(), phases()]).astype(np.float32), 0, -1)
    return write(path, data, SIDECAR | ({} if echo_time is None else {"EchoTime": echo_time}))


def test_a_mask_of_pat10_is_not_of_pat1(tmp_path: Path) -> None:
    first, tenth = (joined(tmp_path / f"{name}.nii.gz") for name in ("pat1", "pat10"))
    mask = write(tmp_path / "pat10_mask.nii.gz", np.ones(SHAPE, np.uint8))
    one, other = find_gradient_echoes(tmp_path)
    assert "mask" not in one and other["mask"] == str(mask)
    assert [find_gradient_echoes(path) for path in (first, tenth)] == [[one], [other]]


def test_a_joined_file_is_given_the_nameless_mask_that_its_folder_gives(tmp_path: Path) -> None:
    path = joined(tmp_path / "gre.nii.gz")
    write(tmp_path / "t1.nii.gz", magnitudes()[0])
    mask = write(tmp_path / "brain_mask.nii.gz", np.ones(SHAPE, np.uint8))
    (found,) = find_gradient_echoes(tmp_path)
    assert found["mask"] == str(mask) and find_gradient_echoes(path) == [found]
    joined(tmp_path / "other.nii.gz")
    assert all("mask" not in find_gradient_echoes(given)[0] for given in (path, tmp_path))


def test_a_nameless_mask_where_the_echo_times_are_given(tmp_path: Path) -> None:
    path = joined(tmp_path / "gre.nii.gz", None)
    write(tmp_path / "brain_mask.nii.gz", np.ones(SHAPE, np.uint8))
    assert load(path, echo_times_s=TIMES)["mask"] is not None
    joined(tmp_path / "other.nii.gz", None)
    assert load(path, echo_times_s=TIMES)["mask"] is None


def one_voxel(value: float) -> np.ndarray:
    stored = phases()
    stored[1, 2, 3, 1] = value
    return stored


# What is wrong with the files: (field, part of what was found).
BAD_SERIES: dict[str, tuple[dict[str, Any], str, str]] = {
    "one echo": ({"times": (0.005,), "stored": phases(1)}, "echoes", "one echo"),
    "no echo time": ({"EchoTime": None}, "EchoTime", "no such field"),
    "echo time in ms": ({"times": (4.0, 9.0, 15.0)}, "EchoTime", "milliseconds"),
    "equal echo times": ({"times": (0.004, 0.009, 0.009)}, "EchoTime", "more than once"),
    "no field strength": ({"MagneticFieldStrength": None}, "MagneticFieldStrength", "no such field"),
    "field strength in MHz": ({"MagneticFieldStrength": 123.2}, "MagneticFieldStrength", "123.2"),
    "field strength is a word": ({"MagneticFieldStrength": "3T"}, "MagneticFieldStrength", "3T"),
    "B0 not of unit length": ({"B0_dir": [0, 1, 1]}, "B0_dir", "1.4142"),
    "B0 of two numbers": ({"B0_dir": [0, 1]}, "B0_dir", "[0, 1]"),
    "sheared": ({"affine": AFFINE + np.eye(4, k=1) * [[1], [0], [0], [0]]}, "affine", "right angles"),
    "phase beyond pi": ({"stored": phases() * 1.5}, "voxel values", "unknown meaning"),
    "scaled phase": ({"stored": phases() * 1e-3}, "voxel values", "unknown meaning"),
    "half the range": ({"stored": np.round(phases() * 600)}, "voxel values", "unknown meaning"),
    "said to be radians": ({"stored": phases() * 1e-3, "Units": "rad"}, "Units", "turns"),
    "radians, and beyond": ({"stored": phases() * 1.5, "Units": "rad"}, "Units", "4.65"),
    "NaN": ({"stored": one_voxel(np.nan)}, "voxel values", "1 NaN"),
    "infinite": ({"stored": one_voxel(np.inf)}, "voxel values", "1 NaN or infinite"),
    "real parts": ({"phase": "gre_6_e{i}_real.nii.gz"}, "dataset_dir", "magnitude without phase"),
    "spin echo": ({"ScanningSequence": "SE"}, "dataset_dir", "not a gradient echo"),
}


@pytest.mark.parametrize("name", BAD_SERIES)
def test_bad_series(tmp_path: Path, name: str) -> None:
    changes, field, found = BAD_SERIES[name]
    series(tmp_path, **changes)
    with pytest.raises(QMRIError) as error:
        load(tmp_path)
    assert error.value.field == field and found in error.value.found
    assert error.value.remedy and error.value.expected


BAD_OPTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "direction": ({"b0_direction": [0.0, 0.0, 2.0]}, "b0_direction"),
    "direction with NaN": ({"b0_direction": [0.0, 0.0, math.nan]}, "b0_direction"),
    "too few times": ({"echo_times_s": [0.004, 0.009]}, "echo_times_s"),
    "times in ms": ({"echo_times_s": [4, 9, 15]}, "EchoTime"),
    "no field": ({"field_strength_t": 0}, "field_strength_t"),
    "range upside down": ({"phase_range": [1, -1]}, "phase_range"),
    "range too narrow": ({"phase_range": [-1, 1]}, "phase_range"),
    "range much too wide": ({"phase_range": [-4096, 4095]}, "phase_range"),
    "no such mask": ({"mask_file": "nowhere.nii.gz"}, "path"),
}


@pytest.mark.parametrize("name", BAD_OPTIONS)
def test_bad_options(tmp_path: Path, name: str) -> None:
    options, field = BAD_OPTIONS[name]
    series(tmp_path)
    with pytest.raises(QMRIError) as error:
        load(tmp_path, **options)
    assert error.value.field == field


def test_bad_masks(tmp_path: Path) -> None:
    series(tmp_path / "in")
    faults = {
        "dim": (np.ones((6, 5, 3), np.uint8), AFFINE),
        "affine": (np.ones(SHAPE, np.uint8), AFFINE + np.eye(4, k=3)),
        "mask": (np.zeros(SHAPE, np.uint8), AFFINE),
        "voxel values": (np.full(SHAPE, np.nan, np.float32), AFFINE),
    }
    for field, (data, affine) in faults.items():
        with pytest.raises(QMRIError) as error:
            load(tmp_path / "in", mask_file=write(tmp_path / "mask.nii.gz", data, affine=affine))
        assert error.value.field == field, field


def test_parts_that_do_not_fit(tmp_path: Path) -> None:
    folder = series(tmp_path)
    magnitude, phase = sorted(folder.glob("gre_5*.nii.gz")), sorted(folder.glob("gre_6*.nii.gz"))
    with pytest.raises(QMRIError, match="a phase image"):
        load_gradient_echoes(phase, magnitude)
    with pytest.raises(QMRIError, match="2 phase images"):
        load_gradient_echoes(magnitude, phase[:2])
    write(phase[1], phases()[1], {"EchoTime": 0.010, **SIDECAR})
    with pytest.raises(QMRIError, match="in the phase images"):
        load_gradient_echoes(magnitude, phase)
    write(phase[1], phases()[1, :-1], {"EchoTime": 0.009, **SIDECAR})
    with pytest.raises(QMRIError, match="shape"):
        load_gradient_echoes(magnitude, phase)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(QMRIError, match="no such folder"):
        find_gradient_echoes(tmp_path / "nowhere")
    with pytest.raises(QMRIError, match="no NIfTI file"):
        find_gradient_echoes(tmp_path)
    with pytest.raises(QMRIError, match="input_kind"):
        find_field_inputs(tmp_path, "gre")
    with pytest.raises(ValueError, match="one key"):
        LoadGradientEchoesd(keys=("a", "b"))
