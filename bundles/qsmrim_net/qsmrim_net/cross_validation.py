"""Every method through the same folds and seeds; each run once, whoever does it, and finished where it was cut off."""

from __future__ import annotations

import gc
import shutil
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from ignite.engine import Engine, Events
from monai.bundle import ConfigWorkflow
from torch import Tensor, nn
from tqdm import tqdm

from shared_transforms.errors import QMRIError
from shared_transforms.experiments import key_of
from shared_transforms.provenance import provenance
from shared_transforms.tracking.config import user_values

from .cohort.table import LesionTable
from .experiments.methods import Method, methods_of
from .fold_scores import COLUMNS, FoldScores, score_file
from .untrained import untrained_logits

__all__ = ["CrossValidation", "Run", "cohort_key", "cross_validate", "score_table"]

_CHUNK = 256  # lesions that are scored at once


@dataclass(frozen=True)
class Run:
    """One training and the fold that it does not see."""

    method: Method
    fold: int
    seed: int

    def __str__(self) -> str:
        return f"{self.method.label}, fold {self.fold}, seed {self.seed}"


@dataclass
class CrossValidation:
    """Where runs are configured, and where they write.

    Attributes:
        bundle_root: folder with ``configs``.
        output_dir: of the scores, the checkpoints of unfinished runs and the record.
        training: values of train.json that differ from it, for all methods; None leaves train.json's own.
        tracking_uri: MLflow's; default a sqlite file in ``output_dir``.
    """

    bundle_root: str | Path
    output_dir: str | Path
    training: Mapping[str, Any] = field(default_factory=dict)
    tracking_uri: str | None = None

    def __post_init__(self) -> None:
        self.bundle_root, self.output_dir = Path(self.bundle_root).resolve(), Path(self.output_dir).resolve()
        self.output_dir.mkdir(parents=True, exist_ok=True)

    @property
    def tracking(self) -> str:
        """MLflow's address for the parent run and its children."""
        return self.tracking_uri or f"sqlite:///{(Path(self.output_dir) / 'mlruns.db').as_posix()}"

    def workflow(self, run: Run, folder: Path) -> ConfigWorkflow:
        """train.json with the overlays of a method and the values of a run, initialised.

        Raises:
            QMRIError: for a value that train.json does not have.
        """
        files = ["train.json", *(run.method.overlays or ())]
        found = ConfigWorkflow(
            config_file=[str(Path(self.bundle_root) / "configs" / name) for name in files],
            workflow_type="train", logging_file=False, bundle_root=str(self.bundle_root), output_dir=str(folder),
            fold=run.fold, seed=run.seed, resume=True, tracking_uri=self.tracking,
        )  # fmt: skip
        for name, value in self.training.items():
            if value is None:
                continue
            if name not in found.parser:
                raise QMRIError(
                    file=Path(self.bundle_root) / "configs" / "train.json", field=name, found="no such value",
                    expected="a value of train.json", remedy="correct the name under training",
                )  # fmt: skip
            found.parser[name] = value
        if run.method.overlays is not None:
            _track(self, found, run)
        found.initialize()
        return found


def cross_validate(
    bundle_root: str | Path,
    output_dir: str | Path,
    methods: str | Sequence[str] = "all",
    seeds: int | str | Sequence[int] = (0, 1, 2),
    only_folds: int | str | Sequence[int] | None = None,
    training: Mapping[str, Any] | None = None,
    tracking_uri: str | None = None,
) -> list[Path]:
    """Train and score every method, fold and seed that has no scores yet.

    Several processes may work in one folder: each takes runs that no other has begun. A run that was killed goes on
    from its last checkpoint. A run that fails does not keep the others from being done.

    Args:
        bundle_root: folder of the bundle.
        output_dir: gets ``METHOD/fold-F_seed-S.pt`` (:class:`.fold_scores.FoldScores`) and MLflow's record.
        methods: see :func:`.experiments.methods.methods_of`.
        seeds: one or several; a method whose answers have no randomness takes the first.
        only_folds: some of the folds; default all that train.json has.
        training: values of train.json that differ from it.
        tracking_uri: MLflow's; default a sqlite file in ``output_dir``.

    Returns:
        The files of all runs asked for that are there.

    Raises:
        QMRIError: at the end, when runs failed or scores of another recipe are in their place.
    """
    validation = CrossValidation(bundle_root, output_dir, training or {}, tracking_uri)
    runs = _runs(validation, methods_of(methods), _integers(seeds), only_folds)
    failures = []
    for run in tqdm(runs, "runs"):
        try:
            _once(validation, run)
        except Exception as error:  # hours of other runs must not be lost to one
            traceback.print_exc()
            failures.append(f"{run}: {type(error).__name__}")
        gc.collect()
    files = [score_file(output_dir, run.method.name, run.fold, run.seed) for run in runs]
    if failures:
        raise QMRIError(
            field="runs", found=f"{len(failures)} of {len(runs)} failed: " + "; ".join(failures),
            expected="no failure", remedy="see the messages above, and start again: finished runs are kept",
        )  # fmt: skip
    if all(path.is_file() for path in files):
        _finish_parent_run(validation)
    return [path for path in files if path.is_file()]


def score_table(network: nn.Module, table: LesionTable, device: torch.device | str = "cpu") -> Tensor:
    """Logits float32 ``[M]`` of all lesions of a table by a network in evaluation mode, in single precision."""
    network.eval()
    found = []
    with torch.no_grad():
        for image, features in zip(table.image.split(_CHUNK), table.features.split(_CHUNK), strict=True):
            found.append(network(image.to(device), features.float().to(device)).float().cpu())
    return torch.cat(found)


