"""Demonstration of rim_relaxometry: an inversion recovery and a multi-echo scan of one head, mapped to T1 and T2."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from demos import (
    SUBJECT,
    Context,
    Outcome,
    Panel,
    PanelRow,
    as_text,
    inference_command,
    read_map,
    run_inference,
    write_image,
)

SUMMARY = "simulating an inversion recovery and a multi-echo scan of a deformed MNI152 head"
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
SHOWN = {"T1": (0, 3, 7), "T2": (0, 3, 11)}  # weighted images in the picture, by number
RANGE_S = {"T1": (0.0, 2.5), "T2": (0.0, 0.2)}
ERROR_PERCENT = 20.0
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
    import numpy as np

    entity, suffix, field = ("inv", "IRT1", "InversionTime") if scan.parameter == "T1" else ("echo", "MESE", "EchoTime")
    images = []
    for number, (seconds, volume) in enumerate(zip(scan.times, scan.series, strict=True), 1):
        stored = np.clip(np.rint(SCALE * volume), 0, 32767).astype(np.int16)
        sidecar: dict[str, Any] = {"Modality": "MR", "MagneticFieldStrength": 3, "ScanningSequence": "SE"}
        sidecar |= {"SeriesDescription": f"{suffix}, simulated", "RepetitionTime": REPETITION_TIME, "EchoTime": 0.01}
        sidecar |= {field: seconds, "ImageType": ["ORIGINAL", "PRIMARY", "M"]}
        images.append(
            write_image(folder / f"{SUBJECT}_{entity}-{number}_{suffix}.nii.gz", stored, scan.affine, sidecar)
        )
    return images


def compare(scan: Scan, maps: Path) -> list[Comparison]:
    """Compare the maps of a scan with its truth, tissue by tissue.

    Args:
        scan: the scan with its truth.
        maps: folder of the maps, that of the subject.

    Returns:
        One comparison for each tissue.
    """
    import numpy as np

    estimate, deviation = read_map(maps, f"{scan.parameter}map"), read_map(maps, f"{scan.parameter}stderr")
    inside = read_map(maps, "mask") > 0
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


def show(context: Context) -> Outcome:
    """Simulate, map and compare."""
    size, slices = max(16, round(SIZE * context.scale)), max(1, round(SLICES * context.scale))
    output, say = context.output, context.say
    scans = simulate(slices, size, SEED if context.seed is None else context.seed)
    for scan in scans:
        images = write_scan(scan, output / "scans" / scan.parameter)
        write_image(output / "truth" / f"{SUBJECT}_{scan.parameter}map.nii.gz", scan.truth, scan.affine)
        voxels = " x ".join(str(length) for length in scan.truth.shape)
        say(f"{scan.parameter}: {len(images)} images of {voxels} voxels, Rician noise, SNR {SNR:g}: {images[0].parent}")
    rows: list[Comparison] = []
    places = {}
    for scan in scans:
        maps = output / "maps" / scan.parameter
        command = command_for(scan.parameter, output / "scans" / scan.parameter, maps, context.models)
        say(f"mapping {scan.parameter}, as you would with scans of your own:\n\n{as_text(command)}\n")
        run_inference(command)
        rows += compare(scan, maps / SUBJECT)
        places[f"{scan.parameter} maps"] = maps / SUBJECT
        places[f"{scan.parameter} report"] = maps / SUBJECT / "report.html"
    places["truth"] = output / "truth"
    return Outcome(table(rows), places, lambda: [_row(scan, output / "maps") for scan in scans])


def command_for(parameter: str, input_dir: Path, output_dir: Path, models: Path | None = None) -> list[str]:
    """The command that maps a folder of scans.

    Args:
        parameter: "T1" or "T2".
        input_dir: the folder.
        output_dir: folder of the maps.
        models: folder of the weights; None for the bundle's own.
    """
    configs = ["inference.json", *(["t2.json"] if parameter == "T2" else [])]
    options = {"weights": str(models / MODELS[parameter])} if models else {}
    return inference_command("rim_relaxometry", configs, input_dir, output_dir, options)


def _row(scan: Scan, maps: Path) -> PanelRow:
    """Three weighted images, estimate, truth, error."""
    import numpy as np

    folder, name = maps / scan.parameter / SUBJECT, {"T1": "TI", "T2": "TE"}[scan.parameter]
    mask = read_map(folder, "mask") > 0
    top = float(np.percentile(scan.series[:, mask], 99.5))
    panels = [
        Panel(scan.series[number], 0.0, top, f"{name} {1000 * scan.times[number]:g} ms", "A")
        for number in SHOWN[scan.parameter]
    ]
    low, high = RANGE_S[scan.parameter]
    estimate, truth = (np.where(mask, v, np.nan) for v in (read_map(folder, f"{scan.parameter}map"), scan.truth))
    panels.append(Panel(estimate, low, high, f"{scan.parameter}, estimate", scan.parameter))
    panels.append(Panel(truth, low, high, f"{scan.parameter}, truth", scan.parameter, f"{scan.parameter} [s]"))
    error = 100 * (estimate / truth - 1)
    title = f"{scan.parameter}, error"
    panels.append(Panel(error, -ERROR_PERCENT, ERROR_PERCENT, title, "RdBu_r", "error [%]"))
    return PanelRow(panels, scan.affine, mask)
