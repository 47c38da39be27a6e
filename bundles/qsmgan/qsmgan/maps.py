"""From the susceptibility of a network or a classical method to maps in ppm, with a reference and the residual."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform
from torch import Tensor

from physics.dipole import field_from_susceptibility
from shared_transforms.errors import QMRIError
from shared_transforms.io import ParameterMap

from .reference import zero_of

PLAUSIBLE_PPM = 1.0  # tissue lies within; calcifications and blood may not
BEYOND_NOISE = 2.0  # times the noise of the field, where it is known
UNEXPLAINED = 0.7  # relative residual above which the map explains less than half of the energy of the field


class MapsFromFieldd(MapTransform):
    """Turn ``item["pred"]`` into ``item["maps"]``: susceptibility, local field, residual and mask.

    A susceptibility map is known up to a constant; ``reference`` says what is zero in it.

    The residual puts the susceptibility, before it is referenced, back through the dipole: measured local field minus
    that of the map, less its mean over the mask, which no local field determines.

    Args:
        keys: key of the susceptibility ``[1, X, Y, Z]`` [ppm]; a batch axis of one is dropped.
        reference: "none", "mean", "roi" or "csf", as given to ``ReferenceRegiond`` and ``ReferenceInMaskd``.
        image_key: key of local field [ppm] and magnitude ``[2, X, Y, Z]``, likewise.
        mask_key: key of the mask ``[1, X, Y, Z]``, boolean.

    Raises:
        QMRIError: a map that is not finite.
    """

    def __init__(
        self,
        keys: KeysCollection = "pred",
        reference: str = "mean",
        image_key: str = "image",
        mask_key: str = "mask",
    ) -> None:
        super().__init__(keys)
        self.reference = reference
        self.image_key, self.mask_key = image_key, mask_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item with ``maps``, ``residual`` (relative root mean square), ``notes`` and ``details``."""
        item = dict(data)
        image = item[self.image_key]
        item[self.image_key] = image[0] if image.ndim == 5 else image
        field, mask = _plain(item[self.image_key])[0], item[self.mask_key].cpu().reshape(image.shape[-3:])
        voxel_size, b0_direction = (item["acquisition"][name].tolist() for name in ("voxel_size", "b0_direction"))
        for key in self.key_iterator(item):
            chi = _plain(item[key]).reshape(field.shape) * mask
            if not bool(torch.isfinite(chi).all()):
                raise QMRIError(
                    file=item["sources"][0], field="susceptibility", found="NaN or infinite voxels in the result",
                    expected="finite numbers", remedy="report this with the input: the method did not converge",
                )  # fmt: skip
            residual = field - field_from_susceptibility(chi, voxel_size, b0_direction)
            residual = (residual - residual[mask].mean()) * mask
            offset, zero = zero_of(chi, mask, item, self.reference)
            item["details"] = {**item.get("details", {}), "Susceptibility is relative to": zero}
            unexplained = float(residual[mask].square().mean().sqrt())
            item["residual"] = unexplained / (float(_spread(field[mask])) + 1e-30)
            noise = None
            if (error := item.get("stages", {}).get("totalfieldstderr")) is not None:
                noise = float(error.data[mask].square().mean().sqrt())
                item["details"]["Noise of the field"] = f"{noise:.2g} ppm"
            item["maps"] = self._maps((chi - offset) * mask, field * mask, residual, mask, zero) | item.get(
                "stages", {}
            )
            item["notes"] = [*item.get("notes", []), *_notes(chi[mask], unexplained, item["residual"], noise)]
        return item

    @staticmethod
    def _maps(chi: Tensor, field: Tensor, residual: Tensor, mask: Tensor, zero: str) -> dict[str, ParameterMap]:
        text = f"Magnetic susceptibility relative to {zero}"
        wide, narrow = _symmetric(chi[mask]), _symmetric(field[mask])
        return {
            "Chimap": ParameterMap(chi, "ppm", text, wide),
            "localfield": ParameterMap(
                field, "ppm", "Local field relative to B0, positive where it is stronger", narrow
            ),
            "residual": ParameterMap(
                residual, "ppm", "Local field minus the field of the susceptibility map", _symmetric(residual[mask]),
                "residual",
            ),
            "mask": ParameterMap(mask, "1", "Voxels where the local field is known", (0.0, 1.0), "mask"),
        }  # fmt: skip


def _notes(chi: Tensor, unexplained: float, relative: float, noise: float | None) -> list[str]:
    """Remarks on the map, on its residual [ppm] and relative to the field, and on the noise of the field [ppm]."""
    notes = []
    share = float((chi.abs() > PLAUSIBLE_PPM).float().mean())
    if share > 0.01:
        notes.append(
            f"{share:.0%} of the voxels are beyond {PLAUSIBLE_PPM:g} ppm, as hardly any tissue is: check the unit of "
            "the field, its sign and the mask"
        )
    if relative > UNEXPLAINED and (noise is None or unexplained > BEYOND_NOISE * noise):
        notes.append(
            f"the map leaves {relative:.0%} of the local field unexplained (root mean square): look at the residual"
        )
    return notes


def _spread(values: Tensor) -> Tensor:
    return (values - values.mean()).square().mean().sqrt()


def _symmetric(values: Tensor, quantile: float = 0.98) -> tuple[float, float]:
    """Ends of a colour bar around zero: a high quantile of the absolute values, rounded up to two digits."""
    rank = max(1, int(quantile * values.numel()))
    top = float(values.abs().flatten().kthvalue(rank).values)
    if not top > 0.0:
        return -1.0, 1.0
    step = 10.0 ** (torch.tensor(top).log10().floor().item() - 1)
    top = float(torch.tensor(top / step).ceil()) * step
    return -top, top


def _plain(volume: Tensor) -> Tensor:
    """Float32 on the CPU, without batch axis and MONAI's metadata."""
    tensor = volume.as_tensor() if hasattr(volume, "as_tensor") else volume
    tensor = tensor[0] if tensor.ndim == 5 else tensor
    return tensor.float().cpu()
