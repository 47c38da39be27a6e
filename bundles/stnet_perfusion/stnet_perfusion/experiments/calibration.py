"""The same few numbers for every method, found on validation subjects: two factors, an offset, a threshold."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from shared_transforms.experiments import Row
from shared_transforms.metrics import equal_error_threshold

from .bench import CALIBRATION, Bench, calibrate
from .cohort import PARAMETERS, cohort
from .methods import CLASSICAL, COMPARED, NETWORKS, Method, trivial
from .scores import HYPOPERFUSED, pooled_dice


@torch.no_grad()
def calibration(
    bench: Bench,
    subjects: int = 24,
    strokes: int = 8,
    training_subjects: int = 12,
    methods: Sequence[str] = COMPARED,
) -> list[Path]:
    """Calibrate every method on the validation split; all other experiments read the table.

    Deconvolutions are tried on the frames of the series and on frames of 1.5 s, there also with other options than
    their defaults, and the best is taken.

    Args:
        bench: methods and output folder.
        subjects: of the validation split.
        strokes: how many of these with a stroke.
        training_subjects: of the training split, whose mean is the trivial answer.
        methods: names as in :data:`.methods.LABELS`.
    """
    subjects, strokes, training_subjects = bench.pick((subjects, strokes, training_subjects), (2, 1, 1))
    means = training_means(bench, training_subjects)
    variants: list[tuple[Method, float | None, dict[str, float]]] = [(trivial(means), None, {})]
    for name in methods:
        if name in CLASSICAL:
            variants += [(bench.classical(name, *choice), *choice) for choice in bench.variants(name)]
        elif name in NETWORKS and name in bench.networks:
            variants.append((bench.network(name), None, {}))
    estimates: list[list[Tensor]] = [[] for _ in variants]
    truth: list[Tensor] = []
    lesion: list[Tensor] = []
    ill: list[Tensor] = []
    for subject in tqdm(cohort(bench, "val", subjects, strokes), desc="calibration", total=subjects):
        truth.append(subject.truth)
        lesion.append(subject.lesion)
        ill.append(torch.full_like(subject.lesion, subject.stroke))
        for found, (method, *_) in zip(estimates, variants, strict=True):
            found.append(bench.estimate(method, subject))
    true, inside, stroke = torch.cat(truth, 1), torch.cat(lesion), torch.cat(ill)
    rows = [
        {
            "method": method.name, "frame_time_s": frame_time, "options": json.dumps(options), "recipe": method.recipe,
            **fitted(torch.cat(found, 1), true, inside, stroke),
        }
        for found, (method, frame_time, options) in zip(estimates, variants, strict=True)
    ]  # fmt: skip
    rows[0] |= {f"{name.lower()}_mean": value for name, value in zip(PARAMETERS, means, strict=True)}
    rows = [{**row, "chosen": _chosen(row, rows)} for row in rows]
    notes = [
        f"{subjects} subjects of the validation split, {strokes} with a stroke, SNR as drawn. Factors of CBV and CBF "
        "and the offset of Tmax make the mean absolute error over all tissue voxels least; threshold_s is where "
        "calibrated Tmax misses as large a share of the truth (Tmax > 6 s) as it takes of the rest, pooled over the "
        "subjects with a stroke. Errors and dice are after the calibration; *_uncalibrated before.",
        "frame_time_s: the series was brought to these frames first (empty: its own, 1 to 2.5 s); options: beside the "
        "defaults; chosen: the variant "
        "that the other experiments take, the one with the smaller sum of errors relative to the trivial answer. "
        f"trivial: mean over the tissue of {training_subjects} subjects of the training split, a third with a stroke, "
        "calibrated like the others, which makes it the median.",
    ]
    return bench.write(CALIBRATION, [*rows, *bench.absent(methods)], notes)


def training_means(bench: Bench, subjects: int) -> list[float]:
    """Mean CBV, CBF and Tmax over the tissue of subjects of the training split, a third of them with a stroke."""
    sums, count = torch.zeros(3, dtype=torch.float64), 0
    for subject in cohort(bench, "train", subjects, -(-subjects // 3)):
        sums += subject.truth.double().sum(1).cpu()
        count += subject.truth.shape[1]
    return (sums / count).tolist()


def fitted(estimate: Tensor, truth: Tensor, lesion: Tensor, stroke: Tensor) -> Row:
    """Calibration of a method and what is left of its error.

    Args:
        estimate: CBV, CBF, Tmax ``[3, V]`` of all voxels of all subjects.
        truth: likewise.
        lesion: voxels with true Tmax > 6 s ``[V]``.
        stroke: voxels of subjects with a stroke ``[V]``, which the threshold is found on.
    """
    row: Row = {
        "cbv_factor": least_absolute_factor(estimate[0], truth[0]),
        "cbf_factor": least_absolute_factor(estimate[1], truth[1]),
        "tmax_offset_s": float((truth[2] - estimate[2]).double().median()),
    }
    mapped = calibrate(estimate, row)
    row["threshold_s"] = equal_error_threshold(mapped[2][stroke], lesion[stroke])
    for k, name in enumerate(PARAMETERS):
        row[f"{name.lower()}_mae"] = float((mapped[k] - truth[k]).abs().double().mean())
        row[f"{name.lower()}_mae_uncalibrated"] = float((estimate[k] - truth[k]).abs().double().mean())
    row["dice"] = pooled_dice(mapped[2] > HYPOPERFUSED, lesion)
    return row


def least_absolute_factor(estimate: Tensor, truth: Tensor) -> float:
    """The factor of the estimate that makes the sum of absolute errors least: a weighted median of ratios."""
    x, y = estimate.double(), truth.double()
    x, y = x[x != 0], y[x != 0]
    if not len(x):
        return 1.0
    ratio, order = (y / x).sort()
    share = x.abs()[order].cumsum(0)
    return float(ratio[int((share < share[-1] / 2).sum())])


def _chosen(row: Row, rows: Sequence[Row]) -> bool:
    """Whether no variant of the same method has smaller errors."""

    def errors(other: Row) -> float:
        return sum(other[f"{name.lower()}_mae"] / rows[0][f"{name.lower()}_mae"] for name in PARAMETERS)

    return all(errors(row) <= errors(other) for other in rows if other["method"] == row["method"])
