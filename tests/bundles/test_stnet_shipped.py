"""What the shipped weights of stnet_perfusion are worth."""

from __future__ import annotations

from pathlib import Path

from bundle_files import REPOSITORY
from monai.bundle import ConfigWorkflow

ROOT = REPOSITORY / "bundles" / "stnet_perfusion"


def test_evaluation_of_the_shipped_weights(tmp_path: Path) -> None:
    run = ConfigWorkflow(
        config_file=[str(ROOT / "configs" / name) for name in ("train.json", "evaluate.json")],
        workflow_type="train", logging_file=False, bundle_root=str(ROOT), output_dir=str(tmp_path),
        validation_volumes=2, validation_batches=4, size=[64, 72, 4], voxel_size_mm=[3.0, 3.0, 6.0],
    )  # fmt: skip
    run.initialize()
    run.run()
    metrics = run.parser.get_parsed_content("validate")["evaluator"].state.metrics
    assert metrics["Tmax_MAE_s"] < 1.5
    assert metrics["CBF_MAE_ml_per_100g_min"] < 15.0
    assert metrics["Dice_Tmax_over_6_s"] > 0.8
