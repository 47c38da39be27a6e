"""Small tables of lesions, drawn at random, for tests of trainings and cross-validation."""

from __future__ import annotations

import torch
from qsmrim_net.cohort.table import LesionTable

SIZE = (8, 8, 4)


def lesion_table(subjects: int = 8, each: int = 6, rims: float = 0.25, features: int = 527) -> LesionTable:
    """Rims are brighter, and some lesions have no features."""
    generator = torch.Generator().manual_seed(0)
    m = subjects * each
    label = (torch.rand(m, generator=generator) < rims).long()
    image = torch.zeros(m, 2, *SIZE)
    image[:, :, 2:7, 2:7, 1:4] = torch.randn(m, 2, 5, 5, 3, generator=generator) + label.view(-1, 1, 1, 1, 1)
    values = torch.randn(m, features, generator=generator, dtype=torch.float64) + label[:, None]
    status = torch.zeros(m, dtype=torch.int8)
    status[::11] = 1
    values[::11] = torch.nan
    return LesionTable(
        subject=torch.arange(subjects).repeat_interleave(each) + 3,
        lesion=torch.arange(1, each + 1).repeat(subjects),
        image=image,
        features=values,
        status=status,
        label=label,
        raters=torch.stack([label, label], 1),
        kind=1 - label,
        amplitude=30.0 * label,
        voxels=torch.full((m,), 75),
        volume_ml=torch.full((m,), 0.127),
    )
