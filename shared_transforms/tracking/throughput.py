"""How many samples a second a training makes, and how many it learns from, apart."""

from __future__ import annotations

import time

import torch
from ignite.engine import Engine, Events

__all__ = ["Throughput"]


class Throughput:
    """Handler of a trainer: ``simulated_per_second`` and ``trained_per_second`` of each epoch, among its metrics.

    The first counts the time until a batch is there, which with simulated data is that of the simulation; the second
    the time of the training step. On CUDA both wait for the device.

    Args:
        batch_size: samples in a batch, of all processes together.
    """

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size
        self._begin = self._fetching = self._training = 0.0
        self._batches = 0

    def attach(self, engine: Engine) -> None:
        """Register with the trainer; before handlers that record metrics."""
        engine.add_event_handler(Events.EPOCH_STARTED, self._reset)
        engine.add_event_handler(Events.GET_BATCH_STARTED, self._mark)
        engine.add_event_handler(Events.GET_BATCH_COMPLETED, self._fetched)
        engine.add_event_handler(Events.ITERATION_STARTED, self._mark)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._trained)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._report)

    def _now(self) -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter()

    def _reset(self, engine: Engine) -> None:
        self._fetching = self._training = 0.0
        self._batches = 0

    def _mark(self, engine: Engine) -> None:
        self._begin = self._now()

    def _fetched(self, engine: Engine) -> None:
        self._fetching += self._now() - self._begin

    def _trained(self, engine: Engine) -> None:
        self._training += self._now() - self._begin
        self._batches += 1

    def _report(self, engine: Engine) -> None:
        samples = self._batches * self.batch_size
        for name, seconds in (("simulated", self._fetching), ("trained", self._training)):
            if seconds > 0:
                engine.state.metrics[f"{name}_per_second"] = samples / seconds
