"""Processes that train at the same time, and how many of them a device takes.

What starts processes, which takes seconds, is left to `pytest -m slow`.
"""

import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from functools import partial

import psutil
import pytest
from torch import Tensor

from kdtune.cache import Answers
from kdtune.errors import RunError
from kdtune.training import evaluation_batch
from kdtune.trial import Materials
from kdtune.trial.together import Memory, Together, best_of, epochs_of, rates_of
from tests.conftest import CPU, MakeExperiment


def process_and_calls() -> Callable[[], tuple[int, int]]:
    calls = 0

    def act() -> tuple[int, int]:
        nonlocal calls
        calls += 1
        return os.getpid(), calls

    return act


def starts_a_process() -> Callable[[], int | None]:
    def act() -> int | None:
        process = multiprocessing.get_context("fork").Process(target=int)  # as those that decode images
        process.start()
        process.join()
        return process.exitcode

    return act


def cannot_begin() -> Callable[[], None]:
    raise ValueError("there is no room")


def begins_and_dies() -> Callable[[], None]:
    return lambda: os._exit(1)


def dies() -> Callable[[], None]:
    os._exit(1)


@pytest.mark.slow
def test_processes_are_kept_from_epoch_to_epoch_and_gone_afterwards() -> None:
    with Together(process_and_calls) as processes:
        processes.grow(1)
        ((first, calls),) = processes.epoch()
        assert first != os.getpid()
        assert calls == 1
        processes.grow(2)
        told = processes.epoch()
        assert told[0] == (first, 2)
        assert told[1][1] == 1
        assert len({process for process, _ in told}) == 2
    assert not [process for process, _ in told if psutil.pid_exists(process)]


@pytest.mark.slow
@pytest.mark.parametrize(("start", "said"), [(cannot_begin, "there is no room"), (dies, "has died")])
def test_a_process_that_cannot_begin_says_why(start: Callable[[], Callable[[], None]], said: str) -> None:
    with Together(start) as processes, pytest.raises(RunError, match=said):
        processes.grow(1)


@pytest.mark.slow
def test_its_processes_may_have_processes_of_their_own() -> None:
    with Together(starts_a_process) as processes:
        processes.grow(1)
        assert processes.epoch() == [0]


@pytest.mark.slow
def test_a_process_that_dies_later_is_told_however_often_it_is_asked() -> None:
    with Together(begins_and_dies) as processes:
        processes.grow(1)
        for _ in range(2):
            with pytest.raises(RunError, match="has died"):
                processes.epoch()


@pytest.mark.slow
def test_a_trial_trains_an_epoch_a_call(materials: Materials, make_experiment: MakeExperiment) -> None:
    with Together(partial(epochs_of, make_experiment({"train.epochs": 9}), materials, CPU, threads=1)) as trials:
        trials.grow(1)
        assert trials.epoch() == trials.epoch() == [Memory()]


def test_a_trial_that_learns_from_a_cache_has_its_teacher_beside_it(
    materials: Materials, make_experiment: MakeExperiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a search it computes columns: memory that it takes then must not be missing from what was tried."""
    asked: list[int] = []
    to = Answers.to

    def counted(answers: Answers, view: int, indices: Tensor) -> Iterator[Tensor]:
        for logits in to(answers, view, indices):
            asked.append(len(logits))
            yield logits

    monkeypatch.setattr(Answers, "to", counted)
    epochs_of(make_experiment({"train.epochs": 3}), materials, CPU, threads=1)
    assert asked == [evaluation_batch(materials.dataset)]


class Device(Together):
    """A device on which `number` trials take `seconds(number)` for an epoch each, and `bytes_each` of 100 bytes."""

    def __init__(
        self,
        seconds: Callable[[int], float],
        bytes_each: int = 1,
        room: int = 99,
        others: int = 0,
        told: int | None = None,
    ) -> None:
        super().__init__(process_and_calls)
        self.seconds, self.bytes_each, self.room, self.others = seconds, bytes_each, room, others
        self.told = bytes_each if told is None else told
        self.number, self.now = 0, 0.0

    def grow(self, count: int) -> None:
        if count > self.room:
            raise RunError("out of memory")
        self.number = count

    def epoch(self) -> list[Memory]:
        self.now += self.seconds(self.number)
        taken = self.others + self.bytes_each * self.number
        return [Memory(100 - taken, 100, self.told)] * self.number


@pytest.mark.parametrize(
    ("device", "most", "tried"),
    [
        (Device(lambda number: 1.0), 8, [1, 2, 4, 8]),  # the device waits most of the time
        (Device(lambda number: 1.0), 6, [1, 2, 4]),
        (Device(lambda number: max(1.0, number / 3)), 8, [1, 2, 4, 8]),  # three fit: 8 gain nothing over 4
        (Device(lambda number: max(1.0, number / 2.05)), 8, [1, 2, 4]),
        (Device(lambda number: float(number)), 8, [1, 2]),  # it is busy with one
        (Device(lambda number: 1.0, bytes_each=20), 8, [1, 2, 4]),  # 8 would need 160 of 100
        (Device(lambda number: 1.0, bytes_each=50), 8, [1]),
        (Device(lambda number: 1.0, bytes_each=30, told=5), 8, [1, 2]),  # 4 take more than was to be expected
        (Device(lambda number: 1.0, bytes_each=10, others=45), 8, [1, 2, 4]),  # what others hold does not double
        (Device(lambda number: 1.0, room=3), 8, [1, 2]),
    ],
)
def test_the_number_doubles_while_it_pays_and_fits(
    device: Device, most: int, tried: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "perf_counter", lambda: device.now)
    rates = rates_of(device, most)
    assert list(rates) == tried
    for number, rate in rates.items():
        assert rate == pytest.approx(number / device.seconds(number))


def test_one_trial_that_does_not_fit_is_an_error() -> None:
    with pytest.raises(RunError, match="out of memory"):
        rates_of(Device(lambda number: 1.0, room=0), 8)


@pytest.mark.parametrize(
    ("rates", "best"),
    [
        ({1: 1.0}, 1),
        ({1: 1.0, 2: 1.05}, 1),  # each trial would take twice as long for nothing
        ({1: 1.0, 2: 1.9, 4: 2.0}, 2),
        ({1: 1.0, 2: 1.9, 4: 3.0, 8: 3.4}, 8),
    ],
)
def test_a_larger_number_is_better_where_it_gains_a_tenth(rates: dict[int, float], best: int) -> None:
    assert best_of(rates) == best
