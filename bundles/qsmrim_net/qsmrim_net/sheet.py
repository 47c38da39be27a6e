"""Contact sheets: every lesion on QSM and FLAIR, the most probable rims first."""

from __future__ import annotations

import io
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from monai.config import KeysCollection
from monai.transforms import MapTransform
from torch import Tensor

from shared_transforms.report import ReportSection

from .pipeline import SubjectLesions

__all__ = ["ContactSheetd", "LesionCrops", "contact_sheets", "lesion_crops"]

COLUMNS, ROWS_OF_A_PAGE = 4, 12  # lesions side by side and below each other
FIELDS_MM = (30.0, 60.0)  # side of what is shown: the first that holds the lesion with some room, else the last
QSM_WINDOW, FLAIR_WINDOW = (-75.0, 125.0), (-3.0, 7.0)  # ppb, normalised
SIDE, GAP, MARGIN, TITLE = 96, 3, 9, 46  # pixels
_HEAD, _FOOT = 17, 15  # pixels, for the words above and below a lesion
_ROOM = 1.4
_DPI = 120
_RIM, _PLAIN, _OTHER = (230, 159, 0), (86, 180, 233), (120, 120, 120)  # told apart with every kind of colour vision
_INK, _SOFT = "#1c2530", "#56626f"
_REVIEWED = 40  # rows of the table in the report; the CSV file has all
_LEGEND = (
    f"QSM, QSM, FLAIR; the patient's right is on the left. QSM: {QSM_WINDOW[0]:g} to {QSM_WINDOW[1]:g} ppb around the "
    "median of the brain. Outline: orange with a rim by vote, blue without, grey another lesion. Bar: 10 mm."
)

_Picture = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class LesionCrops:
    """Lesions as they are shown.

    Attributes:
        images: QSM [ppb] and FLAIR ``[L, 2, rows, columns]``, rows from front to back, columns from right to left of
            the patient, minus infinity beyond the volume.
        lesion: boolean ``[L, rows, columns]``.
        others: other lesions, likewise.
        fields_mm: side of each crop [mm].
    """

    images: Tensor
    lesion: Tensor
    others: Tensor
    fields_mm: list[float]


