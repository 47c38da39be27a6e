"""What holds for every bundle: no fault, one zip whenever it is packed, and a zip that runs anywhere, beside any other.

MONAI's own checks are those of the continuous integration of its model zoo, on the unpacked zip.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from bundle_files import REPOSITORY, bundle_names
from check_bundle import check
from monai.bundle import ConfigWorkflow, ckpt_export, verify_metadata, verify_net_in_out
from pack_bundle import pack, stage, write_zip

from .known_inputs import RUNS, Run
from .lesion_tables import lesion_table

BUNDLES = bundle_names()
# Without site no .pth file is read, so an editable installation of this repository is not there.
# Inference needs nothing of the extra "train".
ALONE = [sys.executable, "-I", "-S", "-c"]
RUN = (
    "import runpy, sys; sys.path.append(sys.argv.pop(1)); "
    "sys.modules.update(dict.fromkeys(('imblearn', 'mlflow', 'nilearn', 'sklearn'))); "
    "runpy.run_module('monai.bundle', run_name='__main__', alter_sys=True)"
)
ALL_RUNS = [pytest.param(bundle, run, id=f"{bundle}-{run.configs[-1]}") for bundle in BUNDLES for run in RUNS[bundle]]
# Trainings that are quick to set up; MONAI builds all of a training to find its properties.
SMALL: dict[str, dict[str, Any]] = {
    "deepspio": {"batches_per_epoch": 1},
    "qsmgan": {
        **{"batches_per_epoch": 1, "volumes_per_epoch": 1, "validation_volumes": 1, "validation_batches": 1},
        **{"volume_size": [40, 40, 40], "patch_size": 32, "anatomy#resolution_mm": 2.0},
    },
    "qsmrim_net": {"size": [8, 8, 4], "width": 4, "folds": 2},
    "rim_relaxometry": {"batches_per_epoch": 2, "validation_batches": 1, "patch_size_px": [24, 24]},
    "stnet_perfusion": {"batches_per_epoch": 1, "volumes_per_epoch": 1},
}
# TorchScript of the recurrent inference machine is traced: its loop over Gauss-Newton steps cannot be scripted.
EXPORT: dict[str, dict[str, Any]] = {"rim_relaxometry": {"use_trace": True, "input_shape": [1, 31, 24, 24]}}
WORKFLOWS = [
    *(
        (bundle, (f"{name}.json",), kind)
        for bundle in BUNDLES
        for name, kind in (("train", "train"), ("inference", "infer"))
    ),
    ("qsmgan", ("train_gan.json",), "train"),
    *(
        ("rim_relaxometry", (f"{name}.json", "t2.json"), kind)
        for name, kind in (("train", "train"), ("inference", "infer"))
    ),
]
exporters = pytest.mark.filterwarnings(  # those of torch use what torch deprecates
    "ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"
)


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


@pytest.fixture(scope="session")
def unpacked(packed: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The root of a bundle's zip, unpacked once."""
    folder = tmp_path_factory.mktemp("unpacked")

    def get(bundle: str) -> Path:
        if not (folder / bundle).is_dir():
            shutil.unpack_archive(packed(bundle), folder)
        return folder / bundle

    return get


@pytest.fixture(scope="session")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path, Run], tuple[Path, Path, str]]:
    """One run of an unpacked zip, in a process without the repository: input, maps and what it printed."""
    folder = tmp_path_factory.mktemp("alone")
    done: dict[tuple[Path, tuple[str, ...]], tuple[Path, Path, str]] = {}

    def get(root: Path, run: Run) -> tuple[Path, Path, str]:
        key = (root, run.configs)
        if key not in done:
            data, maps = folder / f"data{len(done)}", folder / f"maps{len(done)}"
            run.write(data, run.truth)
            environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
            ended = subprocess.run(
                [*ALONE, RUN, sysconfig.get_path("purelib"), *run.command(root, data, maps)],
                **{"cwd": "/", "env": environment | {"OMP_NUM_THREADS": "1"}, "capture_output": True, "text": True},
                check=False,
            )
            assert ended.returncode == 0, ended.stdout[-2000:] + ended.stderr[-4000:]
            done[key] = data, maps, ended.stdout + ended.stderr
        return done[key]

    return get


