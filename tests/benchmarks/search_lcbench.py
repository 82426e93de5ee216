"""How many epochs a search needs to reach what random search in full reaches with a budget, on LCBench's curves.

Random search that trains FULL configurations for all 52 epochs spends the budget and sets the target: the best accuracy
at the end of a training. Then each kind of search drives a real `Study`, with samplers and stoppers as they are made
for an experiment, on WORKERS simulated workers whose epochs take as long as LCBench says. Other seeds, same space, same
task: `random, in full` is what luck alone does against it.

The target is reached at the epoch at which a trial that has trained for all 52 epochs shows it at its last one; epochs
of all trials count until then, running and stopped ones included. `reached_at_any` is the more lenient rule, the same
for both sides: the best of any epoch of the reference, shown by any trial at any epoch. A run that does not reach it
within the budget counts as the whole budget. Intervals are the middle 95% of medians and means over tasks drawn again,
and of each task runs drawn again.

Choices were made on tasks 0 to 9 alone; the default are the others.
"""

import os
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from kdtune.experiment import Experiment, parse
from kdtune.experiment import space as spaces
from kdtune.experiment.space import Parameter
from kdtune.tuning.making import SAMPLERS, STOPPERS
from kdtune.tuning.samplers import draws
from kdtune.tuning.study import Budget, Sampler, Seen, Study
from kdtune.tuning.tpe import TreeParzen
from tests.benchmarks.lcbench import EPOCHS, SPACE, TASKS, Surrogate
from tests.benchmarks.search_surface import simulated
from tests.experiments import MINIMAL

TUNED_ON = 10  # the first tasks
SEEDS = 8
FULL = 60  # configurations of the reference
BUDGET = FULL * EPOCHS
WORKERS = 4
RESAMPLES = 2000
PARAMETERS, _ = spaces.parse(SPACE)
DEFAULT = "default"


class Stock(TreeParzen):
    """HyperOpt as Ray hands it on: 20 random trials, then the last accuracy of each that has ended, at any epoch."""

    def __init__(self, parameters: Sequence[Parameter], seed: int) -> None:
        super().__init__(parameters, seed, trials=FULL, epochs=EPOCHS)
        self.startup = 20

    def _documents(self, trials: Sequence[Seen]) -> list[dict[str, Any]]:
        return [self._document(seen, -seen.values[-1] if seen.ended else None) for seen in trials]


SEARCHES: dict[str, dict[str, Any]] = {
    "random, in full": {"sampler": "random", "stopper": {"kind": "none"}},
    "random, ASHA": {"sampler": "random"},
    "HyperOpt, ASHA, last values": {"sampler": "stock"},
    "hyperopt, ASHA": {"sampler": "hyperopt"},
    "gp, ASHA": {"sampler": "gp"},
    DEFAULT: {},
}


@dataclass(frozen=True)
class Outcome:
    """One search: shares of the budget after which the target was reached, by either rule; above 1 where it was not."""

    task: int
    share: float
    share_at_any: float
    trials: int
    seconds_a_trial: float  # of this process: proposing, telling, looking up


