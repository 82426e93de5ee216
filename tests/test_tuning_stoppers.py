"""Who is stopped: each rule against its own words in a few slow lines, and against numbers worked out by hand."""

import math
import statistics
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdtune.experiment import Experiment, parse
from kdtune.experiment.stopping import rungs_of
from kdtune.tuning.brackets import bracket_of, shares
from kdtune.tuning.making import STOPPERS, make_study
from kdtune.tuning.rungs import brackets_of_search, expected_share, longest_grace, rungs_of_search
from kdtune.tuning.stoppers import Asha, Median, Never, Ranking
from kdtune.tuning.study import Stopper
from tests.experiments import problems_of, raw_with
from tests.tuning import Judged, outcomes

ALPHA = {"distill.alpha": {"uniform": [0, 1]}}
RUNGS = [[1, 3], [3], []]  # three brackets
STOPPERS_OF_9_EPOCHS: list[Callable[[], Stopper]] = [
    Never,
    lambda: Asha([[1, 3]], 3),
    lambda: Asha(RUNGS, 3, shares=shares(2, 3), seed=5),
    lambda: Median(2),
]

# An order in which epochs of up to eight trials are told.
orders = st.lists(st.integers(0, 7), min_size=1, max_size=80)


def experiment_of(stopper: dict[str, Any], **values: object) -> Experiment:
    return parse(raw_with({"train.epochs": 81, "search.stopper": stopper, **values}, ALPHA))


# --- rungs and brackets


def test_rungs_are_powers_of_the_factor_below_the_full_length() -> None:
    assert rungs_of(grace=1, factor=3, epochs=81) == [1, 3, 9, 27]
    assert rungs_of(grace=6, factor=3, epochs=25) == [6, 18]
    assert rungs_of(grace=5, factor=3, epochs=5) == []
    assert rungs_of(grace=1, factor=1.2, epochs=4) == [1, 2, 3]


def test_brackets_hold_trials_in_the_proportions_of_hyperbands_algorithm() -> None:
    # Algorithm 1 for R = 81, eta = 3: ceil(5 / (s + 1) * 3^s) for s = 4, 3, 2, 1, 0
    begun = [81, 34, 15, 8, 5]
    assert shares(rungs=4, factor=3) == pytest.approx([n / sum(begun) for n in begun])
    assert shares(rungs=4, factor=3, brackets=2) == pytest.approx([81 / 115, 34 / 115])
    assert shares(rungs=0, factor=3) == [1]


def test_trials_are_dealt_to_brackets_by_the_seed_in_their_proportions() -> None:
    weights = shares(rungs=4, factor=3)
    dealt = [bracket_of(number, weights, seed=7) for number in range(5000)]
    assert dealt == [bracket_of(number, weights, seed=7) for number in range(5000)]
    assert dealt != [bracket_of(number, weights, seed=8) for number in range(5000)]
    for bracket, share in enumerate(weights):  # within four standard deviations of a binomial
        assert abs(Counter(dealt)[bracket] - 5000 * share) < 4 * math.sqrt(5000 * share * (1 - share))


def test_hyperband_is_asha_in_all_brackets() -> None:
    asha, hyperband = (
        experiment_of({"kind": "asha", "grace_epochs": 1, "brackets": 5}),
        experiment_of({"kind": "hyperband", "grace_epochs": 1}),
    )
    assert brackets_of_search(asha) == brackets_of_search(hyperband)
    rungs, _ = brackets_of_search(hyperband)
    assert rungs == [[1, 3, 9, 27], [3, 9, 27], [9, 27], [27], []]


def test_more_brackets_than_differ_are_refused() -> None:
    (problem,) = problems_of(lambda: experiment_of({"grace_epochs": 9, "brackets": 4})).values()
    assert "brackets is 4, but with rungs at epochs [9, 27] of 81 only 3 differ" in problem


# --- asha


def slow_asha(told: dict[int, list[float | None]], number: int, rungs: list[int], factor: float) -> bool:
    """Looks at all that was ever told: who has come to the rung, or diverged on the way to it from the one before."""
    epoch = len(told[number])
    if epoch not in rungs:
        return False
    before = max((rung for rung in rungs if rung < epoch), default=0)
    arrived = [
        values[epoch - 1] or 0.0 if len(values) >= epoch else 0.0
        for values in told.values()
        if len(values) >= epoch or (values[-1] is None and len(values) > before)
    ]
    if len(arrived) < factor:
        return False
    best = sorted(arrived, reverse=True)[: math.ceil(len(arrived) / factor)]
    return (told[number][-1] or 0.0) < best[-1]


