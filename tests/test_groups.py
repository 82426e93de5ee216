"""Groups: trials whose student is trained by two workers under Ray Train, in one group after the other."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any

import psutil
import pytest
import ray
from ray.util import placement_group_table
from torch import Tensor, nn

from kdtune.errors import RunError
from kdtune.experiment import Experiment, Resources
from kdtune.records import EpochRecord
from kdtune.search.group import Group
from kdtune.search.placing import Slots
from kdtune.search.session import session
from kdtune.trial import Bench, Materials
from tests.conftest import CPU, MakeExperiment

pytestmark = pytest.mark.faults
FREE_WITHIN_S = 5.0


class Touchy(nn.Sequential):
    """A network without BatchNorm, which refuses to be trained with a batch of `refused` images."""

    def __init__(self, *layers: nn.Module, refused: int) -> None:
        super().__init__(*layers)
        self.refused = refused

    def forward(self, images: Tensor) -> Tensor:
        if self.training and len(images) == self.refused:
            raise ValueError("the images are not to this network's taste")
        for layer in self:
            images = layer(images)
        return images


def network(image_shape: tuple[int, int, int], classes: int, refused: int = 0) -> nn.Module:
    layers = [nn.Conv2d(image_shape[0], 8, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(72, classes)]
    return Touchy(*layers, refused=refused)


@pytest.fixture(scope="module")
def slots() -> Iterator[Slots]:
    with session(Resources(workers_per_trial=2, cpus_per_worker=0.5)) as slots:
        yield slots


@pytest.fixture(scope="module")
def group(slots: Slots, materials: Materials) -> Iterator[Group]:
    group = Group(ray.put(materials), slots)
    yield group
    group.end()


@pytest.fixture
def experiment(make_experiment: MakeExperiment) -> Experiment:
    return make_experiment({"student.model": f"{__name__}:network", "train.epochs": 6, "train.learning_rate": 0.01})


def processes_of_ray(name: str) -> list[psutil.Process]:
    """Of this test's own Ray, by their title. One that has ended, waited for or not, has none."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if name in " ".join(process.cmdline()):
                found.append(process)
    return found


def free_cpus() -> float:
    return float(ray.available_resources().get("CPU", 0.0))  # type: ignore[no-untyped-call]


def standing_groups() -> list[Any]:
    return [one for one in placement_group_table().values() if one["state"] != "REMOVED"]


def told(records: list[EpochRecord]) -> list[tuple[int, float, float | None]]:
    """What a learning curve says, to what the order of sums changes."""
    return [(r.epoch, round(r.loss, 4), r.val_accuracy) for r in records]


def test_two_workers_have_the_learning_curve_of_one(group: Group, experiment: Experiment, materials: Materials) -> None:
    alone = Bench(materials, CPU).start(experiment, seed=0)
    expected = list(alone.records)
    trial = group.start(experiment, seed=0)
    records = list(trial.records)
    for mine, theirs in zip(records, expected, strict=True):
        assert mine.terms == pytest.approx(theirs.terms, rel=1e-3)
        assert mine.val_accuracy == pytest.approx(theirs.val_accuracy, abs=2.01 / len(materials.dataset.validation))
    tested, by_one = trial.test(), alone.test()
    assert (tested.predictions == by_one.predictions).double().mean() > 0.98
    assert tested.accuracy == pytest.approx(by_one.accuracy, abs=0.02)
    assert (tested.confidences - by_one.confidences).abs().mean() < 0.02


def test_what_a_group_saves_one_worker_takes_up_and_the_other_way_round(
    group: Group, experiment: Experiment, materials: Materials
) -> None:
    trial = group.start(experiment, seed=1)
    expected = [next(trial.records) for _ in range(2)]
    state = trial.state()
    expected += list(trial.records)
    alone = Bench(materials, CPU).start(experiment, seed=1)
    alone.restore(state)
    assert told([*alone.history, *alone.records]) == told(expected)
    again = group.start(experiment, seed=1)
    again.restore(state)
    assert told([*again.history, *again.records]) == told(expected)


def test_a_worker_that_is_killed_costs_no_epoch_that_was_told(group: Group, experiment: Experiment) -> None:
    whole = list(group.start(experiment, seed=2).records)
    trial = group.start(experiment, seed=2)
    records = [next(trial.records)]
    trial.state()
    records.append(next(trial.records))  # after the state: to be run again, untold
    before = {process.pid for process in processes_of_ray("RayTrainWorker")}
    assert len(before) == 2
    for _ in range(2):  # with an epoch in between
        os.kill(max(process.pid for process in processes_of_ray("RayTrainWorker")), signal.SIGKILL)
        records.append(next(trial.records))
    records += list(trial.records)
    assert told(records) == told(whole)
    assert not before & {process.pid for process in processes_of_ray("RayTrainWorker")}
    here = ray.get_runtime_context().get_node_id()
    assert group.whereabouts() == ((here, here, here), 2)


def test_a_trial_that_cannot_go_on_says_why_and_the_next_one_runs(group: Group, experiment: Experiment) -> None:
    # 64 images a batch are 32 for each worker
    student = experiment.student.model_copy(update={"options": {"refused": 32}})
    with pytest.raises(RunError, match="ValueError: the images are not to this network's taste"):
        next(group.start(experiment.model_copy(update={"student": student}), seed=0).records)
    assert len(list(group.start(experiment, seed=0).records)) == experiment.train.epochs


def test_after_fifty_early_stops_and_its_end_a_group_leaves_nothing(
    slots: Slots, materials: Materials, experiment: Experiment
) -> None:
    before = {process.pid for process in processes_of_ray("ray::")}
    held = len(standing_groups())
    free = free_cpus()
    own = Group(ray.put(materials), replace(slots, cpus=0.25))
    for seed in range(50):
        assert next(own.start(experiment, seed=seed).records).epoch == 1
    assert free_cpus() == free - 0.5
    own.end()
    ended = time.monotonic()
    left: Any = None
    while time.monotonic() - ended < FREE_WITHIN_S:
        names = ("RayTrainWorker", "TrainController", "Desk", "PlacementGroupCleaner")
        actors = [p.pid for name in names for p in processes_of_ray(f"ray::{name}") if p.pid not in before]
        left = {"groups": len(standing_groups()) - held, "actors": actors, "CPUs": free - free_cpus()}
        if not any(left.values()):
            break
        time.sleep(0.05)
    assert not any(left.values()), f"left {FREE_WITHIN_S} s after the end: {left}"
