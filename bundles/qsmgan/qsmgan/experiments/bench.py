"""What every experiment of this bundle needs: the methods, their tuned options, the heads."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from shared_transforms.experiments import NetworkBench, Row

from .cache import cached_estimate
from .case import Case
from .methods import NETWORKS, Method, classical, cosmos_method, network_method, zero_method

TUNING = "tuning"


@dataclass
class Bench(NetworkBench):
    """Methods under comparison and the folder of their results.

    Attributes:
        networks: name to generator, None where its weights are absent; see :data:`.methods.NETWORKS`.
        output_dir: tables go to ``results`` in it, figures to ``figures``.
        inferer: whole volumes through a generator, see :class:`..inferer.FrameInferer`.
        seed: of all random streams.
        quick: a run in seconds that shows that all works; its numbers mean little. May be the text ``"true"``.
        device: where the methods run.
        weights: name to file of weights, for the record.
        options: of the classical methods, by name, used in every run beside the tuned ones.
        data_dir: folder of measured data, if there is one.
        anatomy: ``source`` and ``folder`` of :func:`shared_transforms.anatomy.load_head`.
        cache_dir: folder that keeps the maps of the classical methods; None keeps none.
        size: of the simulated volumes [voxels of 1 mm].
        quick_size: that of a quick run.
        scale: of heads and field of view relative to ``size``: a dipole field has no scale, and time is short.
    """

    network_names: ClassVar[tuple[str, ...]] = NETWORKS
    networks: Mapping[str, nn.Module | None]
    output_dir: str | Path
    inferer: Callable[..., Any]
    seed: int = 0
    quick: bool | str = False
    device: Any = "cpu"
    weights: Mapping[str, str | Path] = field(default_factory=dict)
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    data_dir: str | Path | None = None
    anatomy: dict[str, Any] = field(default_factory=dict)
    cache_dir: str | Path | None = None
    size: tuple[int, int, int] = (160, 192, 160)
    quick_size: tuple[int, int, int] = (32, 40, 32)
    scale: float = 1.0

    def __post_init__(self) -> None:
        self.quick = str(self.quick).lower() in ("true", "1")
        self.device = torch.device(self.device)
        self.networks = {
            name: network.to(self.device).eval() for name, network in self.networks.items() if network is not None
        }

    def methods(self, noise: float, names: Iterable[str], slow: bool = True) -> list[Method]:
        """Methods in the order of the names; networks whose weights are absent are left out.

        Args:
            noise: standard deviation of the field [ppm], at which the options were tuned.
            names: as in :data:`.methods.LABELS`.
            slow: also those that take minutes.
        """
        found = []
        for name in names:
            if name in NETWORKS:
                if (network := self.networks.get(name)) is not None:
                    found.append(network_method(name, network, self.inferer))
            elif name == "zero":
                found.append(zero_method())
            elif name == "cosmos":
                found.append(cosmos_method(self.options.get(name, {})))
            else:
                found.append(self.classical(name, noise))
        return [method for method in found if slow or not method.slow]

    def estimate(self, method: Method, case: Case) -> tuple[Tensor, Row]:
        """Map ``[X, Y, Z]`` [ppm] of a method, and its costs as :func:`.scores.measured` gives them."""
        return cached_estimate(method, case, self.cache_dir)

    def classical(self, name: str, noise: float, changes: Mapping[str, Any] | None = None) -> Method:
        """A classical inversion with its tuned options.

        Args:
            name: of :data:`.methods.INVERSIONS`, or ``"tv_scaled"``.
            noise: see :meth:`methods`.
            changes: options that count more than the tuned ones.
        """
        base = name.removesuffix("_scaled")
        row = self.tuned(base, noise)
        tuned = {} if row is None else {row["option"]: row["value"]}
        factor = row["factor"] if row is not None and name != base else 1.0
        return classical(name, {**self.options.get(base, {}), **tuned, **(changes or {})}, factor)

    def tuned(self, name: str, noise: float) -> Row | None:
        """What ``tuning`` found for a method at the closest noise level, or None before it was run."""
        rows = [row for row in self.tuning_rows() if row["method"] == name and row["best"]]
        return min(rows, key=lambda row: abs(math.log(row["noise_ppm"] / noise))) if rows and noise > 0 else None

    def tuning_rows(self) -> list[Row]:
        """All that ``tuning`` has tried, nothing before it was run."""
        return self.written(TUNING)

    def left_out(self, name: str) -> str | None:
        """Measured data where no folder is given."""
        return "give the folder of the data with --data_dir" if name == "real_data" and self.data_dir is None else None
