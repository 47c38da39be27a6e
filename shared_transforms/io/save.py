"""Write maps as a BIDS derivative: all of them, or nothing."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Hashable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
from monai.config import KeysCollection

from shared_transforms.atomic import atomic_write
from shared_transforms.errors import QMRIError
from shared_transforms.io.maps import ParameterMap
from shared_transforms.io.writer import FileWriterd

_BIDS_VERSION = "1.10.0"


class SaveMapsd(FileWriterd):
    """Write the maps in ``item[keys]`` ({BIDS suffix: ParameterMap}) to ``<output_dir>/<stem>/<stem>_<suffix>.nii.gz``.

    Each map gets a JSON sidecar (Units, Description, Sources, EstimationMethod, GeneratedBy with the sha256 of the
    weights) and the folder a ``dataset_description.json``. Every file is complete or absent. Maps of the same series
    (same Sources) are replaced, so that a run can be repeated; those of another series never are.

    Args:
        keys: the one key of the maps.
        output_dir: folder of the derivative; made if missing.
        software_name: for GeneratedBy.
        software_version: for GeneratedBy.
        weights_sha256: sha256 of the network's weights; None for an estimator without any.
        estimation_method: how the maps were computed, in a few words (BIDS EstimationMethod).
        image_key: key of the MetaTensor [N, H, W, D] whose affine and shape the maps have.

    Raises:
        QMRIError: a map of another shape than the image, a stem that another series has taken, or an output folder that
            holds raw data.
    """

    def __init__(
        self,
        keys: KeysCollection = "maps",
        *,
        output_dir: str | Path,
        software_name: str,
        software_version: str,
        weights_sha256: str | None = None,
        estimation_method: str = "",
        image_key: str = "image",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.output_dir = Path(output_dir)
        self.generated_by = {"Name": software_name, "Version": software_version}
        if weights_sha256:
            self.generated_by["WeightsSHA256"] = weights_sha256
        self.estimation_method = estimation_method or software_name
        self.image_key = image_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item with ``files``, the list of the files written, added."""
        item = dict(data)
        written = list(item.get("files", []))
        for key in self.key_iterator(item):
            written += self._save(item, item[key])
        item["files"] = written
        return item

    def _save(self, item: Mapping[Hashable, Any], maps: Mapping[str, ParameterMap]) -> list[str]:
        image = item[self.image_key]
        stem = _checked_stem(str(item["stem"]))
        folder = self.output_dir / stem
        sources = [_relative(Path(s), folder) for s in item["sources"]]
        description = self._description()
        arrays = {suffix: _array(m, suffix, tuple(image.shape[1:])) for suffix, m in maps.items()}
        for suffix in maps:
            self._refuse_collision(folder / f"{stem}_{suffix}.json", sources)
        affine = np.asarray(image.affine, dtype=np.float64)
        contents: dict[Path, bytes] = {}
        for suffix, m in maps.items():
            base = folder / f"{stem}_{suffix}"
            contents[base.with_name(base.name + ".nii.gz")] = self._nifti(arrays[suffix], affine, m)
            contents[base.with_name(base.name + ".json")] = self._sidecar(m, sources, item.get("notes", []))
        # The description goes last: a folder that has it holds complete maps.
        _write_all(contents | {self.output_dir / "dataset_description.json": description})
        return [str(path) for path in contents]

    def _nifti(self, array: npt.NDArray[Any], affine: npt.NDArray[np.float64], m: ParameterMap) -> bytes:
        image = nib.Nifti1Image(array, affine)
        image.set_sform(affine, code="scanner")
        image.set_qform(affine, code="scanner")
        if not np.allclose(image.get_qform(), affine, atol=1e-4):  # a quaternion cannot hold a sheared affine
            image.set_qform(None, code="unknown")
        image.header.set_xyzt_units("mm")
        image.header["cal_min"], image.header["cal_max"] = m.display_range
        image.header["descrip"] = f"{self.generated_by['Name']} {self.generated_by['Version']}"[:79].encode()
        return gzip.compress(image.to_bytes(), compresslevel=3, mtime=0)  # no time stamp: same maps, same bytes

    def _sidecar(self, m: ParameterMap, sources: list[str], notes: list[str]) -> bytes:
        content: dict[str, Any] = {
            "Units": m.unit,
            "Description": m.description,
            "Sources": sources,
            "EstimationMethod": self.estimation_method,
            "GeneratedBy": [self.generated_by],
        }
        if notes:
            content["Notes"] = list(notes)
        return _as_json(content)

    def _description(self) -> bytes:
        """dataset_description.json, with the entries of other programs kept."""
        path = self.output_dir / "dataset_description.json"
        content: dict[str, Any] = {
            "Name": f"Maps by {self.generated_by['Name']}",
            "BIDSVersion": _BIDS_VERSION,
            "DatasetType": "derivative",
            "GeneratedBy": [],
        }
        if path.exists():
            existing = _read_json(path)
            if not existing or existing.get("DatasetType") != "derivative":
                raise QMRIError(
                    file=path, field="output_dir", found="a dataset that is not a derivative (DatasetType)",
                    expected="an empty folder or one with maps", remedy="choose another output_dir",
                )  # fmt: skip
            content |= existing
        programs = content.get("GeneratedBy")
        programs = programs if isinstance(programs, list) else []
        content["GeneratedBy"] = programs if self.generated_by in programs else [*programs, self.generated_by]
        return _as_json(content)

    def _refuse_collision(self, sidecar: Path, sources: list[str]) -> None:
        image = sidecar.with_name(sidecar.stem + ".nii.gz")
        if not sidecar.exists() and not image.exists():
            return
        found = (_read_json(sidecar) or {}).get("Sources") if sidecar.exists() else None
        if found != sources:
            raise QMRIError(
                file=image, field="stem", found=f"maps made from {found or 'an unknown source'}",
                expected=f"no maps of this name, or maps made from {sources}",
                remedy="choose another output_dir, or give this series a stem of its own",
            )  # fmt: skip


