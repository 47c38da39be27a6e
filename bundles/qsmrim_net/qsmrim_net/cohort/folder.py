"""A user's own subjects as a cohort: files as inference reads them, and a table of what the raters said."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from monai.transforms import Transform
from tqdm import tqdm

from qsmrim_net.cohort.table import LesionTable
from qsmrim_net.patches import PATCH_SIZE
from qsmrim_net.pipeline import Featuresd, LesionsInd, SubjectLesions
from qsmrim_net.preprocess import CorrectBiasd, RegisterFlaird
from shared_transforms.errors import QMRIError
from shared_transforms.io import LoadLesionMapsd, find_lesion_maps

__all__ = ["cohort_from_folder"]

_NAME = "lesions.tsv"
_RATERS = ("rater_1", "rater_2")
_REMEDY = "give one line to each lesion, with the numbers that inference writes into its table, or those of the mask"


@dataclass(frozen=True)
class _Rating:
    """What a line says of a lesion; -1 for a rater that it does not name."""

    rim: int
    raters: tuple[int, int]


def cohort_from_folder(
    dataset_dir: str | Path,
    size: Sequence[int] = PATCH_SIZE,
    voxel_size_mm: Sequence[float] | None = None,
    qsm_unit: str | None = None,
    bias_correction: bool = False,
    registration: str | None = None,
    mask_space: str | None = None,
    **lesions: Any,
) -> LesionTable:
    """Lesions of a folder of subjects, with patches and radiomics made as inference makes them.

    The subjects' images are found by :func:`shared_transforms.io.find_lesion_maps`. The rims stand in tables of
    tab-separated values: ``lesions.tsv`` in ``dataset_dir``, or ``<stem>_lesions.tsv`` for each subject, in it or in a
    folder below. Columns:

    * ``subject``: the stem of the subject's files, such as sub-01; only in ``lesions.tsv``, needed for more than one.
    * ``id``: number of the lesion: that of the mask, where it has a number for each lesion, else the one in the table
      that inference writes.
    * ``rim``: 1 or 0, the consensus.
    * ``rater_1``, ``rater_2``: 1 or 0, the raters' own answers; may be left out, or n/a.

    Args:
        dataset_dir: the folder.
        size: of the patches along X, Y, Z [voxels].
        voxel_size_mm: of the patches; None for those of the files.
        qsm_unit: "ppm" or "ppb" where the sidecars of the QSM do not say it.
        bias_correction: whether FLAIR's bias is corrected, see :class:`~qsmrim_net.preprocess.CorrectBiasd`.
        registration: "affine", "rigid" or "header" for a FLAIR on a grid of its own, see
            :class:`~qsmrim_net.preprocess.RegisterFlaird`.
        mask_space: "qsm" or "flair", with ``registration``.
        lesions: options of :func:`~qsmrim_net.lesions.find_lesions`.

    Returns:
        One row a lesion; subjects are numbered in the order of their stems. ``kind`` is -1 and ``amplitude`` NaN;
        ``raters`` are -1 where they are not given.

    Raises:
        QMRIError: images that inference would refuse; no table, a table without a column or with another value, a
            subject or lesion without a line, a line without a lesion, two lines for one.
    """
    items = find_lesion_maps(dataset_dir)
    ratings = _read_ratings(Path(dataset_dir), [str(item["stem"]) for item in items])
    # One after the other, not composed: MONAI would hide what is wrong in an error of its own.
    transforms: list[Transform] = [
        LoadLesionMapsd("image", qsm_unit, own_flair_grid=registration is not None, mask_space=mask_space),
        *([CorrectBiasd("image")] if bias_correction else []),
        *([RegisterFlaird("image", method=registration)] if registration is not None else []),
        LesionsInd("image", size, voxel_size_mm, **lesions),
        Featuresd("lesions", size, voxel_size_mm),
    ]
    tables = []
    for number, item in enumerate(tqdm(items, "subjects", disable=None)):
        read: Any = item
        for transform in transforms:
            read = transform(read)
        tables.append(_subject_table(read, number, *ratings[str(item["stem"])]))
    return LesionTable.concatenate(tables)


def _subject_table(item: Mapping[str, Any], number: int, file: Path, lines: Mapping[int, _Rating]) -> LesionTable:
    """Rows of one subject, in the order of its labels."""
    found: SubjectLesions = item["lesions"]
    ids = [int(i) for i in found.ids]
    missing, unknown = sorted(set(ids) - set(lines)), sorted(set(lines) - set(ids))
    if missing or unknown:
        parts = [f"no line for lesion {_some(missing)}"] * bool(missing)
        parts += [f"lines for {_some(unknown)}, which the mask does not have"] * bool(unknown)
        raise QMRIError(
            file=file, field="id", found=f"{item['stem']}: " + "; ".join(parts),
            expected=f"a line for each of the {len(ids)} lesions of the mask", remedy=_REMEDY,
        )  # fmt: skip
    count = len(ids)
    return LesionTable(
        subject=torch.full((count,), number),
        lesion=torch.tensor(ids),
        image=item["patches"].float(),
        features=item["radiomics"].double(),
        status=torch.tensor([status != "ok" for status in found.statuses], dtype=torch.int8),
        label=torch.tensor([lines[i].rim for i in ids]),
        raters=torch.tensor([lines[i].raters for i in ids]),
        kind=torch.full((count,), -1),
        amplitude=torch.full((count,), torch.nan),
        voxels=found.geometry["voxels"].long(),
        volume_ml=found.geometry["volume_ml"].float(),
    )


def _read_ratings(root: Path, stems: Sequence[str]) -> dict[str, tuple[Path, dict[int, _Rating]]]:
    """For each subject the file of its ratings, and these by lesion."""
    folder = root if root.is_dir() else root.parent
    common = folder / _NAME
    if not common.is_file():
        return {stem: _own_ratings(folder, stem) for stem in stems}
    ratings: dict[str, tuple[Path, dict[int, _Rating]]] = {stem: (common, {}) for stem in stems}
    rows = _rows(common)
    if len(stems) > 1 and "subject" not in rows[0]:
        raise _no_column(common, "subject", rows[0])
    for line, row in enumerate(rows, start=2):
        stem = row.get("subject", stems[0])
        if stem not in ratings:
            raise QMRIError(
                file=common, field="subject", found=f"{stem!r} in line {line}", expected="one of " + _some(stems),
                remedy="name the subjects as their files; leave out the lines of those that are not there",
            )  # fmt: skip
        _add(ratings[stem][1], row, common, line)
    return ratings


def _own_ratings(folder: Path, stem: str) -> tuple[Path, dict[int, _Rating]]:
    """Ratings of a subject that has a file of its own."""
    paths = sorted(folder.rglob(f"{stem}_{_NAME}"))
    if len(paths) != 1:
        raise QMRIError(
            file=folder, field=_NAME, found=f"no {_NAME}, and {len(paths)} files {stem}_{_NAME}",
            expected=f"{_NAME} for all subjects, or one {stem}_{_NAME}",
            remedy="write the columns subject, id and rim (0 or 1), separated by tabs; see the documents",
        )  # fmt: skip
    ratings: dict[int, _Rating] = {}
    for line, row in enumerate(_rows(paths[0]), start=2):
        _add(ratings, row, paths[0], line)
    return paths[0], ratings


def _rows(path: Path) -> list[dict[str, str]]:
    """Lines of a table by column."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = [
                {str(name).strip(): str(value or "").strip() for name, value in row.items()}
                for row in csv.DictReader(file, delimiter="\t")
            ]
    except UnicodeDecodeError as error:
        raise QMRIError(
            file=path, field="file content", found="bytes that are no text in UTF-8", expected="tab-separated values",
            remedy="save the table as text (tsv, UTF-8)",
        ) from error  # fmt: skip
    if not rows:
        raise QMRIError(
            file=path, field="file content", found="no line", expected="a line of names and one for each lesion",
            remedy=_REMEDY,
        )  # fmt: skip
    for name in ("id", "rim"):
        if name not in rows[0]:
            raise _no_column(path, name, rows[0])
    return rows


