"""Optimisers, fused, and their learning rate.

    optimizer = optimizer_of(learner, config)
    group["lr"] = learning_rate(config, progress)

They are torch's own, without torch's compiler: the first use of a plain one imports it, which takes 2 seconds of every
process that trains alone. (DDP imports it in any case.)
"""

import inspect
import math
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import nn
from torch.optim import Optimizer

from kdtune.experiment import Train

Method = TypeVar("Method", bound=Callable[..., Any])  # Any: whatever it is, it stays that


def _uncompiled(method: Method) -> Method:
    """Without its wrappers: torch's tell the compiler not to look inside, and import it for that."""
    found: Method = inspect.unwrap(method)
    return found


class _Eager(Optimizer):
    add_param_group = _uncompiled(Optimizer.add_param_group)
    zero_grad = _uncompiled(Optimizer.zero_grad)
    state_dict = _uncompiled(Optimizer.state_dict)
    load_state_dict = _uncompiled(Optimizer.load_state_dict)


class SGD(_Eager, torch.optim.SGD):
    step = torch.no_grad()(_uncompiled(torch.optim.SGD.step))


class AdamW(_Eager, torch.optim.AdamW):
    step = torch.no_grad()(_uncompiled(torch.optim.AdamW.step))


def optimizer_of(learner: nn.Module, config: Train) -> Optimizer:
    """Of what is trained of `learner`. Every parameter but a scalar is decayed alike, as in the published tables."""
    trained = [parameter for parameter in learner.parameters() if parameter.requires_grad]
    scalars = [parameter for parameter in trained if parameter.ndim == 0]
    groups: list[dict[str, Any]] = [{"params": [parameter for parameter in trained if parameter.ndim > 0]}]
    if scalars:  # a learned temperature: decay would pull it to the middle of its range
        groups.append({"params": scalars, "weight_decay": 0.0})
    if config.optimizer == "adamw":
        return AdamW(groups, lr=config.learning_rate, weight_decay=config.weight_decay, fused=True)
    optimizer = SGD(
        groups,
        lr=config.learning_rate,
        momentum=config.momentum,
        nesterov=config.nesterov,
        weight_decay=config.weight_decay,
        fused=True,
    )
    if config.momentum:  # fused SGD wants all from the first step on; some parameters get no gradient until later
        for parameter in trained:
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


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
