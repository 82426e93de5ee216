"""`trials_per_gpu`: how many trials share a GPU, given or tried."""

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


def test_a_piece_of_the_trial_is_tried_in_processes(make_experiment: MakeExperiment, materials: Materials) -> None:
    rates = per_gpu._probe(make_experiment(), materials, CPU, threads=1, most=1)
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

    def get(self, arguments: object) -> dict[int, float]:
        return self.rates


def test_as_many_share_as_trained_fastest(
    make_experiment: MakeExperiment, materials: Materials, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = make_experiment({"resources.trials_per_gpu": "auto"})
    ready = Ready({1: 1.0, 2: 1.9, 4: 2.5, 8: 2.4})
    for name in ("remote", "put", "get"):
        monkeypatch.setattr(ray, name, getattr(ready, name))
    monkeypatch.setattr(per_gpu, "nodes", lambda: [Node(12, 2)])
    said: list[str] = []
    slots = share_gpus(experiment, materials, place(experiment.resources, [Node(12, 2)]), said.append)
    assert (slots.gpus, slots.concurrent) == (0.25, 8)
    assert ready.asked == {"num_cpus": 6, "num_gpus": 1, "max_retries": 0}  # half of the cores belong to a GPU
    assert said == [
        "4 trials share a GPU, tried with 1 give 1x, 2 give 1.9x, 4 give 2.5x, 8 give 2.4x the epochs of one"
    ]


def test_nothing_is_tried_without_a_gpu_or_where_the_number_is_given(
    make_experiment: MakeExperiment, materials: Materials
) -> None:
    on_a_cpu = Slots(1, 0, 2)
    assert on_a_cpu.device == torch.device("cpu")
    assert share_gpus(make_experiment({"resources.trials_per_gpu": "auto"}), materials, on_a_cpu, print) is on_a_cpu
    given = Slots(1, 0.5, 2)
    assert share_gpus(make_experiment({"resources.trials_per_gpu": 2}), materials, given, print) is given
