"""Exports of every shipped network: the same answer from TorchScript and from ONNX, at sizes they were not made at."""

from __future__ import annotations

import csv
import json
import sys
import zipfile
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
from bundle_files import REPOSITORY, bundle_names
from monai.bundle import ConfigParser, ConfigWorkflow, onnx_export
from monai.data import load_net_with_metadata
from torch import Tensor, nn

from shared_transforms import export
from shared_transforms.errors import QMRIError
from shared_transforms.export import Network, export_networks, exported_onnx, exported_torchscript, read_networks
from shared_transforms.weights import sha256_file

BUNDLES = bundle_names()
SHIPPED = [
    (path.parents[1].name, path.name)
    for name in BUNDLES
    for path in sorted(REPOSITORY.glob(f"bundles/{name}/models/*"))
]
# The recurrent machine's graph has thousands of nodes: the exporter takes a minute.
SLOW = {("rim_relaxometry", "model.pt"), ("rim_relaxometry", "model_t2.pt")}
# MONAI's exporter makes an input of this shape of its own.
MONAI_SHAPES = {
    "deepspio": [2, 2, 32, 64], "qsmgan": [2, 5, 32, 40, 48], "rim_relaxometry": [2, 31, 24, 28],
    "stnet_perfusion": [2, 101, 16, 20],
}  # fmt: skip
# The exporters of torch use what torch deprecates.
pytestmark = pytest.mark.filterwarnings(
    "ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"
)


def _config(bundle: str) -> dict[str, Any]:
    parser = ConfigParser()
    parser.read_config(str(REPOSITORY / "bundles" / bundle / "configs" / "export.json"))
    return {id: parser.get_parsed_content(id) for id in ("example", "script", "axes", "recorded", "compared")}


def _network(bundle: str, weights: str) -> Network:
    [network] = read_networks(REPOSITORY / "bundles" / bundle, f"models/{weights}")
    return network


def _example(config: dict[str, Any], network: Network, sizes: list[int], seed: int = 7) -> dict[str, Tensor]:
    return dict(config["example"](network.module, sizes, torch.Generator().manual_seed(seed)))


@torch.no_grad()
def _assert_close(found: Tensor, network: Network, values: dict[str, Tensor]) -> None:
    """Each channel within 1e-4 of its largest value; where voxels are at ties, 95 % within 1e-3."""
    expected = network.module(*values.values())
    assert found.shape == expected.shape
    assert found.isfinite().all()
    ties = (network.weights.parents[1].name, network.weights.name) in SLOW
    for channel in range(expected.shape[1]):
        difference = (found[:, channel] - expected[:, channel]).abs() - 1e-7  # the last digit of a small probability
        difference = difference / expected[:, channel].abs().max()
        assert difference.quantile(0.95) < 1e-3 if ties else difference.max() < 1e-4


def _assert_described(facts: dict[str, Any], network: Network, recorded: dict[str, Tensor]) -> None:
    """A file says whose weights it holds, and what goes in and comes out where metadata.json is of this network."""
    assert facts["name"] == network.metadata["name"]
    assert facts["weights_sha256"] == sha256_file(network.weights)
    described = network.metadata["network_data_format"]
    own = recorded["image"].shape[1] == described["inputs"]["image"]["num_channels"]
    assert own == (network.weights.name not in ("model_t2.pt", "paper.pt"))
    assert facts.get("network_data_format") == (described if own else None)


@pytest.mark.parametrize(("bundle", "weights"), SHIPPED)
@torch.no_grad()
def test_torchscript_gives_the_same_answer(bundle: str, weights: str, tmp_path: Path) -> None:
    config, network, path = _config(bundle), _network(bundle, weights), tmp_path / "model.ts"
    recorded = _example(config, network, config["recorded"])
    content, _, _ = exported_torchscript(network, recorded, config["script"])
    path.write_bytes(content)
    loaded, metadata, _ = load_net_with_metadata(str(path))
    _assert_described(metadata, network, recorded)
    for sizes in config["compared"]:
        assert sizes[0] != config["recorded"][0] and sizes[1:] != config["recorded"][1:]
        values = _example(config, network, sizes)
        _assert_close(loaded(*values.values()), network, values)
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            assert not name.endswith(".debug_pkl") and "traced_inputs" not in name
            assert str(REPOSITORY).encode() not in archive.read(name)


