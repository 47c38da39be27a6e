"""Arterial input and venous output of a DSC-MRI series, found in the images.

Arteries show the contrast agent early, high, narrow, smooth and return near to their baseline; veins show it late and
with the largest area of all. Each property is a part of a score between 0 and 1, and the score is their weighted
geometric mean: one property that fails rules a voxel out. The criteria are those of Rempp et al. (Radiology
1994;193:637), Carroll et al. (Radiology 2003;227:593) and Mouridsen et al. (Magn Reson Med 2006;55:524). Nothing here
is random: equal data give equal voxels.

Signals mix before the logarithm is taken, so a voxel that an artery fills in part has a distorted curve with a flat
top. What the tissue around the chosen voxels adds can be taken out (:func:`physics.perfusion.unmix_tissue`), as the
area under the arterial curve must be that under the venous one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from physics.perfusion.curve_shape import CurveShape, bolus_window, curve_shape, smooth_in_time
from physics.perfusion.vessel_curve import average_curve

__all__ = ["InputFunction", "find_arterial_input", "find_venous_output", "marked_input"]

ARTERIAL_WEIGHTS = {"early": 2.0, "high": 2.0, "narrow": 1.0, "smooth": 0.5, "returning": 0.5, "unclipped": 0.5}
VENOUS_WEIGHTS = {"late": 1.0, "large": 3.0, "smooth": 0.5, "returning": 0.5, "unclipped": 0.5}
VISIBLE = 6.0  # peak over noise below which a curve has no shape
_EARLY = 3.0  # s after the first arteries, where early has become 0
_LATE = 1.5  # s that the centre of a vein comes after that of the arteries, at least
_TOP = 0.0002  # of the voxels, at least four: those that tell what a high peak or a large area is
_CLEAR = 1.2  # peak over that of the median curve, from which on the time of a curve is well known
# Width over that of the brain's median curve: a spike of one or two frames, a pure artery, no artery.
_NARROW = (0.35, 0.6, 1.5)
_FIRST = 0.001  # of the voxels, at least eight: those that the contrast agent reaches first, arteries
_KEPT = 0.7  # of the best score
_ALIKE = 0.95  # correlation with the best curve
_FILLED = {"high": 0.8, "large": 0.93}  # of the best voxel's part of the score that a voxel has at least
_NEIGHBOUR = (0.6, 0.8)  # score of the best neighbour over the own one: alone, in a vessel
_ALONE = 0.3  # factor of the score of a voxel without neighbours in the vessel
_SUPPORT = 3  # voxels that agree, from which on there need be no more
_NOISY = 3.0  # times the median noise above which a voxel is not looked at
_CLIPPED = 2.0  # noises above zero from which on a trough counts as clear of the noise floor
_TISSUE_AREAS = 1.6  # area of a vein over that of 95 % of the voxels
_LEAST_VENOUS = 0.8  # area of a vein over that of the artery


@dataclass(frozen=True)
class InputFunction:
    """A curve found in a series, and why.

    Attributes:
        curve: mean over ``voxels`` ``[T]``, in the unit of the series.
        voxels: indices ``[n, 3]``, best first.
        score: of these voxels ``[n]``, between 0 and 1; empty where the voxels were marked by hand.
        parts: their parts of the score, ``{name: [n]}``, between 0 and 1, 1 is best; likewise.
        centre: time of the middle of the first pass [s].
        width: of the first pass, from half of the peak to 70 % of it [s].
        noise: standard deviation of the curve before the bolus.
        clipped: whether the trough of the signal cannot be told from the noise: the true peak may be higher.
        tissue: mean curve of the tissue around the voxels ``[T]``, vessels left out.
    """

    curve: Tensor
    voxels: Tensor
    score: Tensor
    parts: Mapping[str, Tensor]
    centre: float
    width: float
    noise: float
    clipped: bool
    tissue: Tensor


@dataclass(frozen=True)
class _Brain:
    """Curves inside of the mask, where they lie, and their shape."""

    curves: Tensor
    voxels: Tensor
    shape: CurveShape
    window: tuple[int, int, int]
    dt: float
    typical: CurveShape
    attenuation: float | None
    concentration: Tensor
    mask: Tensor


@torch.no_grad()
def find_arterial_input(
    concentration: Tensor,
    mask: Tensor,
    dt: float,
    *,
    count: int = 8,
    attenuation: float | None = None,
    weights: Mapping[str, float] = ARTERIAL_WEIGHTS,
) -> InputFunction:
    r"""Find arteries by a score: early, high, narrow, smooth, returning to the baseline, not clipped.

    The score is the weighted geometric mean :math:`\prod_k s_k^{w_k / \sum w}` of these parts, each in [0, 1]. A voxel
    whose first pass has its middle after that of the brain's median curve is no artery, however high it is: so no vein
    is taken. Of the best voxels those are kept that agree with the best in shape and time.

    Args:
        concentration: ``[X, Y, Z, T]``, any unit proportional to Delta R2*.
        mask: boolean ``[X, Y, Z]``, the brain with its vessels.
        dt: time between frames [s].
        count: most voxels that are taken.
        attenuation: -ln(S/S0) for one unit of concentration. With it voxels are averaged as signals, corrected for the
            noise floor, and clipped curves are found.
        weights: exponents of the parts of the score.

    Returns:
        The arterial input, not scaled: its area is too small where voxels are filled in part.

    Raises:
        ValueError: for shapes that do not fit, values that are not finite, an empty mask, no bolus, or no voxel that
            could be an artery.
    """
    brain = _brain(concentration, mask, dt, attenuation)
    shape, typical = brain.shape, brain.typical
    possible = _visible(shape) & (shape.centre < typical.centre) & (shape.width > _NARROW[0] * typical.width)
    if not bool(possible.any()):
        raise ValueError("no voxel of the mask has an early, clear and narrow bolus: give the arterial input by hand")
    clear = possible & (shape.peak > _CLEAR * typical.peak)
    rises = shape.rise[clear if bool(clear.any()) else possible].sort().values
    earliest = float(rises[min(max(8, int(_FIRST * len(shape.rise))), len(rises)) - 1])
    highest = shape.peak[
        _highest(torch.where(possible, shape.peak, 0.0), max(4, int(_TOP * len(shape.peak))), possible)
    ]
    width = float(typical.width)
    parts = {
        "early": _falling(shape.rise, earliest, earliest + _EARLY),
        "high": (shape.peak / highest.min()).clamp(0.0, 1.0),
        "narrow": _falling(shape.width, _NARROW[1] * width, _NARROW[2] * width),
        **_clean_parts(brain),
    }
    # However high: where arteries are saturated and tissue is late, a pure vein would have the better score.
    in_time = possible & (parts["early"] > 0.5)
    score = torch.where(in_time if bool(in_time.any()) else possible, _score(parts, weights), 0.0)
    found = _chosen(brain, score, parts, "high", count, 1)
    if found is None:
        raise ValueError("every voxel fails in a part of the score: give the arterial input by hand")
    return found


@torch.no_grad()
def find_venous_output(
    concentration: Tensor,
    mask: Tensor,
    dt: float,
    *,
    arterial: InputFunction | None = None,
    count: int = 8,
    attenuation: float | None = None,
    weights: Mapping[str, float] = VENOUS_WEIGHTS,
) -> InputFunction | None:
    r"""Find a large vein by a score: late, large area, smooth, returning to the baseline, not clipped.

    The score is the weighted geometric mean :math:`\prod_k s_k^{w_k / \sum w}` of these parts, each in [0, 1].

    Args:
        concentration: see :func:`find_arterial_input`, as for all others.
        mask: likewise.
        dt: likewise [s].
        arterial: the arterial input; a vein comes later. Without it the brain's median curve tells what is late.
        count: most voxels that are taken.
        attenuation: likewise.
        weights: exponents of the parts of the score.

    Returns:
        The venous output; None where nothing late has a larger area than tissue and the arterial input: there is no
        sinus in the field of view.

    Raises:
        ValueError: see :func:`find_arterial_input`; no vein is no error.
    """
    brain = _brain(concentration, mask, dt, attenuation)
    shape = brain.shape
    earliest = float(brain.typical.centre) if arterial is None else arterial.centre + _LATE
    least = _TISSUE_AREAS * float(torch.quantile(shape.area, 0.95))
    possible = _visible(shape) & (shape.centre > earliest) & (shape.area > least) & (shape.tail < 0.5)
    if not bool(possible.any()):
        return None
    count_top = max(4, int(_TOP * len(shape.area)))
    largest = shape.area[_highest(torch.where(possible, shape.area, 0.0), count_top, possible)]
    parts = {
        "late": 1.0 - _falling(shape.centre, earliest, earliest + 1.0),
        "large": (shape.area / largest.min()).clamp(0.0, 1.0),
        **_clean_parts(brain),
    }
    found = _chosen(brain, torch.where(possible, _score(parts, weights), 0.0), parts, "large", count, 2)
    if found is not None and arterial is not None:
        passes = slice(*brain.window[1:])
        if float(found.curve[passes].sum()) < _LEAST_VENOUS * float(arterial.curve[passes].sum()):
            return None
    return found


@torch.no_grad()
def marked_input(
    concentration: Tensor, mask: Tensor, dt: float, marked: Tensor, *, attenuation: float | None = None
) -> InputFunction:
    """The curve of voxels that somebody marked, without a score.

    Args:
        concentration: see :func:`find_arterial_input`, as for all others.
        mask: likewise.
        dt: likewise [s].
        marked: boolean ``[X, Y, Z]``; voxels outside of ``mask`` do not count.
        attenuation: likewise.

    Raises:
        ValueError: see :func:`find_arterial_input`; or no marked voxel in the mask.
    """
    brain = _brain(concentration, mask, dt, attenuation)
    if marked.dtype != torch.bool or marked.shape != mask.shape:
        raise ValueError(f"marked must be boolean {tuple(mask.shape)}, got {tuple(marked.shape)}, {marked.dtype}")
    index = marked[mask].nonzero()[:, 0]
    if not len(index):
        raise ValueError(f"marked must have voxels in the mask, got {int(marked.sum())} outside of it")
    return _summary(brain, index, brain.curves.new_empty(0), {})


def _brain(concentration: Tensor, mask: Tensor, dt: float, attenuation: float | None) -> _Brain:
    if concentration.ndim != 4 or mask.dtype != torch.bool or mask.shape != concentration.shape[:3]:
        raise ValueError(
            f"concentration must be [X, Y, Z, T] and mask boolean [X, Y, Z], got {tuple(concentration.shape)} and "
            f"{tuple(mask.shape)}, {mask.dtype}"
        )
    if not dt > 0 or (attenuation is not None and not attenuation > 0):
        raise ValueError(f"dt and attenuation must be positive, got {dt} and {attenuation}")
    voxels = mask.nonzero()
    if not len(voxels):
        raise ValueError("mask must not be empty, got a volume without a voxel in it")
    curves = concentration[mask]
    if not bool(curves.isfinite().all()):
        raise ValueError("concentration must be finite inside of the mask, got NaN or infinity")
    median = curves.median(0).values
    window = bolus_window(median, dt)
    typical = curve_shape(median[None], dt, *window)
    shape = curve_shape(curves, dt, *window)
    return _Brain(curves, voxels, shape, window, dt, typical, attenuation, concentration, mask)


def _visible(shape: CurveShape) -> Tensor:
    """Curves with a peak and a fall in a voxel that is not mostly noise."""
    return (shape.peak > VISIBLE * shape.noise) & shape.width.isfinite() & (shape.noise < _NOISY * shape.noise.median())


def _clean_parts(brain: _Brain) -> dict[str, Tensor]:
    """Parts of the score that arteries and veins share."""
    shape = brain.shape
    parts = {
        "smooth": _falling(shape.roughness, 0.05, 0.3),
        "returning": _falling(shape.tail.abs(), 0.2, 0.5),
    }
    if brain.attenuation is not None:
        margin = torch.exp(-brain.attenuation * shape.trough) / (brain.attenuation * shape.noise)
        parts["unclipped"] = 1.0 - _falling(margin, 0.0, _CLIPPED)
    return parts


def _falling(values: Tensor, good: float, bad: float) -> Tensor:
    """1 up to ``good``, 0 from ``bad`` on, linear between them."""
    return ((bad - values) / max(bad - good, 1e-12)).nan_to_num(0.0).clamp(0.0, 1.0)


def _highest(values: Tensor, count: int, possible: Tensor) -> Tensor:
    """Indices of the highest values among the possible ones, highest first."""
    return values.argsort(descending=True, stable=True)[: min(count, int(possible.sum()))]


def _score(parts: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """Weighted geometric mean of the parts that there are."""
    used = {name: weights.get(name, 0.0) for name in parts}
    total = sum(used.values())
    if not total > 0:
        raise ValueError(f"weights must be positive for some of {sorted(parts)}, got {dict(weights)}")
    product = torch.ones_like(next(iter(parts.values())))
    for name, values in parts.items():
        product = product * values ** (used[name] / total)
    return product


def _chosen(
    brain: _Brain, score: Tensor, parts: Mapping[str, Tensor], size: str, count: int, least: int
) -> InputFunction | None:
    """The best voxels that agree with each other, and their mean; None where fewer than ``least`` do.

    Args:
        brain: the curves.
        score: of every voxel ``[N]``.
        parts: of the score.
        size: the part that says how much of a voxel is blood.
        count: most voxels.
        least: fewest voxels.
    """
    order = _highest(score, 4 * count, score > 0)
    if len(order) < least:
        return None
    connected = _connected(brain, score, order)
    score = score.clone()
    score[order] *= connected
    order = order[score[order].argsort(descending=True, stable=True)]
    shape = brain.shape.select(order)
    curves = smooth_in_time(brain.curves[order])
    agree = (torch.corrcoef(curves).reshape(len(order), -1) > _ALIKE) & (
        (shape.centre[:, None] - shape.centre).abs() <= _same_time(brain.dt)
    )
    agree &= score[order] >= _KEPT * score[order, None]
    # Voxels with less blood distort the curve; how much less cannot be told from noise is allowed.
    scatter = shape.noise / shape.peak * torch.exp((brain.attenuation or 0.0) * shape.peak)
    fill = parts[size][order]
    agree &= fill >= fill[:, None] * (_FILLED[size] - scatter.clamp_max(0.15))
    # A vessel goes through several voxels; what stands alone is an artefact, however good its score.
    support = agree.sum(-1)
    if int(support.max()) < least:
        return None
    best = int((score[order] * (support.clamp_max(_SUPPORT) / _SUPPORT).sqrt() * (support >= least)).argmax())
    index = order[agree[best]][:count]
    return _summary(brain, index, score[index], {name: values[index] for name, values in parts.items()})


def _summary(brain: _Brain, index: Tensor, score: Tensor, parts: Mapping[str, Tensor]) -> InputFunction:
    """What voxels of a vessel say together; their score and its parts as given."""
    noise = brain.shape.noise[index]
    curve, clipped = average_curve(brain.curves[index], noise, brain.attenuation)
    shape = curve_shape(curve[None], brain.dt, *brain.window)
    return InputFunction(
        curve=curve,
        voxels=brain.voxels[index],
        score=score,
        parts=parts,
        centre=float(shape.centre),
        width=float(shape.width),
        noise=float(noise.square().mean().sqrt()) / len(index) ** 0.5,
        clipped=clipped,
        tissue=_surroundings(brain, index),
    )


def _same_time(dt: float) -> float:
    """How far the first passes of voxels of one vessel may lie apart [s]."""
    return 0.75 * max(dt, 1.0)


def _connected(brain: _Brain, score: Tensor, order: Tensor) -> Tensor:
    """1 for voxels beside another one of a vessel, less for those that stand alone, from the score of every voxel."""
    volume = torch.zeros([n + 2 for n in brain.mask.shape]).to(score)
    volume[1:-1, 1:-1, 1:-1][brain.mask] = score
    steps = torch.arange(-1, 2, device=score.device)
    offset = torch.cartesian_prod(steps, steps, steps)
    offset = offset[offset.any(-1)]
    beside = volume[tuple((brain.voxels[order][:, None] + 1 + offset).movedim(-1, 0))].amax(-1)
    alone, among = _NEIGHBOUR
    return _ALONE + (1.0 - _ALONE) * ((beside / score[order] - alone) / (among - alone)).clamp(0.0, 1.0)


def _surroundings(brain: _Brain, index: Tensor) -> Tensor:
    """Mean curve of what lies around some voxels in their slices, voxels with much blood left out."""
    chosen = brain.voxels[index]
    offset = torch.cartesian_prod(*(torch.arange(-3, 4, device=chosen.device),) * 2, torch.zeros(1).to(chosen))
    size = torch.tensor(brain.mask.shape, device=chosen.device)
    around = (chosen[:, None] + offset).flatten(0, 1)
    around = around[((around >= 0) & (around < size)).all(-1)]
    around = around[brain.mask[tuple(around.T)]]
    curves = brain.concentration[tuple(around.T)]
    area = curves[:, slice(*brain.window[1:])].sum(-1)
    ordinary = area <= torch.quantile(brain.shape.area, 0.9) / brain.dt
    return (curves[ordinary] if bool(ordinary.any()) else brain.curves).mean(0)
