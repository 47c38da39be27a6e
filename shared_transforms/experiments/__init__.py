"""Tables and figures of experiments: sizes, targets, files with their provenance, and the command that runs them."""

from shared_transforms.experiments.bench import NetworkBench, ResultBench, Row, interval, plain, target
from shared_transforms.experiments.cache import kept_estimate, key_of
from shared_transforms.experiments.runner import Experiment, run_experiments

__all__ = [
    "Experiment",
    "NetworkBench",
    "ResultBench",
    "Row",
    "interval",
    "kept_estimate",
    "key_of",
    "plain",
    "run_experiments",
    "target",
]