@pytest.fixture
def workflow(monkeypatch: pytest.MonkeyPatch) -> Callable[..., ConfigWorkflow]:
    """A run of an unpacked zip in this process, initialised; the path is as before when the test has ended."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)

    def get(root: Path, configs: tuple[str, ...], kind: str, **settings: Any) -> ConfigWorkflow:
        files = [str(root / "configs" / config) for config in configs]
        own = {"bundle_root": str(root), "config_file": files} | settings
        made = ConfigWorkflow(workflow_type=kind, logging_file=False, **own)
        made.initialize()
        return made

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
def test_the_zip_runs_alone(bundle: str, run: Run, unpacked: Callable[[str], Path], alone: Callable[..., Any]) -> None:
    _, maps, printed = alone(unpacked(bundle), run)
    path = run.check(maps)
    assert path.name in printed, "the run ends with the list of what it wrote"


@pytest.mark.xdist_group("packed")
def test_zips_of_any_versions_give_in_one_process_what_each_gives_alone(
    unpacked: Callable[[str], Path], alone: Callable[..., Any], workflow: Callable[..., ConfigWorkflow], tmp_path: Path
) -> None:
    runs = [(unpacked(bundle), RUNS[bundle][0]) for bundle in BUNDLES]
    first = next(run for root, run in runs if root.name == "rim_relaxometry")
    runs.insert(0, (other_version("rim_relaxometry", tmp_path), first))
    expected = [alone(root, run) for root, run in runs]
    for turn in range(2):  # all are set up before the first runs, and then each runs after another than before
        started = [
            workflow(root, run.configs, "infer", **run.settings(root, data, tmp_path / f"turn{turn}" / str(number)))
            for number, ((root, run), (data, _, _)) in enumerate(zip(runs, expected, strict=True))
        ]
        for one in started if turn else reversed(started):
            one.run()
            one.finalize()
        for number, (_, maps, _) in enumerate(expected):
            assert_same_maps(tmp_path / f"turn{turn}" / str(number), maps)
    with pytest.raises(AssertionError):  # the other version is another
        assert_same_maps(
            expected[0][1], next(e[1] for e, (_, r) in zip(expected[1:], runs[1:], strict=True) if r is first)
        )


def other_version(bundle: str, folder: Path) -> Path:
    """Version 9.0.0 of the relaxometry bundle, unpacked: other weights, and code that knows no T1 above 1 s."""
    source = folder / "bundles" / bundle
    shutil.copytree(REPOSITORY / "bundles" / bundle, source)
    metadata, network = source / "configs/metadata.json", source / bundle / "network.py"
    metadata.write_text(re.sub(r'"version": "[\d.]+"', '"version": "9.0.0"', metadata.read_text(), count=1))
    old, new = '"T1": (0.05, 6.0)', '"T1": (0.05, 1.0)'
    assert old in network.read_text()
    network.write_text(network.read_text().replace(old, new))
    weights = torch.load(source / "models/model.pt", weights_only=True)
    torch.save({key: 0.9 * value for key, value in weights.items()}, source / "models/model.pt")
    return stage(source, folder / "other", REPOSITORY)


def assert_same_maps(found: Path, expected: Path) -> None:
    names = sorted(path.relative_to(expected) for path in expected.rglob("*.nii.gz"))
    assert names and names == sorted(path.relative_to(found) for path in found.rglob("*.nii.gz"))
    for name in names:
        one, other = (np.asarray(nib.load(folder / name).dataobj) for folder in (found, expected))
        np.testing.assert_array_equal(one, other, err_msg=str(name))


# --------------------------------------------------------------------------------------------------- MONAI's own checks


@pytest.mark.xdist_group("packed")
@pytest.mark.parametrize("bundle", BUNDLES)
def test_metadata_fit_the_schema_offline(bundle: str, unpacked: Callable[[str], Path], tmp_path: Path) -> None:
    schema, metadata = tmp_path / "schema.json", unpacked(bundle) / "configs/metadata.json"
    shutil.copy(REPOSITORY / "scripts/metadata_schema.json", schema)  # a file that is there is not downloaded
    known = {
        "filepath": str(schema),
        "hash_val": hashlib.sha256(schema.read_bytes()).hexdigest(),
        "hash_type": "sha256",
    }
    verify_metadata(meta_file=str(metadata), **known)
    broken = json.loads(metadata.read_text())
    del broken["network_data_format"]
    (tmp_path / "metadata.json").write_text(json.dumps(broken))
    with pytest.raises(ValueError, match="network_data_format"):
        verify_metadata(meta_file=str(tmp_path / "metadata.json"), **known)


@pytest.mark.xdist_group("packed")
@pytest.mark.parametrize("bundle", BUNDLES)
def test_network_takes_and_gives_what_the_metadata_say(
    bundle: str, unpacked: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = unpacked(bundle)
    monkeypatch.syspath_prepend(root)
    files = {"meta_file": str(root / "configs/metadata.json"), "config_file": str(root / "configs/inference.json")}
    verify_net_in_out(net_id="network_def", device="cpu", any=24, bundle_root=str(root), **files)
    if bundle == "rim_relaxometry":
        t2 = [files["config_file"], str(root / "configs/t2.json")]
        own = {
            "_meta_#network_data_format": json.loads((root / "configs/metadata.json").read_text())[
                "t2_network_data_format"
            ]
        }
        verify_net_in_out(net_id="network_def", device="cpu", any=24, **(files | {"config_file": t2} | own))


@pytest.mark.xdist_group("packed")
@pytest.mark.parametrize(("bundle", "configs", "kind"), WORKFLOWS)
def test_monai_finds_its_properties(
    bundle: str, configs: tuple[str, ...], kind: str, unpacked: Callable[[str], Path],
    workflow: Callable[..., ConfigWorkflow], tmp_path: Path,
) -> None:  # fmt: skip
    root = unpacked(bundle)
    settings: dict[str, Any] = {"output_dir": str(tmp_path / "output")}
    if kind == "infer":
        run = next(run for run in RUNS[bundle] if run.configs == configs)
        run.write(tmp_path / "data", run.truth)
        settings |= {"dataset_dir": str(tmp_path / "data"), **run.options}
    else:
        settings |= SMALL[bundle]
    if bundle == "qsmrim_net" and kind == "train":
        lesion_table().save(tmp_path / "table.pt")
        settings |= {"cohort_dir": str(tmp_path / "table.pt")}
    assert workflow(root, configs, kind, **settings).check_properties() == []


@exporters
@pytest.mark.xdist_group("packed")
@pytest.mark.parametrize("bundle", BUNDLES)
@torch.no_grad()
def test_torchscript_gives_the_same_answer(
    bundle: str, unpacked: Callable[[str], Path], workflow: Callable[..., ConfigWorkflow], tmp_path: Path
) -> None:
    root, path = unpacked(bundle), tmp_path / "model.ts"
    made = workflow(root, ("inference.json",), "infer", device="cpu")
    network = made.parser.get_parsed_content("network").eval()
    described = made.parser["_meta_"]["network_data_format"]["inputs"]["image"]
    size = [24 if length == "*" else length for length in described["spatial_shape"]]
    image = torch.rand(2, described["num_channels"], *size, generator=torch.Generator().manual_seed(0))
    files = {"meta_file": str(root / "configs/metadata.json"), "config_file": str(root / "configs/inference.json")}
    weights = {"ckpt_file": str(root / "models/model.pt"), "bundle_root": str(root)}
    ckpt_export(net_id="network_def", filepath=str(path), **files, **weights, **EXPORT.get(bundle, {}))
    torch.testing.assert_close(torch.jit.load(path)(image), network(image), rtol=1e-4, atol=1e-4)
