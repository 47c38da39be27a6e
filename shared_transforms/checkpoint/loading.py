"""Read what the checkpoint saver wrote: tensors and plain containers only, and say what is wrong with the rest."""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

import torch

from shared_transforms.errors import QMRIError

__all__ = ["checkpoints", "epoch_of", "latest_checkpoint", "load_checkpoint"]

_CHECKPOINT_NAME = re.compile(r"checkpoint_epoch=(\d+)\.pt")
_LOAD_ERRORS = (OSError, RuntimeError, EOFError, ValueError, KeyError, AttributeError, pickle.UnpicklingError)


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a file written by ``torch.save`` onto the CPU, refusing anything but tensors and plain containers.

    Args:
        path: the file.

    Returns:
        The dictionary it holds.

    Raises:
        QMRIError: when the file is missing, truncated, or holds something else.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise QMRIError(
            file=path, found="no such file", expected="a file of weights", remedy="check the path, or train first"
        ) from error
    except _LOAD_ERRORS as error:
        first_line = str(error).partition("\n")[0][:120]
        raise QMRIError(
            file=path,
            found=f"a file torch cannot read ({type(error).__name__}: {first_line})",
            expected="a complete file of tensors written by torch.save",
            remedy="it is truncated or something else: delete it (resume then takes the one before), or fetch it again",
        ) from error
    if not isinstance(content, dict):
        raise QMRIError(
            file=path,
            found=f"a {type(content).__name__}",
            expected="a dictionary of tensors",
            remedy="give a state_dict, or a checkpoint of this project",
        )
    return content


def latest_checkpoint(save_dir: str | Path) -> Path | None:
    """The checkpoint of the highest epoch in a folder, or None."""
    found = checkpoints(save_dir)
    return found[-1] if found else None


def checkpoints(save_dir: str | Path) -> list[Path]:
    """The checkpoints in a folder, earliest epoch first; an absent folder has none."""
    found = [path for path in Path(save_dir).glob("checkpoint_epoch=*.pt") if _CHECKPOINT_NAME.fullmatch(path.name)]
    return sorted(found, key=epoch_of)


def epoch_of(path: Path) -> int:
    """The epoch in the name of a checkpoint."""
    match = _CHECKPOINT_NAME.fullmatch(path.name)
    if match is None:
        raise ValueError(f"not a checkpoint: {path}")
    return int(match.group(1))
