"""Flow, transit time, arrival and residue function of healthy tissue and of strokes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from physics.perfusion import RESIDUES
from shared_transforms.anatomy.deformation import Parameters

__all__ = ["Haemodynamics", "draw_haemodynamics", "tissue_maps"]

LONGEST = 24.0  # s, of a mean transit time
SMALLEST = 1e-3  # ml/100 g/min: a voxel of fluid has no flow, but a transit time
# Ranges of healthy tissue: CBF [ml/100 g/min] and MTT [s] of grey and white matter (Leenders et al., Brain 113, 1990).
_GREY, _WHITE = ((45.0, 70.0), (3.4, 4.8)), ((17.0, 27.0), (4.2, 6.0))
# Of a stroke relative to healthy tissue: CBF, MTT, and added delay [s]; Lin et al., Stroke 45, 2014, for the order.
_OLIGAEMIA = ((0.65, 0.9), (1.2, 1.7), (0.8, 3.0))
_PENUMBRA = ((0.28, 0.55), (1.7, 3.0), (3.0, 8.0))
_CORE = ((0.07, 0.22), (1.8, 3.5), (4.0, 10.0))


@dataclass(frozen=True)
class Haemodynamics(Parameters):
    """Everything random about the circulation in n heads.

    Attributes:
        tissue: CBF [ml/100 g/min] and MTT [s] of grey and white matter ``[n, 2, 2]``.
        stroke: CBF and MTT relative to healthy, added delay [s], of oligaemia, penumbra and core ``[n, 3, 3]``.
        delay: of all tissue against the artery that is measured ``[n]`` [s]; below 0 where that one fills late.
        dispersion: time constant of the vascular transport function of healthy tissue ``[n]`` [s].
        dispersion_share: of the added delay that adds to it ``[n]``.
        weights: of the residue functions ``physics.perfusion.RESIDUES`` in healthy and hypoperfused tissue
            ``[n, 2, 5]``; their sum is 1.
        gamma_shape: of the gamma family of residue functions ``[n]``.
        texture: relative SD of CBF and of MTT within tissue ``[n, 2]``.
    """

    tissue: Tensor
    stroke: Tensor
    delay: Tensor
    dispersion: Tensor
    dispersion_share: Tensor
    weights: Tensor
    gamma_shape: Tensor
    texture: Tensor

    def __len__(self) -> int:
        """Number of heads."""
        return int(self.delay.shape[0])


def draw_haemodynamics(generator: torch.Generator, n: int) -> Haemodynamics:
    """Draw the circulation of n heads from a random stream on the CPU."""

    def uniform(*ranges: tuple[float, float]) -> Tensor:
        low, high = torch.tensor(ranges).T
        return low + (high - low) * torch.rand((n, len(ranges)), generator=generator)

    # Uniform on the simplex: mixtures from one residue function alone to all five.
    weights = -torch.log(torch.rand((n, 2, len(RESIDUES)), generator=generator).clamp_min(1e-6))
    return Haemodynamics(
        tissue=uniform(*_GREY, *_WHITE).unflatten(1, (2, 2)),
        stroke=uniform(*_OLIGAEMIA, *_PENUMBRA, *_CORE).unflatten(1, (3, 3)),
        delay=uniform((-1.5, 2.0))[:, 0],
        dispersion=uniform((0.0, 0.8))[:, 0],
        dispersion_share=uniform((0.0, 0.35))[:, 0],
        weights=weights / weights.sum(-1, keepdim=True),
        gamma_shape=torch.exp(uniform((math.log(1.0), math.log(6.0)))[:, 0]),
        texture=uniform((0.05, 0.15), (0.03, 0.1)),
    )


def tissue_maps(drawn: Haemodynamics, i: int, voxels: dict[str, Tensor]) -> dict[str, Tensor]:
    """What every voxel's curve is made of.

    Fluid has no flow, so a voxel's CBF and CBV are those of its tissues times their fractions. Within a stroke the
    logarithms of CBF and MTT, and the delay, go smoothly from level to level.

    Args:
        drawn: circulation of n heads.
        i: the head.
        voxels: of that head ``[V]``: volume fractions ``gm``, ``wm``; memberships ``oligaemia``, ``penumbra``,
            ``core``; ``arrival`` [s]; ``texture`` ``[2, V]``.

    Returns:
        ``[V]``: ``cbf`` [ml/100 g/min], ``cbv`` [ml/100 g], ``mtt``, ``delay``, ``dispersion`` [s]; ``weights``
        ``[V, 5]`` of the residue functions.
    """
    like = voxels["gm"]
    (grey_cbf, grey_mtt), (white_cbf, white_mtt) = drawn.tissue[i].tolist()
    flow = grey_cbf * voxels["gm"] + white_cbf * voxels["wm"]
    volume = grey_cbf * grey_mtt * voxels["gm"] + white_cbf * white_mtt * voxels["wm"]
    levels = torch.stack([voxels[name] for name in ("oligaemia", "penumbra", "core")], -1)
    stroke = drawn.stroke[i].to(like)
    logarithms = torch.cat([stroke[:, :2].log(), stroke[:, 2:]], 1)
    change = levels @ torch.diff(logarithms, dim=0, prepend=torch.zeros_like(logarithms[:1]))
    wobble = drawn.texture[i].to(like)[:, None] * voxels["texture"]
    mtt = (volume + 1e-3) / (flow + 1e-3 / grey_mtt) * torch.exp(change[:, 1] + wobble[1])
    mtt = mtt.clamp(1.0, LONGEST)
    cbf = (flow * torch.exp(change[:, 0] + wobble[0])).clamp_min(SMALLEST)
    added = change[:, 2]
    healthy, hypoperfused = drawn.weights[i].to(like)
    share = voxels["oligaemia"][:, None]
    return {
        "cbf": cbf,
        "cbv": cbf * mtt / 60.0,
        "mtt": mtt,
        "delay": float(drawn.delay[i]) + voxels["arrival"] + added,
        "dispersion": float(drawn.dispersion[i]) + float(drawn.dispersion_share[i]) * added,
        "weights": healthy * (1.0 - share) + hypoperfused * share,
    }
