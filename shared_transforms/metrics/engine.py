"""Errors of parameter maps, and areas under curves of detection, as metrics of the engines."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import ignite.distributed as idist
import torch
from ignite.metrics import Metric
from ignite.metrics.metric import reinit__is_reduced, sync_all_reduce
from torch import Tensor

from shared_transforms.metrics.detection import average_precision, partial_roc_auc
from shared_transforms.metrics.image import hfen, nrmse, xsim
from shared_transforms.metrics.statistics import normalised_mae

__all__ = [
    "HFEN",
    "MAE",
    "NRMSE",
    "RMSE",
    "XSIM",
    "AveragePrecision",
    "NormalisedMAE",
    "PartialROC",
    "RelativeBias",
    "RelativeRMSE",
    "StandardizedRMSE",
    "ThresholdDice",
]


def _from_dictionaries(output: Mapping[str, Any]) -> tuple[Tensor, Mapping[str, Tensor]]:
    return output["pred"], output[
        "label"
    ]  # monai.utils.enums.CommonKeys, without the seconds that monai takes to import


class _Mean(Metric):
    """Mean of a quantity of one parameter, reduced over batches and ranks; ``update`` adds to sum and count.

    Args:
        parameter_index: which of the Q parameters.
        output_transform: from the engine's output to (prediction, label); default takes ``pred`` and ``label``.
        device: kept for ignite; sums are double precision numbers.
    """

    _sum: float
    _count: int

    def __init__(
        self,
        parameter_index: int,
        output_transform: Callable[[Any], Any] = _from_dictionaries,
        device: str | torch.device = "cpu",
    ) -> None:
        self.parameter_index = parameter_index
        super().__init__(output_transform=output_transform, device=device)

    @reinit__is_reduced
    def reset(self) -> None:
        """Forget all batches."""
        self._sum, self._count = 0.0, 0

    @sync_all_reduce("_sum", "_count")
    def compute(self) -> float:
        """The metric over all batches of all ranks; NaN where nothing was counted."""
        return self._finish(self._sum / self._count) if self._count else math.nan

    def _finish(self, mean: float) -> float:
        return mean


class _MaskedMetric(_Mean):
    """Mean of a quantity over the masked voxels, by default its root. Arguments as for ``_Mean``.

    A NaN or infinite estimate makes the metric NaN or infinite; it is never left out.
    """

    @reinit__is_reduced
    def update(self, output: tuple[Tensor, Mapping[str, Tensor]]) -> None:
        """Add a batch.

        Args:
            output: prediction [batch, 2Q, *shape] (Q parameters, then their standard errors), and the label:
                ``parameters`` [batch, Q, *shape], optionally ``mask`` [batch, 1, *shape].
        """
        prediction, label = output
        truth = label["parameters"].detach().double()
        index, n_parameters = self.parameter_index, truth.shape[1]
        values = self._values(prediction.detach().double(), truth, index, n_parameters)
        mask = label.get("mask")
        if mask is not None:
            values = values[mask[:, 0] != 0]
        self._sum += float(values.sum())
        self._count += values.numel()

    def _values(self, prediction: Tensor, truth: Tensor, index: int, n_parameters: int) -> Tensor:
        raise NotImplementedError

    def _finish(self, mean: float) -> float:
        return math.sqrt(mean) if mean >= 0 else mean  # NaN stays


class RMSE(_MaskedMetric):
    """Root mean square error of one parameter, in its unit.

    Args:
        parameter_index: which of the Q parameters.
        output_transform: from the engine's output to (prediction, label); default takes ``pred`` and ``label``.
        device: kept for ignite; sums are double precision numbers.
    """

    def _values(self, prediction: Tensor, truth: Tensor, index: int, n_parameters: int) -> Tensor:
        return (prediction[:, index] - truth[:, index]).square()


class MAE(_MaskedMetric):
    """Mean absolute error of one parameter, in its unit. Arguments as for ``RMSE``."""

    def _values(self, prediction: Tensor, truth: Tensor, index: int, n_parameters: int) -> Tensor:
        return (prediction[:, index] - truth[:, index]).abs()

    def _finish(self, mean: float) -> float:
        return mean


class RelativeRMSE(_MaskedMetric):
    """Root mean square of the relative error of one parameter, in per cent. Arguments as for ``RMSE``."""

    def _values(self, prediction: Tensor, truth: Tensor, index: int, n_parameters: int) -> Tensor:
        return (100 * (prediction[:, index] / truth[:, index] - 1)).square()


class RelativeBias(_MaskedMetric):
    """Mean relative error of one parameter, in per cent, with its sign. Arguments as for ``RMSE``."""

    def _values(self, prediction: Tensor, truth: Tensor, index: int, n_parameters: int) -> Tensor:
        return 100 * (prediction[:, index] / truth[:, index] - 1)

    def _finish(self, mean: float) -> float:
        return mean


class StandardizedRMSE(_MaskedMetric):
    """Root mean square of error over predicted standard error: 1 if calibrated, more if these are too small.

    Arguments as for ``RMSE``.
    """

    def _values(self, prediction: Tensor, truth: Tensor, index: int, n_parameters: int) -> Tensor:
        return ((prediction[:, index] - truth[:, index]) / prediction[:, n_parameters + index]).square()


class ThresholdDice(_Mean):
    """Dice overlap of the voxels in which one parameter exceeds a threshold, in the estimate and in the truth.

    Voxels of all samples, batches and ranks are pooled, so that samples without such voxels need no rule. NaN where
    neither estimate nor truth exceeds the threshold anywhere. A NaN estimate exceeds nothing.

    Args:
        parameter_index: which of the Q parameters, by default Tmax of perfusion.
        threshold: in the unit of the parameter, e.g. Tmax > 6 s.
        output_transform: from the engine's output to (prediction, label); default takes ``pred`` and ``label``.
        device: kept for ignite; counts are numbers.
    """

    def __init__(self, parameter_index: int = 2, threshold: float = 6.0, *arguments: Any, **options: Any) -> None:
        self.threshold = threshold
        super().__init__(parameter_index, *arguments, **options)

    @reinit__is_reduced
    def update(self, output: tuple[Tensor, Mapping[str, Tensor]]) -> None:
        """Add a batch.

        Args:
            output: prediction [batch, Q or more, *shape], and the label: ``parameters`` [batch, Q, *shape],
                optionally ``mask`` [batch, 1, *shape], nonzero where counted.
        """
        prediction, label = output
        found, true = (x.detach()[:, self.parameter_index] > self.threshold for x in (prediction, label["parameters"]))
        if "mask" in label:
            inside = label["mask"][:, 0] != 0
            found, true = found & inside, true & inside
        self._sum += 2.0 * int((found & true).sum())
        self._count += int(found.sum()) + int(true.sum())


class _SampleMetric(_Mean):
    """Mean over samples of a figure of merit of whole maps. Arguments as for ``_Mean``, by default the first parameter.

    Samples whose mask is empty say nothing and are not counted.
    """

    def __init__(self, parameter_index: int = 0, *arguments: Any, **options: Any) -> None:
        super().__init__(parameter_index, *arguments, **options)

    @reinit__is_reduced
    def update(self, output: tuple[Tensor, Mapping[str, Tensor]]) -> None:
        """Add a batch.

        Args:
            output: prediction [batch, Q or more, X, Y, Z], and the label: ``parameters`` [batch, Q, X, Y, Z],
                optionally ``mask`` [batch, 1, X, Y, Z].
        """
        prediction, label = output
        estimate, truth = (x.detach()[:, self.parameter_index] for x in (prediction, label["parameters"]))
        mask = label["mask"][:, 0] != 0 if "mask" in label else torch.ones_like(truth, dtype=torch.bool)
        seen = mask.flatten(1).any(1)
        if seen.any():
            values = self._values(estimate[seen], truth[seen], mask[seen])
            self._sum += float(values.sum())
            self._count += len(values)

    def _values(self, estimate: Tensor, truth: Tensor, mask: Tensor) -> Tensor:
        raise NotImplementedError


class NRMSE(_SampleMetric):
    """Mean over samples of :func:`~shared_transforms.metrics.image.nrmse`, in per cent; lower is better."""

    def _values(self, estimate: Tensor, truth: Tensor, mask: Tensor) -> Tensor:
        return nrmse(estimate, truth, mask)


class HFEN(_SampleMetric):
    """Mean over samples of :func:`~shared_transforms.metrics.image.hfen`, in per cent; lower is better."""

    def _values(self, estimate: Tensor, truth: Tensor, mask: Tensor) -> Tensor:
        return hfen(estimate, truth, mask)


class XSIM(_SampleMetric):
    """Mean over samples of :func:`~shared_transforms.metrics.image.xsim`, maps in ppm; higher is better."""

    def _values(self, estimate: Tensor, truth: Tensor, mask: Tensor) -> Tensor:
        return xsim(estimate, truth, mask)


class NormalisedMAE(_Mean):
    """Mean over images of :func:`~shared_transforms.metrics.statistics.normalised_mae`; lower is better.

    Whole images count, also where the label has a mask: what is found where nothing is, is an error. The answer 0
    has 1. Images whose truth is 0 everywhere say nothing and are not counted.

    Args:
        parameter_index: which of the Q parameters.
        output_transform: from the engine's output to (prediction, label); default takes ``pred`` and ``label``.
        device: kept for ignite; sums are double precision numbers.
    """

    def __init__(self, parameter_index: int = 0, *arguments: Any, **options: Any) -> None:
        super().__init__(parameter_index, *arguments, **options)

    @reinit__is_reduced
    def update(self, output: tuple[Tensor, Mapping[str, Tensor]]) -> None:
        """Add a batch.

        Args:
            output: prediction [batch, Q or more, *shape], and the label: ``parameters`` [batch, Q, *shape].
        """
        prediction, label = output
        estimate, truth = (x.detach()[:, self.parameter_index] for x in (prediction, label["parameters"]))
        there = truth.flatten(1).any(1)
        values = normalised_mae(estimate[there], truth[there])
        self._sum += float(values.sum())
        self._count += len(values)


class _Detection(Metric):
    """A figure of merit of the scores of all cases of all batches and ranks together.

    Args:
        output_transform: from the engine's output to (prediction, label); default takes ``pred`` and ``label``.
        device: kept for ignite; scores are kept on the CPU in double precision.
    """

    _scores: list[Tensor]
    _labels: list[Tensor]

    def __init__(
        self, output_transform: Callable[[Any], Any] = _from_dictionaries, device: str | torch.device = "cpu"
    ) -> None:
        super().__init__(output_transform=output_transform, device=device)

    @reinit__is_reduced
    def reset(self) -> None:
        """Forget all batches."""
        self._scores, self._labels = [], []

    @reinit__is_reduced
    def update(self, output: tuple[Tensor, Tensor]) -> None:
        """Add a batch.

        Args:
            output: scores [N], higher where thought positive, and labels [N], nonzero where positive.

        Raises:
            ValueError: when these are no two vectors of one length.
        """
        score, label = output
        if score.ndim != 1 or score.shape != label.shape:
            raise ValueError(f"scores and labels must be [N], got {tuple(score.shape)} and {tuple(label.shape)}")
        self._scores.append(score.detach().double().cpu())
        self._labels.append((label.detach() != 0).double().cpu())

    def compute(self) -> float:
        """The figure over all batches of all ranks; NaN where a kind of cases is missing. NaN scores raise."""
        empty = torch.empty(0, dtype=torch.float64)
        score, label = _all_ranks(torch.stack([torch.cat([empty, *x]) for x in (self._scores, self._labels)]))
        return self._value(label.numpy(), score.numpy()) if len(score) else math.nan

    def _value(self, label: Any, score: Any) -> float:
        raise NotImplementedError


class AveragePrecision(_Detection):
    """Average precision, :func:`~shared_transforms.metrics.detection.average_precision`; higher is better.

    Args:
        output_transform: from the engine's output to (prediction, label); default takes ``pred`` and ``label``.
        device: kept for ignite; scores are kept on the CPU in double precision.
    """

    def _value(self, label: Any, score: Any) -> float:
        return average_precision(label, score)


class PartialROC(_Detection):
    """Partial area :func:`~shared_transforms.metrics.detection.partial_roc_auc`; higher is better.

    Args:
        max_fpr: false positive rate up to which the curve counts, in (0, 1].
        output_transform: from the engine's output to (prediction, label); default takes ``pred`` and ``label``.
        device: kept for ignite; scores are kept on the CPU in double precision.
    """

    def __init__(self, max_fpr: float = 0.1, *arguments: Any, **options: Any) -> None:
        self.max_fpr = max_fpr
        super().__init__(*arguments, **options)

    def _value(self, label: Any, score: Any) -> float:
        return partial_roc_auc(label, score, self.max_fpr)


def _all_ranks(rows: Tensor) -> Tensor:
    """Columns [C, n] of all ranks beside each other; n may differ, which a plain gathering does not allow."""
    if idist.get_world_size() == 1:
        return rows
    counts = [int(n) for n in idist.all_gather(torch.tensor([rows.shape[1]]))]
    padded = torch.nn.functional.pad(rows, (0, max(counts) - rows.shape[1]))
    parts = idist.all_gather(padded[None])
    return torch.cat([part[:, :n] for part, n in zip(parts, counts, strict=True)], 1).cpu()
