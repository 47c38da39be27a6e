"""Two processes, with three and two of five samples, against one with all five."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from shared_transforms.distributed import (
    SharedBatchNorm,
    all_rows,
    average_gradients,
    batch_mean,
    join_processes,
    of_first_process,
    own_rows,
    share_batch_norm,
    shared_count,
)
from shared_transforms.errors import QMRIError

PROGRAM = """
import sys
import torch
import torch.distributed as dist
from torch import nn
from shared_transforms.distributed import (
    all_rows, average_gradients, batch_mean, data_parallel, of_first_process, own_rows, shared_count
)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.image = nn.Sequential(nn.Conv3d(2, 3, 2), nn.BatchNorm3d(3), nn.ReLU(), nn.Conv3d(3, 4, 2))
        self.dense = nn.Sequential(nn.BatchNorm1d(4, momentum=None), nn.SiLU(), nn.Linear(4, 2))

    def forward(self, image):
        return self.dense(self.image(image).mean((2, 3, 4)))


def work(rank, world, folder):
    torch.set_num_threads(1)
    if world > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    torch.manual_seed(rank)
    given = torch.load(f"{folder}/given.pt", weights_only=True)
    network = Net().double()
    if rank == 0:
        network.load_state_dict(given["network"])
    parallel = data_parallel(network, "cpu") if world > 1 else network
    image, mask = own_rows(given["image"]), own_rows(given["mask"])
    for _ in range(2):  # statistics of the second step lie on those of the first
        parallel.zero_grad()
        answer = parallel(image)
        rows = all_rows(answer)  # of the whole batch: its own and the others' gradients meet
        pairs = torch.cdist(answer, rows).sum(1)
        ((answer.square() * mask).sum() / shared_count(mask.sum()) + batch_mean(pairs)).backward()
    weight = nn.Linear(2, 1, bias=False).double()
    with torch.no_grad():
        weight.weight.copy_(given["weight"])
    batch_mean(weight(answer.detach())[:, 0].tanh()).backward()
    average_gradients(weight)
    found = {f"gradient.{n}": p.grad for n, p in network.named_parameters()} | dict(network.named_buffers())
    found |= {"rows": rows.detach(), "weight": weight.weight.grad, "drawn": of_first_process(torch.rand(3))}
    torch.save(found, f"{folder}/found_{world}_{rank}.pt")
    if world > 1:
        dist.destroy_process_group()


work(0, 1, sys.argv[1])
torch.multiprocessing.start_processes(work, (2, sys.argv[1]), 2, start_method="fork")
"""


def small_network() -> nn.Module:
    """The program's."""
    image = nn.Sequential(nn.Conv3d(2, 3, 2), nn.BatchNorm3d(3), nn.ReLU(), nn.Conv3d(3, 4, 2))
    dense = nn.Sequential(nn.BatchNorm1d(4, momentum=None), nn.SiLU(), nn.Linear(4, 2))
    return nn.ModuleDict({"image": image, "dense": dense}).double()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Tensor]]:
    """What one process finds, and each of two."""
    folder = tmp_path_factory.mktemp("processes")
    generator = torch.Generator().manual_seed(0)
    given = {
        "network": small_network().state_dict(),
        "image": torch.randn(5, 2, 4, 4, 4, generator=generator, dtype=torch.float64),
        "mask": torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 0.0], [0.0, 1.0], [1.0, 1.0]], dtype=torch.float64),
        "weight": torch.randn(1, 2, generator=generator, dtype=torch.float64),
    }
    torch.save(given, folder / "given.pt")
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-W", "ignore", "-c", PROGRAM, str(folder)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return [torch.load(folder / f"found_{name}.pt", weights_only=True) for name in ("1_0", "2_0", "2_1")]


@pytest.mark.parametrize("rank", [0, 1])
def test_gradients_and_statistics_are_those_of_one_process(found: list[dict[str, Tensor]], rank: int) -> None:
    one, two = found[0], found[1 + rank]
    assert one.keys() == two.keys()
    for name in one.keys() - {"drawn"}:
        torch.testing.assert_close(two[name], one[name], rtol=1e-9, atol=1e-11)
    assert float(one["gradient.image.0.weight"].norm()) > 1e-3


def test_random_numbers_are_those_of_the_first_process(found: list[dict[str, Tensor]]) -> None:
    assert torch.equal(found[1]["drawn"], found[2]["drawn"])


def test_one_process_is_left_as_it_is() -> None:
    values = torch.rand(7)
    assert torch.equal(own_rows(values), values) and torch.equal(all_rows(values), values)
    assert torch.equal(batch_mean(values), values.mean())
    assert float(shared_count(torch.zeros(()))) == 1.0 and float(shared_count(torch.tensor(5.0))) == 5.0
    assert of_first_process(values) is values
    layer = nn.Linear(2, 1)
    average_gradients(layer)
    assert layer.weight.grad is None


@pytest.mark.parametrize("training", [True, False])
def test_shared_normalisation_is_torchs_in_one_process(training: bool) -> None:
    network = small_network().train(training)
    names = list(network.state_dict())
    weights = {name: value.clone() for name, value in network.state_dict().items()}
    image = torch.rand(4, 2, 4, 4, 4, dtype=torch.float64)
    expected = network["image"](image)  # type: ignore[index]
    network.load_state_dict(weights)
    parameters = {id(value) for value in network.parameters()}
    shared = share_batch_norm(network)
    assert shared is network and list(shared.state_dict()) == names
    assert {id(value) for value in shared.parameters()} == parameters
    assert [module.training for module in shared.modules() if isinstance(module, SharedBatchNorm)] == 2 * [training]
    assert torch.equal(shared["image"](image), expected)  # type: ignore[index]


def test_without_torchrun_the_error_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(QMRIError, match="torchrun"):
        join_processes("cpu")
