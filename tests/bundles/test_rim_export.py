"""Exports of the shipped bundle."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from monai.bundle import ckpt_export, onnx_export
from monai.bundle.config_parser import ConfigParser
from torch import nn

from shared_transforms.weights import load_weights

from .conftest import simulated

# A trace keeps the checks of shapes as constants; the exporter of torch uses what torch deprecates.
pytestmark = pytest.mark.filterwarnings(
    "ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"
)


@pytest.fixture
def options(rim_root: Path) -> dict[str, str]:
    return {
        "meta_file": str(rim_root / "configs" / "metadata.json"),
        "config_file": str(rim_root / "configs" / "inference.json"),
    }


@pytest.fixture
def network(options: dict[str, str], rim_root: Path) -> nn.Module:
    parser = ConfigParser()
    parser.read_config(options["config_file"])
    return load_weights(parser.get_parsed_content("network_def"), rim_root / "models" / "model.pt").eval()


def test_torchscript_gives_the_same_maps(
    options: dict[str, str], network: nn.Module, rim_root: Path, tmp_path: Path
) -> None:
    path = tmp_path / "model.ts"
    shape = [1, 31, 24, 24]
    ckpt_export(
        net_id="network_def", filepath=str(path), ckpt_file=str(rim_root / "models/model.pt"), use_trace=True,
        input_shape=shape, **options,
    )  # fmt: skip
    loaded = torch.jit.load(path)
    image = torch.rand(2, 31, 17, 30)
    with torch.no_grad():
        assert torch.allclose(loaded(image), network(image), rtol=1e-4, atol=1e-5)


def test_onnx_gives_the_same_maps_at_other_sizes(
    options: dict[str, str], network: nn.Module, rim_root: Path, tmp_path: Path
) -> None:
    import onnxruntime

    path = tmp_path / "model.onnx"
    dynamic = {"image": {0: "batch", 2: "height", 3: "width"}, "pred": {0: "batch", 2: "height", 3: "width"}}
    onnx_export(
        net_id="network_def", filepath=str(path), ckpt_file=str(rim_root / "models/model.pt"), use_trace=True,
        input_shape=[1, 31, 24, 24],
        converter_kwargs={"dynamic_axes": dynamic, "input_names": ["image"], "output_names": ["pred"]}, **options,
    )  # fmt: skip
    session = onnxruntime.InferenceSession(str(path))
    image = simulated("T1", "N31", 50.0)["image"][..., :40, :30].contiguous()
    with torch.no_grad():
        expected = network(image).numpy()
    [found] = session.run(None, {session.get_inputs()[0].name: image.numpy()})
    # A voxel of pure noise may take another entry of the dictionary when sums are ordered otherwise.
    close = np.isclose(found, expected, rtol=1e-3, atol=1e-4)
    assert close.mean() > 0.99
