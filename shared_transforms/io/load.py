"""Read one weighted series: headers first, then every voxel once."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform

from shared_transforms.errors import QMRIError
from shared_transforms.io.find import find_series, series_stem
from shared_transforms.io.find_echoes import sidecar_or_none
from shared_transforms.io.geometry import check_same_grid
from shared_transforms.io.nifti import NiftiInfo, nifti_name, read_data, read_header, read_volume
from shared_transforms.io.sidecar import (
    KindRule,
    check_times,
    is_gradient_echo,
    not_magnitude,
    read_repetition_times,
    read_sidecar,
    read_times,
    rule_of,
)

_SIGNED_SHARE = 0.01  # of the voxels that are not zero; interpolation leaves fewer negative ones


@dataclass(frozen=True)
class _Volume:
    info: NiftiInfo
    index: int
    time: float
    repetition_time: float | None


class LoadSeriesd(MapTransform):
    """Read a checked series into an inference item.

    ``item[keys]`` may be a folder that holds one series, one 4-D file, or a list of 3-D files. The item gains
    ``acquisition`` ({"times": [N] s, "repetition_time": [N] s where known}), ``stem``, ``sources`` and ``notes``, and
    ``item[keys]`` becomes a float32 MetaTensor [N, H, W, D] in order of increasing time. ``item["series_times_s"]`` and
    ``item["series_repetition_time_s"]``, where they are there, go before the times of the sidecars.

    Args:
        keys: the one key of the image.
        kind: "inversion_recovery" or "multi_echo".
        skip_first: leave out this many images with the shortest times (the first echo is often spoiled).
        allow_missing_keys: see MapTransform.

    Raises:
        QMRIError: any doubt about the data; see ``load_series``.
    """

    def __init__(
        self,
        keys: KeysCollection = "image",
        kind: str = "inversion_recovery",
        skip_first: int = 0,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        rule_of(kind)
        if len(self.keys) != 1:
            raise ValueError(f"LoadSeriesd reads one series into an item: one key is needed, got {self.keys}")
        self.kind = kind
        self.skip_first = skip_first

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item with the series read; see the class."""
        item = dict(data)
        for key in self.key_iterator(item):
            given = item[key]
            paths = [given] if isinstance(given, str | Path) else list(given)
            if len(paths) == 1 and Path(paths[0]).is_dir():
                found = _only_series(Path(paths[0]), self.kind)
                paths, item["stem"] = found["image"], item.get("stem", found["stem"])
                item["notes"] = [*found["notes"], *item.get("notes", [])]
            given_times = {name: item.get(f"series_{name}") for name in ("times_s", "repetition_time_s")}
            loaded = load_series(paths, self.kind, self.skip_first, **given_times)
            image = loaded.pop("image")
            loaded["stem"] = item.get("stem", loaded["stem"])
            loaded["notes"] = [*item.get("notes", []), *loaded["notes"]]
            item.update(loaded)
            item[key] = image
        return item


