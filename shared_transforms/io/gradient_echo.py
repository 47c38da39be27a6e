"""Read magnitude and phase of one multi-echo gradient echo."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform

from shared_transforms.errors import QMRIError
from shared_transforms.io.find_echoes import (
    echo_stem,
    find_gradient_echoes,
    find_joined_mask,
    is_joined,
    part_of,
    sidecar_or_none,
)
from shared_transforms.io.geometry import check_same_grid, find_b0_direction, read_mask
from shared_transforms.io.load import as_meta_tensor
from shared_transforms.io.nifti import NiftiInfo, read_data, read_header, read_volume
from shared_transforms.io.options import item_options
from shared_transforms.io.phase_range import find_phase_range
from shared_transforms.io.sidecar import GRADIENT_ECHO, check_times, read_times

LARGEST_FIELD_STRENGTH = 25.0  # T; a larger number is in another unit
_SAME_TIME = 1e-5  # s
_SIGNED_SHARE = 0.01  # of the voxels; interpolation leaves fewer negative ones


class LoadGradientEchoesd(MapTransform):
    """Read magnitude and phase of a multi-echo gradient echo into an inference item.

    ``item[keys]`` may be the list of magnitudes that ``find_gradient_echoes`` gives, with the phases in
    ``item[phase_key]`` and the mask in ``item[mask_key]``; or a folder that holds one series; or one of its files; or a
    4-D file of all magnitudes, then all phases. The item gains ``acquisition``, ``mask``, ``stem``, ``sources``,
    ``notes`` and ``details`` as ``load_gradient_echoes`` returns them, and ``item[keys]`` becomes a MetaTensor
    [2 N, X, Y, Z]: N magnitudes, then N phases [rad]. Where the item has a value under the name of one of the options
    from ``echo_times_s`` to ``field_sign``, it goes before the option.

    Args:
        keys: the one key of the magnitudes.
        phase_key: key of the paths of the phases; removed from the item.
        mask_key: key of the mask.
        echo_times_s: echo times [s] in place of those in the sidecars.
        field_strength_t: field strength [T] in place of that in the sidecars.
        b0_direction: unit vector in voxel axes in place of that of the affine.
        phase_range: stored values of -pi and pi, where they are not known.
        field_sign: 1 where the phase grows with the field, -1 where it falls.
        mask_file: mask in place of one that was found.
        allow_missing_keys: see MapTransform.

    Raises:
        QMRIError: any doubt about the data; see ``load_gradient_echoes``.
    """

    def __init__(
        self,
        keys: KeysCollection = "image",
        phase_key: str = "phase",
        mask_key: str = "mask",
        echo_times_s: Sequence[float] | None = None,
        field_strength_t: float | None = None,
        b0_direction: Sequence[float] | None = None,
        phase_range: Sequence[float] | None = None,
        field_sign: int = 1,
        mask_file: str | Path | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        if len(self.keys) != 1:
            raise ValueError(f"LoadGradientEchoesd reads one series into an item: one key is needed, got {self.keys}")
        self.phase_key, self.mask_key, self.mask_file = phase_key, mask_key, mask_file
        self.options: dict[str, Any] = {
            "echo_times_s": echo_times_s, "field_strength_t": field_strength_t, "b0_direction": b0_direction,
            "phase_range": phase_range, "field_sign": field_sign,
        }  # fmt: skip

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item with the series read; see the class."""
        item = dict(data)
        for key in self.key_iterator(item):
            options = item_options(item, self.options)
            if self.phase_key not in item and not _both_parts(item[key], options["echo_times_s"]):
                found = _only_series(item[key])
                item[key] = found["image"]
                if "phase" in found:
                    item[self.phase_key] = found["phase"]
                item["stem"] = item.get("stem", found["stem"])
                item["notes"] = [*found["notes"], *item.get("notes", [])]
                item.setdefault(self.mask_key, found.get("mask"))
            elif self.phase_key not in item and self.mask_key not in item:
                file = Path(item[key] if isinstance(item[key], str | Path) else item[key][0])
                item[self.mask_key] = find_joined_mask(file, options["echo_times_s"])
            given = item[key], item.pop(self.phase_key, None)
            magnitude, phase = ([v] if isinstance(v, str | Path) else v for v in given)
            mask = self.mask_file or item.get(self.mask_key)
            loaded = load_gradient_echoes(magnitude, phase, mask=mask, **options)
            image, inside = loaded.pop("image"), loaded.pop("mask")
            loaded["stem"] = item.get("stem", loaded["stem"])
            loaded["notes"] = [*item.get("notes", []), *loaded["notes"]]
            item.update(loaded)
            item[key], item[self.mask_key] = image, inside
        return item


