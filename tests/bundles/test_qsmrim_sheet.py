"""Contact sheets: every lesion is there, in order, the right way round, with its outline outside of it."""

from __future__ import annotations

import io
from typing import Any

import matplotlib.image
import numpy as np
import pytest
import torch
from qsmrim_net.orientation import RasOrder
from qsmrim_net.patches import lesion_geometry
from qsmrim_net.pipeline import SubjectLesions
from qsmrim_net.sheet import (
    COLUMNS,
    FIELDS_MM,
    GAP,
    MARGIN,
    ROWS_OF_A_PAGE,
    SIDE,
    ContactSheetd,
    contact_sheets,
    lesion_crops,
)
from qsmrim_net.table import subject_summary
from torch import Tensor

BLUE, ORANGE = (86, 180, 233), (230, 159, 0)


def subject(labels: Tensor, volumes: Tensor | None = None, step: tuple[float, float, float] = (1.0, 1.0, 3.0)) -> Any:
    count = int(labels.max())
    return SubjectLesions(
        RasOrder.of(np.eye(4)), step, torch.zeros(2, *labels.shape) if volumes is None else volumes, labels >= 0,
        labels, list(range(1, count + 1)), [()] * count, lesion_geometry(labels, step), ["ok"] * count,
    )  # fmt: skip


def rows_of(probabilities: list[float], limit: float = 0.5) -> list[dict[str, Any]]:
    return [
        {
            "lesion": i, "probability": p, "probability_seed0": p, "votes": int(p >= limit), "rim": p >= limit,
            "volume_ml": 0.1, "flags": ["oversize"] * (i == 1), "radiomics": "ok", "above_f1_threshold": p >= limit,
            "above_high_sensitivity_threshold": p >= limit / 2, **{f"{axis}_mm": 1.0 for axis in "xyz"},
            **{f"voxel_{axis}": 1 for axis in "ijk"},
        }
        for i, p in enumerate(probabilities, 1)
    ]  # fmt: skip


def picture(content: bytes) -> np.ndarray:
    """Colours ``[rows, columns, 3]``, 0 to 255."""
    return np.rint(matplotlib.image.imread(io.BytesIO(content))[..., :3] * 255).astype(int)


