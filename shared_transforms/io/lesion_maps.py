"""Read susceptibility map, FLAIR and lesion mask of one subject."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform

from shared_transforms.errors import QMRIError
from shared_transforms.io.find_echoes import sidecar_or_none
from shared_transforms.io.find_lesion_maps import JOINED_VOLUMES, find_lesion_maps, lesion_stem
from shared_transforms.io.geometry import check_same_grid, read_mask
from shared_transforms.io.gradient_echo import fold_magnitude
from shared_transforms.io.load import as_meta_tensor
from shared_transforms.io.nifti import NiftiInfo, nifti_name, read_data, read_header, read_volume
from shared_transforms.io.options import item_options
from shared_transforms.io.sidecar import not_magnitude

__all__ = ["LoadLesionMapsd", "check_lesion_mask", "check_lesion_overlap", "find_lesion_maps", "load_lesion_maps"]

QSM_UNITS = {"ppm": 1000.0, "ppb": 1.0}  # ppb
USUAL_SPREAD = (5.0, 100.0)  # ppb, over the brain: in vivo 10 to 40, strongly smoothed or noisy maps beyond
# A map in the wrong unit is off by 1000, so its spread lies in 5e-3..0.1 or in 5e3..1e5: halfway (geometrically).
_CERTAIN_SPREAD = (0.7, 700.0)  # ppb
MOST_VOXELS, MOST_MILLILITRES = 2_000_000, 400.0  # the largest lesion loads are near 150 ml
_MOST_OUTSIDE = 0.5  # of the lesion voxels
_LEAST_EXTENT = 0.5  # of that of the QSM, along each axis of the head
_Array = npt.NDArray[np.float32]


class LoadLesionMapsd(MapTransform):
    """Read checked QSM, FLAIR and lesion mask into an inference item.

    ``item[keys]`` may be a list of three files (QSM, FLAIR, lesion mask), one 4-D file of the three volumes in this
    order (a fourth is the magnitude), or a folder that holds one subject; ``item["brain"]`` and ``item["magnitude"]``
    may hold paths. The item gains ``acquisition``, ``stem``, ``sources``, ``notes`` and ``details``, and where they are
    known ``brain``, ``magnitude`` and ``flair``, as ``load_lesion_maps`` returns them; ``item[keys]`` becomes a
    MetaTensor [3, X, Y, Z]: QSM [ppb], FLAIR as stored, lesion mask as stored. ``item["qsm_unit"]``, where it is there,
    goes before the option.

    Args:
        keys: the one key of the images.
        qsm_unit: unit of the QSM in place of that in its sidecar, "ppm" or "ppb".
        own_flair_grid: see ``load_lesion_maps``.
        mask_space: likewise.
        allow_missing_keys: see MapTransform.

    Raises:
        QMRIError: any doubt about the data; see ``load_lesion_maps``.
    """

    def __init__(
        self,
        keys: KeysCollection = "image",
        qsm_unit: str | None = None,
        own_flair_grid: bool = False,
        mask_space: str | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        if len(self.keys) != 1:
            raise ValueError(f"LoadLesionMapsd reads one subject into an item: one key is needed, got {self.keys}")
        self.options: dict[str, Any] = {
            "qsm_unit": qsm_unit, "own_flair_grid": own_flair_grid, "mask_space": mask_space,
        }  # fmt: skip

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item with the images read; see the class."""
        item = dict(data)
        for key in self.key_iterator(item):
            given = item[key]
            paths = [given] if isinstance(given, str | Path) else list(given)
            if len(paths) == 1 and Path(paths[0]).is_dir():
                found: dict[Hashable, Any] = dict(_only_subject(Path(paths[0])).items())
                paths = found.pop("image")
                item = {name: item.get(name, found.get(name)) for name in (*found, *item)}
            extras = {name: item.pop(name, None) for name in ("brain", "magnitude")}
            loaded = load_lesion_maps(paths, **extras, **item_options(item, self.options))
            image = loaded.pop("image")
            loaded["stem"] = item.get("stem", loaded["stem"])
            loaded["notes"] = [*item.get("notes", []), *loaded["notes"]]
            item.update(loaded)
            item[key] = image
        return item


