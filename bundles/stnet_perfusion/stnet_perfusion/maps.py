"""From the prediction of a network or a deconvolution to maps in units, and how well they explain the series."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform
from torch import Tensor

from physics.perfusion import arterial_scale, delay_from_tmax, haematocrit_factor, mean_transit_time, reconvolve
from shared_transforms.errors import QMRIError
from shared_transforms.io import ParameterMap

HYPOPERFUSED = 6.0  # s of Tmax, beyond which tissue is at risk
UNEXPLAINED = 0.5  # relative residual above which a note is made: a quarter of the energy of the curves
LONGEST_MTT = 60.0  # s: a voxel without flow has no mean transit time
_AT_ONCE = 20_000  # voxels
_TIME_RANGES = {"mtt": (0.0, 15.0), "tmax": (0.0, 12.0)}  # s, of the colour bars
_DESCRIPTIONS = {
    "cbv": ("ml/100 g", "Cerebral blood volume"),
    "cbf": ("ml/100 g/min", "Cerebral blood flow"),
    "mtt": ("s", "Mean transit time, 60 CBV / CBF"),
    "tmax": ("s", "Time to the maximum of the residue function; negative where tissue comes before the artery"),
}


class MapsFromPredictiond(MapTransform):
    """Turn ``item["pred"]`` into ``item["maps"]``: CBV, CBF, MTT, Tmax, the mask of Tmax > 6 s, residual and mask.

    The residual puts the maps back through the tissue model: the arterial curve, divided by k_AV, convolved with an
    exponential residue of the map's MTT, delayed by what Tmax says (:func:`physics.perfusion.delay_from_tmax`). The map
    is the root of the sum of squares over time of measured minus predicted concentration, over that of the measured
    one: 0 where the maps explain the curve, 1 where they explain nothing of it, as where there is only noise.

    Args:
        keys: key of CBV [ml/100 g], CBF [ml/100 g/min] and Tmax [s] ``[3, X, Y, Z]``; a batch axis of one is dropped.
        factor: haematocrit factor over density [ml/g] of CBV and CBF; default the standard one.
        tmax_frame_time_s: frame time at which the method defines Tmax [s]; None for that of the series.
        image_key: key of baseline and concentrations ``[1 + T, X, Y, Z]``, likewise.
        mask_key: key of the mask ``[1, X, Y, Z]``, boolean.

    Raises:
        QMRIError: a prediction that is not finite.
    """

    def __init__(
        self,
        keys: KeysCollection = "pred",
        factor: float | None = None,
        tmax_frame_time_s: float | None = None,
        image_key: str = "image",
        mask_key: str = "mask",
    ) -> None:
        super().__init__(keys)
        self.factor = haematocrit_factor() if factor is None else factor
        self.tmax_frame_time = tmax_frame_time_s
        self.image_key, self.mask_key = image_key, mask_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item with ``maps``, ``k_av``, ``residual`` (relative root mean square) and ``notes``."""
        item = dict(data)
        image = item[self.image_key]
        item[self.image_key] = image[0] if image.ndim == 5 else image
        mask = torch.as_tensor(item[self.mask_key]).cpu().bool().reshape(image.shape[-3:])
        aif, vof = (_plain(item[name]).flatten() for name in ("aif", "vof"))
        dt = float(item["acquisition"]["repetition_time"])
        item["k_av"] = float(arterial_scale(aif, vof, dt))
        for key in self.key_iterator(item):
            cbv, cbf, tmax = _plain(item[key]).reshape(3, *mask.shape)[:, mask]
            if not bool(torch.stack([cbv, cbf, tmax]).isfinite().all()):
                raise QMRIError(
                    file=item["sources"][0], field="prediction", found="NaN or infinite voxels in the maps",
                    expected="finite numbers", remedy="check the arterial and the venous curve; report this if they "
                    "are sound",
                )  # fmt: skip
            mtt = mean_transit_time(cbv, cbf).nan_to_num(0.0, LONGEST_MTT, 0.0).clamp(0.0, LONGEST_MTT)
            squares = self._squares(_plain(item[self.image_key])[1:], mask, aif, dt, cbf, mtt, tmax, item["k_av"])
            item["residual"] = float((squares[0].sum() / squares[1].sum().clamp_min(1e-30)).sqrt())
            residual = (squares[0] / squares[1].clamp_min(1e-30)).sqrt()
            item["maps"] = _maps({"cbv": cbv, "cbf": cbf, "mtt": mtt, "tmax": tmax}, residual, mask)
            item["notes"] = [*item.get("notes", []), *_notes(item["residual"])]
        return item

    def _squares(
        self, measured: Tensor, mask: Tensor, aif: Tensor, dt: float, cbf: Tensor, mtt: Tensor, tmax: Tensor,
        k_av: float,
    ) -> Tensor:  # fmt: skip
        """Sums over time of (measured - predicted)^2 and of measured^2 for each voxel of the mask ``[2, V]``."""
        spacing = self.tmax_frame_time or dt
        delay = delay_from_tmax(tmax, mtt, _resampled(aif, dt, spacing), spacing)
        measured = measured[:, mask].T
        parts = []
        for some in torch.arange(len(cbf)).split(_AT_ONCE):
            predicted = reconvolve(aif, dt, cbf[some], mtt[some], delay[some], k_av, self.factor)
            difference = measured[some] - predicted
            parts.append(torch.stack([difference.square().sum(-1), measured[some].square().sum(-1)]))
        return torch.cat(parts, 1)


