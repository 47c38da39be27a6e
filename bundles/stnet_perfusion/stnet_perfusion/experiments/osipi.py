"""The 14 reference curves of the OSIPI task force: data that our simulator has not made."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from physics.perfusion import haematocrit_factor
from shared_transforms.errors import QMRIError
from shared_transforms.experiments import Row
from shared_transforms.metrics import pearson

from .bench import Bench
from .cohort import Subject
from .methods import CLASSICAL, NETWORKS

FILE = "dsc_data.csv"
SIDE = 9  # of the patch that shows one curve: the neighbourhood that the network sees
COLUMNS = ("label", "C_tis", "C_aif", "cbv", "cbf", "tr")


@torch.no_grad()
def osipi(bench: Bench, methods: Sequence[str] = (*CLASSICAL, *NETWORKS)) -> list[Path]:
    """CBV and CBF of every method for the curves, without calibration.

    Args:
        bench: methods, output folder, and ``data_dir`` with ``dsc_data.csv``.
        methods: names as in :data:`.methods.LABELS`.
    """
    curves = read_curves(Path(str(bench.data_dir)) / FILE)
    examination = as_examination(curves)
    true = torch.tensor([[row["cbv"] for row in curves], [row["cbf"] for row in curves]], dtype=torch.float64)
    rows: list[Row] = []
    for method in bench.methods(methods):
        # The curves are not of blood in large and small vessels: their reference has no haematocrit factor.
        found = bench.estimate(method, examination).double().cpu() / torch.tensor([[_STANDARD], [_STANDARD], [1.0]])
        for k, curve in enumerate(curves):
            rows.append({
                "method": method.name, "curve": curve["label"], "cbv": found[0, k], "cbv_true": true[0, k],
                "cbf": found[1, k], "cbf_true": true[1, k], "tmax": found[2, k],
            })  # fmt: skip
        ratio = found[:2] / true
        rows.append({
            "method": method.name, "curve": "all", "cbv_over_true": ratio[0].mean(), "cbf_over_true": ratio[1].mean(),
            "cbf_over_true_sd": ratio[1].std(), "cbv_mae": (found[0] - true[0]).abs().mean(),
            "cbf_mae": (found[1] - true[1]).abs().mean(), "cbf_correlation": pearson(found[1], true[1]),
        })  # fmt: skip
    rows.sort(key=lambda row: row["curve"] != "all")
    notes = [
        "14 simulated curves of the OSIPI perfusion code collection, CNR 200, no delay, no dispersion. Not calibrated. "
        "No vein: the arterial curve stands for it, so k_AV is 1, and the scale of the arterial curve alone makes that "
        f"of CBV and CBF; haematocrit factor 1 (our estimates divided by {_STANDARD:.4f}), as in the reference. The "
        "integrals of the curves themselves give 1.03 to 1.19 times the CBV that is named for them.",
        f"Each curve fills a patch of {SIDE} x {SIDE} voxels with the same noise, so the neighbourhood helps no "
        "method; the network has no baseline to see (1 everywhere). cbv [ml/100 g], cbf [ml/100 g/min], tmax [s]; "
        "*_over_true: mean ratio.",
    ]
    return bench.write("osipi", [*rows, *bench.absent(methods)], notes)


_STANDARD = haematocrit_factor()


def read_curves(path: Path) -> list[Row]:
    """The rows of the file: label, tissue and arterial curve ``[T]``, CBV, CBF, frame time [s].

    Raises:
        QMRIError: where the file is not there or has other columns.
    """
    if not path.is_file():
        raise QMRIError(file=path, field="data_dir", found="no such file", expected=f"a folder with {FILE}",
                        remedy="give the folder of the OSIPI curves with --data_dir")  # fmt: skip
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if missing := set(COLUMNS) - set(reader.fieldnames or ()):
            raise QMRIError(file=path, field="columns", found=f"no {', '.join(sorted(missing))}",
                            expected=", ".join(COLUMNS), remedy="give the file as OSIPI has it")  # fmt: skip
        return [
            {
                "label": row["label"], "tissue": _numbers(row["C_tis"]), "arterial": _numbers(row["C_aif"]),
                "cbv": float(row["cbv"]), "cbf": float(row["cbf"]), "frame_time": float(row["tr"]),
            }
            for row in reader
        ]  # fmt: skip


def as_examination(curves: Sequence[Row]) -> Subject:
    """All curves as one examination, a slice of equal voxels for each; judged is the middle voxel of every slice."""
    tissue = torch.stack([row["tissue"] for row in curves], -1)
    image = tissue[:, None, None].expand(-1, SIDE, SIDE, -1)
    image = torch.cat([torch.ones_like(image[:1]), image])[None]
    everywhere = torch.ones_like(image[:, :1], dtype=torch.bool)
    middle = torch.zeros_like(everywhere[0, 0])
    middle[SIDE // 2, SIDE // 2] = True
    arterial = curves[0]["arterial"][None]
    if any(not torch.equal(row["arterial"], arterial[0]) for row in curves):
        raise ValueError("all curves must have one arterial curve")
    nothing = torch.zeros(3, len(curves))
    return Subject(
        name="OSIPI", stroke=False, image=image, mask=everywhere, aif=arterial, vof=arterial,
        frame_time=curves[0]["frame_time"], voxel_size=(1.0, 1.0, 1.0), snr=float("nan"), tissue=middle, truth=nothing,
        lesion=nothing[0].bool(), series={},
    )  # fmt: skip


def _numbers(text: str) -> Tensor:
    return torch.tensor([float(part) for part in text.split()])
