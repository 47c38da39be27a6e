"""From volumes as read to what the network sees: lesions found, masked patches, radiomic features."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.inferers import Inferer
from monai.transforms import MapTransform
from torch import Tensor, nn

from .lesions import find_lesions
from .orientation import RasOrder
from .patches import PATCH_SIZE, lesion_geometry, lesion_patches, normalise_flair, reference_qsm
from .radiomics.extract import extract_features

__all__ = ["Featuresd", "LesionInferer", "LesionsInd", "PatchesAsImaged", "SubjectLesions"]

_RADIOMICS = "radiomics"


@dataclass(frozen=True)
class SubjectLesions:
    """The lesions of one subject; volumes in RAS order, rows in the order of the labels.

    Attributes:
        order: between the file and these volumes.
        voxel_size: along X, Y, Z [mm].
        volumes: QSM [ppb] less its median in the brain, and normalised FLAIR ``[2, X, Y, Z]``.
        labels: ``[X, Y, Z]`` int32, 0 for the background and 1..L.
        ids: number of each lesion in table and map: the user's own, where the mask has numbers.
        flags: what is to be known of each lesion.
        geometry: see :func:`.patches.lesion_geometry`.
        statuses: of each lesion's radiomic features, "ok" or why there are none.
    """

    order: RasOrder
    voxel_size: tuple[float, float, float]
    volumes: Tensor
    labels: Tensor
    ids: Sequence[int]
    flags: Sequence[tuple[str, ...]]
    geometry: Mapping[str, Tensor]
    statuses: Sequence[str] = ()


class LesionsInd(MapTransform):
    """Find the lesions of ``item[keys]`` ``[3, H, W, D]`` (QSM [ppb], FLAIR, mask): ``item["lesions"]``.

    The median of the brain's susceptibility becomes 0 and FLAIR is normalised over the brain.

    Args:
        keys: the one key of the volumes, a MetaTensor with their affine.
        brain_key: key of a mask ``[1, H, W, D]``, where there is one; else the brain is where QSM is not 0 and FLAIR
            above it.
        options: of :func:`.lesions.find_lesions`.

    Raises:
        QMRIError: no brain, a FLAIR image without contrast, or what :func:`.lesions.find_lesions` raises.
    """

    def __init__(self, keys: KeysCollection = "image", brain_key: str = "brain", **options: Any) -> None:
        super().__init__(keys)
        self.brain_key, self.options = brain_key, options

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item with ``lesions`` and ``notes``."""
        item = dict(data)
        for key in self.key_iterator(item):
            order = RasOrder.of(item[key].affine)
            qsm, flair, mask = order.to_ras(_plain(item[key]))
            brain = (qsm != 0) & (flair > 0)
            if self.brain_key in item:
                brain = order.to_ras(_plain(item[self.brain_key]))[0] != 0
            sides = item["acquisition"]["voxel_size"].tolist()
            x, y, z = (float(sides[axis]) for axis in order.axes)
            volumes = torch.stack([reference_qsm(qsm, brain), normalise_flair(flair, brain)])
            found = find_lesions(mask.round().to(torch.int32), (x, y, z), brain=brain, **self.options)
            geometry = lesion_geometry(found.labels, (x, y, z))
            item["lesions"] = SubjectLesions(order, (x, y, z), volumes, found.labels, found.ids, found.flags, geometry)
            item["notes"] = [*item.get("notes", []), *found.notes]
        return item


class Featuresd(MapTransform):
    """Make ``item["patches"]`` ``[L, 2, *size]`` and ``item["radiomics"]`` ``[L, 527]`` of the lesions.

    A lesion without radiomic features has a row of NaN, of which the network makes the mean lesion.

    Args:
        keys: key of the lesions, as ``LesionsInd`` finds them.
        size: voxels of a patch along X, Y, Z.
    """

    def __init__(self, keys: KeysCollection = "lesions", size: Sequence[int] = PATCH_SIZE) -> None:
        super().__init__(keys)
        self.size = tuple(int(n) for n in size)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item with ``patches``, ``radiomics``, ``lesions`` and ``notes``."""
        item = dict(data)
        for key in self.key_iterator(item):
            lesions: SubjectLesions = item[key]
            features = extract_features(lesions.volumes[0], lesions.labels, lesions.voxel_size)
            item[key] = replace(lesions, statuses=list(features.status))
            item["patches"] = lesion_patches(lesions.volumes[0], lesions.volumes[1], lesions.labels, self.size)
            item[_RADIOMICS] = features.values
            missing = sum(status != "ok" for status in features.status)
            if missing:
                note = (
                    f"{missing} of {len(features.status)} lesions have no radiomic features, as a few voxels allow "
                    "none: their probabilities come from their images and the features of the mean lesion"
                )
                item["notes"] = [*item.get("notes", []), note]
        return item


class PatchesAsImaged(MapTransform):
    """Make the patches the image, with the radiomic features in its meta data; the volumes go to ``item["volume"]``.

    Programs that feed the image to the network by themselves, such as MONAI Label, then feed the patches, and
    :class:`LesionInferer` finds the features. :class:`.maps.MapsFromTabled` takes the volumes back.

    Args:
        keys: key of the volumes.
        patches_key: key of the patches ``[L, 2, X, Y, Z]``.
    """

    def __init__(self, keys: KeysCollection = "image", patches_key: str = "patches") -> None:
        super().__init__(keys)
        self.patches_key = patches_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item with ``image`` and ``volume``."""
        item = dict(data)
        for key in self.key_iterator(item):
            item["volume"] = item[key]
            item[key] = MetaTensor(item[self.patches_key], meta={_RADIOMICS: item[_RADIOMICS]})
        return item


class LesionInferer(Inferer):
    """Probabilities of all lesions of a subject, some at once.

    Args:
        lesions_at_once: in the network.

    Raises:
        ValueError: a number of lesions that is not positive.
    """

    def __init__(self, lesions_at_once: int = 64) -> None:
        super().__init__()
        if lesions_at_once < 1:
            raise ValueError(f"lesions_at_once must be 1 or more, got {lesions_at_once}")
        self.lesions_at_once = lesions_at_once

    def __call__(
        self, inputs: Tensor, network: nn.Module, radiomics: Tensor | None = None, *_: Any, **__: Any
    ) -> Tensor:
        """Run the network.

        Args:
            inputs: patches ``[L, 2, X, Y, Z]``, or the same with a batch axis of one before.
            network: called with patches and radiomic features.
            radiomics: ``[L, 527]``; None takes those in the meta data of ``inputs``.

        Returns:
            ``[L, seeds]``, with a batch axis of one where the input had one.

        Raises:
            ValueError: no radiomic features in either place.
        """
        if radiomics is None:
            radiomics = getattr(inputs, "meta", {}).get(_RADIOMICS)
        if radiomics is None:
            raise ValueError("radiomics: features [L, 527] are needed, as an argument or in the image's meta data")
        patches = _plain(inputs).flatten(0, inputs.ndim - 5)
        features = _plain(radiomics).to(patches.device, torch.float32).reshape(len(patches), -1)
        parts = zip(patches.split(self.lesions_at_once), features.split(self.lesions_at_once), strict=True)
        found = torch.cat([network(*part) for part in parts])
        return found[None] if inputs.ndim == 6 else found


def _plain(values: Any) -> Tensor:
    """A tensor without MONAI's meta data."""
    plain: Tensor = values.as_tensor() if hasattr(values, "as_tensor") else torch.as_tensor(values)
    return plain
