"""Training in two processes by the overlay multi_gpu_train.json, against one process with the whole batch."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from .lesion_tables import SIZE, lesion_table
from .trainings import Training, assert_equal_states, metrics_of, state, train_in_two_processes

pytestmark = pytest.mark.xdist_group("two processes")

# In float32: what bfloat16 rounds away differs with the number of samples that go in together. Odd batches: the
# processes have unequal shares.
EXACT = {"train#inferer#enabled": False, "validate#inferer#enabled": False}
# Batch normalisation of few samples magnifies rounding: float32 alone changes DeepSPIO's gradient by a thousandth.
AS_DOUBLE = "$lambda batch: {**batch, 'image': batch['image'].double()}"
DOUBLE = {
    "start_network": "$@network_def.double()",
    "train#dataloader#collate_fn": AS_DOUBLE,
    "validate#dataloader#collate_fn": AS_DOUBLE,
}
STEP = {"batches_per_epoch": 1, "validation_batches": 2, "val_interval": 1}
VOLUMES = {"volumes_per_epoch": 2, "validation_volumes": 1}
QSM = EXACT | STEP | VOLUMES | {
    "batch_size": 3, "volume_size": [40, 40, 40], "patch_size": 32, "width": 2, "anatomy#resolution_mm": 2.0,
}  # fmt: skip
GAN = QSM | {"critic_width": 2, "critic_steps": 1}
DEEPSPIO = EXACT | DOUBLE | STEP | {"batch_size": 3, "size": 96, "crop": 64, "width": 2, "warmup_steps": 1}
STNET = EXACT | STEP | VOLUMES | {
    "batch_size": 9, "size": [40, 48, 3], "voxel_size_mm": [5.0, 5.0, 6.0], "patch_size": [12, 12, 1],
    "channels": [2, 2, 2, 4], "warmup_steps": 1, "dropout": 0.0,
}  # fmt: skip
RIM = STEP | {"batch_size": 3, "patch_size_px": [24, 24], "warmup_steps": 1}
LESIONS = DOUBLE | {
    "train#inferer#enabled": False, "folds": 2, "size": list(SIZE), "width": 2, "batch_size": 64, "val_interval": 1,
    "network_def#dropout": [0.0, 0.0],
}  # fmt: skip

TRAININGS = {
    "deepspio": (Training("deepspio", DEEPSPIO), "train.json"),
    "qsmgan": (Training("qsmgan", QSM | {"warmup_steps": 1}), "train.json"),
    "qsmgan adversarial": (Training("qsmgan", GAN), "train_gan.json"),
    "qsmrim_net": (Training("qsmrim_net", LESIONS), "train.json"),
    "rim_relaxometry": (Training("rim_relaxometry", RIM), "train.json"),
    "stnet_perfusion": (Training("stnet_perfusion", STNET), "train.json"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every training for one step, in one process (``one``) and in two (``two``); in two also one that is resumed."""
    folder = tmp_path_factory.mktemp("processes")
    record = {"tracking_uri": f"sqlite:///{folder}/mlruns.db"}  # one for all: to make it takes longer than to train
    lesion_table().select(torch.arange(43)).save(folder / "table.pt")
    started = []
    for name, (training, config) in TRAININGS.items():
        own: dict[str, Any] = dict(record)
        if training.bundle == "qsmrim_net":
            own["cohort_dir"] = str(folder / "table.pt")
        if config == "train_gan.json":
            own["start_weights"] = str(folder / "one" / "qsmgan" / "checkpoints" / "model.pt")
        training.train(folder / "one" / name, 1, (config,), **own)
        started.append(training.arguments(folder / "two" / name, (config, "multi_gpu_train.json"), epochs=1, **own))
    training, two_steps = TRAININGS["deepspio"][0], record | {"lr_scheduler#t_total": 2}
    files = ("train.json", "multi_gpu_train.json")
    started += [
        training.arguments(folder / "two" / "whole", files, epochs=2, **two_steps),
        training.arguments(folder / "two" / "parts", files, epochs=1, **two_steps),
        training.arguments(folder / "two" / "parts", files, epochs=2, resume=True, **two_steps),
    ]
    train_in_two_processes(folder / "trainings.json", started)
    return folder


