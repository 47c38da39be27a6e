"""Checkpoints: killed, resumed, damaged, compared."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from ignite.engine import Events
from ignite.metrics import Metric
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.handlers import LrScheduleHandler, ValidationHandler
from torch import nn
from torch.utils.data import DataLoader

from shared_transforms.checkpoint import AtomicCheckpointSaver, latest_checkpoint, load_checkpoint
from shared_transforms.errors import QMRIError

EPOCHS = 4


class Killed(Exception):
    """Stands for a kill in the middle of an epoch."""


class Recorded(Metric):
    """A metric that gives the listed value of each epoch."""

    required_output_keys = ("pred", "label")

    def __init__(self, values: list[float]) -> None:
        self.values = values
        self.epoch = 0
        super().__init__()

    def reset(self) -> None:
        pass

    def update(self, output: object) -> None:
        pass

    def compute(self) -> float:
        return self.values[self.epoch - 1]


class MeanError(Metric):
    """Mean squared error over an epoch."""

    required_output_keys = ("pred", "label")

    def reset(self) -> None:
        self.values: list[float] = []

    def update(self, output: tuple) -> None:
        self.values.append(float((output[0] - output[1]).square().mean()))

    def compute(self) -> float:
        return float(np.mean(self.values))


def noisy_batch(batch: dict, device: torch.device, non_blocking: bool, **kwargs: object) -> tuple:
    """Draw from every random generator, so that a resume has to restore them all."""
    noise = torch.randn_like(batch["image"]) + np.random.normal() + random.gauss(0, 1)
    return batch["image"] + 0.1 * noise, batch["label"]


def build(
    save_dir: Path, *, resume: bool = False, metric: Metric | None = None, compare=None, epochs: int = EPOCHS, **saver
):
    """A trainer with dropout, shuffling, Adam, a schedule and validation."""
    for seed in (torch.manual_seed, np.random.seed, random.seed):
        seed(0)
    network = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Tanh(), nn.Linear(8, 1))
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.7)
    generator = torch.Generator().manual_seed(1)
    items = [{"image": x, "label": x.sum(0, keepdim=True)} for x in torch.randn(24, 3, generator=generator)]
    common = {"device": torch.device("cpu"), "network": network, "prepare_batch": noisy_batch, "decollate": False}
    evaluator = SupervisedEvaluator(
        val_data_loader=DataLoader(items, 8),
        key_val_metric={"error": metric or MeanError()},
        metric_cmp_fn=compare or (lambda current, best: current < best),
        **common,
    )
    keeper = AtomicCheckpointSaver(
        save_dir, network, optimizer, lr_scheduler=schedule, evaluator=evaluator, resume=resume, **saver
    )
    trainer = SupervisedTrainer(
        max_epochs=epochs,
        train_data_loader=DataLoader(items, 8, shuffle=True),
        optimizer=optimizer,
        loss_function=nn.MSELoss(),
        train_handlers=[keeper, LrScheduleHandler(schedule, print_lr=False), ValidationHandler(1, evaluator)],
        **common,
    )
    if isinstance(metric, Recorded):
        trainer.add_event_handler(Events.EPOCH_STARTED, lambda engine: setattr(metric, "epoch", engine.state.epoch))
    losses: list[float] = []
    trainer.add_event_handler(
        Events.ITERATION_COMPLETED, lambda engine: losses.append(engine.state.output["loss"].item())
    )
    return trainer, evaluator, losses


def assert_equal(one: object, two: object) -> None:
    """Compare nested containers of tensors bit for bit."""
    if isinstance(one, dict):
        assert isinstance(two, dict) and one.keys() == two.keys()
        for key in one:
            assert_equal(one[key], two[key])
    elif isinstance(one, list | tuple):
        assert isinstance(two, list | tuple) and len(one) == len(two)
        for a, b in zip(one, two, strict=True):
            assert_equal(a, b)
    elif isinstance(one, torch.Tensor):
        assert isinstance(two, torch.Tensor) and torch.equal(one, two)
    else:
        assert one == two


def test_resume_equals_uninterrupted(tmp_path: Path) -> None:
    trainer, evaluator, losses = build(tmp_path / "whole")
    trainer.run()

    def kill(engine) -> None:
        raise Killed

    first, _, losses_first = build(tmp_path / "parts")
    first.add_event_handler(Events.ITERATION_COMPLETED(once=8), kill)  # in the third epoch of three iterations
    with pytest.raises(Killed):
        first.run()
    second, evaluator_second, losses_second = build(tmp_path / "parts", resume=True)
    second.run()

    assert losses_first[:6] + losses_second == losses
    assert len(losses_second) == 6
    name = f"checkpoint_epoch={EPOCHS}.pt"
    assert_equal(load_checkpoint(tmp_path / "whole" / name), load_checkpoint(tmp_path / "parts" / name))
    assert (tmp_path / "whole/model.pt").read_bytes() == (tmp_path / "parts/model.pt").read_bytes()
    assert evaluator.state.best_metric == evaluator_second.state.best_metric
    assert sorted(p.name for p in (tmp_path / "parts").iterdir()) == sorted(
        p.name for p in (tmp_path / "whole").iterdir()
    )


@pytest.mark.parametrize("values, best", [([3.0, 1.0, 2.0, 4.0], 2), ([float("nan"), 5.0, 6.0, 5.0], 2)])
def test_best_is_lowest(tmp_path: Path, values: list[float], best: int) -> None:
    trainer, evaluator, _ = build(tmp_path, metric=Recorded(values), n_saved=EPOCHS)
    trainer.run()
    network = load_checkpoint(tmp_path / f"checkpoint_epoch={best}.pt")["network"]
    model = load_checkpoint(tmp_path / "model.pt")
    assert type(model) is dict and all(type(value) is torch.Tensor for value in model.values())
    assert_equal(model, dict(network))


def test_best_survives_resume(tmp_path: Path) -> None:
    build(tmp_path, metric=Recorded([1.0, 2.0]), epochs=2)[0].run()
    before = (tmp_path / "model.pt").read_bytes()
    trainer, evaluator, _ = build(tmp_path, metric=Recorded([1.0, 2.0, 1.5, 3.0]), resume=True)
    trainer.run()
    assert (tmp_path / "model.pt").read_bytes() == before
    assert evaluator.state.best_metric == 1.0 and evaluator.state.best_metric_epoch == 1


def test_keeps_n_last(tmp_path: Path) -> None:
    build(tmp_path, n_saved=2)[0].run()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "checkpoint_epoch=3.pt",
        "checkpoint_epoch=4.pt",
        "model.pt",
    ]


def test_resume_of_finished_training_does_nothing(tmp_path: Path) -> None:
    build(tmp_path)[0].run()
    trainer, _, losses = build(tmp_path, resume=True)
    trainer.run()
    assert losses == [] and trainer.state.epoch == EPOCHS


def test_resume_without_checkpoint_starts(tmp_path: Path) -> None:
    trainer, _, losses = build(tmp_path / "new", resume=True, epochs=1)
    trainer.run()
    assert len(losses) == 3


@pytest.mark.parametrize("keep", [0.0, 0.01, 0.5, 0.9, 0.999])
def test_truncated_checkpoint(tmp_path: Path, keep: float) -> None:
    build(tmp_path, epochs=1)[0].run()
    path = latest_checkpoint(tmp_path)
    assert path is not None
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content))])
    with pytest.raises(QMRIError, match="truncated") as caught:
        build(tmp_path, resume=True)[0].run()
    assert caught.value.file == str(path)


def test_does_not_mix_two_trainings(tmp_path: Path) -> None:
    build(tmp_path, epochs=1)[0].run()
    with pytest.raises(QMRIError, match="resume"):
        build(tmp_path)[0].run()


def test_refuses_evaluator_that_keeps_the_worst(tmp_path: Path) -> None:
    with pytest.raises(QMRIError, match="metric_cmp_fn"):
        build(tmp_path, compare=lambda current, best: current > best)[0].run()


def test_unknown_key_metric(tmp_path: Path) -> None:
    with pytest.raises(QMRIError, match="key_metric_name"):
        build(tmp_path, key_metric_name="eror")[0].run()


def test_resume_with_another_configuration(tmp_path: Path) -> None:
    build(tmp_path, epochs=2)[0].run()
    with pytest.raises(QMRIError, match="beyond max_epochs"):
        build(tmp_path, resume=True, epochs=1)[0].run()
    with pytest.raises(QMRIError, match="states of"):
        build(tmp_path, resume=True, extra={"discriminator": nn.Linear(1, 1)})[0].run()


def test_a_file_with_code_is_refused(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 3), tmp_path / "module.pt")  # a pickled module could run code
    with pytest.raises(QMRIError, match="tensors written"):
        load_checkpoint(tmp_path / "module.pt")
    with pytest.raises(QMRIError, match="no such file"):
        load_checkpoint(tmp_path / "absent.pt")


KILL = """
import os, random, signal, sys, time
import torch
from shared_transforms.checkpoint import AtomicDiskSaver, load_checkpoint

