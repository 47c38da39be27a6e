"""One process's part of a batch: the config and the network once, then one unit after the other."""

from __future__ import annotations

import datetime
import gc
import io
import json
import os
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from shared_transforms.atomic import atomic_write
from shared_transforms.batch.layout import HIDDEN, arrange, datatype_of, place
from shared_transforms.batch.record import RECORD_SUFFIX, Maker, Record, files_of, fingerprint, read_record, texts_of
from shared_transforms.batch.units import Unit, search_folder
from shared_transforms.errors import QMRIError, cause_of

# What differs between two runs and not between their maps.
_WITHOUT_INFLUENCE = {
    "bundle_root", "dataset_dir", "output_dir", "device", "imports", "handlers", "initialize", "run", "finalize",
}  # fmt: skip

Status = Literal["done", "kept", "failed", "absent", "running"]


@dataclass(frozen=True)
class Outcome:
    """What became of a unit.

    Attributes:
        status: done now; kept, for it was done before; failed; absent, for it has no images of this kind; or running
            in another process.
        seconds: how long it took.
        message: why not.
        details: traceback and output, where the error is none of the input's.
        peak_memory_mb: of the process, so far.
    """

    status: Status
    seconds: float
    message: str = ""
    details: str = ""
    peak_memory_mb: float = 0.0


