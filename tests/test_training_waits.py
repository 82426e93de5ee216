"""What an epoch asks of a device that works behind Python's back: nothing that grows with its number of steps.

torch's fake tensors have a shape, a type and a device but no content. They play a device that this machine does not
have: a tensor that was left on the CPU is an error there, as on a GPU, and what Python has to wait for (`item`,
`nonzero`, a copy to the CPU) is seen by `Asked`. `lazy` is a kind of device that autograd takes without its driver.
"""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from kdtune import ranks
from kdtune.cache import open_cache
from kdtune.cache.columns import Column
from kdtune.cache.forms import in_steps, largest
from kdtune.data import Batch, reading
from kdtune.distill import (
    FEATURE_LOSSES,
    LOGIT_LOSSES,
    Cached,
    Distillation,
    Live,
    Student,
    TeacherAnswers,
    feature_student,
    logit_student,
    peer_student,
    student_alone,
    tap_teacher,
)
from kdtune.experiment import Experiment
from kdtune.models import Tapped, build_model
from kdtune.training import TrainingState, evaluation, train
from kdtune.training.optimizers import optimizer_of
from kdtune.trial import Materials
from tests.conftest import CPU, MakeExperiment

DEVICE = torch.device("lazy", 0)
SIZE, FEW, MANY = 16, 1, 3  # images a batch; steps an epoch
Of = Callable[[Experiment, Materials], Student]
NUMBERS = {"item", "_local_scalar_dense"}
WAITS = NUMBERS | {"nonzero", "masked_select", "equal", "is_nonzero", "_unique2", "unique_dim", "bincount"}


