"""What the shipped weights of deepspio are worth."""

from __future__ import annotations

from pathlib import Path

from bundle_files import REPOSITORY
from monai.bundle import ConfigWorkflow

ROOT = REPOSITORY / "bundles" / "deepspio"


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
