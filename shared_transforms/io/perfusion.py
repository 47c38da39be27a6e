"""Read one DSC series: the frames of a bolus of contrast agent."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform

from shared_transforms.errors import QMRIError
from shared_transforms.io.find_echoes import sidecar_or_none
from shared_transforms.io.find_perfusion import FEWEST_FRAMES, find_perfusion_series, perfusion_stem
from shared_transforms.io.geometry import read_mask
from shared_transforms.io.gradient_echo import read_files
from shared_transforms.io.load import as_meta_tensor
from shared_transforms.io.nifti import NiftiInfo, nifti_name, read_header
from shared_transforms.io.options import item_options
from shared_transforms.io.sidecar import not_magnitude

__all__ = ["LoadPerfusionSeriesd", "find_perfusion_series", "load_perfusion_series"]

REPETITION_TIMES = (0.1, 10.0)  # s between two frames
ECHO_TIMES = (0.002, 0.2)  # s
COARSE = 2.5  # s between two frames, beyond which an arterial peak falls between them
_DISAGREE = 0.05


class LoadPerfusionSeriesd(MapTransform):
    """Read a checked DSC series into an inference item.

    ``item[keys]`` may be a 4-D file, or a folder that holds one series. The item gains ``acquisition``, ``mask``,
    ``stem``, ``sources``, ``notes`` and ``details`` as ``load_perfusion_series`` returns them, and ``item[keys]``
    becomes a MetaTensor [T, X, Y, Z]: the signal as it was stored. ``item["repetition_time_s"]`` and
    ``item["echo_time_s"]``, where they are there, go before the options of the same name.

    Args:
        keys: the one key of the series.
        repetition_time_s: time between two frames [s] in place of that in the sidecar.
        echo_time_s: echo time [s] in place of that in the sidecar.
        mask_file: mask of the brain in place of one that was found.
        mask_key: key of the mask.
        allow_missing_keys: see MapTransform.

    Raises:
        QMRIError: any doubt about the data; see ``load_perfusion_series``.
    """

    def __init__(
        self,
        keys: KeysCollection = "image",
        repetition_time_s: float | None = None,
        echo_time_s: float | None = None,
        mask_file: str | Path | None = None,
        mask_key: str = "mask",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        if len(self.keys) != 1:
            raise ValueError(f"LoadPerfusionSeriesd reads one series into an item: one key is needed, got {self.keys}")
        self.options = {"repetition_time_s": repetition_time_s, "echo_time_s": echo_time_s}
        self.mask_file, self.mask_key = mask_file, mask_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item with the series read; see the class."""
        item = dict(data)
        for key in self.key_iterator(item):
            path = _only_file(item[key])
            if path.is_dir():
                found = _only_series(path)
                path = Path(found.pop("image"))
                item = {name: item.get(name, found.get(name)) for name in (*found, *item)}
            mask = self.mask_file or item.get(self.mask_key)
            loaded = load_perfusion_series(path, mask=mask, **item_options(item, self.options))
            image, inside = loaded.pop("image"), loaded.pop("mask")
            loaded["stem"] = item.get("stem", loaded["stem"])
            loaded["notes"] = [*item.get("notes", []), *loaded["notes"]]
            item.update(loaded)
            item[key], item[self.mask_key] = image, inside
        return item


