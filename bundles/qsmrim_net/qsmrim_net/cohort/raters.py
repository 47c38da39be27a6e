"""Two raters who look for rims, and the consensus they come to."""

from __future__ import annotations

import torch
from torch import Tensor

from .population import KINDS, Lesions

__all__ = ["cohen_kappa", "draw_raters"]

# Share of lesions on which the raters disagree: of rims from the strongest to the weakest, of the others by kind. They
# give the paper's kappa of .59 at its 4.25 % of rims.
_RIM_DISAGREEMENT = (0.12, 0.48)
_DISAGREEMENT = {"isointense": 0.008, "hyperintense": 0.022, "hypointense": 0.006, "vein": 0.075, "weak_edge": 0.16}


def draw_raters(generator: torch.Generator, lesions: Lesions) -> Tensor:
    """What two raters said of the lesions of a subject.

    Where they agree the consensus is theirs: a lesion with a rim was seen by at least one, one without by at most one.

    Args:
        generator: random stream on the CPU.
        lesions: L lesions.

    Returns:
        ``[L, 2]`` int64, 1 for a rim.
    """
    strength = ((lesions.rim * lesions.coverage * lesions.thickness - 8.0) / 45.0).clamp(0.0, 1.0)
    low, high = _RIM_DISAGREEMENT
    table = torch.tensor([0.0, *(_DISAGREEMENT[name] for name in KINDS[1:])])
    rim = lesions.kind == 0
    doubt = torch.where(rim, high - (high - low) * strength, table[lesions.kind])
    count = len(lesions)
    disagree = torch.rand(count, generator=generator) < doubt
    first = torch.rand(count, generator=generator) < 0.5
    consensus = rim.long()
    dissent = 1 - consensus
    return torch.stack(
        [torch.where(disagree & first, dissent, consensus), torch.where(disagree & ~first, dissent, consensus)], 1
    )


def cohen_kappa(raters: Tensor) -> float:
    """Cohen's kappa of two raters ``[M, 2]`` who said 0 or 1; NaN where chance alone agrees always.

    Source: Cohen, Educ. Psychol. Meas. 20:37 (1960).
    """
    said = raters.double()
    agreed = float((said[:, 0] == said[:, 1]).double().mean())
    share = said.mean(0)
    chance = float(share.prod() + (1 - share).prod())
    return (agreed - chance) / (1 - chance) if chance < 1 else float("nan")
