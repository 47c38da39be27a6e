"""What every experiment needs: the estimators to compare, seeds, and where the results go."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from shared_transforms.experiments import ResultBench, Row

from ..network import PARAMETERS
from .methods import Method, load_resnet, mle_method, network_method, trivial_method
from .scenes import SIZE

# Experiments on inversion recovery alone.
ONLY_T1 = ("smoothness", "inversion_sweep", "structures", "sharpness", "ablation")


@dataclass
class Bench(ResultBench):
    """Estimators under comparison and the folder of their results.

    Attributes:
        network: recurrent inference machine with its weights.
        output_dir: tables go to ``results`` in it, figures to ``figures``.
        parameter: ``"T1"`` or ``"T2"``.
        seed: of all random streams.
        quick: a run in minutes that shows that all works; its numbers mean little. May be the text ``"true"``.
        device: where the estimators run.
        weights: file of the network's weights, for the record.
        resnet_weights: file of the ResNet's weights for the first protocol; without it the ResNet is left out.
        smoothness: weight of the Laplacian of B that serves the smooth-B estimator best (experiment ``smoothness``).
        paper_smoothness: the paper's lambda_B.
        phantom_dir: folder of the NIST phantom, if there is one.
        anatomy: ``source`` and ``folder`` of :func:`shared_transforms.anatomy.load_head`.
        size: height and width of the simulated slices [pixels of 1 mm] before they are cropped to the brain.
        memory: what one experiment leaves for another of the same process.
    """

    network: nn.Module
    output_dir: str | Path
    parameter: str = "T1"
    seed: int = 0
    quick: bool | str = False
    device: Any = "cpu"
    weights: str | Path | None = None
    resnet_weights: str | Path | None = None
    smoothness: float = 5e5
    paper_smoothness: float = 500.0
    phantom_dir: str | Path | None = None
    anatomy: dict[str, Any] = field(default_factory=dict)
    size: tuple[int, int] = SIZE
    memory: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.parameter not in PARAMETERS:
            raise ValueError(f"parameter must be one of {sorted(PARAMETERS)}, got {self.parameter!r}")
        self.quick = str(self.quick).lower() in ("true", "1")
        self.device = torch.device(self.device)
        self.names = PARAMETERS[self.parameter]
        self.network = self.network.to(self.device).eval()
        resnet = load_resnet(self.parameter, self.resnet_weights)
        self.resnet = None if resnet is None else resnet.to(self.device)

    def methods(self, times: Tensor, paper_smoothness: bool = False, trivial: bool = True) -> list[Method]:
        """Estimators that can be applied to a protocol.

        Args:
            times: inversion or echo times [s], ``[N]``.
            paper_smoothness: also smooth B with the paper's lambda_B.
            trivial: also the answer that needs no data.
        """
        found = [network_method("rim", self.network)]
        if self.resnet is not None and _same(self.resnet.signal_model.times, times):
            found.append(network_method("resnet", self.resnet))
        if self.parameter == "T2":
            found.append(mle_method("mle", "T2", "voxelwise"))
        else:
            found += [mle_method(f"mle_{mode}", "T1", mode) for mode in ("voxelwise", "shared")]
            found.append(mle_method("mle_smooth", "T1", "smooth", self.smoothness))
            if paper_smoothness:
                found.append(mle_method(f"mle_smooth_{self.paper_smoothness:g}", "T1", "smooth", self.paper_smoothness))
        return [*found, trivial_method(self.parameter)] if trivial else found

    def absent(self, fits_resnet: bool = True) -> list[Row]:
        """A row that says that the ResNet is missing, and why, if it is.

        Args:
            fits_resnet: whether the data have the one protocol it knows.
        """
        if self.resnet is not None:
            return [] if fits_resnet else [{"method": "resnet", "note": "left out: it knows one other protocol only"}]
        file = "no file given" if self.resnet_weights is None else f"no file {Path(self.resnet_weights).name}"
        return [{"method": "resnet", "note": f"left out: {file} of its weights"}]

    def file_name(self, name: str) -> str:
        """The parameter and the name of the experiment."""
        return f"{self.parameter.lower()}_{name}"

    def title(self, name: str) -> str:
        """The parameter and the name of the experiment."""
        return f"{self.parameter} {name}"

    def weight_files(self) -> dict[str, str | Path]:
        """The file of the network's weights."""
        return {} if self.weights is None else {"weights": self.weights}

    def left_out(self, name: str) -> str | None:
        """Experiments on inversion recovery where T2 is mapped, and the phantom where no folder is given."""
        if self.parameter == "T2" and name in ONLY_T1:
            return "it is about inversion recovery, run it with --parameter T1"
        if name == "phantom" and self.phantom_dir is None:
            return "give the folder of the NIST phantom with --phantom_dir"
        return None


def _same(own: Any, times: Tensor) -> bool:
    return own.shape == times.shape and bool(((own.cpu() - times.cpu()).abs() < 1e-3).all())