torch.set_num_threads(1)
folder = sys.argv[1]
path = os.path.join(folder, "model.pt")


def identity():
    return os.stat(path).st_mtime_ns if os.path.exists(path) else None


random.seed(0)
seen = set()
for _ in range(15):
    before = identity()
    child = os.fork()
    if child == 0:
        saver, number = AtomicDiskSaver(folder), random.randrange(1000)
        while True:
            number += 1
            saver({"number": number, "weights": torch.full((100_000,), float(number))}, "model.pt")
    while identity() == before:  # until it has saved once
        time.sleep(0.001)
    time.sleep(random.uniform(0, 0.03))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    content = load_checkpoint(path)
    assert (content["weights"] == content["number"]).all()
    seen.add(content["number"])
print(len(seen), sum(name.endswith(".tmp") for name in os.listdir(folder)))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs fork and SIGKILL")
def test_kill_never_truncates(tmp_path: Path) -> None:
    root = str(Path(__file__).resolve().parents[2])
    command = [sys.executable, "-c", KILL, str(tmp_path)]
    run = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    files, leftovers = map(int, run.stdout.split())
    assert files > 3 and leftovers > 0  # killed in the middle of writing, many times


TWO_PROCESSES = """
import sys
from pathlib import Path
import torch
import torch.distributed as dist
from ignite.engine import Engine, Events
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler
from shared_transforms.checkpoint import AtomicCheckpointSaver, load_checkpoint

folder = Path(sys.argv[1])


def train(save_dir, epochs, resume, rank):
    torch.manual_seed(rank)
    network = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 1))
    parallel = nn.parallel.DistributedDataParallel(network)
    optimizer = torch.optim.Adam(parallel.parameters(), 0.01)
    draw = torch.Generator().manual_seed(0)
    items = torch.randn(16, 3, generator=draw)
    loader = DataLoader(items, 4, sampler=DistributedSampler(items))

    def step(engine, batch):
        optimizer.zero_grad()
        (parallel(batch) - batch.sum(1, keepdim=True)).square().mean().backward()
        optimizer.step()

    trainer = Engine(step)
    AtomicCheckpointSaver(save_dir, parallel, optimizer, resume=resume).attach(trainer)
    trainer.add_event_handler(Events.EPOCH_STARTED, lambda: loader.sampler.set_epoch(trainer.state.epoch))
    trainer.run(loader, max_epochs=epochs)


def work(rank):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    train(folder / "whole", 4, False, rank)
    train(folder / "parts", 2, False, rank)
    train(folder / "parts", 4, True, rank)
    dist.destroy_process_group()


torch.multiprocessing.start_processes(work, (), 2, start_method="fork")
one, two = (load_checkpoint(folder / name / "checkpoint_epoch=4.pt") for name in ("whole", "parts"))
assert len(one["random"]["ranks"]) == 2
assert not torch.equal(one["random"]["ranks"][0]["torch"], one["random"]["ranks"][1]["torch"])
for a, b in zip(one["random"]["ranks"], two["random"]["ranks"]):
    assert torch.equal(a["torch"], b["torch"])
for name, value in one["network"].items():
    assert not name.startswith("module.") and torch.equal(value, two["network"][name])
print("equal")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs fork")
def test_two_processes_resume_exactly(tmp_path: Path) -> None:
    root = str(Path(__file__).resolve().parents[2])
    command = [sys.executable, "-c", TWO_PROCESSES, str(tmp_path)]
    run = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip().endswith("equal")
