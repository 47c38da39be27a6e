"""MONAI's own checks of qsmrim_net, and what its shipped weights are worth."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from bundle_files import REPOSITORY
from monai.bundle import ConfigParser, ConfigWorkflow, verify_metadata, verify_net_in_out
from qsmrim_net.ensemble import RimEnsemble

from shared_transforms.weights import load_weights

from .lesion_tables import lesion_table
from .rim_subject import ROOT, write

WEIGHTS = ROOT / "models" / "model.pt"
OPTIONS = {
    "meta_file": str(ROOT / "configs" / "metadata.json"),
    "config_file": str(ROOT / "configs" / "inference.json"),
}

pytestmark = pytest.mark.filterwarnings(
    "ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"
)


@pytest.fixture(scope="module")
def network() -> RimEnsemble:
    parser = ConfigParser()
    parser.read_config(OPTIONS["config_file"])
    parser["bundle_root"] = str(ROOT)
    return load_weights(parser.get_parsed_content("network_def"), WEIGHTS).eval()


def test_metadata_against_the_schema_offline(tmp_path: Path) -> None:
    schema = tmp_path / "schema.json"  # where the file is there, MONAI does not download it
    shutil.copy(REPOSITORY / "scripts" / "metadata_schema.json", schema)
    verify_metadata(meta_file=OPTIONS["meta_file"], filepath=str(schema))


def test_network_takes_and_gives_what_the_metadata_say() -> None:
    verify_net_in_out(net_id="network_def", device="cpu", **OPTIONS)


@pytest.mark.parametrize(("name", "kind"), [("train.json", "train"), ("inference.json", "infer")])
def test_monai_finds_its_properties(name: str, kind: str, tmp_path: Path) -> None:
    lesion_table().save(tmp_path / "table.pt")
    training = {"cohort_dir": str(tmp_path / "table.pt"), "size": [8, 8, 4], "width": 4, "folds": 2}
    own = training if kind == "train" else {"dataset_dir": str(write(tmp_path / "data"))}
    run = ConfigWorkflow(
        config_file=str(ROOT / "configs" / name), workflow_type=kind, logging_file=False, bundle_root=str(ROOT),
        output_dir=str(tmp_path), **own,
    )  # fmt: skip
    run.initialize()
    assert run.check_properties() == []


def test_calibration_and_thresholds_are_set(network: RimEnsemble) -> None:
    assert (network.calibration != torch.tensor([1.0, 0.0])).all()
    f1, sensitive = network.thresholds.tolist()
    assert 0 < sensitive < f1 < 1
    assert len(set(network.seed_thresholds.tolist())) == 3