class Asked(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts what Python waits for, and copies from device to device. A number without contents is 1."""

    def __init__(self, device: torch.device = DEVICE) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.device = device
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = operation.overloadpacket.__name__
        there = [given.device for given in args if isinstance(given, Tensor)]
        if name in WAITS and self.device in there:
            self.counts[name] += 1
        if name in NUMBERS and DEVICE in there:
            return 1.0 if args[0].is_floating_point() else 1
        made = operation(*args, **(kwargs or {}))
        if name in ("_to_copy", "copy_") and there[-1] != made.device:
            self.counts[f"{there[-1].type} to {made.device.type}"] += 1
        return made


class Kept:
    """The teacher's logits in one form of a cache."""

    def __init__(self, *parts: Tensor) -> None:
        self.column = Column(parts, classes=10)

    def begin_epoch(self, column: int) -> None:
        self.column = self.column.to(DEVICE)

    def __call__(self, batch: Batch) -> tuple[Tensor, tuple[Tensor, ...]]:
        return self.column.logits(batch.indices), ()


@pytest.fixture
def asked_by(
    make_experiment: MakeExperiment, materials: Materials, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Counter[str]]:
    """What the second of two epochs asks for (the first moves things there), of so many steps."""
    monkeypatch.setitem(reading.BLOCK_VALUES, DEVICE.type, SIZE * 64)  # views of one batch at once
    monkeypatch.setitem(evaluation.EVALUATION_PIXELS, DEVICE.type, 1 << 20)

    def epoch(of: Of, steps: int, values: dict[str, object]) -> Counter[str]:
        experiment = make_experiment({"train.batch_size": SIZE, **values})
        data, config = materials.dataset, experiment.train
        student = of(experiment, materials)
        learner, objective = student.state.learner, student.objective
        asked = Asked()
        with FakeTensorMode(allow_non_fake_inputs=True), asked:
            data = data.to(DEVICE)
            if isinstance(objective, Distillation) and isinstance(objective.teacher, Live):
                objective.teacher.teacher.to(DEVICE)
            state = TrainingState(learner.to(DEVICE), optimizer_of(learner, config))
            for group in state.optimizer.param_groups:
                group["fused"] = False  # those kernels are for devices that torch knows
            indices = data.fit[: steps * SIZE]
            epochs = train(state, objective, data, experiment.data, config, indices, seed=0, views=2, validate=True)
            next(epochs)
            asked.counts.clear()
            next(epochs)
        assert {weight.device for weight in learner.state_dict().values()} == {DEVICE}
        return asked.counts

    return epoch


LOGITS = torch.randn(1347, 10)


def alone(experiment: Experiment, materials: Materials) -> Student:
    return student_alone(experiment, materials.dataset, 0, CPU)


def among_peers(experiment: Experiment, materials: Materials) -> Student:
    return peer_student(experiment, materials.dataset, 0, CPU)


def told_by(answers: Callable[[Experiment, Materials], TeacherAnswers]) -> Of:
    return lambda experiment, materials: logit_student(
        experiment, materials.dataset, answers(experiment, materials), 0, CPU
    )


def cache(experiment: Experiment, materials: Materials) -> Cached:
    return Cached(open_cache(materials.caches["teacher"]))


def eight_bits(experiment: Experiment, materials: Materials) -> Kept:
    return Kept(*in_steps(LOGITS))


def the_largest(experiment: Experiment, materials: Materials) -> Kept:
    return Kept(*largest(LOGITS, 3))


def live(experiment: Experiment, materials: Materials) -> Live:
    return Live(tapped(experiment, materials))


def tapped(experiment: Experiment, materials: Materials) -> Tapped:
    network = build_model("cnn-8-16", materials.dataset.shape, len(materials.dataset.classes))
    return tap_teacher(experiment, network.eval())


def from_features(experiment: Experiment, materials: Materials) -> Student:
    return feature_student(experiment, materials.dataset, tapped(experiment, materials), 0, CPU)


CASES: dict[str, tuple[Of, dict[str, object]]] = {
    "alone": (alone, {}),
    "adamw": (alone, {"train.optimizer": "adamw"}),
    "sgd": (alone, {"train.optimizer": "sgd", "train.momentum": 0.9}),
    "a residual network": (alone, {"student.model": "resnet8"}),
    "few labels": (alone, {"data.labels_kept": 0.5}),
    "plain images": (alone, {"data.augment": "none"}),
    "cache": (told_by(cache), {}),
    "cache in eight bits": (told_by(eight_bits), {}),
    "cache of the largest": (told_by(the_largest), {}),
    "live teacher": (told_by(live), {}),
    "peers": (among_peers, {"teacher": {"peers": ["cnn-8", "cnn-4-8"]}}),
    "standardised": (told_by(cache), {"distill.standardise_logits": True}),
    "learned temperature": (told_by(cache), {"distill.learned_temperature": {"low": 1, "high": 20}}),
    "teacher projected": (from_features, {"distill.feature_weight": 1.0, "distill.feature_projection": "teacher"}),
    **{f"logits: {name}": (told_by(cache), {"distill.logit_loss": name}) for name in LOGIT_LOSSES},
    **{
        f"features: {name}": (from_features, {"distill.feature_weight": 1.0, "distill.feature_loss": name})
        for name in FEATURE_LOSSES
    },
}


@pytest.mark.parametrize("case", CASES)
def test_an_epoch_waits_for_the_device_at_its_end_and_never_in_a_step(
    case: str, asked_by: Callable[..., Counter[str]]
) -> None:
    of, values = CASES[case]
    few, many = asked_by(of, FEW, values), asked_by(of, MANY, values)
    assert few == many, f"{FEW} steps: {few}, {MANY} steps: {many}"
    assert 0 < sum(few[name] for name in NUMBERS) <= 6, few  # the means of the terms, accuracy and loss


def test_a_scaler_of_float16_does_not_wait_either(make_experiment: MakeExperiment, materials: Materials) -> None:
    """On the CPU, where numbers are seen to be asked for as well."""
    experiment = make_experiment({"train.batch_size": SIZE, "train.precision": "float16"})
    counts = []
    for steps in (FEW, MANY):
        student, data = alone(experiment, materials), materials.dataset
        indices, asked = data.fit[: steps * SIZE], Asked(CPU)
        with asked:
            next(
                train(
                    student.state, student.objective, data, experiment.data, experiment.train, indices,
                    seed=0, views=2, validate=True,
                )
            )  # fmt: skip
        assert student.state.scaler.is_enabled()
        counts.append(asked.counts)
    assert counts[0] == counts[1]


def test_a_batch_norm_over_all_processes_copies_nothing_to_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "all_reduce", lambda values: 2 * values)
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4))
    ranks.synchronise_batch_norm(network)
    asked = Asked()
    with FakeTensorMode(allow_non_fake_inputs=True):
        images = torch.zeros(SIZE, 1, 8, 8, device=DEVICE)
        network.to(DEVICE)
        with asked:
            network(images).sum().backward()
    assert not asked.counts
