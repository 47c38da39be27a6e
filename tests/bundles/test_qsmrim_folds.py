"""Folds of subjects: stratified, even, whole, seeded."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from qsmrim_net.cohort.population import RIM_COUNTS
from qsmrim_net.folds import RIM_GROUPS, rim_group, stratified_folds


def test_groups_are_those_of_the_paper() -> None:
    rims = np.arange(20)
    expected = ["0", *["1-3"] * 3, *["4-6"] * 3, *["> 6"] * 13]
    assert [RIM_GROUPS[group] for group in rim_group(rims)] == expected


@pytest.mark.parametrize("folds", [2, 3, 5, 10])
@pytest.mark.parametrize("seed", range(5))
def test_every_group_and_all_subjects_are_spread_evenly(seed: int, folds: int) -> None:
    rims = np.random.default_rng(seed).permutation(RIM_COUNTS)
    fold = stratified_folds(rims, folds, seed)
    assert fold.shape == rims.shape and set(fold) == set(range(folds))
    assert np.ptp(np.bincount(fold, minlength=folds)) <= 1
    for group in range(len(RIM_GROUPS)):
        assert np.ptp(np.bincount(fold[rim_group(rims) == group], minlength=folds)) <= 1


def test_rims_are_balanced_in_five_folds() -> None:
    """Of 177 rims each fold has its fifth, but for what the one subject with 17 brings."""
    for seed in range(20):
        fold = stratified_folds(RIM_COUNTS, seed=seed)
        rims = np.bincount(fold, weights=RIM_COUNTS)
        assert rims.sum() == 177 and rims.min() >= 22 and rims.max() <= 52


def test_one_seed_one_split() -> None:
    assert np.array_equal(stratified_folds(RIM_COUNTS, seed=3), stratified_folds(torch.tensor(RIM_COUNTS), seed=3))
    assert not np.array_equal(stratified_folds(RIM_COUNTS, seed=3), stratified_folds(RIM_COUNTS, seed=4))
    # No fold is favoured: over many seeds a subject is in each as often.
    often = np.bincount([stratified_folds(RIM_COUNTS, seed=seed)[-1] for seed in range(500)], minlength=5)
    assert (abs(often - 100) < 45).all()


def test_as_many_folds_as_subjects_leave_one_out() -> None:
    assert sorted(stratified_folds([0, 1, 5, 9], 4)) == [0, 1, 2, 3]


@pytest.mark.parametrize("rims", [[0.5, 1.0], [-1, 2], [[1, 2]]])
def test_what_is_no_count_is_refused(rims: list) -> None:
    with pytest.raises(ValueError, match="counts"):
        stratified_folds(rims, 2)


@pytest.mark.parametrize("folds", [1, 4])
def test_impossible_numbers_of_folds_are_refused(folds: int) -> None:
    with pytest.raises(ValueError, match="folds must be from 2 to the number of subjects, 3"):
        stratified_folds([0, 1, 2], folds)
