"""Exports of deepspio's networks: the same maps from TorchScript and from ONNX, at sizes they were not made at."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from deepspio.network import DeepSPIO, UNetComparator
from monai.networks.utils import convert_to_onnx, convert_to_torchscript
from torch import Tensor, nn

SIZES = ((48, 80), (112, 64))
NETWORKS = [DeepSPIO, UNetComparator]
# The exporters of torch use what torch deprecates.
pytestmark = pytest.mark.filterwarnings(
    "ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"
)


def _image(size: tuple[int, int]) -> Tensor:
    return 700.0 * torch.rand(2, 2, *size, generator=torch.Generator().manual_seed(0))


def _network(kind: Callable[..., nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    network = kind(4)
    last = [decoder[-1] for decoder in network.decoders] if kind is DeepSPIO else [network.unet.final_conv]
    with torch.no_grad():  # answers of the size of concentrations
        for layer in last:
            layer.weight.mul_(100.0)
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = None  # the first images' statistics in full
        network(_image((64, 64)))
    return network.eval()


@pytest.mark.parametrize("kind", NETWORKS)
@torch.no_grad()
def test_torchscript_gives_the_same_maps(kind: Callable[..., nn.Module], tmp_path: Path) -> None:
    network, path = _network(kind), tmp_path / "model.ts"
    convert_to_torchscript(network, filename_or_obj=str(path))
    scripted = torch.jit.load(path)
    for size in SIZES:
        expected = network(_image(size))
        assert expected.abs().mean() > 0.01
        torch.testing.assert_close(scripted(_image(size)), expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_onnx_gives_the_same_maps_at_other_sizes(tmp_path: Path) -> None:
    import onnxruntime

    network, path = _network(DeepSPIO), tmp_path / "model.onnx"
    axes = {0: "batch", 2: "x", 3: "z"}
    convert_to_onnx(
        network, [torch.rand(1, 2, 32, 32)], filename=str(path), use_trace=True, input_names=["image"],
        output_names=["pred"], dynamic_axes={"image": axes, "pred": axes},
    )  # fmt: skip
    session = onnxruntime.InferenceSession(str(path))
    for size in SIZES:
        [found] = session.run(None, {"image": _image(size).numpy()})
        torch.testing.assert_close(torch.from_numpy(found), network(_image(size)), rtol=1e-4, atol=1e-4)
