"""A bundle's training recorded by a real MLflow server, which may go away: `make test-mlflow`."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ignite.engine import Events

from shared_transforms.errors import QMRIError
from shared_transforms.tracking import outbox

from ..shared_transforms.mlflow_server import MlflowServer, postgres
from .test_deepspio_training import DEEPSPIO

pytestmark = pytest.mark.mlflow


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "sqlite":
        yield from running(MlflowServer(folder, f"sqlite:///{folder}/server.db"))
    else:
        pytest.importorskip("psycopg2", reason="the extra postgres is not installed")
        with postgres() as address:
            yield from running(MlflowServer(folder, address))


def running(server: MlflowServer) -> Iterator[MlflowServer]:
    try:
        server.start()
        yield server
    finally:
        server.kill()


@pytest.fixture
def client(server: MlflowServer, monkeypatch: pytest.MonkeyPatch) -> Any:
    """MLflow's; trainings take the server's address, with a password in it, from the environment."""
    from mlflow import MlflowClient

    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri.replace("//", "//somebody:pa55word@"))
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    monkeypatch.setattr(outbox, "_PAUSE", 0.0)
    return MlflowClient(server.uri)


def run_of(client: Any, output: Path) -> Any:
    return client.get_run((output / "mlflow_run_id.txt").read_text().strip())


def test_a_training_is_recorded_over_http(client: Any, tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/not_here.db"
    for seed in (1, 2):
        DEEPSPIO.train(tmp_path / str(seed), 2, seed=seed, tracking_uri=uri, learning_rate=0.02)
    DEEPSPIO.train(tmp_path / "other", 1, seed=1, tracking_uri=uri)
    output = tmp_path / "1"
    run, run_id = run_of(client, output), run_of(client, output).info.run_id
    assert client.get_experiment(run.info.experiment_id).name == "deepspio" and run.info.status == "FINISHED"
    assert not (tmp_path / "not_here.db").exists() and not (output / "mlruns.db").exists()

    parameters, tags = run.data.params, run.data.tags
    assert (parameters["seed"], parameters["recipe.learning_rate"]) == ("1", "0.02") and "commit" in parameters
    assert tags["mlflow.note.content"].startswith("*Model card") and "ug/mm^3" in tags["mlflow.note.content"]
    assert tags["bundle_version"] == json.loads((DEEPSPIO.root / "configs/metadata.json").read_text())["version"]
    same = client.search_runs([run.info.experiment_id], f"tags.recipe_sha256 = '{tags['recipe_sha256']}'")
    assert {found.info.run_id for found in same} == {run_of(client, tmp_path / seed).info.run_id for seed in "12"}

    history = client.get_metric_history(run_id, "val_concentration_MAE_ug_per_mm3")
    assert [point.step for point in history] == [1, 2]

    kept = Path(client.download_artifacts(run_id, "", str(tmp_path)))
    weights = (output / "checkpoints/model.pt").read_bytes()
    assert (kept / "model.pt").read_bytes() == weights
    assert tags["weights_sha256"] == hashlib.sha256(weights).hexdigest()
    assert (kept / "model_card/README.md").read_bytes() == (DEEPSPIO.root / "docs/README.md").read_bytes()
    assert (kept / "figures/epoch_0001_concentration.png").read_bytes()[1:4] == b"PNG"
    assert json.loads((kept / "executed_config.json").read_text())["seed"] == 1
    recorded = repr(run.to_dictionary()) + (kept / "executed_config.json").read_text()
    assert "pa55word" not in recorded


def test_what_a_server_misses_it_gets_when_it_is_back(
    server: MlflowServer, client: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    workflow = DEEPSPIO.workflow(tmp_path, epochs=4)
    trainer = workflow.parser.get_parsed_content("train#trainer")
    trainer.add_event_handler(Events.EPOCH_STARTED(once=2), server.kill)
    trainer.add_event_handler(Events.EPOCH_STARTED(once=4), server.start)
    with caplog.at_level(logging.WARNING):
        workflow.run()
    run = run_of(client, tmp_path)
    assert run.info.status == "FINISHED" and len(run.data.tags["weights_sha256"]) == 64
    for name in ("train_loss", "val_NMAE", "learning_rate"):
        assert [point.step for point in client.get_metric_history(run.info.run_id, name)] == [1, 2, 3, 4]
    said = [record.getMessage() for record in caplog.records if "MLflow" in record.getMessage()]
    assert len(said) == 2 and "goes on" in said[0] and "again" in said[1] and "pa55word" not in said[0]


def test_a_server_that_stays_away_costs_the_record_alone(
    server: MlflowServer, client: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    workflow = DEEPSPIO.workflow(tmp_path, epochs=2)
    trainer = workflow.parser.get_parsed_content("train#trainer")
    trainer.add_event_handler(Events.EPOCH_STARTED(once=2), server.kill)
    with caplog.at_level(logging.WARNING):
        workflow.run()
    assert (tmp_path / "checkpoints/checkpoint_epoch=2.pt").is_file() and (tmp_path / "checkpoints/model.pt").is_file()
    assert "has not got" in caplog.text

    with pytest.raises(RuntimeError) as caught:  # and where it is away from the beginning, nothing begins
        DEEPSPIO.workflow(tmp_path / "new", epochs=1).run()
    cause: BaseException | None = caught.value
    while cause is not None and not isinstance(cause, QMRIError):
        cause = cause.__cause__
    assert isinstance(cause, QMRIError) and cause.field == "MLFLOW_TRACKING_URI" and "pa55word" not in str(cause)
    assert not (tmp_path / "new/checkpoints").exists()
    server.start()
