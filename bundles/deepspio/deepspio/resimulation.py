"""A concentration map put back through the View Line sequence: a body from a map, a signal without iron, an image.

Plane axes ``[X, Z]``, as in :mod:`physics.viewline`. A map says nothing about what lies before and behind the plane,
nor about the signal that iron has destroyed: both are assumed here, and what is assumed stands at the function.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage
from skimage.morphology import convex_hull_image
from torch import Tensor
from torch.nn import functional

from physics.viewline import ViewLineSequence, folded_plane_field, view_line_image

__all__ = ["LOWEST_TRAINED", "SUPPORT_SHARE", "lift", "noise_floor", "reference_signal", "resimulate", "support_of"]

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

LOWEST_TRAINED = 0.22  # ug/mm^3, of the training (section 3.2 of the paper)
SUPPORT_SHARE = 0.25  # of the largest concentration, above which a voxel counts as holding particles
_DARK = 0.15  # of the bright signal, below which there is none
_LIT = 0.3  # of the signal around, above which a pixel belongs to a line
_BESIDE = 0.05  # of the amplitude of a line, below which a pixel lies beside it
_MOVED = 0.05  # share of the energy beside the lines that tells that they have moved
_FAINT = 0.2  # of the energy the lines would have, below which they are those of a void
_SEEN = 0.01  # of the energy of a line, above which its amplitude is read from it
_NOISY = 2.6  # times the noise below which there is no signal: the high quantile of two channels of noise is 2.1


def support_of(concentration: Tensor, share: float = SUPPORT_SHARE, lowest: float = LOWEST_TRAINED) -> Tensor:
    """Voxels counted as holding particles: above a share of the peak, and above the smallest trained concentration.

    Args:
        concentration: ``[..., X, Z]`` [ug/mm^3].
        share: of the largest value of each map.
        lowest: [ug/mm^3].

    Returns:
        Boolean, of the same shape.
    """
    peak = concentration.amax((-2, -1), keepdim=True)
    return concentration > (share * peak).clamp_min(lowest * (1.0 - 1e-6))


def lift(
    concentration: Tensor,
    pixel_size: Sequence[float],
    thickness_mm: float | None = None,
    share: float = SUPPORT_SHARE,
    lowest: float = LOWEST_TRAINED,
) -> Tensor:
    """Give a map of the imaging plane a third dimension: bodies that are round, or of one thickness.

    A round body is the union of all balls centred in the plane whose discs lie within the support: a disc becomes a
    ball, a strip a cylinder along the strip, whatever its direction. Bodies are symmetric about the plane, and the
    concentration does not change across it. Differentiable in the concentration, with the support as it is.

    Args:
        concentration: ``[X, Z]`` [ug/mm^3]; below the support it counts as 0.
        pixel_size: (dx, dz) [mm].
        thickness_mm: of the body along y; None for round bodies.
        share: see :func:`support_of`.
        lowest: see :func:`support_of` [ug/mm^3].

    Returns:
        Folded planes ``[H + 1, X, Z]`` [ug/mm^3], dx apart, for :func:`physics.viewline.folded_plane_field`: plane 0
        holds the slab around y = 0, the others those at y and -y added up, each weighted by the part of it that is
        filled.

    Raises:
        ValueError: for another number of axes, or a pixel size or thickness that is not positive and finite.
    """
    dx, dz = _checked(concentration, pixel_size)
    if thickness_mm is not None and not (math.isfinite(thickness_mm) and thickness_mm > 0):
        raise ValueError(f"thickness_mm must be positive and finite, or None for round bodies, got {thickness_mm}")
    support = support_of(concentration.detach(), share, lowest)
    if thickness_mm is None:
        half = torch.from_numpy(_round_half_thickness(support.cpu().numpy(), dx, dz)).to(concentration)
    else:
        half = 0.5 * thickness_mm * support.to(concentration)
    planes = 1 + math.ceil(max(float(half.max()) / dx - 0.5, 0.0))
    below = (torch.arange(planes, dtype=half.dtype, device=half.device) - 0.5)[:, None, None]
    filled = 2.0 * (half / dx - below).clamp(0.0, 1.0)
    filled[0] = (2.0 * half / dx).clamp_max(1.0)
    return concentration * support * filled


def _round_half_thickness(support: Mask, dx: float, dz: float) -> Array:
    """Half thickness [mm] of the union of balls in a support ``[X, Z]``.

    With D the distance of a point to the edge, it is the root of max over points p of D(p)^2 - |x - p|^2, an upper
    envelope of paraboloids, taken along one axis after the other.
    """
    half = np.zeros(support.shape)
    if not support.any():
        return half
    rows, columns = (np.flatnonzero(support.any(axis)) for axis in (1, 0))
    box = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
    distance = ndimage.distance_transform_edt(np.pad(support[box], 1), sampling=(dx, dz))[1:-1, 1:-1]
    # To the centre of the next voxel without particles: right for a disc (its volume within 2 % from 20 voxels across
    # on), up to half a voxel more than right for a straight edge.
    squares = np.square(distance)
    squares[~support[box]] = -np.inf
    squares = _upper_envelope(_upper_envelope(squares, dx).T, dz).T
    half[box] = np.sqrt(np.clip(squares, 0.0, None)) * support[box]
    return half


def _upper_envelope(values: Array, step: float) -> Array:
    """max over p of values[p] - (x - p)^2 along the first axis."""
    place = np.arange(len(values)) * step
    parabolas = np.square(place[:, None] - place[None, :])
    result = np.full_like(values, -np.inf)
    for offset in range(len(values)):  # one row of paraboloids at a time: the cube of all would be large
        np.maximum(result, values[offset] - parabolas[:, offset, None], out=result)
    return result


def reference_signal(
    image: Tensor,
    sequence: ViewLineSequence,
    pixel_size: Sequence[float],
    occupied: Tensor | None = None,
) -> Tensor:
    """The amplitude the lines would have without iron: their envelope, filled smoothly where iron has left a void.

    Where the lines are where they would be without iron, the image itself shows it. Elsewhere it is a high quantile of
    the brighter channel over one pitch along z, the median of the flat part of the line that lies there, over the same
    quantile of lines of amplitude 1 without iron. Voids are dark parts of the object that are thicker than a line's
    width and surrounded by signal, or near iron; they are filled from their rim, nearer points counting more
    (Shepard's weights). Exact for a uniform signal without iron.

    Limits: where lines have moved, structure finer than the pitch is lost along z, and the signal stands where the
    image shows it, not where it came from; where the readout piles up signal it is too high. The object is convex as
    far as voids at its edge go.

    Args:
        image: magnitude ``[2, X, Z]``, even and odd lines, any scale.
        sequence: of the image.
        pixel_size: (dx, dz) [mm].
        occupied: boolean ``[X, Z]``, voxels said to hold particles: what is dark within two pitches and two inner radii
            of the largest body of them is a void. None where they are not known.

    Returns:
        ``[X, Z]``, in the unit of the image, of its dtype and device; 0 outside of the object.

    Raises:
        ValueError: for another shape, or a pixel size that is not positive and finite.
    """
    dx, dz = _checked(image, pixel_size, axes=3)
    if image.shape[0] != 2:
        raise ValueError(f"image must be [2, X, Z], even and odd lines, got shape {tuple(image.shape)}")
    brighter, pitch = image.detach().amax(0), sequence.line_pitch / dz
    flat = min(0.5, 0.4 * sequence.line_width / sequence.line_pitch)
    envelope = _high_quantile(brighter, pitch, flat)
    bare = _bare_lines(image, dx, dz, sequence)
    envelope = envelope / _high_quantile(bare.amax(0), pitch, flat).clamp_min(0.5)
    bright = envelope[envelope > 0.5 * envelope.max()]
    level = bright.median() if bright.numel() else envelope.new_zeros(())
    floor = torch.maximum(_DARK * level, _NOISY * noise_floor(image, sequence))
    around = _high_quantile(envelope, pitch, 0.0)
    inside = _between_lines((brighter > torch.maximum(_LIT * around, floor)).cpu().numpy(), dz, sequence)
    voids = ndimage.binary_opening(ndimage.binary_fill_holes(inside) & ~inside, _ball(0.4 * pitch * dz, dx, dz))
    if occupied is not None and inside.any():
        near = _near(occupied.cpu().numpy(), 2.0 * sequence.line_pitch, dx, dz)
        voids |= near & ~inside & convex_hull_image(inside)
    rim = ndimage.binary_dilation(voids, _ball(0.5 * sequence.line_pitch, dx, dz))  # it is dimmed, too
    known = torch.from_numpy(inside & ~rim).to(envelope)
    smooth = torch.where(known > 0, envelope, _shepard(envelope, known, dx, dz))
    smooth = smooth * torch.from_numpy(inside | voids).to(envelope)
    return _with_lines(smooth, image.detach(), bare, 2.0 * noise_floor(image, sequence).square(), pitch)


def _with_lines(envelope: Tensor, image: Tensor, bare: Tensor, noise: Tensor, pitch: float) -> Tensor:
    """Take the amplitude from within the lines ``bare`` ``[2, 1, Z]`` where hardly any signal lies beside them.

    Args:
        envelope: to be used elsewhere ``[X, Z]``.
        image: ``[2, X, Z]``.
        bare: lines of amplitude 1.
        noise: mean square of the image between the lines.
        pitch: of the lines [pixels].
    """
    half = max(1, math.ceil(0.5 * pitch))
    energy = image.square() - noise
    beside, total = (_smoothed(part.sum(0), 1, half) for part in (energy * (bare < _BESIDE), energy))
    # In a void there is no energy beside the lines either, and their amplitude says nothing.
    lines = bare.square().sum(0)
    lit = total > torch.maximum(noise, _FAINT * _smoothed(lines * envelope.square(), 1, half))
    share = (1.0 - beside.clamp_min(0.0) / (_MOVED * total).clamp_min(1e-30)).clamp(0.0, 1.0) * lit
    # Least squares over three pixels: at the edge of a line a ratio of single pixels would be noise.
    weight = _smoothed(lines, 0, 1)
    amplitude = _smoothed((image * bare).sum(0), 0, 1) / weight.clamp_min(1e-6)
    return torch.lerp(envelope, amplitude, share * (weight > _SEEN))


def _smoothed(values: Tensor, half_x: int, half_z: int) -> Tensor:
    """Mean over windows of so many pixels to each side, the ends repeated ``[X, Z]``."""
    wide = functional.pad(values[None], (half_z, half_z, half_x, half_x), mode="replicate")
    return functional.avg_pool2d(wide, (2 * half_x + 1, 2 * half_z + 1), stride=1)[0]


def resimulate(
    concentration: Tensor,
    image: Tensor,
    sequence: ViewLineSequence,
    pixel_size: Sequence[float],
    mass_magnetisation: float = 93.0,
    thickness_mm: float | None = None,
    reference: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The image that a concentration map would have made, to compare with the one that was measured.

    Differentiable in the concentration where ``reference`` is given, for a support that stays as it is.

    Args:
        concentration: ``[X, Z]`` [ug/mm^3]; see :func:`lift` for what counts of it.
        image: measured ``[2, X, Z]``.
        sequence: of the image.
        pixel_size: (dx, dz) [mm].
        mass_magnetisation: of the particles [A m^2/kg].
        thickness_mm: of the bodies along y; None for round ones.
        reference: signal without iron ``[X, Z]``; None for that of :func:`reference_signal`.

    Returns:
        The simulated image ``[2, X, Z]``, without noise, and the signal without iron ``[X, Z]``, in the unit of the
        image.

    Raises:
        ValueError: as :func:`lift` and :func:`reference_signal`, or where the planes differ in shape.
    """
    dx, dz = _checked(concentration, pixel_size)
    if image.shape[1:] != concentration.shape:
        raise ValueError(f"image must be [2, X, Z] with the plane {tuple(concentration.shape)}, got {image.shape}")
    support = support_of(concentration.detach())
    planes = lift(concentration, pixel_size, thickness_mm)
    field = folded_plane_field(planes, (dx, dx, dz), mass_magnetisation)
    if reference is None:
        reference = reference_signal(image, sequence, pixel_size, support)
    return view_line_image(reference, concentration * support, field, (dx, dz), sequence), reference


def noise_floor(image: Tensor, sequence: ViewLineSequence) -> Tensor:
    """Standard deviation of the noise in the real part, from the dark between the lines; a scalar.

    Between the lines of one channel magnitude noise has a Rayleigh distribution, whose median is 1.177 times it.

    Args:
        image: magnitude ``[2, X, Z]``.
        sequence: gives the share of an image that the lines of one channel leave dark.
    """
    dark = max(0.1, 1.0 - 0.5 * sequence.line_width / sequence.line_pitch)
    values = image.detach().flatten()
    rank = max(1, int(0.5 * dark * values.numel()))
    return values.kthvalue(rank).values / math.sqrt(2.0 * math.log(2.0))


def _checked(values: Tensor, pixel_size: Sequence[float], axes: int = 2) -> tuple[float, float]:
    if values.ndim != axes:
        names = "[X, Z]" if axes == 2 else "[2, X, Z]"
        raise ValueError(f"a map or image must have the axes {names}, got shape {tuple(values.shape)}")
    if len(pixel_size) != 2 or not all(math.isfinite(step) and step > 0 for step in pixel_size):
        raise ValueError(f"pixel_size must be two positive numbers (dx, dz) [mm], got {tuple(pixel_size)}")
    dx, dz = (float(step) for step in pixel_size)
    return dx, dz


def _bare_lines(image: Tensor, dx: float, dz: float, sequence: ViewLineSequence) -> Tensor:
    """Lines of amplitude 1 without iron ``[2, 1, Z]``."""
    ones, zeros = image.new_ones(2, image.shape[-1]), image.new_zeros(2, image.shape[-1])
    return view_line_image(ones, zeros, zeros, (dx, dz), sequence)[:, :1]


def _between_lines(lit: Mask, dz: float, sequence: ViewLineSequence) -> Mask:
    """The object: what the lines light up ``[X, Z]``, and the dark between two of them."""
    gap = math.ceil((sequence.line_pitch - sequence.line_width) / dz) + 2
    gap = min(gap, lit.shape[1])
    wide = np.pad(lit, ((0, 0), (gap, gap)), mode="symmetric")
    return np.asarray(ndimage.binary_closing(wide, np.ones((1, gap + 1))))[:, gap:-gap]


def _high_quantile(values: Tensor, pixels: float, share: float) -> Tensor:
    """The value that ``share`` of the window of so many pixels along z reaches, at each place of ``[X, Z]``."""
    half = max(1, math.ceil(0.5 * pixels - 0.5))
    window = 2 * half + 1
    if half >= values.shape[-1]:
        raise ValueError(f"the image must be longer than a line pitch along z, got {values.shape[-1]} pixels")
    padded = functional.pad(values[None], (half, half), mode="reflect")[0]
    rank = max(1, math.floor(share * window + 0.5))
    return padded.unfold(-1, window, 1).topk(rank, -1).values[..., -1]


def _near(occupied: Mask, reach: float, dx: float, dz: float) -> Mask:
    """Where iron may leave a void: within ``reach`` [mm] and two inner radii of the voxels that hold it."""
    if not occupied.any():
        return np.zeros_like(occupied)
    radius = ndimage.distance_transform_edt(np.pad(occupied, 1), sampling=(dx, dz)).max()
    return np.asarray(ndimage.distance_transform_edt(~occupied, sampling=(dx, dz)) <= reach + 2.0 * radius)


def _ball(radius: float, dx: float, dz: float) -> Mask:
    """Structuring element: pixels within a distance [mm]."""
    x, z = (np.arange(-int(radius / step), int(radius / step) + 1) * step for step in (dx, dz))
    return x[:, None] ** 2 + z**2 <= radius**2


def _shepard(values: Tensor, known: Tensor, dx: float, dz: float) -> Tensor:
    """Mean of the known values, weighted by the inverse cube of their distance, at each place of ``[X, Z]``."""
    x, z = values.shape
    shape = (2 * x, 2 * z)
    along = [torch.fft.fftfreq(2 * n, 1 / (2 * n), device=values.device).double() * d for n, d in ((x, dx), (z, dz))]
    kernel = (along[0][:, None].square() + along[1].square() + (0.5 * (dx + dz)) ** 2) ** -1.5
    spectrum = torch.fft.rfft2(kernel)
    sums = [
        torch.fft.irfft2(torch.fft.rfft2(part.double(), s=shape) * spectrum, s=shape)[:x, :z]
        for part in (known * values, known)
    ]
    return (sums[0] / sums[1].clamp_min(1e-12)).to(values)
