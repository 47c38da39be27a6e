"""What every experiment of this bundle needs: the methods, how each is calibrated, and their estimates."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from shared_transforms.errors import QMRIError
from shared_transforms.experiments import NetworkBench, Row

from ..frames import FRAME_TIME
from .cache import cached_estimate
from .cohort import PARAMETERS, Subject
from .methods import NETWORKS, TRIED, Method, classical, network_method, trivial

CALIBRATION = "calibration"


@dataclass
class Bench(NetworkBench):
    """Methods under comparison and the folder of their results.

    Attributes:
        networks: name to network, None where its weights are absent; see :data:`.methods.NETWORKS`.
        output_dir: tables go to ``results`` in it, figures to ``figures``.
        inferer: whole examinations through a network, see :class:`..inferer.STNetInferer`.
        seed: of all random streams.
        quick: a run in seconds that shows that all works; its numbers mean little. May be the text ``"true"``.
        device: where simulation and methods run.
        weights: name to file of weights, for the record.
        options: of the deconvolutions, by name; see :func:`physics.perfusion.deconvolve`.
        data_dir: folder of the OSIPI curves, if there is one.
        cache_dir: folder that keeps the methods' estimates; None keeps none.
        anatomy: ``source`` and ``folder`` of :func:`shared_transforms.anatomy.load_head`.
        size: of the simulated volumes [voxels].
        voxel_size: [mm].
        snr: baseline SNR of every subject; None for that drawn with each.
        train_config: file of the training whose parts the studies take.
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
    cache_dir: str | Path | None = None
    anatomy: dict[str, Any] = field(default_factory=dict)
    size: Sequence[int] = (96, 112, 8)
    voxel_size: Sequence[float] = (2.0, 2.0, 6.0)
    snr: float | None = None
    train_config: str | Path | None = None

    def __post_init__(self) -> None:
        self.device = torch.device(self.device)
        self.networks = {
            name: network.to(memory_format=torch.channels_last).to(self.device).eval()  # type: ignore[call-overload]
            for name, network in self.networks.items() if network is not None
        }  # fmt: skip
        if unknown := set(self.networks) - set(NETWORKS):
            raise QMRIError(
                field="networks", found=", ".join(sorted(unknown)), expected=", ".join(NETWORKS),
                remedy="correct the name",
            )  # fmt: skip

    @property
    def is_quick(self) -> bool:
        """Whether sizes are those of a quick run."""
        return self.pick(False, True)

    def methods(self, names: Iterable[str]) -> list[Method]:
        """Methods as ``calibration`` found them best, in the order of the names; absent networks are left out.

        Args:
            names: as in :data:`.methods.COMPARED`.
        """
        found = []
        for name in names:
            if name in NETWORKS:
                if name in self.networks:
                    found.append(self.network(name))
            elif name == "trivial":
                row = self.calibrated(name)
                found.append(trivial([row[f"{parameter.lower()}_mean"] for parameter in PARAMETERS]))
            else:
                row = self.calibrated(name)
                found.append(self.classical(name, row["frame_time_s"], json.loads(row["options"])))
        return found

    def network(self, name: str) -> Method:
        """One of the networks that are there."""
        network = self.networks[name]
        assert network is not None
        return network_method(name, network, self.inferer)

    def classical(self, name: str, frame_time: float | None, options: Mapping[str, Any]) -> Method:
        """A deconvolution, see :func:`.methods.classical`; the options of this bench are taken where none is given."""
        return classical(name, {**self.options.get(name, {}), **options}, frame_time)

    def variants(self, name: str) -> list[tuple[float | None, dict[str, float]]]:
        """Frame times [s] and options of a deconvolution that calibration tries.

        The frames of the series and the network's; on the latter also the options of :data:`.methods.TRIED`.
        """
        tried = TRIED.get(name, [])
        return [(None, {}), (FRAME_TIME, {}), *((FRAME_TIME, options) for options in tried)]

    def estimate(self, method: Method, subject: Subject) -> Tensor:
        """CBV, CBF, Tmax ``[3, V]`` of a method in a subject's tissue."""
        return cached_estimate(method, subject, self.cache_dir)

    def calibrated(self, name: str) -> Row:
        """Row of a method in the table ``calibration``.

        Raises:
            QMRIError: where it was not run, or a network's weights have changed since.
        """
        rows = [row for row in self.calibration_rows() if row["method"] == name and row.get("chosen")]
        stale = name in self.networks and bool(rows) and rows[0]["recipe"] != self.network(name).recipe
        if not rows or stale:
            raise QMRIError(
                field="experiment", expected="the calibration of every method that is there",
                found=f"that of {name} was made with other weights" if stale else f"none of {name}",
                remedy="run --experiment calibration first",
            )  # fmt: skip
        return rows[0]

    def calibrate(self, method: Method, estimate: Tensor) -> Tensor:
        """Estimates ``[3, V]`` times the factors of CBV and CBF, plus the offset of Tmax, of the method."""
        return calibrate(estimate, self.calibrated(method.name))

    def calibration_rows(self) -> list[Row]:
        """All rows of the table ``calibration``, none before it was run."""
        return self.written(CALIBRATION)

    def left_out(self, name: str) -> str | None:
        """The OSIPI curves where no folder is given."""
        return "give the folder of dsc_data.csv with --data_dir" if name == "osipi" and self.data_dir is None else None


def calibrate(estimate: Tensor, row: Row) -> Tensor:
    """Estimates ``[3, V]`` with the factors and the offset of a row of the table ``calibration``."""
    cbv, cbf, tmax = estimate
    return torch.stack([cbv * row["cbv_factor"], cbf * row["cbf_factor"], tmax + row["tmax_offset_s"]])
