"""Classical estimators with the call signature of the network, so that one overlay swaps them in.

Neither knows where the particles are, nor what they look like across the plane. Each has a method that is told:
``known_geometry``, a bound for what the lines alone can say.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from physics.viewline import ViewLineSequence, folded_plane_field, view_line_image

from .dipole_fit import fit_concentrations, fit_displacements
from .line_tracking import FieldSamples, field_samples, track_lines
from .particle_support import calmed, compacted, dark_bodies, moved, resized, separate_bodies
from .resimulation import lift, noise_floor, reference_signal

__all__ = ["AnalysisBySynthesis", "CentreLine", "ZeroMap"]

_COMPACT = (0.0, 0.7, 0.9)  # shares of the thickness, see compacted
_CHANGES = (0.0, -0.2, -0.4, -0.6, -0.8, -1.2)  # of the edges of the bodies [mm]
_STEP = 1.0  # a body moves no further than this at once, along an axis [mm]
_STEPS = 3
_AS_GOOD = 1.1  # times the smallest misfit, up to which a larger body is preferred
_MOST = 8  # bodies, the largest
_NEEDED = 1.02  # times the misfit with a body, up to which it is given up
_MARGIN = 8.0  # columns this far from all bodies say nothing about their shape [mm]
_PADDING = 1.5  # of the field: exact up to the side of the image
_FREE_GRID = 16  # concentrations, evenly spaced in their logarithm


class ZeroMap(nn.Module):
    """No particles anywhere: its normalised absolute error is 1 for every image. The trivial answer of every table."""

    def forward(self, image: Tensor) -> Tensor:
        """Zeros ``[B, 1, X, Z]`` [ug/mm^3] for an image ``[B, 2, X, Z]``."""
        return torch.zeros_like(_plain(image)[:, :1])


@dataclass
class _Scene:
    """What is known about one image before any body is tried."""

    image: Tensor  # [2, X, Z]
    noise: float
    samples: FieldSamples
    dark: Tensor  # [X, Z]
    blocked: Tensor  # [X, Z], without samples of the field
    reference: Tensor  # [X, Z]
    columns: slice  # of X, near the bodies
    unavoidable: float  # misfit in these columns that noise alone makes


@dataclass
class _Candidate:
    """Bodies and what they explain."""

    bodies: Tensor  # [K, X, Z]
    concentration: Tensor  # [K]
    misfit: float
    area: int


class CentreLine(nn.Module):
    """Centre lines, their displacement, and the dipoles that explain it; the bodies are found in the image.

    1. Lines are followed from the borders inwards; their displacement is the field at points of the tissue.
    2. Tissue whose lines lack signal is dark; bodies are what fits into it: without its thin parts or with them, moved
       to where their field explains the samples better, and smaller by a few pixels.
    3. One concentration for each body, by least squares on the samples outside of the dark.
    4. The image is simulated for each choice of bodies. Outside of a round body the field depends on its moment alone,
       so that small and strong ones explain nearly what large and weak ones do: of the choices that explain the image
       nearly as well as the best one, the largest bodies are taken.

    Args:
        sequence: of the image.
        pixel_size: (dx, dz) [mm].
        mass_magnetisation: of the particles [A m^2/kg].
        thickness_mm: of the bodies along y; None for round ones.
        highest: no more than this is believed [ug/mm^3]; the default is undiluted ferucarbotran.

    Raises:
        ValueError: for a sequence whose lines stay straight in every field, or a value that is out of its range.
    """

    def __init__(
        self,
        sequence: ViewLineSequence,
        pixel_size: Sequence[float],
        mass_magnetisation: float = 93.0,
        thickness_mm: float | None = None,
        highest: float = 27.9,
    ) -> None:
        super().__init__()
        if not (math.isfinite(highest) and highest > 0):
            raise ValueError(f"highest must be positive and finite [ug/mm^3], got {highest}")
        self.sequence, self.mass_magnetisation, self.thickness_mm = sequence, mass_magnetisation, thickness_mm
        self.pixel_size, self.highest = (float(pixel_size[0]), float(pixel_size[1])), highest

    @torch.no_grad()
    def forward(self, image: Tensor) -> Tensor:
        """Concentration ``[B, 1, X, Z]`` [ug/mm^3] of an image ``[B, 2, X, Z]`` of any scale."""
        plain = _plain(image)
        return torch.stack([self._one(self._scene(one)) for one in plain])[:, None]

    @torch.no_grad()
    def known_geometry(self, image: Tensor, planes: Tensor, reference: Tensor | None = None) -> Tensor:
        """Concentration of bodies whose geometry is known (a bound, not an estimator).

        Args:
            image: ``[B, 2, X, Z]``.
            planes: folded planes of the bodies at 1 ug/mm^3 ``[B, H + 1, X, Z]``, see
                :func:`physics.viewline.folded_plane_field`.
            reference: signal without iron ``[B, X, Z]``, where that is known as well.

        Returns:
            One concentration for each image ``[B]`` [ug/mm^3].
        """
        results = []
        for number, (one, geometry) in enumerate(zip(_plain(image), planes, strict=True)):
            scene = self._scene(one, geometry[0] > 0)
            if reference is not None:
                scene.reference = reference[number]
            results.append(self._concentrations(scene, geometry[:1], self._field(geometry)[None])[0])
        return torch.stack(results).to(planes)

    def _scene(self, image: Tensor, inside: Tensor | None = None) -> _Scene:
        """Samples, dark parts and reference signal of one image; ``inside`` takes the place of the dark if given."""
        tracks = track_lines(image[None], self.sequence, self.pixel_size)
        if inside is None:
            reference = reference_signal(image, self.sequence, self.pixel_size)
            inside = dark_bodies(tracks, reference, self.sequence, self.pixel_size)
        blocked = resized(inside, 2.0 * max(self.pixel_size), self.pixel_size)
        rows = inside.any(-1).nonzero()
        margin = round(_MARGIN / self.pixel_size[0])
        near = slice(max(int(rows.min()) - margin, 0), int(rows.max()) + margin + 1) if len(rows) else slice(0, 0)
        reference = reference_signal(image, self.sequence, self.pixel_size, inside)
        variance = float(noise_floor(image, self.sequence)) ** 2
        power = (image[:, near].double().square() - 2.0 * variance).clamp_min(0.0)
        # The variance of a magnitude is 0.43 of that of a component without signal, and all of it with much signal.
        share = 0.43 + 0.57 * power / (power + variance + 1e-30)
        return _Scene(
            image=image, noise=variance**0.5, samples=field_samples(tracks, self.sequence), dark=inside,
            blocked=blocked, reference=calmed(reference, inside, self.pixel_size), columns=near,
            unavoidable=float(variance * share.sum()),
        )  # fmt: skip

    def _one(self, scene: _Scene) -> Tensor:
        """Map ``[X, Z]`` of one image."""
        found = [c for c in self._candidates(scene) if float(c.concentration.max()) <= self.highest]
        if not found:
            return torch.zeros_like(scene.image[0])
        excess = [max(c.misfit - scene.unavoidable, 0.05 * c.misfit) for c in found]
        good = [c for c, misfit in zip(found, excess, strict=True) if misfit <= _AS_GOOD * min(excess)]
        best = max(good, key=lambda c: (c.area, -c.misfit))
        return (best.concentration.to(scene.image)[:, None, None] * best.bodies).sum(0)

    def _candidates(self, scene: _Scene) -> list[_Candidate]:
        result: list[_Candidate] = []
        bodies = self._needed(scene, separate_bodies(scene.dark))
        for share in _COMPACT if len(bodies) else ():
            shaped = self._placed(scene, compacted(bodies, share, self.pixel_size))
            for change in _CHANGES:
                tried = resized(shaped, change, self.pixel_size)
                tried = tried[tried.any(-1).any(-1)]
                if len(tried):
                    result.append(self._candidate(scene, tried))
        return result

    def _candidate(self, scene: _Scene, bodies: Tensor) -> _Candidate:
        fields = self._fields(bodies)
        concentration = self._concentrations(scene, bodies, fields)
        misfit = self._misfits(scene, bodies, fields, concentration[None])[0]
        return _Candidate(bodies, concentration, float(misfit), int(bodies.sum()))

    def _placed(self, scene: _Scene, bodies: Tensor) -> Tensor:
        """Bodies at the places where their fields explain the samples best."""
        for _ in range(_STEPS):
            step = fit_displacements(
                scene.samples, self._fields(bodies), scene.blocked, self.sequence, self.pixel_size, _STEP
            )
            bodies = moved(bodies, step, self.pixel_size)
            if float(step.abs().max()) < 0.5 * min(self.pixel_size):
                break
        return bodies

    def _needed(self, scene: _Scene, bodies: Tensor) -> Tensor:
        """Dark parts without those, from the smallest on, whose particles would not explain the image better."""
        if len(bodies) < 2:
            return bodies
        bodies = bodies[bodies.sum((-2, -1)).argsort()]
        bodies = bodies[-_MOST:]
        shaped = compacted(bodies, _COMPACT[-1], self.pixel_size)
        kept = list(range(len(bodies)))
        best = self._candidate(scene, self._placed(scene, shaped)).misfit
        for number in range(len(bodies) - 1):
            fewer = [k for k in kept if k != number]
            misfit = self._candidate(scene, self._placed(scene, shaped[fewer])).misfit
            if misfit < _NEEDED * best:
                kept, best = fewer, misfit
        return bodies[kept]

    def _concentrations(self, scene: _Scene, bodies: Tensor, fields: Tensor) -> Tensor:
        """Concentration of each body ``[K]`` from the samples of the field."""
        return fit_concentrations(scene.samples, fields, scene.blocked, self.sequence, self.pixel_size)

    def _fields(self, bodies: Tensor) -> Tensor:
        """Field of each body at 1 ug/mm^3 ``[K, X, Z]`` [uT]."""
        return torch.stack(
            [self._field(lift(b.float(), self.pixel_size, self.thickness_mm, lowest=0.5)) for b in bodies]
        )

    def _field(self, planes: Tensor) -> Tensor:
        dx, dz = self.pixel_size
        return folded_plane_field(planes, (dx, dx, dz), self.mass_magnetisation, padding=_PADDING)

    def _misfits(self, scene: _Scene, bodies: Tensor, fields: Tensor, concentrations: Tensor) -> Tensor:
        """Sum of squared differences to the image ``[N]``, for concentrations of the bodies ``[N, K]``."""
        near = scene.columns
        weights = concentrations.to(fields)
        inside, field = (torch.einsum("nk,kxz->nxz", weights, p[:, near].to(fields)) for p in (bodies, fields))
        clean = view_line_image(
            scene.reference[near].expand_as(inside), inside, field, self.pixel_size, self.sequence
        )  # fmt: skip
        # What noise adds to a magnitude on average, exact without signal and to first order with much of it.
        expected = (clean.square() + (0.5 * math.pi) * scene.noise**2).sqrt() if scene.noise > 0 else clean
        return (expected - scene.image[:, near]).double().square().sum((-3, -2, -1))


class AnalysisBySynthesis(CentreLine):
    """The image is simulated until it looks like the measured one: one concentration for all bodies.

    Bodies as in :class:`CentreLine`; for each choice of them, the concentration whose simulated image differs least
    from the measured one, in squares, on a grid that is refined around its best point.

    Args:
        sequence: see :class:`CentreLine`.
        pixel_size: see :class:`CentreLine` [mm].
        mass_magnetisation: see :class:`CentreLine` [A m^2/kg].
        thickness_mm: see :class:`CentreLine` [mm].
        highest: largest concentration of the grid [ug/mm^3].
        lowest: smallest concentration of the grid [ug/mm^3].

    Raises:
        ValueError: as :class:`CentreLine`.
    """

    def __init__(self, *args: Any, lowest: float = 0.1, **options: Any) -> None:
        super().__init__(*args, **options)
        if not 0 < lowest < self.highest:
            raise ValueError(f"lowest must lie between 0 and {self.highest} ug/mm^3, got {lowest}")
        self.lowest = lowest

    def _concentrations(self, scene: _Scene, bodies: Tensor, fields: Tensor) -> Tensor:
        """The same concentration for each body ``[K]`` from the image."""
        low, high = math.log(self.lowest), math.log(self.highest)
        points = _FREE_GRID
        for _ in range(4):
            grid = torch.linspace(low, high, points, dtype=torch.float64)
            misfit = self._misfits(scene, bodies, fields, grid.exp()[:, None].expand(-1, len(bodies)))
            best, step = int(misfit.argmin()), (high - low) / (points - 1)
            low, high = max(float(grid[best]) - step, low), min(float(grid[best]) + step, high)
            points = 7
        return _lowest_of_parabola(grid, misfit, best).exp().expand(len(bodies))


def _lowest_of_parabola(place: Tensor, values: Tensor, best: int) -> Tensor:
    """Vertex of the parabola through the smallest of evenly spaced values and its neighbours; the ends as they are."""
    if not 0 < best < len(place) - 1:
        return place[best]
    before, least, after = values[best - 1 : best + 2].tolist()
    curvature = before - 2.0 * least + after
    share = 0.5 * (before - after) / curvature if curvature > 0 else 0.0
    return place[best] + share * (place[1] - place[0])


def _plain(image: Tensor) -> Tensor:
    return image.as_tensor() if hasattr(image, "as_tensor") else image
