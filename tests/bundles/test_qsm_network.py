"""Generator, critic, losses and the adversarial step of qsmgan."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from qsmgan.adversarial import AdversarialUpdate
from qsmgan.loss import SusceptibilityLoss, gradient_penalty, sobel_kernels
from qsmgan.network import Critic, Generator
from qsmgan.start import CHANNELS
from torch import Tensor, nn
from torch.nn.functional import conv3d

from physics.dipole import field_from_susceptibility


def volumes(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("crop", "channels"), [(8, ("field",)), (4, CHANNELS)])
def test_output_is_the_middle_of_the_input(crop: int, channels: tuple[str, ...]) -> None:
    network = Generator(channels, width=4, crop=crop)
    image = 0.01 * volumes(2, len(channels), 32, 40, 24)
    assert network(image).shape == (2, 1, 32 - 2 * crop, 40 - 2 * crop, 24 - 2 * crop)


def test_it_starts_from_the_starting_map() -> None:
    network = Generator(("field", "start"), width=4, crop=8)
    image = 0.02 * volumes(1, 2, 32, 32, 32)
    last = network.head[-1]
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    assert torch.equal(network(image), image[:, 1:2, 8:24, 8:24, 8:24])


def test_shifted_by_a_whole_pooling_cell_it_gives_the_same_values() -> None:
    network = Generator(("field",), width=4, crop=0).eval()
    image = torch.zeros(1, 1, 128, 16, 16)
    image[..., 56:64, 4:12, 4:12] = 0.02 * volumes(8, 8, 8)
    with torch.no_grad():
        here, there = network(image), network(image.roll(8, 2))
    # The receptive field of four levels reaches 44 voxels: the border is further than that from here.
    assert torch.allclose(here[:, :, 50:70], there[:, :, 58:78], atol=1e-6)
    assert here[:, :, 50:70].std() > 1e-5


def test_parameters_of_the_two_widths() -> None:
    count = {w: sum(p.numel() for p in Generator(("field",), width=w).parameters()) for w in (8, 16)}
    assert 3.9 < count[16] / count[8] < 4.0  # all but the first and the last layer grow with the square


def test_batch_normalisation_is_there_when_asked_for() -> None:
    kinds = [type(m) for m in Generator(("field",), 4, normalisation="batch").modules()]
    assert kinds.count(nn.BatchNorm3d) == 14
    assert nn.BatchNorm3d not in [type(m) for m in Generator(("field",), 4).modules()]


@pytest.mark.parametrize(
    "options", [{"channels": ("phase",)}, {"channels": ()}, {"normalisation": "layer"}, {"levels": 1}, {"crop": -1}]
)
def test_generator_refuses(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="got"):
        Generator(**options)


def test_sobel_gives_the_slope_of_a_ramp() -> None:
    x, y, z = torch.meshgrid(*(torch.arange(6.0),) * 3, indexing="ij")
    slopes = conv3d((2.0 * x - 0.5 * y + 3.0 * z)[None, None], sobel_kernels())
    for k, slope in enumerate((2.0, -0.5, 3.0)):
        assert torch.allclose(slopes[0, k], torch.tensor(slope), atol=1e-5)


def label_of(truth: Tensor, mask: Tensor | None = None) -> dict[str, Tensor]:
    return {"parameters": truth, "mask": torch.ones_like(truth, dtype=torch.bool) if mask is None else mask}


def test_loss_is_zero_at_the_truth_and_blind_outside_the_mask() -> None:
    truth, loss = 0.05 * volumes(2, 1, 16, 16, 16), SusceptibilityLoss()
    mask = torch.zeros_like(truth, dtype=torch.bool)
    mask[..., 4:12, 4:12, 4:12] = True
    assert loss(truth, label_of(truth)) == 0.0
    assert loss(torch.where(mask, truth, 7.0), label_of(truth, mask)) == 0.0
    assert loss(truth + 0.01, label_of(truth, mask)) > 0.0


def test_each_term_of_the_loss_is_what_it_says() -> None:
    truth = 0.05 * volumes(1, 1, 12, 12, 12)
    error = 0.01 * volumes(1, 1, 12, 12, 12, seed=1)
    size = truth.square().mean().sqrt() + 0.02
    everywhere = torch.ones_like(truth, dtype=torch.bool)
    parts = SusceptibilityLoss().parts(truth + error, truth, everywhere)
    assert parts["squared"] == pytest.approx(float((error / size).square().mean()), rel=1e-4)
    assert parts["absolute"] == pytest.approx(float((error / size).abs().mean()), rel=1e-4)
    ramp = torch.arange(12.0)[:, None, None].expand(1, 1, 12, 12, 12)
    inner = torch.zeros_like(everywhere)
    inner[..., 2:10, 2:10, 2:10] = True
    slope = SusceptibilityLoss(0, 0, 1, 0).parts(ramp * inner, torch.zeros_like(ramp), everywhere)["gradient"]
    assert slope > 0.0
    field = field_from_susceptibility(error / size, (1, 1, 1), padding=2.0).abs().mean()
    assert parts["field"] == pytest.approx(float(field), rel=0.02)


def test_an_error_the_field_does_not_show_costs_little_there() -> None:
    # A magic-angle cone in k-space has no field: compare with an error along B0, where the kernel is strongest.
    grid = torch.arange(32.0)
    x, z = grid[:, None, None], grid[None, None, :]
    window = torch.hann_window(32, periodic=False)
    window = window[:, None, None] * window[None, :, None] * window[None, None, :]
    hidden = window * torch.cos(2 * torch.pi * (8 * 2**0.5 * x + 8 * z) / 32)  # kz^2 / k^2 = 1/3
    shown = window * torch.cos(2 * torch.pi * 8 * z / 32).expand(32, 32, 32)
    costs = []
    for wave in (hidden, shown):
        zero, made = torch.zeros(1, 1, 32, 32, 32), 0.01 * wave[None, None]
        costs.append(SusceptibilityLoss(0, 0, 0, 1).parts(made, zero, torch.ones_like(zero, dtype=torch.bool))["field"])
    assert costs[0] < 0.2 * costs[1]


def test_compressed_loss_is_that_of_the_paper() -> None:
    truth, made = torch.full((1, 1, 8, 8, 8), 0.1), torch.full((1, 1, 8, 8, 8), 0.2)
    loss = SusceptibilityLoss(0, 1, 0, 0, compress=True)
    expected = torch.tanh(torch.tensor(2.0)) - torch.tanh(torch.tensor(1.0))
    assert loss(made, label_of(truth)) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("weights", [{"squared": -1.0}, {"squared": 0, "absolute": 0, "gradient": 0, "field": 0}])
def test_loss_refuses(weights: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="weights"):
        SusceptibilityLoss(**weights)


class Slope(nn.Module):
    """A critic of known slope: the score is a sum over the voxels, times a factor."""

    def __init__(self, slope: float) -> None:
        super().__init__()
        self.slope = slope
        self.register_buffer("scales", torch.tensor([20.0, 100.0]).reshape(1, 2, 1, 1, 1))

    def forward(self, susceptibility: Tensor, field: Tensor) -> Tensor:
        return self.slope * 20.0 * susceptibility.flatten(1).sum(1) + 0.0 * field.sum()


@pytest.mark.parametrize("slope", [0.0, 1.0, 2.5])
def test_gradient_penalty_of_a_linear_critic(slope: float) -> None:
    voxels = 4**3
    critic = Slope(slope / voxels**0.5)  # the norm of its gradient is the slope
    true, made = 0.05 * volumes(3, 1, 4, 4, 4), 0.05 * volumes(3, 1, 4, 4, 4, seed=1)
    found = gradient_penalty(critic, true, made, true, torch.rand(3))
    assert float(found) == pytest.approx((slope - 1.0) ** 2, abs=1e-5)


def test_critic_sees_map_and_field() -> None:
    critic, chi, field = Critic(4), 0.05 * volumes(2, 1, 32, 32, 32), 0.01 * volumes(2, 1, 32, 32, 32, seed=1)
    scores = critic(chi, field)
    assert scores.shape == (2,)
    assert not torch.allclose(scores, critic(chi, field.flip(2)))
    assert not torch.allclose(scores, critic(chi.flip(2), field))


def test_critic_steps_to_one_of_the_generator() -> None:
    torch.manual_seed(0)
    network, critic = Generator(("field",), width=2, crop=8), Critic(2)
    optimizers = [torch.optim.Adam(m.parameters(), 1e-3, (0.0, 0.9)) for m in (network, critic)]
    update = AdversarialUpdate(critic, optimizers[1], critic_steps=2)
    truth = 0.05 * volumes(2, 1, 16, 16, 16)
    batch = (0.01 * volumes(2, 1, 32, 32, 32), label_of(truth), (), {})
    engine: Any = SimpleNamespace(
        network=network,
        optimizer=optimizers[0],
        loss_function=SusceptibilityLoss(),
        inferer=lambda image, net: net(image),
        prepare_batch=lambda *_: batch,
        non_blocking=False,
        state=SimpleNamespace(iteration=1, device="cpu"),
    )

    def weights(module: nn.Module) -> Tensor:
        return torch.cat([p.detach().flatten() for p in module.parameters()])

    before = weights(network), weights(critic)
    first = update(engine, {})
    between = weights(network), weights(critic)
    engine.state.iteration = 2
    second = update(engine, {})
    after = weights(network), weights(critic)
    assert torch.equal(before[0], between[0])
    assert not torch.equal(between[0], after[0])
    assert not torch.equal(before[1], between[1])
    assert not torch.equal(between[1], after[1])
    assert set(second) - set(first) == {"supervised_loss", "adversarial_loss", "gradient_norm"}
    assert all(torch.isfinite(value) for name, value in second.items() if isinstance(name, str) and "loss" in name)


def test_critic_learns_to_tell_truth_from_noise() -> None:
    torch.manual_seed(0)
    critic = Critic(4)
    optimizer = torch.optim.Adam(critic.parameters(), 1e-3, (0.0, 0.9))
    update = AdversarialUpdate(critic, optimizer)
    true = 0.1 * torch.ones(4, 1, 16, 16, 16)
    made, field = 0.1 * volumes(4, 1, 16, 16, 16), torch.zeros(4, 1, 16, 16, 16)
    distances = [float(update._train_critic(true, made, field)["critic_distance"]) for _ in range(30)]
    assert distances[-1] > distances[0] + 0.1