class ContactSheetd(MapTransform):
    """Draw the contact sheets, ``item["pictures"]``, and write the bundle's parts of the report, ``item["sections"]``.

    Args:
        keys: key of the tables, as ``LesionTabled`` makes them.
        lesions_key: key of the :class:`.pipeline.SubjectLesions`.
    """

    def __init__(self, keys: KeysCollection = "tables", lesions_key: str = "lesions") -> None:
        super().__init__(keys)
        self.lesions_key = lesions_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item with ``pictures`` (sheet, or sheet-1 and on: PNG files) and ``sections``."""
        item = dict(data)
        for key in self.key_iterator(item):
            rows = item[key]["lesions"]
            pages = contact_sheets(item[self.lesions_key], rows, str(item["stem"]))
            names = ["sheet"] if len(pages) == 1 else [f"sheet-{i}" for i in range(1, len(pages) + 1)]
            item["pictures"] = {**item.get("pictures", {}), **dict(zip(names, pages, strict=True))}
            sections = [_subject_section(item["summary"]), _sheet_section(pages), _review_section(rows)]
            item["sections"] = [*item.get("sections", []), *sections]
        return item


def contact_sheets(lesions: SubjectLesions, rows: Sequence[Mapping[str, Any]], title: str) -> list[bytes]:
    """All lesions by falling probability, each as QSM, QSM with outlines and FLAIR with outlines.

    The axial plane with the most voxels of the lesion is shown as radiologists expect it, right on the left. The
    outline runs just outside of the lesion, for a rim lies at its edge.

    Args:
        lesions: of one subject.
        rows: of :func:`.table.lesion_rows`, in the order of the labels.
        title: stands above.

    Returns:
        PNG files, a page each; equal input gives equal bytes.
    """
    order = sorted(range(len(rows)), key=lambda i: (-rows[i]["probability"], i))
    at_once = COLUMNS * ROWS_OF_A_PAGE
    pages = [order[start : start + at_once] for start in range(0, len(order), at_once)]
    drawn = []
    for number, page in enumerate(pages, 1):
        crops = lesion_crops(lesions, page)
        of_all = f", page {number} of {len(pages)}" if len(pages) > 1 else ""
        heading = f"{title}: {len(rows)} lesion{'s' * (len(rows) != 1)} by falling probability of a rim{of_all}"
        drawn.append(_page(_tiles(crops, [bool(rows[i]["rim"]) for i in page]), [rows[i] for i in page], heading))
    return drawn


def lesion_crops(lesions: SubjectLesions, chosen: Sequence[int], pixels: int = SIDE) -> LesionCrops:
    """The axial plane of some lesions with the most of their voxels, the middle of the lesion in the middle.

    Args:
        lesions: of one subject.
        chosen: which, from 0, in the order of the labels.
        pixels: of a side.
    """
    labels, depth, count = lesions.labels, lesions.labels.shape[2], len(lesions.ids)
    place, row = labels.nonzero(), labels[labels > 0].long() - 1
    plane = torch.bincount(row * depth + place[:, 2], minlength=count * depth).reshape(count, depth).argmax(1)
    shown = place[:, 2] == plane[row]
    place, row = place[shown, :2], row[shown, None].expand(-1, 2)
    low = place.new_zeros(count, 2).scatter_reduce_(0, row, place, "amin", include_self=False)
    high = place.new_zeros(count, 2).scatter_reduce_(0, row, place, "amax", include_self=False)
    some = torch.as_tensor(chosen, dtype=torch.long)
    low, high, plane = low[some], high[some], plane[some]
    step = torch.tensor(lesions.voxel_size[:2])
    extent = ((high - low + 1) * step).amax(1) * _ROOM
    fields = torch.tensor(FIELDS_MM)
    side = fields[torch.bucketize(extent, fields[:-1])]
    # Middles of the pixels [mm] from that of the lesion: columns run to the left, rows to the back of the patient.
    offset = (0.5 - (torch.arange(pixels) + 0.5) / pixels) * side[:, None]
    x, y = (((low + high)[:, axis, None] / 2 + offset / step[axis]) for axis in range(2))
    x, y = (2.0 * at / max(n - 1, 1) - 1.0 for at, n in zip((x, y), labels.shape[:2], strict=True))
    grid = torch.stack(torch.broadcast_tensors(y[:, :, None], x[:, None, :]), -1)
    images = F.grid_sample(lesions.volumes[..., plane].permute(3, 0, 1, 2).float(), grid, align_corners=True)
    images = images.masked_fill((grid.abs() > 1).any(-1)[:, None], -torch.inf)  # drawn black
    numbers = labels[..., plane].permute(2, 0, 1)[:, None].float()
    numbers = F.grid_sample(numbers, grid, mode="nearest", align_corners=True)[:, 0].long()
    own = numbers == (some + 1)[:, None, None]
    return LesionCrops(images, own, (numbers > 0) & ~own, side.tolist())


def _tiles(crops: LesionCrops, rims: Sequence[bool]) -> _Picture:
    """QSM, QSM and FLAIR side by side, outlines on the last two ``[L, side, width, 3]``."""
    colours = torch.tensor([_RIM if rim else _PLAIN for rim in rims], dtype=torch.uint8)
    parts = []
    for channel, (low, high), outlined in ((0, QSM_WINDOW, False), (0, QSM_WINDOW, True), (1, FLAIR_WINDOW, True)):
        grey = ((crops.images[:, channel] - low) / (high - low) * 255).round().clamp(0, 255).to(torch.uint8)
        part = grey[..., None].repeat(1, 1, 1, 3)
        if outlined:
            part[_outline(crops.others) & ~crops.lesion] = torch.tensor(_OTHER, dtype=torch.uint8)
            edge = _outline(crops.lesion)
            part[edge] = colours[edge.nonzero()[:, 0]]
        parts += [part, torch.full((*part.shape[:2], GAP, 3), 255, dtype=torch.uint8)]
    for tile, field in zip(parts[0], crops.fields_mm, strict=True):  # a bar of 10 mm
        tile[-6:-4, 5 : 5 + round(10.0 / field * tile.shape[1])] = 255
    return torch.cat(parts[:-1], 2).numpy()


def _outline(inside: Tensor) -> Tensor:
    """The pixels just outside ``[L, rows, columns]``."""
    return (F.max_pool2d(inside[:, None].float(), 3, 1, 1)[:, 0] > 0) & ~inside


def _page(tiles: _Picture, rows: Sequence[Mapping[str, Any]], heading: str) -> bytes:
    """Tiles with their words, in one picture."""
    side, across = tiles.shape[1:3]
    lines = -(-len(tiles) // COLUMNS)
    pitch = (_HEAD + side + _FOOT + MARGIN, across + 2 * MARGIN)
    height, width = TITLE + lines * pitch[0], COLUMNS * pitch[1]
    canvas = np.full((height, width, 3), 255, np.uint8)
    figure = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI, facecolor="white")
    FigureCanvasAgg(figure)

    def write(column: float, row: float, text: str, size: float, colour: str, **style: Any) -> None:
        style |= {"va": "center", "parse_math": False}
        figure.text(column / width, 1 - row / height, text, fontsize=size, color=colour, **style)

    write(MARGIN, 14, heading, 9, _INK, weight="bold")
    write(MARGIN, 34, _LEGEND, 6, _SOFT)
    for number, (tile, row) in enumerate(zip(tiles, rows, strict=True)):
        top, left = TITLE + number // COLUMNS * pitch[0], number % COLUMNS * pitch[1] + MARGIN
        canvas[top + _HEAD : top + _HEAD + side, left : left + across] = tile
        name, remarks = _words(row)
        write(left, top + _HEAD / 2, name, 7.5, _INK, weight="bold" if row["rim"] else "normal")
        write(left, top + _HEAD + side + _FOOT / 2, remarks, 6, _SOFT)
    figure.figimage(canvas, origin="upper")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI, metadata={"Software": None})
    return buffer.getvalue()


def _words(row: Mapping[str, Any]) -> tuple[str, str]:
    """What stands above and below a lesion."""
    seeds = sum(name.startswith("probability_seed") for name in row)
    name = f"Lesion {row['lesion']}:  {row['probability']:.2f},  {row['votes']} of {seeds} votes" + ": rim" * row["rim"]
    flags = [str(flag).replace("_", " ") for flag in row["flags"]]
    flags += ["no radiomics"] * (row["radiomics"] != "ok")
    return name, ", ".join([f"{row['volume_ml']:.2g} ml", *flags])


def _subject_section(summary: Mapping[str, Any]) -> ReportSection:
    review, thresholds = summary["review"], summary["thresholds"]
    four = "yes" if summary["four_or_more_rim_lesions"] else "no"
    rows = [
        ("Lesions", f"{summary['lesions']}", f"{summary['lesion_volume_ml']:.3g} ml together"),
        (
            "Lesions with a rim", f"{summary['rim_lesions']}",
            f"{summary['rim_lesion_volume_ml']:.3g} ml together; at least {thresholds['votes_needed']} of "
            f"{len(thresholds['vote_of_each_seed'])} networks say so, each at its own threshold",
        ),
        ("Four or more", four, "a count that goes with more disability (Absinta et al. 2019)"),
        (
            "Lesions to review", f"{review['lesions']}",
            f"{review['share']:.0%} of all: probability of {thresholds['high_sensitivity']:.3g} or more, where few "
            "rims are missed",
        ),
    ]  # fmt: skip
    text = (
        "A classifier has no forward model through which its answer could be put back: there is no residual. Check the "
        "answer by eye on the sheet below. Votes that differ, a flag, or a high probability where no rim is seen are "
        "reasons to doubt it."
    )
    columns = ("Subject", "Value", "Meaning")
    return ReportSection("Lesions", text, [dict(zip(columns, row, strict=True)) for row in rows])


def _sheet_section(pages: Sequence[bytes]) -> ReportSection:
    text = "Number of the lesion, probability of a rim (mean of the networks), votes; below: volume and flags."
    return ReportSection("All lesions", text, figures=[(page, _LEGEND) for page in pages])


def _review_section(rows: Sequence[Mapping[str, Any]]) -> ReportSection:
    chosen = sorted(
        (row for row in rows if row["above_high_sensitivity_threshold"]), key=lambda row: -row["probability"]
    )
    if not chosen:
        return ReportSection("To review", "No lesion reaches the high-sensitivity threshold.")
    table = [
        {
            "Lesion": str(row["lesion"]),
            "Probability": f"{row['probability']:.3f}",
            "Votes": str(row["votes"]),
            "Rim": "yes" if row["rim"] else "no",
            "x, y, z [mm]": ", ".join(f"{row[f'{axis}_mm']:.1f}" for axis in "xyz"),
            "Voxel": ", ".join(str(row[f"voxel_{axis}"]) for axis in "ijk"),
            "Volume [ml]": f"{row['volume_ml']:.3g}",
            "Flags": ", ".join(row["flags"]),
        }
        for row in chosen[:_REVIEWED]
    ]
    text = "Lesions at or above the high-sensitivity threshold. Places: right, anterior, superior; voxels from 0."
    if len(chosen) > _REVIEWED:
        text += f" The first {_REVIEWED} of {len(chosen)}; the CSV file has all."
    return ReportSection("To review", text, table)
