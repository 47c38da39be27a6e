"""A training run by monai.bundle with every handler, and what MLflow and the folder hold afterwards."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib.image
import pytest
import torch
from ignite.engine import Engine, Events
from monai.bundle import ConfigWorkflow

from shared_transforms.tracking import FigureHandler, MLflowTracking, Progress, executing_config
from shared_transforms.tracking.config import flatten, user_values

PARTS = """
import torch

def items():
    draw = torch.Generator().manual_seed(0)
    found = []
    for _ in range(2):
        truth = 1 + torch.rand(2, 12, 10, generator=draw)
        mask = torch.ones(1, 12, 10, dtype=torch.bool)
        found.append({"image": truth + 0.1, "label": {"parameters": truth, "mask": mask}})
    return found

def prepare(batch, device, non_blocking, **kwargs):
    return batch["image"], batch["label"]

def loss(prediction, label):
    return (prediction[:, :2] - label["parameters"]).square().mean()
"""
ENGINE = {
    "device": "$torch.device('cpu')",
    "network": "@network",
    "prepare_batch": "$tiny_parts.prepare",
    "decollate": False,
}
LOADER = {"_target_": "torch.utils.data.DataLoader", "dataset": "$tiny_parts.items()", "batch_size": 1}
CONFIG: dict[str, Any] = {
    "imports": ["$import torch", "$import tiny_parts"],
    "bundle_root": ".",
    "output_dir": "$@bundle_root + '/eval'",
    "epochs": 2,
    "learning_rate": 0.01,
    "seed": 11,
    "network": {"_target_": "torch.nn.Conv2d", "in_channels": 2, "out_channels": 4, "kernel_size": 1},
    "optimizer": {"_target_": "torch.optim.Adam", "params": "$@network.parameters()", "lr": "@learning_rate"},
    "tracking_handler": {
        "_target_": "shared_transforms.tracking.MLflowTracking",
        "output_dir": "@output_dir",
        "evaluator": "@validate#evaluator",
        "seed": "@seed",
        "weights": "$@output_dir + '/model.pt'",
    },
    "train": {
        "handlers": [
            "@tracking_handler",
            {"_target_": "ValidationHandler", "validator": "@validate#evaluator", "interval": 1},
            {
                "_target_": "shared_transforms.checkpoint.AtomicCheckpointSaver",
                "save_dir": "@output_dir",
                "network": "@network",
                "evaluator": "@validate#evaluator",
            },
            {"_target_": "shared_transforms.tracking.Progress", "description": "training"},
        ],
        "trainer": {
            "_target_": "SupervisedTrainer",
            "max_epochs": "@epochs",
            "train_data_loader": LOADER,
            "optimizer": "@optimizer",
            "loss_function": "$tiny_parts.loss",
            "train_handlers": "@train#handlers",
            **ENGINE,
        },
    },
    "validate": {
        "handlers": [
            {
                "_target_": "shared_transforms.tracking.FigureHandler",
                "output_dir": "@output_dir",
                "parameter_names": ["A", "T1"],
                "units": ["arbitrary", "s"],
                "display_ranges": {"T1": [0.0, 2.0]},
            }
        ],
        "evaluator": {
            "_target_": "SupervisedEvaluator",
            "val_data_loader": LOADER,
            "key_val_metric": {
                "T1_RMSE_percent": {"_target_": "shared_transforms.metrics.RelativeRMSE", "parameter_index": 1}
            },
            "additional_metrics": {"T1_RMSE_s": {"_target_": "shared_transforms.metrics.RMSE", "parameter_index": 1}},
            "metric_cmp_fn": "$lambda current, best: current < best",
            "val_handlers": "@validate#handlers",
            **ENGINE,
        },
    },
    "initialize": ["$torch.manual_seed(@seed)"],
    "run": ["$@train#trainer.run()"],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Output of a training with MONAI's own tracking beside ours, and one overridden value."""
    root = tmp_path_factory.mktemp("bundle")
    (root / "tiny_parts.py").write_text(PARTS)
    (root / "configs").mkdir()
    (root / "configs/metadata.json").write_text(json.dumps({"version": "0.0.1"}))
    (root / "configs/train.json").write_text(json.dumps(CONFIG))
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.syspath_prepend(str(root))
        workflow = ConfigWorkflow(
            config_file=str(root / "configs/train.json"),
            logging_file=False,
            tracking="mlflow",
            bundle_root=str(root),
            learning_rate=0.02,
        )
        workflow.initialize()
        assert not (root / "eval/mlruns.db").exists()  # nothing before the start
        workflow.run()
        yield root / "eval"


