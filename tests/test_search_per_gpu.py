"""`trials_per_gpu`: how many trials share a GPU, given or tried."""

from pathlib import Path
from typing import Any

import pytest
import ray
import torch

from kdtune.errors import ExperimentError
from kdtune.experiment import Resources
from kdtune.search import per_gpu
from kdtune.search.per_gpu import heaviest_of, share_gpus
from kdtune.search.placing import Node, Slots, place
from kdtune.trial import Materials
from tests.conftest import CPU, MakeExperiment

ONE_GPU = [Node(8, 1)]


def test_trials_hold_a_share_of_a_gpu_and_their_own_cores() -> None:
    slots = place(Resources(trials_per_gpu=4), ONE_GPU)
    assert (slots.gpus, slots.concurrent) == (0.25, 4)
    assert place(Resources(trials_per_gpu=4), [Node(2, 1)]).concurrent == 2
    assert place(Resources(trials_per_gpu="auto"), ONE_GPU).gpus == 1  # until it is tried
    assert place(Resources(trials_per_gpu=4), [Node(8, 0)]).gpus == 0


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"resources.gpus_per_worker": 0.5}, "one of them"),
        ({"resources.workers_per_trial": 2}, "a GPU for each worker"),
    ],
)
def test_a_gpu_is_not_shared_in_two_ways(make_experiment: MakeExperiment, values: dict[str, Any], said: str) -> None:
    with pytest.raises(ExperimentError, match=said):
        make_experiment({"resources.trials_per_gpu": "auto", **values})


def test_the_heaviest_trial_has_a_live_teacher_and_the_largest_student(
    make_experiment: MakeExperiment, materials: Materials
) -> None:
    students = {"student.model": {"choice": ["cnn-4-8", "cnn-16-32", "cnn-8"]}}
    one = heaviest_of(make_experiment({"search.space": students}), materials)
    assert one.student.model == "cnn-16-32"
    features = {"distill.feature_weight": {"choice": [0, 1.0]}}
    assert not heaviest_of(make_experiment({"search.space": features}), materials).distill.feature_weight.is_zero


@pytest.mark.slow
def test_a_piece_of_the_trial_is_tried_in_processes(make_experiment: MakeExperiment, materials: Materials) -> None:
    diverging = make_experiment({"train.learning_rate": 1e15})
    rates = per_gpu._probe(diverging, materials, CPU, threads=1, most=1)
    assert list(rates) == [1]
    assert rates[1] > 0


class Ready:
    """Ray with the outcome of the trial run at hand."""

    def __init__(self, rates: dict[int, float]) -> None:
        self.rates = rates
        self.asked: dict[str, Any] = {}

    def remote(self, **options: Any) -> Any:
        self.asked = options
        return lambda function: type("Task", (), {"remote": lambda *arguments: arguments})

    def put(self, value: object) -> object:
        return value

    def wait(self, tasks: list[object], timeout: float) -> tuple[list[object], list[object]]:
        return (tasks, []) if self.rates else ([], tasks)

    def cancel(self, task: object, force: bool) -> None:
        self.cancelled = force

    def get(self, arguments: object) -> dict[int, float]:
        return self.rates


def test_as_many_share_as_trained_fastest_and_the_run_goes_on_with_them(
    make_experiment: MakeExperiment, materials: Materials, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = make_experiment({"resources.trials_per_gpu": "auto"})
    ready = Ready({1: 1.0, 2: 1.9, 4: 2.5, 8: 2.4})
    for name in ("remote", "put", "get", "wait", "cancel"):
        monkeypatch.setattr(ray, name, getattr(ready, name))
    monkeypatch.setattr(per_gpu, "nodes", lambda: [Node(12, 2)])
    said: list[str] = []
    slots = share_gpus(tmp_path, experiment, materials, place(experiment.resources, [Node(12, 2)]), said.append)
    assert (slots.gpus, slots.concurrent) == (0.25, 8)
    assert ready.asked == {"num_cpus": 6, "num_gpus": 1, "max_retries": 0}  # half of the cores belong to a GPU
    assert said == [
        "trying how many trials share a GPU",
        "4 to a GPU; of the epochs of one, 1 give 1x, 2 give 1.9x, 4 give 2.5x, 8 give 2.4x",
    ]
    ready.rates = {1: 1.0}
    assert share_gpus(tmp_path, experiment, materials, slots, said.append) == slots
    assert len(said) == 3  # it was not tried again


def test_where_it_cannot_be_tried_one_trial_has_a_gpu_and_that_is_said(
    make_experiment: MakeExperiment, materials: Materials, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = make_experiment({"resources.trials_per_gpu": "auto"})
    busy = Ready({})
    for name in ("remote", "put", "get", "wait", "cancel"):
        monkeypatch.setattr(ray, name, getattr(busy, name))
    monkeypatch.setattr(per_gpu, "nodes", lambda: [Node(8, 1), Node(0, 1)])  # a head that takes no trials
    said: list[str] = []
    slots = place(experiment.resources, ONE_GPU)
    assert share_gpus(tmp_path, experiment, materials, slots, said.append) is slots
    assert "no GPU was free with 8 cores beside it" in said[1]
    assert busy.cancelled
    assert not list(tmp_path.iterdir())


def test_nothing_is_tried_without_a_gpu_or_where_the_number_is_given(
    make_experiment: MakeExperiment, materials: Materials, tmp_path: Path
) -> None:
    on_a_cpu = Slots(1, 0, 2)
    assert on_a_cpu.device == torch.device("cpu")
    assert (
        share_gpus(tmp_path, make_experiment({"resources.trials_per_gpu": "auto"}), materials, on_a_cpu, print)
        is on_a_cpu
    )
    given = Slots(1, 0.5, 2)
    assert share_gpus(tmp_path, make_experiment({"resources.trials_per_gpu": 2}), materials, given, print) is given
