"""A small subject with lesions for the tests of inference: QSM, FLAIR and lesion mask as volumes and as files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.bundle import ConfigParser
from qsmrim_net.ensemble import RimEnsemble
from qsmrim_net.network import QSMRimNet

ROOT = Path(__file__).resolve().parents[2] / "bundles" / "qsmrim_net"
SHAPE, VOXEL = (56, 64, 16), (0.75, 0.75, 3.0)
PLAIN = np.diag([*VOXEL, 1.0])
PLAIN[:3, 3] = -20.0, -30.0, 5.0
# Middle (voxels) and radius in the plane (voxels) of each lesion; the last is a single voxel.
LESIONS = (((16, 16, 5), 5.0), ((38, 20, 9), 4.0), ((20, 44, 8), 6.0), ((40, 46, 4), 3.0), ((28, 31, 12), 0.4))


def subject() -> np.ndarray:
    """QSM [ppb], FLAIR and lesion mask ``[3, X, Y, Z]``; the first lesion has a rim of 60 ppb."""
    rng = np.random.default_rng(3)
    x, y, z = np.indices(SHAPE, dtype=np.float64)
    brain = ((x - 27.5) / 26) ** 2 + ((y - 31.5) / 30) ** 2 + ((z - 7.5) / 8) ** 2 < 1
    qsm = rng.normal(-5.0, 12.0, SHAPE)
    flair = rng.normal(100.0, 6.0, SHAPE)
    mask = np.zeros(SHAPE)
    for number, (centre, radius) in enumerate(LESIONS):
        distance = np.sqrt((x - centre[0]) ** 2 + (y - centre[1]) ** 2 + (4.0 * (z - centre[2])) ** 2)
        inside = distance <= radius
        mask[inside] = 1
        flair[inside] += 60.0
        if number == 0:
            qsm[inside & (distance > radius - 1.5)] += 60.0
    return np.stack([qsm * brain, flair.clip(1.0) * brain, mask])


def write(
    folder: Path, volumes: np.ndarray | None = None, affine: np.ndarray = PLAIN, *, joined: bool = False,
    unit: str | None = "ppm", stem: str = "sub-01",
) -> Path:  # fmt: skip
    """Write the volumes ``[3, H, W, D]`` (QSM in ppb, written in ``unit``) as three files or as one."""
    folder.mkdir(parents=True)
    values = (subject() if volumes is None else volumes).astype(np.float32)
    values = values * np.array([1e-3 if unit == "ppm" else 1.0, 1.0, 1.0], np.float32).reshape(3, 1, 1, 1)
    names = ("Chimap", "FLAIR", "label-lesion_mask")
    if joined:
        files = {f"{stem}_lesions": np.moveaxis(values, 0, -1)}
    else:
        files = {f"{stem}_{name}": volume for name, volume in zip(names, values, strict=True)}
    for name, volume in files.items():
        nib.save(nib.Nifti1Image(volume, affine), folder / f"{name}.nii.gz")
    if unit is not None:
        (folder / f"{next(iter(files))}.json").write_text(json.dumps({"Units": unit}))
    return folder


def turned(volumes: np.ndarray, affine: np.ndarray, axes: tuple[int, int, int], flips: tuple[bool, ...]) -> Any:
    """The same anatomy, stored with other axes: volumes ``[3, H, W, D]`` and their affine."""
    shape = volumes.shape[1:]
    new = np.eye(4)
    new[:3, :3] = affine[:3, axes]
    new[:3, 3] = affine[:3, 3]
    stored = volumes.transpose(0, *(1 + axis for axis in axes))
    for place, (axis, flip) in enumerate(zip(axes, flips, strict=True)):
        if flip:
            new[:3, 3] += affine[:3, axis] * (shape[axis] - 1)
            new[:3, place] *= -1
            stored = np.flip(stored, 1 + place)
    return stored, new


def ensemble() -> RimEnsemble:
    """Three small networks with random weights, calibrated so that lesions lie on both sides of the thresholds."""
    torch.manual_seed(0)
    members = [QSMRimNet(width=4) for _ in range(3)]
    for member in members:
        member.fit_normalisation(torch.randn(32, 527) * 50)
    made = RimEnsemble(members).eval()
    with torch.no_grad():
        middle = torch.logit(made(torch.zeros(1, 2, 24, 24, 8)))[0]
    slope = torch.full((3,), 100.0)
    made.set_calibration(torch.stack([slope, -slope * middle], 1), torch.tensor([0.35, 0.27]), torch.full((3,), 0.2))
    return made


def infer(data: Path, output: Path, weights: Path, report: bool = False, **overrides: Any) -> ConfigParser:
    """Run inference.json; without the report, which takes time, unless it is asked for."""
    parser = ConfigParser()
    parser.read_config(str(ROOT / "configs/inference.json"))
    parser.read_meta({"version": "1.2.3"})
    places = {"bundle_root": str(ROOT), "dataset_dir": str(data), "output_dir": str(output), "weights": str(weights)}
    disabled = {"postprocessing#transforms#5#_disabled_": not report}
    parser.update(places | {"device": "cpu", "width": 4} | disabled | overrides)
    parser.get_parsed_content("run")
    return parser
