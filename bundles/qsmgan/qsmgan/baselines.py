"""Classical inversions with the call signature of the network, so that one overlay swaps them in."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from physics import dipole_inversion
from physics.dipole_inversion import Iteration
from shared_transforms.errors import QMRIError

# Name in a config: function of physics.dipole_inversion. COSMOS needs several orientations and has no place here.
METHODS = {
    "tkd": "tkd",
    "tikhonov": "tikhonov",
    "l2": "l2_gradient",
    "tv": "tv_admm",
    "ilsqr": "ilsqr",
    "medi": "medi",
}


class ClassicalInversion(nn.Module):
    """One of the classical dipole inversions.

    Args:
        method: "tkd", "tikhonov", "l2", "tv", "ilsqr" or "medi".
        options: keyword arguments of its function in ``physics.dipole_inversion``, such as ``regularisation``.
        progress: show a progress bar with the relative change of each iteration.

    Raises:
        QMRIError: an unknown method, or an option that it does not have.
    """

    def __init__(self, method: str = "tv", options: Mapping[str, Any] | None = None, progress: bool = True) -> None:
        super().__init__()
        if method not in METHODS:
            raise QMRIError(
                field="method", found=repr(method), expected=f"one of {', '.join(METHODS)}", remedy="correct the config"
            )
        self.method, self.options, self.progress = method, dict(options or {}), progress
        self.function = getattr(dipole_inversion, METHODS[method])
        known = {n for n, p in inspect.signature(self.function).parameters.items() if p.kind is p.KEYWORD_ONLY}
        self.reports, self.takes_fluid = "report" in known, "csf_mask" in known
        known -= {"report", "csf_mask"}
        if unknown := sorted(set(self.options) - known):
            raise QMRIError(
                field="options", found=", ".join(unknown), remedy="correct the config",
                expected=f"options of {method}: {', '.join(sorted(known))}",
            )  # fmt: skip

    @torch.no_grad()
    def forward(
        self,
        image: Tensor,
        mask: Tensor,
        voxel_size: Sequence[float] = (1.0, 1.0, 1.0),
        b0_direction: Sequence[float] = (0.0, 0.0, 1.0),
        csf_mask: Tensor | None = None,
    ) -> Tensor:
        """Invert the dipole.

        Args:
            image: local field [ppm] and magnitude (all 0 where there is none) ``[B, 2, X, Y, Z]``.
            mask: boolean ``[B, 1, X, Y, Z]``.
            voxel_size: [mm].
            b0_direction: unit vector in voxel axes.
            csf_mask: cerebrospinal fluid, boolean ``[B, 1, X, Y, Z]``; makes MEDI MEDI+0, and is nothing to the others.

        Returns:
            Susceptibility ``[B, 1, X, Y, Z]`` [ppm], 0 outside of the mask.
        """
        plain = image.as_tensor() if hasattr(image, "as_tensor") else image
        inside = mask.as_tensor() if hasattr(mask, "as_tensor") else mask
        field, magnitude = plain[:, :1], plain[:, 1:]
        weights = magnitude if bool(magnitude.any()) else None
        options = self.options | ({"csf_mask": csf_mask} if self.takes_fluid and csf_mask is not None else {})
        if not self.reports:
            return self.function(field, voxel_size, b0_direction, inside, weights, **options)
        with tqdm(desc=self.method, disable=not self.progress) as bar:

            def report(iteration: Iteration) -> None:
                bar.total = iteration.limit
                bar.set_postfix(change=f"{iteration.change:.1e}", refresh=False)
                bar.update()

            return self.function(field, voxel_size, b0_direction, inside, weights, report=report, **options)