@given(orders, st.integers(0, 1000), st.sampled_from([2, 3, 2.5]))
def test_asha_decides_as_its_brute_force_twin(order: list[int], salt: int, factor: float) -> None:
    rungs = [1, 2, 5]
    agree(order, salt, Asha([rungs], factor), lambda told, number: slow_asha(told, number, rungs, factor))


def agree(
    order: list[int], salt: int, stopper: Stopper, twin: Callable[[dict[int, list[float | None]], int], bool]
) -> None:
    """Tells both of the same epochs; where a trial diverges it ends whatever they say."""
    outcome, judged = outcomes(salt, diverging=0.1), Judged(stopper)
    told: dict[int, list[float | None]] = {}
    ended: set[int] = set()
    for number in order:
        if number in ended:
            continue
        value = outcome(number, len(told.get(number, [])) + 1)
        told.setdefault(number, []).append(value)
        stops = judged.tell(number, value)
        if value is not None:
            assert stops == twin(told, number)
        if stops or value is None:
            ended.add(number)


def test_no_trial_is_judged_before_the_rung_holds_as_many_as_the_reduction_factor() -> None:
    judged = Judged(Asha([[2]], 3))
    assert [judged.run(number, [0.0, value, 0.0]) for number, value in enumerate((0.9, 0.1, 0.2))] == [3, 3, 2]


def test_epochs_between_rungs_decide_nothing() -> None:
    judged = Judged(Asha([[4]], 3))
    assert not any(judged.tell(number, 0.0 if epoch < 4 else 0.5) for epoch in (1, 2, 3) for number in range(9))


def test_a_trial_that_ties_with_the_last_of_the_best_goes_on() -> None:
    judged = Judged(Asha([[1]], 3))
    assert [judged.tell(number, 0.5) for number in range(6)] == [False] * 6


def test_a_trial_that_diverged_counts_at_its_next_rung_as_the_worst() -> None:
    judged = Judged(Asha([[3]], 3))
    for number in (0, 1):
        judged.run(number, [0.4, None])
    assert judged.run(2, [0.1, 0.1, 0.1, 0.1]) == 4, "best of three"
    assert judged.run(3, [0.1, 0.1, 0.05, 0.1]) == 4, "the best two of four"
    assert judged.run(4, [0.1, 0.1, 0.01, 0.1]) == 3


def test_each_bracket_judges_its_own_trials() -> None:
    weights = [0.5, 0.5]
    own = {bracket: [n for n in range(40) if bracket_of(n, weights, 0) == bracket] for bracket in (0, 1)}
    judged = Judged(Asha([[1], [2]], 2, shares=weights, seed=0))
    for number in own[0][:5]:
        judged.tell(number, 0.9)
    assert not judged.tell(own[1][0], 0.1), "of the other bracket, which judges an epoch later"
    assert judged.tell(own[0][5], 0.1)


@pytest.mark.parametrize("make", [lambda: Asha([[1, 3]], 3), lambda: Median(1)])
def test_ten_thousand_trials_are_judged_in_less_than_a_tenth_of_a_millisecond_each(make: Callable[[], Stopper]) -> None:
    judged, outcome = Judged(make()), outcomes(0)
    began = time.process_time()
    for number in range(10_000):
        judged.run(number, [outcome(number, epoch) for epoch in range(1, 4)])
    of_outcomes = time.process_time()
    for number in range(10_000):
        _ = [outcome(number, epoch) for epoch in range(1, 4)]
    spent = (of_outcomes - began) - (time.process_time() - of_outcomes)
    assert spent / 30_000 < 1e-4


# --- median


def slow_median(told: dict[int, list[float | None]], number: int, grace: int) -> bool:
    epoch = len(told[number])
    others = []
    for other, values in told.items():
        if other == number or len(values) < epoch:
            continue
        so_far = values[:epoch]
        others.append(0.0 if None in so_far else statistics.fmean(value or 0.0 for value in so_far))
    if epoch < grace or len(others) < 3:
        return False
    return max(value or 0.0 for value in told[number]) < statistics.median(others)


@given(orders, st.integers(0, 1000), st.integers(1, 4))
def test_the_median_rule_decides_as_its_brute_force_twin(order: list[int], salt: int, grace: int) -> None:
    agree(order, salt, Median(grace), lambda told, number: slow_median(told, number, grace))


def test_a_trial_stops_where_its_best_is_below_the_median_of_the_others_running_averages() -> None:
    judged = Judged(Median(2))
    for number, values in enumerate(([0.2, 0.6], [0.4, 0.8], [0.6, 1.0])):  # averages 0.4, 0.6, 0.8 after two epochs
        assert judged.run(number, values) == 2
    assert judged.run(3, [0.61, 0.1, 0.1]) == 3, "its best so far counts, 0.61 against 0.6"
    assert judged.run(4, [0.1, 0.49, 0.5]) == 2, "below the median of 0.4, 0.6, 0.8 and 0.355"


