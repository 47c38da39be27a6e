"""Centres of the lines of a View Line image, followed from the borders inwards, and the field that bent them.

A line is followed column by column from both ends of x, where the field is weak and lines are at their nominal places,
and so it keeps its number through bends larger than half the distance to its neighbour. All lines of all images take a
step together; only the columns follow one another. Lengths in mm, fields in uT, z = 0 in the middle of the image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from physics.viewline import ViewLineSequence

from .resimulation import noise_floor

__all__ = ["FieldSamples", "LineTracks", "along_z", "field_samples", "line_places", "track_lines"]

_RAYLEIGH_MEAN = math.sqrt(math.pi / 2.0)  # of a magnitude without signal, in units of sigma
_LOST = 0.3  # share of its usual signal below which a line counts as lost
_JUMP = 0.35  # largest step that a line takes beside the expected one [line widths]
_START = 0.8  # the same for a line that is met for the first time: the far field may have an offset
_AGREE = 0.1  # largest difference of the two directions [line widths]


@dataclass
class LineTracks:
    """Lines of a batch of images.

    Attributes:
        position: of a line's centre in the image ``[B, L, X]`` [mm]; where it is lost, the place it was expected at.
        weight: confidence ``[B, L, X]`` in [0, 1]; 0 where the line is lost.
        signal: of the line ``[B, L, X]``, summed over its width [mm x unit of the image], 0 or more.
    """

    position: Tensor
    weight: Tensor
    signal: Tensor


@dataclass
class FieldSamples:
    """Scattered samples of the field.

    Attributes:
        field: dB ``[B, L, X]`` [uT].
        z: where in the tissue ``[B, L, X]`` [mm].
        weight: confidence ``[B, L, X]`` in [0, 1]; 0 where there is no sample.
    """

    field: Tensor
    z: Tensor
    weight: Tensor


@dataclass
class _State:
    """Where the lines of a batch are in a column, all ``[B, L]``."""

    position: Tensor
    slope: Tensor  # [mm per column]
    half: Tensor  # half width of the window [mm]
    usual: Tensor  # running signal [mm x signal]
    active: Tensor
    started: Tensor
    broken: Tensor  # lost at least once since it started


def line_places(sequence: ViewLineSequence, like: Tensor) -> Tensor:
    """Nominal places of the lines ``[L]`` [mm], line 0 the lowest and even; dtype and device of ``like``."""
    number = torch.arange(sequence.lines, dtype=like.dtype, device=like.device)
    return (number - (sequence.lines - 1) / 2) * sequence.line_pitch


def track_lines(image: Tensor, sequence: ViewLineSequence, pixel_size: Sequence[float]) -> LineTracks:
    """Follow the centres of all lines with sub-pixel precision.

    Args:
        image: magnitude ``[B, 2, X, Z]``, even lines and odd lines, any scale.
        sequence: places and width of the lines.
        pixel_size: (dx, dz) [mm].

    Returns:
        The tracks. Where the two directions contradict each other, the one that was never interrupted counts; if both
        or none were, the line counts as lost.
    """
    batch = image.shape[0]
    floor = _RAYLEIGH_MEAN * torch.stack([noise_floor(one, sequence) for one in image])
    # Not clamped: noise between the lines then has no mean, and does not draw a centre towards the window's middle.
    signal = image - floor[:, None, None, None]
    both = torch.cat([signal, signal.flip(-2)])
    level = _usual_signal(both, sequence, float(pixel_size[1]))
    position, mass, share, active, broken = _follow(both, level, sequence, float(pixel_size[1]))

    def directions(values: Tensor) -> tuple[Tensor, Tensor]:
        return values[:batch], values[batch:].flip(-1)

    (first, second), (share_1, share_2) = directions(position), directions(share)
    mass_1, mass_2 = directions(mass)
    (on_1, on_2), (broken_1, broken_2) = directions(active), directions(broken)
    agree = (first - second).abs() < _AGREE * sequence.line_width
    whole_1, whole_2 = on_1 & ~broken_1, on_2 & ~broken_2
    use_1 = on_1 & ((on_2 & agree) | (whole_1 & ~whole_2) | ~on_2)
    use_2 = on_2 & ((on_1 & agree) | (whole_2 & ~whole_1) | ~on_1)
    total = use_1.to(image.dtype) + use_2
    mean = (first * use_1 + second * use_2) / total.clamp(min=1)
    found = total > 0
    ratio = (share_1 * use_1 + share_2 * use_2) / total.clamp(min=1)
    return LineTracks(
        position=torch.where(found, mean, 0.5 * (first + second)),
        weight=found * ((ratio - _LOST) / (0.9 - _LOST)).clamp(0.0, 1.0),
        signal=torch.maximum(mass_1, mass_2),
    )


def field_samples(tracks: LineTracks, sequence: ViewLineSequence) -> FieldSamples:
    """Field at the points of the tissue that the centres of the lines excited.

    A line's centre is moved by ``dB (s / Gr - 1 / Gz)`` in the image, and comes from ``z_k - dB / Gz`` in the tissue.

    Args:
        tracks: from :func:`track_lines`.
        sequence: its gradients.

    Raises:
        ValueError: for a sequence whose two shifts cancel: its lines stay straight in every field.
    """
    if abs(sequence.net_shift) * sequence.slice_gradient < 1e-3:
        raise ValueError(
            "sequence must move its lines: readout_sign / Gr - 1 / Gz must differ from 0, got "
            f"{sequence.net_shift:.3g} mm/uT"
        )
    nominal = line_places(sequence, tracks.position)[:, None]
    field = (tracks.position - nominal) / sequence.net_shift
    return FieldSamples(field=field, z=nominal - field / sequence.slice_gradient, weight=tracks.weight)


def _window(column: Tensor, low: Tensor, high: Tensor, step: float, pixels: int) -> tuple[Tensor, Tensor, Tensor]:
    """Pixels of a column between two places, those at the ends in part.

    Args:
        column: ``[B, L, Z]``, what each line's channel shows.
        low: lower end ``[B, L]`` [mm].
        high: upper end ``[B, L]`` [mm].
        step: pixel [mm].
        pixels: most pixels a window may have.

    Returns:
        Place of the pixels ``[B, L, W]`` [mm], their share in the window, their signal.
    """
    count = column.shape[-1]
    first = (low / step + (count - 1) / 2).floor().long()
    index = first[..., None] + torch.arange(pixels, device=column.device)
    place = (index - (count - 1) / 2) * step
    share = (torch.minimum(place - low[..., None], high[..., None] - place) / step + 0.5).clamp(0.0, 1.0)
    share = share * ((index >= 0) & (index < count))
    return place, share, column.gather(-1, index.clamp(0, count - 1))


def _usual_signal(signal: Tensor, sequence: ViewLineSequence, step: float) -> Tensor:
    """Signal of an intact line ``[B]`` [mm x signal]: a high quantile over lines and columns, at the nominal places."""
    count = signal.shape[-1]
    place = (torch.arange(count, dtype=signal.dtype, device=signal.device) - (count - 1) / 2) * step
    nominal = line_places(sequence, signal)
    inside = ((place - nominal[:, None]).abs() < 0.75 * sequence.line_width).to(signal.dtype)  # [L, Z]
    sums = [signal[:, parity] @ inside[parity::2].T for parity in (0, 1)]
    return torch.cat(sums, dim=-1).flatten(1).quantile(0.8, dim=1) * step


def _follow(signal: Tensor, level: Tensor, sequence: ViewLineSequence, step: float) -> tuple[Tensor, ...]:
    """Follow all lines from column 0 to the last one.

    Args:
        signal: ``[B, 2, X, Z]``, noise floor subtracted.
        level: signal of an intact line ``[B]`` [mm x signal].
        sequence: of the image.
        step: pixel along z [mm].

    Returns:
        Position [mm], signal [mm x signal], signal over the usual one, whether a line is held, whether it was ever
        lost; all ``[B, L, X]``.
    """
    nominal = line_places(sequence, signal).expand(len(signal), -1)
    off = torch.zeros_like(nominal, dtype=torch.bool)
    state = _State(
        position=nominal, slope=torch.zeros_like(nominal), half=torch.full_like(nominal, sequence.line_width),
        usual=level[:, None].expand_as(nominal), active=off, started=off, broken=off,
    )  # fmt: skip
    parity = torch.arange(sequence.lines, device=signal.device) % 2
    steps = []
    for column in signal.unbind(-2):
        state, mass, share = _next_column(state, column[:, parity], nominal, level, sequence, step)
        steps.append((state.position, mass, share, state.active, state.broken))
    return tuple(torch.stack(values, dim=-1) for values in zip(*steps, strict=True))


def _next_column(
    state: _State, column: Tensor, nominal: Tensor, level: Tensor, sequence: ViewLineSequence, step: float
) -> tuple[_State, Tensor, Tensor]:
    """One step of :func:`_follow`: the next state, the signal of the lines, and that over the usual one ``[B, L]``."""
    width = sequence.line_width
    expected = torch.where(state.active, state.position + state.slope, nominal + _borrowed(state, nominal))
    centre, mass, peak = _centroid(column, expected, state.half, sequence, step)
    share = mass / state.usual
    step_aside = centre - expected
    reach = torch.where(state.started, _JUMP * width, _START * width)
    held = (step_aside.abs() < reach) & (share > _LOST) & (mass > 0.5 * _LOST * level[:, None])
    held &= level[:, None] > 0
    # A line starts with more signal than it takes to keep it: half a line at a contour has its centre elsewhere.
    held &= state.active | (share > 2.0 * _LOST)
    position = torch.where(held, centre, expected)
    slope = torch.where(held, state.slope + 0.4 * step_aside, 0.8 * state.slope * state.active)
    equivalent = (mass / peak.clamp_min(1e-12)).clamp(0.2 * width, 3.0 * width)
    half = torch.where(held, 0.7 * state.half + 0.3 * (0.5 * equivalent + 0.5 * width), state.half)
    usual = torch.where(held, 0.95 * state.usual + 0.05 * mass.clamp_min(0.0), state.usual)
    lost = state.active & ~held
    following = _State(
        position=position, slope=slope, half=half, usual=usual, active=held,
        started=state.started | held, broken=state.broken | lost,
    )  # fmt: skip
    return following, mass.clamp_min(0.0), share.clamp_min(0.0)


def _borrowed(state: _State, nominal: Tensor) -> Tensor:
    """Displacement of the lines that are held, carried to the others by their distance ``[B, L]`` [mm]."""
    number = torch.arange(nominal.shape[-1], device=nominal.device, dtype=nominal.dtype)
    near = torch.exp(-(number[:, None] - number).abs())
    held = state.active.to(nominal.dtype)
    return ((state.position - nominal) * held) @ near / (held @ near).clamp_min(1e-6)


def _centroid(
    column: Tensor, expected: Tensor, half: Tensor, sequence: ViewLineSequence, step: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Centre [mm], signal [mm x signal] and peak of each line near an expected place, all ``[B, L]``.

    A window moves to the centroid within it a few times. It ends half way to the next line of the same channel.
    """
    edges = torch.full_like(expected[:, :2], math.inf)
    between = 0.5 * (expected[:, 2:] + expected[:, :-2])
    lowest, highest = torch.cat([-edges, between], dim=-1), torch.cat([between, edges], dim=-1)
    pixels = int(4.5 * sequence.line_width / step) + 3
    centre = expected
    mass = peak = torch.zeros_like(expected)
    for _ in range(3):
        low, high = torch.maximum(centre - half, lowest), torch.minimum(centre + half, highest)
        place, share, signal = _window(column, low, torch.maximum(low, high), step, pixels)
        weighted = share * signal
        total = weighted.sum(-1)
        mass, peak = total * step, weighted.amax(-1)
        moved = (weighted * (place - expected[..., None])).sum(-1) / total.clamp_min(1e-12)
        centre = expected + torch.where(total > 0, moved, 0.0).clamp(-sequence.line_width, sequence.line_width)
    return centre, mass, peak


def along_z(values: Tensor, place: Tensor, step: float) -> Tensor:
    """Values ``[..., X, Z]`` at places ``[..., X, N]`` [mm], linear between pixels a step [mm] apart, the ends kept."""
    count = values.shape[-1]
    position = (place / step + (count - 1) / 2).clamp(0, count - 1)
    low = position.floor().clamp_max(count - 2)
    part = position - low
    index = low.long()
    return values.gather(-1, index) * (1 - part) + values.gather(-1, index + 1) * part
