"""Inputs with a known answer, and the map that each bundle has to make of its own, for tests that run bundles."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pytest

Volume = npt.NDArray[np.float32]


def halves(low: float, high: float) -> Volume:
    """A map [H, W, D] with two values, one beside the other."""
    values = np.full((24, 32, 1), low, np.float32)
    values[:, 16:] = high
    return values


def write_series(folder: Path, name: str, signal: Volume, sidecar: dict[str, object]) -> None:
    """Write signal [N, H, W, D] with Rician noise, SNR 100, as one 4-D file with lists in its sidecar."""
    folder.mkdir()
    noise = np.random.default_rng(0).normal(0, 10, (2, *signal.shape))
    data = np.hypot(signal + noise[0], noise[1]).astype(np.float32)
    nib.save(nib.Nifti1Image(np.moveaxis(data, 0, -1), np.diag([1.5, 1.5, 3, 1])), folder / f"{name}.nii.gz")
    (folder / f"{name}.json").write_text(json.dumps(sidecar))


def inversion_recovery(folder: Path, t1: Volume) -> None:
    times = np.geomspace(0.05, 4, 12)
    decay = np.exp(-times[:, None, None, None] / t1)
    signal = np.abs(1000 * (1 - 1.95 * decay + 0.95 * np.exp(-8 / t1)))
    write_series(folder, "sub-01_IRT1", signal, {"InversionTime": times.tolist(), "RepetitionTime": 8.0})


def multi_echo(folder: Path, t2: Volume) -> None:
    times = np.arange(1, 9) * 0.02
    signal = 1000 * np.exp(-times[:, None, None, None] / t2)
    write_series(folder, "sub-01_MESE", signal, {"EchoTime": times.tolist(), "RepetitionTime": 4.0})


def spheres(chi: float) -> Volume:
    """Two spheres of opposite susceptibility in water [X, Y, Z]; NaN at their surfaces."""
    distance = np.stack([np.linalg.norm(offsets, axis=0) for offsets in from_centres()])
    truth = np.where(distance[0] < RADIUS, chi, np.where(distance[1] < RADIUS, -chi, 0.0))
    truth[(np.abs(distance - RADIUS) < 1.5).any(0)] = np.nan
    return truth.astype(np.float32)


def from_centres() -> list[Volume]:
    grid = np.stack(np.meshgrid(*[np.arange(n) for n in CUBE], indexing="ij")).astype(np.float32)
    return [grid - np.reshape(centre, (3, 1, 1, 1)) for centre in CENTRES]


def local_field(folder: Path, truth: Volume) -> None:
    """Write the field of the spheres, chi/3 (R/r)^3 (3 cos^2 - 1) outside of each, with noise and a mask [1 mm]."""
    chi = float(np.nanmax(truth))
    values = np.random.default_rng(0).normal(0, 5e-4, CUBE)
    for sign, offsets in zip((1, -1), from_centres(), strict=True):
        r = np.linalg.norm(offsets, axis=0).clip(min=1e-3)
        field = sign * chi / 3 * (RADIUS / r) ** 3 * (3 * (offsets[2] / r) ** 2 - 1)
        values += np.where(r > RADIUS, field, 0)
    grid = np.stack(np.meshgrid(*[np.arange(n) - (n - 1) / 2 for n in CUBE], indexing="ij"))
    mask = np.linalg.norm(grid / (0.46 * np.reshape(CUBE, (3, 1, 1, 1))), axis=0) < 1
    folder.mkdir()
    nib.save(nib.Nifti1Image((values * mask).astype(np.float32), np.eye(4)), folder / "sub-01_localfield.nii.gz")
    nib.save(nib.Nifti1Image(mask.astype(np.uint8), np.eye(4)), folder / "sub-01_mask.nii.gz")
    (folder / "sub-01_localfield.json").write_text(json.dumps({"Units": "ppm"}))


def perfused_halves(low: float, high: float) -> Volume:
    """Blood volumes [X, Y, Z] of tissue; NaN where an artery, a vein and the border between the halves are."""
    truth = np.repeat(halves(low, high), 3, 2)
    for place in (ARTERY, VEIN, np.s_[:, 14:18]):
        truth[place] = np.nan
    return truth


def bolus(folder: Path, cbv: Volume) -> None:
    """Write a bolus passage, TR 1.5 s, TE 30 ms: exponential residues of 6 s convolved with the arterial curve.

    The vein sees the same contrast agent later and broader. Both vessels have the relaxivity of blood.
    """
    step = 0.05
    times = step * np.arange(1800)
    late = np.maximum(times - 15, 0)
    artery = 10 * (late / 4.5) ** 3 * np.exp(3 - late / 1.5)
    vein = step / 3 * np.convolve(artery, np.exp(-np.maximum(times - 4, 0) / 3) * (times >= 4))[: len(times)]
    flow = step * np.convolve(artery, np.exp(-times / 6))[: len(times)]  # for CBV / (100 factor) of 6
    factor = (1 - 0.45) / (1 - 0.25) / 1.04
    rate = 50 * np.nan_to_num(cbv)[..., None] / (100 * factor * 6) * flow
    rate[ARTERY], rate[VEIN] = 7 * artery, 7 * vein
    signal = 1000 * np.exp(-0.03 * rate[..., ::30])
    sidecar: dict[str, object] = {"RepetitionTime": 1.5, "EchoTime": 0.03}
    write_series(folder, "sub-01_dsc", np.moveaxis(signal, -1, 0), sidecar)
    for name, place in (("mask", ...), ("label-AIF_mask", ARTERY), ("label-VOF_mask", VEIN)):
        mask = np.zeros(cbv.shape, np.uint8)
        mask[place] = 1
        nib.save(nib.Nifti1Image(mask, np.diag([1.5, 1.5, 3, 1])), folder / f"sub-01_{name}.nii.gz")


def ball(concentration: float) -> Volume:
    """Iron [ug/mm^3] in the plane of a ball in agar [X, 1, Z]; NaN at its surface and near it."""
    _, distance = from_middle()
    truth = np.where(distance < 0.8 * BALL_MM, concentration, np.where(distance > 2.0 * BALL_MM, 0.0, np.nan))
    return truth[:, None].astype(np.float32)


def from_middle() -> tuple[Volume, Volume]:
    """z of the plane's pixels, and their distance from its middle [mm], both [X, Z]."""
    steps = PIXEL_MM * (np.arange(256, dtype=np.float32) - 127.5)
    x, z = np.meshgrid(steps, steps, indexing="ij")
    return z, np.hypot(x, z)


