"""The training loop: any module, any objective, one epoch at a time.

`train(...)` is a generator of `EpochRecord`s. Whoever iterates it decides when to stop, and between two epochs the
`TrainingState` that was passed in can be saved and later resumed: order, augmentation, dropout and learning rate
are functions of `(seed, epoch)`, so a resumed run continues as if it had never stopped.

    state = new_state(learner, config, device)
    for record in train(state, CrossEntropy(), dataset, data_config, config, dataset.fit,
                        seed=0, views=config.epochs, validate=True): ...
"""

import io
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdtune.data import Batch, Dataset, Pixels, batches, read, steps_an_epoch, stream
from kdtune.experiment import Data, Train
from kdtune.models import channels_last
from kdtune.ranks import ALONE, Ranks
from kdtune.records import EpochRecord

DROPOUT = 1  # this stream of (seed, epoch); the order of the images is 0
EVALUATION_BATCH = 1024  # images that are evaluated at once, at most; large ones are fewer
EVALUATION_PIXELS = {"cpu": 1 << 16, "cuda": 1 << 20}


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


@dataclass
class TrainingState:
    """Everything that a resumed run needs, as it is between two epochs."""

    learner: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler = field(default_factory=lambda: torch.amp.GradScaler(enabled=False))
    epoch: int = 0  # epochs done

    def state_dict(self) -> dict[str, Any]:
        return {
            "learner": self.learner.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "epoch": self.epoch,
        }

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        self.learner.load_state_dict(saved["learner"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.scaler.load_state_dict(saved["scaler"])
        self.epoch = saved["epoch"]


def to_bytes(content: Mapping[str, Any]) -> bytes:
    """`torch.save`; `from_bytes` reads it. `Any`: tensors and plain values."""
    buffer = io.BytesIO()
    torch.save(dict(content), buffer)
    return buffer.getvalue()


def from_bytes(content: bytes, device: torch.device) -> dict[str, Any]:
    """What `to_bytes` made."""
    found: dict[str, Any] = torch.load(io.BytesIO(content), map_location=device, weights_only=True)
    return found


@dataclass(frozen=True)
class Evaluation:
    accuracy: float
    loss: float  # mean cross-entropy
    predictions: Tensor  # [N] int64
    confidences: Tensor  # [N] float32: probabilities of the predictions


def default_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def new_state(learner: nn.Module, config: Train, device: torch.device) -> TrainingState:
    """State of a run that has not begun. Every parameter but a scalar is decayed alike, as in the published tables."""
    channels_last(learner).to(device)
    trained = [parameter for parameter in learner.parameters() if parameter.requires_grad]
    scalars = [parameter for parameter in trained if parameter.ndim == 0]
    parameters: list[dict[str, Any]] = [{"params": [parameter for parameter in trained if parameter.ndim > 0]}]
    if scalars:  # a learned temperature: decay would pull it to the middle of its range
        parameters.append({"params": scalars, "weight_decay": 0.0})
    optimizer: torch.optim.Optimizer
    float16 = precision_of(config, device) == torch.float16
    fused = not float16  # with a GradScaler, a fused optimiser cannot take up the state of one that was not
    if config.optimizer == "sgd":
        optimizer = torch.optim.SGD(
            parameters,
            lr=config.learning_rate,
            momentum=config.momentum,
            nesterov=config.nesterov,
            weight_decay=config.weight_decay,
            fused=fused,
        )
        if config.momentum:  # fused SGD wants all from the first step on; some parameters get no gradient until later
            for parameter in trained:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    else:
        optimizer = torch.optim.AdamW(
            parameters, lr=config.learning_rate, weight_decay=config.weight_decay, fused=fused
        )
    return TrainingState(learner, optimizer, torch.amp.GradScaler(device.type, enabled=float16))


def precision_of(config: Train, device: torch.device) -> torch.dtype:
    """The type that autocast computes in; `auto` takes what the device has."""
    if config.precision == "auto":
        if device.type != "cuda":
            return torch.float32
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    dtype = getattr(torch, config.precision)
    assert isinstance(dtype, torch.dtype)
    return dtype


def autocast(dtype: torch.dtype, device: torch.device) -> AbstractContextManager[Any]:
    return nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype=dtype)


def learning_rate(config: Train, progress: float) -> float:
    """At `progress` (0 to 1) of all steps: linear warm-up, then cosine to 0, steps, or constant."""
    if progress < config.warmup:
        return config.learning_rate * progress / config.warmup
    if config.schedule == "cosine":
        rest = (progress - config.warmup) / (1 - config.warmup)
        return config.learning_rate * (1 + math.cos(math.pi * rest)) / 2
    if config.schedule == "step":
        return config.learning_rate * config.factor ** sum(progress >= m for m in config.milestones)
    return config.learning_rate


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

    Ends early after an epoch whose loss is not finite. Nothing in a step waits for the device, but for float16, whose
    GradScaler looks for overflows. All `ranks` iterate, in step; their records agree but for `seconds` and `waited`.
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
            torch.autograd.backward(scaler.scale(list(terms.values())))  # of their sum
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


def evaluation_batch(dataset: Dataset) -> int:
    """Images that are evaluated at once: enough to keep a GPU busy; on a CPU, so few that its caches hold a layer.

    Measured on a CPU, one core: resnet56 answers to 191 images of 32 x 32 a second 64 at once, to 95 1024 at once.
    """
    _, height, width = dataset.shape
    return min(EVALUATION_BATCH, max(4, EVALUATION_PIXELS[dataset.images.device.type] // (height * width)))


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    dataset: Dataset,
    images: Pixels,
    labels: Tensor,
    indices: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
    ranks: Ranks = ALONE,
) -> Evaluation:
    """How `model` (logits, or logits first) answers to images [N, C, H, W], without augmentation.

    Each of several `ranks` asks about its part, and all know the outcome.
    """
    model.eval()
    everything = torch.arange(len(labels), device=labels.device) if indices is None else indices
    predictions, losses = [everything[:0]], [torch.zeros((), device=labels.device)]  # a part may be empty
    confidences = [torch.zeros(0, device=labels.device)]
    chunks = [chunk for chunk in torch.split(ranks.part(everything), evaluation_batch(dataset)) if len(chunk)]
    for chosen, pixels in zip(chunks, read(images, chunks), strict=True):
        with autocast(dtype, images.device):
            outputs = model(dataset.normalise(pixels))
        logits = (outputs[0] if isinstance(outputs, tuple) else outputs).float()  # [B, C]
        log_probabilities = logits.log_softmax(dim=1)
        predictions.append(logits.argmax(dim=1))
        confidences.append(log_probabilities.amax(dim=1).exp())
        losses.append(F.nll_loss(log_probabilities, labels[chosen], reduction="sum"))
    predicted, confident = (ranks.gather(torch.cat(parts), len(everything)) for parts in (predictions, confidences))
    loss = ranks.sum(torch.stack(losses).sum())
    accuracy = (predicted == labels[everything]).double().mean().item()
    return Evaluation(accuracy, loss.item() / len(everything), predicted, confident)
