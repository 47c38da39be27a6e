"""The estimators under comparison, all called alike on the same data."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from physics.estimation import fit
from shared_transforms.weights import load_weights

from ..network import PARAMETERS, ResNet, make_signal_model
from ..protocols import PROTOCOLS
from ..simulator import TABLE, TISSUE_A

# image [n, N, H, W], acquisition, mask [n, H, W] or None -> maps and standard errors [n, 2 Q, H, W]
Estimator = Callable[[Tensor, Mapping[str, Any], Tensor | None], Tensor]
SLICES_AT_ONCE = 4


@dataclass(frozen=True)
class Method:
    """An estimator with its name in the tables.

    Attributes:
        name: as in the tables.
        estimate: from image ``[n, N, H, W]``, acquisition (``times``, ``repetition_time`` [s], ``noise``) and mask
            ``[n, H, W]`` to parameters and standard errors ``[n, 2 Q, H, W]``.
        slow: whether a Monte-Carlo experiment runs it fewer times.
        has_errors: whether it gives standard errors.
    """

    name: str
    estimate: Estimator
    slow: bool = False
    has_errors: bool = True


def network_method(name: str, network: nn.Module) -> Method:
    """A network; it sees the whole image, as in use."""

    @torch.no_grad()
    def estimate(image: Tensor, acquisition: Mapping[str, Any], mask: Tensor | None) -> Tensor:
        arguments = (acquisition["times"], acquisition.get("repetition_time"), acquisition["noise"])
        return torch.cat([network(part, *arguments) for part in image.split(SLICES_AT_ONCE)])

    return Method(name, estimate)


def mle_method(name: str, parameter: str, b_mode: str, smoothness: float = 500.0) -> Method:
    """Maximum likelihood (:func:`physics.estimation.fit`) within the mask; sigma is estimated, as the network's is."""

    def estimate(image: Tensor, acquisition: Mapping[str, Any], mask: Tensor | None) -> Tensor:
        model = make_signal_model(parameter, acquisition["times"], acquisition.get("repetition_time"))
        result = fit(
            model.to(image.device),
            image.movedim(1, 0),
            noise=acquisition["noise"],
            b_mode=b_mode,
            smoothness=smoothness,
            mask=mask,
        )
        return torch.cat([result.parameters, result.standard_errors]).movedim(0, 1)

    return Method(name, estimate, slow=True)


def trivial_values(parameter: str) -> list[float]:
    """Answer without data: means over the nine tissues of table 1 of A, T1 or T2 [s]; of B, 2 - 0.2 sqrt(2 / pi)."""
    means = TABLE[parameter][0]
    values = {
        "A": sum(TISSUE_A) / len(TISSUE_A),
        "B": 2.0 - 0.2 * math.sqrt(2.0 / math.pi),
        parameter: sum(means) / len(means),
    }
    return [values[name] for name in PARAMETERS[parameter]]


def trivial_method(parameter: str) -> Method:
    """The population mean everywhere; its standard errors are infinite."""
    values = trivial_values(parameter)

    def estimate(image: Tensor, acquisition: Mapping[str, Any], mask: Tensor | None) -> Tensor:
        column = image.new_tensor([*values, *[math.inf] * len(values)])
        return column[None, :, None, None].expand(image.shape[0], -1, *image.shape[2:])

    return Method("trivial", estimate, has_errors=False)


def load_resnet(parameter: str, path: str | Path | None) -> ResNet | None:
    """The ResNet for the first protocol of the parameter, or None where its weights file is absent."""
    if path is None or not Path(path).is_file():
        return None
    times = next(iter(PROTOCOLS[parameter].values()))
    return load_weights(ResNet(parameter, times), path, network=f"rim_relaxometry ResNet {parameter}").eval()
