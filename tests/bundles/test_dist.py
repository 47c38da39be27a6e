"""Zips in bare environments: MONAI, torch, numpy and what metadata.json lists, in the versions that it lists.

Minutes and a package index: ``make test-dist``.
"""

import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from bundle_files import REPOSITORY
from pack_bundle import pack

from .known_inputs import RUNS

UV = Path(sys.executable).with_name("uv")
NAMED = {"monai": "monai_version", "torch": "pytorch_version", "numpy": "numpy_version"}
pytestmark = pytest.mark.dist


@pytest.mark.parametrize("bundle", RUNS)
def test_the_zip_infers_in_a_bare_environment(bundle: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(pack(bundle, tmp_path, REPOSITORY)) as archive:
        archive.extractall(tmp_path)
    root = tmp_path / bundle
    python = environment(json.loads((root / "configs/metadata.json").read_text()), tmp_path / "venv")
    own = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}
    for number, run in enumerate(RUNS[bundle]):
        data, maps = tmp_path / f"data{number}", tmp_path / f"maps{number}"
        run.write(data, run.truth)
        command = [python, "-m", "monai.bundle", *run.command(root, data, maps)]
        done = subprocess.run(command, cwd="/", env=own, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
        run.check(maps)


def test_the_commands_of_the_page_work(tmp_path: Path) -> None:
    name = pack("rim_relaxometry", tmp_path / "dist", REPOSITORY).name
    run = RUNS["rim_relaxometry"][0]
    run.write(tmp_path / "scans", run.truth)
    page = (REPOSITORY / "docs/model_zoo.md").read_text()
    [[shell], [code]] = (re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL) for language in ("bash", "python"))
    shell = shell.replace("rim_relaxometry_vX.Y.Z.zip", name)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(["bash", "-ec", shell], cwd=tmp_path, env=os.environ | {"PATH": path}, check=True)
    run.check(tmp_path / "maps")
    code += "print(type(network).__module__)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert re.fullmatch(r"rim_relaxometry_v\d+_\d+_\d+\.network", done.stdout.splitlines()[-1])


def environment(metadata: dict, folder: Path) -> Path:
    """A new virtual environment with the packages that metadata.json names, at their versions; its Python."""
    versions = {name: metadata[key] for name, key in NAMED.items()} | metadata["required_packages_version"]
    subprocess.run([UV, "venv", "--quiet", "--python", sys.executable, folder], check=True)
    python = folder / "bin/python"
    # From the repository, whose pyproject.toml tells uv what pyradiomics needs to be built.
    packages = [f"{name}=={version}" for name, version in versions.items()]
    subprocess.run(
        [UV, "pip", "install", "--quiet", "--python", python, *packages], cwd=REPOSITORY, check=True, text=True
    )
    hidden = subprocess.run([python, "-c", "import physics"], cwd="/", capture_output=True, check=False)
    assert hidden.returncode == 1, "the repository is in this environment"
    return python
