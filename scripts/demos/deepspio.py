"""Demonstration of deepspio: iron particles in a head bend the lines of a View Line image; how much iron is it?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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

SUMMARY = "simulating a View Line image of iron particles in a deformed MNI152 head"
SEED = 1
SIDE = 256  # pixels
CONCENTRATION, COUNT, DECIBELS = 6.0, 4, 25.0  # [ug/mm^3] of each body, number of bodies, [dB]
AMPLITUDE = 4000.0  # stored value of the brightest pixel
SLICE_MM = 1.0
SUFFIX = "concentration"
# Name of a method to its configs; the last is the one in the picture.
METHODS = {"centre line": ["inference.json", "centre_line.json"], "DeepSPIO": ["inference.json"]}
SHOWN, ERROR = 10.0, 6.0  # [ug/mm^3], ends of the scales of the picture


@dataclass(frozen=True)
class Scan:
    """One simulated image; volumes have one slice ``[X, Z, 1]``.

    Attributes:
        lines: even and odd lines ``[X, Z, 1, 2]``, brightest pixel 1.
        truth: concentration [ug/mm^3].
        affine: ``[4, 4]``, voxel indices to millimetres (RAS).
        pixel: [mm].
    """

    lines: Any
    truth: Any
    affine: Any
    pixel: float


@dataclass(frozen=True)
class Comparison:
    """A method against the truth.

    Attributes:
        method: its name.
        nmae: sum of absolute errors over the sum of the truth.
        mean, true_mean: concentration where there are particles [ug/mm^3].
        iron, true_iron: in the plane for each millimetre across it [ug/mm].
    """

    method: str
    nmae: float
    mean: float
    true_mean: float
    iron: float
    true_iron: float


def simulate(scale: float = 1.0, seed: int = SEED) -> Scan:
    """One image of particles in a head that no training has seen, with noise.

    Args:
        scale: factor on the number of pixels; their size stays, the network knows no other.
        seed: of head, particles and noise.
    """
    import numpy as np
    import torch
    from deepspio.simulator import ViewLineSimulator

    simulator = ViewLineSimulator(
        size=16 * max(5, round(scale * SIDE / 16)), concentration=(CONCENTRATION,) * 2, count=(COUNT,) * 2,
        noise_share=1.0, decibels=(DECIBELS,) * 2, reuse=1, anatomy={"shares": {"mni152": 1.0}},
    )  # fmt: skip
    made = simulator.simulate(simulator.draw(torch.Generator().manual_seed(seed), 1, "test"))
    lines = made["image"][0].movedim(0, -1)[:, :, None].flip(0)  # stored from right to left, as scanners do
    truth = made["label"]["parameters"][0, 0, :, :, None].flip(0)
    pixel, half = simulator.pixel_size, 0.5 * simulator.pixel_size * (simulator.size - 1)
    affine = np.zeros((4, 4))
    affine[0, 0], affine[2, 1], affine[1, 2] = -pixel, pixel, SLICE_MM  # a coronal plane: B0 along the second axis
    affine[:, 3] = half, 0.0, -half, 1.0
    return Scan((lines / lines.amax()).numpy(), truth.numpy(), affine, pixel)


def write_scan(scan: Scan, folder: Path) -> Path:
    """Write even and odd lines as one 4-D file, as dcm2niix does, in whole numbers.

    Args:
        scan: what to write.
        folder: folder of the file, made if missing.
    """
    import numpy as np

    from physics.viewline import ViewLineSequence

    stored = np.rint(AMPLITUDE * scan.lines).astype(np.int16)
    sidecar = {"Modality": "MR", "MagneticFieldStrength": 7, "ScanningSequence": "SE"}
    sidecar |= {"EchoTime": ViewLineSequence().echo_time}
    return write_image(folder / f"{SUBJECT}_viewline.nii.gz", stored, scan.affine, sidecar)


def compare(scan: Scan, maps: Path, method: str) -> Comparison:
    """Compare a map with the truth.

    Args:
        scan: the image with its truth.
        maps: folder of the map, that of the subject.
        method: its name.
    """
    import numpy as np

    found, truth = read_map(maps, SUFFIX), scan.truth.astype(np.float64)
    inside, area = truth > 0, scan.pixel**2
    error = float(np.abs(found - truth).sum() / truth.sum())
    means = float(found[inside].mean()), float(truth[inside].mean())
    return Comparison(method, error, *means, area * float(found.sum()), area * float(truth.sum()))


def table(rows: Sequence[Comparison]) -> str:
    """The comparison as text."""
    lines = ["method             NMAE   mean in particles [ug/mm^3]    truth   iron [ug/mm]    truth"]
    lines += [
        f"{r.method:16}{r.nmae:7.3f}{r.mean:30.2f}{r.true_mean:9.2f}{r.iron:15.2f}{r.true_iron:9.2f}" for r in rows
    ]
    return "\n".join([*lines, "\nNMAE: 0 is the truth, 1 a map of zeros."])


def show(context: Context) -> Outcome:
    """Simulate, map by both methods and compare."""
    output, say = context.output, context.say
    scan = simulate(context.scale, SEED if context.seed is None else context.seed)
    image = write_scan(scan, output / "scans")
    write_image(output / "truth" / f"{SUBJECT}_{SUFFIX}.nii.gz", scan.truth, scan.affine)
    pixels = " x ".join(str(length) for length in scan.truth.shape[:2])
    say(f"{pixels} pixels of {1000 * scan.pixel:.0f} um, even and odd lines, {DECIBELS:g} dB: {image}")
    rows: list[Comparison] = []
    places: dict[str, Path] = {}
    for method, configs in METHODS.items():
        maps = output / "maps" / method.replace(" ", "_")
        own = context.models is not None and configs == ["inference.json"]
        options = {"weights": str(context.models / "model.pt")} if own and context.models else {}
        command = inference_command("deepspio", configs, output / "scans", maps, options)
        say(f"mapping the iron by {method}, as you would with images of your own:\n\n{as_text(command)}\n")
        run_inference(command)
        folder = maps / SUBJECT
        rows.append(compare(scan, folder, method))
        places |= {f"map of {method}": folder, f"report of {method}": folder / "report.html"}
    places["truth"] = output / "truth"
    return Outcome(table(rows), places, lambda: [_row(scan, output / "maps")])


def _row(scan: Scan, maps: Path) -> PanelRow:
    """Even and odd lines, both estimates, truth, error of the network."""
    import numpy as np

    found = {method: read_map(maps / method.replace(" ", "_") / SUBJECT, SUFFIX) for method in METHODS}
    network = list(METHODS)[-1]
    top = float(np.percentile(scan.lines, 99.5))
    panels = [
        Panel(scan.lines[..., 0], 0.0, top, "even lines"),
        Panel(scan.lines[..., 1], 0.0, top, "odd lines"),
        *(Panel(values, 0.0, SHOWN, f"iron, {method}", "magma") for method, values in found.items()),
        Panel(scan.truth, 0.0, SHOWN, "iron, truth", "magma", "iron [ug/mm^3]"),
        Panel(found[network] - scan.truth, -ERROR, ERROR, f"iron, error of {network}", "RdBu_r", "error [ug/mm^3]"),
    ]
    return PanelRow(panels, scan.affine, np.ones_like(scan.truth))
