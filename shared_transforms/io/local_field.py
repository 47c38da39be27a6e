"""Read a map of the local field, in whatever unit it is declared to be."""

from __future__ import annotations

import math
import re
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform

from physics.phase import FREQUENCY_PER_TESLA
from shared_transforms.errors import QMRIError
from shared_transforms.io.find import images_below
from shared_transforms.io.find_echoes import begins_with, find_gradient_echoes, find_mask, sidecar_or_none
from shared_transforms.io.geometry import check_same_grid, find_b0_direction, read_mask
from shared_transforms.io.gradient_echo import checked_sign, field_strength, fold_magnitude, read_files, sign_detail
from shared_transforms.io.load import as_meta_tensor
from shared_transforms.io.nifti import NiftiInfo, nifti_name, read_header
from shared_transforms.io.options import item_options

FIELD_UNITS = ("ppm", "ppb", "Hz", "rad/s")
_FIELD_NAME = re.compile(r"(?i)(local|tissue)[-_ ]?(field|phase)(map)?|lfs|tissuefreq")
_MAGNITUDE_NAME = re.compile(r"(?i)(?<![a-z])(part-mag|magnitude|mag)(?![a-z])")
_NOT_A_FIELD = re.compile(r"(?i)(?<![a-z])(mask|part-mag|magnitude|mag|part-phase|phase|ph|chi_?map|qsm)(?![a-z])")
_LARGE, _SMALL = 1.0, 1e-4  # ppm, root mean square over the mask: beyond these the unit is doubtful
_IMPOSSIBLE = 100.0  # ppm


