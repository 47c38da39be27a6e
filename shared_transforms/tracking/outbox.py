"""What goes to an MLflow server that may be away for a while."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from shared_transforms.tracking.config import without_password

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

__all__ = ["Outbox"]

_BATCH = 1000  # metrics that MLflow takes at once
_PAUSE = 30.0  # seconds before a server that was away is asked again

logger = logging.getLogger(__name__)


class Outbox:
    """Metrics, tags and files of a run, in the order they came; what the server does not take is kept and sent later.

    A server that is away costs the training a tenth of its time at most: after a failed attempt, nothing is sent for
    ten times as long as it took, and for half a minute at least. It is said when the server is away, and when it is
    back. What was not sent when the training ends is lost to the record; the files are in the folder of the run.

    Args:
        client: of the server.
        run_id: of the run.
    """

    def __init__(self, client: MlflowClient, run_id: str) -> None:
        self.client = client
        self.run_id = run_id
        self.away = False
        self._metrics: list[Metric] = []
        self._tags: dict[str, str] = {}
        self._files: dict[Path, str | None] = {}
        self._next_attempt = 0.0

    def __len__(self) -> int:
        """Number of values and files that were not sent."""
        return len(self._metrics) + len(self._tags) + len(self._files)

    def add(
        self,
        metrics: Mapping[str, float] | None = None,
        step: int = 0,
        tags: Mapping[str, str] | None = None,
        files: Mapping[Path, str | None] | None = None,
    ) -> None:
        """Send now, or when the server is there.

        Args:
            metrics: values by name.
            step: epoch or iteration they belong to.
            tags: texts by name.
            files: folder in the record by path; a file that has vanished when the server is back is left out, and so
                is, with a warning, one that cannot be read.
        """
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._metrics += [Metric(name, value, now, step) for name, value in (metrics or {}).items()]
        self._tags |= tags or {}
        self._files |= files or {}
        self.send()

    def send(self, at_once: bool = False) -> None:
        """Try to send all; nothing happens while a server that was away is given its time.

        Args:
            at_once: try now in any case.
        """
        if at_once or time.monotonic() >= self._next_attempt:
            self.attempt(self._send)

    def attempt(self, action: Callable[[], object]) -> bool:
        """Do what needs the server; whether it was there.

        Args:
            action: raises when the server does not do it.
        """
        begin = time.monotonic()
        try:
            action()
        except Exception as error:  # each of MLflow's stores of files raises its own
            end = time.monotonic()
            self._next_attempt = end + max(_PAUSE, 10 * (end - begin))
            if not self.away:
                reason = without_password(str(error)).partition("\n")[0]
                logger.warning(f"MLflow does not take the record; the training goes on, and it is sent later: {reason}")
            self.away = True
            return False
        if self.away:
            logger.warning("MLflow takes the record again.")
        self.away = False
        return True

    def _send(self) -> None:
        while self._metrics:
            self.client.log_batch(self.run_id, metrics=self._metrics[:_BATCH])
            del self._metrics[:_BATCH]
        for name in list(self._tags):
            self.client.set_tag(self.run_id, name, self._tags[name])
            del self._tags[name]
        begin, fault = time.monotonic(), None
        for path, folder in list(self._files.items()):
            try:
                if _is_readable(path):
                    self.client.log_artifact(self.run_id, str(path), folder)
            except Exception as error:
                fault = fault or error
                if time.monotonic() - begin > _PAUSE:  # no answer; a file that is refused at once blocks no other
                    break
            else:
                del self._files[path]
        if fault is not None:
            raise fault


def _is_readable(path: Path) -> bool:
    """Whether a file is there; a fault of this machine is warned of, for it is none of the server."""
    try:
        with path.open("rb"):
            return True
    except FileNotFoundError:
        return False
    except OSError as error:
        logger.warning(f"{path} is left out of MLflow's record: {error.strerror}")
        return False
