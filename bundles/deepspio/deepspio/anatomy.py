"""Images of the proton density that iron particles distort: heads, containers of agar, breasts.

`ProtonDensity.draw` draws the numbers on the CPU, `ProtonDensity.images` makes the images on the device. The paper
takes slices of the IXI data set for training and breasts for its experiment 2 (sections 3.2 and 5).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from shared_transforms.anatomy import (
    TISSUES,
    Head,
    SliceParameters,
    draw_slices,
    load_head,
    sample_slices,
    smooth_field,
    split_seed,
)
from shared_transforms.errors import QMRIError

from .bodies import CONTRAST, Breasts, Containers, draw_breasts, draw_containers
from .volumes import draw_file, volume_head

SOURCES = ("mni152", "uniform", "breast")
SHARES = {"mni152": 0.8, "uniform": 0.2}
FIELD_MM = (185.0, 225.0)  # of a head that fills the image; the image itself has another scale, as in the paper
SHADING = 0.1  # largest share of the signal that the coil takes away somewhere
TEXTURE = 0.03  # standard deviation of the variation within the tissues of a head
# Proton density relative to fluid; bone has next to none (BrainWeb: Kwan et al., IEEE Trans Med Imaging 18:1085, 1999).
_GROUPS = {
    "fluid": (1.0, ("csf",)),
    "grey": (0.86, ("gm",)),
    "white": (0.77, ("wm",)),
    "fat": (1.0, ("fat", "marrow")),
    "lean": (1.0, ("muscle", "muscle_skin", "vessels")),
}
_WHOLE = 1.0 + CONTRAST  # the brightest tissue there can be has the density 1

T = TypeVar("T")


@dataclass(frozen=True)
class Drawn:
    """Everything random about n images; all on the CPU.

    Attributes:
        kind: index ``[n]`` into `SOURCES`.
        slices: of heads, one for each image; None where no image can be a head.
        file: volume of a user's folder that is cut, None for the template.
        transposed: whether the axes of a head are exchanged ``[n]``.
        contrast: factor of each tissue ``[n, 5]`` of the heads.
        containers: one for each image.
        breasts: one for each image.
        shading: share of the signal ``[n]`` that is lost where the coil sees the least.
        seed: of the smooth fields.
    """

    kind: Tensor
    slices: SliceParameters | None
    file: str | None
    transposed: Tensor
    contrast: Tensor
    containers: Containers
    breasts: Breasts
    shading: Tensor
    seed: int

    def __len__(self) -> int:
        """Number of images."""
        return len(self.kind)


@lru_cache(maxsize=2)
def _grouped(head: Head) -> Head:
    """Fractions of the five groups of tissues, those of a voxel side by side: five times as fast to sample."""
    groups = [head.fractions[[TISSUES.index(name) for name in names]].sum(0) for _, names in _GROUPS.values()]
    packed = torch.stack(groups)[None].contiguous(memory_format=torch.channels_last_3d)[0]
    return Head(packed, head.voxel_size_mm, head.name)


def _rows(drawn: T, rows: Tensor, device: torch.device) -> T:
    """A dataclass of tensors with these rows alone, on the device."""
    values: dict[str, Any] = {item.name: getattr(drawn, item.name) for item in fields(drawn)}  # type: ignore[arg-type]
    return type(drawn)(**{k: v[rows].to(device) if isinstance(v, Tensor) else v for k, v in values.items()})


class ProtonDensity:
    """Draws and makes images of the proton density.

    Args:
        size: pixels of the image, one number or (X, Z).
        device: where the images are made.
        shares: of the `SOURCES` among the images: deformed slices of the MNI152 template, containers of agar, generated
            breasts (not for training: experiment 2 tests on them). They are divided by their sum.
        folder: proton density volumes, `*.nii` or `*.nii.gz` (IXI), that take the place of the template. From ten
            files on, every ninth of ten is kept for validation and every tenth for the test; all images of one draw
            come from one file.

    Raises:
        QMRIError: where a source is unknown, the shares or the size are unusable, or the folder holds no image.
    """

    def __init__(
        self,
        size: int | Sequence[int] = 256,
        device: torch.device | str = "cpu",
        shares: Mapping[str, float] | None = None,
        folder: str | Path | None = None,
    ) -> None:
        sides = (size, size) if isinstance(size, int) else tuple(size)
        if len(sides) != 2 or min(sides) < 8:
            raise QMRIError(
                field="size", found=size, expected="one or two numbers of pixels, at least 8", remedy="give (X, Z)"
            )
        self.size = (int(sides[0]), int(sides[1]))
        self.device = torch.device(device)
        self.shares = _checked(SHARES if shares is None else shares)
        self.folder = None if folder is None else Path(folder)
        self._template: Head | None = None
        if self.folder is not None:
            draw_file(torch.Generator(), self.folder, "train")  # raises where there is none
        elif self.shares[0] > 0:
            self._template = load_head()
            self._sampled = _grouped(self._template).to(self.device)

    def draw(self, generator: torch.Generator, n: int, split: str = "train") -> Drawn:
        """Draw n images.

        One number is taken from the generator and hashed with the split: one generator gives the splits different
        streams, whatever its seed.

        Args:
            generator: random stream on the CPU.
            n: number of images.
            split: ``"train"``, ``"val"`` or ``"test"``.

        Returns:
            The numbers, on the CPU.

        Raises:
            QMRIError: where the split is unknown or a file of the folder is unusable.
        """
        number = int(torch.randint(2**62, (), generator=generator))
        stream = torch.Generator().manual_seed(split_seed(number, split=split))

        def uniform(*shape: int) -> Tensor:
            return torch.rand(shape, generator=stream)

        kind = torch.multinomial(self.shares.expand(max(n, 1), -1), 1, generator=stream)[:n, 0]
        file, head = None, self._template
        if self.folder is not None and bool((kind == 0).any()):
            file = draw_file(stream, self.folder, split)
            head = volume_head(file)
        slices = None
        if head is not None:
            pixel = (FIELD_MM[0] / max(self.size), FIELD_MM[1] / max(self.size))
            slices = draw_slices(stream, n, size=self.size, split=split, pixel_mm=pixel, whole_slice=True, head=head)
        square = self.size[0] == self.size[1]
        return Drawn(
            kind=kind,
            slices=slices,
            file=file,
            transposed=(uniform(n) < 0.5) & square,
            contrast=1.0 + CONTRAST * (2.0 * uniform(n, len(_GROUPS)) - 1.0),
            containers=draw_containers(stream, n),
            breasts=draw_breasts(stream, n),
            shading=SHADING * uniform(n),
            seed=int(torch.randint(2**62, (), generator=stream)),
        )

    def images(self, drawn: Drawn) -> Tensor:
        """Make the images that belong to a draw.

        Args:
            drawn: n images.

        Returns:
            Proton density ``[n, X, Z]`` in [0, 1], float32, on the device.

        Raises:
            ValueError: where heads are wanted that were not drawn.
        """
        generator = torch.Generator(self.device).manual_seed(drawn.seed)
        images = torch.zeros((len(drawn), *self.size), device=self.device)
        makers = (self._heads, self._containers, self._breasts)
        for kind, make in enumerate(makers):
            rows = (drawn.kind == kind).nonzero()[:, 0]
            if len(rows):
                images[rows.to(self.device)] = make(drawn, rows, generator)
        shade = smooth_field(generator, len(drawn), self.size, 0.6 * max(self.size))
        low, high = shade.amin((1, 2), keepdim=True), shade.amax((1, 2), keepdim=True)
        lost = drawn.shading.to(images)[:, None, None] * (shade - low) / (high - low)
        return (images * (1.0 - lost)).clamp_(0.0, 1.0)

    def _heads(self, drawn: Drawn, rows: Tensor, generator: torch.Generator) -> Tensor:
        """Slices through heads: groups of tissues times their density, or the intensities of a volume."""
        if drawn.slices is None:
            raise ValueError("drawn must come from an anatomy that has heads, got one without slices")
        slices = _rows(drawn.slices, rows, self.device)
        if drawn.file is not None:
            density = sample_slices(volume_head(drawn.file).to(self.device), slices)[:, 0]
        else:
            weights = torch.tensor([group[0] for group in _GROUPS.values()]) * drawn.contrast[rows] / _WHOLE
            density = torch.einsum("ng,ngxz->nxz", weights.to(self.device), sample_slices(self._sampled, slices))
            density *= 1.0 + TEXTURE * smooth_field(generator, len(rows), self.size, max(self.size) / 32)
        turned = drawn.transposed[rows].to(self.device)[:, None, None]
        return torch.where(turned, density.mT, density) if bool(drawn.transposed[rows].any()) else density

    def _containers(self, drawn: Drawn, rows: Tensor, generator: torch.Generator) -> Tensor:
        return _rows(drawn.containers, rows, self.device).images(self.size)

    def _breasts(self, drawn: Drawn, rows: Tensor, generator: torch.Generator) -> Tensor:
        return _rows(drawn.breasts, rows, self.device).images(self.size, generator) / _WHOLE


def _checked(shares: Mapping[str, float]) -> Tensor:
    """Shares of the `SOURCES`, checked."""
    values = torch.tensor([float(shares.get(name, 0.0)) for name in SOURCES])
    if set(shares) - set(SOURCES) or not bool((values >= 0).all()) or not 0 < float(values.sum()) < float("inf"):
        raise QMRIError(
            field="shares",
            found=dict(shares),
            expected=f"numbers >= 0 of some of {SOURCES}, not all 0",
            remedy="correct the names or the numbers",
        )
    return values