class LoadLocalFieldd(MapTransform):
    """Read a local field map, with mask and magnitude where they are given, into an inference item.

    ``item[keys]`` is the path of a 3-D NIfTI file; ``item[mask_key]`` and ``item[magnitude_key]`` may hold paths. The
    item gains ``acquisition``, ``mask``, ``stem``, ``sources``, ``notes`` and ``details`` as ``load_local_field``
    returns them, and ``item[keys]`` becomes a MetaTensor [2, X, Y, Z]: field [ppm], magnitude. Where the item has
    a value under the name of one of the four options from ``field_unit`` to ``field_sign``, it goes before the option.

    Args:
        keys: the one key of the field map.
        mask_key: key of the mask.
        magnitude_key: key of the path of the magnitude; removed from the item.
        field_unit: unit of the map in place of that in the sidecar: "ppm", "ppb", "Hz" or "rad/s".
        field_strength_t: field strength [T] in place of that in the sidecar; needed for Hz and rad/s.
        b0_direction: unit vector in voxel axes in place of that of the affine.
        field_sign: 1 where the values grow with the field, -1 where they fall.
        mask_file: mask in place of one that was found.
        magnitude_file: magnitude in place of one that was found.
        allow_missing_keys: see MapTransform.

    Raises:
        QMRIError: any doubt about the data; see ``load_local_field``.
    """

    def __init__(
        self,
        keys: KeysCollection = "image",
        mask_key: str = "mask",
        magnitude_key: str = "magnitude",
        field_unit: str | None = None,
        field_strength_t: float | None = None,
        b0_direction: Sequence[float] | None = None,
        field_sign: int = 1,
        mask_file: str | Path | None = None,
        magnitude_file: str | Path | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        if len(self.keys) != 1:
            raise ValueError(f"LoadLocalFieldd reads one map into an item: one key is needed, got {self.keys}")
        self.mask_key, self.magnitude_key = mask_key, magnitude_key
        self.mask_file, self.magnitude_file = mask_file, magnitude_file
        self.options: dict[str, Any] = {
            "field_unit": field_unit, "field_strength_t": field_strength_t, "b0_direction": b0_direction,
            "field_sign": field_sign,
        }  # fmt: skip

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item with the field read; see the class."""
        item = dict(data)
        for key in self.key_iterator(item):
            given = item[key]
            path = given if isinstance(given, str | Path) else next(iter(given))
            mask = self.mask_file or item.get(self.mask_key)
            magnitude = self.magnitude_file or item.pop(self.magnitude_key, None)
            loaded = load_local_field(path, mask=mask, magnitude=magnitude, **item_options(item, self.options))
            image, inside = loaded.pop("image"), loaded.pop("mask")
            loaded["stem"] = item.get("stem", loaded["stem"])
            loaded["notes"] = [*item.get("notes", []), *loaded["notes"]]
            item.update(loaded)
            item[key], item[self.mask_key] = image, inside
        return item


def find_local_fields(dataset_dir: str | Path) -> list[dict[str, Any]]:
    """List the local field maps of a folder and the folders below it.

    A map is named localfield, local_field, tissue_field or the like; where no file is, the one image that is neither a
    mask nor a magnitude is taken. Derivative datasets are looked through, for that is where such maps lie.

    Args:
        dataset_dir: the folder, or one NIfTI file.

    Returns:
        One dictionary for each map, ordered by stem: ``image`` (path), ``stem``, and ``mask`` and ``magnitude`` (paths)
        where they lie beside it. Each is an input of ``LoadLocalFieldd``.

    Raises:
        QMRIError: no such folder, no field map, or several masks for one map.
    """
    root = Path(dataset_dir)
    if not root.exists():
        raise QMRIError(
            file=root, field="dataset_dir", found="no such folder", expected="a folder with a local field map",
            remedy="check the path (dataset_dir)",
        )  # fmt: skip
    images = images_below(root, derivatives=True)
    maps = images if root.is_file() else [p for p in images if _FIELD_NAME.search(nifti_name(p))]
    plain = [p for p in images if not _NOT_A_FIELD.search(nifti_name(p))]
    if not maps and len(plain) == 1:
        maps = plain
    if not maps:
        names = ", ".join(p.name for p in images[:6]) or "no NIfTI file"
        raise QMRIError(
            file=root, field="dataset_dir", found=names, expected="a local field map named NAME_localfield.nii.gz",
            remedy="point dataset_dir to the map itself; for raw echoes set input_kind to gradient_echo",
        )  # fmt: skip
    alone = len(maps) == 1 and (root.is_dir() or _no_other_map(root))
    found: list[dict[str, Any]] = []
    for path in maps:
        stem = field_stem(path)
        if any(stem == other["stem"] for other in found):
            stem = f"{_safe(path.parent.name)}_{stem}"
        folder = root if root.is_dir() else root.parent
        beside = [p for p in sorted(path.parent.iterdir()) if p in images or root.is_file()]
        item: dict[str, Any] = {"image": str(path), "stem": stem}
        mask = find_mask(path, folder, field_stem(path, ""), alone)
        magnitude = _magnitude_beside(beside, field_stem(path, ""), alone)
        item |= {"mask": str(mask)} if mask else {}
        found.append(item | ({"magnitude": str(magnitude)} if magnitude else {}))
    return sorted(found, key=lambda s: str(s["stem"]))


def _no_other_map(named: Path) -> bool:
    """Whether a run on the folder of a named file finds no other map, to which a nameless mask may belong."""
    images = images_below(named.parent, derivatives=True)
    maps = [p for p in images if _FIELD_NAME.search(nifti_name(p))]
    return not {*(maps or [p for p in images if not _NOT_A_FIELD.search(nifti_name(p))])} - {named}


def find_field_inputs(dataset_dir: str | Path, kind: str) -> list[dict[str, Any]]:
    """List what susceptibility can be mapped from: ``find_gradient_echoes`` or ``find_local_fields``.

    Args:
        dataset_dir: the folder, or one field map.
        kind: "gradient_echo" or "local_field".

    Raises:
        QMRIError: an unknown kind, or what the two raise.
    """
    finders = {"gradient_echo": find_gradient_echoes, "local_field": find_local_fields}
    if kind not in finders:
        raise QMRIError(
            field="input_kind", found=repr(kind), expected=f"one of {', '.join(finders)}", remedy="correct the config"
        )
    return finders[kind](dataset_dir)


def load_local_field(
    path: str | Path,
    *,
    mask: str | Path | None = None,
    magnitude: str | Path | None = None,
    field_unit: str | None = None,
    field_strength_t: float | None = None,
    b0_direction: Sequence[float] | None = None,
    field_sign: int = 1,
) -> dict[str, Any]:
    """Read one local field map.

    Args:
        path: 3-D NIfTI file, with a sidecar that says Units, or without one.
        mask: NIfTI file, nonzero inside; None for the voxels of the map that are not 0.
        magnitude: NIfTI file, 3-D or one volume for each echo (combined by the root of the sum of squares).
        field_unit: see ``LoadLocalFieldd``, as for the following.
        field_strength_t: likewise [T].
        b0_direction: likewise.
        field_sign: likewise.

    Returns:
        image: MetaTensor [2, X, Y, Z] float32: field [ppm], larger where it is stronger, 0 outside of the mask; and
        magnitude, 0 where there is none. mask: boolean [1, X, Y, Z]. acquisition: {"voxel_size": [3] mm,
        "b0_direction": [3] unit vector in voxel axes, and, where it is known, "field_strength": [] T}. stem, sources,
        notes, details: as for gradient echoes.

    Raises:
        QMRIError: missing or damaged file or header; NaN, infinite or all-zero volumes; no unit, or an unknown one; no
            field strength for Hz and rad/s; a B0 direction of another length than one; a mask or magnitude of another
            shape or affine; an empty mask; values that no tissue has.
    """
    file = Path(path)
    info = read_header(file)
    if info.n_volumes > 1:
        raise QMRIError(
            file=file, field="dim", found=f"{info.n_volumes} volumes", expected="one 3-D field map",
            remedy="give one map; for raw echoes set input_kind to gradient_echo",
        )  # fmt: skip
    sidecar = sidecar_or_none(file)
    direction, origin, notes = find_b0_direction(info, sidecar, b0_direction)
    notes = [*info.notes, *notes]
    unit = _unit(sidecar, field_unit, file)
    strength = None
    if unit in ("Hz", "rad/s") or field_strength_t is not None or "MagneticFieldStrength" in sidecar:
        strength = field_strength([sidecar], field_strength_t, file)
    values = np.zeros((2, *info.shape), dtype=np.float32)
    read_files([info], values[:1])
    values[0] *= checked_sign(field_sign) * _ppm_of(unit, strength)
    if mask is None:
        inside = values[0] != 0
        notes.append("no mask given: the voxels of the field map that are not 0 are taken")
    else:
        inside, remarks = read_mask(Path(mask), info)
        notes += remarks
    values[0][~inside] = 0.0
    notes += _check_values(values[0][inside], file)
    if magnitude is not None:
        notes += _add_magnitude(values[1], Path(magnitude), info)
    return {
        "image": as_meta_tensor(values, info, file),
        "mask": torch.from_numpy(inside)[None],
        "acquisition": {
            **({} if strength is None else {"field_strength": torch.tensor(strength, dtype=torch.float64)}),
            "voxel_size": torch.tensor(info.voxel_size, dtype=torch.float64),
            "b0_direction": torch.tensor(direction, dtype=torch.float64),
        },
        "stem": field_stem(file),
        "sources": [str(p) for p in (file, mask, magnitude) if p is not None],
        "notes": notes,
        "details": {"B0 direction from": origin, "Unit of the local field": unit} | sign_detail(field_sign),
    }


def field_stem(path: Path, default: str = "field") -> str:
    """The name of a field map without what says that it is one."""
    return _safe(_FIELD_NAME.sub("", nifti_name(path))) or default


def _safe(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", re.sub(r"[-_ ]{2,}", "_", name)).strip("-_.")


def _magnitude_beside(beside: Sequence[Path], stem: str, alone: bool) -> Path | None:
    found = [p for p in beside if p.is_file() and _MAGNITUDE_NAME.search(nifti_name(p)) and ".nii" in p.name.lower()]
    chosen = begins_with(found, stem) or (found if alone else [])
    return chosen[0] if len(chosen) == 1 else None


def _unit(sidecar: Mapping[str, Any], given: str | None, file: Path) -> str:
    value = sidecar.get("Units") if given is None else given
    known = {u.lower(): u for u in FIELD_UNITS}
    if isinstance(value, str) and value.lower() in known:
        return known[value.lower()]
    raise QMRIError(
        file=file, field="Units" if given is None else "field_unit", expected=f"one of {', '.join(FIELD_UNITS)}",
        found="no unit in the sidecar" if value is None else repr(value),
        remedy="add Units to the sidecar, or give field_unit=ppm; phase [rad] is no field: divide it by 2 pi TE",
    )  # fmt: skip


def _ppm_of(unit: str, strength: float | None) -> float:
    """How many ppm one unit is."""
    if strength is None or unit in ("ppm", "ppb"):
        return 1.0 if unit == "ppm" else 1e-3
    return 1.0 / (FREQUENCY_PER_TESLA * strength * (1.0 if unit == "Hz" else 2.0 * math.pi))


def _check_values(inside: Any, file: Path) -> list[str]:
    deviation = float(np.sqrt(np.mean(np.square(inside, dtype=np.float64))))
    if deviation > _IMPOSSIBLE:
        raise QMRIError(
            file=file, field="voxel values", found=f"a local field of {deviation:.3g} ppm (root mean square)",
            expected="a local field of tissue, 0.001 to 1 ppm", remedy="correct the unit: Units, or field_unit",
        )  # fmt: skip
    if _SMALL <= deviation <= _LARGE:
        return []
    size = "large" if deviation > _LARGE else "small"
    return [f"the local field is unusually {size}, {deviation:.2g} ppm root mean square: check its unit"]


def _add_magnitude(out: Any, path: Path, image: NiftiInfo) -> list[str]:
    info = read_header(path)
    check_same_grid(image, info, "give the magnitude of this map")
    echoes = np.empty((info.n_volumes, *info.shape), dtype=np.float32)
    read_files([info], echoes)
    notes = fold_magnitude(echoes, path)
    out[:] = np.sqrt(np.square(echoes).sum(0)) if len(echoes) > 1 else echoes[0]
    return notes
