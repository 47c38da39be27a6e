"""Random streams that never meet, and smooth random fields made of cubic B-splines."""

import hashlib

import torch
from torch import Tensor

from shared_transforms.errors import QMRIError

SPLITS: tuple[str, ...] = ("train", "val", "test")


def split_seed(seed: int, epoch: int = 0, index: int = 0, rank: int = 0, split: str = "train") -> int:
    """Hash (seed, epoch, index, rank, split) to a 63-bit seed.

    The two lowest bits are the number of the split: seeds of different splits can never be equal, not even on CPU,
    where PyTorch's Mersenne twister takes only the lowest 32 bits of a seed.

    Args:
        seed: seed of the experiment.
        epoch: epoch number.
        index: number of the sample (or batch) in the epoch.
        rank: process number.
        split: one of `SPLITS`.

    Returns:
        A whole number in [0, 2**63).

    Raises:
        QMRIError: where the split is unknown.
    """
    if split not in SPLITS:
        raise QMRIError(field="split", found=repr(split), expected=f"one of {SPLITS}", remedy="correct the name")
    text = f"{seed}/{epoch}/{index}/{rank}/{split}".encode()
    digest = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")
    return ((digest << 2) & (2**63 - 1)) | SPLITS.index(split)


def split_generator(
    seed: int, epoch: int = 0, index: int = 0, rank: int = 0, split: str = "train", device: torch.device | str = "cpu"
) -> torch.Generator:
    """Random generator of one sample: the same arguments give the same stream in any process.

    Args:
        seed: seed of the experiment.
        epoch: epoch number.
        index: number of the sample (or batch) in the epoch.
        rank: process number.
        split: one of `SPLITS`; different splits never share a seed (see `split_seed`).
        device: device of the generator.

    Returns:
        A seeded generator.
    """
    return torch.Generator(device).manual_seed(split_seed(seed, epoch, index, rank, split))


def spline_weights(position: Tensor, n_controls: int) -> Tensor:
    """Weights of uniform cubic B-splines; they are >= 0 and sum to 1, so a field never exceeds its control values.

    Args:
        position: [...] in units of the control spacing, 0 at the first control point. Held inside [1, n_controls - 2],
            where four control points surround a position.
        n_controls: number of control points, at least 4.

    Returns:
        Weights [..., n_controls].
    """
    position = position.clamp(1.0, n_controls - 2.0).unsqueeze(-1)
    distance = (position - torch.arange(n_controls, device=position.device, dtype=position.dtype)).abs()
    near = 2.0 / 3.0 - distance**2 * (1.0 - distance / 2.0)
    far = (2.0 - distance).clamp_min(0.0) ** 3 / 6.0
    return torch.where(distance < 1.0, near, far)


def smooth_field(
    generator: torch.Generator,
    n: int,
    size: tuple[int, int],
    length_px: float,
    device: torch.device | str | None = None,
) -> Tensor:
    """Smooth random fields, each with mean 0 and standard deviation 1 over its pixels.

    Normal control values on a grid of spacing `length_px`, shifted at random and interpolated by cubic B-splines.

    Args:
        generator: random generator; the numbers are drawn on its device.
        n: number of fields.
        size: (H, W) in pixels.
        length_px: control spacing in pixels; about the distance over which a field changes sign.
        device: device of the result, by default the generator's.

    Returns:
        Fields [n, H, W], float32.

    Raises:
        QMRIError: where length_px is not positive.
    """
    if not length_px > 0:
        raise QMRIError(field="length_px", found=length_px, expected="a length > 0 px", remedy="give it in pixels")
    source = generator.device
    counts = [int((pixels - 1) / length_px) + 5 for pixels in size]
    controls = torch.randn(n, counts[0], counts[1], generator=generator, device=source)
    shift = torch.rand(n, 2, 1, generator=generator, device=source)
    rows, columns = (
        spline_weights(1.0 + shift[:, k] + torch.arange(size[k], device=source) / length_px, counts[k]) for k in (0, 1)
    )
    field = torch.einsum("nhi,nij,nwj->nhw", rows, controls, columns)
    field = field - field.mean(dim=(1, 2), keepdim=True)
    deviation = field.std(dim=(1, 2), keepdim=True, correction=0).clamp_min(1e-12)
    return (field / deviation).to(device or source)


def smooth_volume(generator: torch.Generator, n: int, size: tuple[int, int, int], length_px: float) -> Tensor:
    """Smooth random volumes, each with mean 0 and standard deviation 1; `smooth_field` in three dimensions.

    Args:
        generator: random generator, on the device of the result.
        n: number of volumes.
        size: (X, Y, Z) in voxels.
        length_px: control spacing in voxels.

    Returns:
        Volumes [n, X, Y, Z], float32.

    Raises:
        QMRIError: where length_px is not positive.
    """
    if not length_px > 0:
        raise QMRIError(field="length_px", found=length_px, expected="a length > 0 px", remedy="give it in voxels")
    device = generator.device
    counts = [int((voxels - 1) / length_px) + 5 for voxels in size]
    volume = torch.randn((n, *counts), generator=generator, device=device)
    shift = torch.rand((3, n, 1), generator=generator, device=device)
    for k in (2, 1, 0):  # the contiguous axis first: the others are multiplied from the left
        weights = spline_weights(1.0 + shift[k] + torch.arange(size[k], device=device) / length_px, counts[k])
        volume = torch.einsum(("nxyz,ncz->nxyc", "nxyz,ncy->nxcz", "nxyz,ncx->ncyz")[2 - k], volume, weights)
    volume = volume - volume.mean(dim=(1, 2, 3), keepdim=True)
    return volume / volume.std(dim=(1, 2, 3), keepdim=True, correction=0).clamp_min(1e-12)
