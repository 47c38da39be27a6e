"""The objects of the simulated experiments: held-out heads and a phantom, with their true maps."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from physics.noise import add_gaussian_noise, add_rician_noise, sigma_from_snr
from physics.phantoms import disc_fractions
from physics.relaxometry import SignalModel
from shared_transforms.anatomy import brain_mask, split_generator

from ..network import make_signal_model
from ..protocols import PROTOCOLS
from ..simulator import TABLE, TISSUE_A, RelaxometrySimulator

TISSUES = {"GM": 1, "WM": 2, "CSF": 0}  # channels of the fractions
PURE = 0.9  # fraction above which a voxel counts as one tissue
SIZE = (200, 224)  # [pixels of 1 mm], holds every deformed brain
MARGIN = 6  # [pixels] around the brain

# Protocols that no set of weights was made for: times and TR [s].
CLINICAL: dict[str, dict[str, tuple[tuple[float, ...], float | None]]] = {
    "T1": {
        "clinical8": ((0.05, 0.09, 0.16, 0.29, 0.52, 0.93, 1.67, 3.0), 6.0),
        "clinical6": ((0.05, 0.1, 0.2, 0.4, 0.6, 0.8), 2.0),
    },
    "T2": {
        "clinical8": (tuple(0.0125 * k for k in range(1, 9)), None),
        "clinical32": (tuple(0.01 * k for k in range(1, 33)), None),
    },
}
# ISMRM/NIST system phantom, T1 array: nominal T1 at 1.5 T [s].
NIST_T1 = (2.033, 1.489, 1.012, 0.7308, 0.5141, 0.3679, 0.2601, 0.1846, 0.1327, 0.0927, 0.0654, 0.04632, 0.03245,
           0.022859)  # fmt: skip


@dataclass
class Scene:
    """True maps of n slices of one size.

    Attributes:
        parameters: ``[n, Q, H, W]`` in the order and units of the signal model.
        fractions: tissue fractions ``[n, 9, H, W]``, or those of spheres.
    """

    parameters: Tensor
    fractions: Tensor

    @property
    def inside(self) -> Tensor:
        """Voxels with tissue, ``[n, H, W]``."""
        return self.fractions.sum(1) > 0.5

    @property
    def brain(self) -> Tensor:
        """Brain mask ``[n, H, W]``."""
        return torch.stack([brain_mask(fractions) for fractions in self.fractions])

    def tissue(self, name: str) -> Tensor:
        """Voxels of nearly pure GM, WM or CSF, or the whole brain, ``[n, H, W]``."""
        return self.brain if name == "brain" else self.fractions[:, TISSUES[name]] > PURE

    def __getitem__(self, index: slice) -> Scene:
        return Scene(self.parameters[index], self.fractions[index])


def acquisition_of(parameter: str, protocol: str, device: Any = "cpu") -> dict[str, Tensor]:
    """Times and TR [s] of a protocol of the paper or of :data:`CLINICAL`, as the networks take them."""
    if protocol in PROTOCOLS[parameter]:
        times, repetition = PROTOCOLS[parameter][protocol], None
    else:
        times, repetition = CLINICAL[parameter][protocol]
    acquisition = {"times": torch.tensor(times, device=device)}
    if repetition is not None:
        acquisition["repetition_time"] = torch.full_like(acquisition["times"], repetition)
    return acquisition


def model_of(parameter: str, acquisition: Mapping[str, Any]) -> SignalModel:
    """Signal model of an acquisition."""
    model = make_signal_model(parameter, acquisition["times"], acquisition.get("repetition_time"))
    return model.to(acquisition["times"].device)


def acquire(signal: Tensor, snr: float, noise: str, generator: torch.Generator) -> Tensor:
    """One noisy repetition of a noise-free series of any shape."""
    add = add_rician_noise if noise == "rician" else add_gaussian_noise
    return add(signal, sigma_from_snr(snr), generator)


def signal_of(parameter: str, scene: Scene, acquisition: Mapping[str, Any]) -> Tensor:
    """Noise-free series ``[n, N, H, W]``."""
    return model_of(parameter, acquisition)(*scene.parameters.unbind(1)).movedim(0, 1)


def brains(
    parameter: str,
    n: int,
    seed: int,
    *,
    split: str = "test",
    texture: float = 0.0,
    inversion: float | None = None,
    inversion_spread: float = 0.0,
    table_means: bool = False,
    anatomy: Mapping[str, Any] | None = None,
    size: tuple[int, int] = SIZE,
    device: Any = "cpu",
) -> Scene:
    """Whole axial slices of n deformed heads, cropped to the box of their brains.

    Args:
        parameter: ``"T1"`` or ``"T2"``.
        n: number of heads.
        seed: of the deformations and tissues.
        split: ``"test"`` or ``"val"``: deformations that training never sees.
        texture: share of the variation within a tissue, 0 to 1.
        inversion: B of all heads; None draws 2 - |N(0, 0.2)| for each, as the paper does.
        inversion_spread: standard deviation of a smooth variation of B over the slice.
        table_means: T1 or T2 of every tissue at the mean of table 1 instead of drawn. A always is.
        anatomy: ``source`` and ``folder`` of the head.
        size: height and width [pixels] before cropping.
        device: of the result.
    """
    simulator = RelaxometrySimulator(
        parameter=parameter, device=device, size=size, whole_slice=True, phantom_share=0.0, free_share=0.0,
        inversion="paper" if inversion is None else inversion, anatomy=dict(anatomy or {}),
    )  # fmt: skip
    drawn = simulator.draw(split_generator(seed, split=split), n, split)
    changes: dict[str, Any] = {
        "amplitude": torch.tensor(TISSUE_A).expand(n, -1),
        "texture": torch.full((n,), texture),
        "inversion_spread": torch.full((n,), inversion_spread),
    }
    if table_means:
        changes["relaxation"] = torch.tensor(TABLE[parameter][0]).expand(n, -1)
    label = simulator.simulate(dataclasses.replace(drawn, **changes))["label"]
    scene = Scene(label["parameters"], label["fractions"])
    rows, columns = (_extent(scene.brain.any(0).any(axis)) for axis in (1, 0))
    return Scene(scene.parameters[..., rows, columns], scene.fractions[..., rows, columns])


def _extent(occupied: Tensor) -> slice:
    index = occupied.nonzero()[:, 0]
    if len(index) == 0:
        return slice(None)
    return slice(max(0, int(index[0]) - MARGIN), int(index[-1]) + MARGIN + 1)


def sphere_phantom(inversion: float = 1.95, size: int = 210, pixel_mm: float = 0.82) -> tuple[Scene, Tensor]:
    """The T1 array of the NIST phantom, simulated: 14 spheres of 15 mm in water, ten on a circle and four inside.

    Returns:
        The scene, one slice whose fractions are the spheres and the water around them, and the nominal T1 ``[14]`` [s].
    """
    ring = [(50.0, 36.0 * k) for k in range(10)] + [(20.0 * math.sqrt(2.0), 45.0 + 90.0 * k) for k in range(4)]
    mm = [(r * math.cos(math.radians(a)), r * math.sin(math.radians(a))) for r, a in ring]
    centres = 0.5 + torch.tensor([[(0.0, 0.0), *mm]]) / (pixel_mm * size)
    radii = torch.tensor([[80.0, *[7.5] * len(mm)]]) / (pixel_mm * size)
    fractions = disc_fractions(centres, radii, (size, size))
    t1 = torch.tensor([2.8, *NIST_T1])
    total = fractions.sum(1)
    relaxation = torch.einsum("t,nthw->nhw", t1, fractions) / total.clamp(min=1e-3)
    relaxation = torch.where(total > 1e-3, relaxation, 1.0)
    parameters = torch.stack([total, torch.full_like(total, inversion), relaxation], 1)
    return Scene(parameters, fractions), t1[1:]