def measure(
    data: Path, tasks: str = f"{TUNED_ON}-{TASKS - 1}", seeds: int = SEEDS
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """epochs until a search finds what random search in full finds, on LCBench's learning curves"""
    runs = [(name, data, task, seed) for name, task, seed in product(SEARCHES, chosen(tasks), range(seeds))]
    with ProcessPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        outcomes = list(pool.map(search, *zip(*runs, strict=True)))
    rows = []
    for name in SEARCHES:
        found = [outcome for run, outcome in zip(runs, outcomes, strict=True) if run[0] == name]
        rows.append({"search": name, **_in_numbers(found)})
    default = rows[-1]
    return rows, {
        "budget_to_target": default["budget_to_target"],
        "budget_to_target_high": default["high"],
        "runs_reaching": default["runs_reaching"],
        "runs_reaching_low": default["reaching_low"],
    }


def chosen(tasks: str) -> list[int]:
    """`0-9` or `3`."""
    first, _, last = tasks.partition("-")
    return list(range(int(first), int(last or first) + 1))


def _in_numbers(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    low, high = interval(outcomes, lambda found: statistics.median(min(one.share, 1) for one in found))
    reaching_low, reaching_high = interval(outcomes, _reaching)
    return {
        "budget_to_target": statistics.median(min(one.share, 1) for one in outcomes),
        "low": low,
        "high": high,
        "runs_reaching": _reaching(outcomes),
        "reaching_low": reaching_low,
        "reaching_high": reaching_high,
        "to_reach_at_any": statistics.median(min(one.share_at_any, 1) for one in outcomes),
        "reached_at_any": statistics.fmean(one.share_at_any <= 1 for one in outcomes),
        "ms_a_trial": 1000 * statistics.median(one.seconds_a_trial for one in outcomes),
    }


def _reaching(outcomes: Sequence[Outcome]) -> float:
    return statistics.fmean(one.share <= 1 for one in outcomes)


def interval(outcomes: Sequence[Outcome], statistic: Callable[[Sequence[Outcome]], float]) -> tuple[float, float]:
    """The middle 95% of a statistic: tasks are drawn again, and of each of them runs, for runs of a task are alike."""
    by_task: dict[int, list[Outcome]] = {}
    for outcome in outcomes:
        by_task.setdefault(outcome.task, []).append(outcome)
    groups, source = list(by_task.values()), random.Random(0)
    found = [
        statistic(
            [one for group in source.choices(groups, k=len(groups)) for one in source.choices(group, k=len(group))]
        )
        for _ in range(RESAMPLES)
    ]
    low, high = np.quantile(found, [0.025, 0.975]).tolist()
    return low, high


@cache
def surrogate(data: Path) -> Surrogate:
    """One a process."""
    return Surrogate(data)


@cache
def target(data: Path, task: int, seed: int) -> tuple[float, float]:
    """The best accuracy of random search in full at the end of a training, and at any epoch."""
    reference = [draws(PARAMETERS, random.Random(f"reference {task} {seed} {number}")) for number in range(FULL)]
    curves, _ = surrogate(data).curves(task, reference)
    return float(curves[:, -1].max()), float(curves.max())


def search(name: str, data: Path, task: int, seed: int) -> Outcome:
    at_end, at_any = target(data, task, seed)
    looked_up: dict[int, tuple[Sequence[float], float]] = {}

    def look_up(seen: Seen) -> tuple[Sequence[float], float]:
        if seen.number not in looked_up:
            curves, seconds = surrogate(data).curves(task, [seen.config])
            looked_up[seen.number] = curves[0].tolist(), seconds[0]
        return looked_up[seen.number]

    began, study = time.perf_counter(), study_of(SEARCHES[name], seed * TASKS + task)  # no two alike
    share = share_at_any = float("inf")
    for seen in simulated(study, lambda one: look_up(one)[0], WORKERS, lambda one: look_up(one)[1]):
        spent, value = study.epochs / BUDGET, seen.values[-1]
        if value >= at_any:
            share_at_any = min(share_at_any, spent)
        if value >= at_end and seen.status == "complete":
            share = min(share, spent)
        if max(share, share_at_any) <= spent:
            break
    seconds = (time.perf_counter() - began) / len(study.trials)
    return Outcome(task, share, share_at_any, len(study.trials), seconds)


def study_of(settings: Mapping[str, Any], seed: int) -> Study:
    """A study as an experiment with these settings has it, but in LCBench's space."""
    stock = settings.get("sampler") == "stock"
    experiment = experiment_of({**settings, "sampler": "hyperopt"} if stock else settings, seed)
    sampler: Sampler = Stock(PARAMETERS, seed) if stock else SAMPLERS[experiment.search.sampler](experiment, PARAMETERS)
    stopper = STOPPERS[experiment.search.stopper.kind](experiment)
    return Study(PARAMETERS, sampler, stopper, Budget(BUDGET, epochs=BUDGET))


def experiment_of(settings: Mapping[str, Any], seed: int) -> Experiment:
    return parse({**MINIMAL, "train": {"epochs": EPOCHS}, "search": {**settings, "seed": seed}})
