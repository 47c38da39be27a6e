"""The wavelet-decoder network: size, units, invariances, reach, precision, and that it learns."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from deepspio.network import STRIDE, DeepSPIO, UNetComparator
from deepspio.wavelets import analysis
from torch import Tensor, nn

NETWORKS = [DeepSPIO, UNetComparator]


def _image(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(1))


def _network(kind: Callable[..., nn.Module] = DeepSPIO, width: int = 4) -> nn.Module:
    """A network whose answers are of the size of concentrations, with the statistics of some images."""
    torch.manual_seed(0)
    network = kind(width)
    last = [decoder[-1] for decoder in network.decoders] if kind is DeepSPIO else [network.unet.final_conv]
    with torch.no_grad():
        for layer in last:
            layer.weight.mul_(100.0)
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = None  # the first images' statistics in full
        network(_image(2, 2, 64, 64))
    return network.eval()


@pytest.mark.parametrize(("width", "millions"), [(64, 24.2), (32, 6.05), (16, 1.52), (8, 0.38)])
def test_parameters(width: int, millions: float) -> None:
    network = DeepSPIO(width)
    assert sum(parameter.numel() for parameter in network.parameters()) / 1e6 == pytest.approx(
        millions, abs=0.005 * millions
    )


def test_twelve_convolutions_in_the_encoder_and_no_pooling() -> None:
    network = DeepSPIO(2)
    convolutions = [module for module in network.encoder.modules() if isinstance(module, nn.Conv2d)]
    assert [module.stride[0] for module in convolutions] == [1, 1, 2] * 4
    assert len(network.bottleneck) == len(network.decoders) == 4
    assert not any(isinstance(module, nn.MaxPool2d) for module in network.modules())
    assert any(isinstance(module, nn.MaxPool2d) for module in UNetComparator(2).modules())


@torch.no_grad()
def test_concentration_is_the_synthesis_of_the_coefficients() -> None:
    network, image = _network(), _image(2, 2, 48, 64)
    concentration, coefficients = network(image), network.coefficients(image)
    assert concentration.shape == (2, 1, 48, 64)
    assert coefficients.shape == (2, 4, 24, 32)
    assert coefficients.abs().mean() > 0.01
    torch.testing.assert_close(analysis(concentration), coefficients, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_compressed_output_is_the_hyperbolic_sine_of_the_linear_one() -> None:
    """Of the same weights, unit for unit; and finite whatever the last layer says."""
    image = _image(1, 2, 32, 32)
    compressed, linear = _network(), DeepSPIO(4, compress=False).eval()
    linear.load_state_dict(compressed.state_dict())
    plain = linear.coefficients(image) / torch.tensor([10.0, 2.0, 2.0, 2.0]).reshape(1, 4, 1, 1)
    units = torch.tensor([0.4, 0.1, 0.1, 0.1]).reshape(1, 4, 1, 1)
    torch.testing.assert_close(torch.asinh(compressed.coefficients(image) / units), plain, atol=1e-4, rtol=1e-4)
    for decoder in compressed.decoders:
        decoder[-1].weight.mul_(1e4)
    assert 1.0 < compressed(image).abs().max() < 500.0


@torch.no_grad()
def test_each_decoder_has_one_channel_in_the_order_of_the_transform() -> None:
    """Without its last layer a decoder says nothing; only its own channel falls silent."""
    network, image = _network(), _image(1, 2, 32, 32)
    before = network.coefficients(image)
    for channel in range(4):
        last = network.decoders[channel][-1]
        weight = last.weight.clone()
        last.weight.zero_()
        after = network.coefficients(image)
        last.weight.copy_(weight)
        others = [other for other in range(4) if other != channel]
        assert not after[:, channel].any()
        torch.testing.assert_close(after[:, others], before[:, others], rtol=0, atol=0)


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("gain", [3.7e-7, 0.031, 4096.0, 2.9e8])
@torch.no_grad()
def test_receiver_gain_does_not_matter(kind: Callable[..., nn.Module], gain: float) -> None:
    network, image = _network(kind), _image(2, 2, 48, 64)
    reference = network(image)
    gains = torch.tensor([gain, 1.0]).reshape(2, 1, 1, 1)  # one image's gain is not another's
    torch.testing.assert_close(network(image * gains), reference, atol=1e-4, rtol=1e-4)
    assert (network(image**2) - reference).abs().max() > 0.01


@pytest.mark.parametrize("kind", NETWORKS)
def test_an_empty_image_has_an_answer_and_a_gradient(kind: Callable[..., nn.Module]) -> None:
    network, image = _network(kind), torch.zeros(1, 2, 32, 32, requires_grad=True)
    answer = network(image)
    answer.sum().backward()
    assert torch.isfinite(answer).all()
    assert torch.isfinite(image.grad).all()


@torch.no_grad()
def test_both_channels_and_both_axes_count_apart() -> None:
    network, image = _network(), _image(1, 2, 48, 48)
    reference = network(image)
    assert (network(image.flip(1)) - reference).abs().max() > 0.01
    assert (network(image.mT).mT - reference).abs().max() > 0.01


@pytest.mark.parametrize("axis", [2, 3])
@torch.no_grad()
def test_translation_by_the_stride_moves_the_answer(axis: int) -> None:
    """Away from borders, which the network sees as far as it reaches; a shift by less is another image to it."""
    network = _network(width=2)
    sides = [320 if side == axis else 32 for side in (2, 3)]
    image = _image(1, 2, *sides)
    reference = network(image)
    moved = network(image.roll(STRIDE, axis)).roll(-STRIDE, axis)
    inside = slice(144, 320 - 160)
    torch.testing.assert_close(
        moved.movedim(axis, -1)[..., inside], reference.movedim(axis, -1)[..., inside], atol=1e-4, rtol=1e-4
    )
    less = network(image.roll(3, axis)).roll(-3, axis)
    assert (less - reference).movedim(axis, -1)[..., inside].abs().max() > 1e-3


def test_reach() -> None:
    """As the docstring says; weights without sign, so that no two paths cancel. One axis is enough: both are alike."""
    torch.manual_seed(0)
    network = DeepSPIO(2, compress=False).eval()
    with torch.no_grad():
        for tensor in (*network.parameters(), *network.buffers()):
            tensor.abs_()
    network.scaled = lambda image: image  # the scale is of the whole image
    image = torch.rand(STRIDE, 2, 352, 32, generator=torch.Generator().manual_seed(0), requires_grad=True)
    pixels = 160 + torch.arange(STRIDE)
    network(image)[torch.arange(STRIDE), 0, pixels, 16].sum().backward()
    found_widths, found_reaches = set(), []
    for gradient, pixel in zip(image.grad, pixels.tolist(), strict=True):
        seen = gradient.abs().amax((0, 2)).nonzero()[:, 0]
        first, last = int(seen[0]), int(seen[-1])
        found_widths.add(last - first + 1)
        found_reaches += [pixel - first, last - pixel]
    assert found_widths == {251, 267}
    assert (min(found_reaches), max(found_reaches)) == (113, 143)


@pytest.mark.parametrize("kind", NETWORKS)
def test_every_parameter_learns(kind: Callable[..., nn.Module]) -> None:
    network = _network(kind).train()
    (network(_image(2, 2, 48, 48)) - 1.0).abs().mean().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


@torch.no_grad()
def test_training_and_evaluation() -> None:
    """In evaluation an image's answer is its own; in training it depends on the batch, and statistics move."""
    network, images = _network(), _image(3, 2, 32, 32)
    torch.testing.assert_close(network(images)[:1], network(images[:1]), atol=1e-4, rtol=1e-4)
    statistics = network.encoder[0][1].running_mean.clone()
    network.train()
    assert (network(images)[:1] - network(images[:1])).abs().max() > 0.01
    assert not torch.equal(network.encoder[0][1].running_mean, statistics)


