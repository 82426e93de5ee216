"""The optimisers that a run begins with: fused, and equal to torch's own loop over parameters."""

from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from kdtune.experiment import Train
from kdtune.training import new_state
from tests.conftest import CPU


class LateComer(nn.Module):
    """A branch that is skipped at first."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.late = nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, images: Tensor, *, both: bool) -> Tensor:
        logits: Tensor = self.first(images)
        return logits + self.late(images) if both else logits


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_parameter_may_get_its_first_gradient_in_a_later_step(optimizer: Literal["sgd", "adamw"]) -> None:
    config = Train(optimizer=optimizer, learning_rate=0.05)
    states = [new_state(LateComer(), config, CPU) for _ in range(2)]
    states[1].learner.load_state_dict(states[0].learner.state_dict())
    states[1].optimizer.param_groups[0]["fused"] = False  # torch's own loop, a parameter at a time
    images = torch.randn(5, 4)
    for state in states:
        for both in (False, True, True):
            state.optimizer.zero_grad()
            state.learner(images, both=both).square().sum().backward()
            state.optimizer.step()
    torch.testing.assert_close(states[0].learner.state_dict(), states[1].learner.state_dict())
