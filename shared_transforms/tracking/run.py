"""An MLflow run that says all that is needed to repeat it."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from monai.engines import Evaluator

from shared_transforms.atomic import atomic_write
from shared_transforms.errors import QMRIError
from shared_transforms.provenance import provenance
from shared_transforms.tracking.card import MODEL_CARD, description
from shared_transforms.tracking.config import (
    executing_config,
    flatten,
    recipe_sha256,
    user_values,
    without_password,
)
from shared_transforms.tracking.outbox import Outbox
from shared_transforms.tracking.progress import scalars

if TYPE_CHECKING:
    from monai.handlers import MLFlowHandler

__all__ = ["MLflowTracking"]

_RUN_FILE = "mlflow_run_id.txt"
_LONGEST_PARAMETER = 500  # characters; MLflow refuses longer ones on some servers


class MLflowTracking:
    """Handler of a trainer (or of an evaluator that runs alone) that records the run in MLflow, on MONAI's handler.

    Recorded are, as parameters, the seed, the commit, the hardware, the versions and the recipe; for each epoch the
    learning rate, the seconds, and the mean of every scalar output (the loss) and every metric of the trainer
    (``train_``) and the evaluator (``val_``), under the names the configuration gives them, which should hold the unit
    and nothing but letters, digits and ``_-./`` (MONAI's own tracking fails on others); as files the executed
    configuration, the weights, the pictures in ``output_dir/figures``, the model card, and what ``log_artifact`` is
    given; as tags ``recipe_sha256``, the same for all runs of one recipe, ``bundle_version`` and ``weights_sha256``; as
    the description the model card's beginning. Only rank 0 records: an epoch's losses as means over the ranks, those of
    single iterations (``iteration_``) as its own. It uses an experiment of its own, so that MONAI's ``--tracking
    mlflow`` may run beside it. Nothing is written before the engine starts.

    The record goes to a sqlite file in ``output_dir``, to ``tracking_uri``, or to the environment variable
    MLFLOW_TRACKING_URI, the later before the earlier. A server that does not answer at the start is an error. One that
    is away later is warned of, and gets what it missed when it is back (:class:`.outbox.Outbox`). Passwords in
    addresses are not recorded.

    Put it before StatsHandler: of several handlers of an exception ignite calls the first.

    Args:
        output_dir: folder of the run.
        evaluator: the validation engine whose metrics are recorded with the trainer's.
        seed: seed of the run.
        recipe: what decides the training, nested as it likes; default the plain values at the top of the configuration.
        config: the executed configuration; default the one that makes this object, overlays and overrides included.
        weights: file of the final weights.
        tracking_uri: where MLflow records.
        experiment_name: name of the experiment, which holds the runs that are compared.
        run_name: name of the run, default the experiment's with date and time.
        resume: go on with the run that was recorded in ``output_dir`` before.
        iteration_interval: also record the loss every so many iterations; 0 never.
        parent_run: identifier of the run that this one belongs to, as one of many trainings of an experiment; on the
            same server.
        bundle_root: folder of the bundle, for its version and its model card.

    Raises:
        QMRIError: at the start of the engine, when the server does not answer or refuses the run.
    """

    def __init__(
        self,
        output_dir: str | Path,
        evaluator: Engine | None = None,
        seed: int | None = None,
        recipe: Mapping[str, Any] | None = None,
        config: Mapping[str, Any] | None = None,
        weights: str | Path | None = None,
        tracking_uri: str | None = None,
        experiment_name: str = "qmri-bundles",
        run_name: str | None = None,
        resume: bool = False,
        iteration_interval: int = 0,
        parent_run: str | None = None,
        bundle_root: str | Path | None = None,
    ) -> None:
        self.output_dir = Path(output_dir)
        self.evaluator = evaluator
        self.seed = seed
        self.config = executing_config() if config is None else dict(config)
        self.recipe = user_values(self.config or {}) if recipe is None else dict(recipe)
        self.recipe.pop("tracking_uri", None)  # a place, perhaps with a password
        self.weights = None if weights is None else Path(weights)
        self.tracking_uri = tracking_uri
        self.experiment_name = experiment_name
        self.run_name = run_name
        self.resume = resume
        self.iteration_interval = iteration_interval
        self.parent_run = parent_run
        self.bundle_root = None if bundle_root is None else Path(bundle_root)
        self._handler: MLFlowHandler | None = None
        self._outbox: Outbox | None = None
        self._losses: dict[str, list[torch.Tensor]] = {}
        self._pictures: set[Path] = set()

    @property
    def run_id(self) -> str | None:
        """Identifier of the active run; None before the start, after the end, and on ranks other than 0."""
        return None if self._outbox is None else self._outbox.run_id

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer or evaluator."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.COMPLETED, self._complete)
        engine.add_event_handler(Events.EXCEPTION_RAISED, self._fail)

    def log_artifact(self, path: str | Path, folder: str | None = None) -> None:
        """Record a file; without an active run nothing happens.

        Args:
            path: the file.
            folder: folder in the record.
        """
        if self._outbox is not None:
            self._outbox.add(files={Path(path): folder})

    def _start(self, engine: Engine) -> None:
        if idist.get_rank() == 0:
            self._begin_or_refuse(engine)
        # Registered now, when all others are: after the validation of the epoch.
        if not engine.has_event_handler(self._epoch, Events.EPOCH_COMPLETED):
            engine.add_event_handler(Events.ITERATION_COMPLETED, self._iteration)
            engine.add_event_handler(Events.EPOCH_COMPLETED, self._epoch)

    def _begin_or_refuse(self, engine: Engine) -> None:
        from mlflow.exceptions import MlflowException

        _mend_monai_handlers(engine)
        self.output_dir.mkdir(parents=True, exist_ok=True)
        try:
            self._begin(engine)
        except MlflowException as error:
            raise QMRIError(
                field="MLFLOW_TRACKING_URI" if os.environ.get("MLFLOW_TRACKING_URI") else "tracking_uri",
                found=without_password(str(error)),
                expected="an MLflow server that answers and takes the run",
                remedy="start the server, correct the address or MLflow's variables for its credentials, or leave the "
                "address out: the record then goes to a file in output_dir",
            ) from error

    def _begin(self, engine: Engine) -> None:
        """Make or find the run, and record what is known before the first step."""
        self._handler = self._make_handler()
        self._handler.start(engine)
        run_id = str(self._handler.cur_run.info.run_id)
        (self.output_dir / _RUN_FILE).write_text(run_id + "\n")
        tags = self._log_parameters(self._handler)
        files: dict[Path, str | None] = {}
        if self.parent_run is not None:
            tags["mlflow.parentRunId"] = self.parent_run
        if self.config is not None:
            tags["recipe_sha256"] = recipe_sha256(self.config)
            path = self.output_dir / "executed_config.json"
            with atomic_write(path) as file:
                file.write((without_password(json.dumps(self.config, indent=2, default=str)) + "\n").encode())
            files[path] = None
        if self.bundle_root is not None:
            card = self.bundle_root / MODEL_CARD
            tags |= self._describe(self._handler) | {"mlflow.note.content": description(card.read_text("utf-8"))}
            files[card] = "model_card"
        self._outbox = Outbox(self._handler.client, run_id)
        self._outbox.add(tags=tags, files=files)

    def _describe(self, handler: MLFlowHandler) -> dict[str, str]:
        """Say of the experiment what it is, unless somebody has; and give the tags that say it of the run."""
        assert self.bundle_root is not None
        metadata = json.loads((self.bundle_root / "configs" / "metadata.json").read_text("utf-8"))
        experiment: Any = handler.experiment
        # The kind decides which pages MLflow shows first: else those for language models.
        kind = {"mlflow.experimentKind": "custom_model_development", "mlflow.note.content": metadata["description"]}
        for name in kind.keys() - experiment.tags.keys():
            handler.client.set_experiment_tag(experiment.experiment_id, name, kind[name])
        version = str(metadata["version"])
        return {"bundle_version": version, "mlflow.source.name": f"{self.experiment_name} {version}"}

    def _make_handler(self) -> MLFlowHandler:
        from monai.handlers import MLFlowHandler  # imports mlflow, which takes seconds

        logging.getLogger("alembic").setLevel(logging.WARNING)  # forty lines for a new sqlite file
        database = (self.output_dir.resolve() / "mlruns.db").as_posix()
        handler = MLFlowHandler(
            tracking_uri=self.tracking_uri or f"sqlite:///{database}",
            experiment_name=self.experiment_name,
            run_name=self.run_name or f"{self.experiment_name}_{time.strftime('%Y%m%d_%H%M%S')}_{os.getpid()}",
        )
        handler.cur_run = self._run_before(handler) if self.resume else None
        return handler

    def _run_before(self, handler: MLFlowHandler) -> Any:
        from mlflow.exceptions import MlflowException

        try:
            run_id = (self.output_dir / _RUN_FILE).read_text().strip()
            handler.client.update_run(run_id, status="RUNNING")
            return handler.client.get_run(run_id)
        except (FileNotFoundError, MlflowException):  # nothing recorded yet, or to another server
            return None

    def _log_parameters(self, handler: MLFlowHandler) -> dict[str, str]:
        """Parameters; and as a tag the commit, where MLflow looks for it."""
        origin = provenance(self.seed)
        commit, _ = origin.pop("commit"), origin.pop("date")
        values = flatten(origin) | {"commit": commit} | flatten({"recipe": self.recipe})
        parameters = {_valid(name): str(value)[:_LONGEST_PARAMETER] for name, value in values.items()}
        handler._delete_exist_param_in_dict(parameters)  # of a resumed run: MLflow refuses to change them
        handler._log_params(parameters)
        return {} if commit is None else {"mlflow.source.git.commit": commit}

    def _iteration(self, engine: Engine) -> None:
        losses = scalars(engine.state.output)
        for name, value in losses.items():
            self._losses.setdefault(name, []).append(value)
        if self.iteration_interval and engine.state.iteration % self.iteration_interval == 0:
            self._log({f"iteration_{name}": value for name, value in losses.items()}, engine.state.iteration)

    def _epoch(self, engine: Engine) -> None:
        # Every rank takes part: each has the losses of its own samples.
        losses = {name: torch.stack(values).double().mean() for name, values in self._losses.items()}
        losses = {name: idist.all_reduce(mean) / idist.get_world_size() for name, mean in losses.items()}
        self._losses.clear()
        if self._outbox is None:
            return
        optimizer = getattr(engine, "optimizer", None)
        prefix = "val_" if isinstance(engine, Evaluator) else "train_"
        values: dict[str, Any] = {f"{prefix}{name}": value for name, value in engine.state.metrics.items()}
        values |= {f"{prefix}{name}": mean for name, mean in losses.items()}
        if optimizer is not None:
            values["learning_rate"] = optimizer.param_groups[0]["lr"]
            values["epoch_seconds"] = engine.state.times.get(Events.EPOCH_COMPLETED.name)
        validation = None if self.evaluator is None else self.evaluator.state
        if validation is not None and validation.epoch == engine.state.epoch:  # it may run every few epochs only
            values |= {f"val_{name}": value for name, value in validation.metrics.items()}
        self._log(values, engine.state.epoch)
        for picture in sorted(set((self.output_dir / "figures").glob("*.png")) - self._pictures):
            self._pictures.add(picture)
            self.log_artifact(picture, "figures")

    def _log(self, values: Mapping[str, Any], step: int) -> None:
        numbers = {_valid(name): _number(value) for name, value in values.items()}
        found = {name: value for name, value in numbers.items() if value is not None}
        if self._outbox is not None:
            self._outbox.add(found, step)

    def _complete(self, engine: Engine) -> None:
        if self._outbox is None:
            return
        source: Any = (self.evaluator or engine).state
        best = _number(getattr(source, "best_metric", None))
        if getattr(source, "key_metric_name", None) and best is not None:
            self._log({f"best_{source.key_metric_name}": best}, engine.state.epoch)
        if self.weights is not None and self.weights.is_file():
            digest = hashlib.sha256(self.weights.read_bytes()).hexdigest()
            self._outbox.add(tags={"weights_sha256": digest}, files={self.weights: None})
        self._close()

    def _fail(self, engine: Engine, error: Exception) -> NoReturn:
        if self._handler is not None and self._outbox is not None:
            self._handler.run_finish_status = "FAILED"
            self._close()
        raise error

    def _close(self) -> None:
        """Send what is left, and end the run; what the server does not take now is lost to the record."""
        assert self._handler is not None and self._outbox is not None
        self._outbox.send(at_once=True)
        if self._outbox.away or not self._outbox.attempt(self._handler.close):
            logging.getLogger(__name__).warning(
                f"MLflow has not got {len(self._outbox)} value(s) and file(s) of run {self._outbox.run_id}, nor its "
                f"end; weights, figures and the configuration are in {self.output_dir}"
            )
        self._outbox = None


def _mend_monai_handlers(engine: Engine) -> None:
    """Let the handlers of ``--tracking mlflow`` log the loss of a trainer that does not decollate.

    MONAI gives them ``from_engine(["loss"], first=True)``, which is a number for a decollated output, but a tuple with
    one element for a dictionary; MLflow refuses that.
    """
    from monai.handlers import MLFlowHandler

    def with_number(transform: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def transformed(output: Any) -> Any:
            loss = transform(output)
            return loss[0] if isinstance(loss, tuple) and len(loss) == 1 else loss

        return transformed

    for function, *_ in engine._event_handlers[Events.ITERATION_COMPLETED]:
        owner = getattr(getattr(function, "__wrapped__", function), "__self__", None)
        if isinstance(owner, MLFlowHandler):
            owner.output_transform = with_number(owner.output_transform)


def _number(value: Any) -> float | None:
    """A scalar as a finite or NaN number for MLflow; None for what is no scalar."""
    try:
        number = float(value)
    except (TypeError, ValueError, RuntimeError):
        return None
    return number if math.isfinite(number) else math.nan


def _valid(name: str) -> str:
    """A name MLflow takes: its alphabet has no per cent sign and no brackets."""
    return re.sub(r"[^\w\-. /:]", "_", name.replace("%", "percent"))
