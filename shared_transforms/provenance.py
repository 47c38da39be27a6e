"""Where a number comes from: commit, seed, machine, versions. And tables that carry it."""

from __future__ import annotations

import csv
import datetime
import io
import json
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from shared_transforms.atomic import atomic_write

__all__ = ["git_commit", "hardware", "provenance", "versions", "write_table"]

_PACKAGES = ("torch", "monai", "pytorch-ignite", "numpy", "scipy", "nibabel")


def provenance(seed: int | None = None, folder: str | Path | None = None) -> dict[str, Any]:
    """What has to be known to repeat a run.

    Args:
        seed: seed of the run, if it has one.
        folder: a folder of the repository; default the one this code is in.

    Returns:
        ``commit`` (short sha, with "-dirty" when sources differ from it, None outside of a repository), ``date`` (UTC,
        ISO 8601), ``seed``, ``hardware`` and ``versions``: only strings, numbers, None and dictionaries of them.
    """
    return {
        "commit": git_commit(folder),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "seed": seed,
        "hardware": hardware(),
        "versions": versions(),
    }


def git_commit(folder: str | Path | None = None) -> str | None:
    """Short sha of the commit of the sources, "-dirty" appended when they were changed since.

    Documents (folders named docs) do not count: results are written there by the very runs that ask.

    Args:
        folder: a folder of the repository; default the one this code is in.

    Returns:
        The commit, or None where the sources are in no repository, are not part of it, or git is not there.
    """
    here = Path(folder) if folder is not None else Path(__file__).resolve().parent

    def git(*arguments: str) -> str | None:
        try:
            run = subprocess.run(["git", "-C", str(here), *arguments], capture_output=True, text=True, timeout=20)
        except (OSError, subprocess.SubprocessError):
            return None
        return run.stdout.strip() if run.returncode == 0 else None

    # A bundle unpacked in, or installed below, somebody else's repository must not take that one's commit.
    if not git("ls-files", "."):
        return None
    commit = git("rev-parse", "--short=12", "HEAD")
    changed = git("status", "--porcelain", "--untracked-files=no", "--", ":/", ":(exclude,top,glob)**/docs/**")
    return f"{commit}-dirty" if commit and changed else commit


def hardware() -> dict[str, Any]:
    """The machine: ``cpu`` model, ``cores`` for this process, ``threads`` of torch, ``gpu`` name or None, ``os``."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "cpu": _cpu_model(),
        "cores": cores,
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "os": f"{platform.system()} {platform.machine()}",
    }


def versions() -> dict[str, str]:
    """Versions of python and of the packages that decide the numbers; absent ones are left out."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def write_table(path_stem: str | Path, rows: Sequence[Mapping[str, Any]], provenance: Mapping[str, Any]) -> list[Path]:
    """Write a table as csv and as json, each complete or not at all, with where it comes from.

    Args:
        path_stem: path without suffix; its folder is made.
        rows: the rows, each a dictionary of plain values; columns in the order they first occur.
        provenance: result of ``provenance``; goes into the json whole, and into the csv as leading lines with ``#``.

    Returns:
        The csv and the json file.

    Raises:
        ValueError: when there are no rows.
        TypeError: for a value that json cannot hold.
    """
    if not rows:
        raise ValueError(f"no rows for {path_stem}")
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO(newline="")
    for name, value in provenance.items():
        text.write(f"# {name}: {value if isinstance(value, str) else json.dumps(value)}\n")
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    content = json.dumps({"provenance": dict(provenance), "rows": [dict(row) for row in rows]}, indent=1)
    files = [Path(f"{path_stem}.csv"), Path(f"{path_stem}.json")]
    for path, value in zip(files, (text.getvalue(), content + "\n"), strict=True):
        with atomic_write(path) as file:
            file.write(value.encode())
    return files


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.lower().startswith("model name"):
                return " ".join(line.partition(":")[2].split())
    except OSError:
        pass
    return platform.processor() or platform.machine()