def load_gradient_echoes(
    magnitude: Sequence[str | Path],
    phase: Sequence[str | Path] | None = None,
    *,
    mask: str | Path | None = None,
    echo_times_s: Sequence[float] | None = None,
    field_strength_t: float | None = None,
    b0_direction: Sequence[float] | None = None,
    phase_range: Sequence[float] | None = None,
    field_sign: int = 1,
) -> dict[str, Any]:
    """Read one series.

    Args:
        magnitude: one 4-D NIfTI file, or one 3-D file for each echo, in the order of the echoes.
        phase: the same of the phase; None where the one file of ``magnitude`` has all magnitudes, then all phases.
        mask: NIfTI file, nonzero inside.
        echo_times_s: see ``LoadGradientEchoesd``, as for the following.
        field_strength_t: likewise [T].
        b0_direction: likewise.
        phase_range: likewise.
        field_sign: likewise.

    Returns:
        image: MetaTensor [2 N, X, Y, Z] float32: N magnitudes, then N phases [rad] from -pi to pi, larger where the
        field is stronger; echo times increasing. mask: boolean [1, X, Y, Z], or None. acquisition: {"echo_times":
        [N] s, "field_strength": [] T, "voxel_size": [3] mm, "b0_direction": [3] unit vector in voxel axes}.
        stem: name for the outputs. sources: the files. notes: remarks a user must see. details: how the data
        were read, {what: value}.

    Raises:
        QMRIError: missing or damaged file, header or sidecar; NaN, infinite or all-zero volumes; volumes that differ in
            shape or affine; one echo; echo times that are missing, equal, in milliseconds or not as many as echoes; no
            field strength; a B0 direction of another length than one; phase outside of its range or in a range of
            unknown meaning; a mask that is empty or of another shape.
    """
    joined = phase is None
    files = {"magnitude": [Path(p) for p in magnitude], "phase": [Path(p) for p in phase or ()]}
    infos = {part: [] if joined and not paths else _headers(paths, part) for part, paths in files.items()}
    first = infos["magnitude"][0]
    for info in [*infos["magnitude"], *infos["phase"]]:
        check_same_grid(first, info)
    sidecars = {part: [sidecar_or_none(p) for p in paths] for part, paths in files.items()}
    _check_parts(files, sidecars)
    count = sum(i.n_volumes for i in infos["magnitude"]) // (1 + joined)
    if not joined and count != sum(i.n_volumes for i in infos["phase"]):
        raise QMRIError(
            file=files["phase"][0], field="echoes", expected=f"as many as magnitude images: {count}",
            found=f"{sum(i.n_volumes for i in infos['phase'])} phase images", remedy="give both parts of every echo",
        )  # fmt: skip
    if count < GRADIENT_ECHO.minimum:
        raise QMRIError(
            file=files["magnitude"][0], field="echoes", found="one echo", expected="at least 2 echoes",
            remedy="the field is fitted over the echoes: give all of them, or a local field made otherwise "
            "(input_kind local_field)",
        )  # fmt: skip
    times = _echo_times(infos, sidecars, count, echo_times_s)
    everything = [s for part in sidecars.values() for s in part]
    strength = field_strength(everything, field_strength_t, first.path)
    direction, origin, notes = find_b0_direction(first, _with_field(everything, "B0_dir"), b0_direction)
    notes = [*(note for info in infos["magnitude"] for note in info.notes), *notes]
    values = np.empty((2 * count, *first.shape), dtype=np.float32)
    read_files(infos["magnitude"], values if joined else values[:count])
    notes += fold_magnitude(values[:count], first.path)
    integers = _are_whole(values[count:]) if joined else read_files(infos["phase"], values[count:])
    lowest, highest = float(values[count:].min()), float(values[count:].max())
    unit = _with_field(sidecars["phase"] or sidecars["magnitude"], "Units").get("Units")
    phase_file = (files["phase"] or files["magnitude"])[0]
    scale = find_phase_range(lowest, highest, integers, phase_file, phase_range, unit)
    scale.to_radians(values[count:], checked_sign(field_sign))
    order = sorted(range(count), key=lambda i: times[i])
    if order != list(range(count)):
        values = values[[*order, *(count + i for i in order)]]
    inside = None
    if mask is not None:
        voxels, remarks = read_mask(Path(mask), first)
        inside, notes = torch.from_numpy(voxels)[None], [*notes, *remarks]
    return {
        "image": as_meta_tensor(values, first, files["magnitude"][0]),
        "mask": inside,
        "acquisition": {
            "echo_times": torch.tensor([times[i] for i in order], dtype=torch.float64),
            "field_strength": torch.tensor(strength, dtype=torch.float64),
            "voxel_size": torch.tensor(first.voxel_size, dtype=torch.float64),
            "b0_direction": torch.tensor(direction, dtype=torch.float64),
        },
        "stem": echo_stem(files["magnitude"][0]) or "series",
        "sources": [str(p) for p in [*files["magnitude"], *files["phase"], *([mask] if mask is not None else [])]],
        "notes": notes,
        "details": {"B0 direction from": origin, "Phase as stored": scale.label} | sign_detail(field_sign),
    }


