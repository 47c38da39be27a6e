"""Simulated relaxometry of deformed heads and phantoms (Sabidussi et al. 2021, section 4.2 and tables 1 and 2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import conv2d

from physics.noise import NOISE_MODELS, add_gaussian_noise, add_rician_noise, sigma_from_snr
from physics.phantoms import disc_fractions, draw_discs
from shared_transforms.anatomy import SliceParameters, draw_slices, load_head, sample_slices, smooth_field

from .network import BOUNDS, PARAMETERS, make_signal_model
from .protocols import draw_protocol

# Table 1, in the order of shared_transforms.anatomy.TISSUES: CSF, GM, WM, fat, muscle, muscle skin, skull, vessels,
# marrow. Mean and standard deviation [s]; A relative to CSF.
TISSUE_T1 = ((3.5, 1.4, 0.78, 0.42, 1.2, 1.23, 0.4, 1.98, 0.58), (0.3, 0.3, 0.25, 0.1, 0.3, 0.3, 0.1, 0.3, 0.1))
TISSUE_T2 = (
    (2.0, 0.11, 0.08, 0.07, 0.05, 0.05, 0.03, 0.275, 0.05),
    (0.3, 0.03, 0.02, 0.02, 0.02, 0.02, 0.01, 0.07, 0.02),
)
TISSUE_A = (1.0, 0.85, 0.65, 0.9, 0.7, 0.7, 0.9, 1.0, 0.8)
AMPLITUDE_SD = 0.3  # truncated to -0.3 ... 0.6, so that no tissue fades below its noise
TABLE = {"T1": TISSUE_T1, "T2": TISSUE_T2}
FREE_RANGE = {"T1": (0.1, 4.5), "T2": (0.008, 3.0)}  # [s], log-uniform: no gap between the tissues
VOXEL_SD = {"A": 0.05, "T1": 0.08, "T2": 0.08}  # of A, absolute; of T1 and T2, relative
BLUR = 0.4  # standard deviation [pixels] of the smoothing of A, T1 and T2


@dataclass
class Draw:
    """Everything random about a batch of n samples.

    Attributes:
        slices: where and how the head is cut.
        centres, radii: discs that replace the head where ``phantom`` is true.
        phantom: ``[n]``, whether the sample is a phantom of discs.
        amplitude: A of each tissue ``[n, 9]``, relative to CSF.
        relaxation: T1 or T2 of each tissue ``[n, 9]`` [s].
        inversion: mean B of each sample ``[n]``.
        inversion_spread: standard deviation ``[n]`` of its smooth variation over the sample.
        texture: share ``[n]`` of the within-tissue variation.
        sigma: noise standard deviation ``[n]``, relative to A of CSF.
        noise: ``"gaussian"`` or ``"rician"``.
        times, repetition_time: acquisition [s].
        seed: of the voxelwise variation and the noise.
    """

    slices: SliceParameters
    centres: Tensor
    radii: Tensor
    phantom: Tensor
    amplitude: Tensor
    relaxation: Tensor
    inversion: Tensor
    inversion_spread: Tensor
    texture: Tensor
    sigma: Tensor
    noise: str
    times: Tensor
    repetition_time: Tensor | None
    seed: int


@dataclass
class RelaxometrySimulator:
    """Draws and simulates batches of weighted series with their true maps.

    Attributes:
        parameter: ``"T1"`` or ``"T2"``.
        device: where the simulation runs.
        size: height and width of a sample [pixels].
        whole_slice: whole head slices instead of patches.
        noise: ``"gaussian"``, ``"rician"`` or ``"both"``, drawn for each batch.
        snr: lowest and highest signal-to-noise ratio (0.65 / sigma), log-uniform; one value twice fixes it.
        protocol: name of a protocol of :mod:`.protocols`, ``"random"``, or ``"given"`` for the next two.
        times: inversion or echo times [s] of the protocol ``"given"``.
        repetition_time: its TR [s], one value or one for each image; None for full recovery.
        phantom_share: share of samples that are discs instead of heads.
        free_share: share of tissues whose relaxation time is log-uniform instead of from table 1.
        inversion: ``"mixed"``, or ``"paper"`` for ``2 - |N(0, 0.2)|``, or a value that fixes B.
        anatomy: ``source`` and ``folder`` of :func:`shared_transforms.anatomy.load_head`.
    """

    parameter: str = "T1"
    device: Any = "cpu"
    size: tuple[int, int] = (64, 64)
    whole_slice: bool = False
    noise: str = "both"
    snr: tuple[float, float] = (3.0, 200.0)
    protocol: str = "random"
    times: Sequence[float] = ()
    repetition_time: Sequence[float] | float | None = None
    phantom_share: float = 0.15
    free_share: float = 0.15
    inversion: str | float = "mixed"
    anatomy: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.parameter not in PARAMETERS:
            raise ValueError(f"parameter must be one of {sorted(PARAMETERS)}, got {self.parameter!r}")
        if self.noise not in (*NOISE_MODELS, "both"):
            raise ValueError(f"noise must be one of {(*NOISE_MODELS, 'both')}, got {self.noise!r}")
        if self.protocol == "given":
            make_signal_model(self.parameter, self.times, self.repetition_time)  # raises where the times are wrong
        self.device = torch.device(self.device)
        self.size = (int(self.size[0]), int(self.size[1]))
        self.head = load_head(**self.anatomy).to(self.device)

    def draw(self, generator: torch.Generator, n: int, split: str = "train") -> Draw:
        """Draw n samples of one protocol.

        Args:
            generator: random stream on the CPU.
            n: number of samples.
            split: ``"train"``, ``"val"`` or ``"test"``.

        Returns:
            The parameters, on the CPU.
        """

        def uniform(*shape: int) -> Tensor:
            return torch.rand(shape, generator=generator)

        slices = draw_slices(generator, n, size=self.size, split=split, whole_slice=self.whole_slice, head=self.head)
        centres, radii = draw_discs(generator, n, 9)
        mean, deviation = torch.tensor(TABLE[self.parameter])
        low, high = FREE_RANGE[self.parameter]
        relaxation = (mean + deviation * torch.randn((n, 9), generator=generator)).clamp(low, None)
        phantom = uniform(n) < self.phantom_share
        free = (uniform(n, 9) < self.free_share) | phantom[:, None]
        relaxation = torch.where(free, low * (high / low) ** uniform(n, 9), relaxation)
        change = AMPLITUDE_SD * torch.randn((n, 9), generator=generator)
        amplitude = torch.tensor(TISSUE_A) + change.clamp(-0.3, 0.6)
        inversion, spread = self._draw_inversion(uniform(4, n), torch.randn((n,), generator=generator))
        low_snr, high_snr = self.snr
        noise = NOISE_MODELS[int(uniform(1) < 0.5)] if self.noise == "both" else self.noise
        times, repetition_time = self._draw_acquisition(generator)
        return Draw(
            slices=slices,
            centres=centres,
            radii=radii,
            phantom=phantom,
            amplitude=amplitude,
            relaxation=relaxation.clamp(*BOUNDS[self.parameter]),
            inversion=inversion,
            inversion_spread=spread,
            texture=uniform(n),
            sigma=torch.as_tensor(sigma_from_snr(low_snr * (high_snr / low_snr) ** uniform(n))),
            noise=noise,
            times=times,
            repetition_time=repetition_time,
            seed=int(torch.randint(2**62, (1,), generator=generator)),
        )

    def _draw_acquisition(self, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
        if self.protocol != "given":
            return draw_protocol(generator, self.parameter, self.protocol)
        times = torch.tensor(list(self.times))
        if self.repetition_time is None:
            return times, None
        return times, torch.as_tensor(self.repetition_time, dtype=times.dtype).expand(len(times)).clone()

    def _draw_inversion(self, uniform: Tensor, normal: Tensor) -> tuple[Tensor, Tensor]:
        if not isinstance(self.inversion, str):
            return torch.full_like(normal, float(self.inversion)), torch.zeros_like(normal)
        half_normal = 2.0 - 0.2 * normal.abs()
        if self.inversion == "paper":
            return half_normal.clamp(*BOUNDS["B"]), torch.zeros_like(normal)
        mean = torch.where(uniform[0] < 0.5, half_normal, 1.3 + 0.75 * uniform[1])
        spread = torch.where(uniform[2] < 0.5, 0.06 * uniform[3], torch.zeros_like(normal))
        return mean.clamp(*BOUNDS["B"]), spread

    def simulate(self, drawn: Draw) -> dict[str, Any]:
        """Simulate the batch that belongs to a draw.

        Args:
            drawn: parameters of n samples.

        Returns:
            ``image`` ``[n, N, H, W]``; ``label`` with ``parameters`` ``[n, Q, H, W]`` (A, B, T1 or A, T2; seconds),
            ``mask`` ``[n, 1, H, W]``, ``fractions`` ``[n, 9, H, W]`` and ``sigma`` ``[n]``; ``acquisition``, the
            arguments of the network: ``times``, where it matters ``repetition_time`` [s], and ``noise``.
        """
        generator = torch.Generator(self.device).manual_seed(drawn.seed)
        fractions = self._fractions(drawn)
        parameters = self._parameters(drawn, fractions, generator)
        times = drawn.times.to(self.device)
        repetition_time = None if drawn.repetition_time is None else drawn.repetition_time.to(self.device)
        model = make_signal_model(self.parameter, times, repetition_time)
        signal = model(*parameters).movedim(0, 1)
        sigma = drawn.sigma.to(self.device)
        add_noise = add_rician_noise if drawn.noise == "rician" else add_gaussian_noise
        acquisition: dict[str, Any] = {"times": times, "noise": drawn.noise}
        if repetition_time is not None:
            acquisition["repetition_time"] = repetition_time
        return {
            "image": add_noise(signal, sigma[:, None, None, None], generator),
            "label": {
                "parameters": torch.stack(parameters, 1),
                "mask": fractions.sum(1, keepdim=True) > 0.5,
                "fractions": fractions,
                "sigma": sigma,
            },
            "acquisition": acquisition,
        }

    def _fractions(self, drawn: Draw) -> Tensor:
        """Tissue fractions ``[n, 9, H, W]``: heads, or discs in the samples that are phantoms."""
        fractions = sample_slices(self.head, drawn.slices.to(self.device))
        if not bool(drawn.phantom.any()):
            return fractions
        discs = disc_fractions(drawn.centres.to(self.device), drawn.radii.to(self.device), self.size)
        return torch.where(drawn.phantom.to(self.device)[:, None, None, None], discs, fractions)

    def _parameters(self, drawn: Draw, fractions: Tensor, generator: torch.Generator) -> list[Tensor]:
        """True maps, each ``[n, H, W]``: A weighted by the fractions, T by its share of the tissue in the voxel."""

        def mix(values: Tensor) -> Tensor:
            return torch.einsum("nt,nthw->nhw", values.to(fractions), fractions)

        def normal() -> Tensor:
            return torch.randn(total.shape, generator=generator, device=total.device)

        total = fractions.sum(1)
        texture = drawn.texture.to(total)[:, None, None]
        amplitude = mix(drawn.amplitude) + VOXEL_SD["A"] * texture * total * normal()
        relaxation = torch.where(total > 1e-3, mix(drawn.relaxation) / total.clamp(min=1e-3), 1.0)
        relaxation = relaxation * (1.0 + VOXEL_SD[self.parameter] * texture * normal())
        amplitude, relaxation = (_blur(m) for m in (amplitude.clamp(min=0.0), relaxation))
        relaxation = relaxation.clamp(*BOUNDS[self.parameter])
        if self.parameter == "T2":
            return [amplitude, relaxation]
        field_length = 0.6 * max(self.size)
        ripple = smooth_field(generator, len(total), self.size, field_length).to(total)
        spread, mean = (v.to(total)[:, None, None] for v in (drawn.inversion_spread, drawn.inversion))
        return [amplitude, (mean + spread * ripple).clamp(*BOUNDS["B"]), relaxation]


def _blur(maps: Tensor) -> Tensor:
    """Gaussian smoothing by 0.4 pixels of maps ``[n, H, W]``; the border is repeated."""
    side = torch.exp(torch.tensor(-0.5 / BLUR**2))
    row = torch.stack([side, torch.ones(()), side]).to(maps)
    kernel = torch.outer(row, row) / row.sum() ** 2
    padded = torch.nn.functional.pad(maps[:, None], (1, 1, 1, 1), mode="replicate")
    return conv2d(padded, kernel[None, None])[:, 0]
