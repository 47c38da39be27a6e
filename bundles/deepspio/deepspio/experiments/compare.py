"""Every method on the same images: maps, and rows of a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor
from tqdm import tqdm

from shared_transforms.experiments import Row

from .bench import Bench
from .methods import Method
from .scenes import Scenes
from .scores import mean_of, mean_row, nmae

FEW = 16  # images for which a bar would be noise


def estimates(bench: Bench, methods: Sequence[Method], scenes: Scenes, slow: int | None = None) -> dict[str, Tensor]:
    """Maps ``[n, 1, X, Z]`` of every method.

    Args:
        bench: for its cache.
        methods: the methods.
        scenes: the images.
        slow: how many of these, the first ones, the methods see that take seconds for an image; None for all.
    """
    return {
        method.name: bench.estimate(method, scenes.image[: slow if method.slow else None])
        for method in tqdm(methods, "methods", leave=False, disable=len(scenes) < FEW)
    }


def errors(maps: Mapping[str, Tensor], scenes: Scenes) -> dict[str, Tensor]:
    """NMAE of every method in the images that it has seen ``[n]``."""
    return {name: nmae(values, scenes.truth[: len(values)]) for name, values in maps.items()}


def table(bench: Bench, found: Mapping[str, Tensor], place: Row) -> list[Row]:
    """A row for each method: mean over its images, SD and interval, median, and the mean over the shared images.

    Args:
        bench: for its seed.
        found: NMAE of the images by method.
        place: columns that say which images they are.
    """
    shared = min((len(values) for values in found.values()), default=0)
    return [
        {
            **place, "method": name, **mean_row(values, bench.seed), "nmae_median": float(values.median()),
            "images_shared": shared, "nmae_shared": mean_of(values[:shared]).value, "paper": None,
        }
        for name, values in found.items()
    ]  # fmt: skip
