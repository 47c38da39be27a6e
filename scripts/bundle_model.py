"""A packed bundle as a model of MLflow: an array in, maps in units out.

MLflow keeps a copy of this file with the model and runs it where the model is loaded. It needs the packages that the
bundle lists and nothing of this repository. The array is written as the one 4-D NIfTI file that the bundle reads, and
the bundle's own inference does the rest, with all its checks.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import threading
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel

STEM = "image"
PROGRAMS = {"imports", "initialize", "run", "finalize", "train", "validate", "evaluator"}  # what a config runs
PLACES = ("_file", "_dir", "_root")  # how names of values end that are files and folders: those of the server


class BundleModel(PythonModel):
    """Inference of the bundle whose zip is the artifact ``bundle``."""

    def load_context(self, context: Any) -> None:
        """Unpack the zip that was registered, and no other.

        Raises:
            ValueError: the zip has another sha256.
        """
        archive = Path(context.artifacts["bundle"])
        if (found := hashlib.sha256(archive.read_bytes()).hexdigest()) != context.model_config["sha256"]:
            raise ValueError(f"{archive} has the sha256 {found}, not {context.model_config['sha256']}: it was changed")
        self._folder = tempfile.TemporaryDirectory(prefix="bundle-")  # lives as long as the model
        with zipfile.ZipFile(archive) as content:
            content.extractall(self._folder.name)
        self._root = Path(self._folder.name) / context.model_config["bundle"]
        self._lock = threading.Lock()
        self._prepared: tuple[str, Any] | None = None

    def predict(
        self, context: Any, model_input: np.ndarray, params: dict[str, Any] | None = None
    ) -> dict[str, np.ndarray]:
        """Maps of one subject.

        Args:
            context: of MLflow.
            model_input: float32 ``[X, Y, Z, N]``, the volumes of the bundle's one 4-D file in their order.
            params: ``affine`` (16 numbers, row by row, voxels to mm) or ``voxel_size_mm`` (3 numbers); ``sidecar``
                (JSON text with BIDS names: times in seconds, units); ``overlay`` (name of a config that
                changes values, such as ``tv.json``); ``overrides`` (JSON text: values of inference.json that differ,
                but no files and folders).

        Returns:
            Maps ``[X, Y, Z]`` by the ends of their names in the bundle's output (``T1map``), in the units of the model
            card.

        Raises:
            ValueError: no voxel size, an overlay or overrides that the bundle has not; or the bundle's QMRIError for
                data that it cannot use.
        """
        given = params or {}
        with self._lock, tempfile.TemporaryDirectory(prefix="request-") as folder:
            file, maps = Path(folder, f"{STEM}.nii.gz"), Path(folder, "maps")
            volumes = model_input[..., 0] if model_input.shape[-1] == 1 else model_input
            nib.save(nib.Nifti1Image(volumes, _affine(given)), file)
            Path(folder, f"{STEM}.json").write_text(given.get("sidecar") or "{}", "utf-8")
            workflow = self._workflow(given.get("overlay") or "", json.loads(given.get("overrides") or "{}"))
            workflow.parser["dataset_dir"], workflow.parser["output_dir"] = str(file), str(maps)
            try:
                workflow.run()
            except RuntimeError as error:
                raise _cause(error) from None
            files = sorted(maps.rglob("*.nii.gz"))
            return {_name(path): np.asarray(nib.load(path).dataobj) for path in files}

    def _workflow(self, overlay: str, overrides: Mapping[str, Any]) -> Any:
        """The bundle's inference with its network loaded, kept until another overlay or other values are asked for."""
        from monai.bundle import ConfigWorkflow

        key = json.dumps([overlay, overrides], sort_keys=True)
        if self._prepared is None or self._prepared[0] != key:
            files = _files(self._root / "configs", overlay)
            _refuse_all_but_values(overrides, json.loads(files[0].read_text("utf-8")))
            workflow = ConfigWorkflow(
                config_file=[str(path) for path in files],
                workflow_type="infer", logging_file=False, bundle_root=str(self._root), **overrides,
            )  # fmt: skip
            try:
                workflow.initialize()
                workflow.parser["network"] = workflow.parser.get_parsed_content("network")
            except RuntimeError as error:
                raise _cause(error) from None
            self._prepared = key, workflow
        return self._prepared[1]


def _files(configs: Path, overlay: str) -> list[Path]:
    """inference.json and one of the bundle's overlays: a client of a server may name no other file."""
    overlays = {path.name: path for path in sorted(configs.glob("*.json")) if _is_overlay(path)}
    if overlay and overlay not in overlays:
        raise ValueError(f"overlay {overlay!r} is none of the bundle's overlays: {', '.join(overlays)}")
    return [configs / "inference.json", *([overlays[overlay]] if overlay else [])]


def _is_overlay(path: Path) -> bool:
    """Whether a config only changes values: one that says what runs would replace the inference, by a training say."""
    return path.name != "metadata.json" and not PROGRAMS & json.loads(path.read_text("utf-8")).keys()


def _refuse_all_but_values(overrides: Any, config: Mapping[str, Any]) -> None:
    """Overrides come from clients, and MONAI would run an expression or build an object in them."""
    allowed = {name for name, value in config.items() if _is_plain(value) and not name.endswith(PLACES)}
    if not isinstance(overrides, dict):
        raise ValueError(f"overrides are a {type(overrides).__name__}, not an object of names and values")
    for name, value in overrides.items():
        if name not in allowed:
            raise ValueError(f"overrides: {name!r} is none of the values {', '.join(sorted(allowed))}")
        if not _is_plain(value):
            raise ValueError(f"overrides: {name} is {value!r}: numbers, texts that are no expression, and lists only")


def _is_plain(value: Any) -> bool:
    if isinstance(value, list):
        return all(_is_plain(item) for item in value)
    if isinstance(value, str):
        return not value.lstrip().startswith(("$", "@", "%"))
    return value is None or isinstance(value, bool | int | float)


def _affine(given: Mapping[str, Any]) -> np.ndarray:
    for name, count in (("affine", 16), ("voxel_size_mm", 3)):
        values = np.asarray(given.get(name) if given.get(name) is not None else [], dtype=float)
        if values.size == count:
            return values.reshape(4, 4) if count == 16 else np.diag([*values, 1.0])
        if values.size:
            raise ValueError(f"{name} has {values.size} numbers, not {count}")
    raise ValueError("give params voxel_size_mm (3 numbers) or affine (16 numbers, row by row)")


def _name(path: Path) -> str:
    return path.name.removesuffix(".nii.gz").removeprefix(f"{STEM}_")


def _cause(error: BaseException) -> BaseException:
    """The bundle's own error, which MONAI wraps; else the error itself."""
    cause: BaseException | None = error
    while cause is not None and type(cause).__name__ != "QMRIError":
        cause = cause.__cause__
    return cause or error


set_model(BundleModel())