def load_series(
    paths: Sequence[str | Path],
    kind: str,
    skip_first: int = 0,
    times_s: Sequence[float] | None = None,
    repetition_time_s: float | None = None,
) -> dict[str, Any]:
    """Read one series.

    Args:
        paths: one 4-D NIfTI file, or one 3-D file for each time, in any order; each with its JSON sidecar.
        kind: "inversion_recovery" or "multi_echo".
        skip_first: leave out this many images with the shortest times.
        times_s: time of every volume, in the order of the files [s], in place of the sidecars'.
        repetition_time_s: likewise, one for all volumes.

    Returns:
        image: MetaTensor [N, H, W, D] float32, magnitude, times increasing; its affine maps (H, W, D) to mm (RAS).
        acquisition: {"times": [N] s} and, for inversion recovery where known, {"repetition_time": [N] s}.
        stem: name for the outputs. sources: the files in order of time. notes: remarks a user must see.

    Raises:
        QMRIError: missing or damaged file, header or sidecar; NaN, infinite or all-zero volumes; complex, colour,
            phase, real or imaginary images; volumes that differ in shape or affine; times that are missing, equal,
            not positive, in milliseconds, not as many as volumes, or not below the repetition time; too few volumes.
    """
    rule = rule_of(kind)
    files = [Path(p) for p in paths]
    given = {rule.field: times_s, "RepetitionTime": repetition_time_s}
    volumes, sidecars = _read_headers(files, rule, {name: value for name, value in given.items() if value is not None})
    volumes.sort(key=lambda v: v.time)
    first = volumes[0].info
    times = [v.time for v in volumes]
    check_times(times, rule, first.path)
    if skip_first < 0:
        raise QMRIError(field="skip_first", found=skip_first, expected="0 or more", remedy="correct the config")
    check_times(times[skip_first:] or times[:1], rule, first.path)
    notes = [note for info in {v.info.path: v.info for v in volumes}.values() for note in info.notes]
    notes += _series_notes(sidecars[0], rule, times[:skip_first])
    volumes = volumes[skip_first:]
    acquisition = {"times": torch.tensor([v.time for v in volumes], dtype=torch.float32)}
    if rule.field == "InversionTime":
        repetition = _repetition_times(volumes)
        if repetition is None:
            notes.append("no RepetitionTime in the sidecar: full recovery between inversions is assumed")
        else:
            acquisition["repetition_time"] = repetition
    values = _read_voxels(volumes)
    notes += _fold(values, rule, first.path)
    return {
        "image": as_meta_tensor(values, first, files[0]),
        "acquisition": acquisition,
        "stem": series_stem(files, sidecars, rule),
        "sources": list(dict.fromkeys(str(v.info.path) for v in volumes)),
        "notes": notes,
    }


def _only_series(folder: Path, kind: str) -> dict[str, Any]:
    found = find_series(folder, kind)
    if len(found) != 1:
        raise QMRIError(
            file=folder, field="image", found=f"{len(found)} series: {', '.join(s['stem'] for s in found[:8])}",
            expected="a folder with one series", remedy="list the series with find_series, and give one item to each",
        )  # fmt: skip
    return found[0]


def _read_headers(
    files: list[Path], rule: KindRule, given: Mapping[str, Any]
) -> tuple[list[_Volume], list[dict[str, Any]]]:
    if not files:
        raise QMRIError(field="image", found="an empty list of files", expected="a series", remedy="give its files")
    volumes: list[_Volume] = []
    sidecars = []
    all_times = given.get(rule.field)
    for file in files:
        info = read_header(file)
        if len(files) > 1 and info.n_volumes > 1:
            raise QMRIError(
                file=file, field="dim", found=f"{info.n_volumes} volumes in one of {len(files)} files",
                expected="one 4-D file, or 3-D files only", remedy="split or join the files of this series",
            )  # fmt: skip
        sidecar = read_sidecar(file) if all_times is None else sidecar_or_none(file)
        if all_times is not None:
            sidecar[rule.field] = _share(all_times, len(volumes), info, last=file == files[-1])
        sidecar |= {name: value for name, value in given.items() if name != rule.field}
        reason = not_magnitude(sidecar, nifti_name(file))
        if reason:
            raise QMRIError(
                file=file, field="ImageType", found=reason, expected="magnitude images",
                remedy="take the magnitude images of the series",
            )  # fmt: skip
        times = read_times(sidecar, rule, file, info.n_volumes)
        repetition = read_repetition_times(sidecar, file, info.n_volumes) if rule.field == "InversionTime" else None
        for i, time in enumerate(times):
            volumes.append(_Volume(info, i, time, repetition[i] if repetition else None))
        sidecars.append(sidecar)
        check_same_grid(volumes[0].info, info)
    return volumes, sidecars


