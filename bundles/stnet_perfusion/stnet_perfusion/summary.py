"""What a stroke reader asks of the maps: volumes, mismatch, side, and how far to trust them."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform

from shared_transforms.errors import QMRIError
from shared_transforms.io import ParameterMap, read_mask
from shared_transforms.io.nifti import read_header

from .hemispheres import MidPlane, find_mid_plane, relative_to_mirror
from .lesions import (
    CORE_FLOW,
    NORMAL_TMAX,
    Lesion,
    core_by_flow,
    find_fluid,
    find_lesion,
    find_vessels,
    flattened,
    normal_flow,
)
from .maps import HYPOPERFUSED
from .summary_report import sections_of

__all__ = ["MISMATCH_ML", "MISMATCH_RATIO", "StrokeSummaryd"]

Array = npt.NDArray[Any]

MISMATCH_RATIO, MISMATCH_ML = 1.8, 15.0  # DEFUSE 3 (Albers et al., N Engl J Med 2018;378:708)
ONE_SIDED = 0.7  # share of the lesion on one side from which it is said to be of that side
MANY_NEGATIVE = 0.05  # share of voxels with Tmax < 0 from which a note is made
SYMMETRIC = 0.6  # correlation with the mirror image below which the plane is doubtful
NEGATIVE_MEANS = (
    "Tmax < 0: the contrast agent is in this tissue before it is in the artery that was measured. A few are noise; "
    "many mean an artery that itself is reached late, as beyond a stenosis: Tmax is then too short everywhere, volumes "
    "are too small, and another artery should be given (aif_mask_file)"
)
PLANE_LIMITS = (
    "one flat plane, from the symmetry of the image before the bolus: it does not follow a shifted midline, and ratios "
    "to the other side mean little where both sides are ill"
)


class StrokeSummaryd(MapTransform):
    """Measure the lesion: ``item["summary"]``, its parts for the report, and the maps and masks that belong to it.

    ``item["maps"]`` gains CBF and CBV relative to the mirrored tissue and the core; its mask of Tmax > 6 s loses fluid,
    large vessels and the parts that are too small. Nothing is written. The core is what a file says, or
    tissue of the lesion with less than 30 % of the CBF of normal tissue (Tmax at most 6 s, opposite side).

    Args:
        keys: key of the maps, as ``MapsFromPredictiond`` makes them.
        smallest_part_ml: isolated parts of lesion and core below this volume are removed [ml].
        core_mask_file: NIfTI mask of the core on the grid of the series, such as one of a diffusion image; or None.
        mirror_fwhm_mm: width of the Gaussian mean over the mirrored tissue [mm].
        image_key: key of the MetaTensor ``[1 + T, X, Y, Z]``.

    Raises:
        QMRIError: a smallest volume that is negative, or a core that is missing, empty or on another grid.
    """

    def __init__(
        self,
        keys: KeysCollection = "maps",
        smallest_part_ml: float = 1.0,
        core_mask_file: str | Path | None = None,
        mirror_fwhm_mm: float = 10.0,
        image_key: str = "image",
    ) -> None:
        super().__init__(keys)
        for name, value in (("smallest_part_ml", smallest_part_ml), ("mirror_fwhm_mm", mirror_fwhm_mm)):
            if not (math.isfinite(value) and value >= 0.0):
                raise QMRIError(field=name, found=value, expected="0 or more", remedy="correct the config")
        self.smallest_ml, self.fwhm = float(smallest_part_ml), float(mirror_fwhm_mm)
        self.core_file = None if core_mask_file is None else Path(core_mask_file)
        self.image_key = image_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item with ``summary``, ``sections`` of the report, ``notes``, and more in ``maps``."""
        item = dict(data)
        for key in self.key_iterator(item):
            maps, image = dict(item[key]), item[self.image_key]
            affine = np.asarray(image.affine, dtype=np.float64)
            cbv, cbf, tmax = (maps[name].data.numpy() for name in ("cbv", "cbf", "tmax"))
            mask = maps["mask"].data.numpy().astype(bool)
            voxel_ml = abs(float(np.linalg.det(affine[:3, :3]))) / 1000.0
            voxel_mm = np.linalg.norm(affine[:3, :3], axis=0)
            flat = flattened(_array(image[0]), mask, voxel_mm)
            plane = find_mid_plane(flat, mask, affine)
            side = plane.side(mask.shape, affine)
            fluid = find_fluid(flat, cbv, mask, voxel_mm)
            vessels = find_vessels(cbv, mask & ~fluid)
            tissue = mask & ~fluid & ~vessels
            lesion = find_lesion(tmax, tissue, voxel_ml, self.smallest_ml, HYPOPERFUSED)
            core, core_facts = self._core(item, cbf, tmax, tissue, side, lesion, voxel_ml)
            maps["label-hypoperfused_mask"] = _mask_map(lesion.above[HYPOPERFUSED], self._lesion_text())
            maps["label-core_mask"] = _mask_map(core, core_facts["source"])
            for name, values in (("relcbv", cbv), ("relcbf", cbf)):
                maps[name] = self._relative(name, values, tissue, plane, affine)
            item[key] = {name: maps[name] for name in sorted(maps, key=lambda name: maps[name].kind != "map")}
            item["summary"] = {
                "stem": item["stem"],
                "hypoperfusion": self._hypoperfusion(lesion, side, voxel_ml),
                "core": core_facts,
                "mismatch": _mismatch(lesion.above[HYPOPERFUSED], core, voxel_ml),
                "mid_plane": _plane_facts(plane),
                "input_functions": _curve_facts(item),
                "negative_delay": _negative(tmax[tissue]),
                "quality": _quality(item) | _volumes(voxel_ml, brain=mask, fluid=fluid, vessel=vessels),
                "medians": _medians(maps, tissue & (side > 0), tissue & (side < 0)),
            }
            item["notes"] = [*item.get("notes", []), *_notes(item["summary"])]
            drawn = sections_of(item, item["summary"], lesion, core, affine)
            item["sections"] = [*item.get("sections", []), *drawn]
        return item

    def _lesion_text(self) -> str:
        return (
            f"Tissue with Tmax > {HYPOPERFUSED:g} s, without fluid, large vessels and isolated parts below "
            f"{self.smallest_ml:g} ml"
        )

    def _core(
        self, item: dict[Hashable, Any], cbf: Array, tmax: Array, mask: Array, side: Array, lesion: Lesion,
        voxel_ml: float,
    ) -> tuple[Array, dict[str, Any]]:  # fmt: skip
        """The core and what is to be said of it."""
        within = lesion.above[HYPOPERFUSED]
        reference, opposite = normal_flow(cbf, tmax, mask, side, within)
        where = "on the side opposite to the lesion" if opposite else "on both sides"
        facts: dict[str, Any] = {
            "normal_cbf_ml_per_100g_per_min": _number(reference),
            "normal_tissue": f"Tmax at most {NORMAL_TMAX:g} s, {where}",
        }
        if self.core_file is not None:
            core, notes = read_mask(self.core_file, read_header(Path(item["sources"][0])), "core_mask_file")
            item["notes"] = [*item.get("notes", []), *notes]
            item["sources"] = [*item["sources"], str(self.core_file)]
            source = f"Core as given in {self.core_file.name}"
        else:
            core = core_by_flow(cbf, reference, within, voxel_ml, self.smallest_ml)
            source = (
                f"Core: CBF below {CORE_FLOW:.0%} of that of normal tissue, within Tmax > {HYPOPERFUSED:g} s, without "
                f"isolated parts below {self.smallest_ml:g} ml"
            )
        outside = float((core & ~within).sum()) * voxel_ml
        return core, {
            "volume_ml": float(core.sum()) * voxel_ml, "source": source, **facts,
            "outside_hypoperfusion_ml": outside,
        }  # fmt: skip

    def _hypoperfusion(self, lesion: Lesion, side: Array, voxel_ml: float) -> dict[str, Any]:
        volumes = {threshold: float(part.sum()) * voxel_ml for threshold, part in lesion.above.items()}
        main = lesion.above[HYPOPERFUSED]
        right = float((main & (side > 0)).sum()) * voxel_ml
        left = volumes[HYPOPERFUSED] - right
        return {
            "volume_ml": {f"tmax_above_{threshold:g}_s": volume for threshold, volume in volumes.items()},
            "intensity_ratio": volumes[10.0] / volumes[HYPOPERFUSED] if volumes[HYPOPERFUSED] else None,
            "right_ml": right,
            "left_ml": left,
            "side": _side(right, left),
            "smallest_part_ml": self.smallest_ml,
            "removed_small_parts_ml": {f"tmax_above_{t:g}_s": volume for t, volume in lesion.removed_ml.items()},
        }

    def _relative(self, name: str, values: Array, mask: Array, plane: MidPlane, affine: Array) -> ParameterMap:
        ratio = relative_to_mirror(values, mask, plane, affine, self.fwhm).astype(np.float32)
        quantity = name.removeprefix("rel").upper()
        text = (
            f"{quantity} relative to the mirrored tissue (Gaussian mean of {self.fwhm:g} mm); doubtful where the "
            "midline is shifted or both sides are ill"
        )
        return ParameterMap(torch.from_numpy(ratio), "1", text, (0.0, 2.0))


