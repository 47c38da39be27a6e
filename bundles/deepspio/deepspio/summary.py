"""What a user asks of the map: how much iron there is and where, region by region, and how far to trust it."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from matplotlib.figure import Figure
from monai.config import KeysCollection
from monai.transforms import MapTransform

from physics.viewline import MILLIMOLAR
from shared_transforms.errors import QMRIError
from shared_transforms.io import PlaneOrientation
from shared_transforms.report import ReportSection

from .charts import concentration_figure, simulation_figure
from .regions import Region, find_regions
from .resimulation import lift

__all__ = ["ParticleSummaryd"]

Array = npt.NDArray[np.float64]

_ROWS = 20  # of the table in the report; the CSV file has all
_UNITS = f"ug/mm^3 of iron; 1 ug/mm^3 is {MILLIMOLAR:.1f} mM"


class ParticleSummaryd(MapTransform):
    """Measure the regions with particles: ``item["summary"]``, its ``tables``, and the parts of the report for both.

    Regions are voxels of the mask that touch; they are numbered by falling iron. Nothing is written.

    Args:
        keys: key of the maps, as ``MapsFromPredictiond`` makes them.
        smallest_region_mm2: smaller regions get no line of their own [mm^2]; they count in the whole.
        thickness_mm: of the bodies across the plane, for the mass; None for round ones.
        image_key: key of the MetaTensor ``[2, H, W, D]``.
        plane_key: key of the image ``[2, X, Z]``.

    Raises:
        QMRIError: a smallest region that is negative.
    """

    def __init__(
        self,
        keys: KeysCollection = "maps",
        smallest_region_mm2: float = 0.1,
        thickness_mm: float | None = None,
        image_key: str = "image",
        plane_key: str = "plane",
    ) -> None:
        super().__init__(keys)
        if not (math.isfinite(smallest_region_mm2) and smallest_region_mm2 >= 0.0):
            raise QMRIError(
                field="smallest_region_mm2",
                found=smallest_region_mm2,
                expected="0 or more",
                remedy="correct the config",
            )
        self.smallest, self.thickness = float(smallest_region_mm2), thickness_mm
        self.image_key, self.plane_key = image_key, plane_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item with ``summary`` and ``sections`` of the report."""
        item = dict(data)
        dx, dz = (float(side) for side in item["acquisition"]["pixel_size"])
        for key in self.key_iterator(item):
            to_plane = item["orientation"].to_plane
            concentration = to_plane(item[key]["concentration"].data)
            mask = to_plane(item[key]["mask"].data).numpy().astype(bool)
            values = concentration.numpy().astype(np.float64)
            labels, regions, whole = find_regions(values, mask, (dx, dz), self.smallest)
            affine = np.asarray(item[self.image_key].affine, dtype=np.float64)
            world = [_world(region.centre, values.shape, (dx, dz), item["orientation"], affine) for region in regions]
            body = lift(concentration.double(), (dx, dz), self.thickness)
            item["summary"] = {
                "stem": item["stem"],
                "units": _UNITS,
                "regions": [_facts(i, *both) for i, both in enumerate(zip(regions, world, strict=True), 1)],
                "all": None if whole is None else _facts("all", whole),
                "left_out": {
                    "smallest_region_mm2": self.smallest,
                    "area_mm2": float((mask & (labels == 0)).sum()) * dx * dz,
                },
                "mass": {
                    "iron_ug": float(body.sum()) * dx * dx * dz,
                    "assumes": item.get("details", {}).get("Bodies across the plane", "round bodies"),
                },
                "negative_share": _negative_share(values),
                "quality": _quality(item),
            }
            item["tables"] = {"regions": _table(item["summary"])}
            image, top = _double(item[self.plane_key]), item[key]["concentration"].display_range[1]
            shown = concentration_figure(image, values, labels, [r.centre for r in regions], (dx, dz), top)
            item["sections"] = [
                *item.get("sections", []),
                _regions_section(item["summary"], shown),
                _simulation_section(item, image, (dx, dz)),
            ]
        return item


def _facts(name: int | str, region: Region, world: Sequence[float] | None = None) -> dict[str, Any]:
    """Numbers of a region, each with its unit in its name."""
    r, a, s = (None, None, None) if world is None else world
    return {
        "region": name,
        "mean_ug_per_mm3": region.mean,
        "centre_mean_ug_per_mm3": region.centre_mean,
        "peak_ug_per_mm3": region.peak,
        "mean_mM": region.mean_millimolar,
        "centre_mean_mM": region.centre_mean_millimolar,
        "area_mm2": region.area,
        "iron_ug_per_mm": region.iron,
        "x_mm": region.centre[0],
        "z_mm": region.centre[1],
        "world_r_mm": r,
        "world_a_mm": a,
        "world_s_mm": s,
    }


def _table(summary: Mapping[str, Any]) -> str:
    """Regions, and all of them in the last line, as CSV."""
    whole = summary["all"]
    rows = [*summary["regions"], *([] if whole is None else [whole])]
    names = [*_facts("", Region(0.0, 0.0, 0.0, 0.0, 0.0, (0.0, 0.0)))]
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, names, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({name: f"{value:.6g}" if isinstance(value, float) else value for name, value in row.items()})
    return buffer.getvalue()


