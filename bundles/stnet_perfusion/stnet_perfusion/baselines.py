"""Classical deconvolutions with the call signature of the network's inferer, so that one overlay swaps them in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from physics.perfusion import haematocrit_factor, perfusion_maps
from physics.perfusion.deconvolution import METHODS
from shared_transforms.errors import QMRIError

__all__ = ["METHODS", "Deconvolution"]

NEIGHBOURS = ("ttv",)  # methods that look at the voxels around one


class Deconvolution(nn.Module):
    """One of the classical deconvolutions.

    Args:
        method: "ssvd", "csvd", "osvd", "tikhonov" or "ttv".
        options: keyword arguments of ``physics.perfusion.deconvolve``, such as ``threshold``.
        factor: haematocrit factor over density [ml/g]; default the standard one.
        progress: show a progress bar of a method that iterates.

    Raises:
        QMRIError: an unknown method.
    """

    def __init__(
        self,
        method: str = "csvd",
        options: Mapping[str, Any] | None = None,
        factor: float | None = None,
        progress: bool = True,
    ) -> None:
        super().__init__()
        if method not in METHODS:
            raise QMRIError(
                field="method", found=repr(method), expected=f"one of {', '.join(METHODS)}", remedy="correct the config"
            )
        self.method, self.options, self.progress = method, dict(options or {}), progress
        self.factor = haematocrit_factor() if factor is None else factor

    @torch.no_grad()
    def forward(
        self,
        image: Tensor,
        mask: Tensor,
        aif: Tensor,
        vof: Tensor,
        frame_time: float,
        voxel_size: Sequence[float] | None = None,
    ) -> Tensor:
        """Deconvolve every voxel of the mask.

        Args:
            image: baseline and T concentrations of tissue [mM] ``[B, 1 + T, X, Y, Z]``.
            mask: boolean ``[B, 1, X, Y, Z]``.
            aif: arterial concentration ``[B, T]`` [mM].
            vof: venous concentration ``[B, T]`` [mM].
            frame_time: [s].
            voxel_size: [mm], for methods that look at neighbours.

        Returns:
            CBV [ml/100 g], CBF [ml/100 g/min], Tmax [s] ``[B, 3, X, Y, Z]``, 0 outside the mask.

        Raises:
            QMRIError: curves that the deconvolution cannot use, or an option that the method does not have.
        """
        image, mask = (part.as_tensor() if hasattr(part, "as_tensor") else part for part in (image, mask))
        result = image.new_zeros(len(image), 3, *image.shape[2:])
        for one, inside, arterial, venous, out in zip(image, mask[:, 0], aif, vof, result, strict=True):
            if not bool(inside.any()):
                continue
            try:
                out[:, inside] = self._maps(one[1:], inside, arterial, venous, frame_time, voxel_size)
            except ValueError as error:
                raise QMRIError(
                    field=f"aif, vof, options of {self.method}", found=str(error), expected="what this message names",
                    remedy="check the arterial and the venous curve, and the options in the config",
                ) from error  # fmt: skip
        return result

    def _maps(
        self, concentration: Tensor, inside: Tensor, aif: Tensor, vof: Tensor, dt: float,
        voxel_size: Sequence[float] | None,
    ) -> Tensor:  # fmt: skip
        """CBV, CBF, Tmax ``[3, V]`` of the mask's voxels, from ``[T, X, Y, Z]``."""
        options = {"factor": self.factor, **self.options}
        if self.method not in NEIGHBOURS:
            maps = perfusion_maps(concentration[:, inside].T, aif, vof, dt, self.method, **options)
            return torch.stack([maps[name] for name in ("cbv", "cbf", "tmax")])
        with tqdm(desc=self.method, disable=not self.progress) as bar:

            def report(iteration: Any) -> None:
                bar.total = iteration.limit
                bar.update()

            options = {"voxel_size": voxel_size, "report": report} | options
            maps = perfusion_maps(
                concentration.movedim(0, -1), aif, vof, dt, self.method, mask=inside, **options
            )  # fmt: skip
        return torch.stack([maps[name][inside] for name in ("cbv", "cbf", "tmax")])
