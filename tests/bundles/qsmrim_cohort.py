"""A small table of lesions for the tests of qsmrim_net: rims have bright shells and features of their own."""

from __future__ import annotations

import torch
from qsmrim_net.cohort.table import LesionTable
from qsmrim_net.radiomics.names import FEATURES

SIZE = (8, 8, 8)


def small_cohort(subjects: int = 12, each: int = 10, seed: int = 0) -> LesionTable:
    """Lesions ``[subjects * each]``: subject s has s modulo 3 rims."""
    generator = torch.Generator().manual_seed(seed)
    count = subjects * each
    subject = torch.arange(subjects).repeat_interleave(each)
    lesion = torch.arange(1, each + 1).repeat(subjects)
    label = (lesion <= subject % 3).long()
    image = 0.3 * torch.randn(count, 2, *SIZE, generator=generator)
    image[:, 0, 2:6:3] += label[:, None, None, None]
    features = torch.randn(count, len(FEATURES), generator=generator, dtype=torch.float64)
    features[:, :30] += label[:, None]
    voxels = torch.randint(5, 60, (count,), generator=generator)
    return LesionTable(
        subject=subject, lesion=lesion, image=image, features=features, status=torch.zeros(count, dtype=torch.int8),
        label=label, raters=torch.stack([label, label.roll(1)], 1), kind=torch.where(label == 1, 0, 1 + lesion % 5),
        amplitude=label * 30.0, voxels=voxels, volume_ml=voxels * 0.0017,
    )  # fmt: skip
