"""What a bundle hands to the writer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor


@dataclass(frozen=True)
class ParameterMap:
    """One result of an inference, in physical units.

    Attributes:
        data: [H, W, D], float32 (a mask: any dtype, nonzero is inside; labels: integers, 0 or more).
        unit: unit of ``data``, e.g. "s"; "1" for a ratio, "arbitrary" for an uncalibrated signal.
        description: one sentence for the sidecar and the report.
        display_range: smallest and largest value of the colour bar, in ``unit``.
        kind: what the map is: a parameter, its standard error, a residual or a mask; the numbers of classes or objects
            ("labels"); one value for each object on all of its voxels ("painted"), whose statistics over voxels would
            count large objects more, so that the report leaves it to the bundle's own sections.
    """

    data: Tensor
    unit: str
    description: str
    display_range: tuple[float, float]
    kind: Literal["map", "error", "residual", "mask", "labels", "painted"] = "map"
