"""The distillation objective and the students that it trains.

    total = (1 - alpha) * cross_entropy + alpha * T^2 * KL(teacher || student) + feature_weight * feature_loss

computed in float32, without a special case at 0 or 1. Its three weights follow their schedules, an epoch at a time.
Where the teacher's answers come from is a function of the batch: `from_cache` or `live`; the objective cannot tell.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdtune.cache import LogitCache
from kdtune.data import Batch, Dataset
from kdtune.distill.feature_losses import FEATURE_LOSSES
from kdtune.distill.logit_losses import LOGIT_LOSSES
from kdtune.experiment import Distill, Experiment
from kdtune.models import Tapped, build_model, tap_shapes
from kdtune.training import CrossEntropy, Objective, TrainingState, new_state

# What a teacher says to a batch: logits [B, C] and the feature maps of its taps (none from a cache).
TeacherAnswers = Callable[[Batch], tuple[Tensor, tuple[Tensor, ...]]]


def from_cache(cache: LogitCache) -> TeacherAnswers:
    return lambda batch: (cache.teacher_logits(batch.column, batch.indices), ())


def live(teacher: Tapped) -> TeacherAnswers:
    """The teacher itself, in eval mode and without gradients, on the very images that the student sees.

    In float32 whatever the student computes in: it gives the logits that the cache holds.
    """

    def answers(batch: Batch) -> tuple[Tensor, tuple[Tensor, ...]]:
        with torch.no_grad():
            logits, features = teacher(batch.images)
        return logits.float(), features

    return answers


class Distillation:
    """The objective above. Outputs are logits [B, C], or logits and (projected) features of a `Learner`."""

    def __init__(self, config: Distill, teacher: TeacherAnswers) -> None:
        self.config = config
        self.teacher = teacher
        self.logit_loss = LOGIT_LOSSES[config.logit_loss]
        self.feature_loss, _ = FEATURE_LOSSES[config.feature_loss]
        self.with_features = not config.feature_weight.is_zero
        self.temperature = self.alpha = self.feature_weight = 0.0  # set by begin_epoch

    def begin_epoch(self, epoch: int, epochs: int, column: int) -> Mapping[str, float]:
        self.temperature = self.config.temperature.at(epoch, epochs)
        self.alpha = self.config.alpha.at(epoch, epochs)
        self.feature_weight = self.config.feature_weight.at(epoch, epochs)
        return {"temperature": self.temperature, "alpha": self.alpha, "feature_weight": self.feature_weight}

    def __call__(self, outputs: Any, batch: Batch) -> dict[str, Tensor]:  # Any: one output or two, as above
        student_logits, student_features = outputs if self.with_features else (outputs, ())
        teacher_logits, teacher_features = self.teacher(batch)
        scale = self.temperature**2 if self.config.scale_by_temperature_squared else 1.0
        terms = {
            "cross_entropy": (1 - self.alpha) * F.cross_entropy(student_logits.float(), batch.labels),
            "distillation": self.alpha * scale * self.logit_loss(student_logits, teacher_logits, self.temperature),
        }
        if self.with_features:
            losses = [
                self.feature_loss(mine, theirs) for mine, theirs in zip(student_features, teacher_features, strict=True)
            ]
            terms["features"] = self.feature_weight * torch.stack(losses).mean()
        return terms


class Learner(nn.Module):
    """A student that also shows its feature maps, each through its projector (student's to teacher's channels).

    Projectors train with the student and are part of its resume state, and never of the export.
    """

    def __init__(self, student: nn.Module, taps: tuple[str, ...], projectors: list[nn.Module]) -> None:
        super().__init__()
        self.tapped = Tapped(student, taps)
        self.projectors = nn.ModuleList(projectors)

    def forward(self, images: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        logits, features = self.tapped(images)
        return logits, tuple(p(f) for p, f in zip(self.projectors, features, strict=True))


@dataclass
class Student:
    """A student about to be trained, or in training."""

    network: nn.Module
    state: TrainingState
    objective: Objective


def student_alone(experiment: Experiment, dataset: Dataset, seed: int, device: torch.device) -> Student:
    """A student that never meets a teacher: the baseline."""
    network = _new_network(experiment, dataset, seed)
    return Student(network, new_state(network, experiment.train, device), CrossEntropy())


def logit_student(
    experiment: Experiment, dataset: Dataset, teacher: TeacherAnswers, seed: int, device: torch.device
) -> Student:
    """A student that learns from logits alone; feature_weight is 0 throughout."""
    network = _new_network(experiment, dataset, seed)
    return Student(network, new_state(network, experiment.train, device), Distillation(experiment.distill, teacher))


def feature_student(
    experiment: Experiment, dataset: Dataset, teacher: Tapped, seed: int, device: torch.device
) -> Student:
    """A student that also learns from the feature maps of the live teacher, as `tap_teacher` made it."""
    network = _new_network(experiment, dataset, seed)
    taps = _taps_of(network)[-len(teacher.taps) :]
    _, projected = FEATURE_LOSSES[experiment.distill.feature_loss]
    mine = tap_shapes(experiment.student.model, taps, dataset.shape)
    theirs = tap_shapes(experiment.teacher.model, teacher.taps, dataset.shape)
    projectors: list[nn.Module] = [
        nn.Conv2d(m[0], t[0], 1, bias=False) if projected else nn.Identity() for m, t in zip(mine, theirs, strict=True)
    ]
    learner = Learner(network, taps, projectors)
    return Student(
        network, new_state(learner, experiment.train, device), Distillation(experiment.distill, live(teacher))
    )


def tap_teacher(experiment: Experiment, network: nn.Module) -> Tapped:
    """The teacher with as many taps as the student has too, counted from the output.

    What lies nearest to the logits matters most where one of the two has more stages.
    """
    with torch.device("meta"):
        student = build_model(experiment.student.model, (3, 32, 32), classes=2)
    theirs = _taps_of(network)
    return Tapped(network, theirs[-min(len(_taps_of(student)), len(theirs)) :])


def _taps_of(network: nn.Module) -> tuple[str, ...]:
    taps = network.taps
    assert isinstance(taps, tuple)
    return taps


def _new_network(experiment: Experiment, dataset: Dataset, seed: int) -> nn.Module:
    torch.manual_seed(seed)  # before anything else is built: every trial of a seed starts from the same weights
    return build_model(experiment.student.model, dataset.shape, len(dataset.classes))
