"""Tasks in processes, as a program of its own: the processes that it starts import it again."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from shared_transforms.batch.processes import Lost, SessionError, in_processes


class Sessions:
    """What is done in a process: every task leaves a line in a log, and some do worse."""

    def __init__(self, folder: Path, kind: str) -> None:
        self.folder, self.kind = folder, kind

    def __call__(self, index: int) -> Callable[[str], str]:
        """Open the session of a process."""
        self.log("open", index)
        if self.kind == "broken":
            raise ValueError("no weights")
        if self.kind == "one broken" and index == 1:
            raise ValueError("no memory")
        if self.kind == "dead" or (self.kind == "one dead" and index == 1):
            os.kill(os.getpid(), signal.SIGKILL)
        return self.do

    def do(self, task: str) -> str:
        """Do a task."""
        self.log("begin", task)
        if task == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if task == "exit":
            sys.exit(3)
        if task == "meet":  # the other process is through with its session
            while (self.folder / "log").read_text().count(" open ") < 2:
                time.sleep(0.01)
        time.sleep(1.0 if task == "wait" else 0.01)
        self.log("end", task)
        return f"{task} with {os.environ['OMP_NUM_THREADS']}"

    def log(self, *words: object) -> None:
        """Add a line that no other process can cut in two."""
        with (self.folder / "log").open("a") as file:
            file.write(" ".join(map(str, (os.getpid(), *words))) + "\n")


if __name__ == "__main__":
    folder, kind, processes, threads, *tasks = sys.argv[1:]
    found = []
    try:
        for task, result in in_processes(Sessions(Path(folder), kind), tasks, int(processes), int(threads)):
            found.append([task, str(result), isinstance(result, Lost)])
        print(json.dumps(found))
    except (SessionError, ValueError) as error:
        print(json.dumps(f"{type(error).__name__}: {error}"))