def field_strength(sidecars: Sequence[dict[str, Any]], given: float | None, file: Path) -> float:
    """Field strength [T], from the config or the sidecars.

    Raises:
        QMRIError: missing, no number, not the same in all sidecars, or so large that it is in another unit.
    """
    field = "field_strength_t" if given is not None else "MagneticFieldStrength"
    found = [s[field] for s in sidecars if field in s] if given is None else [given]
    if not found:
        raise QMRIError(
            file=file, field=field, found="no such field in the sidecars", expected="the field strength in tesla",
            remedy=f"add {field} to the sidecar, or give field_strength_t=3",
        )  # fmt: skip
    usable = [v for v in found if isinstance(v, int | float) and not isinstance(v, bool) and v > 0]
    if len(usable) < len(found) or max(usable) > LARGEST_FIELD_STRENGTH or max(usable) - min(usable) > 0.05:
        shown = ", ".join(dict.fromkeys(repr(v) for v in found))
        raise QMRIError(
            file=file if given is None else None, field=field, found=shown,
            expected=f"one field strength in tesla, above 0 and at most {LARGEST_FIELD_STRENGTH:g}",
            remedy="correct it, or give field_strength_t",
        )  # fmt: skip
    return float(usable[0])


def checked_sign(value: Any) -> int:
    """1 or -1.

    Raises:
        QMRIError: anything else.
    """
    if value not in (1, -1) or isinstance(value, bool):
        raise QMRIError(
            field="field_sign", found=repr(value), expected="1 (values grow with the field) or -1",
            remedy="correct field_sign; iron-rich nuclei are bright in a susceptibility map of the right sign",
        )  # fmt: skip
    return int(value)


def sign_detail(sign: int) -> dict[str, str]:
    """What to say of a sign that was turned."""
    return {} if sign > 0 else {"Sign": "turned (field_sign -1)"}


def read_files(infos: Sequence[NiftiInfo], out: npt.NDArray[np.float32]) -> bool:
    """Read every volume of some files into ``out`` [N, X, Y, Z]; returns whether all values are whole numbers.

    Raises:
        QMRIError: see ``read_volume``.
    """
    place, integers = 0, True
    for info in infos:
        stored = read_data(info)
        for index in range(info.n_volumes):
            read_volume(info, stored, index, out[place])
            integers = integers and bool(np.equal(np.rint(out[place]), out[place]).all())
            place += 1
    return integers


def fold_magnitude(values: npt.NDArray[np.float32], file: Path) -> list[str]:
    """Make the few negative voxels of interpolated magnitudes positive, in place, and say so.

    Raises:
        QMRIError: so many that the images are no magnitudes.
    """
    negative = int(np.count_nonzero(values < 0))
    if negative == 0:
        return []
    share = negative / max(int(np.count_nonzero(values)), 1)
    if share >= _SIGNED_SHARE:
        raise QMRIError(
            file=file, field="voxel values", found=f"{share:.0%} of the voxels are negative",
            expected="magnitude images", remedy="take the magnitude images: these look like phase or real parts",
        )  # fmt: skip
    np.abs(values, out=values)
    return [f"{negative} voxels of the magnitude are slightly negative, as interpolation leaves them: made positive"]


def _are_whole(values: npt.NDArray[np.float32]) -> bool:
    return all(bool(np.equal(np.rint(volume), volume).all()) for volume in values)


def _both_parts(given: Any, times: Sequence[float] | None) -> bool:
    """Whether the one file has magnitudes and phases."""
    paths = [given] if isinstance(given, str | Path) else list(given)
    file = Path(paths[0])
    return len(paths) == 1 and file.is_file() and is_joined(file, sidecar_or_none(file), times)


