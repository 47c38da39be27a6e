"""Exports of stnet_perfusion, and what its shipped weights are worth."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from bundle_files import REPOSITORY
from monai.bundle import ConfigWorkflow, ckpt_export, onnx_export
from stnet_perfusion.network import STNet, image_channels

from shared_transforms.weights import load_weights

ROOT = REPOSITORY / "bundles" / "stnet_perfusion"
WEIGHTS = ROOT / "models" / "model.pt"
OPTIONS = {
    "meta_file": str(ROOT / "configs" / "metadata.json"),
    "config_file": str(ROOT / "configs" / "inference.json"),
}
# The exporters of torch use what torch deprecates.
pytestmark = pytest.mark.filterwarnings(
    "ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"
)


@pytest.fixture(scope="module")
def network() -> STNet:
    return load_weights(STNet(), WEIGHTS).eval()


def image(*size: int) -> torch.Tensor:
    """Curves of the height that tissue and artery have."""
    return 0.1 * torch.rand(1, image_channels(), *size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("size", [(24, 24), (13, 30)])
def test_torchscript_gives_the_same_maps(size: tuple[int, int], network: STNet, tmp_path: Path) -> None:
    path = tmp_path / "model.ts"
    ckpt_export(net_id="network_def", filepath=str(path), ckpt_file=str(WEIGHTS), **OPTIONS)
    with torch.no_grad():
        assert torch.allclose(torch.jit.load(path)(image(*size)), network(image(*size)), rtol=1e-4, atol=1e-4)


def test_onnx_gives_the_same_maps_at_other_sizes(network: STNet, tmp_path: Path) -> None:
    import onnxruntime

    path = tmp_path / "model.onnx"
    axes = {0: "batch", 2: "x", 3: "y"}
    onnx_export(
        net_id="network_def", filepath=str(path), ckpt_file=str(WEIGHTS), use_trace=True,
        input_shape=[1, image_channels(), 16, 16],
        converter_kwargs={"dynamic_axes": {"image": axes, "pred": axes}, "input_names": ["image"],
                          "output_names": ["pred"]},
        **OPTIONS,
    )  # fmt: skip
    session = onnxruntime.InferenceSession(str(path))
    for size in ((24, 24), (13, 30)):
        with torch.no_grad():
            expected = network(image(*size)).numpy()
        [found] = session.run(None, {session.get_inputs()[0].name: image(*size).numpy()})
        assert np.allclose(found, expected, rtol=1e-4, atol=1e-4)


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
