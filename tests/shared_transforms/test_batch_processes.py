"""Tasks in processes that may be killed."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

PROGRAM = [sys.executable, "-m", "tests.shared_transforms.batch_program"]
ROOT = Path(__file__).resolve().parents[2]
TASKS = [str(number) for number in range(12)]


def run(folder: Path, kind: str, processes: int, *tasks: str, threads: int = 1) -> Any:
    command = [*PROGRAM, str(folder), kind, str(processes), str(threads), *tasks]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def logged(folder: Path) -> list[list[str]]:
    """Process, what it did, and of which task."""
    return [line.split() for line in (folder / "log").read_text().splitlines()]


def test_every_task_is_done_once_by_processes_that_open_one_session_each(tmp_path: Path) -> None:
    results = run(tmp_path, "sound", 2, *TASKS, threads=3)
    assert sorted(results) == sorted([task, f"{task} with 3", False] for task in TASKS)
    assert Counter(task for _, what, task in logged(tmp_path) if what == "end") == dict.fromkeys(TASKS, 1)
    opened = [(pid, index) for pid, what, index in logged(tmp_path) if what == "open"]
    assert len({pid for pid, _ in opened}) == len(opened) == 2 and {index for _, index in opened} == {"0", "1"}


@pytest.mark.parametrize("processes", [1, 2])
def test_a_process_that_dies_takes_its_task_alone_along(processes: int, tmp_path: Path) -> None:
    results = run(tmp_path, "sound", processes, "a", "kill", "b", "exit", "c", "d")
    lost = {task: text for task, text, is_lost in results if is_lost}
    assert set(lost) == {"kill", "exit"} and "SIGKILL" in lost["kill"] and "status 3" in lost["exit"]
    assert sorted(task for task, _, is_lost in results if not is_lost) == ["a", "b", "c", "d"]


def test_no_more_processes_are_started_than_there_are_tasks(tmp_path: Path) -> None:
    assert run(tmp_path, "sound", 4, "only") == [["only", "only with 1", False]]
    assert [what for _, what, _ in logged(tmp_path)] == ["open", "begin", "end"]


def test_a_session_that_cannot_be_opened_ends_the_run_with_its_error(tmp_path: Path) -> None:
    assert run(tmp_path, "broken", 2, *TASKS) == "ValueError: no weights"
    assert not any(what == "begin" for _, what, _ in logged(tmp_path))


@pytest.mark.parametrize(("kind", "cause"), [("one broken", "no memory"), ("one dead", "ended by SIGKILL")])
def test_where_one_process_cannot_open_its_session_the_others_go_on(kind: str, cause: str, tmp_path: Path) -> None:
    command = [*PROGRAM, str(tmp_path), kind, "2", "1", "meet", *TASKS]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=120)
    assert sorted(json.loads(done.stdout)) == sorted([task, f"{task} with 1", False] for task in ["meet", *TASKS])
    assert done.stderr.count("could not open its session") == 1 and cause in done.stderr


def test_processes_that_die_at_once_end_the_run(tmp_path: Path) -> None:
    assert "SessionError: no process could start: its process was ended by SIGKILL" in run(tmp_path, "dead", 2, *TASKS)
    assert len(logged(tmp_path)) == 2


def test_where_the_first_process_is_killed_the_others_end_after_their_task(tmp_path: Path) -> None:
    command = [*PROGRAM, str(tmp_path), "sound", "2", "1", "wait", "wait", *TASKS]
    parent = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    while not (tmp_path / "log").exists() or sum(what == "begin" for _, what, _ in logged(tmp_path)) < 2:
        assert parent.poll() is None
        time.sleep(0.01)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    children = {int(pid) for pid, *_ in logged(tmp_path)}
    deadline = time.monotonic() + 60
    while any(alive(pid) for pid in children):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert Counter((what, task) for _, what, task in logged(tmp_path) if what != "open") == {
        ("begin", "wait"): 2,
        ("end", "wait"): 2,
    }


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{pid}/stat")
    return not status.exists() or status.read_text().rsplit(")", 1)[1].split()[0] != "Z"
