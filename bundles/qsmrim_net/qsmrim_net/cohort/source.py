"""Where a cohort comes from: simulated, a user's own folder, or a table made before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qsmrim_net.cohort.table import LesionTable
from shared_transforms.errors import QMRIError

__all__ = ["load_cohort"]


def load_cohort(
    cohort_dir: str | Path | None = None,
    seed: int = 0,
    subjects: int = 172,
    split: str = "train",
    size: Sequence[int] = (24, 24, 8),
    cache_dir: str | Path = "cohort",
    processes: int = 1,
    reading: Mapping[str, Any] | None = None,
) -> LesionTable:
    """Lesions of a cohort, with patches of one size.

    Args:
        cohort_dir: None simulates; a folder of a user's subjects, see
            :func:`~qsmrim_net.cohort.folder.cohort_from_folder`; or a file that ``LesionTable.save`` wrote, as of
            such a folder that many trainings will use.
        seed: of a simulated cohort.
        subjects: number of simulated subjects.
        split: ``"train"``, ``"val"`` or ``"test"``, of a simulated cohort: no two have a subject in common.
        size: of the patches along x, y and z [voxels].
        cache_dir: where simulated cohorts are kept.
        processes: that simulate side by side.
        reading: options of ``cohort_from_folder``.

    Raises:
        QMRIError: nothing at that place, a file with patches of another size, or what a user's subjects lack.
    """
    if cohort_dir is None:
        from qsmrim_net.cohort.build import simulated_cohort

        return simulated_cohort(seed, subjects, split, size, cache_dir=cache_dir, processes=processes)
    if Path(cohort_dir).is_file():
        table = LesionTable.load(cohort_dir)
        if tuple(table.image.shape[2:]) != tuple(size):
            raise QMRIError(
                file=cohort_dir, field="size", found=f"patches of {tuple(table.image.shape[2:])} voxels",
                expected=f"patches of {tuple(size)} voxels", remedy="correct size, or make the table again",
            )  # fmt: skip
        return table
    from qsmrim_net.cohort.folder import cohort_from_folder

    return cohort_from_folder(cohort_dir, size, **(reading or {}))
