"""APRL (RF): a random forest on the first-order features of a lesion, rims oversampled by SMOTE.

scikit-learn and imbalanced-learn come with the extra ``train``; inference needs neither.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["FirstOrderForest"]

TREES = 500  # grown until pure, each split on sqrt(18) features: the usual forest
NEIGHBOURS = 5  # of SMOTE


class FirstOrderForest:
    """Random forest on first-order radiomics, trained on a table in which rims are as many as all lesions were.

    The n rims of N lesions are oversampled by the reciprocal of their share: ``n / (n / N) = N`` rims stand then
    against ``N - n`` others. Neighbours are found among standardised features, else the feature of the largest unit
    (energy) alone would decide.

    Args:
        seed: of the oversampling and of the trees: equal seeds give equal scores.
        trees: number of trees.

    Raises:
        ValueError: for fewer than one tree.

    Source: Lou et al., APRL, NeuroImage: Clinical 32 (2021) 102796; oversampling as Zhang et al., NeuroImage: Clinical
    34 (2022) 102979, section 2.4. The papers give neither the trees nor the neighbours.
    """

    def __init__(self, seed: int = 0, trees: int = TREES) -> None:
        if trees < 1:
            raise ValueError(f"trees must be 1 or more, got {trees}")
        self.seed, self.trees = seed, trees
        self._forest: Any = None
        self._features = 0

    def fit(self, features: ArrayLike, labels: ArrayLike) -> FirstOrderForest:
        """Train on lesions.

        Args:
            features: ``[M, F]``, finite; APRL takes the 18 first-order features of the QSM [ppb].
            labels: ``[M]``, nonzero for a rim.

        Returns:
            Itself.

        Raises:
            ValueError: for features that are not finite, shapes that do not fit, fewer than two rims, or no other.
        """
        from imblearn.over_sampling import SMOTE
        from imblearn.pipeline import make_pipeline
        from sklearn.ensemble import RandomForestClassifier
        from sklearn.preprocessing import StandardScaler

        values, rim = _finite(features), (np.asarray(labels) != 0).astype(np.int64)
        if rim.shape != (len(values),):
            raise ValueError(f"labels must be [M] with M = {len(values)}, got {rim.shape}")
        rims = int(rim.sum())
        if not 2 <= rims < len(rim):
            raise ValueError(f"two rims and one other lesion are the least to learn from, got {rims} of {len(rim)}")
        self._features = values.shape[1]
        self._forest = make_pipeline(
            StandardScaler(),
            SMOTE(sampling_strategy={1: len(rim)}, k_neighbors=min(NEIGHBOURS, rims - 1), random_state=self.seed),
            RandomForestClassifier(self.trees, random_state=self.seed),
        )
        self._forest.fit(values, rim)
        return self

    def scores(self, features: ArrayLike) -> NDArray[np.float64]:
        """Share of the trees that see a rim.

        Args:
            features: ``[M, F]``, finite, as those of the training.

        Returns:
            ``[M]``, 0 to 1. It is no probability: the forest has learnt from as many rims as others.

        Raises:
            ValueError: for features that are not finite or not as many as those of the training.
            RuntimeError: before the training.
        """
        if self._forest is None:
            raise RuntimeError("the forest is not trained yet, call fit first")
        values = _finite(features)
        if values.shape[1] != self._features:
            raise ValueError(f"features must be [M, {self._features}] as in the training, got {values.shape}")
        return np.asarray(self._forest.predict_proba(values)[:, 1])


def _finite(features: ArrayLike) -> NDArray[np.float64]:
    values = np.asarray(features, dtype=np.float64)
    if values.ndim != 2 or not len(values):
        raise ValueError(f"features must be [M, F], M >= 1, got {values.shape}")
    if wrong := int((~np.isfinite(values)).any(1).sum()):
        raise ValueError(f"features must be finite, {wrong} of {len(values)} lesions have others: leave them out")
    return values
