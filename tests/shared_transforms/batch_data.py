"""Data sets of tiny subjects, and the batch of a bundle over them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from shared_transforms.batch.inference import Recipe, UnitInference
from shared_transforms.batch.record import Maker, Record, fingerprint
from shared_transforms.batch.run import BatchInference
from shared_transforms.batch.units import Unit

ROOT = Path(__file__).resolve().parents[2] / "bundles" / "rim_relaxometry"
TIMES = [0.05, 0.2, 0.5, 1.0, 2.0, 4.0]
MAKER = Maker("bundle", "1.0.0", "ab12", "cd34")


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"content of {name}")


def write_subject(root: Path, unit: Unit, t1: float = 1.0) -> Path:
    """An inversion recovery of 8 x 8 x 1 voxels without noise."""
    folder = unit.below(root) / "anat"
    folder.mkdir(parents=True, exist_ok=True)
    signal = [1000 * abs(1 - 2 * np.exp(-t / t1)) + 1 for t in TIMES]
    image = np.broadcast_to(np.array(signal, np.float32), (8, 8, 1, len(TIMES)))
    path = folder / f"{unit.label}_IRT1.nii.gz"
    nib.save(nib.Nifti1Image(np.ascontiguousarray(image), np.diag([2.0, 2, 4, 1])), path)
    (folder / f"{unit.label}_IRT1.json").write_text(json.dumps({"InversionTime": TIMES}))
    return path


def a_record(folder: Path, inputs: dict[str, Path], maker: Maker = MAKER) -> Record:
    touch(folder, "anat/map.nii.gz", "anat/map.json")
    outputs = {name: (folder / name).stat().st_size for name in ("anat/map.nii.gz", "anat/map.json")}
    return Record(maker, {k: fingerprint(v) for k, v in inputs.items()}, outputs, 1.5, 100.0, "2026-01-01", 1)


def open_unit_inference(
    data: Path, output: Path, version: str = "1.0.0", overlays: tuple[Path, ...] = (), **options: Any
) -> UnitInference:
    """An inference without its report, which takes time and is tested elsewhere."""
    options |= {"postprocessing#transforms#2#_disabled_": True, "device": "cpu"}
    recipe = Recipe("rim_relaxometry", ROOT, data, output, overlays, options)
    return UnitInference(recipe, Maker("rim_relaxometry", version, None, "0"))


def batch(data: Path, output: Path, **options: Any) -> BatchInference:
    return BatchInference("rim_relaxometry", ROOT, data, output, **options)
