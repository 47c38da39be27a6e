"""TorchScript of deepspio's U-Net, which is not shipped: the same maps at sizes it was not made at."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from deepspio.network import UNetComparator
from monai.networks.utils import convert_to_torchscript
from torch import Tensor, nn

SIZES = ((48, 80), (112, 64))


def _image(size: tuple[int, int]) -> Tensor:
    return 700.0 * torch.rand(2, 2, *size, generator=torch.Generator().manual_seed(0))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@torch.no_grad()
def test_torchscript_gives_the_same_maps(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network, path = UNetComparator(4), tmp_path / "model.ts"
    network.unet.final_conv.weight.mul_(100.0)  # answers of the size of concentrations
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the first images' statistics in full
    network(_image((64, 64)))
    network.eval()
    convert_to_torchscript(network, filename_or_obj=str(path))
    scripted = torch.jit.load(path)
    for size in SIZES:
        expected = network(_image(size))
        assert expected.abs().mean() > 0.01
        torch.testing.assert_close(scripted(_image(size)), expected, rtol=1e-4, atol=1e-4)
