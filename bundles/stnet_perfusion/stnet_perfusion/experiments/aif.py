"""Arterial and venous curves found automatically against the true ones, and what they do to the maps."""

from __future__ import annotations

import statistics
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from shared_transforms.errors import QMRIError
from shared_transforms.experiments import Row, interval, target
from shared_transforms.metrics import pearson

from ..input_functions import InputFunctionsd
from .bench import Bench
from .cohort import PARAMETERS, Subject, cohort
from .scores import HYPOPERFUSED, ratio_of_sums

FIRST = 4000  # number of the first subject: of no other experiment
CORRELATION, PEAK_FRAMES, AREA_PERCENT = 0.98, 1.0, 10.0
METHODS = ("csvd", "osvd", "stnet")
COLUMNS = ("correlation", "peak_error_frames", "area_error_percent")


@torch.no_grad()
def aif(bench: Bench, subjects: int = 24, strokes: int = 8, methods: Sequence[str] = METHODS) -> list[Path]:
    """Find the curves of held-out subjects and compare them, and the maps made with them, with the truth.

    Args:
        bench: methods and output folder.
        subjects: of the test split.
        strokes: how many of these with a stroke.
        methods: whose maps are made, names as in :data:`.methods.LABELS`.
    """
    subjects, strokes = bench.pick((subjects, strokes), (2, 1))
    ready = bench.methods(methods)
    rows: list[Row] = []
    errors: list[Row] = []
    for subject in tqdm(cohort(bench, "test", subjects, strokes, FIRST), "aif", subjects):
        row, found = compared(subject)
        rows.append(row)
        if found is None:
            continue
        for source, seen in curves_of(subject, found):
            for method in ready:
                maps = bench.calibrate(method, bench.estimate(method, seen))
                errors.append({"method": method.name, "curves": source, **_errors(maps, subject)})
    notes = [
        f"{subjects} subjects of the test split, of no other experiment, {strokes} with a stroke. correlation: of the "
        "arterial curve found with the true one in the blood; peak_error_frames: time of its largest value after that "
        "of the true one [frames]; area_error_percent: of its area once scaled to that of the venous curve found, "
        "against the true arterial area over the same frames; raw_area_percent: that of its own area. artery_share, "
        "vein_share: mean volume fraction of artery and vein in the arterial voxels; veins: arterial voxels with more "
        "vein than artery. Rows with subject = median and worst are over the subjects; failed: no curve found.",
    ]
    files = bench.write("aif", [*_overall(rows), *rows], notes, _targets(rows))
    notes = [
        "Errors over all tissue voxels of the subjects whose curves were found (cbv [ml/100 g], cbf [ml/100 g/min], "
        "tmax [s]), Dice of Tmax > 6 s, calibrated; curves: true (in the blood, without noise), marked (a few voxels "
        "full of blood to a different degree, what the methods are calibrated with and the network was trained with), "
        "automatic (tissue taken out of the arterial curve, what the deconvolutions' overlays do), automatic, as "
        "measured (what inference.json does). Intervals are over subjects.",
    ]
    return [*files, *bench.write("aif_maps", [*_map_rows(errors, bench.seed), *bench.absent(methods)], notes)]


def automatic(subject: Subject, corrected: bool = True) -> dict[Hashable, Any]:
    """What :class:`..input_functions.InputFunctionsd` adds to the examination, with or without tissue taken out."""
    item: dict[Hashable, Any] = {
        "image": subject.image[0],
        "mask": subject.mask[0],
        "acquisition": {
            "repetition_time": torch.tensor(subject.frame_time, dtype=torch.float64),
            "echo_time": torch.tensor(subject.series["echo_time"], dtype=torch.float64),
            "voxel_size": torch.tensor(subject.voxel_size, dtype=torch.float64),
        },
        "stem": subject.name, "sources": [], "notes": [], "details": {},
    }  # fmt: skip
    return InputFunctionsd("image", correct_partial_volume=corrected)(item)


