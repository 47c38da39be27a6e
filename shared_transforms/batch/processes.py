"""Processes that each open a session once and then do one task at a time; one that dies takes its task alone along."""

from __future__ import annotations

import multiprocessing
import os
import signal
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Generic, TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")
Session = Callable[[Task], Result]

# Read by the libraries when a process imports them.
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS")


@dataclass(frozen=True)
class Lost:
    """What became of a task whose process ended: ``exitcode``, negative for the signal that ended it."""

    exitcode: int | None

    def __str__(self) -> str:
        if self.exitcode is not None and self.exitcode < 0:
            name = signal.Signals(-self.exitcode).name
            reason = " (the system does so where memory runs out)" if name == "SIGKILL" else ""
            return f"its process was ended by {name}{reason}"
        return f"its process ended with status {self.exitcode}"


class SessionError(RuntimeError):
    """No process is left that has opened its session."""


@dataclass
class _Worker(Generic[Task]):
    index: int
    process: BaseProcess
    connection: Connection
    task: Task | None = None
    opened: bool = False


def in_processes(
    open_session: Callable[[int], Session[Task, Result]], tasks: Sequence[Task], processes: int, threads: int = 1
) -> Iterator[tuple[Task, Result | Lost]]:
    """Do tasks in spawned processes, one at a time in each.

    A process that is killed loses its task, and another takes its place. One that cannot open its session is warned
    of, and the others go on. Where the iteration is left early, the processes are ended; where this process is killed,
    each of the others ends after its task.

    Args:
        open_session: called once in each process with its number from 0; returns the function that does a task.
        tasks: what to do, in this order.
        processes: how many.
        threads: of each process.

    Yields:
        Each task with its result, or with how its process ended, as they come.

    Raises:
        Exception: what ``open_session`` raised, where no process is left for the tasks.
        SessionError: likewise, where the last process ended while it opened its session.
    """
    waiting = list(reversed(tasks))
    workers: list[_Worker[Task]] = []
    unopened: list[Exception] = []
    opened = False
    try:
        with _threads(threads):
            workers += [_start(open_session, index) for index in range(min(processes, len(tasks)))]
        while workers:
            ready = wait([worker.connection for worker in workers])
            for worker in [worker for worker in workers if worker.connection in ready]:
                try:
                    kind, value = worker.connection.recv()
                except (EOFError, OSError):
                    workers.remove(worker)
                    lost = _end_of(worker)
                    if worker.opened and waiting:
                        with _threads(threads):
                            workers.append(_start(open_session, worker.index))
                    elif not worker.opened:
                        unopened.append(SessionError(f"no process could start: {lost}"))
                    if worker.task is not None:
                        yield worker.task, lost
                    continue
                if kind == "broken":
                    workers.remove(worker)
                    worker.process.join()
                    unopened.append(value)
                    continue
                worker.opened = opened = True
                done, worker.task = worker.task, waiting.pop() if waiting else None
                with suppress(OSError):  # it died meanwhile, which the next turn finds
                    worker.connection.send(worker.task)
                if worker.task is None:
                    workers.remove(worker)
                    worker.process.join()
                if kind == "result" and done is not None:
                    yield done, value
            if waiting and not workers:
                raise unopened[-1]
            while opened and unopened:
                cause = " ".join(str(unopened.pop()).split())
                warnings.warn(f"one process less, for it could not open its session: {cause}", stacklevel=2)
    finally:
        for worker in workers:
            worker.process.terminate()
        for worker in workers:
            worker.process.join()


def _start(open_session: Callable[[int], Session[Task, Result]], index: int) -> _Worker[Task]:
    context = multiprocessing.get_context("spawn")  # a forked process shares CUDA and locks with its parent
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(open_session, index, theirs), name=f"batch-{index}")
    process.start()
    theirs.close()  # or the end of the process would not close the pipe
    return _Worker(index, process, ours)


def _work(open_session: Callable[[int], Session[Task, Result]], index: int, connection: Connection) -> None:
    """Body of a process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the one that was started decides
    try:
        session = open_session(index)
    except Exception as error:
        connection.send(("broken", error))
        return
    message: tuple[str, Any] = ("ready", None)
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):  # the one that was started is gone
        while True:
            connection.send(message)
            task = connection.recv()
            if task is None:
                return
            message = ("result", session(task))


def _end_of(worker: _Worker[Task]) -> Lost:
    worker.process.join()
    worker.connection.close()
    return Lost(worker.process.exitcode)


@contextmanager
def _threads(number: int) -> Iterator[None]:
    """The environment of processes that are started within."""
    before = {name: os.environ.get(name) for name in _THREADS}
    os.environ.update(dict.fromkeys(_THREADS, str(number)))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
