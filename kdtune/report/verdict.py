"""What a run says in one sentence, and the paired test that it rests on.

Students of one seed start from the same weights and see the images in the same order: what differs between two rows
is compared seed by seed.
"""

import math
import statistics
from collections.abc import Mapping
from typing import Any

from kdtune.records import ALONE, BEST, DISTILLED

LEVEL = 0.95
FEWEST = 3  # seeds from which on a verdict is given
EQUAL = 1e-9  # a standard deviation below this is rounding: accuracies are multiples of one image of a test set


def paired(accuracies: Mapping[int, float], others: Mapping[int, float], against: str) -> dict[str, Any] | None:
    """Student's paired t-test of accuracies by seed, over the seeds that both have; None with fewer than two.

    `difference` is the mean of the differences, `low` to `high` its 95% interval, `p_value` two-sided. These three are
    None where all differences are equal: there is no spread to weigh them against.
    """
    from scipy.special import stdtr, stdtrit  # not imported by whoever only writes lines of final.jsonl

    differences = [accuracies[seed] - others[seed] for seed in sorted(accuracies.keys() & others.keys())]
    count = len(differences)
    if count < 2:
        return None
    mean, spread = statistics.fmean(differences), statistics.stdev(differences)
    found: dict[str, Any] = {"against": against, "difference": mean, "low": None, "high": None, "p_value": None}
    if spread > EQUAL:
        error = spread / math.sqrt(count)
        half = float(stdtrit(count - 1, (1 + LEVEL) / 2)) * error
        p_value = 2 * float(stdtr(count - 1, -abs(mean) / error))
        found |= {"low": mean - half, "high": mean + half, "p_value": p_value}
    return {**found, "seeds": count}


def verdict(summary: Mapping[str, Any]) -> str:
    """One sentence: what the best student gains over the student alone, and whether that is more than chance."""
    rows = {row["name"]: row for row in summary["results"]}
    name = BEST if BEST in rows else DISTILLED
    best, alone = rows[name], rows.get(ALONE)
    if alone is None:
        return f"The {name} student reaches {best['mean']:.2%} on the test set."
    gain = f"The {name} student is {(best['mean'] - alone['mean']) * 100:+.2f} points against the student alone"
    test = best["paired"] if "paired" in best else _of_an_earlier_version(best, alone)
    runs = test["seeds"] if test else 1
    if test is None or runs < FEWEST:
        return f"{gain}; {runs} run{'s' * (runs > 1)} of each cannot tell a gain from chance (final.seeds)."
    if test["p_value"] is None:
        return f"{gain}, with every one of {runs} seeds: without a spread there is no telling a gain from chance."
    word = "a clear gain" if test["low"] > 0 else "a clear loss" if test["high"] < 0 else "within the noise"
    low, high = (f"{test[end] * 100:+.2f}" for end in ("low", "high"))
    return f"{gain}: {word} (95% interval {low} to {high}, paired t-test {p_value(test['p_value'])}, {runs} seeds)."


def _of_an_earlier_version(best: Mapping[str, Any], alone: Mapping[str, Any]) -> dict[str, Any] | None:
    """It kept accuracies in the order of their seeds, which are the same for all rows."""
    one, other = (dict(enumerate(row["test_accuracy"])) for row in (best, alone))
    return paired(one, other, ALONE)


def p_value(value: float) -> str:
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}"
