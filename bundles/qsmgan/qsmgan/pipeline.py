"""The classical pipeline before a dipole inversion: from the echoes of a gradient echo to the local field."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform
from torch import Tensor
from tqdm import tqdm

from physics.background import lbv, pdf, vsharp
from physics.dipole import check_geometry
from physics.dipole_inversion.iteration import Iteration, Report
from physics.phase import FieldFit, check_echo_times, fit_field, frequency_to_ppm, unwrap_laplacian
from shared_transforms.errors import QMRIError
from shared_transforms.io import ParameterMap
from shared_transforms.unwrapping import unwrap_in_space

from .head_mask import head_mask, noise_by_differences

BACKGROUNDS = {"vsharp": "V-SHARP", "pdf": "projection onto dipole fields", "lbv": "Laplacian boundary value"}
UNWRAPPINGS = ("path", "laplacian")
UNCERTAIN_PPM = 0.05  # standard error of the field from which on a voxel says little: local fields are of that size
LEAST_TURNS = 0.05  # what phase in radians covers in any data, noise alone covers a whole turn
MADE_MASK = (
    "no mask was given: one was made from magnitude and coherence of the phase. It holds whatever gives signal, skull "
    "and scalp too; for a brain give the mask of a brain extraction"
)


@dataclass(frozen=True)
class LocalField:
    """What :func:`local_field` finds; volumes are ``[X, Y, Z]``.

    Attributes:
        local_field: [ppm], positive where the field is stronger, 0 outside ``mask``.
        mask: where the local field is valid: ``head``, less what the removal of the background takes off.
        head: mask before that, as given or made.
        total_field: [ppm], unwrapped, 0 outside ``head``.
        magnitude: root of the sum of squares of the echoes.
        standard_error: of the total field [ppm], 0 outside ``head``.
        notes: remarks a user must read.
    """

    local_field: Tensor
    mask: Tensor
    head: Tensor
    total_field: Tensor
    magnitude: Tensor
    standard_error: Tensor
    notes: list[str] = field(default_factory=list)


@torch.no_grad()
def local_field(
    magnitude: Tensor,
    phase: Tensor,
    echo_times: Sequence[float] | Tensor,
    field_strength: float,
    voxel_size: Sequence[float],
    b0_direction: Sequence[float] = (0.0, 0.0, 1.0),
    mask: Tensor | None = None,
    *,
    background: str = "vsharp",
    unwrapping: str = "path",
    phase_sign: int = 1,
    report: Report | None = None,
    file: str | None = None,
    **options: Any,
) -> LocalField:
    """Complex field fit over the echoes, unwrapping in space, mask, background field removal.

    Args:
        magnitude: ``[N, X, Y, Z]``, N at least 2, any unit.
        phase: ``[N, X, Y, Z]`` [rad], -pi to pi.
        echo_times: N times [s].
        field_strength: [T].
        voxel_size: (dx, dy, dz) [mm].
        b0_direction: unit vector in voxel axes.
        mask: boolean ``[X, Y, Z]``; None makes one from the data.
        background: "vsharp", "pdf" (weighted by the inverse standard error) or "lbv".
        unwrapping: "path" (within the mask, adds whole turns) or "laplacian" (whole volume, smooth).
        phase_sign: -1 where the phase falls as the field grows.
        report: called after each iteration of "pdf" and "lbv".
        file: for error messages.
        options: of the function in :mod:`physics.background`.

    Raises:
        QMRIError: one echo, shapes that differ, an empty mask, NaN, phase outside its range, echo times, field
            strength, voxel size or B0 direction that are missing or impossible, an unknown method.
    """
    _check_choice("background", background, tuple(BACKGROUNDS))
    _check_choice("unwrapping", unwrapping, UNWRAPPINGS)
    _check_volumes(magnitude, phase, mask, file)
    with _as_qmri_error("echo_times", "correct the echo times [s]: at least two, increasing", file):
        times = check_echo_times(_present(echo_times, "echo_times", "give the echo times [s]", file))
    with _as_qmri_error("voxel_size, b0_direction", "correct voxel size [mm] or B0 direction (unit vector)", file):
        sizes, direction = check_geometry(
            voxel_size, _present(b0_direction, "b0_direction", "give the B0 direction", file)
        )
    strength = float(_present(field_strength, "field_strength", "give the field strength [T]", file))
    with _as_qmri_error("field_strength", "give the field strength [T]", file):
        frequency_to_ppm(torch.zeros(()), strength)
    sigma = noise_by_differences(magnitude, phase) if len(times) == 2 else None
    with _as_qmri_error("magnitude, phase", "give one echo time for each pair of magnitude and phase", file):
        fit = fit_field(magnitude, phase, times, phase_sign=phase_sign, sigma=sigma)
    head, notes = _head(mask, magnitude, phase, fit, sizes, file)
    frequency = _unwrapped(fit, head, sizes, unwrapping)
    notes += _jumps(frequency, head, fit.period)
    spacings = [(late - times[0]) * fit.period for late in times[1:]]
    if max(abs(spacing - round(spacing)) for spacing in spacings) > 1e-6:
        # Echoes a little off the raster repeat almost, not quite: the fit is made again from the right turn.
        fit = fit_field(magnitude, phase, times, phase_sign=phase_sign, sigma=sigma, start=frequency)
        frequency = fit.frequency
    total = torch.where(head, frequency_to_ppm(frequency, strength), 0.0)
    error = torch.where(head, frequency_to_ppm(fit.standard_error, strength), 0.0)
    notes += _uncertain(error[head])
    removal: dict[str, Callable[[], tuple[Tensor, Tensor]]] = {
        "vsharp": lambda: vsharp(total, head, sizes, **options),
        "lbv": lambda: lbv(total, head, sizes, report=report, **options),
        "pdf": lambda: pdf(total, head, sizes, direction, weight=_weight(error, head), report=report, **options),
    }
    with _as_qmri_error("mask", "give a thicker mask, or other options of the background field removal", file):
        local, valid = removal[background]()
    return LocalField(local, valid, head, total, magnitude.square().sum(0).sqrt(), error, notes)


def _head(
    mask: Tensor | None, magnitude: Tensor, phase: Tensor, fit: FieldFit, sizes: Sequence[float], file: str | None
) -> tuple[Tensor, list[str]]:
    """The mask, given or made, less voxels without signal."""
    notes = []
    if mask is None:
        mask = head_mask(magnitude, phase, float(fit.sigma), sizes)
        notes.append(MADE_MASK)
        if not bool(mask.any()):
            raise QMRIError(
                file=file, field="mask", found="none was given, and nothing rises above the noise",
                expected="a head in the volume", remedy="give a mask; check that magnitude and phase are not swapped",
            )  # fmt: skip
    usable = mask & fit.standard_error.isfinite()
    if not bool(usable.any()):
        raise QMRIError(
            file=file, field="mask", found="a mask over voxels without signal",
            expected="signal in at least two echoes", remedy="check that mask and images are on one grid",
        )  # fmt: skip
    if lost := int((mask & ~usable).sum()):
        notes.append(f"{lost} voxels of the mask have no signal in two echoes and were taken out of it")
    return usable, notes


def _unwrapped(fit: FieldFit, head: Tensor, sizes: tuple[float, float, float], unwrapping: str) -> Tensor:
    """Frequency [Hz] without wraps in space."""
    if unwrapping == "path":
        return unwrap_in_space(fit.frequency, head, fit.period)
    scale = 2.0 * math.pi / fit.period
    return unwrap_laplacian(fit.frequency * scale, sizes) / scale


def _jumps(frequency: Tensor, head: Tensor, period: float) -> list[str]:
    """A note where neighbours still differ by more than half a turn."""
    jumps = pairs = 0
    for axis in range(3):
        count = head.shape[axis] - 1
        both = head.narrow(axis, 0, count) & head.narrow(axis, 1, count)
        jumps += int((both & (frequency.diff(dim=axis).abs() > 0.5 * period)).sum())
        pairs += int(both.sum())
    if jumps <= 1e-3 * pairs:
        return []
    return [
        f"{jumps / pairs:.1%} of the neighbouring voxels still differ by more than half a turn after unwrapping: the "
        "mask holds noise or open-ended lines of the phase (vessels, a faulty combination of coils)"
    ]


def _uncertain(error: Tensor) -> list[str]:
    share = float((error > UNCERTAIN_PPM).float().mean())
    if share < 0.01:
        return []
    return [
        f"in {share:.0%} of the mask the standard error of the field is above {UNCERTAIN_PPM:g} ppm: a tighter mask "
        "will give a better map"
    ]


def _weight(error: Tensor, head: Tensor) -> Tensor:
    """Inverse standard error; a floor keeps single voxels from ruling, and noise-free data usable."""
    floor = 0.1 * error[head].median().clamp(min=1e-12)
    return torch.where(head, 1.0 / error.clamp(min=float(floor)), 0.0)


def _check_choice(name: str, value: object, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise QMRIError(
            field=name, found=repr(value), expected=f"one of {', '.join(allowed)}", remedy="correct the config"
        )


def _check_volumes(magnitude: Tensor, phase: Tensor, mask: Tensor | None, file: str | None) -> None:
    shape = tuple(magnitude.shape)
    if magnitude.ndim != 4 or tuple(phase.shape) != shape:
        raise QMRIError(
            file=file, field="magnitude, phase", found=f"shapes {shape} and {tuple(phase.shape)}",
            expected="both [N, X, Y, Z]", remedy="give magnitude and phase of every echo on one grid",
        )  # fmt: skip
    if shape[0] < 2:
        raise QMRIError(
            file=file, field="echoes", found="one echo", expected="at least 2 echoes",
            remedy="one echo cannot tell the field from the phase of the coils: give all echoes, or a local field made "
            "otherwise",
        )  # fmt: skip
    for name, values in (("magnitude", magnitude), ("phase", phase)):
        if bad := int((~values.isfinite()).sum()):
            raise QMRIError(
                file=file, field=name, found=f"{bad} NaN or infinite voxels", expected="finite numbers",
                remedy="repair the images: noise in the place of these voxels does no harm",
            )  # fmt: skip
    low, high = float(phase.min()), float(phase.max())
    if low < -math.pi - 1e-3 or high > math.pi + 1e-3 or high - low < LEAST_TURNS * 2.0 * math.pi:
        raise QMRIError(
            file=file, field="phase", found=f"values from {low:.6g} to {high:.6g}",
            expected="radians, wrapped, from -pi to pi", remedy="rescale what the scanner stored: phase_range is the "
            "pair of stored values that stand for -pi and pi",
        )  # fmt: skip
    if bool((magnitude < 0).any()) or not bool((magnitude > 0).any()):
        raise QMRIError(
            file=file, field="magnitude", found="negative values" if bool((magnitude < 0).any()) else "zeros only",
            expected="magnitudes", remedy="check that magnitude and phase are not swapped",
        )  # fmt: skip
    if mask is None:
        return
    if mask.dtype != torch.bool or tuple(mask.shape) != shape[1:] or not bool(mask.any()):
        raise QMRIError(
            file=file, field="mask", found=f"shape {tuple(mask.shape)}, {int((mask != 0).sum())} voxels, {mask.dtype}",
            expected=f"boolean, shape {shape[1:]}, not empty", remedy="give a mask on the grid of the images",
        )  # fmt: skip


def _present(value: Any, name: str, remedy: str, file: str | None) -> Any:
    if value is None:
        raise QMRIError(file=file, field=name, found="nothing", expected="a value", remedy=remedy)
    return value


@contextmanager
def _as_qmri_error(name: str, remedy: str, file: str | None) -> Iterator[None]:
    """A ValueError of the physics becomes a QMRIError."""
    try:
        yield
    except QMRIError:
        raise
    except ValueError as error:
        raise QMRIError(
            file=file, field=name, found=str(error), expected="what this message names", remedy=remedy
        ) from error


class LocalFieldd(MapTransform):
    """Turn the echoes of an inference item into local field and magnitude.

    ``item[keys]``, N magnitudes and N phases ``[2 N, X, Y, Z]``, becomes local field [ppm] and magnitude
    ``[2, X, Y, Z]``; ``item["mask"]`` ``[1, X, Y, Z]`` becomes the mask of validity. ``item["stages"]`` gains the total
    field, its standard error and the mask before the removal of the background, for the writer.

    Args:
        keys: key of the echoes, as ``LoadGradientEchoesd`` reads them, their sign included.
        background: see :func:`local_field`.
        unwrapping: likewise.
        options: of the background field removal.
        mask_key: key of the mask, which may be None.
        progress: show a progress bar.

    Raises:
        QMRIError: see :func:`local_field`.
    """

    def __init__(
        self,
        keys: KeysCollection = "image",
        background: str = "vsharp",
        unwrapping: str = "path",
        options: Mapping[str, Any] | None = None,
        mask_key: str = "mask",
        progress: bool = True,
    ) -> None:
        super().__init__(keys)
        _check_choice("background", background, tuple(BACKGROUNDS))
        _check_choice("unwrapping", unwrapping, UNWRAPPINGS)
        self.background, self.unwrapping, self.options = background, unwrapping, dict(options or {})
        self.mask_key, self.progress = mask_key, progress

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item with image, mask, ``stages``, ``notes`` and ``details``."""
        item = dict(data)
        for key in self.key_iterator(item):
            image, acquisition = item[key], item["acquisition"]
            echoes = image.as_tensor() if hasattr(image, "as_tensor") else image
            given = item.get(self.mask_key)
            given = None if given is None else torch.as_tensor(given)[0].bool()
            with tqdm(desc="background field", disable=not self.progress, leave=False) as bar:
                found = local_field(
                    echoes[: len(echoes) // 2],
                    echoes[len(echoes) // 2 :],
                    acquisition["echo_times"],
                    float(acquisition["field_strength"]),
                    acquisition["voxel_size"],
                    acquisition["b0_direction"],
                    given,
                    background=self.background,
                    unwrapping=self.unwrapping,
                    report=partial(_advance, bar),
                    file=next(iter(item.get("sources", [])), None),
                    **self.options,
                )
            result = torch.stack([found.local_field, found.magnitude])
            item[key] = type(image)(result, meta=image.meta) if hasattr(image, "meta") else result
            item[self.mask_key] = found.mask[None]
            item["stages"] = {**item.get("stages", {}), **_stages(found)}
            item["notes"] = [*item.get("notes", []), *found.notes]
            item["details"] = {
                **item.get("details", {}),
                "Background field removed by": BACKGROUNDS[self.background],
                "Mask": "made from the data" if given is None else "given",
            }
        return item


def _advance(bar: Any, state: Iteration) -> None:
    bar.total = state.limit
    bar.set_postfix_str(f"residual {state.change:.1e}", refresh=False)
    bar.update()


def _stages(found: LocalField) -> dict[str, ParameterMap]:
    total, error = found.total_field[found.head].float(), found.standard_error[found.head].float()
    wide = max(float(total.abs().kthvalue(max(1, int(0.98 * total.numel()))).values), 1e-6)
    top = max(float(error.kthvalue(max(1, int(0.95 * error.numel()))).values), 1e-6)
    return {
        "totalfield": ParameterMap(
            found.total_field.cpu(), "ppm", "Field relative to B0 before the background was removed", (-wide, wide)
        ),
        "totalfieldstderr": ParameterMap(
            found.standard_error.cpu(), "ppm", "Standard error of the field", (0.0, top), "error"
        ),
        "headmask": ParameterMap(
            found.head.cpu(), "1", "Mask before the removal of the background", (0.0, 1.0), "mask"
        ),
    }
