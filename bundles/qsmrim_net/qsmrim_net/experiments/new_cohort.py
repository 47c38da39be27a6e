"""The shipped ensemble, with its own thresholds, on subjects that were simulated anew."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from scipy.special import logit
from torch import nn

from shared_transforms.experiments import Row, interval
from shared_transforms.metrics.calibration import expected_calibration_error

from ..cohort.table import LesionTable
from ..untrained import untrained_logits
from .bench import Bench
from .scores import Floats, Integers, Scored, share_of
from .subjects import count_row

_CHUNK = 64
_LEAST = 1e-12  # distance of a probability from 0 and 1
OTHERS = ("size", "rim_contrast", "aprl_forest")


def new_cohort(bench: Bench, subjects: int = 60, cohort_seed: int = 1) -> list[Path]:
    """Areas, answers, counts and calibration on a cohort of split "test".

    Args:
        bench: network, cohort and output folder.
        subjects: number of new subjects.
        cohort_seed: of the new cohort.

    Raises:
        ValueError: when the bench has no network or no cohort.
    """
    if bench.network is None or bench.cohort is None:
        raise ValueError("network and cohort must be given for a new cohort")
    table = bench.cohort(seed=cohort_seed, subjects=bench.pick(subjects, 6), split="test")
    network = bench.network
    ours = of_table(table, "qsmrim_net", logit(np.clip(probabilities(network, table, bench), _LEAST, 1 - _LEAST)))
    rows = [_ours(ours, network, bench)]
    training = bench.training_cohort()
    rows += [
        one.key | {"seeds": None, **one.areas_row(bench.resamples, bench.seed)}
        for name in OTHERS
        for one in [of_table(table, name, untrained_logits(name, training, table, bench.seed)[:, None].numpy())]
    ]
    notes = [
        f"{len(table.subjects())} subjects of split test, seed {cohort_seed}, {len(table)} lesions, "
        f"{int(table.label.sum())} rims: drawn like those of the cross-validation, but none of them. QSMRim-Net: the "
        "shipped ensemble, trained with all lesions of the cross-validation's cohort, with the calibration and "
        "thresholds that it brings: found by the votes; review_*: mean probability at or above the threshold of high "
        "sensitivity. Other methods have no thresholds of their own; the forest was trained with all lesions too. "
        "Areas: of all lesions together. The authors have no second cohort.",
        f"Intervals: 95 %, bootstrap over subjects, {bench.resamples} draws.",
    ]
    return bench.write("new_cohort", rows, notes)


def of_table(table: LesionTable, method: str, logits: Floats) -> Scored:
    """Lesions of one table as one fold; logits ``[N, K]``."""
    subject, label = table.subject.numpy(), table.label.numpy()
    seeds = tuple(range(logits.shape[1]))
    return Scored(method, seeds, subject, np.zeros_like(subject), label, np.asarray(logits, dtype=np.float64))


def probabilities(network: nn.Module, table: LesionTable, bench: Bench) -> Floats:
    """Calibrated probabilities ``[N, seeds]`` of all lesions of a table."""
    parts = zip(table.image.split(_CHUNK), table.features.float().split(_CHUNK), strict=True)
    with torch.no_grad():
        found = [network(image.to(bench.device), features.to(bench.device)).double().cpu() for image, features in parts]
    return np.asarray(torch.cat(found).numpy())


def _ours(one: Scored, network: nn.Module, bench: Bench) -> Row:
    """With the answers that the ensemble gives a user."""
    limits = {name: network.get_buffer(name).double().cpu().numpy() for name in ("thresholds", "seed_thresholds")}
    each = 1 / (1 + np.exp(-one.logits))
    found = (each >= limits["seed_thresholds"]).sum(1) > each.shape[1] // 2
    review = one.mean >= limits["thresholds"][1]
    everywhere = np.ones(len(found), bool)

    measures: dict[str, Callable[[Integers], float]] = {
        "review_sensitivity": partial(one.rate, "sensitivity", found=review),
        "review_share": partial(share_of, review, everywhere),
        "ece": lambda rows: expected_calibration_error(one.label[rows], one.mean[rows]),
    }
    row: Row = {**one.key, **one.areas_row(bench.resamples, bench.seed)}
    row |= one.rates_row(bench.resamples, bench.seed, found)
    for name, statistic in measures.items():
        row |= interval(name, one.bootstrap(statistic, bench.resamples, bench.seed))
    counted = count_row(one, found, bench)
    kept = [name for name in counted if name.startswith(("pearson", "mse"))]
    return row | {name: counted[name] for name in kept}