def load_perfusion_series(
    path: str | Path,
    *,
    mask: str | Path | None = None,
    repetition_time_s: float | None = None,
    echo_time_s: float | None = None,
) -> dict[str, Any]:
    """Read one series.

    Args:
        path: 4-D NIfTI file, time last; its sidecar has RepetitionTime and EchoTime [s].
        mask: NIfTI file, nonzero inside of the brain.
        repetition_time_s: see ``LoadPerfusionSeriesd``.
        echo_time_s: likewise.

    Returns:
        image: MetaTensor [T, X, Y, Z] float32, signal as stored, of arbitrary unit. mask: boolean [1, X, Y, Z], or
        None. acquisition: {"repetition_time": [] s, the time between two frames, "echo_time": [] s, "voxel_size": [3]
        mm} float64. stem: name for the outputs. sources: the files. notes: remarks a user must see. details: how the
        data were read, {what: value}.

    Raises:
        QMRIError: missing or damaged file, header or sidecar; a 3-D file, fewer than 20 frames; complex, colour, phase
            or real images; NaN, infinite or all-zero frames; repetition or echo time missing, in milliseconds, of
            impossible size, or several; frames at unequal times; a mask that is empty or on another grid.
    """
    file = Path(path)
    info = read_header(file)
    sidecar = sidecar_or_none(file)
    reason = not_magnitude(sidecar, nifti_name(file))
    if reason:
        raise QMRIError(
            file=file, field="ImageType", found=reason, expected="magnitude images",
            remedy="take the magnitude images of the series",
        )  # fmt: skip
    _check_frames(info)
    echo_time = checked_time(sidecar, "EchoTime", "echo_time_s", echo_time_s, ECHO_TIMES, info)
    repetition_time, notes = _frame_time(sidecar, repetition_time_s, info)
    if echo_time >= repetition_time:
        raise QMRIError(
            file=file, field="EchoTime", found=f"{echo_time:g} s, and {repetition_time:g} s between two frames",
            expected="an echo time below the repetition time", remedy="correct the two in the sidecar, in seconds",
        )  # fmt: skip
    notes = [*info.notes, *notes]
    values = np.empty((info.n_volumes, *info.shape), dtype=np.float32)
    read_files([info], values)
    inside = None
    if mask is not None:
        voxels, remarks = read_mask(Path(mask), info)
        inside, notes = torch.from_numpy(voxels)[None], [*notes, *remarks]
    return {
        "image": as_meta_tensor(values, info, file),
        "mask": inside,
        "acquisition": {
            "repetition_time": torch.tensor(repetition_time, dtype=torch.float64),
            "echo_time": torch.tensor(echo_time, dtype=torch.float64),
            "voxel_size": torch.tensor(info.voxel_size, dtype=torch.float64),
        },
        "stem": perfusion_stem(file),
        "sources": [str(p) for p in (file, mask) if p is not None],
        "notes": notes,
        "details": {"Frames": f"{info.n_volumes}, {info.n_volumes * repetition_time:.0f} s"},
    }


def _only_file(given: Any) -> Path:
    """The one path of an item."""
    paths = [given] if isinstance(given, str | Path) else list(given)
    if len(paths) != 1:
        raise QMRIError(
            field="image", found=f"{len(paths)} files", expected="one 4-D file",
            remedy="join the frames of the series to one file (dcm2niix does); give one echo only",
        )  # fmt: skip
    return Path(paths[0])


def _only_series(folder: Path) -> dict[Hashable, Any]:
    found = find_perfusion_series(folder)
    if len(found) != 1:
        raise QMRIError(
            file=folder, field="image", found=f"{len(found)} series: {', '.join(s['stem'] for s in found[:8])}",
            expected="a folder with one series",
            remedy="list the series with find_perfusion_series, and give one item to each",
        )  # fmt: skip
    series: dict[Hashable, Any] = dict(found[0].items())
    return series


def _check_frames(info: NiftiInfo) -> None:
    if info.n_volumes >= FEWEST_FRAMES:
        return
    lone = info.n_volumes == 1
    raise QMRIError(
        file=info.path, field="dim", found="a 3-D file" if lone else f"{info.n_volumes} frames",
        expected=f"a 4-D file with {FEWEST_FRAMES} frames or more, time last",
        remedy="join the frames to one 4-D file: dcm2niix does so" if lone else "give the whole series: a passage of "
        "the bolus lasts some 40 s, and needs frames before and after",
    )  # fmt: skip


