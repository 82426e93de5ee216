"""The optimisers that a run begins with: fused, equal to torch's own, and without its compiler."""

import subprocess
import sys
from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from kdtune.experiment import Train
from kdtune.experiment.train import Precision
from kdtune.training import TrainingState, from_bytes, new_state, to_bytes
from tests.conftest import CPU

PRECISIONS: tuple[Precision, Precision] = ("float32", "float16")


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


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_they_are_torchs_own_step_by_step_and_after_they_were_saved(optimizer: Literal["sgd", "adamw"]) -> None:
    config = Train(optimizer=optimizer, learning_rate=0.05)
    ours, theirs = nn.Linear(4, 3), nn.Linear(4, 3)
    theirs.load_state_dict(ours.state_dict())
    state = new_state(ours, config, CPU)
    rate, decay = config.learning_rate, config.weight_decay
    plain: torch.optim.Optimizer = torch.optim.AdamW(theirs.parameters(), lr=rate, weight_decay=decay)
    if optimizer == "sgd":
        momentum, nesterov = config.momentum, config.nesterov
        plain = torch.optim.SGD(theirs.parameters(), rate, momentum, weight_decay=decay, nesterov=nesterov)
    images = torch.randn(5, 4)
    for step in range(4):
        for network, one in ((ours, state.optimizer), (theirs, plain)):
            one.zero_grad()
            network(images).square().sum().backward()
            one.step()
        torch.testing.assert_close(ours.state_dict(), theirs.state_dict())
        if step == 1:  # goes on in another one
            saved = to_bytes(state.state_dict())
            state = new_state(ours, config, CPU)
            state.load_state_dict(from_bytes(saved, CPU))


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("precisions", [PRECISIONS, PRECISIONS[::-1]])
def test_a_run_goes_on_in_another_precision(
    precisions: tuple[Precision, Precision], optimizer: Literal["sgd", "adamw"]
) -> None:
    """As `auto` chooses it: bfloat16 on one GPU, float16 with a scaler on an older one, float32 on a CPU."""
    one, other = (new_state(nn.Linear(4, 3), Train(optimizer=optimizer, precision=p), CPU) for p in precisions)
    step(one, torch.ones(5, 4))
    other.load_state_dict(from_bytes(to_bytes(one.state_dict()), CPU))
    torch.testing.assert_close(other.learner.state_dict(), one.learner.state_dict())
    for state in (one, other):
        step(state, torch.ones(5, 4))
    torch.testing.assert_close(other.learner.state_dict(), one.learner.state_dict())


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_with_a_scaler_a_step_that_overflows_is_left_out(optimizer: Literal["sgd", "adamw"]) -> None:
    state = new_state(nn.Linear(4, 3), Train(optimizer=optimizer, precision="float16"), CPU)
    step(state, torch.ones(5, 4))
    before = {name: weight.clone() for name, weight in state.learner.state_dict().items()}
    scale = state.scaler.get_scale()
    step(state, torch.full((5, 4), torch.inf))
    torch.testing.assert_close(state.learner.state_dict(), before)
    assert state.scaler.get_scale() == scale / 2


def step(state: TrainingState, images: Tensor) -> None:
    state.optimizer.zero_grad()
    state.scaler.scale(state.learner(images).square().sum()).backward()
    state.scaler.step(state.optimizer)
    state.scaler.update()


def test_a_step_of_training_does_not_import_torchs_compiler() -> None:
    code = """
import sys, torch
from kdtune.experiment import Train
from kdtune.training import from_bytes, new_state, to_bytes
for name in ("sgd", "adamw"):
    state = new_state(torch.nn.Linear(4, 3), Train(optimizer=name), torch.device("cpu"))
    state.optimizer.zero_grad()
    state.learner(torch.randn(5, 4)).sum().backward()
    state.optimizer.step()
    state.load_state_dict(from_bytes(to_bytes(state.state_dict()), torch.device("cpu")))
sys.exit("torch._dynamo" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