def _quality(item: Mapping[Hashable, Any]) -> dict[str, float | None]:
    found = item["resimulation"]
    decibels = float(found["decibels"])
    return {
        "relative_residual": float(item["residual"]),
        "relative_residual_without_iron": float(found["without_iron"]),
        "relative_residual_of_noise": float(found["noise"]),
        "signal_to_noise_db": decibels if math.isfinite(decibels) else None,
    }


def _regions_section(summary: Mapping[str, Any], figure: Figure) -> ReportSection:
    whole, regions = summary["all"], summary["regions"]
    if whole is None:
        text = "No voxel is counted as holding particles."
        return ReportSection("Particles", text, figures=[(figure, "Image and concentration.")])
    text = (
        f"{whole['iron_ug_per_mm']:.3g} ug of iron in each mm across the plane, in {whole['area_mm2']:.3g} mm^2 and "
        f"{len(regions)} region{'s' * (len(regions) != 1)}; {summary['mass']['iron_ug']:.3g} ug in all, if one assumes "
        f"{summary['mass']['assumes']}. Centre: at least half of the inner radius away from the edge of a region. "
        "Places count from the middle of the image."
    )
    if len(regions) > _ROWS:
        text += f" The {_ROWS} regions with the most iron; the CSV file has all {len(regions)}."
    left_out = summary["left_out"]
    if left_out["area_mm2"]:
        text += (
            f" {left_out['area_mm2']:.2g} mm^2 in regions below {left_out['smallest_region_mm2']:g} mm^2 count in the "
            "last line alone."
        )
    rows = [_row(region) for region in [*regions[:_ROWS], whole]]
    caption = "Image with the outlines of the regions, and the concentration with their numbers."
    return ReportSection("Particles", text, rows, [(figure, caption)])


def _row(region: Mapping[str, Any]) -> dict[str, str]:
    return {
        "Region": str(region["region"]),
        "Mean of the centre [ug/mm^3]": f"{region['centre_mean_ug_per_mm3']:.3g}",
        "[mM Fe]": f"{region['centre_mean_mM']:.3g}",
        "Mean [ug/mm^3]": f"{region['mean_ug_per_mm3']:.3g}",
        "Peak [ug/mm^3]": f"{region['peak_ug_per_mm3']:.3g}",
        "Area [mm^2]": f"{region['area_mm2']:.3g}",
        "Iron per thickness [ug/mm]": f"{region['iron_ug_per_mm']:.3g}",
        "x, z [mm]": f"{region['x_mm']:.1f}, {region['z_mm']:.1f}",
    }


def _simulation_section(item: Mapping[Hashable, Any], image: Array, pixel_size: tuple[float, float]) -> ReportSection:
    found, quality = item["resimulation"], _quality(item)
    simulated, difference, reference = (_double(found[name]) for name in ("simulated", "difference", "reference"))
    figure = simulation_figure(image, simulated, difference, reference, pixel_size)
    decibels = quality["signal_to_noise_db"]
    rows = [
        _number("Concentration put back", f"{item['residual']:.1%}", "root mean square of image minus simulation"),
        _number("No iron at all", f"{found['without_iron']:.1%}", "the same for lines without particles"),
        _number(
            "Noise", f"{found['noise']:.1%}", "what noise alone leaves at most, from the dark between the lines"
            + ("" if decibels is None else f"; {decibels:.0f} dB"),
        ),
    ]  # fmt: skip
    text = "The concentration was put back through the sequence; what it does not explain is the residual."
    return ReportSection("Image and simulation", text, rows, [(figure, "One scale for all images of lines.")])


def _number(name: str, value: str, meaning: str) -> dict[str, str]:
    return {"Relative residual": name, "Value": value, "Meaning": meaning}


def _negative_share(values: Array) -> float:
    positive = float(np.clip(values, 0.0, None).sum())
    return float(-np.clip(values, None, 0.0).sum() / positive) if positive > 0 else 0.0


def _world(
    centre: tuple[float, float], shape: tuple[int, ...], pixel_size: tuple[float, float], orientation: PlaneOrientation,
    affine: Array,
) -> list[float]:  # fmt: skip
    """A place of the plane (x, z) from its middle [mm] in world coordinates (RAS) [mm]."""
    voxel = np.zeros(3)
    axes = ((orientation.x_axis, orientation.flip_x), (orientation.z_axis, orientation.flip_z))
    for (axis, flip), place, side, length in zip(axes, centre, pixel_size, shape, strict=True):
        index = place / side + 0.5 * (length - 1)
        voxel[axis] = length - 1 - index if flip else index
    return [float(value) for value in affine[:3, :3] @ voxel + affine[:3, 3]]


def _double(image: Any) -> Array:
    tensor = image.as_tensor() if hasattr(image, "as_tensor") else torch.as_tensor(image)
    return np.asarray(tensor.double().cpu().numpy())
