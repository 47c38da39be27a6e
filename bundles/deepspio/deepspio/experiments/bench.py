"""What every experiment of this bundle needs: the methods, the simulator, the sequence."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from physics.viewline import ViewLineSequence
from shared_transforms.errors import QMRIError
from shared_transforms.experiments import NetworkBench

from ..simulator import ViewLineSimulator
from .cache import cached_estimate
from .methods import NETWORKS, Method, classical, network_method, zero_method

QUICK_SIZE = 64


@dataclass
class Bench(NetworkBench):
    """Methods under comparison and the folder of their results.

    Attributes:
        networks: name to network, None where its weights are absent; see :data:`.methods.NETWORKS`.
        output_dir: tables go to ``results`` in it, figures to ``figures``.
        simulator: makes a simulator like that of the training; arguments given to it replace those it has.
        seed: of all random streams.
        quick: a run in seconds that shows that all works; its numbers mean little. May be the text ``"true"``.
        device: where simulation and methods run.
        weights: name to file of weights, for the record.
        options: of the classical methods, by name.
        cache_dir: folder that keeps the maps of the classical methods; None keeps none.
        sequence: of all images.
        pixel_size: (dx, dz) [mm].
        size: pixels along both sides of an image.
        mass_magnetisation: of the particles [A m^2/kg].
        anatomy: of the simulator: arguments of :class:`..anatomy.ProtonDensity`.
    """

    network_names: ClassVar[tuple[str, ...]] = NETWORKS
    networks: Mapping[str, nn.Module | None]
    output_dir: str | Path
    simulator: Callable[..., ViewLineSimulator]
    seed: int = 0
    quick: bool | str = False
    device: Any = "cpu"
    weights: Mapping[str, str | Path] = field(default_factory=dict)
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    cache_dir: str | Path | None = None
    sequence: ViewLineSequence = field(default_factory=ViewLineSequence)
    pixel_size: tuple[float, float] = (0.1953125, 0.1953125)
    size: int = 256
    mass_magnetisation: float = 93.0
    anatomy: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.device = torch.device(self.device)
        dx, dz = (float(step) for step in self.pixel_size)
        self.pixel_size = (dx, dz)
        if unknown := set(self.networks) - set(NETWORKS):
            raise QMRIError(
                field="networks", found=", ".join(sorted(unknown)), expected=", ".join(NETWORKS),
                remedy="correct the name",
            )  # fmt: skip
        self.networks = {
            name: network.to(self.device).eval() for name, network in self.networks.items() if network is not None
        }

    @property
    def side(self) -> int:
        """Pixels along both sides of the images of this run."""
        return self.pick(self.size, QUICK_SIZE)

    def simulator_of(self, **changes: Any) -> ViewLineSimulator:
        """The simulator of the training at the size and on the device of this run.

        Args:
            changes: further arguments of the simulator that differ.
        """
        own = {"size": self.side, "crop": None, "device": self.device, "anatomy": self.anatomy}
        return self.simulator(**{**own, **changes})

    def anatomy_of(self, kind: str) -> dict[str, Any]:
        """Arguments of the simulator's proton density with one kind of anatomy alone."""
        return {**self.anatomy, "shares": {kind: 1.0}}

    def methods(self, names: Iterable[str]) -> list[Method]:
        """Methods in the order of the names; absent networks are left out.

        Args:
            names: as in :data:`.methods.LABELS`.
        """
        found = []
        for name in names:
            if name == "zero":
                found.append(zero_method())
            elif name not in NETWORKS:
                options = {"mass_magnetisation": self.mass_magnetisation, **self.options.get(name, {})}
                found.append(classical(name, self.sequence, self.pixel_size, options))
            elif (network := self.networks.get(name)) is not None:
                found.append(network_method(name, network))
        return found

    def estimate(self, method: Method, image: Tensor) -> Tensor:
        """Concentrations ``[n, 1, X, Z]`` [ug/mm^3] that a method finds in images ``[n, 2, X, Z]``."""
        return cached_estimate(method, image, self.cache_dir)
