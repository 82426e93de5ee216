"""What trials are worth to a sampler, on one scale, whatever search they are of and whatever else is weighed.

    forecast = merit(trials, epochs=52)        # `curves.foretell` where there is one search and one goal

Accuracies of former searches (`Seen.run`) are foretold and compared within each of them, and then shifted and stretched
so that middle and upper tail lie where those of this search do. Where a second objective is set (`Seen.cost`), what
counts is a trial's place among those of its search by Pareto fronts.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from kdtune.tuning.curves import Forecast, foretell
from kdtune.tuning.pareto import order, usable_costs
from kdtune.tuning.study import Seen

FEWEST = 5  # trials that tell the scale of a search
UPPER = 0.9  # the quantile that ends the upper tail
Floats = NDArray[np.float64]


def merit(trials: Sequence[Seen], epochs: int) -> Forecast:
    """Of trials that have told of an epoch at least, in the order in which they are given; `epochs` are planned."""
    weighed = any(seen.cost is not None for seen in trials)
    members: dict[str | None, list[int]] = {}
    for k, seen in enumerate(trials):
        members.setdefault(seen.run, []).append(k)
    found = {}
    for run, which in members.items():
        group = [trials[k] for k in which]
        forecast = foretell(group, epochs if run is None else max(seen.epoch for seen in group))
        found[run] = _weighed(forecast, group) if weighed else forecast
    values, spreads = np.empty(len(trials)), np.empty(len(trials))
    enough = len(members.get(None, ())) >= FEWEST
    scale = None if enough else max(members, key=lambda run: len(members[run]))  # whose all others are brought to
    for run, forecast in found.items():
        shown = forecast if run == scale else _on_scale(forecast, found[scale].values)
        values[members[run]], spreads[members[run]] = shown.values, shown.spreads
    return Forecast(values, spreads)


def _weighed(forecast: Forecast, group: Sequence[Seen]) -> Forecast:
    """From 1 for the best by accuracy and cost down to 0."""
    places = np.array(order(forecast.values.tolist(), usable_costs(group)))
    values = 1 - (places + 0.5) / len(places)
    return Forecast(values, forecast.spreads / _tail(forecast.values) * _tail(values))


def _on_scale(forecast: Forecast, others: Floats) -> Forecast:
    """The same with its middle and its upper tail where those of the `others` lie."""
    enough = min(len(forecast.values), len(others)) >= FEWEST
    stretch = _tail(others) / _tail(forecast.values) if enough else 1.0
    values = (forecast.values - np.median(forecast.values)) * stretch + np.median(others)
    return Forecast(values, forecast.spreads * stretch)


def _tail(values: Floats) -> float:
    return max(float(np.quantile(values, UPPER) - np.median(values)), 1e-6)
