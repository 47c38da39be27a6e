"""The contract of a cohort: leaks are found, honest cohorts pass, counts are the paper's."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import qsmrim_net.forest
import torch
from qsmrim_net.cohort.contract import contract
from qsmrim_net.cohort.population import LESIONS, RIM_COUNTS
from qsmrim_net.cohort.table import LesionTable
from qsmrim_net.folds import stratified_folds
from qsmrim_net.radiomics.names import FIRST_ORDER
from sklearn.metrics import cohen_kappa_score

SIZE, LEARNT_SIZE = "partial ROC of the size alone", "partial ROC of the size, as the other folds have it"
FOREST, AMPLITUDE = "partial ROC of a first-order random forest", "partial ROC of the true amplitude of the rim"
KAPPA = "kappa of the two raters"
FEATURES = max(FIRST_ORDER) + 20


@pytest.fixture(autouse=True)
def _few_trees(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qsmrim_net.forest, "FirstOrderForest", partial(qsmrim_net.forest.FirstOrderForest, trees=8))


def cohort(rims: tuple[int, ...] = (0, 1, 2, 3, 5, 8) * 4, lesions: int = 600) -> LesionTable:
    """Lesions of which nothing but their label, and the amplitude, says what they are."""
    generator = torch.Generator().manual_seed(0)
    subjects = len(rims)
    # Each subject has its rims and one other lesion; what is left goes round.
    each = [count + 1 + (i < (lesions - sum(rims)) % subjects) for i, count in enumerate(rims)]
    each = [n - 1 + (lesions - sum(rims)) // subjects for n in each]
    label = torch.cat([torch.arange(n) < count for n, count in zip(each, rims, strict=True)]).long()
    m = len(label)
    return LesionTable(
        subject=torch.arange(subjects).repeat_interleave(torch.tensor(each)) * 2 + 5,
        lesion=torch.cat([torch.arange(1, n + 1) for n in each]),
        image=torch.zeros(m, 2, 1, 1, 1),
        features=torch.randn(m, FEATURES, generator=generator, dtype=torch.float64),
        status=torch.zeros(m, dtype=torch.int8),
        label=label,
        raters=torch.stack([label ^ (torch.rand(m, generator=generator) < 0.03).long() for _ in range(2)], 1),
        kind=1 - label,
        amplitude=label * (20 + 45 * torch.rand(m, generator=generator)),
        voxels=(20 * torch.randn(m, generator=generator).exp()).long() + 3,
        volume_ml=torch.ones(m),
    )


def measured(table: LesionTable) -> dict[str, dict[str, Any]]:
    rows = contract(table, stratified_folds(table.rims_per_subject(), 3))
    assert all(set(row) == {"target", "low", "high", "measured", "met"} for row in rows)
    return {row["target"]: row for row in rows}


def test_a_cohort_without_leaks_passes_but_for_its_counts() -> None:
    table = cohort()
    found = measured(table)
    assert found[SIZE]["met"] and found[LEARNT_SIZE]["met"] and found[SIZE]["measured"] < 0.2
    assert found[AMPLITUDE]["met"] and found[AMPLITUDE]["measured"] == 1
    assert not found[FOREST]["met"] and found[FOREST]["measured"] < 0.2  # too hard: features of noise
    assert (found["lesions"]["measured"], found["rims"]["measured"]) == (600, 76)
    assert found["subjects"]["measured"] == 24 and not found["subjects"]["met"]
    assert found["lesions"]["met"] is None  # of no other number of subjects does the paper say anything


@pytest.mark.parametrize(
    ("leak", "alone"),
    [
        (lambda label, size: size * (1 + 30 * label), True),
        (lambda label, size: size * 100 // (1 + 99 * label) + 1, True),
        (lambda label, size: torch.where(label == 1, 200 + size % 20, size % 2 * 999 + size % 100 + 9), False),
    ],
    ids=["larger", "smaller", "between"],
)
def test_sizes_that_tell_are_found(leak: Any, alone: bool) -> None:
    table = cohort()
    found = measured(replace(table, voxels=leak(table.label, table.voxels)))
    assert found[LEARNT_SIZE]["met"] is False
    assert found[SIZE]["met"] is not alone


def test_equal_sizes_tell_nothing() -> None:
    table = cohort()
    found = measured(replace(table, voxels=torch.full_like(table.voxels, 75)))
    assert found[SIZE]["measured"] == found[LEARNT_SIZE]["measured"] == 0


def test_first_order_features_that_tell_are_found() -> None:
    table = cohort()
    shift = torch.zeros(FEATURES, dtype=torch.float64)
    others = [i for i in range(FEATURES) if i not in FIRST_ORDER]
    shift[list(FIRST_ORDER)] = 4
    found = measured(replace(table, features=table.features + table.label[:, None] * shift))
    assert found[FOREST]["measured"] > 0.9 and found[FOREST]["met"] is False
    texture = table.features.clone()
    texture[:, others] += 4 * table.label[:, None]
    assert measured(replace(table, features=texture))[FOREST]["measured"] < 0.2


def test_an_amplitude_that_does_not_show_is_found() -> None:
    table = cohort()
    mixed = table.amplitude[torch.randperm(len(table), generator=torch.Generator().manual_seed(1))]
    assert measured(replace(table, amplitude=mixed))[AMPLITUDE]["met"] is False
    # A cohort from files has no true amplitude.
    row = measured(replace(table, amplitude=torch.full_like(mixed, torch.nan)))[AMPLITUDE]
    assert row["measured"] is None and row["met"] is None
    # Lesions without a rim may have none: that is an amplitude of 0.
    unknown = torch.where(table.label == 1, table.amplitude, torch.nan)
    assert measured(replace(table, amplitude=unknown))[AMPLITUDE]["measured"] == 1


def test_agreement_of_raters_is_cohens_kappa() -> None:
    table = cohort()
    row = measured(table)[KAPPA]
    assert row["measured"] == pytest.approx(cohen_kappa_score(*table.raters.T.numpy()), rel=1e-12)
    same = table.label[:, None].expand(-1, 2)
    assert measured(replace(table, raters=same))[KAPPA]["measured"] == 1


def test_the_papers_counts_meet_the_contract() -> None:
    found = measured(cohort(RIM_COUNTS, LESIONS))
    apart = "rims a subject, distance of the sorted counts from the paper's"
    for name, value in (
        ("subjects", 172),
        ("lesions", 4163),
        ("rims", 177),
        ("subjects without a rim", 112),
        (apart, 0),
    ):
        assert found[name]["measured"] == value and found[name]["met"] is True
    moved = measured(cohort((1, *RIM_COUNTS[1:112], 0, *RIM_COUNTS[113:-1], 18), LESIONS))
    assert moved["rims"]["met"] is False and moved[apart]["measured"] == 1


def test_one_fold_for_each_subject() -> None:
    table = cohort()
    with pytest.raises(ValueError, match=r"folds must be \[24\]"):
        contract(table, np.zeros(len(table), int))


def test_lesions_may_come_in_any_order() -> None:
    table = cohort()
    folds = stratified_folds(table.rims_per_subject(), 3)
    order = torch.randperm(len(table), generator=torch.Generator().manual_seed(2))
    plain, mixed = contract(table, folds), contract(table.select(order), folds)
    for one, other in zip(plain, mixed, strict=True):
        if one["target"] != FOREST and one["measured"] is not None:  # trees depend on the order
            assert other["measured"] == pytest.approx(one["measured"], rel=1e-9)
