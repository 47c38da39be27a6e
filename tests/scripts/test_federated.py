"""Jobs of federated training; behind a marker, NVFlare's simulator with two sites."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import federated
import pytest
import torch
from bundle_files import REPOSITORY, BundleError, bundle_names
from torch import Tensor

SITES: dict[str, dict[str, Any]] = {"site-1": {"seed": 1}, "site-2": {"seed": 2, "learning_rate": 0.0}}
TINY = {
    "batches_per_epoch": 2, "batch_size": 2, "patch_size_px": [24, 24], "validation_batches": 1, "val_interval": 1,
    "warmup_steps": 1,
}  # fmt: skip
pytestmark = pytest.mark.xdist_group("packed")


def job_of(bundle: Path, job: Path, values: dict[str, Any] | None = None, **options: Any) -> None:
    plan = {"sites": SITES, "rounds": 2, "local_epochs": 1, "overlays": [], "values": values or {}} | options
    federated.make_job(bundle, job, **plan)


@pytest.mark.parametrize("bundle", bundle_names())
def test_a_job_of_every_bundle(bundle: str, packed: Callable[[str], Path], tmp_path: Path) -> None:
    """It starts from weights that fit the network of its training, in full precision; no site gets a copy beside."""
    job_of(packed(bundle), tmp_path / "job")
    custom = tmp_path / "job" / "app" / "custom"
    weights = torch.load(custom / "weights.pt", weights_only=True)
    assert all(value.dtype == torch.float32 for value in weights.values() if value.is_floating_point())
    federation = json.loads((custom / "federation.json").read_text())
    assert federation["sites"] == SITES and federation["values"]["epochs"] == 2
    assert not list((custom / bundle).rglob("*.pt"))
    assert not list(tmp_path.glob(".job-*"))
    client = json.loads((tmp_path / "job/app/config/config_fed_client.json").read_text())
    assert (custom / client["executors"][0]["executor"]["args"]["task_script_path"]).is_file()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"values": {"learning_rat": 1.0}}, "learning_rate"),
        ({"sites": {"site-1": {"sed": 1}, "site-2": {}}}, "seed"),
        ({"sites": {"site-1": {}}}, "two --site"),
        ({"overlays": ["t3.json"]}, "t3.json"),
        ({"weights": REPOSITORY / "bundles/rim_relaxometry/models/model_t2.pt"}, "no weights of this training"),
        ({"weights": Path("absent.pt")}, "absent.pt"),
    ],
)
def test_what_cannot_be_trained_is_refused(
    options: dict[str, Any], message: str, packed: Callable[[str], Path], tmp_path: Path
) -> None:
    with pytest.raises(BundleError, match=message):
        job_of(packed("rim_relaxometry"), tmp_path / "job", **options)
    assert not list(tmp_path.iterdir())


def test_a_job_is_not_written_over_another(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="exists"):
        job_of(tmp_path / "any.zip", tmp_path)


@pytest.mark.parametrize("zipped", [False, True])
def test_the_command_wants_a_packed_bundle(zipped: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One of the repository would not run at a site."""
    bundle, jobs = REPOSITORY / "bundles/rim_relaxometry", tmp_path / "jobs"
    if zipped:
        shutil.copytree(bundle / "configs", tmp_path / "rim_relaxometry/configs")
        bundle = Path(shutil.make_archive(str(tmp_path / "own"), "zip", tmp_path, "rim_relaxometry"))
    assert federated.main([str(bundle), str(jobs / "job"), "--site", "site-1", "--site", "site-2"]) == 1
    assert "make dist" in capsys.readouterr().err
    assert not list(jobs.iterdir())


def test_a_site_that_is_named_twice_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The values given first would be forgotten."""
    sites = ["--site", "site-1", "seed=1", "--site", "site-2", "--site", "site-1", "batch_size=2"]
    assert federated.main([str(tmp_path / "any.zip"), str(tmp_path / "job"), *sites]) == 1
    assert "--site site-1: stands twice" in capsys.readouterr().err
    assert federated.parse_sites([["a", "seed=1"], ["b"]]) == {"a": {"seed": 1}, "b": {}}


def test_values_of_the_command_line() -> None:
    found = federated.parse_values(["seed=1", "anatomy#folder=/data/a", "size=[8, 8]", "radiomics=false"])
    assert found == {"seed": 1, "anatomy#folder": "/data/a", "size": [8, 8], "radiomics": False}
    with pytest.raises(BundleError, match="KEY=VALUE"):
        federated.parse_values(["seed"])


def mean(*states: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: torch.stack([state[name].double() for state in states]).mean(0) for name in states[0]}


def assert_equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    for name, value in first.items():
        torch.testing.assert_close(value.double(), second[name].double(), rtol=0.0, atol=1e-6)


@pytest.mark.federated
def test_two_simulated_sites(tmp_path: Path) -> None:
    """The global weights are the mean of the sites', and each round goes on from them.

    Site 2 does not learn: after its second round it has what it was sent, the global weights of the first.
    """
    zips = tmp_path / "zips"
    subprocess.run(
        [sys.executable, str(REPOSITORY / "scripts/pack_bundle.py"), "rim_relaxometry", "--output", str(zips)],
        check=True,
    )
    [packed] = zips.glob("*.zip")
    job, work = tmp_path / "job", tmp_path / "work"
    federated.make_job(packed, job, SITES, rounds=2, local_epochs=1, overlays=[], values=TINY)
    simulator = [str(Path(sys.executable).with_name("nvflare")), "simulator", str(job), "--workspace", str(work)]
    subprocess.run([*simulator, "--clients", "site-1,site-2", "--threads", "2"], check=True, cwd="/", timeout=900)

    def local(site: int, epoch: int) -> dict[str, Tensor]:
        output = work / f"site-{site}/simulate_job/app_site-{site}/output"
        checkpoint = torch.load(output / f"checkpoints/checkpoint_epoch={epoch}.pt", weights_only=True)
        network = checkpoint["network"]
        assert isinstance(network, dict)
        return network

    start = torch.load(job / "app/custom/weights.pt", weights_only=True)
    assert_equal(local(2, 1), start)
    assert any(not torch.equal(value, start[name]) for name, value in local(1, 1).items())
    first = mean(local(1, 1), local(2, 1))
    assert_equal(local(2, 2), first)
    assert any(float((value - first[name]).abs().max()) > 1e-5 for name, value in local(1, 2).items())

    federated.extract(work / "server/simulate_job/app_server/FL_global_model.pt", tmp_path / "global.pt")
    weights = torch.load(tmp_path / "global.pt", weights_only=True)
    assert_equal(weights, mean(local(1, 2), local(2, 2)))
    # The bundle takes them as its own: strictly, and as the start of another federation.
    job_of(packed, tmp_path / "next", TINY, weights=tmp_path / "global.pt")
    one_run_a_site(work)


def one_run_a_site(work: Path) -> None:
    from mlflow import MlflowClient

    for site in ("site-1", "site-2"):
        record = MlflowClient(f"sqlite:///{work}/{site}/simulate_job/app_{site}/output/mlruns.db")
        [run] = record.search_runs([experiment.experiment_id for experiment in record.search_experiments()])
        assert len(record.get_metric_history(run.info.run_id, "train_loss")) == 2
