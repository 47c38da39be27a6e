"""Folds of subjects, each with its share of those that have many rims."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["RIM_GROUPS", "rim_group", "stratified_folds"]

RIM_GROUPS = ("0", "1-3", "4-6", "> 6")
_BOUNDS = (1, 4, 7)  # rims with which the next group begins


def rim_group(rims_per_subject: ArrayLike) -> NDArray[np.int64]:
    """Group of each subject by its rims: 0, 1 to 3, 4 to 6, or more (index of ``RIM_GROUPS``).

    Args:
        rims_per_subject: number of lesions with a rim [S].

    Returns:
        [S], 0 to 3.

    Raises:
        ValueError: when these are no counts.

    Source: Zhang et al., NeuroImage: Clinical 34 (2022) 102979, section 2.3.
    """
    rims = np.asarray(rims_per_subject)
    if rims.ndim != 1 or not np.issubdtype(rims.dtype, np.integer) or (rims < 0).any():
        raise ValueError(f"rims_per_subject must be counts [S], integers >= 0, got {rims.dtype} {rims.shape}: {rims}")
    return np.digitize(rims, _BOUNDS).astype(np.int64)


def stratified_folds(rims_per_subject: ArrayLike, folds: int = 5, seed: int = 0) -> NDArray[np.int64]:
    """Fold of each subject: every group of :func:`rim_group` is spread at random, and as evenly as it goes.

    In each group, and over all subjects, the folds' sizes differ by one at most. A subject has one fold: its lesions
    are never split.

    Args:
        rims_per_subject: number of lesions with a rim [S].
        folds: number of folds, 2 to S.
        seed: equal seeds give equal folds.

    Returns:
        [S], 0 to folds - 1.

    Raises:
        ValueError: when the numbers are no counts, or there are fewer subjects than folds.

    Source: Zhang et al., NeuroImage: Clinical 34 (2022) 102979, section 2.3.
    """
    group = rim_group(rims_per_subject)
    if not 2 <= folds <= len(group):
        raise ValueError(f"folds must be from 2 to the number of subjects, {len(group)}, got {folds}")
    generator = np.random.default_rng(seed)
    mixed = generator.permutation(len(group))
    ordered = mixed[np.argsort(group[mixed], kind="stable")]  # group after group, at random within each
    # Dealt one after the other, the next group goes on where the last one ended: no fold gets all the remainders.
    result = np.empty(len(group), np.int64)
    result[ordered] = generator.permutation(folds)[np.arange(len(group)) % folds]
    return result
