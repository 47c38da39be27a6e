"""QSMRim-Net, its comparators and its loss: sizes, what they read, how radiomics are normalised, bad input."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from qsmrim_net.baselines import APRLNetwork, RimNet
from qsmrim_net.loss import RimLoss
from qsmrim_net.network import PREVALENCE, QSMRimNet
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy

FEATURES = 20
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "concatenate": lambda: QSMRimNet(2, features=FEATURES),
    "add": lambda: QSMRimNet(2, features=FEATURES, combine="add"),
    "branches": lambda: QSMRimNet(2, features=FEATURES, image_fusion="branches"),
    "paper's stem": lambda: QSMRimNet(2, "paper", features=FEATURES),
    "image only": lambda: QSMRimNet(2, radiomics=False),
    "RimNet": lambda: RimNet(2),
    "APRL": lambda: APRLNetwork(2, features=FEATURES),
}
every_network = pytest.mark.parametrize("name", NETWORKS)


def _batch(size: int = 8, patch: tuple[int, int, int] = (12, 12, 6)) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = (torch.arange(size) % 3 == 1).long()
    return (
        torch.randn(size, 2, *patch, generator=generator),
        torch.randn(size, FEATURES, generator=generator),
        labels,
    )


def _network(name: str) -> nn.Module:
    """In evaluation mode, with the statistics of a first batch."""
    torch.manual_seed(0)
    network = NETWORKS[name]()
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = None
    network(*_batch(16))
    return network.eval()


def _parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def test_the_released_networks_size() -> None:
    released = QSMRimNet(64, "paper", combine="add")
    assert round(_parameters(released) / 1e6, 2) == 34.84
    assert round(_parameters(QSMRimNet(16).image) / 1e6, 2) == 2.07


def test_concatenation_widens_one_layer() -> None:
    # 1024 -> 512 in place of 512 -> 512 at width 64; an eighth of it at width 8.
    assert _parameters(QSMRimNet(8)) - _parameters(QSMRimNet(8, combine="add")) == 64 * 64


@pytest.mark.parametrize(
    ("stem", "patch", "shapes"),
    [
        ("paper", (32, 32, 16), [(8, 8, 4), (4, 4, 2), (2, 2, 1), (2, 2, 1)]),  # 7^3 / 2, pooling / 2, then 1, 2, 2, 1
        ("thin", (24, 24, 8), [(12, 12, 8), (6, 6, 4), (3, 3, 2), (3, 3, 2)]),
    ],
)
def test_strides_of_the_stages(stem: str, patch: tuple[int, ...], shapes: list[tuple[int, ...]]) -> None:
    network = QSMRimNet(2, stem).eval()
    found = []
    for stage in ("layer1", "layer2", "layer3", "layer4"):
        network.image[0].get_submodule(stage).register_forward_hook(lambda *call: found.append(call[-1].shape[1:]))
    features = network.image_features(torch.zeros(1, 2, *patch))
    assert found == [(2 * 2**stage, *shape) for stage, shape in enumerate(shapes)]
    assert features.shape == (1, 16)


@every_network
@pytest.mark.parametrize("patch", [(24, 24, 8), (28, 28, 28), (9, 15, 3)])
def test_any_patch_gives_one_logit_for_a_lesion(name: str, patch: tuple[int, int, int]) -> None:
    image, radiomics, labels = _batch(3, patch)
    network = NETWORKS[name]().eval()
    assert network(image, radiomics).shape == network(image, radiomics, labels).shape == (3,)


@every_network
def test_training_with_labels_adds_two_rows_for_each_rim(name: str) -> None:
    image, radiomics, labels = _batch()
    expected = 8 if name in ("RimNet", "APRL") else 8 + 2 * 3
    assert NETWORKS[name]()(image, radiomics, labels).shape == (expected,)
    assert NETWORKS[name]()(image, radiomics).shape == (8,)


def test_oversampling_can_be_turned_off() -> None:
    image, radiomics, labels = _batch()
    network = QSMRimNet(2, features=FEATURES, oversampling=False)
    assert network(image, radiomics, labels).shape == (8,)
    assert _parameters(network) == _parameters(NETWORKS["concatenate"]())


@every_network
@torch.no_grad()
def test_a_lesions_answer_does_not_depend_on_the_others(name: str) -> None:
    image, radiomics, labels = _batch()
    network, order = _network(name), torch.tensor([3, 1, 7, 0, 2, 5, 4, 6])
    logits = network(image, radiomics, labels)
    assert logits.std() > 1e-3
    torch.testing.assert_close(network(image[order], radiomics[order]), logits[order])
    torch.testing.assert_close(network(image[:1], radiomics[:1]), logits[:1])


@every_network
@torch.no_grad()
def test_what_a_network_reads(name: str) -> None:
    image, radiomics, _ = _batch()
    network = _network(name)
    logits = network(image, radiomics)
    for channel in range(2):
        other = image.clone()
        other[:, channel] = other[:, channel].flip(0)
        assert torch.equal(network(other, radiomics), logits) == (name == "APRL")
    reads_none = name in ("image only", "RimNet")
    assert torch.equal(network(image, radiomics.flip(0)), logits) == reads_none
    assert torch.equal(network(image), logits) == reads_none


@torch.no_grad()
def test_branches_do_not_mix_the_images_before_their_fusion() -> None:
    image, _, _ = _batch()
    other = torch.randn(image.shape, generator=torch.Generator().manual_seed(1))
    mixed = [torch.stack([first[:, 0], second[:, 1]], 1) for first in (image, other) for second in (image, other)]
    interaction = {}
    for name in ("branches", "concatenate"):
        features = [_network(name).image_features(part) for part in mixed]
        interaction[name] = (features[0] - features[1] - features[2] + features[3]).abs().max().item()
    assert interaction["branches"] < 1e-5  # a sum of what each image gives
    assert interaction["concatenate"] > 1e-2


def test_rimnets_published_sizes() -> None:
    network = RimNet(32)
    channels = [module.out_channels for module in network.modules() if isinstance(module, nn.Conv3d)]
    units = [module.out_features for module in network.modules() if isinstance(module, nn.Linear)]
    assert sorted(channels) == sorted([32, 32, 64, 64, 128, 128] * 2)
    assert units == [256, 128, 64, 1]


@every_network
@pytest.mark.parametrize("prevalence", [PREVALENCE, 0.3])
def test_the_first_answer_is_the_prevalence(name: str, prevalence: float) -> None:
    kinds = {"RimNet": lambda: RimNet(2, prevalence=prevalence), "APRL": lambda: APRLNetwork(2, prevalence=prevalence)}
    network = kinds.get(name, lambda: QSMRimNet(2, prevalence=prevalence))().eval()
    last = [module for module in network.modules() if isinstance(module, nn.Linear)][-1]
    nn.init.zeros_(last.weight)
    torch.testing.assert_close(network(_batch()[0]).sigmoid(), torch.full((8,), prevalence))


# ------------------------------------------------------------------------------------------------------- radiomics


def test_normalisation_comes_from_the_complete_rows() -> None:
    features = np.random.default_rng(0).normal([[5.0, -3e4, 1e9]], [[2.0, 10.0, 1e8]], (40, 3))
    broken = features.copy()
    broken[[3, 7]] = np.nan
    broken[11, 1] = np.inf
    complete = np.delete(features, [3, 7, 11], 0)
    network = QSMRimNet(2, features=3)
    network.fit_normalisation(torch.from_numpy(broken))
    assert network.radiomics is not None
    found = network.radiomics.standardised(torch.from_numpy(complete)).double().numpy()
    expected = (complete - complete.mean(0)) / complete.std(0, ddof=1)
    np.testing.assert_allclose(found, expected, atol=1e-3)  # float32 of 3e4 +- 10


@pytest.mark.parametrize("name", ["concatenate", "add", "APRL"])
@torch.no_grad()
def test_units_of_the_features_do_not_matter(name: str) -> None:
    image, radiomics, _ = _batch(30)
    network = _network(name)
    scale, offset = 10 ** torch.linspace(-3, 6, FEATURES), torch.linspace(-5, 5, FEATURES)
    network.fit_normalisation(radiomics)
    expected = network(image, radiomics)
    other = scale * (radiomics + offset)
    network.fit_normalisation(other)
    torch.testing.assert_close(network(image, other), expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("name", ["concatenate", "add", "APRL"])
@torch.no_grad()
def test_lesions_without_radiomics_are_mean_lesions(name: str) -> None:
    image, radiomics, _ = _batch()
    network = _network(name)
    network.fit_normalisation(3.0 + 2.0 * radiomics)
    mean = (3.0 + 2.0 * radiomics).mean(0).expand(8, -1)
    expected = network(image, mean)
    torch.testing.assert_close(network(image, torch.full_like(radiomics, torch.nan)), expected)
    torch.testing.assert_close(network(image), expected)


@torch.no_grad()
def test_far_features_are_clamped_and_constant_ones_centred() -> None:
    network = APRLNetwork(2, features=2)
    network.fit_normalisation(torch.tensor([[-1.0, 7e5], [1.0, 7e5]]))
    values = network.radiomics.standardised(torch.tensor([[1e6, 7e5], [-torch.inf, 7e5 + 1.0], [2**0.5, torch.nan]]))
    torch.testing.assert_close(values, torch.tensor([[8.0, 0.0], [-8.0, 1.0], [1.0, 0.0]]))


def test_normalisation_travels_with_the_weights() -> None:
    image, radiomics, _ = _batch()
    network, other = _network("concatenate"), NETWORKS["concatenate"]().eval()
    network.fit_normalisation(100.0 * radiomics)
    other.load_state_dict(network.state_dict())
    torch.testing.assert_close(other(image, radiomics), network(image, radiomics))


@pytest.mark.parametrize("name", ["image only", "RimNet"])
def test_networks_without_radiomics_have_nothing_to_fit(name: str) -> None:
    network = NETWORKS[name]()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    network.fit_normalisation(torch.randn(5, 527))
    torch.testing.assert_close(dict(network.state_dict()), before)


# ---------------------------------------------------------------------------------------------------- loss, training


@pytest.mark.parametrize("extra", [0, 4])
def test_loss_is_the_cross_entropy_with_synthetic_rims_as_rims(extra: int) -> None:
    labels = torch.tensor([0, 1, 0, 0, 1])
    logits = torch.linspace(-3, 2, 5 + extra, dtype=torch.float64)
    explicit = torch.cat([labels.double(), torch.ones(extra, dtype=torch.float64)])
    expected = binary_cross_entropy(logits.sigmoid(), explicit)
    torch.testing.assert_close(RimLoss()(logits, labels), expected)
    torch.testing.assert_close(RimLoss()(logits, labels.float()), expected)
    assert RimLoss()(logits.bfloat16(), labels).dtype == torch.float32


def test_loss_refuses_fewer_logits_than_labels() -> None:
    for logits in (torch.zeros(3), torch.zeros(4, 1)):
        with pytest.raises(ValueError, match="logits"):
            RimLoss()(logits, torch.zeros(4))


@every_network
def test_it_learns_a_batch(name: str) -> None:
    image, radiomics, labels = _batch()
    torch.manual_seed(0)
    network = NETWORKS[name]()
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    optimiser = torch.optim.Adam(network.parameters(), lr=0.01)
    losses = []
    for _ in range(25):
        with torch.autocast("cpu", torch.bfloat16):
            loss = RimLoss()(network(image, radiomics, labels), labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert all(math.isfinite(loss) for loss in losses)
    assert losses[-1] < 0.3 * losses[0]
    assert all(parameter.grad is not None for parameter in network.parameters())


@pytest.mark.parametrize(
    ("network", "patch"),
    [
        (lambda: QSMRimNet(4), (24, 24, 8)),  # last maps of 3 x 3 x 2
        (lambda: QSMRimNet(4), (12, 12, 6)),  # 2 x 2 x 2
        (lambda: QSMRimNet(4, "paper"), (32, 32, 16)),  # 2 x 2 x 1
        (lambda: QSMRimNet(4, "paper"), (24, 24, 8)),  # 2 x 2 x 1, from one slice
        (lambda: RimNet(4), (24, 24, 8)),
        (lambda: RimNet(4), (8, 8, 4)),
    ],
)
def test_bfloat16_gives_the_gradients_of_float32(network: Callable[[], nn.Module], patch: tuple[int, int, int]) -> None:
    image, _, _ = _batch(16, patch)
    network = network().eval()  # without normalisation by the batch, which amplifies rounding
    gradients = []
    for enabled in (False, True, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss = network.image_features(image).float().square().sum()
        parts = torch.autograd.grad(loss, [value for value in network.parameters() if value.ndim == 5])
        gradients.append(torch.cat([part.flatten() / part.norm() for part in parts]))
    for found in gradients[1:]:
        assert (found - gradients[0]).norm() < 0.1 * gradients[0].norm()


def test_same_seed_same_training_step() -> None:
    gradients = []
    for _ in range(2):
        torch.manual_seed(3)
        network = NETWORKS["concatenate"]()
        image, radiomics, labels = _batch()
        RimLoss()(network(image, radiomics, labels), labels).backward()
        gradients.append([parameter.grad for parameter in network.parameters()])
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=0)


# --------------------------------------------------------------------------------------------------------- bad input


@every_network
def test_bad_batches_are_refused(name: str) -> None:
    image, radiomics, _ = _batch()
    network = NETWORKS[name]()
    with pytest.raises(ValueError, match="at least 2 lesions in training"):
        network(image[:1], radiomics[:1])
    for wrong in (image[:, :1], image[0]):
        with pytest.raises(ValueError, match=r"image must have shape \[N, 2, X, Y, Z\]"):
            network(wrong, radiomics)
    if name not in ("image only", "RimNet"):
        with pytest.raises(ValueError, match="radiomics must be given in training"):
            network(image)
        with pytest.raises(ValueError, match=r"radiomics must have shape \[N, 20\]"):
            network(image, radiomics[:, :5])
        with pytest.raises(ValueError, match=r"features must have shape \[M, 20\]"):
            network.fit_normalisation(radiomics[:, :5])
        with pytest.raises(ValueError, match="at least two finite rows, got 0"):
            network.fit_normalisation(torch.full_like(radiomics, torch.nan))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"width": 0}, "width must be at least 1, got 0"),
        ({"stem": "thick"}, r"stem must be one of \('thin', 'paper'\), got 'thick'"),
        ({"combine": "multiply"}, "combine must be one of"),
        ({"image_fusion": "late"}, "image_fusion must be one of"),
        ({"prevalence": 1.0}, "prevalence must be between 0 and 1, got 1.0"),
    ],
)
def test_bad_settings_are_refused(wrong: dict[str, object], message: str) -> None:
    kinds = [QSMRimNet, RimNet, APRLNetwork] if "width" in wrong or "prevalence" in wrong else [QSMRimNet]
    for kind in kinds:
        with pytest.raises(ValueError, match=message):
            kind(**wrong)
