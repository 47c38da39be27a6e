"""From the prediction of the network to a map in ug/mm^3, and how well that map explains the image."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from torch import Tensor

from physics.viewline import ViewLineSequence, view_line_image
from shared_transforms.errors import QMRIError
from shared_transforms.io import ParameterMap

from .resimulation import LOWEST_TRAINED, SUPPORT_SHARE, noise_floor, resimulate, support_of

__all__ = ["HIGHEST_TRAINED", "MapsFromPredictiond", "PlaneAsImaged"]

HIGHEST_TRAINED = 17.5  # ug/mm^3, of one figure of the training (section 3.2 of the paper)
MUCH_NEGATIVE = 0.01  # of the mass, above which a note is made
UNEXPLAINED = 0.3  # relative residual beyond the noise, above which a note is made
NO_BETTER = 0.95  # residual over that of the image without iron, above which the map explains nothing
MANY = 0.05  # share of the voxels with particles from which a note is made
_FILE_IMAGE = "file_image"


class PlaneAsImaged(MapTransform):
    """Make the plane that the network sees the image: ``item["image"]`` becomes ``item["plane"]`` ``[2, X, Z]``.

    The volume ``[2, H, W, D]`` as it was stored goes to ``item["file_image"]``, whence
    :class:`MapsFromPredictiond` takes it back. Programs that feed the image to the network by themselves, such as
    MONAI Label, then feed the plane.

    Args:
        keys: key of the volume.
        plane_key: key of the plane.
    """

    def __init__(self, keys: KeysCollection = "image", plane_key: str = "plane") -> None:
        super().__init__(keys)
        self.plane_key = plane_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item with ``image`` and ``file_image``."""
        item = dict(data)
        for key in self.key_iterator(item):
            item[_FILE_IMAGE], item[key] = item[key], item[self.plane_key]
        return item


