"""Answer one request at a time, as MONAI Label makes them: one file in, one map out.

MONAI Label (0.8.5) reads inference.json alone. An item is its request: ``image`` is the path of one file, and every
value that the user may set (``displayable_configs``) stands beside it. The network is called without arguments, what a
``SaveImaged`` is gets left out, and ``pred`` is written as it is. Nothing here keeps anything from one request to the
next. The values of a request never reach the config, where a text that begins with ``$`` would be evaluated.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from torch import Tensor

from shared_transforms.errors import QMRIError
from shared_transforms.io.maps import ParameterMap

__all__ = ["AnswerMapd", "CarryArgumentsd", "ReadRequestd", "takes_carried_arguments"]

_ARGUMENTS = "network_arguments"
# What MONAI Label itself reads from an item, before and after the transforms.
_SETTINGS = (
    "image_path", "model", "device", "logging", "skip_writer", "result_extension", "result_dtype", "result_compress",
    "result_write_to_file",
)  # fmt: skip


class ReadRequestd(MapTransform):
    """Make an item of a request: ``item[keys]`` is the path of one file.

    What belongs to the file and lies beside it (masks, a second part) is found as in a run on a folder, and the values
    of the request become numbers. Other values, such as the path of a mask, are no part of the item: a request names
    no file but its image. An item that a finder made is returned as it is: it has a ``stem``, and no ``image_path``,
    which MONAI Label gives every request.

    Args:
        keys: the one key of the path.
        find: lists the items of a file, such as ``find_perfusion_series``; None where the file is all there is.
        options: names of values that a request may bring for the loader: numbers, lists, words, or numbers as texts
            such as "0.03", "0.005 0.010" and "[0.005, 0.010]". One that is empty is left to sidecar and config.
        request_key: key of the name of the map that ``AnswerMapd`` gives.

    Raises:
        QMRIError: a path at which there is no file, or what ``find`` raises.
    """

    def __init__(
        self,
        keys: KeysCollection = "image",
        find: Callable[[str], list[dict[str, Any]]] | None = None,
        options: Sequence[str] = (),
        request_key: str = "map",
    ) -> None:
        super().__init__(keys)
        self.find, self.options, self.request_key = find, tuple(options), request_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item, or one made of the request."""
        if "stem" in data and "image_path" not in data:
            return dict(data)
        item = {name: data[name] for name in (*self.keys, self.request_key, *_SETTINGS) if name in data}
        for name in self.options:
            value = _value(data.get(name))
            if value is not None:
                item[name] = value
        for key in self.key_iterator(item):
            if not Path(item[key]).is_file():
                raise QMRIError(
                    field=key, found=f"no file {item[key]!r}", expected="an image of the studies folder",
                    remedy="ask for an image that the server lists, in a NIfTI file",
                )  # fmt: skip
            if self.find is not None:
                item.update(self.find(item[key])[0])
        return item


class CarryArgumentsd(MapTransform):
    """Put what the network needs beside the image into the meta data of the image.

    Args:
        keys: key of the image, a MetaTensor.
        prepare: the ``prepare_batch`` of the evaluator, whose keyword arguments are carried.
    """

    def __init__(self, prepare: Callable[..., tuple[Any, ...]], keys: KeysCollection = "image") -> None:
        super().__init__(keys)
        self.prepare = prepare

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item with the arguments in its image."""
        item = dict(data)
        for key in self.key_iterator(item):
            item[key].meta[_ARGUMENTS] = self.prepare(item)[3]
        return item


def takes_carried_arguments(call: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """For ``__call__`` of an inferer: without keyword arguments it takes those that the image carries."""

    @functools.wraps(call)
    def with_arguments(self: Any, inputs: Tensor, network: Any, *args: Any, **kwargs: Any) -> Tensor:
        if not args and not kwargs:
            carried = getattr(inputs, "meta", {}).get(_ARGUMENTS, {})
            kwargs = {n: v.to(inputs.device) if isinstance(v, Tensor) else v for n, v in carried.items()}
        return call(self, inputs, network, *args, **kwargs)

    return with_arguments


class AnswerMapd(MapTransform):
    """Make one of the maps in ``item[keys]`` ({name: ParameterMap}) the answer of a request.

    ``item["pred"]`` becomes a MetaTensor ``[1, H, W, D]``, float32 (masks uint8, labels that or int32), on the grid of
    the file; ``item["result"]`` has ``map``, ``unit``, ``description``, ``kind``, ``notes``, ``maps`` (all names) and
    ``segments`` ({name: number} of labels and masks). The request says which one in ``item[request_key]``: its name, or
    a list of names of which it is the first. An item without is returned as it is.

    Args:
        keys: key of the maps.
        request_key: key of the name.
        image_key: key of the image ``[C, H, W, D]``, a MetaTensor with the affine of the file.

    Raises:
        QMRIError: no map of this name; the names there are stand in the message.
    """

    def __init__(self, keys: KeysCollection = "maps", request_key: str = "map", image_key: str = "image") -> None:
        super().__init__(keys)
        self.request_key, self.image_key = request_key, image_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item with ``pred`` and ``result``."""
        item = dict(data)
        if self.request_key not in item:
            return item
        for key in self.key_iterator(item):
            maps: Mapping[str, ParameterMap] = item[key]
            wanted = item[self.request_key]
            name = wanted[0] if isinstance(wanted, list) and wanted else wanted
            if not isinstance(name, str) or name not in maps:
                raise QMRIError(
                    file=item["sources"][0], field=self.request_key, found=repr(name),
                    expected=f"one of {', '.join(maps)}", remedy="ask for one of these maps",
                )  # fmt: skip
            chosen, image = maps[name], item[self.image_key]
            values = chosen.data.detach().cpu()
            values = (values != 0 if chosen.kind == "mask" else values).to(_dtype(chosen))
            item["pred"] = MetaTensor(values[None], affine=image.affine)
            item["result"] = {
                "map": name, "unit": chosen.unit, "description": chosen.description, "kind": chosen.kind,
                "notes": list(item.get("notes", [])), "maps": list(maps),
                "segments": _segments(name, chosen.kind, values),
            }  # fmt: skip
        return item


def _dtype(chosen: ParameterMap) -> torch.dtype:
    """As ``SaveMapsd`` writes it."""
    if chosen.kind == "mask" or (chosen.kind == "labels" and int(chosen.data.max()) < 256):
        return torch.uint8
    return torch.int32 if chosen.kind == "labels" else torch.float32


def _segments(name: str, kind: str, values: Tensor) -> dict[str, int]:
    """Names of the numbers in a map that a viewer may show as segments; none for a map of a quantity."""
    if kind == "mask":
        return {name: 1}
    numbers = [int(number) for number in values.unique() if number != 0] if kind == "labels" else []
    return {f"{name} {number}": number for number in numbers}


def _value(given: Any) -> Any:
    """A number, a list of numbers or a word, as text fields hold them; None for an empty one."""
    if not isinstance(given, str):
        return given
    text = given.strip()
    if not text:
        return None
    numbers = text.strip("[]()").replace(",", " ").split()
    try:
        values = [float(number) for number in numbers]
    except ValueError:
        return text
    return values if len(values) > 1 or text[0] in "[(" else values[0]
