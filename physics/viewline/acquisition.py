"""View Line images: which line excites a spin, where the readout puts it, and how much signal is left.

Plane axes ``[..., X, Z]``: x is phase encoding, z is the normal of the lines, the readout and B0. The origin of z is
the middle of the image. Fields are in uT, gradients in mT/m = uT/mm, lengths in mm.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from physics.viewline.field import MILLIMOLAR
from physics.viewline.sequence import GYROMAGNETIC_RATIO, ViewLineSequence

__all__ = ["excitation_position", "view_line_image"]

_REACH = 5.0  # standard deviations of an edge beyond which a profile is 0


def _positions(count: int, step: float, like: Tensor) -> Tensor:
    """Positions of the pixels along an axis [mm], 0 in the middle."""
    return (torch.arange(count, dtype=like.dtype, device=like.device) - (count - 1) / 2) * step


def excitation_position(z: Tensor, field: Tensor, sequence: ViewLineSequence) -> Tensor:
    r"""Where the excitation takes a spin to be [mm].

    .. math:: u = z + \delta B / G_z

    Args:
        z: true position [mm].
        field: dB [uT], broadcast with it.
        sequence: gives Gz.

    Source: first equation of section 3.1 of the paper.
    """
    return z + field / sequence.slice_gradient


def _excitations(u: Tensor, sequence: ViewLineSequence) -> Iterator[tuple[Tensor, Tensor]]:
    """Profile in [0, 1] and number of the line nearest to u; of the second nearest too where edges of lines meet."""
    middle, last = (sequence.lines - 1) / 2, sequence.lines - 1
    place = u / sequence.line_pitch + middle
    nearest = place.detach().round().clamp(0, last)
    yield _profile((place - nearest) * sequence.line_pitch, sequence), nearest
    if sequence.line_pitch < sequence.line_width + 2 * _REACH * sequence.edge:
        second = nearest + torch.where(place.detach() < nearest, -1.0, 1.0)
        there = (second >= 0) & (second <= last)
        yield _profile((place - second) * sequence.line_pitch, sequence) * there, second.clamp(0, last)


def _profile(away: Tensor, sequence: ViewLineSequence) -> Tensor:
    """A box of the line's width, softened by a Gaussian: its width at half maximum stays that of the box."""
    scale = 1.0 / (math.sqrt(2.0) * sequence.edge)
    half = 0.5 * sequence.line_width
    return 0.5 * (torch.erf((away + half) * scale) - torch.erf((away - half) * scale))


def _decay(concentration: Tensor, field: Tensor, pixel_size: Sequence[float], sequence: ViewLineSequence) -> Tensor:
    """Share of the signal that relaxation among the particles and diffusion between them leave."""
    relaxation = (sequence.echo_time * sequence.relaxivity * MILLIMOLAR) * concentration
    along_x, along_z = torch.gradient(field, spacing=[float(step) for step in pixel_size], dim=(-2, -1))
    # (gamma |grad B|)^2 D TE^3 / 12 for a spin echo; gamma in rad/s/uT, gradients in uT/mm
    factor = (2e0 * math.pi * GYROMAGNETIC_RATIO) ** 2 * sequence.diffusivity * sequence.echo_time**3 / 12.0
    return torch.exp(-relaxation - factor * (along_x.square() + along_z.square()))


def _finer(values: Tensor, factor: int) -> Tensor:
    """Linear interpolation along z at ``factor`` points in each pixel, which the ends repeat."""
    if factor == 1:
        return values
    flat = values.reshape(-1, 1, values.shape[-1])
    fine = functional.interpolate(flat, scale_factor=float(factor), mode="linear", align_corners=False)
    return fine.reshape(*values.shape[:-1], -1)