class MapsFromPredictiond(MapTransform):
    """Turn ``item["pred"]`` into ``item["maps"]``: concentration, residual and the voxels that hold particles.

    The residual puts the concentration back through the sequence (:func:`.resimulation.resimulate`). The map is the sum
    over both channels of the absolute difference of image and simulation, over the signal without iron (its median in
    the object); the number is the root mean square of the difference over that of the image: it holds the noise of the
    image, too, and what is wrong with the assumed bodies across the plane and with the assumed signal without iron.

    Negative concentrations stay in the map: where there is nothing they are the noise of the estimate, and cutting them
    off would add mass. A voxel holds particles where the concentration is above a quarter of the peak and at least the
    lowest of the training.

    Args:
        keys: key of the concentration ``[1, X, Z]`` [ug/mm^3]; a batch axis of one is dropped. It becomes a MetaTensor
            ``[1, H, W, D]``, as the file is ordered.
        sequence: of the image.
        mass_magnetisation: of the particles [A m^2/kg].
        thickness_mm: of the bodies across the plane; None for round ones.
        image_key: key under which the volume ``[2, H, W, D]`` is left, taken from ``file_image`` where that is there.
        plane_key: key of the image ``[2, X, Z]``.

    Raises:
        QMRIError: a prediction that is not finite, or a thickness that is not positive.
    """

    def __init__(
        self,
        keys: KeysCollection = "pred",
        *,
        sequence: ViewLineSequence,
        mass_magnetisation: float = 93.0,
        thickness_mm: float | None = None,
        image_key: str = "image",
        plane_key: str = "plane",
    ) -> None:
        super().__init__(keys)
        for name, value in (("thickness_mm", thickness_mm), ("mass_magnetisation_am2_per_kg", mass_magnetisation)):
            if value is not None and not (math.isfinite(value) and value > 0.0):
                raise QMRIError(field=name, found=value, expected="a number above 0", remedy="correct the config")
        self.sequence, self.mass_magnetisation, self.thickness = sequence, mass_magnetisation, thickness_mm
        self.image_key, self.plane_key = image_key, plane_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item with ``maps``, ``residual``, ``resimulation``, ``notes`` and ``details``.

        ``resimulation`` holds ``simulated`` ``[2, X, Z]``, ``reference`` and ``difference`` ``[X, Z]`` and the numbers
        ``noise`` and ``without_iron``: relative residuals of noise alone and of an image without iron.
        """
        item = dict(data)
        item[self.image_key] = item.pop(_FILE_IMAGE, item[self.image_key])
        image = _plain(item[self.plane_key])
        pixel_size = tuple(float(side) for side in item["acquisition"]["pixel_size"])
        for key in self.key_iterator(item):
            concentration = _plain(item[key]).reshape(image.shape[1:])
            if not bool(concentration.isfinite().all()):
                raise QMRIError(
                    file=item["sources"][0], field="prediction", found="NaN or infinite concentrations",
                    expected="finite numbers", remedy="check the image for extreme values; report this if it is sound",
                )  # fmt: skip
            found = self._resimulated(concentration, image, (pixel_size[0], pixel_size[1]))
            item["resimulation"], item["residual"] = found, found.pop("residual")
            mask = support_of(concentration)
            volume = item["orientation"].to_file
            item["maps"] = _maps(*(volume(part) for part in (concentration, found["difference"], mask)))
            item[key] = MetaTensor(item["maps"]["concentration"].data[None], affine=item[self.image_key].affine)
            item["notes"] = [
                *item.get("notes", []),
                *_notes_of_map(concentration, mask, self._margin(pixel_size)),
                *_notes_of_residual(item["residual"], found, bool(mask.any())),
                *(
                    [f"The residual assumes {self._body()}: a map shows nothing of the body across it"]
                    * bool(mask.any())
                ),
            ]
            item["details"] = {
                **item.get("details", {}),
                "Bodies across the plane": self._body(),
                "Noise": f"{found['decibels']:.0f} dB" if math.isfinite(found["decibels"]) else "none",
            }
        return item

    def _resimulated(self, concentration: Tensor, image: Tensor, pixel_size: tuple[float, float]) -> dict[str, Any]:
        simulated, reference = resimulate(
            concentration, image, self.sequence, pixel_size, self.mass_magnetisation, self.thickness
        )
        nothing = torch.zeros_like(concentration)
        bare = view_line_image(reference, nothing, nothing, pixel_size, self.sequence)
        power = image.square().mean().clamp_min(1e-30)
        noise = 2.0 * noise_floor(image, self.sequence).square()
        lit = reference[reference > 0]
        level = lit.median() if lit.numel() else image.amax().clamp_min(1e-30)
        signal = float((power - noise).clamp_min(0.0))
        return {
            "simulated": simulated,
            "reference": reference,
            "difference": (image - simulated).abs().sum(0) / level,
            "residual": float(((image - simulated).square().mean() / power).sqrt()),
            "without_iron": float(((image - bare).square().mean() / power).sqrt()),
            "noise": float((noise / power).sqrt()),
            "decibels": 10.0 * math.log10(signal / float(noise)) if signal > 0.0 < float(noise) else math.inf,
        }

    def _margin(self, pixel_size: tuple[float, ...]) -> tuple[int, int]:
        """Pixels of a line pitch along x and z."""
        x, z = (math.ceil(self.sequence.line_pitch / side) for side in pixel_size)
        return x, z

    def _body(self) -> str:
        if self.thickness is None:
            return "bodies as thick across the plane as they are wide in it (thickness_mm sets another thickness)"
        return f"bodies of {self.thickness:g} mm across the plane"


def _maps(concentration: Tensor, residual: Tensor, mask: Tensor) -> dict[str, ParameterMap]:
    text = "Concentration of iron in particles in the imaging plane"
    particles = (
        f"Voxels counted as holding particles: above {SUPPORT_SHARE:.0%} of the largest concentration, and at least "
        f"{LOWEST_TRAINED:g} ug/mm^3"
    )
    misfit = (
        "Absolute difference of image and simulation, sum of even and odd lines, relative to the signal without iron"
    )
    return {
        "concentration": ParameterMap(concentration, "ug/mm^3", text, (0.0, _rounded_top(concentration[mask]))),
        "residual": ParameterMap(residual, "1", misfit, (0.0, 1.0), "residual"),
        "mask": ParameterMap(mask, "1", particles, (0.0, 1.0), "mask"),
    }


def _notes_of_map(concentration: Tensor, mask: Tensor, margin: tuple[int, int]) -> list[str]:
    if not bool(mask.any()):
        return [
            f"No particles found: the concentration is below {LOWEST_TRAINED:g} ug/mm^3, the lowest of the training, "
            f"everywhere (largest: {float(concentration.max()):.2g} ug/mm^3)"
        ]
    notes = []
    beyond = float((concentration[mask] > HIGHEST_TRAINED).float().mean())
    if beyond > MANY:
        notes.append(
            f"{beyond:.0%} of the voxels with particles are above {HIGHEST_TRAINED:g} ug/mm^3 (up to "
            f"{float(concentration.max()):.3g}), the highest concentration of the training: this is an extrapolation"
        )
    positive, negative = float(concentration.clamp_min(0.0).sum()), float(-concentration.clamp_max(0.0).sum())
    if negative > MUCH_NEGATIVE * positive:
        notes.append(
            f"Negative concentrations add up to {negative / positive:.0%} of the positive ones: they are errors of the "
            "estimate and tell their size; the map keeps them"
        )
    near = torch.ones_like(mask)
    near[margin[0] : mask.shape[0] - margin[0], margin[1] : mask.shape[1] - margin[1]] = False
    mass = concentration * mask
    if float(mass[near].sum()) > MANY * float(mass.sum()):
        notes.append(
            f"{float(mass[near].sum() / mass.sum()):.0%} of the iron lies within a line pitch of the edge of the "
            "image, where much of its effect is not seen: the concentration there is less certain"
        )
    return notes


def _notes_of_residual(residual: float, found: Mapping[str, float], particles: bool) -> list[str]:
    beyond_noise = math.sqrt(max(residual**2 - found["noise"] ** 2, 0.0))
    if particles and residual > NO_BETTER * found["without_iron"]:
        return [
            f"The concentration map explains the image no better than no iron at all (relative residual {residual:.0%} "
            f"against {found['without_iron']:.0%}): do not rely on it; look at the residual"
        ]
    if beyond_noise > UNEXPLAINED:
        return [
            f"Put back through the sequence, the map leaves {beyond_noise:.0%} of the image unexplained beyond its "
            "noise (root mean square): look at the residual, and whether thickness_mm and the protocol fit"
        ]
    return []


def _rounded_top(values: Tensor, quantile: float = 0.98) -> float:
    """End of a colour bar: a high quantile, rounded up to two digits."""
    if not values.numel():
        return LOWEST_TRAINED
    top = float(values.flatten().kthvalue(max(1, int(quantile * values.numel()))).values)
    step = 10.0 ** (math.floor(math.log10(top)) - 1)
    return math.ceil(top / step) * step


def _plain(values: Any) -> Tensor:
    """Float32 on the CPU, without MONAI's metadata."""
    tensor = values.as_tensor() if hasattr(values, "as_tensor") else torch.as_tensor(values)
    return tensor.float().cpu()
