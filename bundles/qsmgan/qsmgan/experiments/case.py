"""A head, and what the methods are given of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import avg_pool3d

from physics.dipole import field_from_susceptibility
from shared_transforms.anatomy import split_generator

from ..start import demeaned

Triple = tuple[float, float, float]
ALONG_Z: Triple = (0.0, 0.0, 1.0)


@dataclass(frozen=True)
class Case:
    """An acquisition. Volumes are ``[X, Y, Z]``.

    Attributes:
        field: local field with its noise [ppm], 0 outside the mask.
        magnitude: in any unit, 0 outside the mask; all 0 if there is none.
        mask: where the field is known, bool.
        truth: susceptibility [ppm], mean 0 over the mask, 0 outside; of measured data all 0.
        voxel_size: [mm].
        b0_direction: unit vector in voxel axes.
        noise: standard deviation of the field [ppm] where the magnitude has its mean.
        regions: masks of structures by name.
        turned: fields [ppm] of the same head in several orientations and their B0 directions.
    """

    field: Tensor
    magnitude: Tensor
    mask: Tensor
    truth: Tensor
    voxel_size: Triple = (1.0, 1.0, 1.0)
    b0_direction: Triple = ALONG_Z
    noise: float = 0.0
    regions: Mapping[str, Tensor] = dataclasses.field(default_factory=dict)
    turned: tuple[tuple[Tensor, Triple], ...] = ()


@dataclass(frozen=True)
class Head:
    """A head before it is measured. Volumes are ``[X, Y, Z]``.

    Attributes:
        chi: susceptibility [ppm], mean 0 over the mask, 0 outside.
        magnitude: relative to its mean over the mask, 0 outside.
        spread: noise of the field relative to that where the magnitude has its mean.
        mask: where the field is known, bool.
        brain: where the brain is, bool.
        voxel_size: [mm].
        regions: masks of structures by name.
    """

    chi: Tensor
    magnitude: Tensor
    spread: Tensor
    mask: Tensor
    brain: Tensor
    voxel_size: Triple = (1.0, 1.0, 1.0)
    regions: Mapping[str, Tensor] = dataclasses.field(default_factory=dict)

    def local_field(self, b0_direction: Triple = ALONG_Z) -> Tensor:
        """Noise-free field [ppm] of the sources inside the mask; 0 outside."""
        return field_from_susceptibility(self.chi, self.voxel_size, b0_direction) * self.mask

    def noise(self, seed: int, number: int = 0) -> Tensor:
        """Noise of the field, 1 where the magnitude has its mean and more where it is low."""
        generator = split_generator(seed, number, split="test")
        return torch.randn(self.chi.shape, generator=generator).to(self.chi) * self.spread * self.mask

    def measure(
        self,
        noise: float,
        seed: int = 0,
        b0_direction: Triple = ALONG_Z,
        orientations: Sequence[Triple] = (),
        field: Tensor | None = None,
    ) -> Case:
        """An acquisition; its noise at two levels differs by a factor alone.

        Args:
            noise: standard deviation of the field [ppm] where the magnitude has its mean.
            seed: of the noise.
            b0_direction: unit vector in voxel axes.
            orientations: B0 directions of :attr:`Case.turned`, each with noise of its own.
            field: noise-free field [ppm] where it is known already.
        """
        clean = self.local_field(b0_direction) if field is None else field * self.mask
        turned = tuple(
            (self.local_field(b0) + noise * self.noise(seed, 1 + number), b0) for number, b0 in enumerate(orientations)
        )
        return Case(
            clean + noise * self.noise(seed), self.magnitude, self.mask, self.chi, self.voxel_size, b0_direction,
            noise, self.regions, turned,
        )  # fmt: skip

    def inside(self, mask: Tensor) -> Head:
        """The same head seen through a smaller mask: what lies outside of it makes no field."""
        mask = mask & self.mask
        return replace(self, chi=demeaned(self.chi, mask), magnitude=self.magnitude * mask, mask=mask)

    def cut(self, margin: int = 4, multiple: int = 2) -> Head:
        """Only the box of the mask with a margin [voxels], its sides multiples of a number."""
        box = []
        for axis, size in enumerate(self.mask.shape):
            others = [other for other in range(3) if other != axis]
            places = self.mask.any(dim=others[1]).any(dim=others[0]).nonzero()
            first, last = max(0, int(places.min()) - margin), min(size, int(places.max()) + 1 + margin)
            box.append(slice(first, last - (last - first) % multiple))
        return self._changed(lambda volume: volume[tuple(box)].contiguous())

    def coarser(self, factors: tuple[int, int, int]) -> Head:
        """The same head with larger voxels, means over some small ones along each axis."""
        x, y, z = (size * factor for size, factor in zip(self.voxel_size, factors, strict=True))
        large = replace(self._changed(lambda volume: means(volume, factors)), voxel_size=(x, y, z))
        return large.inside(large.mask)

    def _changed(self, change: Callable[[Tensor], Tensor]) -> Head:
        regions = {name: change(region) for name, region in self.regions.items()}
        volumes = (self.chi, self.magnitude, self.spread, self.mask, self.brain)
        chi, magnitude, spread, mask, brain = (change(volume) for volume in volumes)
        return Head(chi, magnitude, spread, mask, brain, self.voxel_size, regions)


def means(volume: Tensor, factors: tuple[int, int, int]) -> Tensor:
    """Means over some voxels along each axis; of a mask, whether it holds for more than half of them."""
    pooled = avg_pool3d(volume.float()[None, None], factors)[0, 0]
    return pooled > 0.5 if volume.dtype == torch.bool else pooled
