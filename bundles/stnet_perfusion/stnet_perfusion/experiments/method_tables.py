"""The paper's tables 1 and 2 on a held-out cohort, and the volumes of hypoperfused tissue."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from shared_transforms.experiments import Row, target
from shared_transforms.metrics import concordance, pearson

from . import charts
from .bench import Bench
from .cohort import PARAMETERS, Subject, cohort
from .methods import COMPARED, LABELS, Method
from .paper import map_rows, segmentation_rows
from .scores import HYPOPERFUSED, MAP_SCORES, REGION_SCORES, map_scores, region_scores, summaries

SHOWN = ("stnet", "osvd", "csvd", "ttv")  # in the figure of maps
# Of the paper's network, on our cohort: the figures that define their data range.
SSIM_TARGETS = {"CBV": 0.952, "CBF": 0.943, "Tmax": 0.863}
DICE_TARGET, AUC_TARGET, CONCORDANCE_TARGET = 0.859, 0.974, 0.95


class Tables:
    """Rows of single subjects, gathered one subject after the other.

    Attributes:
        maps: of table 2, calibrated.
        uncalibrated: the same before.
        regions: of table 1.
        volumes: of hypoperfused tissue, one row for each subject [ml].
    """

    def __init__(self) -> None:
        self.maps: list[Row] = []
        self.uncalibrated: list[Row] = []
        self.regions: list[Row] = []
        self.volumes: list[Row] = []

    def add(self, subject: Subject, estimates: Sequence[tuple[Method, Tensor, Tensor, float]]) -> None:
        """Score a subject.

        Args:
            subject: the examination.
            estimates: method, its maps ``[3, V]`` as they are and calibrated, and its operating point [s].
        """
        volume: Row = {
            "subject": subject.name, "stroke": subject.stroke, "snr": subject.snr, "frame_time_s": subject.frame_time,
            "truth_ml": subject.voxel_ml * int(subject.lesion.sum()),
        }  # fmt: skip
        for method, raw, mapped, point in estimates:
            for rows, maps in ((self.maps, mapped), (self.uncalibrated, raw)):
                for k, parameter in enumerate(PARAMETERS):
                    for region, row in map_scores(subject, maps[k], k).items():
                        rows.append({"region": region, "parameter": parameter, "method": method.name, **row})
            if subject.stroke:
                for name, threshold in (("6 s", HYPOPERFUSED), ("operating point", point)):
                    row = {"method": method.name, "threshold": name, "threshold_s": threshold}
                    self.regions.append({**row, **region_scores(subject, mapped[2], threshold)})
            volume[f"{method.name}_ml"] = subject.voxel_ml * int((mapped[2] > HYPOPERFUSED).sum())
        self.volumes.append(volume)

    def agreement(self) -> list[Row]:
        """Agreement of the volumes with the truth, over all subjects and over those with a stroke."""
        found = []
        methods = [name.removesuffix("_ml") for name in self.volumes[0] if name.endswith("_ml")]
        for group in ("all", "stroke"):
            members = [row for row in self.volumes if row["stroke"] or group == "all"]
            for method in methods if len(members) > 1 else ():
                if method == "truth":
                    continue
                own, true = (
                    torch.tensor([row[f"{name}_ml"] for row in members], dtype=torch.float64)
                    for name in (method, "truth")
                )
                difference = own - true
                found.append({
                    "method": method, "group": group, "subjects": len(members),
                    "concordance": concordance(own, true), "correlation": pearson(own, true),
                    "bias_ml": difference.mean(), "sd_ml": difference.std(), "mae_ml": difference.abs().mean(),
                    "truth_mean_ml": true.mean(),
                })  # fmt: skip
        return found


@torch.no_grad()
def method_tables(bench: Bench, subjects: int = 86, strokes: int = 18, methods: Sequence[str] = COMPARED) -> list[Path]:
    """Tables 1 and 2 of the paper for every method, and the agreement of the volumes.

    Args:
        bench: methods and output folder.
        subjects: of the test split.
        strokes: how many of these with a stroke.
        methods: names as in :data:`.methods.LABELS`.
    """
    subjects, strokes = bench.pick((subjects, strokes), (3, 2))
    ready = bench.methods(methods)
    rows = {method.name: bench.calibrated(method.name) for method in ready}
    tables = Tables()
    files: list[Path] = []
    for number, subject in enumerate(tqdm(cohort(bench, "test", subjects, strokes), "method tables", subjects)):
        found = []
        for method in ready:
            raw = bench.estimate(method, subject)
            found.append((method, raw, bench.calibrate(method, raw), rows[method.name]["threshold_s"] or HYPOPERFUSED))
        tables.add(subject, found)
        if number == 0:
            maps = {method.name: mapped for method, _, mapped, _ in found if method.name in SHOWN}
            files.append(bench.save_figure("maps", charts.maps_figure(subject, maps)))
    return [*files, *_write(bench, tables, subjects, strokes, methods)]


def _write(bench: Bench, tables: Tables, subjects: int, strokes: int, methods: Sequence[str]) -> list[Path]:
    absent, common = bench.absent(methods), _notes(subjects, strokes)
    first = summaries(tables.regions, ("method", "threshold", "threshold_s"), REGION_SCORES, bench.seed)
    keys = ("region", "parameter", "method")
    second, raw = (summaries(rows, keys, MAP_SCORES, bench.seed) for rows in (tables.maps, tables.uncalibrated))
    agreement = tables.agreement()
    files = bench.write(
        "table1", [*first, *segmentation_rows(), *absent], [*common, _TABLE1], _segmentation_targets(first)
    )
    files += bench.write("table2", [*second, *map_rows(), *absent], [*common, _TABLE2], _map_targets(second))
    files += bench.write("table2_uncalibrated", [*raw, *absent], [*common, _TABLE2, "Without calibration."])
    files += bench.write("volumes", tables.volumes, [*common, _VOLUMES])
    targets = [
        target(f"concordance of hypoperfused volume, {row['group']} subjects", row["concordance"],
               CONCORDANCE_TARGET, below=False)
        for row in agreement if row["method"] == "stnet"
    ]  # fmt: skip
    files += bench.write("volume_agreement", [*agreement, *absent], [*common, _VOLUMES], targets)
    files.append(bench.save_figure("table2", charts.boxes_figure(tables.maps)))
    files.append(bench.save_figure("volumes", charts.volumes_figure(tables.volumes)))
    return files


def _segmentation_targets(rows: Sequence[Row]) -> list[Row]:
    found = []
    for row in rows:
        if row["method"] == "stnet":
            place = f"{LABELS['stnet']}, lesions, {row['threshold']}"
            found.append(target(f"Dice: {place}", row["dice"], DICE_TARGET, below=False))
            if row["threshold"] == "6 s":
                found.append(target("AUC: ST-Net, lesions", row["auc"], AUC_TARGET, below=False))
    return found


def _map_targets(rows: Sequence[Row]) -> list[Row]:
    return [
        target(f"SSIM of {row['parameter']}: ST-Net, brain", row["ssim"], SSIM_TARGETS[row["parameter"]], below=False)
        for row in rows if row["method"] == "stnet" and row["region"] == "brain"
    ]  # fmt: skip


def _notes(subjects: int, strokes: int) -> list[str]:
    return [
        f"{subjects} simulated subjects of the test split, {strokes} with a stroke, baseline SNR and repetition time "
        "as drawn. Arterial and venous curves of a few marked voxels. Judged: grey and white matter without large "
        "vessels. Truth of Tmax: parabolic peak of the noise-free cSVD residue (threshold .1) with the true arterial "
        "curve on frames of 1.5 s. All methods calibrated alike on the validation split, see calibration. Paper: "
        "patients, against commercial software; its data ranges are not defined.",
        "Mean over subjects; _sd standard deviation, _low and _high 95 % bootstrap interval of the mean.",
    ]


_TABLE1 = (
    "Truth: Tmax > 6 s. operating point: threshold at which TPR = 1 - FPR on the validation split. Dice, IoU: both "
    "empty 1, one empty 0. hd95: 95th percentile Hausdorff distance [mm], larger of both directions; does not exist "
    "where nothing was found: left out of the mean and counted in hd95_missing. auc: of single subjects."
)
_TABLE2 = (
    "region lesion: true Tmax > 6 s, subjects with a stroke. Data range of psnr [dB] and ssim: of the truth in the "
    "subject's tissue, largest minus smallest value, for both regions. ssim: slice by slice, Gaussian window of "
    "11 x 11 pixels (sigma 1.5). nrmse: root mean square error over root mean square of the truth. mae: in the unit of "
    "the parameter. pcc, scc: Pearson's and Spearman's correlation; of a constant answer they do not exist."
)
_VOLUMES = "Volume of tissue with calibrated Tmax > 6 s [ml], against the truth. concordance: Lin's coefficient."
