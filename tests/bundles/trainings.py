"""Trainings through the configs, as `python -m monai.bundle run` does them: what the tests of all bundles share."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from bundle_files import REPOSITORY
from monai.bundle import ConfigWorkflow
from torch import Tensor

from shared_transforms.errors import QMRIError


class Killed(Exception):
    """Stands for a kill."""


@dataclass(frozen=True)
class Training:
    """A bundle's training at sizes that take a second.

    Attributes:
        bundle: its name.
        tiny: overrides of its train.json.
        two_epochs: overrides that give one epoch the learning rates of two; default those of a schedule in steps.
    """

    bundle: str
    tiny: Mapping[str, Any]
    two_epochs: Mapping[str, Any] | None = None

    @property
    def root(self) -> Path:
        return REPOSITORY / "bundles" / self.bundle

    def arguments(self, output: Path, files: tuple[str, ...] = ("train.json",), **overrides: Any) -> dict[str, Any]:
        """Of ConfigWorkflow."""
        own = {"config_file": [str(self.root / "configs" / name) for name in files]}
        return own | {"bundle_root": str(self.root), "output_dir": str(output)} | dict(self.tiny) | overrides

    def workflow(self, output: Path, files: tuple[str, ...] = ("train.json",), **overrides: Any) -> ConfigWorkflow:
        run = ConfigWorkflow(workflow_type="train", logging_file=False, **self.arguments(output, files, **overrides))
        run.initialize()
        return run

    def train(self, output: Path, epochs: int, files: tuple[str, ...] = ("train.json",), **overrides: Any) -> Any:
        run = self.workflow(output, files, epochs=epochs, **overrides)
        run.run()
        run.finalize()
        return run

    @property
    def schedule(self) -> dict[str, Any]:
        """That of two epochs, also where one is run."""
        if self.two_epochs is not None:
            return dict(self.two_epochs)
        return {"lr_scheduler#t_total": 2 * self.tiny["batches_per_epoch"]}

    def killed_and_resumed(self, output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Two epochs; the second is killed while its checkpoint is saved, and done again."""
        self.train(output, 1, **self.schedule)
        with monkeypatch.context() as patched:
            rename = os.replace

            def killed(source: Any, target: Any) -> None:
                if "checkpoint_epoch=2" in str(target):
                    raise Killed
                rename(source, target)

            patched.setattr(os, "replace", killed)
            with pytest.raises(Exception) as caught:
                self.train(output, 2, resume=True, **self.schedule)
            assert "Killed" in repr(caught.getrepr(style="native"))
        assert not (output / "checkpoints/checkpoint_epoch=2.pt").exists()
        self.train(output, 2, resume=True, **self.schedule)

    def refusal_of(self, weights: Path, output: Path, **overrides: Any) -> QMRIError:
        """The error of an evaluation of weights by a network that they are not for."""
        with pytest.raises(RuntimeError) as caught:
            self.workflow(output, ("train.json", "evaluate.json"), weights=str(weights), **overrides).run()
        cause: BaseException | None = caught.value
        while cause is not None and not isinstance(cause, QMRIError):
            cause = cause.__cause__
        assert isinstance(cause, QMRIError)
        return cause


def train_in_two_processes(file: Path, trainings: list[dict[str, Any]]) -> None:
    """Trainings one after the other by torchrun; ``file`` is where their arguments are written for it."""
    file.write_text(json.dumps(trainings))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += [str(Path(__file__).with_name("run_trainings.py")), str(file)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(command, cwd="/", env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]


def state(output: Path, epoch: int) -> dict[str, Any]:
    found = torch.load(output / f"checkpoints/checkpoint_epoch={epoch}.pt", weights_only=True)
    assert isinstance(found, dict)
    return found


def differing(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> list[str]:
    assert first.keys() == second.keys()
    return [name for name, value in first.items() if not torch.equal(value, second[name])]


def assert_equal_states(first: Mapping[str, Any], second: Mapping[str, Any]) -> None:
    """Weights and moments of two checkpoints, bit for bit."""
    assert differing(first["network"], second["network"]) == []
    for key, moments in first["optimizer"]["state"].items():
        assert differing(moments, second["optimizer"]["state"][key]) == []


def metrics_of(output: Path, database: Path | None = None) -> Any:
    """The data that MLflow recorded, in the run's own file or another."""
    from mlflow import MlflowClient

    record = MlflowClient(f"sqlite:///{database or output / 'mlruns.db'}")
    return record.get_run((output / "mlflow_run_id.txt").read_text().strip()).data
