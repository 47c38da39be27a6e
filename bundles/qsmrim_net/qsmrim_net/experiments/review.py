"""What is left to a reader who must not miss rims: lesions at or above a threshold of high sensitivity."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from shared_transforms.experiments import Row, interval, target
from shared_transforms.metrics.detection import high_sensitivity_threshold

from ..calibration import BELOW
from . import paper
from .bench import Bench
from .methods import COMPARED
from .scores import Flags, Scored, comparisons

SHARE = 0.17


def review(bench: Bench, methods: Sequence[str] = COMPARED) -> list[Path]:
    """False positives and lesions to review at the largest sensitivity below .95, by three ways to the threshold.

    Args:
        bench: scores and output folder.
        methods: names as in :data:`.methods.LABELS`.
    """
    rows = [
        _row(bench, one, name, found)
        for one in comparisons(bench.scores, methods)
        for name, found in ways(one).items()
    ]  # fmt: skip
    ours = next((row for row in rows if row["method"] == "qsmrim_net"), None)
    targets = [] if ours is None else [target("QSMRim-Net: share of lesions to review", ours["share"], SHARE)]
    notes = [
        "A lesion is reviewed where its mean probability reaches the threshold of the largest sensitivity strictly "
        "below .95. thresholds: own fold (chosen on the held-out fold itself, as the paper's of the F1; the target's "
        "row), all folds (one threshold for the probabilities of all folds), other folds (calibration and threshold "
        "without the fold, the only way open to a user; its sensitivity may come out on either side of .95).",
        "Paper: false positives as said or from percentages; to review: with the 168 rims found (715 is a misprint).",
        *bench.source_notes(),
    ]
    return bench.write("review", [*rows, *bench.absent(methods)], notes, targets)


def ways(one: Scored) -> dict[str, Flags]:
    """Lesions to review ``[N]``, by the way in which the threshold is chosen."""
    pooled = one.mean >= high_sensitivity_threshold(one.label, one.mean, BELOW)
    return {"own fold": one.review, "all folds": pooled, "other folds": one.fitted.review}


def _row(bench: Bench, one: Scored, thresholds: str, found: Flags) -> Row:
    count = one.counts(found)
    sensitivity = one.bootstrap(lambda rows: one.rate("sensitivity", rows, found), bench.resamples, bench.seed)
    share = one.bootstrap(lambda rows: float(found[rows].mean()), bench.resamples, bench.seed)
    reported = paper.REVIEW.get(one.method)
    return {
        **one.key, "thresholds": thresholds, "lesions": len(found), **interval("sensitivity", sensitivity),
        "fp": count.false_positive, "to_review": count.found, **interval("share", share),
        "missed": count.false_negative,
        "paper_fp": reported, "paper_to_review": None if reported is None else reported + 168,
        "paper_share": None if reported is None else (reported + 168) / 4163,
    }  # fmt: skip
