"""Load weights strictly, or say why not."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from shared_transforms.errors import QMRIError

Network = TypeVar("Network", bound=nn.Module)
_CHUNK = 1 << 20


def sha256_file(path: str | Path) -> str:
    """Hexadecimal sha256 of a file.

    Raises:
        QMRIError: no such file.
    """
    digest = hashlib.sha256()
    try:
        with Path(path).open("rb") as file:
            while block := file.read(_CHUNK):
                digest.update(block)
    except OSError as error:
        raise QMRIError(
            file=path, field="path", found=error.strerror or str(error), expected="a readable file",
            remedy="check the path; weights kept by git-lfs need: git lfs pull",
        ) from error  # fmt: skip
    return digest.hexdigest()


def load_weights(module: Network, path: str | Path, sha256: str | None = None, network: str | None = None) -> Network:
    """Load a file of tensors into a module; the module is unchanged unless every tensor fits.

    Args:
        module: the network, changed in place.
        path: a state_dict saved by torch.save, tensors only.
        sha256: the sha256 the file must have; None accepts any.
        network: what the weights belong to, for the message ("rim_relaxometry T1"); default: the class of the module.

    Returns:
        The same module.

    Raises:
        QMRIError: no file, wrong sha256, truncated or no state_dict, other keys or shapes, NaN or infinite values.
    """
    file = Path(path)
    name = network or f"{type(module).__module__}.{type(module).__qualname__}"
    if sha256 is not None and (found := sha256_file(file)) != sha256.lower():
        raise QMRIError(
            file=file, field="sha256", found=found, expected=f"{sha256.lower()}, the weights of {name}",
            remedy="take the weights that belong to this bundle, or correct the sha256 if you trained them yourself",
        )  # fmt: skip
    state = _read(file, name)
    _compare(file, name, state, module.state_dict())
    module.load_state_dict(state, strict=True)
    return module


def _read(file: Path, name: str) -> dict[str, Tensor]:
    expected = f"the state_dict of {name}, tensors only"
    if not file.is_file():
        raise QMRIError(
            file=file, field="path", found="no such file", expected=expected,
            remedy="check the path; weights kept by git-lfs need: git lfs pull",
        )  # fmt: skip
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, pickle.UnpicklingError) as error:
        reason = "holds other objects than tensors" if "weights_only" in str(error) else "truncated or damaged"
        raise QMRIError(
            file=file, field="file content", found=f"{reason} ({file.stat().st_size} bytes)", expected=expected,
            remedy="copy or download the file again, and compare its sha256 with the one in metadata.json",
        ) from error  # fmt: skip
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise QMRIError(
            file=file, field="file content", found=f"a {type(state).__name__} that is no state_dict",
            expected=expected, remedy="export the network's state_dict from the checkpoint",
        )  # fmt: skip
    return state


def _compare(file: Path, name: str, state: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    remedy = "take the weights of this bundle, with the network as its config defines it"
    missing, extra = sorted(wanted.keys() - state.keys()), sorted(state.keys() - wanted.keys())
    if missing or extra:
        found = f"{len(missing)} of {len(wanted)} tensors missing{_some(missing)}, {len(extra)} unknown{_some(extra)}"
        raise QMRIError(file=file, field="keys", found=found, expected=f"the weights of {name}", remedy=remedy)
    for key, tensor in wanted.items():
        if state[key].shape != tensor.shape:
            raise QMRIError(
                file=file, field=key, found=f"shape {tuple(state[key].shape)}",
                expected=f"shape {tuple(tensor.shape)}, as in {name}", remedy=remedy,
            )  # fmt: skip
        if not torch.isfinite(state[key]).all():
            raise QMRIError(
                file=file, field=key, found="NaN or infinite values", expected=f"finite weights of {name}",
                remedy="take an earlier checkpoint: this training diverged",
            )  # fmt: skip


def _some(keys: list[str]) -> str:
    return f" ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})" if keys else ""
