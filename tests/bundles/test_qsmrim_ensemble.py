"""The ensemble: calibration, thresholds, joining; and TorchScript and ONNX of every architecture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from monai.networks.utils import convert_to_onnx, convert_to_torchscript
from qsmrim_net.baselines import APRLNetwork, RimNet
from qsmrim_net.ensemble import RimEnsemble
from qsmrim_net.network import QSMRimNet
from scipy.special import expit
from torch import Tensor, nn

PATCH, FEATURES = (12, 12, 6), 20
BATCHES = (1, 5)
CALIBRATION = torch.tensor([[0.5, -1.0], [2.0, 0.25], [1.0, 0.0]])
MEMBERS = {
    "channels": lambda: QSMRimNet(2, features=FEATURES),
    "added branches": lambda: QSMRimNet(2, "paper", combine="add", image_fusion="branches", features=FEATURES),
    "image only": lambda: QSMRimNet(2, radiomics=False),
    "RimNet": lambda: RimNet(2),
    "APRL": lambda: APRLNetwork(2, features=FEATURES),
}
# The exporters of torch use what torch deprecates.
exports = pytest.mark.filterwarnings(
    "ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"
)


def _batch(size: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(size)
    radiomics = 50.0 + 10.0 * torch.randn(size, FEATURES, generator=generator)
    radiomics[size // 2] = torch.nan  # a lesion without radiomics
    return torch.randn(size, 2, *PATCH, generator=generator), radiomics


def _ensemble(name: str = "channels") -> RimEnsemble:
    torch.manual_seed(0)
    members = [MEMBERS[name]() for _ in range(3)]
    for member in members:
        member.fit_normalisation(_batch(30)[1])
        for module in member.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.momentum = None  # the first batch's statistics in full
        member(*_batch(16))
    ensemble = RimEnsemble(members).eval()
    ensemble.set_calibration(CALIBRATION, torch.tensor([0.4, 0.1]), torch.tensor([0.3, 0.35, 0.4]))
    return ensemble


# ------------------------------------------------------------------------------------------------------ calibration


@torch.no_grad()
def test_probabilities_are_calibrated_logits() -> None:
    ensemble, (image, radiomics) = _ensemble(), _batch(5)
    found = ensemble(image, radiomics).numpy()
    assert found.shape == (5, 3)
    for seed, (slope, intercept) in enumerate(CALIBRATION.numpy()):
        logits = ensemble.members[seed](image, radiomics).double().numpy()
        np.testing.assert_allclose(found[:, seed], expit(slope * logits + intercept), rtol=1e-5)


@torch.no_grad()
def test_without_calibration_they_are_the_networks() -> None:
    members, (image, radiomics) = list(_ensemble().members), _batch(5)
    ensemble = RimEnsemble(members).eval()
    expected = torch.stack([torch.sigmoid(member(image, radiomics)) for member in members], 1)
    torch.testing.assert_close(ensemble(image, radiomics), expected)
    assert ensemble.thresholds.tolist() == [0.5, 0.5] and ensemble.seed_thresholds.tolist() == [0.5] * 3


@torch.no_grad()
def test_everything_travels_with_the_weights() -> None:
    ensemble, batch = _ensemble(), _batch(5)
    other = RimEnsemble([MEMBERS["channels"]() for _ in range(3)]).eval()
    other.load_state_dict(ensemble.state_dict())
    torch.testing.assert_close(other(*batch), ensemble(*batch))
    torch.testing.assert_close(other.thresholds, torch.tensor([0.4, 0.1]))
    torch.testing.assert_close(other.seed_thresholds, torch.tensor([0.3, 0.35, 0.4]))


@torch.no_grad()
def test_trained_networks_are_joined() -> None:
    image, radiomics = _batch(5)
    members = list(_ensemble().members)
    network = MEMBERS["channels"]()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    joined = RimEnsemble.from_members(network, [member.state_dict() for member in members])
    expected = torch.stack([torch.sigmoid(member(image, radiomics)) for member in members], 1)
    torch.testing.assert_close(joined(image, radiomics), expected)
    torch.testing.assert_close(dict(network.state_dict()), before)
    with pytest.raises(RuntimeError, match="Missing key"):
        RimEnsemble.from_members(network, [RimNet(2).state_dict()])


def test_the_same_network_twice_is_refused() -> None:
    network = MEMBERS["RimNet"]()
    with pytest.raises(ValueError, match="must be different networks"):
        RimEnsemble([network, network])
    with pytest.raises(ValueError, match="at least one"):
        RimEnsemble([])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"calibration": CALIBRATION[:2]}, r"calibration must be finite, of shape \(3, 2\)"),
        ({"calibration": torch.full((3, 2), torch.nan)}, "calibration must be finite"),
        ({"calibration": -CALIBRATION}, "positive slopes"),
        ({"thresholds": torch.tensor([0.5, 1.5])}, "thresholds must be between 0 and 1"),
        ({"seed_thresholds": torch.tensor([0.5])}, r"seed_thresholds must be finite, of shape \(3,\)"),
    ],
)
def test_bad_calibrations_are_refused_whole(wrong: dict[str, Tensor], message: str) -> None:
    ensemble = _ensemble()
    right = {"calibration": 3.0 * CALIBRATION, "thresholds": torch.rand(2), "seed_thresholds": torch.rand(3)}
    with pytest.raises(ValueError, match=message):
        ensemble.set_calibration(**{**right, **wrong})
    torch.testing.assert_close(ensemble.calibration, CALIBRATION)  # nothing was changed


# ---------------------------------------------------------------------------------------------------------- exports


@exports
@pytest.mark.parametrize("name", MEMBERS)
@torch.no_grad()
def test_torchscript_gives_the_same_probabilities(name: str, tmp_path: Path) -> None:
    ensemble, path = _ensemble(name), tmp_path / "model.ts"
    convert_to_torchscript(ensemble, filename_or_obj=str(path))
    scripted = torch.jit.load(path)
    assert ensemble(*_batch(5)).std(0).max() > 1e-3  # different lesions, different answers
    for size in BATCHES:
        image, radiomics = _batch(size)
        torch.testing.assert_close(scripted(image, radiomics), ensemble(image, radiomics), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(scripted(image), ensemble(image), rtol=1e-5, atol=1e-6)


@exports
@pytest.mark.parametrize(
    ("name", "names"), [("channels", ("image", "radiomics")), ("channels", ("image",)), ("RimNet", ("image",))]
)
@torch.no_grad()
def test_onnx_gives_the_same_probabilities(name: str, names: tuple[str, ...], tmp_path: Path) -> None:
    import onnxruntime

    ensemble, path = _ensemble(name), tmp_path / "model.onnx"
    convert_to_onnx(
        ensemble, list(_batch(2)[: len(names)]), filename=str(path), use_trace=True, input_names=list(names),
        output_names=["pred"], dynamic_axes={key: {0: "lesions"} for key in (*names, "pred")},
    )  # fmt: skip
    session = onnxruntime.InferenceSession(str(path))
    for size in BATCHES:
        inputs = dict(zip(("image", "radiomics"), _batch(size), strict=True))
        inputs = {key: inputs[key] for key in names}
        [found] = session.run(None, {key: value.numpy() for key, value in inputs.items()})
        torch.testing.assert_close(torch.from_numpy(found), ensemble(**inputs), rtol=1e-4, atol=1e-5)
