"""Demonstration of qsmrim_net: which lesions have a paramagnetic rim? Also by the whole chain from the raw echoes."""

from __future__ import annotations

import csv
import math
import os
import shutil
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

SUMMARY = "simulating QSM and FLAIR of a patient with multiple sclerosis"
SEED = 3
RIMS, LESIONS = 5, 30
SMALLEST = (48, 64, 12)  # voxels
AMPLITUDE, PHASE_STEPS = 2000.0, 4096  # stored values of the brightest voxel and of pi
CHIMAP, CLASSES, PROBABILITY = "Chimap", "desc-rim_dseg", "label-rim_probseg"
# Name of a method to its configs; the last is the one in the picture.
METHODS = {"rim contrast": ["inference.json", "rim_contrast.json"], "QSMRim-Net": ["inference.json"]}
CHAIN = "QSMRim-Net on qsmgan's map"
WINDOW_MM = 30.0  # half the side of the picture
SHOWN_PPM = 0.08


@dataclass(frozen=True)
class Comparison:
    """Lesions of a method against the truth.

    Attributes:
        method: its name.
        lesions: in its table.
        rims: with a rim in truth.
        found: of them said to have one.
        false: said to have one without having it.
        review: above the threshold of high sensitivity: for a radiologist to look at.
        review_rims: of them with a rim in truth.
    """

    method: str
    lesions: int
    rims: int
    found: int
    false: int
    review: int
    review_rims: int


def simulate(scale: float = 1.0, seed: int = SEED) -> Any:
    """A patient that no training has seen, with the complex echoes of the examination.

    Args:
        scale: factor on the number of voxels; their size stays.
        seed: of head, lesions and noise.
    """
    import torch
    from qsmrim_net.cohort.subject import GradientEcho, draw_subject, simulate_subject

    sizes = zip(GradientEcho().size, SMALLEST, strict=True)
    x, y, z = (max(least, round(scale * length)) for length, least in sizes)
    protocol = GradientEcho(size=(x, y, z))
    count = max(RIMS + 2, round(scale * LESIONS))
    drawn = draw_subject(torch.Generator().manual_seed(seed), RIMS, count, split="test", protocol=protocol)
    return simulate_subject(drawn, protocol, keep_echoes=True)


def geometry(subject: Any) -> Any:
    """Voxel indices to millimetres ``[4, 4]`` of the files: stored from right to left, as scanners do."""
    import numpy as np

    affine = np.diag([-subject.voxel_size[0], *subject.voxel_size[1:], 1.0])
    affine[:3, 3] = [-0.5 * step * (n - 1) for step, n in zip(affine.diagonal()[:3], subject.qsm.shape, strict=True)]
    return affine


def stored(volume: Any) -> Any:
    """A volume ``[X, Y, Z]`` in the order of the files, numpy."""
    return volume.flip(0).numpy()


def write_scans(subject: Any, folder: Path) -> Path:
    """Write susceptibility [ppm], FLAIR and the mask of the lesions, which has a number for each.

    Args:
        subject: what to write.
        folder: folder of the files, made if missing.

    Returns:
        The susceptibility map.
    """
    import numpy as np

    affine = geometry(subject)
    flair = np.rint(stored(subject.flair)).astype(np.int16)
    write_image(folder / f"{SUBJECT}_FLAIR.nii.gz", flair, affine, {"Modality": "MR", "ScanningSequence": "SE"})
    write_image(folder / f"{SUBJECT}_label-lesion_mask.nii.gz", stored(subject.labels).astype(np.int16), affine)
    chi = (1e-3 * stored(subject.qsm)).astype(np.float32)
    return write_image(folder / f"{SUBJECT}_{CHIMAP}.nii.gz", chi, affine, {"Units": "ppm"})


