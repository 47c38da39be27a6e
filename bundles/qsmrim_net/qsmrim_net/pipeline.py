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
from .resample import to_voxels

__all__ = ["Featuresd", "LesionInferer", "LesionsInd", "PatchesAsImaged", "SubjectLesions"]

_RADIOMICS = "radiomics"
_SAME_SIZE = 0.05  # relative difference of a voxel's side up to which nothing is resampled


@dataclass(frozen=True)
class SubjectLesions:
    """The lesions of one subject; volumes in RAS order on the voxels of the file, rows in the order of the labels.

    Attributes:
        order: between the file and these volumes.
        voxel_size: along X, Y, Z [mm].
        volumes: QSM [ppb] less its median in the brain, and normalised FLAIR ``[2, X, Y, Z]``.
        brain: boolean ``[X, Y, Z]``.
        labels: ``[X, Y, Z]`` int32, 0 for the background and 1..L.
        ids: number of each lesion in table and map: the user's own, where the mask has numbers.
        flags: what is to be known of each lesion.
        geometry: see :func:`.patches.lesion_geometry`.
        statuses: of each lesion's radiomic features, "ok" or why there are none.
    """

    order: RasOrder
    voxel_size: tuple[float, float, float]
    volumes: Tensor
    brain: Tensor
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
        size: voxels of the network's patch along X, Y, Z, for the flag of lesions that are larger.
        voxel_size_mm: of these voxels; None for those of the file.
        brain_key: key of a mask ``[1, H, W, D]``, where there is one; else the brain is where QSM is not 0 and FLAIR
            above it.
        options: of :func:`.lesions.find_lesions`.

    Raises:
        QMRIError: no brain, a FLAIR image without contrast, or what :func:`.lesions.find_lesions` raises.
    """

    def __init__(
        self,
        keys: KeysCollection = "image",
        size: Sequence[int] = PATCH_SIZE,
        voxel_size_mm: Sequence[float] | None = None,
        brain_key: str = "brain",
        **options: Any,
    ) -> None:
        super().__init__(keys)
        self.size, self.voxel_size = tuple(size), voxel_size_mm
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
            wanted = self.voxel_size or (x, y, z)
            patch = [max(1, round(n * w / v)) for n, w, v in zip(self.size, wanted, (x, y, z), strict=True)]
            whole = mask.round().to(torch.int32)
            found = find_lesions(whole, (x, y, z), brain=brain, patch_size=patch, **self.options)
            item["lesions"] = SubjectLesions(
                order, (x, y, z), _normalised(qsm, flair, brain), brain, found.labels, found.ids, found.flags,
                lesion_geometry(found.labels, (x, y, z)),
            )  # fmt: skip
            item["notes"] = [*item.get("notes", []), *found.notes]
        return item


class Featuresd(MapTransform):
    """Make ``item["patches"]`` ``[L, 2, *size]`` and ``item["radiomics"]`` ``[L, 527]`` of the lesions.

    Volumes and labels with other voxels than those of the training are brought to these first; place and size of the
    lesions stay those of the file. A lesion without radiomic features has a row of NaN, of which the network makes the
    mean lesion.

    Args:
        keys: key of the lesions, as ``LesionsInd`` finds them.
        size: voxels of a patch along X, Y, Z.
        voxel_size_mm: of the training, along X, Y, Z; None takes the voxels of the file.
        image_key: key of the volumes ``[3, H, W, D]``.
    """

    def __init__(
        self,
        keys: KeysCollection = "lesions",
        size: Sequence[int] = PATCH_SIZE,
        voxel_size_mm: Sequence[float] | None = None,
        image_key: str = "image",
    ) -> None:
        super().__init__(keys)
        self.size = tuple(size)
        self.voxel_size, self.image_key = voxel_size_mm, image_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item with ``patches``, ``radiomics``, ``lesions`` and ``notes``."""
        item = dict(data)
        for key in self.key_iterator(item):
            lesions: SubjectLesions = item[key]
            (qsm, flair), labels, sides, notes = self._on_training_voxels(lesions, item[self.image_key])
            features = extract_features(qsm, labels, sides)
            # A lesion between larger voxels may have none of them: it stays a row.
            missing = len(lesions.ids) - len(features.status)
            statuses = [*features.status, *(["empty"] * missing)]
            item[key] = replace(lesions, statuses=statuses)
            item["patches"] = _with_rows(lesion_patches(qsm, flair, labels, self.size), missing, 0.0)
            item[_RADIOMICS] = _with_rows(features.values, missing, torch.nan)
            without = sum(status != "ok" for status in statuses)
            if without:
                notes.append(
                    f"{without} of {len(statuses)} lesions have no radiomic features, as so few voxels allow none: "
                    "their probabilities come from their images and the features of the mean lesion"
                )
            item["notes"] = [*item.get("notes", []), *notes]
        return item

    def _on_training_voxels(
        self, lesions: SubjectLesions, image: Tensor
    ) -> tuple[Tensor, Tensor, tuple[float, ...], list[str]]:
        """QSM and FLAIR ``[2, X, Y, Z]``, labels, the voxel size, and a remark where these are not the file's."""
        wanted = tuple(self.voxel_size or lesions.voxel_size)
        if all(abs(a / b - 1.0) <= _SAME_SIZE for a, b in zip(lesions.voxel_size, wanted, strict=True)):
            return lesions.volumes, lesions.labels, lesions.voxel_size, []
        raw = torch.cat([lesions.order.to_ras(_plain(image))[:2], lesions.brain[None].float()])
        (qsm, flair, brain), labels = to_voxels(raw, lesions.labels, lesions.voxel_size, wanted)
        given, trained = (" x ".join(f"{side:.3g}" for side in sides) for sides in (lesions.voxel_size, wanted))
        note = (
            f"The voxels are {given} mm (right, front, top). Patches and features were made on those of the training, "
            f"{trained} mm; where the image has coarser ones, thin rims may be missed"
        )
        return _normalised(qsm, flair, brain > 0), labels, wanted, [note]


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


def _normalised(qsm: Tensor, flair: Tensor, brain: Tensor) -> Tensor:
    """``[2, X, Y, Z]``."""
    return torch.stack([reference_qsm(qsm, brain), normalise_flair(flair, brain)])


def _with_rows(values: Tensor, more: int, fill: float) -> Tensor:
    """The tensor with more rows of one value at its end."""
    return torch.cat([values, values.new_full((more, *values.shape[1:]), fill)])
