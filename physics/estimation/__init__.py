"""Batched maximum-likelihood estimation of the parameters of signal models."""

from physics.estimation.fit import B_MODES, DEFAULT_BOUNDS, Fit, fit
from physics.estimation.grid import grid_search, polarity_splits

__all__ = ["B_MODES", "DEFAULT_BOUNDS", "Fit", "fit", "grid_search", "polarity_splits"]