def load_lesion_maps(
    files: str | Path | Sequence[str | Path],
    *,
    brain: str | Path | None = None,
    magnitude: str | Path | None = None,
    qsm_unit: str | None = None,
    own_flair_grid: bool = False,
    mask_space: str | None = None,
) -> dict[str, Any]:
    """Read one subject.

    Args:
        files: QSM, FLAIR and lesion mask; or one 4-D file of these volumes, with or without a fourth, the magnitude.
            The unit stands in the sidecar of the QSM or of the 4-D file (``Units``: ppm or ppb).
        brain: NIfTI file on the grid of the QSM, nonzero inside of the brain.
        magnitude: magnitude image on the grid of the QSM, to register with; of several volumes the first. Read only
            with ``own_flair_grid``.
        qsm_unit: "ppm" or "ppb" in place of that in the sidecar.
        own_flair_grid: whether FLAIR (and the lesion mask) may lie on a grid of their own, to be brought to that of the
            QSM by a later transform. False: any difference in shape or affine is an error.
        mask_space: with ``own_flair_grid``, the image that the lesions were drawn on, "qsm" or "flair"; None: that
            whose grid the mask has, the QSM where both have it.

    Returns:
        image: MetaTensor [3, X, Y, Z] float32: QSM [ppb], FLAIR as stored, lesion mask as stored; what ``flair`` holds
        is 0 in it. acquisition: {"voxel_size": [3] mm} float64. brain: boolean [1, X, Y, Z], only where it is given.
        With ``own_flair_grid``: flair: MetaTensor [1, x, y, z] on its own grid, or [2, x, y, z] with the lesion mask;
        magnitude: float32 [1, X, Y, Z], only where it is known. stem: name for the outputs. sources: the files. notes:
        remarks a user must see. details: how the data were read, {what: value}.

    Raises:
        QMRIError: missing or damaged file or header; another number of volumes; NaN, infinite or all-zero volumes; a
            QSM without a unit, or with a spread over the brain (QSM other than 0) that shows another unit: half the
            width of the middle 68 % of the voxels below 0.7 or above 700 ppb (5 to 100 ppb are usual, beyond is
            noted); FLAIR or lesion mask on another grid, or with ``own_flair_grid`` of another head; a lesion mask that
            is empty, holds other than whole numbers from 0, more than 2 million voxels or 400 ml, or lies outside of
            the QSM or of the FLAIR by half or more.
    """
    paths = [Path(p) for p in ([files] if isinstance(files, str | Path) else files)]
    infos, places, notes = _headers(paths)
    chi, flair, mask = infos[:3]
    unit, origin = _unit(sidecar_or_none(chi.path), qsm_unit, chi.path)
    moved = _grids(chi, flair, mask, own_flair_grid, mask_space)
    volumes = _read(infos, places)
    volumes[0] *= QSM_UNITS[unit]
    notes += _check_spread(volumes[0], unit, origin, chi.path)
    notes += fold_magnitude(volumes[1], flair.path)
    check_lesion_mask(volumes[2], mask.voxel_size, mask.path)
    image = np.zeros((3, *chi.shape), dtype=np.float32)
    for index in {0, 1, 2} - set(moved):
        image[index] = volumes[index]
    item: dict[str, Any] = {"image": as_meta_tensor(image, chi, chi.path)}
    if moved:
        item["flair"] = as_meta_tensor(np.stack([volumes[index] for index in moved]), flair, flair.path)
        if len(volumes) > 3 or magnitude is not None:
            values = volumes[3] if magnitude is None else _magnitude(Path(magnitude), chi)
            item["magnitude"] = torch.from_numpy(values)[None]
    else:
        notes += check_lesion_overlap(image, mask.path)
    if brain is not None:
        inside, remarks = read_mask(Path(brain), chi, "brain mask")
        item["brain"], notes = torch.from_numpy(inside)[None], [*notes, *remarks]
    used = [*paths, brain, magnitude if "magnitude" in item else None]
    marked = int(np.count_nonzero(volumes[2]))
    return item | {
        "acquisition": {"voxel_size": torch.tensor(chi.voxel_size, dtype=torch.float64)},
        "stem": lesion_stem(chi.path),
        "sources": [str(p) for p in used if p is not None],
        "notes": list(dict.fromkeys(notes)),
        "details": {
            "Unit of the QSM": f"{unit}, from {origin}",
            "Lesion mask": f"{marked} voxels, {marked * math.prod(mask.voxel_size) / 1000:.2f} ml",
        },
    }


def check_lesion_mask(values: npt.NDArray[Any], voxel_size: Sequence[float], file: str | Path | None = None) -> None:
    """Refuse what is no lesion mask.

    Args:
        values: [X, Y, Z].
        voxel_size: [mm].
        file: where it comes from.

    Raises:
        QMRIError: no voxel marked; other than whole numbers from 0; more than 2 million voxels or 400 ml marked.
    """

    def fail(found: str, expected: str, remedy: str) -> None:
        raise QMRIError(file=file, field="lesion mask", found=found, expected=expected, remedy=remedy)

    odd = ~np.isfinite(values) | (values != np.rint(values)) | (values < 0) | (values > 2**24)
    if odd.any():
        fail(
            f"{int(odd.sum())} values such as {values[odd].flat[0]:g}", "whole numbers: 0 for no lesion, 1 for lesions "
            "or one number for each", "threshold a probability map, and resample a mask by the nearest neighbour",
        )  # fmt: skip
    marked = int(np.count_nonzero(values))
    volume = marked * math.prod(voxel_size) / 1000
    if not marked:
        fail("an empty mask: every voxel is 0", "at least one lesion", "without lesions there is nothing to classify")
    if marked > MOST_VOXELS or volume > MOST_MILLILITRES:
        fail(
            f"{marked} voxels, {volume:.0f} ml", f"lesions: at most {MOST_VOXELS} voxels and {MOST_MILLILITRES:g} ml",
            "give the mask of the lesions, not that of the brain or of a tissue; an inverted one has to be turned",
        )  # fmt: skip


