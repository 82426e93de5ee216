"""A learned temperature: one trainable number, moved against the student.

Curriculum temperature (Li et al. 2023, "Curriculum Temperature for Knowledge Distillation", with its global
temperature): the student minimises the distillation term and the temperature maximises it, more and more so as the
run goes on. The number lives in the learner, so that the optimiser moves it and a resumed run continues with it, and
never in the student. `optimizer_of` decays no scalar: decay would pull it to the middle of its range.
"""

import math

import torch
from torch import Tensor, nn

from kdtune import schedules
from kdtune.experiment.objective import LearnedTemperature


class TrainedTemperature(nn.Module):
    """forward() -> the temperature, a scalar tensor between `low` and `high` that begins at `start`."""

    def __init__(self, config: LearnedTemperature, start: float) -> None:
        super().__init__()
        self.low, self.high = config.low, config.high
        share = (start - config.low) / (config.high - config.low)
        self.position = nn.Parameter(torch.tensor(math.log(share / (1 - share))))  # a sigmoid of it is the share

    def forward(self) -> Tensor:
        return self.low + (self.high - self.low) * torch.sigmoid(self.position)


def strength(config: LearnedTemperature, epoch: int, epochs: int) -> float:
    """How strongly the temperature opposes the student in 0-based `epoch`: 0 to 1 by half a cosine, then 1."""
    if config.warmup == 0:
        return 1.0
    return schedules.cosine(min(schedules.progress_of(epoch, epochs) / config.warmup, 1.0), start=0.0, end=1.0)


def reversed_gradient(value: Tensor, strength: float) -> Tensor:
    """`value`, bit for bit, whose gradient is multiplied by -strength (Ganin & Lempitsky 2015)."""
    constant = value.detach()
    return constant + strength * (constant - value)