def _only_series(given: Any) -> dict[str, Any]:
    """The one series of a folder, or that of one of its files."""
    paths = [given] if isinstance(given, str | Path) else list(given)
    path = Path(paths[0])
    if not path.exists():
        read_header(path)  # says that there is none
    found = find_gradient_echoes(path)
    if len(found) != 1:
        raise QMRIError(
            file=path, field="image", found=f"{len(found)} series: {', '.join(s['stem'] for s in found[:8])}",
            expected="a folder with one series, or a file of one with magnitude and phase beside it",
            remedy="list the series with find_gradient_echoes, and give one item to each",
        )  # fmt: skip
    return found[0]


def _headers(paths: Sequence[Path], part: str) -> list[NiftiInfo]:
    if not paths:
        raise QMRIError(field=part, found="an empty list of files", expected="the echoes", remedy="give the files")
    infos = [read_header(p) for p in paths]
    if len(infos) > 1 and any(i.n_volumes > 1 for i in infos):
        raise QMRIError(
            file=next(i.path for i in infos if i.n_volumes > 1), field="dim", found=f"a 4-D file among {len(infos)}",
            expected="one 4-D file, or 3-D files only", remedy="split or join the files of this series",
        )  # fmt: skip
    return infos


def _check_parts(files: Mapping[str, Sequence[Path]], sidecars: Mapping[str, Sequence[dict[str, Any]]]) -> None:
    for part, paths in files.items():
        for path, sidecar in zip(paths, sidecars[part], strict=True):
            shown = part_of(path, sidecar)
            if shown == "real or imaginary" or (part == "magnitude" and shown == "phase"):
                raise QMRIError(
                    file=path, field="ImageType", found=f"a {shown} image", expected=f"a {part} image",
                    remedy="give magnitude and phase images as they are",
                )  # fmt: skip


def _echo_times(
    infos: Mapping[str, Sequence[NiftiInfo]],
    sidecars: Mapping[str, Sequence[dict[str, Any]]],
    count: int,
    given: Sequence[float] | None,
) -> list[float]:
    """Echo times in the order of the magnitudes [s]; those of the phases must be the same."""
    file = infos["magnitude"][0].path
    if given is not None:
        times = _given_times(given, count)
    else:
        read = {part: _times_of(infos[part], sidecars[part], count) for part in infos}
        known = [t for t in (read["magnitude"], read["phase"]) if t is not None]
        if not known:
            raise QMRIError(
                file=file, field="EchoTime", found="no such field in the sidecars", expected="echo times in seconds",
                remedy="add EchoTime to the sidecar, or give echo_times_s=[0.005, 0.01, ...]",
            )  # fmt: skip
        times = known[0]
        for other in known[1:]:
            if any(abs(a - b) > _SAME_TIME for a, b in zip(times, other, strict=True)):
                raise QMRIError(
                    file=infos["phase"][0].path, field="EchoTime", found=f"{_ms(other)} ms in the phase images",
                    expected=f"the echo times of the magnitude images, {_ms(times)} ms",
                    remedy="give magnitude and phase of the same echoes",
                )  # fmt: skip
    check_times(sorted(times), GRADIENT_ECHO, file)
    return times


def _times_of(infos: Sequence[NiftiInfo], sidecars: Sequence[dict[str, Any]], count: int) -> list[float] | None:
    """Times of one part; None where none of its sidecars has any."""
    if not any("EchoTime" in s for s in sidecars):
        return None
    try:
        return [
            t
            for info, sidecar in zip(infos, sidecars, strict=True)
            for t in read_times(sidecar, GRADIENT_ECHO, info.path, min(info.n_volumes, count))
        ]
    except QMRIError as error:
        raise QMRIError(
            file=error.file, field=error.field, found=error.found, expected=error.expected,
            remedy=f"{error.remedy}, or give echo_times_s",
        ) from error  # fmt: skip


def _given_times(given: Any, count: int) -> list[float]:
    values = list(given) if isinstance(given, list | tuple) else []
    if len(values) != count or any(isinstance(v, bool) or not isinstance(v, int | float) for v in values):
        raise QMRIError(
            field="echo_times_s", found=repr(given), expected=f"a list of {count} echo times in seconds",
            remedy="give one time for each echo, or null to take those of the sidecars",
        )  # fmt: skip
    return [float(v) for v in values]


def _with_field(sidecars: Sequence[dict[str, Any]], field: str) -> dict[str, Any]:
    return next((s for s in sidecars if field in s), {})


def _ms(times: Sequence[float]) -> str:
    return ", ".join(f"{1e3 * t:g}" for t in times)
