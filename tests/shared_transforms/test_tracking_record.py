"""What is recorded of a run: the recipe's hash, the model card, units; to a server that may be away; nobody else."""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from shared_transforms.tracking import config as tracking_config
from shared_transforms.tracking import outbox as tracking_outbox
from shared_transforms.tracking import recipe_sha256
from shared_transforms.tracking.card import MODEL_CARD, description
from shared_transforms.tracking.config import without_password
from shared_transforms.tracking.outbox import Outbox

REPOSITORY = Path(__file__).resolve().parents[2]
TRAININGS = sorted((REPOSITORY / "bundles").glob("*/configs/train*.json"))
RECIPE: dict[str, Any] = {
    "imports": ["$import torch"],
    "bundle_root": ".",
    "seed": 0,
    "learning_rate": 0.1,
    "anatomy": {"source": "mni152", "folder": None},
    "network_def": {"_target_": "maps.network.Net", "_desc_": "a net", "width": 4},
    "train": {
        "simulator": {"_target_": "maps.simulator.Simulator", "noise": "$shared_transforms.noise.draw(0.1)"},
        "handlers": [{"_target_": "LrScheduleHandler", "lr": "@rate"}, {"_target_": "StatsHandler"}],
    },
}
UNITS = r"_(percent|s|ppm|ppb|ml_per_100g|ml_per_100g_min|ug_per_mm3)$"
# Quantities without a unit. A standardized error is in standard deviations.
UNITLESS = {
    "NMAE", "XSIM", "Dice_Tmax_over_6_s", "average_precision", "pROC_AUC", "relaxation_time_standardized_RMSE",
}  # fmt: skip


def changed(path: str, value: Any) -> dict[str, Any]:
    """The recipe with another value at a#b#c."""
    recipe = json.loads(json.dumps(RECIPE))
    place = recipe
    *above, last = path.split("#")
    for name in above:
        place = place[name]
    place[last] = value
    return dict(recipe)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("seed", 1), ("output_dir", "/elsewhere"), ("bundle_root", "/elsewhere"), ("device", "cuda"), ("fold", 3),
        ("resume", True), ("tracking_uri", "http://server"), ("_desc_", "words"), ("network_def#_desc_", "words"),
        ("imports", []), ("run_name", "of --tracking mlflow"),
        ("train#handlers", [RECIPE["train"]["handlers"][0], {"_target_": "MLFlowHandler"}]),
    ],
)  # fmt: skip
def test_what_decides_nothing_is_not_in_the_hash(path: str, value: Any) -> None:
    assert recipe_sha256(changed(path, value)) == recipe_sha256(RECIPE)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("learning_rate", 0.2), ("anatomy#folder", "mine"), ("network_def#width", 5), ("new", 1),
        ("network_def#_target_", "maps.network.Other"), ("train#simulator#noise", "$0"), ("train#handlers", []),
        ("cohort_dir", "mine"),
    ],
)  # fmt: skip
def test_what_decides_is_in_the_hash(path: str, value: Any) -> None:
    assert recipe_sha256(changed(path, value)) != recipe_sha256(RECIPE)


def test_a_packed_bundle_has_the_hash_of_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = recipe_sha256(RECIPE)
    text = json.dumps(RECIPE).replace('"maps.', '"maps_v0_1_0.').replace("$shared_", "$maps_v0_1_0.shared_")
    assert recipe_sha256(json.loads(text)) != whole
    monkeypatch.setattr(tracking_config, "_PACKAGE", "maps_v0_1_0.")
    assert recipe_sha256(json.loads(text)) == whole


@pytest.mark.parametrize("path", TRAININGS, ids=lambda path: f"{path.parts[-3]}-{path.name}")
def test_trainings_are_recorded_alike(path: Path) -> None:
    content = json.loads(path.read_text())
    (tracking,) = [item for item in content["train"]["handlers"] if item["_target_"].endswith("MLflowTracking")]
    assert tracking == {
        "_target_": "shared_transforms.tracking.MLflowTracking",
        "bundle_root": "@bundle_root",
        "output_dir": "@output_dir",
        "evaluator": "@validate#evaluator",
        "seed": "@seed",
        "weights": "$@output_dir + '/checkpoints/model.pt'",
        "tracking_uri": "@tracking_uri",
        "experiment_name": path.parts[-3],
        "resume": "$str(@resume).lower() == 'true'",
    }
    metrics = {**content["validate"]["key_metric"], **content["validate"]["additional_metrics"]}
    assert [name for name in metrics if not re.search(UNITS, name) and name not in UNITLESS] == []


@pytest.mark.parametrize("card", sorted((REPOSITORY / "bundles").glob(f"*/{MODEL_CARD}")), ids=lambda p: p.parts[-3])
def test_the_description_is_what_fits_of_the_model_card(card: Path) -> None:
    for longest in (8000, 5000):
        text = description(card.read_text("utf-8"), longest)
        assert longest / 4 < len(text) <= longest
        assert re.search(r"^# \w+ \d", text, re.MULTILINE) and text.count("```") % 2 == 0
        assert not re.search(r"!\[|\]\((?!https?:)|<!--", text)
        assert "For research" in text and text.endswith("`model_card/README.md`.*\n")


def test_a_short_card_is_shown_whole() -> None:
    text = description("<!-- made -->\n# a\n\nsee [b](b.md) and [c](https://c.org)\n\n![d](d.png)\n\n## e\n")
    assert text.endswith("# a\n\nsee b and [c](https://c.org)\n\n## e\n")
    cut = description("x " * 99 + "\n\n" + "y " * 99, 400)
    assert cut.count("x ") == 99 and "y y" not in cut


