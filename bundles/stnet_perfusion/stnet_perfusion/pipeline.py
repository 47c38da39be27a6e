"""From the signal of a DSC series to concentrations: mask of the brain, baseline, relaxation rate."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from torch import Tensor

from physics.perfusion import (
    Frames,
    baseline_signal,
    baseline_snr,
    correct_leakage,
    find_frames,
    relaxation_rate_change,
)
from shared_transforms.errors import QMRIError

from .acquisition import FLOOR, TISSUE_RELAXIVITY
from .brain_mask import brain_mask, head_mask, mean_curve
from .series_quality import quality_notes, series_quality

__all__ = ["BrainMaskd", "Concentrationd"]

FAULTY = 0.02  # of the voxels of the mask may have negative or zero signal
WITHOUT_SIGNAL = 0.25  # of the mask may lie where the images are 0 throughout
FEWEST_BASELINE_FRAMES = 2
FEW_DUMMIES = 2
_TAIL_FRAMES = 10  # of the leakage correction
_AT_ONCE = 50_000  # voxels
MADE_MASK = (
    "no mask was given: the mask of the brain was made from the signal before the bolus and its fall with it; look at "
    "it, and give mask_file where it is wrong"
)


class BrainMaskd(MapTransform):
    """Mask the brain where no mask was given; see :func:`.brain_mask.brain_mask`.

    ``item["mask"]`` becomes boolean ``[1, X, Y, Z]``; ``quality``, ``notes`` and ``details`` say where it is from.

    Args:
        keys: key of the signal, a MetaTensor ``[T, X, Y, Z]``.
        mask_key: key of the mask, which may be None.

    Raises:
        QMRIError: no bolus where there is signal.
    """

    def __init__(self, keys: KeysCollection = "image", mask_key: str = "mask") -> None:
        super().__init__(keys)
        self.mask_key = mask_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item with a mask; see the class."""
        item = dict(data)
        for key in self.key_iterator(item):
            made = item.get(self.mask_key) is None
            if made:
                dt = float(item["acquisition"]["repetition_time"])
                try:
                    mask = brain_mask(_plain(item[key]), dt, item[key].affine.numpy())
                except ValueError as error:
                    raise _no_bolus(item, "the images", str(error)) from error
                item[self.mask_key] = mask[None]
                item["notes"] = [*item.get("notes", []), MADE_MASK]
            item["quality"] = {**item.get("quality", {}), "mask_automatic": made}
            origin = "made from signal and bolus" if made else "given"
            item["details"] = {**item.get("details", {}), "Mask of the brain": origin}
        return item


