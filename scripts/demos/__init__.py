"""Demonstrations of the bundles: one module for each, and here what they share.

A module has ``show``, a function from :class:`Context` to :class:`Outcome`, and ``SUMMARY``, what it does in words.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bundle_files import REPOSITORY

SUBJECT = "sub-demo"
MARK = "made by scripts/demo.py"


@dataclass(frozen=True)
class Context:
    """How to show a bundle.

    Attributes:
        output: folder of its files.
        say: prints a line with the time.
        models: folder of other weights, of the same names; None for the bundle's own.
        scale: factor on sizes, for a quick look.
        seed: another head; None for the module's own.
    """

    output: Path
    say: Callable[[str], None]
    models: Path | None = None
    scale: float = 1.0
    seed: int | None = None


@dataclass(frozen=True)
class Panel:
    """One picture of a row of the README's.

    Attributes:
        volume: what is shown ``[H, W, D]``.
        low, high: ends of the scale.
        title: above it.
        colours: name of a colour map.
        bar: label of a colour bar to its right; empty for none.
    """

    volume: Any
    low: float
    high: float
    title: str
    colours: str = "gray"
    bar: str = ""


@dataclass(frozen=True)
class PanelRow:
    """One row of the README's picture: volumes of one grid, and where they are cut.

    Attributes:
        panels: from left to right.
        affine: ``[4, 4]``, voxel indices to millimetres (RAS).
        mask: ``[H, W, D]``, nonzero in what is shown.
    """

    panels: list[Panel]
    affine: Any
    mask: Any


@dataclass(frozen=True)
class Outcome:
    """What a demonstration has to tell.

    Attributes:
        table: comparison with the truth, as text.
        places: what lies where.
        rows: of the picture, made when it is drawn.
    """

    table: str
    places: dict[str, Path]
    rows: Callable[[], list[PanelRow]] = field(repr=False)


def inference_command(
    bundle: str, configs: Sequence[str], input_dir: Path, output_dir: Path, options: Mapping[str, str]
) -> list[str]:
    """The command that maps a folder of scans.

    Args:
        bundle: name.
        configs: names of its configs, base first.
        input_dir: the folder.
        output_dir: folder of the maps.
        options: further options and their values.
    """
    root = REPOSITORY / "bundles" / bundle
    paths = [str(root / "configs" / name) for name in configs]
    command = [sys.executable, "-m", "monai.bundle", "run", "--bundle_root", str(root)]
    command += ["--config_file", paths[0] if len(paths) == 1 else json.dumps(paths)]
    command += ["--dataset_dir", str(input_dir), "--output_dir", str(output_dir)]
    return command + [part for name, value in options.items() for part in (f"--{name}", value)]


def as_text(command: Sequence[str]) -> str:
    """A command as it is typed, one option a line."""
    return " ".join(f"\\\n    {part}" if part.startswith("--") else part for part in map(shlex.quote, command))


def run_inference(command: list[str], threads: int = 1) -> None:
    """Run the command from the root of the file system, as proof that it needs no working directory.

    Args:
        command: what to run.
        threads: how many, where the environment does not say it.

    Raises:
        SystemExit: if it fails; it has said why.
    """
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    # MONAI warns in every run that configs are code; these are our own.
    environment |= {"PYTHONWARNINGS": "ignore", "OMP_WAIT_POLICY": "passive"}
    environment.setdefault("OMP_NUM_THREADS", str(threads))
    done = subprocess.run(command, cwd="/", env=environment, check=False)
    if done.returncode:
        raise SystemExit(f"the inference ended with status {done.returncode}")


def read_map(folder: Path, suffix: str) -> Any:
    """A map of the demonstration's subject as float64."""
    import nibabel as nib
    import numpy as np

    image: Any = nib.load(folder / f"{SUBJECT}_{suffix}.nii.gz")
    return np.asarray(image.dataobj, dtype=np.float64)


def write_image(path: Path, volume: Any, affine: Any, sidecar: Mapping[str, Any] | None = None) -> Path:
    """Write a NIfTI file as converters do, with a JSON sidecar if there is something to say; returns its path."""
    import nibabel as nib

    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(volume, affine)
    image.header.set_xyzt_units("mm", "sec")
    if volume.ndim == 4 and sidecar and "RepetitionTime" in sidecar:
        image.header.set_zooms((*image.header.get_zooms()[:3], sidecar["RepetitionTime"]))
    image.set_sform(affine, code="scanner")
    image.set_qform(affine, code="scanner")
    nib.save(image, path)
    if sidecar is not None:
        content = {**sidecar, "ConversionSoftware": MARK}
        path.with_name(path.name.replace(".nii.gz", ".json")).write_text(json.dumps(content, indent=2) + "\n")
    return path