@pytest.fixture(scope="module")
def client(folder: Path) -> Any:
    import mlflow

    return mlflow.MlflowClient(f"sqlite:///{folder}/mlruns.db")


@pytest.fixture(scope="module")
def run(client: Any) -> Any:
    (found,) = client.search_runs([client.get_experiment_by_name("qmri-bundles").experiment_id])
    return found


def names(client: Any, run_id: str, folder: str | None = None) -> set[str]:
    return {item.path for item in client.list_artifacts(run_id, folder)}


def test_run_says_what_was_run(run: Any) -> None:
    parameters = run.data.params
    assert (
        parameters["seed"] == "11" and parameters["recipe.learning_rate"] == "0.02" and parameters["max_epochs"] == "2"
    )
    assert parameters["versions.torch"] == torch.__version__ and parameters["hardware.cpu"] and "commit" in parameters
    assert run.info.status == "FINISHED" and len(run.data.tags["weights_sha256"]) == 64


def test_metrics_are_those_of_the_engines(client: Any, run: Any, folder: Path) -> None:
    found = run.data.metrics
    assert {"train_loss", "learning_rate", "epoch_seconds", "val_T1_RMSE_percent", "val_T1_RMSE_s"} <= set(found)
    history = client.get_metric_history(run.info.run_id, "val_T1_RMSE_percent")
    assert [point.step for point in history] == [1, 2]
    assert found["best_T1_RMSE_percent"] == min(point.value for point in history)
    assert found["learning_rate"] == 0.02


def test_files_are_kept(client: Any, run: Any, folder: Path) -> None:
    assert {"executed_config.json", "model.pt"} <= names(client, run.info.run_id)
    config = json.loads((folder / "executed_config.json").read_text())
    assert config["learning_rate"] == 0.02 and config["bundle_root"] == str(folder.parent)
    assert config["train"]["trainer"]["_target_"] == "SupervisedTrainer"


def test_monai_tracking_runs_beside(client: Any) -> None:
    (other,) = client.search_runs([client.get_experiment_by_name("monai_experiment").experiment_id])
    assert other.info.status == "FINISHED" and "train_loss" in other.data.metrics


def test_figures_show_maps_in_units(client: Any, run: Any, folder: Path) -> None:
    found = sorted(path.name for path in (folder / "figures").iterdir())
    assert names(client, run.info.run_id, "figures") == {f"figures/{name}" for name in found}
    assert found == [f"epoch_{epoch:04d}_{name}.png" for epoch in (1, 2) for name in ("A", "T1")]
    image = matplotlib.image.imread(folder / "figures" / found[0])
    assert image.std() > 0.05 and image.shape[1] > 400


def make_engine(handlers: list[Any], epochs: int = 1, fail: bool = False) -> Engine:
    """A bare trainer with a loss."""

    def step(engine: Engine, batch: Any) -> dict[str, Any]:
        if fail and engine.state.iteration == 2:
            raise ZeroDivisionError
        return {"loss": torch.tensor(float(engine.state.iteration)), "d_loss": 3.0, "pred": torch.ones(2)}

    engine = Engine(step)
    for handler in handlers:
        handler.attach(engine)
    return engine