def _share(times: Any, start: int, info: NiftiInfo, last: bool) -> list[float]:
    """Those of all given times that belong to the next file."""
    times = list(times) if isinstance(times, list | tuple) else [times]
    stop = start + info.n_volumes
    if len(times) < stop or (last and len(times) > stop):
        raise QMRIError(
            file=info.path, field="times", found=f"{len(times)} times given for {stop} volumes",
            expected="as many times as volumes, in seconds", remedy="give one time for each volume, in their order",
        )  # fmt: skip
    return times[start:stop]


def _series_notes(sidecar: dict[str, Any], rule: KindRule, skipped: list[float]) -> list[str]:
    notes = []
    if skipped:
        notes.append(f"left out (skip_first): {rule.field} " + ", ".join(f"{t:g} s" for t in skipped))
    if is_gradient_echo(sidecar):
        consequence = {
            "InversionTime": "the readout pulses drive the recovery, so T1 may come out too short",
            "EchoTime": "the decay is that of T2*, not of T2",
        }[rule.field]
        notes.append(f"the sidecar says gradient echo (ScanningSequence {sidecar['ScanningSequence']}): {consequence}")
    return notes


def _repetition_times(volumes: list[_Volume]) -> torch.Tensor | None:
    values: list[float] = []
    for v in volumes:
        if v.repetition_time is None:
            if all(other.repetition_time is None for other in volumes):
                return None
            raise QMRIError(
                file=v.info.path, field="RepetitionTime", found="no such field in the sidecar",
                expected="a repetition time for every image of the series or for none",
                remedy="add RepetitionTime [s] to the sidecar, or remove it from all",
            )  # fmt: skip
        if v.repetition_time <= v.time:
            raise QMRIError(
                file=v.info.path, field="RepetitionTime", found=f"{v.repetition_time:g} s",
                expected=f"more than the inversion time, {v.time:g} s",
                remedy="correct RepetitionTime (the time from one inversion to the next, in seconds) or remove it",
            )  # fmt: skip
        values.append(v.repetition_time)
    return torch.tensor(values, dtype=torch.float32)


def _read_voxels(volumes: list[_Volume]) -> npt.NDArray[np.float32]:
    """[N, H, W, D]: each file is opened once, its volumes go straight to their places."""
    values = np.empty((len(volumes), *volumes[0].info.shape), dtype=np.float32)
    stored, opened = None, None
    for place, v in sorted(enumerate(volumes), key=lambda pair: str(pair[1].info.path)):
        if stored is None or opened != v.info.path:
            stored, opened = read_data(v.info), v.info.path
        read_volume(v.info, stored, v.index, values[place])
    return values


def _fold(values: npt.NDArray[np.float32], rule: KindRule, file: Path) -> list[str]:
    """Make the values magnitudes in place, and say so."""
    negative = sum(int(np.count_nonzero(volume < 0)) for volume in values)
    if negative == 0:
        return []
    share = negative / sum(int(np.count_nonzero(volume)) for volume in values)
    if share < _SIGNED_SHARE:
        note = f"{negative} voxels ({share:.2%}) are slightly negative, as interpolation leaves them"
    elif rule.field == "InversionTime":
        note = f"signed inversion recovery ({share:.0%} of the voxels are negative)"
    else:
        raise QMRIError(
            file=file, field="voxel values", found=f"{share:.0%} of the voxels are negative",
            expected="magnitude images", remedy="take the magnitude images: these look like phase or real parts",
        )  # fmt: skip
    np.abs(values, out=values)
    return [f"{note}: folded to magnitude"]


def as_meta_tensor(values: npt.NDArray[np.float32], info: NiftiInfo, file: Path) -> MetaTensor:
    """A MetaTensor ``[C, H, W, D]`` with what MONAI's writers ask for."""
    affine = torch.from_numpy(info.affine)
    meta = {
        "filename_or_obj": str(file),  # what MONAI's own writers and MONAI Label look for
        "original_affine": affine.clone(),
        "original_channel_dim": 0,
        "spatial_shape": np.asarray(info.shape),
        "space": "RAS",
    }
    return MetaTensor(torch.from_numpy(values), affine=affine, meta=meta)
