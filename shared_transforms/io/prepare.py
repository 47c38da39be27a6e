"""What an engine needs of an inference item."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["prepare_field", "prepare_lesions", "prepare_perfusion", "prepare_series", "prepare_view_line"]


def prepare_series(
    item: dict[str, Any], device: torch.device | str | None = None, non_blocking: bool = False, **_: Any
) -> tuple[Tensor, None, tuple[()], dict[str, Tensor]]:
    """``prepare_batch`` of MONAI's evaluator for one series, loaded with ``DataLoader(batch_size=None)``.

    Args:
        item: what :class:`LoadSeriesd` returns: ``image`` ``[N, H, W, D]`` and ``acquisition``.
        device: where the network runs.
        non_blocking: as for ``Tensor.to``.

    Returns:
        The image with a batch axis ``[1, N, H, W, D]``, no label, and the acquisition as keyword arguments.
    """
    acquisition = {name: value.to(device, non_blocking=non_blocking) for name, value in item["acquisition"].items()}
    return item["image"][None].to(device, non_blocking=non_blocking), None, (), acquisition


def prepare_field(
    item: dict[str, Any],
    device: torch.device | str | None = None,
    non_blocking: bool = False,
    csf_key: str | None = None,
    **_: Any,
) -> tuple[Tensor, None, tuple[()], dict[str, Any]]:
    """``prepare_batch`` of MONAI's evaluator for one local field, loaded with ``DataLoader(batch_size=None)``.

    Args:
        item: what :class:`LoadLocalFieldd` returns: ``image`` ``[2, X, Y, Z]``, ``mask`` ``[1, X, Y, Z]`` and
            ``acquisition``.
        device: where the network runs.
        non_blocking: as for ``Tensor.to``.
        csf_key: key of a mask ``[X, Y, Z]`` of cerebrospinal fluid; where the item has it, it is ``csf_mask`` of the
            keyword arguments, for methods that make use of it.

    Returns:
        Field and magnitude with a batch axis ``[1, 2, X, Y, Z]``, no label, and as keyword arguments ``mask``
        ``[1, 1, X, Y, Z]``, ``voxel_size`` [mm] and ``b0_direction``, each three numbers.
    """
    acquisition = item["acquisition"]
    keywords: dict[str, Any] = {name: tuple(acquisition[name].tolist()) for name in ("voxel_size", "b0_direction")}
    keywords["mask"] = item["mask"][None].to(device, non_blocking=non_blocking)
    if csf_key is not None and csf_key in item:
        keywords["csf_mask"] = item[csf_key][None, None].to(device, non_blocking=non_blocking)
    return item["image"][None].to(device, non_blocking=non_blocking), None, (), keywords


def prepare_lesions(
    item: dict[str, Any], device: torch.device | str | None = None, non_blocking: bool = False, **_: Any
) -> tuple[Tensor, None, tuple[()], dict[str, Tensor]]:
    """``prepare_batch`` of MONAI's evaluator for the lesions of a subject, loaded with ``DataLoader(batch_size=None)``.

    Args:
        item: ``patches`` ``[L, C, X, Y, Z]``, one for each lesion, and ``radiomics`` ``[L, F]``, their features.
        device: where the network runs.
        non_blocking: as for ``Tensor.to``.

    Returns:
        The patches, no label, and the features as the keyword argument ``radiomics``, float32.
    """
    features = item["radiomics"].to(device, torch.float32, non_blocking=non_blocking)
    return item["patches"].to(device, non_blocking=non_blocking), None, (), {"radiomics": features}


def prepare_perfusion(
    item: dict[str, Any], device: torch.device | str | None = None, non_blocking: bool = False, **_: Any
) -> tuple[Tensor, None, tuple[()], dict[str, Any]]:
    """``prepare_batch`` of MONAI's evaluator for one DSC series, loaded with ``DataLoader(batch_size=None)``.

    Args:
        item: ``image`` ``[1 + T, X, Y, Z]`` (baseline, then concentrations [mM]), ``mask`` ``[1, X, Y, Z]``, the
            arterial and the venous curve ``aif`` and ``vof`` ``[T]`` [mM], and ``acquisition``.
        device: where the network runs.
        non_blocking: as for ``Tensor.to``.

    Returns:
        The image with a batch axis ``[1, 1 + T, X, Y, Z]``, no label, and as keyword arguments ``mask``
        ``[1, 1, X, Y, Z]``, ``aif`` and ``vof`` ``[1, T]``, ``frame_time`` [s] and ``voxel_size`` (three numbers [mm]).
    """
    keywords: dict[str, Any] = {
        name: item[name][None].to(device, non_blocking=non_blocking) for name in ("mask", "aif", "vof")
    }
    keywords["frame_time"] = float(item["acquisition"]["repetition_time"])
    keywords["voxel_size"] = tuple(item["acquisition"]["voxel_size"].tolist())
    return item["image"][None].to(device, non_blocking=non_blocking), None, (), keywords


def prepare_view_line(
    item: dict[str, Any], device: torch.device | str | None = None, non_blocking: bool = False, **_: Any
) -> tuple[Tensor, None, tuple[()], dict[str, Any]]:
    """``prepare_batch`` of MONAI's evaluator for one View Line image, loaded with ``DataLoader(batch_size=None)``.

    Args:
        item: what :class:`LoadViewLined` returns: ``plane`` ``[2, X, Z]``, even and odd lines.
        device: where the network runs.
        non_blocking: as for ``Tensor.to``.

    Returns:
        The plane with a batch axis ``[1, 2, X, Z]``, no label, and no further arguments.
    """
    return item["plane"][None].to(device, non_blocking=non_blocking), None, (), {}
