"""From tissue to what a scan and its background removal leave: magnitude, local field with noise and remainder."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from shared_transforms.anatomy import smooth_volume

ECHO_TIME = (0.008, 0.025)  # [s] of the magnitude that is shown
# Standard deviation over the mask of the background that is left, log-uniform: V-SHARP, PDF and LBV leave 4 to 14 % of
# a local field of some .01 ppm in simulations.
REMAINDER_PPM = (0.0001, 0.0012)
HARMONIC_MM = 70.0  # where harmonics of all degrees are alike: about the radius of a head
WORST_SIGNAL = 0.05  # of the mean: below, a fit of the phase is as wrong as it gets


@dataclass(frozen=True)
class Measurement:
    """Random numbers of n measurements.

    Attributes:
        sigma: noise of the field where the magnitude has its mean ``[n]`` [ppm].
        echo_time: of the magnitude ``[n]`` [s].
        bias: strength of the receive field ``[n]``, standard deviation of its logarithm.
        magnitude_noise: relative to the mean ``[n]``.
        magnitude_shown: ``[n]``, False where the magnitude is withheld.
        remainder: standard deviation over the mask of the background left in the field ``[n]`` [ppm].
        harmonics: weights ``[n, 15]`` of its solid harmonics.
        seed: of the noise.
    """

    sigma: Tensor
    echo_time: Tensor
    bias: Tensor
    magnitude_noise: Tensor
    magnitude_shown: Tensor
    remainder: Tensor
    harmonics: Tensor
    seed: int


def draw_measurement(
    generator: torch.Generator, n: int, noise_ppm: tuple[float, float], remainder: float, magnitude_share: float
) -> Measurement:
    """Draw n measurements.

    Args:
        generator: random stream on the CPU.
        n: number of measurements.
        noise_ppm: lowest and highest sigma [ppm], log-uniform; (0, 0) for none.
        remainder: factor of the background that is left; 0 for none.
        magnitude_share: share of measurements whose magnitude is shown.
    """

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator)

    low, high = noise_ppm
    sigma = low * (high / low) ** uniform(n) if high > 0 else torch.zeros(n)
    first, last = REMAINDER_PPM
    return Measurement(
        sigma=sigma,
        echo_time=ECHO_TIME[0] + (ECHO_TIME[1] - ECHO_TIME[0]) * uniform(n),
        bias=0.25 * uniform(n),
        magnitude_noise=0.005 * 8.0 ** uniform(n),
        magnitude_shown=uniform(n) < magnitude_share,
        remainder=remainder * first * (last / first) ** uniform(n),
        harmonics=torch.randn((n, 15), generator=generator),
        seed=int(torch.randint(2**62, (1,), generator=generator)),
    )


def relative_magnitude(
    measurement: Measurement, relaxation: Tensor, density: Tensor, mask: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Magnitude without and with noise.

    Args:
        measurement: n measurements.
        relaxation: R2* ``[n, X, Y, Z]`` [1/s].
        density: signal at TE = 0 ``[n, X, Y, Z]``.
        mask: ``[n, X, Y, Z]``, boolean.
        generator: random stream on the device of the maps.

    Returns:
        Two maps ``[n, X, Y, Z]`` relative to the mean over the mask, 0 outside of it; the second has all zeros where
        the magnitude is not shown.
    """
    n, *size = mask.shape
    echo_time, bias, noise, shown = (
        _column(v, density)
        for v in (
            measurement.echo_time,
            measurement.bias,
            measurement.magnitude_noise,
            measurement.magnitude_shown,
        )
    )
    receive = smooth_volume(generator, n, (size[0], size[1], size[2]), 0.6 * max(size))
    clean = density * torch.exp(bias * receive - echo_time * relaxation) * mask
    clean = clean / (clean.sum((1, 2, 3), keepdim=True) / mask.sum((1, 2, 3), keepdim=True).clamp_min(1))
    noisy = clean + noise * torch.randn(clean.shape, generator=generator, device=clean.device)
    return clean, noisy.abs() * mask * shown


def field_noise(measurement: Measurement, magnitude: Tensor, mask: Tensor) -> Tensor:
    """Standard deviation of the field ``[n, X, Y, Z]`` [ppm]: that of a phase, which goes with 1 / magnitude.

    Args:
        measurement: n measurements.
        magnitude: relative to its mean, without noise ``[n, X, Y, Z]``.
        mask: ``[n, X, Y, Z]``, boolean.
    """
    return _column(measurement.sigma, magnitude) * mask / magnitude.clamp_min(WORST_SIGNAL)


def background_remainder(measurement: Measurement, mask: Tensor, voxel_size: tuple[float, float, float]) -> Tensor:
    """Background field that the removal left: solid harmonics of degree 1 to 3, which no source inside makes.

    Args:
        measurement: n measurements.
        mask: ``[n, X, Y, Z]``, boolean.
        voxel_size: [mm].

    Returns:
        Field ``[n, X, Y, Z]`` [ppm], mean 0 over the mask, 0 outside of it.
    """
    weights = measurement.harmonics.to(mask.device)
    if not bool((measurement.remainder > 0).any()):
        return torch.zeros(mask.shape, device=mask.device)
    x, y, z = (
        (torch.arange(count, device=mask.device, dtype=torch.float32) - (count - 1) / 2) * step / HARMONIC_MM
        for count, step in zip(mask.shape[1:], voxel_size, strict=True)
    )
    # Cubic in z: four heights tell all of them.
    nodes = torch.linspace(-1.0, 1.0, 4, device=mask.device)
    between = torch.linalg.solve(torch.vander(nodes, increasing=True).mT, torch.vander(z, 4, increasing=True).mT)
    sheets = torch.einsum("nk,kxyc->nxyc", weights, _solid_harmonics(x, y, nodes))
    total = sheets @ between
    inside = mask.to(total)
    count = inside.sum((1, 2, 3), keepdim=True).clamp_min(1.0)
    total = (total - (total * inside).sum((1, 2, 3), keepdim=True) / count) * inside
    deviation = (total.square().sum((1, 2, 3), keepdim=True) / count).sqrt()
    return total * (_column(measurement.remainder, total) / deviation.clamp_min(1e-12))


def _solid_harmonics(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    """Harmonic polynomials of degree 1 to 3 on a grid, ``[15, X, Y, Z]``."""
    x, y, z = torch.meshgrid(x, y, z, indexing="ij")
    return torch.stack(
        [
            x, y, z, x * y, y * z, x * z, x * x - y * y, 2 * z * z - x * x - y * y,
            x * y * z, z * (x * x - y * y), x * (4 * z * z - x * x - y * y), y * (4 * z * z - x * x - y * y),
            z * (2 * z * z - 3 * x * x - 3 * y * y), x * (x * x - 3 * y * y), y * (3 * x * x - y * y),
        ]
    )  # fmt: skip


def _column(values: Tensor, like: Tensor) -> Tensor:
    """One value for each volume, ready to be multiplied with volumes ``[n, X, Y, Z]``."""
    return values.to(like).view(-1, 1, 1, 1)
