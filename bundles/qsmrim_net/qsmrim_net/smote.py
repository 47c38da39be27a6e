"""DeepSMOTE: synthetic rims between neighbouring rims, in the latent space (paper, section 2.2.3)."""

import torch
from torch import Tensor, nn

from shared_transforms.distributed import all_rows, are_own, of_first_process

__all__ = ["DeepSMOTE"]


class DeepSMOTE(nn.Module):
    """Adds two synthetic rims for each rim of a training batch.

    A synthetic row is ``a x_p + (1 - a) x_q``: ``x_p`` is a rim's feature vector, ``x_q`` one of its two nearest
    *other* rims in the batch by Euclidean distance, ``a`` one number from U(0, 1) for each synthetic row, of torch's
    global generator. Gradients flow to both. A batch with n rims gets exactly 2n rows, for every n, so rims count three
    times in any batch:

    * n = 0: no row.
    * n = 1: there is no other rim to go towards; both rows are the rim itself.
    * n = 2: the only other rim stands for both neighbours; the two rows differ by ``a``.

    The batch is that of all processes of a training; each adds the synthetic rows of its own rims.

    In evaluation mode nothing is added and nothing is drawn. There are no parameters; the two layers that the paper
    counts to DeepSMOTE are the network's ``fusion``, which evaluation needs too.

    Source: Zhang et al., NeuroImage: Clinical 34 (2022) 102979, section 2.2.3, equations 1 and 2.
    """

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        """Features with their synthetic rims.

        Args:
            features: ``[N, F]``.
            labels: ``[N]``, 1 for a rim, 0 for none.

        Returns:
            ``[N + 2n, F]``: the features as given, then the two rows of the first rim, of the second and so on; in
            evaluation mode ``[N, F]``.

        Raises:
            ValueError: where there is not one label for each row.
        """
        if labels.shape != features.shape[:1]:
            raise ValueError(f"labels must be one for each of {features.shape[0]} rows, got {labels.shape}")
        if not self.training:
            return features
        return torch.cat([features, self.synthetic(features, labels).to(features.dtype)])

    @torch.jit.unused
    def synthetic(self, features: Tensor, labels: Tensor) -> Tensor:
        """Two synthetic rows ``[2n, F]`` for each of the n rims among the lesions; arguments as for :meth:`forward`."""
        features, are_rims = all_rows(features), all_rows(labels.float()) > 0.5
        rims = features[are_rims]
        others = rims[self.neighbours(rims)]
        weight = of_first_process(torch.rand(others.shape[0], 2, 1, device=features.device))
        synthetic = weight * rims.unsqueeze(1) + (1.0 - weight) * others
        return synthetic[are_own(features)[are_rims]].flatten(0, 1)

    def neighbours(self, rims: Tensor) -> Tensor:
        """Rows ``[n, 2]`` of the two nearest others of each of the rims ``[n, F]``, nearest first."""
        count = rims.shape[0]
        if count < 2:  # itself, where there is one
            return torch.zeros(count, 2, dtype=torch.long, device=rims.device)
        rims = rims.detach().float()
        # Differences, not the expanded square: of near rims that is rounding alone.
        distances = torch.cdist(rims, rims, compute_mode="donot_use_mm_for_euclid_dist").fill_diagonal_(float("inf"))
        nearest = distances.topk(min(2, count - 1), largest=False).indices
        return torch.stack([nearest[:, 0], nearest[:, -1]], 1)
