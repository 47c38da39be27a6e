"""Lesion by lesion: the paper's Table 2, methods, and its Table 3, what each part of the network adds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from shared_transforms.experiments import Row, target

from . import paper
from .bench import Bench
from .methods import ABLATION, COMPARED
from .scores import RATES, Scored, comparisons, equal_seeds, scored

PROC_AUC, PR_AUC, OVER_FOREST = 0.76, 0.70, 0.15

_NOTE = (
    "Answers: thresholds of the best F1, chosen on each held-out fold and seed themselves, as the paper did; they "
    "flatter (see thresholds). Counts and rates over all folds together. proc_auc: area under the mean of the folds' "
    "ROC step curves up to a false positive rate of .1, divided by .1; pr_auc: mean average precision of the folds."
)


def lesion_table(bench: Bench, methods: Sequence[str] = COMPARED) -> list[Path]:
    """Rates, counts and areas of every method.

    Args:
        bench: scores and output folder.
        methods: names as in :data:`.methods.LABELS`.
    """
    rows = [_row(bench, one) for one in comparisons(bench.scores, methods)]
    notes = [
        _NOTE,
        "Paper: rates from its counts; PR AUC of RimNet and APRL (RF) from its percentages.",
        *bench.source_notes(),
    ]
    return bench.write("lesion_table", [*rows, *bench.absent(methods)], notes, _targets(bench))


def _targets(bench: Bench) -> list[Row]:
    if not bench.scores.seeds("qsmrim_net"):
        return []
    ours = scored(bench.scores, "qsmrim_net")
    rows = [
        target("QSMRim-Net: pROC AUC", ours.area("proc_auc"), PROC_AUC, below=False),
        target("QSMRim-Net: PR AUC", ours.area("pr_auc"), PR_AUC, below=False),
    ]
    for name, label, limit in (("aprl_forest", "APRL (RF)", OVER_FOREST), ("rimnet", "RimNet", 0.0)):
        rows += _over(bench, "qsmrim_net", name, f"QSMRim-Net: PR AUC over {label}", limit)
    return rows


def ablation(bench: Bench, methods: Sequence[str] = ABLATION) -> list[Path]:
    """The same for QSMRim-Net with parts left out, all at the seeds that they have in common.

    Args:
        bench: scores and output folder.
        methods: names as in :data:`.methods.LABELS`.
    """
    have = {name: set(bench.scores.seeds(name)) for name in methods if bench.scores.seeds(name)}
    common = sorted(set.intersection(*have.values())) if have else []
    rows = [_row(bench, scored(bench.scores, name, common)) for name in have if common]
    rows += [_row(bench, scored(bench.scores, name)) for name, seeds in have.items() if seeds != set(common)]
    steps = (
        ("qsmrim_net", "no_oversampling", "DeepSMOTE over none: PR AUC"),
        ("no_oversampling", "image_only", "radiomics over images alone: PR AUC"),
        ("qsmrim_net", "image_only", "QSMRim-Net over images alone: PR AUC"),
    )
    targets = [row for first, second, what in steps for row in _over(bench, first, second, what, 0.0)]
    notes = [
        _NOTE,
        f"First rows: all at the seeds {', '.join(map(str, common)) or 'none'}, which they have in common. Further "
        "rows: those with more, at all of theirs. Targets compare at equal seeds.",
        *bench.source_notes(),
    ]
    return bench.write("ablation", [*rows, *bench.absent(methods)], notes, targets)


def _over(bench: Bench, first: str, second: str, what: str, limit: float) -> list[Row]:
    """How far the first is above the second, at equal seeds; nothing where one has no scores."""
    if not (bench.scores.seeds(first) and bench.scores.seeds(second)):
        return []
    one, other = equal_seeds(bench.scores, first, second)
    return [target(what, one.area("pr_auc") - other.area("pr_auc"), limit, below=False)]


def _row(bench: Bench, one: Scored) -> Row:
    row = {**one.key, "lesions": len(one.label), "rims": int(one.label.sum())}
    row |= one.rates_row(bench.resamples, bench.seed) | one.areas_row(bench.resamples, bench.seed)
    reported = paper.counts_of(one.method)
    row |= {f"paper_{name}": None if reported is None else getattr(reported, name) for name in RATES}
    counts = paper.COUNTS.get(one.method, (None,) * 4)
    row |= dict(zip(("paper_tp", "paper_fp", "paper_fn", "paper_tn"), counts, strict=True))
    return row | {"paper_proc_auc": paper.PROC_AUC.get(one.method), "paper_pr_auc": paper.PR_AUC.get(one.method)}
