"""Run one experiment, or all."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from shared_transforms.errors import QMRIError
from shared_transforms.experiments.bench import ResultBench

__all__ = ["Experiment", "run_experiments"]

Experiment = Callable[..., list[Path]]


def run_experiments(
    bench: ResultBench, experiments: Mapping[str, Experiment], selected: str | Sequence[str] = "all"
) -> list[Path]:
    """Run experiments and say what they wrote.

    Args:
        bench: methods under comparison and output folder, the first argument of every experiment.
        experiments: name to function, in the order in which ``"all"`` runs them.
        selected: a name, several with commas, or ``"all"``; what does not apply (``bench.left_out``) is named and
            left out.

    Returns:
        The files written.

    Raises:
        QMRIError: for an unknown name.
    """
    wanted = selected.split(",") if isinstance(selected, str) else selected  # the command line makes a tuple of commas
    names = [str(name).strip() for name in wanted]
    names = list(experiments) if names == ["all"] else names
    if unknown := [name for name in names if name not in experiments]:
        raise QMRIError(
            field="experiment", found=", ".join(unknown), expected=f"all, or one of {', '.join(experiments)}",
            remedy="correct the name",
        )  # fmt: skip
    files = []
    for number, name in enumerate(names, 1):
        print(f"[{number}/{len(names)}] {bench.title(name)}", flush=True)
        if reason := bench.left_out(name):
            print(f"  left out: {reason}", flush=True)
            continue
        begin = time.perf_counter()
        written = experiments[name](bench)
        print(f"  {time.perf_counter() - begin:.0f} s: " + ", ".join(str(path) for path in written), flush=True)
        files += written
    return files
