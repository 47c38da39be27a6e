"""All lesions of a cohort as one table of tensors: what trainings, comparators and experiments share."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch
from torch import Tensor

from qsmrim_net.cohort.population import KINDS
from shared_transforms.atomic import atomic_write
from shared_transforms.errors import QMRIError

__all__ = ["KINDS", "LesionTable"]

_SHAPES = {"image": 5, "features": 2, "raters": 2}  # number of axes; the others have one
_DTYPES = {
    "image": torch.float32,
    "features": torch.float64,
    "status": torch.int8,
    "amplitude": torch.float32,
    "volume_ml": torch.float32,
}  # the others are int64


@dataclass(frozen=True, eq=False)
class LesionTable:
    """M lesions, one a row.

    Attributes:
        subject: number of the subject, int64 ``[M]``.
        lesion: number of the lesion within its subject, from 1 on, int64 ``[M]``.
        image: masked patches of QSM [50 ppb] and normalised FLAIR, float32 ``[M, 2, X, Y, Z]``.
        features: radiomic features of the unmasked QSM [ppb], float64 ``[M, F]``; NaN rows where there are none.
        status: 0 where the features could be computed, int8 ``[M]``.
        label: 1 for a rim by the raters' consensus, else 0, int64 ``[M]``.
        raters: the two raters' own answers, int64 ``[M, 2]``.
        kind: what was simulated, an index of ``KINDS``; -1 where unknown, int64 ``[M]``.
        amplitude: susceptibility of the simulated rim over its surroundings [ppb], NaN where unknown, float32 ``[M]``.
        voxels: voxels of the lesion, int64 ``[M]``.
        volume_ml: volume of the lesion [ml], float32 ``[M]``.

    Raises:
        ValueError: where rows, axes or kinds of numbers differ from these.
    """

    subject: Tensor
    lesion: Tensor
    image: Tensor
    features: Tensor
    status: Tensor
    label: Tensor
    raters: Tensor
    kind: Tensor
    amplitude: Tensor
    voxels: Tensor
    volume_ml: Tensor

    def __post_init__(self) -> None:
        for name in _NAMES:
            value = getattr(self, name)
            axes, dtype = _SHAPES.get(name, 1), _DTYPES.get(name, torch.int64)
            if value.ndim != axes or len(value) != len(self.subject) or value.dtype != dtype:
                raise ValueError(
                    f"{name} must be {dtype} with {axes} axes and {len(self.subject)} rows, "
                    f"got {value.dtype} {tuple(value.shape)}"
                )

    def __len__(self) -> int:
        return len(self.subject)

    def select(self, rows: Tensor) -> LesionTable:
        """The rows of a mask (bool ``[M]``) or of indices (int64 ``[K]``), in their order."""
        return replace(self, **{name: getattr(self, name)[rows] for name in _NAMES})

    def to(self, device: torch.device | str) -> LesionTable:
        """The table on a device."""
        return replace(self, **{name: getattr(self, name).to(device) for name in _NAMES})

    def subjects(self) -> Tensor:
        """Numbers ``[S]`` of the subjects, rising."""
        return self.subject.unique(sorted=True)

    def rims_per_subject(self) -> Tensor:
        """Rims by consensus of each of :meth:`subjects`, int64 ``[S]``."""
        subjects, row = self.subject.unique(sorted=True, return_inverse=True)
        return torch.zeros_like(subjects).scatter_add_(0, row, self.label)

    def save(self, path: str | Path) -> None:
        """Write to a file, atomically."""
        # Views would be written with all that they are views of.
        with atomic_write(Path(path)) as file:
            torch.save({name: getattr(self, name).cpu().clone() for name in _NAMES}, file)

    @staticmethod
    def load(path: str | Path) -> LesionTable:
        """Read what :meth:`save` wrote.

        Raises:
            QMRIError: a file that is missing, damaged or no table.
        """
        from shared_transforms.checkpoint.loading import load_checkpoint

        content = load_checkpoint(path)
        try:
            return LesionTable(**content)
        except (TypeError, ValueError, AttributeError) as error:
            raise QMRIError(
                file=path, field="file content", found=str(error), expected="a table that LesionTable.save wrote",
                remedy="delete the file, and make the cohort again",
            ) from error  # fmt: skip

    @staticmethod
    def concatenate(tables: Iterable[LesionTable]) -> LesionTable:
        """The rows of several tables, one table after the other."""
        found = list(tables)
        return LesionTable(**{name: torch.cat([getattr(table, name) for table in found]) for name in _NAMES})


_NAMES = tuple(field.name for field in fields(LesionTable))