@pytest.mark.parametrize("kind", NETWORKS)
def test_half_precision(kind: Callable[..., nn.Module]) -> None:
    network, image = _network(kind).to(memory_format=torch.channels_last).train(), _image(2, 2, 64, 64)
    with torch.no_grad():
        exact = network(image)
    with torch.autocast("cpu", torch.bfloat16):
        answer = network(image)
    answer.abs().mean().backward()
    assert answer.dtype == torch.float32
    error = (answer.detach() - exact).norm() / exact.norm()
    assert 0.0 < float(error) < 0.15  # of some twenty layers of eight bits each, normalised by a small batch
    assert all(torch.isfinite(parameter.grad).all() for parameter in network.parameters())


@pytest.mark.parametrize("kind", NETWORKS)
def test_starts_near_the_empty_map_and_learns(kind: Callable[..., nn.Module]) -> None:
    torch.manual_seed(0)
    network = kind(4)
    squares = torch.zeros(4, 1, 32, 32)
    for k, truth in enumerate(squares):
        truth[:, 4 + 4 * k : 12 + 4 * k, 8:20] = 4.0 + k
    image = torch.cat([1.0 + 0.2 * squares.roll(2, 3), torch.ones_like(squares)], 1)
    optimiser = torch.optim.Adam(network.parameters(), 1e-2)
    errors = []
    for _ in range(35):
        found = network(image)
        optimiser.zero_grad()
        (torch.asinh(found) - torch.asinh(squares)).square().mean().backward()
        optimiser.step()
        errors.append(float((found.detach() - squares).abs().sum() / squares.sum()))
    assert errors[0] == pytest.approx(1.0, abs=0.2)
    assert errors[-1] < 0.7


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("shape", [(1, 2, 40, 32), (1, 2, 32, 17), (1, 1, 32, 32), (2, 32, 32), (1, 2, 0, 16)])
def test_other_shapes_are_refused(kind: Callable[..., nn.Module], shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"image must be \[B, 2, X, Z\], X and Z multiples of 16"):
        kind(2)(torch.ones(shape))


@pytest.mark.parametrize("kind", NETWORKS)
def test_no_width_is_refused(kind: Callable[..., nn.Module]) -> None:
    with pytest.raises(ValueError, match="width and in_channels must be at least 1"):
        kind(0)
