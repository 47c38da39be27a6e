"""View Line images however they were stored: found, turned to one plane, and refused where there is doubt."""

from __future__ import annotations

import gzip
import itertools
import json
import math
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from physics.noise import add_rician_noise
from physics.viewline import ViewLineSequence, central_plane_field, view_line_image
from shared_transforms.errors import QMRIError
from shared_transforms.io import (
    LoadViewLined,
    PlaneOrientation,
    find_view_lines,
    load_view_line,
    prepare_view_line,
)

PIXEL = 50 / 256  # mm
ECHO_TIME = 0.0087  # s
X, Z = 32, 48
WORLD = {"R": 0, "A": 1}
LAYOUTS = [
    (axes, flips)
    for axes in itertools.permutations(range(3), 2)
    for flips in itertools.product((False, True), repeat=2)
]


def lines(x: int = X, z: int = Z) -> np.ndarray:
    """Plane [2, x, z]: lines two pixels wide that alternate, every pixel different, above a floor."""
    values = 1e-3 * np.arange(2 * x * z, dtype=np.float32).reshape(2, x, z)
    k = np.arange(z) % 8
    for channel, start in enumerate((1, 5)):
        values[channel][:, (k >= start) & (k < start + 2)] += 100
    return values


def stored(
    plane: np.ndarray,
    axes: tuple[int, int] = (0, 1),
    flips: tuple[bool, bool] = (False, False),
    x_world: str = "R",
    pixel: tuple[float, float] = (PIXEL, PIXEL),
) -> tuple[np.ndarray, np.ndarray]:
    """Volumes [H, W, D, 2] with x along ``axes[0]`` and z along ``axes[1]``, and their affine; z is the scanner's z."""
    across = 3 - sum(axes)
    data, affine = plane, np.zeros((4, 4))
    for axis, flip, step, world in zip(axes, flips, pixel, (WORLD[x_world], 2), strict=True):
        count = plane.shape[1 + axes.index(axis)]
        data = np.flip(data, 1 + axes.index(axis)) if flip else data
        affine[world, axis] = -step if flip else step
        affine[world, 3] = (step if flip else -step) * (count - 1) / 2
    affine[1 - WORLD[x_world], across] = 1.5
    affine[3, 3] = 1
    order = (1, 2) if axes[0] < axes[1] else (2, 1)
    return np.expand_dims(data.transpose(*order, 0), across), affine


def write(path: Path, data: np.ndarray | None = None, affine: np.ndarray | None = None, **fields: Any) -> Path:
    """One NIfTI file [mm]; with fields a sidecar."""
    path.parent.mkdir(parents=True, exist_ok=True)
    volumes, usual = stored(lines())
    image = nib.Nifti1Image(volumes if data is None else data, usual if affine is None else affine)
    image.header.set_xyzt_units("mm")
    nib.save(image, path)
    if fields:
        Path(str(path).removesuffix(".gz").replace(".nii", ".json")).write_text(json.dumps(fields))
    return path


def write_pair(folder: Path, stem: str = "gel", end: str = ".nii.gz", **fields: Any) -> list[str]:
    data, affine = stored(lines())
    return [
        str(write(folder / f"{stem}_lines-{name}{end}", data[..., i], affine, **fields))
        for i, name in enumerate(("even", "odd"))
    ]


def load(given: Any, **options: Any) -> dict[str, Any]:
    protocol = {"pixel_size_mm": PIXEL, "echo_time_s": ECHO_TIME}
    return dict(LoadViewLined(**(protocol | options))({"image": given}))