def check_lesion_overlap(image: _Array | torch.Tensor, file: str | Path | None = None) -> list[str]:
    """Remarks on where the lesions lie.

    Args:
        image: [3, X, Y, Z]: QSM, FLAIR, lesion mask.
        file: where the lesion mask comes from.

    Raises:
        QMRIError: half of the lesion voxels or more without QSM, or without FLAIR.
    """
    chi, flair, mask = (np.asarray(channel) for channel in image)
    lesions, notes = mask != 0, []
    marked = int(np.count_nonzero(lesions))
    for name, channel in (("QSM", chi), ("FLAIR", flair)):
        outside = marked - int(np.count_nonzero(channel[lesions]))
        if outside >= _MOST_OUTSIDE * marked:
            raise QMRIError(
                file=file, field="lesion mask", found=f"{outside} of {marked} lesion voxels where the {name} is 0",
                expected=f"lesions within the brain: where the {name} has values",
                remedy=f"give the lesion mask of this {name}, on its grid; look at both together",
            )  # fmt: skip
        if outside:
            notes.append(f"{outside} of {marked} lesion voxels lie where the {name} is 0: outside of its brain")
    return notes


def _only_subject(folder: Path) -> dict[str, Any]:
    found = find_lesion_maps(folder)
    if len(found) != 1:
        raise QMRIError(
            file=folder, field="image", found=f"{len(found)} subjects: {', '.join(s['stem'] for s in found[:8])}",
            expected="a folder with one subject",
            remedy="list the subjects with find_lesion_maps, and give one item to each",
        )  # fmt: skip
    return found[0]


def _headers(paths: Sequence[Path]) -> tuple[list[NiftiInfo], list[int], list[str]]:
    """For QSM, FLAIR, lesion mask and perhaps magnitude: the header, and the volume of its file; remarks."""
    if len(paths) not in (1, 3):
        raise QMRIError(
            field="image", found=f"{len(paths)} files", expected="QSM, FLAIR and lesion mask in this order, or one 4-D "
            "file of the three", remedy="give the files of one subject",
        )  # fmt: skip
    infos = [read_header(path) for path in paths]
    for info in infos:
        joined = len(paths) == 1
        if info.n_volumes not in (JOINED_VOLUMES if joined else (1,)):
            raise QMRIError(
                file=info.path, field="dim", found=f"{info.n_volumes} volume" + "s" * (info.n_volumes > 1),
                expected="QSM, FLAIR and lesion mask: three volumes (a fourth may be the magnitude)" if joined else
                "one volume in each of three files",
                remedy="give three files, or join them to one 4-D file (fslmerge -t OUTPUT QSM FLAIR MASK)",
            )  # fmt: skip
    notes = [note for info in infos for note in info.notes]
    if len(paths) == 1:
        return infos * infos[0].n_volumes, list(range(infos[0].n_volumes)), notes
    reason = not_magnitude(sidecar_or_none(paths[1]), nifti_name(paths[1]))
    if reason:
        raise QMRIError(
            file=paths[1], field="ImageType", found=reason, expected="a FLAIR image", remedy="take the magnitude image"
        )
    return infos, [0] * len(infos), notes


def _unit(sidecar: Mapping[str, Any], given: str | None, file: Path) -> tuple[str, str]:
    """Unit of the QSM, and where it comes from."""
    value = sidecar.get("Units") if given is None else given
    unit = value.strip().lower() if isinstance(value, str) else None
    if unit not in QSM_UNITS:
        raise QMRIError(
            file=file, field="Units" if given is None else "qsm_unit", expected=f"one of {', '.join(QSM_UNITS)}",
            found="no unit in the sidecar" if value is None else repr(value),
            remedy='add {"Units": "ppm"} (or ppb) to the sidecar of the QSM, or give qsm_unit=ppm; a brain spreads by '
            "0.005 to 0.1 ppm, which are 5 to 100 ppb",
        )  # fmt: skip
    return unit, "the sidecar" if given is None else "the config (qsm_unit)"