@pytest.mark.parametrize(
    ("bundle", "weights"),
    [pytest.param(*one, marks=[pytest.mark.exports] if one in SLOW else []) for one in SHIPPED],
)
def test_onnx_gives_the_same_answer(bundle: str, weights: str, tmp_path: Path) -> None:
    config, network, path = _config(bundle), _network(bundle, weights), tmp_path / "model.onnx"
    recorded = _example(config, network, config["recorded"])
    path.write_bytes(exported_onnx(network, recorded, config["axes"])[0])
    onnx.checker.check_model(str(path), full_check=True)
    assert str(REPOSITORY).encode() not in path.read_bytes()
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert [value.name for value in session.get_inputs()] == list(recorded)
    for value in session.get_inputs():
        named = [isinstance(length, str) for length in value.shape]
        assert named == [axis is not None for axis in config["axes"][value.name]]
    facts = session.get_modelmeta().custom_metadata_map
    _assert_described({k: json.loads(v) if v.startswith("{") else v for k, v in facts.items()}, network, recorded)
    for sizes in config["compared"]:
        values = _example(config, network, sizes)
        [found] = session.run(None, {name: value.numpy() for name, value in values.items()})
        _assert_close(torch.from_numpy(found), network, values)


@pytest.mark.exports
@pytest.mark.parametrize("bundle", MONAI_SHAPES)
def test_onnx_export_of_monai(bundle: str, tmp_path: Path) -> None:
    """``ckpt_export`` is tested with the zips."""
    root, path = REPOSITORY / "bundles" / bundle, tmp_path / "model.onnx"
    shape = MONAI_SHAPES[bundle]
    axes = {0: "batch"} | {index: f"side_{index}" for index in range(2, len(shape))}
    onnx_export(
        net_id="network_def", filepath=str(path), ckpt_file=str(root / "models" / "model.pt"), use_trace=True,
        meta_file=str(root / "configs" / "metadata.json"), config_file=str(root / "configs" / "inference.json"),
        input_shape=shape,
        converter_kwargs={"dynamic_axes": {"image": axes, "pred": axes}, "input_names": ["image"],
                          "output_names": ["pred"]},
    )  # fmt: skip
    session, network, config = onnxruntime.InferenceSession(str(path)), _network(bundle, "model.pt"), _config(bundle)
    for sizes in config["compared"]:
        values = _example(config, network, sizes)
        [found] = session.run(None, {"image": values["image"].numpy()})
        _assert_close(torch.from_numpy(found), network, values)


def test_the_command_writes_files_and_table_of_own_weights(tmp_path: Path) -> None:
    root, weights = REPOSITORY / "bundles" / "stnet_perfusion", tmp_path / "mine.pt"
    torch.save(torch.load(root / "models" / "model.pt", weights_only=True), weights)
    run = ConfigWorkflow(
        config_file=str(root / "configs" / "export.json"), workflow_type="infer", logging_file=False,
        bundle_root=str(root), output_dir=str(tmp_path / "out"), weights=str(weights), configs=["train.json"],
    )  # fmt: skip
    run.initialize()
    run.run()
    files = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert files == ["exports.csv", "exports.json", "mine.onnx", "mine.ts"]
    table = json.loads((tmp_path / "out" / "exports.json").read_text())
    lines = [line for line in (tmp_path / "out" / "exports.csv").read_text().splitlines() if not line.startswith("#")]
    assert len(list(csv.DictReader(lines))) == len(table["rows"]) == 4
    for row in table["rows"]:
        suffix = {"TorchScript": "ts", "ONNX": "onnx"}[row["format"]]
        assert row["bytes"] == (tmp_path / "out" / f"mine.{suffix}").stat().st_size
        assert 0.0 <= row["relative_difference"] < 1e-5
    assert table["provenance"]["weights"] == {"mine.pt": sha256_file(weights)}
    assert "onnxruntime" in table["provenance"]["versions"]