def _array(m: ParameterMap, suffix: str, shape: tuple[int, ...]) -> npt.NDArray[Any]:
    if tuple(m.data.shape) != shape:
        raise QMRIError(
            field=suffix, found=f"a map of shape {tuple(m.data.shape)}", expected=f"(H, W, D) = {shape}, as the image",
            remedy="undo crops and padding before the maps are saved",
        )  # fmt: skip
    values = m.data.detach().cpu().numpy()
    if m.kind == "mask":
        return (values != 0).astype(np.uint8)
    if m.kind == "labels":  # unsigned for classes, int32 for many objects: each is read by every viewer
        return values.astype(np.uint8 if int(values.max(initial=0)) < 256 else np.int32)
    return values.astype(np.float32)


def _checked_stem(stem: str) -> str:
    if not stem or stem != Path(stem).name or stem.startswith("."):
        raise QMRIError(field="stem", found=repr(stem), expected="a plain file name", remedy="rename the series")
    return stem


def _write_all(contents: dict[Path, bytes]) -> None:
    """Write every file, or take back those that are new; folders made in vain go too."""
    new = [path for path in contents if not path.exists()]
    folders = sorted({p for path in contents for p in path.parents if not p.exists()}, key=lambda p: -len(p.parts))
    try:
        for path, content in contents.items():
            with atomic_write(path) as file:
                file.write(content)
    except BaseException:
        for path in new:
            path.unlink(missing_ok=True)
        for folder in folders:
            with suppress(OSError):
                folder.rmdir()
        raise


def _relative(source: Path, folder: Path) -> str:
    """The source as seen from the maps: stays right when both are moved together, and tells no machine's layout."""
    try:
        return Path(os.path.relpath(source.resolve(), folder.resolve())).as_posix()
    except ValueError:  # another drive
        return source.as_posix()


def _as_json(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None
