"""App of MONAI Label: the bundles of the folder ``model`` beside this file, one map for each request.

It runs in the server's own environment (requirements.txt). MONAI Label's own app for bundles works with them as well;
this one asks no model zoo at its start, answers bad input in words, loads no weights but those of inference.json, and
refuses values that MONAI would evaluate.
"""

import logging
from pathlib import Path
from typing import Any

import torch
from fastapi import HTTPException

try:
    import torchvision  # noqa: F401
except RuntimeError:
    # MONAI Label imports it. Built for CUDA beside a torch for the CPU it lacks operators, which nothing here uses.
    for _missing in ("nms", "qnms"):
        torch.library.define(f"torchvision::{_missing}", "(Tensor dets, Tensor scores, float threshold) -> Tensor")

from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.exception import MONAILabelException
from monailabel.interfaces.tasks.infer_v2 import InferTask
from monailabel.tasks.infer.bundle import BundleInferTask

logger = logging.getLogger(__name__)

_EVALUATED = ("$", "@", "%")  # how a config begins what it evaluates, refers to or reads


def _is_evaluated(value: Any) -> bool:
    """Whether MONAI would evaluate a value, or a part of it, that stands in a config."""
    if isinstance(value, dict):
        return "_target_" in value or any(_is_evaluated(part) for part in (*value, *value.values()))
    if isinstance(value, (list, tuple)):
        return any(_is_evaluated(part) for part in value)
    return isinstance(value, str) and value.startswith(_EVALUATED)


class BundleTask(BundleInferTask):
    """A bundle that answers with one of its maps.

    Args:
        path: folder of the bundle.
        conf: settings of the app.
    """

    def __init__(self, path: str, conf: dict[str, str]) -> None:
        super().__init__(path, conf)
        # Other weights of the folder belong to other networks.
        self._config.pop("model_filename", None)
        # The channels of the network are no segments.
        self.labels: dict[str, int] = {}
        self.dimension = 3

    def _get_network(self, device: str, data: Any) -> torch.nn.Module:
        """The network as the bundle's own inference has it: weights checked, and laid out in memory for the device."""
        if device not in self._networks:
            self._networks[device] = self.bundle_config.get_parsed_content("network", instantiate=True).eval()
        return self._networks[device]

    def __call__(self, request: dict[str, Any], callbacks: dict[Any, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Return the file with the map, and what there is to know of it."""
        file, result = super().__call__(request, callbacks)
        result["label_names"] = result.pop("segments", {})
        return file, result


class QuantitativeMaps(MONAILabelApp):
    """The app.

    Args:
        app_dir: its folder.
        studies: folder of the images.
        conf: settings; ``models``: names of bundles, with commas, of all by default.
    """

    def __init__(self, app_dir: str, studies: str, conf: dict[str, str]) -> None:
        found = {path.parents[1].name: path.parents[1] for path in Path(app_dir).glob("model/*/configs/inference.json")}
        wanted = [name.strip() for name in conf.get("models", "").split(",") if name.strip()] or sorted(found)
        self.bundles = {name: found[name] for name in wanted}
        description = "Maps in physical units from quantitative MRI, by MONAI bundles"
        super().__init__(app_dir, studies, conf, name="qmri-bundles", description=description)

    def init_infers(self) -> dict[str, InferTask]:
        """One task for each bundle."""
        return {name: BundleTask(str(path), self.conf) for name, path in self.bundles.items()}

    def infer(self, request: dict[str, Any], datastore: Any = None) -> dict[str, Any]:
        """Answer a request; bad input ends in an HTTP answer that says what is wrong."""
        for name, value in request.items():
            if _is_evaluated(value):
                raise HTTPException(
                    422, f"{name}: no text may begin with {', '.join(_EVALUATED)}, no key may be _target_"
                )
        try:
            return super().infer(request, datastore)
        except MONAILabelException as error:
            raise HTTPException(404, error.msg) from error
        except Exception as error:
            cause: BaseException | None = error
            # Every packed bundle has an error class of its own, of one name.
            while cause is not None and type(cause).__name__ != "QMRIError":
                cause = cause.__cause__
            if cause is None:
                raise
            logger.info("refused: %s", cause)
            raise HTTPException(422, str(cause)) from error