def _frame_time(sidecar: dict[str, Any], given: float | None, info: NiftiInfo) -> tuple[float, list[str]]:
    """Time between two frames [s], and remarks: RepetitionTime, or a VolumeTiming of equal steps (BIDS)."""
    if given is None and "RepetitionTime" not in sidecar and "VolumeTiming" in sidecar:
        sidecar = {"RepetitionTime": _step_of(sidecar["VolumeTiming"], info)}
    time = checked_time(sidecar, "RepetitionTime", "repetition_time_s", given, REPETITION_TIMES, info)
    notes = []
    if info.time_step is not None and abs(info.time_step - time) > _DISAGREE * time:
        origin = "repetition_time_s" if given is not None else "the sidecar"
        notes.append(
            f"{info.path.name}: the header says {info.time_step:g} s between two frames (pixdim[4]), {origin} {time:g} "
            f"s; {time:g} s is used. Flow and transit times are proportional to it: check it"
        )
    if time > COARSE:
        notes.append(
            f"{time:g} s between two frames is coarse (at most {COARSE:g} s is usual): the peak of the artery falls "
            "between frames, and CBF and Tmax suffer"
        )
    return time, notes


def _step_of(value: Any, info: NiftiInfo) -> float:
    """The step of a list of times."""
    times = np.asarray(value if _are_numbers(value) else [], dtype=np.float64)
    steps = np.diff(times)
    if len(times) != info.n_volumes or not np.allclose(steps, steps.mean(), rtol=0.01, atol=1e-3):
        raise QMRIError(
            file=info.path, field="VolumeTiming", found=f"{len(times)} times for {info.n_volumes} frames"
            if len(times) != info.n_volumes else f"steps from {steps.min():g} to {steps.max():g} s",
            expected="a time for every frame, in equal steps", remedy="resample the series to equal steps, or correct "
            "the sidecar: RepetitionTime is enough",
        )  # fmt: skip
    return float(steps.mean())


def checked_time(
    sidecar: dict[str, Any], field: str, option: str, given: float | None, limits: tuple[float, float], info: NiftiInfo
) -> float:
    """One time [s] from the config or the sidecar.

    Args:
        sidecar: that of the image.
        field: its field, as "EchoTime".
        option: name of the config value that replaces it.
        given: the config value, or None.
        limits: shortest and longest time that a scan has.
        info: header of the image.

    Raises:
        QMRIError: missing, no number, several different ones, in milliseconds, or of a size that no scan has.
    """

    def fail(found: str, remedy: str) -> QMRIError:
        return QMRIError(
            file=info.path, field=field if given is None else option, found=found,
            expected=f"one number of seconds, {limits[0]:g} to {limits[1]:g}", remedy=remedy,
        )  # fmt: skip

    if given is None and field not in sidecar:
        header = f" (the header says {info.time_step:g} s)" if option == "repetition_time_s" and info.time_step else ""
        raise fail(f"no such field in the sidecar{header}", f"add {field} to the sidecar, or give {option}=SECONDS")
    value = sidecar[field] if given is None else given
    values = value if isinstance(value, list) else [value]
    if not values or not _are_numbers(values):
        raise fail(repr(value), f"correct {field} in the sidecar, or give {option}=SECONDS")
    if max(values) - min(values) > 1e-6:
        shown = ", ".join(f"{v:g}" for v in dict.fromkeys(values))
        raise fail(f"several: {shown}", "split the file by echo time and give one echo" if field == "EchoTime" else
                   "resample the series to equal steps")  # fmt: skip
    time = float(values[0])
    if not limits[0] <= time <= limits[1]:
        looks = limits[0] <= time / 1000 <= limits[1]
        raise fail(
            f"{time:g}" + (", which looks like milliseconds" if looks else ""),
            "divide it by 1000: dcm2niix and BIDS use seconds" if looks else f"correct {field}, or give {option}",
        )
    return time


def _are_numbers(values: Any) -> bool:
    return isinstance(values, list) and all(
        isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v) for v in values
    )