def _maps(values: Mapping[str, Tensor], residual: Tensor, mask: Tensor) -> dict[str, ParameterMap]:
    def volume(inside: Tensor) -> Tensor:
        return torch.zeros(mask.shape, dtype=inside.dtype).masked_scatter(mask, inside)

    maps = {}
    for name, inside in values.items():
        limits = _TIME_RANGES.get(name) or (0.0, rounded_top(inside))
        maps[name] = ParameterMap(volume(inside), *_DESCRIPTIONS[name], limits)
    text = f"Tissue with Tmax > {HYPOPERFUSED:g} s"
    maps["label-hypoperfused_mask"] = ParameterMap(volume(values["tmax"] > HYPOPERFUSED), "1", text, (0.0, 1.0), "mask")
    text = "Measured minus predicted concentration, root of the sum of squares over time, relative to the measured one"
    maps["residual"] = ParameterMap(volume(residual), "1", text, (0.0, 1.0), "residual")
    maps["mask"] = ParameterMap(mask, "1", "Brain", (0.0, 1.0), "mask")
    return maps


def _notes(residual: float) -> list[str]:
    if residual <= UNEXPLAINED:
        return []
    return [
        f"put back through the tissue model, the maps leave {residual:.0%} of the concentrations unexplained (root "
        "mean square): look at the residual and at the arterial curve"
    ]


def rounded_top(values: Tensor, quantile: float = 0.98) -> float:
    """End of a colour bar: a high quantile, rounded up to two digits."""
    if not values.numel():
        return 1.0
    top = float(values.flatten().kthvalue(max(1, int(quantile * values.numel()))).values)
    if not top > 0.0:
        return 1.0
    step = 10.0 ** (torch.tensor(top).log10().floor().item() - 1)
    return float(torch.tensor(top / step).ceil()) * step


def _resampled(curve: Tensor, dt: float, spacing: float) -> Tensor:
    """A curve ``[T]`` at another frame time, linear between its frames."""
    count = int((len(curve) - 1) * dt / spacing + 1e-6) + 1
    place = torch.arange(count) * spacing / dt
    left = place.floor().clamp(0, len(curve) - 2).long()
    return torch.lerp(curve[left], curve[left + 1], place - left)


def _plain(values: Any) -> Tensor:
    """Float32 on the CPU, without batch axis and MONAI's metadata."""
    tensor = values.as_tensor() if hasattr(values, "as_tensor") else torch.as_tensor(values)
    tensor = tensor[0] if tensor.ndim == 5 else tensor
    return tensor.float().cpu()
