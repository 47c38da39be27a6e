"""Demonstration of qsmgan: a multi-echo gradient echo of a head, from raw phase to a susceptibility map."""

from __future__ import annotations

import math
import os
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

SUMMARY = "simulating a multi-echo gradient echo of a deformed MNI152 head"
SEED = 4
SIZE, HEAD_SCALE = (112, 152, 128), 0.7  # voxels of 1 mm, and the head in them relative to the template
ECHO_TIMES = (0.005, 0.010, 0.015, 0.020, 0.025)  # [s]
FIELD_STRENGTH = 3.0  # [T]
REPETITION_TIME = 0.035  # [s]
SNR = 60.0  # of the first echo: its mean over the standard deviation of the noise in each part
AMPLITUDE = 2000.0  # mean of the first echo in the stored integers
PHASE_STEPS = 4096  # stored value of pi, as Siemens has it
SINUS_PPM, SINUS_MM, SINUS_GAP_MM = 9.4, 12.0, 4.0  # air below the front of the brain: chi, radius, distance
SHIM_PPM = 0.8  # what the shim has left, from one end of the head to the other
COIL_PHASE = 0.7  # [rad], of all echoes alike
STRUCTURES = ("pallidum", "putamen", "substantia nigra", "red nucleus", "caudate", "vein", "thalamus", "white matter")
SHOWN_PPM, ERROR_PPM, FIELD_PPM = 0.15, 0.1, 0.05  # ends of the scales of the picture


@dataclass(frozen=True)
class Scan:
    """One simulated acquisition; volumes are ``[X, Y, Z]``.

    Attributes:
        magnitude: ``[N, X, Y, Z]``, mean of the first echo 1.
        phase: ``[N, X, Y, Z]`` [rad], -pi to pi.
        mask: of the brain.
        truth: susceptibility [ppm], mean 0 over the mask.
        labels: index into the structures of the simulator plus 1.
        affine: ``[4, 4]``, voxel indices to millimetres (RAS).
    """

    magnitude: Any
    phase: Any
    mask: Any
    truth: Any
    labels: Any
    affine: Any


@dataclass(frozen=True)
class Comparison:
    """Estimate against truth in one structure: voxels, and means of both [ppm]."""

    structure: str
    voxels: int
    truth: float
    estimate: float


def simulate(scale: float = 1.0, seed: int = SEED) -> Scan:
    """Scan one deformed head: its own field and that of air below it, echo by echo, with complex noise.

    Args:
        scale: factor on head and field of view.
        seed: of head and noise.
    """
    import numpy as np
    import torch
    from qsmgan.simulator import SusceptibilitySimulator
    from qsmgan.tissues import TISSUES

    size = [8 * math.ceil(scale * length / 8) for length in SIZE]
    simulator = SusceptibilitySimulator(
        size=size, noise_ppm=(0.0, 0.0), phantom_share=0.0, channels=("field",),
        head_scale=(scale * HEAD_SCALE,) * 2, margin_mm=(0.0, 0.0), leak=0.0, remainder=0.0,
    )  # fmt: skip
    drawn = simulator.draw(torch.Generator().manual_seed(seed), 1, split="test")
    values = torch.tensor([[tissue.chi, tissue.relaxation, tissue.density] for tissue in TISSUES.values()])
    label = simulator.simulate(replace(drawn, tissues=values[None]))["label"]
    mask, labels, chi, field = (label[name][0, 0] for name in ("mask", "labels", "parameters", "field"))
    # Label 0 is outside: no signal.
    relaxation, density = (torch.cat([torch.zeros(1), column])[labels.long()] for column in values[:, 1:].T)
    total = field + background(mask)
    generator = torch.Generator().manual_seed(seed)
    echoes = []
    for seconds in ECHO_TIMES:
        angle = COIL_PHASE + 2.0 * math.pi * hertz_per_ppm() * total * seconds
        echoes.append(torch.polar(density * torch.exp(-seconds * relaxation), angle))
    series = torch.stack(echoes) / echoes[0].abs()[mask].mean()
    noise = torch.randn((2, *series.shape), generator=generator) / SNR
    series = series + torch.complex(noise[0], noise[1])
    affine = np.diag([-1.0, 1.0, 1.0, 1.0])  # stored from right to left, as scanners do
    affine[:3, 3] = [0.5 * (size[0] - 1), -0.5 * (size[1] - 1), -0.5 * (size[2] - 1)]
    return Scan(series.abs().numpy(), series.angle().numpy(), mask.numpy(), chi.numpy(), labels.numpy(), affine)


def hertz_per_ppm() -> float:
    """Frequency of one ppm of the main field."""
    from physics.phase import FREQUENCY_PER_TESLA

    return FREQUENCY_PER_TESLA * FIELD_STRENGTH


def background(mask: Any) -> Any:
    """The field [ppm] of what lies outside of a brain: a sphere of air below its front, and an imperfect shim.

    Args:
        mask: the brain ``[X, Y, Z]``, voxels of 1 mm, axes to right, front and top.
    """
    import torch

    from physics.dipole import sphere_field

    points = torch.stack(torch.meshgrid(*[torch.arange(float(n)) for n in mask.shape], indexing="ij"), -1)
    inside = points[mask]
    low, high = inside.amin(0), inside.amax(0)
    centre = 0.5 * (low + high) + torch.tensor([0.0, 0.25, 0.0]) * (high - low)
    reach = SINUS_MM + SINUS_GAP_MM
    aside = (inside - centre)[:, :2].square().sum(1)
    near = aside < reach**2
    centre[2] = (inside[near, 2] - (reach**2 - aside[near]).sqrt()).min()
    sinus = sphere_field(points, SINUS_MM, centre=centre, susceptibility=SINUS_PPM)
    return sinus + SHIM_PPM * (points[..., 1] - centre[1]) / float(high[1] - low[1])


