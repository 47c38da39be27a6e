"""Each fault is named by file and id, with a cure; a bundle without fault is clean."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from bundle_files import Fault, lookup, read_bundle
from bundle_packages import required_packages, third_party
from bundle_rules import static_faults
from check_bundle import main
from pack_bundle import stage

DELETE = object()


def edit(bundle: Path, config: str, id: str, value: object) -> None:
    """Set or delete the item ``id`` of a config."""
    path = bundle / "configs" / config
    content: Any = json.loads(path.read_text())
    parent = content
    *parents, last = id.split("/")
    for key in parents:
        parent = parent[key]
    if value is DELETE:
        del parent[last]
    else:
        parent[last] = value
    path.write_text(json.dumps(content))


def write(bundle: Path, file: str, text: str) -> None:
    (bundle / file).parent.mkdir(parents=True, exist_ok=True)
    (bundle / file).write_text(text)


PRED = "network_data_format/outputs/pred"
BIAS = "eval_metrics/T1/bias"
# config, item to change (its parts divided by "/"), new value; then id, and a word of the problem, that must be named.
CONFIG_ROWS: list[tuple[str, str, object, str, str]] = [
    *(("train.json", id, DELETE, id, "not there") for id in ("bundle_root", "network", "initialize", "finalize")),
    *(("inference.json", id, DELETE, id, "not there") for id in ("dataset", "inferer", "preprocessing", "imports")),
    ("inference.json", "handlers", DELETE, "handlers", "evaluator#val_handlers refers to it"),
    ("train.json", "train/dataset", DELETE, "train#dataset", "not there"),
    ("train.json", "train/trainer/max_epochs", DELETE, "train#trainer#max_epochs", "not there"),
    ("train.json", "validate/key_metric", DELETE, "validate#key_metric", "not there"),
    ("train.json", "train/trainer/train_handlers", [], "train#trainer#train_handlers", "inline list"),
    ("train.json", "train/trainer/train_handlers", DELETE, "train#trainer#train_handlers", "not there"),
    ("train.json", "train/trainer/inferer", "@network", "train#trainer#inferer", "@network"),
    ("train.json", "train/handlers", ["$print"], "train#handlers", "not a list of handlers"),
    ("inference.json", "evaluator/postprocessing", [], "evaluator#postprocessing", "inline list"),
    ("inference.json", "initialize", ["$print"], "initialize", "does not begin"),
    ("other.json", "initialize", [], "initialize", "does not begin"),
    ("inference.json", "imports", ["$import torch"], "imports", "import sys"),
    ("train.json", "imports", ["$import sys", "$from torch import a, b"], "imports#1", "2 names"),
    ("train.json", "imports", ["$import sys", "$import torch.nn"], "imports#1", "dotted"),
    ("train.json", "dataset_dir", "/home/me/data", "dataset_dir", "/home/me/data"),
    ("train.json", "output_dir", "$open('/home/me')", "output_dir", "/home/me"),
    ("metadata.json", "description", "C:\\data", "description", "C:\\data"),
    ("metadata.json", "eval_metrics/T1/bias/unit", "%", "eval_metrics#T1#bias#unit", "read as a macro"),
    ("evaluate.json", "run", ["%inference.json#run"], "run#0", "macro"),
    ("train.json", "network_def/_target_", "scripts.net.Net", "network_def#_target_", "scripts.net.Net"),
    ("train.json", "imports", ["$import sys", "$from scripts import net"], "imports#1", "scripts"),
    ("evaluate.json", "validate#handers", [], "validate#handers", "not in train.json"),
    ("evaluate.json", "dataset", [], "dataset", "not in train.json"),
    ("other.json", "network_def#chanels", 2, "network_def#chanels", "not in train.json or inference.json"),
    ("other.json", "+inferers", {}, "inferers", "not in train.json or inference.json"),
    ("other.json", "_overlay_of_", ["train.json"], "evaluator", "not in train.json"),
    ("other.json", "_overlay_of_", ["base.json"], "_overlay_of_", "base.json"),
    ("inference.json", "inversion_times_s", [0.1, 0.3], "inversion_times_s", "[0.1, 0.2] in train.json"),
    ("inference.json", "network_def/channels", 3, "network_def#channels", "2 in train.json"),
    ("metadata.json", "acquisition", {}, "acquisition#inversion_times_s", "not there"),
    ("metadata.json", "acquisition/inversion_times_s", [1], "acquisition#inversion_times_s", "in train.json"),
    ("metadata.json", "acquisition/echo_times_s", [1], "acquisition#echo_times_s", "in no config"),
    ("train_more.json", "train/trainer", DELETE, "train#trainer", "not there"),
    ("train_more.json", "network", DELETE, "network", "not there"),
    ("train_more.json", "train/trainer/train_handlers", [], "train#trainer#train_handlers", "inline list"),
    ("train_more.json", "imports", [], "imports", "import sys"),
    ("train_more.json", "inversion_times_s", [0.3], "inversion_times_s", "[0.1, 0.2] in train.json"),
    ("train_more.json", "network_def/channels", 3, "network_def#channels", "2 in train.json"),
    ("metadata.json", "required_packages_version", DELETE, "required_packages_version", "not there"),
    ("metadata.json", "version", "1", "version", "does not match"),
    ("metadata.json", "version", "0.3.0", "changelog", "0.3.0"),
    ("metadata.json", "schema", "other", "schema", "does not match"),
    ("metadata.json", "eval_metrics", {}, "eval_metrics", "should be non-empty"),
    ("metadata.json", "eval_metrics/T1/bias/unit", DELETE, "eval_metrics#T1#bias#unit", "not there"),
    ("metadata.json", "eval_metrics/T1/bias/n", 0, "eval_metrics#T1#bias#n", "minimum"),
    ("metadata.json", "eval_metrics/T1/bias/baseline", {}, "eval_metrics#T1#bias#baseline#name", "not there"),
    ("metadata.json", f"{BIAS}/confidence_interval", [1], f"{BIAS}/confidence_interval".replace("/", "#"), "short"),
    ("metadata.json", PRED, DELETE, "network_data_format#outputs#pred", "not there"),
    ("metadata.json", f"{PRED}/dtype", DELETE, "network_data_format#outputs#pred#dtype", "not there"),
    ("metadata.json", f"{PRED}/channel_units", DELETE, "network_data_format#outputs#pred", "no unit"),
    ("metadata.json", f"{PRED}/num_channels", 2, "network_data_format#outputs#pred#channel_def", "channels ['0']"),
    ("metadata.json", f"{PRED}/channel_def", {"0": 1}, "network_data_format#outputs#pred#channel_def#0", "not of type"),
    ("metadata.json", "my_data_format", {"inputs": {}}, "my_data_format#outputs", "not there"),
    ("metadata.json", "provenance", DELETE, "provenance", "not there"),
]


@pytest.mark.parametrize(("config", "item", "value", "id", "problem"), CONFIG_ROWS)
def test_a_fault_of_a_config_is_named(
    tinymap: Path, config: str, item: str, value: object, id: str, problem: str
) -> None:
    if config == "train_more.json":  # a second stage of the training, complete as the first
        shutil.copy(tinymap / "configs/train.json", tinymap / "configs/train_more.json")
    edit(tinymap, config, item, value)
    named = [f for f in static_faults(read_bundle(tinymap)) if f.file == f"configs/{config}" and f.id == id]
    assert any(problem in fault.problem and fault.cure for fault in named), static_faults(read_bundle(tinymap))


@pytest.mark.parametrize("key", ["echo_time_s", "line_pitch_mm", "lines", "readout_bandwidth_hz", "readout_sign"])
def test_values_of_a_sequence_belong_into_the_metadata(tinymap: Path, key: str) -> None:
    for config in ("train.json", "inference.json"):
        edit(tinymap, config, key, 2)
    [fault] = [f for f in static_faults(read_bundle(tinymap)) if f.id == f"acquisition#{key}"]
    assert "not there" in fault.problem


def digest_differs(bundle: Path) -> None:
    torch.save({"weight": torch.zeros(1)}, bundle / "models/model.pt")


FILE_ROWS: list[tuple[Callable[[Path], object], str, str]] = [
    (lambda b: (b / "LICENSE").unlink(), "LICENSE", "not there"),
    (lambda b: (b / "docs/README.md").unlink(), "docs/README.md", "not there"),
    (lambda b: (b / "docs/data_license.txt").unlink(), "docs/data_license.txt", "not there"),
    (lambda b: (b / "configs/train.json").unlink(), "configs/train.json", "not there"),
    (lambda b: (b / "tinymap/__init__.py").unlink(), "tinymap/__init__.py", "not there"),
    (lambda b: (b / "models/model.pt").unlink(), "models/model.pt", "not there"),
    (lambda b: write(b, "models/old.pt", "x"), "models/old.pt", "no provenance"),
    (digest_differs, "models/model.pt", "sha256 is"),
    (lambda b: write(b, "configs/train.json", "{"), "configs/train.json", "not JSON"),
    (lambda b: write(b, "configs/other.json", "[]"), "configs/other.json", "holds a list"),
    (lambda b: write(b, "configs/other.json", '{"run": [], "run": []}'), "configs/other.json", "stands twice"),
    (lambda b: write(b, "configs/more.yaml", "a: 1"), "configs/more.yaml", "YAML"),
    (lambda b: os.truncate(_touch(b / "docs/film.bin"), 26 * 1024**2), "docs/film.bin", "26 MB"),
    (lambda b: (b / "docs/link").symlink_to("README.md"), "docs/link", "link"),
]


def _touch(path: Path) -> Path:
    path.touch()
    return path


@pytest.mark.parametrize(("change", "file", "problem"), FILE_ROWS)
def test_a_fault_of_a_file_is_named(tinymap: Path, change: Callable[[Path], object], file: str, problem: str) -> None:
    change(tinymap)
    named = [fault for fault in static_faults(read_bundle(tinymap)) if fault.file == file]
    assert any(problem in fault.problem and fault.cure for fault in named), static_faults(read_bundle(tinymap))


@pytest.mark.parametrize(
    ("config", "item", "value"),
    [
        ("train.json", "train/trainer/inferer", "$@train#inferer"),
        ("train.json", "output_dir", "$@bundle_root + '/output'"),
        ("train.json", "run", ["$@network @ @device"]),
        ("metadata.json", "description", "maps in 1/s, and/or in s"),
        ("metadata.json", f"{PRED}/spatial_shape", []),
        ("other.json", "_overlay_of_", ["inference.json"]),
        ("other.json", "+dataset", ["more"]),
        ("other.json", "network_def", {"_target_": "tinymap.network.Scale"}),
        ("experiments.json", "anything", 1),
        ("train_more.json", "_overlay_of_", ["train.json"]),
    ],
)
def test_what_is_allowed_is_no_fault(tinymap: Path, config: str, item: str, value: object) -> None:
    if not (tinymap / "configs" / config).exists():
        write(tinymap, f"configs/{config}", "{}")
    edit(tinymap, config, item, value)
    assert static_faults(read_bundle(tinymap)) == []


def test_a_nested_id_is_found_however_it_is_written() -> None:
    config = {"train#trainer": {"handlers": [{"name": 1}]}, "train": {"dataset": 2}}
    assert lookup(config, "train#trainer#handlers#0#name") == lookup(config, "train::trainer::handlers::0::name") == 1
    assert lookup(config, "train#dataset") == 2
    with pytest.raises(KeyError):
        lookup(config, "train#trainer#handlers#1")


def test_a_clean_bundle_is_clean(
    tinymap: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its code too: the test of pack_bundle.py checks that, and one import of MONAI is enough."""
    monkeypatch.setattr("check_bundle.live", lambda root, isolated: [])
    assert main([str(tinymap)]) == 0
    assert capsys.readouterr().out.strip() == f"{tinymap}: clean"


