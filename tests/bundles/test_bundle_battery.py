"""What holds for every bundle: no fault, one zip whenever it is packed, and a zip that runs alone from any folder."""

import hashlib
import json
import os
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest
from bundle_files import REPOSITORY
from bundle_zip import open_bundle
from check_bundle import check
from pack_bundle import pack, stage, write_zip

from .known_inputs import RUNS, Run

BUNDLES = sorted(path.parents[1].name for path in (REPOSITORY / "bundles").glob("*/configs/metadata.json"))
# Without site no .pth file is read, so an editable installation of this repository is not there.
# Inference needs nothing of the extra "train".
ALONE = [sys.executable, "-I", "-S", "-c"]
RUN = (
    "import runpy, sys; sys.path.append(sys.argv.pop(1)); "
    "sys.modules.update(dict.fromkeys(('imblearn', 'mlflow', 'nilearn', 'sklearn'))); "
    "runpy.run_module('monai.bundle', run_name='__main__', alter_sys=True)"
)
ALL_RUNS = [pytest.param(bundle, run, id=f"{bundle}-{run.configs[-1]}") for bundle in BUNDLES for run in RUNS[bundle]]


@pytest.fixture(scope="session")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The zip of a bundle, packed once."""
    folder = tmp_path_factory.mktemp("dist")
    zips: dict[str, Path] = {}

    def get(bundle: str) -> Path:
        if bundle not in zips:
            zips[bundle] = pack(bundle, folder, REPOSITORY)
        return zips[bundle]

    return get


@pytest.mark.parametrize("bundle", BUNDLES)
def test_a_bundle_has_no_fault(bundle: str) -> None:
    assert [str(fault) for fault in check(REPOSITORY / "bundles" / bundle)] == []


@pytest.mark.xdist_group("packed")
@pytest.mark.parametrize("bundle", BUNDLES)
def test_packed_twice_it_is_the_same(bundle: str, packed: Callable[[str], Path], tmp_path: Path) -> None:
    first = packed(bundle)
    version = json.loads((REPOSITORY / "bundles" / bundle / "configs/metadata.json").read_text())["version"]
    assert first.name == f"{bundle}_v{version}.zip"
    again = tmp_path / "again.zip"
    write_zip(stage(REPOSITORY / "bundles" / bundle, tmp_path / "stage", REPOSITORY), again)
    assert hashlib.sha256(first.read_bytes()).digest() == hashlib.sha256(again.read_bytes()).digest()


def test_alone_the_repository_is_not_there() -> None:
    code = "import sys; sys.path.append(sys.argv[1]); import {}"
    for module, status in (("tqdm", 0), ("physics", 1), ("shared_transforms", 1)):
        command = [*ALONE, code.format(module), sysconfig.get_path("purelib")]
        assert subprocess.run(command, cwd="/", capture_output=True, check=False).returncode == status


@pytest.mark.xdist_group("packed")
@pytest.mark.parametrize(("bundle", "run"), ALL_RUNS)
def test_the_zip_runs_alone(bundle: str, run: Run, packed: Callable[[str], Path], tmp_path: Path) -> None:
    run.write(tmp_path / "data", run.truth)
    with open_bundle(packed(bundle)) as root:
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        done = subprocess.run(
            [*ALONE, RUN, sysconfig.get_path("purelib"), *run.command(root, tmp_path / "data", tmp_path / "maps")],
            **{"cwd": "/", "env": environment | {"OMP_NUM_THREADS": "1"}, "capture_output": True, "text": True},
            check=False,
        )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    path = run.check(tmp_path / "maps")
    assert path.name in done.stdout + done.stderr, "the run ends with the list of what it wrote"
