"""A digital reference object of DSC-MRI: examinations of deformed heads with strokes, and every truth behind them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from physics.noise import add_rician_noise
from physics.perfusion import (
    csvd_operator,
    relaxation_rate_change,
    signal_from_concentration,
    time_to_maximum,
    tissue_concentration,
)
from shared_transforms.anatomy import load_head

from .acquisition import (
    BLOOD_RELAXIVITY,
    BLOOD_SIGNAL,
    FLOOR,
    TISSUE_RELAXIVITY,
    Acquisition,
    arterial_curve,
    baseline_frames,
    draw_acquisition,
    measured_curve,
    n_frames,
    venous_curve,
)
from .anatomy import HEAD_MM, Anatomy, draw_anatomy, paint_anatomy
from .frames import FRAME_TIME, frame_times, measured_volume, standardise
from .haemodynamics import Haemodynamics, draw_haemodynamics, tissue_maps
from .network import FRAMES

__all__ = ["HYPOPERFUSED", "Draw", "PerfusionSimulator"]

HYPOPERFUSED = 6.0  # s
TRUTH_THRESHOLD = 0.1  # of the singular values, in the deconvolution of the noise-free curve that defines Tmax
VESSEL_SHARE = 0.05  # of a voxel: where there is more blood, tissue is not measured


@dataclass(frozen=True)
class Draw:
    """Everything random about n examinations; replace parts of it to see one patient in other ways.

    Attributes:
        anatomy: heads, vessels and strokes.
        haemodynamics: circulation.
        acquisition: contrast agent, scan, marked voxels, noise.
    """

    anatomy: Anatomy
    haemodynamics: Haemodynamics
    acquisition: Acquisition

    def __len__(self) -> int:
        """Number of examinations."""
        return len(self.acquisition)

    def select(self, index: int) -> Draw:
        """One of the examinations, as a draw of one."""
        one = slice(index, index + 1)
        return Draw(self.anatomy.select(index), _part(self.haemodynamics, one), _part(self.acquisition, one))

    def with_snr(self, snr: float) -> Draw:
        """The same patients, scanned with another baseline SNR."""
        scans = replace(self.acquisition, snr=torch.full_like(self.acquisition.snr, snr))
        return replace(self, acquisition=scans)


@dataclass
class PerfusionSimulator:
    """Draws and simulates examinations; the defaults are the distribution of the training.

    Attributes:
        device: where the simulation runs.
        size: (X, Y, Z) [voxels], axial slices.
        voxel_size: (dx, dy, dz) [mm].
        pixel_range: smallest and largest dx = dy, uniform, in place of those [mm]; one for each draw.
        snr: smallest and largest baseline SNR, log-uniform.
        repetition_time: shortest and longest, uniform [s].
        lesion_share: share of the heads with a stroke.
        anatomy: ``source`` and ``folder`` of :func:`shared_transforms.anatomy.load_head`.
    """

    device: Any = "cpu"
    size: Sequence[int] = (96, 112, 8)
    voxel_size: Sequence[float] = (2.0, 2.0, 6.0)
    pixel_range: Sequence[float] | None = None
    snr: Sequence[float] = (20.0, 120.0)
    repetition_time: Sequence[float] = (1.0, 2.5)
    lesion_share: float = 0.7
    anatomy: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.device = torch.device(self.device)
        for name in ("snr", "repetition_time", "pixel_range"):
            low, high = getattr(self, name) or (1.0, 1.0)
            if not 0 < low <= high:
                raise ValueError(f"{name} must be 0 < low <= high, got {(low, high)}")
        if not 0 <= self.lesion_share <= 1:
            raise ValueError(f"lesion_share must be in [0, 1], got {self.lesion_share}")
        self.head = load_head(HEAD_MM, **self.anatomy)

    def draw(self, generator: torch.Generator, n: int, split: str = "train") -> Draw:
        """Draw n examinations from a random stream on the CPU; the splits' heads are disjoint."""
        voxel_size = tuple(self.voxel_size)
        if self.pixel_range is not None:
            low, high = self.pixel_range
            pixel = low + (high - low) * float(torch.rand((), generator=generator))
            voxel_size = (pixel, pixel, voxel_size[2])
        return Draw(
            draw_anatomy(
                generator, n, self.size, voxel_size, split=split, head=self.head, lesion_share=self.lesion_share
            ),
            draw_haemodynamics(generator, n),
            draw_acquisition(
                generator, n, (self.snr[0], self.snr[1]), (self.repetition_time[0], self.repetition_time[1])
            ),
        )

    def simulate(self, drawn: Draw) -> dict[str, Any]:
        """Simulate the samples of a training: the network's standard frames, and the truth.

        Args:
            drawn: n examinations.

        Returns:
            ``image`` ``[n, 2 N + 1, X, Y, Z]``, see :func:`.frames.standardise`; ``label``: ``parameters``
            ``[n, 3, X, Y, Z]`` CBV [ml/100 g], CBF [ml/100 g/min], Tmax [s]; ``mask`` ``[n, 1, X, Y, Z]``, tissue
            without large vessels; ``lesion`` ``[n, 1, X, Y, Z]``, its hypoperfused part; ``brain``
            ``[n, 1, X, Y, Z]``, tissue and fluid without large vessels; ``area`` ``[n, 1, X, Y, Z]``, CBV by
            integration of the measured curves [ml/100 g]; ``acquisition``: empty.
        """
        made = [self._sample(self.series(drawn.select(i))) for i in range(len(drawn))]
        image = torch.stack([image for image, _ in made])
        label = {name: torch.stack([label[name] for _, label in made]) for name in made[0][1]}
        return {"image": image, "label": label, "acquisition": {}}

    @staticmethod
    def _sample(series: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        """Standard frames ``[2 N + 1, X, Y, Z]`` and labels of an examination."""
        image = standardise(concentration_image(series), series["aif"], series["vof"], series["repetition_time"])
        names = ("cbv", "cbf", "tmax")
        label = {
            "parameters": torch.cat([series[name] for name in names]),
            "mask": series["tissue"],
            "lesion": series["lesion"],
            "brain": series["mask"] & (series["artery"] + series["vein"] < VESSEL_SHARE),
            "area": measured_volume(image)[0],
        }
        return image[0], label

    def series(self, drawn: Draw) -> dict[str, Any]:
        """One examination as a scanner gives it, and every truth.

        Args:
            drawn: one examination.

        Returns:
            ``signal`` ``[1, X, Y, Z, T]`` with noise, T frames of which the first is not in the steady state;
            ``repetition_time``, ``echo_time`` [s]; ``baseline_frames``, how many after the first come before the
            contrast agent; ``cbv`` [ml/100 g], ``cbf`` [ml/100 g/min], ``mtt``, ``tmax``, ``delay`` [s]
            ``[1, X, Y, Z]``; ``mask`` brain, ``tissue`` (grey and white matter without large vessels), ``lesion``
            (tissue with Tmax > 6 s), ``core`` boolean ``[1, X, Y, Z]``; ``artery``, ``vein`` volume fractions;
            ``aif_true``, ``vof_true`` the curves in the blood, ``aif``, ``vof`` those of a few marked voxels
            ``[1, T - 1]`` [mM] at the frames from the second on; ``snr``, ``sigma``.

        Raises:
            ValueError: for more than one examination: their frames differ.
        """
        if len(drawn) != 1:
            raise ValueError(f"series simulates one examination, got {len(drawn)}")
        scan = drawn.acquisition
        painted = {name: values[0] for name, values in paint_anatomy(drawn.anatomy, self.head, self.device).items()}
        brain = painted["brain"]
        voxels = {name: painted[name][..., brain] for name in _PER_VOXEL}
        truth = tissue_maps(drawn.haemodynamics, 0, voxels)
        truth["tmax"] = self._tmax(drawn, truth)

        times = torch.arange(n_frames(scan, 0), device=self.device) * float(scan.repetition_time[0])
        blood = [curve(scan, 0).concentration(times) for curve in (arterial_curve, venous_curve)]
        tissue = self._tissue(drawn, truth, times)
        generator = torch.Generator(self.device).manual_seed(int(scan.seed[0]))
        clean, sigma = self._signal(scan, voxels, painted, tissue, blood)
        signal = add_rician_noise(clean, sigma, generator)

        grey = self._reference_tissue(drawn, times)
        marked = [
            measured_curve(scan, 0, vein, blood[vein][1:], grey[1:], sigma, generator)[None] for vein in (False, True)
        ]
        whole = {name: _volume(truth[name], brain) for name in ("cbv", "cbf", "mtt", "tmax", "delay")}
        vessel = painted["artery"] + painted["vein"]
        inside = brain & (painted["gm"] + painted["wm"] > 0.5) & (vessel < VESSEL_SHARE)
        return {
            "signal": signal[None],
            "repetition_time": float(scan.repetition_time[0]),
            "echo_time": float(scan.echo_time[0]),
            "baseline_frames": baseline_frames(scan, 0),
            "snr": float(scan.snr[0]),
            "sigma": sigma,
            **{name: values[None] for name, values in whole.items()},
            "mask": brain[None],
            "tissue": inside[None],
            "lesion": (inside & (whole["tmax"] > HYPOPERFUSED))[None],
            "core": (inside & (painted["core"] > 0.5))[None],
            **{name: painted[name][None] for name in ("artery", "vein")},
            "aif_true": blood[0][None, 1:],
            "vof_true": blood[1][None, 1:],
            "aif": marked[0],
            "vof": marked[1],
        }

    def _tissue(self, drawn: Draw, truth: dict[str, Tensor], times: Tensor) -> Tensor:
        """Concentrations ``[V, T]`` [mM] of the voxels of a brain."""
        return tissue_concentration(
            arterial_curve(drawn.acquisition, 0), times, truth["cbf"], truth["mtt"], truth["delay"],
            truth["dispersion"], truth["weights"], drawn.haemodynamics.gamma_shape[0].to(times),
        )  # fmt: skip

    def _tmax(self, drawn: Draw, truth: dict[str, Tensor]) -> Tensor:
        """True Tmax ``[V]`` [s]: peak of the residue that cSVD gives without noise, on the standard frames."""
        aif = arterial_curve(drawn.acquisition, 0)
        times = frame_times(aif.arrival[None].to(self.device), FRAMES, FRAME_TIME)[0]
        operator = csvd_operator(aif.concentration(times), FRAME_TIME, TRUTH_THRESHOLD)
        residue = self._tissue(drawn, truth, times) @ operator.T
        return time_to_maximum(residue, FRAME_TIME, circulant=True)

    def _reference_tissue(self, drawn: Draw, times: Tensor) -> Tensor:
        """Concentration ``[T]`` [mM] of healthy grey matter, the surroundings of the vessels."""
        one = torch.ones(1, device=self.device)
        flow, transit = drawn.haemodynamics.tissue[0, 0].to(self.device)
        return tissue_concentration(arterial_curve(drawn.acquisition, 0), times, flow * one, transit * one)[0]

    def _signal(
        self, scan: Acquisition, voxels: dict[str, Tensor], painted: dict[str, Tensor], tissue: Tensor,
        blood: Sequence[Tensor],
    ) -> tuple[Tensor, float]:  # fmt: skip
        """Signal ``[X, Y, Z, T]`` without noise, and the standard deviation of the noise."""
        fluid, white = scan.signals[0].tolist()
        echo_time = float(scan.echo_time[0])
        amount = voxels["gm"] + voxels["wm"] + voxels["csf"]
        baseline = (voxels["gm"] + white * voxels["wm"] + fluid * voxels["csf"]) / amount.clamp_min(1e-3)
        signal = signal_from_concentration(tissue, baseline, echo_time, TISSUE_RELAXIVITY)
        artery, vein = voxels["artery"], voxels["vein"]
        inside = [
            signal_from_concentration(curve, torch.full((), BLOOD_SIGNAL).to(curve), echo_time, BLOOD_RELAXIVITY)
            for curve in blood
        ]
        signal = signal * (1.0 - artery - vein).clamp_min(0.0)[:, None]
        signal = signal + artery[:, None] * inside[0] + vein[:, None] * inside[1]
        brain = painted["brain"]
        x, y = (torch.linspace(-1.0, 1.0, count, device=self.device) for count in brain.shape[:2])
        field = torch.exp(float(scan.shading[0, 0]) * x[:, None] + float(scan.shading[0, 1]) * y[None])[..., None]
        shading = field.expand(brain.shape)[brain]
        sigma = float((baseline * shading).median()) / float(scan.snr[0])
        signal = signal * shading[:, None]
        signal[:, 0] *= float(scan.transient[0])
        volume = torch.zeros((*brain.shape, signal.shape[-1]), device=self.device)
        volume[brain] = signal
        return volume, sigma


_PER_VOXEL = ("gm", "wm", "csf", "artery", "vein", "oligaemia", "penumbra", "core", "arrival", "texture")


def concentration_image(series: dict[str, Any]) -> Tensor:
    """What :class:`.pipeline.Concentrationd` makes of an examination, with the true frames of the baseline.

    Args:
        series: one examination of :meth:`PerfusionSimulator.series`.

    Returns:
        ``[1, T, X, Y, Z]``: baseline relative to its median over the brain, then concentrations [mM] from the second
        frame on; 0 outside of the brain.
    """
    brain = series["mask"]
    signal = series["signal"][brain][:, 1:]
    baseline = signal[:, : series["baseline_frames"]].mean(-1)
    rate = relaxation_rate_change(signal, baseline, series["echo_time"], FLOOR)
    values = torch.cat([(baseline / baseline.median())[:, None], rate / TISSUE_RELAXIVITY], 1)
    image = torch.zeros((*brain.shape, values.shape[1]), device=values.device)
    image[brain] = values
    return image.movedim(-1, 1)


def _volume(values: Tensor, where: Tensor) -> Tensor:
    """Volume with the values ``[V]`` where the mask is true, else 0."""
    volume = torch.zeros(where.shape, device=values.device)
    volume[where] = values
    return volume


def _part(drawn: Any, index: slice) -> Any:
    """Some samples of drawn parameters."""
    return type(drawn).from_state_dict({name: values[index] for name, values in drawn.state_dict().items()})
