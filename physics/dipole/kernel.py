"""Dipole kernels and the convolution with them.

Volumes are ``[..., X, Y, Z]``; susceptibility and field are in ppm. The voxel size is (dx, dy, dz) in mm and the B0
direction a unit vector along the axes of the array. Kernels are real half spectra ``[X, Y, Z // 2 + 1]`` for
``torch.fft.rfftn``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from physics.dipole.bodies import shape_factor, shear_factor

__all__ = [
    "check_geometry",
    "check_kernel_kind",
    "dipole_kernel",
    "fast_shape",
    "field_from_susceptibility",
    "susceptibility_adjoint",
]

Triple = tuple[float, float, float]

_KINDS = ("exact", "kspace")
_CHUNK = 2**21  # corners evaluated at a time: 16 MiB for each of the few temporaries


def _triple(values: Sequence[float] | Tensor, name: str) -> Triple:
    numbers = tuple(float(value) for value in values)
    if len(numbers) != 3 or not all(math.isfinite(value) for value in numbers):
        raise ValueError(f"{name} must be 3 finite numbers, got {numbers}")
    return numbers


def check_geometry(
    voxel_size: Sequence[float] | Tensor, b0_direction: Sequence[float] | Tensor = (0.0, 0.0, 1.0)
) -> tuple[Triple, Triple]:
    """Voxel size [mm] and B0 direction as floats, the direction scaled to unit length exactly.

    Raises:
        ValueError: unless the sizes are 3 positive numbers and the direction has unit length within 1e-3.
    """
    sizes = _triple(voxel_size, "voxel_size")
    if min(sizes) <= 0:
        raise ValueError(f"voxel_size must be positive [mm], got {sizes}")
    direction = _triple(b0_direction, "b0_direction")
    length = math.sqrt(sum(component**2 for component in direction))
    if abs(length - 1) > 1e-3:
        raise ValueError(f"b0_direction must have unit length, got {direction} of length {length:.6g}")
    x, y, z = direction
    return sizes, (x / length, y / length, z / length)


def check_kernel_kind(kind: str) -> None:
    """Raises ValueError unless ``kind`` names a kernel."""
    if kind not in _KINDS:
        raise ValueError(f"kind of the kernel must be one of {_KINDS}, got {kind!r}")


def fast_length(minimum: int) -> int:
    """Smallest length that is not less than ``minimum`` and has no prime factor above 5."""
    length = max(1, minimum)
    while True:
        rest = length
        for factor in (2, 3, 5):
            while rest % factor == 0:
                rest //= factor
        if rest == 1:
            return length
        length += 1


def fast_shape(shape: Sequence[int], padding: float) -> tuple[int, int, int]:
    """Grid that is ``padding`` times as large as the last three axes of ``shape``, rounded up to FFT-friendly lengths.

    Raises:
        ValueError: if there are fewer than 3 axes, or padding is less than 1 or not finite.
    """
    if len(shape) < 3 or min(shape[-3:]) < 1:
        raise ValueError(f"a volume must have the axes [..., X, Y, Z] and be not empty, got shape {tuple(shape)}")
    if not (math.isfinite(padding) and padding >= 1):
        raise ValueError(f"padding must be at least 1, got {padding}")
    x, y, z = (n if padding == 1 else fast_length(math.ceil(padding * n)) for n in shape[-3:])
    return x, y, z


def _corner_sums(halves: Sequence[int], sizes: Triple, b0: Triple) -> dict[str, Tensor]:
    """The field of one voxel at the non-negative offsets ``[X/2+1, Y/2+1, Z/2+1]``, by parity along the axes.

    "" is even along all axes, "xy" odd along x and y, and so on. The antiderivatives are evaluated once at each
    corner and differenced; float64 leaves an absolute error of 1e-16, whatever the distance.
    """
    # tr N = 0 outside the voxel: the smallest weight can be taken from all three, and one of them need not be computed
    smallest = min(component**2 for component in b0)
    weights = [component**2 - smallest for component in b0]
    pairs = {"xy": (0, 1, 2), "xz": (0, 2, 1), "yz": (1, 2, 0)}
    wanted = ["", *(name for name, (i, j, _) in pairs.items() if b0[i] * b0[j] != 0)]
    parts: dict[str, list[Tensor]] = {name: [] for name in wanted}
    axes = [(torch.arange(n + 1, dtype=torch.float64) - 0.5) * d for n, d in zip(halves, sizes, strict=True)]
    y, z = axes[1][None, :, None], axes[2][None, None, :]
    step = max(1, _CHUNK // (y.numel() * z.numel()))
    for first in range(0, halves[0], step):
        x = axes[0][first : first + step + 1, None, None]
        grid = (x, y, z)
        for name in wanted:
            if name:
                i, j, k = pairs[name]
                corners = (-2 * b0[i] * b0[j]) * shear_factor(grid[i], grid[j], grid[k])
            else:
                corners = torch.zeros(x.numel(), y.numel(), z.numel(), dtype=torch.float64)
                for i, weight in enumerate(weights):
                    if weight != 0:
                        corners -= weight * shape_factor(grid[i], grid[(i + 1) % 3], grid[(i + 2) % 3])
            parts[name].append(corners.diff(dim=0).diff(dim=1).diff(dim=2))
    octants = {name: torch.cat(part) for name, part in parts.items()}
    octants[""][0, 0, 0] += 1 / 3 - smallest
    return octants


def _half_transform(values: Tensor, axis: int, length: int, odd: bool) -> Tensor:
    """Fourier transform along one axis of a real sequence, given for the offsets 0 ... length // 2, even or odd.

    Real: the factor -i of an odd sequence is left out. The offset length / 2 stands for both signs, so the mean of
    both is taken, which is 0 for an odd sequence.
    """
    inner = values.narrow(axis, 1, length - values.shape[axis]).flip(axis)
    if not odd:
        return torch.fft.rfft(torch.cat([values, inner], dim=axis), dim=axis).real
    values = values.clone()
    values.select(axis, 0).zero_()
    if length % 2 == 0:
        values.select(axis, length // 2).zero_()
    return -torch.fft.rfft(torch.cat([values, -inner], dim=axis), dim=axis).imag


def _exact_kernel(shape: tuple[int, int, int], sizes: Triple, b0: Triple, dtype: torch.dtype) -> Tensor:
    """Spectrum of the field of one voxel on the periodic grid, by cosine and sine transforms of one octant.

    An eighth of the grid is enough by symmetry, and the spectrum comes out real and equal at k and -k, also at Nyquist.
    """
    halves = [n // 2 + 1 for n in shape]
    spectrum = torch.empty(shape[0], shape[1], halves[2], dtype=dtype)
    octants = _corner_sums(halves, sizes, b0)
    for name in list(octants):
        octant = octants.pop(name)
        for axis, letter in ((2, "z"), (1, "y"), (0, "x")):
            octant = _half_transform(octant, axis, shape[axis], letter in name)
        for x_mirrored in (False, True):
            for y_mirrored in (False, True):
                # (-i)^2 = -1 for the two odd axes; a mirrored odd axis turns the sign once more
                sign = (-1 if name else 1) * (-1 if x_mirrored and "x" in name else 1)
                sign *= -1 if y_mirrored and "y" in name else 1
                source, target = octant, spectrum
                for axis, mirrored in ((0, x_mirrored), (1, y_mirrored)):
                    if mirrored:
                        inner = shape[axis] - halves[axis]
                        source = source.narrow(axis, 1, inner).flip(axis)
                        target = target.narrow(axis, halves[axis], inner)
                    else:
                        target = target.narrow(axis, 0, halves[axis])
                if name:
                    target.add_(source, alpha=sign)
                else:
                    target.copy_(source)
    return spectrum


def _kspace_kernel(shape: tuple[int, int, int], sizes: Triple, b0: Triple, dtype: torch.dtype) -> Tensor:
    """``1/3 - (k.b)^2 / k^2``, 0 at k = 0. The Nyquist frequency stands for both signs: mixed terms vanish there."""
    frequencies, signed = [], []
    for axis, (n, d) in enumerate(zip(shape, sizes, strict=True)):
        k = torch.fft.fftfreq(n, d, dtype=torch.float64)[: n // 2 + 1 if axis == 2 else n]
        odd = k.clone()
        if n % 2 == 0:
            odd[n // 2] = 0
        view = [1, 1, 1]
        view[axis] = -1
        frequencies.append(k.reshape(view).to(dtype))
        signed.append(odd.reshape(view).to(dtype))
    total = sum((k.square() for k in frequencies), torch.zeros((), dtype=dtype))
    total[0, 0, 0] = 1
    along = sum((b**2 * k.square() for b, k in zip(b0, frequencies, strict=True)), torch.zeros((), dtype=dtype))
    for i, j in ((0, 1), (0, 2), (1, 2)):
        if b0[i] * b0[j] != 0:
            along = along + (2 * b0[i] * b0[j]) * signed[i] * signed[j]
    kernel = along.expand_as(total).div(total).neg_().add_(1 / 3)
    kernel[0, 0, 0] = 0
    return kernel


@lru_cache(maxsize=6)
def _cached_kernel(
    shape: tuple[int, int, int],
    sizes: Triple,
    b0: Triple,
    kind: str,
    zero_frequency: float | None,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    # a kernel made in inference mode could not be used for training afterwards
    with torch.inference_mode(False), torch.no_grad(), torch.device("cpu"):
        kernel = (_exact_kernel if kind == "exact" else _kspace_kernel)(shape, sizes, b0, dtype)
        if zero_frequency is not None:
            kernel[0, 0, 0] = zero_frequency
        return kernel.to(device)


def dipole_kernel(
    shape: Sequence[int],
    voxel_size: Sequence[float] | Tensor,
    b0_direction: Sequence[float] | Tensor = (0.0, 0.0, 1.0),
    kind: str = "exact",
    *,
    zero_frequency: float | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Tensor:
    r"""Spectrum of the dipole kernel on a periodic grid, real and equal at k and -k.

    .. math:: D(k) = \sum_x d(x) \, e^{-2 \pi i k \cdot x} \;\;(\text{exact}), \qquad
        D(k) = \frac{1}{3} - \frac{(k \cdot \hat b)^2}{|k|^2} \;\;(\text{kspace})

    with d the field of one voxel, :func:`cuboid_field`, and :math:`\hat b` the direction of B0. ``"exact"`` is the
    closed-form field of one uniformly magnetised rectangular voxel, sampled at the voxel centres and transformed: on a
    grid of twice the size, any object made of voxels has its exact field, for all B0 directions and voxel sizes.
    ``"kspace"`` is the usual one, which is exact for neither.

    The result is cached: do not modify it in place.

    Args:
        shape: the grid (X, Y, Z).
        voxel_size: (dx, dy, dz) [mm].
        b0_direction: unit vector along the axes of the array.
        kind: ``"exact"`` or ``"kspace"``.
        zero_frequency: value at k = 0. None leaves 0 for ``"kspace"`` (mean field of zero, Lorentz-corrected) and the
            sum over the sampled kernel for ``"exact"``, where it is no convention but part of the field in free space.
        dtype: float32 or float64. The exact kernel is computed in float64 in any case.
        device: of the result.

    Returns:
        Kernel ``[X, Y, Z // 2 + 1]``, without unit: field [ppm] per susceptibility [ppm].

    Raises:
        ValueError: if the shape is not 3 positive numbers, for a bad geometry, an unknown kind or dtype.

    Source: Salomir et al., Concepts Magn Reson B 19:26 (2003), and Marques and Bowtell, Concepts Magn Reson B 25:65
    (2005) for ``"kspace"``; Newell et al., J Geophys Res 98:9551 (1993) for the voxel.
    """
    grid = tuple(int(n) for n in shape)
    if len(grid) != 3 or min(grid) < 1:
        raise ValueError(f"shape must be 3 positive numbers (X, Y, Z), got {tuple(shape)}")
    sizes, b0 = check_geometry(voxel_size, b0_direction)
    check_kernel_kind(kind)
    if dtype not in (torch.float32, torch.float64):
        raise ValueError(f"dtype must be float32 or float64, got {dtype}")
    if zero_frequency is not None and not math.isfinite(zero_frequency):
        raise ValueError(f"zero_frequency must be finite or None, got {zero_frequency}")
    place = torch.device("cpu" if device is None else device)
    return _cached_kernel(grid, sizes, b0, kind, zero_frequency, dtype, place)


def _convolve(
    volume: Tensor,
    name: str,
    voxel_size: Sequence[float] | Tensor,
    b0_direction: Sequence[float] | Tensor,
    kind: str,
    padding: float,
) -> Tensor:
    if volume.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"{name} must be float32 or float64, got {volume.dtype}")
    grid = fast_shape(volume.shape, padding)
    kernel = dipole_kernel(grid, voxel_size, b0_direction, kind, dtype=volume.dtype, device=volume.device)
    spectrum = torch.fft.rfftn(volume, s=grid, dim=(-3, -2, -1)) * kernel
    full = torch.fft.irfftn(spectrum, s=grid, dim=(-3, -2, -1))
    x, y, z = volume.shape[-3:]
    return full[..., :x, :y, :z]


def field_from_susceptibility(
    chi: Tensor,
    voxel_size: Sequence[float] | Tensor,
    b0_direction: Sequence[float] | Tensor = (0.0, 0.0, 1.0),
    kind: str = "exact",
    padding: float = 2.0,
) -> Tensor:
    r"""Relative change of B0 that a susceptibility distribution makes, positive where the field is stronger.

    .. math:: \delta B / B_0 = d * \chi = \mathcal{F}^{-1} \left\{ D \, \mathcal{F} \chi \right\}

    with D of :func:`dipole_kernel`, field and susceptibility in ppm. With the exact kernel and a padding of 2 it is the
    field in free space, without wrap-around and to rounding. Susceptibility outside the array counts as 0.
    Differentiable.

    Args:
        chi: susceptibility ``[..., X, Y, Z]`` [ppm], float32 or float64.
        voxel_size: (dx, dy, dz) [mm].
        b0_direction: unit vector along the axes of the array.
        kind: ``"exact"`` or ``"kspace"``, see :func:`dipole_kernel`.
        padding: the grid of the convolution over that of chi, at least 1 (periodic).

    Returns:
        Field ``[..., X, Y, Z]`` [ppm], Lorentz-corrected.

    Raises:
        ValueError: for fewer than 3 axes, another dtype, a bad geometry, kind or padding.

    Source: Marques and Bowtell, Concepts Magn Reson B 25:65 (2005).
    """
    return _convolve(chi, "chi", voxel_size, b0_direction, kind, padding)


def susceptibility_adjoint(
    field: Tensor,
    voxel_size: Sequence[float] | Tensor,
    b0_direction: Sequence[float] | Tensor = (0.0, 0.0, 1.0),
    kind: str = "exact",
    padding: float = 2.0,
) -> Tensor:
    r"""Adjoint of :func:`field_from_susceptibility`, field ``[..., X, Y, Z]`` to susceptibility of the same shape.

    .. math:: \langle d * \chi, b \rangle = \langle \chi, d * b \rangle

    The kernel is real and even, so padding, convolution and cropping are their own adjoint. Source: that of
    :func:`field_from_susceptibility`.

    Raises:
        ValueError: as :func:`field_from_susceptibility`.
    """
    return _convolve(field, "field", voxel_size, b0_direction, kind, padding)
