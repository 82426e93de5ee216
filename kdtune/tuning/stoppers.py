"""Who ends trials early. Adding one: a class with `judge`, and a line in `make_stopper`."""

import math

from kdtune.tuning.study import Seen


def rungs_of(grace: int, factor: float, epochs: int) -> list[int]:
    """Epochs at which trials are judged: grace, grace * factor, ... below the full length."""
    rungs: list[int] = []
    rung = float(grace)
    while round(rung) < epochs:
        if round(rung) not in rungs:
            rungs.append(round(rung))
        rung *= factor
    return rungs


class Never:
    """Lets every trial run to its end."""

    def judge(self, seen: Seen) -> bool:
        return False


class Asha:
    """Asynchronous successive halving (Li et al. 2020, "A System for Massively Parallel Hyperparameter Tuning").

    Rungs lie at grace * factor^k epochs. A trial that reaches a rung goes on only if it is among the best 1/factor of
    the trials that have reached it. Against Ray's own: epochs are the trial's absolute ones, so a resumed trial keeps
    its place; and a rung judges only once it holds `factor` trials, so that no second trial is stopped for being 0.001
    worse.
    """

    def __init__(self, grace: int, factor: float, epochs: int) -> None:
        self.factor = factor
        self.rungs: dict[int, list[float]] = {rung: [] for rung in rungs_of(grace, factor, epochs)}

    def judge(self, seen: Seen) -> bool:
        rung = self.rungs.get(seen.epoch)
        if rung is None:
            return False
        rung.append(seen.values[-1])
        if len(rung) < self.factor:
            return False
        kept = math.ceil(len(rung) / self.factor)
        return seen.values[-1] < sorted(rung, reverse=True)[kept - 1]
