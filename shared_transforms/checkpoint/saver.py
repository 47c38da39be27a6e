"""Handlers that save: atomically, the last states and the best weights."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from ignite.handlers import Checkpoint
from ignite.handlers.checkpoint import BaseSaveHandler
from torch import nn

from shared_transforms.atomic import atomic_write, remove_leftovers
from shared_transforms.checkpoint._state import Progress, RandomStates, Weights, bare
from shared_transforms.checkpoint.loading import checkpoints, epoch_of, latest_checkpoint, load_checkpoint
from shared_transforms.errors import QMRIError

__all__ = ["AtomicCheckpointSaver", "AtomicDiskSaver"]


class AtomicDiskSaver(BaseSaveHandler):
    """Save handler for ``ignite.handlers.Checkpoint``: the file on the disk is always complete.

    Ignite removes an old file before it writes the new one; here the removal waits until the new one is on the disk.
    Each file is read back before it takes its name. Only rank 0 writes.

    Args:
        dirname: folder to write to, made when needed.
    """

    def __init__(self, dirname: str | Path) -> None:
        self.dirname = Path(dirname)
        self._obsolete: set[str] = set()

    def __call__(self, checkpoint: Mapping[str, Any], filename: str, metadata: Mapping[str, Any] | None = None) -> None:
        """Write ``checkpoint`` to ``filename``, then delete the files it replaces."""
        if idist.get_rank() != 0:
            return
        with atomic_write(self.dirname / filename) as file:
            torch.save(checkpoint, file)
            file.seek(0)
            torch.load(file, map_location="cpu", weights_only=True)  # what resume could not read is never kept
        for name in self._obsolete - {filename}:
            (self.dirname / name).unlink(missing_ok=True)
        self._obsolete.clear()

    def remove(self, filename: str) -> None:
        """Delete ``filename`` after the next successful save."""
        self._obsolete.add(filename)


class AtomicCheckpointSaver:
    """Handler of a trainer: the last states for an exact resume, and the best weights.

    After each epoch, once all other handlers of the epoch (validation, learning rate) are done wherever this one stands
    in the list, it writes to ``save_dir``

    * ``model.pt``: plain state_dict of CPU tensors of the best network so far, the lowest finite key metric;
    * ``checkpoint_epoch=N.pt``: network, optimizer, scheduler, scaler, epoch and iteration, best metric, and the random
      states of torch, numpy and python of every rank. The last ``n_saved`` are kept.

    A resumed run equals an uninterrupted one bit for bit on a CPU when an epoch is one pass over the data loader, or
    when the data depend on the epoch alone. Put it before the handlers that log at the start of the training, on every
    rank of a distributed one: all give their random states, rank 0 alone writes.

    Args:
        save_dir: folder of the files.
        network: network to save; DistributedDataParallel and torch.compile wrappers are looked through.
        optimizer: its optimizer.
        lr_scheduler: learning rate scheduler, if any.
        evaluator: the validation engine whose key metric decides; None takes the trainer's own key metric, and where
            there is none, the last epoch is the best.
        extra: more named objects with state_dict and load_state_dict, such as a discriminator and its optimizer.
        resume: continue from the last checkpoint in ``save_dir``; with none there, start anew.
        n_saved: how many checkpoints to keep.
        key_metric_name: metric that decides, default the engine's key metric.
        lower_is_better: whether the metric is an error.
        model_filename: name of the file of the best weights.

    Raises:
        QMRIError: at the start of the training: checkpoints of an earlier run without ``resume``; a damaged checkpoint
            or one of another network; an evaluator that compares the other way round.
    """

    def __init__(
        self,
        save_dir: str | Path,
        network: nn.Module,
        optimizer: Any | None = None,
        lr_scheduler: Any | None = None,
        evaluator: Engine | None = None,
        extra: Mapping[str, Any] | None = None,
        resume: bool = False,
        n_saved: int = 2,
        key_metric_name: str | None = None,
        lower_is_better: bool = True,
        model_filename: str = "model.pt",
    ) -> None:
        self.save_dir = Path(save_dir)
        self.evaluator = evaluator
        self.resume_training = resume
        self.key_metric_name = key_metric_name
        self.sign = -1.0 if lower_is_better else 1.0
        self.logger = logging.getLogger(__name__)
        named = {"network": network, "optimizer": optimizer, "lr_scheduler": lr_scheduler, **(extra or {})}
        self._objects: dict[str, Any] = {name: bare(value) for name, value in named.items() if value is not None}
        self._best = Checkpoint(
            {"model": Weights(self._objects["network"])},
            AtomicDiskSaver(save_dir),
            score_function=self._score,
            filename_pattern=model_filename,
        )
        self._last = Checkpoint(
            self._objects,
            AtomicDiskSaver(save_dir),
            score_function=lambda engine: engine.state.epoch,
            score_name="epoch",
            n_saved=n_saved,
        )
        self._started = False

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer."""
        engine.add_event_handler(Events.STARTED, self._start)

    def resume(self, engine: Engine) -> Path | None:
        """Restore trainer, network, optimizer, scheduler and random states from the last checkpoint.

        Args:
            engine: the trainer, not yet run.

        Returns:
            The checkpoint, or None where there is none.

        Raises:
            QMRIError: when it is damaged, or belongs to another network, optimizer or epoch length.
        """
        self._include_engine(engine)
        path = latest_checkpoint(self.save_dir)
        if path is None:
            self.logger.info("No checkpoint in %s: training starts from the beginning.", self.save_dir)
            return None
        state = load_checkpoint(path)
        if set(state) != set(self._objects):
            raise QMRIError(
                file=path,
                found=f"states of {sorted(state)}",
                expected=f"states of {sorted(self._objects)}",
                remedy="resume with the configuration that wrote it, or train into another folder",
            )
        for name, value in self._objects.items():
            try:
                value.load_state_dict(state[name])
            except (RuntimeError, ValueError, KeyError, TypeError) as error:
                raise QMRIError(
                    file=path,
                    field=name,
                    found=str(error),
                    expected=f"the state of this run's {name}",
                    remedy="resume with the configuration that wrote it, or train into another folder",
                ) from error
        self._last._saved = [Checkpoint.Item(epoch_of(item), item.name) for item in checkpoints(self.save_dir)]
        self.logger.info("Resumed from %s, epoch %d.", path, engine.state.epoch)
        return path

    def _start(self, engine: Engine) -> None:
        if self._started:  # run() again on the same trainer continues it
            return
        self._started = True
        self._check_direction()
        if self.resume_training:
            self.resume(engine)
        else:
            self._include_engine(engine)
            self._refuse_to_mix()
        idist.barrier()  # nobody looks for checkpoints after rank 0 has begun to write them
        if idist.get_rank() == 0:
            remove_leftovers(self.save_dir, "*.pt")
        # Registered here, when all others are: last in the epoch, after validation and learning rate schedule.
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._save)

    def _include_engine(self, engine: Engine) -> None:
        engines = {"trainer": engine} | ({"evaluator": self.evaluator} if self.evaluator is not None else {})
        self._objects["progress"] = Progress(engines, self._best)
        self._objects["random"] = RandomStates()
        scaler = getattr(engine, "scaler", None)  # of automatic mixed precision: made by run()
        if scaler is not None:
            self._objects["scaler"] = scaler

    def _save(self, engine: Engine) -> None:
        # The best first: a kill between the two repeats the epoch and finds the same best again.
        source = engine if self.evaluator is None else self.evaluator
        if source.state.epoch == engine.state.epoch:  # validation may run every few epochs only
            score = self._score(source)
            if math.isfinite(score):
                self._best(source)
            else:
                self.logger.warning("Key metric of epoch %d is not finite: not kept as best.", engine.state.epoch)
        self._last(engine)

    def _score(self, engine: Engine) -> float:
        name = self.key_metric_name or getattr(engine.state, "key_metric_name", None)
        if name is None:
            return float(engine.state.epoch)
        if name not in engine.state.metrics:
            raise QMRIError(
                field="key_metric_name",
                found=f"{name!r}; the engine computes {sorted(engine.state.metrics)}",
                expected="one of these metrics",
                remedy="correct key_metric_name of the checkpoint saver",
            )
        return self.sign * float(engine.state.metrics[name])

    def _check_direction(self) -> None:
        compare = getattr(self.evaluator, "metric_cmp_fn", None)
        if compare is not None and bool(compare(0.0, 1.0)) != (self.sign < 0):
            raise QMRIError(
                field="metric_cmp_fn",
                found="an evaluator that keeps the highest" if self.sign < 0 else "an evaluator that keeps the lowest",
                expected="the same direction as lower_is_better of the checkpoint saver",
                remedy='set "metric_cmp_fn": "$lambda c, p: c < p" on the evaluator for an error metric',
            )

    def _refuse_to_mix(self) -> None:
        present = latest_checkpoint(self.save_dir)
        if present is not None:
            raise QMRIError(
                file=present,
                field="resume",
                found="a checkpoint of an earlier training, and resume is false",
                expected="a folder without checkpoints",
                remedy="set resume to true to continue it, choose another folder, or delete it",
            )