def write_echoes(subject: Any, folder: Path) -> list[Path]:
    """Write magnitude and phase of each echo, and the mask of the brain, as BIDS has them.

    Args:
        subject: with its echoes.
        folder: folder of the files, made if missing.

    Returns:
        The images without the mask.
    """
    import numpy as np
    from qsmrim_net.cohort.subject import GradientEcho

    protocol, affine, images = GradientEcho(), geometry(subject), []
    scale = AMPLITUDE / float(subject.echoes[0].abs().amax())
    for number, (seconds, echo) in enumerate(zip(protocol.echo_times, subject.echoes, strict=True), 1):
        magnitude = np.rint(scale * stored(echo.abs()))
        phase = np.clip(np.rint(PHASE_STEPS / math.pi * stored(echo.angle())), -PHASE_STEPS, PHASE_STEPS - 1)
        for part, letter, volume in (("mag", "M", magnitude), ("phase", "P", phase)):
            sidecar = {"Modality": "MR", "MagneticFieldStrength": protocol.field_strength, "EchoTime": seconds}
            sidecar |= {"EchoNumber": number, "ImageType": ["ORIGINAL", "PRIMARY", letter]}
            path = folder / f"{SUBJECT}_echo-{number}_part-{part}_MEGRE.nii.gz"
            images.append(write_image(path, volume.astype(np.int16), affine, sidecar))
    write_image(folder / f"{SUBJECT}_mask.nii.gz", stored(subject.brain).astype(np.uint8), affine)
    return images


def true_rims(subject: Any) -> list[bool]:
    """Whether each lesion has a rim, in the order of the labels."""
    from qsmrim_net.cohort.population import KINDS

    return [kind == KINDS.index("rim") for kind in subject.lesions.kind.tolist()]


