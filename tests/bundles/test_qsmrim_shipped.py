"""What is shipped with the weights of qsmrim_net."""

from __future__ import annotations

import pytest
import torch
from monai.bundle import ConfigParser
from qsmrim_net.ensemble import RimEnsemble

from shared_transforms.weights import load_weights

from .rim_subject import ROOT


@pytest.fixture(scope="module")
def network() -> RimEnsemble:
    parser = ConfigParser()
    parser.read_config(str(ROOT / "configs/inference.json"))
    parser["bundle_root"] = str(ROOT)
    return load_weights(parser.get_parsed_content("network_def"), ROOT / "models/model.pt").eval()


def test_calibration_and_thresholds_are_set(network: RimEnsemble) -> None:
    assert (network.calibration != torch.tensor([1.0, 0.0])).all()
    f1, sensitive = network.thresholds.tolist()
    assert 0 < sensitive < f1 < 1
    assert len(set(network.seed_thresholds.tolist())) == 3
