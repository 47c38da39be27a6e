"""The shipped file: networks of all seeds, trained with all lesions, with the calibration of the cross-validation."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from shared_transforms.atomic import atomic_write
from shared_transforms.checkpoint import latest_checkpoint, load_checkpoint
from shared_transforms.errors import QMRIError

from .calibration import Calibration, fit_calibration
from .ensemble import RimEnsemble
from .predictions import Predictions

__all__ = ["ensemble_calibration", "last_weights", "ship"]


def ship(
    network: nn.Module, runs: Sequence[str | Path], predictions: str | Path, calibration: str | Path, model: str | Path
) -> list[Path]:
    """Write the ensemble's weights, and its calibration by itself.

    A network that is trained with all lesions has no held-out scores. Calibration and thresholds are those of the
    networks of the same seed in the cross-validation, on the scores of all folds together.

    Args:
        network: of the architecture that was trained.
        runs: ``output_dir`` of a training with all lesions (fold -1) for each seed of the cross-validation, in their
            order.
        predictions: scores of the cross-validation.
        calibration: file of the ensemble's own buffers.
        model: file of the ensemble's weights.

    Returns:
        The two files.

    Raises:
        QMRIError: for a run that is not there, not with all lesions, or of another seed than its place says.
    """
    scores = Predictions.load(predictions)
    seeds = scores.seeds("qsmrim_net")
    if len(runs) != len(seeds) or not seeds:
        raise QMRIError(
            file=predictions, field="runs", found=f"{len(runs)} trainings and {len(seeds)} seeds with all scores",
            expected="a training for each seed",
            remedy="finish the cross-validation, or give the trainings of its seeds",
        )  # fmt: skip
    for run, seed in zip(runs, seeds, strict=True):
        _check(Path(run), seed)
    buffers = ensemble_calibration(scores).buffers()
    ensemble = RimEnsemble.from_members(network, [last_weights(run) for run in runs])
    ensemble.set_calibration(**buffers)
    state = {name: value.detach().cpu().contiguous() for name, value in ensemble.state_dict().items()}
    for path, content in ((calibration, buffers), (model, state)):
        with atomic_write(path) as file:
            torch.save(content, file)
    return [Path(calibration), Path(model)]


def ensemble_calibration(scores: Predictions) -> Calibration:
    """Platt's lines and thresholds of QSMRim-Net's seeds, on the held-out scores of all folds together."""
    return fit_calibration(scores.scores("qsmrim_net", scores.seeds("qsmrim_net")).T, scores.label)


def last_weights(run: str | Path) -> dict[str, Tensor]:
    """Weights after the last epoch of a training, those that the cross-validation scores with.

    Raises:
        QMRIError: when there is no checkpoint, or a damaged one.
    """
    path = latest_checkpoint(Path(run) / "checkpoints")
    if path is None:
        raise QMRIError(
            file=run, found="no checkpoint", expected="checkpoints/checkpoint_epoch=N.pt of a training",
            remedy="train with configs/train.json, --fold -1 and this output_dir",
        )  # fmt: skip
    weights: dict[str, Tensor] = load_checkpoint(path)["network"]
    return weights


def _check(run: Path, seed: int) -> None:
    """What the training recorded of itself."""
    path = run / "executed_config.json"
    config = json.loads(path.read_text("utf-8")) if path.is_file() else {"fold": -1, "seed": seed}
    for name, expected in (("fold", -1), ("seed", seed)):
        if int(config[name]) != expected:
            raise QMRIError(
                file=path, field=name, found=str(config[name]), expected=f"{expected}",
                remedy="give the trainings with all lesions (--fold -1), in the order of their seeds",
            )  # fmt: skip
