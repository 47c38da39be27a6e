"""Measure the speed of the bundles, stage by stage, in one process.

python scripts/benchmark.py [--bundle NAME] [--only GROUP] [--repeats N] [--scale S] [--json STEM]

Each stage runs once to warm up and then several times; the median counts. Beside it stand the shortest and the longest
time, and the target where the project has set one. Only ratios taken within one run mean much: a busy machine slows all
stages alike. The weights do not matter to speed: networks are as initialised.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from benchmarks import Row, Settings, imports

REPOSITORY = Path(__file__).resolve().parent.parent
BUNDLES = sorted(path.stem for path in Path(__file__).with_name("benchmarks").glob("[!_]*.py"))
# Before torch is imported: a thread that waits for another on a busy machine must not count as one that works.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
sys.path[:0] = [str(REPOSITORY), *(str(REPOSITORY / "bundles" / name) for name in BUNDLES)]


def measure(module: ModuleType, settings: Settings, only: str = "") -> Iterator[Row]:
    """Measure all stages of a bundle, or those of one group.

    Args:
        module: the bundle's module in ``benchmarks``.
        settings: how.
        only: name of a group; empty for all.

    Raises:
        SystemExit: if there is no such group.
    """
    bundle = REPOSITORY / "bundles" / module.__name__.rpartition(".")[2]
    groups = {**module.groups(settings), "import": partial(imports, bundle, settings)}
    if only and only not in groups:
        raise SystemExit(f"--only must be one of {', '.join(groups)}, got {only}")
    for name, stages in groups.items():
        if only in ("", name):
            yield from stages()


def as_text(item: Row) -> str:
    """One line for the terminal."""
    mark = {None: "", True: "  reached", False: "  NOT reached"}[item.reached]
    span = f"({item.low:.4g} to {item.high:.4g})"
    return f"{item.stage:76} {item.value:10.4g} {item.unit:9} {span:24} {item.target:20}{mark}".rstrip()


def main(arguments: list[str] | None = None) -> int:
    """Measure, print and, when asked, write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", choices=BUNDLES, help="default: all")
    parser.add_argument("--only", default="", metavar="GROUP", help="one group of stages")
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="default: 5")
    parser.add_argument("--scale", type=float, default=1.0, metavar="S", help="of all sizes, for a quick look")
    parser.add_argument(
        "--json", metavar="STEM", help='also write STEM.json and STEM.csv; "{bundle}" in it is the name of the bundle'
    )
    options = parser.parse_args(arguments)
    names = BUNDLES if options.bundle is None else [options.bundle]
    if options.json and len(names) > 1 and "{bundle}" not in options.json:
        parser.error('--json needs "{bundle}" in its name where several are measured')
    import torch

    from shared_transforms.provenance import provenance, write_table

    for name in names:
        module = importlib.import_module(f"benchmarks.{name}")
        torch.set_num_threads(module.THREADS)
        origin = provenance(module.SEED)
        print(_head(name, origin), flush=True)
        rows = []
        for item in measure(module, Settings(options.repeats, options.scale), options.only):
            print(as_text(item), flush=True)
            rows.append(asdict(item))
        print()
        if options.json:
            stem = Path(options.json.replace("{bundle}", name))
            print("\n".join(str(path) for path in write_table(stem, rows, origin)))
    return 0


def _head(name: str, origin: dict[str, Any]) -> str:
    machine = origin["hardware"]
    text = f"{name}: {machine['cpu']}, {machine['threads']} thread(s) of {machine['cores']} core(s)"
    versions = ", ".join(f"{package} {version}" for package, version in origin["versions"].items())
    return f"{text}, commit {origin['commit']}\n{versions}\n"


if __name__ == "__main__":
    sys.exit(main())
