"""Measure how many subjects an hour batch inference does and how many samples a second training learns from.

python scripts/throughput.py [--bundle NAME ...] [--only inference|training] [--output docs/scale] [--again]
python scripts/throughput.py --write | --check

One bundle after the other, on simulated scans of the size of make demo; what is measured of this commit is not measured
again, so a run that was ended goes on. Writes OUTPUT/NAME.csv and .json. --write renders docs/scale.md from them,
--check fails where it is out of date.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bundle_files import REPOSITORY, bundle_names
from scale_page import page

BUNDLES = bundle_names()
PAGE = REPOSITORY / "docs" / "scale.md"
SETTINGS = ((1, 1), (2, 1), (1, 2))  # processes, threads of each
SECONDS = 8.0  # of work for each process, if that is more than a subject
MOST = 8  # subjects of each process
PREPARED = 2  # subjects of which the stages are measured: the first one's are told apart
# Shipped sizes, for an epoch of few batches; the rest of a training is not measured.
TRAINING = {"epochs": 1, "val_interval": 2}
BATCHES: dict[str, dict[str, Any]] = {
    "deepspio": {"batches_per_epoch": 12},
    "qsmgan": {"batches_per_epoch": 4, "volumes_per_epoch": 1},
    "qsmrim_net": {"subjects": 6, "folds": 2, "batch_size": 32},
    "rim_relaxometry": {"batches_per_epoch": 12},
    "stnet_perfusion": {"batches_per_epoch": 6, "volumes_per_epoch": 1},
}
RATES = ("simulated_per_second", "trained_per_second")
Row = dict[str, Any]


def row(kind: str, what: str, value: float, unit: str, processes: int = 1, threads: int = 1) -> Row:
    """One number of the table."""
    return {
        "kind": kind, "what": what, "processes": processes, "threads": threads, "value": float(f"{value:.4g}"),
        "unit": unit,
    }  # fmt: skip


def write_subjects(bundle: str, folder: Path, count: int) -> None:
    """A BIDS data set of equal subjects, simulated as make demo does it; what is there stays."""
    one = folder.with_name(f"{bundle}_scan")
    if not (one / "complete").exists():
        shutil.rmtree(one, ignore_errors=True)
        sys.path.insert(0, str(REPOSITORY / "bundles" / bundle))
        demo = importlib.import_module(f"demos.{bundle}")
        scan = demo.simulate()
        write = demo.write_scans if hasattr(demo, "write_scans") else demo.write_scan
        write(scan[0] if isinstance(scan, list) else scan, one)
        (one / "complete").touch()
    datatype = "perf" if bundle == "stnet_perfusion" else "anat"
    for number in range(1, count + 1):
        place = folder / f"sub-{number:03d}" / datatype
        place.mkdir(parents=True, exist_ok=True)
        for file in one.glob("sub-demo_*"):
            target = place / file.name.replace("sub-demo", f"sub-{number:03d}")
            if not target.exists():
                shutil.copy(file, target)


def recipe_of(bundle: str, data: Path, output: Path, threads: int = 1) -> Any:
    """The inference of a bundle as a batch has it, on the CPU."""
    from shared_transforms.batch.inference import Recipe

    root = REPOSITORY / "bundles" / bundle
    sys.path.insert(0, str(root))
    return Recipe(bundle, root, data, output, devices=("cpu",), threads=threads)


def inference(bundle: str, scratch: Path) -> Iterator[Row]:
    """Stages of a subject, and subjects an hour with several processes and threads."""
    from shared_transforms.batch.inference import open_inference
    from shared_transforms.batch.processes import Lost, in_processes
    from shared_transforms.batch.units import find_units

    data, output = scratch / bundle, scratch / f"{bundle}_maps"
    write_subjects(bundle, data, PREPARED)
    stages = in_child("--profile", bundle, str(data))
    yield from stages
    seconds = next(r["value"] for r in stages if r["what"] == "subject")
    for processes, threads in SETTINGS:
        each = max(1, min(MOST, round(SECONDS / seconds)))
        write_subjects(bundle, data, each * processes)
        shutil.rmtree(output, ignore_errors=True)
        recipe = recipe_of(bundle, data, output, threads)
        units = find_units(data)[: each * processes]
        session = functools.partial(open_inference, recipe, recipe.maker())
        began, results = time.perf_counter(), []
        for unit, result in in_processes(session, units, processes, threads):
            if isinstance(result, Lost) or result.status != "done":
                raise SystemExit(f"{bundle}, {unit.label}: {result}")
            results.append(result)
        whole = time.perf_counter() - began
        # The first subject of each process also pays for what is imported late.
        later = [result.seconds for result in results[processes:]] or [result.seconds for result in results]
        mean = statistics.mean(later)
        for what, value, unit_name in (
            ("subjects an hour", 3600 * processes / mean, "1/h"),
            ("seconds a subject", mean, "s"),
            ("subjects", len(units), "1"),
            ("start and first subject", whole - mean * (each - 1), "s"),
            ("peak memory of a process", max(result.peak_memory_mb for result in results), "MiB"),
        ):
            yield row("batch", what, value, unit_name, processes, threads)
    shutil.rmtree(output, ignore_errors=True)


def training(bundle: str) -> Iterator[Row]:
    """Samples a second of a training with one and with two processes."""
    for processes in (1, 2):
        for name, value in in_child("--train", bundle, processes=processes).items():
            yield row("training", name, value, "1/s", processes)


def in_child(*arguments: str, processes: int | None = None) -> Any:
    """What this script prints as its last line in a process of its own, or in several that torchrun starts."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)] if processes else []
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", "MPLBACKEND": "Agg"}
    command = [sys.executable, *launcher, str(Path(__file__)), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with status {done.returncode}:\n{done.stderr[-3000:]}")
    return json.loads(next(line for line in reversed(done.stdout.splitlines()) if line.startswith(("[", "{"))))


def profile(bundle: str, data: Path) -> list[Row]:
    """Where the time of a subject goes, in this process: import, start, and the stages of each subject."""
    began = time.perf_counter()
    import monai.bundle
    import torch

    from shared_transforms.batch.inference import UnitInference
    from shared_transforms.batch.units import find_units

    rows = [row("start", "import of torch and MONAI", time.perf_counter() - began, "s")]
    torch.set_num_threads(1)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as output:
        recipe = recipe_of(bundle, data, Path(output))
        infer = UnitInference(recipe, recipe.maker())
        rows.append(row("start", "config, network, weights", time.perf_counter() - began, "s"))
        found: list[dict[str, float]] = []
        for unit in find_units(data)[:PREPARED]:
            with stages() as spent:
                outcome = infer(unit)
            if outcome.status != "done":
                raise SystemExit(f"{bundle}, {unit.label}: {outcome.message}\n{outcome.details}")
            rest = outcome.seconds - sum(spent.values())
            found.append({**spent, "config, checks, moving": rest, "subject": outcome.seconds})
    rows.append(row("stage", "first subject", found[0]["subject"], "s"))
    for name in found[0]:
        rows.append(row("stage", name, statistics.mean(part[name] for part in found[1:]), "s"))
    assert monai.bundle is not None
    return rows


@contextmanager
def stages() -> Iterator[dict[str, float]]:
    """Seconds of each stage of an inference within, by the names of the transforms before and after the network."""
    import monai.transforms.compose as compose
    from monai.engines import SupervisedEvaluator

    spent: dict[str, float] = defaultdict(float)
    apply, iterate = compose.apply_transform, SupervisedEvaluator._iteration
    after = False

    def timed(transform: Any, *arguments: Any, **keywords: Any) -> Any:
        began = time.perf_counter()
        result = apply(transform, *arguments, **keywords)
        spent[stage_of(type(transform).__name__, after)] += time.perf_counter() - began
        return result

    def network(self: Any, engine: Any, batch: Any) -> Any:
        nonlocal after
        began, before, after = time.perf_counter(), sum(spent.values()), True
        result = iterate(self, engine, batch)  # the transforms after the network run in it, too
        spent["network"] += time.perf_counter() - began - (sum(spent.values()) - before)
        after = False
        return result

    compose.apply_transform, SupervisedEvaluator._iteration = timed, network
    try:
        yield spent
    finally:
        compose.apply_transform, SupervisedEvaluator._iteration = apply, iterate


def stage_of(transform: str, after: bool) -> str:
    """The stage that a transform belongs to."""
    if not after:
        return "reading" if transform.startswith(("Load", "Read")) else "preparation"
    if transform.startswith("Save"):
        return "report" if "Report" in transform else "writing"
    return "report" if "Sheet" in transform else "maps"


def train(bundle: str) -> dict[str, float]:
    """Samples a second in one epoch of a training, as one of the processes that torchrun has started."""
    from monai.bundle import ConfigWorkflow

    root = REPOSITORY / "bundles" / bundle
    files = [str(root / "configs" / name) for name in ("train.json", "multi_gpu_train.json")]
    rank = int(os.environ["RANK"])
    with tempfile.TemporaryDirectory() as output:
        folder = Path(output) if rank == 0 else Path(output) / "other"
        places = {"bundle_root": str(root), "output_dir": str(folder)}
        run = ConfigWorkflow(files, workflow_type="train", logging_file=False, **places, **TRAINING, **BATCHES[bundle])
        run.initialize()
        run.run()
        metrics = run.parser.get_parsed_content("train#trainer").state.metrics
        rates = {name: float(metrics[name]) for name in RATES if name in metrics}
        run.finalize()
    return rates if rank == 0 else {}


def measure(bundle: str, only: str | None, output: Path, scratch: Path, again: bool) -> None:
    """Measure what is not measured of this commit yet, and write it."""
    from shared_transforms.provenance import provenance, write_table

    origin = provenance(seed=None, folder=REPOSITORY)
    path = output / f"{bundle}.json"
    known = json.loads(path.read_text("utf-8")) if path.is_file() else {"provenance": {}, "rows": []}
    # A file holds what was measured of one commit.
    rows: list[Row] = known["rows"] if known["provenance"].get("commit") == origin["commit"] else []
    parts: dict[str, Callable[[], Iterator[Row]]] = {
        "inference": lambda: inference(bundle, scratch), "training": lambda: training(bundle),
    }  # fmt: skip
    for part, run in parts.items():
        there = any((r["kind"] == "training") == (part == "training") for r in rows)
        if only not in (None, part) or (there and not again):
            continue
        began = time.perf_counter()
        new = list(run())
        rows = [r for r in rows if (r["kind"] == "training") != (part == "training")] + new
        rows.sort(key=lambda r: r["kind"] == "training")
        write_table(output / bundle, rows, origin)
        print(f"{bundle}: {part} measured in {time.perf_counter() - began:.0f} s", flush=True)


def scratch_folder(parent: Path) -> Path:
    """The folder below ``parent`` for the scans that this commit simulates; no other commit's are there."""
    from shared_transforms.provenance import git_commit

    commit = git_commit(REPOSITORY)
    folder = parent / str(commit)
    if commit is None or commit.endswith("-dirty"):  # one name of many states
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def main(arguments: list[str] | None = None) -> int:
    """Measure, write or check; 1 where the page is out of date."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", nargs="+", choices=BUNDLES, default=BUNDLES, metavar="NAME", help="default: all")
    parser.add_argument("--only", choices=("inference", "training"), help="default: both")
    parser.add_argument("--output", type=Path, default=REPOSITORY / "docs" / "scale", metavar="DIR")
    parser.add_argument("--again", action="store_true", help="also what is measured of this commit")
    parser.add_argument("--write", action="store_true", help="measure nothing, write docs/scale.md")
    parser.add_argument("--check", action="store_true", help="measure nothing, fail where docs/scale.md is out of date")
    parser.add_argument("--profile", nargs=2, metavar=("NAME", "DATA"), help=argparse.SUPPRESS)
    parser.add_argument("--train", metavar="NAME", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.profile:
        print(json.dumps(profile(options.profile[0], Path(options.profile[1]).resolve())))
    elif options.train:
        print(json.dumps(train(options.train)))
    elif options.check or options.write:
        wanted = page(options.output)
        if options.check:
            if PAGE.is_file() and PAGE.read_text("utf-8") == wanted:
                return 0
            print("docs/scale.md is out of date: run python scripts/throughput.py --write", file=sys.stderr)
            return 1
        PAGE.write_text(wanted, "utf-8")
    else:
        scratch = scratch_folder(REPOSITORY / "build" / "throughput")
        for bundle in options.bundle:
            measure(bundle, options.only, options.output, scratch, options.again)
    return 0


if __name__ == "__main__":
    sys.exit(main())