def cohort_key(table: LesionTable) -> str:
    """Sixteen hexadecimal digits that change with lesions, labels or features of a cohort."""
    return key_of(table.subject, table.lesion, table.label, table.features)


def _runs(validation: CrossValidation, methods: Sequence[Method], seeds: Sequence[int], only_folds: Any) -> list[Run]:
    """Fold by fold with all methods of a seed, so that an early stop leaves comparable results."""
    config = ConfigWorkflow(
        config_file=str(Path(validation.bundle_root) / "configs" / "train.json"), workflow_type="train",
        logging_file=False,
    ).parser  # fmt: skip
    count = int(validation.training.get("folds") or config["folds"])
    folds = range(count) if only_folds is None else _integers(only_folds)
    if wrong := [fold for fold in folds if not 0 <= fold < count]:
        raise QMRIError(
            field="only_folds", found=str(wrong), expected=f"folds from 0 to {count - 1}", remedy="correct them"
        )
    return [
        Run(method, fold, seed)
        for seed, method, fold in product(seeds, methods, folds)
        if method.seeded or seed == seeds[0]
    ]


def _once(validation: CrossValidation, run: Run) -> None:
    """Do a run, unless it is done or another process is at it."""
    path = score_file(validation.output_dir, run.method.name, run.fold, run.seed)
    folder = path.with_suffix("")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(f"{folder}.lock", blocking=False):
            if not path.is_file():
                _score(validation, run, folder).save(path)
            else:
                FoldScores.load(path).refuse_other_recipe(dict(validation.training), path)
            shutil.rmtree(folder, ignore_errors=True)  # checkpoints are of use to unfinished runs alone
    except Timeout:
        tqdm.write(f"{run}: another process is at it")


def _score(validation: CrossValidation, run: Run, folder: Path) -> FoldScores:
    """Train, and score the held-out fold with the last weights."""
    begin = time.perf_counter()
    workflow = validation.workflow(run, folder)
    content = workflow.parser.get_parsed_content
    held_out: LesionTable = content("held_out")
    cohort: LesionTable = content("cohort")
    if run.method.overlays is None:
        logit = untrained_logits(run.method.name, content("training"), held_out, run.seed)
    else:
        with _progress(content("train#trainer"), str(run)):
            workflow.run()
        logit = score_table(content("network"), held_out, content("device"))
    recipe = user_values(dict(workflow.parser.get()))
    workflow.finalize()
    seconds = time.perf_counter() - begin
    tqdm.write(f"{run}: {len(logit)} lesions, {int(held_out.label.sum())} rims, {seconds:.0f} s")
    return FoldScores(
        run.method.name, run.fold, run.seed, {name: getattr(held_out, name) for name in COLUMNS}, logit.float(),
        cohort_key(cohort), seconds, recipe, provenance(run.seed),
    )  # fmt: skip


def _track(validation: CrossValidation, workflow: ConfigWorkflow, run: Run) -> None:
    """Make the run's record a child of the parent's; its weights are not kept."""
    for handler in workflow.parser["train#handlers"]:
        if str(handler.get("_target_", "")).endswith("MLflowTracking"):
            experiment = str(handler.get("experiment_name", "qmri-bundles"))
            handler |= {
                "parent_run": _parent_run(validation, experiment), "run_name": str(run), "weights": None,
                "tracking_uri": validation.tracking, "resume": True,
            }  # fmt: skip


def _parent_run(validation: CrossValidation, experiment: str) -> str:
    """Identifier of the run that all trainings of this folder belong to; the first process makes it."""
    from monai.handlers import MLFlowHandler  # imports mlflow, which takes seconds

    kept = Path(validation.output_dir) / "mlflow_parent_run_id.txt"
    with FileLock(f"{kept}.lock"):  # two processes that make one sqlite file at once spoil it
        if kept.is_file():
            return kept.read_text().strip()
        handler = MLFlowHandler(validation.tracking, experiment_name=experiment, run_name="cross-validation")
        handler._set_experiment()
        run = handler.client.create_run(handler.experiment.experiment_id, run_name="cross-validation")
        kept.write_text(run.info.run_id + "\n")
        return str(run.info.run_id)


def _finish_parent_run(validation: CrossValidation) -> None:
    """Mark it as finished; without trainings there is none."""
    kept = Path(validation.output_dir) / "mlflow_parent_run_id.txt"
    if kept.is_file():
        from monai.handlers import MLFlowHandler

        MLFlowHandler(validation.tracking).client.set_terminated(kept.read_text().strip())


@contextmanager
def _progress(trainer: Engine, name: str) -> Iterator[None]:
    """A bar over the epochs of a run."""
    with tqdm(total=trainer.state.max_epochs, desc=name, leave=False, mininterval=5) as bar:

        def step(engine: Engine) -> None:
            bar.n = engine.state.epoch
            bar.refresh()

        trainer.add_event_handler(Events.EPOCH_COMPLETED, step)
        yield


def _integers(values: int | str | Sequence[int]) -> list[int]:
    """One number, several with commas between, or a sequence."""
    if isinstance(values, str):
        values = [int(value) for value in values.split(",")]
    return [values] if isinstance(values, int) else [int(value) for value in values]
