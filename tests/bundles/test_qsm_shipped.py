"""What the shipped weights of qsmgan are worth."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from bundle_files import REPOSITORY
from monai.bundle import ConfigWorkflow
from qsmgan.network import Generator
from qsmgan.simulator import SusceptibilitySimulator

from shared_transforms.anatomy import split_generator
from shared_transforms.metrics import nrmse
from shared_transforms.weights import load_weights

ROOT = REPOSITORY / "bundles" / "qsmgan"


@pytest.fixture(scope="module")
def sample() -> dict:
    """A small held-out head: voxels of 2 mm, but for a dipole field they may as well be of 1 mm."""
    simulator = SusceptibilitySimulator(
        size=(64, 72, 64), head_scale=(0.45, 0.45), noise_ppm=(0.002, 0.002), phantom_share=0.0, magnitude_share=1.0
    )
    return simulator.simulate(simulator.draw(split_generator(5, split="test"), 1, "test"))


@pytest.mark.parametrize("name", ["unet.pt", "model.pt"])
def test_shipped_weights_improve_on_the_map_they_start_from(name: str, sample: dict) -> None:
    generator = load_weights(Generator(), ROOT / "models" / name).eval()
    image, label, crop = sample["image"], sample["label"], generator.crop
    with torch.no_grad():
        estimate = generator(torch.nn.functional.pad(image, (crop,) * 6))[0, 0]
    truth, mask = label["parameters"][0, 0], label["mask"][0, 0]
    before, after = (nrmse(values, truth, mask).item() for values in (image[0, 1], estimate))
    assert after < 0.97 * before


def test_evaluation_of_the_shipped_weights(tmp_path: Path) -> None:
    run = ConfigWorkflow(
        config_file=[str(ROOT / "configs" / name) for name in ("train.json", "evaluate.json")],
        workflow_type="train", logging_file=False, bundle_root=str(ROOT), output_dir=str(tmp_path),
        validation_volumes=1, validation_batches=1, volume_size=[64, 64, 64],
    )  # fmt: skip
    run.initialize()
    run.run()
    metrics = run.parser.get_parsed_content("validate")["evaluator"].state.metrics
    assert metrics["NRMSE_percent"] < 60.0
    assert metrics["XSIM"] > 0.2