def test_failed_run_is_marked_and_resumed(folder: Path, client: Any, tmp_path: Path) -> None:
    common = {
        "tracking_uri": f"sqlite:///{folder}/mlruns.db",
        "experiment_name": "short",
        "recipe": {"a": {"b [%]": 1}},
    }
    tracking = MLflowTracking(tmp_path, config={"a": 1}, seed=1, iteration_interval=1, **common)
    with pytest.raises(ZeroDivisionError):
        make_engine([tracking], fail=True).run([0, 1])
    experiment = client.get_experiment_by_name("short").experiment_id
    (failed,) = client.search_runs([experiment])
    assert failed.info.status == "FAILED" and failed.data.params["recipe.a.b _percent_"] == "1"
    assert failed.data.metrics["iteration_loss"] == 1.0 and tracking.run_id is None

    again = MLflowTracking(tmp_path, config={"a": 1}, seed=2, resume=True, **common)
    extra = tmp_path / "extra.txt"
    extra.write_text("x")
    engine = make_engine([again])
    engine.add_event_handler(Events.EPOCH_COMPLETED, lambda: again.log_artifact(extra, "more"))
    engine.run([0, 1])
    (resumed,) = client.search_runs([experiment])
    assert resumed.info.run_id == failed.info.run_id and resumed.info.status == "FINISHED"
    assert (
        resumed.data.params["seed"] == "1"
        and resumed.data.metrics["train_loss"] == 1.5
        and resumed.data.metrics["train_d_loss"] == 3.0
    )
    assert names(client, resumed.info.run_id, "more") == {"more/extra.txt"}

    elsewhere = MLflowTracking(tmp_path / "new", config={}, resume=True, **common)
    make_engine([elsewhere]).run([0, 1])
    assert len(client.search_runs([experiment])) == 2


def test_a_run_of_many_names_its_parent(folder: Path, client: Any, tmp_path: Path) -> None:
    server = f"sqlite:///{folder}/mlruns.db"
    common: dict[str, Any] = {"tracking_uri": server, "experiment_name": "family", "config": {}}
    make_engine([MLflowTracking(tmp_path / "parent", **common)]).run([0])
    parent = (tmp_path / "parent/mlflow_run_id.txt").read_text().strip()
    make_engine([MLflowTracking(tmp_path / "child", parent_run=parent, **common)]).run([0])
    experiment = client.get_experiment_by_name("family").experiment_id
    (child,) = client.search_runs([experiment], f"tags.mlflow.parentRunId = '{parent}'")
    assert child.info.run_id == (tmp_path / "child/mlflow_run_id.txt").read_text().strip()


def test_environment_has_the_last_word(
    folder: Path, client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlruns.db")
    make_engine([MLflowTracking(tmp_path, config={}, experiment_name="environment")]).run([0])
    assert client.get_experiment_by_name("environment") is not None and not (tmp_path / "mlruns.db").exists()


def test_log_artifact_without_a_run_does_nothing(tmp_path: Path) -> None:
    MLflowTracking(tmp_path).log_artifact(tmp_path / "nothing")
    assert list(tmp_path.iterdir()) == []


def test_config_helpers() -> None:
    assert executing_config() is None
    assert flatten({"a": {"b": 1, "c": {"d": 2}}, "e": 3}) == {"a.b": 1, "a.c.d": 2, "e": 3}
    config = {
        "imports": ["$import torch"],
        "_desc_": "x",
        "times_s": [0.1, 0.2],
        "epochs": 3,
        "network": {},
        "run": ["$1"],
        "output_dir": "/out",
        "device": "$torch.device(0)",
        "empty": [],
    }
    assert user_values(config) == {"times_s": [0.1, 0.2], "epochs": 3}


def test_figures_at_an_interval(tmp_path: Path) -> None:
    truth = torch.rand(1, 1, 6, 6)
    output = {"pred": torch.rand(1, 2, 6, 6), "label": {"parameters": truth}}
    engine = Engine(lambda engine, batch: output)
    FigureHandler(tmp_path, ["T2"], ["s"], interval=2).attach(engine)
    engine.run([0, 1], max_epochs=3)
    found = sorted(path.name for path in (tmp_path / "figures").iterdir())
    assert found == ["epoch_0001_T2.png", "epoch_0003_T2.png"]
    with pytest.raises(ValueError, match="units"):
        FigureHandler(tmp_path, ["T1", "T2"], ["s"])


class Terminal(io.StringIO):
    """A text stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("stream, shown", [(Terminal(), True), (io.StringIO(), False)])
def test_progress_only_where_somebody_looks(stream: io.StringIO, shown: bool) -> None:
    make_engine([Progress("training", stream=stream)]).run([0, 1, 2])
    assert ("training" in stream.getvalue() and "loss" in stream.getvalue()) == shown
    assert shown or stream.getvalue() == ""