def compared(subject: Subject) -> tuple[Row, dict[Hashable, Any] | None]:
    """Curves found and the truth of a subject: a row, and the item with the curves, None where none was found."""
    row: Row = {"subject": subject.name, "snr": subject.snr, "frame_time_s": subject.frame_time}
    try:
        item = automatic(subject)
    except QMRIError as error:
        return {**row, "failed": True, "note": str(error).splitlines()[0]}, None
    found, venous = (torch.as_tensor(item[name]).double().cpu() for name in ("aif", "vof"))
    true = subject.series["aif_true"][0].double().cpu()
    voxels = item["input_functions"]["aif"]["voxels"]
    artery, vein = (subject.series[name][0].cpu()[tuple(voxels.cpu().T)] for name in ("artery", "vein"))
    return {
        **row,
        "correlation": pearson(found, true),
        "peak_error_frames": int(found.argmax()) - int(true.argmax()),
        "area_error_percent": 100.0 * (float(venous.sum() / true.sum()) - 1.0),
        "raw_area_percent": 100.0 * float(found.sum() / true.sum()),
        "artery_share": float(artery.mean()),
        "vein_share": float(vein.mean()),
        "veins": int((vein > artery).sum()),
        "voxels": len(voxels),
        "vein_found": item["input_functions"]["vof"]["source"] == "automatic",
        "failed": False,
    }, item


def curves_of(subject: Subject, item: dict[Hashable, Any]) -> Iterator[tuple[str, Subject]]:
    """The examination with each kind of curves."""
    series = subject.series
    yield "true", replace(subject, aif=series["aif_true"], vof=series["vof_true"])
    yield "marked", subject
    for name, found in (("automatic", item), ("automatic, as measured", automatic(subject, corrected=False))):
        arterial, venous = (torch.as_tensor(found[key])[None].to(subject.aif) for key in ("aif", "vof"))
        yield name, replace(subject, aif=arterial, vof=venous)


def _errors(maps: Tensor, subject: Subject) -> Row:
    found = maps[2] > HYPOPERFUSED
    row: Row = {
        f"{name.lower()}_mae": float((maps[k] - subject.truth[k]).abs().double().sum())
        for k, name in enumerate(PARAMETERS)
    }
    row["dice"] = 2 * int((found & subject.lesion).sum())
    return {**row, "both": int(found.sum()) + int(subject.lesion.sum()), "voxels": subject.truth.shape[1]}


def _map_rows(errors: Sequence[Row], seed: int) -> list[Row]:
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in errors:
        groups.setdefault((row["method"], row["curves"]), []).append(row)
    found = []
    for (method, curves), members in groups.items():
        summary: Row = {"method": method, "curves": curves, "subjects": len(members)}
        for column in ("cbv_mae", "cbf_mae", "tmax_mae", "dice"):
            below = [row["both" if column == "dice" else "voxels"] for row in members]
            summary |= interval(column, ratio_of_sums([row[column] for row in members], below, seed))
        found.append(summary)
    return found


def _overall(rows: Sequence[Row]) -> list[Row]:
    """Median and worst of the subjects whose curves were found, and counts."""
    found = [row for row in rows if not row["failed"]]
    if not found:
        return []
    size = {name: sorted((abs(row[name]) for row in found), reverse=name != "correlation") for name in COLUMNS}
    common = {"veins": sum(row["veins"] for row in found), "voxels": sum(row["voxels"] for row in found)}
    failed = len(rows) - len(found)
    return [
        {"subject": "median", **{name: statistics.median(size[name]) for name in COLUMNS}, "failed": failed},
        {"subject": "worst", **{name: size[name][0] for name in COLUMNS}, **common, "failed": failed},
    ]


def _targets(rows: Sequence[Row]) -> list[Row]:
    overall = _overall(rows)
    failed = float(sum(row["failed"] for row in rows))
    found = [target("subjects without curves", failed, 0.0)]
    for row in overall:
        place = row["subject"]
        found += [
            target(f"correlation with the truth: {place}", row["correlation"], CORRELATION, below=False),
            target(f"time to peak, error [frames]: {place}", row["peak_error_frames"], PEAK_FRAMES),
            target(f"area after VOF scaling, error [%]: {place}", row["area_error_percent"], AREA_PERCENT),
        ]
    return [*found, target("voxels of veins taken for arteries", overall[1]["veins"], 0.0)] if overall else found