def view_lines(folder: Path, truth: Volume) -> None:
    """Write the lines that a ball bends, one excitation after the other: field c (R/r)^3 (3 cos^2 - 1) / 3 outside."""
    z, r = from_middle()
    scale = 4e-1 * np.pi * 93.0 * np.nanmax(truth)  # mu0 Ms c [uT]
    inside = r < BALL_MM
    field = np.where(inside, 0.0, scale / 3 * (BALL_MM / r) ** 3 * (3 * (z / r) ** 2 - 1))
    slopes = np.hypot(*np.gradient(field, PIXEL_MM)) * (2 * np.pi * 42.577)
    agar = (r < 20.0) * ~inside * np.exp(-(slopes**2) * 0.002 * 0.0087**3 / 12)
    slice_gradient, readout_gradient = 5400 / 42.577, 500e3 / 42.577 / 50  # [uT/mm]
    place = np.clip((z - field / readout_gradient) / PIXEL_MM + 127.5, 0.0, 254.99)
    low = place.astype(int)
    image = np.zeros((2, 256, 257))
    for line in range(25):
        excited = agar * (np.abs(z + field / slice_gradient - 2.0 * (line - 12)) < 0.5)
        for pixel, weight in ((low, 1 - place + low), (low + 1, place - low)):
            np.add.at(image[line % 2], (np.arange(256)[:, None], pixel), 1000 * excited * weight)
    noise = np.random.default_rng(0).normal(0, 10, (2, *image.shape))
    data = np.hypot(image + noise[0], noise[1])[:, :, None, :256]
    folder.mkdir()
    affine = np.diag([PIXEL_MM, 1.0, PIXEL_MM, 1.0])
    file = nib.Nifti1Image(np.moveaxis(data, 0, -1).astype(np.float32), affine)
    file.header.set_xyzt_units("mm", "sec")
    nib.save(file, folder / "sub-01_viewline.nii.gz")
    (folder / "sub-01_viewline.json").write_text(json.dumps({"EchoTime": 0.0087}))


def rims(*strengths: float) -> Volume:
    """1 in lesions without, 2 in lesions with a rim [X, Y, Z]; NaN where there is none."""
    truth = np.full(BOX, np.nan, np.float32)
    for distance, strength in zip(from_lesions(), strengths, strict=True):
        truth[distance < LESION_MM] = 1 + (strength > 0)
    return truth


def from_lesions() -> list[Volume]:
    """Distance of every voxel from the middle of each lesion [mm]."""
    grid = np.stack(np.meshgrid(*[np.arange(n) for n in BOX], indexing="ij")).astype(np.float32)
    steps = np.reshape(LESION_VOXEL_MM, (3, 1, 1, 1))
    return [np.linalg.norm((grid - np.reshape(at, (3, 1, 1, 1))) * steps, axis=0) for at in LESIONS]


def lesion_maps(folder: Path, truth: Volume) -> None:
    """Write susceptibility [ppm], FLAIR and mask of lesions in white matter; some have a bright shell."""
    rng = np.random.default_rng(0)
    chi = rng.normal(-30, 6, BOX)  # ppb
    flair = rng.normal(300, 10, BOX)
    for distance in from_lesions():
        inside = distance < LESION_MM
        flair[inside] += 200
        if np.nanmax(truth[inside]) == 2:
            chi += 50 * np.exp(-(((distance - LESION_MM + 0.8) / 0.6) ** 2))
    affine = np.diag([*LESION_VOXEL_MM, 1])
    folder.mkdir()
    volumes = {"Chimap": 1e-3 * chi, "FLAIR": flair, "label-lesion_mask": np.isfinite(truth)}
    for name, volume in volumes.items():
        dtype = np.uint8 if volume.dtype == bool else np.float32
        nib.save(nib.Nifti1Image(volume.astype(dtype), affine), folder / f"sub-01_{name}.nii.gz")
    (folder / "sub-01_Chimap.json").write_text(json.dumps({"Units": "ppm"}))


