"""Rank correlations between rungs and the end: against scipy's, against numbers worked out by hand."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from kdtune.records import TrialRecord
from kdtune.tuning.fidelity import fidelity, groups, interval, spearman
from tests.tuning import record

pairs = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=4, max_size=30)


def trial(number: int, *accuracies: float, epochs: int | None = None, diverged: bool = False) -> TrialRecord:
    length = epochs or len(accuracies)
    records = [record(k, value, epochs=length) for k, value in enumerate(accuracies, start=1)]
    if diverged:
        records[-1] = record(len(records), epochs=length, diverged=True)
    return TrialRecord(f"{number:04d}", {}, tuple(records))


@settings(max_examples=40)
@given(pairs)
def test_correlations_with_ties_are_scipys(given: list[tuple[int, int]]) -> None:
    trials = [trial(k, then / 5, last / 5) for k, (then, last) in enumerate(given)]
    (found,) = fidelity(trials, [1])
    if len({then for then, _ in given}) == 1 or len({last for _, last in given}) == 1:
        assert found == {"epoch": 1, "trials": len(given), **dict.fromkeys(("spearman", "kendall", "low", "high"))}
        return
    assert found["spearman"] == pytest.approx(stats.spearmanr(*zip(*given, strict=True)).statistic)
    assert found["kendall"] == pytest.approx(stats.kendalltau(*zip(*given, strict=True)).statistic)
    assert -1 <= found["low"] <= found["high"] <= 1


def test_the_correlation_is_the_one_worked_out_by_hand() -> None:
    # ranks 1 2 3 4 5 against 2 1 3 4 5: rho = 1 - 6 * (1 + 1) / (5 * 24) = 0.9, tau = (9 - 1) / 10
    trials = [trial(k, then, last) for k, (then, last) in enumerate([(1, 2), (2, 1), (3, 3), (4, 4), (5, 5)])]
    (found,) = fidelity(trials, [1])
    assert found["spearman"] == pytest.approx(0.9)
    assert found["kendall"] == pytest.approx(0.8)


def test_only_trials_that_ran_in_full_and_did_not_diverge_are_counted() -> None:
    whole = [trial(k, k / 10, 0.5, k / 10) for k in range(5)]
    others = [
        trial(5, 0.9, 0.1, epochs=3),
        trial(6, 0.9, 0.9, 0.9, diverged=True),
        trial(7, 0.9, epochs=1),
    ]
    first, second = fidelity([*whole, *others], [1, 2])
    assert (first["trials"], first["spearman"], first["low"], first["high"]) == (5, 1, 1, 1)
    assert (second["trials"], second["spearman"]) == (5, None), "all were equal there"
    assert fidelity(whole[:3], [1])[0] == {"epoch": 1, "trials": 3} | dict.fromkeys(
        ("spearman", "kendall", "low", "high")
    )


def test_the_interval_holds_the_true_correlation_about_as_often_as_it_says() -> None:
    source, held = np.random.default_rng(1), 0
    truth = 6 / np.pi * np.arcsin(0.7 / 2)  # Spearman's rho of normal pairs whose correlation is 0.7
    for _ in range(25):
        drawn = source.multivariate_normal([0, 0], [[1, 0.7], [0.7, 1]], size=60)
        low, high = interval(groups(drawn[:, 0]), groups(drawn[:, 1]))
        held += low <= truth <= high
    assert held >= 21  # of 25 at 95%: fewer come by chance in less than 1 of 100 runs


def test_it_is_the_same_each_time() -> None:
    trials = [trial(k, (k * 7 % 5) / 5, (k * 3 % 8) / 8) for k in range(20)]
    assert fidelity(trials, [1]) == fidelity(trials, [1])


def test_ten_thousand_trials_that_ran_in_full_take_seconds() -> None:
    source = np.random.default_rng(0)
    one, other = (groups(source.random(10_000)) for _ in range(2))
    began = time.process_time()
    interval(one, other)
    assert time.process_time() - began < 5


def test_a_constant_order_has_no_correlation() -> None:
    assert spearman(np.array([0, 0, 0]), np.array([0, 1, 2])) is None
