"""MONAI's own checks of deepspio, and what its shipped weights are worth."""

from __future__ import annotations

import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from bundle_files import REPOSITORY
from deepspio.network import DeepSPIO
from monai.bundle import ConfigParser, ConfigWorkflow, ckpt_export, verify_metadata, verify_net_in_out

from shared_transforms.weights import load_weights

ROOT = REPOSITORY / "bundles" / "deepspio"
WEIGHTS = ROOT / "models" / "model.pt"
OPTIONS = {
    "meta_file": str(ROOT / "configs" / "metadata.json"),
    "config_file": str(ROOT / "configs" / "inference.json"),
}
# The exporters of torch use what torch deprecates.
pytestmark = pytest.mark.filterwarnings(
    "ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"
)


def test_metadata_against_the_schema_offline(tmp_path: Path) -> None:
    schema = tmp_path / "schema.json"  # where the file is there, MONAI does not download it
    shutil.copy(REPOSITORY / "scripts" / "metadata_schema.json", schema)
    verify_metadata(meta_file=OPTIONS["meta_file"], filepath=str(schema))


def test_network_takes_and_gives_what_the_metadata_say() -> None:
    verify_net_in_out(net_id="network_def", device="cpu", **OPTIONS)


@torch.no_grad()
def test_torchscript_of_the_shipped_weights_gives_the_same_maps(tmp_path: Path) -> None:
    path, image = tmp_path / "model.ts", torch.rand(1, 2, 64, 96, generator=torch.Generator().manual_seed(0))
    width = ConfigParser.load_config_file(OPTIONS["config_file"])["width"]
    network = load_weights(DeepSPIO(width), WEIGHTS).eval()
    ckpt_export(net_id="network_def", filepath=str(path), ckpt_file=str(WEIGHTS), **OPTIONS)
    torch.testing.assert_close(torch.jit.load(path)(image), network(image), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("name", "kind"), [("train.json", "train"), ("inference.json", "infer")])
def test_monai_finds_its_properties(name: str, kind: str, tmp_path: Path) -> None:
    lines = nib.Nifti1Image(np.zeros((32, 32, 1, 2), np.int16), np.eye(4))
    nib.save(lines, tmp_path / "sub-01_viewline.nii.gz")
    own = {"batches_per_epoch": 1} if kind == "train" else {"dataset_dir": str(tmp_path)}
    run = ConfigWorkflow(
        config_file=str(ROOT / "configs" / name), workflow_type=kind, logging_file=False, bundle_root=str(ROOT),
        output_dir=str(tmp_path), **own,
    )  # fmt: skip
    run.initialize()
    assert run.check_properties() == []


def test_evaluation_of_the_shipped_weights(tmp_path: Path) -> None:
    run = ConfigWorkflow(
        config_file=[str(ROOT / "configs" / name) for name in ("train.json", "evaluate.json")],
        workflow_type="train", logging_file=False, bundle_root=str(ROOT), output_dir=str(tmp_path),
        validation_batches=1,
    )  # fmt: skip
    run.initialize()
    run.run()
    metrics = run.parser.get_parsed_content("validate")["evaluator"].state.metrics
    assert metrics["NMAE"] < 0.6  # a map of zeros has 1