def _splat(signal: Tensor, position: Tensor, channel: Tensor, pixels: int) -> Tensor:
    """Add points to the two pixels beside them, linearly; what falls outside of the image is lost.

    Args:
        signal: ``[R, P]``, rows and points.
        position: in pixels ``[R, P]``, 0 at the middle of the first.
        channel: 0 or 1 ``[R, P]``.
        pixels: of a row of the image.

    Returns:
        ``[R, 2, pixels]``.
    """
    rows = signal.shape[0]
    # Points outside are put into one of two spare pixels at each end, which are cut off.
    inside = (position + 2.0).clamp(0.0, pixels + 2.0)
    low = inside.detach().floor()
    weight = inside - low
    width = pixels + 4
    row = torch.arange(rows, device=signal.device, dtype=signal.dtype)[:, None] * (2 * width)
    # Exact in float32 as long as the image has fewer than 2^24 places.
    first = (
        (low + row).long() + channel.long() * width
        if rows * 2 * width >= 2**24
        else ((low + row + channel * width).to(torch.int32))
    )
    upper = signal * weight
    image = signal.new_zeros(rows * 2 * width)
    image = image.index_add(0, first.flatten(), (signal - upper).flatten())
    image = image.index_add(0, (first + 1).flatten(), upper.flatten())
    return image.view(rows, 2, width)[..., 2:-2]


def view_line_image(
    proton_density: Tensor,
    concentration: Tensor,
    field: Tensor,
    pixel_size: Sequence[float],
    sequence: ViewLineSequence,
    oversampling: int = 2,
) -> Tensor:
    r"""Magnitude image of all lines, even and odd ones apart, without noise.

    .. math:: I_{e, o}(x, z') = \sum_{l \text{ even, odd}} \int \rho \, e^{-TE \, r_2 c
        - \gamma^2 |\nabla \delta B|^2 D \, TE^3 / 12} \; p(u(z) - z_l) \;
        \delta\left(z' - z - s \, \delta B / G_r\right) dz, \qquad
        p(a) = \tfrac{1}{2} \left[\operatorname{erf} \tfrac{a + w / 2}{\sqrt 2 \, \epsilon}
        - \operatorname{erf} \tfrac{a - w / 2}{\sqrt 2 \, \epsilon}\right]

    with c in mM, w the line width, epsilon its ``edge``, and u of :func:`excitation_position`. In a field with a slope
    g the line is therefore ``width / |1 + g / Gz|`` thick. The readout puts a spin where signal piles up or thins out;
    the total is kept. All excitations are one comb in u: no loop over lines. Differentiable.

    Args:
        proton_density: signal without iron ``[..., X, Z]``, any unit, not negative.
        concentration: of iron in the plane ``[..., X, Z]`` [ug/mm^3].
        field: of all sources ``[..., X, Z]`` [uT].
        pixel_size: (dx, dz) [mm].
        sequence: the sequence.
        oversampling: points along z in a pixel; between them the readout and the profiles are linear.

    Returns:
        ``[..., 2, X, Z]``, even lines and odd lines, in the unit of the proton density.

    Raises:
        ValueError: if the shapes differ, there are fewer than 2 pixels along an axis, or a number is out of its range.

    Source: section 3.1 of the paper; Stejskal and Tanner, J Chem Phys 42:288 (1965), for the diffusion.
    """
    if not proton_density.shape == concentration.shape == field.shape or field.ndim < 2 or min(field.shape[-2:]) < 2:
        raise ValueError(
            "proton_density, concentration and field must have one shape [..., X, Z], got "
            f"{tuple(proton_density.shape)}, {tuple(concentration.shape)} and {tuple(field.shape)}"
        )
    if len(pixel_size) != 2 or not all(math.isfinite(s) and s > 0 for s in pixel_size):
        raise ValueError(f"pixel_size must be two positive numbers (dx, dz) [mm], got {tuple(pixel_size)}")
    if oversampling < 1:
        raise ValueError(f"oversampling must be at least 1, got {oversampling}")
    x, z = field.shape[-2:]
    step = float(pixel_size[1])
    signal = proton_density * _decay(concentration, field, pixel_size, sequence)
    flat = [_finer(part.reshape(-1, z), oversampling) for part in (signal, field)]
    points, dispersion = flat[0] / oversampling, flat[1]
    place = _positions(z * oversampling, step / oversampling, field)
    u = excitation_position(place, dispersion, sequence)
    shift = (sequence.readout_sign / sequence.readout_gradient / step) * dispersion
    target = place / step + (z - 1) / 2 + shift
    parts = [_splat(points * profile, target, number % 2, z) for profile, number in _excitations(u, sequence)]
    rows = parts[0] if len(parts) == 1 else parts[0] + parts[1]
    return rows.view(*field.shape[:-2], x, 2, z).movedim(-2, -3)