def _side(right: float, left: float) -> str | None:
    total = right + left
    if not total:
        return None
    return "right" if right >= ONE_SIDED * total else "left" if left >= ONE_SIDED * total else "both"


def _mismatch(lesion: Array, core: Array, voxel_ml: float) -> dict[str, Any]:
    """Volume of the lesion less that of the core, as the trials define it."""
    late, lost = float(lesion.sum()) * voxel_ml, float(core.sum()) * voxel_ml
    ratio = late / lost if lost else None
    enough = late - lost >= MISMATCH_ML
    return {
        "volume_ml": late - lost,
        "ratio": ratio,
        "criterion": f"a ratio of at least {MISMATCH_RATIO:g}, or no core, and at least {MISMATCH_ML:g} ml",
        "met": bool(enough and (ratio is None or ratio >= MISMATCH_RATIO)),
    }


def _plane_facts(plane: MidPlane) -> dict[str, Any]:
    return {
        "normal_ras": list(plane.normal),
        "offset_mm": plane.offset,
        "symmetry": plane.symmetry,
        "limits": PLANE_LIMITS,
    }


def _curve_facts(item: Mapping[Hashable, Any]) -> dict[str, Any]:
    """Arterial and venous curve: what they come from, and what they are like."""
    dt = float(item["acquisition"]["repetition_time"])
    chosen = item.get("input_functions", {})
    facts: dict[str, Any] = {"k_av": float(item["k_av"]), "k_av_measured": _number(chosen.get("k_av_measured"))}
    for name in ("aif", "vof"):
        curve = torch.as_tensor(item[name]).flatten().double().cpu()
        found = chosen.get(name, {})
        voxels = found.get("voxels")
        facts[name] = {
            "source": found.get("source", "given"),
            "score": _number(found.get("score")),
            "blood_fraction": _number(found.get("blood_fraction")),
            "clipped": found.get("clipped"),
            "peak_mM": float(curve.max()),
            "time_to_peak_s": float(curve.argmax()) * dt,
            "area_mM_s": float(curve.sum()) * dt,
            "voxels": [] if voxels is None else torch.as_tensor(voxels).tolist(),
            "curve_mM": [round(float(value), 5) for value in curve],
        }
    return facts


