"""The paired test against scipy and numbers worked out by hand, and the sentence that rests on it."""

import math
from typing import Any

import pytest
import torch
from scipy.stats import ttest_rel

from kdtune.report import paired, verdict


def by_seed(*accuracies: float) -> dict[int, float]:
    return dict(enumerate(accuracies, start=1))


def test_the_paired_test_is_that_of_the_textbook() -> None:
    """Differences 0.02, 0.04, 0.06: t = 0.04 / (0.02 / sqrt 3); with two degrees of freedom both have closed forms."""
    found = paired(by_seed(0.92, 0.94, 0.96), by_seed(0.9, 0.9, 0.9), "student alone")
    t = 2 * math.sqrt(3)
    half = 0.95 * math.sqrt(2 / (1 - 0.95**2)) * 0.02 / math.sqrt(3)
    assert found == {
        "against": "student alone",
        "difference": pytest.approx(0.04),
        "low": pytest.approx(0.04 - half),
        "high": pytest.approx(0.04 + half),
        "p_value": pytest.approx(1 - t / math.sqrt(t * t + 2)),
        "seeds": 3,
    }


@pytest.mark.parametrize("seeds", [2, 3, 5, 20])
def test_the_paired_test_is_scipys(seeds: int) -> None:
    generator = torch.Generator().manual_seed(seeds)
    one, other = torch.rand((2, seeds), generator=generator, dtype=torch.float64).tolist()
    found = paired(by_seed(*one), by_seed(*other), "student alone")
    known = ttest_rel(one, other)
    interval = known.confidence_interval(0.95)
    assert found is not None
    assert found["p_value"] == pytest.approx(known.pvalue, rel=1e-9)
    assert (found["low"], found["high"]) == pytest.approx((interval.low, interval.high), rel=1e-9)


def test_only_equal_seeds_are_compared_whatever_their_order() -> None:
    one, other = {3: 0.9, 1: 0.7, 2: 0.8, 9: 0.1}, {1: 0.6, 2: 0.6, 3: 0.6, 4: 0.9}
    assert paired(one, other, "x") == paired(by_seed(0.7, 0.8, 0.9), by_seed(0.6, 0.6, 0.6), "x")
    assert paired(one, {4: 0.5}, "x") is None
    assert paired({1: 0.5}, {1: 0.4}, "x") is None


@pytest.mark.parametrize("gain", [0.0, 0.1])
def test_equal_differences_leave_nothing_to_weigh_a_gain_against(gain: float) -> None:
    """0.8 - 0.7 and 0.4 - 0.3 differ in their last bit, which is no spread."""
    one = by_seed(0.7 + gain, 0.3 + gain, 0.6 + gain)
    found = paired(one, by_seed(0.7, 0.3, 0.6), "student alone")
    assert found is not None
    assert found["difference"] == pytest.approx(gain)
    assert (found["low"], found["high"], found["p_value"]) == (None, None, None)


# --- the sentence


def a_row(name: str, *accuracies: float, **more: Any) -> dict[str, Any]:
    return {"name": name, "mean": sum(accuracies) / len(accuracies), "test_accuracy": list(accuracies), **more}


ALONE = a_row("student alone", 0.79, 0.80, 0.81)


def told(*accuracies: float, name: str = "best") -> str:
    """Of a summary of this version."""
    test = paired(by_seed(*accuracies), by_seed(*ALONE["test_accuracy"][: len(accuracies)]), "student alone")
    alone = a_row("student alone", *ALONE["test_accuracy"][: len(accuracies)], paired=None)
    return verdict({"results": [alone, a_row(name, *accuracies, paired=test)]})


def test_a_clear_gain_is_one_whose_interval_is_above_nothing() -> None:
    assert told(0.82, 0.84, 0.84) == (  # differences 0.03, 0.04, 0.03: 4.3027 * 0.0057735 / sqrt 3 = 0.01434
        "The best student is +3.33 points against the student alone: a clear gain (95% interval +1.90 to +4.77, "
        "paired t-test p = 0.010, 3 seeds)."
    )
    assert "a clear loss (95% interval -4.77 to -1.90" in told(0.76, 0.76, 0.78)
    assert "within the noise (95% interval" in told(0.79, 0.84, 0.82)


def test_what_all_seeds_gain_alike_is_a_clear_gain_though_the_seeds_differ_by_more() -> None:
    """The gain is half a standard deviation over seeds."""
    assert "+0.50 points" in told(0.795, 0.8051, 0.8149)
    assert "a clear gain" in told(0.795, 0.8051, 0.8149)


def test_a_gain_of_many_deviations_may_be_chance_where_seeds_disagree_about_it() -> None:
    """2.5 standard deviations in the mean; but the better a seed is alone, the less it gains: 4.5, 2.5, 0.5 points."""
    line = told(0.835, 0.825, 0.815)
    assert "+2.50 points" in line
    assert "within the noise" in line


def test_few_seeds_and_equal_differences_cannot_tell() -> None:
    assert told(0.9).endswith("; 1 run of each cannot tell a gain from chance (final.seeds).")
    assert told(0.9, 0.91).endswith("; 2 runs of each cannot tell a gain from chance (final.seeds).")
    assert told(0.80, 0.81, 0.82).endswith(", with every one of 3 seeds: without a spread there is no telling a gain "
                                           "from chance.")  # fmt: skip


def test_a_small_p_value_is_told_as_such() -> None:
    assert "p < 0.001" in told(0.89, 0.9, 0.9101)


def test_the_sentence_of_a_run_without_a_baseline_or_without_a_search() -> None:
    assert verdict({"results": [a_row("best", 0.9)]}) == "The best student reaches 90.00% on the test set."
    assert told(0.82, 0.84, 0.84, name="distilled").startswith("The distilled student is +3.33 points")


def test_a_summary_of_an_earlier_version_is_tested_by_its_accuracies() -> None:
    rows = [ALONE, a_row("best", 0.82, 0.84, 0.84)]
    assert verdict({"results": rows}) == told(0.82, 0.84, 0.84)