def squares(count: int) -> Tensor:
    """Lesions of one voxel, in rows of ten."""
    labels = torch.zeros(24, 40, 4, dtype=torch.int32)
    for number in range(count):
        labels[2 + 2 * (number % 10), 2 + 2 * (number // 10), 1] = number + 1
    return labels


def test_patient_is_seen_from_the_feet() -> None:
    labels = torch.zeros(60, 60, 5, dtype=torch.int32)
    labels[29:32, 28:33, 2] = 1
    labels[30, 30, 3] = 1  # fewer voxels: not the plane that is shown
    volumes = torch.zeros(2, 60, 60, 5)
    volumes[0, 40:42, :, 2] = 100.0  # to the right of the lesion
    volumes[1, :, 40:42, 2] = 5.0  # in front of it
    crops = lesion_crops(subject(labels, volumes), [0])
    qsm, flair = crops.images[0]
    rows, columns = (qsm > 50).nonzero().T
    assert columns.max() < SIDE / 2 and len(rows.unique()) == SIDE
    rows, columns = (flair > 2.5).nonzero().T
    assert rows.max() < SIDE / 2 and len(columns.unique()) == SIDE
    place = crops.lesion[0].nonzero().double() + 0.5
    np.testing.assert_allclose(place.mean(0), SIDE / 2, atol=1.0)
    height, width = (place.amax(0) - place.amin(0) + 1) * FIELDS_MM[0] / SIDE
    assert (width, height) == pytest.approx((3.0, 5.0), abs=0.4)  # mm, x to the right, y to the front


def test_large_lesions_get_a_larger_field_and_edges_are_black() -> None:
    labels = torch.zeros(80, 40, 3, dtype=torch.int32)
    labels[:45, 10:20, 1] = 1
    labels[70:73, 37:40, 1] = 2
    crops = lesion_crops(subject(labels), [1, 0])
    assert crops.fields_mm == [FIELDS_MM[0], FIELDS_MM[1]]
    beyond = crops.images[0, 0].isinf()
    assert beyond[: SIDE // 3].all() and not beyond[SIDE // 2 :, SIDE // 2 :].any()


def test_other_lesions_are_told_apart() -> None:
    labels = torch.zeros(60, 60, 3, dtype=torch.int32)
    labels[28:32, 28:32, 1], labels[36:38, 28:32, 1] = 1, 2
    crops = lesion_crops(subject(labels), [0, 1])
    assert not (crops.lesion & crops.others).any()
    assert (crops.others[0].sum() / crops.lesion[1].sum()).item() == pytest.approx(1.0, abs=0.2)


def test_sheet_is_in_order_with_outlines_around() -> None:
    labels = torch.zeros(60, 60, 3, dtype=torch.int32)
    labels[10:14, 10:14, 1], labels[40:44, 40:46, 1], labels[12:15, 45:48, 1] = 1, 2, 3
    volumes = torch.zeros(2, 60, 60, 3)
    volumes[0, labels > 0] = 25.0 * labels[labels > 0] - 25.0  # 0, 25 and 50 ppb, 75 more than black
    [content] = contact_sheets(subject(labels, volumes), rows_of([0.2, 0.9, 0.6]), "sub-01")
    image = picture(content)
    pitch = 3 * SIDE + 2 * GAP + 2 * MARGIN
    assert image.shape[1] == COLUMNS * pitch
    for place, (lesion, colour) in enumerate(((2, ORANGE), (3, ORANGE), (1, BLUE))):
        tile = image[:, place * pitch + MARGIN : (place + 1) * pitch - MARGIN]
        top = int(np.flatnonzero((tile[:, SIDE + GAP : -1] == colour).all(-1).any(1)).mean()) - SIDE // 2
        grey = tile[top + SIDE // 2 - 2 : top + SIDE // 2 + 2, SIDE // 2 - 2 : SIDE // 2 + 2]
        assert abs(grey.mean() - round((25.0 * lesion - 25.0 + 75.0) / 200.0 * 255)) <= 1
        plain, outlined, flair = (tile[:, start : start + SIDE] for start in (0, SIDE + GAP, 2 * (SIDE + GAP)))
        assert not (plain == colour).all(-1).any()
        assert (outlined == colour).all(-1).any() and (flair == colour).all(-1).any()


def test_outline_hides_nothing_of_the_lesion() -> None:
    labels = torch.zeros(40, 40, 3, dtype=torch.int32)
    labels[18:23, 18:21, 1] = 1
    volumes = torch.zeros(2, 40, 40, 3)
    volumes[:, labels > 0] = 1e4  # white
    [content] = contact_sheets(subject(labels, volumes), rows_of([0.9]), "x")
    image = picture(content)
    crops = lesion_crops(subject(labels, volumes), [0])
    rows, columns = (image == ORANGE).all(-1).nonzero()
    first = columns < columns.min() + SIDE / 2  # of the two outlined pictures
    inside = np.argwhere(crops.lesion[0].numpy())
    for axis, found in ((0, rows[first]), (1, columns[first])):
        assert found.max() - found.min() == inside[:, axis].max() - inside[:, axis].min() + 2


def test_many_lesions_fill_pages_and_none_is_left_out() -> None:
    at_once = COLUMNS * ROWS_OF_A_PAGE
    count = at_once + 3
    pages = contact_sheets(subject(squares(count)), rows_of([0.1] * count), "x")
    first, second = ((picture(page) == BLUE).all(-1).sum() for page in pages)
    assert second * at_once == first * 3  # each lesion has the same outline


def test_equal_input_gives_equal_bytes() -> None:
    drawn = [contact_sheets(subject(squares(2)), rows_of([0.1, 0.7]), "x") for _ in range(2)]
    assert drawn[0] == drawn[1]


def test_sections_of_the_report() -> None:
    rows = rows_of([0.9, 0.3, 0.1])
    summary = subject_summary(rows, (0.5, 0.25), [0.5])
    item = {"tables": {"lesions": rows}, "lesions": subject(squares(3)), "stem": "sub-01", "summary": summary}
    done = ContactSheetd()(item)
    assert list(done["pictures"]) == ["sheet"]
    first, sheet, review = done["sections"]
    assert [row["Value"] for row in first.rows] == ["3", "1", "no", "2"] and "no residual" in first.text
    assert sheet.figures[0][0] == done["pictures"]["sheet"]
    assert [row["Lesion"] for row in review.rows] == ["1", "2"] and review.rows[0]["Flags"] == "oversize"
    low = rows_of([0.1])
    bare = ContactSheetd()({**item, "tables": {"lesions": low}, "lesions": subject(squares(1))})
    assert "No lesion" in bare["sections"][2].text