@pytest.mark.parametrize(("axes", "flips"), LAYOUTS)
@pytest.mark.parametrize("x_world", WORLD)
def test_every_layout_gives_the_same_plane(
    tmp_path: Path, axes: tuple[int, int], flips: tuple[bool, bool], x_world: str
) -> None:
    pixel = (PIXEL, 1.005 * PIXEL)
    data, affine = stored(lines(), axes, flips, x_world, pixel)
    path = write(tmp_path / "gel.nii", data, affine)
    item = load(str(path))
    image, plane, orientation = item["image"], item["plane"], item["orientation"]
    assert isinstance(image, MetaTensor) and image.dtype == plane.dtype == torch.float32
    np.testing.assert_array_equal(image.numpy(), np.moveaxis(data, -1, 0))  # the order of the file
    np.testing.assert_allclose(image.affine, affine, atol=1e-6)
    np.testing.assert_array_equal(plane.numpy(), lines())
    canonical = nib.as_closest_canonical(nib.load(path)).get_fdata()  # axes grow to the right, anterior, superior
    np.testing.assert_allclose(plane.numpy(), np.moveaxis(canonical.squeeze(), -1, 0))
    assert torch.equal(orientation.to_file(plane), image.as_tensor())
    np.testing.assert_allclose(item["acquisition"]["pixel_size"].numpy(), pixel, rtol=1e-6)
    assert item["acquisition"]["pixel_size"].dtype == torch.float64


@pytest.mark.parametrize(("axes", "flips"), LAYOUTS)
def test_there_and_back(axes: tuple[int, int], flips: tuple[bool, bool]) -> None:
    orientation = PlaneOrientation(*axes, *flips)
    shape = [7, 7, 7]
    shape[axes[0]], shape[axes[1]], shape[orientation.slice_axis] = 4, 6, 1
    for batch in ((), (3,), (2, 3)):
        volume = torch.arange(math.prod((*batch, *shape))).reshape(*batch, *shape)
        plane = orientation.to_plane(volume)
        assert plane.shape == (*batch, 4, 6) and torch.equal(orientation.to_file(plane), volume)
        assert torch.equal(orientation.to_plane(orientation.to_file(plane)), plane)
    with pytest.raises(ValueError, match="length 1"):
        orientation.to_plane(torch.zeros(4, 4, 4))


@pytest.mark.parametrize("axes", [(0, 0), (0, 3), (-1, 2)])
def test_axes_that_make_no_plane(axes: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="two different axes"):
        PlaneOrientation(*axes)


def rotated(axis: int, degrees: float) -> np.ndarray:
    """The usual affine, turned about an axis of the scanner."""
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    i, j = [a for a in range(3) if a != axis]
    turn = np.eye(4)
    turn[i, i], turn[i, j], turn[j, i], turn[j, j] = c, -s, s, c
    return turn @ stored(lines())[1]


@pytest.mark.parametrize(
    ("axis", "degrees", "turned"),
    [(0, 1.9, False), (1, -1.9, False), (2, 30, False), (2, 80, False), (2, 180, True), (2, -100, True)],
)
def test_planes_that_contain_the_main_field(tmp_path: Path, axis: int, degrees: float, turned: bool) -> None:
    item = load(str(write(tmp_path / "gel.nii", affine=rotated(axis, degrees))))
    np.testing.assert_array_equal(item["plane"].numpy(), np.flip(lines(), 1) if turned else lines())
    np.testing.assert_allclose(item["acquisition"]["pixel_size"].numpy(), [PIXEL, PIXEL], rtol=1e-6)


def test_angle_that_is_allowed_is_an_option(tmp_path: Path) -> None:
    path = str(write(tmp_path / "gel.nii", affine=rotated(0, 4)))
    assert load(path, tolerance=5.0)["plane"].shape == (2, X, Z)
    with pytest.raises(QMRIError, match=r"4\.0 degrees off B0"):
        load(path)


def test_main_field_of_the_sidecar(tmp_path: Path) -> None:
    affine = np.diag([-PIXEL, PIXEL, 1, 1])  # what software stores that knows no orientation: the plane lies across z
    path = write(tmp_path / "gel.nii", affine=affine, B0_dir=[0, -1, 0])
    item = load(str(path))
    assert item["orientation"] == PlaneOrientation(0, 1, flip_x=True, flip_z=True)
    np.testing.assert_array_equal(item["plane"].numpy(), lines()[:, ::-1, ::-1])
    assert item["details"]["B0 direction from"] == "the sidecar (B0_dir)"
    even, odd = write_pair(tmp_path / "pair", B0_dir=[0, 1, 0])
    Path(odd.replace(".nii.gz", ".json")).write_text(json.dumps({"B0_dir": [1, 0, 0]}))
    with pytest.raises(QMRIError, match="another direction") as error:
        load([even, odd])
    assert error.value.field == "B0_dir" and error.value.file == odd


