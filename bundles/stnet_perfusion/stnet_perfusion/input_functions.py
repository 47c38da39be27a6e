"""Arterial input and venous output of an examination: found, marked by a mask or given as a table, and written."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from torch import Tensor

from physics.perfusion import (
    InputFunction,
    arterial_scale,
    find_arterial_input,
    find_venous_output,
    marked_input,
    unmix_tissue,
)
from shared_transforms.atomic import atomic_write
from shared_transforms.errors import QMRIError
from shared_transforms.io import read_mask
from shared_transforms.io.nifti import read_header
from shared_transforms.io.writer import FileWriterd

from .acquisition import BLOOD_RELAXIVITY, TISSUE_RELAXIVITY
from .curve_file import read_curve

__all__ = ["InputFunctionsd", "SaveInputFunctionsd"]

FEW_VOXELS = 3
LOW_SCORE = 0.6
LARGEST_SCALE = 1.1  # k_AV that noise explains
MUCH_TISSUE = 0.6  # of blood in the voxels of the artery, below which the correction is large
NAMES = {"aif": "arterial input", "vof": "venous output"}
NO_VEIN = (
    "no large vein was found in the field of view: the arterial input was taken in its place (k_AV = 1). CBV and CBF "
    "are relative only, and too high where the artery fills its voxels in part; Tmax and ratios between regions do not "
    "suffer. Give vof_mask_file or vof_csv_file where a sinus is visible"
)


class InputFunctionsd(MapTransform):
    """Add the arterial input and the venous output to an inference item.

    For each of the two the first of these is taken: the table in the argument, the mask in the argument, the table or
    mask that was found beside the series (in the item, under the names of the arguments), voxels found by their shape
    (:func:`physics.perfusion.find_arterial_input`, :func:`physics.perfusion.find_venous_output`).

    The item gains ``aif`` and ``vof``, concentrations in blood ``[T']`` [mM], and ``input_functions``: ``{"aif": {...},
    "vof": {...}, "k_av_measured": float}``, each with ``source`` ("automatic", "mask file NAME", "csv NAME" or
    "arterial input"), ``voxels`` ``[n, 3]`` or None, ``score`` (mean) or None, ``scores`` ``[n]``, ``parts`` ``{name:
    [n]}``, ``clipped`` and ``blood_fraction``: the signal of the tissue in the artery's voxels is taken out such that
    the area is that of the venous output (:func:`physics.perfusion.unmix_tissue`). It also gains remarks in ``notes``,
    and ``details``. Without any vein ``vof`` is the arterial input, k_AV = 1, and a note says so.

    Args:
        keys: key of the concentrations, MetaTensor ``[1 + T', X, Y, Z]``, see :class:`.pipeline.Concentrationd`.
        tissue_relaxivity: with which these concentrations were computed [1/s/mM].
        blood_relaxivity: of contrast agent in large vessels [1/s/mM].
        aif_mask_file: NIfTI mask of arterial voxels, on the grid of the series.
        vof_mask_file: likewise of venous voxels.
        aif_csv_file: table of the arterial curve, see :func:`.curve_file.read_curve`.
        vof_csv_file: likewise of the venous curve.
        correct_partial_volume: whether to take tissue out of the arterial curve.
        voxels: most voxels that are taken for a curve.
        mask_key: key of the mask of the brain ``[1, X, Y, Z]``.

    Raises:
        QMRIError: a table or mask that does not fit the series; mask and table of the same curve; no artery found.
    """

    def __init__(
        self,
        keys: KeysCollection = "image",
        tissue_relaxivity: float = TISSUE_RELAXIVITY,
        blood_relaxivity: float = BLOOD_RELAXIVITY,
        aif_mask_file: str | Path | None = None,
        vof_mask_file: str | Path | None = None,
        aif_csv_file: str | Path | None = None,
        vof_csv_file: str | Path | None = None,
        correct_partial_volume: bool = True,
        voxels: int = 8,
        mask_key: str = "mask",
    ) -> None:
        super().__init__(keys)
        for name, value in (("tissue_relaxivity", tissue_relaxivity), ("blood_relaxivity", blood_relaxivity)):
            if not value > 0:
                raise QMRIError(
                    field=name, found=repr(value), expected="a positive number [1/s/mM]", remedy="correct the config"
                )
        self.files = {
            "aif_mask_file": aif_mask_file, "vof_mask_file": vof_mask_file,
            "aif_csv_file": aif_csv_file, "vof_csv_file": vof_csv_file,
        }  # fmt: skip
        self.tissue_relaxivity, self.blood_relaxivity = tissue_relaxivity, blood_relaxivity
        self.correct_partial_volume, self.voxels, self.mask_key = correct_partial_volume, voxels, mask_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item with both curves; see the class."""
        item = dict(data)
        for key in self.key_iterator(item):
            self._add(item, _tensor(item[key]))
        return item

    def _add(self, item: dict[Hashable, Any], image: Tensor) -> None:
        series = image[1:].movedim(0, -1)
        mask = _tensor(item[self.mask_key])[0].bool()
        dt = float(item["acquisition"]["repetition_time"])
        attenuation = float(item["acquisition"]["echo_time"]) * self.tissue_relaxivity
        files = {name: self._file(item, name) for name in NAMES}
        notes: list[str] = []
        found: dict[str, InputFunction | None] = {"aif": None, "vof": None}
        given: dict[str, Tensor] = {}
        for name, (kind, path) in files.items():
            if kind == "csv" and path is not None:
                frames = item.get("frames")
                dummy = 0 if frames is None else int(frames.dummy)
                given[name] = read_curve(path, name, series.shape[-1], dt, dummy, self.blood_relaxivity)
            elif kind == "mask" and path is not None:
                marked, remarks = _marked(item, path, f"{name}_mask_file", mask)
                found[name] = marked_input(series, mask, dt, marked, attenuation=attenuation)
                notes += remarks
            elif name == "aif":
                found["aif"] = self._artery(item, series, mask, dt, attenuation)
            else:
                found["vof"] = find_venous_output(
                    series, mask, dt, arterial=found["aif"], count=self.voxels, attenuation=attenuation
                )
        scale = self.tissue_relaxivity / self.blood_relaxivity
        curves = given | {name: f.curve * scale for name, f in found.items() if f is not None}
        facts = {name: _facts(found[name], files[name]) for name in NAMES}
        if "vof" not in curves:
            curves["vof"] = curves["aif"].clone()
            facts["vof"]["source"] = NAMES["aif"]
            notes.append(NO_VEIN)
        _check_areas(curves, files, item)
        measured = float(arterial_scale(curves["aif"], curves["vof"], dt))
        artery, vein = found["aif"], found["vof"]
        if self.correct_partial_volume and artery is not None and vein is not None:
            curve, fraction = unmix_tissue(
                artery.curve, artery.tissue, float(vein.curve.sum()), attenuation, artery.noise
            )
            curves["aif"], facts["aif"]["blood_fraction"] = curve * scale, fraction
        item.update(curves)
        item["input_functions"] = {**facts, "k_av_measured": measured}
        item["notes"] = [*item.get("notes", []), *notes, *_remarks(found, facts, measured)]
        item["details"] = {**item.get("details", {}), **_details(facts)}
        used = [str(path) for _, path in files.values() if path is not None]
        item["sources"] = list(dict.fromkeys([*item.get("sources", []), *used]))

    def _file(self, item: Mapping[Hashable, Any], name: str) -> tuple[str, Path | None]:
        """What a curve is taken from, "csv", "mask" or "automatic", and its file."""
        for files in (self.files, item):
            there = {kind: files.get(f"{name}_{kind}_file") for kind in ("csv", "mask")}
            there = {kind: path for kind, path in there.items() if path is not None}
            if len(there) > 1:
                raise QMRIError(
                    file=_image_file(item), field=f"{name}_csv_file, {name}_mask_file",
                    found=" and ".join(Path(str(path)).name for path in there.values()),
                    expected=f"one source of the {NAMES[name]}", remedy="give the one that is to be used",
                )  # fmt: skip
            for kind, path in there.items():
                return kind, Path(str(path))
        return "automatic", None

    def _artery(
        self, item: Mapping[Hashable, Any], series: Tensor, mask: Tensor, dt: float, attenuation: float
    ) -> InputFunction:
        try:
            return find_arterial_input(series, mask, dt, count=self.voxels, attenuation=attenuation)
        except ValueError as error:
            raise QMRIError(
                file=_image_file(item), field="arterial input", found=str(error),
                expected="voxels with an early, high and narrow bolus",
                remedy="mark the voxels of an artery (aif_mask_file), or give the curve (aif_csv_file)",
            ) from error  # fmt: skip


class SaveInputFunctionsd(FileWriterd):
    """Write the curves to ``<output_dir>/<stem>/<stem>_desc-aif_timeseries.csv``, with a JSON sidecar.

    The table has the columns ``time`` [s], ``aif`` and ``vof`` [mM in blood], time from the first frame of the file,
    and can be given back as ``aif_csv_file`` and ``vof_csv_file``. The sidecar has units, where the curves come from,
    voxels with their scores and the parts of these, and k_AV. Both are added to ``item["files"]``.

    Args:
        keys: key of the arterial curve; an item without it is left as it is when ``allow_missing_keys``.
        output_dir: folder of the derivative.
        allow_missing_keys: see MapTransform.
    """

    def __init__(
        self, keys: KeysCollection = "aif", *, output_dir: str | Path, allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.output_dir = Path(output_dir)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item with the two files in ``files``."""
        item = dict(data)
        for key in self.key_iterator(item):
            curves = {"aif": item[key], "vof": item["vof"]}
            curves = {name: _tensor(curve).flatten().double() for name, curve in curves.items()}
            stem = str(item["stem"])
            base = self.output_dir / stem / f"{stem}_desc-aif_timeseries"
            contents = {".csv": _table(item, curves), ".json": _sidecar(item, curves)}
            written = [base.with_name(base.name + suffix) for suffix in contents]
            for path, content in zip(written, contents.values(), strict=True):
                with atomic_write(path) as file:
                    file.write(content.encode())
            item["files"] = [*item.get("files", []), *(str(path) for path in written)]
        return item


def _marked(item: Mapping[Hashable, Any], path: Path, field: str, brain: Tensor) -> tuple[Tensor, list[str]]:
    """Voxels of a mask file within the brain, and remarks."""
    marked, notes = read_mask(path, read_header(Path(_image_file(item))), field)
    inside = torch.from_numpy(marked) & brain
    outside = int(marked.sum()) - int(inside.sum())
    if not bool(inside.any()):
        raise QMRIError(
            file=path, field=field, found=f"{outside} voxels, all outside of the mask of the brain",
            expected="voxels of a vessel in the mask of the brain",
            remedy="mark other voxels, or give a mask of the brain that holds these (mask_file)",
        )  # fmt: skip
    return inside, [*notes, *([f"{path.name}: {outside} voxels outside of the brain left out"] if outside else [])]


def _facts(found: InputFunction | None, file: tuple[str, Path | None]) -> dict[str, Any]:
    kind, path = file
    source = "automatic" if path is None else f"{'csv' if kind == 'csv' else 'mask file'} {path.name}"
    if found is None:
        return {"source": source, "voxels": None, "score": None, "scores": None, "parts": {}, "clipped": False}
    scored = len(found.score) > 0
    return {
        "source": source,
        "voxels": found.voxels,
        "score": float(found.score.mean()) if scored else None,
        "scores": found.score if scored else None,
        "parts": dict(found.parts),
        "clipped": found.clipped,
    }


def _check_areas(
    curves: Mapping[str, Tensor], files: Mapping[str, tuple[str, Path | None]], item: Mapping[Hashable, Any]
) -> None:
    for name, curve in curves.items():
        if not (bool(curve.isfinite().all()) and float(curve.sum()) > 0):
            raise QMRIError(
                file=files[name][1] or _image_file(item), field=NAMES[name], found="a curve without a positive area",
                expected="a bolus", remedy="mark or give another curve",
            )  # fmt: skip


def _remarks(
    found: Mapping[str, InputFunction | None], facts: Mapping[str, Mapping[str, Any]], scale: float
) -> list[str]:
    """What a user must know of the quality of the curves."""
    notes = []
    for name, curve in found.items():
        if curve is None:
            continue
        label, fact = NAMES[name], facts[name]
        if curve.clipped:
            notes.append(
                f"clipped {name.upper()}: the signal of its voxels falls to the noise at the peak, so the true peak "
                "may be higher" + (" and CBF is overestimated" if name == "aif" else " and CBV is overestimated")
            )
        if fact["score"] is not None and len(curve.voxels) < FEW_VOXELS:
            notes.append(f"the {label} rests on {len(curve.voxels)} voxel(s): look at the curve")
        if fact["score"] is not None and fact["score"] < LOW_SCORE:
            notes.append(f"the {label} has a low score ({fact['score']:.2f} of 1): look at its curve and voxels")
    artery, vein = found["aif"], found["vof"]
    if artery is not None and vein is not None and vein.centre <= artery.centre:
        notes.append("the venous output does not come after the arterial input: check which is which")
    if scale > LARGEST_SCALE:
        notes.append(
            f"the arterial input has a larger area than the venous output (k_AV {scale:.2f} before any correction): "
            "the vein fills its voxels in part, or the curves have different units; CBV and CBF come out too high"
        )
    fraction = facts["aif"].get("blood_fraction")
    if fraction is not None and fraction < MUCH_TISSUE:
        notes.append(
            f"the arterial voxels hold about {fraction:.0%} blood: the tissue's signal was taken out of the arterial "
            "input, which depends on the venous one"
        )
    return notes


def _details(facts: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    details = {}
    for name, label in NAMES.items():
        voxels, score = facts[name]["voxels"], facts[name]["score"]
        parts = [facts[name]["source"]]
        parts += [] if voxels is None else [f"{len(voxels)} voxels"]
        parts += [] if score is None else [f"score {score:.2f}"]
        fraction = facts[name].get("blood_fraction")
        parts += [] if fraction is None else [f"{fraction:.0%} blood, tissue taken out"]
        details[label.capitalize()] = ", ".join(parts)
    return details


def _tensor(values: Any) -> Tensor:
    """A tensor on the CPU without MONAI's metadata."""
    values = values.as_tensor() if isinstance(values, MetaTensor) else torch.as_tensor(values)
    return values.detach().cpu()


def _image_file(item: Mapping[Hashable, Any]) -> str:
    return str(next(iter(item.get("sources", [])), "image"))


def _start(item: Mapping[Hashable, Any]) -> float:
    """Time of the first frame that is not a dummy [s]."""
    frames = item.get("frames")
    return 0.0 if frames is None else int(frames.dummy) * float(item["acquisition"]["repetition_time"])


def _table(item: Mapping[Hashable, Any], curves: Mapping[str, Tensor]) -> str:
    dt, start = float(item["acquisition"]["repetition_time"]), _start(item)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["time", *curves])
    for index, values in enumerate(zip(*(curve.tolist() for curve in curves.values()), strict=True)):
        writer.writerow([f"{start + index * dt:.6g}", *(f"{value:.7g}" for value in values)])
    return text.getvalue()


def _sidecar(item: Mapping[Hashable, Any], curves: Mapping[str, Tensor]) -> str:
    dt = float(item["acquisition"]["repetition_time"])
    facts = item.get("input_functions", {})
    content: dict[str, Any] = {
        "time": {"Description": "Time from the first frame of the series", "Units": "s"},
        **{
            name: {
                "Description": f"Concentration of contrast agent in blood, {NAMES[name]}",
                "Units": "mM",
                **{title: value for title, value in _plain(facts.get(name, {})).items() if value is not None},
            }
            for name in curves
        },
        "StartTime": _start(item),
        "SamplingFrequency": 1.0 / dt,
        "k_AV": float(arterial_scale(curves["aif"], curves["vof"], dt)),
        "k_AV_measured": facts.get("k_av_measured"),
        "VoxelIndices": "from 0, along the axes of the image",
    }
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def _plain(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The facts of a curve as JSON holds them."""
    return {
        "Source": facts.get("source"),
        "Voxels": _listed(facts.get("voxels")),
        "Scores": _listed(facts.get("scores")),
        "ScoreParts": {name: _listed(values) for name, values in facts.get("parts", {}).items()} or None,
        "Clipped": facts.get("clipped"),
        "BloodFraction": facts.get("blood_fraction"),
    }


def _listed(values: Tensor | None) -> list[Any] | None:
    if values is None:
        return None
    return values.tolist() if not values.is_floating_point() else [round(float(v), 4) for v in values]
