"""How a volume goes through a network."""

from __future__ import annotations

import pytest
import torch
from monai.data import MetaTensor

from shared_transforms.inferers import AutocastInferer, bfloat16_device


@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (2, 3, 8, 8, 8)], ids=["images", "volumes"])
def test_autocast_is_the_network_at_bfloat16(shape):
    network = torch.nn.Conv2d(3, 2, 3) if len(shape) == 4 else torch.nn.Conv3d(3, 2, 3)
    inputs = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    exact = network(inputs)
    seen = []
    network.register_forward_hook(lambda module, given, output: seen.append(output.dtype))

    reduced = AutocastInferer(enabled=True)(inputs, network)

    assert seen == [torch.bfloat16] and reduced.dtype == torch.float32
    assert 0 < (reduced - exact).abs().max() < 2**-6 * exact.abs().max()  # 8 bits of mantissa
    assert torch.allclose(AutocastInferer(enabled=False)(inputs, network), exact, atol=1e-6)


def test_autocast_gives_gradients_in_float32_and_a_plain_tensor():
    network = torch.nn.Conv3d(1, 1, 3)
    output = AutocastInferer(enabled=True)(MetaTensor(torch.randn(1, 1, 4, 4, 4)), network)
    output.square().mean().backward()
    assert type(output) is torch.Tensor and network.weight.grad.dtype == torch.float32


def test_autocast_asks_the_device_and_passes_arguments_on():
    def network(inputs, scale, *, offset):
        weight = torch.eye(2)
        return (inputs @ weight) * scale + offset, torch.is_autocast_enabled("cpu")

    class First(torch.nn.Module):
        def forward(self, *args, **kwargs):
            output, First.enabled = network(*args, **kwargs)
            return output

    output = AutocastInferer()(torch.ones(2, 2), First(), 3, offset=1)
    assert torch.equal(output, torch.full((2, 2), 4.0)) and First.enabled == bfloat16_device("cpu")
    assert not bfloat16_device("meta")
