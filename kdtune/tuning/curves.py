"""What trials would reach in full, told by the curves of those that went further: the merit of a trial for samplers.

    forecast = foretell(within_memory(trials), epochs=52)

Under early stopping a trial's last value says little by itself: one that was stopped at epoch 5 with 0.60 may be better
than another that has 0.62 at epoch 15. So values meet only at equal epochs: between one level and the next (levels
double every second time, up to the planned length) the median gain of the trials that reached both is what the others
may expect, and its spread is how uncertain that is.
"""

import heapq
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kdtune.tuning.study import Seen

BEST, LATEST = 50, 100  # trials that samplers remember of a long search
STEP = 2**0.5  # of one level to the next
UNKNOWN_SPREAD = 0.02  # of a gain that fewer than three trials have shown: two points of accuracy
UNKNOWN_ODDS = 0.2  # the same in log-odds, at an accuracy of 90%
EDGE = 1e-3  # accuracies closer to 0 or 1 count as this close: their odds have no logarithm


@dataclass(frozen=True)
class Forecast:
    """Of N trials, in the order in which they were given."""

    values: NDArray[np.float64]  # [N] accuracy at the planned length
    spreads: NDArray[np.float64]  # [N] standard deviation of its error; 0 for a trial that ran in full

    @property
    def ranks(self) -> NDArray[np.int64]:
        """[N] 0 is the best. Of equals, the trial that is surer ranks before, then the one that was given before."""
        order = np.lexsort((np.arange(len(self.values)), self.spreads, -self.values))
        ranks = np.empty(len(order), dtype=np.int64)
        ranks[order] = np.arange(len(order))
        return ranks


def within_memory(trials: Sequence[Seen]) -> list[Seen]:
    """The latest that have told of an epoch, the best of those before that ran in full, and those that are to tell yet,
    in their order: bounds the cost of a proposal."""
    if len(trials) <= BEST + LATEST:
        return list(trials)
    told = [seen for seen in trials if seen.values]
    complete = [seen for seen in told[:-LATEST] if seen.status == "complete"]
    best = heapq.nlargest(BEST, complete, key=lambda seen: seen.values[-1])
    silent = [seen for seen in trials if not seen.values and not seen.ended]
    return sorted([*best, *told[-LATEST:], *silent], key=lambda seen: seen.number)


def levels_of(epochs: int) -> list[int]:
    """Epochs at which curves are compared, from the planned length downwards to 1."""
    levels = [epochs]
    exact = float(epochs)
    while levels[-1] > 1:
        exact /= STEP
        if round(exact) < levels[-1]:
            levels.append(max(1, round(exact)))
    return levels


def foretell(trials: Sequence[Seen], epochs: int) -> Forecast:
    """Of trials that have told of an epoch at least. Diverged ones reach nothing, for certain."""
    curves = [np.array(() if seen.status == "diverged" else seen.values) for seen in trials]
    return _foretold(curves, epochs, UNKNOWN_SPREAD)


def foretell_bounded(trials: Sequence[Seen], epochs: int) -> Forecast:
    """As `foretell`, but of log-odds: an accuracy stays between 0 and 1, and the nearer it is to these, the less a gain
    that others had can add to it. For people; samplers keep to `foretell`, with which they were measured.

    Spreads are those of the log-odds times their slope. What was measured in full is told as it was measured.
    """
    told = [np.array(() if seen.status == "diverged" else seen.values) for seen in trials]
    odds = [np.log(share / (1 - share)) for share in (curve.clip(EDGE, 1 - EDGE) for curve in told)]
    forecast = _foretold(odds, epochs, UNKNOWN_ODDS)
    values = 1 / (1 + np.exp(-forecast.values))
    known = np.array([len(curve) in (0, epochs) for curve in told], dtype=bool)
    measured = np.array([curve[-1] if len(curve) else 0.0 for curve in told])
    return Forecast(np.where(known, measured, values), np.where(known, 0.0, forecast.spreads * values * (1 - values)))


def _foretold(curves: Sequence[NDArray[np.float64]], epochs: int, unknown: float) -> Forecast:
    levels = levels_of(epochs)
    gains, variances = {epochs: 0.0}, {epochs: 0.0}
    for later, level in itertools.pairwise(levels):
        shown = [curve[later - 1] - curve[level - 1] for curve in curves if len(curve) >= later]
        gains[level] = gains[later] + (float(np.median(shown)) if shown else 0.0)
        variances[level] = variances[later] + (float(np.var(shown, ddof=1)) if len(shown) > 2 else unknown**2)
    reached = np.array([len(curve) for curve in curves], dtype=np.float64)
    last = np.array([curve[-1] if len(curve) else 0.0 for curve in curves])
    upwards = levels[::-1]
    values = last + np.interp(reached, upwards, [gains[level] for level in upwards])
    spreads = np.sqrt(np.interp(reached, upwards, [variances[level] for level in upwards]))
    none = reached == 0
    return Forecast(np.where(none, 0.0, values), np.where(none, 0.0, spreads))