class _Branching(nn.Module):
    """Its answer depends on a value in a way that no recording keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, image: Tensor) -> Tensor:
        return self.weight * image if float(image.sum().item()) > 0.0 else -2.0 * image


class _Doubling(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((1,), 2.0))

    def forward(self, image: Tensor) -> Tensor:
        return self.weight * image


def _plus_minus(network: nn.Module, sizes: list[int], generator: torch.Generator) -> dict[str, Tensor]:
    return {"image": torch.full(tuple(sizes), 1.0 if sizes[0] == 2 else -1.0)}


def test_what_cannot_be_exported_is_said_and_not_written(tmp_path: Path) -> None:
    source = REPOSITORY / "bundles" / "stnet_perfusion"
    metadata = json.loads((source / "configs" / "metadata.json").read_text())
    network = Network(_Branching().eval(), source / "models" / "model.pt", metadata)
    axes = {"image": ["batch", None], "pred": ["batch", None]}
    files = export_networks(
        [network], tmp_path, tmp_path / "exports", axes, _plus_minus, [2, 3], [[3, 3]], script=False
    )
    assert [path.name for path in files] == ["exports.csv", "exports.json"]
    rows = json.loads((tmp_path / "exports.json").read_text())["rows"]
    assert [row["note"].startswith("not possible: ") for row in rows] == [True, True]
    assert rows[0]["note"].endswith("another than PyTorch's")
    assert str(REPOSITORY) not in (tmp_path / "exports.csv").read_text()


class _Refused(Exception):
    """As checkers and runtimes raise it: no RuntimeError."""


def _raise(*_: object, **__: object) -> None:
    raise _Refused("no kernel for these sizes\nand more")


@pytest.mark.parametrize("where", ["making", "running", "another shape"])
def test_a_fault_of_one_exporter_ends_no_export(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def exported(*_: object) -> tuple[bytes, Any, dict[str, Any]]:
        if where == "making":
            _raise()
        return b"content", _raise if where == "running" else lambda values: torch.ones(5, 5), {"format": "ONNX"}

    monkeypatch.setattr(export, "exported_onnx", exported)
    source = REPOSITORY / "bundles" / "stnet_perfusion"
    metadata = json.loads((source / "configs" / "metadata.json").read_text())
    network = Network(_Doubling().eval(), source / "models" / "model.pt", metadata)
    axes = {"image": ["batch", None], "pred": ["batch", None]}
    (tmp_path / "model.onnx").write_bytes(b"of an earlier export")
    files = export_networks([network], tmp_path, tmp_path / "exports", axes, _plus_minus, [2, 3], [[3, 3]])
    assert {path.name for path in files} == {path.name for path in tmp_path.iterdir()}
    assert {path.name for path in files} == {"model.ts", "exports.csv", "exports.json"}
    script, onnx_row = json.loads((tmp_path / "exports.json").read_text())["rows"]
    assert script["difference"] == 0.0 and onnx_row["note"].startswith("not possible: ")
    if where != "another shape":
        assert onnx_row["note"] == "not possible: no kernel for these sizes"


def test_packages_that_are_not_there_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(QMRIError, match=r"field:\s+onnxscript[\s\S]*pip install onnx onnxscript onnxruntime"):
        export_networks([], tmp_path, tmp_path / "exports", {}, _plus_minus, [2], [[3]])
    assert not list(tmp_path.iterdir())


def test_an_axis_that_is_none_is_refused() -> None:
    network = _network("stnet_perfusion", "model.pt")
    with pytest.raises(QMRIError, match=r"field:\s+axes"):
        exported_onnx(network, {"image": torch.rand(2, 101, 16, 16)}, {"image": ["batch", None, "x/2", "y"]})
