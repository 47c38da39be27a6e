"""The methods under comparison, all called alike."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from shared_transforms.weights import load_weights

from ..baselines import Deconvolution
from ..frames import FRAME_TIME, resampling
from ..network import STNet
from .cohort import Subject

# What a reader calls the methods.
LABELS = {
    "trivial": "mean of the training",
    "ssvd": "sSVD",
    "csvd": "cSVD",
    "osvd": "oSVD",
    "tikhonov": "Tikhonov",
    "ttv": "TTV",
    "stnet": "ST-Net",
    "paper_stnet": "ST-Net (paper)",
    "paper_fang": "TTV (paper)",
}
CLASSICAL = ("ssvd", "csvd", "osvd", "tikhonov", "ttv")
NETWORKS = ("stnet",)
COMPARED = ("trivial", *CLASSICAL, *NETWORKS)
# What calibration tries for a deconvolution beside its defaults: the care that a network's training has had.
TRIED: dict[str, list[dict[str, float]]] = {
    "ssvd": [{"threshold": 0.1}, {"threshold": 0.3}],
    "csvd": [{"threshold": 0.05}, {"threshold": 0.15}, {"threshold": 0.2}],
    "osvd": [{"oscillation_index": 0.065}, {"oscillation_index": 0.1}],
    "ttv": [{"regularisation": 0.3}],
}


@dataclass(frozen=True)
class Method:
    """A way from an examination to maps.

    Attributes:
        name: as in the tables.
        estimate: CBV [ml/100 g], CBF [ml/100 g/min], Tmax [s] ``[3, V]`` in the tissue of a subject.
        recipe: its options, or what its weights are, in words: changes when its answers may.
    """

    name: str
    estimate: Callable[[Subject], Tensor]
    recipe: str

    @property
    def label(self) -> str:
        """What a reader calls it."""
        return LABELS.get(self.name, self.name)


def classical(name: str, options: Mapping[str, Any], frame_time: float | None = None) -> Method:
    """A deconvolution of :data:`CLASSICAL`.

    Args:
        name: of the method.
        options: of the deconvolution.
        frame_time: to which the series is brought first [s]; None leaves its own.
    """
    deconvolution = Deconvolution(name, options, progress=False)

    def estimate(subject: Subject) -> Tensor:
        seen = subject if frame_time is None else resampled(subject, frame_time)
        maps = deconvolution(seen.image, seen.mask, seen.aif, seen.vof, seen.frame_time, seen.voxel_size)
        return maps[0][:, subject.tissue]

    return Method(name, estimate, repr((name, frame_time, sorted(options.items()))))


def trivial(values: Sequence[float]) -> Method:
    """The answer that needs no data: the same CBV, CBF and Tmax everywhere."""
    constant = [float(value) for value in values]

    def estimate(subject: Subject) -> Tensor:
        return subject.truth.new_tensor(constant)[:, None].expand_as(subject.truth)

    return Method("trivial", estimate, repr([f"{value:.4g}" for value in constant]))


def network_method(name: str, network: nn.Module, inferer: Callable[..., Tensor]) -> Method:
    """A network with everything around it: standard frames, slices, brain mask."""
    digest = hashlib.sha256()
    for key, value in sorted(network.state_dict().items()):
        digest.update(key.encode() + value.detach().cpu().contiguous().numpy().tobytes())

    @torch.no_grad()
    def estimate(subject: Subject) -> Tensor:
        maps = inferer(
            subject.image, network, mask=subject.mask, aif=subject.aif, vof=subject.vof,
            frame_time=subject.frame_time, voxel_size=subject.voxel_size,
        )  # fmt: skip
        return maps[0][:, subject.tissue]

    return Method(name, estimate, f"{name} {digest.hexdigest()[:16]}")


def resampled(subject: Subject, frame_time: float = FRAME_TIME) -> Subject:
    """The same series with another time between its frames: linear between, or triangular means over, its own."""
    n = subject.aif.shape[-1]
    count = int((n - 1) * subject.frame_time / frame_time + 1e-6) + 1
    times = torch.arange(count, device=subject.aif.device) * frame_time
    weights = resampling(times[None], n, subject.frame_time, frame_time)[0].to(subject.image)
    curves = torch.einsum("st,btxyz->bsxyz", weights, subject.image[:, 1:])
    return replace(
        subject,
        image=torch.cat([subject.image[:, :1], curves], 1),
        aif=subject.aif @ weights.T,
        vof=subject.vof @ weights.T,
        frame_time=frame_time,
    )


def load_network(path: str | Path, **arguments: Any) -> STNet | None:
    """A network with its weights, or None where their file is absent.

    Args:
        path: of the weights.
        arguments: of :class:`..network.STNet`.
    """
    if not Path(path).is_file():
        return None
    return load_weights(STNet(**arguments), path, network=f"stnet_perfusion {Path(path).stem}").eval()
