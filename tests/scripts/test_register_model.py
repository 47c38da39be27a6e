"""Bundles as models of MLflow: registered from their zips, and run on arrays where this repository is not."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from bundle_files import REPOSITORY, BundleError
from pack_bundle import stage, write_zip
from register_model import main, register

from ..bundles.known_inputs import RUNS, Run

# A class of MLflow's own is warned of when its pyfunc is imported.
pytestmark = pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType:UserWarning")
# The bundle's own inference of a file, then the model's of its array; the models take turns.
COMPARE = """
import json, sys, zipfile
from pathlib import Path
sys.path.append(sys.argv[1])
import mlflow, monai.bundle, nibabel, numpy
mlflow.set_tracking_uri(sys.argv[2])
models, equal = {}, []
cases = json.loads(sys.argv[3])
for case in cases:
    folder = Path(case["file"]).parent
    with zipfile.ZipFile(case["zip"]) as archive:
        archive.extractall(folder)
    root = folder / case["bundle"]
    files = [str(root / "configs" / name) for name in case["configs"]]
    monai.bundle.run(
        config_file=files, bundle_root=str(root), dataset_dir=case["file"], output_dir=str(folder / "maps"),
        **case["options"],
    )
for case in 2 * cases:
    name = case["bundle"]
    if name not in models:
        models[name] = mlflow.pyfunc.load_model(f"models:/{name}/1")
    image = nibabel.load(case["file"])
    array = numpy.asarray(image.dataobj)
    maps = models[name].predict(array if array.ndim == 4 else array[..., None], params=case["params"])
    written = (Path(case["file"]).parent / "maps").rglob("*.nii.gz")
    own = {path.name[len("image_"):-len(".nii.gz")]: path for path in written}
    assert maps and own.keys() == maps.keys(), (sorted(own), sorted(maps))
    for key, path in own.items():
        expected = numpy.asarray(nibabel.load(path).dataobj)
        assert expected.dtype == maps[key].dtype and numpy.array_equal(expected, maps[key], equal_nan=True), (name, key)
        equal.append(f"{name} {key}")
assert not any(name.split(".")[0] in ("physics", "shared_transforms") for name in sys.modules)
print(json.dumps(equal))
"""


def one_file(run: Run, folder: Path) -> dict[str, Any]:
    """A known input as the one 4-D file that the bundle reads, and the same as parameters of a model."""
    run.write(folder / "parts", run.truth)
    parts = sorted((folder / "parts").glob("*.nii.gz"))
    if run.suffix == "desc-rim_dseg":
        parts = [next(path for path in parts if path.name.endswith(end)) for end in ("Chimap.nii.gz", "FLAIR.nii.gz")]
        parts += sorted((folder / "parts").glob("*label-lesion_mask.nii.gz"))
    else:
        parts = [path for path in parts if "mask" not in path.name]
    images = [nib.load(path) for path in parts]
    array = np.asarray(images[0].dataobj, dtype=np.float32)
    if len(images) > 1:
        array = np.stack([np.asarray(image.dataobj, dtype=np.float32) for image in images], axis=-1)
    nib.save(nib.Nifti1Image(array, images[0].affine), folder / "image.nii.gz")
    sidecar = parts[0].with_name(parts[0].name.replace(".nii.gz", ".json")).read_text()
    (folder / "image.json").write_text(sidecar)
    params = {"sidecar": sidecar, "affine": images[0].affine.ravel().tolist(), "overrides": json.dumps(run.options)}
    overlay = {"overlay": run.configs[1]} if len(run.configs) > 1 else {}
    return {"file": str(folder / "image.nii.gz"), "params": params | overlay}


@pytest.fixture
def uri(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A sqlite file, with the files of models beside it."""
    import mlflow

    monkeypatch.chdir(tmp_path)
    yield f"sqlite:///{tmp_path}/mlflow.db"
    mlflow.set_tracking_uri(None)


