"""The processes that train one student together: whose part of a batch is whose, and how parts become whole.

Each of `count` processes computes its part of every batch, and *the objective is computed on the whole batch*, in each
of them: some losses compare images with each other, and the mean of parts of unequal length is not the mean. So a
batch of B images means the same however many processes share it.

    ranks = joined()                    # the process group that this process is in; ALONE: there is none
    mine = ranks.part(indices)          # [B] -> [b]
    whole = ranks.gather(logits, B)     # [b, C] -> [B, C]

Gradients: everything that is gathered carries `count` times its gradient, which DDP's mean over processes takes back.
"""

from dataclasses import dataclass
from datetime import timedelta
from inspect import signature
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from kdtune.errors import ModelError

SMALLEST_PART = 2  # BatchNorm cannot train on one image
PATIENCE = timedelta(days=7)  # of a process that waits for another one's cache column; who dies is noticed at once
NEW_NAME = "forward_sync_buffers"  # torch 2.15 warns of the old one
SYNC_BUFFERS = NEW_NAME if NEW_NAME in signature(DistributedDataParallel).parameters else "broadcast_buffers"
SYNCHRONISED = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@dataclass(frozen=True)
class Ranks:
    """One process among `count`; `rank` is its number."""

    rank: int = 0
    count: int = 1
    patient: Any = None  # a gloo group of the same processes, whose calls may wait for long

    def part(self, whole: Tensor) -> Tensor:
        """This process's share [b] of whole [B]: contiguous, sizes differ by one at most."""
        return whole.tensor_split(self.count)[self.rank]

    def divides(self, images: int) -> bool:
        """Whether a batch is shared. One too small for that is computed whole by every process."""
        return self.count > 1 and images >= SMALLEST_PART * self.count

    def gather(self, part: Tensor, total: int) -> Tensor:
        """The whole [total, ...] of which this process has `part` [b, ...]. All must call it."""
        if self.count == 1:
            return part
        gathered: Tensor = _Gather.apply(part, self.rank, self.count, total)
        return gathered

    def sum(self, value: Tensor) -> Tensor:
        """Of the values of all processes, without a gradient."""
        if self.count > 1:
            value = value.clone()
            dist.all_reduce(value)
        return value

    def meet(self) -> None:
        """Returns once every process has come here, however long that takes."""
        if self.count > 1:
            dist.barrier(group=self.patient)

    def wrap(self, learner: nn.Module, *, synchronise: bool) -> nn.Module:
        """`learner` under DDP, which shares its parameters; `synchronise`: BatchNorm's statistics are of all parts."""
        if self.count == 1:
            return learner
        if synchronise:
            synchronise_batch_norm(learner)
        # buffers differ between processes only in running statistics, which training does not read
        quiet: dict[str, Any] = {SYNC_BUFFERS: False}
        return DistributedDataParallel(learner, **quiet)

    @torch.no_grad()
    def average_statistics(self, learner: nn.Module) -> None:
        """Running statistics of BatchNorm become the mean of those of all processes."""
        running = [buffer for buffer in learner.buffers() if buffer.is_floating_point()]
        if self.count > 1 and running:
            flat = torch.cat([buffer.flatten() for buffer in running])
            dist.all_reduce(flat)
            sizes = [buffer.numel() for buffer in running]
            for buffer, mean in zip(running, torch.split(flat / self.count, sizes), strict=True):
                buffer.copy_(mean.view_as(buffer))


ALONE = Ranks()


def joined() -> Ranks:
    """The processes of torch's default process group, which must be there. All of them must call it."""
    return Ranks(dist.get_rank(), dist.get_world_size(), dist.new_group(backend="gloo", timeout=PATIENCE))


class _Gather(torch.autograd.Function):
    """Parts [b, ...] of all processes -> [B, ...]; back, `count` times the gradient of one's own part."""

    @staticmethod
    def forward(ctx: Any, part: Tensor, rank: int, count: int, total: int) -> Tensor:  # `Any`: torch's context
        sizes = [total // count + (number < total % count) for number in range(count)]  # as tensor_split cuts
        assert len(part) == sizes[rank], f"process {rank} of {count} has {len(part)} of {total} images"
        ctx.own, ctx.count = slice(sum(sizes[:rank]), sum(sizes[: rank + 1])), count
        rest = part.shape[1:]
        padded = part.new_zeros(sizes[0], *rest)
        padded[: len(part)] = part
        everything = padded.new_empty(count * sizes[0], *rest)
        dist.all_gather_into_tensor(everything, padded)
        if sizes[-1] == sizes[0]:
            return everything
        return torch.cat([everything[number * sizes[0] :][:size] for number, size in enumerate(sizes)])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        return gradient[ctx.own] * ctx.count, None, None, None


class SynchronisedBatchNorm(_BatchNorm):
    """BatchNorm whose mean and variance are those of the whole batch; for devices that torch's own does not know."""

    def _check_input_dim(self, input: Tensor) -> None:  # noqa: A002  # torch's name
        """As many dimensions as the layer had before it was synchronised."""

    def forward(self, images: Tensor) -> Tensor:  # [b, C, ...]
        if not self.training:
            evaluated: Tensor = super().forward(images)
            return evaluated
        others = [0, *range(2, images.ndim)]
        shape = (1, -1, *(1 for _ in images.shape[2:]))
        values = images.float()
        count = values.numel() // values.shape[1]
        total = all_reduce(values.new_full((), count))  # type: ignore[no-untyped-call]
        mean = all_reduce(values.sum(others)) / total  # type: ignore[no-untyped-call]
        centred = values - mean.view(shape)
        variance = all_reduce(centred.square().sum(others)) / total  # type: ignore[no-untyped-call]
        self._keep(mean.detach(), variance.detach() * total / (total - 1))
        normalised = centred * (variance.view(shape) + self.eps).rsqrt()
        if self.affine:
            normalised = normalised * self.weight.view(shape) + self.bias.view(shape)
        same: Tensor = normalised.to(images.dtype)
        return same

    def _keep(self, mean: Tensor, unbiased: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        share = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(unbiased, share)


def synchronise_batch_norm(learner: nn.Module) -> None:
    """Every BatchNorm of `learner` takes its statistics over all processes; names, weights and hooks stay.

    Raises ModelError for a subclass of BatchNorm, whose own additions would be lost.
    """
    for name, module in learner.named_modules():
        if type(module) in SYNCHRONISED:
            assert isinstance(module, _BatchNorm)
            on_gpu = module.weight is not None and module.weight.is_cuda
            if on_gpu:
                vars(module)["process_group"] = None  # torch's own, fused, looks for it
            module.__class__ = nn.SyncBatchNorm if on_gpu else SynchronisedBatchNorm
        elif isinstance(module, _BatchNorm) and not isinstance(module, nn.SyncBatchNorm | SynchronisedBatchNorm):
            raise ModelError(
                f"cannot synchronise {name}, a {type(module).__name__}: it is a BatchNorm of its own kind. "
                f"Set train.synchronise_batch_norm: false, or use torch's BatchNorm in the model"
            )
