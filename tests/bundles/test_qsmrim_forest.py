"""Comparators without a network: random forest on first-order features, contrast of shell and core."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.ndimage
import torch
from qsmrim_net.forest import FirstOrderForest
from qsmrim_net.rim_contrast import RimContrast
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from shared_transforms.metrics import average_precision, partial_roc_auc


def lesions(seed: int, n: int = 600, features: int = 18, shift: float = 2.0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    label = (np.arange(n) % 12 == 0).astype(int)
    values = generator.normal(size=(n, features)) * np.logspace(-2, 6, features)
    values[:, :3] += shift * label[:, None] * np.logspace(-2, 6, features)[:3]
    return values, label


# --- forest -----------------------------------------------------------------------------------------------------------


def test_rims_that_differ_are_found_and_others_are_not() -> None:
    seen, unseen = lesions(0), lesions(1)
    scores = FirstOrderForest(trees=30).fit(*seen).scores(unseen[0])
    assert scores.shape == (600,) and scores.min() >= 0 and scores.max() <= 1
    assert average_precision(unseen[1], scores) > 0.85
    nothing = FirstOrderForest(trees=30).fit(*lesions(0, shift=0.0)).scores(unseen[0])
    assert partial_roc_auc(lesions(1, shift=0.0)[1], nothing) < 0.15


def test_equal_seeds_give_equal_scores() -> None:
    seen, unseen = lesions(0), lesions(1)[0]
    first, again, other = (FirstOrderForest(seed, trees=20).fit(*seen).scores(unseen) for seed in (0, 0, 1))
    assert np.array_equal(first, again) and not np.array_equal(first, other)


def test_units_of_features_do_not_matter() -> None:
    """Neighbours of the oversampling are found among standardised features."""
    (values, label), unseen = lesions(0), lesions(1)[0]
    factor = 2.0 ** np.arange(-9, 9)  # exact in floating point
    plain = FirstOrderForest(trees=20).fit(values, label).scores(unseen)
    scaled = FirstOrderForest(trees=20).fit(values * factor, label).scores(unseen * factor)
    assert np.allclose(plain, scaled, atol=0.051) and np.corrcoef(plain, scaled)[0, 1] > 0.999


def test_rims_are_oversampled_by_the_reciprocal_of_their_share(monkeypatch: pytest.MonkeyPatch) -> None:
    """600 lesions, 50 rims: 600 rims against 550 others, the new ones between rims that are neighbours."""
    from sklearn.ensemble import RandomForestClassifier

    seen: list[tuple[np.ndarray, np.ndarray]] = []
    fit = RandomForestClassifier.fit

    def spy(self, values, label):
        seen.append((values, label))
        return fit(self, values, label)

    monkeypatch.setattr(RandomForestClassifier, "fit", spy)
    values, label = lesions(0)
    FirstOrderForest(trees=2).fit(values, label)
    table, kind = seen[0]
    assert np.bincount(kind).tolist() == [550, 600]
    standard = (values - values.mean(0)) / values.std(0)
    assert np.allclose(table[:600], standard)
    rims, made = standard[label == 1], table[600:]
    assert len(made) == 550
    near = NearestNeighbors(n_neighbors=6).fit(rims).kneighbors(rims, return_distance=False)
    ends = np.concatenate([np.stack([np.repeat(rims[i][None], 5, 0), rims[near[i, 1:]]], 1) for i in range(len(rims))])
    step = ends[:, 1] - ends[:, 0]
    share = ((made[:, None] - ends[:, 0]) * step).sum(2) / (step**2).sum(1)
    distance = np.linalg.norm(made[:, None] - ends[:, 0] - share[..., None] * step, axis=2)
    distance[(share < -1e-9) | (share > 1 + 1e-9)] = np.inf
    assert distance.min(1).max() < 1e-9


def test_two_rims_are_enough() -> None:
    values, label = lesions(0, n=24)
    assert label.sum() == 2
    assert np.isfinite(
        FirstOrderForest(trees=5).fit(torch.from_numpy(values), torch.from_numpy(label)).scores(values)
    ).all()


def test_forest_refuses_what_it_cannot_use() -> None:
    values, label = lesions(0, n=48)
    holed = values.copy()
    holed[3, 2] = math.nan
    forest = FirstOrderForest(trees=2)
    with pytest.raises(RuntimeError, match="fit first"):
        forest.scores(values)
    with pytest.raises(ValueError, match="1 of 48"):
        forest.fit(holed, label)
    with pytest.raises(ValueError, match="two rims"):
        forest.fit(values, np.arange(48) == 0)
    with pytest.raises(ValueError, match="labels"):
        forest.fit(values, label[:-1])
    forest.fit(values, label)
    with pytest.raises(ValueError, match="1 of 48"):
        forest.scores(holed)
    with pytest.raises(ValueError, match=r"\[M, 18\]"):
        forest.scores(values[:, :4])
    with pytest.raises(ValueError, match="trees"):
        FirstOrderForest(trees=0)


# --- contrast of shell and core ---------------------------------------------------------------------------------------


def patch(mask: np.ndarray, qsm: np.ndarray, flair: float = 2.0) -> Tensor:
    """Masked patch [2, X, Y, Z] of QSM [ppb] and a constant FLAIR."""
    return torch.tensor(np.stack([mask * qsm / 50.0, mask * flair]), dtype=torch.float32)


def blob(seed: int) -> np.ndarray:
    """A ragged mask that the patch cuts."""
    return scipy.ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(24, 24, 8)), (3, 3, 1)) > 0.05


@pytest.mark.parametrize("thickness", [1, 2])
def test_contrast_is_that_of_scipys_erosion(thickness: int) -> None:
    masks = [blob(seed) for seed in range(6)]
    qsm = [np.random.default_rng(seed).normal(size=(24, 24, 8)) * 20 + 5 for seed in range(6)]
    found = RimContrast(thickness=thickness)(torch.stack([patch(m, q) for m, q in zip(masks, qsm, strict=True)]))
    window = np.ones((3, 3, 1), bool)
    for value, mask, image in zip(found, masks, qsm, strict=True):
        core = scipy.ndimage.binary_erosion(mask, window, thickness, border_value=1)  # beyond the patch is lesion
        assert core.any() and (mask & ~core).any()
        assert float(value) == pytest.approx((image[mask & ~core].mean() - image[core].mean()) / 10, rel=1e-4)


def test_shell_of_known_strength_has_its_logit() -> None:
    x, y, z = np.meshgrid(np.arange(24), np.arange(24), np.arange(8), indexing="ij")
    mask = (abs(x - 12) <= 5) & (abs(y - 12) <= 4) & (abs(z - 4) <= 1)
    core = (abs(x - 12) <= 4) & (abs(y - 12) <= 3) & (abs(z - 4) <= 1)
    image = torch.stack([patch(mask, np.where(core, base, base + 30.0)) for base in (-20.0, 0.0, 40.0)])
    assert RimContrast(thickness=1)(image).tolist() == pytest.approx(
        [3.0, 3.0, 3.0], rel=1e-5
    )  # a base of its own does not count
    assert RimContrast(unit=30.0, thickness=1)(image).tolist() == pytest.approx([1.0] * 3, rel=1e-5)
    assert RimContrast(thickness=1)(-image).tolist() == pytest.approx([-3.0] * 3, rel=1e-5)
    # A core of 0 ppb is told from the outside by the FLAIR.
    assert bool((image[1, 0][torch.from_numpy(core)] == 0).all())


def test_lesions_without_a_core_have_no_contrast() -> None:
    thin, empty, whole = np.zeros((24, 24, 8)), np.zeros((24, 24, 8)), np.ones((24, 24, 8))
    thin[10:12, 3:20, 2:5] = 1
    image = torch.stack([patch(mask, np.full_like(mask, 35.0)) for mask in (thin, empty, whole)])
    assert RimContrast()(image).tolist() == [0, 0, 0]


def test_contrast_is_called_like_the_network() -> None:
    image = torch.stack([patch(blob(seed), np.full((24, 24, 8), 10.0)) for seed in range(3)])
    image[:, 0] *= torch.rand(image[:, 0].shape, generator=torch.Generator().manual_seed(0))
    model = RimContrast().train()
    alone = torch.cat([model(one[None]) for one in image])
    assert torch.equal(model(image, torch.zeros(3, 527), torch.ones(3)), alone) and alone.shape == (3,)
    assert not list(model.parameters())
    half = model(image.bfloat16())
    assert half.dtype == torch.float32 and torch.allclose(half, alone, atol=0.02)


@pytest.mark.parametrize(
    ("options", "name"), [({"unit": 0.0}, "unit"), ({"qsm_scale": -1.0}, "qsm_scale"), ({"thickness": 0}, "thickness")]
)
def test_contrast_refuses_impossible_options(options: dict, name: str) -> None:
    with pytest.raises(ValueError, match=name):
        RimContrast(**options)
