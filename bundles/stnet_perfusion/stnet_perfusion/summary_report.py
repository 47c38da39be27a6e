"""The stroke summary as parts of the report: volumes, input functions, quality."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from shared_transforms.report import ReportSection

from .charts import curves_figure, lesion_figure
from .lesions import Lesion
from .maps import HYPOPERFUSED

__all__ = ["sections_of"]

Array = npt.NDArray[Any]

# What the preprocessing found: name in the summary, label, format, meaning.
_FOUND = (
    ("dummy_frames", "Dummy frames", ".0f", "first frames before the steady state, left out"),
    ("baseline_frames", "Baseline frames", ".0f", "frames before the bolus"),
    ("trough", "Signal at the bolus", ".2f", "lowest mean signal of the brain over its baseline"),
    ("seconds_after_arrival", "After the arrival", ".0f s", "measured from the arrival of the bolus on"),
    ("late_cbv_missed", "CBV not seen", ".0%", "of tissue with a delay of 6 s and a MTT of 12 s: the series is over"),
    ("truncation_share", "Truncated curves", ".1%", "voxels still above half of their peak at the end"),
)


def sections_of(
    item: Mapping[Hashable, Any], summary: Mapping[str, Any], lesion: Lesion, core: Array, affine: Array
) -> list[ReportSection]:
    """The parts of the report.

    Args:
        item: with ``maps``, ``image``, ``aif``, ``vof``, ``acquisition`` and, where voxels were chosen,
            ``input_functions``.
        summary: of the same series.
        lesion: what is late.
        core: boolean ``[X, Y, Z]``.
        affine: ``[4, 4]``, voxel indices to millimetres (RAS).
    """
    maps = item["maps"]
    tmax, mask = maps["tmax"].data.numpy(), maps["mask"].data.numpy().astype(bool)
    shown = lesion_figure(tmax, mask, lesion.above[HYPOPERFUSED], core, affine, HYPOPERFUSED)
    caption = f"Tmax, with outlines of Tmax > {HYPOPERFUSED:g} s (green) and of the core (pink)."
    return [
        ReportSection(
            "Late perfusion and core", _headline(summary), _volume_rows(summary), [(shown, caption)]
        ),
        _curves_section(item, summary, affine),
        ReportSection("Quality", rows=_quality_rows(summary)),
    ]  # fmt: skip


def _headline(summary: Mapping[str, Any]) -> str:
    late, core, mismatch = summary["hypoperfusion"], summary["core"], summary["mismatch"]
    volume = late["volume_ml"][f"tmax_above_{HYPOPERFUSED:g}_s"]
    if not volume:
        return (
            f"No part of at least {late['smallest_part_ml']:g} ml has a Tmax above {HYPOPERFUSED:g} s."
        )  # fmt: skip
    side = {"both": "on both sides"}.get(late["side"], f"on the patient's {late['side']}")
    met = "is met" if mismatch["met"] else "is not met"
    return (
        f"{volume:.0f} ml with Tmax above {HYPOPERFUSED:g} s, {side}; core {core['volume_ml']:.0f} ml. The mismatch "
        f"criterion ({mismatch['criterion']}) {met}."
    )


def _volume_rows(summary: Mapping[str, Any]) -> list[dict[str, str]]:
    late, core, mismatch = summary["hypoperfusion"], summary["core"], summary["mismatch"]
    removed = late["removed_small_parts_ml"]
    rows = []
    for name, volume in late["volume_ml"].items():
        threshold = name.removeprefix("tmax_above_").removesuffix("_s")
        text = f"{removed[name]:.1f} ml in isolated parts below {late['smallest_part_ml']:g} ml left out"
        rows.append(_row(f"Tmax > {threshold} s", f"{volume:.1f} ml", text))
    rows.append(
        _row(
            "Hypoperfusion intensity ratio", _or_none(late["intensity_ratio"], ".2f"),
            f"volume of Tmax > 10 s over that of Tmax > {HYPOPERFUSED:g} s",
        )
    )  # fmt: skip
    rows.append(_row("Right, left", f"{late['right_ml']:.1f} ml, {late['left_ml']:.1f} ml", "patient's sides"))
    normal = core["normal_cbf_ml_per_100g_per_min"]
    flow = "" if normal is None else f"; normal CBF {normal:.0f} ml/100 g/min ({core['normal_tissue']})"
    rows.append(_row("Core", f"{core['volume_ml']:.1f} ml", core["source"].removeprefix("Core: ") + flow))
    rows.append(_row("Mismatch", f"{mismatch['volume_ml']:.1f} ml", "late perfusion less core"))
    rows.append(_row("Mismatch ratio", _or_none(mismatch["ratio"], ".1f"), "late perfusion over core"))
    return rows


def _curves_section(item: Mapping[Hashable, Any], summary: Mapping[str, Any], affine: Array) -> ReportSection:
    facts = summary["input_functions"]
    curves = {name: np.asarray(facts[name]["curve_mM"]) for name in ("aif", "vof")}
    voxels = {name: np.asarray(facts[name]["voxels"]).reshape(-1, 3) for name in curves}
    background = torch.as_tensor(item["image"][0]).cpu().numpy()
    figure = curves_figure(curves, summary["quality"]["frame_time_s"], voxels, background, affine)
    rows = [
        {
            "Curve": label,
            "From": facts[name]["source"],
            "Voxels": str(len(facts[name]["voxels"]) or "-"),
            "Score": _or_none(facts[name]["score"], ".2f"),
            "Peak": f"{facts[name]['peak_mM']:.2f} mM",
            "Time to peak": f"{facts[name]['time_to_peak_s']:.1f} s",
            "Area": f"{facts[name]['area_mM_s']:.1f} mM s",
        }
        for name, label in (("aif", "Arterial input"), ("vof", "Venous output"))
    ]
    text = (
        f"k_AV, the area of the arterial curve over that of the venous one, is {facts['k_av']:.2f}: CBF is corrected "
        "for the partial volume of the artery by it."
    )
    if facts["k_av_measured"] is not None:
        text += f" It was {facts['k_av_measured']:.2f} before tissue was taken out of the voxels of the artery."
    caption = "Concentrations in blood, and the slices with most of the voxels chosen (rings) on the baseline image."
    return ReportSection("Arterial input and venous output", text, rows, [(figure, caption)])


def _quality_rows(summary: Mapping[str, Any]) -> list[dict[str, str]]:
    quality, negative, plane = summary["quality"], summary["negative_delay"], summary["mid_plane"]
    series = f"{quality['frames']} x {quality['frame_time_s']:.3g} s"
    return [
        _row("Relative residual", _or_none(quality["relative_residual"], ".0%"), "maps put back through the model"),
        _row("Baseline SNR", _or_none(quality["snr"], ".0f"), "signal before the bolus over its noise"),
        _row("Series used", f"{quality['duration_s']:.0f} s", series),
        *(_row(label, _or_none(quality[name], form), text) for name, label, form, text in _FOUND if name in quality),
        _row("Brain", f"{quality['brain_volume_ml']:.0f} ml", "volume of the mask"),
        _row("Fluid", f"{quality['fluid_volume_ml']:.0f} ml", "bright and without blood: in no volume above"),
        _row("Large vessels", f"{quality['vessel_volume_ml']:.0f} ml", "veins are always late: in no volume above"),
        _row("Negative Tmax", f"{negative['share']:.1%}", negative["meaning"]),
        _row("Symmetry", f"{plane['symmetry']:.2f}", f"correlation with the mirror image; {plane['limits']}"),
    ]


def _row(name: str, value: str, meaning: str) -> dict[str, str]:
    return {"Measure": name, "Value": value, "Meaning": meaning}


def _or_none(value: float | None, form: str) -> str:
    """A number in a format, which a unit may follow; "-" for None."""
    form, _, unit = form.partition(" ")
    return "-" if value is None else f"{format(value, form)} {unit}".strip()