def _no_column(path: Path, name: str, row: Mapping[str, str]) -> QMRIError:
    return QMRIError(
        file=path, field=name, found="the columns " + _some(list(row)), expected=f"a column {name}",
        remedy="name the columns in the first line, with tabs between them: subject, id, rim",
    )  # fmt: skip


def _add(ratings: dict[int, _Rating], row: Mapping[str, str], path: Path, line: int) -> None:
    """Take a line into the ratings."""

    def number(name: str, allowed: Mapping[str, int]) -> int:
        value = row.get(name) or "n/a"
        if value not in allowed:
            raise QMRIError(
                file=path, field=name, found=f"{value!r} in line {line}", expected="one of " + _some(list(allowed)),
                remedy="correct the line",
            )  # fmt: skip
        return allowed[value]

    if not row["id"].isdecimal() or int(row["id"]) in ratings:
        twice = row["id"].isdecimal()
        raise QMRIError(
            file=path, field="id", found=f"{row['id']!r} in line {line}" + ", not the first line of it" * twice,
            expected="the number of a lesion, each once", remedy=_REMEDY,
        )  # fmt: skip
    answers = {"0": 0, "1": 1}
    first, second = (number(name, answers | {"n/a": -1}) for name in _RATERS)
    ratings[int(row["id"])] = _Rating(number("rim", answers), (first, second))


def _some(values: Sequence[object]) -> str:
    return ", ".join(map(str, values[:8])) + (", ..." if len(values) > 8 else "")
