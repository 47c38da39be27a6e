"""The same subjects at several noise levels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from shared_transforms.experiments import Row, interval, target

from . import charts
from .bench import Bench
from .cohort import PARAMETERS, cohort
from .methods import COMPARED, LABELS
from .scores import HYPOPERFUSED, ratio_of_sums

FIRST = 1000  # number of the first subject: none of the method tables
# SNR to column: limit, and whether less is better.
TARGETS = {
    50: {"tmax_mae": (0.30, True), "dice": (0.96, False)},
    20: {"cbf_mae": (6.0, True), "cbv_mae": (0.35, True), "tmax_mae": (0.5, True), "dice": (0.93, False)},
}
BEATEN = ("osvd", "csvd")  # at an SNR up to:
BEATEN_UP_TO = 50
COLUMNS = {"cbv_mae": True, "cbf_mae": True, "tmax_mae": True, "dice": False}  # and whether less is better


@torch.no_grad()
def noise_sweep(
    bench: Bench,
    snr: Sequence[float] = (20, 50, 100),
    subjects: int = 10,
    strokes: int = 5,
    methods: Sequence[str] = COMPARED,
) -> list[Path]:
    """Mean absolute errors and Dice (Tmax > 6 s) of every method over the baseline SNR.

    Args:
        bench: methods and output folder.
        snr: baseline SNRs.
        subjects: of the test split, others than in the method tables.
        strokes: how many of these with a stroke.
        methods: names as in :data:`.methods.LABELS`.
    """
    subjects, strokes = bench.pick((subjects, strokes), (2, 1))
    levels = [float(level) for level in bench.pick(list(snr), list(snr)[:2])]
    ready = bench.methods(methods)
    single: list[Row] = []
    examinations = cohort(bench, "test", subjects, strokes, FIRST, levels)
    for subject in tqdm(examinations, "noise sweep", subjects * len(levels)):
        for method in ready:
            raw = bench.estimate(method, subject)
            mapped = bench.calibrate(method, raw)
            found = mapped[2] > HYPOPERFUSED
            row: Row = {"snr": subject.snr, "method": method.name, "voxels": subject.truth.shape[1]}
            for k, name in enumerate(PARAMETERS):
                row[f"{name.lower()}_mae"] = float((mapped[k] - subject.truth[k]).abs().double().sum())
                row[f"{name.lower()}_mae_uncalibrated"] = float((raw[k] - subject.truth[k]).abs().double().sum())
            row["dice"] = 2 * int((found & subject.lesion).sum())
            row["both"] = int(found.sum()) + int(subject.lesion.sum())
            single.append(row)
    rows = [_summary(level, method.name, single, bench.seed) for level in levels for method in ready]
    notes = [
        f"{subjects} subjects of the test split, none of the method tables, {strokes} with a stroke, the same at every "
        "SNR. Means over all tissue voxels of all subjects (cbv [ml/100 g], cbf [ml/100 g/min], tmax [s]), Dice of "
        "Tmax > 6 s over the same; _low, _high: 95 % bootstrap interval over subjects. The curve of the artery is "
        "noisy, too. Calibrated alike on the validation split, where SNRs are as drawn (20 to 120); *_uncalibrated: "
        "before.",
    ]
    files = bench.write("noise_sweep", [*rows, *bench.absent(methods)], notes, _targets(rows))
    return [*files, bench.save_figure("noise_sweep", charts.sweep_figure(rows))]


def _summary(level: float, name: str, single: Sequence[Row], seed: int) -> Row:
    own = [row for row in single if row["snr"] == level and row["method"] == name]
    summary: Row = {"snr": level, "method": name, "subjects": len(own)}
    for column in COLUMNS:
        below = [row["both" if column == "dice" else "voxels"] for row in own]
        summary |= interval(column, ratio_of_sums([row[column] for row in own], below, seed))
    for parameter in PARAMETERS:
        column = f"{parameter.lower()}_mae_uncalibrated"
        summary[column] = sum(row[column] for row in own) / sum(row["voxels"] for row in own)
    return summary


def _targets(rows: Sequence[Row]) -> list[Row]:
    table = {(row["snr"], row["method"]): row for row in rows}
    found = []
    for (level, name), row in table.items():
        if name != "stnet":
            continue
        for column, (limit, below) in TARGETS.get(int(level), {}).items():
            found.append(target(f"{column}: ST-Net, SNR {level:g}", row[column], limit, below))
        if level > BEATEN_UP_TO:
            continue
        for rival in BEATEN:
            for column, below in COLUMNS.items():
                if (level, rival) in table:
                    text = f"{column} of ST-Net against that of {LABELS[rival]}: SNR {level:g}"
                    found.append(target(text, row[column], table[level, rival][column], below))
    return found
