"""Cross-entropy of a batch that may have been oversampled."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from shared_transforms.distributed import batch_mean

__all__ = ["RimLoss"]


class RimLoss(nn.Module):
    """Binary cross-entropy, mean over the lesions and their synthetic rows of all processes, in float32 at least.

    Rows beyond the labels are what :class:`~qsmrim_net.smote.DeepSMOTE` added, and count as rims.
    """

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Loss of a batch.

        Args:
            logits: ``[N + s]``, the lesions first, then s synthetic rims; s may be 0.
            labels: ``[N]``, 1 for a rim, 0 for none.

        Returns:
            The loss, a scalar.

        Raises:
            ValueError: where there are fewer logits than labels, or another number of axes.
        """
        extra = logits.shape[0] - labels.shape[0] if logits.ndim == labels.ndim == 1 else -1
        if extra < 0:
            shapes = f"{tuple(logits.shape)} and {tuple(labels.shape)}"
            raise ValueError(f"logits [N + s] and labels [N] must have one axis, s >= 0, got shapes {shapes}")
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        target = torch.cat([labels.to(logits), logits.new_ones(extra)])
        return batch_mean(binary_cross_entropy_with_logits(logits, target, reduction="none"))
