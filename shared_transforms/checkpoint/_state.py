"""What an exact resume needs beside network and optimizer: weights as plain tensors, progress, random states."""

from __future__ import annotations

import logging
import random
from collections.abc import Mapping
from typing import Any

import ignite.distributed as idist
import numpy as np
import torch
from ignite.engine import Engine
from ignite.handlers import Checkpoint
from torch import Tensor, nn

__all__ = ["Progress", "RandomStates", "Weights", "bare"]


class Weights:
    """A network as plain CPU tensors: the file loads anywhere, and equal weights give equal bytes."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network

    def state_dict(self) -> dict[str, Tensor]:
        return {name: value.detach().cpu().contiguous() for name, value in self.network.state_dict().items()}


class Progress:
    """Where the engines stand, and the best metric so far."""

    def __init__(self, engines: Mapping[str, Engine], best: Checkpoint) -> None:
        self.engines = engines
        self.best = best

    def state_dict(self) -> dict[str, Any]:
        trainer = self.engines["trainer"].state
        state: dict[str, Any] = {key: getattr(trainer, key) for key in ("epoch", "iteration", "epoch_length")}
        for name, engine in self.engines.items():
            state[f"{name}_best"] = [
                float(getattr(engine.state, key, -1)) for key in ("best_metric", "best_metric_epoch")
            ]
        state["saved_best"] = [[float(item.priority), item.filename] for item in self.best._saved]
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        trainer = self.engines["trainer"].state
        if trainer.epoch_length not in (None, state["epoch_length"]):
            raise ValueError(f"an epoch of {state['epoch_length']} iterations, this run has {trainer.epoch_length}")
        if trainer.max_epochs is not None and state["epoch"] > trainer.max_epochs:
            raise ValueError(f"epoch {state['epoch']}, beyond max_epochs {trainer.max_epochs} of this run")
        trainer.epoch, trainer.iteration = state["epoch"], state["iteration"]
        for name, engine in self.engines.items():
            metric, epoch = state[f"{name}_best"]
            target: Any = engine.state  # MONAI adds these two to ignite's state
            target.best_metric, target.best_metric_epoch = metric, int(epoch)
        self.best._saved = [Checkpoint.Item(score, filename) for score, filename in state["saved_best"]]


class RandomStates:
    """Random states of torch (CPU and current GPU), numpy and python, one for each rank."""

    def state_dict(self) -> dict[str, Any]:
        mine = _random_state()
        # Every rank takes part: ignite asks all of them for their state before rank 0 writes.
        return {"ranks": idist.all_gather(mine) if idist.get_world_size() > 1 else [mine]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        ranks = state["ranks"]
        if len(ranks) != idist.get_world_size():
            logging.getLogger(__name__).warning(
                "Saved by %d processes, resumed by %d: random states start anew.", len(ranks), idist.get_world_size()
            )
            return
        mine = ranks[idist.get_rank()]
        torch.set_rng_state(mine["torch"])
        if "cuda" in mine and torch.cuda.is_available():
            torch.cuda.set_rng_state(mine["cuda"])
        kind, keys, *rest = mine["numpy"]
        np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
        version, words, gauss = mine["python"]
        random.setstate((version, tuple(words.tolist()), gauss))


def _random_state() -> dict[str, Any]:
    version, words, gauss = random.getstate()
    kind, keys, *rest = np.random.get_state(legacy=True)
    state: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "numpy": [kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest],
        "python": [version, torch.tensor(words), gauss],
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def bare(value: Any) -> Any:
    if isinstance(value, nn.DataParallel | nn.parallel.DistributedDataParallel):
        value = value.module
    return getattr(value, "_orig_mod", value)  # of torch.compile
