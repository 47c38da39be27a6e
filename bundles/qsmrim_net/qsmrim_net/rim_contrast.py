"""The physicist's baseline: how much more paramagnetic the shell of a lesion is than its core. Nothing is learnt."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["RimContrast"]


class RimContrast(nn.Module):
    """Mean QSM of a lesion's shell minus that of its core, with the call signature of the network.

    The shell is the lesion without its erosion in the axial plane (the slices, 3 mm, are thicker than a rim). Two
    voxels of .75 mm hold a rim of .6 to 1.3 mm as the QSM shows it: blurred, and in a mask that may be a little wide.
    What lies beyond the patch is taken for lesion: a cut is no edge.

    Args:
        qsm_scale: ppb that are 1 in the patch.
        unit: contrast that has the logit 1 [ppb]. Where a lesion is called a rim is for the calibration to say.
        thickness: of the shell [voxels].

    Raises:
        ValueError: for scales that are not positive or a thickness below 1.
    """

    def __init__(self, qsm_scale: float = 50.0, unit: float = 10.0, thickness: int = 2) -> None:
        super().__init__()
        if not (qsm_scale > 0 and unit > 0):
            raise ValueError(f"qsm_scale and unit must be positive [ppb], got {qsm_scale} and {unit}")
        if thickness < 1:
            raise ValueError(f"thickness must be 1 voxel or more, got {thickness}")
        self.scale, self.thickness = qsm_scale / unit, thickness

    def forward(self, image: Tensor, radiomics: Tensor | None = None, labels: Tensor | None = None) -> Tensor:
        """Contrast of each lesion.

        Args:
            image: masked patches ``[N, 2, X, Y, Z]``, first the QSM over ``qsm_scale``, then the FLAIR; a voxel
                belongs to the lesion where one of the two is not 0.
            radiomics: not used.
            labels: not used.

        Returns:
            Shell minus core ``[N]`` [``unit``], in single precision or better; 0 for a lesion too thin to have a core.
        """
        image = image.float() if image.dtype in (torch.float16, torch.bfloat16) else image
        inside = (image != 0).any(1, keepdim=True).to(image)
        window = 2 * self.thickness + 1
        # The window of a pooling ends at the border of the patch.
        core = 1 - functional.max_pool3d(1 - inside, [window, window, 1], 1, [self.thickness, self.thickness, 0])
        shell = inside - core
        core, shell = core[:, 0].flatten(1), shell[:, 0].flatten(1)
        qsm = image[:, 0].flatten(1)
        contrast = _mean(qsm, shell) - _mean(qsm, core)
        both = (core.sum(1) > 0) & (shell.sum(1) > 0)
        return torch.where(both, contrast * self.scale, torch.zeros_like(contrast))


def _mean(values: Tensor, weights: Tensor) -> Tensor:
    return (values * weights).sum(1) / weights.sum(1).clamp_min(1)
