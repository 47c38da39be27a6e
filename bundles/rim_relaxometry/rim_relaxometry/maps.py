"""From the network's output to maps in units, with a mask and the residual of the physics."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform
from torch import Tensor
from torch.nn.functional import avg_pool2d

from shared_transforms.io import ParameterMap

from .curvature import residual_variance
from .network import BOUNDS, PARAMETERS, make_signal_model

UNITS = {"A": "arbitrary", "B": "1", "T1": "s", "T2": "s"}
MEANING = {
    "A": "Signal amplitude at full recovery (T1) or at time zero (T2), in the unit of the images",
    "B": "Inversion factor, 1 - cos(inversion angle); 2 for a perfect inversion",
    "T1": "Longitudinal relaxation time",
    "T2": "Transverse relaxation time",
}
NOISE_QUANTILE = 3.0  # standard deviations above the mean energy of pure noise
UNEXPLAINED_CHI2 = 3.0


def noise_deviation(image: Tensor, signal: Tensor, parameters: int) -> Tensor:
    """Noise standard deviation of a series from its residual, robust against voxels that the model does not explain.

    Args:
        image: measured series ``[N, ...]``.
        signal: fitted series of that shape.
        parameters: number of parameters fitted to each voxel.

    Returns:
        Scalar, in the unit of the series.
    """
    degrees = max(image.shape[0] - parameters, 1)
    squared = (image - signal).square().sum(0) / degrees
    scale = image.square().mean().clamp(min=1e-30)
    voxels = (1, 1, -1)
    return (
        scale
        * residual_variance(
            (squared / scale).reshape(voxels), (image.square().mean(0) / scale).reshape(voxels), degrees
        )
    )[0, 0, 0].sqrt()


def signal_mask(image: Tensor, sigma: Tensor) -> Tensor:
    """Voxels whose energy noise alone would hardly reach, tidied by a majority of each 3 x 3 neighbourhood.

    Args:
        image: magnitude series ``[N, H, W, D]``.
        sigma: noise standard deviation of the real and imaginary part.

    Returns:
        Mask ``[H, W, D]``, boolean. Pure Rician noise has a mean energy of 2 sigma^2 with a standard deviation of
        2 sigma^2 / sqrt(N).
    """
    limit = 2.0 * sigma**2 * (1.0 + NOISE_QUANTILE / image.shape[0] ** 0.5)
    above = (image.square().mean(0) > limit).float()
    votes = avg_pool2d(above.permute(2, 0, 1)[:, None], 3, stride=1, padding=1, count_include_pad=False)
    return votes[:, 0].permute(1, 2, 0) > 0.5


class MapsFromPredictiond(MapTransform):
    """Turn ``item["pred"]`` into ``item["maps"]``: parameters, standard errors, residual, chi-squared and mask.

    The residual puts the estimate back through the signal model: root mean square of data minus signal, relative to the
    root mean square of the data. Chi-squared is the sum of squared residuals over (N - Q) sigma^2, where sigma is that
    of the whole series: values far above 1 mark voxels which the model does not explain.

    Args:
        keys: key of the prediction ``[2 Q, H, W, D]``; a batch axis of one is dropped.
        parameter: ``"T1"`` or ``"T2"``.
        image_key: key of the series ``[N, H, W, D]``, likewise.
    """

    def __init__(self, keys: KeysCollection = "pred", parameter: str = "T1", image_key: str = "image") -> None:
        super().__init__(keys)
        if parameter not in PARAMETERS:
            raise ValueError(f"parameter must be one of {sorted(PARAMETERS)}, got {parameter!r}")
        self.parameter, self.image_key = parameter, image_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item with ``maps``, and with ``notes`` a user must read."""
        item = dict(data)
        names = PARAMETERS[self.parameter]
        item[self.image_key] = _without_batch(item[self.image_key])
        image = _plain(item[self.image_key])
        for key in self.key_iterator(item):
            pred = _plain(_without_batch(item[key]))
            acquisition = {name: value.cpu() for name, value in item["acquisition"].items()}
            model = make_signal_model(self.parameter, acquisition["times"], acquisition.get("repetition_time"))
            signal = model(*pred[: len(names)])
            sigma = noise_deviation(image, signal, len(names))
            mask = signal_mask(image, sigma)
            squared = (image - signal).square().sum(0)
            residual = (squared / image.square().sum(0).clamp(min=1e-30)).sqrt()
            chi2 = squared / (max(model.n_images - len(names), 1) * sigma.clamp(min=1e-30) ** 2)
            item["maps"] = self._maps(pred, residual, chi2, mask)
            item["residual"] = float((squared[mask].sum() / image.square().sum(0)[mask].sum().clamp(min=1e-30)).sqrt())
            item["notes"] = [*item.get("notes", []), *self._notes(pred, chi2, mask, acquisition["times"])]
        return item

    def _maps(self, pred: Tensor, residual: Tensor, chi2: Tensor, mask: Tensor) -> dict[str, ParameterMap]:
        names = PARAMETERS[self.parameter]
        maps = {}
        # The parameter that was asked for comes first.
        for q in reversed(range(len(names))):
            name = names[q]
            estimate = torch.where(mask, pred[q], 0.0)
            top = _nice_quantile(estimate[mask])
            low, high = (1.2, 2.15) if name == "B" else (0.0, top)
            maps[f"{name}map"] = ParameterMap(estimate, UNITS[name], MEANING[name], (low, high))
        for q in reversed(range(len(names))):
            error = torch.where(mask, pred[len(names) + q], 0.0)
            text = f"Standard error of {names[q]}"
            span = (0.0, _nice_quantile(error[mask]))
            maps[f"{names[q]}stderr"] = ParameterMap(error, UNITS[names[q]], text, span, "error")
        shown = torch.where(mask, residual, 0.0)
        text = "Root mean square of data minus fitted signal, relative to that of the data"
        maps["residual"] = ParameterMap(shown, "1", text, (0.0, _nice_quantile(shown[mask])), "residual")
        text = "Reduced chi-squared; far above 1 where the signal model does not explain the data"
        maps["chi2"] = ParameterMap(torch.where(mask, chi2, 0.0), "1", text, (0.0, 4.0), "residual")
        maps["mask"] = ParameterMap(mask, "1", "Voxels with signal; the maps are 0 elsewhere", (0.0, 1.0), "mask")
        return maps

    def _notes(self, pred: Tensor, chi2: Tensor, mask: Tensor, times: Tensor) -> list[str]:
        if not bool(mask.any()):
            return ["No voxel rises above the noise: the maps are empty."]
        notes = []
        relaxation = pred[len(PARAMETERS[self.parameter]) - 1][mask]
        shares = {
            f"of the voxels have a {self.parameter} beyond twice the longest time ({float(times.max()):.3g} s); "
            "these values rest on little data": float((relaxation > 2.0 * times.max()).float().mean()),
            f"of the voxels have a {self.parameter} below half the shortest time ({float(times.min()):.3g} s); "
            "these values rest on little data": float((relaxation < 0.5 * times.min()).float().mean()),
            f"of the voxels have a chi-squared above {UNEXPLAINED_CHI2:g}: look at the residual map": float(
                (chi2[mask] > UNEXPLAINED_CHI2).float().mean()
            ),
        }
        if self.parameter == "T1":
            low, high = BOUNDS["B"]
            at_bound = ((pred[1][mask] < low + 0.01) | (pred[1][mask] > high - 0.01)).float().mean()
            shares["of the voxels have B at the edge of its range: check the inversion"] = float(at_bound)
        notes += [f"{100 * share:.0f} % {text}." for text, share in shares.items() if share > 0.05]
        return notes


def _without_batch(volume: Tensor) -> Tensor:
    return volume[0] if volume.ndim == 5 else volume


def _plain(volume: Tensor) -> Tensor:
    """Float32 on the CPU, without MONAI's metadata."""
    tensor = volume.as_tensor() if hasattr(volume, "as_tensor") else volume
    return tensor.float().cpu()


def _nice_quantile(values: Tensor, quantile: float = 0.98) -> float:
    """Upper end of a colour bar: a high quantile rounded up to two digits."""
    if values.numel() == 0:
        return 1.0
    rank = max(1, int(quantile * values.numel()))
    top = float(values.flatten().kthvalue(rank).values)
    if not top > 0.0:
        return 1.0
    step = 10.0 ** (torch.tensor(top).log10().floor().item() - 1)
    return float(torch.tensor(top / step).ceil()) * step
