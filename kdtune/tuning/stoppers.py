"""Who ends trials early. Adding one: a class with `judge` and `rungs`, and a line in `making.STOPPERS`.

    Never     no one
    Asha      successive halving, in one bracket or several (then it is Hyperband, asynchronously)
    Median    the median rule

What a stopper remembers follows from what it was asked, in that order. It looks at the epochs of a trial, not at how
often it was asked: a trial that was taken up again keeps its place. One that diverges counts as DIVERGED.
"""

import math
from array import array
from bisect import bisect_left, bisect_right, insort
from collections import defaultdict
from collections.abc import Callable, Sequence

from kdtune.tuning.brackets import bracket_of
from kdtune.tuning.pareto import Fronts
from kdtune.tuning.study import DIVERGED, Seen


class Ranking:
    """Values in order, at 8 bytes each."""

    def __init__(self) -> None:
        self.values = array("d")

    def __len__(self) -> int:
        return len(self.values)

    def add(self, value: float) -> None:
        insort(self.values, value)

    def place(self, seen: Seen) -> int:
        """Adds the trial's last value; how many are ahead of it."""
        self.add(seen.values[-1])
        return self.above(seen.values[-1])

    def above(self, value: float) -> int:
        """How many are higher."""
        return len(self.values) - bisect_right(self.values, value)

    def median_without(self, value: float) -> float:
        """Median of all but one `value`, which is among them; there must be others."""
        gap = bisect_left(self.values, value)
        last = len(self.values) - 2  # of the others
        low, high = (self.values[k + (k >= gap)] for k in (last // 2, (last + 1) // 2))
        return (low + high) / 2


class Never:
    """Lets every trial run to its end."""

    def judge(self, seen: Seen) -> bool:
        return False


class Asha:
    """Asynchronous successive halving (Li et al. 2020, "A System for Massively Parallel Hyperparameter Tuning").

    Rungs lie at grace * factor^k epochs. A trial that reaches a rung goes on only if it is among the best 1/factor of
    the trials that have reached it. Against Ray's own: epochs are the trial's absolute ones, so a resumed trial keeps
    its place; a rung judges only once it holds `factor` trials, so that no second trial is stopped for being 0.001
    worse; and a trial that diverges counts, as the worst, at the rung that it would have come to next.

    With several brackets each has rungs of its own, which begin one later than those of the bracket before, and trials
    are dealt to them by the seed (`brackets`). All of them, in these shares, are Hyperband, run asynchronously as in
    section 3.2 of that paper.

    Who is ahead is decided by accuracy, or with `pareto.Fronts` by accuracy and cost (Schmucker et al. 2021,
    "Multi-objective Asynchronous Successive Halving").
    """

    def __init__(
        self,
        brackets: Sequence[Sequence[int]],
        factor: float,
        *,
        shares: Sequence[float] = (1.0,),
        seed: int = 0,
        ranking: Callable[[], Ranking | Fronts] = Ranking,
    ) -> None:
        """`brackets` holds the rungs of each bracket, `shares` the bracket's share of the trials."""
        assert len(brackets) == len(shares)
        self.factor = factor
        self.brackets = [[(epoch, ranking()) for epoch in rungs] for rungs in brackets]
        self.shares = shares
        self.seed = seed
        self.passed: dict[int, int] = {}  # by number of a trial: the rungs of its bracket that it has come to

    def judge(self, seen: Seen) -> bool:
        rungs = self.brackets[bracket_of(seen.number, self.shares, self.seed)]
        passed = self.passed.get(seen.number, 0)
        if passed == len(rungs):
            return False
        epoch, ranking = rungs[passed]
        if seen.epoch != epoch and seen.status != "diverged":
            return False
        self.passed[seen.number] = passed + 1
        ahead = ranking.place(seen)
        return len(ranking) >= self.factor and ahead >= math.ceil(len(ranking) / self.factor)


class Median:
    """The median stopping rule (Golovin et al. 2017, "Google Vizier", section 3.2.1).

    A trial stops at an epoch if its best value so far lies below the median of the others' running averages, their
    means from the first epoch to this one. The others are those that have come to this epoch, whatever became of them
    later: the paper asks complete trials only, of which a search has none for long. It judges from `grace` on, once
    there are ENOUGH others.
    """

    ENOUGH = 3

    def __init__(self, grace: int) -> None:
        self.grace = grace
        self.averages: defaultdict[int, Ranking] = defaultdict(Ranking)  # by epoch
        self.reached: dict[int, int] = {}  # by number of a trial: the last epoch that is in the averages

    def judge(self, seen: Seen) -> bool:
        if seen.epoch < self.grace or seen.epoch <= self.reached.get(seen.number, 0):
            return False
        self.reached[seen.number] = seen.epoch
        average = DIVERGED if seen.status == "diverged" else math.fsum(seen.values) / seen.epoch
        averages = self.averages[seen.epoch]
        averages.add(average)
        return len(averages) > self.ENOUGH and max(seen.values) < averages.median_without(average)