def test_pair_and_4d_file_are_the_same(tmp_path: Path) -> None:
    whole = load(str(write(tmp_path / "one" / "gel.nii.gz", EchoTime=ECHO_TIME)))
    even, odd = write_pair(tmp_path / "two", EchoTime=ECHO_TIME)
    for given in ([even, odd], [odd, even], str(tmp_path / "two")):  # the names say which is which
        item = load(given)
        assert torch.equal(item["image"], whole["image"]) and torch.equal(item["plane"], whole["plane"])
        assert item["sources"] == [even, odd] and item["stem"] == whole["stem"] == "gel"
        assert item["notes"] == [] and item["details"] == whole["details"]
    assert whole["sources"] == [str(tmp_path / "one" / "gel.nii.gz")]
    assert float(whole["acquisition"]["echo_time"]) == ECHO_TIME
    assert set(whole["details"]) == {"Plane", "Readout (z) along", "B0 direction from", "Echo time"}
    data, affine = stored(lines())
    unnamed = [str(write(tmp_path / f"{i}.nii", data[..., i], affine)) for i in (1, 0)]
    assert torch.equal(load(unnamed)["plane"], whole["plane"].flip(0))  # else the order counts


def test_item_keeps_what_it_had(tmp_path: Path) -> None:
    path = write(tmp_path / "gel.nii")
    item = LoadViewLined()({"image": [str(path)], "stem": "mine", "notes": ["before"], "other": 1})
    assert (item["stem"], item["notes"], item["other"]) == ("mine", ["before"], 1)
    assert "echo_time" not in item["acquisition"] and "Echo time" not in item["details"]
    assert float(load(path)["acquisition"]["echo_time"]) == ECHO_TIME  # from the config
    assert load(path)["details"]["Echo time"] == "8.7 ms, from the config"
    with pytest.raises(ValueError, match="one key"):
        LoadViewLined(keys=("a", "b"))


def test_prepared_for_an_engine(tmp_path: Path) -> None:
    item = load(write(tmp_path / "gel.nii"))
    plane, label, arguments, keywords = prepare_view_line(item, "cpu", False)
    assert plane.shape == (1, 2, X, Z) and type(plane) is torch.Tensor
    assert (label, arguments, keywords) == (None, (), {})


def test_found_in_a_folder(tmp_path: Path) -> None:
    write(tmp_path / "gel 1.nii.gz")
    pair = write_pair(tmp_path / "sub-01" / "anat", "sub-01", "_part-mag.nii.gz")
    named = write(tmp_path / "sub-02" / "sub-02_viewline.nii.gz", ImageType=["ORIGINAL", "M"])
    for name in ("even", "odd"):
        write(tmp_path / f"sub-01/anat/sub-01_lines-{name}_part-phase.nii.gz")
    write(tmp_path / "gel_mask.nii.gz")
    write(tmp_path / "map.nii.gz", EstimationMethod="a network")
    write(tmp_path / "localizer.nii.gz", np.ones((8, 8, 3, 2)), np.eye(4))
    write(tmp_path / "scout.nii.gz", np.ones((8, 8, 1)), np.eye(4))
    made = write(tmp_path / "derivatives" / "deepspio" / "gel" / "gel.nii.gz")
    (made.parent.parent / "dataset_description.json").write_text(json.dumps({"DatasetType": "derivative"}))
    found = find_view_lines(tmp_path)
    assert [f["stem"] for f in found] == ["gel-1", "sub-01", "sub-02"]
    assert found[0] == {"image": [str(tmp_path / "gel 1.nii.gz")], "stem": "gel-1", "notes": []}
    assert found[1]["image"] == pair and "part-phase" in found[1]["notes"][0]
    assert found[2]["image"] == [str(named)]
    for item in found:
        assert LoadViewLined()(item)["plane"].shape == (2, X, Z)
    for path in pair:  # either file of a pair names it
        assert [f["image"] for f in find_view_lines(path)] == [pair]
    with pytest.raises(QMRIError, match="3 images: gel-1, sub-01, sub-02"):
        load(tmp_path)


