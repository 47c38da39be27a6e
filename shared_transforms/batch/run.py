"""A batch from beginning to end: what is to be done, the processes that do it, progress, and the table of all."""

from __future__ import annotations

import dataclasses
import functools
import json
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from filelock import FileLock
from tqdm import tqdm

from shared_transforms.batch.inference import Outcome, Recipe, open_inference
from shared_transforms.batch.layout import HIDDEN, derivative_names, describe, links_of
from shared_transforms.batch.processes import Lost, in_processes
from shared_transforms.batch.record import Maker
from shared_transforms.batch.table import keep_failure, read_provenance, rows_of, write_table
from shared_transforms.batch.units import Unit, find_units, share_of
from shared_transforms.errors import QMRIError
from shared_transforms.overrides import check_keys
from shared_transforms.provenance import provenance

_SET_BY_THE_BATCH = ("bundle_root", "dataset_dir", "output_dir", "device")


class BatchInference:
    """Run a bundle's inference.json over every subject and session of a BIDS data set.

    One session of a subject is done as a whole or not at all; a failed one is reported, and the rest done. What is done
    is not done again, unless its files, the bundle's version, weights or config have changed. Several runs, on one
    machine or on many that share the file system, may work on one output at a time.

    The output is a BIDS derivative, ``sub-01/[ses-1/]anat/...``, with a table ``batch.tsv`` of all subjects.

    Args:
        name: of the bundle.
        bundle_root: folder of the bundle.
        dataset_dir: the BIDS data set.
        output_dir: the derivative; may lie in the data set.
        overlay: names of overlays on inference.json in the bundle's configs, or paths of such files.
        options: overrides of inference.json.
        derivatives: derivative data sets with further images of the same subjects: masks, maps.
        subjects: those wanted; empty for all.
        sessions: likewise.
        shard: "0/4" for the first of four jobs that share the work.
        processes: how many work at a time.
        threads: of each process.
        device: such as "cuda:1"; several are given to the processes in turn; None for what inference.json says.
        replace: make the maps of another overlay, other options or another data set in the place of those in
            ``output_dir``.

    Raises:
        QMRIError: folders, names or options that cannot be. No process was started then.
    """

    def __init__(
        self,
        name: str,
        bundle_root: str | Path,
        dataset_dir: str | Path,
        output_dir: str | Path,
        overlay: str | Sequence[str] | None = None,
        options: Mapping[str, Any] | None = None,
        derivatives: str | Sequence[str] | None = None,
        subjects: Any = None,
        sessions: Any = None,
        shard: str | None = None,
        processes: int = 1,
        threads: int = 1,
        device: str | Sequence[str] | None = None,
        replace: bool = False,
    ) -> None:
        root, self.output = Path(bundle_root).resolve(), Path(output_dir).resolve()
        data = Path(dataset_dir).resolve()
        self.recipe = Recipe(
            name=name,
            bundle_root=root,
            dataset_dir=data,
            output_dir=self.output,
            overlays=tuple(_overlay_file(root, text) for text in _listed(overlay)),
            options=_checked_options(options),
            derivatives=tuple(_derivative(text) for text in _listed(derivatives)),
            devices=tuple(_listed(device)),
            threads=_positive("threads", threads),
            command=tuple(sys.orig_argv),
        )
        self.processes, self.replace = _positive("processes", processes), replace
        self.units = find_units(data)
        self.share = find_units(data, _listed(subjects), _listed(sessions))
        self.share = share_of(self.share, shard) if shard else self.share
        if self.output == data or any(self.output.is_relative_to(data / unit.subject) for unit in self.units):
            raise QMRIError(
                file=self.output, field="output_dir", found="a folder of raw data", expected="a folder of its own",
                remedy=f"choose another one, such as {data / 'derivatives' / name}",
            )  # fmt: skip
        _check_recipe(self.recipe)
        self._rows: list[dict[str, Any]] = []

    def run(self, stream: TextIO | None = None) -> list[dict[str, Any]]:
        """Do what is not done.

        Args:
            stream: where progress is shown; default standard error.

        Returns:
            The rows of the table.

        Raises:
            QMRIError: weights that do not fit, an output that holds other maps, or no unit with such images.
            SessionError: no process is left. The table tells what was done, as it does after Ctrl-C.
        """
        began = time.perf_counter()
        made_by = self.recipe.maker()
        self._begin(made_by, origin := self._provenance(made_by))
        outcomes: dict[Unit, Outcome] = {}
        shown = stream or sys.stderr
        try:
            self._do(made_by, outcomes, shown, began)
        finally:
            running = [unit for unit, outcome in outcomes.items() if outcome.status == "running"]
            with self._lock():  # the last of several runs writes what all have done
                self._rows = rows_of(self.output, self.units, made_by, running)
                table = write_table(self.output, self._rows, origin)
        print(_summary(outcomes, self._rows, table, time.perf_counter() - began), file=shown)
        if outcomes and all(outcome.status == "absent" for outcome in outcomes.values()):
            raise _nothing_found(self.recipe.dataset_dir, outcomes)
        return self._rows

    @property
    def status(self) -> int:
        """Exit status of the run: 1 where a unit of it failed, else 0."""
        mine = {(unit.subject, unit.session or "n/a") for unit in self.share}
        return int(any(row["status"] == "failed" for row in self._rows if (row["subject"], row["session"]) in mine))

    def _do(self, made_by: Maker, outcomes: dict[Unit, Outcome], shown: TextIO, began: float) -> None:
        """Do the units of this run; their outcomes are added as they come."""
        with tqdm(total=len(self.share), unit="subject", smoothing=0, file=shown, disable=not shown.isatty()) as bar:
            session = functools.partial(open_inference, self.recipe, made_by)
            for unit, result in in_processes(session, self.share, self.processes, self.recipe.threads):
                outcome = Outcome("failed", 0.0, str(result)) if isinstance(result, Lost) else result
                outcomes[unit] = outcome
                keep_failure(self.output, unit, outcome)
                bar.update()
                _show(unit, outcome, bar, shown, _pace(outcomes, len(self.share), time.perf_counter() - began))

    def _begin(self, made_by: Maker, origin: Mapping[str, Any]) -> None:
        """Claim the output for this recipe."""
        with self._lock():
            before = read_provenance(self.output)
            if before and (other := before.get("maker", {}).get("name")) != made_by.name:
                # Also where other maps are to be replaced: their records have the same names.
                raise QMRIError(
                    file=self.output, field="output_dir", found=f"a batch of {other}",
                    expected=f"an empty folder, or a batch of {made_by.name}", remedy="choose another output_dir",
                )  # fmt: skip
            for key in ("overlay", "options"):
                if before and before.get(key) != origin[key] and not self.replace:
                    raise QMRIError(
                        file=self.output, field=key, found=f"maps made with {key} {json.dumps(before.get(key))}",
                        expected=f"an output of its own for {key} {json.dumps(origin[key])}",
                        remedy="choose another output_dir, or make these in the place of those: replace=true",
                    )  # fmt: skip
            self._check_raw()
            self.recipe = dataclasses.replace(self.recipe, names=derivative_names(self.output, self.recipe.derivatives))
            software = {"Name": made_by.name, "Version": made_by.version, "Description": origin["method"]}
            describe(self.output, software, self.recipe.links)
            write_table(self.output, rows_of(self.output, self.units, made_by), origin)

    def _check_raw(self) -> None:
        """Sidecars name their sources by the link "raw": it may follow a data set that moved, not become another."""
        raw = links_of(self.output).get("raw")
        if raw and raw != self.recipe.dataset_dir and raw.exists() and not self.replace:
            raise QMRIError(
                file=self.output, field="dataset_dir", found=f"maps of {raw}",
                expected=f"an output of its own for {self.recipe.dataset_dir}",
                remedy="choose another output_dir, or make these in the place of those: replace=true",
            )  # fmt: skip

    def _provenance(self, made_by: Maker) -> dict[str, Any]:
        recipe = self.recipe
        return {
            "maker": dataclasses.asdict(made_by),
            "method": recipe.parser().get("method", ""),
            "overlay": [path.name for path in recipe.overlays],
            "options": dict(recipe.options),
            "processes": self.processes,
            "threads": recipe.threads,
            "command": list(recipe.command[1:]),
            **provenance(),
        }

    def _lock(self) -> FileLock:
        (self.output / HIDDEN).mkdir(parents=True, exist_ok=True)
        return FileLock(self.output / HIDDEN / "table.lock")


