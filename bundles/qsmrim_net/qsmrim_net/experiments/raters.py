"""Do the errors lie where the two raters disagreed?"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from shared_transforms.experiments import interval

from . import paper
from .bench import Bench
from .methods import COMPARED
from .scores import Flags, Scored, comparisons, share_of


def raters(bench: Bench, methods: Sequence[str] = COMPARED) -> list[Path]:
    """Share of lesions on which the raters disagreed, among true and false answers of each kind.

    Args:
        bench: scores and output folder.
        methods: names as in :data:`.methods.LABELS`.
    """
    disagreed = np.not_equal(*bench.scores.raters.T)
    rows = []
    for one in comparisons(bench.scores, methods):
        for answer, chosen in answers(one).items():
            estimate = one.bootstrap(partial(share_of, disagreed, chosen), bench.resamples, bench.seed)
            rows.append({
                **one.key, "answer": answer, "lesions": int(chosen.sum()), "disagreed": int(disagreed[chosen].sum()),
                **interval("share", estimate),
                "paper_share": paper.DISAGREEMENT[answer] if one.method == "qsmrim_net" else None,
            })  # fmt: skip
    notes = [
        f"Two raters disagreed on {int(disagreed.sum())} of {len(disagreed)} lesions. Simulated raters err more often "
        "where the rim is faint, or where something looks like one; the third opinion is the truth. Answers by the "
        "paper's thresholds, of the best F1 on the held-out fold.",
        *bench.source_notes(),
    ]
    return bench.write("raters", [*rows, *bench.absent(methods)], notes)


def answers(one: Scored) -> dict[str, Flags]:
    """Lesions ``[N]`` by what was said of them and what they are."""
    rim, found = one.label == 1, one.found
    return {
        "false positive": ~rim & found, "false negative": rim & ~found, "true positive": rim & found,
        "true negative": ~rim & ~found,
    }  # fmt: skip
