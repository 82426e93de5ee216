"""Whether stopping early was safe: how well the order of trials at each rung foretells their order at the end.

    fidelity(read_trials(path), rungs_of_search(experiment))
    # [{"epoch": 6, "trials": 12, "spearman": 0.81, "kendall": 0.64, "low": 0.42, "high": 0.95}, ...]

Only trials that ran in full can tell. Where a stopper chose them they are the better ones, whose order is harder to
foretell than that of all: what is reported errs on the side of caution.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from kdtune.records import TrialRecord

FEWEST = 4  # trials of which a rank correlation says anything
RESAMPLES = 1000
LEVEL = 0.95  # of the interval
Values = npt.NDArray[np.float64]
Groups = npt.NDArray[np.intp]  # for each value the place of its tie, 0 for the lowest


def fidelity(trials: Sequence[TrialRecord], rungs: Sequence[int]) -> list[dict[str, Any]]:
    """Rank correlations between the validation accuracies at each rung and at the end, over trials that ran in full.

    For each rung `epoch`: how many `trials` there were, Spearman's rho and Kendall's tau-b (ties share their mean
    rank), and the interval `low` to `high` that holds rho with 95% confidence (percentile bootstrap over trials, Efron
    & Tibshirani 1993, from a fixed seed). All null for fewer than 4 trials, or where all have the same accuracy. A
    trial that diverged did not run in full. `Any`: numbers, for JSON.
    """
    return [{"epoch": epoch, **_of_rung(trials, epoch)} for epoch in rungs]


def _of_rung(trials: Sequence[TrialRecord], epoch: int) -> dict[str, Any]:
    then, last = _at_and_after(trials, epoch)
    found: dict[str, Any] = {"trials": len(then), "spearman": None, "kendall": None, "low": None, "high": None}
    if len(then) < FEWEST:
        return found
    here, end = groups(then), groups(last)
    rho = spearman(here, end)
    if rho is None:
        return found
    low, high = interval(here, end)
    return found | {"spearman": rho, "kendall": kendall(here, end), "low": low, "high": high}


def _at_and_after(trials: Sequence[TrialRecord], epoch: int) -> tuple[Values, Values]:
    """Accuracies at the rung and at the end of those that ran on to it."""
    pairs = []
    for trial in trials:
        last = trial.epochs[-1]
        at = next((record for record in trial.epochs if record.epoch == epoch), None)
        if trial.complete and not last.diverged and at is not None and epoch < last.epoch:
            pairs.append((at.val_accuracy or 0.0, trial.val_accuracy))
    found = np.array(pairs, dtype=np.float64).reshape(-1, 2)
    return found[:, 0], found[:, 1]


def groups(values: Values) -> Groups:
    """Where each value stands, equal ones together."""
    return np.unique(values, return_inverse=True)[1]


def spearman(one: Groups, other: Groups) -> float | None:
    """Spearman's rho, with ties: Pearson's correlation of mean ranks; None where either has but one value."""
    first, second = (_ranks(places) for places in (one, other))
    first, second = first - first.mean(), second - second.mean()
    spread = np.sqrt((first @ first) * (second @ second))
    return float(np.clip(first @ second / spread, -1, 1)) if spread > 0 else None


def _ranks(places: Groups) -> Values:
    """Mean ranks from 1 on, without sorting: of each tie the number of values before it and half of its own."""
    counts = np.bincount(places)
    return (np.cumsum(counts) - (counts - 1) / 2)[places]


def kendall(one: Groups, other: Groups) -> float:
    """Kendall's tau-b (Kendall 1945): pairs in the same order less pairs in opposite order, corrected for ties."""
    from scipy.stats import kendalltau  # a second of imports, and only a report needs it

    return float(kendalltau(one, other).statistic)


def interval(one: Groups, other: Groups) -> tuple[float, float]:
    """Of Spearman's rho, from resampled trials; resamples of one value only say nothing and are left out."""
    source = np.random.default_rng(0)
    found = []
    for _ in range(RESAMPLES):
        drawn = source.integers(len(one), size=len(one))
        rho = spearman(one[drawn], other[drawn])
        if rho is not None:
            found.append(rho)
    low, high = np.quantile(found, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