def write_scan(scan: Scan, folder: Path) -> list[Path]:
    """Write a scan as BIDS has it: magnitude and phase of each echo, phase in whole numbers, and the brain mask.

    Args:
        scan: what to write.
        folder: folder of the files, made if missing.

    Returns:
        The images without the mask.
    """
    import numpy as np

    images = []
    for number, seconds in enumerate(ECHO_TIMES):
        magnitude = np.clip(np.rint(AMPLITUDE * scan.magnitude[number]), 0, 32767)
        phase = np.clip(np.rint(PHASE_STEPS / math.pi * scan.phase[number]), -PHASE_STEPS, PHASE_STEPS - 1)
        for part, letter, volume in (("mag", "M", magnitude), ("phase", "P", phase)):
            sidecar: dict[str, Any] = {"Modality": "MR", "MagneticFieldStrength": FIELD_STRENGTH}
            sidecar |= {"ScanningSequence": "GR", "ImageType": ["ORIGINAL", "PRIMARY", letter]}
            sidecar |= {"EchoTime": seconds, "EchoNumber": number + 1, "RepetitionTime": REPETITION_TIME}
            path = folder / f"{SUBJECT}_echo-{number + 1}_part-{part}_MEGRE.nii.gz"
            images.append(write_image(path, volume.astype(np.int16), scan.affine, sidecar))
    write_image(folder / f"{SUBJECT}_mask.nii.gz", scan.mask.astype(np.uint8), scan.affine)
    return images


def compare(scan: Scan, maps: Path) -> tuple[list[Comparison], float]:
    """Compare the map with the truth.

    Args:
        scan: the scan with its truth.
        maps: folder of the maps, that of the subject.

    Returns:
        One comparison for each structure, and the NRMSE [%]; all relative to the mean over the mask of the map.
    """
    import torch
    from qsmgan.tissues import STRUCTURES as LABELS

    from shared_transforms.metrics import nrmse

    mask = read_map(maps, "mask") > 0
    estimate = read_map(maps, "Chimap")
    estimate, truth = estimate - estimate[mask].mean(), scan.truth - scan.truth[mask].mean()
    rows = []
    for name in STRUCTURES:
        voxels = (scan.labels == LABELS.index(name) + 1) & mask
        if voxels.any():
            rows.append(
                Comparison(name, int(voxels.sum()), float(truth[voxels].mean()), float(estimate[voxels].mean()))
            )
    error = nrmse(torch.from_numpy(estimate), torch.from_numpy(truth).double(), torch.from_numpy(mask))
    return rows, float(error)


def table(rows: Sequence[Comparison], error: float) -> str:
    """The comparison as text."""
    head = "     structure         voxels   truth [ppm]  estimate [ppm]"
    lines = [f"chi  {r.structure:16} {r.voxels:7d} {r.truth:13.3f} {r.estimate:15.3f}" for r in rows]
    return "\n".join([head, *lines, f"\nNRMSE of the whole map: {error:.1f} %"])


def show(context: Context) -> Outcome:
    """Simulate, map and compare."""
    output, say = context.output, context.say
    scan = simulate(context.scale, SEED if context.seed is None else context.seed)
    images = write_scan(scan, output / "scans")
    write_image(output / "truth" / f"{SUBJECT}_Chimap.nii.gz", scan.truth, scan.affine)
    voxels = " x ".join(str(length) for length in scan.truth.shape)
    say(f"magnitude and phase of {len(ECHO_TIMES)} echoes of {voxels} voxels, SNR {SNR:g}: {images[0].parent}")
    maps = output / "maps"
    options = {"weights": str(context.models / "model.pt")} if context.models else {}
    command = inference_command("qsmgan", ["inference.json"], output / "scans", maps, options)
    say(f"mapping the susceptibility, as you would with scans of your own:\n\n{as_text(command)}\n")
    run_inference(command, threads=os.cpu_count() or 1)  # volumes, not slices: threads pay
    folder = maps / SUBJECT
    places = {"susceptibility map": folder, "report": folder / "report.html", "truth": output / "truth"}
    return Outcome(table(*compare(scan, folder)), places, lambda: [_row(scan, folder)])


def _row(scan: Scan, folder: Path) -> PanelRow:
    """Magnitude, raw phase, local field, estimate, truth, error."""
    import numpy as np

    mask = read_map(folder, "mask") > 0
    field, estimate, truth = (
        np.where(mask, v, np.nan) for v in (read_map(folder, "localfield"), read_map(folder, "Chimap"), scan.truth)
    )
    truth = truth - truth[mask].mean()
    top, last = float(np.percentile(scan.magnitude[0][scan.mask], 99.5)), ECHO_TIMES[-1]
    panels = [
        Panel(scan.magnitude[0], 0.0, top, f"magnitude, TE {1000 * ECHO_TIMES[0]:g} ms"),
        Panel(scan.phase[-1], -math.pi, math.pi, f"raw phase, TE {1000 * last:g} ms"),
        Panel(field, -FIELD_PPM, FIELD_PPM, "local field"),
        Panel(estimate, -SHOWN_PPM, SHOWN_PPM, "susceptibility, estimate"),
        Panel(truth, -SHOWN_PPM, SHOWN_PPM, "susceptibility, truth", "gray", "chi [ppm]"),
        Panel(estimate - truth, -ERROR_PPM, ERROR_PPM, "susceptibility, error", "RdBu_r", "error [ppm]"),
    ]
    return PanelRow(panels, scan.affine, scan.mask)
