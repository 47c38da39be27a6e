"""What a reviewer asks of each lesion and of the subject: probability, votes, thresholds, place, size, flags."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform
from torch import Tensor, nn

from shared_transforms.errors import QMRIError

from .pipeline import SubjectLesions

__all__ = ["LesionTabled", "lesion_rows", "subject_summary"]

MANY_RIMS = 4  # "four or more" go with more disability: Absinta et al., JAMA Neurol. 76 (2019) 1474-1483
_UNITS = (
    "places in mm (world: right, anterior, superior) and in voxels from 0; volumes in ml; probabilities from 0 to 1"
)


class LesionTabled(MapTransform):
    """Put ``item["tables"]["lesions"]``, a row for every lesion, and ``item["summary"]``, the subject, into the item.

    Args:
        keys: key of the calibrated probabilities ``[L, seeds]``; a batch axis of one is dropped.
        network: what made them: its ``thresholds`` ``[2]`` (best F1, high sensitivity) hold for the mean of the seeds,
            its ``seed_thresholds`` ``[seeds]`` for the vote of each.
        lesions_key: key of the :class:`.pipeline.SubjectLesions`.
        volume_key: key of the volumes ``[3, H, W, D]`` with the affine of the file.

    Raises:
        QMRIError: probabilities that are not finite or not between 0 and 1.
    """

    def __init__(
        self,
        keys: KeysCollection = "pred",
        *,
        network: nn.Module,
        lesions_key: str = "lesions",
        volume_key: str = "volume",
    ) -> None:
        super().__init__(keys)
        self.thresholds = tuple(torch.as_tensor(network.thresholds).double().flatten().tolist())
        self.seed_thresholds = torch.as_tensor(network.seed_thresholds).double().cpu().flatten()
        self.lesions_key, self.volume_key = lesions_key, volume_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item with ``tables`` and ``summary``."""
        item = dict(data)
        for key in self.key_iterator(item):
            lesions: SubjectLesions = item[self.lesions_key]
            probabilities = torch.as_tensor(item[key]).double().cpu().reshape(len(lesions.ids), -1)
            if not bool(((probabilities >= 0) & (probabilities <= 1)).all()):
                raise QMRIError(
                    file=item["sources"][0], field="prediction", found="probabilities that are NaN or beyond 0 and 1",
                    expected="numbers between 0 and 1", remedy="check the images for extreme values; report this if "
                    "they are sound",
                )  # fmt: skip
            volume = item[self.volume_key]
            affine = np.asarray(volume.affine, dtype=np.float64)
            rows = lesion_rows(
                lesions, probabilities, self.thresholds, self.seed_thresholds, affine, tuple(volume.shape[1:])
            )
            item["tables"] = {**item.get("tables", {}), "lesions": rows}
            item["summary"] = {
                "stem": item["stem"],
                **subject_summary(rows, self.thresholds, self.seed_thresholds.tolist()),
            }
        return item


def lesion_rows(
    lesions: SubjectLesions, probabilities: Tensor, thresholds: Sequence[float], seed_thresholds: Tensor,
    affine: npt.NDArray[np.float64], shape: tuple[int, ...],
) -> list[dict[str, Any]]:  # fmt: skip
    """One row for each lesion, in the order of the labels; none is left out.

    Args:
        lesions: of one subject.
        probabilities: calibrated ``[L, seeds]``.
        thresholds: of the mean probability: best F1, high sensitivity. A lesion at a threshold is above it.
        seed_thresholds: ``[seeds]``, at or above which a seed votes for a rim; more than half of them make one.
        affine: of the file ``[4, 4]``.
        shape: of the file (H, W, D).

    Returns:
        lesion (its number in the map of the lesions), x_mm, y_mm, z_mm (centre of mass, world), voxel_i, voxel_j,
        voxel_k (nearest voxel of the file, from 0), volume_ml, voxels, probability (mean), probability_seed0 and on,
        votes, rim, above_f1_threshold, above_high_sensitivity_threshold, radiomics ("ok", or why there are none) and
        flags.
    """
    places = lesions.order.file_indices(lesions.geometry["centroid"].numpy(), shape)
    world = places @ affine[:3, :3].T + affine[:3, 3]
    nearest = np.clip(np.floor(places + 0.5), 0, np.asarray(shape) - 1).astype(int)
    voted = probabilities >= seed_thresholds
    mean = probabilities.mean(1)
    columns: dict[str, Sequence[Any]] = {
        "lesion": list(lesions.ids),
        **{f"{axis}_mm": world[:, i].tolist() for i, axis in enumerate("xyz")},
        **{f"voxel_{axis}": nearest[:, i].tolist() for i, axis in enumerate("ijk")},
        "volume_ml": lesions.geometry["volume_ml"].tolist(),
        "voxels": lesions.geometry["voxels"].tolist(),
        "probability": mean.tolist(),
        **{f"probability_seed{i}": column.tolist() for i, column in enumerate(probabilities.T)},
        "votes": voted.sum(1).tolist(),
        "rim": (voted.sum(1) >= _votes_needed(len(seed_thresholds))).tolist(),
        "above_f1_threshold": (mean >= thresholds[0]).tolist(),
        "above_high_sensitivity_threshold": (mean >= thresholds[1]).tolist(),
        "radiomics": list(lesions.statuses),
        "flags": [list(flags) for flags in lesions.flags],
    }
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def subject_summary(
    rows: Sequence[Mapping[str, Any]], thresholds: Sequence[float], seed_thresholds: Sequence[float]
) -> dict[str, Any]:
    """What the rows add up to: counts, volumes, the list to review, the thresholds, and how many have which flag."""
    rims = [row for row in rows if row["rim"]]
    review = sorted(
        (row for row in rows if row["above_high_sensitivity_threshold"]), key=lambda row: -row["probability"]
    )
    return {
        "units": _UNITS,
        "lesions": len(rows),
        "rim_lesions": len(rims),
        "four_or_more_rim_lesions": len(rims) >= MANY_RIMS,
        "lesion_volume_ml": sum(row["volume_ml"] for row in rows),
        "rim_lesion_volume_ml": sum(row["volume_ml"] for row in rims),
        "lesions_above_f1_threshold": sum(row["above_f1_threshold"] for row in rows),
        "review": {
            "lesions": len(review),
            "share": len(review) / max(len(rows), 1),
            "by_falling_probability": [row["lesion"] for row in review],
        },
        "thresholds": {
            "f1": thresholds[0],
            "high_sensitivity": thresholds[1],
            "vote_of_each_seed": list(seed_thresholds),
            "votes_needed": _votes_needed(len(seed_thresholds)),
        },
        "without_radiomics": sum(row["radiomics"] != "ok" for row in rows),
        "flags": dict(sorted(Counter(flag for row in rows for flag in row["flags"]).items())),
    }


def _votes_needed(seeds: int) -> int:
    return seeds // 2 + 1