class Concentrationd(MapTransform):
    """Turn the signal of an inference item into concentrations of contrast agent.

    ``item[keys]``, signal ``[T, X, Y, Z]``, becomes ``[1 + T', X, Y, Z]``: the baseline relative to its median over the
    mask, then T' concentrations in tissue [mM], without dummy frames, 0 outside of the mask. Voxels without signal
    leave ``item["mask"]``. The item gains ``frames`` (:class:`physics.perfusion.Frames`, of the frames of the file),
    ``snr`` (median of the baseline), figures in ``quality`` (:func:`.series_quality.series_quality`), ``notes`` and
    ``details``.

    Args:
        keys: key of the signal, a MetaTensor.
        dummy_frames: frames at the start to leave out; None finds them.
        baseline_frames: first and last frame of the baseline, counted from 0, both included; None finds them.
        tissue_relaxivity: change of R2* with the concentration [1/s/mM].
        leakage_correction: correct the curves for leakage (Boxerman, Schmainda and Weisskoff).
        mask_key: key of the mask.

    Raises:
        QMRIError: no bolus; a mask without brain; negative or zero signal in many voxels of the mask; no baseline; or
            an argument out of its range.
    """

    def __init__(
        self,
        keys: KeysCollection = "image",
        dummy_frames: int | None = None,
        baseline_frames: Sequence[int] | None = None,
        tissue_relaxivity: float = TISSUE_RELAXIVITY,
        leakage_correction: bool = False,
        mask_key: str = "mask",
    ) -> None:
        super().__init__(keys)
        _check_count("dummy_frames", [] if dummy_frames is None else [dummy_frames], "a number of frames, 0 or more")
        window = [] if baseline_frames is None else list(baseline_frames)
        _check_count("baseline_frames", window, "the first and the last frame of the baseline, from 0", (0, 2))
        if not tissue_relaxivity > 0:
            raise QMRIError(
                field="tissue_relaxivity", found=repr(tissue_relaxivity), expected="a positive number [1/s/mM]",
                remedy="correct the config",
            )  # fmt: skip
        self.dummy_frames, self.window = dummy_frames, window
        self.relaxivity, self.leakage_correction, self.mask_key = tissue_relaxivity, leakage_correction, mask_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item with concentrations; see the class."""
        item = dict(data)
        for key in self.key_iterator(item):
            image, signal = item[key], _plain(item[key])
            mask, notes = _with_signal(signal, torch.as_tensor(item[self.mask_key])[0].bool(), item)
            dt, echo_time = (float(item["acquisition"][name]) for name in ("repetition_time", "echo_time"))
            frames, start, remarks = self._frames(signal, mask, dt, item)
            window = replace(frames, dummy=start)  # the baseline alone
            early = torch.stack([frame[mask] for frame in signal[: frames.baseline_end]], -1)
            baseline, snr = baseline_signal(early, window), baseline_snr(early, window)
            mask, baseline, snr = _positive(mask, baseline, snr)
            curves = self._concentration(signal, mask, baseline, frames, echo_time)
            median_snr = float(snr.median())
            quality = series_quality(curves, frames, start, dt, 1.0 / (median_snr * echo_time * self.relaxivity))
            quality["snr"] = median_snr
            if self.leakage_correction:
                noise = 1.0 / (snr * echo_time * self.relaxivity)
                quality["leakage_k2_median"] = _correct(curves, noise, dt)
            result = signal.new_zeros((1 + curves.shape[1], *mask.shape))
            result[0] = baseline_signal(signal[: frames.baseline_end].movedim(0, -1), window) / baseline.median()
            for frame, values in zip(result[1:], curves.unbind(1), strict=True):
                frame[mask] = values
            item[key] = MetaTensor(result, meta=image.meta)
            item[self.mask_key], item["frames"], item["snr"] = mask[None], frames, median_snr
            item["quality"] = {**item.get("quality", {}), **quality}
            item["notes"] = [*item.get("notes", []), *notes, *remarks, *quality_notes(quality)]
            item["details"] = {**item.get("details", {}), **self._details(frames, start)}
        return item

    def _frames(
        self, signal: Tensor, mask: Tensor, dt: float, item: Mapping[Hashable, Any]
    ) -> tuple[Frames, int, list[str]]:
        """Frames of the series, first frame of the baseline, found or given, and remarks."""
        curve = mean_curve(signal, mask)
        if not float(curve.min()) > 0:
            raise _negative(item, f"the mean over the mask falls to {float(curve.min()):.3g}")
        frames = find_frames(curve, dt)
        notes: list[str] = []
        start = frames.dummy
        if self.dummy_frames is not None or self.window:
            frames, start, notes = self._given(frames, curve, dt, item)
        elif frames.dummy > FEW_DUMMIES:
            notes.append(f"the first {frames.dummy} frames are not in the steady state and were left out")
        if not frames.bolus:
            raise _no_bolus_in(signal, dt, item)
        if frames.baseline_end - start < FEWEST_BASELINE_FRAMES:
            raise QMRIError(
                file=_file(item), field="baseline", found=f"the contrast agent arrives in frame {frames.arrival} "
                f"(from 0), and {frames.dummy} frames are not in the steady state",
                expected=f"at least {FEWEST_BASELINE_FRAMES} frames of steady signal before it",
                remedy="give the whole series; if frames were found wrongly, give dummy_frames and baseline_frames",
            )  # fmt: skip
        return frames, start, notes

    def _given(
        self, found: Frames, curve: Tensor, dt: float, item: Mapping[Hashable, Any]
    ) -> tuple[Frames, int, list[str]]:
        """The same with what the user gave: what comes before it has no say in where the bolus is."""
        dummy = found.dummy if self.dummy_frames is None else self.dummy_frames
        start, last = self.window or (dummy, dummy + FEWEST_BASELINE_FRAMES)
        if self.dummy_frames is None:
            dummy = min(dummy, start)
        if not dummy <= start < last < len(curve) or (found.bolus and start >= found.peak):
            raise QMRIError(
                file=_file(item), field="baseline_frames" if self.window else "dummy_frames",
                found=f"baseline from frame {start} to {last}, {dummy} dummy frames",
                expected=f"at least {FEWEST_BASELINE_FRAMES} of the {len(curve)} frames, after the dummy frames and "
                "before the contrast agent" + (f", whose peak is in frame {found.peak}" if found.bolus else ""),
                remedy="correct them, or leave them out: they are then found",
            )  # fmt: skip
        level = float(curve[start : last + 1].mean())
        calm = curve.clone()
        calm[:start] = level
        found = find_frames(calm, dt)
        end = last + 1 if self.window else found.baseline_end
        level = float(curve[start:end].mean()) if end > start else level
        frames = replace(
            found, dummy=dummy, baseline_end=end, trough=float(curve[dummy:].min()) / level,
            tail=float(curve[-3:].median()) / level,
        )  # fmt: skip
        late = f"the baseline ends in frame {end - 1}, the contrast agent arrives in frame {found.arrival}"
        return frames, start, [f"{late}: concentrations come out too low"] if end > found.arrival else []

    def _concentration(
        self, signal: Tensor, mask: Tensor, baseline: Tensor, frames: Frames, echo_time: float
    ) -> Tensor:
        """Concentrations ``[V, T']`` [mM] of the voxels of the mask; one frame at a time, for the memory."""
        curves = signal.new_empty((int(mask.sum()), len(signal) - frames.dummy))
        for index, frame in enumerate(signal[frames.dummy :]):
            rate = relaxation_rate_change(frame[mask][:, None], baseline, echo_time, FLOOR)
            curves[:, index] = rate[:, 0] / self.relaxivity
        return curves

    def _details(self, frames: Frames, start: int) -> dict[str, str]:
        origin = "given" if self.window else "found"
        details = {
            "Dummy frames": f"{frames.dummy} ({'found' if self.dummy_frames is None else 'given'})",
            "Baseline": f"frames {start} to {frames.baseline_end - 1} of the file, from 0 ({origin})",
        }
        return details | ({"Leakage": "corrected (Boxerman et al.)"} if self.leakage_correction else {})


def _with_signal(signal: Tensor, mask: Tensor, item: Mapping[Hashable, Any]) -> tuple[Tensor, list[str]]:
    """The mask without voxels that never have signal, and remarks on single faults."""
    bad = torch.stack([frame[mask] <= 0 for frame in signal]).sum(0)
    empty = bad == len(signal)
    faulty = (bad > 0) & ~empty
    total, lowest = len(bad), min(float(frame[mask].min()) for frame in signal) if len(bad) else 0.0
    if total == 0 or int(empty.sum()) > WITHOUT_SIGNAL * total:
        raise QMRIError(
            file=_file(item), field="mask", found=f"{int(empty.sum())} of its {total} voxels have no signal",
            expected="a mask of the brain", remedy="check that mask and images belong together",
        )  # fmt: skip
    if int(faulty.sum()) > FAULTY * total:
        share = float(faulty.float().mean())
        raise _negative(item, f"{share:.1%} of the voxels of the mask in some frame, the lowest {lowest:.3g}")
    notes = []
    if count := int(empty.sum()):
        notes.append(f"{count} voxels of the mask have no signal and were taken out of it")
    if count := int(faulty.sum()):
        notes.append(
            f"{count} voxels of the mask have negative or zero signal in some frame (lowest {lowest:.3g}): taken as "
            f"{FLOOR:.0%} of the baseline there"
        )
    if not notes:
        return mask, notes
    kept = torch.zeros_like(mask)
    kept[mask] = ~empty
    return kept, notes


def _positive(mask: Tensor, baseline: Tensor, snr: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The mask without voxels whose baseline is not positive, and what was measured in the others."""
    positive = baseline > 0
    kept = torch.zeros_like(mask)
    kept[mask] = positive
    return kept, baseline[positive], snr[positive]


def _correct(curves: Tensor, noise: Tensor, dt: float) -> float:
    """Correct curves ``[V, T]`` for leakage, in place; returns the median of K2 [1/s].

    The reference is the mean over voxels that are not brighter at the end than before, by one standard deviation of
    the noise ``[V]``.
    """
    intact = curves[:, -_TAIL_FRAMES:].mean(1) > -noise
    reference = curves[intact].mean(0) if bool(intact.any()) else curves.mean(0)
    k2 = []
    for part in curves.split(_AT_ONCE):
        corrected, _, leak = correct_leakage(part, reference, dt)
        part.copy_(corrected)
        k2.append(leak)
    return float(torch.cat(k2).median())


def _no_bolus_in(signal: Tensor, dt: float, item: Mapping[Hashable, Any]) -> QMRIError:
    """Whether the mask is to blame, or the series."""
    head = head_mask(signal)
    curve = mean_curve(signal, head) if bool(head.any()) else torch.zeros(len(signal))
    if float(curve.min()) > 0 and find_frames(curve, dt).bolus:
        return QMRIError(
            file=_file(item), field="mask", found="no bolus in the mask, but one outside of it",
            expected="a mask of the brain: its signal falls with the contrast agent",
            remedy="check that mask and images belong together, or leave the mask out: one is then made",
        )  # fmt: skip
    return _no_bolus(item, "the mask", "")


def _no_bolus(item: Mapping[Hashable, Any], where: str, why: str) -> QMRIError:
    return QMRIError(
        file=_file(item), field="signal", found=f"no bolus in {where}" + (f" ({why})" if why else ""),
        expected="a signal that falls by more than 3 % as the contrast agent passes, and recovers",
        remedy="check that this is a DSC series (gradient or spin echo, T2*- or T2-weighted), that it holds the "
        "passage of the bolus, and that contrast agent was given",
    )  # fmt: skip


def _negative(item: Mapping[Hashable, Any], found: str) -> QMRIError:
    return QMRIError(
        file=_file(item), field="voxel values", found=f"negative or zero signal: {found}", expected="positive signal",
        remedy="give the magnitude images as the scanner made them, not ones with the mean or a baseline taken away, "
        "and a mask that ends with the brain",
    )  # fmt: skip


def _check_count(field: str, values: Sequence[Any], expected: str, lengths: tuple[int, ...] = (0, 1)) -> None:
    if len(values) not in lengths or any(isinstance(v, bool) or not isinstance(v, int) or v < 0 for v in values):
        raise QMRIError(field=field, found=repr(values), expected=expected, remedy="correct the config")


def _file(item: Mapping[Hashable, Any]) -> str | None:
    return next(iter(item.get("sources", [])), None)


def _plain(image: MetaTensor) -> Tensor:
    """The image without MONAI's metadata, on the CPU."""
    tensor: Tensor = image.as_tensor()
    return tensor.cpu()
