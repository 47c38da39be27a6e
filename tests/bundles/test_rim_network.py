"""The networks: physics built into them, before any training."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from rim_relaxometry.curvature import box_mean, evaluate_likelihood, gauss_newton_steps, neighbourhood_mean
from rim_relaxometry.network import RecurrentInferenceMachine, ResNet, RNNCell, make_signal_model, series_scale
from rim_relaxometry.protocols import PROTOCOLS
from rim_relaxometry.start import dictionary_start, flat_start

from physics.noise import gaussian_nll, rician_nll
from physics.relaxometry import InversionRecovery

from .conftest import simulated


def median_error(pred: torch.Tensor, batch: dict[str, Any], index: int) -> float:
    truth = batch["label"]["parameters"][:, index]
    mask = batch["label"]["mask"][:, 0]
    return float(((pred[:, index] - truth) / truth)[mask].abs().median())


@pytest.mark.parametrize(
    ("parameter", "protocol", "bound"),
    [("T1", "N31", 0.02), ("T1", "N23", 0.02), ("T1", "clinical", 0.02), ("T2", "N6", 0.01)],
)
def test_untrained_it_is_a_gauss_newton_method(parameter: str, protocol: str, bound: float) -> None:
    batch = simulated(parameter, protocol, 1000.0)
    network = RecurrentInferenceMachine(parameter, times=(0.1, 0.2)).eval()
    with torch.no_grad():
        pred = network(batch["image"], **batch["acquisition"])
    assert pred.shape[1] == 2 * len(network.names)
    for index in range(len(network.names)):
        assert median_error(pred, batch, index) < bound


@pytest.mark.parametrize("noise", ["gaussian", "rician"])
def test_scale_of_the_series_changes_a_alone(noise: str) -> None:
    batch = simulated("T1", "N31", 20.0)
    network = RecurrentInferenceMachine("T1", times=PROTOCOLS["T1"]["N31"], noise=noise).eval()
    torch.nn.init.normal_(network.cell.last.weight, std=0.05)
    with torch.no_grad():
        once, scaled = network(batch["image"]), network(1000.0 * batch["image"])
    factor = torch.tensor([1000.0, 1, 1, 1000, 1, 1])[:, None, None]
    quotient = scaled / (factor * once)
    assert float((quotient - 1.0).abs().quantile(0.99)) < 1e-2


def test_the_protocol_of_the_call_comes_before_that_of_the_constructor() -> None:
    batch = simulated("T1", "N25", 50.0)
    fixed = RecurrentInferenceMachine("T1", times=PROTOCOLS["T1"]["N25"], noise="gaussian").eval()
    other = RecurrentInferenceMachine("T1", times=(0.1, 0.9), noise="gaussian").eval()
    with torch.no_grad():
        assert torch.equal(fixed(batch["image"]), other(batch["image"], times=batch["acquisition"]["times"]))
    with pytest.raises(ValueError, match="25 volumes, but 2 times"):
        other(batch["image"])


def test_size_of_the_cell_is_that_of_the_papers_package() -> None:
    count = lambda cell: sum(p.numel() for p in cell.parameters())  # noqa: E731
    assert count(RNNCell(6, 3, 36, 1, "tanh")) == 41_475
    assert count(RNNCell(6, 3, 36, 3, "tanh")) == 165_891


@pytest.mark.parametrize(
    "option",
    [
        {"domain": "log2"},
        {"gradient": "none"},
        {"start": "x"},
        {"activation": "gelu"},
        {"gru_kernel": 5},
        {"noise": "none"},
    ],
)
def test_an_unknown_option_is_refused(option: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be one of"):
        RecurrentInferenceMachine("T1", times=(0.1,), **option)


@pytest.mark.parametrize(
    "option",
    [{}, {"domain": "linear"}, {"gradient": "raw"}, {"start": "flat"}, {"activation": "relu"}, {"gru_kernel": 3},
     {"domain": "linear", "gradient": "raw", "start": "flat", "steps": 6, "features": 36}],
)  # fmt: skip
@pytest.mark.parametrize("parameter", ["T1", "T2"])
def test_every_option_trains(parameter: str, option: dict[str, Any]) -> None:
    from rim_relaxometry.loss import StepwiseLoss

    batch = simulated(parameter, "clinical", 30.0, size=24)
    torch.manual_seed(0)
    network = RecurrentInferenceMachine(parameter, times=(0.1,), **option).train()
    loss = StepwiseLoss(network.names)
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    values = []
    for _ in range(6):
        value = loss(network(batch["image"], **batch["acquisition"]), batch["label"])
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert all(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in network.parameters())
    assert all(math.isfinite(value) for value in values)
    assert option or values[-1] < values[0]


@pytest.mark.parametrize("rician", [False, True])
def test_gradient_of_the_likelihood_is_that_of_autograd(rician: bool) -> None:
    torch.manual_seed(1)
    model = InversionRecovery(torch.linspace(0.1, 2.0, 9, dtype=torch.float64))
    maps = [torch.rand(1, 5, 5, dtype=torch.float64) * w + o for w, o in ((0.5, 0.5), (0.2, 1.7), (1.0, 0.6))]
    data = model(*maps) + 0.05 * torch.rand(9, 1, 5, 5, dtype=torch.float64)
    found = evaluate_likelihood(model, data, maps, [1.0, 1.0, 1.0], rician)
    sigma = found.variance.sqrt()
    leaves = [m.clone().requires_grad_() for m in maps]
    nll = (rician_nll if rician else gaussian_nll)(data, model(*leaves), sigma).sum()
    for mine, theirs in zip(found.gradient, torch.autograd.grad(nll, leaves), strict=True):
        assert torch.allclose(mine, -theirs, rtol=1e-3, atol=1e-3 * float(theirs.abs().max()))


def test_gauss_newton_steps_solve_the_normal_equations() -> None:
    batch = simulated("T1", "N31", 30.0)
    model = make_signal_model("T1", batch["acquisition"]["times"])
    maps = list((batch["label"]["parameters"] * torch.tensor([1.02, 0.99, 1.03])[:, None, None]).unbind(1))
    found = evaluate_likelihood(model, batch["image"].movedim(1, 0), maps, [1.0, 1.0, 1.0], False)
    steps = gauss_newton_steps(found, has_b=True).voxelwise
    h = torch.stack([torch.stack([found.hessian[max(i, j)][min(i, j)] for j in range(3)], -1) for i in range(3)], -2)
    h = h.double() + torch.diag(torch.tensor([1.0, 10.0, 1.0], dtype=torch.float64))
    exact = torch.linalg.solve(h, torch.stack(found.gradient, -1).double()[..., None])[..., 0]
    inside = batch["label"]["mask"][:, 0] & (exact.abs().amax(-1) < 0.5)
    assert int(inside.sum()) > 500
    assert torch.allclose(torch.stack(steps, -1)[inside].double(), exact[inside], atol=2e-3, rtol=1e-2)


def test_box_means() -> None:
    x = torch.zeros(1, 9, 9)
    x[0, 4, 4] = 9.0
    assert box_mean(x, 3)[0, 3:6, 3:6].allclose(torch.ones(3, 3))
    assert float(box_mean(x, 3).sum()) == pytest.approx(9.0)
    flat = torch.full((1, 9, 9), 2.5)
    assert neighbourhood_mean(flat, torch.randn(1, 9, 9), 7).allclose(flat)


def test_dictionary_finds_b_of_the_neighbourhood() -> None:
    batch = simulated("T1", "N31", 100.0)
    model = make_signal_model("T1", batch["acquisition"]["times"])
    _, b, _ = dictionary_start(model, batch["image"].movedim(1, 0), has_b=True)
    mask = batch["label"]["mask"][:, 0]
    assert float((b - batch["label"]["parameters"][:, 1])[mask].abs().median()) < 0.05


def test_flat_start_is_that_of_the_paper() -> None:
    series = torch.rand(5, 2, 4, 4)
    a, b, t1 = flat_start(series, True)
    assert torch.equal(a, series.amax(0))
    assert float(b.unique()) == 2.0
    assert float(t1.unique()) == 1.0
    assert float(flat_start(series, False)[1].unique()) == pytest.approx(0.1)


def test_series_scale_is_homogeneous() -> None:
    image = torch.rand(2, 6, 8, 8)
    assert torch.allclose(series_scale(5.0 * image), 5.0 * series_scale(image))
    assert torch.isfinite(series_scale(torch.zeros(1, 3, 4, 4))).all()


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")  # checks of the shape are constants of the trace
def test_traced_at_one_size_it_serves_another() -> None:
    network = RecurrentInferenceMachine("T1", times=PROTOCOLS["T1"]["N23"]).eval()
    with torch.no_grad():
        traced = torch.jit.trace(network, torch.rand(1, 23, 20, 24))
        image = torch.rand(2, 23, 33, 18)
        assert torch.allclose(traced(image), network(image), rtol=1e-4, atol=1e-5)


def test_resnet_knows_its_protocol_only() -> None:
    network = ResNet("T1", times=PROTOCOLS["T1"]["N25"], widths=(8, 8, 12)).eval()
    image = torch.rand(1, 25, 16, 16)
    with torch.no_grad():
        assert network(image).shape == (1, 6, 16, 16)
        assert torch.equal(network(image), network(image, times=torch.tensor(PROTOCOLS["T1"]["N25"])))
    with pytest.raises(ValueError, match="trained for the times"):
        network(image, times=torch.tensor(PROTOCOLS["T1"]["N25"]) + 0.01)
    assert network.train()(image).shape == (1, 1, 6, 16, 16)


def test_mixed_precision_leaves_the_physics_alone() -> None:
    batch = simulated("T1", "N31", 1000.0)
    network = RecurrentInferenceMachine("T1", times=(0.1, 0.2)).eval()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        pred = network(batch["image"], **batch["acquisition"])
    assert median_error(pred, batch, 2) < 0.02
