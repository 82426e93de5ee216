"""Two objectives: a value, the higher the better, and a cost, the lower the better.

    fronts(values, costs)          # 0 where no other is as good in both and better in one; 1 once those are gone; ...
    order(values, costs)           # the place of each, 0 the best: by front, then by the room around it
    pareto_front(values, costs)    # indices of the first front, from the cheapest

Costs are positive and count by their ratio; infinity is one that is not known. Of a trial, the cost is that of its
student's architecture: `costs_of` takes the noise out of those that were measured. `Fronts` are a rung of successive
halving with two objectives.
"""

import math
import statistics
from bisect import bisect_right
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from kdtune.experiment.space import is_architecture
from kdtune.tuning.study import Seen

MEMORY = 500  # trials that a rung compares


def fronts(values: Sequence[float], costs: Sequence[float]) -> list[int]:
    """Non-dominated sorting (Goldberg 1989): which front each belongs to. n log n, as two objectives allow."""
    found = [0] * len(values)
    highest: list[float] = []  # of each front so far, negated and so ascending
    before: int | None = None
    for k in _by_cost(values, costs):
        if before is not None and (values[k], costs[k]) == (values[before], costs[before]):
            found[k] = found[before]  # equals do not dominate each other
        else:  # whoever came before costs no more: a front that has reached this value dominates it
            found[k] = bisect_right(highest, -values[k])
            highest[found[k] : found[k] + 1] = [-values[k]]
        before = k
    return found


def pareto_front(values: Sequence[float], costs: Sequence[float]) -> list[int]:
    """Indices of the first front from the cheapest on; of several that are equal in both, the first."""
    first = [k for k, front in enumerate(fronts(values, costs)) if front == 0]
    return _distinct(_sorted(first, values, costs), values, costs)[0]


def order(values: Sequence[float], costs: Sequence[float]) -> list[int]:
    """The place of each among all, 0 the best, no two alike.

    An earlier front comes first. Within one, whoever has more room around it (crowding distance, Deb et al. 2002,
    "NSGA-II"), so that whatever is kept of a front still spans it: its ends before all others, the higher value first.
    Who repeats another of its front comes after the whole of it.
    """
    by_front: dict[int, list[int]] = {}
    for k, front in enumerate(fronts(values, costs)):
        by_front.setdefault(front, []).append(k)
    places = [0] * len(values)
    place = 0
    for front in sorted(by_front):
        distinct, again = _distinct(_sorted(by_front[front], values, costs), values, costs)
        room = dict(zip(distinct, _room(distinct, values, costs), strict=True))
        for k in [*sorted(distinct, key=lambda k: (-room[k], -values[k])), *again]:
            places[k] = place
            place += 1
    return places


def usable_costs(trials: Sequence[Seen]) -> list[float]:
    """`costs_of`, but a student that diverged is of no use, however cheap."""
    known = costs_of(trials)
    return [math.inf if seen.status == "diverged" else cost for seen, cost in zip(trials, known, strict=True)]


def costs_of(trials: Sequence[Seen]) -> list[float]:
    """Of each trial the median of what was measured of its architecture, infinity where nothing was yet.

    Milliseconds are never the same twice; trials of one architecture must not lie on a front for being lucky.
    """
    measured: dict[Hashable, list[float]] = {}
    for seen in trials:
        if seen.cost is not None:
            measured.setdefault(_architecture(seen.config), []).append(seen.cost)
    known = {architecture: statistics.median(costs) for architecture, costs in measured.items()}
    return [known.get(_architecture(seen.config), math.inf) for seen in trials]


class Fronts:
    """Trials that have come to a rung, by accuracy there and cost; of many the latest."""

    def __init__(self) -> None:
        self.come: list[tuple[float, Seen]] = []

    def __len__(self) -> int:
        return len(self.come)

    def place(self, seen: Seen) -> int:
        """Adds the trial with its last value; how many are ahead of it."""
        self.come = [*self.come[1 - MEMORY :], (seen.values[-1], seen)]
        values, trials = [value for value, _ in self.come], [one for _, one in self.come]
        return order(values, usable_costs(trials))[-1]


def _architecture(config: Mapping[str, Any]) -> Hashable:
    return tuple(sorted((path, repr(value)) for path, value in config.items() if is_architecture(path)))


def _by_cost(values: Sequence[float], costs: Sequence[float]) -> list[int]:
    return _sorted(range(len(values)), values, costs)


def _sorted(which: Sequence[int], values: Sequence[float], costs: Sequence[float]) -> list[int]:
    """The cheapest first; of those that cost the same, the best."""
    return sorted(which, key=lambda k: (costs[k], -values[k]))


def _distinct(which: Sequence[int], values: Sequence[float], costs: Sequence[float]) -> tuple[list[int], list[int]]:
    """Those that are the first of their kind, and those that repeat one."""
    distinct: list[int] = []
    again: list[int] = []
    seen: set[tuple[float, float]] = set()
    for k in which:
        (again if (values[k], costs[k]) in seen else distinct).append(k)
        seen.add((values[k], costs[k]))
    return distinct, again


def _room(front: Sequence[int], values: Sequence[float], costs: Sequence[float]) -> list[float]:
    """Of a front in the order of its costs (and so of its values) how far apart each one's neighbours lie."""
    known = [math.log(costs[k]) for k in front if costs[k] < math.inf]
    logs = [*known, *[known[-1] + 1 if known else 0.0] * (len(front) - len(known))]  # at most one is not known
    if len(front) < 3:
        return [math.inf] * len(front)
    width, height = logs[-1] - logs[0], values[front[-1]] - values[front[0]]
    inner = [
        (logs[i + 1] - logs[i - 1]) / width + (values[front[i + 1]] - values[front[i - 1]]) / height
        for i in range(1, len(front) - 1)
    ]
    return [math.inf, *inner, math.inf]