@dataclass(frozen=True)
class Recipe:
    """The inference of a batch, as it is sent to each process.

    Attributes:
        name: of the bundle.
        bundle_root: folder of the bundle.
        dataset_dir: the BIDS data set.
        output_dir: the derivative.
        overlays: files of overlays on inference.json.
        options: overrides of inference.json.
        derivatives: further data sets with images of the same subjects.
        names: of the derivatives in BIDS URIs; empty for "derivative0" and so on.
        devices: of the processes in turn; empty for what inference.json says.
        threads: of each process.
        command: command line of the batch, for the reports.
    """

    name: str
    bundle_root: Path
    dataset_dir: Path
    output_dir: Path
    overlays: tuple[Path, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    derivatives: tuple[Path, ...] = ()
    names: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()
    threads: int = 1
    command: tuple[str, ...] = ()

    @property
    def config_files(self) -> list[Path]:
        """The config files, merged in this order."""
        return [self.bundle_root / "configs/inference.json", *self.overlays]

    @property
    def links(self) -> dict[str, Path]:
        """{name in BIDS URIs: data set}."""
        names = self.names or [f"derivative{i}" for i in range(len(self.derivatives))]
        return {"raw": self.dataset_dir} | dict(zip(names, self.derivatives, strict=True))

    @property
    def named_files(self) -> list[Path]:
        """The files that options and overlays name, such as a mask for all subjects."""
        overlays = [json.loads(overlay.read_text(encoding="utf-8")) for overlay in self.overlays]
        return files_of(os.path.abspath(text) for text in texts_of([dict(self.options), *overlays]))

    def parser(self, device: str | None = None) -> Any:
        """The merged config as a ``ConfigParser``."""
        from monai.bundle import ConfigParser

        parser = ConfigParser(ConfigParser.load_config_files([str(file) for file in self.config_files]))
        parser.read_meta(str(self.bundle_root / "configs/metadata.json"))
        parser.update({"bundle_root": str(self.bundle_root), **self.options})
        if device is not None:
            parser["device"] = f"$torch.device({device!r})"
        return parser

    def maker(self) -> Maker:
        """Name, version and weights of the bundle and the state of its config.

        Raises:
            QMRIError: no weights.
        """
        parser = self.parser()
        config = {k: v for k, v in parser.get().items() if k not in _WITHOUT_INFLUENCE and not k.startswith("_")}
        text = json.dumps(config, sort_keys=True)
        return Maker(
            name=self.name,
            version=parser.get("_meta_")["version"],
            weights_sha256=parser.get_parsed_content("weights_sha256"),
            config_sha256=sha256(text.encode()).hexdigest(),
        )


def open_inference(recipe: Recipe, made_by: Maker, index: int) -> Callable[[Unit], Outcome]:
    """Open the session of one process; see ``in_processes``."""
    return UnitInference(recipe, made_by, index)


class UnitInference:
    """Inference of one unit after the other with one network.

    Args:
        recipe: what to run.
        made_by: what the records say.
        index: number of the process.

    Raises:
        QMRIError: weights that do not fit the network.
    """

    def __init__(self, recipe: Recipe, made_by: Maker, index: int = 0) -> None:
        import torch

        torch.set_num_threads(recipe.threads)
        if recipe.command:
            sys.orig_argv = list(recipe.command)  # the report says what the user typed, not what started this process
        if str(recipe.bundle_root) not in sys.path:
            sys.path.insert(0, str(recipe.bundle_root))
        self.recipe, self.made_by = recipe, made_by
        device = recipe.devices[index % len(recipe.devices)] if recipe.devices else None
        self.parser = recipe.parser(device)
        try:
            network = self.parser.get_parsed_content("network")
        except RuntimeError as error:
            raise cause_of(error) or error from None
        # Kept as they are: every unit parses the rest of the config again, for output_dir stands in many places of it.
        self.parser["network"] = network
        self.parser["weights_sha256"] = made_by.weights_sha256
        gc.freeze()  # so that to collect after a unit looks at what the unit has left, not at all of torch

    def __call__(self, unit: Unit) -> Outcome:
        """Do a unit unless it is done, or another process is at it; what goes wrong is told, not raised."""
        began = time.perf_counter()
        lock = self.recipe.output_dir / HIDDEN / "locks" / f"{unit.label}.lock"
        lock.parent.mkdir(parents=True, exist_ok=True)
        printed = io.StringIO()
        status: Status = "failed"
        message = details = ""
        try:
            with FileLock(lock, timeout=0), redirect_stdout(printed), redirect_stderr(printed):
                status = self._do(unit, began)
        except Timeout:
            status, message = "running", "another process is at it"
        except Exception as error:
            cause = cause_of(error)
            if cause is None:
                message, details = f"{type(error).__name__}: {error}", printed.getvalue() + traceback.format_exc()
            else:
                message = " ".join(str(cause).split())
                status = "absent" if isinstance(cause, _Absent) else "failed"
        return Outcome(status, time.perf_counter() - began, message, details, peak_memory_mb())

    def _do(self, unit: Unit, began: float) -> Status:
        output = self.recipe.output_dir
        folder, record = unit.below(output), f"{unit.label}{RECORD_SUFFIX}"
        staging, arranged = unit.below(output / HIDDEN), output / HIDDEN / "finished" / unit.label
        items = self._find(unit)
        files = {self._uri(file): file for file in [*files_of(items), *self.recipe.named_files]}
        before = read_record(folder / record)
        if before is not None and before.holds(folder, self.made_by, files):
            return "kept"
        _remove(staging, arranged)  # what a process that was killed has left
        try:
            # Taken before they are read: a file that changes meanwhile is read again the next time.
            inputs = {name: fingerprint(file) for name, file in files.items()}
            self._infer(items, staging)
            known = {file.resolve(): name for name, file in files.items()}
            datatypes = {item["stem"]: datatype_of(_first(item["image"]), unit.subject) for item in items}
            outputs = arrange(staging, arranged, datatypes, lambda path: known.get(path.resolve()) or self._uri(path))
            made = Record(
                made_by=self.made_by,
                inputs=inputs,
                outputs={file.as_posix(): (arranged / file).stat().st_size for file in outputs},
                seconds=round(time.perf_counter() - began, 3),
                peak_memory_mb=round(peak_memory_mb(), 1),
                date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
                series=len(items),
            )
            with atomic_write(arranged / record) as file:
                file.write(made.as_json())
            begun = output / HIDDEN / "begun" / f"{unit.label}.json"
            place(arranged, folder, record, begun, list(before.outputs) if before else [])
        finally:
            _remove(staging, arranged)
        return "done"

    def _find(self, unit: Unit) -> list[dict[str, Any]]:
        """The inference items of a unit; their stems begin with its label."""
        with search_folder(unit, self.recipe.dataset_dir, self.recipe.derivatives) as (folder, real):
            self.parser["dataset_dir"] = str(folder)
            try:
                items = self.parser.get_parsed_content("dataset#data")
            except RuntimeError as error:
                cause = cause_of(error)
                if cause is None:
                    raise
                # A finder complains about the folder where it finds nothing in it, and else about a file.
                kind = _Absent if cause.field == "dataset_dir" else QMRIError
                raise kind(
                    file=cause.file and real(cause.file), field=cause.field, found=real(cause.found),
                    expected=real(cause.expected), remedy=real(cause.remedy),
                ) from None  # fmt: skip
        items = _with_texts(items, real)
        for item in items:
            if not str(item["stem"]).startswith(unit.label):
                item["stem"] = f"{unit.label}_{item['stem']}"
        return items

    def _infer(self, items: Sequence[Mapping[str, Any]], staging: Path) -> None:
        data = self.parser["dataset#data"]
        try:
            self.parser["dataset#data"] = tuple(items)  # a list would be parsed for references
            self.parser["output_dir"] = str(staging)
            self.parser.get_parsed_content("run")
        finally:
            self.parser["dataset#data"] = data  # which forgets the evaluator; it and its handlers refer to one another
            gc.collect()

    def _uri(self, path: Path) -> str:
        for name, root in reversed(self.recipe.links.items()):  # a derivative may lie in the data set
            if path.is_relative_to(root):
                return f"bids:{name}:{path.relative_to(root).as_posix()}"
        return Path(os.path.relpath(path, self.recipe.output_dir)).as_posix()


class _Absent(QMRIError):
    """A unit without images of this kind."""


def peak_memory_mb() -> float:
    """The most memory that this process has held so far [MiB]; 0 where the system does not tell."""
    try:
        # Not getrusage: a process that was just started counts what its parent held.
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        return 0.0


def _remove(*folders: Path) -> None:
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def _first(paths: Any) -> str:
    return str(paths if isinstance(paths, str | Path) else next(iter(paths)))


def _with_texts(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {key: _with_texts(part, change) for key, part in value.items()}
    return [_with_texts(part, change) for part in value] if isinstance(value, list | tuple) else value