@pytest.mark.mlflow
def test_models_give_the_maps_of_the_bundles_to_the_bit(uri: str, tmp_path: Path) -> None:
    cases = []
    for bundle, runs in RUNS.items():
        archive = tmp_path / f"{bundle}.zip"
        write_zip(stage(REPOSITORY / "bundles" / bundle, tmp_path / "stage", REPOSITORY), archive)
        assert register(archive, uri) == (bundle, "1")
        assert register(archive, uri) == (bundle, "1")  # it is there
        for number, run in enumerate(runs):
            folder = tmp_path / f"{bundle}{number}"
            folder.mkdir()
            case = {"bundle": bundle, "zip": str(archive), "configs": run.configs, "options": run.options}
            cases.append(case | one_file(run, folder))
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MLFLOW_DISABLE_TELEMETRY": "true"}
    command = [sys.executable, "-I", "-S", "-c", COMPARE, sysconfig.get_path("purelib"), uri, json.dumps(cases)]
    done = subprocess.run(command, cwd="/", env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    equal = json.loads(done.stdout.splitlines()[-1])
    assert {name.split()[0] for name in equal} == set(RUNS)
    assert {f"{bundle} {run.suffix}" for bundle, runs in RUNS.items() for run in runs} <= set(equal)

    from mlflow import MlflowClient

    client = MlflowClient(uri)
    for bundle in RUNS:
        version = client.get_model_version(bundle, "1")
        metadata = json.loads((REPOSITORY / "bundles" / bundle / "configs/metadata.json").read_text())
        assert version.tags["bundle_version"] == metadata["version"] and len(version.tags["sha256"]) == 64
        weights = metadata["provenance"]["models/model.pt"]["sha256"]
        assert version.tags["sha256 models/model.pt"] == weights
        assert version.description.startswith("*Model card") and len(version.description) <= 5000
        files = sorted(path.suffix for path in Path(version.source.removeprefix("file://")).rglob("*"))
        assert ".pkl" not in files


def test_no_bundle_is_not_registered(tinymap: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "text.zip"
    text.write_text("no zip")
    assert main([str(text)]) == 1 and "is not a zip" in capsys.readouterr().err
    archive = tmp_path / "tinymap.zip"
    with zipfile.ZipFile(archive, "w") as content:
        for path in sorted(tinymap.rglob("*")):
            if path.is_file():
                content.write(path, path.relative_to(tinymap.parent).as_posix())
    with pytest.raises(BundleError, match="not self-contained"):
        register(archive, f"sqlite:///{tmp_path}/mlflow.db")
    assert not (tmp_path / "mlflow.db").exists()


@pytest.fixture
def bundle_model() -> ModuleType:
    return importlib.import_module("bundle_model")


def test_a_changed_zip_is_not_run(bundle_model: ModuleType, tmp_path: Path) -> None:
    archive = tmp_path / "qsmgan.zip"
    archive.write_bytes(b"changed")
    context = SimpleNamespace(artifacts={"bundle": str(archive)}, model_config={"bundle": "qsmgan", "sha256": "0" * 64})
    with pytest.raises(ValueError, match="was changed"):
        bundle_model.BundleModel().load_context(context)


@pytest.mark.parametrize(
    ("given", "message"),
    [({}, "give params voxel_size_mm"), ({"voxel_size_mm": [1.0, 1.0]}, "has 2 numbers, not 3")],
)
def test_a_voxel_size_is_asked_for(bundle_model: ModuleType, given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bundle_model._affine(given)


def test_an_affine_goes_before_a_voxel_size(bundle_model: ModuleType) -> None:
    rows = np.array([[0, -2, 0, 9], [1, 0, 0, 8], [0, 0, 3, 7], [0, 0, 0, 1]], dtype=float)
    assert np.array_equal(bundle_model._affine({"affine": rows.ravel().tolist(), "voxel_size_mm": [1, 2, 3]}), rows)
    assert np.array_equal(bundle_model._affine({"affine": [], "voxel_size_mm": [1, 2, 3]}), np.diag([1, 2, 3, 1]))


CONFIGS_THAT_RUN = ("train", "train_gan", "batch", "evaluate", "experiments", "export", "multi_gpu_train", "metadata")


@pytest.mark.parametrize(
    ("overrides", "overlay", "message"),
    [
        ({"method": "$__import__('os').system('false')"}, "", "no expression"),
        ({"channels": ["field", "@network_def"]}, "", "no expression"),
        ({"channels": ["%/etc/passwd"]}, "", "no expression"),
        ({"method": {"_target_": "os.system", "command": "false"}}, "", "no expression"),
        ({"network_def#width": 2}, "", "is none of the values"),
        ({"bundle_root": "/tmp"}, "", "is none of the values"),
        ({"weights": "/tmp/other.pt"}, "", "is none of the values"),
        ([1], "", "are a list"),
        *(({name: "/etc/passwd"}, "", "is none of the values") for name in ("mask_file", "output_dir")),
        ({}, "../../other.json", "none of the bundle's overlays"),
        ({}, "/tmp/other.json", "none of the bundle's overlays"),
        *(({}, f"{name}.json", "none of the bundle's overlays") for name in CONFIGS_THAT_RUN),
    ],
)
def test_a_client_can_run_nothing(bundle_model: ModuleType, overrides: Any, overlay: str, message: str) -> None:
    model = bundle_model.BundleModel()
    model._root, model._prepared = REPOSITORY / "bundles" / "qsmgan", None
    with pytest.raises(ValueError, match=message):
        model._workflow(overlay, overrides)


@pytest.mark.parametrize(
    ("bundle", "overlay"),
    [("rim_relaxometry", "t2"), ("qsmgan", "tv"), ("qsmgan", "medi"), ("stnet_perfusion", "osvd")],
)
def test_other_methods_and_parameters_are_served(bundle_model: ModuleType, bundle: str, overlay: str) -> None:
    configs = REPOSITORY / "bundles" / bundle / "configs"
    files = bundle_model._files(configs, f"{overlay}.json")
    assert files == [configs / "inference.json", configs / f"{overlay}.json"]


def test_files_of_a_server_are_none_of_its_clients_values(bundle_model: ModuleType) -> None:
    config = json.loads((REPOSITORY / "bundles/stnet_perfusion/configs/inference.json").read_text())
    with pytest.raises(ValueError, match="is none of the values") as error:
        bundle_model._refuse_all_but_values({"aif_csv_file": "/etc/passwd"}, config)
    assert "_file" not in str(error.value).split("values", 1)[1]
