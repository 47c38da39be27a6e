"""Agreement and overlap against numpy, scikit-image, scipy, and regions whose distances are known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import mannwhitneyu, rankdata
from skimage.metrics import hausdorff_distance, normalized_root_mse

from shared_transforms.metrics import (
    concordance,
    dice,
    equal_error_threshold,
    hausdorff95,
    iou,
    normalised_rmse,
    pearson,
    roc_auc,
    spearman,
)


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_correlations_equal_numpy_and_ignore_the_outside() -> None:
    truth, mask = draw(9, 8, 7).exp(), draw(9, 8, 7, seed=2) > 0
    estimate = (truth + 0.5 * draw(9, 8, 7, seed=1)).round(decimals=1)  # ties
    x, y = estimate[mask].numpy(), truth[mask].numpy()
    spoilt = torch.where(mask, estimate, torch.nan)
    assert pearson(spoilt, truth, mask) == pytest.approx(np.corrcoef(x, y)[0, 1])
    assert spearman(spoilt, truth, mask) == pytest.approx(np.corrcoef(rankdata(x), rankdata(y))[0, 1])
    assert spearman(estimate.exp(), truth, mask) == pytest.approx(spearman(estimate, truth, mask))
    assert math.isnan(pearson(torch.where(mask, torch.nan, estimate), truth, mask))


def test_concordance_has_closed_forms() -> None:
    """Scale g and offset d of a truth of variance 1: 2 g / (g^2 + 1 + d^2)."""
    truth = draw(1000)
    truth = (truth - truth.mean()) / truth.std(correction=0)
    for gain, offset in ((1.0, 0.0), (0.7, 0.0), (1.0, 0.5), (-1.0, 0.0)):
        expected = 2 * gain / (gain**2 + 1 + offset**2)
        assert concordance(gain * truth + offset, truth) == pytest.approx(expected)
        assert abs(pearson(gain * truth + offset, truth)) == pytest.approx(1)


def test_normalised_error_is_that_of_scikit_image() -> None:
    truth = draw(40).exp()
    estimate = truth + 0.2 * draw(40, seed=1)
    for by, name in (("norm", "euclidean"), ("range", "min-max"), ("mean", "mean")):
        expected = normalized_root_mse(truth.numpy(), estimate.numpy(), normalization=name)
        assert normalised_rmse(estimate, truth, by=by) == pytest.approx(expected)
    assert normalised_rmse(torch.zeros(40), truth) == pytest.approx(1)
    assert normalised_rmse(truth, torch.zeros(40)) == math.inf


def test_a_constant_answer_has_no_correlation() -> None:
    assert math.isnan(pearson(torch.ones(5), draw(5))) and math.isnan(spearman(draw(5), torch.ones(5)))
    assert concordance(torch.ones(5), draw(5)) == 0
    assert math.isnan(concordance(torch.ones(5), torch.ones(5)))


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="one shape"):
        pearson(draw(4), draw(5))
    with pytest.raises(ValueError, match="two values"):
        spearman(draw(4), draw(4), torch.tensor([1, 0, 0, 0]))
    with pytest.raises(ValueError, match="norm, range, mean"):
        normalised_rmse(draw(4), draw(4), by="sd")
    with pytest.raises(ValueError, match="one shape"):
        dice(draw(4), draw(5))
    with pytest.raises(ValueError, match="one shape"):
        roc_auc(draw(4), draw(5))


def test_overlap_of_shifted_boxes_and_of_empty_ones() -> None:
    first, second, none = torch.zeros(3, 10, 10, 10, dtype=torch.bool)
    first[2:6, 2:6, 2:6], second[4:8, 2:6, 2:6] = True, True
    assert (dice(first, second), iou(first, second)) == (0.5, pytest.approx(1 / 3))
    assert [f(none, none) for f in (dice, iou)] == [1, 1]
    assert [f(a, b) for f in (dice, iou) for a, b in ((first, none), (none, first))] == [0, 0, 0, 0]
    assert all(math.isnan(hausdorff95(a, b, (1, 1, 1))) for a, b in ((first, none), (none, first), (none, none)))


def test_distance_is_in_millimetres() -> None:
    first, second = torch.zeros(2, 12, 12, 12, dtype=torch.bool)
    first[3, 3, 3] = True
    second[6, 3, 5] = True
    assert hausdorff95(first, second, (2.0, 2.0, 6.0)) == pytest.approx(math.hypot(6, 12))
    assert hausdorff95(first, first, (2.0, 2.0, 6.0)) == 0


def test_few_far_voxels_do_not_count_in_the_95th_percentile() -> None:
    true = torch.zeros(40, 40, 3, dtype=torch.bool)
    true[5:25, 5:25] = True
    found = true.clone()
    found[38, 38, 1] = True
    whole = hausdorff_distance(found.numpy(), true.numpy())
    assert whole == pytest.approx(math.hypot(14, 14)) and hausdorff95(found, true, (1, 1, 1)) == 0
    found[:, 4:5] = True
    assert 0 < hausdorff95(found, true, (1, 1, 1)) < whole


def test_area_under_the_curve_is_the_rank_statistic() -> None:
    true = draw(3000, seed=1) > 1
    score = draw(3000) + 1.5 * true
    u = mannwhitneyu(score[true].numpy(), score[~true].numpy()).statistic
    assert roc_auc(score, true) == pytest.approx(u / (int(true.sum()) * int((~true).sum())))
    assert roc_auc(torch.zeros(3000), true) == 0.5
    assert math.isnan(roc_auc(score, torch.ones(3000))) and math.isnan(roc_auc(score, torch.zeros(3000)))


def test_equal_errors_of_two_normal_distributions_are_in_their_middle() -> None:
    true = torch.arange(40_000) % 4 == 0
    score = draw(40_000) + 6 + 2 * true
    threshold = equal_error_threshold(score, true)
    assert threshold == pytest.approx(7, abs=0.05)
    missed = float((score[true] < threshold).double().mean())
    taken = float((score[~true] >= threshold).double().mean())
    assert missed == pytest.approx(taken, abs=2e-4)
    assert math.isnan(equal_error_threshold(score, torch.ones(40_000)))
    assert math.isnan(equal_error_threshold(torch.ones(40_000), true))
