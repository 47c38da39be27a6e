"""DeepSMOTE: where the synthetic rims lie, how many there are, and what goes back through them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from qsmrim_net.smote import DeepSMOTE
from scipy.spatial import cKDTree
from scipy.stats import kstest
from torch import Tensor

COUNTS = (3, 4, 7, 30)


def _batch(rims: int, size: int = 40, width: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(rims)
    labels = torch.zeros(size, dtype=torch.long)
    labels[torch.randperm(size, generator=generator)[:rims]] = 1
    return torch.randn(size, width, generator=generator), labels


def _nearest(rims: np.ndarray) -> np.ndarray:
    """Rows ``[n, 2]`` of the two nearest others, by a tree."""
    _, order = cKDTree(rims).query(rims, k=3)
    np.testing.assert_array_equal(order[:, 0], np.arange(len(rims)))  # itself
    return order[:, 1:]


def _weights(rims: np.ndarray, synthetic: np.ndarray, partners: np.ndarray) -> np.ndarray:
    """Weight of each rim ``[n, 2]`` in its two rows; fails where a row is not on its segment."""
    along = rims[:, None] - partners
    weight = np.sum((synthetic - partners) * along, -1) / np.sum(along**2, -1)
    np.testing.assert_allclose(partners + weight[..., None] * along, synthetic, atol=1e-5)
    assert np.all((weight >= -1e-5) & (weight <= 1 + 1e-5))
    return weight


@pytest.mark.parametrize("count", COUNTS)
def test_rows_lie_on_the_way_to_the_two_nearest_other_rims(count: int) -> None:
    features, labels = _batch(count)
    found = DeepSMOTE()(features, labels)
    torch.testing.assert_close(found[:40], features, rtol=0, atol=0)
    rims = features[labels == 1].double().numpy()
    synthetic = found[40:].double().numpy().reshape(count, 2, -1)
    weight = _weights(rims, synthetic, rims[_nearest(rims)])
    assert len(np.unique(weight.round(6))) == 2 * count  # one number for each row


@pytest.mark.parametrize("count", COUNTS)
def test_neighbours_are_found_far_from_the_origin(count: int) -> None:
    rims = 1000.0 + torch.randn(count, 6, generator=torch.Generator().manual_seed(count))
    np.testing.assert_array_equal(DeepSMOTE().neighbours(rims).numpy(), _nearest(rims.double().numpy()))


@pytest.mark.parametrize("count", range(7))
def test_there_are_two_rows_for_each_rim(count: int) -> None:
    features, labels = _batch(count)
    assert DeepSMOTE()(features, labels).shape == (40 + 2 * count, 6)
    assert DeepSMOTE()(features, labels.float()).shape == (40 + 2 * count, 6)


def test_one_rim_is_repeated() -> None:
    features, labels = _batch(1)
    rim = features[labels == 1]
    torch.testing.assert_close(DeepSMOTE()(features, labels)[40:], rim.repeat(2, 1))


def test_two_rims_go_towards_each_other() -> None:
    features, labels = _batch(2)
    rims = features[labels == 1].double().numpy()
    synthetic = DeepSMOTE()(features, labels)[40:].double().numpy().reshape(2, 2, -1)
    weight = _weights(rims, synthetic, rims[[[1, 1], [0, 0]]])
    assert len(np.unique(weight.round(6))) == 4


def test_weights_are_uniform() -> None:
    rims = torch.tensor([[0.0], [1.0]])
    rows = torch.cat([DeepSMOTE()(rims, torch.ones(2))[2:4] for _ in range(500)])  # of the first rim
    assert kstest(rows[:, 0].numpy(), "uniform").pvalue > 1e-3


def test_gradients_flow_to_both_parents() -> None:
    features, labels = _batch(5)
    features.requires_grad_()
    found = DeepSMOTE()(features, labels)
    places = torch.where(labels == 1)[0].numpy()
    nearest = _nearest(features.detach()[labels == 1].double().numpy())
    for row in range(10):
        [gradient] = torch.autograd.grad(found[40 + row, 0], features, retain_graph=True)
        assert torch.all(gradient[:, 1:] == 0)
        parents = {places[row // 2], places[nearest[row // 2, row % 2]]}
        assert set(torch.where(gradient[:, 0] > 0)[0].numpy()) == parents
        assert gradient.sum().item() == pytest.approx(1.0)


def test_same_seed_same_rows() -> None:
    features, labels = _batch(5)
    rows = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        rows.append(DeepSMOTE()(features, labels))
    assert torch.equal(rows[0], rows[1])
    assert not torch.equal(rows[0], rows[2])


def test_evaluation_adds_and_draws_nothing() -> None:
    features, labels = _batch(5)
    state = torch.get_rng_state()
    assert DeepSMOTE().eval()(features, labels) is features
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_rows_have_the_features_precision(dtype: torch.dtype) -> None:
    features, labels = _batch(4)
    assert DeepSMOTE()(features.to(dtype), labels).dtype == dtype


def test_labels_of_another_batch_are_refused() -> None:
    features, labels = _batch(4)
    with pytest.raises(ValueError, match="labels must be one for each of 40 rows"):
        DeepSMOTE()(features, labels[:-1])
    with pytest.raises(ValueError, match="labels"):
        DeepSMOTE()(features, labels[:, None])
