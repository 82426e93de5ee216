"""How much of a grid's training a search needs to find what the grid finds, on a table of real training runs.

The table (`surface_table`) holds a grid of 100 configurations trained in full with several seeds. A search gets the
grid's own values as choices, a `Study` as `kdtune search` makes it, and WORKERS simulated workers, one epoch a step;
what an epoch would have given is looked up. All its trials have one seed, as those of a search have, but it is judged
by all: a configuration is good where its mean over the seeds lies within one standard deviation of the best one's. That
is the deviation of single runs from their configuration's mean, once what a seed does to all configurations alike is
taken away, which would make the good ones twice as many. Found is one as soon as the search would return it: as the
best of the trials that have run in full, by the accuracies of its own seed.
"""

import heapq
import itertools
import random
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from kdtune.experiment import Experiment, parse
from kdtune.records import EpochRecord
from kdtune.tuning.making import make_study
from kdtune.tuning.study import Seen, Study
from tests.benchmarks.surface_table import Surface, read_surface

REPEATS = 60
WORKERS = 4
TARGET = 0.15  # of the grid's epochs
RESAMPLES = 1000
SEARCHES: dict[str, dict[str, Any]] = {
    "random, in full": {"sampler": "random", "stopper": {"kind": "none"}},
    "random, ASHA": {"sampler": "random"},
    "default, grace_epochs 9": {"stopper": {"kind": "asha", "grace_epochs": 9}},
    "default": {},
}


@dataclass(frozen=True)
class Outcome:
    """One search: epochs until it would have returned a good configuration, if ever, and what it returns at its end."""

    epochs_to_good: int | None
    epochs: int
    good_in_the_end: bool


def measure(repeats: int = REPEATS) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """share of a grid's epochs after which a search returns what the grid finds, on a table of trained students"""
    surface = read_surface()
    grid_epochs = len(surface.accuracy) * surface.epochs
    good = good_ones(surface)
    rows: list[dict[str, Any]] = []
    for name, settings in SEARCHES.items():
        outcomes = [
            search(surface, {**settings, "seed": repeat}, repeat % surface.seeds, good) for repeat in range(repeats)
        ]
        rows.append({"search": name, **_in_numbers(outcomes, grid_epochs)})
    default = rows[-1]
    return rows, {
        "budget_to_target": default["median"],
        "runs_reaching": default["ever"],
        "runs_within_target": default["within"],
        "good_configurations": len(good) / len(surface.accuracy),
    }


def _in_numbers(outcomes: Sequence[Outcome], grid_epochs: int) -> dict[str, float]:
    """The share of the grid's epochs after which a good one is found, all of them where never; shares of the searches
    that find it within the target, ever, and return it at the end; the share that is spent. With 95% intervals."""
    shares = [1.0 if one.epochs_to_good is None else one.epochs_to_good / grid_epochs for one in outcomes]
    within = [float(share <= TARGET) for share in shares]
    low, high = interval(shares, statistics.median)
    within_low, within_high = interval(within, statistics.fmean)
    return {
        "median": statistics.median(shares),
        "low": low,
        "high": high,
        "within": statistics.fmean(within),
        "w. low": within_low,
        "w. high": within_high,
        "ever": statistics.fmean(one.epochs_to_good is not None for one in outcomes),
        "at end": statistics.fmean(one.good_in_the_end for one in outcomes),
        "spent": statistics.fmean(one.epochs for one in outcomes) / grid_epochs,
    }


def interval(values: Sequence[float], statistic: Callable[[Sequence[float]], float]) -> tuple[float, float]:
    """The middle 95% of a statistic over samples drawn again from the values."""
    source = random.Random(0)
    found = sorted(statistic(source.choices(values, k=len(values))) for _ in range(RESAMPLES))
    return found[round(0.025 * RESAMPLES)], found[round(0.975 * RESAMPLES) - 1]


def good_ones(surface: Surface) -> set[int]:
    """Configurations as good as the best one within a standard deviation."""
    shift = [statistics.fmean(seeds[k][-1] for seeds in surface.accuracy) for k in range(surface.seeds)]
    last = [[epochs[-1] - shift[k] for k, epochs in enumerate(seeds)] for seeds in surface.accuracy]
    deviation = statistics.fmean(statistics.variance(values) for values in last) ** 0.5
    means = list(map(statistics.fmean, last))
    return {k for k, mean in enumerate(means) if mean >= max(means) - deviation}


def experiment_on(surface: Surface, settings: dict[str, Any]) -> Experiment:
    """The table's experiment with a search among the grid's values."""
    space = {path: {"choice": list(values)} for path, values in surface.grid.items()}
    return parse({**surface.experiment, "search": {**settings, "space": space}})


def search(surface: Surface, settings: dict[str, Any], seed: int, good: set[int]) -> Outcome:
    study = make_study(experiment_on(surface, settings))
    found, best = None, None
    for seen in simulated(study, lambda one: surface.accuracy[surface.index(one.config)][seed], WORKERS):
        if seen.status == "complete" and (best is None or seen.values[-1] > best.values[-1]):
            best = seen
            if found is None and surface.index(best.config) in good:
                found = study.epochs
    return Outcome(found, study.epochs, best is not None and surface.index(best.config) in good)


def simulated(
    study: Study,
    curve_of: Callable[[Seen], Sequence[float]],
    workers: int,
    seconds_of: Callable[[Seen], float] = lambda seen: 1.0,
) -> Iterator[Seen]:
    """Runs a study to its end with workers that take `seconds_of` a trial for each of its epochs; yields the trial of
    each epoch."""
    order = itertools.count()
    busy: list[tuple[float, int, Seen]] = []  # by the time at which the epoch ends, then by who began first
    now = 0.0
    while True:
        while len(busy) < workers and (seen := study.ask()) is not None:
            heapq.heappush(busy, (now + seconds_of(seen), next(order), seen))
        if not busy:
            return
        now, _, seen = heapq.heappop(busy)
        curve = curve_of(seen)
        accuracy = curve[seen.epoch]
        record = EpochRecord(seen.epoch + 1, len(curve), 1.0, {}, accuracy, None, 0.0, 0.0)
        if not study.tell(seen.number, record):
            heapq.heappush(busy, (now + seconds_of(seen), next(order), seen))
        yield seen
