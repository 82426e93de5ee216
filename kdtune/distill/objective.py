"""The distillation objective.

    total = (1 - alpha) * cross_entropy + alpha * T^2 * logit_loss + feature_weight * feature_loss

computed in float32, without a special case at 0 or 1. Its three weights follow their schedules, an epoch at a time,
unless the temperature is learned. The teacher's answers are `Cached` or `Live`; the objective cannot tell.
"""

from collections.abc import Mapping
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from kdtune.cache import LogitCache
from kdtune.data import Batch
from kdtune.distill.feature_losses import FEATURE_LOSSES
from kdtune.distill.logit_losses import Temperature, logit_loss
from kdtune.distill.temperature import TrainedTemperature, reversed_gradient, strength
from kdtune.experiment import Distill
from kdtune.models import Tapped
from kdtune.training import cross_entropy


class TeacherAnswers(Protocol):
    """What a teacher says to a batch: logits [B, C] and the feature maps of its taps (none from a cache)."""

    def begin_epoch(self, column: int) -> None:
        """Called before the batches of an epoch, which are all of view `column`; may take its time."""

    def __call__(self, batch: Batch) -> tuple[Tensor, tuple[Tensor, ...]]: ...


class Outputs(NamedTuple):
    """What a learner says to images. A plain tensor of logits, or a plain tuple, stands for the first of these."""

    logits: Tensor  # [B, C]
    features: tuple[Tensor, ...] = ()  # of the student's taps, projected if it is the student that is
    projections: tuple[Tensor, ...] = ()  # [S, C, 1, 1] or [S, C]: weights that project the teacher's features instead
    temperature: Tensor | None = None  # a scalar, where it is learned


class Cached:
    """The teacher's logits as they are kept; a column that is missing is computed before the epoch that needs it."""

    def __init__(self, cache: LogitCache) -> None:
        self.cache = cache

    def begin_epoch(self, column: int) -> None:
        self.cache.ensure(column)

    def __call__(self, batch: Batch) -> tuple[Tensor, tuple[Tensor, ...]]:
        return self.cache.teacher_logits(batch.column, batch.indices), ()


class Live:
    """The teacher itself, in eval mode and without gradients, on the very images that the student sees.

    In float32 whatever the student computes in: it gives the logits that the cache holds.
    """

    def __init__(self, teacher: Tapped) -> None:
        self.teacher = teacher

    def begin_epoch(self, column: int) -> None:
        """There is nothing to prepare."""

    def __call__(self, batch: Batch) -> tuple[Tensor, tuple[Tensor, ...]]:
        with torch.no_grad():
            logits, features = self.teacher(batch.images)
        return logits.float(), features


class Terms:
    """The weighted terms of a `distill` section, at the values that its schedules have in the present epoch."""

    def __init__(self, config: Distill) -> None:
        self.config = config
        self.temperature = self.alpha = self.feature_weight = 0.0  # set by begin_epoch

    def begin_epoch(self, epoch: int, epochs: int) -> dict[str, float]:
        self.temperature = self.config.temperature.at(epoch, epochs)
        self.alpha = self.config.alpha.at(epoch, epochs)
        self.feature_weight = self.config.feature_weight.at(epoch, epochs)
        return {"temperature": self.temperature, "alpha": self.alpha, "feature_weight": self.feature_weight}

    def distillation(
        self, student_logits: Tensor, teacher_logits: Tensor, temperature: Temperature, labels: Tensor
    ) -> Tensor:
        """alpha * T^2 * logit_loss; a learned temperature has its gradient through T^2 too."""
        scale = temperature * temperature if self.config.scale_by_temperature_squared else 1.0
        return self.alpha * scale * logit_loss(student_logits, teacher_logits, temperature, labels, self.config)

    def cross_entropy(self, student_logits: Tensor, labels: Tensor) -> Tensor:
        return (1 - self.alpha) * cross_entropy(student_logits.float(), labels)


class Distillation:
    """The objective above, for the `Outputs` of a learner. `learned` is the learner's own temperature, if it has one.

    The temperature that `begin_epoch` gives is then the one that the epoch begins with.
    """

    def __init__(self, config: Distill, teacher: TeacherAnswers, learned: TrainedTemperature | None = None) -> None:
        self.config = config
        self.teacher = teacher
        self.learned = learned
        self.feature_loss = FEATURE_LOSSES[config.feature_loss]
        self.terms = Terms(config)
        self.opposition = 0.0  # of a learned temperature, set by begin_epoch

    def begin_epoch(self, epoch: int, epochs: int, column: int) -> Mapping[str, float]:
        self.teacher.begin_epoch(column)
        values = self.terms.begin_epoch(epoch, epochs)
        if self.learned is not None and self.config.learned_temperature is not None:
            self.opposition = strength(self.config.learned_temperature, epoch, epochs)
            values["temperature"] = self.learned().item()
        return values

    def __call__(
        self, outputs: Outputs | tuple[Tensor, tuple[Tensor, ...]] | Tensor, batch: Batch
    ) -> dict[str, Tensor]:
        student = Outputs(outputs) if isinstance(outputs, Tensor) else Outputs(*outputs)
        teacher_logits, teacher_features = self.teacher(batch)
        temperature: Temperature = self.terms.temperature
        if student.temperature is not None:
            temperature = reversed_gradient(student.temperature, self.opposition)
        logits, answers, labels = (batch.gather(part) for part in (student.logits, teacher_logits, batch.labels))
        terms = {
            "cross_entropy": self.terms.cross_entropy(logits, labels),
            "distillation": self.terms.distillation(logits, answers, temperature, labels),
        }
        if not self.config.feature_weight.is_zero:
            terms["features"] = self.terms.feature_weight * self._features(student, teacher_features, batch)
        return terms

    def _features(self, student: Outputs, teacher_features: tuple[Tensor, ...], batch: Batch) -> Tensor:
        """Mean of the taps' losses. A teacher with more taps than the student is compared from its output back."""
        pairs = list(zip(student.features, teacher_features[-len(student.features) :], strict=True))
        loss = self.feature_loss
        if student.projections:
            guesses = [project(theirs, by) for (_, theirs), by in zip(pairs, student.projections, strict=True)]
            compared = [(guess, mine) for guess, (mine, _) in zip(guesses, pairs, strict=True)]
        else:
            compared = pairs[-1 if loss.last_tap_only else 0 :]
        of_images = [[batch.gather(part) for part in loss.of_images(*both)] for both in compared]
        return torch.stack([loss.of_batch(*parts) for parts in of_images]).mean()


def project(features: Tensor, weight: Tensor) -> Tensor:
    """Maps through a 1x1 convolution, vectors through a linear map, in float32."""
    return F.conv2d(features.float(), weight) if weight.ndim == 4 else F.linear(features.float(), weight)
