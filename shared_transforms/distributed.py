"""Training in several processes whose gradient is that of one process with the whole batch.

Of a batch of N samples, process r of W has the samples r, r + W, r + 2 W, ... DistributedDataParallel averages the
gradients of the processes, which is the gradient of the whole batch where the shares are equal, the loss of each is a
mean over samples, and no sample looks at another. The functions here do the rest: means over all samples however they
are shared, batch normalisation over all of them, random numbers that belong to the whole batch. In one process each of
them is what is usually written in its place.
"""

from __future__ import annotations

import os
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from shared_transforms.errors import QMRIError

__all__ = [
    "SharedBatchNorm",
    "all_rows",
    "are_own",
    "average_gradients",
    "batch_mean",
    "count_of_batch",
    "data_parallel",
    "join_processes",
    "of_first_process",
    "own_rows",
    "processes",
    "share_batch_norm",
    "shared_count",
]

Network = TypeVar("Network", bound=nn.Module)
_LAUNCHER = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def processes() -> tuple[int, int]:
    """Rank of this process and number of processes; (0, 1) where there is no process group."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def join_processes(device: torch.device | str) -> None:
    """Join the processes that torchrun has started: NCCL on GPUs, gloo on CPUs.

    Args:
        device: of this process.

    Raises:
        QMRIError: where this process was not started by torchrun.
    """
    if missing := [name for name in _LAUNCHER if name not in os.environ]:
        raise QMRIError(
            field=", ".join(missing),
            found="environment variables that are not set",
            expected="a process started by torchrun",
            remedy="start it with torchrun -m monai.bundle run ..., or leave multi_gpu_train.json out",
        )
    device = torch.device(device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")


def data_parallel(network: nn.Module, device: torch.device | str) -> DistributedDataParallel:
    """A network whose gradients are averaged over the processes and whose batch normalisation sees them all.

    The weights are those of process 0.

    Args:
        network: the network, on its device; its batch normalisations are replaced in place.
        device: of this process.
    """
    # Buffers are equal without being sent: statistics are those of all processes.
    if torch.device(device).type == "cuda":
        network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
        return DistributedDataParallel(network, device_ids=[device], broadcast_buffers=False)
    return DistributedDataParallel(share_batch_norm(network), broadcast_buffers=False)


def shared_count(count: Tensor) -> Tensor:
    """Denominator of a mean over the samples of all processes.

    A loss that divides its own sum by this number is, averaged over the processes, the sum of all processes over the
    count of all: the loss of one process with the whole batch, also where the counts differ. No gradient flows.

    Args:
        count: what this process counts, a scalar: samples, voxels of a mask.

    Returns:
        The count of all processes, at least 1, divided by their number.
    """
    world = processes()[1]
    if world == 1:
        return count.clamp(min=1.0)
    total = count.detach().clone()
    dist.all_reduce(total)
    return total.clamp(min=1.0) / world


def batch_mean(values: Tensor) -> Tensor:
    """Mean over the first axis ``[N]``, of the samples of all processes in the sense of :func:`shared_count`."""
    return values.sum() / shared_count(values.new_tensor(float(len(values))))


def average_gradients(module: nn.Module) -> None:
    """Average the gradients of a module over the processes, where DistributedDataParallel cannot: second derivatives.

    The parameters must have started equal. A gradient that is missing counts as zero.
    """
    world = processes()[1]
    if world == 1:
        return
    for parameter in module.parameters():
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        dist.all_reduce(parameter.grad)
        parameter.grad /= world


def of_first_process(values: Tensor) -> Tensor:
    """The values of process 0, in place: random numbers that must be the same in all processes."""
    if processes()[1] > 1:
        dist.broadcast(values, 0)
    return values


def count_of_batch(own: Tensor) -> int:
    """Number N of rows of the whole batch from the rows of each process ``[n, ...]``."""
    if processes()[1] == 1:
        return len(own)
    count = torch.tensor(len(own), device=own.device)
    dist.all_reduce(count)
    return int(count)


def own_rows(rows: Tensor) -> Tensor:
    """This process's rows ``[n, ...]`` of those of the whole batch ``[N, ...]``."""
    rank, world = processes()
    return rows[rank::world]


def are_own(rows: Tensor) -> Tensor:
    """Which of the rows ``[N, ...]`` of the whole batch are this process's: boolean ``[N]``."""
    rank, world = processes()
    return torch.arange(len(rows), device=rows.device) % world == rank


def all_rows(own: Tensor) -> Tensor:
    """Rows ``[N, ...]`` of the whole batch from those of each process ``[n, ...]``; gradients flow back to their owner.

    Args:
        own: the rows :func:`own_rows` of the whole; the numbers of rows of two processes differ by one at most.
    """
    rank, world = processes()
    if world == 1:
        return own
    whole = own.new_zeros((count_of_batch(own), *own.shape[1:]))
    whole[rank::world] = own
    return _sum_over_processes(whole)


class SharedBatchNorm(_BatchNorm):
    """Batch normalisation over the samples of all processes, which torch's SyncBatchNorm does on GPUs alone.

    Parameters and buffers are those of ``torch.nn.BatchNorm3d``.
    """

    def forward(self, features: Tensor) -> Tensor:
        """Normalise ``[N, C, ...]``; in evaluation, and in one process, as any batch normalisation."""
        if not self.training or processes()[1] == 1:
            return super().forward(features)
        axes = [axis for axis in range(features.ndim) if axis != 1]
        shape = [1, -1] + [1] * (features.ndim - 2)
        values = features.to(torch.promote_types(features.dtype, torch.float32))
        own = values.new_tensor([float(values.numel() // values.shape[1])])
        sums = _sum_over_processes(torch.cat([values.sum(axes), own]))
        count = sums[-1].detach()
        mean = sums[:-1] / count
        centred = values - mean.view(shape)
        # Twice over the data: a variance as a difference of large sums has no digits left.
        variance = _sum_over_processes(centred.square().sum(axes)) / count
        self._remember(mean.detach(), variance.detach() * count / (count - 1.0))
        result = centred * torch.rsqrt(variance + self.eps).view(shape)
        if self.affine:
            result = result * self.weight.view(shape) + self.bias.view(shape)
        return result.to(features.dtype)

    def _check_input_dim(self, features: Tensor) -> None:
        """Any number of axes."""

    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        """Running statistics, as torch keeps them: the variance is the unbiased one."""
        if not self.track_running_stats:
            return
        assert self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        share = self.momentum if self.momentum is not None else 1.0 / float(self.num_batches_tracked)
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
        self.running_var.lerp_(variance.to(self.running_var.dtype), share)


def share_batch_norm(network: Network) -> Network:
    """Let every batch normalisation of a network on a CPU see all processes; parameters and buffers stay the same.

    Args:
        network: changed in place, unless it is a batch normalisation itself.

    Returns:
        The network.
    """
    for name, child in network.named_children():
        setattr(network, name, share_batch_norm(child))
    if not isinstance(network, _BatchNorm) or isinstance(network, SharedBatchNorm):
        return network
    shared = SharedBatchNorm(
        network.num_features, network.eps, network.momentum, network.affine, network.track_running_stats
    )
    shared._parameters, shared._buffers = network._parameters, network._buffers
    return shared.train(network.training)  # type: ignore[return-value]


def _sum_over_processes(values: Tensor) -> Tensor:
    """Sum of the tensors of all processes, which gradients flow through."""
    # Here: it warns on platforms without distributed training, where nothing calls it.
    from torch.distributed.nn.functional import all_reduce

    return all_reduce(values)