def test_several_of_one_name_have_stems_of_their_own(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        write_pair(tmp_path / folder)
    write(tmp_path / "gel.nii")
    assert sorted(f["stem"] for f in find_view_lines(tmp_path)) == ["a_gel", "b_gel", "gel"]


def test_what_there_is_instead(tmp_path: Path) -> None:
    with pytest.raises(QMRIError, match="no such folder"):
        find_view_lines(tmp_path / "nowhere")
    with pytest.raises(QMRIError, match="no NIfTI file"):
        find_view_lines(tmp_path)
    write(tmp_path / "localizer.nii.gz", np.ones((8, 8, 3, 2)), np.eye(4))
    write(tmp_path / "scout.nii.gz", np.ones((8, 8, 1)), np.eye(4))
    write(tmp_path / "phase.nii.gz", ImageType=["ORIGINAL", "P"])
    with pytest.raises(QMRIError) as error:
        find_view_lines(tmp_path)
    assert error.value.field == "dataset_dir" and error.value.file == str(tmp_path)
    for reason in ("1 x several slices", "1 x one slice with 1 volume(s)", "1 x phase, real or imaginary"):
        assert reason in error.value.found
    for path in ("nowhere.nii", "nowhere_lines-even.nii"):
        with pytest.raises(QMRIError, match="no such file"):
            load(tmp_path / path)


def test_a_file_that_cannot_be_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "damaged.nii.gz").write_bytes(b"no image")
    with pytest.raises(QMRIError, match=r"damaged\.nii\.gz"):
        find_view_lines(tmp_path)
    write(tmp_path / "gel.nii")
    assert [f["stem"] for f in find_view_lines(tmp_path)] == ["gel"]
    assert "damaged.nii.gz is left out" in caplog.text


def test_half_a_pair(tmp_path: Path) -> None:
    even, odd = write_pair(tmp_path)
    Path(odd).unlink()
    for given in (tmp_path, even):
        with pytest.raises(QMRIError, match="even lines without odd lines") as error:
            find_view_lines(given)
        assert error.value.field == "image" and error.value.file == even
    with pytest.raises(QMRIError, match="1 channel"):
        load(even)
    write(tmp_path / "gel_lines-odd.nii")
    write(tmp_path / "gel_lines-odd.nii.gz")
    with pytest.raises(QMRIError, match=r"gel_lines-odd\.nii, gel_lines-odd\.nii\.gz"):
        find_view_lines(tmp_path)
    with pytest.raises(QMRIError, match="3 files"):
        load([even] * 3)
    with pytest.raises(QMRIError, match="0 files"):
        load([])


def changed(at: tuple[int, ...] | slice, value: float, channel: int = 0) -> np.ndarray:
    """Volumes with other values in one channel of the plane."""
    plane = lines()
    plane[channel][at] = value
    return stored(plane)[0]


def noisy_copy() -> np.ndarray:
    noise = np.random.default_rng(0).normal(0, 20, (2, X, Z)).astype(np.float32)  # 5 dB
    return stored(np.abs(lines()[:1] + noise))[0]