def _grids(chi: NiftiInfo, flair: NiftiInfo, mask: NiftiInfo, own: bool, space: str | None) -> list[int]:
    """Which of FLAIR (1) and lesion mask (2) are still to be moved to the grid of the QSM."""
    if space not in (None, "qsm", "flair"):
        raise QMRIError(
            field="mask_space", found=repr(space), expected="qsm, flair or null", remedy="correct the config"
        )
    if not own:
        check_same_grid(chi, flair, "give QSM, FLAIR and lesion mask of one patient, let the FLAIR be registered "
                        "(registration)")  # fmt: skip
        check_same_grid(chi, mask, "give the lesion mask of this QSM")
        return []
    _check_same_head(chi, flair)
    if space is None:
        space = "qsm" if _same(chi, mask) or not _same(flair, mask) else "flair"
    check_same_grid(chi if space == "qsm" else flair, mask, f"give the lesion mask of this {space.upper()}")
    return [1, 2] if space == "flair" else [1]


def _same(first: NiftiInfo, other: NiftiInfo) -> bool:
    try:
        check_same_grid(first, other)
    except QMRIError:
        return False
    return True


def _check_same_head(chi: NiftiInfo, flair: NiftiInfo) -> None:
    """A FLAIR that is to be registered: the axes of the head are known, and it covers a good part of the QSM's."""
    for info in (chi, flair):
        if any("no orientation stored" in note for note in info.notes):
            raise QMRIError(
                file=info.path, field="affine", found="no orientation (sform_code and qform_code are 0)",
                expected="an affine that says where the head lies", remedy="convert the DICOM files again (dcm2niix), "
                "or give images on one grid and leave the registration out",
            )  # fmt: skip
    extents = [np.abs(i.affine[:3, :3]) @ np.asarray(i.shape, dtype=np.float64) for i in (chi, flair)]
    for axis, mine, other in zip(("left to right", "back to front", "foot to head"), *extents, strict=True):
        if other < _LEAST_EXTENT * mine:
            raise QMRIError(
                file=flair.path, field="affine", found=f"{other:.0f} mm from {axis}", expected=f"a FLAIR of the whole "
                f"brain, {_LEAST_EXTENT * mine:.0f} mm or more: {chi.path.name} has {mine:.0f} mm",
                remedy="give the FLAIR of this patient, with its orientation as the scanner wrote it",
            )  # fmt: skip


def _read(infos: Sequence[NiftiInfo], places: Sequence[int]) -> list[_Array]:
    """The volumes [X, Y, Z], each on its own grid; a file of several is opened once."""
    stored: dict[Path, npt.NDArray[Any]] = {}
    volumes = []
    for index, (info, place) in enumerate(zip(infos, places, strict=True)):
        if info.path not in stored:
            stored[info.path] = read_data(info)
        values = np.empty(info.shape, dtype=np.float32)
        if index == 2 and not np.any(stored[info.path][..., place]):
            check_lesion_mask(np.zeros(1), info.voxel_size, info.path)  # says that it is empty
        read_volume(info, stored[info.path], place, values)
        volumes.append(values)
    return volumes


def _magnitude(path: Path, chi: NiftiInfo) -> _Array:
    info = read_header(path)
    check_same_grid(chi, info, "give the magnitude of this QSM")
    values = np.empty(info.shape, dtype=np.float32)
    read_volume(info, read_data(info), 0, values)
    return values


def _check_spread(chi: _Array, unit: str, origin: str, file: Path) -> list[str]:
    """Remarks on the spread of the brain [ppb]: half the width of the middle 68 %, which outliers do not move."""
    low, high = np.percentile(chi[chi != 0], (16, 84))
    spread = float(high - low) / 2
    if not _CERTAIN_SPREAD[0] <= spread <= _CERTAIN_SPREAD[1]:
        other, usual = "ppb" if unit == "ppm" else "ppm", f"{USUAL_SPREAD[0]:g} to {USUAL_SPREAD[1]:g} ppb"
        fits = (spread > _CERTAIN_SPREAD[1]) == (unit == "ppm")
        raise QMRIError(
            file=file, field="Units" if origin == "the sidecar" else "qsm_unit", found=f"a spread of {spread:.3g} ppb "
            f"over the brain, if the values are {unit}" + (f": they look like {other}" if fits else ""),
            expected=usual, remedy="give a susceptibility map: neither ppm nor ppb fits its values" if not fits else
            f"declare {other} (Units in the sidecar, or qsm_unit={other})",
        )  # fmt: skip
    if USUAL_SPREAD[0] <= spread <= USUAL_SPREAD[1]:
        return []
    size = "small" if spread < USUAL_SPREAD[0] else "large"
    return [
        f"the QSM spreads by {spread:.2g} ppb over the brain, unusually {size} ({USUAL_SPREAD[0]:g} to "
        f"{USUAL_SPREAD[1]:g} are usual): check its unit and its reconstruction"
    ]