def _quality(item: Mapping[Hashable, Any]) -> dict[str, Any]:
    """What the maps rest on; with what the preprocessing found of the series."""
    frames = len(torch.as_tensor(item["aif"]).flatten())
    dt = float(item["acquisition"]["repetition_time"])
    found = {name: value if isinstance(value, bool) else _number(value) for name, value in _found(item).items()}
    return {
        "relative_residual": _number(item.get("residual")),
        "frames": frames,
        "frame_time_s": dt,
        "duration_s": frames * dt,
        **found,
    }


def _volumes(voxel_ml: float, **parts: Array) -> dict[str, float]:
    return {f"{name}_volume_ml": float(part.sum()) * voxel_ml for name, part in parts.items()}


def _negative(tmax: Array) -> dict[str, Any]:
    return {"share": float((tmax < 0).mean()) if tmax.size else 0.0, "meaning": NEGATIVE_MEANS}


def _found(item: Mapping[Hashable, Any]) -> dict[str, Any]:
    return {"snr": item.get("snr"), **item.get("quality", {})}


def _medians(maps: Mapping[str, ParameterMap], right: Array, left: Array) -> dict[str, Any]:
    """Median of each map on each side, with its unit."""
    facts = {}
    for name in ("cbv", "cbf", "mtt", "tmax"):
        values = maps[name].data.numpy()
        sides = {"right": values[right], "left": values[left]}
        medians = {side: float(np.median(some)) if len(some) else None for side, some in sides.items()}
        facts[name] = {"unit": maps[name].unit, **medians}
    return facts


def _notes(summary: Mapping[str, Any]) -> list[str]:
    notes = []
    if summary["negative_delay"]["share"] > MANY_NEGATIVE:
        notes.append(f"{summary['negative_delay']['share']:.0%} of the tissue has {NEGATIVE_MEANS}")
    if summary["mid_plane"]["symmetry"] < SYMMETRIC:
        notes.append(
            f"the image before the bolus is not symmetric (correlation with its mirror image "
            f"{summary['mid_plane']['symmetry']:.2f}): sides and ratios to the other side are doubtful"
        )
    if summary["core"]["outside_hypoperfusion_ml"] > 0.5 * summary["core"]["volume_ml"] > 0.0:
        notes.append("more than half of the core lies outside of the tissue with late perfusion: check the core")
    return notes


def _mask_map(mask: Array, text: str) -> ParameterMap:
    return ParameterMap(torch.from_numpy(np.ascontiguousarray(mask)), "1", text, (0.0, 1.0), "mask")


def _number(value: Any) -> float | None:
    """A finite number, or None: JSON knows no NaN."""
    if value is None:
        return None
    number = float(torch.as_tensor(value))
    return number if math.isfinite(number) else None


def _array(image: Any) -> Array:
    return np.asarray(torch.as_tensor(image).cpu().numpy())