def test_passwords_are_taken_out_of_addresses() -> None:
    assert without_password("to http://me:p@ss@host:5000/x, sqlite:////a@b") == "to http://host:5000/x, sqlite:////a@b"


class Client:
    """Of a server that may be away."""

    def __init__(self) -> None:
        self.away = False
        self.calls = 0
        self.got: list[Any] = []

    def _take(self, *items: Any) -> None:
        self.calls += 1
        if self.away:
            raise ConnectionError("http://me:pa55word@host does not answer\nat all")
        self.got += items

    def log_batch(self, run_id: str, metrics: Any) -> None:
        self._take(*[(metric.key, metric.value, metric.step) for metric in metrics])

    def set_tag(self, run_id: str, name: str, value: str) -> None:
        self._take((name, value))

    def log_artifact(self, run_id: str, path: str, folder: str | None) -> None:
        self._take((Path(path).name, folder))


def test_what_was_not_taken_is_sent_later_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    client, now, picture = Client(), [1000.0], tmp_path / "a.png"
    monkeypatch.setattr(tracking_outbox.time, "monotonic", lambda: now[0])
    picture.write_text("x")
    box = Outbox(client, "run")  # type: ignore[arg-type]
    box.add({"loss": 3.0}, 1)
    client.away = True
    with caplog.at_level(logging.WARNING):
        box.add({"loss": 2.0}, 2, {"tag": "x"}, {picture: "figures", tmp_path / "gone.png": None})
        box.add({"loss": 1.0}, 3)
        assert client.calls == 2 and len(box) == 5 and box.away  # it was not asked again
        client.away = False
        now[0] += 31
        box.add({"loss": 0.5}, 4)
    assert client.got == [("loss", 3.0 - n, 1 + n) for n in range(3)] + [
        ("loss", 0.5, 4),
        ("tag", "x"),
        ("a.png", "figures"),
    ]
    assert len(box) == 0 and not box.away
    first, second = [record.getMessage() for record in caplog.records]
    assert "does not answer" in first and "at all" not in first and "pa55word" not in first and "again" in second


def test_one_bad_file_blocks_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    files = {name: tmp_path / name for name in ("unreadable", "refused", "good", "last")}
    for path in files.values():
        path.write_text("x")
    opened, client = Path.open, Client()

    def open_(path: Path, *args: Any, **kwargs: Any) -> Any:
        if path.name == "unreadable":  # root reads what has no permissions, too
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *args, **kwargs)

    def log_artifact(run_id: str, path: str, folder: str | None) -> None:
        if path.endswith("refused"):
            raise ValueError("too large")
        client._take((Path(path).name, folder))

    monkeypatch.setattr(Path, "open", open_)
    monkeypatch.setattr(client, "log_artifact", log_artifact)
    box = Outbox(client, "run")  # type: ignore[arg-type]
    with caplog.at_level(logging.WARNING):
        box.add(files={path: None for path in files.values()})
    assert client.got == [("good", None), ("last", None)]
    assert len(box) == 1 and box.away  # the refused one is tried again
    first, second = [record.getMessage() for record in caplog.records]
    assert "unreadable is left out" in first and "Permission denied" in first and "too large" in second


def test_a_server_that_takes_its_time_to_refuse_is_asked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client, now = Client(), [1000.0]
    monkeypatch.setattr(tracking_outbox.time, "monotonic", lambda: now[0])

    def log_artifact(*_: object) -> None:
        now[0] += 100
        client._take()

    monkeypatch.setattr(client, "log_artifact", log_artifact)
    client.away = True
    files: dict[Path, str | None] = {tmp_path / name: None for name in "abc"}
    for path in files:
        path.write_text("x")
    box = Outbox(client, "run")  # type: ignore[arg-type]
    box.add(files=files)
    assert client.calls == 1 and len(box) == 3


TELEMETRY = """
import os, sys, time
asked = []
def watch(event, arguments):
    if event == "socket.getaddrinfo":
        asked.append(str(arguments[0]))
        raise OSError("no network")
sys.addaudithook(watch)
import monai.handlers  # as MONAI's command does, before anything of ours: mlflow comes with it
from ignite.engine import Engine
from shared_transforms.tracking import MLflowTracking
def train(folder):
    engine = Engine(lambda engine, batch: {"loss": 1.0})
    MLflowTracking(folder, config={}).attach(engine)
    engine.run([0])
train(sys.argv[1] + "/quiet")
time.sleep(1)
print("quiet", asked)
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "false"
train(sys.argv[1] + "/user")
end = time.monotonic() + 20
while not asked and time.monotonic() < end:
    time.sleep(0.1)
print("user", asked)
"""


def test_a_training_tells_nobody_that_it_runs(tmp_path: Path) -> None:
    """Unless the user wants it: MLflow then asks its maker's server, which shows that this test would see it."""
    kept = {name: os.environ[name] for name in ("PATH", "SYSTEMROOT") if name in os.environ}
    environment = kept | {"HOME": str(tmp_path), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", TELEMETRY, str(tmp_path)],
        **{"cwd": tmp_path, "env": environment, "capture_output": True, "text": True, "timeout": 300},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    quiet, user = done.stdout.splitlines()[-2:]
    assert quiet == "quiet []" and "telemetry" in user