@given(st.lists(st.integers(0, 5).map(float), min_size=2, max_size=20))
def test_the_median_of_the_others_is_that_of_a_list_without_it(values: list[float]) -> None:
    ranking = Ranking()
    for value in values:
        ranking.add(value)
    for k, value in enumerate(values):
        assert ranking.median_without(value) == statistics.median(values[:k] + values[k + 1 :])
        assert ranking.above(value) == sum(other > value for other in values)


# --- what the file says


def test_every_kind_of_the_file_has_its_stopper() -> None:
    for kind in STOPPERS:
        assert make_study(experiment_of({"kind": kind})).stopper is not None
    assert isinstance(make_study(experiment_of({"kind": "none"})).stopper, Never)


@pytest.mark.parametrize(
    ("stopper", "words"),
    [
        ({"kind": "median", "reduction_factor": 3}, "reduction_factor does nothing: kind median takes grace_epochs"),
        ({"kind": "none", "brackets": 2}, "brackets does nothing: kind none takes no other field"),
        ({"kind": "none", "grace_epochs": 2, "brackets": 1}, "brackets and grace_epochs do nothing"),
        ({"kind": "hyperband", "brackets": 1}, "kind hyperband takes reduction_factor, grace_epochs"),
    ],
)
def test_a_field_that_the_kind_does_not_read_is_refused(stopper: dict[str, object], words: str) -> None:
    problems = problems_of(lambda: experiment_of(stopper))
    assert problems.keys() == {"search.stopper"}
    assert words in problems["search.stopper"]


def test_the_share_of_epochs_that_run_is_worked_out_by_hand() -> None:
    asha = experiment_of({"kind": "asha", "grace_epochs": 9})  # all run to 9, a third on to 27, a ninth to 81
    assert expected_share(asha) == pytest.approx((9 + 18 / 3 + 54 / 9) / 81)
    two = experiment_of({"kind": "asha", "grace_epochs": 9, "brackets": 2})  # ceil(9 * 3 / 3) = 9 trials, ceil(4.5) = 5
    assert expected_share(two) == pytest.approx((9 * (9 + 18 / 3 + 54 / 9) + 5 * (27 + 54 / 3)) / 14 / 81)
    assert expected_share(experiment_of({"kind": "none"})) == 1
    assert expected_share(experiment_of({"kind": "median"})) == 1


def test_the_rungs_of_a_stopper_that_has_none_are_quarters_of_the_run() -> None:
    assert rungs_of_search(experiment_of({"kind": "median"})) == [20, 40, 60]
    assert rungs_of_search(experiment_of({"kind": "none"}, **{"train.epochs": 3})) == [1, 2]
    assert rungs_of_search(experiment_of({"kind": "none"}, **{"train.epochs": 1})) == []
    assert rungs_of_search(experiment_of({"grace_epochs": 9})) == [9, 27]


# --- the grace period


def test_the_grace_period_is_a_tenth_of_the_run_and_covers_its_warm_up() -> None:
    assert experiment_of({}).grace_epochs == 8
    assert experiment_of({}, **{"train.warmup": 0.2}).grace_epochs == 17  # 16.2 of 81 epochs
    assert experiment_of({}, **{"distill.learned_temperature": {"warmup": 0.3}}).grace_epochs == 25
    assert experiment_of({}, **{"train.epochs": 100, "train.warmup": 0.11}).grace_epochs == 11
    assert experiment_of({"grace_epochs": 20}, **{"train.warmup": 0.2}).grace_epochs == 20


def test_a_grace_period_that_ends_within_the_warm_up_is_refused() -> None:
    (problem,) = problems_of(lambda: experiment_of({"grace_epochs": 16}, **{"train.warmup": 0.2})).values()
    assert "grace_epochs is 16, but a run warms up over 17 epochs" in problem
    assert "give at least 17, or null" in problem


def test_a_warm_up_that_is_searched_is_covered_at_its_longest() -> None:
    raw = raw_with({"train.epochs": 20}, {**ALPHA, "train.warmup": {"uniform": [0, 0.5]}})
    assert longest_grace(parse(raw)) == 10
    raw = raw_with({"train.epochs": 20}, {"train.warmup": {"choice": [0, "25e-2"]}})
    assert longest_grace(parse(raw)) == 5
    raw["search"]["stopper"] = {"grace_epochs": 4}
    (problem,) = problems_of(lambda: parse(raw)).values()
    assert "with train.warmup='25e-2': search.stopper.grace_epochs is 4" in problem