def compare(subject: Any, folder: Path, method: str) -> Comparison:
    """Compare the table of the lesions with the truth.

    Args:
        subject: with its truth.
        folder: of the subject's tables.
        method: its name.
    """
    with (folder / f"{SUBJECT}_lesions.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    truth = true_rims(subject)
    has, said, review = (
        [truth[int(row["lesion"]) - 1] for row in rows],
        [_is_true(row["rim"]) for row in rows],
        [_is_true(row["above_high_sensitivity_threshold"]) for row in rows],
    )
    found, reviewed = (sum(h and s for h, s in zip(has, column, strict=True)) for column in (said, review))
    return Comparison(method, len(rows), sum(truth), found, sum(said) - found, sum(review), reviewed)


def _is_true(text: str) -> bool:
    return text.lower() in ("true", "1")


def table(rows: Sequence[Comparison]) -> str:
    """The comparison as text."""
    lines = ["method                        lesions   rims   found   false   to review   rims among them"]
    lines += [
        f"{r.method:30}{r.lesions:7d}{r.rims:7d}{r.found:8d}{r.false:8d}{r.review:12d}{r.review_rims:18d}" for r in rows
    ]
    return "\n".join(lines)


def write_truth(subject: Any, folder: Path) -> None:
    """Write the susceptibility that was put in [ppm], and the lesions: 1 without, 2 with a rim."""
    import numpy as np

    affine = geometry(subject)
    write_image(folder / f"{SUBJECT}_{CHIMAP}.nii.gz", (1e-3 * stored(subject.truth)).astype(np.float32), affine)
    write_image(folder / f"{SUBJECT}_{CLASSES}.nii.gz", true_classes(subject).astype(np.uint8), affine)


def true_classes(subject: Any) -> Any:
    """Voxels of lesions in the order of the files: 1 without, 2 with a rim, 0 elsewhere."""
    import numpy as np

    return np.array([0, *(1 + rim for rim in true_rims(subject))])[stored(subject.labels)]


def show(context: Context) -> Outcome:
    """Simulate, score the lesions by both methods, and by the whole chain from the echoes, and compare."""
    output, say = context.output, context.say
    subject = simulate(context.scale, SEED if context.seed is None else context.seed)
    image = write_scans(subject, output / "scans")
    write_truth(subject, output / "truth")
    voxels = " x ".join(map(str, subject.qsm.shape))
    say(f"{voxels} voxels, {len(subject.lesions)} lesions, {sum(true_rims(subject))} of them with a rim: {image}")
    runs = {method: (configs, output / "scans") for method, configs in METHODS.items()}
    runs[CHAIN] = (METHODS["QSMRim-Net"], map_echoes(subject, context))
    rows: list[Comparison] = []
    places: dict[str, Path] = {}
    for method, (configs, scans) in runs.items():
        maps = output / "maps" / plain(method)
        own = context.models is not None and configs == ["inference.json"]
        options = {"weights": str(context.models / "model.pt")} if own and context.models else {}
        command = inference_command("qsmrim_net", configs, scans, maps, options)
        say(f"lesions with a rim by {method}, as you would with scans of your own:\n\n{as_text(command)}\n")
        run_inference(command)
        folder = maps / SUBJECT
        rows.append(compare(subject, folder, method))
        places |= {f"lesions by {method}": folder, f"report of {method}": folder / "report.html"}
    places["truth"] = output / "truth"
    return Outcome(table(rows), places, lambda: [_row(subject, output / "maps")])


def map_echoes(subject: Any, context: Context) -> Path:
    """Map the susceptibility from the echoes by qsmgan; returns a folder with this map, FLAIR and lesion mask."""
    output, scans = context.output, context.output / "scans_with_map_of_qsmgan"
    images = write_echoes(subject, output / "echoes")
    options = {"phase_range": f"[{-PHASE_STEPS}, {PHASE_STEPS}]"}  # a small box may not show the whole range
    command = inference_command("qsmgan", ["inference.json"], output / "echoes", output / "maps_of_qsmgan", options)
    context.say(f"{len(images) // 2} echoes, magnitude and phase, to a map by qsmgan:\n\n{as_text(command)}\n")
    run_inference(command, threads=os.cpu_count() or 1)  # volumes: threads pay
    scans.mkdir(parents=True, exist_ok=True)
    mapped = output / "maps_of_qsmgan" / SUBJECT
    for folder, name in ((output / "scans", "FLAIR"), (output / "scans", "label-lesion_mask"), (mapped, CHIMAP)):
        for path in folder.glob(f"{SUBJECT}_{name}.*"):  # the sidecar too
            shutil.copy(path, scans)
    return scans


def plain(method: str) -> str:
    """The name of a method as that of a folder."""
    return "".join(letter if letter.isalnum() else "_" for letter in method)


def window(subject: Any) -> Any:
    """The slab that the picture shows, in the order of the files: around the largest lesion with a rim."""
    import numpy as np

    labels = stored(subject.labels)
    sizes = np.bincount(labels.ravel(), minlength=len(subject.lesions) + 1)[1:] * np.array(true_rims(subject))
    inside = np.argwhere(labels == sizes.argmax() + 1)
    middle, steps = inside.mean(0), np.array(subject.voxel_size)
    low, high = (np.maximum(0, np.round(middle + sign * WINDOW_MM / steps)).astype(int) for sign in (-1, 1))
    shown = np.zeros(labels.shape, bool)
    plane = int(round(middle[2]))
    shown[low[0] : high[0] + 1, low[1] : high[1] + 1, plane] = True
    return shown


def _row(subject: Any, maps: Path) -> PanelRow:
    """FLAIR, map, rims found and their probability, truth of both, around a lesion with a rim."""
    import numpy as np

    folder = maps / plain(list(METHODS)[-1]) / SUBJECT
    shown = window(subject)
    flair, chi, truth = (stored(v) for v in (subject.flair, 1e-3 * subject.qsm, 1e-3 * subject.truth))
    found, probability = (read_map(folder, name) for name in (CLASSES, PROBABILITY))
    lesions = stored(subject.labels) > 0
    panels = [
        Panel(flair, 0.0, float(np.percentile(flair[shown], 99.5)), "FLAIR"),
        Panel(chi, -SHOWN_PPM, SHOWN_PPM, "susceptibility"),
        Panel(truth, -SHOWN_PPM, SHOWN_PPM, "susceptibility, truth", "gray", "chi [ppm]"),
        Panel(np.where(lesions, probability, np.nan), 0.0, 1.0, "rim, probability", "magma", "probability"),
        Panel(np.where(lesions, found, np.nan), 0.5, 2.5, "rim, found", "coolwarm"),
        Panel(np.where(lesions, true_classes(subject), np.nan), 0.5, 2.5, "rim, truth", "coolwarm"),
    ]
    return PanelRow(panels, geometry(subject), shown)
