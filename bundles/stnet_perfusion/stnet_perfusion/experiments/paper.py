"""What the paper reports, to stand beside our tables (papers/004, tables 1 and 2): mean and SD over its patients.

Its data are patients, its truth commercial software, and its data ranges are not defined: a scale, no competitor. One
cell of its table 2 is left out: the SSIM of the CBV of the network in the lesion repeats the NRMSE of that row.
"""

from __future__ import annotations

from shared_transforms.experiments import Row

SUBJECTS = {"brain": 86, "lesion": 18}
_SEGMENTATION = {
    "paper_fang": ((0.900, 0.059), (0.774, 0.116), (0.645, 0.143), (11.312, 18.679)),
    "paper_stnet": ((0.974, 0.039), (0.859, 0.099), (0.765, 0.141), (9.268, 17.937)),
}
# psnr, ssim, pcc, scc, nrmse
_MAPS = {
    ("CBV", "paper_fang", "brain"): ((26.075, 3.105), (0.862, 0.116), (0.925, 0.104), (0.919, 0.102), (2.715, 2.067)),
    ("CBV", "paper_stnet", "brain"): ((31.644, 3.642), (0.952, 0.067), (0.959, 0.117), (0.961, 0.107), (0.252, 0.200)),
    ("CBF", "paper_fang", "brain"): ((24.470, 2.479), (0.875, 0.067), (0.922, 0.067), (0.941, 0.064), (11.842, 4.612)),
    ("CBF", "paper_stnet", "brain"): ((29.125, 3.312), (0.943, 0.073), (0.956, 0.114), (0.966, 0.108), (0.249, 0.170)),
    ("Tmax", "paper_fang", "brain"): ((20.354, 2.046), (0.736, 0.071), (0.525, 0.094), (0.456, 0.176), (0.743, 0.085)),
    ("Tmax", "paper_stnet", "brain"): ((23.366, 2.937), (0.863, 0.094), (0.791, 0.158), (0.828, 0.139), (0.502, 0.193)),
    ("CBV", "paper_fang", "lesion"): ((25.202, 3.756), (0.848, 0.129), (0.915, 0.133), (0.894, 0.110), (3.184, 1.641)),
    ("CBV", "paper_stnet", "lesion"): ((29.058, 4.600), None, (0.965, 0.064), (0.942, 0.086), (0.331, 0.274)),
    ("CBF", "paper_fang", "lesion"): ((23.836, 2.924), (0.835, 0.105), (0.936, 0.067), (0.924, 0.064), (7.685, 4.136)),
    ("CBF", "paper_stnet", "lesion"): ((28.018, 3.544), (0.909, 0.080), (0.968, 0.055), (0.944, 0.074), (0.355, 0.280)),
    ("Tmax", "paper_fang", "lesion"): ((12.410, 3.220), (0.426, 0.120), (0.429, 0.212), (0.514, 0.239), (0.547, 0.173)),
    ("Tmax", "paper_stnet", "lesion"): (
        (18.113, 3.769), (0.723, 0.110), (0.807, 0.125), (0.820, 0.117), (0.288, 0.125),
    ),
}  # fmt: skip


def segmentation_rows() -> list[Row]:
    """Table 1, at the operating point of the paper, which is a mean threshold of 6.484 s."""
    names = ("auc", "dice", "iou", "hd95")
    return [
        {"method": method, "threshold": "operating point", "subjects": 18, **_columns(names, values)}
        for method, values in _SEGMENTATION.items()
    ]


def map_rows() -> list[Row]:
    """Table 2."""
    names = ("psnr", "ssim", "pcc", "scc", "nrmse")
    return [
        {
            "region": region, "parameter": parameter, "method": method, "subjects": SUBJECTS[region],
            **_columns(names, values),
        }
        for (parameter, method, region), values in _MAPS.items()
    ]  # fmt: skip


def _columns(names: tuple[str, ...], values: tuple[tuple[float, float] | None, ...]) -> Row:
    row: Row = {}
    for name, pair in zip(names, values, strict=True):
        if pair is not None:
            row |= {name: pair[0], f"{name}_sd": pair[1]}
    return row
