"""Orthonormal two-dimensional wavelet transform, Daubechies 4, one level, periodic.

Daubechies, Orthonormal bases of compactly supported wavelets, Comm. Pure Appl. Math. 41 (1988), table 1, N = 4: eight
taps. The transform is orthonormal, so its adjoint is its inverse: analysis is a strided convolution of the periodically
continued image, synthesis the transposed convolution with the same kernels.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, conv_transpose2d

__all__ = ["CHANNELS", "LOW_PASS", "WaveletTransform", "analysis", "check_images", "synthesis", "wavelet_kernels"]

# Approximation; differences along X, along Z, along both.
CHANNELS = ("cA", "cH", "cV", "cD")
# The table has 12 digits; these have those of float64.
LOW_PASS = (
    0.2303778133088965,
    0.7148465705529157,
    0.6308807679298589,
    -0.027983769416859854,
    -0.18703481171909309,
    0.030841381835560764,
    0.0328830116668852,
    -0.010597401785069032,
)


def wavelet_kernels(dtype: torch.dtype = torch.float32, device: torch.device | str | None = None) -> Tensor:
    """Kernels of the four channels ``[4, 1, 8, 8]``, in the order of :data:`CHANNELS`."""
    low = torch.tensor(LOW_PASS, dtype=torch.float64)
    high = low.flip(0) * torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(4)
    pairs = ((low, low), (high, low), (low, high), (high, high))
    return torch.stack([torch.outer(x, z) for x, z in pairs])[:, None].to(device=device, dtype=dtype)


def analysis(images: Tensor) -> Tensor:
    """Wavelet coefficients, as ``pywt.dwt2(images, "db4", mode="periodization")`` gives them.

    Args:
        images: ``[B, 1, X, Z]``, X and Z even, at least 4.

    Returns:
        ``[B, 4, X/2, Z/2]``, in the order of :data:`CHANNELS`.

    Raises:
        ValueError: for more than one channel, or sides that are odd or too small.
    """
    return _analyse(images, wavelet_kernels(images.dtype, images.device))


def synthesis(coefficients: Tensor) -> Tensor:
    """Images of wavelet coefficients, the inverse and the adjoint of :func:`analysis`.

    Args:
        coefficients: ``[B, 4, X/2, Z/2]``, sides at least 2.

    Returns:
        ``[B, 1, X, Z]``.

    Raises:
        ValueError: for other than four channels, or sides that are too small.
    """
    return _synthesise(coefficients, wavelet_kernels(coefficients.dtype, coefficients.device))


class WaveletTransform(nn.Module):
    """The transform with its kernels as a buffer: moves with a network, and exports with it.

    It works in the precision of its kernels, under autocast too.
    """

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("kernels", wavelet_kernels(), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Coefficients of images, see :func:`analysis`."""
        kernels = torch.jit.annotate(Tensor, self.kernels)  # TorchScript reads no annotation of the class
        return _analyse(images.to(kernels.dtype), kernels)

    def synthesis(self, coefficients: Tensor) -> Tensor:
        """Images of coefficients, see :func:`synthesis`."""
        kernels = torch.jit.annotate(Tensor, self.kernels)
        return _synthesise(coefficients.to(kernels.dtype), kernels)


def check_images(name: str, images: Tensor, channels: int, smallest: int, multiple: int) -> None:
    """Check images; silent while a graph is recorded, whose shapes are no numbers.

    Args:
        name: what the message calls them.
        images: ``[B, channels, X, Z]``.
        channels: how many there must be.
        smallest: side.
        multiple: of which the sides must be.

    Raises:
        ValueError: for another shape.
    """
    if torch.jit.is_tracing() or torch.compiler.is_compiling():  # type: ignore[attr-defined]
        return
    wrong = images.ndim != 4 or images.shape[1] != channels
    if wrong or any(side < smallest or side % multiple for side in images.shape[2:]):
        sides = f"multiples of {multiple}, " if multiple > 1 else ""
        raise ValueError(
            f"{name} must be [B, {channels}, X, Z], X and Z {sides}at least {smallest}, got {tuple(images.shape)}"
        )


def _analyse(images: Tensor, kernels: Tensor) -> Tensor:
    pad = kernels.shape[2] // 2 - 1
    if torch.jit.is_scripting():  # type: ignore[attr-defined]
        coefficients = conv2d(_continue(images, pad), kernels, stride=2)
    else:
        check_images("images", images, channels=1, smallest=4, multiple=2)
        with _full_precision(images.device.type):
            coefficients = conv2d(_continue(images, pad), kernels, stride=2)
    return coefficients


def _synthesise(coefficients: Tensor, kernels: Tensor) -> Tensor:
    taps = kernels.shape[2]
    pad, cut = taps // 4, taps - 1  # what a coefficient reaches; its share of the output, and the filter's tail
    if torch.jit.is_scripting():  # type: ignore[attr-defined]
        images = conv_transpose2d(_continue(coefficients, pad), kernels, stride=2, padding=cut)
    else:
        check_images("coefficients", coefficients, channels=4, smallest=2, multiple=1)
        with _full_precision(coefficients.device.type):
            images = conv_transpose2d(_continue(coefficients, pad), kernels, stride=2, padding=cut)
    return images


def _continue(images: Tensor, pad: int) -> Tensor:
    """Periodic continuation of the last two axes; of slices, which every exporter knows."""
    x, z = images.shape[2], images.shape[3]
    images = torch.cat([images[:, :, x - pad :], images, images[:, :, :pad]], 2)
    return torch.cat([images[:, :, :, z - pad :], images, images[:, :, :, :pad]], 3)


def _full_precision(device: str) -> AbstractContextManager[object]:
    """Autocast, where it is on, would round coefficients to eight bits."""
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()