ARTERY, VEIN = np.s_[4:6, 4:6, 1:], np.s_[18:20, 26:28, 1:]
PIXEL_MM, BALL_MM = 0.1953125, 2.5
LESION_VOXEL_MM, LESION_MM, BOX = (0.75, 0.75, 3.0), 5.5, (64, 72, 16)
LESIONS = ((16, 18, 5), (46, 18, 5), (16, 50, 10), (46, 50, 10))
RADIUS, CUBE, CENTRES = 6.0, (40, 40, 48), ((19.0, 19.0, 13.0), (20.0, 20.0, 34.0))


@dataclass(frozen=True)
class Run:
    """One inference of a packed bundle.

    Attributes:
        configs: names of the configs, base first.
        write: writes the input that belongs to the true map.
        truth: the true map; NaN where nothing is compared.
        suffix: of the map.
        unit: of the map.
        tolerance: of the median over each true value: relative, and absolute in the unit.
        voxel_mm: of the input.
        options: further options of the command.
    """

    configs: tuple[str, ...]
    write: Callable[[Path, Volume], None]
    truth: Volume
    suffix: str
    unit: str
    tolerance: tuple[float, float] = (0.1, 0.0)
    voxel_mm: tuple[float, float, float] = (1.5, 1.5, 3.0)
    options: dict[str, str] = field(default_factory=dict)

    def settings(self, root: Path, data: Path, maps: Path) -> dict[str, Any]:
        """The arguments of ``monai.bundle.run`` that infer the bundle in ``root``."""
        files = [str(root / "configs" / config) for config in self.configs]
        places = {"bundle_root": str(root), "dataset_dir": str(data), "output_dir": str(maps)}
        return {"config_file": files[0] if len(files) == 1 else files, **places, **self.options}

    def command(self, root: Path, data: Path, maps: Path) -> list[str]:
        """The same as arguments of ``python -m monai.bundle``."""
        settings = self.settings(root, data, maps)
        return ["run", *(text for key, value in settings.items() for text in (f"--{key}", str(value)))]

    def check(self, maps: Path) -> Path:
        """Assert that the map in folder ``maps`` is the true one, with its unit and a report; returns its path."""
        [path] = maps.rglob(f"*_{self.suffix}.nii.gz")
        image = nib.load(path)
        assert np.allclose(image.affine, np.diag([*self.voxel_mm, 1]))
        found = np.asarray(image.dataobj)
        relative, absolute = self.tolerance
        for value in np.unique(self.truth[np.isfinite(self.truth)]):
            assert np.median(found[self.truth == value]) == pytest.approx(value, rel=relative, abs=absolute)
        sidecar = json.loads(path.with_name(path.name.replace(".nii.gz", ".json")).read_text())
        assert sidecar["Units"] == self.unit
        assert list(maps.rglob("*report*.html"))
        return path


def susceptibility(*configs: str) -> Run:
    options = {"input_kind": "local_field"}
    return Run(configs, local_field, spheres(0.1), "Chimap", "ppm", (0.2, 0.005), (1.0, 1.0, 1.0), options)


def particles(relative: float, *configs: str) -> Run:
    voxel_mm = (PIXEL_MM, 1.0, PIXEL_MM)
    return Run(configs, view_lines, ball(3.0), "concentration", "ug/mm^3", (relative, 0.1), voxel_mm)


def lesions(*configs: str) -> Run:
    return Run(configs, lesion_maps, rims(50, 0, 0, 50), "desc-rim_dseg", "1", (0.0, 0.0), LESION_VOXEL_MM)


RUNS: dict[str, list[Run]] = {
    # The centre-line method has to find out how large the ball is: one too small by a tenth is too strong by a third.
    "deepspio": [particles(0.2, "inference.json"), particles(0.25, "inference.json", "centre_line.json")],
    "rim_relaxometry": [
        Run(("inference.json",), inversion_recovery, halves(0.8, 1.3), "T1map", "s"),
        Run(("inference.json", "t2.json"), multi_echo, halves(0.07, 0.12), "T2map", "s"),
    ],
    "qsmgan": [susceptibility("inference.json"), susceptibility("inference.json", "tv.json")],
    "qsmrim_net": [lesions("inference.json"), lesions("inference.json", "rim_contrast.json")],
    "stnet_perfusion": [
        # It was trained with veins that fill their voxels in part: of a pure one it makes too small a volume.
        Run(("inference.json",), bolus, perfused_halves(2.0, 4.0), "cbv", "ml/100 g", (0.2, 0.0)),
        Run(("inference.json", "osvd.json"), bolus, perfused_halves(2.5, 5.0), "cbv", "ml/100 g", (0.1, 0.0)),
    ],
}