USUAL = stored(lines())[0]
PROTOCOL = f"{PIXEL:.5g}"
# What is wrong with a 4-D file: (changes, field, part of what was found).
BAD_FILES: dict[str, tuple[dict[str, Any], str, str]] = {
    "one channel": ({"data": USUAL[..., 0]}, "dim", "1 channel"),
    "three channels": ({"data": np.concatenate([USUAL, USUAL[..., :1]], -1)}, "dim", "3 channels"),
    "channels along the slices": ({"data": USUAL[:, :, 0, :]}, "dim", "several slices: shape (32, 48, 2)"),
    "several slices": ({"data": np.repeat(USUAL, 4, 2)}, "dim", "several slices"),
    "odd side": ({"data": USUAL[:31]}, "dim", "31 x 48 pixels"),
    "no multiple of 16": ({"data": USUAL[:, :40]}, "dim", "32 x 40 pixels"),
    "a line": ({"data": USUAL[:1]}, "dim", "1 x 48 pixels"),
    "5-D": ({"data": USUAL[..., None] * np.ones(2)}, "dim", "5 axes"),
    "negative": ({"data": changed((3, 4), -1e-3)}, "voxel values", "1 negative pixels among the even lines"),
    "signed": ({"data": -changed((3, 4), -1, 1)}, "voxel values", "negative pixels"),
    "complex": ({"data": USUAL.astype(np.complex64)}, "datatype", "complex"),
    "phase": ({"ImageType": ["ORIGINAL", "PRIMARY", "P"]}, "ImageType", "P"),
    "NaN": ({"data": changed((3, 4), np.nan, 1)}, "voxel values", "1 NaN or infinite voxels in volume 2 of 2"),
    "infinite": ({"data": changed((3, 4), np.inf)}, "voxel values", "1 NaN or infinite voxels in volume 1 of 2"),
    "even lines of zeros": ({"data": changed(slice(None), 0)}, "voxel values", "volume 1 of 2 is zero"),
    "odd lines of zeros": ({"data": changed(slice(None), 0, 1)}, "voxel values", "volume 2 of 2 is zero"),
    "zeros": ({"data": 0 * USUAL}, "voxel values", "is zero everywhere"),
    "one value": ({"data": changed(slice(None), 7, 1)}, "voxel values", "7 in every pixel of the odd lines"),
    "a copy": ({"data": stored(np.repeat(lines()[:1], 2, 0))[0]}, "voxel values", "a copy of the even lines"),
    "a noisy copy": ({"data": noisy_copy()}, "voxel values", "in the same places"),
    "another pixel": ({"affine": stored(lines(), pixel=(0.3, 0.3))[1]}, "pixdim", "0.3 x 0.3 mm"),
    "a pixel 1.5 % off": ({"affine": stored(lines(), pixel=(1.015 * PIXEL,) * 2)[1]}, "pixdim", "0.19824 x 0.19824"),
    "oblong pixels": ({"affine": stored(lines(), pixel=(PIXEL, 2 * PIXEL))[1]}, "pixdim", "0.19531 x 0.39062 mm"),
    "a slice across B0": ({"affine": np.diag([PIXEL, PIXEL, 1, 1])}, "affine", "normal lies 0.0 degrees off B0"),
    "tilted": ({"affine": rotated(0, 2.1)}, "affine", "2.1 degrees off B0"),
    "turned in the plane": ({"affine": rotated(1, 45)}, "affine", "45.0 degrees off B0"),
    "sheared": ({"affine": stored(lines())[1] + 0.1 * np.eye(4, k=2)}, "affine", "not at right angles"),
    "B0_dir of length 2": ({"B0_dir": [0, 2, 0]}, "B0_dir", "length 2"),
    "another TE": ({"EchoTime": 0.0092}, "EchoTime", "9.2 ms in the sidecar"),
    "TE in ms": ({"EchoTime": 8.7}, "EchoTime", "milliseconds"),
    "TE a word": ({"EchoTime": "8.7 ms"}, "EchoTime", "8.7 ms"),
    "several TE": ({"EchoTime": [0.0087, 0.02]}, "EchoTime", "several"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files(tmp_path: Path, name: str) -> None:
    changes, field, found = BAD_FILES[name]
    path = write(tmp_path / "viewline.nii.gz", **changes)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(QMRIError) as error:
        load(str(path))
    assert error.value.field == field and found in error.value.found, error.value.found
    assert error.value.remedy and error.value.expected and error.value.file == str(path)
    with pytest.raises(QMRIError):  # in a folder it is not left out in silence either
        for item in find_view_lines(tmp_path):
            LoadViewLined(pixel_size_mm=PIXEL, echo_time_s=ECHO_TIME)(item)
    assert sorted(tmp_path.iterdir()) == before


def test_what_the_messages_advise(tmp_path: Path) -> None:
    def message(**changes: Any) -> QMRIError:
        with pytest.raises(QMRIError) as error:
            load(write(tmp_path / "gel.nii", **changes))
        return error.value

    sides = message(data=USUAL[:30, :40]).expected
    assert "16 or 32 along x" in sides and "32 or 48 along z" in sides
    pixel = message(affine=stored(lines(), pixel=(0.3, 0.3))[1])
    assert PROTOCOL in pixel.expected and "resample" in pixel.remedy and "train" in pixel.remedy
    assert "resample" in message(affine=stored(lines(), pixel=(PIXEL, 0.3))[1]).remedy
    assert "divide it by 1000" in message(EchoTime=8.7).remedy
    assert "B0_dir" in message(affine=np.diag([PIXEL, PIXEL, 1, 1])).remedy


def patched(path: Path, offset: int, content: bytes) -> Path:
    """The file with other bytes in its header."""
    raw = bytearray(path.read_bytes())
    raw[offset : offset + len(content)] = content
    path.write_bytes(bytes(raw))
    return path


@pytest.mark.parametrize("size", [0.0, np.nan, -PIXEL])
def test_pixel_size_that_is_none(tmp_path: Path, size: float) -> None:
    path = patched(write(tmp_path / "gel.nii"), 80, np.float32(size).tobytes())  # pixdim[1]
    with pytest.raises(QMRIError) as error:
        load(path)
    assert error.value.field == "pixdim" and error.value.file == str(path)


def test_pixel_size_that_nobody_stated(tmp_path: Path) -> None:
    path = write(tmp_path / "gel.nii", affine=stored(lines(), pixel=(1, 1))[1])
    patched(path, 123, b"\0")  # xyzt_units
    for protocol in (None, PIXEL, 1.0):
        with pytest.raises(QMRIError, match="no pixel size") as error:
            load(path, pixel_size_mm=protocol)
        assert error.value.field == "pixdim"
    path.with_suffix(".json").write_text(json.dumps({"EchoTime": ECHO_TIME}))  # a converter wrote it: 1 mm is meant
    assert load(path, pixel_size_mm=1.0)["acquisition"]["pixel_size"].tolist() == [1.0, 1.0]
    with pytest.raises(QMRIError, match="1 x 1 mm"):
        load(path)


def test_pixel_size_in_micrometres(tmp_path: Path) -> None:
    affine = stored(lines(), pixel=(1000 * PIXEL,) * 2)[1]
    path = patched(write(tmp_path / "gel.nii", affine=affine), 123, bytes([3]))
    with pytest.raises(QMRIError, match="counts in micrometres"):
        load(path)


def test_truncated_files(tmp_path: Path) -> None:
    plain = write(tmp_path / "gel.nii")
    packed = tmp_path / "gel.nii.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes())[:-500])
    plain.write_bytes(plain.read_bytes()[:-1])
    for path in (plain, packed):
        with pytest.raises(QMRIError) as error:
            load(path)
        assert error.value.field == "file content" and error.value.file == str(path)


BAD_ODD_LINES: dict[str, tuple[np.ndarray, np.ndarray, str, str]] = {
    "another shape": (USUAL[:16, ..., 1], stored(lines())[1], "dim", "shape (16, 48, 1)"),
    "another pixel": (USUAL[..., 1], stored(lines(), pixel=(0.2, 0.2))[1], "pixdim", "0.2"),
    "another place": (USUAL[..., 1], stored(lines())[1] + 0.5 * np.eye(4, k=3), "affine", "moves a corner by 0.5 mm"),
    "two volumes": (USUAL, stored(lines())[1], "dim", "2 channels"),
    "a copy": (USUAL[..., 0], stored(lines())[1], "voxel values", "a copy of the even lines"),
    "negative": (-USUAL[..., 1], stored(lines())[1], "voxel values", "negative pixels among the odd lines"),
}


@pytest.mark.parametrize("name", BAD_ODD_LINES)
def test_odd_lines_that_do_not_fit(tmp_path: Path, name: str) -> None:
    data, affine, field, found = BAD_ODD_LINES[name]
    even, odd = write_pair(tmp_path)
    write(Path(odd), data, affine)
    with pytest.raises(QMRIError) as error:
        load([even, odd])
    assert error.value.field == field and found in error.value.found and error.value.file == odd


def test_pair_of_one_kind_of_lines_and_of_two_echo_times(tmp_path: Path) -> None:
    even, odd = write_pair(tmp_path, EchoTime=ECHO_TIME)
    with pytest.raises(QMRIError, match="even lines twice"):
        load([even, even])
    write(Path(odd), USUAL[..., 1], EchoTime=0.02)
    with pytest.raises(QMRIError, match=r"8\.7 ms, as in gel_lines-even") as error:
        load([even, odd], echo_time_s=None)
    assert error.value.file == odd and error.value.field == "EchoTime"


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"pixel_size_mm": 0.0}, "pixel_size_mm"),
        ({"pixel_size_mm": float("nan")}, "pixel_size_mm"),
        ({"echo_time_s": 8.7}, "echo_time_s"),
        ({"echo_time_s": float("nan")}, "echo_time_s"),
    ],
)
def test_bad_options(tmp_path: Path, options: dict[str, float], field: str) -> None:
    with pytest.raises(QMRIError) as error:
        load(write(tmp_path / "gel.nii"), **options)
    assert error.value.field == field


