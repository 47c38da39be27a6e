"""What the simulated tissues are made of: susceptibility, relaxation and proton density, and how much they vary."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Tissue:
    """One structure.

    Attributes:
        chi: mean susceptibility relative to CSF [ppm].
        chi_sd: standard deviation of the mean of one person's structure [ppm]; at most twice that is drawn.
        texture: variation within the structure, relative to that of white matter.
        relaxation: R2* at 3 T [1/s].
        density: signal at TE = 0 relative to CSF, proton density times saturation.
    """

    chi: float
    chi_sd: float
    texture: float
    relaxation: float
    density: float


# chi: tissues of the head phantom of Marques et al., Magn Reson Med 86:526 (2021), table 1, less its CSF (.019); where
# in vivo maps say otherwise, their middle. Spread: what Wharton and Bowtell, NeuroImage 53:515 (2010), Deistung et al.,
# NeuroImage 65:299 (2013), and Liu et al., J Magn Reson Imaging 42:23 (2015), report of healthy adults together;
# iron of the deep nuclei doubles between 20 and 60 years. Veins: .27 ppm x 4 pi / 3 x haematocrit .4 x
# desaturation .3-.5. White matter has one value whatever the direction of its fibres: anisotropy is not simulated.
TISSUES: dict[str, Tissue] = {
    "csf": Tissue(0.0, 0.003, 0.1, 3.0, 1.0),
    "grey matter": Tissue(0.015, 0.012, 0.8, 16.0, 0.85),
    "white matter": Tissue(-0.035, 0.012, 1.0, 21.0, 0.7),
    "vein": Tissue(0.28, 0.07, 0.3, 45.0, 0.75),
    "caudate": Tissue(0.055, 0.015, 1.0, 22.0, 0.82),
    "putamen": Tissue(0.055, 0.02, 1.5, 25.0, 0.8),
    "pallidum": Tissue(0.14, 0.03, 1.5, 36.0, 0.72),
    "thalamus": Tissue(0.01, 0.012, 1.2, 21.0, 0.77),
    "red nucleus": Tissue(0.1, 0.025, 1.0, 32.0, 0.74),
    "substantia nigra": Tissue(0.12, 0.025, 1.5, 36.0, 0.74),
    "dentate": Tissue(0.1, 0.025, 1.0, 32.0, 0.75),
    # Only where a pathology is asked for; voxel means, mineral and blood products are never pure.
    "calcification": Tissue(-0.8, 0.35, 1.0, 80.0, 0.25),
    "microbleed": Tissue(1.0, 0.35, 1.0, 120.0, 0.6),
    "tumour": Tissue(0.0, 0.02, 1.5, 12.0, 0.9),
    # Outside of the brain: seen only where a mask is wrong. Bone -11.3, water -9.05, air +.36 ppm.
    "bone": Tissue(-2.2, 0.2, 0.0, 300.0, 0.1),
    "air": Tissue(9.4, 0.0, 0.0, 0.0, 0.0),
    "soft": Tissue(0.0, 0.05, 0.0, 30.0, 0.8),
}
NAMES = tuple(TISSUES)
STRUCTURES = NAMES[: NAMES.index("tumour") + 1]
"""Structures of the label map: ``labels == STRUCTURES.index(name) + 1``; 0 is none of them."""

_CHI, _CHI_SD, TEXTURE, _RELAXATION, _DENSITY = torch.tensor(
    [[t.chi, t.chi_sd, t.texture, t.relaxation, t.density] for t in TISSUES.values()]
).unbind(1)


def draw_tissues(generator: torch.Generator, n: int) -> Tensor:
    """Susceptibility, relaxation and density of every tissue.

    The contrast of the magnitude is drawn apart from the susceptibility, widely, and with any sign of grey against
    white matter: it shows edges and tells nothing about their height.

    Args:
        generator: random stream.
        n: number of heads.

    Returns:
        ``[n, tissues, 3]``: chi [ppm], R2* [1/s], signal at TE = 0.
    """
    count = len(NAMES)
    normal = torch.randn((n, count), generator=generator).clamp(-2.0, 2.0)
    chi = _CHI + _CHI_SD * normal
    relaxation = _RELAXATION * torch.exp(0.35 * torch.randn((n, count), generator=generator))
    density = _DENSITY * torch.exp(0.2 * torch.randn((n, count), generator=generator))
    return torch.stack([chi, relaxation, density], -1)
