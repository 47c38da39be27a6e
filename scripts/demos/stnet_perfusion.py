"""Demonstration of stnet_perfusion: a bolus passes a brain with a stroke, from the raw series to perfusion maps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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

SUMMARY = "simulating a bolus passage through a deformed MNI152 brain with a stroke"
SEED = 9
SIZE, VOXEL_MM = (72, 88, 10), (2.5, 2.5, 6.0)
SNR, REPETITION_TIME = 50.0, 1.5  # of the baseline; [s]
AMPLITUDE = 1000.0  # stored value of the median baseline of the brain
HYPOPERFUSED = 6.0  # [s] of Tmax
MAPS = {"CBV": "ml/100 g", "CBF": "ml/100 g/min", "Tmax": "s"}
# Name of a method to its configs; the last is the one in the picture.
METHODS = {"oSVD": ["inference.json", "osvd.json"], "ST-Net": ["inference.json"]}
SHOWN_TMAX, ERROR_TMAX = 12.0, 6.0  # [s], ends of the scales of the picture


@dataclass(frozen=True)
class Scan:
    """One simulated examination; volumes are ``[X, Y, Z]``.

    Attributes:
        signal: ``[X, Y, Z, T]``, in the units of a scanner.
        repetition_time, echo_time: [s].
        mask: of the brain.
        tissue: grey and white matter without large vessels.
        truth: true maps, in the units of :data:`MAPS`.
        affine: ``[4, 4]``, voxel indices to millimetres (RAS).
    """

    signal: Any
    repetition_time: float
    echo_time: float
    mask: Any
    tissue: Any
    truth: Mapping[str, Any]
    affine: Any


@dataclass(frozen=True)
class Comparison:
    """A method against the truth: mean absolute errors over tissue, and the hypo-perfused volume."""

    method: str
    errors: Mapping[str, float]
    volume_ml: float
    true_volume_ml: float
    dice: float


def simulate(scale: float = 1.0, seed: int = SEED) -> Scan:
    """One examination of a head that no training has seen, with a stroke.

    Args:
        scale: factor on the number of voxels in the slices; they get larger as there are fewer.
        seed: of head, stroke, circulation and noise.
    """
    import numpy as np
    import torch
    from stnet_perfusion.simulator import PerfusionSimulator

    size = [*(8 * max(3, round(scale * length / 8)) for length in SIZE[:2]), SIZE[2]]
    voxel = [length * whole / count for length, whole, count in zip(VOXEL_MM, SIZE, size, strict=True)]
    simulator = PerfusionSimulator(
        size=size, voxel_size=voxel, snr=(SNR, SNR), repetition_time=(REPETITION_TIME,) * 2, lesion_share=1.0
    )
    drawn = simulator.draw(torch.Generator().manual_seed(seed), 1, split="test")
    series = simulator.series(drawn)
    mask = series["mask"][0]
    signal = series["signal"][0]
    signal = signal * (AMPLITUDE / signal[..., 1 : 1 + series["baseline_frames"]].mean(-1)[mask].median())
    truth = {name: series[name.lower()][0].numpy() for name in MAPS}
    affine = np.diag([-voxel[0], voxel[1], voxel[2], 1.0])  # stored from right to left, as scanners do
    affine[:3, 3] = [0.5 * voxel[0] * (size[0] - 1), *(-0.5 * voxel[k] * (size[k] - 1) for k in (1, 2))]
    return Scan(
        signal.numpy(), series["repetition_time"], series["echo_time"], mask.numpy(), series["tissue"][0].numpy(),
        truth, affine,
    )  # fmt: skip


def write_scan(scan: Scan, folder: Path) -> Path:
    """Write a series as dcm2niix does, in whole numbers.

    Args:
        scan: what to write.
        folder: folder of the file, made if missing.
    """
    import numpy as np

    stored = np.clip(np.rint(scan.signal), 0, 32767).astype(np.int16)
    sidecar = {"Modality": "MR", "MagneticFieldStrength": 3, "ScanningSequence": "EP", "FlipAngle": 90}
    sidecar |= {"EchoTime": scan.echo_time, "RepetitionTime": scan.repetition_time}
    return write_image(folder / f"{SUBJECT}_dsc.nii.gz", stored, scan.affine, sidecar)


def compare(scan: Scan, maps: Path, method: str) -> Comparison:
    """Compare maps with the truth, over tissue that the mask of the maps holds.

    Args:
        scan: the scan with its truth.
        maps: folder of the maps, that of the subject.
        method: its name.
    """
    import numpy as np

    inside = scan.tissue & (read_map(maps, "mask") > 0)
    found = {name: read_map(maps, name.lower()) for name in MAPS}
    errors = {name: float(np.abs(found[name] - scan.truth[name])[inside].mean()) for name in MAPS}
    late, true = (scan.tissue & (values["Tmax"] > HYPOPERFUSED) for values in (found, scan.truth))
    dice = 2.0 * float((late & true).sum()) / max(1.0, float(late.sum() + true.sum()))
    voxel_ml = abs(float(np.linalg.det(scan.affine[:3, :3]))) / 1000.0
    return Comparison(method, errors, voxel_ml * float(late.sum()), voxel_ml * float(true.sum()), dice)


def table(rows: Sequence[Comparison]) -> str:
    """The comparison as text."""
    names = "".join(f"{f'{name} [{unit}]':>20}" for name, unit in MAPS.items())
    lines = [f"mean absolute error{names}   Tmax > {HYPOPERFUSED:g} s [ml]   truth [ml]   Dice"]
    for one in rows:
        errors = "".join(f"{one.errors[name]:20.2f}" for name in MAPS)
        lines.append(f"{one.method:19}{errors}{one.volume_ml:18.1f}{one.true_volume_ml:13.1f}{one.dice:7.3f}")
    return "\n".join(lines)


def show(context: Context) -> Outcome:
    """Simulate, map by both methods and compare."""
    output, say = context.output, context.say
    scan = simulate(context.scale, SEED if context.seed is None else context.seed)
    series = write_scan(scan, output / "scans")
    for name, values in scan.truth.items():
        write_image(output / "truth" / f"{SUBJECT}_{name.lower()}.nii.gz", values, scan.affine)
    voxels = " x ".join(str(length) for length in scan.signal.shape)
    say(f"{voxels} (frames of {scan.repetition_time:g} s), SNR {SNR:g}: {series}")
    rows: list[Comparison] = []
    places: dict[str, Path] = {}
    for method, configs in METHODS.items():
        maps = output / "maps" / method
        weights = context.models is not None and configs == ["inference.json"]
        options = {"weights": str(context.models / "model.pt")} if weights and context.models else {}
        command = inference_command("stnet_perfusion", configs, output / "scans", maps, options)
        say(f"mapping perfusion by {method}, as you would with series of your own:\n\n{as_text(command)}\n")
        run_inference(command)
        folder = maps / SUBJECT
        rows.append(compare(scan, folder, method))
        places |= {f"maps of {method}": folder, f"report of {method}": folder / "report.html"}
    places["truth"] = output / "truth"
    return Outcome(table(rows), places, lambda: [_row(scan, output / "maps")])


def _row(scan: Scan, maps: Path) -> PanelRow:
    """Baseline, bolus, Tmax of both methods, truth, error of the network."""
    import numpy as np

    folders = {method: maps / method / SUBJECT for method in METHODS}
    network = list(METHODS)[-1]
    tmax = {m: np.where(scan.mask, read_map(folder, "tmax"), np.nan) for m, folder in folders.items()}
    truth = np.where(scan.mask, scan.truth["Tmax"], np.nan)
    error = np.where(scan.tissue, tmax[network] - truth, np.nan)
    mean = scan.signal[scan.mask].mean(0)
    trough = int(mean.argmin())
    before, bolus = scan.signal[..., 1:4].mean(-1), scan.signal[..., trough]
    top = float(np.percentile(before[scan.mask], 99.0))
    panels = [
        Panel(before, 0.0, top, "signal before the bolus"),
        Panel(bolus, 0.0, top, f"signal {trough * scan.repetition_time:g} s later"),
        *(Panel(values, 0.0, SHOWN_TMAX, f"Tmax, {method}", "Tmax") for method, values in tmax.items()),
        Panel(truth, 0.0, SHOWN_TMAX, "Tmax, truth", "Tmax", "Tmax [s]"),
        Panel(error, -ERROR_TMAX, ERROR_TMAX, f"Tmax, error of {network}", "RdBu_r", "error [s]"),
    ]
    return PanelRow(panels, scan.affine, scan.mask)
