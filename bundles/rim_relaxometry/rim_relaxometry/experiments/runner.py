"""Run one experiment, or all."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from shared_transforms.errors import QMRIError

from .bench import Bench, Experiment

# Experiments on inversion recovery alone.
ONLY_T1 = ("smoothness", "inversion_sweep", "structures", "sharpness", "ablation")


def run_experiments(
    bench: Bench, experiments: Mapping[str, Experiment], selected: str | Sequence[str] = "all"
) -> list[Path]:
    """Run experiments and say what they wrote.

    Args:
        bench: estimators and output folder.
        experiments: name to function, in the order in which ``"all"`` runs them.
        selected: a name, several with commas, or ``"all"``; all leaves out what does not apply: experiments on
            inversion recovery where T2 is mapped, and the phantom where no folder is given.

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
        print(f"[{number}/{len(names)}] {bench.parameter} {name}", flush=True)
        if reason := _not_applicable(bench, name):
            print(f"  left out: {reason}", flush=True)
            continue
        begin = time.perf_counter()
        written = experiments[name](bench)
        print(f"  {time.perf_counter() - begin:.0f} s: " + ", ".join(str(path) for path in written), flush=True)
        files += written
    return files


def _not_applicable(bench: Bench, name: str) -> str | None:
    if bench.parameter == "T2" and name in ONLY_T1:
        return "it is about inversion recovery, run it with --parameter T1"
    if name == "phantom" and bench.phantom_dir is None:
        return "give the folder of the NIST phantom with --phantom_dir"
    return None
