"""Batches of real subjects, with the processes and the signals of real runs: `make test-batch`."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import pytest
from bundle_files import REPOSITORY
from bundle_zip import open_bundle
from pack_bundle import pack

from .known_inputs import RUNS
from .test_bundle_battery import ALONE, RUN

pytestmark = pytest.mark.batch

# As many subjects as take a few minutes on two cores.
SUBJECTS = {"rim_relaxometry": 50, "deepspio": 12, "qsmgan": 12, "qsmrim_net": 12, "stnet_perfusion": 12}
CORRUPT = "sub-04"


def write_dataset(folder: Path, bundle: str, subjects: int) -> Path:
    """A BIDS data set of equal subjects, of which one has a truncated image."""
    run = RUNS[bundle][0]
    folder.mkdir(parents=True)
    run.write(folder / "one", run.truth)
    for number in range(1, subjects + 1):
        place = folder / f"sub-{number:02d}" / "anat"
        place.mkdir(parents=True)
        for file in (folder / "one").iterdir():
            shutil.copy(file, place / file.name.replace("sub-01", f"sub-{number:02d}"))
    shutil.rmtree(folder / "one")
    for image in (folder / CORRUPT / "anat").glob("*.nii.gz"):
        if "mask" not in image.name:
            image.write_bytes(image.read_bytes()[:-200])
    (folder / "dataset_description.json").write_text(json.dumps({"Name": "test", "BIDSVersion": "1.10.0"}))
    return folder


def arguments(bundle: str, root: Path, data: Path, output: Path, processes: int = 2) -> list[str]:
    options = {"config_file": root / "configs/batch.json", "bundle_root": root, "dataset_dir": data}
    options |= {"output_dir": output, "processes": processes, "options": dict(RUNS[bundle][0].options)}
    return ["run", *(text for key, value in options.items() for text in (f"--{key}", str(value)))]


def command(bundle: str, data: Path, output: Path) -> list[str]:
    return [sys.executable, "-m", "monai.bundle", *arguments(bundle, REPOSITORY / "bundles" / bundle, data, output)]


def records(output: Path) -> dict[str, int]:
    """{subject: time of change} of those that are done."""
    return {path.parent.name: path.stat().st_mtime_ns for path in output.glob("sub-*/*_batch.json")}


def complete(output: Path) -> bool:
    """Whether each subject that is there is whole."""
    for folder in output.glob("sub-*"):
        record = json.loads((folder / f"{folder.name}_batch.json").read_text())
        if any((folder / name).stat().st_size != size for name, size in record["outputs"].items()):
            return False
    return True


def table(output: Path) -> dict[str, dict[str, str]]:
    with (output / "batch.tsv").open(newline="") as file:
        return {row["subject"]: row for row in csv.DictReader(file, dialect="excel-tab")}


@pytest.mark.parametrize("bundle", SUBJECTS)
def test_killed_and_started_again_it_does_each_subject_once_and_names_the_corrupt_one(
    bundle: str, tmp_path: Path
) -> None:
    number = SUBJECTS[bundle]
    data, output = write_dataset(tmp_path / "data", bundle, number), tmp_path / "maps"
    run = subprocess.Popen(command(bundle, data, output), start_new_session=True)
    while len(records(output)) < number // 3:
        assert run.poll() is None
        time.sleep(0.1)
    os.killpg(run.pid, signal.SIGKILL)
    run.wait()
    before = records(output)
    assert number // 3 <= len(before) < number - 1
    assert complete(output)

    again = subprocess.run(command(bundle, data, output), capture_output=True, text=True, check=False)
    assert again.returncode == 1, again.stderr[-3000:]
    after = records(output)
    assert len(after) == number - 1 and CORRUPT not in after, again.stderr[-3000:]
    assert {name: after[name] for name in before} == before, "what was done is not done again"
    assert f"{len(after) - len(before)} done" in again.stderr and f"{len(before)} done before" in again.stderr
    assert complete(output)
    rows = table(output)
    assert [name for name, row in rows.items() if row["status"] != "done"] == [CORRUPT]
    assert rows[CORRUPT]["status"] == "failed"
    assert f"{data}/{CORRUPT}/anat/{CORRUPT}" in rows[CORRUPT]["message"]
    assert "truncated" in rows[CORRUPT]["message"] and "remedy:" in rows[CORRUPT]["message"]
    RUNS[bundle][0].check(output / "sub-01")


@pytest.mark.parametrize("bundle", SUBJECTS)
def test_the_zip_runs_a_batch_alone(bundle: str, tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "data", bundle, 5)
    with open_bundle(pack(bundle, tmp_path, REPOSITORY)) as root:
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        done = subprocess.run(
            [*ALONE, RUN, sysconfig.get_path("purelib"), *arguments(bundle, root, data, tmp_path / "maps")],
            **{"cwd": "/", "env": environment, "capture_output": True, "text": True, "check": False},
        )
    assert done.returncode == 1, done.stderr[-3000:]
    assert [row["status"] for row in table(tmp_path / "maps").values()] == [*["done"] * 3, "failed", "done"]


def test_two_runs_at_once_do_each_subject_once(tmp_path: Path) -> None:
    data, output = write_dataset(tmp_path / "data", "rim_relaxometry", 10), tmp_path / "maps"
    runs = [
        subprocess.Popen(command("rim_relaxometry", data, output), stderr=subprocess.PIPE, text=True) for _ in range(2)
    ]
    said = [run.communicate()[1] for run in runs]
    assert len(records(output)) == 9
    assert sum(text.count(": done, ") for text in said) == 9
    assert complete(output)