def _listed(value: Any) -> list[str]:
    """What the command line gives for a list: nothing, one word, words with commas, or a list."""
    if value is None:
        return []
    if isinstance(value, str):
        value = [part.strip() for part in value.split(",")]
    return [str(part) for part in (value if isinstance(value, list | tuple) else [value]) if str(part)]


def _overlay_file(root: Path, name: str) -> Path:
    path = next((p for p in (root / "configs" / name, Path(name)) if p.is_file()), None)
    if path is None:
        there = sorted(p.name for p in (root / "configs").glob("*.json") if "_overlay_of_" in p.read_text("utf-8"))
        raise QMRIError(
            field="overlay", found=f"no {name}", expected=f"a config of the bundle ({', '.join(there)}), or a path",
            remedy="correct the name",
        )  # fmt: skip
    return path.resolve()


def _derivative(name: str) -> Path:
    path = Path(name).resolve()
    if not any(path.glob("sub-*")):
        raise QMRIError(
            file=path, field="derivatives", found="no sub-* folder" if path.is_dir() else "no such folder",
            expected="a derivative data set: sub-LABEL/...", remedy="check the path (derivatives)",
        )  # fmt: skip
    return path


def _positive(field: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise QMRIError(field=field, found=repr(value), expected="a number from 1 on", remedy=f"correct {field}")
    return value


def _checked_options(options: Any) -> dict[str, Any]:
    """The options, if they can be recorded and sent to a process."""
    options = options or {}
    try:
        if not isinstance(options, Mapping):
            raise TypeError(f"a {type(options).__name__}")
        json.dumps(options := dict(options))
    except (TypeError, ValueError) as error:
        raise QMRIError(
            field="options", found=str(error), expected="overrides of inference.json: {'name': value}",
            remedy="give numbers, texts and lists of them",
        ) from error  # fmt: skip
    for key in options:
        if key in _SET_BY_THE_BATCH:
            raise QMRIError(
                field="options", found=key, expected="overrides of inference.json that the batch does not set itself",
                remedy=f"give --{key} to the batch",
            )  # fmt: skip
    return options


def _check_recipe(recipe: Recipe) -> None:
    """Every key of overlays and options exists."""
    files = recipe.config_files
    for number, overlay in enumerate(recipe.overlays, 1):
        keys = json.loads(overlay.read_text(encoding="utf-8"))
        check_keys([key for key in keys if not key.startswith("_")], files[:number])
    check_keys(recipe.options, files)


def _pace(outcomes: Mapping[Unit, Outcome], total: int, seconds: float) -> str:
    """Rate and remaining time, where there is no bar to say them; those that were done before do not count."""
    made = sum(outcome.status not in ("kept", "absent") for outcome in outcomes.values())
    done = f"{len(outcomes)} of {total}"
    if not made:
        return done
    left = seconds / made * (total - len(outcomes))
    return f"{done}, {3600 * made / seconds:.0f} an hour, {left / 60:.1f} min left at most"


def _show(unit: Unit, outcome: Outcome, bar: Any, stream: TextIO, pace: str) -> None:
    text = f"{unit.label}: {outcome.status}, {outcome.seconds:.1f} s"
    if outcome.message:
        text += f": {outcome.message}"
    if bar.disable:
        print(f"{text} ({pace})", file=stream, flush=True)
    elif outcome.message:
        bar.write(text, file=stream)


def _summary(outcomes: Mapping[Unit, Outcome], rows: Sequence[Mapping[str, Any]], table: Path, seconds: float) -> str:
    now = Counter(outcome.status for outcome in outcomes.values())
    states = Counter(row["status"] for row in rows)
    memory = max((outcome.peak_memory_mb for outcome in outcomes.values()), default=0.0)
    return (
        f"{now['done']} done in {seconds:.0f} s, {now['kept']} done before, {now['failed']} failed, "
        f"{now['absent']} without such images; at most {memory:.0f} MiB a process.\n"
        f"All {len(rows)}: {', '.join(f'{count} {status}' for status, count in states.items())}. Table: {table}"
    )


def _nothing_found(root: Path, outcomes: Mapping[Unit, Outcome]) -> QMRIError:
    unit, first = next(iter(outcomes.items()))
    return QMRIError(
        file=root, field="dataset_dir", found=f"no images of this kind in any of {len(outcomes)}; {unit.label}: "
        f"{first.message}", expected="a BIDS data set with such images",
        remedy="check the data set; where the images lie in derivatives, name these: derivatives=PATH",
    )  # fmt: skip