def test_echo_time_within_the_tolerance(tmp_path: Path) -> None:
    item = load(write(tmp_path / "gel.nii", EchoTime=0.009))
    assert item["details"]["Echo time"] == "9 ms, from the sidecar" and float(item["acquisition"]["echo_time"]) == 0.009
    assert load(write(tmp_path / "gel.nii", EchoTime=0.02), echo_time_s=None)["notes"] == []


def test_field_of_view_is_compared(tmp_path: Path) -> None:
    path = write(tmp_path / "gel.nii")
    assert load(path)["notes"] == []
    smaller, larger = load(path, field_of_view_mm=X * PIXEL * 1.2)["notes"]  # 6.25 x 9.375 mm, 7.5 mm
    assert smaller.startswith("along x the image is 6.25 mm, smaller")
    assert larger.startswith("along z the image is 9.375 mm, larger")


def test_clipped_intensities_are_noted(tmp_path: Path) -> None:
    (note,) = load(write(tmp_path / "gel.nii", np.minimum(USUAL, 102.0)))["notes"]
    assert "odd lines" in note and "102" in note and "clipped" in note


@pytest.mark.parametrize(("concentration", "decibels"), [(0.22, None), (27.9, 5.0)])
def test_simulated_lines_are_not_taken_for_copies(tmp_path: Path, concentration: float, decibels: float | None) -> None:
    """Voids and pile-up, strong noise: the lines of a cylinder in a gel still alternate."""
    n = 64
    axis = (torch.arange(n) - n // 2 + 0.5) * PIXEL
    x, y, z = torch.meshgrid(axis, axis[16:48], axis, indexing="ij")
    particles = concentration * ((x**2 + y**2 < 1) & (z.abs() < 2)).float()
    sequence = ViewLineSequence(lines=7, field_of_view=n * PIXEL)
    field = central_plane_field(particles, (PIXEL,) * 3)
    image = view_line_image(torch.ones(n, n), particles[:, 16], field, (PIXEL, PIXEL), sequence)
    if decibels is not None:
        sigma = float((image**2).mean() / (2 * 10 ** (decibels / 10))) ** 0.5
        image = add_rician_noise(image, sigma, generator=torch.Generator().manual_seed(1))
    data, affine = stored(image.numpy())
    assert torch.equal(load(write(tmp_path / "gel.nii", data, affine))["plane"], image)


def test_reader_takes_what_the_function_does(tmp_path: Path) -> None:
    path = write(tmp_path / "gel.nii")
    direct = load_view_line(path, pixel_size_mm=PIXEL, echo_time_s=ECHO_TIME, tolerance=1.0)
    assert torch.equal(direct["plane"], load(path)["plane"]) and direct["sources"] == [str(path)]
