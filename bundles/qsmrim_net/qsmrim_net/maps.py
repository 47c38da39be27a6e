"""Lesions painted with their class, their probability and their number, on the grid of the input."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from torch import Tensor

from shared_transforms.io import ParameterMap

from .pipeline import SubjectLesions

__all__ = ["MapsFromTabled"]

PROBABILITY, CLASSES, NUMBERS = "label-rim_probseg", "desc-rim_dseg", "desc-lesion_dseg"  # after BIDS derivatives
_OF_PROBABILITY = "Probability of a paramagnetic rim, mean of the networks, on the voxels of each lesion; 0 elsewhere"
_OF_CLASSES = "1: lesion without a rim, 2: lesion with a paramagnetic rim, by vote of the networks"
_OF_NUMBERS = "Number of each lesion in the table"


class MapsFromTabled(MapTransform):
    """Turn the rows of the lesions into ``item["maps"]``; ``item["pred"]`` becomes the map of the probability.

    Voxels of a lesion have its mean probability, its class (1 without, 2 with a rim, by vote) and its number in the
    table; all others 0. ``item["image"]`` is the volumes again.

    Args:
        keys: key of the tables, as ``LesionTabled`` makes them.
        lesions_key: key of the :class:`.pipeline.SubjectLesions`.
        volume_key: key of the volumes ``[3, H, W, D]`` with the affine of the file.
        image_key: key under which the volumes are left.
        pred_key: key of the probability map, a MetaTensor ``[1, H, W, D]`` float32.
    """

    def __init__(
        self,
        keys: KeysCollection = "tables",
        lesions_key: str = "lesions",
        volume_key: str = "volume",
        image_key: str = "image",
        pred_key: str = "pred",
    ) -> None:
        super().__init__(keys)
        self.lesions_key, self.volume_key = lesions_key, volume_key
        self.image_key, self.pred_key = image_key, pred_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item with ``maps``, ``pred`` and ``image``."""
        item = dict(data)
        lesions: SubjectLesions = item[self.lesions_key]
        for key in self.key_iterator(item):
            rows = item[key]["lesions"]
            labels = lesions.order.to_file(lesions.labels).long()
            probability = _painted(labels, [row["probability"] for row in rows], torch.float32)
            classes = _painted(labels, [1 + row["rim"] for row in rows], torch.int32)
            numbers = _painted(labels, lesions.ids, torch.int32)
            item["maps"] = {
                PROBABILITY: ParameterMap(probability, "1", _OF_PROBABILITY, (0.0, 1.0), "painted"),
                CLASSES: ParameterMap(classes, "1", _OF_CLASSES, (0.0, 2.0), "labels"),
                NUMBERS: ParameterMap(numbers, "1", _OF_NUMBERS, (0.0, float(max(lesions.ids))), "labels"),
            }
            item[self.image_key] = item[self.volume_key]
            item[self.pred_key] = MetaTensor(probability[None], affine=item[self.image_key].affine)
        return item


def _painted(labels: Tensor, values: Sequence[float], dtype: torch.dtype) -> Tensor:
    """The value of each lesion on its voxels, 0 elsewhere."""
    return torch.tensor([0, *values], dtype=dtype)[labels]
