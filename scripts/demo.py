"""Show rim_relaxometry at work: simulate scans of a real head, map T1 and T2, compare with the truth.

python scripts/demo.py [--output DIR]

The head is nilearn's MNI152 template, deformed, a head that no training has seen. The scans are written as dcm2niix
and BIDS would write them, one file for each time, so what follows is what a user does with scans of their own: one
``python -m monai.bundle run`` for each parameter.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
BUNDLE = REPOSITORY / "bundles" / "rim_relaxometry"
sys.path[:0] = [str(REPOSITORY), str(BUNDLE)]

SUBJECT = "sub-demo"
MARK = "made by scripts/demo.py"
SEED, SLICES, SIZE = 4, 5, 160
SNR = 30.0
SCALE = 1500.0  # amplitude of CSF in the stored integers
SLICE_MM, FIELD_OF_VIEW_MM = 5.0, 240.0
STACK_MM = -14.0  # middle of the stack above that of the head: through the ventricles
INVERSION_TIMES = (0.05, 0.12, 0.25, 0.45, 0.75, 1.2, 1.9, 2.8)  # [s]
ECHO_TIMES = tuple(round(0.0125 * echo, 4) for echo in range(1, 13))  # [s]
REPETITION_TIME = 4.0  # [s]
INVERSION, INVERSION_SPREAD = 1.88, 0.04  # B: its mean, and the standard deviation of its smooth variation
MODELS = {"T1": "model.pt", "T2": "model_t2.pt"}
TISSUES = {"grey matter": 1, "white matter": 2}  # channels of the tissue fractions
PURE = 0.9  # a voxel counts for a tissue that fills this much of it


@dataclass(frozen=True)
class Scan:
    """One simulated acquisition.

    Attributes:
        parameter: "T1" or "T2".
        series: weighted images ``[N, H, W, D]``; amplitude of CSF about 1.
        truth: the true T1 or T2 ``[H, W, D]`` [s].
        fractions: tissue fractions ``[9, H, W, D]``.
        times: inversion or echo times ``[N]`` [s].
        affine: ``[4, 4]``, voxel indices to millimetres (RAS).
    """

    parameter: str
    series: Any
    truth: Any
    fractions: Any
    times: Sequence[float]
    affine: Any


@dataclass(frozen=True)
class Comparison:
    """Estimate against truth in the voxels of one tissue.

    Attributes:
        parameter, tissue: what is compared, and where.
        voxels: number of voxels.
        truth, estimate: medians [s].
        bias: median error [%].
        error: median absolute error [%].
        coverage: share of voxels whose truth lies within 1.96 standard errors of the estimate [%].
    """

    parameter: str
    tissue: str
    voxels: int
    truth: float
    estimate: float
    bias: float
    error: float
    coverage: float


def simulate(slices: int = SLICES, size: int = SIZE, seed: int = SEED) -> list[Scan]:
    """Scan one deformed head by inversion recovery and by multi-echo spin echo, with Rician noise.

    Args:
        slices: number of axial slices, 5 mm apart.
        size: voxels along each side of a slice, over 240 mm.
        seed: of head, tissues and noise.

    Returns:
        The T1 scan and the T2 scan.
    """
    import numpy as np
    import torch
    from rim_relaxometry.simulator import TABLE, TISSUE_A, RelaxometrySimulator

    pixel = FIELD_OF_VIEW_MM / size
    affine = np.diag([pixel, pixel, SLICE_MM, 1.0])
    affine[:3, 3] = [-0.5 * (size - 1) * pixel, -0.5 * (size - 1) * pixel, -0.5 * (slices - 1) * SLICE_MM]
    scans = []
    for parameter, times in (("T1", INVERSION_TIMES), ("T2", ECHO_TIMES)):
        simulator = RelaxometrySimulator(
            parameter, size=(size, size), whole_slice=True, noise="rician", snr=(SNR, SNR), phantom_share=0.0,
            free_share=0.0,
        )  # fmt: skip
        # Equal seeds: both scans see one head.
        subject = simulator.draw(torch.Generator().manual_seed(seed), 1, split="test")
        drawn = replace(
            _stack(subject, slices, pixel),
            relaxation=torch.tensor(TABLE[parameter][0]).repeat(slices, 1),
            amplitude=torch.tensor(TISSUE_A).repeat(slices, 1),
            times=torch.tensor(times),
            repetition_time=torch.full((len(times),), REPETITION_TIME) if parameter == "T1" else None,
        )
        batch = simulator.simulate(drawn)
        label = batch["label"]
        scans.append(
            Scan(
                parameter,
                batch["image"].permute(1, 2, 3, 0).numpy(),
                label["parameters"][:, -1].permute(1, 2, 0).numpy(),
                label["fractions"].permute(1, 2, 3, 0).numpy(),
                times,
                affine,
            )
        )
    return scans


def _stack(subject: Any, slices: int, pixel: float) -> Any:
    """The draw of one slice as that of a stack of parallel slices of the same subject."""
    import torch

    def repeated(owner: Any) -> dict[str, Any]:
        tensors = {name: value for name, value in vars(owner).items() if isinstance(value, torch.Tensor)}
        return {name: value.repeat(slices, *[1] * (value.ndim - 1)) for name, value in tensors.items()}

    cuts = repeated(subject.slices)
    cuts["position"][:, 2] = STACK_MM + SLICE_MM * (torch.arange(slices) - 0.5 * (slices - 1))
    cuts["pixel_mm"] = torch.full((slices,), pixel)
    changes = repeated(subject) | {
        "slices": replace(subject.slices, **cuts),
        "inversion": torch.full((slices,), INVERSION),
        "inversion_spread": torch.full((slices,), INVERSION_SPREAD),
    }
    return replace(subject, **changes)


def write_scan(scan: Scan, folder: Path) -> list[Path]:
    """Write a scan as converters do: one int16 NIfTI file with a JSON sidecar for each time.

    Args:
        scan: what to write.
        folder: folder of the files, made if missing.

    Returns:
        The images.
    """
    import nibabel as nib
    import numpy as np

    folder.mkdir(parents=True, exist_ok=True)
    entity, suffix, field = ("inv", "IRT1", "InversionTime") if scan.parameter == "T1" else ("echo", "MESE", "EchoTime")
    images = []
    for number, (seconds, volume) in enumerate(zip(scan.times, scan.series, strict=True), 1):
        stem = f"{SUBJECT}_{entity}-{number}_{suffix}"
        image = nib.Nifti1Image(np.clip(np.rint(SCALE * volume), 0, 32767).astype(np.int16), scan.affine)
        image.header.set_xyzt_units("mm", "sec")
        image.set_sform(scan.affine, code="scanner")
        image.set_qform(scan.affine, code="scanner")
        nib.save(image, folder / f"{stem}.nii.gz")
        sidecar: dict[str, Any] = {"Modality": "MR", "MagneticFieldStrength": 3, "ScanningSequence": "SE"}
        sidecar |= {"SeriesDescription": f"{suffix}, simulated", "RepetitionTime": REPETITION_TIME, "EchoTime": 0.01}
        sidecar |= {field: seconds, "ImageType": ["ORIGINAL", "PRIMARY", "M"], "ConversionSoftware": MARK}
        (folder / f"{stem}.json").write_text(json.dumps(sidecar, indent=2) + "\n")
        images.append(folder / f"{stem}.nii.gz")
    return images


def write_truth(scan: Scan, folder: Path) -> None:
    """Write the true map beside which the estimate can be laid."""
    import nibabel as nib

    folder.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(scan.truth, scan.affine), folder / f"{SUBJECT}_{scan.parameter}map.nii.gz")


def inference_command(parameter: str, input_dir: Path, output_dir: Path, models: Path | None = None) -> list[str]:
    """The command that maps a folder of scans.

    Args:
        parameter: "T1" or "T2".
        input_dir: the folder.
        output_dir: folder of the maps.
        models: folder of the weights; None for the bundle's own.
    """
    names = ["inference.json", *(["t2.json"] if parameter == "T2" else [])]
    configs = [str(BUNDLE / "configs" / name) for name in names]
    command = [sys.executable, "-m", "monai.bundle", "run", "--bundle_root", str(BUNDLE)]
    command += ["--config_file", configs[0] if len(configs) == 1 else json.dumps(configs)]
    command += ["--dataset_dir", str(input_dir), "--output_dir", str(output_dir)]
    return command + (["--weights", str(models / MODELS[parameter])] if models else [])


def as_text(command: Sequence[str]) -> str:
    """A command as it is typed, one option a line."""
    return " ".join(f"\\\n    {part}" if part.startswith("--") else part for part in map(shlex.quote, command))


def run_inference(command: list[str]) -> None:
    """Run the command from the root of the file system, as proof that it needs no working directory.

    Raises:
        SystemExit: if it fails; it has said why.
    """
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    # MONAI warns in every run that configs are code; these are our own.
    environment |= {"PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": environment.get("OMP_NUM_THREADS", "1")}
    done = subprocess.run(command, cwd="/", env=environment, check=False)
    if done.returncode:
        raise SystemExit(f"the inference ended with status {done.returncode}")


def compare(scan: Scan, maps: Path) -> list[Comparison]:
    """Compare the maps of a scan with its truth, tissue by tissue.

    Args:
        scan: the scan with its truth.
        maps: folder of the maps, that of the subject.

    Returns:
        One comparison for each tissue.
    """
    import nibabel as nib
    import numpy as np

    def read(suffix: str) -> Any:
        image: Any = nib.load(maps / f"{SUBJECT}_{suffix}.nii.gz")
        return np.asarray(image.dataobj, dtype=np.float64)

    estimate, deviation = read(f"{scan.parameter}map"), read(f"{scan.parameter}stderr")
    inside = read("mask") > 0
    rows = []
    for tissue, channel in TISSUES.items():
        voxels = (scan.fractions[channel] > PURE) & inside
        if not voxels.any():
            continue
        truth, error = scan.truth[voxels], estimate[voxels] - scan.truth[voxels]
        covered = np.abs(error) <= 1.96 * deviation[voxels]
        rows.append(
            Comparison(
                scan.parameter,
                tissue,
                int(voxels.sum()),
                float(np.median(truth)),
                float(np.median(estimate[voxels])),
                float(np.median(100 * error / truth)),
                float(np.median(np.abs(100 * error / truth))),
                float(100 * covered.mean()),
            )
        )
    return rows


def table(rows: Sequence[Comparison]) -> str:
    """The comparisons as text."""
    head = "     tissue         voxels   truth [ms]  estimate [ms]  median error  median |error|  in 95 % interval"
    lines = [
        f"{r.parameter:4} {r.tissue:14} {r.voxels:6d} {1000 * r.truth:12.0f} {1000 * r.estimate:14.0f}"
        f" {r.bias:+11.1f} % {r.error:13.1f} % {r.coverage:15.0f} %"
        for r in rows
    ]
    return "\n".join([head, *lines])


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("demo"), metavar="DIR", help="default: ./demo")
    parser.add_argument("--slices", type=int, default=SLICES, metavar="N", help=f"default: {SLICES}")
    parser.add_argument("--size", type=int, default=SIZE, metavar="N", help=f"voxels of 240 mm, default: {SIZE}")
    parser.add_argument("--seed", type=int, default=SEED, metavar="N", help=f"another head, default: {SEED}")
    parser.add_argument(
        "--models", type=Path, metavar="DIR", help=f"folder of other weights: {', '.join(MODELS.values())}"
    )
    parser.add_argument("--picture", type=Path, metavar="PNG", help="also draw the picture of the README")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Run the demonstration; 0 when all went well."""
    options, start = parse(arguments), time.perf_counter()
    output = options.output.resolve()
    models = options.models.resolve() if options.models else None

    def say(text: str) -> None:
        print(f"[{time.perf_counter() - start:4.0f} s] {text}", flush=True)

    say("simulating an inversion recovery and a multi-echo scan of a deformed MNI152 head ...")
    scans = simulate(options.slices, options.size, options.seed)
    for scan in scans:
        images = write_scan(scan, output / "scans" / scan.parameter)
        write_truth(scan, output / "truth")
        size = " x ".join(str(length) for length in scan.truth.shape)
        say(f"{scan.parameter}: {len(images)} images of {size} voxels, Rician noise, SNR {SNR:g}: {images[0].parent}")
    rows: list[Comparison] = []
    for scan in scans:
        maps = output / "maps" / scan.parameter
        command = inference_command(scan.parameter, output / "scans" / scan.parameter, maps, models)
        say(f"mapping {scan.parameter}, as you would with scans of your own:\n\n{as_text(command)}\n")
        run_inference(command)
        rows += compare(scan, maps / SUBJECT)
    say("done\n")
    print(table(rows))
    for scan in scans:
        folder = output / "maps" / scan.parameter / SUBJECT
        print(f"\n{scan.parameter} maps: {folder}\n{scan.parameter} report: {folder / 'report.html'}")
    print(f"\ntruth: {output / 'truth'}")
    if options.picture:
        from overview import draw

        draw(scans, output / "maps", options.picture)
        print(f"picture: {options.picture}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