def test_all_faults_are_printed_those_of_the_code_too(tinymap: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One process for all rows: importing MONAI takes ten seconds."""
    edit(tinymap, "train.json", "network_def/_target_", "tinymap.network.Sclae")
    edit(tinymap, "train.json", "train/inferer/_target_", "SimplInferer")
    edit(tinymap, "train.json", "train/handlers", [{"_target_": "tinymap.broken.Handler"}])
    edit(tinymap, "train.json", "run", ["$@train#trainr.run()", "$1 +", "@validate::evaluater"])
    edit(tinymap, "inference.json", "imports", ["$import sys", "$import torch", "$from tinymap import absent"])
    edit(tinymap, "evaluate.json", "run", ["$@other_id"])
    write(tinymap, "tinymap/broken.py", "import no_such_package")
    write(tinymap, "tinymap/network.py", (tinymap / "tinymap/network.py").read_text() + "\n\nimport skimage\n")
    edit(tinymap, "metadata.json", f"{PRED}/spatial_shape", [12, "*"])
    metadata = json.loads((tinymap / "configs/metadata.json").read_text())
    entry = metadata["provenance"]["models/model.pt"]
    files = {
        "misfit": {"weight": torch.ones(2, 2)},
        "nested": {"epoch": 3, "model": {"weight": torch.ones(1, 2, 1, 1)}},
        "pickle": {"net": torch.nn.Identity()},
    }
    for name, content in files.items():
        torch.save(content, tinymap / f"models/{name}.pt")
        metadata["provenance"][f"models/{name}.pt"] = entry
    (tinymap / "models/short.pt").write_bytes((tinymap / "models/model.pt").read_bytes()[:200])
    metadata["provenance"]["models/short.pt"] = entry
    write(tinymap, "configs/metadata.json", json.dumps(metadata))
    (tinymap / "LICENSE").unlink()

    assert main([str(tinymap)]) == 1
    out = capsys.readouterr().out
    for expected in [
        "configs/train.json: network_def#_target_: tinymap.network.Sclae is not there",
        "configs/train.json: train#inferer#_target_: SimplInferer is not there",
        "configs/train.json: train#handlers#0#_target_: tinymap.broken.Handler does not import",
        "configs/train.json: run#0: refers to @train#trainr, which is not there",
        "configs/train.json: run#1: is not an expression",
        "configs/train.json: run#2: refers to @validate#evaluater, which is not there",
        "configs/evaluate.json: run#0: refers to @other_id, which is not there",
        "configs/inference.json: imports#2: $from tinymap import absent: ImportError",
        "models/misfit.pt: network_def: does not fit network_def of inference.json",
        "models/nested.pt: -: holds more than tensors",
        "models/pickle.pt: -: does not load with weights_only",
        "models/short.pt: -: does not load with weights_only",
        "configs/metadata.json: network_data_format#outputs#pred: is [1, 12, '*'], but for [2, 16, 16] the network "
        "gives [1, 16, 16]",
        "configs/metadata.json: required_packages_version: lacks scikit-image, which network.py imports",
        "LICENSE: -: is not there",
    ]:
        assert expected in out
    faults = [line for line in out.splitlines() if not line.startswith("    cure: ")]
    assert len(faults) == out.count("    cure: ") + 1, "every fault has a cure; the last line counts them"
    assert f"{len(faults) - 1} fault(s)" in faults[-1]


def test_a_training_uses_the_values_at_the_top_of_the_first(tinymap: Path) -> None:
    """A network is compared by the values that its arguments refer to, not by their names."""
    shutil.copy(tinymap / "configs/train.json", tinymap / "configs/train_more.json")
    for config, width in (("train.json", 8), ("train_more.json", 8), ("inference.json", 16)):
        edit(tinymap, config, "width", width)
        edit(tinymap, config, "network_def/channels", "@width")
    faults = static_faults(read_bundle(tinymap))
    assert [(fault.file, fault.id) for fault in faults] == [("configs/inference.json", "network_def#channels")]
    assert "is 16, but 8 in train.json" in faults[0].problem


def test_the_members_of_an_ensemble_are_the_network_that_was_trained(tinymap: Path) -> None:
    for config in ("train.json", "inference.json"):
        edit(tinymap, config, "width", 8)
        edit(tinymap, config, "network_def", {"_target_": "tinymap.network.Scale", "channels": "@width"})
    member = {"_target_": "tinymap.network.Scale", "channels": "@width"}
    members = [member, member | {"channels": 4}, member | {"_target_": "tinymap.network.Other"}]
    ensemble = {"_target_": "tinymap.network.Ensemble", "members": members[:1]}
    edit(tinymap, "inference.json", "network_def", ensemble)
    assert static_faults(read_bundle(tinymap)) == []
    edit(tinymap, "inference.json", "network_def", ensemble | {"members": members})
    faults = {fault.id: fault.problem for fault in static_faults(read_bundle(tinymap))}
    assert faults == {
        "network_def#members#1#channels": "is 4, but 8 in train.json",
        "network_def#members#2#_target_": "is tinymap.network.Other, but tinymap.network.Scale in train.json",
    }


def test_packages_of_the_training_alone_need_no_mention(tinymap: Path) -> None:
    write(tinymap, "tinymap/network.py", "def f():\n    from skimage import filters\n    import mlflow, sklearn\n")
    bundle = read_bundle(tinymap)
    [fault] = required_packages(bundle)
    assert "lacks scikit-image" in fault.problem
    bundle.metadata["required_packages_version"] = {"scikit-image": "0.26.0"}
    assert list(required_packages(bundle)) == []


def test_packages_are_found_through_the_shared_ones(tinymap: Path, repository: Path) -> None:
    stage(tinymap, repository / "staged", repository)
    packed = repository / "staged/tinymap"
    write(packed, "tinymap_v0_2_1/physics/noise.py", "def f():\n    from skimage.restoration import unwrap_phase\n")
    found = third_party(read_bundle(packed))
    assert found["skimage"] == "noise.py"
    assert found.keys() == {"skimage", "torch"}


def test_an_unsafe_zip_is_a_fault(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All reasons to refuse one: test_bundle_zip.py."""
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        archive.writestr("tinymap/configs/metadata.json", "{}")
        archive.writestr("tinymap/../../evil", "{}")
    assert main([str(tmp_path / "b.zip")]) == 1
    assert "leads out of the folder" in capsys.readouterr().out
    assert not list(tmp_path.parent.rglob("evil"))


def test_what_is_no_bundle_is_said_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "absent")]) == 1
    assert "neither a folder nor a zip" in capsys.readouterr().out


def test_json_is_only_for_findings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["--json", str(tmp_path)])
    assert "--untrusted" in capsys.readouterr().err


def test_help_needs_neither_torch_nor_monai() -> None:
    scripts = Path(__file__).parents[2] / "scripts"
    code = "import sys, check_bundle, pack_bundle; sys.exit(any(m in sys.modules for m in ('torch', 'monai', 'numpy')))"
    assert subprocess.run([sys.executable, "-c", code], cwd=scripts, check=False).returncode == 0


def test_a_fault_is_readable() -> None:
    assert str(Fault("a.json", "b#c", "is 1", "write 2")) == "a.json: b#c: is 1\n    cure: write 2"
