"""The benchmark on LCBench's curves: what is the target, when it counts as reached, how sure the numbers are."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.benchmarks import search_lcbench
from tests.benchmarks.lcbench import EPOCHS, SPACE
from tests.benchmarks.search_lcbench import BUDGET, SEARCHES, WORKERS, Outcome, chosen, interval, search

HERE = Path()
IN_FULL = "random, in full"


class Flat:
    """All configurations reach `end`, in a line, and were at `peak` half way."""

    def __init__(self, end: float = 0.5, peak: float = 0.0) -> None:
        self.end = end
        self.peak = peak

    def curves(self, task: int, configs: Sequence[Mapping[str, float]]) -> tuple[NDArray[np.float64], list[float]]:
        curve = np.arange(1, EPOCHS + 1) / EPOCHS * self.end
        curve[EPOCHS // 2] = max(curve[EPOCHS // 2], self.peak)
        return np.tile(curve, (len(configs), 1)), [1.0] * len(configs)


@pytest.fixture(autouse=True)
def _no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    search_lcbench.target.cache_clear()
    monkeypatch.setattr(search_lcbench, "surrogate", lambda data: Flat())


def test_the_target_is_reached_when_a_trial_shows_it_at_its_last_epoch() -> None:
    outcome = search(IN_FULL, HERE, task=0, seed=0)
    assert outcome.share == (WORKERS * (EPOCHS - 1) + 1) / BUDGET
    assert outcome.trials == WORKERS


def test_by_the_lenient_rule_any_epoch_counts_for_both_sides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search_lcbench, "surrogate", lambda data: Flat(peak=0.6))
    outcome = search(IN_FULL, HERE, task=0, seed=0)
    assert outcome.share_at_any == (WORKERS * (EPOCHS // 2) + 1) / BUDGET
    assert outcome.share == (WORKERS * (EPOCHS - 1) + 1) / BUDGET


def test_what_is_never_reached_costs_more_than_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search_lcbench, "target", lambda data, task, seed: (0.7, 0.7))
    outcome = search(IN_FULL, HERE, task=0, seed=0)
    assert outcome.share == outcome.share_at_any == math.inf
    assert outcome.trials >= BUDGET / EPOCHS


@pytest.mark.parametrize("name", SEARCHES)
def test_every_search_runs_as_its_experiment_says(name: str) -> None:
    study = search_lcbench.study_of(SEARCHES[name], seed=0)
    first = study.ask()
    assert first is not None
    assert first.config.keys() == SPACE.keys()


def test_an_interval_is_as_wide_as_tasks_differ() -> None:
    def mean(found: Sequence[Outcome]) -> float:
        return sum(one.share for one in found) / len(found)

    alike = [Outcome(task, 0.25, 0.2, 9, 0.1) for task in range(4)]
    assert interval(alike, mean) == (0.25, 0.25)
    one_task = [Outcome(task, float(task == 0), 0.2, 9, 0.1) for task in range(4) for _ in range(50)]
    low, high = interval(one_task, mean)
    assert low == 0
    assert high >= 0.5  # one among 200 runs drawn without regard to tasks would give 0.31


def test_tasks_are_named_by_the_first_and_the_last() -> None:
    assert chosen("3-5") == [3, 4, 5]
    assert chosen("7") == [7]
