"""Provenance in repositories made for the test, and tables read back."""

from __future__ import annotations

import csv
import json
import subprocess
from pathlib import Path

import pytest

from shared_transforms.atomic import atomic_write, remove_leftovers
from shared_transforms.provenance import git_commit, hardware, provenance, versions, write_table


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false", "-c", "core.hooksPath=/"]
    return subprocess.run(
        ["git", "-C", folder, *identity, *arguments], check=True, capture_output=True, text=True
    ).stdout


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    git(tmp_path, "init", "-q")
    (tmp_path / "code").mkdir()
    (tmp_path / "docs").mkdir()
    for name in ("code/a.py", "docs/table.csv"):
        (tmp_path / name).write_text("1\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "first")
    return tmp_path


def test_commit(repository: Path) -> None:
    full = git(repository, "rev-parse", "HEAD").strip()
    commit = git_commit(repository / "code")
    assert commit is not None and len(commit) >= 7 and full.startswith(commit)
    (repository / "docs/table.csv").write_text("2\n")  # results do not make the sources dirty
    (repository / "code/untracked.py").write_text("2\n")
    assert git_commit(repository / "code") == commit
    (repository / "code/a.py").write_text("2\n")
    assert git_commit(repository / "code") == f"{commit}-dirty"
    assert git_commit(repository / "docs") == f"{commit}-dirty"


def test_commit_of_somebody_else_is_not_ours(repository: Path, tmp_path: Path) -> None:
    unpacked = repository / "unpacked_bundle"
    unpacked.mkdir()
    (unpacked / "network.py").write_text("")
    assert git_commit(unpacked) is None


def test_no_repository_or_no_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert git_commit(tmp_path) is None
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_commit() is None


def test_provenance_is_plain_and_complete(tmp_path: Path) -> None:
    found = provenance(seed=7, folder=tmp_path)
    assert json.loads(json.dumps(found)) == found
    assert found["seed"] == 7 and found["commit"] is None and found["date"].endswith("+00:00")
    assert found["hardware"] == hardware() and found["hardware"]["cpu"] and found["hardware"]["cores"] >= 1
    assert {"python", "torch", "monai", "numpy"} <= set(versions())


def test_table_is_read_back(tmp_path: Path) -> None:
    rows = [{"method": "rim", "T1 error [%]": 3.7}, {"method": "mle, smooth", "T1 error [%]": 5.8, "n": 4}]
    origin = provenance(seed=1, folder=tmp_path)
    table, content = write_table(tmp_path / "results" / "snr.sweep", rows, origin)
    assert (table.name, content.name) == ("snr.sweep.csv", "snr.sweep.json")
    assert json.loads(content.read_text()) == {"provenance": origin, "rows": rows}
    lines = table.read_text().splitlines()
    comments = [line for line in lines if line.startswith("#")]
    assert any(line == "# seed: 1" for line in comments) and any("cpu" in line for line in comments)
    read = list(csv.DictReader(lines[len(comments) :]))
    assert read[1] == {"method": "mle, smooth", "T1 error [%]": "5.8", "n": "4"} and read[0]["n"] == ""


def test_table_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    write_table(tmp_path / "table", [{"a": 1}], {})
    before = {path.name: path.read_text() for path in tmp_path.iterdir()}
    with pytest.raises(TypeError):
        write_table(tmp_path / "table", [{"a": object()}], {})
    with pytest.raises(ValueError, match="no rows"):
        write_table(tmp_path / "table", [], {})
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == before


def test_atomic_write_keeps_the_old_file_on_an_exception(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "file"
    with atomic_write(path) as file:
        file.write(b"old")
    with pytest.raises(RuntimeError), atomic_write(path) as file:
        file.write(b"half")
        raise RuntimeError
    assert path.read_bytes() == b"old" and list(path.parent.iterdir()) == [path]
    (path.parent / ".file.123.tmp").touch()
    remove_leftovers(path.parent, "file")
    assert list(path.parent.iterdir()) == [path]