def gradients(moments: dict[int, dict[str, Tensor]], beta: float) -> list[Tensor]:
    """Of the first step, from the moments that Adam had after it."""
    return [state["exp_avg"].double() / (1.0 - beta) for _, state in sorted(moments.items())]


def assert_close(found: list[Tensor], expected: list[Tensor]) -> None:
    """To 1e-5: all together, and each tensor, or that share of the whole where a tensor is next to nothing."""
    assert len(found) == len(expected)
    norm = torch.stack([value.norm() for value in expected]).norm()
    errors = torch.stack([(a - b).norm() for a, b in zip(found, expected, strict=True)])
    assert norm > 0 and errors.norm() < 1e-5 * norm
    for error, value in zip(errors, expected, strict=True):
        assert error < 1e-5 * torch.maximum(value.norm(), 0.1 * norm)


@pytest.mark.parametrize("name", TRAININGS)
def test_two_processes_have_the_gradient_of_one_with_the_whole_batch(name: str, folder: Path) -> None:
    one, two = (state(folder / run / name, 1) for run in ("one", "two"))
    for key in ("optimizer", "critic_optimizer"):
        if key in one:
            beta = one[key]["param_groups"][0]["betas"][0]
            assert_close(*(gradients(found[key]["state"], beta) for found in (two, one)))
    for key, value in one["network"].items():  # statistics of batch normalisation
        if "running" in key:
            assert torch.allclose(value, two["network"][key], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", TRAININGS)
def test_errors_and_losses_are_those_of_all_samples(name: str, folder: Path) -> None:
    one, two = (metrics_of(folder / run / name, folder / "mlruns.db").metrics for run in ("one", "two"))
    compared = [key for key in one if key.startswith("val_") or key == "train_loss"]
    assert len(compared) > 1
    assert {key: two[key] for key in compared} == pytest.approx({key: one[key] for key in compared}, rel=1e-3)


def test_each_training_of_two_processes_is_one_run(folder: Path) -> None:
    from mlflow import MlflowClient

    record = MlflowClient(f"sqlite:///{folder}/mlruns.db")
    runs = record.search_runs([experiment.experiment_id for experiment in record.search_experiments()])
    assert len(runs) == 2 * len(TRAININGS) + 2  # whole; parts, resumed
    assert {run.info.status for run in runs} == {"FINISHED"}


def test_resumed_in_two_processes_equals_uninterrupted(folder: Path) -> None:
    whole, parts = (state(folder / "two" / run, 2) for run in ("whole", "parts"))
    assert_equal_states(whole, parts)
    assert len(whole["random"]["ranks"]) == 2


@pytest.mark.nodes
def test_two_nodes_have_the_gradient_of_one_process(tmp_path: Path) -> None:
    """Two agents of torchrun, each with a process, as on two machines; by the documented command."""
    training = TRAININGS["rim_relaxometry"][0]
    training.train(tmp_path / "one", 1)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = training.arguments(tmp_path / "two", ("train.json", "multi_gpu_train.json"), epochs=1)
    options = [text for key, value in arguments.items() for text in (f"--{key}", str(value))]
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc_per_node", "1"]
    command += ["--master_addr", "127.0.0.1", "--master_port", str(port)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    nodes = [
        subprocess.Popen(
            [*command, "--node_rank", str(rank), "-m", "monai.bundle", "run", *options], cwd="/", env=environment
        )
        for rank in range(2)
    ]
    assert [node.wait(timeout=900) for node in nodes] == [0, 0]
    one, two = (state(tmp_path / run, 1)["optimizer"]["state"] for run in ("one", "two"))
    assert_close(gradients(two, 0.9), gradients(one, 0.9))
