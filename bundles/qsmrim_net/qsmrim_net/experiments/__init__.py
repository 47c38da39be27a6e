"""The experiments: methods compared on the scores of lesions that they were not trained on.

``configs/cross_validation.json`` makes the scores. ``configs/experiments.json`` names the experiments with their sizes,
in the order of :data:`EXPERIMENTS`; each is a function of a :class:`~.bench.Bench`, and
:func:`shared_transforms.experiments.run_experiments` runs one or all.
"""

EXPERIMENTS = (
    "contract", "lesion_table", "ablation", "curves", "subjects", "bootstrap", "review", "raters", "thresholds",
    "calibration", "kinds", "new_cohort", "timing",
)  # fmt: skip
