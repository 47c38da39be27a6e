"""Attention and saliency against finite differences and closed forms; nothing is left on the network."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from deepspio.explain import SCORES, attention_layers, feature_attention, grad_cam, guided_saliency, on_image
from deepspio.loss import WaveletLoss
from deepspio.network import DeepSPIO
from torch import Tensor, nn


class Tiny(nn.Module):
    """Four smooth coefficients of half the size; in place, numbered names and frozen layers included."""

    def __init__(self) -> None:
        super().__init__()
        self.early = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(inplace=True))
        self.late = nn.Sequential(nn.Conv2d(3, 5, 3, 2, 1), nn.Softplus(), nn.Conv2d(5, 4, 3, padding=1))

    def coefficients(self, image: Tensor) -> Tensor:
        return self.late(self.early(image))

    def forward(self, image: Tensor) -> Tensor:
        return nn.functional.pixel_shuffle(self.coefficients(image) ** 2, 2)


@pytest.fixture
def network() -> Tiny:
    torch.manual_seed(0)
    return Tiny().double().train()


@pytest.fixture
def image() -> Tensor:
    return torch.rand((2, 2, 12, 8), generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def y_of(network: Tiny, image: Tensor, score: str) -> Tensor:
    """What is explained, of each image."""
    if score == "concentration":
        return network(image).sum((1, 2, 3))
    sums = network.coefficients(image).sum((2, 3))
    return sums.sum(1) if score == "all" else sums[:, ("cA", "cH", "cV", "cD").index(score)]


def weighted_features(network: Tiny, layer: nn.Module, image: Tensor, score: str, step: float = 1e-5) -> Tensor:
    """alpha_k A_k: what y gains where a whole feature map is raised, by central differences."""
    seen: list[Tensor] = []
    added = [0, 0.0]

    def raised(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        seen.append(output.clone())
        output = output.clone()
        output[:, int(added[0])] += added[1]
        return output

    handle = layer.register_forward_hook(raised)
    y_of(network, image, score)
    features, slopes = seen[0], []
    for k in range(features.shape[1]):
        values = []
        for sign in (1, -1):
            added[:] = [k, sign * step]
            values.append(y_of(network, image, score))
        slopes.append((values[0] - values[1]) / (2 * step))
    handle.remove()
    return torch.stack(slopes, 1)[..., None, None] / features[0, 0].numel() * features


@pytest.mark.parametrize("score", SCORES)
def test_attention_is_that_of_finite_differences(network: Tiny, image: Tensor, score: str) -> None:
    with torch.no_grad():
        products = weighted_features(network.eval(), network.early[1], image, score)
    found = grad_cam(network, image, "early.1", score)
    assert found.shape == (2, 1, 12, 8) and not found.requires_grad
    assert torch.allclose(found, products.sum(1, keepdim=True).relu(), rtol=1e-6, atol=1e-9)
    single = feature_attention(network, image, "early.1", score)
    assert single.shape == (2, 3, 12, 8)
    assert torch.allclose(single, products.relu(), rtol=1e-6, atol=1e-9)
    assert found.amax() > 0


def test_attention_of_a_small_layer_keeps_its_place(network: Tiny, image: Tensor) -> None:
    with torch.no_grad():
        network.late[2].weight.abs_()  # y rises with every feature,
        network.late[0].weight.abs_()  # and these are positive
        products = weighted_features(network.eval(), network.late[0], image, "all")
    found = grad_cam(network, image, "late.0", "all")
    assert found.shape == (2, 1, 12, 8)
    small = products.sum(1, keepdim=True).relu()
    # Half way between coarse pixels, linear interpolation takes a quarter of one neighbour: mean over 2 x 2 pixels
    # is 3/4 of the pixel and 1/8 of each neighbour, along each axis.
    padded = nn.functional.pad(small, (1, 1, 1, 1), mode="replicate")
    along = padded[:, :, 1:-1] * 0.75 + (padded[:, :, :-2] + padded[:, :, 2:]) / 8
    expected = along[..., 1:-1] * 0.75 + (along[..., :-2] + along[..., 2:]) / 8
    assert torch.allclose(nn.functional.avg_pool2d(found, 2), expected, atol=1e-9) and found.amax() > 0
    assert torch.equal(on_image(found, image), found * (image[:, :1] + image[:, 1:]))


def test_attention_of_one_image_does_not_depend_on_the_others(network: Tiny, image: Tensor) -> None:
    both, second = grad_cam(network, image, "late.0", "all"), grad_cam(network, image[1:], "late.0", "all")
    assert torch.allclose(both[1:], second, atol=1e-12)


def closed_form_case(slope: float = 0.1) -> nn.Module:
    """Two layers of one pixel: 2 features behind a ReLU, 1 behind a LeakyReLU."""
    layers = nn.Sequential(nn.Conv2d(2, 2, 1, bias=False), nn.ReLU(), nn.Conv2d(2, 1, 1, bias=False))
    layers.append(nn.LeakyReLU(slope))
    with torch.no_grad():
        layers[0].weight.copy_(torch.tensor([[1.0, 2.0], [-1.0, 1.0]])[..., None, None])
        layers[2].weight.copy_(torch.tensor([[3.0, -4.0]])[..., None, None])
    return layers


@pytest.mark.parametrize(
    ("pixel", "factor", "guided", "plain"),
    [
        # Features (7, 2), output 13; 5 (3, -4) = (15, -20) reaches them.
        ((1.0, 3.0), 5.0, (15, 30), (35, 10)),
        # Features (0, 3), output -12: the slope; .5 (3, -4) reaches them, and guided only the first, which is off.
        ((-2.0, 1.0), 5.0, (0, 0), (2, -2)),
        ((1.0, 3.0), -5.0, (0, 0), (-35, -10)),  # the loss falls with the output
    ],
)
def test_guided_gradient_in_closed_form(
    pixel: tuple[float, float], factor: float, guided: tuple[float, float], plain: tuple[float, float]
) -> None:
    network, image = closed_form_case(), torch.tensor(pixel).reshape(1, 2, 1, 1)

    def loss(output: Tensor, target: Tensor) -> Tensor:
        return (target * output).mean()

    for expected, option in ((guided, True), (plain, False)):
        found = guided_saliency(network, image, torch.tensor(factor), loss, guided=option)
        assert found.item() == pytest.approx(max(map(abs, expected)))


def test_plain_gradient_is_that_of_finite_differences(network: Tiny, image: Tensor) -> None:
    network.eval()
    target = torch.rand((2, 1, 12, 8), generator=torch.Generator().manual_seed(2), dtype=torch.float64)

    def loss(output: Tensor, truth: Tensor) -> Tensor:
        return (output - truth).abs().sum((1, 2, 3)).mean()

    found = guided_saliency(network, image, target, loss, guided=False)
    step = 1e-6 * torch.eye(2 * 12 * 8, dtype=torch.float64).reshape(-1, 2, 12, 8)
    with torch.no_grad():
        for one in range(2):
            up, down = (network(image[one] + sign * step) - target[one] for sign in (1, -1))
            slopes = (up.abs().sum((1, 2, 3)) - down.abs().sum((1, 2, 3))) / 2e-6
            assert torch.allclose(found[one, 0], slopes.reshape(2, 12, 8).abs().amax(0), rtol=1e-5, atol=1e-7)
    guided = guided_saliency(network, image, target, loss)
    assert not torch.allclose(guided, found, rtol=0.01)  # the network is a Sequential with numbered names
    alone = guided_saliency(network, image[1:], target[1:], loss)
    assert torch.allclose(guided[1:], alone, atol=1e-12)


@pytest.mark.parametrize(
    "explain",
    [
        lambda network, image: grad_cam(network, image, "early.1", "all"),
        lambda network, image: feature_attention(network, image, "late.0"),
        lambda network, image: guided_saliency(network, image, 0.0, lambda output, _: output.mean()),
    ],
)
def test_network_is_left_as_it_was(
    network: Tiny, image: Tensor, explain: Callable[[nn.Module, Tensor], Tensor]
) -> None:
    network.early.eval()  # modes differ
    network(image).sum().backward()
    network.late[2].weight.requires_grad_(False)
    before: list[Any] = [
        {name: value.clone() for name, value in network.state_dict().items()},
        [None if p.grad is None else p.grad.clone() for p in network.parameters()],
        [(m.training, getattr(m, "inplace", None)) for m in network.modules()],
        [p.requires_grad for p in network.parameters()],
    ]
    with torch.no_grad():
        first, second = explain(network, image), explain(network, image)
    assert torch.equal(first, second)  # nothing accumulates
    assert not image.requires_grad and image.grad is None
    after: list[Any] = [
        dict(network.state_dict()),
        [p.grad for p in network.parameters()],
        [(m.training, getattr(m, "inplace", None)) for m in network.modules()],
        [p.requires_grad for p in network.parameters()],
    ]
    torch.testing.assert_close(after[:2], before[:2], rtol=0, atol=0)
    assert before[2:] == after[2:]
    assert not any(m._forward_hooks or m._backward_hooks for m in network.modules())


class Loudest(nn.Module):
    """Divides by the largest pixel, then adds the channels."""

    def scaled(self, image: Tensor) -> Tensor:
        return image / image.amax((1, 2, 3), keepdim=True)

    def forward(self, image: Tensor) -> Tensor:
        return self.scaled(image).sum(1, keepdim=True)


def test_gradient_of_the_scale_is_left_out(image: Tensor) -> None:
    found = guided_saliency(Loudest(), image, 0.0, lambda output, _: output.sum((1, 2, 3)).mean(), guided=False)
    assert torch.equal(found, torch.ones_like(found))


def test_what_cannot_be_explained_is_said(network: Tiny, image: Tensor) -> None:
    with pytest.raises(ValueError, match=r"score must be one of .*got 'iron'"):
        grad_cam(network, image, "early.1", "iron")
    with pytest.raises(ValueError, match=r"early\.1.*got 'early\.7'"):
        grad_cam(network, image, "early.7")
    with pytest.raises(ValueError, match="ReLU"):
        guided_saliency(nn.Conv2d(2, 1, 1), image.float(), 0.0, lambda output, _: output.mean())


def test_layers_of_the_network_and_its_loss() -> None:
    torch.manual_seed(0)
    network = DeepSPIO(width=2)
    generator = torch.Generator().manual_seed(3)
    image, truth = torch.rand((2, 2, 48, 32), generator=generator), torch.zeros(2, 1, 48, 32)
    truth[..., 20:28, 10:16] = 3.0
    layers = attention_layers(network)
    assert len(layers) == 12 + 4 + 4 and len(set(layers)) == 20
    sides = []
    for name in layers:
        scored = "cA" if not name.startswith("decoders") else ("cA", "cH", "cV", "cD")[int(name.split(".")[1])]
        maps = feature_attention(network, image, name, scored)
        assert maps.shape[2:] == image.shape[2:] and bool((maps >= 0).all())
        assert torch.allclose(grad_cam(network, 8 * image, name, scored), grad_cam(network, image, name, scored))
        sides.append(maps.shape[1])
    assert sides == [2, 2, 2, 4, 4, 4, 8, 8, 8, 16, 16, 16, 16, 16, 16, 16, 2, 2, 2, 2]
    assert isinstance(network.get_submodule(layers[4]), nn.ReLU) and layers[4] == "encoder.1.5"  # the fifth
    saliency = guided_saliency(network, image, {"parameters": truth}, WaveletLoss())
    # The scale of the image is held: neither the unit nor the place of the brightest pixels matters.
    assert torch.allclose(saliency, guided_saliency(network, 8 * image, {"parameters": truth}, WaveletLoss()))
    assert saliency.shape == (2, 1, 48, 32) and bool((saliency >= 0).all()) and saliency.amax() > 0
