"""Accuracy against a cost: fronts and their order, against what the definitions say word for word."""

import itertools
import math
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdtune.tuning.pareto import MEMORY, Fronts, costs_of, fronts, order, pareto_front
from kdtune.tuning.stoppers import Asha, Ranking
from kdtune.tuning.study import Seen

Points = list[tuple[float, float]]  # value, cost
# few of each, so that there are ties in one and in both
points = st.lists(st.tuples(st.sampled_from([0.0, 0.3, 0.5, 0.9]), st.sampled_from([1.0, 2.0, 8.0, math.inf])))


def dominates(one: tuple[float, float], other: tuple[float, float]) -> bool:
    return one != other and one[0] >= other[0] and one[1] <= other[1]


def peeled(given: Points) -> list[int]:
    """Fronts as they are defined: whoever nobody dominates goes, and so on with the rest."""
    found, left, front = [0] * len(given), set(range(len(given))), 0
    while left:
        first = {k for k in left if not any(dominates(given[other], given[k]) for other in left)}
        for k in first:
            found[k] = front
        left -= first
        front += 1
    return found


def split(given: Points) -> tuple[list[float], list[float]]:
    return [value for value, _ in given], [cost for _, cost in given]


@given(points)
def test_a_front_is_what_nobody_dominates_once_the_fronts_before_are_gone(given: Points) -> None:
    assert fronts(*split(given)) == peeled(given)


@given(points)
def test_the_pareto_front_goes_up_in_both_and_names_equals_once(given: Points) -> None:
    front = pareto_front(*split(given))
    assert {given[k] for k in front} == {given[k] for k, one in enumerate(peeled(given)) if one == 0}
    for before, after in itertools.pairwise(front):
        assert given[before][0] < given[after][0]
        assert given[before][1] < given[after][1]
    assert all(given.index(given[k]) == k for k in front)  # the first of equals


@given(points)
def test_an_order_has_a_place_for_each_and_never_puts_a_later_front_first(given: Points) -> None:
    places = order(*split(given))
    assert sorted(places) == list(range(len(given)))
    in_order = sorted(range(len(given)), key=places.__getitem__)
    assert [peeled(given)[k] for k in in_order] == sorted(peeled(given))


def test_within_a_front_its_ends_come_first_and_then_who_has_most_room() -> None:
    # costs 1, 2, 8, 16 are 0, 1, 3, 4 powers of two: neighbours lie 3/4 + 3/5 and 3/4 + 4/5 apart
    values, costs = [0.1, 0.2, 0.4, 0.6], [1, 2, 8, 16]
    assert order(values, costs) == [1, 3, 2, 0]


def test_the_room_within_a_front_goes_by_the_ratio_of_costs() -> None:
    # by their difference the third would have more room than the second; by their ratio it is the other way round
    values, costs = [0.0, 0.25, 0.5, 0.75], [1, 100, 400, 1000]
    assert order(values, costs) == [1, 2, 3, 0]


def test_who_repeats_another_comes_after_its_whole_front_and_before_the_next() -> None:
    values, costs = [0.5, 0.5, 0.9, 0.4, 0.7], [1, 1, 9, 5, 3]
    places = order(values, costs)
    assert places[1] == 3
    assert places[3] == 4
    assert {places[0], places[2], places[4]} == {0, 1, 2}


def test_one_whose_cost_is_not_known_is_beaten_by_all_that_are_as_good() -> None:
    assert fronts([0.5, 0.5, 0.6], [math.inf, 7, math.inf]) == [1, 0, 0]
    assert order([0.5, 0.6], [math.inf, math.inf]) == [1, 0]


def test_ten_thousand_are_ordered_in_well_under_a_second() -> None:
    values = [math.sin(k) for k in range(10_000)]
    costs = [2 + math.cos(1.7 * k) for k in range(10_000)]
    began = time.process_time()
    order(values, costs)
    assert time.process_time() - began < 1


@pytest.mark.parametrize(
    ("costs", "expected"),
    [([3.0, 1.0, 2.0, None], [2.5, 1.0, 2.5, 1.0]), ([None, 4.0, None, None], [math.inf, 4.0, math.inf, 4.0])],
)
def test_trials_of_one_architecture_share_the_median_of_what_was_measured(
    costs: list[float | None], expected: list[float]
) -> None:
    configs = [{"student.model": name, "distill.alpha": k / 10} for k, name in enumerate(["a", "b", "a", "b"])]
    trials = [Seen(k, config, {}, cost=cost) for k, (config, cost) in enumerate(zip(configs, costs, strict=True))]
    assert costs_of(trials) == expected


# --- at a rung


def arriving(number: int, value: float, cost: float) -> Seen:
    return Seen(number, {"student.model": str(cost)}, {}, [value], status="running", cost=cost)


def test_a_rung_says_how_many_are_ahead_of_the_trial_that_comes() -> None:
    rung = Fronts()
    assert rung.place(arriving(0, 0.9, 100)) == 0
    assert rung.place(arriving(1, 0.5, 100)) == 1  # as dear, and worse
    assert rung.place(arriving(2, 0.4, 10)) == 1  # the cheapest: an end of the front, beside the best
    assert rung.place(arriving(3, 0.3, 100)) == 3
    assert len(rung) == 4


def test_successive_halving_keeps_a_cheap_student_that_plain_accuracy_would_stop() -> None:
    for ranking, stops in ((Fronts, False), (Ranking, True)):
        asha = Asha([[1]], 3, ranking=ranking)
        for number in range(5):
            asha.judge(arriving(number, 0.8 + number / 100, 1000))
        assert asha.judge(arriving(5, 0.6, 10)) == stops
        assert asha.judge(arriving(6, 0.5, 1000))  # beaten in both: neither keeps it


def test_a_cheap_student_that_diverged_is_stopped_for_good() -> None:
    rung = Fronts()
    for number in range(3):
        rung.place(arriving(number, 0.5, 100))
    diverged = arriving(3, 0.0, 1)
    diverged.status = "diverged"
    assert rung.place(diverged) == 3


def test_a_rung_remembers_the_latest_only() -> None:
    rung = Fronts()
    for number in range(MEMORY + 50):
        rung.place(arriving(number, 1 / (number + 1), 10))
    assert len(rung) == MEMORY
    assert rung.come[0][1].number == 50
