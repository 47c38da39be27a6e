"""What every experiment needs: the estimators to compare, seeds, and where the results go."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from shared_transforms.atomic import atomic_write
from shared_transforms.figures import figure_to_png_bytes
from shared_transforms.metrics import Estimate
from shared_transforms.provenance import provenance, write_table
from shared_transforms.weights import sha256_file

from ..network import PARAMETERS
from .methods import Method, load_resnet, mle_method, network_method, trivial_method
from .scenes import SIZE

Size = TypeVar("Size")
Row = dict[str, Any]
DIGITS = 5  # significant digits in the tables


@dataclass
class Bench:
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

    def pick(self, full: Size, quick: Size) -> Size:
        """The size of a full run, or that of a quick one."""
        return quick if self.quick else full

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

    def write(
        self, name: str, rows: Sequence[Mapping[str, Any]], notes: Sequence[str] = (), targets: Sequence[Row] = ()
    ) -> list[Path]:
        """Write a table with its provenance.

        Args:
            name: of the experiment; the file is ``<parameter>_<name>``.
            rows: the table; numbers are rounded, those that are not finite left empty.
            notes: what a reader must know of the data and the methods.
            targets: rows of :func:`target`.

        Returns:
            The csv and the json file.
        """
        source = provenance(self.seed)
        source["experiment"] = (
            f"{self.parameter} {name}{' (quick run: sizes too small to count)' if self.quick else ''}"
        )
        if self.weights is not None and Path(self.weights).is_file():
            source["weights"] = {"file": Path(self.weights).name, "sha256": sha256_file(self.weights)}
        source["notes"] = list(notes)
        source["targets"] = [plain(row) for row in targets]
        if targets:
            print(f"  {name}: {sum(row['met'] for row in targets)} of {len(targets)} targets met", flush=True)
        stem = Path(self.output_dir) / "results" / self.file_name(name)
        return write_table(stem, [plain(row) for row in rows], source)

    def save_figure(self, name: str, figure: Figure) -> Path:
        """Write a figure as png."""
        path = Path(self.output_dir) / "figures" / f"{self.file_name(name)}.png"
        with atomic_write(path) as file:
            file.write(figure_to_png_bytes(figure))
        return path

    def file_name(self, name: str) -> str:
        """File name, without suffix, of the results of an experiment."""
        return f"{self.parameter.lower()}_{name}"


def _same(own: Any, times: Tensor) -> bool:
    return own.shape == times.shape and bool(((own.cpu() - times.cpu()).abs() < 1e-3).all())


def target(what: str, value: float, limit: float, below: bool = True) -> Row:
    """One requirement and whether it is met.

    Args:
        what: the requirement in words.
        value: measured.
        limit: the largest (``below``) or smallest value that meets it.
        below: direction.
    """
    return {"target": what, "limit": limit, "measured": value, "met": bool(value <= limit if below else value >= limit)}


def plain(row: Mapping[str, Any]) -> Row:
    """A row as csv and json can hold it: numbers rounded to five digits, None for what is not finite."""
    return {name: _plain(value) for name, value in row.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        value = value.item()
    if hasattr(value, "item") and not isinstance(value, float | int):
        value = value.item()
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
    return value


def interval(name: str, estimate: Estimate) -> Row:
    """Columns ``name``, ``name_low`` and ``name_high`` of an estimate with its confidence interval."""
    return {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}


Experiment = Callable[..., list[Path]]
