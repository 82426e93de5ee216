"""The training loop: any module, any objective, one epoch at a time.

`train(...)` is a generator of `EpochRecord`s. Whoever iterates it decides when to stop, and between two epochs the
`TrainingState` that was passed in can be saved and later resumed: order, augmentation, dropout and learning rate
are functions of `(seed, epoch)`, so a resumed run continues as if it had never stopped: bit for bit on a CPU, whereas
kernels of a GPU add in an order of their own.

    state = new_state(learner, config, device)
    for record in train(state, CrossEntropy(), dataset, data_config, config, dataset.fit,
                        seed=0, views=config.epochs, validate=True): ...
"""

import time
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from kdtune.data import Batch, Dataset, batches, steps_an_epoch, stream
from kdtune.experiment import Data, Train
from kdtune.ranks import ALONE, Ranks
from kdtune.records import EpochRecord
from kdtune.training.devices import autocast, precision_of
from kdtune.training.evaluation import evaluate
from kdtune.training.optimizers import learning_rate
from kdtune.training.state import TrainingState

DROPOUT = 1  # this stream of (seed, epoch); the order of the images is 0


class Objective(Protocol):
    """What is minimised: the sum of named, already weighted terms."""

    def begin_epoch(self, epoch: int, epochs: int, column: int) -> Mapping[str, float]:
        """Called before 0-based `epoch`; gives the values of its schedules, to be recorded."""

    def __call__(self, outputs: Any, batch: Batch) -> dict[str, Tensor]:
        """Scalar terms for the learner's outputs (`Any`: logits, or logits with features), of the whole batch: what
        losses are computed on goes through `batch.gather`."""


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of logits [B, C], in float32, over the images that have a label: -1 stands for none.

    0 where no image has one. Nothing waits for the device.
    """
    total = F.cross_entropy(logits.float(), labels, ignore_index=-1, reduction="sum")
    return total / (labels >= 0).sum().clamp_min(1)


class CrossEntropy:
    """Plain supervised training: a teacher, or a student alone. Outputs are logits [B, C]."""

    def begin_epoch(self, epoch: int, epochs: int, column: int) -> Mapping[str, float]:
        return {}

    def __call__(self, outputs: Tensor, batch: Batch) -> dict[str, Tensor]:
        return {"cross_entropy": cross_entropy(batch.gather(outputs), batch.gather(batch.labels))}


def train(
    state: TrainingState,
    objective: Objective,
    dataset: Dataset,
    data: Data,
    config: Train,
    indices: Tensor,
    *,
    seed: int,
    views: int,
    validate: bool,
    ranks: Ranks = ALONE,
) -> Iterator[EpochRecord]:
    """Trains `state.learner` on the training images `indices` from epoch `state.epoch` on, a record an epoch.

    Ends early after an epoch whose loss is not finite. Nothing in a step waits for the device, but for torch's
    synchronised BatchNorm. All `ranks` iterate, in step; their records agree but for `seconds` and `waited`.
    """
    device = dataset.images.device
    dtype = precision_of(config, device)
    learner, optimizer, scaler = state.learner, state.optimizer, state.scaler
    wrapped = ranks.wrap(learner, synchronise=config.synchronise_batch_norm)
    steps = steps_an_epoch(len(indices), config.batch_size)
    for epoch in range(state.epoch, config.epochs):
        called = time.perf_counter()
        column = epoch % views
        weights = objective.begin_epoch(epoch, config.epochs, column)
        ranks.meet()  # one may have computed a column of the cache meanwhile
        began = time.perf_counter()
        dropout = (seed, epoch, DROPOUT, ranks.rank) if ranks.rank else (seed, epoch, DROPOUT)
        torch.manual_seed(stream(*dropout))  # if the model has any; whatever was done before
        learner.train()
        told: dict[str, list[Tensor]] = {}
        for step, batch in enumerate(
            batches(dataset, data, indices, size=config.batch_size, column=column, seed=seed, epoch=epoch, ranks=ranks)
        ):
            rate = learning_rate(config, (epoch * steps + step) / (config.epochs * steps))
            for group in optimizer.param_groups:
                group["lr"] = rate
            with autocast(dtype, device):
                outputs = wrapped(batch.images)
            terms = objective(outputs, batch)
            optimizer.zero_grad(set_to_none=True)
            # stacked, since one of them may have no gradient: a feature loss of layers that are frozen
            scaler.scale(torch.stack(list(terms.values())).sum()).backward()  # type: ignore[no-untyped-call]
            scaler.step(optimizer)
            scaler.update()
            for name, term in terms.items():
                told.setdefault(name, []).append(term.detach())
        ranks.average_statistics(learner)
        state.epoch = epoch + 1
        means = {name: torch.stack(values).mean().item() for name, values in told.items()}
        evaluation = (
            evaluate(learner, dataset, dataset.images, dataset.labels, dataset.validation, dtype, ranks)
            if validate
            else None
        )
        record = EpochRecord(
            epoch=epoch + 1,
            epochs=config.epochs,
            loss=sum(means.values()),
            terms=means,
            val_accuracy=evaluation.accuracy if evaluation else None,
            val_loss=evaluation.loss if evaluation else None,
            learning_rate=rate,
            seconds=time.perf_counter() - began,
            waited=began - called,
            temperature=weights.get("temperature"),
            alpha=weights.get("alpha"),
            feature_weight=weights.get("feature_weight"),
        )
        yield record
        if record.diverged:
            return
