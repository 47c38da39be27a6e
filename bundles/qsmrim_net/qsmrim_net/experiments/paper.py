"""What the paper reports on its 172 patients: other data than the simulated cohort, here for comparison.

Source: Zhang et al., QSMRim-Net, NeuroImage: Clinical 34 (2022) 102979: tables 2 and 3, figures 6 and 7, sections 3, 4.
"""

from __future__ import annotations

from shared_transforms.metrics.detection import DetectionCounts

__all__ = ["COUNTS", "DISAGREEMENT", "PROC_AUC", "PR_AUC", "REVIEW", "SECONDS", "SUBJECTS", "counts_of"]

# True and false positives, false and true negatives; the printed rates are rounded from these (two are misprints).
COUNTS = {
    "aprl_network": (104, 58, 73, 3928),
    "aprl_forest": (105, 86, 72, 3900),
    "rimnet": (116, 69, 61, 3917),
    "qsmrim_net": (120, 44, 57, 3942),
    "image_only_branches": (114, 66, 63, 3920),
    "image_only": (108, 50, 69, 3936),
    "no_oversampling": (115, 44, 62, 3942),
}
PROC_AUC = {"rimnet": 0.726, "aprl_forest": 0.628, "qsmrim_net": 0.760}
# Of the comparators the text gives how much higher QSMRim-Net's is: 9.8 and 60.0 %.
PR_AUC = {"rimnet": 0.704 / 1.098, "aprl_forest": 0.704 / 1.6, "qsmrim_net": 0.704}
# Pearson's r with its interval, and mean squared error of the counts.
SUBJECTS = {
    "qsmrim_net": (0.89, 0.86, 0.92, 0.98),
    "aprl_network": (0.88, 0.85, 0.91, 1.02),
    "aprl_forest": (0.77, 0.70, 0.82, 2.26),
    "rimnet": (0.75, 0.67, 0.81, 2.47),
}
# False positives at high sensitivity; those of the comparators from "14.2 and 19.1 % fewer". With the 168 rims of 177
# found at the largest sensitivity below .95, 706 lesions are to be reviewed; the paper prints 715.
REVIEW = {"qsmrim_net": 538, "rimnet": round(538 / (1 - 0.142)), "aprl_forest": round(538 / (1 - 0.191))}
# Share of lesions whose raters disagreed, among false and true positives and negatives.
DISAGREEMENT = {"false positive": 0.409, "false negative": 0.351, "true positive": 0.225, "true negative": 0.024}
SECONDS = 4.6  # for a subject, on a GPU


def counts_of(method: str) -> DetectionCounts | None:
    """The paper's counts of a method, None for one that it does not have."""
    return DetectionCounts(*COUNTS[method]) if method in COUNTS else None
