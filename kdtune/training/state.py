"""What a run of training is between two epochs, from which it goes on.

state = new_state(learner, config, device)
content = to_bytes(state.state_dict())
state.load_state_dict(from_bytes(content, device))
"""

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from kdtune.experiment import Train
from kdtune.models import channels_last
from kdtune.training.devices import precision_of
from kdtune.training.optimizers import optimizer_of


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
        if saved["scaler"]:  # nothing, where it was not needed: on a GPU that has bfloat16, or a CPU
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


def new_state(learner: nn.Module, config: Train, device: torch.device) -> TrainingState:
    """State of a run that has not begun: the learner on the device, in the layout that is fastest there."""
    channels_last(learner).to(device)
    float16 = precision_of(config, device) == torch.float16
    return TrainingState(learner, optimizer_of(learner, config), torch.amp.GradScaler(device.type, enabled=float16))
